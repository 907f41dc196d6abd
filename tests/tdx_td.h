/* SPDX-License-Identifier: MIT */
/* One TD of the TDX module in small, to make calls on. Included after tap.h. */
#ifndef GMEM_TESTS_TDX_TD_H
#define GMEM_TESTS_TDX_TD_H

#include "launch/tdx/module.h"

#define OK 0ull
#define SI (0xc0000b0d00000000ull | RCX) /* EPT_ENTRY_STATE_INCORRECT */
#define AB (0x00000b0700000000ull | RCX) /* GPA_RANGE_ALREADY_BLOCKED */
#define NB (0xc0000b0600000000ull | RCX) /* GPA_RANGE_NOT_BLOCKED */
#define TR (0xc0000b0800000000ull | RCX) /* TLB_TRACKING_NOT_DONE */
#define NP 0xc0000b0300000000ull /* EPT_ENTRY_NOT_PRESENT */
#define AA 0x00000b0a00000000ull /* PAGE_ALREADY_ACCEPTED, at the level of pages */
#define SM 0xc0000b0b00000000ull /* PAGE_SIZE_MISMATCH */
#define VI 48ull /* an exit */

#define P 4096ull
#define GPA 0x40200000ull /* at the beginning of 2 MiB */
#define RCX 1u

static struct gmem_tdx_td td;
static _Alignas(4096) unsigned char page[P];

static inline uint64_t pfn_of(const void *p)
{
	return (uintptr_t)p / P;
}

static inline void init(void)
{
	const struct gmem_tdx_params params = { .xfam = 3, .max_vcpus = 2 };

	CHECK_OK(gmem_tdx_td_create(&td));
	CHECK_EQ(gmem_tdx_mng_init(&td, &params), 0);
}

static inline void add_tables(uint64_t gpa)
{
	for (int level = GMEM_SEPT_PML4; level >= GMEM_SEPT_PD; level--)
		CHECK_EQ(gmem_tdx_mem_sept_add(&td, gpa & ~((P << 9 * level) - 1), level, gmem_sept_table_new()), 0);
}

static inline void add_vp(uint32_t vp)
{
	CHECK_EQ(gmem_tdx_vp_create(&td, vp), 0);
	CHECK_EQ(gmem_tdx_vp_init(&td, vp, 0), 0);
}

/* A TD with tables down to GPA, and one vCPU. */
static inline void set_up(void)
{
	init();
	add_tables(GPA);
	add_vp(0);
}

static inline uint64_t *entry_at(uint64_t gpa, int level)
{
	struct gmem_sept_walk w;

	CHECK(gmem_sept_walk(&td.sept, gpa, level, &w));
	return w.entry;
}

static inline enum gmem_sept_state state_of(uint64_t gpa)
{
	return gmem_sept_state(*entry_at(gpa, GMEM_SEPT_PT));
}

static inline void tear_down(void)
{
	gmem_tdx_td_destroy(&td);
}

/* An entry of pages, made what it is to be, whether calls could have done so or not. */
static inline void make(enum gmem_sept_state state)
{
	struct gmem_sept_walk w;

	CHECK(gmem_sept_walk(&td.sept, GPA, GMEM_SEPT_PT, &w));
	gmem_sept_set(w.entry, state, (uintptr_t)page);
	*w.bepoch = td.epoch;
}

#endif
