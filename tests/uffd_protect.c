/* SPDX-License-Identifier: MIT */
/* Write-protected pages of a gmem_uffd: what is told, what survives what, and that no write goes untold. */
#include "tap.h"

#include "huge_util.h"
#include "uffd_util.h"

#define BOTH (GMEM_UFFD_MODE_MISSING | GMEM_UFFD_MODE_WP)

static char bytes[16 * P];

static struct scene begin(uint64_t len, uint32_t modes)
{
	struct scene s = { .len = len };

	need_markers();
	catch_bus();
	s.file = new_file(len, 0);
	s.view = new_view(s.file, 0, len);
	s.p = gmem_view_addr(s.view);
	s.uffd = new_uffd(0);
	CHECK_OK(gmem_uffd_register(s.uffd, s.view, modes));
	return s;
}

static void protect(struct scene *s, uint64_t off, uint64_t len, bool on)
{
	CHECK_EQ(gmem_uffd_writeprotect(s->uffd, s->view, off, len, on), len);
}

/* A write there is told, and goes on when its page is let go. */
static void is_protected(struct scene *s, uint64_t off)
{
	struct gmem_uffd_event e;
	struct toucher t;

	start(&t, s->p + off, true);
	e = next_event(s->uffd);
	CHECK_EQ(e.kind, GMEM_UFFD_EVENT_WP);
	CHECK_EQ(e.off, off);
	CHECK_EQ(e.len, gmem_file_page_size(s->file));
	CHECK_EQ(e.flags, GMEM_UFFD_FAULT_WRITE);
	CHECK(!goes_on(&t, 20));
	protect(s, off, e.len, false);
	finish(&t, 0);
	CHECK_EQ(t.word, 0x77);
}

static void is_not_protected(struct scene *s, uint64_t off)
{
	struct toucher t;

	start(&t, s->p + off, true);
	finish(&t, 0);
	no_event(s->uffd);
}

/* The touch of an unmapped page is a fault of its own, answered first. */
static void is_protected_once_mapped(struct scene *s, uint64_t off, uint32_t flags)
{
	uint64_t page = gmem_file_page_size(s->file);
	struct gmem_uffd_event e;
	struct toucher t;

	start(&t, s->p + off, true);
	e = next_event(s->uffd);
	CHECK_EQ(e.kind, GMEM_UFFD_EVENT_FAULT);
	CHECK_EQ(e.flags, flags | GMEM_UFFD_FAULT_WRITE);
	if (flags & GMEM_UFFD_FAULT_MINOR)
		CHECK_EQ(gmem_uffd_continue(s->uffd, s->view, off, page), page);
	else
		CHECK_EQ(gmem_uffd_copy(s->uffd, s->view, off, bytes, page), page);
	e = next_event(s->uffd);
	CHECK_EQ(e.kind, GMEM_UFFD_EVENT_WP);
	CHECK_EQ(e.off, off);
	CHECK(!goes_on(&t, 20));
	protect(s, off, page, false);
	finish(&t, 0);
}

TEST(mapped_pages)
{
	struct scene s = begin(16 * P, BOTH);

	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, bytes, 16 * P), 16 * P);
	protect(&s, 2 * P, 4 * P, true);
	/* Reading is none. */
	CHECK_EQ(s.p[3 * P], 0);
	no_event(s.uffd);
	is_protected(&s, 2 * P);
	is_not_protected(&s, 2 * P);
	is_protected(&s, 5 * P);
	is_not_protected(&s, P);
	is_not_protected(&s, 6 * P);
	/* Again. */
	protect(&s, 2 * P, P, true);
	is_protected(&s, 2 * P);
	tear_down(&s);
}

/* Before it is there, whichever way it comes. */
TEST(pages_that_are_not_there)
{
	struct scene s = begin(16 * P, BOTH);
	struct gmem_uffd_event e;
	struct toucher t;

	protect(&s, 0, 8 * P, true);
	is_protected_once_mapped(&s, 0, 0);
	CHECK_EQ(gmem_uffd_zeropage(s.uffd, s.view, P, P), P);
	is_protected(&s, P);
	CHECK_OK(gmem_file_write(s.file, 2 * P, "x", 1));
	is_protected_once_mapped(&s, 2 * P, GMEM_UFFD_FAULT_MINOR);
	/* Across the border: each as it is to be. */
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 6 * P, bytes, 4 * P), 4 * P);
	is_protected(&s, 6 * P);
	is_protected(&s, 7 * P);
	is_not_protected(&s, 8 * P);
	is_not_protected(&s, 9 * P);
	/* Let go before it comes. */
	protect(&s, 3 * P, P, false);
	start(&t, s.p + 3 * P, true);
	e = next_event(s.uffd);
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, e.off, bytes, P), P);
	finish(&t, 0);
	no_event(s.uffd);
	tear_down(&s);
}

/* Write protection alone: nothing else is told, and the kernel gives zeroes. */
TEST(without_missing_faults)
{
	struct scene s = begin(16 * P, GMEM_UFFD_MODE_WP);

	protect(&s, 0, 4 * P, true);
	CHECK_EQ(s.p[0], 0);
	is_protected(&s, 0);
	is_protected(&s, P);
	is_not_protected(&s, 4 * P);
	tear_down(&s);
}

/* Punched, zapped by the program, given new memory: it is the address that is protected. */
TEST(survives_punches_and_zaps)
{
	for (int alone = 0; alone < 2; alone++) {
		struct scene s = begin(16 * P, alone ? GMEM_UFFD_MODE_WP : BOTH);

		if (alone)
			memset(s.p, 1, 16 * P);
		else
			CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, bytes, 16 * P), 16 * P);
		protect(&s, 0, 16 * P, true);
		CHECK_OK(gmem_file_punch(s.file, 0, 2 * P));
		CHECK_EQ(madvise(s.p + 2 * P, 2 * P, MADV_DONTNEED), 0);
		for (uint64_t i = 0; i < 4; i++)
			if (alone)
				is_protected(&s, i * P);
			else
				is_protected_once_mapped(&s, i * P, GMEM_UFFD_FAULT_MINOR);
		tear_down(&s);
	}
}

/*
 * Private pages have a marker where the kernel has its mark of a protected page. Afterwards it is protected as before,
 * be it mapped, marked or neither when it was converted; a conversion that fails takes nothing away either.
 */
TEST(survives_conversion)
{
	for (int alone = 0; alone < 2; alone++) {
		struct scene s = begin(16 * P, alone ? GMEM_UFFD_MODE_WP : BOTH);
		uint64_t bad;

		if (alone)
			memset(s.p, 1, 8 * P);
		else
			CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, bytes, 8 * P), 8 * P);
		protect(&s, 0, 16 * P, true);
		convert(s.file, 0, 16 * P, PRIVATE);
		for (uint64_t i = 0; i < 16; i++)
			CHECK_EQ(touch(s.p + i * P), SIGBUS);
		CHECK_ERR(gmem_uffd_writeprotect(s.uffd, s.view, 0, P, false), -EACCES);
		no_event(s.uffd);
		convert(s.file, 0, P, 0);
		convert(s.file, P, 15 * P, 0);
		/* Pinned: back again, half-way. */
		CHECK_OK(gmem_file_pin(s.file, 3 * P, P));
		CHECK_ERR(gmem_file_set_attributes(s.file, 0, 4 * P, PRIVATE, &bad), -EAGAIN);
		gmem_file_unpin(s.file, 3 * P, P);
		for (uint64_t i = 0; i < 16; i += 3)
			if (alone)
				is_protected(&s, i * P);
			else
				is_protected_once_mapped(&s, i * P, i < 8 ? GMEM_UFFD_FAULT_MINOR : 0);
		tear_down(&s);
	}
}

/* Its memory fails: the marker comes in the mark's place, and with the page's healing it is protected again. */
TEST(survives_poison)
{
	struct scene s = begin(16 * P, BOTH);

	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, bytes, 4 * P), 4 * P);
	protect(&s, 0, 16 * P, true);
	CHECK_OK(gmem_file_poison(s.file, 0, 2 * P));
	CHECK_EQ(touch(s.p), SIGBUS);
	CHECK_EQ(gmem_uffd_poison(s.uffd, s.view, 8 * P, P), P);
	CHECK_EQ(touch(s.p + 8 * P), SIGBUS);
	no_event(s.uffd);
	CHECK_OK(gmem_file_punch(s.file, 0, 16 * P));
	is_protected_once_mapped(&s, 0, GMEM_UFFD_FAULT_MINOR);
	is_protected_once_mapped(&s, 8 * P, GMEM_UFFD_FAULT_MINOR);
	tear_down(&s);
}

/* A write that waits when its page becomes private is SIGBUS; nobody is told of it any more. */
TEST(writer_waits_when_it_becomes_private)
{
	struct scene s = begin(4 * P, BOTH);
	struct toucher t;

	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, bytes, 4 * P), 4 * P);
	protect(&s, 0, 4 * P, true);
	start(&t, s.p, true);
	CHECK_EQ(next_event(s.uffd).kind, GMEM_UFFD_EVENT_WP);
	convert(s.file, 0, P, PRIVATE);
	CHECK_ERR(gmem_uffd_writeprotect(s.uffd, s.view, 0, P, false), -EACCES);
	finish(&t, SIGBUS);
	no_event(s.uffd);
	tear_down(&s);
}

TEST(huge_pages)
{
	struct scene s = { .len = 4 * H };
	char *buf = calloc(1, 4 * H);

	need_markers();
	catch_bus();
	s.file = huge_file(4, 0);
	s.view = new_view(s.file, 0, s.len);
	s.p = gmem_view_addr(s.view);
	s.uffd = new_uffd(0);
	CHECK_OK(gmem_uffd_register(s.uffd, s.view, BOTH));
	CHECK_ERR(gmem_uffd_writeprotect(s.uffd, s.view, P, H, true), -EINVAL);
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, buf, H), H);
	protect(&s, 0, 4 * H, true);
	is_protected(&s, 0);
	is_not_protected(&s, 9 * P);
	CHECK_EQ(gmem_uffd_zeropage(s.uffd, s.view, H, H), H);
	is_protected(&s, H);
	protect(&s, 0, 2 * H, true);
	convert(s.file, 0, 4 * H, PRIVATE);
	CHECK_EQ(touch(s.p), SIGBUS);
	convert(s.file, 0, 4 * H, 0);
	CHECK_OK(gmem_file_punch(s.file, H, H));
	CHECK_EQ(gmem_uffd_continue(s.uffd, s.view, 0, 2 * H), 2 * H);
	is_protected(&s, 0);
	is_protected(&s, H);
	free(buf);
	tear_down(&s);
}

/* ---- tracking */

#define PAGES 64ull

struct tracking {
	struct scene s;
	_Atomic bool stop;
	pthread_mutex_t m; /* a page is noted and let go, or all are forgotten and protected */
	_Atomic bool dirty[PAGES];
	_Atomic uint64_t told, writes;
};

static uint64_t *word_of(struct tracking *t, uint64_t page)
{
	return (uint64_t *)(t->s.p + page * P);
}

static void *write_all_the_time(void *arg)
{
	struct tracking *t = arg;
	uint64_t seed = (uintptr_t)&seed;

	while (!atomic_load(&t->stop)) {
		__atomic_fetch_add(word_of(t, tap_rand(&seed) % PAGES), 1, __ATOMIC_SEQ_CST);
		atomic_fetch_add(&t->writes, 1);
	}
	return NULL;
}

/* One who tracks: a page that is written to is dirty, and may be written. */
static void *serve_writes(void *arg)
{
	struct tracking *t = arg;
	struct pollfd p = { .fd = gmem_uffd_fd(t->s.uffd), .events = POLLIN };
	struct gmem_uffd_event e[4];

	while (!atomic_load(&t->stop)) {
		int n;

		poll(&p, 1, 5);
		n = (int)CHECK_OK(gmem_uffd_read(t->s.uffd, e, 4));
		for (int i = 0; i < n; i++) {
			if (e[i].kind == GMEM_UFFD_EVENT_FAULT) {
				int64_t got = gmem_uffd_continue(t->s.uffd, e[i].view, e[i].off, P);

				CHECK(got == (int64_t)P || got == -EEXIST);
				continue;
			}
			CHECK_EQ(e[i].kind, GMEM_UFFD_EVENT_WP);
			atomic_fetch_add(&t->told, 1);
			pthread_mutex_lock(&t->m);
			atomic_store(&t->dirty[e[i].off / P], true);
			protect(&t->s, e[i].off, P, false);
			pthread_mutex_unlock(&t->m);
		}
	}
	return NULL;
}

/*
 * Protects all, reads all, and looks later what has changed: every page that has, was told of. Meanwhile pages are
 * zapped, so that faults and protection meet.
 */
static void track(struct tracking *t, uint64_t *seed, char *plain)
{
	uint64_t before[PAGES];

	pthread_mutex_lock(&t->m);
	for (uint64_t i = 0; i < PAGES; i++)
		atomic_store(&t->dirty[i], false);
	protect(&t->s, 0, PAGES * P, true);
	pthread_mutex_unlock(&t->m);
	for (uint64_t i = 0; i < PAGES; i++)
		before[i] = __atomic_load_n((uint64_t *)(plain + i * P), __ATOMIC_SEQ_CST);
	CHECK_EQ(madvise(t->s.p + tap_rand(seed) % PAGES * P, P, MADV_DONTNEED), 0);
	usleep((useconds_t)(tap_rand(seed) % 2000));
	for (uint64_t i = 0; i < PAGES; i++) {
		uint64_t now = __atomic_load_n((uint64_t *)(plain + i * P), __ATOMIC_SEQ_CST);

		if (now != before[i] && !atomic_load(&t->dirty[i]))
			FAIL("page %llu was written to, and nobody was told", (unsigned long long)i);
	}
}

TEST_TIMEOUT(no_write_goes_untold, 60)
{
	static struct tracking t;
	uint64_t seed = tap_seed(), until = now_ms() + 3000;
	pthread_t threads[4];
	char *plain;
	int rounds = 0;

	pthread_mutex_init(&t.m, NULL);
	t.s = begin(PAGES * P, BOTH);
	plain = mmap(NULL, PAGES * P, PROT_READ, MAP_SHARED, gmem_file_fd(t.s.file), 0);
	CHECK(plain != MAP_FAILED);
	for (uint64_t i = 0; i < PAGES; i++)
		CHECK_EQ(gmem_uffd_copy(t.s.uffd, t.s.view, i * P, bytes, P), P);
	for (int i = 0; i < 4; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, i < 2 ? write_all_the_time : serve_writes, &t), 0);
	for (; now_ms() < until || rounds < 3; rounds++)
		track(&t, &seed, plain);
	protect(&t.s, 0, PAGES * P, false);
	atomic_store(&t.stop, true);
	pthread_join(threads[2], NULL);
	pthread_join(threads[3], NULL);
	/* Writers that met a fault that nobody has read. */
	for (uint64_t i = 0; i < PAGES; i++)
		gmem_uffd_continue(t.s.uffd, t.s.view, i * P, P);
	protect(&t.s, 0, PAGES * P, false);
	pthread_join(threads[0], NULL);
	pthread_join(threads[1], NULL);
	printf("%d rounds, %llu writes, %llu told\n", rounds, (unsigned long long)t.writes, (unsigned long long)t.told);
	munmap(plain, PAGES * P);
	tear_down(&t.s);
}
