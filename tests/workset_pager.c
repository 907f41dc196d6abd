/* SPDX-License-Identifier: MIT */
/* Working sets and a pager: what is recorded of touches, what a replay brings in, and what is seen of it. */
#include "tap.h"

#include <fcntl.h>

#include "pager_scene.h"

#define N 512ull

static struct gmem_workset *new_set(const char *path)
{
	struct gmem_workset_opts opts = { .size = sizeof(opts), .identity = { 7 } };
	struct gmem_workset *ws;

	CHECK_OK(gmem_workset_create(path, &opts, &ws));
	return ws;
}

static struct gmem_workset_stat set_stat(struct gmem_workset *ws)
{
	struct gmem_workset_stat st = { .size = sizeof(st) };

	CHECK_OK(gmem_workset_stat(ws, &st));
	return st;
}

static struct gmem_workset_entry entry_of(const struct gmem_workset *ws, uint64_t i)
{
	struct gmem_workset_entry e = { .size = sizeof(e) };

	CHECK_OK(gmem_workset_entry(ws, i, &e));
	return e;
}

/* Pages of [0, N), each once, no two in sequence: so no window opens. */
static void shuffle(uint64_t *order, uint64_t n, uint64_t *seed)
{
	for (uint64_t i = 0; i < n; i++)
		order[i] = i;
	for (uint64_t i = n; i > 1; i--) {
		uint64_t k = tap_rand(seed) % i, t = order[i - 1];

		order[i - 1] = order[k];
		order[k] = t;
	}
}

static void touch_page(const struct scene *s, uint64_t page)
{
	if (!page_is(s->src.id, page * P, s->p + page * P))
		FAIL("page %llu is wrong", (unsigned long long)page);
}

static void add(struct gmem_workset *ws, uint64_t page, uint64_t npages)
{
	struct gmem_workset_entry e = { .size = sizeof(e), .off = page * P, .len = npages * P, .touches = 1 };

	CHECK_OK(gmem_workset_add(ws, &e));
}

static int64_t replay(struct scene *s, struct gmem_workset *ws, uint32_t flags)
{
	struct gmem_replay_opts opts = { .size = sizeof(opts), .flags = flags, .identity = { 7 } };

	return gmem_pager_replay(s->pager, ws, &opts, NULL, NULL);
}

/* ---- record */

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

/* ---- replay */

/* Recorded, saved, opened, replayed elsewhere: no fault asks the source again. */
TEST(replayed_elsewhere)
{
	char path[] = "/tmp/gmem-workset-XXXXXX";
	struct gmem_workset *ws = new_set(NULL);
	uint64_t seed = tap_seed(), order[N], pages;
	struct scene s = { 0 };
	int fd = mkstemp(path);

	CHECK(fd >= 0);
	close(fd);
	set_up(&s, (struct src)SRC(.id = 1, .nowait = true), 2, 0, LEN);
	CHECK_OK(gmem_pager_record(s.pager, ws, NULL, 0));
	shuffle(order, N, &seed);
	for (uint64_t i = 0; i < N / 2; i++)
		touch_page(&s, order[i]);
	CHECK_OK(gmem_workset_stop(ws));
	CHECK_OK(gmem_workset_save(ws, path));
	gmem_workset_close(ws);
	tear_down(&s);

	CHECK_OK(gmem_workset_open(path, &ws));
	pages = set_stat(ws).pages;
	set_up(&s, (struct src)SRC(.id = 1, .nowait = true, .knows_zero = true), 2, 0, LEN);
	CHECK_EQ(replay(&s, ws, 0), (int64_t)pages);
	CHECK_EQ(stats_of(s.pager).replay_pages, pages);
	CHECK_EQ(stats_of(s.pager).fill_pages, 0);
	for (uint64_t i = 0; i < N / 2; i++)
		touch_page(&s, order[i]);
	CHECK_EQ(stats_of(s.pager).missing, 0);
	CHECK_EQ(stats_of(s.pager).demand_pages, 0);
	CHECK_EQ(stats_of(s.pager).minor, 0);
	CHECK_EQ(replay(&s, ws, 0), 0); /* all there */
	CHECK_EQ(set_stat(ws).runs, 2);
	gmem_workset_close(ws);
	tear_down(&s);
	CHECK_EQ(unlink(path), 0);
}

struct order {
	struct src src; /* first: src_read() takes it */
	_Atomic uint64_t n;
	uint64_t first[64];
};

static int read_in_order(void *opaque, uint64_t off, void *buf, size_t len)
{
	struct order *o = opaque;
	uint64_t i = atomic_fetch_add(&o->n, 1);

	if (i < 64)
		o->first[i] = off;
	return src_read(opaque, off, buf, len);
}

/* Batches of 2 MiB in the recorded order, in order of place inside; neighbours in one read. */
TEST(replayed_in_order)
{
	static const struct gmem_source_ops ops = { .size = sizeof(ops), .read = read_in_order };
	struct order o = { .src = SRC(.id = 1) };
	struct gmem_workset *ws = new_set(NULL);
	struct scene s = { 0 };
	uint64_t last = 0;

	s.pager = new_pager(1, 0, NULL);
	CHECK_OK(gmem_source_new(&ops, &o, &s.source));
	s.file = new_file(4096 * P);
	s.p = map_view(s.file, 0, 4096 * P, &s.view);
	CHECK_OK(gmem_pager_add_view(s.pager, s.view, s.source, 0));
	/* The first batch lies behind the second. In it: 2048, 2049 and 2050, 2051 in the wrong order. */
	add(ws, 2050, 2);
	add(ws, 2048, 2);
	add(ws, 3000, 508);
	add(ws, 100, 512);
	CHECK_EQ(replay(&s, ws, 0), 1024);
	for (uint64_t i = 0; i < atomic_load(&o.n) && i < 64; i++) {
		if (o.first[i] / P < 2048)
			break;
		CHECK(o.first[i] > last);
		last = o.first[i];
	}
	CHECK_EQ(o.first[0], 2048 * P);
	CHECK_EQ(o.first[1], 3000 * P); /* four pages came with the first */
	CHECK_EQ(last / P < 3508 && last / P > 3000, 1);
	gmem_workset_close(ws);
	tear_down(&s);
}

/* Put in place and mapped nowhere: each touch is seen, what is not touched too. */
TEST(observed)
{
	struct gmem_workset *ws = new_set(NULL);
	struct scene s = { 0 };

	set_up(&s, (struct src)SRC(.id = 1, .nowait = true), 2, 0, LEN);
	for (uint64_t i = 0; i < 100; i++)
		add(ws, 10 + 3 * i, 1);
	CHECK_EQ(replay(&s, ws, GMEM_REPLAY_OBSERVE), 100);
	CHECK_EQ(stats_of(s.pager).minor, 0);
	for (uint64_t i = 0; i < 60; i++)
		touch_page(&s, 10 + 3 * i);
	touch_page(&s, 600);
	touch_page(&s, 603);
	CHECK_EQ(stats_of(s.pager).minor, 60);
	CHECK_EQ(stats_of(s.pager).missing, 2);
	CHECK_OK(gmem_workset_stop(ws));
	CHECK_EQ(set_stat(ws).hits, 60);
	CHECK_EQ(set_stat(ws).late, 0);
	CHECK_EQ(set_stat(ws).unused, 40);
	CHECK_EQ(set_stat(ws).missed, 2);
	CHECK(set_stat(ws).observed);
	CHECK_EQ(set_stat(ws).replayed_pages, 100);
	gmem_workset_close(ws);
	tear_down(&s);
}

/* Cut by what was seen: the tail, which nobody touched. Then replayed, cut. */
TEST(cut_after_a_run)
{
	struct gmem_workset_cut cut = { .size = sizeof(cut) };
	struct gmem_workset *ws = new_set(NULL);
	struct scene s = { 0 };

	set_up(&s, (struct src)SRC(.id = 1, .nowait = true), 2, 0, LEN);
	for (uint64_t i = 0; i < 200; i++)
		add(ws, 10 + 3 * i, 1);
	CHECK_EQ(replay(&s, ws, GMEM_REPLAY_OBSERVE), 200);
	CHECK_ERR(gmem_workset_cut(ws, &cut), -EBUSY);
	for (uint64_t i = 0; i < 120; i++)
		touch_page(&s, 10 + 3 * i);
	CHECK_OK(gmem_workset_stop(ws));
	CHECK_OK(gmem_workset_cut(ws, &cut));
	CHECK_EQ(cut.ret_keep, 120);
	CHECK_EQ(cut.ret_cost_ns, 0);
	CHECK(cut.ret_cost_whole_ns > 0);
	CHECK_EQ(set_stat(ws).entries, 120);
	CHECK_EQ(set_stat(ws).cut_from, 200);
	tear_down(&s);
	set_up(&s, (struct src)SRC(.id = 1, .nowait = true), 2, 0, LEN);
	CHECK_EQ(replay(&s, ws, 0), 120);
	gmem_workset_close(ws);
	tear_down(&s);
}

struct stop_at {
	uint64_t at;
	_Atomic uint64_t calls;
};

static int stop_at(void *opaque, uint64_t done, uint64_t total)
{
	struct stop_at *s = opaque;

	CHECK(done <= total);
	return ++s->calls >= s->at ? -EINTR : 0;
}

TEST(of_another_snapshot)
{
	struct gmem_replay_opts opts = { .size = sizeof(opts), .identity = { 8 } };
	struct gmem_workset *ws = new_set(NULL);
	struct scene s = { 0 };

	set_up(&s, (struct src)SRC(.id = 1, .nowait = true), 2, 0, LEN);
	CHECK_OK(gmem_pager_record(s.pager, ws, NULL, 0));
	CHECK_ERR(gmem_pager_replay(s.pager, ws, &opts, NULL, NULL), -EBUSY);
	touch_page(&s, 1);
	CHECK_OK(gmem_workset_stop(ws));
	CHECK_ERR(gmem_pager_replay(s.pager, ws, &opts, NULL, NULL), -ESTALE);
	opts.identity[0] = 0;
	CHECK_EQ(gmem_pager_replay(s.pager, ws, &opts, NULL, NULL), 0);
	opts.flags = 8;
	CHECK_ERR(gmem_pager_replay(s.pager, ws, &opts, NULL, NULL), -EINVAL);
	tear_down(&s);
	/* Another length. */
	set_up(&s, (struct src)SRC(.id = 1, .nowait = true), 2, 0, LEN - P);
	CHECK_ERR(gmem_pager_replay(s.pager, ws, NULL, NULL, NULL), -ESTALE);
	gmem_workset_close(ws);
	tear_down(&s);
}

/* A page that is lost is poisoned, one that is refused left to the fault, and both do not keep the others. */
TEST(replay_of_bad_pages)
{
	struct gmem_workset *ws = new_set(NULL);
	struct scene s = { 0 };

	set_up(&s, (struct src)SRC(.id = 1, .nowait = true, .bad_page = 40, .bad_err = -EIO, .bad_left = INT32_MAX), 2,
	       0, LEN);
	catch_bus();
	for (uint64_t i = 0; i < 100; i++)
		add(ws, i * 2, 1);
	CHECK_EQ(replay(&s, ws, 0), 99);
	CHECK_EQ(stats_of(s.pager).poisoned, 1);
	CHECK_EQ(touch(s.p + 40 * P), SIGBUS);
	tear_down(&s);
	set_up(&s, (struct src)SRC(.id = 1, .nowait = true, .bad_page = 40, .bad_err = -ETIMEDOUT, .bad_left = 1), 2, 0,
	       LEN);
	CHECK_EQ(replay(&s, ws, 0), 99);
	touch_page(&s, 40);
	CHECK_EQ(stats_of(s.pager).poisoned, 0);
	gmem_workset_close(ws);
	tear_down(&s);
}

TEST(replay_is_stopped)
{
	struct gmem_workset *ws = new_set(NULL);
	struct stop_at stop = { .at = 1 };
	struct scene s = { 0 };

	set_up(&s, (struct src)SRC(.id = 1), 2, 0, LEN);
	add(ws, 0, 600);
	CHECK_EQ(gmem_pager_replay(s.pager, ws, NULL, stop_at, &stop), -EINTR);
	CHECK_EQ(stats_of(s.pager).replay_pages, 512);
	/* And goes on where it was. */
	CHECK_EQ(gmem_pager_replay(s.pager, ws, NULL, NULL, NULL), 88);
	gmem_workset_close(ws);
	tear_down(&s);
}

/* ---- all at once */

struct filling {
	struct gmem_pager *pager;
	int64_t n;
};

static void *fill_thread(void *arg)
{
	struct filling *f = arg;

	f->n = gmem_pager_fill(f->pager, NULL, NULL);
	return NULL;
}

/* Touchers, a fill and a replay, of the same pages: no byte is wrong, no page is brought in twice. */
static void race(uint32_t flags)
{
	struct scene s = { .seed = tap_seed() };
	struct gmem_workset *ws = new_set(NULL), *rec = new_set(NULL);
	struct gmem_pager_stats st;
	struct toucher t[2];
	struct filling f;
	pthread_t threads[3];
	uint64_t order[N];
	int64_t n;

	set_up(&s, (struct src)SRC(.id = 4, .nowait = true), 2, 0, LEN);
	shuffle(order, N, &s.seed);
	for (uint64_t i = 0; i < N; i++)
		add(ws, order[i] * (PAGES / N), PAGES / N / 2);
	f.pager = s.pager;
	CHECK_OK(gmem_pager_record(s.pager, rec, NULL, 0));
	for (int i = 0; i < 2; i++) {
		t[i] = (struct toucher){ .p = s.p,
					 .id = 4,
					 .npages = PAGES,
					 .seed = s.seed + (uint64_t)i,
					 .touches = PAGES,
					 .sequential = i == 1 };
		pthread_create(&threads[i], NULL, touch_pages, &t[i]);
	}
	pthread_create(&threads[2], NULL, fill_thread, &f);
	n = replay(&s, ws, flags);
	CHECK(n >= 0);
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	CHECK(f.n >= 0);
	check_all(s.p, 4, PAGES);
	CHECK_OK(gmem_workset_stop(rec));
	CHECK_OK(gmem_workset_stop(ws));
	st = stats_of(s.pager);
	CHECK_EQ(st.demand_pages + st.fill_pages + st.replay_pages, PAGES);
	CHECK_EQ(st.replay_pages, (uint64_t)n);
	CHECK_EQ(st.errors, 0);
	CHECK(set_stat(rec).pages >= st.demand_pages);
	gmem_workset_close(ws);
	gmem_workset_close(rec);
	tear_down(&s);
}

TEST_TIMEOUT(everything_at_once, 60)
{
	race(0);
}

TEST_TIMEOUT(everything_at_once_observed, 60)
{
	race(GMEM_REPLAY_OBSERVE);
}

/* The pager goes while a replay runs in another thread: it ends. */
struct replaying {
	struct scene *s;
	struct gmem_workset *ws;
	int64_t n;
};

static void *replay_thread(void *arg)
{
	struct replaying *r = arg;

	r->n = replay(r->s, r->ws, 0);
	return NULL;
}

TEST(freed_while_it_replays)
{
	struct scene s = { 0 };
	struct replaying r = { .s = &s, .ws = new_set(NULL) };
	pthread_t thread;

	set_up(&s, (struct src)SRC(.id = 1, .block_page = 300), 2, 0, LEN);
	add(r.ws, 0, 600);
	pthread_create(&thread, NULL, replay_thread, &r);
	while (!atomic_load(&s.src.blocked))
		usleep(1000);
	CHECK_ERR(replay(&s, r.ws, 0), -EBUSY);
	atomic_store(&s.src.release, true);
	gmem_pager_free(s.pager);
	pthread_join(thread, NULL);
	CHECK(r.n == -ECANCELED || r.n == 600);
	gmem_workset_close(r.ws);
	s.pager = NULL;
	tear_down(&s);
}
