/* SPDX-License-Identifier: MIT */
/*
 * How the work behind the faults, fill and replay, gives way to them.
 *
 * Enters: what is about to be done, and how long it took. Leaves: how much to do at once. It is done in steps, one read
 * of the source each, and what was read goes into the memory in slices: the kernel lets one thread write to a memory
 * file at a time, and a toucher that needs a page waits for that. Before each there is a look whether one does. How
 * long either is depends on how long the last ones took, and on whether there are faults at all. One thread's own.
 */
#ifndef GMEM_FAULT_PACE_H
#define GMEM_FAULT_PACE_H

#include "fault/pager.h"

struct gmem_pace {
	struct gmem_pager *pager;
	bool replay; /* what it does spares faults: it waits for those that are pending, not for those after them */
	uint32_t pages, most; /* of a step */
	uint32_t page_ns; /* what a page of a slice took lately */
	uint64_t faults, fault_ns; /* so many had been read when there were last more, and when that was */
	uint64_t step_ns, slice_ns; /* when they began */
	uint64_t in_slices_ns; /* of the step, so far */
	bool at_hand; /* the source gave the last step's pages as fast as memory does: a short step costs nothing */
};

void gmem_pace_init(struct gmem_pace *pace, struct gmem_pager *pager, uint32_t most, bool replay);

/* Waits while faults are pending, for a limited time. Returns the bytes that the step may have. */
uint64_t gmem_pace_step(struct gmem_pace *pace);
/* It was done, with so many pages. */
void gmem_pace_step_done(struct gmem_pace *pace, uint64_t npages);

/* The same, of a slice. No lock held. */
uint64_t gmem_pace_slice(struct gmem_pace *pace);
void gmem_pace_slice_done(struct gmem_pace *pace, uint64_t npages);

#endif
