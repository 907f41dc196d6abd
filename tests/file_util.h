/* SPDX-License-Identifier: MIT */
/* A file to test with, and its pages counted. */
#ifndef GMEM_TESTS_FILE_UTIL_H
#define GMEM_TESTS_FILE_UTIL_H

#include "tap.h"

#define P 4096ull

static inline struct gmem_file *new_file(uint64_t len)
{
	struct gmem_file *file;

	CHECK_OK(gmem_file_create(len, NULL, &file));
	return file;
}

static inline struct gmem_file_counts query(const struct gmem_file *file)
{
	struct gmem_file_counts c = { .size = sizeof(c) };

	CHECK_OK(gmem_file_query(file, &c));
	CHECK_EQ(c.absent + c.filling + c.uptodate + c.removed + c.poisoned, gmem_file_size(file) / P);
	return c;
}

#endif
