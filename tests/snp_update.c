/* SPDX-License-Identifier: MIT */
/* SNP_LAUNCH_UPDATE: every check with its status, of two faults at once the first in order; what becomes of a page. */
#include "snp_asp_util.h"

/* sha384("page") as contents; pages of zeros: from the empty digest, at 0x1000. */
#define SNP_NORMAL "e6e4d78904d9d6b33c0cbfd121998fd2d11744dae606b3aee35e2a45d6869b60b35c63928a9232bef72d6be386f48ec6"
#define SNP_ZERO "4bd4147976a1e7554c1c778a781affc1c672f1965a727ba16084989b7e356044a28bbe585a2f75dac9356fa5ab78f061"
#define SNP_UNMEASURED \
	"81475a112c0223cebe1ccb31a0aa2567772871200b33515a3cbbd5ed6a68a8e630902dd83469ea6553554bfb67111fad"
#define SNP_SECRETS "ede71fa5ddc72c3de70c6ff1149b8ecb6ef08b74b1d3a72c2cece10bd140c06a6181343d33def7db6cc0da1ff9ba4805"
#define SNP_CPUID "af3c8d305f882f039a48318a961572ddc7ebf40b3d1eae828f4fa6e27a7b3078cf2d84b459e002fb58b4ae83efd7f29c"

static void check_ld(const char *expected)
{
	char hex[2 * GMEM_SNP_LD_LEN + 1];

	for (size_t i = 0; i < GMEM_SNP_LD_LEN; i++)
		snprintf(hex + 2 * i, 3, "%02x", context()->ld[i]);
	CHECK_STR(hex, expected);
}

static struct gmem_snp_cmd_launch_update update_cmd(uint32_t type)
{
	return (struct gmem_snp_cmd_launch_update){ .gctx_paddr = paddr(ctx_page),
						    .page_paddr = paddr(page),
						    .page_type = type & 7 };
}

/* Everything that can be wrong is, and is put right one by one in the order in which it is found. */
TEST(update_checks_in_order)
{
	struct gmem_snp_cmd_launch_update cmd;
	char *second, *right;

	launch();
	right = page;
	second = memory + 3 * PAGE; /* not aligned to 2 MiB */
	asp.initialised = false;
	context()->state = GMEM_SNP_GUEST_RUNNING;
	context()->asid = 0;
	context()->imi_en = true;
	memset(second, 0xff, PAGE);
	cmd = update_cmd(0);
	cmd.gctx_paddr = paddr(right);
	cmd.page_paddr = paddr(second);
	cmd.reserved4 = 1;
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), INVALID_PARAM);
	cmd.reserved4 = 0;
	cmd.reserved3 = 1;
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), INVALID_PARAM);
	cmd.reserved3 = 0;
	cmd.reserved2 = 1;
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), INVALID_PARAM);
	cmd.reserved2 = 0;
	cmd.reserved = 1u << 26;
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), INVALID_PARAM);
	cmd.reserved = 0;
	cmd.page_paddr++;
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), INVALID_PARAM);
	cmd.page_paddr--;
	cmd.gctx_paddr++;
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), INVALID_PARAM);
	cmd.gctx_paddr--;
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), INVALID_PLATFORM_STATE);
	asp.initialised = true;
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), INVALID_GUEST);
	cmd.gctx_paddr = paddr(ctx_page);
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), INVALID_PAGE_STATE);
	set(second, (struct gmem_rmp_entry){ .assigned = 1, .immutable = 1, .large = 1, .asid = 2, .gpa = 2 });
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), INVALID_PAGE_SIZE);
	cmd.page_size = 1;
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), INVALID_ADDRESS);
	set(memory, (struct gmem_rmp_entry){ .assigned = 1, .immutable = 1, .large = 1, .asid = 2, .gpa = 2 });
	cmd.page_paddr = paddr(memory);
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), INVALID_PARAM); /* type 0 */
	cmd.page_type = 7;
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), INVALID_PARAM);
	for (uint32_t type = 2; type < 7; type++) {
		cmd.page_type = type & 7;
		if (type == 2 || type == 5 || type == 6)
			CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), INVALID_PAGE_SIZE);
		else
			CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), INVALID_GUEST_STATE);
	}
	cmd.page_type = 6;
	cmd.page_size = 0;
	cmd.page_paddr = paddr(second);
	set(second, (struct gmem_rmp_entry){ .assigned = 1, .immutable = 1, .asid = 2, .gpa = 2 });
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), INVALID_GUEST_STATE);
	context()->state = GMEM_SNP_GUEST_LAUNCH;
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), INACTIVE);
	context()->asid = ASID;
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), INVALID_PAGE_OWNER);
	prepare(second);
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), INVALID_PARAM); /* not of the migration's image */
	CHECK(second[0] == (char)0xff);
	cmd.imi_page = 1;
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), INVALID_PARAM); /* the table */
	memset(second, 0, PAGE);
	CHECK(ld_is_empty());
	CHECK_EQ(state(second), GMEM_RMP_PRE_GUEST);
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), SUCCESS);
	CHECK_EQ(state(second), GMEM_RMP_GUEST_VALID);
	CHECK(!ld_is_empty());
	CHECK_MEM(context()->ld, context()->imd, GMEM_SNP_LD_LEN);
	power_off();
}

static void one_page(uint32_t type, const char *digest)
{
	struct gmem_snp_cmd_launch_update cmd;
	static const char zeros[PAGE];
	struct gmem_rmp_entry e;

	launch();
	memset(page, type == 3 || type == 5 ? 'x' : 0, PAGE);
	cmd = update_cmd(type);
	cmd.vmpl2_perms = 3;
	if (digest)
		cmd.vmpl2_perms = 0;
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), SUCCESS);
	if (digest)
		check_ld(digest);
	e = gmem_rmp_read(&rmp, pfn(page));
	CHECK_EQ(gmem_rmp_entry_state(&e), GMEM_RMP_GUEST_VALID);
	CHECK_EQ(e.perms[2], cmd.vmpl2_perms);
	CHECK_EQ(e.vmsa, type == 2);
	if (type != 5)
		CHECK_MEM(page, zeros, PAGE);
	else
		CHECK_EQ(page[0], 3);
	/* Once is enough. */
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), INVALID_PAGE_STATE);
	power_off();
}

TEST(page_types)
{
	one_page(1, SNP_NORMAL);
	one_page(2, NULL);
	one_page(3, SNP_ZERO);
	one_page(4, SNP_UNMEASURED);
	one_page(5, SNP_SECRETS);
	one_page(6, SNP_CPUID);
	one_page(1, NULL);
}

/* The digest of a page of 2 MiB is that of 512 small ones; every page of it counts. */
TEST(large_page)
{
	uint8_t large_ld[GMEM_SNP_LD_LEN];
	struct gmem_snp_cmd_launch_update cmd;
	struct gmem_rmp_entry e = { .assigned = 1, .immutable = 1, .large = 1, .asid = ASID, .gpa = 0x200 };

	launch();
	for (uint32_t i = 0; i < LARGE; i++)
		memset(memory + (size_t)i * PAGE, (int)(i + 1), PAGE);
	set(memory, e);
	cmd = update_cmd(1);
	cmd.page_size = 1;
	cmd.page_paddr = paddr(memory);
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), SUCCESS);
	e = gmem_rmp_lookup(&rmp, pfn(memory) + 511);
	CHECK(e.large && e.validated && !e.immutable);
	memcpy(large_ld, context()->ld, sizeof(large_ld));
	memset(context()->ld, 0, sizeof(large_ld));
	set(memory, (struct gmem_rmp_entry){ .assigned = 0 });
	cmd.page_size = 0;
	for (uint32_t i = 0; i < LARGE; i++) {
		cmd.page_paddr = paddr(memory + (size_t)i * PAGE);
		set(memory + (size_t)i * PAGE,
		    (struct gmem_rmp_entry){ .assigned = 1, .immutable = 1, .asid = ASID, .gpa = 0x200 + i });
		CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), SUCCESS);
	}
	CHECK_MEM(context()->ld, large_ld, sizeof(large_ld));
	power_off();
}

/* What the processor sets itself in a VMSA is not measured; it is in the page as it was. */
TEST(vmsa_tsc)
{
	struct gmem_snp_cmd_launch_update cmd;
	uint8_t ld[GMEM_SNP_LD_LEN];

	for (int i = 0; i < 3; i++) {
		launch();
		memset(page, 'v', PAGE);
		memset(page + 0x2f0, i, 16);
		if (i == 2)
			page[0x300] = 0;
		cmd = update_cmd(2);
		CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), SUCCESS);
		CHECK_EQ(page[0x2ff], i);
		if (i)
			CHECK_EQ(!memcmp(ld, context()->ld, sizeof(ld)), i == 1);
		memcpy(ld, context()->ld, sizeof(ld));
		power_off();
	}
}

/* A table that is refused comes back in the clear, corrected; nothing is measured, and the page is still prepared. */
TEST(cpuid_refused)
{
	struct gmem_snp_cmd_launch_update cmd;
	struct gmem_snp_cmd_page_reclaim r;
	uint32_t *words;

	launch();
	words = (uint32_t *)page;
	memset(page, 0, PAGE);
	words[0] = 1;
	words[4] = 0xfff0; /* a leaf that there is not */
	words[4 + 6] = 1;
	cmd = update_cmd(6);
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), INVALID_PARAM);
	CHECK_EQ(words[4 + 6], 0);
	CHECK(ld_is_empty());
	CHECK_EQ(state(page), GMEM_RMP_PRE_GUEST);
	r.paddr = paddr(page);
	CHECK_STATUS(gmem_snp_page_reclaim(&asp, &r), SUCCESS);
	CHECK_EQ(state(page), GMEM_RMP_GUEST_INVALID);
	/* As corrected it is taken. A wrong header is not corrected. */
	prepare(page);
	words[1] = 1;
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), INVALID_PARAM);
	CHECK_EQ(words[1], 1);
	words[1] = 0;
	CHECK_STATUS(gmem_snp_launch_update(&asp, &cmd), SUCCESS);
	CHECK(!ld_is_empty());
	power_off();
}
