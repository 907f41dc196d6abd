/* SPDX-License-Identifier: MIT */
/* How userfaultfd's commands say what they have done, on kernels of every age: what is made of it at the seam. */
#include "tap.h"

#include <stdarg.h>

#include "sys/uffd.h"

#define PG 4096ull

/* What the kernel does next: its result, and what it leaves in the field, if it writes it. */
static struct {
	int err;
	bool writes;
	int64_t field;
	uint64_t mode; /* it was asked so */
} kernel;

int __wrap_ioctl(int fd, unsigned long request, ...);

static void leave(int64_t *field)
{
	if (kernel.writes)
		*field = kernel.field;
}

int __wrap_ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	void *arg;

	(void)fd;
	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (request == UFFDIO_COPY) {
		kernel.mode = ((struct uffdio_copy *)arg)->mode;
		leave((int64_t *)&((struct uffdio_copy *)arg)->copy);
	} else if (request == UFFDIO_ZEROPAGE) {
		kernel.mode = ((struct uffdio_zeropage *)arg)->mode;
		leave((int64_t *)&((struct uffdio_zeropage *)arg)->zeropage);
	} else if (request == UFFDIO_CONTINUE) {
		kernel.mode = ((struct gmem_uffdio_continue *)arg)->mode;
		leave(&((struct gmem_uffdio_continue *)arg)->mapped);
	} else if (request == UFFDIO_POISON) {
		kernel.mode = ((struct gmem_uffdio_poison *)arg)->mode;
		leave(&((struct gmem_uffdio_poison *)arg)->updated);
	} else {
		CHECK_EQ(request, UFFDIO_WRITEPROTECT);
		kernel.mode = ((struct uffdio_writeprotect *)arg)->mode;
	}
	errno = -kernel.err;
	return kernel.err ? -1 : 0;
}

static int copy(uint64_t len, uint64_t *done)
{
	return gmem_sys_uffd_copy(0, PG, PG, len, 0, done);
}

static int zeropage(uint64_t len, uint64_t *done)
{
	return gmem_sys_uffd_zeropage(0, PG, len, true, done);
}

static int cont(uint64_t len, uint64_t *done)
{
	return gmem_sys_uffd_continue(0, PG, len, done);
}

static int poison(uint64_t len, uint64_t *done)
{
	return gmem_sys_uffd_poison(0, PG, len, true, done);
}

static int (*const commands[])(uint64_t len, uint64_t *done) = { copy, zeropage, cont, poison };

static void says(int err, bool writes, int64_t field, int want, uint64_t want_done)
{
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		uint64_t done = 77;

		kernel.err = err;
		kernel.writes = writes;
		kernel.field = field;
		CHECK_EQ(commands[i](4 * PG, &done), want);
		CHECK_EQ(done, want_done);
	}
}

TEST(progress)
{
	says(0, true, 4 * PG, 0, 4 * PG);
	/* A part: EAGAIN beside it, or nothing. */
	says(-EAGAIN, true, PG, -EAGAIN, PG);
	says(0, true, 2 * PG, -EAGAIN, 2 * PG);
	/* The address space is changing: before Linux 6.15 the field stays as it was, since then it says so. */
	says(-EAGAIN, false, 0, -EAGAIN, 0);
	says(-EAGAIN, true, -EAGAIN, -EAGAIN, 0);
	/* Why the first page could not be: in the field, which a kernel may not write. */
	says(-EEXIST, true, -EEXIST, -EEXIST, 0);
	says(-EFAULT, true, -EFAULT, -EFAULT, 0);
	says(-ENOENT, false, 0, -ENOENT, 0);
	says(-ESRCH, false, 0, -ESRCH, 0);
	says(-EINVAL, false, 0, -EINVAL, 0);
	says(-EIO, true, -EIO, -EIO, 0);
	/* One that says nothing has done nothing. */
	says(0, false, 0, -EAGAIN, 0);
}

TEST(modes)
{
	uint64_t done;

	kernel.err = 0;
	kernel.writes = true;
	kernel.field = PG;
	gmem_sys_uffd_copy(0, PG, PG, PG, GMEM_SYS_UFFD_DONTWAKE, &done);
	CHECK_EQ(kernel.mode, UFFDIO_COPY_MODE_DONTWAKE);
	gmem_sys_uffd_copy(0, PG, PG, PG, GMEM_SYS_UFFD_PROTECTED, &done);
	CHECK_EQ(kernel.mode, UFFDIO_COPY_MODE_WP);
	gmem_sys_uffd_zeropage(0, PG, PG, false, &done);
	CHECK_EQ(kernel.mode, UFFDIO_ZEROPAGE_MODE_DONTWAKE);
	gmem_sys_uffd_continue(0, PG, PG, &done);
	CHECK_EQ(kernel.mode, 0);
	gmem_sys_uffd_continue_protected(0, PG, PG, &done);
	CHECK_EQ(kernel.mode, UFFDIO_CONTINUE_MODE_WP);
	/* The kernel refuses both together. */
	CHECK_EQ(gmem_sys_uffd_writeprotect(0, PG, PG, true, false), 0);
	CHECK_EQ(kernel.mode, UFFDIO_WRITEPROTECT_MODE_WP);
	CHECK_EQ(gmem_sys_uffd_writeprotect(0, PG, PG, false, true), 0);
	CHECK_EQ(kernel.mode, 0);
	CHECK_EQ(gmem_sys_uffd_unprotect(0, PG, PG), 0);
	CHECK_EQ(kernel.mode, UFFDIO_WRITEPROTECT_MODE_DONTWAKE);
	kernel.err = -ENOENT;
	CHECK_EQ(gmem_sys_uffd_writeprotect(0, PG, PG, true, false), -ENOENT);
}
