/* SPDX-License-Identifier: MIT */
/*
 * Intel's TDX module in small, for one TD: the calls of a host (TDH) and of the guest (TDG) that launch, conversion and
 * teardown need, each with the module's checks in its order and its status.
 *
 * Enters: addresses of pages, the guest's and ours. Leaves: the state of the secure EPT and of the TD, its measurement.
 * A page's bytes are in place when it is added; a page's frame stays until it has been removed. No encryption, no keys:
 * frames are not tracked, that none is in two places is the slots' matter. Lock: `m`, of class GMEM_LOCK_VENDOR, in
 * every call; a call that zeroes a page goes on without it, with the entry locked, which others find busy.
 */
#ifndef GMEM_LAUNCH_TDX_MODULE_H
#define GMEM_LAUNCH_TDX_MODULE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "launch/tdx/sept.h"
#include "launch/tdx/status.h"
#include "launch/tdx_digest.h"

#define GMEM_TDX_GPA_BITS 47 /* of private addresses; above them is the bit that means shared */
#define GMEM_TDX_MAX_VCPUS_PER_TD 576u

enum gmem_tdx_op_state {
	GMEM_TDX_UNINITIALIZED = 0,
	GMEM_TDX_INITIALIZED = 1, /* being built */
	GMEM_TDX_RUNNABLE = 2,
};

/* Calls, as their checks tell them apart. */
enum gmem_tdx_call {
	GMEM_TDX_VP_ENTER,
	GMEM_TDX_MEM_PAGE_ADD,
	GMEM_TDX_MEM_SEPT_ADD,
	GMEM_TDX_MEM_PAGE_AUG,
	GMEM_TDX_MEM_RANGE_BLOCK,
	GMEM_TDX_VP_CREATE,
	GMEM_TDX_MR_EXTEND,
	GMEM_TDX_MR_FINALIZE,
	GMEM_TDX_MNG_INIT,
	GMEM_TDX_VP_INIT,
	GMEM_TDX_MEM_PAGE_REMOVE,
	GMEM_TDX_MEM_TRACK,
	GMEM_TDX_MEM_RANGE_UNBLOCK,
	GMEM_TDX_PAGE_ACCEPT,
	GMEM_TDX_CALLS,
};

/* Of struct td_params, what is looked at here. None of it is measured. */
struct gmem_tdx_params {
	uint64_t attributes, xfam;
	uint32_t max_vcpus;
	uint8_t mrconfigid[48], mrowner[48], mrownerconfig[48];
};

struct gmem_tdx_vp {
	enum { GMEM_TDX_VP_NONE, GMEM_TDX_VP_UNINITIALIZED, GMEM_TDX_VP_READY } state;
	bool entered;
	uint64_t rcx; /* what it begins with */
	uint64_t epoch; /* of the TD, when it entered last */
};

struct gmem_tdx_td {
	pthread_mutex_t m; /* guards all that follows */
	struct gmem_sept sept;
	struct gmem_tdx_digest digest;
	enum gmem_tdx_op_state op_state;
	bool keys; /* it has some: not torn down */
	bool fatal; /* nothing works any more */
	struct gmem_tdx_params params;
	uint64_t epoch; /* TD_EPOCH */
	uint32_t refcount[2]; /* vCPUs that entered in epochs of this parity, and are in the guest */
	uint32_t nvcpus; /* that are ready */
	/* Those that were made; one more than may be ready, for who tries. */
	struct gmem_tdx_vp vps[GMEM_TDX_MAX_VCPUS_PER_TD + 1];
};

/* TDH.MNG.CREATE to ADDCX: a TD that is not initialized. -ENOMEM. */
int gmem_tdx_td_create(struct gmem_tdx_td *td);
/* All of it, in whatever state: no call runs, no page is touched. Takes one of all zero bytes. */
void gmem_tdx_td_destroy(struct gmem_tdx_td *td);
/* TDH.MNG.KEY.FREEID, after all vCPUs are gone: from then on no other call is taken. */
void gmem_tdx_mng_key_freeid(struct gmem_tdx_td *td);

/* ---- build.c: the TD itself. All answer a status */

uint64_t gmem_tdx_mng_init(struct gmem_tdx_td *td, const struct gmem_tdx_params *params);
/* vCPUs are numbers here; TDH.VP.ADDCX is in the first. */
uint64_t gmem_tdx_vp_create(struct gmem_tdx_td *td, uint32_t vp);
uint64_t gmem_tdx_vp_init(struct gmem_tdx_td *td, uint32_t vp, uint64_t rcx);
/* `pfn`: our frame, with the page's bytes. */
uint64_t gmem_tdx_mem_page_add(struct gmem_tdx_td *td, uint64_t gpa, uint64_t pfn);
/* 256 bytes. */
uint64_t gmem_tdx_mr_extend(struct gmem_tdx_td *td, uint64_t gpa);
uint64_t gmem_tdx_mr_finalize(struct gmem_tdx_td *td);
/* MRTD, were it finalized now; once it is, as it is. -ENOMEM, -EIO (a TD that is fatal). */
int gmem_tdx_mrtd(struct gmem_tdx_td *td, uint8_t ret[GMEM_TDX_DIGEST_LEN]);

/* ---- memory.c: its secure EPT, once it runs and before. `level` is the entry's */

/* An entry of `level` has a table then, the caller's, which is the TD's on success. */
uint64_t gmem_tdx_mem_sept_add(struct gmem_tdx_td *td, uint64_t gpa, int level, struct gmem_sept_table *table);
uint64_t gmem_tdx_mem_page_aug(struct gmem_tdx_td *td, uint64_t gpa, int level, uint64_t pfn);
/* A call of the guest's. Other than by statuses it ends in an exit: GMEM_TDX_EXIT_EPT_VIOLATION. */
uint64_t gmem_tdx_page_accept(struct gmem_tdx_td *td, uint64_t gpa, int level);
uint64_t gmem_tdx_mem_range_block(struct gmem_tdx_td *td, uint64_t gpa, int level);
uint64_t gmem_tdx_mem_range_unblock(struct gmem_tdx_td *td, uint64_t gpa, int level);
uint64_t gmem_tdx_mem_page_remove(struct gmem_tdx_td *td, uint64_t gpa, int level);

/*
 * The next epoch of the TD: what was blocked before is removed once no vCPU is in the guest that entered before. vCPUs
 * of ours, accessors, do not say when they enter and leave; the MMU waits for them itself, see mmu/external.h.
 */
uint64_t gmem_tdx_mem_track(struct gmem_tdx_td *td);
uint64_t gmem_tdx_vp_enter(struct gmem_tdx_td *td, uint32_t vp);
void gmem_tdx_vp_exit(struct gmem_tdx_td *td, uint32_t vp);

/* ---- check.c: the module's own, `m` held */

void gmem_tdx_lock(struct gmem_tdx_td *td);
void gmem_tdx_unlock(struct gmem_tdx_td *td);
/* What is asked of a TD by each call, before it looks at operands. */
uint64_t gmem_tdx_check_td(const struct gmem_tdx_td *td, enum gmem_tdx_call call);
/* An address of a page, with the level of its entry. */
uint64_t gmem_tdx_check_gpa(uint64_t gpa, int level, int min_level, int max_level);
/* It is a call that may find an entry so. */
bool gmem_tdx_allows(enum gmem_tdx_call call, enum gmem_sept_state state);

#endif
