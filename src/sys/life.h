/* SPDX-License-Identifier: MIT */
/*
 * Signs of life between processes that share a file: locks on bytes of it, which the kernel drops when the last
 * descriptor of the open(2) that took them is closed, at the end of the process at the latest. A number of a process
 * says less: it is used again, and another pid namespace has other ones. Children made by fork(2) have the descriptor
 * too, and keep the lock of a parent that died; there the number helps, where it can. Enters: descriptors and numbers.
 * Leaves: negative errno. Owns nothing, takes no lock of this process; any thread.
 */
#ifndef GMEM_SYS_LIFE_H
#define GMEM_SYS_LIFE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* Opens the file behind a descriptor anew, for locks of its own. Close-on-exec. Needs /proc. Negative errno. */
int gmem_life_open(int fd);

/* Locks byte `n`. -EAGAIN: another one has it. */
int gmem_life_take(int life, unsigned int n);
void gmem_life_drop(int life, unsigned int n);
/* Has another one byte `n`? True also where that cannot be said. */
bool gmem_life_taken(int life, unsigned int n);

/* Names the pid namespace of this process, in which getpid(2) means something; 0: unknown. */
uint64_t gmem_pid_space(void);
/* Surely no process of that number is there any more. */
bool gmem_pid_gone(pid_t pid, uint64_t space);

#endif
