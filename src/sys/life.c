/* SPDX-License-Identifier: MIT */
#include "sys/life.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

int gmem_life_open(int fd)
{
	char path[32];
	int life;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	life = open(path, O_RDWR | O_CLOEXEC);
	return life < 0 ? -errno : life;
}

static int lock(int life, int cmd, struct flock *l)
{
	return fcntl(life, cmd, l) ? -errno : 0;
}

static struct flock byte(short type, unsigned int n)
{
	return (struct flock){ .l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)n, .l_len = 1 };
}

int gmem_life_take(int life, unsigned int n)
{
	struct flock l = byte(F_WRLCK, n);
	int err = lock(life, F_OFD_SETLK, &l);

	return err == -EACCES ? -EAGAIN : err;
}

void gmem_life_drop(int life, unsigned int n)
{
	struct flock l = byte(F_UNLCK, n);

	(void)lock(life, F_OFD_SETLK, &l);
}

bool gmem_life_taken(int life, unsigned int n)
{
	struct flock l = byte(F_WRLCK, n);

	return lock(life, F_OFD_GETLK, &l) || l.l_type != F_UNLCK;
}

uint64_t gmem_pid_space(void)
{
	struct stat st;

	return stat("/proc/self/ns/pid", &st) ? 0 : st.st_ino;
}

bool gmem_pid_gone(pid_t pid, uint64_t space)
{
	return pid > 0 && space && kill(pid, 0) && errno == ESRCH && space == gmem_pid_space();
}
