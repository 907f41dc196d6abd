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
	struct gmem_uffd *uffd;
	struct gmem_view *view;
	struct gmem_supply *supply; /* the file's: guests' faults come this way */
	bool ending; /* the supply is: guests do not wait any more; guarded by gmem_uffd.m */
	struct gmem_uffd_member *next;
};

/* A guest's thread that waits for a page, in its own stack. */
struct gmem_uffd_guest {
	struct gmem_uffd_member *member;
	uint64_t off;
	bool told;
	bool private; /* the page was, when the wait began */
	struct gmem_uffd_guest *next;
};

struct gmem_uffd {
	int epoll;
	int guest_event; /* an eventfd in the poll set: a guest has come */
	uint32_t flags; /* GMEM_UFFD_PRIVATE_EVENTS */
	pid_t pid; /* after fork(2) the poll set is still the other process's */
	_Atomic bool user_mode_only;
	pthread_mutex_t m; /* guards the members, the guests and the poll set; held to read */
	pthread_cond_t resolved; /* a page may have come for a guest */
	struct gmem_uffd_member *members;
	struct gmem_uffd_guest *guests;
};

void gmem_uffd_lock(struct gmem_uffd *uffd);
void gmem_uffd_unlock(struct gmem_uffd *uffd);

/* -EIO in a forked child. */
int gmem_uffd_check_process(const struct gmem_uffd *uffd, const char *who);

/* uffd_guest.c: a gmem_bring_in_fn whose opaque is the member. */
int gmem_uffd_bring_in(void *opaque, struct gmem_file *file, uint64_t off, struct gmem_wait *wait);
/* Tells of at most `n` guests. Returns how many. Caller holds m. */
int gmem_uffd_tell_guests(struct gmem_uffd *uffd, struct gmem_uffd_event *events, int n);
/* Guests look again; with `again`, those that wait for a page there are told of once more. */
void gmem_uffd_resolved(struct gmem_uffd *uffd, const struct gmem_view *view, uint64_t off, uint64_t len, bool again);
/* Guests that wait go, and none comes any more. */
void gmem_uffd_end_supply(struct gmem_uffd_member *member);

#endif
