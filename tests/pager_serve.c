/* SPDX-License-Identifier: MIT */
/* Faults of any order, from any number of views and threads, beside a fill. */
#include "tap.h"

#include "pager_scene.h"

static void random_touches(bool nowait, bool knows_zero, unsigned int resolvers)
{
	struct scene s = { .seed = tap_seed() };
	struct toucher t[4];
	pthread_t threads[4];

	set_up(&s, (struct src)SRC(.nowait = nowait, .knows_zero = knows_zero, .id = 3), resolvers, 0, LEN);
	for (int i = 0; i < 4; i++) {
		t[i] = (struct toucher){
			.p = s.p, .id = 3, .npages = PAGES, .seed = s.seed + (uint64_t)i, .touches = PAGES
		};
		pthread_create(&threads[i], NULL, touch_pages, &t[i]);
	}
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	check_all(s.p, 3, PAGES);
	for (uint64_t i = 0; i < PAGES; i++)
		CHECK_EQ(gmem_file_page_state(s.file, i * P), GMEM_PAGE_UPTODATE);
	CHECK_EQ(stats_of(s.pager).demand_pages, PAGES);
	CHECK_EQ(stats_of(s.pager).zero_pages, knows_zero ? PAGES / 8 : 0);
	CHECK(stats_of(s.pager).missing > 0);
	CHECK_EQ(stats_of(s.pager).poisoned, 0);
	CHECK_EQ(stats_of(s.pager).errors, 0);
	CHECK_EQ(s.told.n[GMEM_PAGER_ERROR] + s.told.n[GMEM_PAGER_POISONED] + s.told.n[GMEM_PAGER_GONE], 0);
	tear_down(&s);
}

TEST(random_touches_waiting_source)
{
	random_touches(false, false, 0);
}

TEST(random_touches_ready_source)
{
	random_touches(true, true, 0);
}

TEST(random_touches_one_resolver)
{
	random_touches(false, true, 1);
}

TEST(random_touches_many_resolvers)
{
	random_touches(false, true, 8);
}

TEST(sequential_touches_need_few_faults)
{
	struct scene s = { 0 };
	uint64_t faults = 0, counted = 0;

	set_up(&s, (struct src)SRC(.nowait = true), 0, 0, LEN);
	check_all(s.p, 0, PAGES);
	for (int i = 0; i < 200 && counted < stats_of(s.pager).missing + stats_of(s.pager).minor; i++) {
		counted = stats_of(s.pager).latency_count;
		usleep(5000);
	}
	faults = stats_of(s.pager).missing + stats_of(s.pager).minor;
	CHECK(faults < PAGES / 8);
	CHECK_EQ(stats_of(s.pager).demand_pages, PAGES);
	CHECK_EQ(stats_of(s.pager).latency_count, faults);
	CHECK(stats_of(s.pager).read_bytes >= LEN);
	tear_down(&s);
}

static void *fill_thread(void *arg)
{
	struct scene *s = arg;

	CHECK_OK(gmem_pager_fill(s->pager, NULL, NULL));
	return NULL;
}

TEST(fill_alone)
{
	struct scene s = { 0 };
	struct gmem_pager_stats st;

	set_up(&s, (struct src)SRC(.knows_zero = true, .id = 1), 0, 0, LEN);
	CHECK_EQ(gmem_pager_fill(s.pager, NULL, NULL), PAGES / 8 * 7);
	st = stats_of(s.pager);
	CHECK_EQ(st.fill_pages, PAGES / 8 * 7);
	CHECK_EQ(s.told.n[GMEM_PAGER_COMPLETE], 1);
	for (uint64_t i = 0; i < PAGES; i++)
		CHECK_EQ(gmem_file_page_state(s.file, i * P), i % 8 == 7 ? GMEM_PAGE_REMOVED : GMEM_PAGE_UPTODATE);
	/* Nothing is left to bring in. */
	CHECK_EQ(gmem_pager_fill(s.pager, NULL, NULL), 0);
	check_all(s.p, 1, PAGES);
	CHECK_EQ(stats_of(s.pager).demand_pages, 0);
	tear_down(&s);
}

static int stop_at_half(void *opaque, uint64_t done, uint64_t total)
{
	*(uint64_t *)opaque = done;
	CHECK(done <= total);
	CHECK_EQ(total, LEN);
	return done >= total / 2 ? -EINTR : 0;
}

TEST(fill_can_be_stopped)
{
	struct scene s = { 0 };
	uint64_t done = 0;

	set_up(&s, (struct src)SRC(.id = 1), 0, 0, LEN);
	CHECK_EQ(gmem_pager_fill(s.pager, stop_at_half, &done), -EINTR);
	CHECK(done >= LEN / 2);
	CHECK_EQ(s.told.n[GMEM_PAGER_COMPLETE], 0);
	check_all(s.p, 1, PAGES);
	tear_down(&s);
}

TEST(touches_while_it_fills)
{
	struct scene s = { .seed = tap_seed() };
	struct toucher t[3];
	pthread_t threads[4];

	set_up(&s, (struct src)SRC(.knows_zero = true, .id = 2), 0, 0, LEN);
	pthread_create(&threads[3], NULL, fill_thread, &s);
	for (int i = 0; i < 3; i++) {
		t[i] = (struct toucher){ .p = s.p,
					 .id = 2,
					 .npages = PAGES,
					 .seed = s.seed + (uint64_t)i,
					 .touches = PAGES,
					 .sequential = i == 2 };
		pthread_create(&threads[i], NULL, touch_pages, &t[i]);
	}
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	check_all(s.p, 2, PAGES);
	CHECK(stats_of(s.pager).demand_pages + stats_of(s.pager).fill_pages <= PAGES);
	tear_down(&s);
}

/* ---- races for one page */

#define CROWD 8

static pthread_barrier_t barrier;

static void *touch_together(void *arg)
{
	struct scene *s = arg;

	for (uint64_t i = 0; i < 300; i++) {
		pthread_barrier_wait(&barrier);
		if (!page_is(10, i * P, s->p + i * P))
			FAIL("page %llu is wrong", (unsigned long long)i);
	}
	return NULL;
}

TEST_TIMEOUT(many_touch_one_page, 60)
{
	struct scene s = { 0 };
	pthread_t threads[CROWD];

	set_up(&s, (struct src)SRC(.id = 10), 4, 0, 300 * P);
	pthread_barrier_init(&barrier, NULL, CROWD);
	for (int i = 0; i < CROWD; i++)
		pthread_create(&threads[i], NULL, touch_together, &s);
	for (int i = 0; i < CROWD; i++)
		pthread_join(threads[i], NULL);
	CHECK_EQ(stats_of(s.pager).demand_pages, 300);
	pthread_barrier_destroy(&barrier);
	tear_down(&s);
}

TEST(several_views_and_files)
{
	struct src a = SRC(.id = 1), b = SRC(.id = 2, .nowait = true);
	struct gmem_pager *pager = new_pager(0, 0, NULL);
	struct gmem_source *sa = source_of(&a), *sb = source_of(&b);
	struct gmem_file *fa = new_file(256 * P), *fb = new_file(256 * P);
	struct gmem_view *v[5];
	uint64_t seed = tap_seed();
	char *p[5];

	p[0] = map_view(fa, 0, 256 * P, &v[0]);
	p[1] = map_view(fa, 0, 256 * P, &v[1]);
	p[2] = map_view(fa, 100 * P, 56 * P, &v[2]);
	p[3] = map_view(fb, 0, 128 * P, &v[3]);
	p[4] = map_view(fb, 128 * P, 128 * P, &v[4]);
	CHECK_EQ(gmem_pager_add_view(pager, v[0], sa, 0), 0);
	CHECK_EQ(gmem_pager_add_view(pager, v[1], sa, 0), 1);
	CHECK_EQ(gmem_pager_add_view(pager, v[2], sa, 100 * P), 2);
	CHECK_EQ(gmem_pager_add_view(pager, v[3], sb, 0), 3);
	CHECK_EQ(gmem_pager_add_view(pager, v[4], sb, 128 * P), 4);
	for (int i = 0; i < 3000; i++) {
		uint64_t k = tap_rand(&seed) % 5, page;
		static const uint64_t first[] = { 0, 0, 100, 0, 128 }, n[] = { 256, 256, 56, 128, 128 };

		page = tap_rand(&seed) % n[k];
		if (!page_is(k < 3 ? 1 : 2, (first[k] + page) * P, p[k] + page * P))
			FAIL("view %d, page %d", (int)k, (int)page);
	}
	CHECK_OK(gmem_pager_fill(pager, NULL, NULL));
	CHECK_EQ(stats_of(pager).demand_pages + stats_of(pager).fill_pages, 512);
	check_all(p[0], 1, 256);
	check_all(p[1], 1, 256);
	check_all(p[3], 2, 128);
	/* A view may go; the rest is served. */
	gmem_pager_free(pager);
	for (int i = 0; i < 5; i++)
		gmem_view_unmap(v[i]);
	gmem_source_unref(sa);
	gmem_source_unref(sb);
	gmem_file_free(fa);
	gmem_file_free(fb);
}

TEST(fill_goes_on_without_a_view)
{
	struct src a = SRC(.id = 1);
	struct told told = { 0 };
	struct gmem_pager *pager = new_pager(0, 0, &told);
	struct gmem_source *sa = source_of(&a);
	struct gmem_file *fa = new_file(256 * P), *fb = new_file(256 * P);
	struct gmem_view *v[2];
	char *p;

	map_view(fa, 0, 256 * P, &v[0]);
	p = map_view(fb, 0, 256 * P, &v[1]);
	CHECK_OK(gmem_pager_add_view(pager, v[0], sa, 0));
	CHECK_OK(gmem_pager_add_view(pager, v[1], sa, 0));
	gmem_view_unmap(v[0]);
	CHECK_EQ(gmem_pager_fill(pager, NULL, NULL), 512);
	CHECK_EQ(told.n[GMEM_PAGER_GONE], 0);
	check_all(p, 1, 256);
	gmem_pager_free(pager);
	gmem_view_unmap(v[1]);
	gmem_source_unref(sa);
	gmem_file_free(fa);
	gmem_file_free(fb);
}

/* mprotect() splits the mapping; runs of pages cross the border. */
TEST(split_mappings)
{
	struct scene s = { 0 };
	volatile char sum = 0;

	set_up(&s, (struct src)SRC(.id = 6, .nowait = true), 0, 0, 512 * P);
	for (uint64_t i = 5; i < 512; i += 16)
		CHECK_EQ(mprotect(s.p + i * P, 3 * P, PROT_READ), 0);
	for (uint64_t i = 0; i < 256; i++) {
		sum += s.p[i * P];
		CHECK(page_is(6, i * P, s.p + i * P));
	}
	CHECK_EQ(gmem_pager_fill(s.pager, NULL, NULL), 256 - (int64_t)(stats_of(s.pager).demand_pages - 256));
	/* A hole in the middle is nobody's business. */
	CHECK_EQ(munmap(s.p + 300 * P, 10 * P), 0);
	for (uint64_t i = 256; i < 512; i++)
		if (i < 300 || i >= 310)
			CHECK(page_is(6, i * P, s.p + i * P));
	CHECK_EQ(s.told.n[GMEM_PAGER_GONE], 0);
	tear_down(&s);
}

TEST(hole_in_the_mapping)
{
	struct scene s = { 0 };

	set_up(&s, (struct src)SRC(.id = 6), 0, 0, 512 * P);
	CHECK_EQ(munmap(s.p + 100 * P, 10 * P), 0);
	CHECK_EQ(gmem_pager_fill(s.pager, NULL, NULL), 512);
	for (uint64_t i = 0; i < 512; i++)
		if (i < 100 || i >= 110)
			CHECK(page_is(6, i * P, s.p + i * P));
	CHECK_EQ(s.told.n[GMEM_PAGER_GONE], 0);
	tear_down(&s);
}

TEST(punched_before_it_was_touched_is_zero)
{
	struct scene s = { 0 };

	set_up(&s, (struct src)SRC(.id = 5), 0, 0, 64 * P);
	CHECK_OK(gmem_file_punch(s.file, 8 * P, 16 * P));
	for (uint64_t i = 0; i < 64; i++) {
		if (i >= 8 && i < 24)
			CHECK(page_is_zero(s.p + i * P));
		else
			CHECK(page_is(5, i * P, s.p + i * P));
	}
	/* After it was filled, too. */
	CHECK_OK(gmem_file_punch(s.file, 40 * P, P));
	CHECK(page_is_zero(s.p + 40 * P));
	CHECK_EQ(gmem_pager_fill(s.pager, NULL, NULL), 0);
	CHECK(page_is_zero(s.p + 40 * P));
	tear_down(&s);
}

/*
 * Several views of two files, one of them at an offset; every one gets its faults served, in whatever order they come.
 */
