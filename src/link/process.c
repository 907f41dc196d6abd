/* SPDX-License-Identifier: MIT */
#include "link/process.h"

#include <errno.h>
#include <poll.h>

#include "base/err.h"
#include "sys/process.h"

int gmem_process_open(pid_t pid)
{
	int fd;

	fd = gmem_pidfd_open(pid);
	if (fd == -ESRCH)
		return gmem_err(fd, "process %d: there is none", (int)pid);
	return fd < 0 ? gmem_err_sys(fd, "process %d", (int)pid) : fd;
}

int gmem_process_wait(int fd, int timeout_ms)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	int n;

	do {
		n = poll(&pfd, 1, timeout_ms);
	} while (n < 0 && errno == EINTR);
	if (n > 0)
		return 0;
	return n ? gmem_err_sys(-errno, "waiting for a process") :
		   gmem_err(-ETIMEDOUT, "QEMU did not end within %d seconds", timeout_ms / 1000);
}
