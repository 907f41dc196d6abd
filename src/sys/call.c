/* SPDX-License-Identifier: MIT */
#include "sys/call.h"

#include <errno.h>
#include <fcntl.h>
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

ssize_t gmem_sys_self_read(void *to, const void *from, size_t len)
{
	struct iovec local = { .iov_base = to, .iov_len = len };
	struct iovec remote = { .iov_base = (void *)(uintptr_t)from, .iov_len = len };
	ssize_t n = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);

	return n < 0 ? -errno : n;
}

ssize_t gmem_sys_peek(void *to, const void *from, size_t len)
{
	ssize_t n = gmem_sys_self_read(to, from, len);
	int fd;

	if (n != -EPERM && n != -ENOSYS)
		return n;
	fd = gmem_sys_memfd("gmem-peek", 0);
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
