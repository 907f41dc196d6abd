/* SPDX-License-Identifier: MIT */
/* Linked into a test: a process that may have no userfaultfd, on a kernel that tells its mappings as text alone. */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>

#include "sys/call.h"
#include "sys/uapi.h"

int __wrap_gmem_sys_uffd_open(uint64_t features, bool *user_mode_only);
int __real_gmem_sys_ioctl(int fd, unsigned long request, void *arg);
int __wrap_gmem_sys_ioctl(int fd, unsigned long request, void *arg);

int __wrap_gmem_sys_uffd_open(uint64_t features, bool *user_mode_only)
{
	(void)features;
	(void)user_mode_only;
	return -EPERM;
}

int __wrap_gmem_sys_ioctl(int fd, unsigned long request, void *arg)
{
	return request == GMEM_PROCMAP_QUERY ? -ENOTTY : __real_gmem_sys_ioctl(fd, request, arg);
}
