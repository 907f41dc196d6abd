/* SPDX-License-Identifier: MIT */
/*
 * Which parts of a memory file have bytes, and in which file they are. Enters: files, as SEEK_DATA and SEEK_HOLE tell
 * them. Leaves: ranges in order that do not overlap; what lies in none is zero. Who made it owns it and changes it
 * before anybody else reads it: no lock.
 */
#ifndef GMEM_SOURCE_EXTENTS_H
#define GMEM_SOURCE_EXTENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gmem_extent {
	uint64_t off, end;
	uint32_t layer; /* the file that has the bytes */
};

struct gmem_extents {
	struct gmem_extent *e;
	size_t n, room;
};

void gmem_extents_free(struct gmem_extents *x);
/* Adds one that begins at or after the end of the last. -ENOMEM. */
int gmem_extents_add(struct gmem_extents *x, uint64_t off, uint64_t end, uint32_t layer);
/*
 * Adds the data of [base, base + len) of a file, at offsets less `base`. A file system that cannot tell holes has one
 * extent, all of it. The file's position is left as it was. -ENOMEM, -EIO and what else lseek(2) fails with.
 */
int gmem_extents_scan(struct gmem_extents *x, int fd, uint64_t base, uint64_t len, uint32_t layer);
/* *ret is `upper` where that has bytes, `lower` elsewhere. -ENOMEM. */
int gmem_extents_overlay(const struct gmem_extents *lower, const struct gmem_extents *upper, struct gmem_extents *ret);
/* The first extent that ends after `off`, or NULL. */
const struct gmem_extent *gmem_extents_find(const struct gmem_extents *x, uint64_t off);

#endif
