/* SPDX-License-Identifier: MIT */
/* Pages taken away while others come in: by punch, by madvise(). */
#include "tap.h"

#include "pager_scene.h"

static _Atomic bool stop;

static void *fill_thread(void *arg)
{
	struct scene *s = arg;

	CHECK_OK(gmem_pager_fill(s->pager, NULL, NULL));
	return NULL;
}

/* Reads whatever comes: the source's bytes, zeroes, or the puncher's mark. */
static void *touch_anything(void *arg)
{
	struct scene *s = arg;
	uint64_t seed = s->seed + 99;

	while (!atomic_load(&stop)) {
		uint64_t page = tap_rand(&seed) % PAGES,
			 w = __atomic_load_n((uint64_t *)(s->p + page * P), __ATOMIC_RELAXED);

		if (w && w != word_at(4, page * P) && w != ~page)
			FAIL("page %llu: 0x%llx", (unsigned long long)page, (unsigned long long)w);
	}
	return NULL;
}

/* Owns every third page. A punched page is zero, from the moment punch returns, whatever else goes on. */
static void *punch_pages(void *arg)
{
	struct scene *s = arg;
	uint64_t seed = s->seed;

	for (uint64_t i = 0; i < PAGES / 2; i++) {
		uint64_t page = tap_rand(&seed) % (PAGES / 3) * 3, *w = (uint64_t *)(s->p + page * P);
		char buf[8];

		CHECK_OK(gmem_file_punch(s->file, page * P, P));
		if (tap_rand(&seed) & 1) {
			CHECK_OK(gmem_file_read(s->file, page * P, buf, 8));
			CHECK_MEM(buf, "\0\0\0\0\0\0\0", 8);
		}
		if (!page_is_zero(w))
			FAIL("page %llu is not zero after its punch", (unsigned long long)page);
		CHECK_EQ(gmem_file_page_state(s->file, page * P), GMEM_PAGE_REMOVED);
		if (tap_rand(&seed) & 1)
			__atomic_store_n(w, ~page, __ATOMIC_RELAXED);
	}
	return NULL;
}

TEST_TIMEOUT(punches_while_it_fills, 60)
{
	struct scene s = { .seed = tap_seed() };
	pthread_t threads[4];

	set_up(&s, (struct src)SRC(.id = 4), 0, 0, LEN);
	pthread_create(&threads[0], NULL, touch_anything, &s);
	pthread_create(&threads[1], NULL, touch_anything, &s);
	pthread_create(&threads[2], NULL, punch_pages, &s);
	pthread_create(&threads[3], NULL, fill_thread, &s);
	for (int i = 3; i >= 0; i--) {
		pthread_join(threads[i], NULL);
		if (i == 2)
			atomic_store(&stop, true);
	}
	for (uint64_t i = 0; i < PAGES; i++) {
		if (i % 3)
			CHECK(page_is(4, i * P, s.p + i * P));
		else if (gmem_file_page_state(s.file, i * P) == GMEM_PAGE_UPTODATE)
			CHECK(page_is(4, i * P, s.p + i * P));
		else
			CHECK(page_is_zero(s.p + i * P) || *(uint64_t *)(s.p + i * P) == ~i);
	}
	tear_down(&s);
}

/* ---- removals by the program */

static void removals(uint32_t flags)
{
	struct scene s = { 0 };

	set_up(&s, (struct src)SRC(.id = 11), 0, flags, 64 * P);
	for (uint64_t i = 0; i < 16; i++)
		CHECK(page_is(11, i * P, s.p + i * P));
	strcpy(s.p + 3 * P, "written");
	/* Shared memory keeps its bytes over DONTNEED. */
	CHECK_EQ(madvise(s.p, 8 * P, MADV_DONTNEED), 0);
	for (uint64_t i = 0; i < 8; i++)
		CHECK(i == 3 || page_is(11, i * P, s.p + i * P));
	CHECK_STR(s.p + 3 * P, "written");
	/* REMOVE drops them, for good. */
	CHECK_EQ(madvise(s.p + 2 * P, 4 * P, MADV_REMOVE), 0);
	for (uint64_t i = 2; i < 6; i++)
		CHECK(page_is_zero(s.p + i * P));
	CHECK(page_is(11, 6 * P, s.p + 6 * P));
	/* Never filled: the flag decides. */
	CHECK_EQ(madvise(s.p + 32 * P, 4 * P, MADV_DONTNEED), 0);
	for (uint64_t i = 30; i < 38; i++) {
		bool unwanted = flags && i >= 32 && i < 36;

		CHECK(unwanted ? page_is_zero(s.p + i * P) : page_is(11, i * P, s.p + i * P));
	}
	CHECK(gmem_pager_fill(s.pager, NULL, NULL) > 0);
	for (uint64_t i = 32; i < 36; i++)
		CHECK(flags ? page_is_zero(s.p + i * P) : page_is(11, i * P, s.p + i * P));
	if (flags)
		CHECK_EQ(stats_of(s.pager).removes, 3);
	tear_down(&s);
}

TEST(removals_keep)
{
	removals(0);
}

TEST(removals_discard)
{
	removals(GMEM_PAGER_REMOVE_DISCARDS);
}

/*
 * Its own half of the view is zapped over and over: each zap waits until its event is read, and UFFDIO calls answer
 * EAGAIN meanwhile.
 */
static void *zap(void *arg)
{
	struct scene *s = arg;

	while (!atomic_load(&stop)) {
		CHECK_EQ(madvise(s->p + LEN / 2, LEN / 2, MADV_DONTNEED), 0);
		atomic_fetch_add(&s->told.n[0], 1);
	}
	return NULL;
}

TEST_TIMEOUT(zaps_while_it_serves, 60)
{
	struct scene s = { .seed = tap_seed() };
	pthread_t zapper, threads[2];
	struct toucher t[2];

	set_up(&s, (struct src)SRC(.id = 12), 0, GMEM_PAGER_REMOVE_DISCARDS, LEN);
	pthread_create(&zapper, NULL, zap, &s);
	for (int i = 0; i < 2; i++) {
		t[i] = (struct toucher){ .p = s.p,
					 .id = 12,
					 .npages = PAGES / 2,
					 .seed = s.seed + (uint64_t)i,
					 .touches = PAGES,
					 .sequential = i };
		pthread_create(&threads[i], NULL, touch_pages, &t[i]);
	}
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	CHECK_OK(gmem_pager_fill(s.pager, NULL, NULL));
	atomic_store(&stop, true);
	pthread_join(zapper, NULL);
	check_all(s.p, 12, PAGES / 2);
	printf("%u zaps, %llu retries\n", s.told.n[0], (unsigned long long)stats_of(s.pager).retries);
	/* A zap goes on when its event is read, a moment before it is counted. */
	for (int i = 0; i < 1000 && stats_of(s.pager).removes != s.told.n[0]; i++)
		usleep(1000);
	CHECK_EQ(stats_of(s.pager).removes, s.told.n[0]);
	CHECK(s.told.n[0] > 0);
	tear_down(&s);
}
