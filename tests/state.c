/* SPDX-License-Identifier: MIT */
#include "tap.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "file/state.h"
#include "sys/memfd.h"

#define GEN 5u

static struct gmem_state s;
static pthread_barrier_t start; /* of racing threads */

static uint32_t word(uint64_t page)
{
	return gmem_state_word(&s, page);
}

static uint32_t locked(uint32_t generation)
{
	return GMEM_WORD_LOCKED | generation << GMEM_WORD_GEN_SHIFT;
}

static void set(uint64_t page, uint32_t w)
{
	atomic_store(&s.words[page], w);
}

TEST(lock_publish)
{
	CHECK_OK(gmem_state_create(&s, 8, false));
	CHECK_EQ(word(0), GMEM_WORD_ABSENT);
	CHECK_EQ(gmem_state_trylock(&s, 0, GEN), GMEM_STATE_LOCKED);
	CHECK_EQ(word(0), locked(GEN));
	CHECK(gmem_state_owns(&s, 0, GEN));
	CHECK(!gmem_state_owns(&s, 0, GEN + 1));
	CHECK_EQ(gmem_state_trylock(&s, 0, GEN), GMEM_STATE_BUSY);
	CHECK(gmem_word_absent(word(0)));
	CHECK(gmem_state_publish(&s, 0, GEN));
	CHECK_EQ(word(0), GMEM_WORD_UPTODATE);
	CHECK(!gmem_word_absent(word(0)));
	CHECK_EQ(gmem_state_trylock(&s, 0, GEN), GMEM_STATE_IN_PLACE);
	CHECK_EQ(word(1), GMEM_WORD_ABSENT);
	gmem_state_close(&s);
}

TEST(lock_unlock)
{
	CHECK_OK(gmem_state_create(&s, 8, false));
	CHECK_EQ(gmem_state_trylock(&s, 0, GEN), GMEM_STATE_LOCKED);
	gmem_state_unlock(&s, 0, GEN);
	CHECK_EQ(word(0), GMEM_WORD_ABSENT);
	/* Not the owner's: nothing. */
	gmem_state_unlock(&s, 0, GEN);
	CHECK_EQ(word(0), GMEM_WORD_ABSENT);
	CHECK_EQ(gmem_state_trylock(&s, 0, GEN), GMEM_STATE_LOCKED);
	gmem_state_unlock(&s, 0, GEN - 1);
	CHECK_EQ(word(0), locked(GEN));
	gmem_state_close(&s);
}

TEST(lock_poison)
{
	CHECK_OK(gmem_state_create(&s, 8, false));
	CHECK(!gmem_state_poison(&s, 0, GEN));
	CHECK_EQ(gmem_state_trylock(&s, 0, GEN), GMEM_STATE_LOCKED);
	CHECK(!gmem_state_poison(&s, 0, GEN + 1));
	CHECK(gmem_state_poison(&s, 0, GEN));
	CHECK_EQ(word(0), GMEM_WORD_POISONED);
	CHECK(!gmem_word_absent(word(0)));
	CHECK_EQ(gmem_state_trylock(&s, 0, GEN), GMEM_STATE_BAD);
	/* Punching heals: its bytes are unwanted. */
	CHECK(gmem_state_remove(&s, 0));
	CHECK_EQ(word(0), GMEM_WORD_REMOVED);
	gmem_state_close(&s);
}

TEST(stale_lock_is_taken_over)
{
	CHECK_OK(gmem_state_create(&s, 8, false));
	CHECK_EQ(gmem_state_trylock(&s, 0, GEN), GMEM_STATE_LOCKED);
	CHECK_EQ(gmem_state_trylock(&s, 0, GEN + 1), GMEM_STATE_STALE);
	CHECK_EQ(word(0), locked(GEN + 1));
	/* The old one can do no harm any more. */
	CHECK(!gmem_state_publish(&s, 0, GEN));
	CHECK(!gmem_state_poison(&s, 0, GEN));
	gmem_state_unlock(&s, 0, GEN);
	CHECK_EQ(word(0), locked(GEN + 1));
	CHECK(gmem_state_publish(&s, 0, GEN + 1));
	CHECK_EQ(word(0), GMEM_WORD_UPTODATE);
	CHECK(!gmem_state_publish(&s, 0, GEN));
	CHECK_EQ(word(0), GMEM_WORD_UPTODATE);
	gmem_state_close(&s);
}

TEST(doomed)
{
	CHECK_OK(gmem_state_create(&s, 8, false));
	CHECK_EQ(gmem_state_trylock(&s, 0, GEN), GMEM_STATE_LOCKED);
	CHECK(!gmem_state_remove(&s, 0));
	CHECK_EQ(word(0), locked(GEN) | GMEM_WORD_DOOMED);
	CHECK(!gmem_state_remove(&s, 0));
	CHECK(!gmem_state_publish(&s, 0, GEN));
	CHECK(!gmem_state_poison(&s, 0, GEN));
	CHECK(gmem_state_owns(&s, 0, GEN));
	CHECK_EQ(gmem_state_trylock(&s, 0, GEN), GMEM_STATE_BUSY);
	gmem_state_unlock(&s, 0, GEN);
	CHECK_EQ(word(0), GMEM_WORD_REMOVED);
	/* Its holder died: the next one drops it. */
	CHECK_EQ(gmem_state_trylock(&s, 1, GEN), GMEM_STATE_LOCKED);
	CHECK(!gmem_state_remove(&s, 1));
	CHECK_EQ(gmem_state_trylock(&s, 1, GEN + 1), GMEM_STATE_ABANDONED);
	CHECK(gmem_state_owns(&s, 1, GEN + 1));
	CHECK(word(1) & GMEM_WORD_DOOMED);
	gmem_state_unlock(&s, 1, GEN + 1);
	CHECK_EQ(word(1), GMEM_WORD_REMOVED);
	gmem_state_close(&s);
}

TEST(remove_and_zero)
{
	CHECK_OK(gmem_state_create(&s, 8, false));
	CHECK(gmem_state_remove(&s, 0));
	CHECK_EQ(word(0), GMEM_WORD_REMOVED);
	CHECK_EQ(gmem_state_trylock(&s, 0, GEN), GMEM_STATE_IN_PLACE);
	set(1, GMEM_WORD_UPTODATE);
	CHECK(gmem_state_remove(&s, 1));
	CHECK_EQ(word(1), GMEM_WORD_REMOVED);
	CHECK(gmem_state_zero(&s, 2));
	CHECK_EQ(word(2), GMEM_WORD_REMOVED);
	CHECK(!gmem_state_zero(&s, 2));
	set(3, GMEM_WORD_UPTODATE);
	CHECK(!gmem_state_zero(&s, 3));
	CHECK_EQ(word(3), GMEM_WORD_UPTODATE);
	/* A dead holder may have left bytes: not known to be zero. */
	set(4, locked(GEN - 1));
	CHECK(!gmem_state_zero(&s, 4));
	set(5, GMEM_WORD_POISONED);
	CHECK(!gmem_state_zero(&s, 5));
	gmem_state_close(&s);
}

TEST(largest_generation)
{
	CHECK_OK(gmem_state_create(&s, 1, false));
	CHECK_EQ(gmem_state_trylock(&s, 0, GMEM_MAX_GENERATION), GMEM_STATE_LOCKED);
	CHECK(gmem_word_locked(word(0), GMEM_MAX_GENERATION));
	CHECK(!gmem_word_locked(word(0), GMEM_MAX_GENERATION - 1));
	CHECK(!gmem_state_remove(&s, 0));
	gmem_state_unlock(&s, 0, GMEM_MAX_GENERATION);
	CHECK_EQ(word(0), GMEM_WORD_REMOVED);
	gmem_state_close(&s);
}

#define PAGES 20000

static _Atomic unsigned int won[PAGES];

struct racer {
	uint32_t generation;
	unsigned int won;
};

static void *race_for_locks(void *arg)
{
	struct racer *r = arg;

	pthread_barrier_wait(&start);
	for (uint64_t i = 0; i < PAGES; i++) {
		if (gmem_state_trylock(&s, i, r->generation) != GMEM_STATE_LOCKED)
			continue;
		r->won++;
		CHECK_EQ(atomic_fetch_add(&won[i], 1), 0);
		if (i % 3 == 0) {
			CHECK_EQ(atomic_fetch_sub(&won[i], 1), 1);
			gmem_state_unlock(&s, i, r->generation);
		} else {
			CHECK(gmem_state_publish(&s, i, r->generation));
		}
	}
	return NULL;
}

TEST(two_threads_lock)
{
	struct racer r[2] = { { GEN, 0 }, { GEN, 0 } };
	pthread_t t[2];

	CHECK_OK(gmem_state_create(&s, PAGES, false));
	pthread_barrier_init(&start, NULL, 2);
	for (int i = 0; i < 2; i++)
		pthread_create(&t[i], NULL, race_for_locks, &r[i]);
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	for (uint64_t i = 0; i < PAGES; i++) {
		CHECK_EQ(word(i), i % 3 ? GMEM_WORD_UPTODATE : GMEM_WORD_ABSENT);
		CHECK_EQ(won[i], i % 3 ? 1 : 0);
	}
	gmem_state_close(&s);
}

static _Atomic uint64_t published;

static void *publisher(void *arg)
{
	pthread_barrier_wait(&start);
	for (uint64_t i = 0; i < PAGES; i++) {
		enum gmem_state_lock got = gmem_state_trylock(&s, i, GEN);

		if (got == GMEM_STATE_IN_PLACE)
			continue;
		CHECK_EQ(got, GMEM_STATE_LOCKED);
		if (gmem_state_publish(&s, i, GEN))
			atomic_fetch_add(&published, 1);
		else
			gmem_state_unlock(&s, i, GEN);
	}
	return arg;
}

static void *remover(void *arg)
{
	pthread_barrier_wait(&start);
	/* From the other end: they meet. */
	for (uint64_t i = PAGES; i-- > 0;)
		gmem_state_remove(&s, i);
	return arg;
}

/* Whoever comes first: what was removed stays removed. */
TEST(publish_against_remove)
{
	pthread_t t[2];

	CHECK_OK(gmem_state_create(&s, PAGES, false));
	pthread_barrier_init(&start, NULL, 2);
	pthread_create(&t[0], NULL, publisher, NULL);
	pthread_create(&t[1], NULL, remover, NULL);
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	for (uint64_t i = 0; i < PAGES; i++)
		CHECK_EQ(word(i), GMEM_WORD_REMOVED);
	printf("published before the removal: %llu of %u\n", (unsigned long long)published, PAGES);
	gmem_state_close(&s);
}

TEST(table_of_a_tebibyte_costs_nothing)
{
	struct timespec a, b;
	struct stat st;
	uint64_t us;

	clock_gettime(CLOCK_MONOTONIC, &a);
	CHECK_OK(gmem_state_create(&s, (1ull << 40) / 4096, false));
	clock_gettime(CLOCK_MONOTONIC, &b);
	us = (uint64_t)(b.tv_sec - a.tv_sec) * 1000000 + (uint64_t)(b.tv_nsec / 1000) - (uint64_t)(a.tv_nsec / 1000);
	printf("created in %llu us\n", (unsigned long long)us);
	/* Any initialisation of a GiB would take a hundred times longer. */
	CHECK(us < 50000);
	CHECK_EQ(fstat(s.fd, &st), 0);
	CHECK(st.st_size > 1 << 30);
	/* The header's page; a huge page where shared memory uses them. */
	CHECK(st.st_blocks * 512 <= 2 << 20);
	CHECK_EQ(gmem_state_trylock(&s, s.npages - 1, GEN), GMEM_STATE_LOCKED);
	gmem_state_close(&s);
}

static int sealed(const void *data, size_t len, uint64_t size, int seals)
{
	int fd = memfd_create("gmem-state", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	CHECK(fd >= 0);
	CHECK_EQ(ftruncate(fd, (off_t)size), 0);
	CHECK_EQ(pwrite(fd, data, len, 0), len);
	CHECK_EQ(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

/* A table is so much longer than its words and bits. */
#define PEERS ((uint64_t)GMEM_STATE_MAX_PEERS * GMEM_STATE_PEER_LEN)

static void rejected(struct gmem_state_header *h, uint64_t size, int seals, int err)
{
	struct gmem_state t;
	int fd = sealed(h, sizeof(*h), size + PEERS, seals);

	CHECK_ERR(gmem_state_open(&t, fd), err);
	close(fd);
}

TEST(open_trusts_nothing)
{
	const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
	struct gmem_state_header good = {
		.magic = GMEM_STATE_MAGIC,
		.version = GMEM_STATE_VERSION,
		.page_shift = 12,
		.npages = 1024,
	}, h;
	struct gmem_state t;
	int fd, p[2];

	fd = sealed(&good, sizeof(good), 16384 + PEERS, seals);
	CHECK_OK(gmem_state_open(&t, fd));
	close(fd);
	CHECK_EQ(t.npages, 1024);
	CHECK_EQ(gmem_state_trylock(&t, 1023, 1), GMEM_STATE_LOCKED);
	gmem_state_close(&t);

	h = good;
	h.magic++;
	rejected(&h, 16384, seals, -EINVAL);
	h = good;
	h.version++;
	rejected(&h, 16384, seals, -EPROTONOSUPPORT);
	h = good;
	h.page_shift = 14;
	rejected(&h, 16384, seals, -EPROTONOSUPPORT);
	/* A table that says more than it holds, in every way that could wrap. */
	for (int i = 0; i < 6; i++) {
		static const uint64_t npages[] = { 0, 1025, 2048, UINT64_MAX, 1ull << 62, (1ull << 62) + 1024 };

		h = good;
		h.npages = npages[i];
		rejected(&h, 16384, seals, -EINVAL);
	}
	rejected(&good, 12288, seals, -EINVAL);
	rejected(&good, 4096, seals, -EINVAL);
	rejected(&good, sizeof(h), seals, -EINVAL);
	/* As long as one of an older layout. */
	rejected(&good, 16384 - PEERS, seals, -EINVAL);
	rejected(&good, 20480, seals, -EINVAL);
	rejected(&good, 16384, F_SEAL_GROW, -EINVAL);
	rejected(&good, 16384, 0, -EINVAL);
	CHECK_ERR(gmem_state_open(&t, -1), -EBADF);
	CHECK_EQ(pipe(p), 0);
	CHECK_ERR(gmem_state_open(&t, p[0]), -EINVAL);
	close(p[0]);
	close(p[1]);
}

TEST(open_survives_garbage)
{
	uint64_t seed = tap_seed();
	struct gmem_state t;

	for (int i = 0; i < 300; i++) {
		uint64_t junk[512];
		int fd;

		for (int k = 0; k < 512; k++)
			junk[k] = tap_rand(&seed);
		/* Half of them with the right beginning. */
		if (i & 1) {
			junk[0] = GMEM_STATE_MAGIC;
			junk[1] = GMEM_STATE_VERSION | 12ull << 32;
		}
		fd = sealed(junk, sizeof(junk), 4096 * (1 + tap_rand(&seed) % 4), F_SEAL_SHRINK);
		if (gmem_state_open(&t, fd) == 0)
			FAIL("random bytes were taken for a table");
		close(fd);
	}
}

TEST(open_shares)
{
	struct gmem_state t;

	CHECK_OK(gmem_state_create(&s, 100, false));
	CHECK_OK(gmem_state_open(&t, s.fd));
	CHECK(t.fd != s.fd);
	CHECK_EQ(gmem_state_trylock(&s, 7, GEN), GMEM_STATE_LOCKED);
	CHECK_EQ(gmem_state_trylock(&t, 7, GEN), GMEM_STATE_BUSY);
	gmem_state_close(&s);
	CHECK(gmem_state_publish(&t, 7, GEN));
	gmem_state_close(&t);
	gmem_state_close(&t);
}
