/* SPDX-License-Identifier: MIT */
#include "tap.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "base/rwlock.h"

#define READERS 4
#define WRITERS 3
#define ROUNDS 3000

static struct gmem_rwlock lock;
static _Atomic int inside_readers, inside_writers, order;
static int plain; /* torn or lost if two writers, or a writer and a reader, are inside at once; TSan sees it too */

static void *writer_loop(void *arg)
{
	(void)arg;
	for (int i = 0; i < ROUNDS; i++) {
		gmem_rwlock_lock(&lock);
		CHECK_EQ(atomic_fetch_add(&inside_writers, 1), 0);
		CHECK_EQ(atomic_load(&inside_readers), 0);
		plain++;
		atomic_fetch_sub(&inside_writers, 1);
		gmem_rwlock_unlock(&lock);
	}
	return NULL;
}

static void *reader_loop(void *arg)
{
	bool try = arg != NULL;
	int last = 0;

	for (int i = 0; i < ROUNDS; i++) {
		if (!try)
			gmem_rwlock_lock_shared(&lock);
		else if (!gmem_rwlock_trylock_shared(&lock))
			continue;
		atomic_fetch_add(&inside_readers, 1);
		CHECK_EQ(atomic_load(&inside_writers), 0);
		CHECK(plain >= last);
		last = plain;
		atomic_fetch_sub(&inside_readers, 1);
		gmem_rwlock_unlock_shared(&lock);
	}
	return NULL;
}

TEST_TIMEOUT(mutual_exclusion, 60)
{
	pthread_t t[READERS + WRITERS];

	gmem_rwlock_init(&lock, GMEM_LOCK_INVALIDATE);
	for (int i = 0; i < READERS + WRITERS; i++)
		CHECK_EQ(pthread_create(&t[i], NULL, i < WRITERS ? writer_loop : reader_loop, i == WRITERS ? t : NULL),
			 0);
	for (int i = 0; i < READERS + WRITERS; i++)
		pthread_join(t[i], NULL);
	CHECK_EQ(plain, WRITERS * ROUNDS);
	gmem_rwlock_destroy(&lock);
}

/* So many readers and writers have come and not gone, those inside included; of writers the first has shut the door. */
static bool present(unsigned int readers, unsigned int writers)
{
	uint32_t in = atomic_load(&lock.readers_in);

	return (in & 0xff) && (in - atomic_load(&lock.readers_out)) >> 8 == readers &&
	       atomic_load(&lock.writers_in) - atomic_load(&lock.writers_out) == writers;
}

static void wait_until_present(unsigned int readers, unsigned int writers)
{
	while (!present(readers, writers))
		usleep(1000);
}

static void *one_writer(void *arg)
{
	gmem_rwlock_lock(&lock);
	*(int *)arg = atomic_fetch_add(&order, 1);
	gmem_rwlock_unlock(&lock);
	return NULL;
}

static void *one_reader(void *arg)
{
	gmem_rwlock_lock_shared(&lock);
	*(int *)arg = atomic_fetch_add(&order, 1);
	gmem_rwlock_unlock_shared(&lock);
	return NULL;
}

/* A reader is inside and a writer waits: a new reader comes after the writer. */
TEST(writer_is_not_starved)
{
	pthread_t w, r;
	int when_w, when_r;

	gmem_rwlock_init(&lock, GMEM_LOCK_INVALIDATE);
	gmem_rwlock_lock_shared(&lock);
	pthread_create(&w, NULL, one_writer, &when_w);
	wait_until_present(1, 1);
	CHECK(!gmem_rwlock_trylock_shared(&lock));
	pthread_create(&r, NULL, one_reader, &when_r);
	wait_until_present(2, 1);
	CHECK_EQ(atomic_load(&order), 0);
	gmem_rwlock_unlock_shared(&lock);
	pthread_join(w, NULL);
	pthread_join(r, NULL);
	CHECK_EQ(when_w, 0);
	CHECK_EQ(when_r, 1);
	gmem_rwlock_destroy(&lock);
}

/* A writer is inside, another one and then readers wait: all those readers come before the second writer. */
TEST(readers_are_not_starved)
{
	pthread_t w, r[READERS];
	int when_w, when_r[READERS];

	gmem_rwlock_init(&lock, GMEM_LOCK_INVALIDATE);
	gmem_rwlock_lock(&lock);
	pthread_create(&w, NULL, one_writer, &when_w);
	wait_until_present(0, 2);
	for (int i = 0; i < READERS; i++)
		pthread_create(&r[i], NULL, one_reader, &when_r[i]);
	wait_until_present(READERS, 2);
	gmem_rwlock_unlock(&lock);
	pthread_join(w, NULL);
	CHECK_EQ(when_w, READERS);
	for (int i = 0; i < READERS; i++) {
		pthread_join(r[i], NULL);
		CHECK(when_r[i] < READERS);
	}
	gmem_rwlock_destroy(&lock);
}

static _Atomic bool stop;

static void *endless_reader(void *arg)
{
	while (!atomic_load(&stop)) {
		gmem_rwlock_lock_shared(&lock);
		usleep(200);
		gmem_rwlock_unlock_shared(&lock);
	}
	return arg;
}

static void *endless_writer(void *arg)
{
	while (!atomic_load(&stop)) {
		gmem_rwlock_lock(&lock);
		usleep(50);
		gmem_rwlock_unlock(&lock);
	}
	return arg;
}

/* Readers that always overlap, writers that always follow each other: both sides get their turns. */
TEST(both_sides_go_on_under_load)
{
	pthread_t t[4];

	gmem_rwlock_init(&lock, GMEM_LOCK_INVALIDATE);
	for (int i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, i < 2 ? endless_reader : endless_writer, NULL);
	for (int i = 0; i < 200; i++) {
		gmem_rwlock_lock(&lock);
		gmem_rwlock_unlock(&lock);
		gmem_rwlock_lock_shared(&lock);
		gmem_rwlock_unlock_shared(&lock);
	}
	atomic_store(&stop, true);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	gmem_rwlock_destroy(&lock);
}

static void *try_it(void *arg)
{
	*(bool *)arg = gmem_rwlock_trylock_shared(&lock);
	if (*(bool *)arg)
		gmem_rwlock_unlock_shared(&lock);
	return NULL;
}

/* Joined with a deadline: a trylock that waits fails the case, it does not hang it. */
static bool try_elsewhere(void)
{
	struct timespec until;
	pthread_t t;
	bool got;

	pthread_create(&t, NULL, try_it, &got);
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 10;
	if (pthread_timedjoin_np(t, NULL, &until))
		FAIL("trylock waits");
	return got;
}

TEST(trylock_never_waits)
{
	gmem_rwlock_init(&lock, GMEM_LOCK_INVALIDATE);
	CHECK(try_elsewhere());
	gmem_rwlock_lock(&lock);
	CHECK(!try_elsewhere());
	gmem_rwlock_unlock(&lock);
	gmem_rwlock_lock_shared(&lock);
	CHECK(try_elsewhere());
	gmem_rwlock_unlock_shared(&lock);
	/* Not for the mutex of those who sleep either. */
	pthread_mutex_lock(&lock.m);
	CHECK(try_elsewhere());
	pthread_mutex_unlock(&lock.m);
	CHECK(try_elsewhere());
	gmem_rwlock_destroy(&lock);
}
