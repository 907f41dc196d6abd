/* SPDX-License-Identifier: MIT */
/* Commands about the guest as a whole; update.c has the one about its pages. */
#include "launch/snp/asp.h"

#include <string.h>

#include "gmem.h"

#define TSC_FACTOR 200u /* of an EPYC 9004, whose spread spectrum takes 0.2 % off the mean frequency */

_Static_assert(sizeof(struct gmem_snp_context) <= GMEM_PAGE_SIZE, "a context is in its page");

void gmem_snp_asp_setup(struct gmem_snp_asp *asp, struct gmem_rmp *rmp)
{
	*asp = (struct gmem_snp_asp){
		.rmp = rmp,
		.smt = true,
		.cpu = { .fms = GMEM_SNP_FMS_GENOA },
		.max_asid = GMEM_RMP_MAX_ASID,
	};
}

uint32_t gmem_snp_init(struct gmem_snp_asp *asp)
{
	if (asp->initialised)
		return GMEM_SEV_RET_INVALID_PLATFORM_STATE;
	asp->initialised = true;
	return GMEM_SEV_RET_SUCCESS;
}

static enum gmem_rmp_state state_of(const struct gmem_snp_asp *asp, uint64_t paddr, struct gmem_rmp_entry *ret)
{
	*ret = gmem_rmp_read(asp->rmp, paddr >> GMEM_PAGE_SHIFT);
	return gmem_rmp_entry_state(ret);
}

static uint32_t write_entry(struct gmem_snp_asp *asp, uint64_t paddr, const struct gmem_rmp_entry *e)
{
	/* One that was read, and is there: no memory is needed. */
	return gmem_rmp_write(asp->rmp, paddr >> GMEM_PAGE_SHIFT, e) ? GMEM_SEV_RET_RESOURCE_LIMIT :
								       GMEM_SEV_RET_SUCCESS;
}

static void *address(uint64_t paddr)
{
	return (char *)gmem_pfn_addr(paddr >> GMEM_PAGE_SHIFT) + (paddr & ~GMEM_PAGE_MASK);
}

/* ---- the context */

uint32_t gmem_snp_find_context(const struct gmem_snp_asp *asp, uint64_t paddr, struct gmem_snp_context **ret)
{
	struct gmem_rmp_entry e;

	if (!asp->initialised)
		return GMEM_SEV_RET_INVALID_PLATFORM_STATE;
	if (state_of(asp, paddr, &e) != GMEM_RMP_CONTEXT)
		return GMEM_SEV_RET_INVALID_GUEST;
	*ret = gmem_pfn_addr(paddr >> GMEM_PAGE_SHIFT);
	return GMEM_SEV_RET_SUCCESS;
}

uint32_t gmem_snp_gctx_create(struct gmem_snp_asp *asp, const struct gmem_snp_cmd_addr *cmd)
{
	struct gmem_snp_context *ctx;
	struct gmem_rmp_entry e;

	if (cmd->gctx_paddr & GMEM_SNP_ADDR_RESERVED)
		return GMEM_SEV_RET_INVALID_PARAM;
	if (!asp->initialised)
		return GMEM_SEV_RET_INVALID_PLATFORM_STATE;
	if (state_of(asp, cmd->gctx_paddr, &e) != GMEM_RMP_FIRMWARE)
		return GMEM_SEV_RET_INVALID_PAGE_STATE;
	if (e.large)
		return GMEM_SEV_RET_INVALID_PAGE_SIZE;
	ctx = gmem_pfn_addr(cmd->gctx_paddr >> GMEM_PAGE_SHIFT);
	memset(ctx, 0, GMEM_PAGE_SIZE);
	e.vmsa = 1;
	return write_entry(asp, cmd->gctx_paddr, &e);
}

uint32_t gmem_snp_decommission(struct gmem_snp_asp *asp, const struct gmem_snp_cmd_addr *cmd)
{
	struct gmem_snp_context *ctx;
	struct gmem_rmp_entry e;
	uint32_t status;

	if (cmd->gctx_paddr & GMEM_SNP_ADDR_RESERVED)
		return GMEM_SEV_RET_INVALID_PARAM;
	status = gmem_snp_find_context(asp, cmd->gctx_paddr, &ctx);
	if (status)
		return status;
	if (ctx->asid)
		asp->asids[ctx->asid / 64] &= ~(1ull << ctx->asid % 64);
	memset(ctx, 0, GMEM_PAGE_SIZE);
	(void)state_of(asp, cmd->gctx_paddr, &e);
	e.vmsa = 0;
	return write_entry(asp, cmd->gctx_paddr, &e);
}

uint32_t gmem_snp_activate(struct gmem_snp_asp *asp, const struct gmem_snp_cmd_activate *cmd)
{
	struct gmem_snp_context *ctx;
	uint32_t status;

	if (cmd->gctx_paddr & GMEM_SNP_ADDR_RESERVED)
		return GMEM_SEV_RET_INVALID_PARAM;
	status = gmem_snp_find_context(asp, cmd->gctx_paddr, &ctx);
	if (status)
		return status;
	if (ctx->state != GMEM_SNP_GUEST_LAUNCH && ctx->state != GMEM_SNP_GUEST_RUNNING)
		return GMEM_SEV_RET_INVALID_GUEST_STATE;
	if (cmd->asid && gmem_rmp_count_asid(asp->rmp, cmd->asid))
		return GMEM_SEV_RET_INVALID_CONFIG;
	if (!cmd->asid || cmd->asid > asp->max_asid)
		return GMEM_SEV_RET_INVALID_ASID;
	if (ctx->asid)
		return GMEM_SEV_RET_ACTIVE;
	if (asp->asids[cmd->asid / 64] >> cmd->asid % 64 & 1)
		return GMEM_SEV_RET_ASID_OWNED;
	asp->asids[cmd->asid / 64] |= 1ull << cmd->asid % 64;
	ctx->asid = cmd->asid;
	return GMEM_SEV_RET_SUCCESS;
}

/* ---- SNP_LAUNCH_START */

static bool policy_allowed(const struct gmem_snp_asp *asp, uint64_t policy)
{
	uint32_t major = (policy & GMEM_SNP_POLICY_MAJOR) >> 8, minor = policy & GMEM_SNP_POLICY_MINOR;

	if (!(policy & GMEM_SNP_POLICY_MUST_BE_ONE) || (policy & GMEM_SNP_POLICY_RESERVED))
		return false;
	if (!(policy & GMEM_SNP_POLICY_SMT) && asp->smt)
		return false;
	return major < GMEM_SNP_API_MAJOR || (major == GMEM_SNP_API_MAJOR && minor <= GMEM_SNP_API_MINOR);
}

static bool agent_allowed(uint64_t policy, const struct gmem_snp_context *agent)
{
	if (!(policy & GMEM_SNP_POLICY_MIGRATE_MA) || agent->migration_agent != UINT64_MAX)
		return false;
	return !(policy & GMEM_SNP_POLICY_SINGLE_SOCKET) || (agent->policy & GMEM_SNP_POLICY_SINGLE_SOCKET);
}

uint32_t gmem_snp_launch_start(struct gmem_snp_asp *asp, const struct gmem_snp_cmd_launch_start *cmd)
{
	struct gmem_snp_context *ctx, *agent = NULL;
	uint32_t status;

	if ((cmd->gctx_paddr & GMEM_SNP_ADDR_RESERVED) || cmd->reserved ||
	    (cmd->ma_gctx_paddr & GMEM_SNP_ADDR_RESERVED))
		return GMEM_SEV_RET_INVALID_PARAM;
	status = gmem_snp_find_context(asp, cmd->gctx_paddr, &ctx);
	if (status)
		return status;
	if (ctx->state != GMEM_SNP_GUEST_INIT)
		return GMEM_SEV_RET_INVALID_GUEST_STATE;
	if (cmd->ma_en) {
		status = gmem_snp_find_context(asp, cmd->ma_gctx_paddr, &agent);
		if (status)
			return status;
	}
	if (!policy_allowed(asp, cmd->policy) || (agent && !agent_allowed(cmd->policy, agent)))
		return GMEM_SEV_RET_POLICY_FAILURE;
	if (gmem_snp_secrets_make_keys(&ctx->secrets))
		return GMEM_SEV_RET_HWSEV_RET_PLATFORM;
	ctx->policy = cmd->policy;
	ctx->migration_agent = agent ? cmd->ma_gctx_paddr : UINT64_MAX;
	ctx->imi_en = cmd->imi_en;
	ctx->desired_tsc_freq = cmd->desired_tsc_freq;
	ctx->secrets.imi_en = cmd->imi_en;
	ctx->secrets.fms = asp->cpu.fms;
	ctx->secrets.tsc_factor = TSC_FACTOR;
	memcpy(ctx->secrets.gosvw, cmd->gosvw, sizeof(cmd->gosvw));
	ctx->state = GMEM_SNP_GUEST_LAUNCH;
	return GMEM_SEV_RET_SUCCESS;
}

/* ---- SNP_LAUNCH_FINISH */

/* Copies first: the host may write to its pages meanwhile. */
static uint32_t check_id_block(const struct gmem_snp_cmd_launch_finish *cmd, struct gmem_snp_context *ctx)
{
	uint8_t id_block[GMEM_SNP_ID_BLOCK_LEN], id_auth[GMEM_SNP_ID_AUTH_LEN];
	int status;

	memcpy(id_block, address(cmd->id_block_paddr), sizeof(id_block));
	memcpy(id_auth, address(cmd->id_auth_paddr), sizeof(id_auth));
	status = gmem_snp_id_verify(id_block, id_auth, ctx->ld, ctx->policy, cmd->auth_key_en, &ctx->id);
	return status < 0 ? GMEM_SEV_RET_RESOURCE_LIMIT : (uint32_t)status;
}

uint32_t gmem_snp_launch_finish(struct gmem_snp_asp *asp, const struct gmem_snp_cmd_launch_finish *cmd)
{
	struct gmem_snp_context *ctx;
	uint32_t status;

	if ((cmd->gctx_paddr & GMEM_SNP_ADDR_RESERVED) || cmd->reserved)
		return GMEM_SEV_RET_INVALID_PARAM;
	status = gmem_snp_find_context(asp, cmd->gctx_paddr, &ctx);
	if (status)
		return status;
	if (ctx->state != GMEM_SNP_GUEST_LAUNCH || ctx->imi_en)
		return GMEM_SEV_RET_INVALID_GUEST_STATE;
	if (!ctx->asid)
		return GMEM_SEV_RET_INACTIVE;
	if (cmd->id_block_en) {
		status = check_id_block(cmd, ctx);
		if (status)
			return status;
	}
	memcpy(ctx->host_data, cmd->host_data, sizeof(ctx->host_data));
	ctx->id_block_en = cmd->id_block_en;
	ctx->author_key_en = cmd->auth_key_en;
	ctx->vcek_dis = cmd->vcek_dis;
	ctx->state = GMEM_SNP_GUEST_RUNNING;
	return GMEM_SEV_RET_SUCCESS;
}

/* ---- SNP_PAGE_RECLAIM */

uint32_t gmem_snp_page_reclaim(struct gmem_snp_asp *asp, const struct gmem_snp_cmd_page_reclaim *cmd)
{
	uint64_t paddr = cmd->paddr & GMEM_PAGE_MASK;
	bool large = cmd->paddr & 1;
	struct gmem_rmp_entry e;
	enum gmem_rmp_state state;

	if (cmd->paddr & GMEM_SNP_ADDR_RESERVED & ~1ull)
		return GMEM_SEV_RET_INVALID_PARAM;
	if (!asp->initialised)
		return GMEM_SEV_RET_INVALID_PLATFORM_STATE;
	state = state_of(asp, paddr, &e);
	if (e.large != large)
		return GMEM_SEV_RET_INVALID_PAGE_SIZE;
	if (large && (paddr >> GMEM_PAGE_SHIFT) % GMEM_RMP_LARGE_PAGES)
		return GMEM_SEV_RET_INVALID_ADDRESS;
	if (!e.immutable)
		return GMEM_SEV_RET_SUCCESS;
	if (state != GMEM_RMP_METADATA && state != GMEM_RMP_FIRMWARE && state != GMEM_RMP_PRE_GUEST &&
	    state != GMEM_RMP_PRE_SWAP)
		return GMEM_SEV_RET_INVALID_PAGE_STATE;
	e.immutable = 0;
	e.lock = 0;
	return write_entry(asp, paddr, &e);
}
