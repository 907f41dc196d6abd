/* SPDX-License-Identifier: MIT */
/* Fault-around: how many faults a toucher has, and how much comes with each. */
#include "tap.h"

#include "pager_scene.h"

#define N 1024ull
#define CHUNK 16ull /* pages that a source with `extent` gives away together */

/* So many windows, 1, 2, 4 and so on up to 64 pages, cover `npages`. */
static uint64_t windows(uint64_t npages)
{
	uint64_t n = 0, window = 1;

	for (uint64_t at = 0; at < npages; at += window, n++)
		window = at ? (2 * window < 64 ? 2 * window : 64) : 1;
	return n;
}

static void touch_page(const struct scene *s, uint64_t page)
{
	if (!page_is(s->src.id, page * P, s->p + page * P))
		FAIL("page %llu is wrong", (unsigned long long)page);
}

static void begin(struct scene *s)
{
	*s = (struct scene){ .seed = tap_seed() };
	set_up(s, (struct src)SRC(.id = 1, .nowait = true), 2, 0, 4 * N * P);
}

TEST(sequential)
{
	struct scene s;

	begin(&s);
	for (uint64_t i = 0; i < N; i++)
		touch_page(&s, i);
	CHECK_EQ(stats_of(s.pager).missing, windows(N));
	CHECK(stats_of(s.pager).demand_pages < N + 64);
	tear_down(&s);
}

/* As many at once as streams are told apart. */
TEST(four_in_sequence)
{
	struct scene s;

	begin(&s);
	for (uint64_t i = 0; i < N / 4; i++)
		for (uint64_t k = 0; k < 4; k++)
			touch_page(&s, k * N + i);
	CHECK_EQ(stats_of(s.pager).missing, 4 * windows(N / 4));
	tear_down(&s);
}

/* Nothing that goes on where the last one ended: a page each, and nothing that was not asked for. */
TEST(strided)
{
	struct scene s;

	begin(&s);
	for (uint64_t i = 0; i < N; i++)
		touch_page(&s, 3 * i);
	CHECK_EQ(stats_of(s.pager).missing, N);
	CHECK_EQ(stats_of(s.pager).demand_pages, N);
	tear_down(&s);
}

TEST(backwards)
{
	struct scene s;

	begin(&s);
	for (uint64_t i = N; i-- > 0;)
		touch_page(&s, i);
	CHECK_EQ(stats_of(s.pager).missing, N);
	CHECK_EQ(stats_of(s.pager).demand_pages, N);
	tear_down(&s);
}

TEST(random_order)
{
	bool seen[2 * N] = { 0 };
	uint64_t touched = 0;
	struct scene s;

	begin(&s);
	for (uint64_t i = 0; i < N; i++) {
		uint64_t page = tap_rand(&s.seed) % (2 * N);

		/* Every second page: none follows another. */
		touch_page(&s, 2 * page);
		touched += !seen[page];
		seen[page] = true;
	}
	CHECK_EQ(stats_of(s.pager).missing, touched);
	CHECK_EQ(stats_of(s.pager).demand_pages, touched);
	tear_down(&s);
}

/* ---- a source that gives away what is contiguous in it */

static void chunk_extent(void *opaque, uint64_t *start, uint64_t *len)
{
	uint64_t end = *start + *len, clen = CHUNK * P;

	(void)opaque;
	*start -= *start % clen;
	end = (end + clen - 1) / clen * clen;
	*len = end - *start;
}

static void begin_contiguous(struct scene *s)
{
	static const struct gmem_source_ops ops = {
		.size = sizeof(ops), .read = src_read, .read_nowait = src_read_nowait, .extent = chunk_extent
	};

	*s = (struct scene){ .seed = tap_seed(), .src = SRC(.id = 1, .nowait = true) };
	s->pager = new_pager(2, 0, &s->told);
	CHECK_OK(gmem_source_new(&ops, &s->src, &s->source));
	s->file = new_file(4 * N * P);
	s->p = map_view(s->file, 0, 4 * N * P, &s->view);
	CHECK_OK(gmem_pager_add_view(s->pager, s->view, s->source, 0));
}

/* One fault, and one read, a chunk; its other pages are mapped with it. */
TEST(contiguous_random)
{
	bool seen[4 * N / CHUNK] = { 0 };
	uint64_t chunks = 0;
	struct scene s;

	begin_contiguous(&s);
	for (uint64_t i = 0; i < N; i++) {
		uint64_t page = tap_rand(&s.seed) % (4 * N);

		/* Not the first of a chunk, which might go on where another ended. */
		page += page % CHUNK == 0;
		touch_page(&s, page);
		chunks += !seen[page / CHUNK];
		seen[page / CHUNK] = true;
	}
	CHECK_EQ(stats_of(s.pager).missing, chunks);
	CHECK_EQ(stats_of(s.pager).minor, 0);
	CHECK_EQ(stats_of(s.pager).demand_pages, chunks * CHUNK);
	CHECK_EQ(atomic_load(&s.src.reads), chunks);
	tear_down(&s);
}

/* What is in place already is not brought in again, and what lies on both sides of it comes. */
TEST(contiguous_with_a_part_in_place)
{
	struct scene s;
	char page[P];

	begin_contiguous(&s);
	memset(page, 'b', P);
	CHECK_OK(gmem_file_write(s.file, 5 * P, page, P));
	touch_page(&s, 9);
	CHECK_EQ(stats_of(s.pager).demand_pages, CHUNK - 6);
	touch_page(&s, 2);
	CHECK_EQ(stats_of(s.pager).demand_pages, CHUNK - 1);
	CHECK_EQ(stats_of(s.pager).missing, 2);
	CHECK_MEM(s.p + 5 * P, page, P);
	tear_down(&s);
}

TEST(contiguous_sequential)
{
	struct scene s;

	begin_contiguous(&s);
	for (uint64_t i = 0; i < N; i++)
		touch_page(&s, i);
	CHECK(stats_of(s.pager).missing <= windows(N));
	CHECK_EQ(stats_of(s.pager).minor, 0);
	tear_down(&s);
}
