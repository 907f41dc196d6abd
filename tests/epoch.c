/* SPDX-License-Identifier: MIT */
#include "tap.h"

#include <pthread.h>

#include "base/epoch.h"

struct waiter {
	struct gmem_epoch *e;
	_Atomic bool done;
	pthread_t thread;
};

static void *wait_once(void *arg)
{
	struct waiter *w = arg;

	gmem_epoch_wait(w->e);
	atomic_store(&w->done, true);
	return NULL;
}

/* Returns when the wait has begun: from then on, who comes in is later than it. */
static void begin_wait(struct waiter *w, struct gmem_epoch *e)
{
	uint64_t before = atomic_load(&e->now);

	w->e = e;
	atomic_store(&w->done, false);
	CHECK_EQ(pthread_create(&w->thread, NULL, wait_once, w), 0);
	while (atomic_load(&e->now) == before)
		usleep(100);
}

TEST(wait_without_readers)
{
	struct gmem_epoch_reader r;
	struct gmem_epoch e;

	gmem_epoch_init(&e);
	gmem_epoch_wait(&e);
	gmem_epoch_add(&e, &r);
	gmem_epoch_wait(&e);
	gmem_epoch_enter(&e, &r);
	gmem_epoch_leave(&r);
	gmem_epoch_wait(&e);
	gmem_epoch_del(&e, &r);
	gmem_epoch_wait(&e);
	gmem_epoch_destroy(&e);
}

TEST(wait_until_earlier_readers_are_out)
{
	struct gmem_epoch_reader r[3];
	struct gmem_epoch e;
	struct waiter w;

	gmem_epoch_init(&e);
	for (int i = 0; i < 3; i++)
		gmem_epoch_add(&e, &r[i]);
	for (int last = 0; last < 3; last++) {
		for (int i = 0; i < 3; i++)
			gmem_epoch_enter(&e, &r[i]);
		begin_wait(&w, &e);
		for (int i = 0; i < 3; i++)
			if (i != last)
				gmem_epoch_leave(&r[i]);
		usleep(30000);
		CHECK(!atomic_load(&w.done));
		gmem_epoch_leave(&r[last]);
		pthread_join(w.thread, NULL);
		CHECK(atomic_load(&w.done));
	}
	for (int i = 0; i < 3; i++)
		gmem_epoch_del(&e, &r[i]);
	gmem_epoch_destroy(&e);
}

TEST(later_readers_do_not_delay)
{
	struct gmem_epoch_reader early, late;
	struct gmem_epoch e;
	struct waiter w;

	gmem_epoch_init(&e);
	gmem_epoch_add(&e, &early);
	gmem_epoch_add(&e, &late);
	gmem_epoch_enter(&e, &early);
	begin_wait(&w, &e);
	gmem_epoch_enter(&e, &late);
	/* The early one comes back as a later one. */
	gmem_epoch_leave(&early);
	gmem_epoch_enter(&e, &early);
	pthread_join(w.thread, NULL);
	CHECK(atomic_load(&w.done));
	/* But the next wait is for both of them. */
	begin_wait(&w, &e);
	gmem_epoch_leave(&late);
	usleep(30000);
	CHECK(!atomic_load(&w.done));
	gmem_epoch_leave(&early);
	pthread_join(w.thread, NULL);
	gmem_epoch_del(&e, &early);
	gmem_epoch_del(&e, &late);
	gmem_epoch_destroy(&e);
}

/* Two waits at once are both for whoever was in. */
TEST(two_waits)
{
	struct gmem_epoch_reader r;
	struct gmem_epoch e;
	struct waiter w[2];

	gmem_epoch_init(&e);
	gmem_epoch_add(&e, &r);
	gmem_epoch_enter(&e, &r);
	begin_wait(&w[0], &e);
	begin_wait(&w[1], &e);
	usleep(30000);
	CHECK(!atomic_load(&w[0].done) && !atomic_load(&w[1].done));
	gmem_epoch_leave(&r);
	pthread_join(w[0].thread, NULL);
	pthread_join(w[1].thread, NULL);
	gmem_epoch_del(&e, &r);
	gmem_epoch_destroy(&e);
}

/* ---- a thing that is replaced while it is read */

#define READERS 3
#define THINGS 4

struct thing {
	_Atomic uint64_t a, b; /* b is ~a, while the thing is in use */
};

struct shared {
	struct gmem_epoch e;
	struct thing thing[THINGS];
	struct thing *_Atomic now;
	_Atomic bool stop;
	_Atomic uint64_t reads;
};

static void *read_things(void *arg)
{
	struct shared *s = arg;
	struct gmem_epoch_reader r;
	uint64_t n = 0;

	gmem_epoch_add(&s->e, &r);
	while (!atomic_load(&s->stop)) {
		struct thing *t;
		uint64_t a, b;

		gmem_epoch_enter(&s->e, &r);
		t = atomic_load(&s->now);
		a = atomic_load_explicit(&t->a, memory_order_relaxed);
		if (n % 64 == 0)
			sched_yield();
		b = atomic_load_explicit(&t->b, memory_order_relaxed);
		gmem_epoch_leave(&r);
		if (a != ~b)
			FAIL("a thing was changed while it was read: 0x%llx, 0x%llx", (unsigned long long)a,
			     (unsigned long long)b);
		/* Some come and go. */
		if (++n % 1000 == 0) {
			gmem_epoch_del(&s->e, &r);
			gmem_epoch_add(&s->e, &r);
		}
	}
	atomic_fetch_add(&s->reads, n);
	gmem_epoch_del(&s->e, &r);
	return NULL;
}

TEST(nothing_is_reused_while_it_is_read)
{
	static struct shared s;
	pthread_t t[READERS];
	unsigned int rounds = tap_slow() ? 2000 : 20000;

	gmem_epoch_init(&s.e);
	for (int i = 0; i < THINGS; i++) {
		atomic_store(&s.thing[i].a, 0);
		atomic_store(&s.thing[i].b, ~0ull);
	}
	atomic_store(&s.now, &s.thing[0]);
	for (int i = 0; i < READERS; i++)
		CHECK_EQ(pthread_create(&t[i], NULL, read_things, &s), 0);
	for (unsigned int i = 1; i <= rounds; i++) {
		struct thing *new = &s.thing[i % THINGS], *old;

		/* Nobody can be at it: it was replaced before a wait. */
		atomic_store_explicit(&new->a, i, memory_order_relaxed);
		atomic_store_explicit(&new->b, ~(uint64_t)i, memory_order_relaxed);
		old = atomic_exchange(&s.now, new);
		gmem_epoch_wait(&s.e);
		atomic_store_explicit(&old->a, 1, memory_order_relaxed);
		atomic_store_explicit(&old->b, 1, memory_order_relaxed);
	}
	atomic_store(&s.stop, true);
	for (int i = 0; i < READERS; i++)
		pthread_join(t[i], NULL);
	printf("%llu reads, %u replacements\n", (unsigned long long)atomic_load(&s.reads), rounds);
	gmem_epoch_destroy(&s.e);
}
