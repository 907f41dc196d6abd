/* SPDX-License-Identifier: MIT */
/*
 * Memory that is still being restored must be complete before it is saved: what is not in place is in another image,
 * not in the memory file.
 *
 * Enters: the process whose memory it is. Leaves: memory that is complete, or a refusal. Asked of the page-state
 * tables that the process holds. No lock.
 */
#ifndef GMEM_LINK_COMPLETE_H
#define GMEM_LINK_COMPLETE_H

#include <sys/types.h>

#include "gmem.h"

/*
 * Waits until every page of the process's guest memory is in place, asking its server for that. Returns at once for a
 * process whose memory was never restored by gmem. -EBUSY: pages are missing and no server lives; -EHWPOISON: pages
 * are lost; -EACCES; or the error of `progress`.
 */
int gmem_complete_memory(pid_t pid, gmem_progress_fn progress, void *opaque);

#endif
