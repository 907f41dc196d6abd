/* SPDX-License-Identifier: MIT */
/* The user engine's memory: a memfd of 4 KiB pages. */
#include <errno.h>
#include <unistd.h>

#include "base/range.h"
#include "file/backing.h"
#include "sys/memfd.h"

/* What shared memory answers where memory has failed, or cannot be had back from where it was swapped to. */
static int lost(int err)
{
	return err == -EIO ? -EHWPOISON : err;
}

static int read_bytes(struct gmem_file *file, uint64_t off, void *buf, uint64_t len)
{
	return lost(gmem_pread_all(file->fd, buf, len, off));
}

/*
 * write(2) and not a mapping: it allocates without zeroing first, and a full disk or cgroup is an error, not a signal.
 */
static int write_bytes(struct gmem_file *file, uint64_t off, const void *buf, uint64_t len)
{
	return lost(gmem_pwrite_all(file->fd, buf, len, off));
}

static int allocate(struct gmem_file *file, uint64_t off, uint64_t len)
{
	return gmem_memfd_allocate(file->fd, off, len);
}

static int punch(struct gmem_file *file, uint64_t off, uint64_t len)
{
	return gmem_memfd_punch(file->fd, off, len);
}

static int64_t seek(const struct gmem_file *file, uint64_t off, int whence)
{
	off_t at = lseek(file->fd, (off_t)off, whence);

	return at < 0 ? -errno : at;
}

static int64_t next_data(const struct gmem_file *file, uint64_t off)
{
	return seek(file, off, SEEK_DATA);
}

static int64_t next_hole(const struct gmem_file *file, uint64_t off)
{
	return seek(file, off, SEEK_HOLE);
}

const struct gmem_backing_ops gmem_memfd_backing = {
	.can_userfault = gmem_backing_can_userfault,
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

const struct gmem_backing_ops gmem_coarse_memfd_backing = {
	.can_userfault = gmem_backing_can_userfault,
	.present = gmem_backing_present,
	.lookup = gmem_backing_lookup,
	.adopt = gmem_unit_adopt,
	.alloc = gmem_backing_alloc,
	.insert = gmem_unit_insert,
	.publish = gmem_backing_publish,
	.remove = gmem_unit_remove,
	.read = read_bytes,
	.write = write_bytes,
	.allocate = allocate,
	.punch = punch,
	.next_data = next_data,
	.next_hole = next_hole,
};
