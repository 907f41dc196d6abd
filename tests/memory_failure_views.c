/* SPDX-License-Identifier: MIT */
/* Memory that fails, and views that change meanwhile, are served, or are another process's. */
#define TAP_NO_MAIN
#include "tap.h"

#include <sys/mman.h>

#include "memory_failure_wraps.h"
#include "pager_scene.h"
#include "peer_util.h"
#include "poison_util.h"

#define RW (PROT_READ | PROT_WRITE)

/* Pages with 10, 11, ... in them. */
static struct gmem_file *numbered(enum gmem_engine engine)
{
	struct gmem_file *file = file_on(engine, 0);

	for (uint64_t i = 0; i < N; i++)
		write_page(file, i, 10 + (int)i);
	return file;
}

/* `bad` has bits: SIGBUS; `zero` too. */
static void check_marks(struct gmem_view *view, uint64_t bad, uint64_t zero)
{
	for (uint64_t i = view->off / P; i < (view->off + view->len) / P; i++) {
		int want = i >= N || bad >> i & 1 ? -1 : zero >> i & 1 ? 0 : 10 + (int)i, got = peek(page_of(view, i));

		if (got != want)
			FAIL("page %llu: %d, not %d", (unsigned long long)i, got, want);
	}
}

/* ---- split, moved, grown */

static void remapped(enum gmem_engine engine, bool by_mapping)
{
	struct gmem_file *file = numbered(engine);
	struct gmem_view *view = view_of(file, 0, 16, RW), *rest;
	char *room = mmap(NULL, 64 * P, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(room != MAP_FAILED);
	view->by_mapping = by_mapping;
	poison(file, 6, 4);
	poison(file, 20, 1);
	CHECK_OK(gmem_view_split(view, 8 * P, &rest));
	check_marks(view, 0x3c0, 0);
	check_marks(rest, 0x3c0, 0);
	/* Each goes its own way, and both are found. */
	poison(file, 2, 1);
	poison(file, 12, 1);
	CHECK_OK(gmem_view_remap(rest, 8 * P, room));
	CHECK(gmem_view_addr(rest) == room);
	check_marks(view, 0x13c4, 0);
	check_marks(rest, 0x13c4, 0);
	/* Page 20 comes into view, and page 32 is past the end. */
	CHECK_OK(gmem_view_remap(rest, 25 * P, room + 30 * P));
	check_marks(rest, 0x1013c4, 0);
	CHECK_OK(gmem_view_remap(view, 16 * P, NULL));
	check_marks(view, 0x13c4, 0);
	punch(file, 7, 2);
	punch(file, 20, 1);
	check_marks(view, 0x1244, 0x180);
	check_marks(rest, 0x1244, 0x100180);
	poison(file, 5, 1);
	poison(file, 20, 2);
	check_marks(view, 0x1264, 0x180);
	check_marks(rest, 0x301264, 0x180);
	gmem_view_unmap(rest);
	gmem_view_unmap(view);
	munmap(room, 64 * P);
	gmem_file_free(file);
}

TEST(remapped_user)
{
	remapped(GMEM_ENGINE_USER, false);
}

TEST(remapped_mapped_over)
{
	remapped(GMEM_ENGINE_USER, true);
}

TEST(remapped_kernel)
{
	remapped(GMEM_ENGINE_KERNEL, false);
}

/* What the program has mapped over a part of the view is its own, and is neither marked nor let in. */
TEST(mapped_over_by_the_program)
{
	for (int by_mapping = 0; by_mapping < 2; by_mapping++) {
		struct gmem_file *file = numbered(GMEM_ENGINE_USER);
		struct gmem_view *view = view_of(file, 0, N, RW);
		char *own;

		view->by_mapping = by_mapping;
		own = mmap(page_of(view, 4), P, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		CHECK(own == page_of(view, 4));
		*own = 'o';
		CHECK_EQ(mprotect(page_of(view, 6), P, PROT_READ), 0);
		poison(file, 2, 6);
		for (uint64_t i = 2; i < 8; i++)
			CHECK_EQ(peek(page_of(view, i)), i == 4 ? 'o' : -1);
		punch(file, 2, 5);
		for (uint64_t i = 2; i < 8; i++)
			CHECK_EQ(peek(page_of(view, i)), i == 4 ? 'o' : i == 7 ? -1 : 0);
		gmem_view_unmap(view);
		CHECK_EQ(*own, 'o');
		munmap(own, P);
		gmem_file_free(file);
	}
}

/* A zero that was shown because the view could not be marked goes when it can be. */
TEST(a_second_call_marks)
{
	struct gmem_file *file = numbered(GMEM_ENGINE_USER);
	struct gmem_view *view = view_of(file, 0, N, RW);

	need_markers();
	uffd_open_err = -EMFILE;
	CHECK_ERR(gmem_file_poison(file, 3 * P, P), -EMFILE);
	uffd_open_err = 0;
	CHECK_EQ(peek(page_of(view, 3)), 0);
	poison(file, 3, 1);
	check_marks(view, 8, 0);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

/* ---- served */

/* Who serves it cannot: the marks that went for its sake are there again. */
TEST(a_view_that_cannot_be_served)
{
	struct src src = SRC(.id = 3, .nowait = true);
	struct gmem_source *source = source_of(&src);
	struct gmem_pager *pager = new_pager(1, GMEM_PAGER_REMOVE_DISCARDS, NULL);
	struct gmem_file *file = numbered(GMEM_ENGINE_USER);
	struct gmem_view *view = view_of(file, 0, N, RW);

	poison(file, 2, 2);
	uffd_open_err = -EPERM;
	CHECK_ERR(gmem_pager_add_view(pager, view, source, 0), -EPERM);
	uffd_open_err = 0;
	check_marks(view, 0xc, 0);
	punch(file, 2, 1);
	check_marks(view, 8, 4);
	gmem_pager_free(pager);
	gmem_source_unref(source);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

/* By the program itself: the page is no event and takes no bytes, until it has been healed. */
TEST(a_view_that_the_program_serves)
{
	struct gmem_uffd_opts o = { .size = sizeof(o) };
	struct gmem_file *file;
	struct gmem_view *view;
	struct gmem_uffd *uffd;

	need_markers();
	file = numbered(GMEM_ENGINE_USER);
	view = view_of(file, 0, N, RW);
	CHECK_OK(gmem_uffd_create(&o, &uffd));
	CHECK_OK(gmem_uffd_add_view(uffd, view));
	CHECK_EQ(gmem_uffd_continue(uffd, view, 2 * P, P), P);
	CHECK_EQ(peek(page_of(view, 2)), 12);
	poison(file, 2, 2);
	for (uint64_t i = 2; i < 4; i++) {
		CHECK_EQ(peek(page_of(view, i)), -1);
		CHECK_ERR(gmem_uffd_copy(uffd, view, i * P, zeroes, P), -EHWPOISON);
		CHECK_ERR(gmem_uffd_continue(uffd, view, i * P, P), -EHWPOISON);
	}
	punch(file, 3, 1);
	CHECK_EQ(gmem_uffd_continue(uffd, view, 3 * P, P), P);
	CHECK_EQ(peek(page_of(view, 3)), 0);
	CHECK_EQ(peek(page_of(view, 2)), -1);
	gmem_view_unmap(view);
	gmem_uffd_free(uffd);
	gmem_file_free(file);
}

/* Lost or not, a page that cannot be kept from being touched does not become private. */
TEST(a_lost_page_of_a_view_that_cannot_be_marked)
{
	struct src src = SRC(.id = 3, .nowait = true);
	struct gmem_source *source = source_of(&src);
	struct gmem_pager *pager = new_pager(1, GMEM_PAGER_REMOVE_DISCARDS, NULL);
	struct gmem_file *file = numbered(GMEM_ENGINE_USER);
	struct gmem_view *view = view_of(file, 0, N, RW);

	CHECK_OK(gmem_pager_add_view(pager, view, source, 0));
	poison(file, 2, 1);
	CHECK_ERR(gmem_file_set_attributes(file, 2 * P, P, PRIVATE, NULL), -EOPNOTSUPP);
	CHECK(!gmem_file_private(file, 2 * P));
	gmem_pager_free(pager);
	gmem_source_unref(source);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

/* ---- of peers */

static void check_its(struct other *o, uint64_t bad, uint64_t zero)
{
	for (uint64_t i = 0; i < N; i++) {
		int got = its(o, i), want = bad >> i & 1 ? -1 : zero >> i & 1 ? 0 : 10 + (int)i;

		if (got != want)
			FAIL("page %llu reads %d there, not %d", (unsigned long long)i, got, want);
	}
}

static void peers(enum gmem_engine engine)
{
	struct other a = other_process(), b = other_process();
	struct gmem_file *file = numbered(engine), *again;
	struct gmem_view *view = view_of(file, 0, N, RW), *here;

	join_in(&a, file);
	join_in(&b, file);
	CHECK_OK(gmem_file_open(gmem_file_fd(file), gmem_file_state_fd(file), &again));
	here = view_of(again, 1, 8, RW);
	check_its(&a, 0, 0);
	/* A pin is no reason to go on showing it. */
	tell_ok(&b, OP_PIN, 3 * P, P);
	poison(file, 2, 4);
	poison(file, 4, 3);
	check_its(&a, 0x7c, 0);
	check_its(&b, 0x7c, 0);
	check_marks(here, 0x7c, 0);
	check_marks(view, 0x7c, 0);
	CHECK_EQ(tell(&a, OP_READ, 2 * P, 0, 0), -EHWPOISON);
	CHECK_EQ(tell(&a, OP_POKE, 2 * P, 0, 1), -1);
	CHECK_ERR(gmem_file_poison(again, 0, P), -EPERM);
	CHECK_HAS(gmem_last_error(), "the one that made");
	CHECK_EQ(gmem_file_page_state(file, 0), GMEM_PAGE_UPTODATE);
	/* Whose maker punches lets everybody in; a peer only itself. */
	punch(file, 0, 4);
	check_its(&a, 0x70, 0xf);
	check_its(&b, 0x70, 0xf);
	check_marks(here, 0x70, 0xf);
	punch(again, 4, 1);
	check_marks(here, 0x60, 0x1f);
	check_its(&a, 0x70, 0xf);
	check_marks(view, 0x70, 0xf);
	/* What was let in fails again. */
	poison(file, 0, 1);
	check_its(&a, 0x71, 0xe);
	end_other(&a);
	end_other(&b);
	gmem_view_unmap(here);
	gmem_file_free(again);
	punch(file, 0, N);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST(peers_user)
{
	peers(GMEM_ENGINE_USER);
}

TEST(peers_kernel)
{
#ifdef __SANITIZE_THREAD__
	SKIP("tsan", "it takes mapping over a page for a write to it");
#endif
	peers(GMEM_ENGINE_KERNEL);
}

TEST(peers_and_conversions)
{
	struct other a = other_process();
	struct gmem_file *file = numbered(GMEM_ENGINE_USER);

	join_in(&a, file);
	convert(file, 4, 4, PRIVATE);
	poison(file, 3, 2);
	check_its(&a, 0xf8, 0);
	convert(file, 0, 8, PRIVATE);
	convert(file, 0, 8, 0);
	check_its(&a, 0x18, 0);
	convert(file, 0, 8, PRIVATE);
	punch(file, 3, 2);
	check_its(&a, 0xff, 0);
	convert(file, 0, 8, 0);
	check_its(&a, 0, 0x18);
	end_other(&a);
	gmem_file_free(file);
}

/* Poisoned all the same; said by name, and the others' views are marked. */
TEST(a_peer_that_cannot_mark)
{
	struct other a = other_process(), b = other_process();
	struct gmem_file *file;
	struct gmem_view *view;
	char text[32];

	need_uffd();
	file = numbered(GMEM_ENGINE_USER);
	view = view_of(file, 0, N, RW);
	join_in(&a, file);
	join_in(&b, file);
	tell_ok(&a, OP_SPOIL, 0, 0);
	CHECK_ERR(gmem_file_poison(file, 3 * P, P), -EOPNOTSUPP);
	snprintf(text, sizeof(text), "process %d: ", (int)a.pid);
	CHECK_HAS(gmem_last_error(), text);
	check_refused(file, 3);
	check_marks(view, 8, 0);
	check_its(&b, 8, 0);
	end_other(&a);
	poison(file, 3, 1);
	end_other(&b);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

/* It marks its view when it can. */
TEST_TIMEOUT(a_peer_that_is_stopped_when_memory_fails, 60)
{
	struct other a = other_process(), b = other_process();
	struct gmem_file *file = numbered(GMEM_ENGINE_USER);
	struct gmem_view *view = view_of(file, 0, N, RW);
	const struct gmem_peer_page *place = gmem_peer_page(&file->state, 0);
	uint64_t before;
	char text[32];

	join_in(&a, file);
	join_in(&b, file);
	check_its(&a, 0, 0);
	stop_other(&a);
	before = now_ms();
	CHECK_ERR(gmem_file_poison(file, 3 * P, P), -EBUSY);
	/* It is not waited for twice. */
	CHECK(now_ms() - before < (tap_slow() ? 20000 : 3500));
	snprintf(text, sizeof(text), "process %d ", (int)a.pid);
	CHECK_HAS(gmem_last_error(), text);
	check_refused(file, 3);
	check_marks(view, 8, 0);
	check_its(&b, 8, 0);
	CHECK_EQ(kill(a.pid, SIGCONT), 0);
	for (int i = 0; atomic_load(&place->answer) != atomic_load(&place->request); i++) {
		CHECK(i < 10000);
		usleep(1000);
	}
	check_its(&a, 8, 0);
	/* What it has shown meanwhile goes with the next call. */
	poison(file, 3, 1);
	check_its(&a, 8, 0);
	punch(file, 3, 1);
	check_its(&a, 0, 8);
	end_other(&a);
	end_other(&b);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

/* Nobody is left who could say that a page is healed. */
TEST(peers_without_the_one_that_made_it)
{
	struct other a = other_process();
	struct gmem_file *file = numbered(GMEM_ENGINE_USER), *again;
	struct gmem_view *here, *late;

	join_in(&a, file);
	CHECK_OK(gmem_file_open(gmem_file_fd(file), gmem_file_state_fd(file), &again));
	here = view_of(again, 0, N, RW);
	poison(file, 3, 2);
	gmem_file_free(file);
	CHECK_ERR(gmem_file_poison(again, 0, P), -EPERM);
	check_marks(here, 0x18, 0);
	late = view_of(again, 0, N, PROT_READ);
	check_marks(late, 0x18, 0);
	punch(again, 3, 1);
	check_marks(late, 0x10, 8);
	check_marks(here, 0x10, 8);
	/* Of a page that is good again it may have been told late, and not have kept its mark. */
	CHECK(its(&a, 3) == -1 || its(&a, 3) == 0);
	CHECK_EQ(its(&a, 4), -1);
	CHECK_EQ(its(&a, 5), 15);
	end_other(&a);
	gmem_view_unmap(late);
	gmem_view_unmap(here);
	gmem_file_free(again);
}
