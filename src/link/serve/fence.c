/* SPDX-License-Identifier: MIT */
#include "link/serve/fence.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"
#include "sys/process.h"

void gmem_fence_init(struct gmem_fence *fence)
{
	fence->fd = -1;
}

void gmem_fence_drop(struct gmem_fence *fence)
{
	if (fence->fd >= 0) {
		/* Who lives on without it is not to be taken for its holder. */
		(void)!ftruncate(fence->fd, 0);
		close(fence->fd);
	}
	fence->fd = -1;
}

static int open_file(int dir, const char *name)
{
	int fd = openat(dir, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

	return fd < 0 ? gmem_err_sys(-errno, "%s", name) : fd;
}

/* What the holder wrote; 0: nothing yet, or that process is no more. */
static pid_t written_pid(int fd)
{
	unsigned long long start;
	char text[64] = "";
	int pid;

	if (pread(fd, text, sizeof(text) - 1, 0) <= 0 || sscanf(text, "%d %llu", &pid, &start) != 2 || pid <= 0)
		return 0;
	return gmem_process_start(pid) == start ? pid : 0;
}

static void write_pid(int fd)
{
	char text[64];
	int n = snprintf(text, sizeof(text), "%d %llu\n", (int)getpid(),
			 (unsigned long long)gmem_process_start(getpid()));

	/* For people and for taking over; the lock itself is what counts. */
	if (ftruncate(fd, 0) == 0)
		(void)!pwrite(fd, text, (size_t)n, 0);
}

int gmem_fence_take(struct gmem_fence *fence, int dir, const char *name, unsigned int timeout_ms, pid_t *ret_pid)
{
	uint64_t until = gmem_now_ms() + timeout_ms;
	pid_t pid = 0;
	int fd, err = 0;

	if (fence->fd >= 0)
		return 0;
	fd = open_file(dir, name);
	if (fd < 0)
		return fd;
	while (flock(fd, LOCK_EX | LOCK_NB)) {
		err = errno == EWOULDBLOCK ? -EBUSY : -errno;
		if (errno != EINTR && (err != -EBUSY || gmem_now_ms() >= until))
			break;
		err = 0;
		poll(NULL, 0, 2);
	}
	if (!err) {
		write_pid(fd);
		fence->fd = fd;
		return 0;
	}
	if (err == -EBUSY)
		pid = written_pid(fd);
	close(fd);
	if (ret_pid)
		*ret_pid = pid;
	return gmem_err(err, "%s: process %d has it", name, (int)pid);
}

int gmem_fence_holder(int dir, const char *name, pid_t *ret_pid)
{
	int fd = open_file(dir, name), pidfd = -ESRCH;
	pid_t pid;

	if (fd < 0)
		return fd;
	pid = written_pid(fd);
	if (pid)
		pidfd = gmem_pidfd_open(pid);
	/* The same process's name before and after, and the lock still taken: the descriptor is the holder's. */
	if (pidfd >= 0 && (flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK || written_pid(fd) != pid)) {
		close(pidfd);
		pidfd = -ESRCH;
	}
	close(fd);
	if (pidfd < 0)
		return gmem_err_sys(pidfd, "%s: its holder", name);
	*ret_pid = pid;
	return pidfd;
}

int gmem_fence_take_over(struct gmem_fence *fence, int dir, const char *name, unsigned int timeout_ms)
{
	uint64_t until = gmem_now_ms() + timeout_ms;
	int err, pidfd;
	pid_t pid = 0;

	for (;;) {
		err = gmem_fence_take(fence, dir, name, 10, NULL);
		if (err != -EBUSY)
			return err;
		/* Whoever takes it next has to go as well, until it is ours. */
		pidfd = gmem_fence_holder(dir, name, &pid);
		if (pidfd >= 0) {
			err = gmem_pidfd_kill(pidfd);
			close(pidfd);
			if (err && err != -ESRCH)
				return gmem_err_sys(err, "%s: ending process %d", name, (int)pid);
		}
		if (gmem_now_ms() >= until)
			return gmem_err(-EBUSY, "%s: process %d has it and does not end", name, (int)pid);
	}
}
