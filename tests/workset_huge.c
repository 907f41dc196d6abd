/* SPDX-License-Identifier: MIT */
/* Working sets of memory whose pages are huge: by whole ones. */
#include "tap.h"

#include "huge_util.h"
#include "pager_scene.h"

#define N 8ull /* huge pages of a scene */
#define ALL (N * H_PAGES)

static void begin(struct scene *s)
{
	*s = (struct scene){ .src = SRC(.id = 3, .nowait = true, .knows_zero = true), .seed = tap_seed() };
	s->file = huge_file(N, 0);
	s->pager = new_pager(2, 0, &s->told);
	s->source = source_of(&s->src);
	s->p = map_view(s->file, 0, N * H, &s->view);
	CHECK_OK(gmem_pager_add_view(s->pager, s->view, s->source, 0));
}

static void touch_page(const struct scene *s, uint64_t page)
{
	if (!page_is(s->src.id, page * P, s->p + page * P))
		FAIL("page %llu is wrong", (unsigned long long)page);
}

static struct gmem_workset *recorded(void)
{
	static const uint64_t units[] = { 5, 2, 7, 0 };
	struct gmem_workset_entry e = { .size = sizeof(e) };
	struct gmem_workset *ws;
	struct scene s;

	begin(&s);
	CHECK_OK(gmem_workset_create(NULL, NULL, &ws));
	CHECK_OK(gmem_pager_record(s.pager, ws, NULL, 0));
	for (int i = 0; i < 4; i++) {
		touch_page(&s, units[i] * H_PAGES + 100);
		touch_page(&s, units[i] * H_PAGES + 7);
	}
	CHECK_OK(gmem_workset_stop(ws));
	for (int i = 0; i < 4; i++) {
		CHECK_OK(gmem_workset_entry(ws, (uint64_t)i, &e));
		CHECK_EQ(e.off, units[i] * H);
		CHECK_EQ(e.len, H);
	}
	CHECK_ERR(gmem_workset_entry(ws, 4, &e), -ERANGE);
	tear_down(&s);
	return ws;
}

TEST(huge_recorded_and_replayed)
{
	struct gmem_workset *ws = recorded();
	struct scene s;

	begin(&s);
	CHECK_EQ(gmem_pager_replay(s.pager, ws, NULL, NULL, NULL), 4 * H_PAGES);
	CHECK_EQ(resident(s.file), 4 * H);
	for (uint64_t i = 0; i < H_PAGES; i++) {
		touch_page(&s, i);
		touch_page(&s, 2 * H_PAGES + i);
		touch_page(&s, 5 * H_PAGES + i);
		touch_page(&s, 7 * H_PAGES + i);
	}
	CHECK_EQ(stats_of(s.pager).missing + stats_of(s.pager).minor, 0);
	CHECK_OK(gmem_pager_fill(s.pager, NULL, NULL));
	check_all(s.p, 3, ALL);
	gmem_workset_close(ws);
	tear_down(&s);
}

TEST(huge_observed)
{
	struct gmem_workset_stat st = { .size = sizeof(st) };
	struct gmem_replay_opts opts = { .size = sizeof(opts), .flags = GMEM_REPLAY_OBSERVE };
	struct gmem_workset *ws = recorded();
	struct scene s;

	begin(&s);
	CHECK_EQ(gmem_pager_replay(s.pager, ws, &opts, NULL, NULL), 4 * H_PAGES);
	touch_page(&s, 2 * H_PAGES + 77);
	touch_page(&s, 5 * H_PAGES + 78);
	touch_page(&s, 6 * H_PAGES);
	CHECK_OK(gmem_workset_stop(ws));
	CHECK_OK(gmem_workset_stat(ws, &st));
	CHECK_EQ(st.hits, 2);
	CHECK_EQ(st.unused, 2);
	CHECK_EQ(st.late, 0);
	CHECK_EQ(st.missed, H_PAGES);
	CHECK_EQ(stats_of(s.pager).minor, 2);
	gmem_workset_close(ws);
	tear_down(&s);
}

/* Single pages of 4 KiB, of memory that has none: each brings its huge page, once. */
TEST(huge_from_small_entries)
{
	struct gmem_workset *ws;
	struct scene s;

	CHECK_OK(gmem_workset_create(NULL, NULL, &ws));
	for (uint64_t i = 0; i < ALL; i += 100) {
		struct gmem_workset_entry e = { .size = sizeof(e), .off = i * P, .len = P, .touches = 1 };

		CHECK_OK(gmem_workset_add(ws, &e));
	}
	begin(&s);
	CHECK_EQ(gmem_pager_replay(s.pager, ws, NULL, NULL, NULL), ALL);
	check_all(s.p, 3, ALL);
	CHECK_EQ(stats_of(s.pager).missing + stats_of(s.pager).minor, 0);
	gmem_workset_close(ws);
	tear_down(&s);
}

static void *fill_thread(void *arg)
{
	CHECK(gmem_pager_fill(arg, NULL, NULL) >= 0);
	return NULL;
}

TEST_TIMEOUT(huge_everything_at_once, 60)
{
	struct gmem_workset *ws = recorded();
	struct toucher t[2];
	pthread_t threads[3];
	struct scene s;

	begin(&s);
	for (int i = 0; i < 2; i++) {
		t[i] = (struct toucher){
			.p = s.p, .id = 3, .npages = ALL, .seed = s.seed + (uint64_t)i, .touches = ALL
		};
		pthread_create(&threads[i], NULL, touch_pages, &t[i]);
	}
	pthread_create(&threads[2], NULL, fill_thread, s.pager);
	CHECK(gmem_pager_replay(s.pager, ws, NULL, NULL, NULL) >= 0);
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	check_all(s.p, 3, ALL);
	CHECK_EQ(stats_of(s.pager).errors, 0);
	gmem_workset_close(ws);
	tear_down(&s);
}
