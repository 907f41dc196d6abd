/* SPDX-License-Identifier: MIT */
/* Shared and private pages, as a test sees them: through views, as a guest, by name. */
#ifndef GMEM_TESTS_CONVERT_UTIL_H
#define GMEM_TESTS_CONVERT_UTIL_H

#include "file/file.h"
#include "pager_util.h"

#define PRIVATE GMEM_ATTRIBUTE_PRIVATE

static inline struct gmem_file *file_of(uint64_t npages, uint32_t flags)
{
	struct gmem_file_opts o = { .size = sizeof(o), .flags = flags };
	struct gmem_file *file;

	catch_bus();
	CHECK_OK(gmem_file_create(npages * P, &o, &file));
	return file;
}

static inline struct gmem_view *view_of(struct gmem_file *file, uint64_t page, uint64_t npages, int prot)
{
	struct gmem_view *view;

	CHECK_OK(gmem_view_map(file, page * P, npages * P, prot, &view));
	return view;
}

/* The byte there, -1: SIGBUS. Any thread. */
static inline int peek(const void *p)
{
	if (sigsetjmp(bus_jmp, 1))
		return -1;
	return __atomic_load_n((const unsigned char *)p, __ATOMIC_RELAXED);
}

/* 0, -1: SIGBUS. */
static inline int poke(void *p, int byte)
{
	if (sigsetjmp(bus_jmp, 1))
		return -1;
	__atomic_store_n((unsigned char *)p, (unsigned char)byte, __ATOMIC_RELAXED);
	return 0;
}

static inline char *page_of(const struct gmem_view *view, uint64_t page)
{
	return gmem_view_at(view, page * P);
}

static inline void convert(struct gmem_file *file, uint64_t page, uint64_t npages, uint64_t attributes)
{
	CHECK_OK(gmem_file_set_attributes(file, page * P, npages * P, attributes, NULL));
}

/* As the guest does it. */
static inline char *guest(struct gmem_file *file, uint64_t page)
{
	char *window = gmem_file_window(file);

	CHECK(window != NULL);
	return window + page * P;
}

/* What the attributes of the whole file are, against one byte a page. */
static inline void check_sides(const struct gmem_file *file, const unsigned char *private, uint64_t npages)
{
	for (uint64_t page = 0, end; page < npages; page = end) {
		uint64_t attributes, len;

		for (end = page + 1; end < npages && private[end] == private[page];)
			end++;
		CHECK_OK(gmem_file_attributes(file, page * P, &attributes, &len));
		if (attributes != (private[page] ? PRIVATE : 0) || len != (end - page) * P)
			FAIL("page %llu: attributes %llu for %llu pages, not %d for %llu", (unsigned long long)page,
			     (unsigned long long)attributes, (unsigned long long)(len / P), private[page],
			     (unsigned long long)(end - page));
	}
}

/* Every page of the view: SIGBUS if private, else its first byte. */
static inline void check_view(const struct gmem_view *view, const unsigned char *private, const unsigned char *byte)
{
	for (uint64_t page = view->off / P; page < (view->off + view->len) / P; page++) {
		int got = peek(page_of(view, page)), want = private[page] ? -1 : byte[page];

		if (got != want)
			FAIL("page %llu of the view at page %llu reads %d, not %d", (unsigned long long)page,
			     (unsigned long long)(view->off / P), got, want);
	}
}

#endif
