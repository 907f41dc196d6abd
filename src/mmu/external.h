/* SPDX-License-Identifier: MIT */
/*
 * External tables: who else has to agree to what private memory a guest is given, beside the MMU's own tables. TDX's
 * secure EPT, which only its module changes; SNP's RMP, which says whose each frame is.
 *
 * Enters: every set and clear of a private page, in order. Leaves: agreement, or an error, and then the MMU's own entry
 * is not set. While somebody is asked the MMU's entry is frozen: others who meet it try again. Locks: these functions
 * are called under the MMU lock or in a mapping section, several at once for different frames; they take locks of their
 * own, GMEM_LOCK_VENDOR, wait for nothing, and touch no memory but the guest's. All private pages are mapped by 4 KiB.
 */
#ifndef GMEM_MMU_EXTERNAL_H
#define GMEM_MMU_EXTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct gmem_vcpu;
struct gmem_mmu_external;

/* Answered by set_page(): it is set, but no access is allowed before the guest has accepted it. */
#define GMEM_EXTERNAL_PENDING 1

struct gmem_mmu_external_ops {
	/*
	 * There is to be a table of `level` for the frame (1: its entries are pages), in the one of level + 1. Level 4
	 * is the root, never asked for. Once for each; tables live as long as the VM. NULL: no tables are kept.
	 * -EAGAIN: busy, it is asked again. Any other error is passed on to who wanted the page.
	 */
	int (*add_table)(struct gmem_mmu_external *x, uint64_t gfn, int level);
	/*
	 * The page is to be the guest's: by a launch (populating, the file's lock held) or by a fault. 0 (mapped then,
	 * unless it is still being built), GMEM_EXTERNAL_PENDING, or not set: -EAGAIN, any other error.
	 */
	int (*set_page)(struct gmem_mmu_external *x, struct gmem_vcpu *vcpu, uint64_t gfn, uint64_t pfn);
	/*
	 * The guest accepts a pending page (0; 1: nothing was to be changed), or gives it back to pending. NULL: guests
	 * have no say.
	 */
	int (*accept)(struct gmem_mmu_external *x, uint64_t gfn, uint64_t pfn, bool accept);
	bool accept_zeroes; /* a page that is accepted loses what it had */
	/*
	 * A page is taken away, in three steps: no new translation is made of it; then, once for all that were blocked,
	 * `track`, after which no guest still uses one; then it is nobody's. What goes wrong here is the end of the VM.
	 * block and track may be NULL.
	 */
	int (*block)(struct gmem_mmu_external *x, uint64_t gfn, uint64_t pfn);
	int (*track)(struct gmem_mmu_external *x);
	int (*clear_page)(struct gmem_mmu_external *x, uint64_t gfn, uint64_t pfn);
	/*
	 * Pages stop being private memory: converted, punched, or their file is closed. Nothing of them is mapped. Not
	 * called when only a slot goes. Under the file's lock, exclusive, but for the last. NULL: no matter.
	 */
	void (*release)(struct gmem_mmu_external *x, uint64_t gfn, uint64_t pfn, uint64_t npages);
	/*
	 * A page that is in place is to be populated; nothing of it has changed yet. 0, or -EEXIST: it is the guest's.
	 * Under the file's lock, exclusive. NULL: they do not say.
	 */
	int (*may_populate)(struct gmem_mmu_external *x, uint64_t gfn, uint64_t pfn);
	/* With the VM. */
	void (*free)(struct gmem_mmu_external *x);
};

/* Embedded in its owner; belongs to the MMU, and so to its VM, from gmem_mmu_set_external() on. */
struct gmem_mmu_external {
	const struct gmem_mmu_external_ops *ops;
	/* The guest does not run yet: pages that it has been given are mapped for nobody. */
	_Atomic bool building;
};

#endif
