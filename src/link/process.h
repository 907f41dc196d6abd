/* SPDX-License-Identifier: MIT */
/* The end of a process that is not our child. Enters: a process id. Leaves: a descriptor, 0 once it has ended. No lock.
 */
#ifndef GMEM_LINK_PROCESS_H
#define GMEM_LINK_PROCESS_H

#include <sys/types.h>

/* Returns a descriptor that the caller closes, or -ESRCH, -EMFILE. */
int gmem_process_open(pid_t pid);
/* Waits for its end. 0, or -ETIMEDOUT. */
int gmem_process_wait(int fd, int timeout_ms);

#endif
