/* SPDX-License-Identifier: MIT */
/*
 * Views that are split, grow, shrink and move while pages are converted and threads touch all the addresses they may
 * ever be at, also those that no call has told of yet.
 *
 * The oracle is that of convert_race.c: who has made a page private writes a secret into it, as the guest would, and
 * takes it out before the page is made shared. A thread that reads a secret has seen a private page.
 */
#include "tap.h"

#include "sys/uapi.h"
#include "view_util.h"

#define N 32u /* pages of the file */
#define OWNERS 2u
#define MAPPERS 2u
#define ROOM 64u /* pages of a view's room: in the middle of nothing */
#define ROOMS 4u /* of each mapper */
#define MAGIC (0x5ec7e7ull << 40)
#define IS_SECRET(word) ((word) >> 40 == MAGIC >> 40)

static struct gmem_file *file;
static char *arena;
static _Atomic bool stop;
static _Atomic uint64_t next_seed, touches, faults, conversions, moves, splits;
static uint64_t seed;
/* One mapper at a time has holes in the arena, into which the kernel could put what the other one maps. */
static pthread_mutex_t holes = PTHREAD_MUTEX_INITIALIZER;

static uint64_t own_seed(void)
{
	return seed + atomic_fetch_add(&next_seed, 1) * 0x9e3779b97f4a7c15ull;
}

static char *room(unsigned int mapper, unsigned int i)
{
	return arena + (mapper * ROOMS + i) * ROOM * P;
}

/* Anything may be there, and go: no sanitizer's business. */
__attribute__((no_sanitize("address", "thread"))) static bool load(const uint64_t *p, uint64_t *ret)
{
	if (sigsetjmp(bus_jmp, 1))
		return false;
	*ret = *(const volatile uint64_t *)p;
	return true;
}

static void *toucher(void *arg)
{
	uint64_t s = own_seed(), n = 0, refused = 0, word;

	(void)arg;
	while (!atomic_load(&stop)) {
		uint64_t page = tap_rand(&s) % (MAPPERS * ROOMS * ROOM);

		/* One page for long, as well: what is new there is met at once. */
		for (uint64_t i = tap_rand(&s) % 4 ? 1 : 300; i; i--, n++) {
			if (!load((const uint64_t *)(arena + (page + 1) * P - 8), &word))
				refused++;
			else if (IS_SECRET(word))
				FAIL("page %llu of the arena reads 0x%llx", (unsigned long long)page,
				     (unsigned long long)word);
		}
	}
	atomic_fetch_add(&touches, n);
	atomic_fetch_add(&faults, refused);
	return NULL;
}

/* Pages of its own, and with them the right to make them shared. */
static void *owner(void *arg)
{
	const uint64_t first = (uint64_t)(uintptr_t)arg * (N / OWNERS);
	uint64_t s = own_seed();

	while (!atomic_load(&stop)) {
		uint64_t page = first + tap_rand(&s) % (N / OWNERS), n = 1 + tap_rand(&s) % 8;
		uint64_t secret = MAGIC | (tap_rand(&s) & 0xffffff);

		n = n > first + N / OWNERS - page ? first + N / OWNERS - page : n;
		convert(file, page, n, PRIVATE);
		for (uint64_t i = page; i < page + n; i++)
			__atomic_store_n((uint64_t *)(guest(file, i) + P - 8), secret, __ATOMIC_RELAXED);
		if (tap_rand(&s) % 2)
			usleep(tap_rand(&s) % 200);
		for (uint64_t i = page; i < page + n; i++)
			CHECK_EQ(__atomic_exchange_n((uint64_t *)(guest(file, i) + P - 8), 0, __ATOMIC_RELAXED),
				 secret);
		convert(file, page, n, 0);
		atomic_fetch_add(&conversions, 1);
	}
	return NULL;
}

/* In a room that nobody but this mapper has: over what keeps others out of it. */
static void put_into(struct gmem_view *view, unsigned int mapper, unsigned int i, uint64_t n)
{
	char *was = gmem_view_addr(view);
	uint64_t len = gmem_view_len(view);

	CHECK_OK(gmem_view_remap(view, n * P, room(mapper, i)));
	if (was >= arena && was < arena + MAPPERS * ROOMS * ROOM * P)
		CHECK(mmap(was, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == was);
	atomic_fetch_add(&moves, 1);
}

/* One view, from here to there and back, with a part split off and put aside. */
static void *mapper(void *arg)
{
	unsigned int me = (unsigned int)(uintptr_t)arg, at = 0;
	uint64_t s = own_seed();

	while (!atomic_load(&stop)) {
		uint64_t page = tap_rand(&s) % N, n = 2 + tap_rand(&s) % (ROOM / 4);
		struct gmem_view *view, *rest;

		pthread_mutex_lock(&holes);
		view = view_of(file, page, n, PROT_READ);
		put_into(view, me, at = 0, n);
		for (unsigned int i = 0; i < 8; i++) {
			unsigned int to = (at + 1) % (ROOMS - 1);

			pthread_mutex_unlock(&holes);
			pthread_mutex_lock(&holes);
			put_into(view, me, to, 1 + tap_rand(&s) % (ROOM / 2));
			at = to;
			/* Where it is: there is room behind it. */
			n = gmem_view_len(view) / P;
			CHECK_EQ(munmap(room(me, at) + n * P, (ROOM - n) * P), 0);
			n += 1 + tap_rand(&s) % (ROOM / 4);
			CHECK_OK(gmem_view_remap(view, n * P, NULL));
			if (gmem_view_addr(view) != room(me, at))
				FAIL("the view at %p went to %p", (void *)room(me, at), gmem_view_addr(view));
			CHECK(mmap(room(me, at) + n * P, (ROOM - n) * P, PROT_NONE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == room(me, at) + n * P);
			if (n < 2 || tap_rand(&s) % 2)
				continue;
			CHECK_OK(gmem_view_split(view, (1 + tap_rand(&s) % (n - 1)) * P, &rest));
			put_into(rest, me, ROOMS - 1, 1 + tap_rand(&s) % (ROOM / 2));
			n = gmem_view_len(rest);
			gmem_view_unmap(rest);
			CHECK(mmap(room(me, ROOMS - 1), n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
				   -1, 0) == room(me, ROOMS - 1));
			atomic_fetch_add(&splits, 1);
		}
		n = gmem_view_len(view);
		gmem_view_unmap(view);
		CHECK(mmap(room(me, at), n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) ==
		      room(me, at));
		pthread_mutex_unlock(&holes);
	}
	return NULL;
}

TEST_TIMEOUT(no_thread_reads_a_secret, 60)
{
	static void *(*const what[])(void *) = { owner, owner, mapper, mapper, toucher, toucher };
	static const uintptr_t args[] = { 0, 1, 0, 1, 0, 0 };
	const size_t len = MAPPERS * ROOMS * ROOM * P;
	pthread_t threads[6];

	seed = tap_seed();
	file = file_of(N, 0);
	catch_faults();
	CHECK(gmem_file_window(file) != NULL);
	arena = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(arena != MAP_FAILED);
	for (size_t i = 0; i < 6; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, what[i], (void *)args[i]), 0);
	sleep(tap_slow() ? 2 : 4);
	atomic_store(&stop, true);
	for (size_t i = 0; i < 6; i++)
		pthread_join(threads[i], NULL);
	printf("%llu touches and %llu faults, %llu conversions, %llu moves, %llu splits\n", (unsigned long long)touches,
	       (unsigned long long)faults, (unsigned long long)conversions, (unsigned long long)moves,
	       (unsigned long long)splits);
	CHECK(touches > faults && faults > 0 && conversions > 10 && moves > 10 && splits > 0);
	munmap(arena, len);
	gmem_file_free(file);
}
