/* SPDX-License-Identifier: MIT */
/*
 * The destination's memory as it will be: a guest memory file, a view of it that a pager serves from the other machine,
 * threads that touch and write it, a fill behind them, and a link that is cut. What they wrote stays, what they did not
 * write is the source's, and what was zero takes no memory.
 */
#include "tap.h"

#include "migrate_util.h"
#include "pager_util.h"

struct scene {
	struct pair pair;
	struct gmem_file *file;
	struct gmem_view *view;
	struct gmem_pager *pager;
	uint8_t *p;
	_Atomic bool *wrote; /* a page each: its first word is ours */
	_Atomic uint32_t errors, lost;
};

static void told(void *opaque, const struct gmem_pager_event *event)
{
	struct scene *s = opaque;

	if (event->kind == GMEM_PAGER_ERROR)
		atomic_fetch_add(&s->errors, 1);
	if (event->kind == GMEM_PAGER_POISONED || event->kind == GMEM_PAGER_GONE)
		atomic_fetch_add(&s->lost, 1);
}

struct toucher {
	struct scene *s;
	uint64_t seed;
	unsigned int touches;
	pthread_t thread;
};

/* Reads a page and compares, or writes its first word; each page is written by one toucher at most. */
static void *touch_pages(void *opaque)
{
	struct toucher *t = opaque;
	struct scene *s = t->s;

	for (unsigned int i = 0; i < t->touches; i++) {
		uint64_t page = tap_rand(&t->seed) % (s->pair.len / P);
		uint64_t *now = (uint64_t *)(s->p + page * P), *was = (uint64_t *)(s->pair.memory + page * P);

		if (tap_rand(&t->seed) % 4 == 0 && !atomic_exchange(&s->wrote[page], true))
			__atomic_store_n(&now[0], page | 1ull << 63, __ATOMIC_RELAXED);
		else
			for (unsigned int k = 1; k < P / 8; k++)
				CHECK_EQ(__atomic_load_n(&now[k], __ATOMIC_RELAXED), was[k]);
	}
	return NULL;
}

static void *fill(void *opaque)
{
	struct scene *s = opaque;

	CHECK_OK(gmem_pager_fill(s->pager, NULL, NULL));
	return NULL;
}

static void set_up(struct scene *s, uint64_t *seed)
{
	struct gmem_pager_opts opts = { .size = sizeof(opts), .event = told, .opaque = s };

	pair_begin(&s->pair, seed);
	CHECK_OK(gmem_file_create(s->pair.len, NULL, &s->file));
	CHECK_OK(gmem_view_map(s->file, 0, s->pair.len, PROT_READ | PROT_WRITE, &s->view));
	s->p = gmem_view_addr(s->view);
	s->wrote = calloc(s->pair.len / P, sizeof(*s->wrote));
	CHECK(s->wrote);
	CHECK_OK(gmem_pager_create(&opts, &s->pager));
	/* As a destination does it: served before the guest has stopped at the source. */
	CHECK_OK(gmem_incoming_source(s->pair.incoming, 0, &s->pair.source));
	CHECK_OK(gmem_pager_add_view(s->pager, s->view, s->pair.source, 0));
}

static void check(struct scene *s)
{
	struct gmem_pager_stats stats = { .size = sizeof(stats) };
	uint64_t kept = 0;

	for (uint64_t page = 0; page < s->pair.len / P; page++) {
		uint64_t *now = (uint64_t *)(s->p + page * P), *was = (uint64_t *)(s->pair.memory + page * P);

		CHECK_EQ(now[0], atomic_load(&s->wrote[page]) ? page | 1ull << 63 : was[0]);
		CHECK_MEM(now + 1, was + 1, P - 8);
		kept += atomic_load(&s->wrote[page]);
	}
	CHECK_OK(gmem_pager_stats(s->pager, &stats));
	printf("%llu pages on demand, %llu filled, %llu zero, %llu written; %u errors, %u links\n",
	       (unsigned long long)stats.demand_pages, (unsigned long long)stats.fill_pages,
	       (unsigned long long)stats.zero_pages, (unsigned long long)kept, atomic_load(&s->errors),
	       atomic_load(&s->pair.ups) / 2);
	CHECK_EQ(s->lost, 0);
}

static void tear_down(struct scene *s)
{
	gmem_pager_free(s->pager);
	gmem_view_unmap(s->view);
	gmem_file_free(s->file);
	free(s->wrote);
	pair_end(&s->pair);
}

static void stop_and_go(struct scene *s)
{
	pair_prepared(&s->pair);
	CHECK_OK(gmem_page_server_stopped(s->pair.server));
	CHECK_OK(gmem_incoming_wait(s->pair.incoming, GMEM_MIGRATE_STOPPED, -1));
	pair_go(&s->pair);
}

static void run(unsigned int cuts)
{
	struct scene s = { .pair = { .len = 16 << 20, .proxied = cuts, .ahead = 4 << 20 } };
	struct toucher touchers[3];
	uint64_t seed = tap_seed();
	pthread_t filler;

	need_markers();
	set_up(&s, &seed);
	stop_and_go(&s);
	for (unsigned int i = 0; i < 3; i++) {
		touchers[i] = (struct toucher){ .s = &s, .seed = tap_rand(&seed), .touches = tap_slow() ? 500 : 3000 };
		CHECK(!pthread_create(&touchers[i].thread, NULL, touch_pages, &touchers[i]));
	}
	CHECK(!pthread_create(&filler, NULL, fill, &s));
	for (unsigned int i = 0; i < cuts; i++) {
		atomic_store(&s.pair.proxy.reset, tap_rand(&seed) % 2);
		atomic_store(&s.pair.proxy.cut_bytes, (int64_t)(tap_rand(&seed) % (1 << 20)));
		/* All may be over before the next cut. */
		for (unsigned int k = 0; k < 500 && atomic_load(&s.pair.proxy.cut_bytes) >= 0; k++)
			usleep(1000);
	}
	if (cuts)
		atomic_store(&s.pair.proxy.cut_bytes, -1);
	for (unsigned int i = 0; i < 3; i++)
		pthread_join(touchers[i].thread, NULL);
	pthread_join(filler, NULL);
	CHECK_OK(gmem_pager_unregister(s.pager));
	pair_complete(&s.pair);
	check(&s);
	tear_down(&s);
}

TEST_TIMEOUT(touched_and_filled, 60)
{
	run(0);
}

TEST_TIMEOUT(touched_and_filled_with_lost_links, 120)
{
	run(tap_slow() ? 3 : 12);
}

/* A third of the memory is zero and takes none, although nobody said so before it was asked for. */
TEST_TIMEOUT(zero_pages_take_no_memory, 60)
{
	struct scene s = { .pair = { .len = 16 << 20 } };
	struct gmem_pager_stats stats = { .size = sizeof(stats) };
	uint64_t seed = tap_seed(), zero = 0;

	need_markers();
	set_up(&s, &seed);
	stop_and_go(&s);
	for (uint64_t off = 0; off < s.pair.len; off += P)
		zero += page_is_zero(s.pair.memory + off);
	CHECK(zero > 1000);
	CHECK_OK(gmem_pager_fill(s.pager, NULL, NULL));
	CHECK_OK(gmem_pager_stats(s.pager, &stats));
	CHECK_EQ(stats.zero_pages, zero);
	CHECK_EQ(stats.fill_pages, s.pair.len / P - zero);
	check(&s);
	tear_down(&s);
}

/* The machine that made the view is the one the guest waits in: no page comes before the source has stopped. */
TEST_TIMEOUT(touched_before_it_stopped, 60)
{
	struct scene s = { .pair = { .len = 1 << 20 } };
	uint64_t seed = tap_seed();
	struct toucher t = { .s = &s, .touches = 50 };

	need_markers();
	set_up(&s, &seed);
	t.seed = tap_rand(&seed);
	CHECK(!pthread_create(&t.thread, NULL, touch_pages, &t));
	/* The pager asks, and is told "not now". */
	while (!atomic_load(&s.errors))
		usleep(1000);
	memory_fill(s.pair.memory, s.pair.len, &seed);
	stop_and_go(&s);
	pthread_join(t.thread, NULL);
	check(&s);
	tear_down(&s);
}
