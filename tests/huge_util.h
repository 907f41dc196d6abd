/* SPDX-License-Identifier: MIT */
/* Files of huge pages, of which the machine may have none. Included after tap.h. */
#ifndef GMEM_TESTS_HUGE_UTIL_H
#define GMEM_TESTS_HUGE_UTIL_H

#include "sys/hugepages.h"

#define H GMEM_HUGE_SIZE
#define H_PAGES (H / 4096)

/* A file of `npages` huge pages, or the case is skipped. */
static inline struct gmem_file *huge_file(uint64_t npages, uint32_t flags)
{
	struct gmem_file_opts o = { .size = sizeof(o), .flags = flags | GMEM_FILE_HUGETLB };
	struct gmem_file *file;
	int err = gmem_file_create(npages * H, &o, &file);

	if (err == -ENOMEM || err == -EOPNOTSUPP)
		SKIP("hugetlb", "%s", gmem_last_error());
	CHECK_EQ(err, 0);
	CHECK_EQ(gmem_file_page_size(file), H);
	return file;
}

static inline uint64_t resident(const struct gmem_file *file)
{
	struct gmem_file_counts c = { .size = sizeof(c) };

	CHECK_OK(gmem_file_query(file, &c));
	return c.resident;
}

#endif
