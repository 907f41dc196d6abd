/* SPDX-License-Identifier: MIT */
/* Page servers that are killed: at random instants, and at every step of bringing in a page. */
#include "keeper_util.h"

#define NPAGES (SLOW_BUILD ? 2048ull : 8192ull)

/* ---- at random instants */

struct tally {
	unsigned int kills, in_flight, midway; /* midway: 10 to 90 % unserved and a fault in flight */
};

static void kill_and_look(struct stage *s, pid_t server, unsigned int after_us, struct tally *t)
{
	uint64_t filling, left, touched;
	int waiting;

	kill_and_wait(server);
	atomic_store(&s->shared->hold_at, 0);
	left = unserved(s, &filling);
	waiting = in_flight(s);
	/* Without a server touchers come to a page that is missing, once they get the processor. */
	for (int i = 0; i < 1000 && left && !waiting; i++)
		waiting = in_flight(s);
	touched = atomic_load(&s->shared->touched);
	t->kills++;
	t->in_flight += waiting > 0;
	t->midway += waiting && left * 10 >= NPAGES && left * 10 <= NPAGES * 9;
	printf("kill %u after %u us: %llu of %llu pages unserved, %llu half filled, %d faults in flight, "
	       "%llu pages compared\n",
	       t->kills, after_us, (unsigned long long)left, NPAGES, (unsigned long long)filling, waiting,
	       (unsigned long long)touched);
}

static bool left_is_below(const struct stage *s, unsigned int percent)
{
	return unserved(s, NULL) * 100 < s->len / P * percent;
}

/* A server brings in the first pages, and is killed: from then on there is something to lose. */
static void serve_some(struct stage *s)
{
	struct server_how how = { .no_fill = true };
	pid_t server = start_server(s, &how);

	/* Or all would have come by the time that a busy machine lets us look. */
	atomic_store(&s->shared->hold_at, s->len / P * 13 / 100);
	atomic_store(&s->shared->go, true);
	WAIT_FOR(left_is_below(s, 88));
	kill_and_wait(server);
	atomic_store(&s->shared->hold_at, 0);
}

static uint64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* One restore, whose servers are killed until `most` were. */
static void restore_with_kills(uint64_t *seed, bool fill, unsigned int most, struct tally *t)
{
	struct stage s;

	start_stage(&s, NPAGES, 1);
	serve_some(&s);
	for (unsigned int kills = 0;; kills++) {
		unsigned int us = (unsigned int)(tap_rand(seed) % (SLOW_BUILD ? 60000 : 6000));
		uint64_t enough = unserved(&s, NULL) - tap_rand(seed) % (NPAGES / 7);
		uint64_t begun = now_us();
		struct server_how how = { .no_fill = !fill, .slow_us = (unsigned int)(tap_rand(seed) % 4000) };
		pid_t server;

		if (kills >= most || left_is_below(&s, 28)) {
			finish(&s, start_server(&s, &how));
			return;
		}
		/* An instant of time, or as much as is to be lost at the most: processors differ. */
		atomic_store(&s.shared->hold_at, atomic_load(&s.shared->touched) + NPAGES / 7);
		server = start_server(&s, &how);
		while (now_us() - begun < us && unserved(&s, NULL) > enough)
			usleep(20);
		kill_and_look(&s, server, (unsigned int)(now_us() - begun), t);
	}
}

TEST_TIMEOUT(killed_at_random_instants, 200)
{
	unsigned int wanted = getenv("GMEM_KILLS") ? (unsigned int)atoi(getenv("GMEM_KILLS")) : SLOW_BUILD ? 16 : 40;
	uint64_t seed = tap_seed();
	struct tally t = { 0 };
	bool fill = false;

	while (t.kills < wanted) {
		unsigned int left = wanted - t.kills;

		restore_with_kills(&seed, fill, left < 15 ? left : 15, &t);
		fill = !fill;
	}
	printf("%u kills: %u with a fault in flight, %u of them with 10 to 90 %% of the pages unserved\n", t.kills,
	       t.in_flight, t.midway);
	CHECK(t.in_flight * 10 >= t.kills * 9);
	CHECK(t.midway * 10 >= t.kills * 8);
}

/* ---- at a step of bringing in a page */

enum window {
	BEFORE_BYTES = 1, /* the page is locked, and has no bytes */
	HALF_BYTES = 2,
	BEFORE_PUBLISH = 3, /* bytes in the memory, nobody knows */
	AFTER_PUBLISH = 4,
	BEFORE_CONTINUE = 5, /* in place, and its toucher waits */
	AFTER_CONTINUE = 6,
};

/* In a server: dies at the n-th call. */
static enum window window;
static _Atomic int calls_left;
static const struct stage *demand; /* whose touchers wait for what is counted; NULL: any page is */
/* Guards what follows, from a look at it to what is done upon that; the thread that ends the server keeps it. */
static pthread_mutex_t looking = PTHREAD_MUTEX_INITIALIZER;
static bool put_in_place[2048]; /* nobody needs to wait for the page any more, though another thread serves it too */

static void arm(int arg)
{
	window = (enum window)(arg & 0xff);
	atomic_store(&calls_left, arg >> 8);
}

/* Not a page that only comes with one that is waited for. */
static bool counts(uint64_t off, uint64_t len)
{
	for (int i = 0; demand && i < TOUCHERS; i++) {
		uint64_t touch = atomic_load(&demand->shared->touching[i]);

		if (touch && (touch - 1) * P >= off && (touch - 1) * P < off + len && !put_in_place[touch - 1])
			return true;
	}
	return !demand;
}

/* From the n-th call on the other threads do nothing, however long it takes until the one that made it is dead. */
static bool now_is(enum window w, uint64_t off, uint64_t len)
{
	bool counted;
	int left;

	if (!window)
		return false;
	counted = window == w && counts(off, len);
	left = counted ? atomic_fetch_sub(&calls_left, 1) : atomic_load(&calls_left);
	while (left <= 0)
		pause();
	return counted && left == 1;
}

static void die(void)
{
	raise(SIGKILL);
	for (;;)
		pause();
}

int __real_gmem_pwrite_all(int fd, const void *buf, size_t len, uint64_t off);
int __wrap_gmem_pwrite_all(int fd, const void *buf, size_t len, uint64_t off);
bool __real_gmem_state_publish(struct gmem_state *s, uint64_t page, uint32_t generation);
bool __wrap_gmem_state_publish(struct gmem_state *s, uint64_t page, uint32_t generation);
int __real_gmem_sys_uffd_continue(int uffd, uint64_t hva, uint64_t len, uint64_t *done);
int __wrap_gmem_sys_uffd_continue(int uffd, uint64_t hva, uint64_t len, uint64_t *done);

int __wrap_gmem_pwrite_all(int fd, const void *buf, size_t len, uint64_t off)
{
	if (now_is(BEFORE_BYTES, off, len))
		die();
	if (now_is(HALF_BYTES, off, len)) {
		(void)__real_gmem_pwrite_all(fd, buf, len / 2, off);
		die();
	}
	return __real_gmem_pwrite_all(fd, buf, len, off);
}

bool __wrap_gmem_state_publish(struct gmem_state *s, uint64_t page, uint32_t generation)
{
	bool published;

	if (now_is(BEFORE_PUBLISH, page * P, P))
		die();
	published = __real_gmem_state_publish(s, page, generation);
	if (now_is(AFTER_PUBLISH, page * P, P))
		die();
	return published;
}

int __wrap_gmem_sys_uffd_continue(int uffd, uint64_t hva, uint64_t len, uint64_t *done)
{
	uint64_t off = demand ? hva - demand->files[0]->state.header->regions[0].hva : 0;
	int err;

	pthread_mutex_lock(&looking);
	if (now_is(BEFORE_CONTINUE, off, len))
		die();
	for (uint64_t at = off; demand && at < off + len; at += P)
		put_in_place[at / P] = true;
	pthread_mutex_unlock(&looking);
	err = __real_gmem_sys_uffd_continue(uffd, hva, len, done);
	if (now_is(AFTER_CONTINUE, off, len))
		die();
	return err;
}

/* A toucher waits for a page whose state is `state`. */
static bool waits_for(const struct stage *s, int state)
{
	for (int i = 0; i < TOUCHERS; i++) {
		uint64_t touch = atomic_load(&s->shared->touching[i]);

		if (touch && gmem_file_page_state(s->files[0], (touch - 1) * P) == state)
			return true;
	}
	return false;
}

static void die_at(struct stage *s, enum window w, int n, bool fill)
{
	struct server_how how = { .before = arm, .arg = (int)w | n << 8, .no_fill = !fill };
	uint64_t left, filling;
	int status, waiting;
	pid_t server;

	demand = fill || w == AFTER_PUBLISH || w == AFTER_CONTINUE ? NULL : s;
	server = start_server(s, &how);
	WAIT_FOR(waitpid(server, &status, WNOHANG) == server);
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		FAIL("window %d, call %d: the server ended with status 0x%x", w, n, status);
	waiting = in_flight(s);
	left = unserved(s, &filling);
	printf("window %d, call %d, %s: %llu of %llu pages unserved, %llu half filled, %d faults in flight\n", w, n,
	       fill ? "fill" : "faults", (unsigned long long)left, (unsigned long long)(s->len / P),
	       (unsigned long long)filling, waiting);
	CHECK(left * 10 >= s->len / P && left * 10 <= s->len / P * 9);
	if (w <= BEFORE_PUBLISH)
		CHECK(filling > 0);
	if (fill)
		return;
	WAIT_FOR(waiting > 0 || in_flight(s) > 0);
	if (w <= BEFORE_PUBLISH)
		CHECK(waits_for(s, GMEM_PAGE_FILLING));
	else if (w == BEFORE_CONTINUE)
		CHECK(waits_for(s, GMEM_PAGE_UPTODATE));
}

static void die_in_window(enum window w)
{
	static const int calls[] = { 1, 2, 3, 10, 57 };

	for (int fill = 0; fill < 2; fill++) {
		struct stage s;

		start_stage(&s, sizeof(put_in_place) / sizeof(put_in_place[0]), 1);
		serve_some(&s);
		for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]) - (fill ? 3 : 0); i++)
			die_at(&s, w, calls[i], fill);
		finish(&s, start_server(&s, NULL));
	}
}

TEST_TIMEOUT(killed_before_the_bytes, 60)
{
	die_in_window(BEFORE_BYTES);
}

TEST_TIMEOUT(killed_with_half_of_the_bytes, 60)
{
	die_in_window(HALF_BYTES);
}

TEST_TIMEOUT(killed_between_bytes_and_publish, 60)
{
	die_in_window(BEFORE_PUBLISH);
}

TEST_TIMEOUT(killed_after_publish, 60)
{
	die_in_window(AFTER_PUBLISH);
}

TEST_TIMEOUT(killed_between_publish_and_continue, 60)
{
	die_in_window(BEFORE_CONTINUE);
}

TEST_TIMEOUT(killed_after_continue, 60)
{
	die_in_window(AFTER_CONTINUE);
}
