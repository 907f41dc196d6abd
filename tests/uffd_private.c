/* SPDX-License-Identifier: MIT */
/* Private pages of views that are served: never shown to the host, whoever resolves what and when. */
#include "tap.h"

#include "uffd_util.h"

static char bytes[P] = "public";
static char many_pages[16 * P];

/* Neither resolved nor changed by the attempt. */
static void is_refused(struct scene *s, uint64_t off)
{
	int state = gmem_file_page_state(s->file, off);

	CHECK_ERR(gmem_uffd_copy(s->uffd, s->view, off, bytes, P), -EACCES);
	CHECK_ERR(gmem_uffd_continue(s->uffd, s->view, off, P), -EACCES);
	CHECK_EQ(gmem_file_page_state(s->file, off), state);
}

static uint64_t resident(const struct gmem_file *file)
{
	struct gmem_file_counts c = { .size = sizeof(c) };

	CHECK_OK(gmem_file_query(file, &c));
	return c.resident;
}

TEST(pages_that_began_private)
{
	struct gmem_uffd *uffd = new_uffd(0);
	struct gmem_file *file = new_file(16 * P, GMEM_FILE_INIT_PRIVATE);
	struct gmem_view *view;

	need_markers();
	catch_bus();
	view = new_view(file, 0, 16 * P);
	CHECK_ERR(gmem_uffd_add_view(uffd, view), -EINVAL);
	CHECK_EQ(touch((char *)gmem_view_addr(view) + P), SIGBUS);
	/* It is about how they began. */
	convert(file, 0, 16 * P, 0);
	CHECK_ERR(gmem_uffd_add_view(uffd, view), -EINVAL);
	CHECK_EQ(touch((char *)gmem_view_addr(view) + P), 0);
	CHECK_ERR(gmem_uffd_copy(uffd, view, 0, bytes, P), -EINVAL);
	gmem_view_unmap(view);
	gmem_file_free(file);
	gmem_uffd_free(uffd);
}

TEST(a_private_page_is_sigbus)
{
	struct scene s = set_up(16 * P, 0);

	convert(s.file, 4 * P, 4 * P, PRIVATE);
	CHECK_EQ(touch(s.p + 5 * P), SIGBUS);
	no_event(s.uffd);
	is_refused(&s, 5 * P);
	CHECK_EQ(resident(s.file), 0);
	CHECK_EQ(touch(s.p + 5 * P), SIGBUS);
	no_event(s.uffd);
	/* In place does not help. */
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, bytes, P), P);
	convert(s.file, 0, P, PRIVATE);
	is_refused(&s, 0);
	CHECK_EQ(touch(s.p), SIGBUS);
	/* Up to the border. */
	convert(s.file, 0, P, 0);
	CHECK_EQ(gmem_uffd_continue(s.uffd, s.view, 0, P), P);
	CHECK_STR(s.p, "public");
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, P, many_pages, 15 * P), 3 * P);
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 8 * P, many_pages, 8 * P), 8 * P);
	for (uint64_t i = 0; i < 16; i++)
		CHECK_EQ(touch(s.p + i * P), i >= 4 && i < 8 ? SIGBUS : 0);
	convert(s.file, 4 * P, 4 * P, 0);
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 5 * P, bytes, P), P);
	CHECK_STR(s.p + 5 * P, "public");
	tear_down(&s);
}

/* Its toucher came before the conversion: SIGBUS, though its event was read, and no resolving it after. */
TEST(converted_after_its_event_was_read)
{
	struct scene s = set_up(16 * P, 0);
	struct toucher t;

	for (uint64_t i = 0; i < 4; i++) {
		start(&t, s.p + i * P, i % 2);
		CHECK_EQ(next_event(s.uffd).off, i * P);
		convert(s.file, i * P, P, PRIVATE);
		is_refused(&s, i * P);
		finish(&t, SIGBUS);
		no_event(s.uffd);
	}
	/* Or was not read. */
	start(&t, s.p + 8 * P, false);
	wait_asleep(&t);
	convert(s.file, 8 * P, P, PRIVATE);
	finish(&t, SIGBUS);
	no_event(s.uffd);
	CHECK_EQ(resident(s.file), 0);
	tear_down(&s);
}

TEST(private_events)
{
	struct scene s = set_up(16 * P, GMEM_UFFD_PRIVATE_EVENTS);
	struct gmem_uffd_event e;
	struct toucher t;

	/* Absent, then in place. */
	for (int round = 0; round < 2; round++) {
		uint32_t minor = round ? GMEM_UFFD_FAULT_MINOR : 0;

		convert(s.file, 3 * P, P, PRIVATE);
		start(&t, s.p + 3 * P, true);
		e = next_event(s.uffd);
		CHECK_EQ(e.off, 3 * P);
		CHECK_EQ(e.flags, GMEM_UFFD_FAULT_PRIVATE | GMEM_UFFD_FAULT_WRITE | minor);
		CHECK(!goes_on(&t, 50));
		is_refused(&s, 3 * P);
		/* Told again after a refusal. */
		CHECK_EQ(next_event(s.uffd).flags, e.flags);
		CHECK(!goes_on(&t, 50));
		convert(s.file, 3 * P, P, 0);
		CHECK(!goes_on(&t, 50));
		if (round)
			CHECK_EQ(gmem_uffd_continue(s.uffd, s.view, 3 * P, P), P);
		else
			CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 3 * P, bytes, P), P);
		finish(&t, 0);
		CHECK_EQ(t.word, 0x77);
		CHECK_EQ(s.p[3 * P + 8], 0);
		no_event(s.uffd);
	}
	/* Converted between the event and its answer: refused, and told anew for what it is. */
	start(&t, s.p + 5 * P, false);
	CHECK_EQ(next_event(s.uffd).flags, 0);
	convert(s.file, 5 * P, P, PRIVATE);
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 5 * P, bytes, P), -EACCES);
	CHECK_EQ(next_event(s.uffd).flags, GMEM_UFFD_FAULT_PRIVATE);
	convert(s.file, 5 * P, P, 0);
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 5 * P, bytes, P), P);
	finish(&t, 0);
	CHECK_STR(s.p + 5 * P, "public");
	tear_down(&s);
}

/* What is private already when the view is added. */
TEST(added_with_private_pages)
{
	for (uint32_t flags = 0; flags <= GMEM_UFFD_PRIVATE_EVENTS; flags++) {
		struct gmem_uffd *uffd = new_uffd(flags);
		struct gmem_file *file = new_file(16 * P, 0);
		struct gmem_view *view;
		struct toucher t;
		char *p;

		need_markers();
		catch_bus();
		view = new_view(file, 0, 16 * P);
		p = gmem_view_addr(view);
		p[0] = 1;
		convert(file, 4 * P, 8 * P, PRIVATE);
		CHECK_EQ(touch(p + 4 * P), SIGBUS);
		CHECK_OK(gmem_uffd_add_view(uffd, view));
		CHECK_EQ(p[0], 1);
		start(&t, p + 5 * P, false);
		if (flags) {
			CHECK_EQ(next_event(uffd).flags, GMEM_UFFD_FAULT_PRIVATE);
			convert(file, 5 * P, P, 0);
			CHECK_EQ(gmem_uffd_copy(uffd, view, 5 * P, bytes, P), P);
			finish(&t, 0);
		} else {
			finish(&t, SIGBUS);
			no_event(uffd);
		}
		start(&t, p + 12 * P, false);
		CHECK_EQ(next_event(uffd).off, 12 * P);
		CHECK_EQ(gmem_uffd_copy(uffd, view, 12 * P, bytes, P), P);
		finish(&t, 0);
		gmem_uffd_free(uffd);
		gmem_view_unmap(view);
		gmem_file_free(file);
	}
}

/* ---- everything at once */

#define RACE_PAGES 16ull
#define SECRET 0x5ec2e75ec2e75ec2ull

struct race {
	struct scene s;
	_Atomic bool stop;
	_Atomic uint64_t refused, copied, continued, sigbus, reads, conversions;
};

/* Resolves what it is told, as one would who trusts events. */
static void *serve(void *arg)
{
	struct race *r = arg;
	struct pollfd p = { .fd = gmem_uffd_fd(r->s.uffd), .events = POLLIN };
	struct gmem_uffd_event e[4];

	while (!atomic_load(&r->stop)) {
		int n;

		poll(&p, 1, 5);
		n = (int)CHECK_OK(gmem_uffd_read(r->s.uffd, e, 4));
		for (int i = 0; i < n; i++) {
			int64_t got;

			if (e[i].flags & GMEM_UFFD_FAULT_PRIVATE)
				continue;
			if (e[i].flags & GMEM_UFFD_FAULT_MINOR)
				got = gmem_uffd_continue(r->s.uffd, e[i].view, e[i].off, P);
			else
				got = gmem_uffd_copy(r->s.uffd, e[i].view, e[i].off, many_pages, P);
			/* Gone by now, or come by now: its toucher is to try again. */
			if (got == -EFAULT)
				CHECK_OK(gmem_uffd_wake(r->s.uffd, e[i].view, e[i].off, P));
			else if (got < 0 && got != -EACCES && got != -EEXIST)
				FAIL("%s", gmem_last_error());
		}
	}
	return NULL;
}

/* Resolves whatever it likes. */
static void *press(void *arg)
{
	struct race *r = arg;
	uint64_t seed = (uintptr_t)&seed;

	while (!atomic_load(&r->stop)) {
		uint64_t off = tap_rand(&seed) % RACE_PAGES * P;
		int64_t got = gmem_uffd_copy(r->s.uffd, r->s.view, off, many_pages, P);

		atomic_fetch_add(got == -EACCES ? &r->refused : &r->copied, 1);
		if (got == -EEXIST)
			got = gmem_uffd_continue(r->s.uffd, r->s.view, off, P);
		atomic_fetch_add(got == -EACCES ? &r->refused : &r->continued, 1);
	}
	return NULL;
}

static void *look(void *arg)
{
	struct race *r = arg;
	uint64_t seed = (uintptr_t)&seed;

	while (!atomic_load(&r->stop)) {
		uint64_t *w = (uint64_t *)(r->s.p + tap_rand(&seed) % RACE_PAGES * P + tap_rand(&seed) % 512 * 8);
		uint64_t got;

		if (sigsetjmp(bus_jmp, 1)) {
			atomic_fetch_add(&r->sigbus, 1);
			continue;
		}
		got = __atomic_load_n(w, __ATOMIC_RELAXED);
		if (got == SECRET)
			FAIL("the host has read a secret");
		atomic_fetch_add(&r->reads, 1);
	}
	return NULL;
}

static void set_words(char *page, uint64_t word)
{
	for (uint64_t i = 0; i < P / 8; i++)
		__atomic_store_n((uint64_t *)page + i, word, __ATOMIC_RELAXED);
}

/* There and back, a secret in between. */
static void convert_some(struct race *r, char *window, uint64_t *seed)
{
	uint64_t first = tap_rand(seed) % RACE_PAGES, n = 1 + tap_rand(seed) % (RACE_PAGES - first);

	convert(r->s.file, first * P, n * P, PRIVATE);
	for (uint64_t i = first; i < first + n; i++)
		set_words(window + i * P, SECRET);
	if (tap_rand(seed) % 4 == 0)
		usleep(200);
	for (uint64_t i = first; i < first + n; i++)
		set_words(window + i * P, 0);
	convert(r->s.file, first * P, n * P, 0);
	/* Touchers that were told to be private. */
	CHECK_OK(gmem_uffd_wake(r->s.uffd, r->s.view, first * P, n * P));
	atomic_fetch_add(&r->conversions, 1);
}

static void race(uint32_t flags)
{
	uint64_t seed = tap_seed(), until = now_ms() + (tap_slow() ? 4000 : 3000);

	/* A new file now and then, because a page is absent once only. */
	for (int round = 0; now_ms() < until; round++) {
		struct race r = { .s = set_up(RACE_PAGES * P, flags) };
		char *window = gmem_file_window(r.s.file);
		void *(*const mains[])(void *) = { serve, press, press, look, look };
		pthread_t t[5];

		CHECK(window);
		for (int i = 0; i < 5; i++)
			pthread_create(&t[i], NULL, mains[i], &r);
		for (int i = 0; i < 40; i++)
			convert_some(&r, window, &seed);
		/* The lookers first: who waits goes on only while somebody serves. */
		atomic_store(&r.stop, true);
		pthread_join(t[0], NULL);
		pthread_join(t[1], NULL);
		pthread_join(t[2], NULL);
		for (uint64_t i = 0; i < RACE_PAGES; i++) {
			if (gmem_uffd_copy(r.s.uffd, r.s.view, i * P, many_pages, P) == -EEXIST)
				gmem_uffd_continue(r.s.uffd, r.s.view, i * P, P);
			CHECK_OK(gmem_uffd_wake(r.s.uffd, r.s.view, i * P, P));
		}
		pthread_join(t[3], NULL);
		pthread_join(t[4], NULL);
		for (uint64_t i = 0; i < RACE_PAGES; i++)
			CHECK(*(uint64_t *)(r.s.p + i * P) != SECRET);
		if (flags)
			CHECK_EQ(r.sigbus, 0);
		if (round == 0)
			printf("%llu conversions, %llu refusals, %llu SIGBUS, %llu reads\n",
			       (unsigned long long)r.conversions, (unsigned long long)r.refused,
			       (unsigned long long)r.sigbus, (unsigned long long)r.reads);
		tear_down(&r.s);
	}
}

TEST_TIMEOUT(resolving_races_with_conversion, 60)
{
	race(0);
}

TEST_TIMEOUT(resolving_races_with_conversion_private_events, 60)
{
	race(GMEM_UFFD_PRIVATE_EVENTS);
}
