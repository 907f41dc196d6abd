/* SPDX-License-Identifier: MIT */
/* The contract of a guest memory file on both engines: bytes, memory, page states, pins, sides; other processes. */
#define TAP_NO_MAIN
#include "contract_util.h"

#define KEEP FALLOC_FL_KEEP_SIZE
#define PUNCH (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)

/* ---- bytes */

/* Every alignment of both ends, beside a plain array. */
CONTRACT(reads_and_writes_of_any_alignment, 5, 0)
{
	static const uint64_t ends[] = { 0, 1, 2047, P - 1, P, P + 1, 2 * P, 3 * P + 7, 5 * P - 1, 5 * P };
	static unsigned char model[5 * P], got[5 * P], put[5 * P];
	unsigned int n = 0;

	for (size_t i = 0; i < COUNT(ends); i++) {
		for (size_t j = i; j < COUNT(ends); j++) {
			uint64_t off = ends[i], len = ends[j] - ends[i];

			memset(put, (int)++n, len);
			memcpy(model + off, put, len);
			CHECK_OK(gmem_file_write(c->file, off, put, len));
			CHECK_OK(gmem_file_read(c->file, off, got, len));
			CHECK_MEM(got, model + off, len);
			CHECK_OK(gmem_file_read(c->file, 0, got, sizeof(got)));
			CHECK_MEM(got, model, sizeof(got));
		}
	}
}

CONTRACT(reads_and_writes_past_the_end, 2, 0)
{
	static const struct {
		uint64_t off, len;
		int ret;
	} table[] = {
		{ 0, 2 * P, 0 },
		{ 2 * P, 0, 0 },
		{ 0, 2 * P + 1, -ERANGE },
		{ 2 * P - 1, 2, -ERANGE },
		{ 2 * P, 1, -ERANGE },
		{ 2 * P + 1, 0, -ERANGE },
		{ UINT64_MAX, 1, -ERANGE },
		{ UINT64_MAX, 2, -ERANGE },
	};
	static char buf[3 * P];

	for (size_t i = 0; i < COUNT(table); i++) {
		int r = gmem_file_read(c->file, table[i].off, buf, table[i].len);
		int w = gmem_file_write(c->file, table[i].off, buf, table[i].len);

		if (r != table[i].ret || w != table[i].ret)
			FAIL("off 0x%llx, len %llu: read %d, write %d, not %d", (unsigned long long)table[i].off,
			     (unsigned long long)table[i].len, r, w, table[i].ret);
	}
}

/* ---- memory */

CONTRACT(fallocate_modes, 4, 0)
{
	static const struct {
		int mode;
		int64_t off, len;
		int ret;
	} table[] = {
		{ KEEP, 0, 4 * P, 0 },
		{ KEEP, P, P, 0 },
		{ KEEP, 0, 5 * P, -EINVAL },
		{ KEEP, 4 * P, P, -EINVAL },
		{ KEEP, 1, P, -EINVAL },
		{ KEEP, 0, 1, -EINVAL },
		{ KEEP, 0, 0, -EINVAL },
		{ KEEP, -(int64_t)P, P, -EINVAL },
		{ KEEP, 0, -(int64_t)P, -EINVAL },
		{ KEEP, P, INT64_MAX, -EFBIG },
		{ PUNCH, 0, P, 0 },
		{ PUNCH, 3 * P, 8 * P, 0 },
		{ PUNCH, 4 * P, P, 0 },
		{ PUNCH, 1, P, -EINVAL },
		{ PUNCH, 0, P + 1, -EINVAL },
		{ PUNCH, 0, 0, -EINVAL },
		{ 0, 0, P, -EOPNOTSUPP },
		{ FALLOC_FL_PUNCH_HOLE, 0, P, -EOPNOTSUPP },
		{ FALLOC_FL_ZERO_RANGE | KEEP, 0, P, -EOPNOTSUPP },
		{ FALLOC_FL_COLLAPSE_RANGE, 0, P, -EOPNOTSUPP },
		{ FALLOC_FL_INSERT_RANGE, 0, P, -EOPNOTSUPP },
		{ FALLOC_FL_UNSHARE_RANGE | KEEP, 0, P, -EOPNOTSUPP },
		{ 1 << 20, 0, P, -EOPNOTSUPP },
	};

	for (size_t i = 0; i < COUNT(table); i++) {
		int ret = gmem_file_fallocate(c->file, table[i].mode, table[i].off, table[i].len);

		if (ret != table[i].ret)
			FAIL("mode 0x%x, off %lld, len %lld: %d, not %d", (unsigned int)table[i].mode,
			     (long long)table[i].off, (long long)table[i].len, ret, table[i].ret);
	}
}

CONTRACT(memory_given_and_taken, 3, 0)
{
	struct gmem_view *view = map(c, 0, 3 * P, RW);

	memset(at(view, P), 'a', P);
	CHECK_OK(gmem_file_fallocate(c->file, KEEP, 0, 3 * P));
	CHECK(is_filled(at(view, P), 'a', P));
	CHECK(is_filled(at(view, 0), 0, P));
	CHECK_EQ(gmem_file_page_state(c->file, 0), GMEM_PAGE_ABSENT);
	memset(at(view, 0), 'b', 3 * P);
	CHECK_OK(gmem_file_fallocate(c->file, PUNCH, P, P));
	CHECK(is_filled(at(view, 0), 'b', P));
	CHECK(is_filled(at(view, P), 0, P));
	CHECK(is_filled(at(view, 2 * P), 'b', P));
	CHECK_EQ(gmem_file_page_state(c->file, P), GMEM_PAGE_REMOVED);
	gmem_view_unmap(view);
}

CONTRACT(punching, 4, 0)
{
	static const struct {
		uint64_t off, len;
		int ret;
	} table[] = {
		{ 1, P, -EINVAL },     { 0, 1, -EINVAL },	  { 0, 0, -EINVAL }, { 0, 5 * P, -ERANGE },
		{ 4 * P, P, -ERANGE }, { 0 - P, 2 * P, -ERANGE }, { P, 2 * P, 0 },
	};
	struct gmem_view *view = map(c, 0, 4 * P, RW);

	memset(at(view, 0), 'a', 4 * P);
	for (size_t i = 0; i < COUNT(table); i++)
		if (gmem_file_punch(c->file, table[i].off, table[i].len) != table[i].ret)
			FAIL("off 0x%llx, len 0x%llx: not %d", (unsigned long long)table[i].off,
			     (unsigned long long)table[i].len, table[i].ret);
	CHECK(is_filled(at(view, 0), 'a', P));
	CHECK(is_filled(at(view, P), 0, 2 * P));
	CHECK(is_filled(at(view, 3 * P), 'a', P));
	gmem_view_unmap(view);
}

CONTRACT(advices, 4, 0)
{
	static const struct {
		int advice, ret;
		bool drops;
	} table[] = {
		{ MADV_NORMAL, 0, false },
		{ MADV_RANDOM, 0, false },
		{ MADV_SEQUENTIAL, 0, false },
		{ MADV_WILLNEED, 0, false },
		{ MADV_HUGEPAGE, 0, false },
		{ MADV_NOHUGEPAGE, 0, false },
		{ MADV_DONTNEED, 0, false },
		{ MADV_REMOVE, 0, true },
		{ MADV_FREE, -EINVAL, false },
		{ MADV_WIPEONFORK, -EINVAL, false },
		{ MADV_COLLAPSE, -EINVAL, false },
		{ MADV_POPULATE_READ, 0, false },
		{ MADV_POPULATE_WRITE, 0, false },
		{ MADV_DONTNEED_LOCKED, 0, false },
		{ 77, -EINVAL, false },
	};
	struct gmem_view *view = map(c, 0, 4 * P, RW);

	for (size_t i = 0; i < COUNT(table); i++) {
		int ret;

		memset(at(view, 0), 'a', 4 * P);
		ret = madvise(at(view, P), 2 * P, table[i].advice) ? -errno : 0;
		if (ret != table[i].ret)
			FAIL("advice %d: %d, not %d", table[i].advice, ret, table[i].ret);
		CHECK(is_filled(at(view, 0), 'a', P));
		CHECK(is_filled(at(view, P), table[i].drops ? 0 : 'a', 2 * P));
		CHECK(is_filled(at(view, 3 * P), 'a', P));
	}
	gmem_view_unmap(view);
}

/* A range that a large page would fit into. */
CONTRACT(collapsing, 1536, 0)
{
	struct gmem_view *view = map(c, 0, c->len, RW);
	uint64_t large = 2ull << 20, first = (large - (uint64_t)(uintptr_t)at(view, 0) % large) % large;
	int ret;

	memset(at(view, 0), 'a', c->len);
	ret = madvise(at(view, first), large, MADV_COLLAPSE) ? -errno : 0;
	/* Shared memory can, where it is allowed and there is such a page, and the offset fits as well. */
	if (c->engine == GMEM_ENGINE_KERNEL)
		CHECK_EQ(ret, -EINVAL);
	CHECK(is_filled(at(view, 0), 'a', c->len));
	gmem_view_unmap(view);
}

/* ---- states */

CONTRACT(states_and_counts, 8, 0)
{
	struct gmem_file_counts counts = { .size = 1 };
	struct gmem_view *view = map(c, 0, 8 * P, RW);

	CHECK_ERR(gmem_file_query(c->file, &counts), -EINVAL);
	CHECK_ERR(gmem_file_page_state(c->file, 8 * P), -ERANGE);
	CHECK_ERR(gmem_file_page_state(c->file, UINT64_MAX), -ERANGE);
	CHECK_EQ(gmem_file_page_state(c->file, 0), GMEM_PAGE_ABSENT);
	CHECK_OK(gmem_file_write(c->file, P - 1, "ab", 2));
	CHECK_OK(gmem_file_punch(c->file, 2 * P, 2 * P));
	CHECK_EQ(store(at(view, 5 * P)), 0);
	CHECK_EQ(gmem_file_page_state(c->file, 0), GMEM_PAGE_UPTODATE);
	CHECK_EQ(gmem_file_page_state(c->file, P + 1), GMEM_PAGE_UPTODATE);
	CHECK_EQ(gmem_file_page_state(c->file, 2 * P), GMEM_PAGE_REMOVED);
	CHECK_EQ(gmem_file_page_state(c->file, 5 * P), GMEM_PAGE_ABSENT);
	counts.size = sizeof(counts);
	CHECK_OK(gmem_file_query(c->file, &counts));
	CHECK_EQ(counts.absent, 4);
	CHECK_EQ(counts.uptodate, 2);
	CHECK_EQ(counts.removed, 2);
	CHECK_EQ(counts.filling + counts.poisoned, 0);
	CHECK_EQ(counts.resident, 3 * P);
	CHECK_EQ(gmem_file_want_fill(c->file), 0);
	gmem_view_unmap(view);
}

CONTRACT(pins, 4, 0)
{
	static const struct {
		bool unpin;
		uint64_t off, len;
		int ret;
	} table[] = {
		{ true, 0, P, -EINVAL },     { false, 0, 2 * P, 0 },   { false, P, P, 0 },
		{ false, 1, P, -EINVAL },    { false, 0, 0, -EINVAL }, { false, 0, 5 * P, -ERANGE },
		{ true, 0, 3 * P, -EINVAL }, { true, 0, 2 * P, 0 },    { true, 0, P, -EINVAL },
		{ true, P, P, 0 },	     { true, P, P, -EINVAL },  { true, 4 * P, P, -ERANGE },
	};

	for (size_t i = 0; i < COUNT(table); i++) {
		int ret = table[i].unpin ? gmem_file_unpin(c->file, table[i].off, table[i].len) :
					   gmem_file_pin(c->file, table[i].off, table[i].len);

		if (ret != table[i].ret)
			FAIL("step %zu: %d, not %d", i, ret, table[i].ret);
	}
}

/* What is refused, whether the kernel converts or not. */
CONTRACT(attributes_that_are_refused, 4, 0)
{
	static const struct {
		uint64_t off, len, attributes;
	} table[] = {
		{ 0, P, 1 },	 { 0, P, GMEM_ATTRIBUTE_PRIVATE | 1 },	   { 0, 0, GMEM_ATTRIBUTE_PRIVATE },
		{ 1, P, 0 },	 { 0, P + 1, GMEM_ATTRIBUTE_PRIVATE },	   { 0, 5 * P, GMEM_ATTRIBUTE_PRIVATE },
		{ 4 * P, P, 0 }, { 0 - P, 2 * P, GMEM_ATTRIBUTE_PRIVATE },
	};
	uint64_t attributes = 1, len, error_off = 42;

	for (size_t i = 0; i < COUNT(table); i++)
		CHECK_ERR(
			gmem_file_set_attributes(c->file, table[i].off, table[i].len, table[i].attributes, &error_off),
			-EINVAL);
	CHECK_EQ(error_off, 42);
	CHECK_OK(gmem_file_attributes(c->file, P, &attributes, &len));
	CHECK_EQ(attributes, 0);
	CHECK_EQ(len, 3 * P);
	CHECK_ERR(gmem_file_attributes(c->file, 1, &attributes, &len), -EINVAL);
	CHECK_ERR(gmem_file_attributes(c->file, 4 * P, &attributes, &len), -ERANGE);
}

/* A kernel that does not convert in place says so, and changes nothing. */
CONTRACT(conversion, 4, 0)
{
	struct gmem_view *view = map(c, 0, 4 * P, RW);
	uint64_t attributes, len;
	int ret;

	memset(at(view, 0), 'a', 4 * P);
	ret = gmem_file_set_attributes(c->file, P, P, GMEM_ATTRIBUTE_PRIVATE, NULL);
	if (ret == -ENOTTY) {
		CHECK_EQ(c->engine, GMEM_ENGINE_KERNEL);
		CHECK_HAS(gmem_last_error(), "does not convert in place");
	} else {
		CHECK_EQ(ret, 0);
	}
	CHECK_OK(gmem_file_attributes(c->file, P, &attributes, &len));
	CHECK_EQ(attributes, ret ? 0 : GMEM_ATTRIBUTE_PRIVATE);
	CHECK_EQ(len, ret ? 3 * P : P);
	CHECK_EQ(load(at(view, P)), ret ? 0 : SIGBUS);
	if (!ret)
		CHECK_OK(gmem_file_set_attributes(c->file, 0, 4 * P, 0, NULL));
	CHECK(is_filled(at(view, 0), 'a', 4 * P));
	gmem_view_unmap(view);
}

/* ---- other objects and processes */

CONTRACT(second_object, 4, 0)
{
	struct gmem_file *second;
	char buf[8];

	CHECK_OK(gmem_file_write(c->file, P, "shared", 7));
	CHECK_OK(gmem_file_open(gmem_file_fd(c->file), gmem_file_state_fd(c->file), &second));
	CHECK_EQ(gmem_file_engine(second), c->engine);
	CHECK_EQ(gmem_file_size(second), c->len);
	CHECK_OK(gmem_file_read(second, P, buf, sizeof(buf)));
	CHECK_STR(buf, "shared");
	CHECK_EQ(gmem_file_page_state(second, P), GMEM_PAGE_UPTODATE);
	CHECK_OK(gmem_file_punch(second, P, P));
	CHECK_EQ(gmem_file_page_state(c->file, P), GMEM_PAGE_REMOVED);
	gmem_file_free(second);
}

/* A child has no view that its parent had, but the file, in which both see one memory. */
static int child(struct contract *c, void *arg)
{
	struct gmem_view *view;
	char buf[8] = "";

	if (load(arg) != SIGSEGV)
		return 1;
	if (gmem_file_read(c->file, P, buf, sizeof(buf)) || strcmp(buf, "parent"))
		return 2;
	if (gmem_file_write(c->file, 2 * P, "child", 6))
		return 3;
	if (gmem_view_map(c->file, 0, 4 * P, RW, &view))
		return 4;
	if (strcmp(at(view, P), "parent"))
		return 5;
	strcpy(at(view, 3 * P), "view");
	gmem_view_unmap(view);
	if (gmem_file_punch(c->file, 0, P))
		return 6;
	if (gmem_file_pin(c->file, 0, P) != -EIO)
		return 7;
	return 0;
}

static void fork_and_look(struct contract *c)
{
	struct gmem_view *view = map(c, 0, 4 * P, RW);

	strcpy(at(view, 0), "to be punched");
	strcpy(at(view, P), "parent");
	CHECK_EQ(in_child(child, c, at(view, 0)), 0);
	CHECK_STR(at(view, 0), "");
	CHECK_STR(at(view, P), "parent");
	CHECK_STR(at(view, 2 * P), "child");
	CHECK_STR(at(view, 3 * P), "view");
	gmem_view_unmap(view);
}

CONTRACT(forked_child, 4, 0)
{
	fork_and_look(c);
}

/* The same where the parent's object has been used for bytes before. */
CONTRACT(forked_child_of_one_who_read, 4, 0)
{
	char byte;

	CHECK_OK(gmem_file_read(c->file, 0, &byte, 1));
	CHECK_OK(gmem_file_write(c->file, 0, &byte, 1));
	fork_and_look(c);
}
