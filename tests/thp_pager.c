/* SPDX-License-Identifier: MIT */
/*
 * Memory that the kernel makes large pages of while a pager fills it: nobody ever sees a page that was not filled. It
 * is filled through the file and continued, page by page; a copy to where it is mapped could show a large page with
 * one part of it filled.
 */
#include "tap.h"

#include "huge_util.h"
#include "large_util.h"
#include "pager_scene.h"

#define ALL (2 * LARGE_PAGES)

struct collapser {
	struct gmem_file *file;
	_Atomic bool stop;
	_Atomic unsigned int n; /* times that large pages were made */
};

/* Holes of what is made large are zeroes: that memory is there, and nobody has filled it. */
static void *make_large(void *arg)
{
	struct collapser *c = arg;

	while (!atomic_load(&c->stop)) {
		if (madvise(gmem_file_window(c->file), 2 * LARGE, MADV_COLLAPSE) == 0)
			atomic_fetch_add(&c->n, 1);
		usleep(300);
	}
	return NULL;
}

/* Slow, so that there is something to see meanwhile. */
static int slow_read(void *opaque, uint64_t off, void *buf, size_t len)
{
	usleep(100);
	return src_read(opaque, off, buf, len);
}

static void *fill_thread(void *arg)
{
	CHECK(gmem_pager_fill(arg, NULL, NULL) >= 0);
	return NULL;
}

static unsigned int one_round(uint64_t seed, bool replay)
{
	static const struct gmem_source_ops ops = { .size = sizeof(ops), .read = slow_read };
	struct gmem_workset_entry all = { .size = sizeof(all), .len = ALL * P, .touches = 1 };
	struct gmem_workset *ws = NULL;
	struct scene s = { .src = SRC(.id = 5) };
	struct collapser c = { 0 };
	struct toucher t[2];
	pthread_t threads[4];

	s.pager = new_pager(2, 0, &s.told);
	CHECK_OK(gmem_source_new(&ops, &s.src, &s.source));
	s.file = file_of(ALL, GMEM_FILE_THP);
	s.view = aligned_view(s.file);
	s.p = gmem_view_addr(s.view);
	CHECK_OK(gmem_pager_add_view(s.pager, s.view, s.source, 0));
	c.file = s.file;
	pthread_create(&threads[0], NULL, make_large, &c);
	for (int i = 0; i < 2; i++) {
		t[i] = (struct toucher){
			.p = s.p, .id = 5, .npages = ALL, .seed = seed + (uint64_t)i, .touches = 2 * ALL
		};
		pthread_create(&threads[1 + i], NULL, touch_pages, &t[i]);
	}
	pthread_create(&threads[3], NULL, fill_thread, s.pager);
	if (replay) {
		CHECK_OK(gmem_workset_create(NULL, NULL, &ws));
		CHECK_OK(gmem_workset_add(ws, &all));
		CHECK(gmem_pager_replay(s.pager, ws, NULL, NULL, NULL) >= 0);
	}
	for (int i = 1; i < 4; i++)
		pthread_join(threads[i], NULL);
	/* Whole, and nobody's: now large pages may be mapped as such. */
	check_all(s.p, 5, ALL);
	CHECK_EQ(gmem_pager_unregister(s.pager), 0);
	check_all(s.p, 5, ALL);
	atomic_store(&c.stop, true);
	pthread_join(threads[0], NULL);
	check_all(s.p, 5, ALL);
	CHECK_EQ(stats_of(s.pager).errors, 0);
	tear_down(&s);
	gmem_workset_close(ws);
	return atomic_load(&c.n);
}

static void rounds(bool replay)
{
	uint64_t seed = tap_seed();
	unsigned int n = 0;

	need_uffd();
	for (uint64_t i = 0; i < (SLOW_BUILD ? 3 : 10); i++)
		n += one_round(seed + 2 * i, replay);
	if (!n)
		SKIP("thp", "the kernel made no large page of a memory file");
}

TEST_TIMEOUT(filled_while_it_grows, 60)
{
	rounds(false);
}

TEST_TIMEOUT(replayed_while_it_grows, 60)
{
	rounds(true);
}
