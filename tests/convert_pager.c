/* SPDX-License-Identifier: MIT */
/* Conversion of pages that a pager serves, or served. */
#include "tap.h"

#include "convert_util.h"
#include "pager_scene.h"

static bool is_right(const struct scene *s, uint64_t page)
{
	return page_is(s->src.id, page * P, s->p + page * P);
}

static void start(struct scene *s, struct src src, uint32_t flags)
{
	set_up(s, src, 2, flags, LEN);
	catch_bus();
}

TEST(served_pages_convert)
{
	struct scene s = { .seed = 0 };

	start(&s, (struct src)SRC(.id = 2), 0);
	for (uint64_t i = 0; i < 16; i++)
		CHECK(is_right(&s, i));
	convert(s.file, 8, 16, PRIVATE);
	for (uint64_t i = 0; i < 32; i++)
		if (i >= 8 && i < 24)
			CHECK_EQ(peek(s.p + i * P), -1);
		else
			CHECK(is_right(&s, i));
	CHECK_OK(gmem_file_punch(s.file, 10 * P, 2 * P));
	CHECK_OK(gmem_pager_fill(s.pager, NULL, NULL));
	for (uint64_t i = 8; i < 24; i++)
		CHECK_EQ(peek(s.p + i * P), -1);
	CHECK_EQ(*(uint64_t *)guest(s.file, 20), word_at(2, 20 * P));
	convert(s.file, 0, 100, 0);
	for (uint64_t i = 0; i < 32; i++)
		CHECK(i == 10 || i == 11 ? page_is_zero(s.p + i * P) : is_right(&s, i));
	tear_down(&s);
}

struct waiter {
	const char *p;
	_Atomic int got; /* -2: not yet */
};

static void *wait_at(void *arg)
{
	struct waiter *w = arg;

	atomic_store(&w->got, peek(w->p));
	return NULL;
}

static void wait_blocked(struct scene *s)
{
	while (!atomic_load(&s->src.blocked))
		usleep(1000);
}

/* A fault that is read before the conversion and resolved after it. */
TEST(toucher_waits_while_its_page_converts)
{
	struct waiter w = { .got = -2 };
	struct scene s = { .seed = 0 };
	pthread_t t;

	start(&s, (struct src)SRC(.id = 2, .block_page = 20), 0);
	w.p = s.p + 20 * P;
	pthread_create(&t, NULL, wait_at, &w);
	wait_blocked(&s);
	convert(s.file, 18, 4, PRIVATE);
	/* The marker wakes it, whatever the source does. */
	pthread_join(t, NULL);
	CHECK_EQ(w.got, -1);
	atomic_store(&s.src.release, true);
	/* It arrives, for the guest; the host does not get it. */
	while (gmem_file_page_state(s.file, 20 * P) != GMEM_PAGE_UPTODATE)
		usleep(1000);
	usleep(20000);
	CHECK_EQ(peek(w.p), -1);
	CHECK_EQ(*(uint64_t *)guest(s.file, 20), word_at(2, 20 * P));
	convert(s.file, 18, 4, 0);
	for (uint64_t i = 16; i < 24; i++)
		CHECK(is_right(&s, i));
	tear_down(&s);
}

TEST(pages_that_were_let_go_of_convert)
{
	struct scene s = { .seed = 0 };
	struct gmem_view *plain;

	start(&s, (struct src)SRC(.id = 2), 0);
	convert(s.file, 30, 4, PRIVATE);
	CHECK_OK(gmem_pager_fill(s.pager, NULL, NULL));
	CHECK_EQ(gmem_pager_unregister(s.pager), 0);
	gmem_pager_free(s.pager);
	/* Nobody serves any more: whoever waits, waits for ever. */
	CHECK_EQ(peek(s.p + 30 * P), -1);
	for (uint64_t i = 30; i < 34; i++)
		CHECK_EQ(peek(s.p + i * P), -1);
	CHECK(is_right(&s, 29) && is_right(&s, 34));
	convert(s.file, 20, 30, PRIVATE);
	plain = view_of(s.file, 25, 30, PROT_READ);
	for (uint64_t i = 20; i < 50; i++)
		CHECK_EQ(peek(s.p + i * P), -1);
	CHECK_EQ(peek(page_of(plain, 25)), -1);
	convert(s.file, 0, PAGES, 0);
	check_all(s.p, 2, PAGES);
	convert(s.file, 0, PAGES, PRIVATE);
	for (uint64_t i = 0; i < PAGES; i++)
		CHECK_EQ(peek(s.p + i * P), -1);
	convert(s.file, 0, PAGES, 0);
	check_all(s.p, 2, PAGES);
	gmem_source_unref(s.source);
	gmem_view_unmap(plain);
	gmem_view_unmap(s.view);
	gmem_file_free(s.file);
}

/* In part: what is absent is served before, meanwhile and after. */
TEST(pages_at_the_border_of_what_was_let_go_of)
{
	struct scene s = { .seed = tap_seed() };
	bool private[64] = { false };

	start(&s, (struct src)SRC(.id = 2), 0);
	for (uint64_t i = 0; i < 64; i++)
		if (tap_rand(&s.seed) & 1)
			CHECK(is_right(&s, i));
	CHECK(CHECK_OK(gmem_pager_unregister(s.pager)) > 0);
	for (int round = 0; round < 100; round++) {
		uint64_t page = tap_rand(&s.seed) % 64, n = 1 + tap_rand(&s.seed) % (64 - page);
		bool to = round < 99 && tap_rand(&s.seed) & 1;

		if (round == 99) {
			page = 0;
			n = 64;
		}
		convert(s.file, page, n, to ? PRIVATE : 0);
		memset(private + page, to, n);
		/* One that is touched comes in; the others stay absent for later rounds. */
		page = tap_rand(&s.seed) % 64;
		if (private[page])
			CHECK_EQ(peek(s.p + page * P), -1);
		else
			CHECK(is_right(&s, page));
		if (round % 10 == 0)
			CHECK_OK(gmem_pager_unregister(s.pager));
	}
	check_all(s.p, 2, PAGES);
	tear_down(&s);
}

TEST(view_with_private_pages_is_served)
{
	struct gmem_view *view;
	struct scene s = { .seed = 0 };
	char *p;

	start(&s, (struct src)SRC(.id = 2), 0);
	convert(s.file, 4, 4, PRIVATE);
	p = map_view(s.file, 0, LEN, &view);
	CHECK_EQ(peek(p + 4 * P), -1);
	CHECK_OK(gmem_pager_add_view(s.pager, view, s.source, 0));
	CHECK_ERR(gmem_pager_add_view(s.pager, view, s.source, 0), -EBUSY);
	for (uint64_t i = 0; i < 16; i++)
		if (i >= 4 && i < 8)
			CHECK_EQ(peek(p + i * P), -1);
		else
			CHECK(page_is(2, i * P, p + i * P));
	convert(s.file, 4, 4, 0);
	check_all(p, 2, PAGES);
	gmem_pager_free(s.pager);
	gmem_source_unref(s.source);
	gmem_view_unmap(view);
	gmem_view_unmap(s.view);
	gmem_file_free(s.file);
}

/* A view that cannot be added is as it was: its absent pages are zero, its private ones out of reach. */
TEST(view_that_a_pager_refuses)
{
	struct gmem_file *file = file_of(16, GMEM_FILE_INIT_PRIVATE);
	struct gmem_pager *pager = new_pager(1, 0, NULL), *discards = new_pager(1, GMEM_PAGER_REMOVE_DISCARDS, NULL);
	struct src src = SRC(.id = 2);
	struct gmem_source *source = source_of(&src);
	struct gmem_view *view;

	convert(file, 4, 4, 0);
	view = view_of(file, 0, 16, PROT_READ);
	CHECK_ERR(gmem_pager_add_view(pager, view, source, 0), -EINVAL);
	for (uint64_t i = 0; i < 16; i++)
		CHECK_EQ(peek(page_of(view, i)), i >= 4 && i < 8 ? 0 : -1);
	gmem_view_unmap(view);
	gmem_file_free(file);
	/* Refused when it is registered already: the offset in the source wraps. */
	file = file_of(16, 0);
	view = view_of(file, 0, 16, PROT_READ);
	for (int round = 0; round < 2; round++) {
		CHECK_ERR(gmem_pager_add_view(pager, view, source, -P), -EINVAL);
		CHECK_EQ(peek(page_of(view, 6 + (uint64_t)round)), 0);
		CHECK_EQ(peek(page_of(view, 1)), round ? -1 : 0);
		convert(file, 1, 3, PRIVATE);
		CHECK_EQ(peek(page_of(view, 1)), -1);
	}
	CHECK_ERR(gmem_pager_add_view(discards, view, source, 0), -EOPNOTSUPP);
	gmem_pager_free(pager);
	gmem_pager_free(discards);
	gmem_source_unref(source);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

/* Marking would look like a balloon at work. Nothing may be lost by asking. */
TEST(pager_that_discards_removed_pages)
{
	struct scene s = { .seed = 0 };
	struct gmem_view *plain;
	uint64_t error_off = 7;

	start(&s, (struct src)SRC(.id = 2), GMEM_PAGER_REMOVE_DISCARDS);
	plain = view_of(s.file, 0, 64, PROT_READ);
	for (uint64_t i = 0; i < 8; i++)
		CHECK(is_right(&s, i));
	CHECK_ERR(gmem_file_set_attributes(s.file, 4 * P, 60 * P, PRIVATE, &error_off), -EOPNOTSUPP);
	CHECK_EQ(error_off, 4 * P);
	CHECK(peek(page_of(plain, 4)) >= 0);
	CHECK_EQ(stats_of(s.pager).removes, 0);
	CHECK_EQ(gmem_file_page_state(s.file, 48 * P), GMEM_PAGE_ABSENT);
	check_all(s.p, 2, PAGES);
	gmem_view_unmap(plain);
	tear_down(&s);
}

/* Registered with a descriptor the library knows nothing of: what it would map over is served by nobody. */
TEST(view_with_a_descriptor_of_the_programs)
{
	struct gmem_file *file = file_of(16, 0);
	struct gmem_pager *pager = new_pager(1, 0, NULL);
	struct gmem_view *view = view_of(file, 0, 16, PROT_READ);
	struct src src = SRC(.id = 2);
	struct gmem_region region = { .size = sizeof(region), .file = file, .len = 16 * P };
	bool user_mode_only;

	region.source = source_of(&src);
	region.hva = (uint64_t)(uintptr_t)gmem_view_addr(view);
	region.uffd = (int)CHECK_OK(
		gmem_sys_uffd_open(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM, &user_mode_only));
	CHECK_OK(gmem_sys_uffd_register(region.uffd, region.hva, region.len,
					GMEM_SYS_UFFD_MISSING | GMEM_SYS_UFFD_MINOR));
	CHECK_OK(gmem_pager_add_region(pager, &region));
	CHECK_ERR(gmem_file_set_attributes(file, 4 * P, P, PRIVATE, NULL), -EOPNOTSUPP);
	for (uint64_t i = 0; i < 16; i++)
		CHECK(page_is(2, i * P, page_of(view, i)));
	CHECK_OK(gmem_sys_uffd_unregister(region.uffd, region.hva, region.len));
	close(region.uffd);
	gmem_pager_free(pager);
	convert(file, 4, 1, PRIVATE);
	CHECK_EQ(peek(page_of(view, 4)), -1);
	gmem_source_unref(region.source);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST(keepers_view_excludes_private_pages)
{
	struct gmem_file *file = file_of(16, 0);
	struct gmem_view *view = view_of(file, 0, 16, PROT_READ);

	convert(file, 4, 1, PRIVATE);
	convert(file, 4, 1, 0);
	CHECK_ERR(gmem_attach_view(-1, view), -EBUSY);
	gmem_view_unmap(view);
	gmem_file_free(file);
	file = file_of(16, 0);
	view = view_of(file, 0, 16, PROT_READ);
	CHECK(gmem_attach_view(-1, view) < 0);
	CHECK_ERR(gmem_file_set_attributes(file, 0, P, PRIVATE, NULL), -EBUSY);
	gmem_view_unmap(view);
	gmem_file_free(file);
}
