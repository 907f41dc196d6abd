/* SPDX-License-Identifier: MIT */
/*
 * Userfaults of views, resolved by the caller: struct gmem_uffd.
 *
 * Enters: views, and what the caller does about their faults. Leaves: events, and pages, in the file by its backing
 * operations and in the views by UFFDIO_CONTINUE. It has no thread. Each view has a userfault descriptor of its own,
 * which it owns; this object polls them all. Locks: `m`, a leaf: nothing is taken and nothing waited for under it, so
 * that reading never waits for one who converts or unmaps; then, apart from it, the files' invalidate locks.
 */
#ifndef GMEM_FAULT_UFFD_H
#define GMEM_FAULT_UFFD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "file/file.h"
#include "gmem.h"

/* One view of it. Gone, with its place in the poll set, before the view is. */
struct gmem_uffd_member {
	struct gmem_view *view;
	struct gmem_uffd_member *next;
};

struct gmem_uffd {
	int epoll;
	uint32_t flags; /* GMEM_UFFD_PRIVATE_EVENTS */
	pid_t pid; /* after fork(2) the poll set is still the other process's */
	_Atomic bool user_mode_only;
	pthread_mutex_t m; /* guards the members and the poll set; held to read */
	struct gmem_uffd_member *members;
};

void gmem_uffd_lock(struct gmem_uffd *uffd);
void gmem_uffd_unlock(struct gmem_uffd *uffd);

/* -EIO in a forked child. */
int gmem_uffd_check_process(const struct gmem_uffd *uffd, const char *who);

#endif
