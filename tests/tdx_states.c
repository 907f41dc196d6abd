/* SPDX-License-Identifier: MIT */
/* The TDX module in small: each call in each state of the TD, and in each state of the entry that it is about. */
#include "tap.h"

#include "tdx_td.h"

/* ---- states of a TD */

enum { UNINITIALIZED, INITIALIZED, RUNNABLE, FATAL, NO_KEYS };

static void bring_to(int state)
{
	if (state == UNINITIALIZED) {
		CHECK_OK(gmem_tdx_td_create(&td));
		return;
	}
	set_up();
	/* For VP.INIT. */
	CHECK_EQ(gmem_tdx_vp_create(&td, 1), 0);
	if (state == RUNNABLE)
		CHECK_EQ(gmem_tdx_mr_finalize(&td), 0);
	if (state == FATAL)
		td.fatal = true;
	if (state == NO_KEYS)
		gmem_tdx_mng_key_freeid(&td);
}

static uint64_t call(enum gmem_tdx_call c)
{
	const struct gmem_tdx_params params = { .xfam = 3, .max_vcpus = 2 };
	struct gmem_sept_table *table;
	uint64_t status;

	switch (c) {
	case GMEM_TDX_VP_ENTER:
		return gmem_tdx_vp_enter(&td, 0);
	case GMEM_TDX_MEM_PAGE_ADD:
		return gmem_tdx_mem_page_add(&td, GPA, pfn_of(page));
	case GMEM_TDX_MEM_SEPT_ADD:
		table = gmem_sept_table_new();
		status = gmem_tdx_mem_sept_add(&td, 0, GMEM_SEPT_PDPT, table);
		if (status)
			gmem_sept_table_free(table);
		return status;
	case GMEM_TDX_MEM_PAGE_AUG:
		return gmem_tdx_mem_page_aug(&td, GPA, GMEM_SEPT_PT, pfn_of(page));
	case GMEM_TDX_MEM_RANGE_BLOCK:
		return gmem_tdx_mem_range_block(&td, GPA, GMEM_SEPT_PT);
	case GMEM_TDX_VP_CREATE:
		return gmem_tdx_vp_create(&td, 2);
	case GMEM_TDX_MR_EXTEND:
		return gmem_tdx_mr_extend(&td, GPA);
	case GMEM_TDX_MR_FINALIZE:
		return gmem_tdx_mr_finalize(&td);
	case GMEM_TDX_MNG_INIT:
		return gmem_tdx_mng_init(&td, &params);
	case GMEM_TDX_VP_INIT:
		return gmem_tdx_vp_init(&td, 1, 0);
	case GMEM_TDX_MEM_PAGE_REMOVE:
		return gmem_tdx_mem_page_remove(&td, GPA, GMEM_SEPT_PT);
	case GMEM_TDX_MEM_TRACK:
		return gmem_tdx_mem_track(&td);
	case GMEM_TDX_MEM_RANGE_UNBLOCK:
		return gmem_tdx_mem_range_unblock(&td, GPA, GMEM_SEPT_PT);
	case GMEM_TDX_PAGE_ACCEPT:
		return gmem_tdx_page_accept(&td, GPA, GMEM_SEPT_PT);
	case GMEM_TDX_CALLS:
		break;
	}
	return ~0ull;
}

TEST(op_states)
{
	/* Taken in UNINITIALIZED, INITIALIZED, RUNNABLE. */
	static const bool taken[GMEM_TDX_CALLS][3] = {
		[GMEM_TDX_VP_ENTER] = { 0, 0, 1 },	    [GMEM_TDX_MEM_PAGE_ADD] = { 0, 1, 0 },
		[GMEM_TDX_MEM_SEPT_ADD] = { 0, 1, 1 },	    [GMEM_TDX_MEM_PAGE_AUG] = { 0, 1, 1 },
		[GMEM_TDX_MEM_RANGE_BLOCK] = { 0, 1, 1 },   [GMEM_TDX_VP_CREATE] = { 0, 1, 0 },
		[GMEM_TDX_MR_EXTEND] = { 0, 1, 0 },	    [GMEM_TDX_MR_FINALIZE] = { 0, 1, 0 },
		[GMEM_TDX_MNG_INIT] = { 1, 0, 0 },	    [GMEM_TDX_VP_INIT] = { 0, 1, 0 },
		[GMEM_TDX_MEM_PAGE_REMOVE] = { 0, 1, 1 },   [GMEM_TDX_MEM_TRACK] = { 0, 1, 1 },
		[GMEM_TDX_MEM_RANGE_UNBLOCK] = { 0, 1, 1 }, [GMEM_TDX_PAGE_ACCEPT] = { 0, 0, 1 },
	};

	for (enum gmem_tdx_call c = 0; c < GMEM_TDX_CALLS; c++) {
		for (int state = UNINITIALIZED; state <= NO_KEYS; state++) {
			uint64_t status;

			/* A vCPU is not there before. */
			if (state == UNINITIALIZED && (c == GMEM_TDX_VP_ENTER || c == GMEM_TDX_VP_INIT))
				continue;
			bring_to(state);
			status = call(c);
			if (state == FATAL)
				CHECK_EQ(status, 0xe000060400000000);
			else if (state == NO_KEYS)
				CHECK_EQ(status, 0x8000081000000000);
			else if ((status != 0xc000060800000000) != taken[c][state])
				FAIL("call %d in state %d: 0x%llx", c, state, (unsigned long long)status);
			tear_down();
		}
	}
}

/* ---- states of an entry */

static const struct {
	enum gmem_tdx_call call;
	bool runnable;
	/*
	 * FREE, REMOVED, NL_MAPPED, NL_BLOCKED, MAPPED, BLOCKED, BLOCKEDW, EXPORTED_BLOCKEDW, EXPORTED_DIRTY,
	 * EXPORTED_DIRTY_BLOCKEDW, PENDING, PENDING_BLOCKED, PENDING_BLOCKEDW, PENDING_EXPORTED_BLOCKEDW,
	 * PENDING_EXPORTED_DIRTY, PENDING_EXPORTED_DIRTY_BLOCKEDW
	 */
	uint64_t status[GMEM_SEPT_STATES];
} matrix[] = {
	{ GMEM_TDX_MEM_PAGE_ADD, false, { OK, SI, SI, SI, SI, SI, SI, SI, SI, SI, SI, SI, SI, SI, SI, SI } },
	{ GMEM_TDX_MEM_PAGE_AUG, true, { OK, OK, SI, SI, SI, SI, SI, SI, SI, SI, SI, SI, SI, SI, SI, SI } },
	{ GMEM_TDX_MEM_PAGE_AUG, false, { OK, OK, SI, SI, SI, SI, SI, SI, SI, SI, SI, SI, SI, SI, SI, SI } },
	{ GMEM_TDX_MR_EXTEND, false, { NP, NP, NP, NP, OK, NP, NP, NP, NP, NP, NP, NP, NP, NP, NP, NP } },
	{ GMEM_TDX_MEM_RANGE_BLOCK, true, { SI, SI, OK, AB, OK, AB, OK, SI, SI, SI, OK, AB, OK, SI, SI, SI } },
	{ GMEM_TDX_MEM_RANGE_BLOCK, false, { SI, SI, OK, AB, OK, AB, OK, SI, SI, SI, OK, AB, OK, SI, SI, SI } },
	{ GMEM_TDX_MEM_RANGE_UNBLOCK, false, { SI, SI, SI, OK, SI, OK, SI, SI, SI, SI, SI, OK, SI, SI, SI, SI } },
	/* Blocked in the present epoch: not tracked. */
	{ GMEM_TDX_MEM_RANGE_UNBLOCK, true, { SI, SI, SI, TR, SI, TR, SI, SI, SI, SI, SI, TR, SI, SI, SI, SI } },
	{ GMEM_TDX_MEM_PAGE_REMOVE, false, { SI, SI, SI, SI, OK, OK, OK, SI, SI, SI, OK, OK, OK, SI, SI, SI } },
	{ GMEM_TDX_MEM_PAGE_REMOVE, true, { SI, SI, SI, SI, NB, TR, NB, SI, SI, SI, NB, TR, NB, SI, SI, SI } },
	{ GMEM_TDX_PAGE_ACCEPT, true, { VI, SM, SM, SM, AA, VI, AA, AA, AA, AA, OK, VI, VI, VI, OK, VI } },
};

/* What an entry becomes by a call that succeeds. */
static enum gmem_sept_state after(enum gmem_tdx_call c, enum gmem_sept_state s)
{
	bool pending = s >= GMEM_SEPT_PENDING;

	switch (c) {
	case GMEM_TDX_MEM_PAGE_AUG:
		return GMEM_SEPT_PENDING;
	case GMEM_TDX_MEM_RANGE_BLOCK:
		return s == GMEM_SEPT_NL_MAPPED ? GMEM_SEPT_NL_BLOCKED :
		       pending			? GMEM_SEPT_PENDING_BLOCKED :
						  GMEM_SEPT_BLOCKED;
	case GMEM_TDX_MEM_RANGE_UNBLOCK:
		return s == GMEM_SEPT_NL_BLOCKED ? GMEM_SEPT_NL_MAPPED : pending ? GMEM_SEPT_PENDING : GMEM_SEPT_MAPPED;
	case GMEM_TDX_MEM_PAGE_REMOVE:
		return GMEM_SEPT_FREE;
	case GMEM_TDX_PAGE_ACCEPT:
		return s == GMEM_SEPT_PENDING ? GMEM_SEPT_MAPPED : GMEM_SEPT_EXPORTED_DIRTY;
	default:
		return GMEM_SEPT_MAPPED;
	}
}

TEST(entry_states)
{
	for (size_t i = 0; i < sizeof(matrix) / sizeof(*matrix); i++) {
		for (enum gmem_sept_state s = 0; s < GMEM_SEPT_STATES; s++) {
			uint64_t status;

			set_up();
			if (matrix[i].runnable)
				CHECK_EQ(gmem_tdx_mr_finalize(&td), 0);
			make(s);
			CHECK_EQ(state_of(GPA), s);
			status = call(matrix[i].call);
			if (status != matrix[i].status[s])
				FAIL("call %d, runnable %d, state %d: 0x%llx, not 0x%llx", matrix[i].call,
				     matrix[i].runnable, s, (unsigned long long)status,
				     (unsigned long long)matrix[i].status[s]);
			CHECK_EQ(state_of(GPA), status ? s : after(matrix[i].call, s));
			/* There is no table of pages in an entry of pages. */
			make(GMEM_SEPT_FREE);
			tear_down();
		}
	}
}

/* So too of an entry that is for a table. */
TEST(entries_of_tables)
{
	struct gmem_sept_table *table;

	for (enum gmem_sept_state s = 0; s < GMEM_SEPT_STATES; s++) {
		uint64_t *entry, was;

		set_up();
		entry = entry_at(GPA, GMEM_SEPT_PD);
		was = *entry;
		gmem_sept_set_state(entry, s);
		table = s == GMEM_SEPT_FREE ? (void *)(uintptr_t)gmem_sept_addr(was) : gmem_sept_table_new();
		CHECK_EQ(gmem_tdx_mem_sept_add(&td, GPA, GMEM_SEPT_PD, table), s == GMEM_SEPT_FREE ? OK : SI);
		if (s != GMEM_SEPT_FREE)
			gmem_sept_table_free(table);
		*entry = was;
		tear_down();
	}
}

TEST(encodings)
{
	static const uint8_t of[GMEM_SEPT_STATES] = { 0x0e, 0x0c, 0,	0x08, 0x60, 0x68, 0x64, 0x66,
						      0x63, 0x67, 0x70, 0x78, 0x74, 0x76, 0x73, 0x77 };

	for (enum gmem_sept_state s = 0; s < GMEM_SEPT_STATES; s++) {
		uint64_t e = GMEM_SEPT_LOCK;

		gmem_sept_set(&e, s, 0x123456789000);
		CHECK_EQ(e, 0x123456789800ull | of[s]);
		CHECK_EQ(gmem_sept_state(e), s);
		CHECK_EQ(gmem_sept_addr(e), 0x123456789000);
	}
}

/* Whatever state it is in, others find it busy. */
TEST(a_locked_entry)
{
	static const enum gmem_tdx_call calls[] = { GMEM_TDX_MEM_PAGE_AUG, GMEM_TDX_MEM_RANGE_BLOCK,
						    GMEM_TDX_MEM_PAGE_REMOVE, GMEM_TDX_MEM_RANGE_UNBLOCK,
						    GMEM_TDX_PAGE_ACCEPT };

	set_up();
	CHECK_EQ(gmem_tdx_mr_finalize(&td), 0);
	make(GMEM_SEPT_PENDING);
	*entry_at(GPA, GMEM_SEPT_PT) |= GMEM_SEPT_LOCK;
	for (size_t i = 0; i < sizeof(calls) / sizeof(*calls); i++) {
		CHECK_EQ(call(calls[i]), 0x8000020000000000 | RCX);
		CHECK_EQ(state_of(GPA), GMEM_SEPT_PENDING);
	}
	tear_down();
}
