/* SPDX-License-Identifier: MIT */
/*
 * Exits of guests that somebody else answers: a vCPU's thread has one that it can do nothing about (a page on the other
 * side, or one that is the caller's to fill), and waits here for a loop that resolves the host's faults too.
 *
 * The rooms of the two do not know each other, so what they agree on is here. Enters: an exit, by who runs the vCPU.
 * Leaves: whether it is to make the access again.
 */
#ifndef GMEM_FILE_ANSWER_H
#define GMEM_FILE_ANSWER_H

#include "file/file.h"

struct gmem_guest_exit {
	struct gmem_file *file; /* whoever asks has a reference */
	uint64_t off, len; /* of the pages, in the file */
	uint64_t gpa, flags; /* as the exit told them: GMEM_EXIT_FLAG_* */
};

/* The first member of struct gmem_uffd. */
struct gmem_answerer {
	/*
	 * Waits until somebody has answered: 0. -ENOENT: nobody serves these pages here; -EIO: nobody does any more, or
	 * a copy that came with fork(2); -EINTR: `wait` is over. No lock held.
	 */
	int (*answer)(struct gmem_answerer *a, const struct gmem_guest_exit *exit, struct gmem_wait *wait);
};

static inline struct gmem_answerer *gmem_answerer_of(struct gmem_uffd *uffd)
{
	return (struct gmem_answerer *)uffd;
}

#endif
