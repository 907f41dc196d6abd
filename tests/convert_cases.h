/* SPDX-License-Identifier: MIT */
/*
 * Conversion in place, whatever keeps the host out: cases that several programs run, each with another part of
 * userfaultfd missing.
 */
#ifndef GMEM_TESTS_CONVERT_CASES_H
#define GMEM_TESTS_CONVERT_CASES_H

#include "convert_util.h"

TEST(arguments_are_checked_in_the_kernels_order)
{
	static const struct {
		uint64_t off, len, attributes;
		const char *text;
	} bad[] = {
		{ 0, P, 1, "unknown attributes" },	   { 0, P, PRIVATE | 1ull << 63, "unknown attributes" },
		{ 1, 0, 4, "unknown attributes" },	   { 1, 0, PRIVATE, "empty, or wraps" },
		{ 99 * P, 0, 0, "empty, or wraps" },	   { P + 1, -P, PRIVATE, "empty, or wraps" },
		{ -P, P, PRIVATE, "empty, or wraps" },	   { -P, 2 * P, PRIVATE, "empty, or wraps" },
		{ 1, P, PRIVATE, "not page-aligned" },	   { 0, P - 1, 0, "not page-aligned" },
		{ 99 * P, 1, 0, "not page-aligned" },	   { 16 * P, P, PRIVATE, "past the end" },
		{ 0, 17 * P, 0, "past the end" },	   { 15 * P, 2 * P, PRIVATE, "past the end" },
		{ P, 0 - 2 * P, PRIVATE, "past the end" },
	};
	struct gmem_file *file = file_of(16, 0);
	const unsigned char shared[16] = { 0 };
	uint64_t error_off = 7, attributes = 9, len = 9;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		CHECK_ERR(gmem_file_set_attributes(file, bad[i].off, bad[i].len, bad[i].attributes, &error_off),
			  -EINVAL);
		CHECK_HAS(gmem_last_error(), bad[i].text);
		CHECK_EQ(error_off, 7);
	}
	check_sides(file, shared, 16);
	CHECK_ERR(gmem_file_attributes(file, 1, &attributes, &len), -EINVAL);
	CHECK_ERR(gmem_file_attributes(file, 16 * P, &attributes, &len), -ERANGE);
	CHECK(attributes == 9 && len == 9);
	CHECK_OK(gmem_file_attributes(file, 0, NULL, NULL));
	gmem_file_free(file);
}

TEST(bytes_are_kept)
{
	unsigned char private[16] = { 0 }, byte[16] = { 0 };
	struct gmem_file *file = file_of(16, 0);
	struct gmem_view *view = view_of(file, 0, 16, PROT_READ | PROT_WRITE);
	uint64_t error_off = 7;

	for (uint64_t i = 0; i < 8; i++)
		byte[i] = (unsigned char)(i + 1), *page_of(view, i) = (char)byte[i];
	for (int again = 0; again < 2; again++) {
		/* The second time it is so already; half of them are absent. */
		CHECK_EQ(gmem_file_set_attributes(file, 4 * P, 8 * P, PRIVATE, &error_off), 0);
		memset(private + 4, 1, 8);
		check_sides(file, private, 16);
		check_view(view, private, byte);
		CHECK_EQ(poke(page_of(view, 5), 1), -1);
	}
	CHECK_EQ(*guest(file, 5), 6);
	/* A guest writes; a punch drops bytes and no side. */
	for (uint64_t i = 4; i < 12; i++)
		*guest(file, i) = (char)(byte[i] = (unsigned char)(100 + i));
	CHECK_OK(gmem_file_punch(file, 6 * P, P));
	byte[6] = 0;
	check_sides(file, private, 16);
	check_view(view, private, byte);
	CHECK_EQ(*guest(file, 6), 0);
	for (int again = 0; again < 2; again++) {
		CHECK_EQ(gmem_file_set_attributes(file, 5 * P, 3 * P, 0, &error_off), 0);
		memset(private + 5, 0, 3);
		check_sides(file, private, 16);
		check_view(view, private, byte);
	}
	CHECK_EQ(poke(page_of(view, 5), 55), 0);
	CHECK_EQ(*guest(file, 5), 55);
	convert(file, 0, 16, 0);
	memset(private, 0, sizeof(private));
	byte[5] = 55;
	check_view(view, private, byte);
	CHECK_EQ(error_off, 7);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST(pages_begin_private)
{
	unsigned char private[130], byte[130] = { 0 };
	struct gmem_file *file = file_of(130, GMEM_FILE_INIT_PRIVATE), *other = NULL;
	struct gmem_view *view = view_of(file, 1, 129, PROT_READ | PROT_WRITE);
	uint64_t error_off = 7;
	char buf[1];

	memset(private, 1, sizeof(private));
	check_sides(file, private, 130);
	check_view(view, private, byte);
	CHECK_ERR(gmem_file_read(file, 0, buf, 1), -EACCES);
	CHECK_ERR(gmem_file_pin(file, 0, P), -EACCES);
	CHECK_ERR(gmem_file_open_kept(file->fd, file->state.fd, &other), -EBUSY);
	*guest(file, 64) = 1;
	CHECK_EQ(gmem_file_set_attributes(file, 0, 130 * P, PRIVATE, &error_off), 0);
	convert(file, 63, 2, 0);
	memset(private + 63, 0, 2);
	byte[64] = 1;
	check_sides(file, private, 130);
	check_view(view, private, byte);
	CHECK_OK(gmem_file_write(file, 64 * P - 1, "ab", 2));
	CHECK_EQ(peek(page_of(view, 64)), 'b');
	CHECK(!file->ops->can_userfault(file, 63 * P, P));
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST(reads_and_writes_are_refused)
{
	struct gmem_file *file = file_of(8, 0);
	char buf[2 * P], zero[2 * P] = { 0 };

	CHECK_OK(gmem_file_write(file, 3 * P, "abc", 3));
	convert(file, 4, 1, PRIVATE);
	*guest(file, 4) = 's';
	memset(buf, 0, sizeof(buf));
	CHECK_ERR(gmem_file_read(file, 4 * P, buf, 1), -EACCES);
	CHECK_ERR(gmem_file_read(file, 5 * P - 1, buf, 1), -EACCES);
	CHECK_ERR(gmem_file_read(file, 3 * P + 100, buf, P), -EACCES);
	CHECK_MEM(buf, zero, sizeof(buf));
	CHECK_ERR(gmem_file_write(file, 4 * P, "x", 1), -EACCES);
	CHECK_ERR(gmem_file_write(file, 4 * P - 1, "xy", 2), -EACCES);
	CHECK_EQ(*guest(file, 4), 's');
	CHECK_OK(gmem_file_read(file, 3 * P, buf, 3));
	CHECK_MEM(buf, "abc", 3);
	CHECK_OK(gmem_file_read(file, 5 * P, buf, P));
	gmem_file_free(file);
}

/* Ranges that overlap and touch, in many orders, over the words of the bitmap. */
TEST(attributes_are_merged_ranges)
{
	enum { N = 200 };
	static const uint64_t at[] = { 0, 1, 63, 64, 65, 127, 128, 129, 199 };
	unsigned char private[N] = { 0 };
	struct gmem_file *file = file_of(N, 0);
	const size_t n = sizeof(at) / sizeof(at[0]);

	for (size_t step = 1; step < n * n; step += 2)
		for (size_t i = 0; i < n * n; i++) {
			size_t k = i * step % (n * n), a = k / n, b = k % n;
			bool to = (i + step) & 1;

			if (a > b)
				continue;
			convert(file, at[a], at[b] - at[a] + 1, to ? PRIVATE : 0);
			memset(private + at[a], to, at[b] - at[a] + 1);
			check_sides(file, private, N);
		}
	gmem_file_free(file);
}

struct model {
	struct gmem_file *file;
	struct gmem_view *views[6];
	unsigned char private[200], byte[200], pins[200];
};

static void model_convert(struct model *m, uint64_t page, uint64_t n, bool to)
{
	uint64_t error_off = 7, pin = page;
	int err;

	while (to && pin < page + n && !m->pins[pin])
		pin++;
	if (!to || pin == page + n) {
		CHECK_EQ(gmem_file_set_attributes(m->file, page * P, n * P, to ? PRIVATE : 0, &error_off), 0);
		memset(m->private + page, to, n);
		return;
	}
	err = gmem_file_set_attributes(m->file, page * P, n * P, PRIVATE, &error_off);
	CHECK_EQ(err, -EAGAIN);
	CHECK_EQ(error_off, pin * P);
}

static void model_pin(struct model *m, uint64_t page, uint64_t n, bool unpin)
{
	bool ok = true;

	for (uint64_t i = page; i < page + n; i++)
		ok &= unpin ? m->pins[i] > 0 : !m->private[i];
	if (unpin)
		CHECK_EQ(gmem_file_unpin(m->file, page * P, n * P), ok ? 0 : -EINVAL);
	else
		CHECK_EQ(gmem_file_pin(m->file, page * P, n * P), ok ? 0 : -EACCES);
	for (uint64_t i = page; ok && i < page + n; i++)
		m->pins[i] = (unsigned char)(m->pins[i] + (unpin ? -1 : 1));
}

static void model_step(struct model *m, uint64_t *seed)
{
	uint64_t page = tap_rand(seed) % 200, n = 1 + tap_rand(seed) % (tap_rand(seed) & 1 ? 4 : 200 - page);
	unsigned char byte = (unsigned char)(tap_rand(seed) | 1);
	struct gmem_view **view = &m->views[tap_rand(seed) % 6];
	int err;

	n = n > 200 - page ? 200 - page : n;
	switch (tap_rand(seed) % 10) {
	case 0:
	case 1:
	case 2:
		model_convert(m, page, n, tap_rand(seed) & 1);
		break;
	case 3:
		model_pin(m, page, n > 3 ? 3 : n, tap_rand(seed) & 1);
		break;
	case 4:
		model_pin(m, page, 1, true);
		break;
	case 5:
		CHECK_OK(gmem_file_punch(m->file, page * P, n * P));
		memset(m->byte + page, 0, n);
		break;
	case 6:
		*guest(m->file, page) = (char)(m->byte[page] = byte);
		break;
	case 7:
		err = gmem_file_write(m->file, page * P, &byte, 1);
		CHECK_EQ(err, m->private[page] ? -EACCES : 0);
		m->byte[page] = err ? m->byte[page] : byte;
		break;
	case 8:
		gmem_view_unmap(*view);
		*view = view_of(m->file, page, n, tap_rand(seed) & 1 ? PROT_READ : PROT_READ | PROT_WRITE);
		break;
	default:
		if (!*view)
			break;
		page = (*view)->off / P + tap_rand(seed) % ((*view)->len / P);
		if ((*view)->prot & PROT_WRITE) {
			CHECK_EQ(poke(page_of(*view, page), byte), m->private[page] ? -1 : 0);
			m->byte[page] = m->private[page] ? m->byte[page] : byte;
		}
	}
}

static void random_operations(uint32_t flags, uint64_t steps)
{
	struct model m = { .file = file_of(200, flags) };
	uint64_t seed = tap_seed();

	memset(m.private, flags & GMEM_FILE_INIT_PRIVATE ? 1 : 0, sizeof(m.private));
	for (uint64_t i = 0; i < steps; i++) {
		model_step(&m, &seed);
		if (i % 4 == 0)
			check_sides(m.file, m.private, 200);
		if (i % 16 == 0)
			for (int v = 0; v < 6; v++)
				if (m.views[v])
					check_view(m.views[v], m.private, m.byte);
	}
	/* The bytes under all of it. */
	for (uint64_t i = 0; i < 200; i++)
		CHECK_EQ((unsigned char)*guest(m.file, i), m.byte[i]);
	for (int v = 0; v < 6; v++)
		gmem_view_unmap(m.views[v]);
	gmem_file_free(m.file);
}

TEST_TIMEOUT(random_operations_against_an_array, 60)
{
	random_operations(0, tap_slow() ? 2000 : 6000);
}

TEST_TIMEOUT(random_operations_in_strict_mode, 60)
{
	random_operations(GMEM_FILE_STRICT | GMEM_FILE_INIT_PRIVATE, tap_slow() ? 2000 : 4000);
}

TEST(pins_hold_pages_shared)
{
	unsigned char private[16] = { 0 }, byte[16];
	struct gmem_file *file = file_of(16, 0);
	struct gmem_view *view = view_of(file, 0, 16, PROT_READ | PROT_WRITE);
	uint64_t error_off = 7;

	for (uint64_t i = 0; i < 16; i++)
		*page_of(view, i) = (char)(byte[i] = (unsigned char)(i + 1));
	CHECK_ERR(gmem_file_unpin(file, 0, P), -EINVAL);
	CHECK_ERR(gmem_file_pin(file, 1, P), -EINVAL);
	CHECK_ERR(gmem_file_pin(file, 15 * P, 2 * P), -ERANGE);
	convert(file, 3, 2, PRIVATE);
	memset(private + 3, 1, 2);
	/* All or nothing. */
	CHECK_ERR(gmem_file_pin(file, 0, 4 * P), -EACCES);
	CHECK_ERR(gmem_file_unpin(file, 0, P), -EINVAL);
	CHECK_OK(gmem_file_pin(file, 7 * P, 3 * P));
	CHECK_OK(gmem_file_pin(file, 8 * P, P));
	CHECK_OK(gmem_file_pin(file, 0, P));
	CHECK_ERR(gmem_file_unpin(file, 7 * P, 4 * P), -EINVAL);
	for (uint64_t from = 1; from < 8; from++) {
		CHECK_ERR(gmem_file_set_attributes(file, from * P, (14 - from) * P, PRIVATE, &error_off), -EAGAIN);
		CHECK_EQ(error_off, 7 * P);
		check_sides(file, private, 16);
		check_view(view, private, byte);
		error_off = 7;
	}
	CHECK_ERR(gmem_file_set_attributes(file, 9 * P, P, PRIVATE, NULL), -EAGAIN);
	CHECK_ERR(gmem_file_set_attributes(file, 0, 16 * P, PRIVATE, &error_off), -EAGAIN);
	CHECK_EQ(error_off, 0);
	/* To shared they do not matter. */
	convert(file, 0, 16, 0);
	memset(private, 0, 16);
	check_view(view, private, byte);
	CHECK_OK(gmem_file_unpin(file, 7 * P, 3 * P));
	CHECK_ERR(gmem_file_set_attributes(file, P, 15 * P, PRIVATE, &error_off), -EAGAIN);
	CHECK_EQ(error_off, 8 * P);
	CHECK_OK(gmem_file_unpin(file, 8 * P, P));
	convert(file, 1, 15, PRIVATE);
	memset(private + 1, 1, 15);
	check_sides(file, private, 16);
	check_view(view, private, byte);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

#include "convert_views.h"

#endif
