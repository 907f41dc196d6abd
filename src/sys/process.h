/* SPDX-License-Identifier: MIT */
/* Other processes: descriptors that stand for them or are theirs, when they started. Owns nothing, takes no lock. */
#ifndef GMEM_SYS_PROCESS_H
#define GMEM_SYS_PROCESS_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* A process as a descriptor that polls readable when it has ended, all its threads included. Negative errno. */
int gmem_pidfd_open(pid_t pid);
int gmem_pidfd_kill(int pidfd);
/* A copy of another process's descriptor. -EPERM without the right to trace it. */
int gmem_pidfd_getfd(int pidfd, int fd);
/* The process at the other end of a UNIX socket, as a descriptor. Negative errno. */
int gmem_pidfd_peer(int sock, pid_t pid);

/*
 * The time process `pid` started, in clock ticks after boot; 0 if there is none, or nothing of it runs any more. With
 * the number it names a process for good: numbers are used again.
 */
uint64_t gmem_process_start(pid_t pid);

/*
 * Does the kernel give such an anonymous inode to one file alone? Before Linux 5.12 all userfaultfds share one, with
 * all other anonymous files.
 */
bool gmem_inode_own(uint64_t dev, uint64_t ino);
/* Do two descriptors of this process stand for one open file? False also where the kernel does not tell (kcmp(2)). */
bool gmem_same_file(int a, int b);

/* Sends this thread a signal that it has taken by sigtimedwait(2) again, as it was. */
void gmem_signal_put_back(siginfo_t *info);

#endif
