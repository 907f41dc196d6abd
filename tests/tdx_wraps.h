/* SPDX-License-Identifier: MIT */
/* The TDX module's calls, noted, and refused on demand. One program a file that includes this. */
#ifndef GMEM_TESTS_TDX_WRAPS_H
#define GMEM_TESTS_TDX_WRAPS_H

#include "tdx_util.h"

#define BUSY (GMEM_TDX_OPERAND_BUSY | GMEM_TDX_RCX)
#define MAX_NOTED 256u

/* One thread's, as the cases are. */
static struct {
	enum gmem_tdx_call calls[MAX_NOTED];
	uint64_t gpas[MAX_NOTED];
	uint32_t n;
	/* How many calls go well before; then how many are refused, with what. */
	struct {
		uint64_t status;
		int after, times;
	} refuse[GMEM_TDX_CALLS];
	int no_tables; /* that are not to be had */
	int no_hash; /* that fail */
} module;

static inline uint64_t note(enum gmem_tdx_call call, uint64_t gpa)
{
	if (module.n < MAX_NOTED) {
		module.calls[module.n] = call;
		module.gpas[module.n++] = gpa;
	}
	if (!module.refuse[call].times || module.refuse[call].after-- > 0)
		return 0;
	module.refuse[call].times--;
	return module.refuse[call].status;
}

static inline void refuse(enum gmem_tdx_call call, uint64_t status, int after, int times)
{
	module.refuse[call].status = status;
	module.refuse[call].after = after;
	module.refuse[call].times = times;
}

#define WRAP(fn, call, gpa, params, args)                            \
	uint64_t __real_##fn params;                                 \
	uint64_t __wrap_##fn params;                                 \
	uint64_t __wrap_##fn params                                  \
	{                                                            \
		uint64_t wrap_status = note(call, gpa);              \
		return wrap_status ? wrap_status : __real_##fn args; \
	}

WRAP(gmem_tdx_mem_sept_add, GMEM_TDX_MEM_SEPT_ADD, gpa,
     (struct gmem_tdx_td * td, uint64_t gpa, int level, struct gmem_sept_table *table), (td, gpa, level, table))
WRAP(gmem_tdx_mem_page_add, GMEM_TDX_MEM_PAGE_ADD, gpa, (struct gmem_tdx_td * td, uint64_t gpa, uint64_t pfn),
     (td, gpa, pfn))
WRAP(gmem_tdx_mr_extend, GMEM_TDX_MR_EXTEND, gpa, (struct gmem_tdx_td * td, uint64_t gpa), (td, gpa))
WRAP(gmem_tdx_mr_finalize, GMEM_TDX_MR_FINALIZE, 0, (struct gmem_tdx_td * td), (td))
WRAP(gmem_tdx_vp_create, GMEM_TDX_VP_CREATE, 0, (struct gmem_tdx_td * td, uint32_t vp), (td, vp))
WRAP(gmem_tdx_vp_init, GMEM_TDX_VP_INIT, 0, (struct gmem_tdx_td * td, uint32_t vp, uint64_t rcx), (td, vp, rcx))
WRAP(gmem_tdx_mem_page_aug, GMEM_TDX_MEM_PAGE_AUG, gpa,
     (struct gmem_tdx_td * td, uint64_t gpa, int level, uint64_t pfn), (td, gpa, level, pfn))
WRAP(gmem_tdx_page_accept, GMEM_TDX_PAGE_ACCEPT, gpa, (struct gmem_tdx_td * td, uint64_t gpa, int level),
     (td, gpa, level))
WRAP(gmem_tdx_mem_range_block, GMEM_TDX_MEM_RANGE_BLOCK, gpa, (struct gmem_tdx_td * td, uint64_t gpa, int level),
     (td, gpa, level))
WRAP(gmem_tdx_mem_page_remove, GMEM_TDX_MEM_PAGE_REMOVE, gpa, (struct gmem_tdx_td * td, uint64_t gpa, int level),
     (td, gpa, level))
WRAP(gmem_tdx_mem_track, GMEM_TDX_MEM_TRACK, 0, (struct gmem_tdx_td * td), (td))

struct gmem_sept_table *__real_gmem_sept_table_new(void);
struct gmem_sept_table *__wrap_gmem_sept_table_new(void);
struct gmem_sept_table *__wrap_gmem_sept_table_new(void)
{
	if (!module.no_tables)
		return __real_gmem_sept_table_new();
	module.no_tables--;
	return NULL;
}

int __real_gmem_sha384_update(struct evp_md_ctx_st *ctx, const void *data, size_t len);
int __wrap_gmem_sha384_update(struct evp_md_ctx_st *ctx, const void *data, size_t len);
int __wrap_gmem_sha384_update(struct evp_md_ctx_st *ctx, const void *data, size_t len)
{
	if (!module.no_hash)
		return __real_gmem_sha384_update(ctx, data, len);
	module.no_hash--;
	return gmem_err(-ENOMEM, "no hash");
}

/* What was called since the last look begins so. */
static inline void check_calls(const enum gmem_tdx_call *calls, const uint64_t *gpas, uint32_t n)
{
	CHECK_EQ(module.n, n);
	for (uint32_t i = 0; i < n; i++) {
		if (module.calls[i] != calls[i] || module.gpas[i] != gpas[i])
			FAIL("call %u is %d at 0x%llx, not %d at 0x%llx", i, module.calls[i],
			     (unsigned long long)module.gpas[i], calls[i], (unsigned long long)gpas[i]);
	}
	module.n = 0;
}

static inline uint32_t count(enum gmem_tdx_call call)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < module.n; i++)
		n += module.calls[i] == call;
	return n;
}

#endif
