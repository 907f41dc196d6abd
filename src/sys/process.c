/* SPDX-License-Identifier: MIT */
#include "sys/process.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sys/uapi.h"

int gmem_pidfd_open(pid_t pid)
{
	long fd = syscall(__NR_pidfd_open, pid, 0);

	return fd < 0 ? -errno : (int)fd;
}

int gmem_pidfd_kill(int pidfd)
{
	return syscall(__NR_pidfd_send_signal, pidfd, SIGKILL, NULL, 0) ? -errno : 0;
}

int gmem_pidfd_getfd(int pidfd, int fd)
{
	long got = syscall(__NR_pidfd_getfd, pidfd, fd, 0);

	return got < 0 ? -errno : (int)got;
}

int gmem_pidfd_peer(int sock, pid_t pid)
{
	socklen_t len = sizeof(int);
	int fd;

	/* Before Linux 6.5 the number has to do, which may be another process's by now. */
	if (getsockopt(sock, SOL_SOCKET, SO_PEERPIDFD, &fd, &len) == 0)
		return fd;
	return errno == ENOPROTOOPT ? gmem_pidfd_open(pid) : -errno;
}

uint64_t gmem_process_start(pid_t pid)
{
	char path[64], buf[1024];
	unsigned long long start = 0;
	const char *p;
	int threads;
	char state;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	if (n <= 0)
		return 0;
	buf[n] = '\0';
	/*
	 * The command's name may hold anything, spaces and brackets included; the state letter follows the last
	 * bracket.
	 */
	p = strrchr(buf, ')');
	if (!p || p[1] != ' ')
		return 0;
	if (sscanf(p + 2, "%c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %d %*s %llu", &state,
		   &threads, &start) != 3)
		return 0;
	/* One whose first thread has ended lives on in the others. */
	if (state == 'X' || (state == 'Z' && threads <= 1))
		return 0;
	return start;
}

bool gmem_inode_own(uint64_t dev, uint64_t ino)
{
	int fd = eventfd(0, EFD_CLOEXEC);
	struct stat st;
	bool own = true;

	/* An eventfd has the inode that all share which have none of their own. */
	if (fd >= 0 && !fstat(fd, &st))
		own = st.st_dev != dev || st.st_ino != ino;
	if (fd >= 0)
		close(fd);
	return own;
}

bool gmem_same_file(int a, int b)
{
	return syscall(__NR_kcmp, getpid(), getpid(), KCMP_FILE, (unsigned long)a, (unsigned long)b) == 0;
}

void gmem_signal_put_back(siginfo_t *info)
{
	(void)syscall(__NR_rt_tgsigqueueinfo, getpid(), (pid_t)syscall(__NR_gettid), info->si_signo, info);
}
