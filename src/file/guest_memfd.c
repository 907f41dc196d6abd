/* SPDX-License-Identifier: MIT */
/*
 * The kernel engine's memory: KVM's guest_memfd. It has no read(2), write(2) and lseek(2): its bytes are reached
 * through the file's window, by process_vm_readv(2) and its like, for which a page that cannot be had is an error and
 * no signal. Private pages are out of reach. The page-state table is the user engine's.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "file/backing.h"
#include "sys/call.h"
#include "sys/kvm.h"
#include "sys/uapi.h"

#define STEP_PAGES 1024u

static bool can_userfault(const struct gmem_file *file, uint64_t off, uint64_t len)
{
	return file->kernel_userfaults && gmem_backing_can_userfault(file, off, len);
}

/* EINTR: a signal came, what is done is done. */
static int do_fallocate(const struct gmem_file *file, int mode, uint64_t off, uint64_t len)
{
	while (fallocate(file->fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len))
		if (errno != EINTR)
			return -errno;
	return 0;
}

static int allocate(struct gmem_file *file, uint64_t off, uint64_t len)
{
	return do_fallocate(file, 0, off, len);
}

static int punch(struct gmem_file *file, uint64_t off, uint64_t len)
{
	return do_fallocate(file, FALLOC_FL_PUNCH_HOLE, off, len);
}

/*
 * The first page from `off` on that has memory with bytes in it, or has not; by mincore(2), which looks into the page
 * cache. Pages that nobody can map are taken for data: nobody reads them either.
 */
static int64_t next(const struct gmem_file *file, uint64_t off, bool data)
{
	char *window = gmem_file_window((struct gmem_file *)file);
	unsigned char in_core[STEP_PAGES];

	if (!window)
		return data ? (int64_t)off : -ENXIO;
	for (uint64_t page = off >> GMEM_PAGE_SHIFT; page < file->len >> GMEM_PAGE_SHIFT; page += STEP_PAGES) {
		uint64_t n = gmem_min_u64((file->len >> GMEM_PAGE_SHIFT) - page, STEP_PAGES);

		if (mincore(window + (page << GMEM_PAGE_SHIFT), n << GMEM_PAGE_SHIFT, in_core))
			return -errno;
		for (uint64_t i = 0; i < n; i++)
			if ((bool)(in_core[i] & 1) == data)
				return (int64_t)gmem_max_u64(off, (page + i) << GMEM_PAGE_SHIFT);
	}
	return -ENXIO;
}

static int64_t next_data(const struct gmem_file *file, uint64_t off)
{
	return next(file, off, true);
}

static int64_t next_hole(const struct gmem_file *file, uint64_t off)
{
	return next(file, off, false);
}

/* The part of a page of the file that a copy of `len` bytes from `off` on begins with. */
static uint64_t in_page(uint64_t off, uint64_t len)
{
	return gmem_min_u64(len, GMEM_PAGE_SIZE - (off & (GMEM_PAGE_SIZE - 1)));
}

/* What could not be copied: the memory is bad, or there is none; madvise(2) tells the one from the other. */
static int copied(ssize_t n, uint64_t want, char *at)
{
	char *page = at - ((uintptr_t)at & (GMEM_PAGE_SIZE - 1));

	if (n == (ssize_t)want)
		return 0;
	if (n < 0 && n != -EFAULT)
		return (int)n;
	return madvise(page, GMEM_PAGE_SIZE, MADV_POPULATE_READ) && errno == EHWPOISON ? -EHWPOISON : -EIO;
}

/* That page alone: where data begins behind a hole is a long way to go in a large file. */
static int read_page(char *at, char *to, uint64_t n)
{
	char *page = at - ((uintptr_t)at & (GMEM_PAGE_SIZE - 1));
	unsigned char in_core;

	if (mincore(page, GMEM_PAGE_SIZE, &in_core))
		return -errno;
	if (in_core & 1)
		return copied(gmem_sys_peek(to, at, n), n, at);
	/* To look at a page that is not there would give it memory. */
	memset(to, 0, n);
	return 0;
}

static int read_bytes(struct gmem_file *file, uint64_t off, void *buf, uint64_t len)
{
	char *window = gmem_file_window(file), *to = buf;
	int err = 0;

	if (!window)
		return -EACCES;
	for (uint64_t n; len && !err; off += n, to += n, len -= n) {
		n = in_page(off, len);
		err = read_page(window + off, to, n);
	}
	return err;
}

static int write_bytes(struct gmem_file *file, uint64_t off, const void *buf, uint64_t len)
{
	char *window = gmem_file_window(file);
	const char *from = buf;
	int err = 0;

	if (!window)
		return -EACCES;
	for (uint64_t n; len && !err; off += n, from += n, len -= n) {
		n = in_page(off, len);
		/* Memory that runs out is an error here, and would end the process there. */
		err = allocate(file, off & ~(uint64_t)(GMEM_PAGE_SIZE - 1), GMEM_PAGE_SIZE);
		if (!err)
			err = copied(gmem_sys_poke(window + off, from, n), n, window + off);
	}
	return err;
}

int gmem_guest_memfd_convert(struct gmem_file *file, uint64_t off, uint64_t len, uint64_t attributes,
			     uint64_t *ret_error_off)
{
	int err;

	if (!file->kernel_converts)
		return gmem_err(-ENOTTY,
				"gmem_file_set_attributes: this kernel's guest_memfd does not convert in place");
	if (file->bindings.n)
		return gmem_err(-EOPNOTSUPP,
				"gmem_file_set_attributes: the file is in a slot of gmem_vm, whose vCPUs do "
				"not reach the kernel's private pages");
	err = gmem_kvm_memfd_attributes_set(file->fd, off, len, attributes, ret_error_off);
	if (err)
		return gmem_err_sys(err, "gmem_file_set_attributes: off 0x%llx, len 0x%llx", (unsigned long long)off,
				    (unsigned long long)len);
	gmem_state_set_side(&file->state, off >> GMEM_PAGE_SHIFT, (off + len) >> GMEM_PAGE_SHIFT,
			    attributes & GMEM_ATTRIBUTE_PRIVATE);
	return 0;
}

const struct gmem_backing_ops gmem_guest_memfd_backing = {
	.can_userfault = can_userfault,
	.present = gmem_backing_present,
	.lookup = gmem_backing_lookup,
	.adopt = gmem_backing_adopt,
	.alloc = gmem_backing_alloc,
	.insert = gmem_backing_insert,
	.publish = gmem_backing_publish,
	.remove = gmem_backing_remove,
	.read = read_bytes,
	.write = write_bytes,
	.allocate = allocate,
	.punch = punch,
	.next_data = next_data,
	.next_hole = next_hole,
};
