/* SPDX-License-Identifier: MIT */
/* Where a working set is cut, by replays as they might have been measured. Times are milliseconds. */
#include "tap.h"

#include "fault/workset.h"

#define P 4096ull
#define MS 1000000ull

static struct gmem_workset *new_set(void)
{
	struct gmem_workset *ws;

	CHECK_OK(gmem_workset_create(NULL, NULL, &ws));
	return ws;
}

static int add(struct gmem_workset *ws, uint32_t part, uint64_t page, uint64_t npages, uint64_t ns)
{
	struct gmem_workset_entry e = {
		.size = sizeof(e), .part = part, .off = page * P, .len = npages * P, .ns = ns, .touches = 1
	};

	return gmem_workset_add(ws, &e);
}

static struct gmem_workset_stat stat_of(struct gmem_workset *ws)
{
	struct gmem_workset_stat st = { .size = sizeof(st) };

	CHECK_OK(gmem_workset_stat(ws, &st));
	return st;
}

struct seen {
	uint64_t page, in_place, wanted; /* ms; wanted 0: never */
};

static struct gmem_workset *measured(const struct seen *s, uint64_t n, bool observed)
{
	struct gmem_workset *ws = new_set();

	for (uint64_t i = 0; i < n; i++)
		CHECK_OK(add(ws, 0, s[i].page, 1, s[i].wanted * MS));
	CHECK_EQ(stat_of(ws).entries, n);
	pthread_mutex_lock(&ws->m);
	CHECK_EQ(gmem_measure_begin(ws, observed), 0);
	ws->run->began_ns = 1;
	for (uint64_t i = 0; i < n; i++) {
		gmem_measure_in_place(ws, i, 1 + s[i].in_place * MS);
		if (s[i].wanted && observed)
			gmem_measure_touch(ws, 0, s[i].page, 1, 1 + s[i].wanted * MS);
	}
	ws->run->replay_ns = n * MS;
	ws->run->pages = n;
	ws->run->done = true;
	pthread_mutex_unlock(&ws->m);
	return ws;
}

/* The formula, naively. */
static uint64_t cost_of(const struct seen *s, uint64_t n, uint64_t k, uint64_t fill_pages_ms, uint64_t fault,
			uint64_t page_cost)
{
	uint64_t cost = 0, ready = 0;

	for (uint64_t i = 0; i < k; i++)
		ready = s[i].in_place > ready ? s[i].in_place : ready;
	for (uint64_t i = 0; i < n; i++) {
		double in_place = i < k		? (double)s[i].in_place :
				  fill_pages_ms ? (double)ready + (double)(s[i].page + 1) / (double)fill_pages_ms :
						  1e18;

		if (s[i].wanted)
			cost += (double)s[i].wanted < in_place ? fault : 0;
		else if (i < k && !fill_pages_ms)
			cost += page_cost;
	}
	return cost;
}

static struct gmem_workset_cut cut_of(struct gmem_workset *ws, uint64_t fill_pages_ms, bool dry)
{
	struct gmem_workset_cut cut = {
		.size = sizeof(cut), .fill_bytes_per_s = fill_pages_ms * P * 1000, .fault_ns = 50 * 1000, .dry = dry
	};

	CHECK_OK(gmem_workset_cut(ws, &cut));
	return cut;
}

/* Everything up to 60 beats the guest, everything after it comes too late, whatever is done. */
TEST(cut_where_the_guest_overtakes)
{
	struct gmem_workset_cut cut;
	struct gmem_workset *ws;
	struct seen s[100];

	for (uint64_t i = 0; i < 100; i++)
		s[i] = (struct seen){ 1000 + 3 * i, i + 1, i < 60 ? 10 + 2 * i : 61 };
	ws = measured(s, 100, true);
	CHECK_EQ(stat_of(ws).hits, 61); /* and the one that comes just then */
	CHECK_EQ(stat_of(ws).late, 39);
	cut = cut_of(ws, 0, false);
	CHECK_EQ(cut.ret_keep, 61);
	CHECK_EQ(cut.ret_cost_ns, 39 * 50000);
	CHECK_EQ(stat_of(ws).entries, 61);
	CHECK_EQ(stat_of(ws).cut_from, 100);
	CHECK_ERR(gmem_workset_cut(ws, &cut), -ENODATA);
	gmem_workset_close(ws);
}

/* A tail that nobody wants: without a fill it is work for nothing, with one it only keeps the fill waiting. */
TEST(cut_what_nobody_wants)
{
	struct gmem_workset *ws;
	struct seen s[100];

	for (uint64_t i = 0; i < 100; i++)
		s[i] = (struct seen){ i, i + 1, i < 30 ? 200 + i : 0 };
	ws = measured(s, 100, true);
	CHECK_EQ(stat_of(ws).unused, 70);
	CHECK_EQ(cut_of(ws, 0, true).ret_keep, 30);
	CHECK_EQ(cut_of(ws, 0, true).ret_cost_whole_ns, 70 * MS);
	/* A fill that is fast enough does it all: nothing needs to be replayed. */
	CHECK_EQ(cut_of(ws, 1, true).ret_keep, 0);
	CHECK_EQ(stat_of(ws).entries, 100);
	gmem_workset_close(ws);
}

/* Late pages that the fill comes to late, early ones that it comes to early. */
TEST(cut_against_the_fill)
{
	struct gmem_workset *ws;
	struct seen s[40];

	/* The first twenty lie far behind, the fill (ten pages a ms) would need 1000 ms; the others in front. */
	for (uint64_t i = 0; i < 40; i++)
		s[i] = (struct seen){ i < 20 ? 10000 + i : i, i + 1, 100 + i };
	ws = measured(s, 40, true);
	CHECK_EQ(cut_of(ws, 10, true).ret_keep, 20);
	CHECK_EQ(cut_of(ws, 10, true).ret_cost_ns, 0);
	CHECK_EQ(cut_of(ws, 0, true).ret_keep, 40);
	gmem_workset_close(ws);
}

/* Touches of mapped pages cannot be seen: what beat the recorded time is a hit. */
TEST(cut_unobserved)
{
	struct gmem_workset *ws;
	struct seen s[10];

	for (uint64_t i = 0; i < 10; i++)
		s[i] = (struct seen){ i, i + 1, 20 };
	ws = measured(s, 10, false);
	CHECK_EQ(stat_of(ws).hits, 10);
	CHECK_EQ(stat_of(ws).unused, 0);
	CHECK(!stat_of(ws).observed);
	CHECK_EQ(cut_of(ws, 0, true).ret_keep, 10);
	gmem_workset_close(ws);
}

TEST(cut_random)
{
	uint64_t seed = tap_seed();

	for (int round = 0; round < 200; round++) {
		uint64_t n = 1 + tap_rand(&seed) % 60, fill = tap_rand(&seed) % 3 * (1 + tap_rand(&seed) % 8);
		uint64_t best = UINT64_MAX, keep = 0, at = 0;
		struct gmem_workset_cut cut;
		struct gmem_workset *ws;
		struct seen s[60];

		for (uint64_t i = 0; i < n; i++) {
			at += tap_rand(&seed) % 3;
			s[i] = (struct seen){ i * 5 + tap_rand(&seed) % 5, at,
					      tap_rand(&seed) % 4 ? 1 + tap_rand(&seed) % 150 : 0 };
		}
		ws = measured(s, n, true);
		for (uint64_t k = 0; k <= n; k++) {
			uint64_t cost = cost_of(s, n, k, fill, 50000, MS);

			if (cost < best) {
				best = cost;
				keep = k;
			}
		}
		cut = cut_of(ws, fill, true);
		CHECK_EQ(cut.ret_cost_ns, best);
		CHECK_EQ(cut.ret_keep, keep);
		CHECK_EQ(cut.ret_cost_whole_ns, cost_of(s, n, n, fill, 50000, MS));
		gmem_workset_close(ws);
	}
}

/* What was measured stays with the file. */
TEST(numbers_are_saved)
{
	char path[] = "/tmp/gmem-workset-XXXXXX";
	struct gmem_workset *ws, *again;
	struct seen s[10];
	int fd = mkstemp(path);

	CHECK(fd >= 0);
	close(fd);
	for (uint64_t i = 0; i < 10; i++)
		s[i] = (struct seen){ i, i + 1, i < 4 ? 20 : i < 7 ? 1 : 0 };
	ws = measured(s, 10, true);
	pthread_mutex_lock(&ws->m);
	gmem_measure_touch(ws, 0, 8, 100, 1 + 50 * MS); /* 8, 9, and what is past the part's end */
	pthread_mutex_unlock(&ws->m);
	CHECK_OK(gmem_workset_save(ws, path));
	CHECK_OK(gmem_workset_open(path, &again));
	CHECK_EQ(stat_of(again).hits, 6);
	CHECK_EQ(stat_of(again).late, 3);
	CHECK_EQ(stat_of(again).unused, 1);
	CHECK(stat_of(again).observed);
	CHECK_EQ(stat_of(again).replayed_pages, 10);
	gmem_workset_close(again);
	gmem_workset_close(ws);
	CHECK_EQ(unlink(path), 0);
}
