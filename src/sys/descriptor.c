/* SPDX-License-Identifier: MIT */
#include "sys/descriptor.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "sys/uapi.h"
#include "sys/uffd.h"

/* The kernel's own, beside the features, since Linux 5.15. */
#define UFFD_INITIALIZED (UINT64_C(1) << 31)
#define SOME_PAGE (UINT64_C(1) << 24) /* an address that every process may have */
#define GUEST_MEMFD_MAGIC UINT64_C(0x474d454d) /* linux/magic.h since 6.19 */

static int read_link(int fd, char *buf, size_t len)
{
	char path[40];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, buf, len - 1);
	if (n < 0)
		return errno == ENOENT ? -EBADF : -errno;
	buf[n] = '\0';
	return 0;
}

int gmem_fd_uffd_features(int fd, uint64_t *ret)
{
	unsigned long long features;
	char buf[1024], path[40];
	const char *line;
	ssize_t n;
	int info, err;

	err = read_link(fd, buf, sizeof(buf));
	if (err)
		return err;
	if (strcmp(buf, "anon_inode:[userfaultfd]") != 0)
		return -EBADF;
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = open(path, O_RDONLY | O_CLOEXEC);
	if (info < 0)
		return -errno;
	n = read(info, buf, sizeof(buf) - 1);
	err = n < 0 ? -errno : 0;
	close(info);
	if (err)
		return err;
	buf[n] = '\0';
	line = strstr(buf, "\nAPI:");
	if (!line || sscanf(line, "\nAPI: %*x:%llx", &features) != 1)
		return -EIO;
	*ret = features & ~UFFD_INITIALIZED;
	/* All but UFFDIO_API is EINVAL before it. Nobody waits there; who did would look again, and wait on. */
	return gmem_sys_uffd_wake(fd, SOME_PAGE, 4096);
}

int gmem_fd_is_guest_memfd(int fd)
{
	struct statfs fs;
	char link[256];
	int err = read_link(fd, link, sizeof(link));

	if (err)
		return err == -EBADF ? 0 : err;
	if (!strcmp(link, "anon_inode:[kvm-gmem]"))
		return 1;
	/* Newer kernels have a file system of its own for them. A name alone could be any file's. */
	if (fstatfs(fd, &fs))
		return -errno;
	return (uint64_t)fs.f_type == GUEST_MEMFD_MAGIC;
}

int gmem_fd_memfd_size(int fd, int seals, uint64_t *ret)
{
	int has = fcntl(fd, F_GET_SEALS);
	struct stat st;

	if (has < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode))
		return -EBADF;
	if ((has & seals) != seals)
		return -EPERM;
	*ret = (uint64_t)st.st_size;
	return 0;
}
