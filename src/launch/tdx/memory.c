/* SPDX-License-Identifier: MIT */
/* A TD's memory, page by page: given, accepted, blocked, tracked, removed. */
#include <string.h>

#include "base/range.h"
#include "gmem.h"
#include "launch/tdx/module.h"

/* Bytes that an entry of a level is about. */
static uint64_t span(int level)
{
	return GMEM_PAGE_SIZE << (9 * level);
}

/* Checks, up to the entry, which nobody else is at. */
static uint64_t find(struct gmem_tdx_td *td, enum gmem_tdx_call call, uint64_t gpa, int level, int min_level,
		     int max_level, struct gmem_sept_walk *ret)
{
	uint64_t status = gmem_tdx_check_td(td, call);

	if (!status)
		status = gmem_tdx_check_gpa(gpa, level, min_level, max_level);
	if (status)
		return status;
	if (!gmem_sept_walk(&td->sept, gpa, level, ret))
		return GMEM_TDX_EPT_WALK_FAILED | GMEM_TDX_RCX;
	return *ret->entry & GMEM_SEPT_LOCK ? GMEM_TDX_OPERAND_BUSY | GMEM_TDX_RCX : GMEM_TDX_SUCCESS;
}

/* So too, and it is in a state that suits the call. */
static uint64_t find_allowed(struct gmem_tdx_td *td, enum gmem_tdx_call call, uint64_t gpa, int level, int min_level,
			     int max_level, struct gmem_sept_walk *ret)
{
	uint64_t status = find(td, call, gpa, level, min_level, max_level, ret);

	if (!status && !gmem_tdx_allows(call, gmem_sept_state(*ret->entry)))
		status = GMEM_TDX_EPT_ENTRY_STATE_INCORRECT | GMEM_TDX_RCX;
	return status;
}

/* ---- given */

uint64_t gmem_tdx_mem_sept_add(struct gmem_tdx_td *td, uint64_t gpa, int level, struct gmem_sept_table *table)
{
	struct gmem_sept_walk w;
	uint64_t status;

	gmem_tdx_lock(td);
	status = find_allowed(td, GMEM_TDX_MEM_SEPT_ADD, gpa, level, GMEM_SEPT_PD, GMEM_SEPT_PML4, &w);
	if (!status && !table)
		status = GMEM_TDX_OPERAND_INVALID | GMEM_TDX_R8;
	if (!status)
		gmem_sept_set(w.entry, GMEM_SEPT_NL_MAPPED, (uintptr_t)table);
	gmem_tdx_unlock(td);
	return status;
}

uint64_t gmem_tdx_mem_page_aug(struct gmem_tdx_td *td, uint64_t gpa, int level, uint64_t pfn)
{
	struct gmem_sept_walk w;
	uint64_t status;

	gmem_tdx_lock(td);
	status = find_allowed(td, GMEM_TDX_MEM_PAGE_AUG, gpa, level, GMEM_SEPT_PT, GMEM_SEPT_PD, &w);
	if (!status) {
		gmem_sept_set(w.entry, GMEM_SEPT_PENDING, pfn << GMEM_PAGE_SHIFT);
		*w.bepoch = 0;
	}
	gmem_tdx_unlock(td);
	return status;
}

/* The entry is locked when it may be accepted. */
static uint64_t begin_accept(struct gmem_tdx_td *td, uint64_t gpa, int level, struct gmem_sept_walk *w)
{
	uint64_t status = find(td, GMEM_TDX_PAGE_ACCEPT, gpa, level, GMEM_SEPT_PT, GMEM_SEPT_PD, w);
	bool walk_failed = gmem_tdx_status_class(status) == GMEM_TDX_EPT_WALK_FAILED;
	enum gmem_sept_state state;

	if (status && !walk_failed)
		return status;
	state = gmem_sept_state(*w->entry);
	if (!walk_failed && !gmem_sept_is_leaf(state) && state != GMEM_SEPT_FREE)
		return GMEM_TDX_PAGE_SIZE_MISMATCH | (uint64_t)w->level;
	/* By 4 KiB, or as a part of something larger. */
	if (gmem_sept_is_accessible(state))
		return GMEM_TDX_PAGE_ALREADY_ACCEPTED | (uint64_t)w->level;
	if (walk_failed || !gmem_tdx_allows(GMEM_TDX_PAGE_ACCEPT, state))
		return GMEM_TDX_EXIT_EPT_VIOLATION;
	*w->entry |= GMEM_SEPT_LOCK;
	return GMEM_TDX_SUCCESS;
}

static void end_accept(const struct gmem_sept_walk *w)
{
	bool exported = gmem_sept_state(*w->entry) == GMEM_SEPT_PENDING_EXPORTED_DIRTY;

	gmem_sept_set_state(w->entry, exported ? GMEM_SEPT_EXPORTED_DIRTY : GMEM_SEPT_MAPPED);
	*w->entry &= ~GMEM_SEPT_LOCK;
}

uint64_t gmem_tdx_page_accept(struct gmem_tdx_td *td, uint64_t gpa, int level)
{
	struct gmem_sept_walk w;
	uint64_t status, addr = 0;

	gmem_tdx_lock(td);
	status = begin_accept(td, gpa, level, &w);
	if (!status)
		addr = gmem_sept_addr(*w.entry);
	gmem_tdx_unlock(td);
	if (status)
		return status;
	/* A locked entry, and so its table and its page, stays. */
	memset((void *)(uintptr_t)addr, 0, span(level));
	gmem_tdx_lock(td);
	end_accept(&w);
	gmem_tdx_unlock(td);
	return GMEM_TDX_SUCCESS;
}

/* ---- taken away */

static enum gmem_sept_state blocked(enum gmem_sept_state state)
{
	switch (state) {
	case GMEM_SEPT_NL_MAPPED:
		return GMEM_SEPT_NL_BLOCKED;
	case GMEM_SEPT_MAPPED:
	case GMEM_SEPT_BLOCKEDW:
		return GMEM_SEPT_BLOCKED;
	default:
		return GMEM_SEPT_PENDING_BLOCKED;
	}
}

static enum gmem_sept_state unblocked(enum gmem_sept_state state)
{
	switch (state) {
	case GMEM_SEPT_NL_BLOCKED:
		return GMEM_SEPT_NL_MAPPED;
	case GMEM_SEPT_BLOCKED:
		return GMEM_SEPT_MAPPED;
	default:
		return GMEM_SEPT_PENDING;
	}
}

uint64_t gmem_tdx_mem_range_block(struct gmem_tdx_td *td, uint64_t gpa, int level)
{
	struct gmem_sept_walk w;
	uint64_t status;

	gmem_tdx_lock(td);
	status = find_allowed(td, GMEM_TDX_MEM_RANGE_BLOCK, gpa, level, GMEM_SEPT_PT, GMEM_SEPT_PML4, &w);
	if (!status) {
		gmem_sept_set_state(w.entry, blocked(gmem_sept_state(*w.entry)));
		*w.bepoch = td->epoch;
	} else if (gmem_tdx_status_class(status) == GMEM_TDX_EPT_ENTRY_STATE_INCORRECT &&
		   gmem_sept_is_blocked(gmem_sept_state(*w.entry))) {
		status = GMEM_TDX_GPA_RANGE_ALREADY_BLOCKED | GMEM_TDX_RCX;
	}
	gmem_tdx_unlock(td);
	return status;
}

/* No vCPU that entered when the entry was not blocked is still in the guest. */
static bool tracked(const struct gmem_tdx_td *td, uint64_t bepoch)
{
	return bepoch + 1 < td->epoch || (bepoch + 1 == td->epoch && !td->refcount[bepoch & 1]);
}

static uint64_t check_tracked(const struct gmem_tdx_td *td, const struct gmem_sept_walk *w)
{
	enum gmem_sept_state state = gmem_sept_state(*w->entry);

	if (td->op_state != GMEM_TDX_RUNNABLE || !gmem_sept_needs_tracking(state))
		return GMEM_TDX_SUCCESS;
	if (!gmem_sept_is_blocked(state))
		return GMEM_TDX_GPA_RANGE_NOT_BLOCKED | GMEM_TDX_RCX;
	return tracked(td, *w->bepoch) ? GMEM_TDX_SUCCESS : GMEM_TDX_TLB_TRACKING_NOT_DONE | GMEM_TDX_RCX;
}

uint64_t gmem_tdx_mem_range_unblock(struct gmem_tdx_td *td, uint64_t gpa, int level)
{
	struct gmem_sept_walk w;
	uint64_t status;

	gmem_tdx_lock(td);
	status = find_allowed(td, GMEM_TDX_MEM_RANGE_UNBLOCK, gpa, level, GMEM_SEPT_PT, GMEM_SEPT_PML4, &w);
	if (!status)
		status = check_tracked(td, &w);
	if (!status)
		gmem_sept_set_state(w.entry, unblocked(gmem_sept_state(*w.entry)));
	gmem_tdx_unlock(td);
	return status;
}

uint64_t gmem_tdx_mem_page_remove(struct gmem_tdx_td *td, uint64_t gpa, int level)
{
	struct gmem_sept_walk w;
	uint64_t status;

	gmem_tdx_lock(td);
	status = find_allowed(td, GMEM_TDX_MEM_PAGE_REMOVE, gpa, level, GMEM_SEPT_PT, GMEM_SEPT_PDPT, &w);
	if (!status)
		status = check_tracked(td, &w);
	if (!status)
		gmem_sept_set(w.entry, GMEM_SEPT_FREE, 0);
	gmem_tdx_unlock(td);
	return status;
}

/* ---- epochs */

uint64_t gmem_tdx_mem_track(struct gmem_tdx_td *td)
{
	uint64_t status;

	gmem_tdx_lock(td);
	status = gmem_tdx_check_td(td, GMEM_TDX_MEM_TRACK);
	/* Its count is that of the next one. */
	if (!status && td->refcount[1 - (td->epoch & 1)])
		status = GMEM_TDX_PREVIOUS_TLB_EPOCH_BUSY;
	if (!status)
		td->epoch++;
	gmem_tdx_unlock(td);
	return status;
}

uint64_t gmem_tdx_vp_enter(struct gmem_tdx_td *td, uint32_t vp)
{
	struct gmem_tdx_vp *v = vp <= GMEM_TDX_MAX_VCPUS_PER_TD ? &td->vps[vp] : NULL;
	uint64_t status = GMEM_TDX_PAGE_METADATA_INCORRECT | GMEM_TDX_RCX;

	gmem_tdx_lock(td);
	if (v && v->state != GMEM_TDX_VP_NONE)
		status = gmem_tdx_check_td(td, GMEM_TDX_VP_ENTER);
	if (!status && v->state != GMEM_TDX_VP_READY)
		status = GMEM_TDX_VCPU_STATE_INCORRECT;
	/* Another processor has it. */
	if (!status && v->entered)
		status = GMEM_TDX_OPERAND_BUSY | GMEM_TDX_RCX;
	if (!status) {
		v->entered = true;
		v->epoch = td->epoch;
		td->refcount[v->epoch & 1]++;
	}
	gmem_tdx_unlock(td);
	return status;
}

void gmem_tdx_vp_exit(struct gmem_tdx_td *td, uint32_t vp)
{
	struct gmem_tdx_vp *v = &td->vps[vp];

	gmem_tdx_lock(td);
	if (v->entered)
		td->refcount[v->epoch & 1]--;
	v->entered = false;
	gmem_tdx_unlock(td);
}
