/* SPDX-License-Identifier: MIT */
#include "sys/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

/* A descriptor answers UFFDIO_API once: features are asked for on the descriptor that is kept, so it fails whole. */
static int negotiate(int fd, uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };

	if (ioctl(fd, UFFDIO_API, &api))
		return errno == EINVAL ? -EOPNOTSUPP : -errno;
	if ((api.features & features) != features)
		return -EOPNOTSUPP;
	return 0;
}

static int open_device(void)
{
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	int fd, err;

	if (dev < 0)
		return -errno;
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	err = fd < 0 ? -errno : fd;
	close(dev);
	return err;
}

static int open_syscall(int flags)
{
	long fd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags);

	return fd < 0 ? -errno : (int)fd;
}

int gmem_sys_uffd_open(uint64_t features, bool *user_mode_only)
{
	bool um_only = false;
	int fd = open_syscall(0);
	int err;

	if (fd < 0 && fd != -EMFILE && fd != -ENFILE) {
		int first = fd;

		fd = open_device();
		if (fd < 0 && user_mode_only) {
			fd = open_syscall(UFFD_USER_MODE_ONLY);
			um_only = true;
		}
		if (fd < 0)
			fd = first;
	}
	if (fd < 0)
		return fd;
	err = negotiate(fd, features);
	if (err) {
		close(fd);
		return err;
	}
	if (user_mode_only)
		*user_mode_only = um_only;
	return fd;
}

int gmem_sys_uffd_register(int uffd, uint64_t hva, uint64_t len, unsigned int mode)
{
	struct uffdio_register reg = { .range = { .start = hva, .len = len } };

	if (mode & GMEM_SYS_UFFD_MISSING)
		reg.mode |= UFFDIO_REGISTER_MODE_MISSING;
	if (mode & GMEM_SYS_UFFD_MINOR)
		reg.mode |= UFFDIO_REGISTER_MODE_MINOR;
	if (mode & GMEM_SYS_UFFD_WP)
		reg.mode |= UFFDIO_REGISTER_MODE_WP;
	return ioctl(uffd, UFFDIO_REGISTER, &reg) ? -errno : 0;
}

int gmem_sys_uffd_unregister(int uffd, uint64_t hva, uint64_t len)
{
	struct uffdio_range range = { .start = hva, .len = len };

	return ioctl(uffd, UFFDIO_UNREGISTER, &range) ? -errno : 0;
}

int gmem_sys_uffd_wake(int uffd, uint64_t hva, uint64_t len)
{
	struct uffdio_range range = { .start = hva, .len = len };

	return ioctl(uffd, UFFDIO_WAKE, &range) ? -errno : 0;
}

/* The kernel's three ways to say how far it got: progress, a negative errno in the field, or nothing written. */
static int finish(int rc, int64_t field, uint64_t len, uint64_t *done)
{
	int err = rc ? -errno : 0;

	*done = field > 0 ? (uint64_t)field : 0;
	if (*done == len)
		return 0;
	if (field < 0)
		return (int)field;
	return err ? err : -EAGAIN;
}

int gmem_sys_uffd_copy(int uffd, uint64_t hva, uint64_t from, uint64_t len, unsigned int how, uint64_t *done)
{
	struct uffdio_copy copy = { .dst = hva, .src = from, .len = len };
	int rc;

	if (how & GMEM_SYS_UFFD_DONTWAKE)
		copy.mode |= UFFDIO_COPY_MODE_DONTWAKE;
	if (how & GMEM_SYS_UFFD_PROTECTED)
		copy.mode |= UFFDIO_COPY_MODE_WP;
	rc = ioctl(uffd, UFFDIO_COPY, &copy);
	return finish(rc, copy.copy, len, done);
}

int gmem_sys_uffd_zeropage(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done)
{
	struct uffdio_zeropage zero = { .range = { .start = hva, .len = len } };
	int rc;

	zero.mode = wake ? 0 : UFFDIO_ZEROPAGE_MODE_DONTWAKE;
	rc = ioctl(uffd, UFFDIO_ZEROPAGE, &zero);
	return finish(rc, zero.zeropage, len, done);
}

static int do_continue(int uffd, uint64_t hva, uint64_t len, uint64_t mode, uint64_t *done)
{
	struct gmem_uffdio_continue c = { .range = { .start = hva, .len = len }, .mode = mode };
	int rc = ioctl(uffd, UFFDIO_CONTINUE, &c);

	return finish(rc, c.mapped, len, done);
}

int gmem_sys_uffd_continue(int uffd, uint64_t hva, uint64_t len, uint64_t *done)
{
	return do_continue(uffd, hva, len, 0, done);
}

int gmem_sys_uffd_continue_protected(int uffd, uint64_t hva, uint64_t len, uint64_t *done)
{
	return do_continue(uffd, hva, len, UFFDIO_CONTINUE_MODE_WP, done);
}

int gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done)
{
	struct gmem_uffdio_poison p = { .range = { .start = hva, .len = len } };

	int rc;

	p.mode = wake ? 0 : UFFDIO_POISON_MODE_DONTWAKE;
	rc = ioctl(uffd, UFFDIO_POISON, &p);
	return finish(rc, p.updated, len, done);
}

int gmem_sys_uffd_writeprotect(int uffd, uint64_t hva, uint64_t len, bool protect, bool wake)
{
	struct uffdio_writeprotect wp = { .range = { .start = hva, .len = len } };

	/* Who protects wakes nobody: the kernel refuses both flags together. */
	if (protect)
		wp.mode = UFFDIO_WRITEPROTECT_MODE_WP;
	else if (!wake)
		wp.mode = UFFDIO_WRITEPROTECT_MODE_DONTWAKE;
	return ioctl(uffd, UFFDIO_WRITEPROTECT, &wp) ? -errno : 0;
}

int gmem_sys_uffd_unprotect(int uffd, uint64_t hva, uint64_t len)
{
	return gmem_sys_uffd_writeprotect(uffd, hva, len, false, false);
}

int gmem_sys_uffd_read(int uffd, struct uffd_msg *msgs, int n)
{
	ssize_t got;

	do {
		got = read(uffd, msgs, sizeof(*msgs) * (size_t)n);
	} while (got < 0 && errno == EINTR);
	if (got < 0)
		return errno == EAGAIN ? 0 : -errno;
	return (int)((size_t)got / sizeof(*msgs));
}
