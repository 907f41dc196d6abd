/* SPDX-License-Identifier: MIT */
/*
 * How the work behind the faults, fill and replay, gives way to them.
 *
 * Enters: a step that is about to be done, and how long it took. Leaves: how long the next may be. While a step is done
 * a fault may have to wait for a lock that the kernel holds over the write of the whole of it, for the source, and for
 * the processor: so a step is as long as takes a little while, whatever the memory and the source.
 */
#ifndef GMEM_FAULT_PACE_H
#define GMEM_FAULT_PACE_H

#include "fault/pager.h"

struct gmem_pace {
	uint32_t pages, most;
	uint64_t begun_ns;
};

void gmem_pace_init(struct gmem_pace *pace, uint32_t most);
/* Waits while faults are pending, for a limited time. Returns the bytes that the next step may have. */
uint64_t gmem_pace_begin(struct gmem_pace *pace, struct gmem_pager *pager);
/* It was done, with so many pages. */
void gmem_pace_end(struct gmem_pace *pace, uint64_t npages);

#endif
