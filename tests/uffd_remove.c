/* SPDX-License-Identifier: MIT */
/* A view whose program gives memory back: told, in order, and never of what the library does itself. */
#include "tap.h"

#include "uffd_util.h"

#define LEN (16 * P)

static char pages[LEN];

static struct scene begin(void)
{
	struct scene s = { .len = LEN };

	need_markers();
	catch_bus();
	s.file = new_file(LEN, 0);
	s.view = new_view(s.file, 0, LEN);
	s.p = gmem_view_addr(s.view);
	s.uffd = new_uffd(0);
	CHECK_OK(gmem_uffd_register(s.uffd, s.view, GMEM_UFFD_MODE_MISSING | GMEM_UFFD_MODE_REMOVE));
	memset(pages, 'r', LEN);
	return s;
}

/* A thread that gives memory back, and waits until that is read. */
struct giver {
	pthread_t thread;
	char *p;
	uint64_t len;
	int advice, err;
	_Atomic bool done;
};

static void *giver_main(void *arg)
{
	struct giver *g = arg;

	g->err = madvise(g->p, g->len, g->advice);
	atomic_store(&g->done, true);
	return NULL;
}

static void gives(struct giver *g, char *p, uint64_t len, int advice)
{
	*g = (struct giver){ .p = p, .len = len, .advice = advice };
	CHECK_EQ(pthread_create(&g->thread, NULL, giver_main, g), 0);
}

static void has_given(struct giver *g)
{
	CHECK_EQ(pthread_join(g->thread, NULL), 0);
	CHECK_EQ(g->err, 0);
}

static struct gmem_uffd_event removal(struct scene *s, uint64_t off, uint64_t len)
{
	struct gmem_uffd_event e = next_event(s->uffd);

	CHECK_EQ(e.kind, GMEM_UFFD_EVENT_REMOVE);
	CHECK(e.view == s->view);
	CHECK_EQ(e.off, off);
	CHECK_EQ(e.len, len);
	return e;
}

TEST(both_ways_of_giving_back)
{
	static const int advice[] = { MADV_DONTNEED, MADV_REMOVE };
	struct gmem_uffd_event e;
	struct toucher t;
	struct giver g;

	for (int i = 0; i < 2; i++) {
		struct scene s = begin();

		CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, pages, LEN), LEN);
		gives(&g, s.p + 2 * P, 3 * P, advice[i]);
		removal(&s, 2 * P, 3 * P);
		has_given(&g);
		no_event(s.uffd);
		/* The one keeps the bytes of shared memory, and the other does not. */
		start(&t, s.p + 3 * P, false);
		e = next_event(s.uffd);
		CHECK_EQ(e.flags, GMEM_UFFD_FAULT_MINOR);
		CHECK_EQ(gmem_uffd_continue(s.uffd, s.view, 3 * P, P), P);
		finish(&t, 0);
		CHECK_EQ((char)t.word, i ? 0 : 'r');
		tear_down(&s);
	}
}

/* As a balloon has it: given up for good, by whoever is told. */
TEST(taken_for_a_balloons)
{
	struct scene s = begin();
	struct gmem_uffd_event e;
	struct giver g;

	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, pages, LEN), LEN);
	gives(&g, s.p, 2 * P, MADV_DONTNEED);
	e = removal(&s, 0, 2 * P);
	has_given(&g);
	CHECK_OK(gmem_file_punch(s.file, e.off, e.len));
	CHECK_EQ(gmem_file_page_state(s.file, P), GMEM_PAGE_REMOVED);
	CHECK_EQ(gmem_uffd_continue(s.uffd, s.view, 0, 2 * P), 2 * P);
	CHECK(page_is_zero(s.p + P));
	CHECK_EQ(s.p[2 * P], 'r');
	tear_down(&s);
}

/* Until it is read no operation on the view does anything, and none hangs. */
TEST(nothing_is_done_before_it_is_read)
{
	struct pollfd p;
	struct giver g;
	struct scene s;

	s = begin();
	p = (struct pollfd){ .fd = gmem_uffd_fd(s.uffd), .events = POLLIN };
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, pages, P), P);
	CHECK_OK(gmem_file_punch(s.file, P, P));
	gives(&g, s.p, P, MADV_DONTNEED);
	CHECK_EQ(poll(&p, 1, 20000), 1);
	CHECK(!atomic_load(&g.done));
	CHECK_ERR(gmem_uffd_continue(s.uffd, s.view, P, P), -EAGAIN);
	CHECK_ERR(gmem_uffd_zeropage(s.uffd, s.view, 2 * P, P), -EAGAIN);
	CHECK_ERR(gmem_uffd_poison(s.uffd, s.view, 3 * P, P), -EAGAIN);
	removal(&s, 0, P);
	has_given(&g);
	CHECK_EQ(gmem_uffd_continue(s.uffd, s.view, P, 2 * P), 2 * P);
	tear_down(&s);
}

/* Faults that were there before are told after it, if they are read together: they may be of what has gone. */
TEST(before_faults_that_are_read_with_it)
{
	struct scene s = begin();
	struct gmem_uffd_event e[4];
	struct toucher t;
	struct giver g;
	int n = 0, together = 0;

	start(&t, s.p + 5 * P, false);
	wait_asleep(&t);
	gives(&g, s.p + 4 * P, 4 * P, MADV_DONTNEED);
	/* Most likely both are there. */
	usleep(50000);
	while (n < 2) {
		int got = (int)CHECK_OK(gmem_uffd_read(s.uffd, e + n, (unsigned int)(4 - n)));

		together += got == 2;
		n += got;
	}
	CHECK_EQ(n, 2);
	if (together)
		CHECK_EQ(e[0].kind, GMEM_UFFD_EVENT_REMOVE);
	has_given(&g);
	CHECK(e[0].kind == GMEM_UFFD_EVENT_REMOVE || e[1].kind == GMEM_UFFD_EVENT_REMOVE);
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 5 * P, pages, P), P);
	finish(&t, 0);
	tear_down(&s);
}

/* What the library does to the mapping is not the program's doing; what would need a zap is refused. */
TEST(never_of_the_librarys_own)
{
	struct scene s = begin();
	struct toucher t;

	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, pages, LEN), LEN);
	CHECK_OK(gmem_file_punch(s.file, 0, 2 * P));
	CHECK_ERR(gmem_file_set_attributes(s.file, 4 * P, P, PRIVATE, NULL), -EOPNOTSUPP);
	CHECK_EQ(s.p[4 * P], 'r');
	CHECK_OK(gmem_file_poison(s.file, 6 * P, P));
	no_event(s.uffd);
	/* Its marker comes when somebody touches it. */
	start(&t, s.p + 6 * P, false);
	CHECK_EQ(next_event(s.uffd).off, 6 * P);
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 6 * P, pages, P), -EHWPOISON);
	finish(&t, SIGBUS);
	tear_down(&s);
}

/* A file with private pages in this view has no such mode; nor has one that was converted back. */
TEST(not_with_private_pages)
{
	struct gmem_uffd *uffd = new_uffd(0);
	struct gmem_file *file;
	struct gmem_view *view;

	need_markers();
	file = new_file(LEN, 0);
	view = new_view(file, 0, LEN);
	convert(file, 0, P, PRIVATE);
	CHECK_ERR(gmem_uffd_register(uffd, view, GMEM_UFFD_MODE_MISSING | GMEM_UFFD_MODE_REMOVE), -EOPNOTSUPP);
	convert(file, 0, P, 0);
	CHECK_ERR(gmem_uffd_register(uffd, view, GMEM_UFFD_MODE_MISSING | GMEM_UFFD_MODE_REMOVE), -EOPNOTSUPP);
	CHECK_OK(gmem_uffd_register(uffd, view, GMEM_UFFD_MODE_MISSING));
	gmem_view_unmap(view);
	gmem_file_free(file);
	gmem_uffd_free(uffd);
}
