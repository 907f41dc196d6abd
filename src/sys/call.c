/* SPDX-License-Identifier: MIT */
#include "sys/call.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/uio.h>
#include <unistd.h>

#include "sys/uapi.h"

static int result(long r)
{
	return r < 0 ? -errno : (int)r;
}

int gmem_sys_ioctl(int fd, unsigned long request, void *arg)
{
	return result(ioctl(fd, request, arg));
}

int gmem_sys_ioctl_val(int fd, unsigned long request, unsigned long val)
{
	return result(ioctl(fd, request, val));
}

int gmem_sys_open(const char *path, int flags)
{
	return result(open(path, flags | O_CLOEXEC));
}

int gmem_sys_memfd(const char *name, unsigned int flags)
{
	return result(memfd_create(name, flags | MFD_CLOEXEC));
}

int gmem_sys_userfaultfd(int flags)
{
	return result(syscall(__NR_userfaultfd, flags));
}

int gmem_sys_mbind(void *addr, size_t len, int mode, const unsigned long *mask, unsigned long maxnode,
		   unsigned int flags)
{
	return result(syscall(__NR_mbind, addr, len, mode, mask, maxnode, flags));
}

int gmem_sys_get_mempolicy(int *mode, unsigned long *mask, unsigned long maxnode, void *addr, unsigned long flags)
{
	return result(syscall(__NR_get_mempolicy, mode, mask, maxnode, addr, flags));
}

int gmem_sys_set_mempolicy(int mode, const unsigned long *mask, unsigned long maxnode)
{
	return result(syscall(__NR_set_mempolicy, mode, mask, maxnode));
}

ssize_t gmem_sys_self_read(void *to, const void *from, size_t len)
{
	struct iovec local = { .iov_base = to, .iov_len = len };
	struct iovec remote = { .iov_base = (void *)(uintptr_t)from, .iov_len = len };
	ssize_t n = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);

	return n < 0 ? -errno : n;
}

static ssize_t self_write(void *to, const void *from, size_t len)
{
	struct iovec local = { .iov_base = (void *)(uintptr_t)from, .iov_len = len };
	struct iovec remote = { .iov_base = to, .iov_len = len };
	ssize_t n = process_vm_writev(getpid(), &local, 1, &remote, 1, 0);

	return n < 0 ? -errno : n;
}

/* A copy by way of a memory file: read(2) and write(2) answer EFAULT where process_vm_readv(2) is forbidden. */
static ssize_t copy_by_file(void *to, const void *from, size_t len)
{
	int fd = gmem_sys_memfd("gmem-peek", 0);
	ssize_t n;

	if (fd < 0)
		return fd;
	n = pwrite(fd, from, len, 0);
	if (n > 0)
		n = pread(fd, to, (size_t)n, 0);
	if (n < 0)
		n = -errno;
	close(fd);
	return n;
}

static bool forbidden(ssize_t n)
{
	return n == -EPERM || n == -ENOSYS;
}

ssize_t gmem_sys_peek(void *to, const void *from, size_t len)
{
	ssize_t n = gmem_sys_self_read(to, from, len);

	return forbidden(n) ? copy_by_file(to, from, len) : n;
}

ssize_t gmem_sys_poke(void *to, const void *from, size_t len)
{
	ssize_t n = self_write(to, from, len);

	return forbidden(n) ? copy_by_file(to, from, len) : n;
}

int gmem_sys_self_writable(void *addr, size_t len)
{
	char byte;

	if (!madvise(addr, len, MADV_POPULATE_WRITE))
		return 0;
	if (errno != EINVAL)
		return -EFAULT;
	/* Read-only, or a kernel before 5.14: a write of what is there tells the two apart. */
	for (size_t at = 0; at < len; at += 4096) {
		char *p = (char *)addr + at;

		if (gmem_sys_peek(&byte, p, 1) != 1 || gmem_sys_poke(p, &byte, 1) != 1)
			return -EFAULT;
	}
	return 0;
}

int gmem_sys_zap(void *addr, size_t len)
{
	if (!madvise(addr, len, MADV_DONTNEED))
		return 0;
	if (errno == EINVAL && !madvise(addr, len, MADV_DONTNEED_LOCKED))
		return 0;
	return -errno;
}
