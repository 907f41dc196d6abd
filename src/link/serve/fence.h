/* SPDX-License-Identifier: MIT */
/*
 * A fence: one process at a time, by flock(2) of a file that has the holder's pid and start time in it. The lock goes
 * with the process, once the last of its threads has left the kernel. Enters: a directory and a name. Leaves: negative
 * errno with a text. No lock of this process; one thread.
 */
#ifndef GMEM_LINK_SERVE_FENCE_H
#define GMEM_LINK_SERVE_FENCE_H

#include <sys/types.h>

struct gmem_fence {
	int fd; /* -1: not taken */
};

void gmem_fence_init(struct gmem_fence *fence);
void gmem_fence_drop(struct gmem_fence *fence);

/*
 * Waits up to `timeout_ms`. Taken already: 0. -EBUSY: somebody has it, `*ret_pid` (may be NULL) is who, 0 if that
 * cannot be told.
 */
int gmem_fence_take(struct gmem_fence *fence, int dir, const char *name, unsigned int timeout_ms, pid_t *ret_pid);

/* Kills (SIGKILL) who has it, and takes it. -EBUSY: it does not die, or cannot be told; -EPERM. */
int gmem_fence_take_over(struct gmem_fence *fence, int dir, const char *name, unsigned int timeout_ms);

/*
 * The process that has it, as a pidfd of the caller's: surely that one, since it had the lock after the pidfd was
 * opened. -ESRCH: nobody has it.
 */
int gmem_fence_holder(int dir, const char *name, pid_t *ret_pid);

#endif
