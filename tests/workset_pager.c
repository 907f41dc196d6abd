/* SPDX-License-Identifier: MIT */
/* Working sets that are replayed: what a pager brings in, in what order, and what is seen of it. */
#include "tap.h"

#include "workset_util.h"

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

struct far {
	struct src src; /* first: src_read() takes it */
	_Atomic uint64_t asked, read; /* pages */
	_Atomic bool late; /* something was read that had not been asked for */
};

static int far_prefetch(void *opaque, uint64_t off, uint64_t len, bool wait)
{
	struct far *f = opaque;

	(void)off;
	if (!wait)
		atomic_fetch_add(&f->asked, len / P);
	return 0;
}

static int far_read(void *opaque, uint64_t off, void *buf, size_t len)
{
	struct far *f = opaque;

	/* The first read of a batch comes when all of it is on its way. */
	if (atomic_fetch_add(&f->read, len / P) % 512 == 0 && atomic_load(&f->asked) % 512)
		atomic_store(&f->late, true);
	if (atomic_load(&f->read) > atomic_load(&f->asked))
		atomic_store(&f->late, true);
	return src_read(opaque, off, buf, len);
}

/* A source that is far away hears of a batch before it is waited for. */
TEST(replayed_from_afar)
{
	static const struct gmem_source_ops ops = { .size = sizeof(ops), .read = far_read, .prefetch = far_prefetch };
	struct far f = { .src = SRC(.id = 1) };
	struct gmem_workset *ws = new_set(NULL);
	struct scene s = { 0 };

	s.pager = new_pager(1, 0, NULL);
	CHECK_OK(gmem_source_new(&ops, &f, &s.source));
	s.file = new_file(4096 * P);
	s.p = map_view(s.file, 0, 4096 * P, &s.view);
	CHECK_OK(gmem_pager_add_view(s.pager, s.view, s.source, 0));
	for (uint64_t i = 0; i < 1024; i++)
		add(ws, 3 * i, 1);
	CHECK_EQ(replay(&s, ws, 0), 1024);
	CHECK_EQ(atomic_load(&f.asked), 1024);
	CHECK_EQ(atomic_load(&f.read), 1024);
	CHECK(!atomic_load(&f.late));
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
