/* SPDX-License-Identifier: MIT */
/*
 * All of an SNP guest launched: the digests that were computed elsewhere come out, and what VMMs do differently. Where
 * no outside value is at hand, the same is launched by hand, command by command.
 */
#include "snp_util.h"

#include "../demo/firmware.h"
#include "base/le.h"
#include "launch_util.h"

#define OVMF "/usr/share/ovmf/OVMF.fd"
#define LEN DEMO_FIRMWARE_LEN
#define AP_EIP 0x80b004u
#define BSP_EIP 0xfffffff0u

static void launch_ovmf(uint32_t nvcpus, uint64_t sev_features, const char *digest)
{
	struct gmem_launch_opts opts = { .size = sizeof(opts), .sev_features = sev_features & ~1ull };
	struct gmem_guest guest = {
		.size = sizeof(guest), .nvcpus = nvcpus, .signature = 0x800f12, .sev_features = sev_features
	};
	size_t len;
	uint8_t *image = read_firmware(OVMF, &len);
	struct snp s;

	if (len != 2u << 20)
		SKIP("ovmf", "%s: another version: %zu bytes", OVMF, len);
	guest.firmware = image;
	guest.firmware_len = len;
	snp_up(&s, &opts, len);
	CHECK_OK(gmem_launch_firmware(s.launch, &guest, NULL, NULL));
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	check_digest(&s, digest);
	snp_down(&s);
	free(image);
}

TEST(ovmf_1)
{
	launch_ovmf(1, 1,
		    "11570979c77a0adb515761a702527c8b9e11554e730552621d950988613a3a75c6ff1703f540bd22a9beede8fe7a97e3");
}

TEST(ovmf_1_debug_swap)
{
	launch_ovmf(1, 0x21,
		    "c32245cb607f82791b60757bf0b344d9030e5b5a107342e69c09e668ff28aca5af9ca1dc41ce74f5a4e81aeaeb5e7b54");
}

TEST(ovmf_2)
{
	launch_ovmf(2, 1,
		    "a5b54e62ae971b58274dd24cc6c47b842662617036e7bd67d7326c07ac6363f35399ef933330a5ea160cead90a00603f");
}

TEST(ovmf_2_debug_swap)
{
	launch_ovmf(2, 0x21,
		    "735869e96909943dd1bd046cf281aec588ae12c2c66ee6844e40e93d423722dbe535fd7dd7cb9a5f45a7adf8d6346c89");
}

TEST(ovmf_4)
{
	launch_ovmf(4, 1,
		    "32ac9d7a17d28f7cd4404a4516d2f00519668c40ada2062351c36767e908eb3f090d66c33ab10f80150e00a4385b6d0f");
}

TEST(ovmf_4_debug_swap)
{
	launch_ovmf(4, 0x21,
		    "4842cf9f01c38c50535c62e34990ed6c1e8ab4676304545465367358527c359ba164717398516457f8f986cea3e9a221");
}

TEST(ovmf_64)
{
	launch_ovmf(64, 1,
		    "5639a30a8a52d07ccc971c4debceb92f0976f693a06af17035af8802023588cd7f2e80e96229a6c88a4c89d1f4967351");
}

TEST(ovmf_64_debug_swap)
{
	launch_ovmf(64, 0x21,
		    "07ce08066ff488cdeb60071671d90f001133641cbbc2394ea67a8668fe0b16facaf3ca46ee5abd1d73eb69a506900775");
}

/* ---- a firmware of the demo's, with other sections */

#define SECTIONS (LEN - DEMO_FIRMWARE_SEV + 16) /* the first of them; the TDX metadata's GUID is 0xf0 bytes on */
#define MEM 1
#define SECRETS 2
#define CPUID 3
#define CAA 4
#define HASHES 0x10

struct section {
	uint32_t page, npages, type; /* from LOW_GPA on */
};

static unsigned char *build(const struct section *sections, uint32_t n)
{
	unsigned char *image = aligned_alloc(PG, LEN), *at = image + LEN - DEMO_FIRMWARE_SEV;

	CHECK(image && n <= 10);
	demo_firmware_build(image);
	gmem_put_le32(at + 4, 16 + 12 * n);
	gmem_put_le32(at + 12, n);
	at += 16;
	for (uint32_t i = 0; i < n; i++, at += 12) {
		gmem_put_le32(at, (uint32_t)(LOW_GPA + sections[i].page * PG));
		gmem_put_le32(at + 4, (uint32_t)(sections[i].npages * PG));
		gmem_put_le32(at + 8, sections[i].type);
	}
	return image;
}

static void update(struct snp *s, uint32_t page, int64_t npages, enum gmem_launch_page type)
{
	static _Alignas(4096) unsigned char many[16 * PG];

	CHECK_EQ(gmem_launch_update(s->launch, LOW_GPA + page * PG, type == GMEM_LAUNCH_ZERO ? NULL : many, npages,
				    type),
		 npages);
}

static void check_same(struct snp *s, struct snp *by_hand)
{
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN], want[GMEM_LAUNCH_DIGEST_LEN];

	CHECK_OK(gmem_launch_digest(s->launch, digest));
	CHECK_OK(gmem_launch_digest(by_hand->launch, want));
	CHECK_MEM(digest, want, sizeof(want));
}

static const struct section all_kinds[] = {
	{ 0, 3, MEM }, { 3, 1, SECRETS }, { 4, 1, CPUID }, { 5, 1, CAA }, { 6, 1, HASHES }, { 8, 2, MEM },
};

static void like_by_hand(enum gmem_vmm vmm)
{
	struct gmem_guest guest = { .size = sizeof(guest), .firmware_len = LEN, .vmm = vmm };
	enum gmem_launch_page mem = vmm == GMEM_VMM_GCE ? GMEM_LAUNCH_UNMEASURED : GMEM_LAUNCH_ZERO;
	unsigned char *image = build(all_kinds, 6);
	struct snp s, by_hand;

	guest.firmware = image;
	snp_up(&s, NULL, LEN);
	snp_up(&by_hand, NULL, LEN);
	CHECK_OK(gmem_launch_firmware(s.launch, &guest, NULL, NULL));
	CHECK_EQ(gmem_launch_update(by_hand.launch, FOUR_GIB - LEN, image, LEN / PG, GMEM_LAUNCH_NORMAL), LEN / PG);
	update(&by_hand, 0, 3, mem);
	update(&by_hand, 3, 1, GMEM_LAUNCH_SECRETS);
	if (vmm != GMEM_VMM_EC2)
		update(&by_hand, 4, 1, GMEM_LAUNCH_CPUID);
	update(&by_hand, 5, 1, GMEM_LAUNCH_ZERO);
	update(&by_hand, 6, 1, GMEM_LAUNCH_ZERO);
	update(&by_hand, 8, 2, mem);
	if (vmm == GMEM_VMM_EC2)
		update(&by_hand, 4, 1, GMEM_LAUNCH_CPUID);
	check_same(&s, &by_hand);
	snp_down(&by_hand);
	snp_down(&s);
	free(image);
}

TEST(sections_in_the_order_of_each_vmm)
{
	like_by_hand(GMEM_VMM_QEMU);
	like_by_hand(GMEM_VMM_EC2);
	like_by_hand(GMEM_VMM_GCE);
	like_by_hand(GMEM_VMM_KRUN);
}

/* vCPUs are those of the VMM; RDX of EC2's as the flag says. */
static void vcpus_of(enum gmem_vmm vmm, uint32_t flags)
{
	struct gmem_guest guest = { .size = sizeof(guest),
				    .firmware_len = LEN,
				    .vmm = vmm,
				    .flags = flags,
				    .nvcpus = 3,
				    .signature = 0xa10f10 };
	struct gmem_snp_vcpu snp = { .size = sizeof(snp) };
	const struct gmem_launch_vcpu vcpu = { .size = sizeof(vcpu), .snp = &snp };
	unsigned char *image = build(all_kinds, 1);
	struct snp s, by_hand;

	guest.firmware = image;
	snp_up(&s, NULL, LEN);
	snp_up(&by_hand, NULL, LEN);
	CHECK_OK(gmem_launch_firmware(s.launch, &guest, NULL, NULL));
	CHECK_EQ(gmem_launch_update(by_hand.launch, FOUR_GIB - LEN, image, LEN / PG, GMEM_LAUNCH_NORMAL), LEN / PG);
	update(&by_hand, 0, 3, vmm == GMEM_VMM_GCE ? GMEM_LAUNCH_UNMEASURED : GMEM_LAUNCH_ZERO);
	check_same(&s, &by_hand);
	for (int i = 0; i < 3; i++) {
		CHECK_OK(gmem_snp_vcpu_reset(vmm, i ? AP_EIP : BSP_EIP, 0xa10f10, 1, &snp));
		if (vmm == GMEM_VMM_EC2)
			snp.rdx = flags & GMEM_GUEST_EC2_RDX_ZERO ? 0 : 0x600;
		CHECK_OK(gmem_launch_add_vcpu(by_hand.launch, &vcpu));
	}
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	CHECK_OK(gmem_launch_finish(by_hand.launch, NULL));
	check_same(&s, &by_hand);
	snp_down(&by_hand);
	snp_down(&s);
	free(image);
}

TEST(vcpus_of_each_vmm)
{
	vcpus_of(GMEM_VMM_QEMU, 0);
	vcpus_of(GMEM_VMM_EC2, 0);
	vcpus_of(GMEM_VMM_EC2, GMEM_GUEST_EC2_RDX_ZERO);
	vcpus_of(GMEM_VMM_GCE, 0);
	vcpus_of(GMEM_VMM_KRUN, 0);
}

/* ---- a CPUID table that is refused */

/* One entry: a leaf that there is not, and that says something. */
static void wrong_table(unsigned char *table)
{
	memset(table, 0, PG);
	gmem_put_le32(table, 1);
	gmem_put_le32(table + 16, 0xfff0);
	gmem_put_le32(table + 16 + 24, 0x10);
}

TEST(cpuid_is_launched_as_corrected)
{
	static const struct section cpuid = { 4, 1, CPUID };
	unsigned char *image = build(&cpuid, 1), *table = malloc(PG), *wrong = malloc(PG), *seen = malloc(PG);
	struct gmem_guest guest = { .size = sizeof(guest), .firmware = image, .firmware_len = LEN, .cpuid = table };
	struct snp s;

	CHECK(table && wrong && seen);
	wrong_table(table);
	memcpy(wrong, table, PG);
	snp_up(&s, NULL, LEN);
	CHECK_OK(gmem_launch_firmware(s.launch, &guest, NULL, NULL));
	CHECK(memcmp(table, wrong, PG));
	CHECK_EQ(gmem_get_le32(table + 16 + 24), 0);
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	CHECK_OK(gmem_vcpu_load(s.vcpu, (LOW_GPA + 4 * PG) | s.c, seen, PG));
	CHECK_MEM(seen, table, PG);
	snp_down(&s);
	/* What cannot be corrected ends it. */
	wrong_table(table);
	gmem_put_le32(table, 65);
	snp_up(&s, NULL, LEN);
	CHECK_ERR(gmem_launch_firmware(s.launch, &guest, NULL, NULL), -EIO);
	CHECK_EQ(gmem_launch_status(s.launch), GMEM_SEV_RET_INVALID_PARAM);
	gmem_put_le32(table, 1);
	gmem_put_le32(table + 16 + 40, 1);
	snp_down(&s);
	snp_up(&s, NULL, LEN);
	CHECK_ERR(gmem_launch_firmware(s.launch, &guest, NULL, NULL), -EIO);
	snp_down(&s);
	free(seen);
	free(wrong);
	free(table);
	free(image);
}

/* ---- a kernel, and an SVSM: images with a GUID table of their own */

struct block {
	const char *guid;
	uint32_t data[2];
	uint32_t len;
};

static void put_guid(unsigned char *at, const char *text)
{
	unsigned int a, b, c, d[8];

	CHECK_EQ(sscanf(text, "%8x-%4x-%4x-%2x%2x-%2x%2x%2x%2x%2x%2x", &a, &b, &c, &d[0], &d[1], &d[2], &d[3], &d[4],
			&d[5], &d[6], &d[7]),
		 11);
	gmem_put_le32(at, a);
	gmem_put_le16(at + 4, (uint16_t)b);
	gmem_put_le16(at + 6, (uint16_t)c);
	for (int i = 0; i < 8; i++)
		at[8 + i] = (unsigned char)d[i];
}

/* The table grows down from 32 bytes before the image's end: data, length, GUID; its own entry is the last. */
static void put_table(unsigned char *image, size_t len, const struct block *blocks, uint32_t n)
{
	unsigned char *end = image + len - 32, *at = end - 18;

	put_guid(at + 2, "96b582de-1fb2-45f7-baea-a366c55a082d");
	for (uint32_t i = 0; i < n; i++) {
		at -= 18 + blocks[i].len;
		gmem_put_le32(at, blocks[i].data[0]);
		if (blocks[i].len == 8)
			gmem_put_le32(at + 4, blocks[i].data[1]);
		gmem_put_le16(at + blocks[i].len, (uint16_t)(18 + blocks[i].len));
		put_guid(at + blocks[i].len + 2, blocks[i].guid);
	}
	gmem_put_le16(end - 18, (uint16_t)(end - at));
}

#define SEV_METADATA "dc886566-984a-4798-a75e-5585a7bf67cc"
#define HASH_TABLE "7255371f-3a3b-4b04-927b-1da6efa8d454"
#define SVSM_INFO "a789a612-0597-4c4b-a49f-cbb1fe9d1ddd"

static void check_entry(const unsigned char *at, const char *guid, uint32_t len)
{
	unsigned char want[16];

	put_guid(want, guid);
	CHECK_MEM(at, want, 16);
	CHECK_EQ(gmem_get_le16(at + 16), len);
}

/* The guest finds the table where its firmware looks for it, and zeros around. */
TEST(kernel_hashes)
{
	static const struct section sections[] = { { 0, 2, MEM }, { 6, 1, HASHES } };
	const struct block blocks[] = { { SEV_METADATA, { DEMO_FIRMWARE_SEV }, 4 },
					{ HASH_TABLE, { LOW_GPA + 6 * PG + 0xc00, 0x400 }, 8 } };
	unsigned char *image = build(sections, 2), *seen = malloc(PG);
	struct gmem_kernel_hashes kernel;
	struct gmem_guest guest = { .size = sizeof(guest), .firmware_len = LEN, .kernel = &kernel };
	static _Alignas(4096) unsigned char copy[PG];
	const unsigned char *table = seen + 0xc00;
	struct snp s, by_hand;

	CHECK(seen);
	memset(kernel.cmdline, 1, 32);
	memset(kernel.initrd, 2, 32);
	memset(kernel.kernel, 3, 32);
	put_table(image, LEN, blocks, 2);
	guest.firmware = image;
	snp_up(&s, NULL, LEN);
	snp_up(&by_hand, NULL, LEN);
	CHECK_OK(gmem_launch_firmware(s.launch, &guest, NULL, NULL));
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	CHECK_OK(gmem_vcpu_load(s.vcpu, (LOW_GPA + 6 * PG) | s.c, seen, PG));
	check_entry(table, "9438d606-4f22-4cc9-b479-a793d411fd21", 168);
	check_entry(table + 18, "97d02dd8-bd20-4c94-aa78-e7714d36ab2a", 50);
	CHECK_MEM(table + 36, kernel.cmdline, 32);
	check_entry(table + 68, "44baf731-3a2f-4bd7-9af1-41e29169781d", 50);
	CHECK_MEM(table + 86, kernel.initrd, 32);
	check_entry(table + 118, "4de79437-abd2-427f-b835-d5b172d2045b", 50);
	CHECK_MEM(table + 136, kernel.kernel, 32);
	for (uint32_t i = 0; i < PG; i++)
		CHECK(!seen[i] || (i >= 0xc00 && i < 0xc00 + 168));
	/* Measured as what it is. */
	memcpy(copy, seen, PG);
	CHECK_EQ(gmem_launch_update(by_hand.launch, FOUR_GIB - LEN, image, LEN / PG, GMEM_LAUNCH_NORMAL), LEN / PG);
	update(&by_hand, 0, 2, GMEM_LAUNCH_ZERO);
	CHECK_EQ(gmem_launch_update(by_hand.launch, LOW_GPA + 6 * PG, copy, 1, GMEM_LAUNCH_NORMAL), 1);
	check_same(&s, &by_hand);
	snp_down(&by_hand);
	snp_down(&s);
	free(seen);
	free(image);
}

/* Firmware, below it variables that are not launched, below them the SVSM, whose metadata counts. */
TEST(svsm)
{
	enum { FIRMWARE = 16 * 4096, VARS = 4 * 4096 };
	static const struct section sections[] = { { 0, 2, MEM }, { 5, 1, CAA }, { 3, 1, SECRETS }, { 4, 1, CPUID } };
	const struct block blocks[] = { { SEV_METADATA, { DEMO_FIRMWARE_SEV }, 4 }, { SVSM_INFO, { 0x1230 }, 4 } };
	const uint64_t above = FIRMWARE + VARS, svsm_gpa = FOUR_GIB - above - LEN;
	unsigned char *svsm = build(sections, 4), *firmware = aligned_alloc(PG, FIRMWARE);
	struct gmem_guest guest = { .size = sizeof(guest),
				    .firmware = firmware,
				    .firmware_len = FIRMWARE,
				    .vmm = GMEM_VMM_SVSM,
				    .svsm = svsm,
				    .svsm_len = LEN,
				    .vars_len = VARS,
				    .nvcpus = 2,
				    .signature = 0x800f12 };
	struct gmem_snp_vcpu snp = { .size = sizeof(snp) };
	const struct gmem_launch_vcpu vcpu = { .size = sizeof(vcpu), .snp = &snp };
	struct snp s, by_hand;

	CHECK(firmware);
	memset(firmware, 'f', FIRMWARE);
	put_table(svsm, LEN, blocks, 2);
	snp_up(&s, NULL, LEN + above);
	snp_up(&by_hand, NULL, LEN + above);
	CHECK_OK(gmem_launch_firmware(s.launch, &guest, NULL, NULL));
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	CHECK_EQ(gmem_launch_update(by_hand.launch, FOUR_GIB - FIRMWARE, firmware, FIRMWARE / PG, GMEM_LAUNCH_NORMAL),
		 FIRMWARE / PG);
	CHECK_EQ(gmem_launch_update(by_hand.launch, svsm_gpa, svsm, LEN / PG, GMEM_LAUNCH_NORMAL), LEN / PG);
	update(&by_hand, 0, 2, GMEM_LAUNCH_ZERO);
	update(&by_hand, 5, 1, GMEM_LAUNCH_ZERO);
	update(&by_hand, 3, 1, GMEM_LAUNCH_SECRETS);
	update(&by_hand, 4, 1, GMEM_LAUNCH_CPUID);
	CHECK_OK(gmem_snp_vcpu_reset(GMEM_VMM_SVSM, (uint32_t)svsm_gpa + 0x1230, 0x800f12, 1, &snp));
	CHECK_OK(gmem_launch_add_vcpu(by_hand.launch, &vcpu));
	CHECK_OK(gmem_launch_add_vcpu(by_hand.launch, &vcpu));
	CHECK_OK(gmem_launch_finish(by_hand.launch, NULL));
	check_same(&s, &by_hand);
	/* The variables stay the guest's to take. */
	CHECK_ERR(gmem_vcpu_load(s.vcpu, (FOUR_GIB - above) | s.c, firmware, 1), -EACCES);
	snp_down(&by_hand);
	snp_down(&s);
	free(firmware);
	free(svsm);
}

/* ---- refused */

TEST(guests_that_are_none)
{
	unsigned char *image = build(all_kinds, 6);
	struct gmem_guest guest = { .size = sizeof(guest), .firmware = image, .firmware_len = LEN };
	const struct gmem_kernel_hashes kernel = { .cmdline = { 1 } };
	struct gmem_guest g = guest;
	struct snp s;

	snp_up(&s, NULL, LEN);
	g.size--;
	CHECK_ERR(gmem_launch_firmware(s.launch, &g, NULL, NULL), -EINVAL);
	g = guest;
	g.flags = 1u << 7;
	CHECK_ERR(gmem_launch_firmware(s.launch, &g, NULL, NULL), -EINVAL);
	g = guest;
	g.vmm = 5;
	CHECK_ERR(gmem_launch_firmware(s.launch, &g, NULL, NULL), -EINVAL);
	g = guest;
	g.firmware = NULL;
	CHECK_ERR(gmem_launch_firmware(s.launch, &g, NULL, NULL), -EINVAL);
	g = guest;
	g.nvcpus = 1;
	CHECK_ERR(gmem_launch_firmware(s.launch, &g, NULL, NULL), -EINVAL);
	CHECK_HAS(gmem_last_error(), "signature");
	g = guest;
	g.vmm = GMEM_VMM_SVSM;
	CHECK_ERR(gmem_launch_firmware(s.launch, &g, NULL, NULL), -EINVAL);
	/* The demo's firmware says nowhere where it looks for the table of hashes. */
	g = guest;
	g.kernel = &kernel;
	CHECK_ERR(gmem_launch_firmware(s.launch, &g, NULL, NULL), -ENOENT);
	CHECK_HAS(gmem_last_error(), "7255371f-3a3b-4b04-927b-1da6efa8d454");
	/* Features that the machine was not made with. */
	g = guest;
	g.nvcpus = 1;
	g.signature = 0x800f12;
	g.sev_features = 0x21;
	CHECK_ERR(gmem_launch_firmware(s.launch, &g, NULL, NULL), -EINVAL);
	CHECK_HAS(gmem_last_error(), "sev_features");
	snp_down(&s);
	free(image);
}
