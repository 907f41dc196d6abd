/* SPDX-License-Identifier: MIT */
/* What calls have in common: the lock, and the tables of states in which each may be made. */
#include "base/lockcheck.h"
#include "base/range.h"
#include "launch/tdx/module.h"

#define LEVEL_BITS 9

#define OP(x) (1u << GMEM_TDX_##x)
#define S(x) (1u << GMEM_SEPT_##x)

static const struct {
	uint8_t op_states;
	uint16_t sept_states;
} calls[GMEM_TDX_CALLS] = {
	[GMEM_TDX_VP_ENTER] = { OP(RUNNABLE), 0 },
	[GMEM_TDX_MEM_PAGE_ADD] = { OP(INITIALIZED), S(FREE) },
	/* A table that is there counts for partitions of a TD alone, of which there are none. */
	[GMEM_TDX_MEM_SEPT_ADD] = { OP(INITIALIZED) | OP(RUNNABLE), S(FREE) },
	[GMEM_TDX_MEM_PAGE_AUG] = { OP(INITIALIZED) | OP(RUNNABLE), S(FREE) | S(REMOVED) },
	[GMEM_TDX_MEM_RANGE_BLOCK] = { OP(INITIALIZED) | OP(RUNNABLE),
				       S(NL_MAPPED) | S(MAPPED) | S(BLOCKEDW) | S(PENDING) | S(PENDING_BLOCKEDW) },
	[GMEM_TDX_VP_CREATE] = { OP(INITIALIZED), 0 },
	[GMEM_TDX_MR_EXTEND] = { OP(INITIALIZED), S(MAPPED) },
	[GMEM_TDX_MR_FINALIZE] = { OP(INITIALIZED), 0 },
	[GMEM_TDX_MNG_INIT] = { OP(UNINITIALIZED), 0 },
	[GMEM_TDX_VP_INIT] = { OP(INITIALIZED), 0 },
	[GMEM_TDX_MEM_PAGE_REMOVE] = { OP(INITIALIZED) | OP(RUNNABLE), S(MAPPED) | S(BLOCKED) | S(BLOCKEDW) |
									       S(PENDING) | S(PENDING_BLOCKED) |
									       S(PENDING_BLOCKEDW) },
	[GMEM_TDX_MEM_TRACK] = { OP(INITIALIZED) | OP(RUNNABLE), 0 },
	[GMEM_TDX_MEM_RANGE_UNBLOCK] = { OP(INITIALIZED) | OP(RUNNABLE),
					 S(NL_BLOCKED) | S(BLOCKED) | S(PENDING_BLOCKED) },
	/* A guest runs. */
	[GMEM_TDX_PAGE_ACCEPT] = { OP(RUNNABLE), S(PENDING) | S(PENDING_EXPORTED_DIRTY) },
};

void gmem_tdx_lock(struct gmem_tdx_td *td)
{
	gmem_lockcheck_acquire(GMEM_LOCK_VENDOR, &td->m);
	pthread_mutex_lock(&td->m);
}

void gmem_tdx_unlock(struct gmem_tdx_td *td)
{
	pthread_mutex_unlock(&td->m);
	gmem_lockcheck_release(GMEM_LOCK_VENDOR, &td->m);
}

uint64_t gmem_tdx_check_td(const struct gmem_tdx_td *td, enum gmem_tdx_call call)
{
	if (td->fatal)
		return GMEM_TDX_TD_FATAL;
	if (!td->keys)
		return GMEM_TDX_TD_KEYS_NOT_CONFIGURED;
	return calls[call].op_states >> td->op_state & 1 ? GMEM_TDX_SUCCESS : GMEM_TDX_OP_STATE_INCORRECT;
}

uint64_t gmem_tdx_check_gpa(uint64_t gpa, int level, int min_level, int max_level)
{
	if (level < min_level || level > max_level || gpa >> GMEM_TDX_GPA_BITS ||
	    gpa & ((1ull << (GMEM_PAGE_SHIFT + LEVEL_BITS * level)) - 1))
		return GMEM_TDX_OPERAND_INVALID | GMEM_TDX_RCX;
	return GMEM_TDX_SUCCESS;
}

bool gmem_tdx_allows(enum gmem_tdx_call call, enum gmem_sept_state state)
{
	return calls[call].sept_states >> state & 1;
}
