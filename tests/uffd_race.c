/* SPDX-License-Identifier: MIT */
/*
 * Everything on one gmem_uffd at once: loops that answer, others who bring in, protect and poison as they like,
 * conversions, punches, and views that come and go. No secret is seen, no page is half filled, nobody is left behind.
 */
#include "tap.h"

#include "uffd_util.h"

#define PAGES 16ull
#define LEN (PAGES * P)
#define SECRET 0x5ec2e75ec2e75ec2ull
#define OPEN 0x0be10be10be10be1ull

struct race {
	struct scene s;
	char open[LEN]; /* OPEN all over */
	_Atomic bool stop, last; /* who waits is let go, whatever page it is */
	_Atomic uint64_t answers, refusals, conversions, views;
};

static void set_words(char *page, uint64_t word)
{
	for (uint64_t i = 0; i < P / 8; i++)
		__atomic_store_n((uint64_t *)page + i, word, __ATOMIC_RELAXED);
}

/* What a page may look like to the host: all of it bytes that were brought in, or zero, or what touchers write. */
static void check_word(uint64_t word)
{
	if (word == SECRET)
		FAIL("the host has read a secret");
	CHECK(word == OPEN || word == 0 || word == 0x77);
}

static bool expected(int64_t got)
{
	return got > 0 || got == -EEXIST || got == -EACCES || got == -EHWPOISON || got == -EFAULT || got == -EAGAIN;
}

static void answer(struct race *r, const struct gmem_uffd_event *e)
{
	struct gmem_uffd *uffd = r->s.uffd;
	int64_t got;

	atomic_fetch_add(&r->answers, 1);
	if (e->kind == GMEM_UFFD_EVENT_WP)
		got = gmem_uffd_writeprotect(uffd, e->view, e->off, P, false);
	else if (e->flags & GMEM_UFFD_FAULT_MINOR)
		got = gmem_uffd_continue(uffd, e->view, e->off, P);
	else
		got = gmem_uffd_copy(uffd, e->view, e->off, r->open, P);
	if (!expected(got))
		FAIL("%lld: %s", (long long)got, gmem_last_error());
	/* It has changed since: told again. */
	if (got == -EFAULT || got == -EAGAIN)
		CHECK_OK(gmem_uffd_wake(uffd, e->view, e->off, P));
}

/* Views that others unmap are theirs to answer for. */
static void *serve(void *arg)
{
	struct race *r = arg;
	struct pollfd p = { .fd = gmem_uffd_fd(r->s.uffd), .events = POLLIN };
	struct gmem_uffd_event e[4];

	while (!atomic_load(&r->last)) {
		int n;

		poll(&p, 1, 5);
		n = (int)CHECK_OK(gmem_uffd_read(r->s.uffd, e, 4));
		for (int i = 0; i < n; i++)
			if (e[i].view == r->s.view)
				answer(r, &e[i]);
	}
	return NULL;
}

static void *press(void *arg)
{
	struct race *r = arg;
	uint64_t seed = (uintptr_t)&seed;

	while (!atomic_load(&r->stop)) {
		uint64_t off = tap_rand(&seed) % PAGES * P,
			 len = gmem_min_u64(LEN - off, (1 + tap_rand(&seed) % 3) * P);
		struct gmem_uffd *uffd = r->s.uffd;
		struct gmem_view *view = r->s.view;
		int64_t got;

		switch (tap_rand(&seed) % 8) {
		case 0:
		case 1:
			got = gmem_uffd_copy(uffd, view, off, r->open, len);
			break;
		case 2:
			got = gmem_uffd_zeropage(uffd, view, off, len);
			break;
		case 3:
		case 4:
			got = gmem_uffd_continue(uffd, view, off, len);
			break;
		case 5:
			got = gmem_uffd_poison(uffd, view, off, P);
			break;
		default:
			got = gmem_uffd_writeprotect(uffd, view, off, len, tap_rand(&seed) % 2);
		}
		if (!expected(got))
			FAIL("%lld: %s", (long long)got, gmem_last_error());
		atomic_fetch_add(&r->refusals, got == -EACCES);
	}
	return NULL;
}

static void *touch_and_write(void *arg)
{
	struct race *r = arg;
	uint64_t seed = (uintptr_t)&seed;

	while (!atomic_load(&r->stop)) {
		uint64_t *w = (uint64_t *)(r->s.p + tap_rand(&seed) % PAGES * P + tap_rand(&seed) % 512 * 8);

		if (sigsetjmp(bus_jmp, 1))
			continue;
		if (tap_rand(&seed) % 2)
			__atomic_store_n(w, 0x77, __ATOMIC_RELAXED);
		check_word(__atomic_load_n(w, __ATOMIC_RELAXED));
	}
	return NULL;
}

/* A view that comes and goes while others read: its own touches raise no event that anybody has to answer. */
static void *map_and_unmap(void *arg)
{
	struct race *r = arg;
	uint64_t seed = (uintptr_t)&seed;

	while (!atomic_load(&r->stop)) {
		struct gmem_view *view = new_view(r->s.file, 0, LEN);
		uint64_t off = tap_rand(&seed) % PAGES * P;
		int64_t got;

		CHECK_OK(gmem_uffd_register(r->s.uffd, view, GMEM_UFFD_MODE_MISSING | GMEM_UFFD_MODE_WP));
		got = gmem_uffd_copy(r->s.uffd, view, off, r->open, P);
		CHECK(expected(got));
		CHECK(expected(gmem_uffd_writeprotect(r->s.uffd, view, off, P, true)));
		gmem_view_unmap(view);
		atomic_fetch_add(&r->views, 1);
	}
	return NULL;
}

/* There and back, a secret in between; or punched, which heals. */
static void convert_or_punch(struct race *r, char *window, uint64_t *seed)
{
	uint64_t first = tap_rand(seed) % PAGES, n = 1 + tap_rand(seed) % (PAGES - first);

	if (tap_rand(seed) % 3 == 0) {
		CHECK_OK(gmem_file_punch(r->s.file, first * P, n * P));
		return;
	}
	convert(r->s.file, first * P, n * P, PRIVATE);
	for (uint64_t i = first; i < first + n; i++)
		if (gmem_file_page_state(r->s.file, i * P) == GMEM_PAGE_UPTODATE) {
			set_words(window + i * P, SECRET);
			set_words(window + i * P, OPEN);
		}
	convert(r->s.file, first * P, n * P, 0);
	atomic_fetch_add(&r->conversions, 1);
}

static void begin(struct race *r)
{
	memset(r, 0, sizeof(*r));
	set_words(r->open, OPEN);
	for (uint64_t off = P; off < LEN; off += P)
		memcpy(r->open + off, r->open, P);
	need_markers();
	catch_bus();
	r->s.len = LEN;
	r->s.file = new_file(LEN, 0);
	r->s.view = new_view(r->s.file, 0, LEN);
	r->s.p = gmem_view_addr(r->s.view);
	r->s.uffd = new_uffd(0);
	CHECK_OK(gmem_uffd_register(r->s.uffd, r->s.view, GMEM_UFFD_MODE_MISSING | GMEM_UFFD_MODE_WP));
}

TEST_TIMEOUT(all_at_once, 90)
{
	static void *(*const mains[])(void *) = { serve,	   serve,	    press,	  press,
						  touch_and_write, touch_and_write, map_and_unmap };
	enum { THREADS = sizeof(mains) / sizeof(mains[0]) };
	uint64_t seed = tap_seed(), until = now_ms() + (tap_slow() ? 5000 : 4000);
	static struct race r;

	for (int round = 0; now_ms() < until || !round; round++) {
		pthread_t t[THREADS];
		char *window;

		begin(&r);
		window = gmem_file_window(r.s.file);
		CHECK(window);
		for (int i = 0; i < THREADS; i++)
			CHECK_EQ(pthread_create(&t[i], NULL, mains[i], &r), 0);
		/* Until the others have met each other too. */
		for (int i = 0; i < 60 || !atomic_load(&r.views) || atomic_load(&r.refusals) < 10; i++)
			convert_or_punch(&r, window, &seed);
		/* Touchers end while somebody still serves. */
		atomic_store(&r.stop, true);
		for (int i = 2; i < THREADS; i++)
			pthread_join(t[i], NULL);
		atomic_store(&r.last, true);
		pthread_join(t[0], NULL);
		pthread_join(t[1], NULL);
		if (!round)
			printf("%llu answers, %llu refusals, %llu conversions, %llu views\n",
			       (unsigned long long)r.answers, (unsigned long long)r.refusals,
			       (unsigned long long)r.conversions, (unsigned long long)r.views);
		tear_down(&r.s);
	}
}
