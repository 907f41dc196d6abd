/* SPDX-License-Identifier: MIT */
/*
 * What a pager sees of its guest's touches, on its way into working sets.
 *
 * Enters: each fault that was served, from the threads that serve, which take no lock and never wait: a ring, and what
 * does not fit is counted and lost. Leaves: touches, to the working sets that record or measure a region, by a thread
 * of the tracer's own. Locks: `m`, outside that of a working set.
 */
#ifndef GMEM_FAULT_TRACE_H
#define GMEM_FAULT_TRACE_H

#include "fault/pager.h"
#include "fault/workset.h"

/* Parts of a working set as regions of a pager have them. */
struct gmem_parts {
	struct gmem_source *source[GMEM_WORKSET_MAX_PARTS];
	uint64_t len[GMEM_WORKSET_MAX_PARTS]; /* bytes, to the end of the last of its regions */
	uint32_t n;
	struct gmem_pager_region **regions;
	uint16_t *part; /* of each region */
	uint32_t nregions;
};

/* `regions` NULL: all. `who` for error texts. -EINVAL, -ENOSPC, -ENOMEM. */
int gmem_parts_init(struct gmem_parts *parts, const char *who, struct gmem_pager *pager, const unsigned int *regions,
		    size_t nregions);
void gmem_parts_destroy(struct gmem_parts *parts);

/*
 * From now on touches of these regions are measured by the working set, whose run has begun. -EBUSY: another one's
 * are. -ENOMEM, -EAGAIN.
 */
int gmem_trace_measure(struct gmem_pager *pager, struct gmem_workset *ws, const struct gmem_parts *parts);

/* The pager's threads have ended: so does all that is traced. */
void gmem_trace_end(struct gmem_pager *pager);

#endif
