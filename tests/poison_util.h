/* SPDX-License-Identifier: MIT */
/* Files on either engine, and what is to be seen of a poisoned page from every side. */
#ifndef GMEM_TESTS_POISON_UTIL_H
#define GMEM_TESTS_POISON_UTIL_H

#include "convert_util.h"
#include "mmu_util.h"

#define N 32ull

static _Alignas(4096) const char zeroes[P] __attribute__((unused));

static inline struct gmem_file *file_on(enum gmem_engine engine, uint32_t flags)
{
	struct gmem_file_opts o = { .size = sizeof(o), .engine = engine, .flags = flags };
	struct gmem_file *file;
	int err = gmem_file_create(N * P, &o, &file);

	if (err && engine == GMEM_ENGINE_KERNEL)
		SKIP("kvm", "%s", gmem_last_error());
	CHECK_EQ(err, 0);
	catch_bus();
	return file;
}

static inline void write_page(struct gmem_file *file, uint64_t page, int byte)
{
	char buf[P];

	memset(buf, byte, P);
	CHECK_OK(gmem_file_write(file, page * P, buf, P));
}

/* The byte that every byte of the page is. */
static inline int byte_of(struct gmem_file *file, uint64_t page)
{
	unsigned char buf[P];

	CHECK_OK(gmem_file_read(file, page * P, buf, P));
	for (unsigned int i = 1; i < P; i++)
		CHECK_EQ(buf[i], buf[0]);
	return buf[0];
}

static inline void poison(struct gmem_file *file, uint64_t page, uint64_t npages)
{
	CHECK_OK(gmem_file_poison(file, page * P, npages * P));
}

static inline void punch(struct gmem_file *file, uint64_t page, uint64_t npages)
{
	CHECK_OK(gmem_file_punch(file, page * P, npages * P));
}

/* To the library a poisoned page is an error, whatever is asked of it. */
static inline void check_refused(struct gmem_file *file, uint64_t page)
{
	bool private = gmem_file_private(file, page * P);
	char buf[64];

	CHECK_EQ(gmem_file_page_state(file, page * P), GMEM_PAGE_POISONED);
	CHECK_ERR(gmem_file_read(file, page * P + 5, buf, 64), private ? -EACCES : -EHWPOISON);
	CHECK_ERR(gmem_file_write(file, page * P + 5, buf, 64), private ? -EACCES : -EHWPOISON);
	CHECK_EQ(gmem_file_page_state(file, page * P), GMEM_PAGE_POISONED);
	/* Given up; or, of a large page that is in use, zeroed. */
	if (gmem_file_engine(file) == GMEM_ENGINE_USER) {
		char bytes[P];

		CHECK_EQ(pread(gmem_file_fd(file), bytes, P, (off_t)(page * P)), (ssize_t)P);
		CHECK(page_is_zero(bytes));
	}
}

#endif
