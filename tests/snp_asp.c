/* SPDX-License-Identifier: MIT */
/* Commands about the guest as a whole: every check with its status, and of two faults at once the first in order. */
#include "snp_asp_util.h"

/* ---- contexts */

TEST(gctx_create)
{
	struct gmem_snp_cmd_addr cmd;

	power_on();
	/* All is wrong; then each is put right in turn. */
	cmd.gctx_paddr = paddr(ctx_page) + 1;
	CHECK_STATUS(gmem_snp_gctx_create(&asp, &cmd), INVALID_PARAM);
	cmd.gctx_paddr--;
	CHECK_STATUS(gmem_snp_gctx_create(&asp, &cmd), INVALID_PLATFORM_STATE);
	CHECK_STATUS(gmem_snp_init(&asp), SUCCESS);
	CHECK_STATUS(gmem_snp_init(&asp), INVALID_PLATFORM_STATE);
	CHECK_STATUS(gmem_snp_gctx_create(&asp, &cmd), INVALID_PAGE_STATE);
	set(ctx_page, (struct gmem_rmp_entry){ .assigned = 1, .immutable = 1, .large = 1 });
	CHECK_STATUS(gmem_snp_gctx_create(&asp, &cmd), INVALID_PAGE_SIZE);
	set(ctx_page, (struct gmem_rmp_entry){ .assigned = 1, .immutable = 1 });
	memset(ctx_page, 0xff, PAGE);
	CHECK_STATUS(gmem_snp_gctx_create(&asp, &cmd), SUCCESS);
	CHECK_EQ(state(ctx_page), GMEM_RMP_CONTEXT);
	CHECK(ld_is_empty());
	CHECK_STATUS(gmem_snp_gctx_create(&asp, &cmd), INVALID_PAGE_STATE);
	CHECK_STATUS(gmem_snp_decommission(&asp, &cmd), SUCCESS);
	CHECK_EQ(state(ctx_page), GMEM_RMP_FIRMWARE);
	CHECK_STATUS(gmem_snp_decommission(&asp, &cmd), INVALID_GUEST);
	cmd.gctx_paddr++;
	CHECK_STATUS(gmem_snp_decommission(&asp, &cmd), INVALID_PARAM);
	power_off();
}

TEST(activate)
{
	struct gmem_snp_cmd_activate cmd = { .gctx_paddr = 8 };
	struct gmem_snp_cmd_launch_start start;
	struct gmem_snp_cmd_addr addr;

	power_on();
	start = start_cmd();
	CHECK_STATUS(gmem_snp_activate(&asp, &cmd), INVALID_PARAM);
	cmd.gctx_paddr = paddr(ctx_page);
	CHECK_STATUS(gmem_snp_activate(&asp, &cmd), INVALID_PLATFORM_STATE);
	power_off();
	create();
	cmd.gctx_paddr = paddr(page);
	CHECK_STATUS(gmem_snp_activate(&asp, &cmd), INVALID_GUEST);
	cmd.gctx_paddr = paddr(ctx_page);
	CHECK_STATUS(gmem_snp_activate(&asp, &cmd), INVALID_GUEST_STATE);
	start = start_cmd();
	CHECK_STATUS(gmem_snp_launch_start(&asp, &start), SUCCESS);
	CHECK_STATUS(gmem_snp_activate(&asp, &cmd), INVALID_ASID);
	cmd.asid = GMEM_RMP_MAX_ASID + 1;
	CHECK_STATUS(gmem_snp_activate(&asp, &cmd), INVALID_ASID);
	cmd.asid = ASID;
	/* A page is the guest's of another time. */
	prepare(page);
	CHECK_STATUS(gmem_snp_activate(&asp, &cmd), INVALID_CONFIG);
	set(page, (struct gmem_rmp_entry){ .assigned = 0 });
	CHECK_STATUS(gmem_snp_activate(&asp, &cmd), SUCCESS);
	CHECK_STATUS(gmem_snp_activate(&asp, &cmd), ACTIVE);
	/* A second guest: the ASID is taken, until the first is gone. */
	set(page, (struct gmem_rmp_entry){ .assigned = 1, .immutable = 1 });
	addr.gctx_paddr = cmd.gctx_paddr = start.gctx_paddr = paddr(page);
	CHECK_STATUS(gmem_snp_gctx_create(&asp, &addr), SUCCESS);
	CHECK_STATUS(gmem_snp_launch_start(&asp, &start), SUCCESS);
	CHECK_STATUS(gmem_snp_activate(&asp, &cmd), ASID_OWNED);
	addr.gctx_paddr = paddr(ctx_page);
	CHECK_STATUS(gmem_snp_decommission(&asp, &addr), SUCCESS);
	CHECK_STATUS(gmem_snp_activate(&asp, &cmd), SUCCESS);
	power_off();
}

/* ---- SNP_LAUNCH_START */

TEST(launch_start)
{
	struct gmem_snp_cmd_launch_start cmd;

	power_on();
	cmd = start_cmd();
	cmd.reserved = 1;
	CHECK_STATUS(gmem_snp_launch_start(&asp, &cmd), INVALID_PARAM);
	cmd.reserved = 0;
	cmd.ma_gctx_paddr = 1;
	CHECK_STATUS(gmem_snp_launch_start(&asp, &cmd), INVALID_PARAM);
	cmd.ma_gctx_paddr = 0;
	CHECK_STATUS(gmem_snp_launch_start(&asp, &cmd), INVALID_PLATFORM_STATE);
	power_off();
	create();
	cmd = start_cmd();
	cmd.gctx_paddr = paddr(page);
	CHECK_STATUS(gmem_snp_launch_start(&asp, &cmd), INVALID_GUEST);
	cmd.gctx_paddr = paddr(ctx_page);
	/* The agent's context comes before the policy. */
	cmd.ma_en = 1;
	cmd.policy = 0;
	cmd.ma_gctx_paddr = paddr(page);
	CHECK_STATUS(gmem_snp_launch_start(&asp, &cmd), INVALID_GUEST);
	cmd.ma_en = 0;
	CHECK_STATUS(gmem_snp_launch_start(&asp, &cmd), POLICY_FAILURE);
	cmd.policy = POLICY;
	CHECK_STATUS(gmem_snp_launch_start(&asp, &cmd), SUCCESS);
	cmd.policy = 0;
	CHECK_STATUS(gmem_snp_launch_start(&asp, &cmd), INVALID_GUEST_STATE);
	power_off();
}

static void with_policy(uint64_t policy, bool smt, bool allowed)
{
	struct gmem_snp_cmd_launch_start cmd;

	create();
	asp.smt = smt;
	cmd = start_cmd();
	cmd.policy = policy;
	if (allowed)
		CHECK_STATUS(gmem_snp_launch_start(&asp, &cmd), SUCCESS);
	else
		CHECK_STATUS(gmem_snp_launch_start(&asp, &cmd), POLICY_FAILURE);
	power_off();
}

TEST(policies)
{
	with_policy(0x30000, true, true);
	with_policy(0x10000, true, false); /* bit 17 */
	with_policy(0x20000, true, false); /* no SMT, and there is */
	with_policy(0x20000, false, true);
	with_policy(0x30000 | 1 << 8 | 55, true, true);
	with_policy(0x30000 | 1 << 8 | 56, true, false);
	with_policy(0x30000 | 2 << 8, true, false);
	with_policy(0x30000 | 0 << 8 | 255, true, true);
	with_policy(0x30000 | 1 << 18 | 1 << 19 | 1 << 20, true, true);
	with_policy(0x30000 | 1 << 21, true, false);
	with_policy(0x30000 | 1ull << 63, true, false);
}

TEST(migration_agent)
{
	struct gmem_snp_cmd_launch_start cmd;
	struct gmem_snp_cmd_addr addr;

	launch();
	set(page, (struct gmem_rmp_entry){ .assigned = 1, .immutable = 1 });
	addr.gctx_paddr = paddr(page);
	CHECK_STATUS(gmem_snp_gctx_create(&asp, &addr), SUCCESS);
	cmd = start_cmd();
	cmd.gctx_paddr = paddr(page);
	cmd.ma_en = 1;
	cmd.ma_gctx_paddr = paddr(ctx_page);
	CHECK_STATUS(gmem_snp_launch_start(&asp, &cmd), POLICY_FAILURE);
	cmd.policy |= 1 << 18 | 1 << 20;
	CHECK_STATUS(gmem_snp_launch_start(&asp, &cmd), POLICY_FAILURE); /* the agent may be on two sockets */
	cmd.policy &= ~(1ull << 20);
	context()->migration_agent = 0x1000;
	CHECK_STATUS(gmem_snp_launch_start(&asp, &cmd), POLICY_FAILURE); /* it has an agent itself */
	context()->migration_agent = UINT64_MAX;
	CHECK_STATUS(gmem_snp_launch_start(&asp, &cmd), SUCCESS);
	power_off();
}

/* ---- SNP_LAUNCH_FINISH, SNP_PAGE_RECLAIM */

TEST(launch_finish)
{
	struct gmem_snp_cmd_launch_finish cmd = { .id_block_en = 0 };
	static uint8_t id_block[GMEM_SNP_ID_BLOCK_LEN], id_auth[GMEM_SNP_ID_AUTH_LEN];

	launch();
	asp.initialised = false;
	context()->imi_en = true;
	context()->asid = 0;
	cmd.gctx_paddr = paddr(page);
	cmd.reserved = 1;
	cmd.id_block_en = 1;
	cmd.id_block_paddr = paddr(id_block);
	cmd.id_auth_paddr = paddr(id_auth);
	id_block[0] = 1;
	CHECK_STATUS(gmem_snp_launch_finish(&asp, &cmd), INVALID_PARAM);
	cmd.reserved = 0;
	CHECK_STATUS(gmem_snp_launch_finish(&asp, &cmd), INVALID_PLATFORM_STATE);
	asp.initialised = true;
	CHECK_STATUS(gmem_snp_launch_finish(&asp, &cmd), INVALID_GUEST);
	cmd.gctx_paddr = paddr(ctx_page);
	CHECK_STATUS(gmem_snp_launch_finish(&asp, &cmd), INVALID_GUEST_STATE);
	context()->imi_en = false;
	CHECK_STATUS(gmem_snp_launch_finish(&asp, &cmd), INACTIVE);
	context()->asid = ASID;
	CHECK_STATUS(gmem_snp_launch_finish(&asp, &cmd), BAD_MEASUREMENT);
	id_block[0] = 0;
	CHECK_STATUS(gmem_snp_launch_finish(&asp, &cmd), POLICY_FAILURE);
	id_block[0x58 + 2] = 3;
	CHECK_STATUS(gmem_snp_launch_finish(&asp, &cmd), INVALID_PARAM);
	id_auth[0] = 1;
	CHECK_STATUS(gmem_snp_launch_finish(&asp, &cmd), BAD_SIGNATURE);
	CHECK_EQ(context()->state, GMEM_SNP_GUEST_LAUNCH);
	cmd.id_block_en = 0;
	cmd.vcek_dis = 1;
	cmd.host_data[31] = 9;
	CHECK_STATUS(gmem_snp_launch_finish(&asp, &cmd), SUCCESS);
	CHECK_EQ(context()->state, GMEM_SNP_GUEST_RUNNING);
	CHECK_EQ(context()->host_data[31], 9);
	CHECK(context()->vcek_dis);
	CHECK_STATUS(gmem_snp_launch_finish(&asp, &cmd), INVALID_GUEST_STATE);
	power_off();
}

TEST(page_reclaim)
{
	struct gmem_snp_cmd_page_reclaim cmd;

	power_on();
	cmd.paddr = paddr(page) | 2;
	CHECK_STATUS(gmem_snp_page_reclaim(&asp, &cmd), INVALID_PARAM);
	cmd.paddr = paddr(memory + PAGE) | 1;
	CHECK_STATUS(gmem_snp_page_reclaim(&asp, &cmd), INVALID_PLATFORM_STATE);
	CHECK_STATUS(gmem_snp_init(&asp), SUCCESS);
	CHECK_STATUS(gmem_snp_page_reclaim(&asp, &cmd), INVALID_PAGE_SIZE);
	set(memory + PAGE, (struct gmem_rmp_entry){ .large = 1 });
	CHECK_STATUS(gmem_snp_page_reclaim(&asp, &cmd), INVALID_ADDRESS);
	cmd.paddr = paddr(page);
	CHECK_STATUS(gmem_snp_page_reclaim(&asp, &cmd), SUCCESS); /* the host's already */
	set(page, (struct gmem_rmp_entry){ .immutable = 1 });
	CHECK_STATUS(gmem_snp_page_reclaim(&asp, &cmd), INVALID_PAGE_STATE);
	set(page, (struct gmem_rmp_entry){ .assigned = 1, .immutable = 1, .vmsa = 1 });
	CHECK_STATUS(gmem_snp_page_reclaim(&asp, &cmd), INVALID_PAGE_STATE);
	CHECK_EQ(state(page), GMEM_RMP_CONTEXT);
	set(page, (struct gmem_rmp_entry){ .assigned = 1, .immutable = 1 });
	CHECK_STATUS(gmem_snp_page_reclaim(&asp, &cmd), SUCCESS);
	CHECK_EQ(state(page), GMEM_RMP_RECLAIM);
	set(page, (struct gmem_rmp_entry){ .assigned = 1, .immutable = 1, .gpa = 3 });
	CHECK_STATUS(gmem_snp_page_reclaim(&asp, &cmd), SUCCESS);
	CHECK_EQ(state(page), GMEM_RMP_RECLAIM);
	prepare(page);
	CHECK_STATUS(gmem_snp_page_reclaim(&asp, &cmd), SUCCESS);
	CHECK_EQ(state(page), GMEM_RMP_GUEST_INVALID);
	CHECK_STATUS(gmem_snp_page_reclaim(&asp, &cmd), SUCCESS);
	set(page, (struct gmem_rmp_entry){ .assigned = 1, .immutable = 1, .asid = 1, .validated = 1 });
	CHECK_STATUS(gmem_snp_page_reclaim(&asp, &cmd), SUCCESS);
	CHECK_EQ(state(page), GMEM_RMP_GUEST_VALID);
	power_off();
}
