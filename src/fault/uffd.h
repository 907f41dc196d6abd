/* SPDX-License-Identifier: MIT */
/*
 * Userfaults of views, resolved by the caller: struct gmem_uffd.
 *
 * Enters: views of this process and mappings of others, exits of guests, and what the caller does about their faults.
 * Leaves: events, and pages, in the file by its backing operations and in the views by UFFDIO_CONTINUE. It has no
 * thread. Each view has a userfault descriptor of its own, which it owns; this object polls them all. Locks: `m`, a
 * leaf: nothing is taken and nothing waited for under it, so that reading never waits for one who converts or unmaps;
 * then, apart from it, the files' invalidate locks.
 */
#ifndef GMEM_FAULT_UFFD_H
#define GMEM_FAULT_UFFD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "file/answer.h"
#include "gmem.h"
#include "sys/uapi.h"

#define GMEM_UFFD_BACKLOG 32

/*
 * A descriptor in the poll set: the view's own, or a copy of another process's, of which several mappings may be. Or
 * the process itself, by its pidfd. Guarded by gmem_uffd.m.
 */
struct gmem_uffd_channel {
	int fd; /* borrowed of a view of this process; else ours */
	bool ours;
	bool process;
	int caller_fd; /* whose copy it is, see gmem_uffd_find_channel() */
	dev_t dev;
	ino_t ino;
	uint32_t members;
	struct uffd_msg backlog[GMEM_UFFD_BACKLOG]; /* read, and not told yet */
	int next, n; /* in it */
	uint32_t told; /* of the next one: members that have been */
	struct gmem_uffd_channel *link;
};

/* One view of it. Gone, with its place in the poll set, before the view is. */
struct gmem_uffd_member {
	struct gmem_uffd *uffd;
	struct gmem_view *view;
	uint32_t modes; /* GMEM_UFFD_MODE_* */
	bool tells_private; /* touching a private page is an event, always */
	struct gmem_supply *supply; /* the file's: guests' faults come this way; NULL: they find zero */
	struct gmem_uffd_channel *channel, *process; /* NULL: no pidfd */
	bool gone, gone_told; /* the process is; guarded by gmem_uffd.m */
	bool ending; /* guests do not wait any more; so too, as `exits` */
	uint32_t exits; /* that wait to be answered */
	struct gmem_uffd_member *next;
};

/* A guest's thread that waits, in its own stack: for a page that is to be brought in, or until its exit is answered. */
struct gmem_uffd_guest {
	struct gmem_uffd_member *member;
	uint64_t off, len;
	bool told;
	bool private; /* the page was, when the wait began */
	const struct gmem_guest_exit *exit; /* NULL: for its page */
	bool answered;
	struct gmem_uffd_guest *next;
};

struct gmem_uffd {
	struct gmem_answerer answerer; /* first */
	int epoll;
	int guest_event; /* an eventfd in the poll set: there is something to tell that no descriptor tells */
	uint32_t flags; /* GMEM_UFFD_PRIVATE_EVENTS */
	pid_t pid; /* after fork(2) the poll set is still the other process's */
	_Atomic bool user_mode_only;
	pthread_mutex_t m; /* guards the members, the guests and the poll set; held to read */
	pthread_cond_t resolved; /* a page may have come for a guest, or its exit been answered */
	pthread_cond_t left; /* the last exit that waited at a member has gone */
	struct gmem_uffd_member *members;
	struct gmem_uffd_channel *channels;
	struct gmem_uffd_guest *guests;
};

void gmem_uffd_lock(struct gmem_uffd *uffd);
void gmem_uffd_unlock(struct gmem_uffd *uffd);

/* -EIO in a forked child. */
int gmem_uffd_check_process(const struct gmem_uffd *uffd, const char *who);

/* ---- uffd_member.c */

/*
 * The view is a member, and its descriptor polled: takes `member`, with all but the channels and `next` set. `pidfd`,
 * which is borrowed, or -1. Errors with text; then nothing is taken.
 */
int gmem_uffd_enlist(struct gmem_uffd *uffd, struct gmem_uffd_member *member, const char *who, int caller_fd,
		     int pidfd);
/* Frees what a member has, and it. No event is told of it any more. Its view's hooks are the caller's. */
void gmem_uffd_delist(struct gmem_uffd *uffd, struct gmem_uffd_member *member);
/* For view->unmapping. */
void gmem_uffd_forget_view(void *server, struct gmem_view *view);
/* Guests find what is absent of it through this object. */
int gmem_uffd_new_member(struct gmem_uffd *uffd, struct gmem_view *view, uint32_t modes, const char *who,
			 struct gmem_uffd_member **ret);
/* -EINVAL with text: unknown or no modes. */
int gmem_uffd_check_modes(const char *who, uint32_t modes);
/* What the kernel is to register for them. */
unsigned int gmem_uffd_kernel_modes(uint32_t modes);

/* ---- uffd_guest.c */

/* There is something to tell that no descriptor tells. Caller holds m. */
void gmem_uffd_ring(struct gmem_uffd *uffd);
/* A gmem_bring_in_fn whose opaque is the member. */
int gmem_uffd_bring_in(void *opaque, struct gmem_file *file, uint64_t off, struct gmem_wait *wait);
/* As gmem_answerer.answer. */
int gmem_uffd_answer(struct gmem_answerer *a, const struct gmem_guest_exit *exit, struct gmem_wait *wait);
/* Tells of at most `n` guests, and of processes that are gone. Returns how many. Caller holds m. */
int gmem_uffd_tell_guests(struct gmem_uffd *uffd, struct gmem_uffd_event *events, int n);
/*
 * Guests look again; with `again`, those that wait for a page there are told of once more, and exits there are
 * answered.
 */
void gmem_uffd_resolved(struct gmem_uffd *uffd, const struct gmem_view *view, uint64_t off, uint64_t len, bool again);
/* Guests that wait go, and none comes any more. */
void gmem_uffd_end_supply(struct gmem_uffd_member *member);

#endif
