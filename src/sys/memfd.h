/* SPDX-License-Identifier: MIT */
/* Memory files and descriptors: creation, sizes, holes. Owns nothing, takes no lock. */
#ifndef GMEM_SYS_MEMFD_H
#define GMEM_SYS_MEMFD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/*
 * A memory file of `len` bytes, no page allocated, sealed against a change of size. Returns the descriptor
 * (close-on-exec) or negative errno.
 */
int gmem_memfd_create(const char *name, uint64_t len);

/* As gmem_memfd_create(), of huge pages of 2 MiB, none reserved. -ENODEV, -EINVAL: there are none of that size here. */
int gmem_memfd_create_huge(const char *name, uint64_t len);

/*
 * Does one byte that is written to this file, of which nothing has memory yet, give memory to more than its page? So it
 * is where shmem_enabled is set to "always" or "within_size". Found by doing it and undoing it.
 */
bool gmem_memfd_coarse(int fd, uint64_t len);

/* Reserves the huge pages of the range that are neither there nor reserved. All or none: -ENOMEM. */
int gmem_memfd_reserve(int fd, uint64_t off, uint64_t len);

int gmem_memfd_punch(int fd, uint64_t off, uint64_t len);

/* Allocates the pages that are not there, zeroed; those that are keep their bytes. */
int gmem_memfd_allocate(int fd, uint64_t off, uint64_t len);

/* All of it or negative errno (-EIO at an early end). */
int gmem_pread_all(int fd, void *buf, size_t len, uint64_t off);
int gmem_pwrite_all(int fd, const void *buf, size_t len, uint64_t off);

#endif
