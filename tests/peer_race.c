/* SPDX-License-Identifier: MIT */
/*
 * Conversions under the eyes of other processes: threads that touch, map, pin, read and fault there, and processes that
 * come, go and are killed.
 *
 * The oracle is that of convert_race.c: the owner writes a secret into each page it has made private, as a guest would,
 * and takes it out before it makes the page shared. A process that reads a secret, ever, has reached a private page; a
 * secret that has changed was written by one.
 */
#include "tap.h"

#include <sys/mman.h>

#include "peer_util.h"

#define N 64u
#define SECRET (1ull << 63)

static struct shared {
	_Atomic bool stop, fds_taken;
	_Atomic uint64_t touches, refusals, joins, killed, reads, pins;
} * sh;

static struct gmem_file *file; /* the process's own object */
static struct gmem_view *view;
static uint64_t seed;
static _Atomic uint64_t next_seed;

static uint64_t own_seed(void)
{
	return seed ^ ((uint64_t)getpid() << 32) ^ atomic_fetch_add(&next_seed, 1) * 0x9e3779b97f4a7c15ull;
}

static uint64_t *secret_of(char *page)
{
	return (uint64_t *)(void *)(page + P - 8);
}

/* ---- what a peer does */

static void touch_page(const struct gmem_view *v, uint64_t page, uint64_t random)
{
	uint64_t *p = secret_of(page_of(v, page)), word;

	atomic_fetch_add_explicit(&sh->touches, 1, memory_order_relaxed);
	if (sigsetjmp(bus_jmp, 1)) {
		atomic_fetch_add_explicit(&sh->refusals, 1, memory_order_relaxed);
		return;
	}
	word = __atomic_load_n(p, __ATOMIC_RELAXED);
	if (word & SECRET)
		FAIL("page %llu reads 0x%llx", (unsigned long long)page, (unsigned long long)word);
	if (random & 1)
		__atomic_store_n(p, random & ~SECRET, __ATOMIC_RELAXED);
}

static void *toucher(void *arg)
{
	uint64_t s = own_seed();

	while (!atomic_load(&sh->stop)) {
		uint64_t page = tap_rand(&s) % N;

		for (int i = 0; i < 50; i++)
			touch_page(view, page, tap_rand(&s));
	}
	return arg;
}

static void *mapper(void *arg)
{
	uint64_t s = own_seed();

	while (!atomic_load(&sh->stop)) {
		uint64_t page = tap_rand(&s) % N, n = 1 + tap_rand(&s) % (N - page);
		struct gmem_view *v = view_of(file, page, n, PROT_READ | PROT_WRITE);

		for (uint64_t i = page; i < page + n; i++)
			touch_page(v, i, tap_rand(&s));
		gmem_view_unmap(v);
	}
	return arg;
}

static void *pinner(void *arg)
{
	uint64_t s = own_seed();

	while (!atomic_load(&sh->stop)) {
		uint64_t page = tap_rand(&s) % N, word;

		if (gmem_file_read(file, page * P + P - 8, &word, 8) == 0) {
			CHECK(!(word & SECRET));
			atomic_fetch_add(&sh->reads, 1);
		}
		if (gmem_file_pin(file, page * P, P))
			continue;
		/* Pinned, it is shared: no touch of it is refused. */
		CHECK(peek(page_of(view, page)) >= 0);
		atomic_fetch_add(&sh->pins, 1);
		CHECK_OK(gmem_file_unpin(file, page * P, P));
	}
	return arg;
}

static void open_and_map(const int *fds)
{
	int err;

	/* A conversion that lasts for 10 s, because another peer hardly gets the processor: to be called again. */
	do
		err = gmem_file_open(fds[0], fds[1], &file);
	while (err == -EBUSY);
	CHECK_OK(err);
	view = view_of(file, 0, N, PROT_READ | PROT_WRITE);
}

static void be_peer(const int *fds, bool served)
{
	struct gmem_pager *pager = NULL;
	struct gmem_source *source;
	pthread_t t[4];

	open_and_map(fds);
	if (served) {
		CHECK_OK(gmem_source_new_zero(&source));
		CHECK_OK(gmem_pager_create(NULL, &pager));
		CHECK_OK(gmem_pager_add_view(pager, view, source, 0));
		gmem_source_unref(source);
	}
	/* Views that the mapper maps are not served: no page of this file is absent. */
	CHECK_EQ(pthread_create(&t[0], NULL, toucher, NULL), 0);
	CHECK_EQ(pthread_create(&t[1], NULL, toucher, NULL), 0);
	CHECK_EQ(pthread_create(&t[2], NULL, mapper, NULL), 0);
	CHECK_EQ(pthread_create(&t[3], NULL, pinner, NULL), 0);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	gmem_view_unmap(view);
	gmem_pager_free(pager);
	gmem_file_free(file);
}

/* Opens, looks at every page, and goes; or is killed on the way. */
static void be_guest_of_honour(const int *fds)
{
	uint64_t s = own_seed();

	open_and_map(fds);
	atomic_fetch_add(&sh->joins, 1);
	for (int i = 0; i < 3; i++)
		for (uint64_t page = 0; page < N; page++)
			touch_page(view, page, tap_rand(&s));
	gmem_view_unmap(view);
	gmem_file_free(file);
}

static void fork_joiners(const int *fds)
{
	uint64_t s = own_seed();

	while (!atomic_load(&sh->stop)) {
		pid_t pid = fork();
		int status;

		CHECK(pid >= 0);
		if (!pid) {
			be_guest_of_honour(fds);
			_exit(0);
		}
		if (tap_rand(&s) % 3 == 0) {
			usleep((useconds_t)(tap_rand(&s) % 3000));
			kill(pid, SIGKILL);
		}
		CHECK_EQ(waitpid(pid, &status, 0), pid);
		if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
			atomic_fetch_add(&sh->killed, 1);
		else if (status)
			FAIL("a joiner ended with status 0x%x", status);
	}
}

/* ---- what the owner does */

enum kind { PEER, SERVED_PEER, JOINERS };

static struct other start(enum kind kind)
{
	struct other o;
	int s[2];

	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s), 0);
	fflush(NULL);
	o.pid = fork();
	CHECK(o.pid >= 0);
	if (!o.pid) {
		struct gmem_wire w;
		int fds[2];

		close(s[0]);
		if (gmem_wire_recv(s[1], &w, fds, NULL))
			_exit(1);
		close(s[1]);
		if (kind == JOINERS)
			fork_joiners(fds);
		else
			be_peer(fds, kind == SERVED_PEER);
		_exit(0);
	}
	close(s[1]);
	o.sock = s[0];
	return o;
}

static void give_files(struct other *o)
{
	struct gmem_wire w = { .type = OP_OPEN };
	int fds[2] = { gmem_file_fd(file), gmem_file_state_fd(file) };

	CHECK_EQ(gmem_wire_send(o->sock, &w, fds, 2), 0);
	close(o->sock);
}

/* There and back, with secrets in between. 1: done; 0: a pin was in the way. */
static int round_trip(uint64_t *s)
{
	uint64_t page = tap_rand(s) % N, n = 1 + tap_rand(s) % (N - page < 8 ? N - page : 8), secret[8], where = 0;
	int err, busy = 0;

	/* A peer that does not get the processor for 2 s does not answer; one that never answers is not busy. */
	do
		err = gmem_file_set_attributes(file, page * P, n * P, PRIVATE, &where);
	while (err == -EBUSY && ++busy < 20);
	if (err == -EAGAIN) {
		CHECK(where >= page * P && where < (page + n) * P);
		return 0;
	}
	if (err)
		FAIL("to private: %s", gmem_last_error());
	for (uint64_t i = 0; i < n; i++) {
		secret[i] = tap_rand(s) | SECRET;
		__atomic_store_n(secret_of(guest(file, page + i)), secret[i], __ATOMIC_RELAXED);
	}
	if (tap_rand(s) % 4 == 0)
		usleep(200);
	for (uint64_t i = 0; i < n; i++) {
		uint64_t *p = secret_of(guest(file, page + i));

		if (__atomic_load_n(p, __ATOMIC_RELAXED) != secret[i])
			FAIL("page %llu: the secret has changed", (unsigned long long)(page + i));
		__atomic_store_n(p, 1, __ATOMIC_RELAXED);
	}
	CHECK_OK(gmem_file_set_attributes(file, page * P, n * P, 0, NULL));
	return 1;
}

/* What makes a race of it has happened, however little the peers get to run. */
static bool met(enum kind kind, unsigned int done)
{
	return done && atomic_load(&sh->touches) && atomic_load(kind == JOINERS ? &sh->joins : &sh->refusals);
}

static void race(const enum kind *kinds, int n, unsigned int rounds)
{
	struct other others[4];
	unsigned int done = 0;
	uint64_t s, end;

	seed = tap_seed();
	s = seed;
	catch_bus();
	sh = mmap(NULL, sizeof(*sh), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(sh != MAP_FAILED);
	for (int i = 0; i < n; i++)
		others[i] = start(kinds[i]);
	file = file_of(N, 0);
	for (uint64_t page = 0; page < N; page++)
		CHECK_OK(gmem_file_write(file, page * P, "x", 1));
	view = view_of(file, 0, N, PROT_READ);
	for (int i = 0; i < n; i++)
		give_files(&others[i]);
	if (tap_slow())
		rounds /= 10;
	end = now_ms() + 6000;
	while ((done < rounds && now_ms() < end) || !met(kinds[0], done))
		done += (unsigned int)round_trip(&s);
	atomic_store(&sh->stop, true);
	for (int i = 0; i < n; i++)
		wait_ok(others[i].pid);
	printf("%u conversions there and back, %llu touches, %llu refused, %llu joined, %llu killed, %llu reads, "
	       "%llu pins\n",
	       done, (unsigned long long)atomic_load(&sh->touches), (unsigned long long)atomic_load(&sh->refusals),
	       (unsigned long long)atomic_load(&sh->joins), (unsigned long long)atomic_load(&sh->killed),
	       (unsigned long long)atomic_load(&sh->reads), (unsigned long long)atomic_load(&sh->pins));
	CHECK(done > 0 && atomic_load(&sh->touches) > 0);
	convert(file, 0, N, PRIVATE);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST_TIMEOUT(no_peer_reads_a_secret, 60)
{
	need_markers();
	race((const enum kind[]){ PEER, PEER }, 2, 3000);
	CHECK(atomic_load(&sh->refusals) > 0);
}

TEST_TIMEOUT(no_peer_with_a_pager_reads_a_secret, 60)
{
	need_markers();
	race((const enum kind[]){ SERVED_PEER, PEER }, 2, 2000);
	CHECK(atomic_load(&sh->refusals) > 0);
}

TEST_TIMEOUT(who_comes_meanwhile_reads_no_secret, 60)
{
	need_markers();
	race((const enum kind[]){ JOINERS, JOINERS, PEER }, 3, 3000);
	CHECK(atomic_load(&sh->joins) > 0);
}

/* Without one that stays, there are conversions that meet no peer at all, and peers that come in the middle of them. */
TEST_TIMEOUT(who_comes_first_reads_no_secret, 60)
{
	need_markers();
	race((const enum kind[]){ JOINERS, JOINERS }, 2, 6000);
	CHECK(atomic_load(&sh->joins) > 0);
}
