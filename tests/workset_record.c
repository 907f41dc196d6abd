/* SPDX-License-Identifier: MIT */
/* What a pager records of touches. */
#include "tap.h"

#include <fcntl.h>

#include "workset_util.h"

/* Every page once, even ones only, in any order: one entry each, in that order. */
TEST(recorded_in_order)
{
	uint64_t seed = tap_seed(), order[N], last = 0;
	struct gmem_workset *ws = new_set(NULL);
	struct scene s = { .seed = seed };

	set_up(&s, (struct src)SRC(.id = 1, .nowait = true), 2, 0, 2 * N * P);
	shuffle(order, N, &seed);
	touch_page(&s, 2 * N - 1); /* before: not seen */
	CHECK_OK(gmem_pager_record(s.pager, ws, NULL, 0));
	CHECK(set_stat(ws).recording);
	for (uint64_t i = 0; i < N; i++)
		touch_page(&s, 2 * order[i]);
	for (uint64_t i = 0; i < N; i++)
		touch_page(&s, 2 * order[i]); /* once more: no fault */
	CHECK_OK(gmem_workset_stop(ws));
	CHECK(!set_stat(ws).recording);
	touch_page(&s, 3); /* after: not seen */
	CHECK_EQ(set_stat(ws).entries, N);
	CHECK_EQ(set_stat(ws).pages, N);
	CHECK_EQ(set_stat(ws).lost, 0);
	CHECK_EQ(set_stat(ws).parts, 1);
	for (uint64_t i = 0; i < N; i++) {
		struct gmem_workset_entry e = entry_of(ws, i);

		CHECK_EQ(e.off, 2 * order[i] * P);
		CHECK_EQ(e.len, P);
		CHECK_EQ(e.touches, 1);
		CHECK(e.ns >= last);
		last = e.ns;
	}
	gmem_workset_close(ws);
	tear_down(&s);
}

/* A toucher in sequence: runs, which come to few entries, and all that was brought in is in one. */
TEST(recorded_runs)
{
	struct gmem_workset *ws = new_set(NULL);
	struct gmem_workset_stat st;
	struct scene s = { 0 };
	uint64_t touches = 0;

	set_up(&s, (struct src)SRC(.id = 1, .nowait = true), 2, 0, LEN);
	CHECK_OK(gmem_pager_record(s.pager, ws, NULL, 0));
	for (uint64_t i = 0; i < N; i++)
		touch_page(&s, i);
	CHECK_OK(gmem_workset_stop(ws));
	st = set_stat(ws);
	CHECK_EQ(st.pages, stats_of(s.pager).demand_pages);
	CHECK(st.pages >= N);
	for (uint64_t i = 0; i < st.entries; i++)
		touches += entry_of(ws, i).touches;
	CHECK(touches <= stats_of(s.pager).missing + stats_of(s.pager).minor);
	CHECK(st.entries <= touches);
	gmem_workset_close(ws);
	tear_down(&s);
}

/* Regions of two sources, one of them not recorded; offsets are the source's. */
TEST(recorded_regions)
{
	struct src srcs[2] = { SRC(.id = 1, .nowait = true), SRC(.id = 2, .nowait = true) };
	struct gmem_workset *ws = new_set(NULL), *all = new_set(NULL), *other = new_set(NULL);
	struct gmem_pager *pager = new_pager(2, 0, NULL);
	struct gmem_file *file = new_file(3 * N * P);
	struct gmem_source *source[2];
	struct gmem_view *view[3];
	unsigned int regions[2] = { 2, 1 }, none = 3;
	char *p[3];

	for (int i = 0; i < 3; i++) {
		if (i < 2)
			source[i] = source_of(&srcs[i]);
		p[i] = map_view(file, (uint64_t)i * N * P, N * P, &view[i]);
		/* The third is the second's source again, further on. */
		CHECK_EQ(gmem_pager_add_view(pager, view[i], source[i ? 1 : 0], i == 2 ? 4 * N * P : 0), i);
	}
	CHECK_ERR(gmem_pager_record(pager, ws, &none, 1), -EINVAL);
	CHECK_OK(gmem_pager_record(pager, ws, regions, 2));
	CHECK_ERR(gmem_pager_record(pager, ws, regions, 2), -EBUSY);
	CHECK_ERR(gmem_pager_record(pager, all, NULL, 0), -EBUSY);
	CHECK_OK(gmem_pager_record(pager, other, (unsigned int[]){ 0 }, 1));
	CHECK(page_is(1, 5 * P, p[0] + 5 * P));
	CHECK(page_is(2, 6 * P, p[1] + 6 * P));
	CHECK(page_is(2, 4 * N * P + 8 * P, p[2] + 8 * P));
	CHECK_OK(gmem_workset_stop(ws));
	CHECK_OK(gmem_workset_stop(ws));
	CHECK_EQ(set_stat(ws).parts, 1);
	CHECK_EQ(set_stat(ws).entries, 2);
	CHECK_EQ(entry_of(ws, 0).off, 6 * P);
	CHECK_EQ(entry_of(ws, 1).off, (4 * N + 8) * P);
	CHECK_ERR(gmem_pager_record(pager, ws, regions, 2), -EINVAL); /* not empty */
	/* What is going on ends with the pager. */
	gmem_pager_free(pager);
	CHECK_EQ(set_stat(other).entries, 1);
	CHECK(!set_stat(other).recording);
	gmem_workset_close(ws);
	gmem_workset_close(all);
	gmem_workset_close(other);
	for (int i = 0; i < 3; i++)
		gmem_view_unmap(view[i]);
	gmem_source_unref(source[0]);
	gmem_source_unref(source[1]);
	gmem_file_free(file);
}

/* In another process, which is killed while it touches: what is there is how it began. */
static void record_and_die(const char *path, const uint64_t *order)
{
	struct gmem_workset *ws = new_set(path);
	struct scene s = { 0 };

	set_up(&s, (struct src)SRC(.id = 1, .nowait = true), 2, 0, 2 * N * P);
	CHECK_OK(gmem_pager_record(s.pager, ws, NULL, 0));
	for (uint64_t i = 0; i < N; i++)
		touch_page(&s, 2 * order[i]);
	for (;;)
		pause();
}

TEST(recorded_until_killed)
{
	char path[] = "/tmp/gmem-workset-XXXXXX";
	uint64_t seed = tap_seed(), order[N];
	struct gmem_workset *ws;
	uint64_t had = 0;
	pid_t child;
	int fd = mkstemp(path);

	need_uffd();
	CHECK(fd >= 0);
	close(fd);
	unlink(path);
	shuffle(order, N, &seed);
	child = fork();
	if (!child)
		record_and_die(path, order);
	/* Until something is there; it comes by itself. */
	while (!had) {
		if (gmem_workset_open(path, &ws) == 0) {
			had = set_stat(ws).entries;
			gmem_workset_close(ws);
		}
		CHECK_EQ(waitpid(child, NULL, WNOHANG), 0);
		usleep(1000);
	}
	kill_and_wait(child);
	CHECK_OK(gmem_workset_open(path, &ws));
	CHECK(set_stat(ws).entries >= had);
	CHECK(set_stat(ws).torn);
	CHECK_EQ(set_stat(ws).identity[0], 7);
	for (uint64_t i = 0; i < set_stat(ws).entries; i++)
		CHECK_EQ(entry_of(ws, i).off, 2 * order[i] * P);
	gmem_workset_close(ws);
	CHECK_EQ(unlink(path), 0);
}

/* Many touchers: each page in one entry, none forgotten. */
TEST(recorded_by_many)
{
	struct scene s = { .seed = tap_seed() };
	struct gmem_workset *ws = new_set(NULL);
	struct toucher t[4];
	pthread_t threads[4];
	uint64_t sum = 0;
	bool *seen = calloc(PAGES, 1);

	set_up(&s, (struct src)SRC(.id = 4, .nowait = true), 4, 0, LEN);
	CHECK_OK(gmem_pager_record(s.pager, ws, NULL, 0));
	for (int i = 0; i < 4; i++) {
		t[i] = (struct toucher){
			.p = s.p, .id = 4, .npages = PAGES, .seed = s.seed + (uint64_t)i, .touches = PAGES
		};
		pthread_create(&threads[i], NULL, touch_pages, &t[i]);
	}
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	CHECK_OK(gmem_workset_stop(ws));
	CHECK_EQ(set_stat(ws).lost, 0);
	CHECK_EQ(set_stat(ws).pages, stats_of(s.pager).demand_pages);
	for (uint64_t i = 0; i < set_stat(ws).entries; i++) {
		struct gmem_workset_entry e = entry_of(ws, i);

		for (uint64_t at = e.off / P; at < (e.off + e.len) / P; at++) {
			CHECK(!seen[at]);
			seen[at] = true;
			sum++;
		}
	}
	CHECK_EQ(sum, set_stat(ws).pages);
	free(seen);
	gmem_workset_close(ws);
	tear_down(&s);
}
