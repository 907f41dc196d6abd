/* SPDX-License-Identifier: MIT */
#include "sys/memfd.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sys/hugepages.h"
#include "sys/uapi.h"

static int create(const char *name, uint64_t len, unsigned int flags)
{
	int fd, err;

	/* Kernels before 6.3 do not know MFD_NOEXEC_SEAL. */
	fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL | flags);
	if (fd < 0 && errno == EINVAL)
		fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | flags);
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)len) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) {
		err = -errno;
		close(fd);
		return err;
	}
	return fd;
}

int gmem_memfd_create(const char *name, uint64_t len)
{
	return create(name, len, 0);
}

int gmem_memfd_create_huge(const char *name, uint64_t len)
{
	return create(name, len, MFD_HUGETLB | (unsigned int)GMEM_HUGE_SHIFT << MFD_HUGE_SHIFT);
}

bool gmem_memfd_coarse(int fd, uint64_t len)
{
	off_t hole;

	if (pwrite(fd, "", 1, 0) != 1)
		return false;
	hole = lseek(fd, 0, SEEK_HOLE);
	(void)gmem_memfd_punch(fd, 0, len < GMEM_HUGE_SIZE ? len : GMEM_HUGE_SIZE);
	return hole > sysconf(_SC_PAGESIZE);
}

/* What a shared mapping reserves is the file's, and stays when the mapping goes. */
int gmem_memfd_reserve(int fd, uint64_t off, uint64_t len)
{
	void *p = mmap(NULL, len, PROT_NONE, MAP_SHARED, fd, (off_t)off);

	if (p == MAP_FAILED)
		return -errno;
	munmap(p, len);
	return 0;
}

/*
 * fallocate(2) on shared memory gives up at any signal; what it did so far is kept or undone, so it can be asked
 * again.
 */
static int do_fallocate(int fd, int mode, uint64_t off, uint64_t len)
{
	while (fallocate(fd, mode, (off_t)off, (off_t)len))
		if (errno != EINTR)
			return -errno;
	return 0;
}

int gmem_memfd_punch(int fd, uint64_t off, uint64_t len)
{
	return do_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len);
}

int gmem_memfd_allocate(int fd, uint64_t off, uint64_t len)
{
	return do_fallocate(fd, 0, off, len);
}

int gmem_pread_all(int fd, void *buf, size_t len, uint64_t off)
{
	char *p = buf;

	while (len) {
		ssize_t n = pread(fd, p, len, (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -EIO;
		p += n;
		off += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

int gmem_pwrite_all(int fd, const void *buf, size_t len, uint64_t off)
{
	const char *p = buf;

	while (len) {
		ssize_t n = pwrite(fd, p, len, (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -EIO;
		p += n;
		off += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}
