/* SPDX-License-Identifier: MIT */
/*
 * One confidential launch: pages populated, measured and mapped, and the digest of what was done.
 *
 * Enters: source pages, in the order they are launched. Leaves: private pages, and the digest. The launch belongs to
 * its creator and has a reference to its VM. Lock: `vm->slots_lock` guards everything here; the digest changes in a
 * populate callback only, or is read under the lock.
 *
 * A launched page is mapped into the second stage in the same step, by the frame that populate holds. That is also how
 * a page that is launched twice is found out: no hardware would measure it.
 */
#ifndef GMEM_LAUNCH_LAUNCH_H
#define GMEM_LAUNCH_LAUNCH_H

#include "launch/snp_digest.h"
#include "launch/tdx_digest.h"
#include "vm/vm.h"

#define GMEM_LAUNCH_BATCH 64u /* pages of one step */

struct gmem_launch {
	struct gmem_vm *vm; /* referenced */
	struct gmem_vcpu vcpu; /* the mappings are made in its name */
	struct gmem_snp_digest snp;
	struct gmem_tdx_digest tdx;
	enum gmem_launch_page type; /* of the update that runs */
	bool broken; /* a page was measured in part: the digest is of no use */
};

/* gmem_launch_update(); *ret_why is what ended it early, also after progress. */
int64_t gmem_launch_update_why(struct gmem_launch *launch, uint64_t gpa, const void *src, int64_t npages,
			       enum gmem_launch_page type, int *ret_why);

/* Populate callbacks; opaque is the launch. */
int gmem_launch_snp_page(struct gmem_vm *vm, uint64_t gfn, uint64_t pfn, void *src, void *opaque);
int gmem_launch_tdx_page(struct gmem_vm *vm, uint64_t gfn, uint64_t pfn, void *src, void *opaque);

#endif
