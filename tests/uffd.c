/* SPDX-License-Identifier: MIT */
/* Userfaults resolved by the caller: events, pages brought in and mapped, and all refusals but of private pages. */
#include "tap.h"

#include "uffd_util.h"

static char page_of[64 * P];

static void fill_pages(uint64_t npages)
{
	for (uint64_t i = 0; i < npages; i++)
		fill_page(1, i * P, page_of + i * P);
}

TEST(missing_and_copy)
{
	struct scene s = set_up(64 * P, 0);
	struct gmem_uffd_event e;
	struct toucher t;

	fill_pages(64);
	no_event(s.uffd);
	start(&t, s.p + 5 * P + 8, false);
	e = next_event(s.uffd);
	CHECK_EQ(e.kind, GMEM_UFFD_EVENT_FAULT);
	CHECK_EQ(e.flags, 0);
	CHECK(e.view == s.view);
	CHECK_EQ(e.off, 5 * P);
	/* Told once. */
	no_event(s.uffd);
	CHECK(!goes_on(&t, 50));
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, e.off, page_of + e.off, P), P);
	finish(&t, 0);
	CHECK_EQ(t.word, word_at(1, 5 * P + 8));
	CHECK_EQ(gmem_file_page_state(s.file, 5 * P), GMEM_PAGE_UPTODATE);
	/* A write, and bytes from an address of no alignment. */
	start(&t, s.p + 9 * P, true);
	e = next_event(s.uffd);
	CHECK_EQ(e.flags, GMEM_UFFD_FAULT_WRITE);
	memmove(page_of + 3, page_of + 9 * P, P);
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 9 * P, page_of + 3, P), P);
	finish(&t, 0);
	CHECK_EQ(t.word, 0x77);
	CHECK_EQ(*(uint64_t *)(s.p + 9 * P + 8), word_at(1, 9 * P + 8));
	tear_down(&s);
}

TEST(copy_of_many_pages)
{
	struct scene s = set_up(1024 * P, 0);
	char *buf = malloc(1000 * P);

	for (uint64_t i = 0; i < 1000; i++)
		fill_page(2, (i + 7) * P, buf + i * P);
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 7 * P, buf, 1000 * P), 1000 * P);
	/* Mapped by it: no touch raises an event. */
	for (uint64_t i = 7; i < 1007; i++)
		CHECK(page_is(2, i * P, s.p + i * P));
	no_event(s.uffd);
	free(buf);
	tear_down(&s);
}

TEST(minor_and_continue)
{
	struct scene s = set_up(64 * P, 0);
	struct gmem_view *plain = new_view(s.file, 0, 64 * P);
	struct gmem_file_counts c = { .size = sizeof(c) };
	struct gmem_uffd_event e;
	struct toucher t;

	fill_pages(8);
	/* Put there by the library, and by a mapping it knows nothing of. */
	CHECK_OK(gmem_file_write(s.file, 2 * P, page_of + 2 * P, P));
	memcpy((char *)gmem_view_addr(plain) + 3 * P, page_of + 3 * P, P);
	for (uint64_t i = 2; i < 4; i++) {
		start(&t, s.p + i * P, false);
		e = next_event(s.uffd);
		CHECK_EQ(e.flags, GMEM_UFFD_FAULT_MINOR);
		CHECK_EQ(gmem_uffd_continue(s.uffd, s.view, e.off, P), P);
		finish(&t, 0);
		CHECK(page_is(1, i * P, s.p + i * P));
		CHECK_EQ(gmem_file_page_state(s.file, i * P), GMEM_PAGE_UPTODATE);
	}
	/* Known to be zero: backed and mapped. */
	CHECK_OK(gmem_file_punch(s.file, 4 * P, 4 * P));
	start(&t, s.p + 4 * P, true);
	e = next_event(s.uffd);
	CHECK_EQ(e.flags, GMEM_UFFD_FAULT_MINOR | GMEM_UFFD_FAULT_WRITE);
	CHECK_EQ(gmem_uffd_continue(s.uffd, s.view, 4 * P, 4 * P), 4 * P);
	finish(&t, 0);
	CHECK(page_is_zero(s.p + 7 * P));
	CHECK_OK(gmem_file_query(s.file, &c));
	CHECK_EQ(c.resident, 6 * P);
	CHECK_EQ(c.removed, 4);
	no_event(s.uffd);
	gmem_view_unmap(plain);
	tear_down(&s);
}

/* What the kernel says of a page in its cache: bytes that a mapping has put there are not overwritten. */
TEST(copy_onto_what_is_there)
{
	struct scene s = set_up(64 * P, 0);
	struct gmem_view *plain = new_view(s.file, 0, 64 * P);
	struct toucher t;

	fill_pages(8);
	strcpy((char *)gmem_view_addr(plain) + 3 * P, "mine");
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 3 * P, page_of, P), -EEXIST);
	CHECK_STR((char *)gmem_view_addr(plain) + 3 * P, "mine");
	CHECK_EQ(gmem_uffd_continue(s.uffd, s.view, 3 * P, P), P);
	CHECK_STR(s.p + 3 * P, "mine");
	/* Up to it, and no further. */
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, page_of, 8 * P), 3 * P);
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 3 * P, page_of, 5 * P), -EEXIST);
	CHECK_EQ(gmem_file_page_state(s.file, 4 * P), GMEM_PAGE_ABSENT);
	CHECK_OK(gmem_file_punch(s.file, 4 * P, P));
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 4 * P, page_of, P), -EEXIST);
	/* Its toucher is not left behind. */
	start(&t, s.p + 5 * P, false);
	CHECK_EQ(next_event(s.uffd).flags, 0);
	CHECK_OK(gmem_file_write(s.file, 5 * P, "other", 5));
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 5 * P, page_of, P), -EEXIST);
	CHECK_EQ(next_event(s.uffd).flags, GMEM_UFFD_FAULT_MINOR);
	CHECK_EQ(gmem_uffd_continue(s.uffd, s.view, 5 * P, P), P);
	finish(&t, 0);
	gmem_view_unmap(plain);
	tear_down(&s);
}

TEST(continue_gets_as_far_as_it_can)
{
	struct scene s = set_up(64 * P, 0);

	fill_pages(64);
	CHECK_ERR(gmem_uffd_continue(s.uffd, s.view, 0, P), -EFAULT);
	CHECK_OK(gmem_file_write(s.file, 0, page_of, 5 * P));
	CHECK_EQ(gmem_uffd_continue(s.uffd, s.view, 3 * P, P), P);
	CHECK_ERR(gmem_uffd_continue(s.uffd, s.view, 3 * P, 2 * P), -EEXIST);
	CHECK_EQ(gmem_uffd_continue(s.uffd, s.view, 0, 5 * P), 3 * P);
	CHECK_EQ(gmem_uffd_continue(s.uffd, s.view, 4 * P, 60 * P), P);
	CHECK_ERR(gmem_uffd_continue(s.uffd, s.view, 5 * P, 59 * P), -EFAULT);
	for (uint64_t i = 0; i < 5; i++)
		CHECK(page_is(1, i * P, s.p + i * P));
	tear_down(&s);
}

TEST(wake_tells_again)
{
	struct scene s = set_up(64 * P, 0);
	struct toucher t;

	start(&t, s.p + P, false);
	CHECK_EQ(next_event(s.uffd).off, P);
	no_event(s.uffd);
	CHECK_OK(gmem_uffd_wake(s.uffd, s.view, 0, 64 * P));
	CHECK_EQ(next_event(s.uffd).off, P);
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, P, page_of, P), P);
	finish(&t, 0);
	tear_down(&s);
}

TEST(poisoned_pages)
{
	struct scene s = set_up(64 * P, 0);
	struct toucher t;

	gmem_state_lose(&s.file->state, 3);
	for (int i = 0; i < 2; i++) {
		start(&t, s.p + (3 + i) * P, false);
		CHECK_EQ(next_event(s.uffd).off, (3 + i) * P);
		if (i)
			gmem_state_lose(&s.file->state, 4);
		CHECK(!goes_on(&t, 20));
		if (i)
			CHECK_ERR(gmem_uffd_continue(s.uffd, s.view, 4 * P, 2 * P), -EHWPOISON);
		else
			CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 3 * P, page_of, 2 * P), -EHWPOISON);
		finish(&t, SIGBUS);
		CHECK_EQ(touch(s.p + (3 + i) * P), SIGBUS);
	}
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, P, page_of, 4 * P), 2 * P);
	CHECK_EQ(gmem_file_page_state(s.file, 3 * P), GMEM_PAGE_POISONED);
	tear_down(&s);
}

TEST(bad_arguments)
{
	struct gmem_uffd_opts o = { .size = sizeof(o) - 1 };
	struct gmem_uffd *uffd = (void *)1, *other;
	struct gmem_uffd_event e;
	struct scene s;

	CHECK_ERR(gmem_uffd_create(&o, &uffd), -EINVAL);
	o = (struct gmem_uffd_opts){ .size = sizeof(o), .flags = 2 };
	CHECK_ERR(gmem_uffd_create(&o, &uffd), -EINVAL);
	CHECK(uffd == (void *)1);
	CHECK_OK(gmem_uffd_create(NULL, &other));
	gmem_uffd_free(NULL);
	s = set_up(16 * P, 0);
	CHECK_EQ(gmem_uffd_read(s.uffd, &e, 0), 0);
	CHECK_ERR(gmem_uffd_add_view(s.uffd, s.view), -EBUSY);
	CHECK_ERR(gmem_uffd_add_view(other, s.view), -EBUSY);
	CHECK_ERR(gmem_uffd_copy(other, s.view, 0, page_of, P), -EINVAL);
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 1, page_of, P), -EINVAL);
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 0, page_of, P + 1), -EINVAL);
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 0, page_of, 0), -EINVAL);
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 0, (void *)-P, 2 * P), -EINVAL);
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 15 * P, page_of, 2 * P), -ERANGE);
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, -P, page_of, P), -ERANGE);
	CHECK_ERR(gmem_uffd_continue(other, s.view, 0, P), -EINVAL);
	CHECK_ERR(gmem_uffd_continue(s.uffd, s.view, 0, 17 * P), -ERANGE);
	CHECK_ERR(gmem_uffd_continue(s.uffd, s.view, 5, P), -EINVAL);
	CHECK_ERR(gmem_uffd_wake(other, s.view, 0, P), -EINVAL);
	CHECK_ERR(gmem_uffd_wake(s.uffd, s.view, 16 * P, P), -ERANGE);
	CHECK_ERR(gmem_uffd_wake(s.uffd, s.view, 0, 7), -EINVAL);
	gmem_uffd_free(other);
	tear_down(&s);
}

/* A view of a part of the file: `off` counts from the file's start. */
TEST(views_of_parts)
{
	struct scene s = set_up(16 * P, 0);
	struct gmem_view *part = new_view(s.file, 8 * P, 4 * P);
	struct gmem_uffd_event e;
	struct toucher t;

	fill_pages(16);
	CHECK_OK(gmem_uffd_add_view(s.uffd, part));
	start(&t, (char *)gmem_view_addr(part) + 2 * P, false);
	e = next_event(s.uffd);
	CHECK(e.view == part);
	CHECK_EQ(e.off, 10 * P);
	CHECK_ERR(gmem_uffd_copy(s.uffd, part, 7 * P, page_of, P), -ERANGE);
	CHECK_ERR(gmem_uffd_copy(s.uffd, part, 11 * P, page_of, 2 * P), -ERANGE);
	/* In place by way of the other view, which is not what its toucher waits for. */
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 10 * P, page_of + 10 * P, P), P);
	CHECK(!goes_on(&t, 50));
	CHECK_ERR(gmem_uffd_copy(s.uffd, part, 10 * P, page_of, P), -EEXIST);
	CHECK_EQ(next_event(s.uffd).flags, GMEM_UFFD_FAULT_MINOR);
	CHECK_EQ(gmem_uffd_continue(s.uffd, part, 10 * P, P), P);
	finish(&t, 0);
	CHECK(page_is(1, 10 * P, (char *)gmem_view_addr(part) + 2 * P));
	gmem_view_unmap(part);
	tear_down(&s);
}

/* Its events are told no more, whether they were there before or not; and the object lives on. */
TEST(view_unmapped_first)
{
	struct scene s = set_up(16 * P, 0);
	struct gmem_view *gone = new_view(s.file, 0, 16 * P);
	struct pollfd p = { .fd = gmem_uffd_fd(s.uffd), .events = POLLIN };
	struct toucher t;

	CHECK_OK(gmem_uffd_add_view(s.uffd, gone));
	start(&t, (char *)gmem_view_addr(gone) + P, false);
	CHECK_EQ(poll(&p, 1, 20000), 1);
	/* A toucher whose memory goes is its program's own mistake; this one is brought to its end first. */
	CHECK_EQ(gmem_uffd_copy(s.uffd, gone, P, page_of, P), P);
	finish(&t, 0);
	gmem_view_unmap(gone);
	no_event(s.uffd);
	start(&t, s.p + 2 * P, false);
	CHECK_EQ(poll(&p, 1, 20000), 1);
	gmem_uffd_free(s.uffd);
	/* After the object it is nobody's: its toucher waits. */
	CHECK(!goes_on(&t, 50));
	s.uffd = new_uffd(0);
	CHECK_ERR(gmem_uffd_add_view(s.uffd, s.view), -EBUSY);
	CHECK_EQ(gmem_sys_uffd_unregister(s.view->uffd, (uintptr_t)s.p, s.len), 0);
	finish(&t, 0);
	tear_down(&s);
}

TEST(events_come_in_order)
{
	struct scene s = set_up(64 * P, 0);
	struct gmem_uffd_event e[8];
	struct toucher t[8];

	for (unsigned int round = 0; round < 3; round++) {
		for (unsigned int i = 0; i < 8; i++) {
			start(&t[i], s.p + (round * 8 + (i * 5 + round) % 8) * P, i % 2);
			wait_asleep(&t[i]);
		}
		/* In parts. */
		CHECK_EQ(gmem_uffd_read(s.uffd, e, 3), 3);
		CHECK_EQ(gmem_uffd_read(s.uffd, e + 3, 8), 5);
		for (unsigned int i = 0; i < 8; i++) {
			CHECK_EQ(e[i].off, (round * 8 + (i * 5 + round) % 8) * P);
			CHECK_EQ(e[i].flags, i % 2 ? GMEM_UFFD_FAULT_WRITE : 0);
		}
		CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, (uint64_t)round * 8 * P, page_of, 8 * P), 8 * P);
		for (unsigned int i = 0; i < 8; i++)
			finish(&t[i], 0);
	}
	tear_down(&s);
}

/* More than one batch, of several views: none is lost and none told twice. */
TEST(many_events_of_many_views)
{
	enum { VIEWS = 4, EACH = 12 };
	struct scene s = set_up(EACH * P, 0);
	struct gmem_view *views[VIEWS] = { s.view };
	struct gmem_uffd_event e[VIEWS * EACH + 1];
	struct toucher t[VIEWS * EACH];
	int n = 0;

	CHECK_OK(gmem_file_write(s.file, 0, page_of, EACH * P));
	for (int v = 1; v < VIEWS; v++) {
		views[v] = new_view(s.file, 0, EACH * P);
		CHECK_OK(gmem_uffd_add_view(s.uffd, views[v]));
	}
	for (int i = 0; i < VIEWS * EACH; i++)
		start(&t[i], (char *)gmem_view_addr(views[i % VIEWS]) + i / VIEWS * P, false);
	for (int i = 0; i < VIEWS * EACH; i++)
		wait_asleep(&t[i]);
	n = (int)CHECK_OK(gmem_uffd_read(s.uffd, e, VIEWS * EACH + 1));
	CHECK_EQ(n, VIEWS * EACH);
	for (int i = 0; i < n; i++) {
		CHECK_EQ(e[i].flags, GMEM_UFFD_FAULT_MINOR);
		CHECK_EQ(gmem_uffd_continue(s.uffd, e[i].view, e[i].off, P), P);
	}
	for (int i = 0; i < n; i++)
		finish(&t[i], 0);
	for (int v = 1; v < VIEWS; v++)
		gmem_view_unmap(views[v]);
	tear_down(&s);
}

TEST(forked_child)
{
	struct scene s = set_up(16 * P, 0);
	struct pollfd p = { .fd = gmem_uffd_fd(s.uffd), .events = POLLIN };
	struct gmem_uffd_event e;
	struct toucher t;
	pid_t pid = fork();

	if (!pid) {
		struct gmem_view *own = new_view(s.file, 0, P);

		CHECK_ERR(gmem_uffd_read(s.uffd, &e, 1), -EIO);
		CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 0, page_of, P), -EIO);
		CHECK_ERR(gmem_uffd_continue(s.uffd, s.view, 0, P), -EIO);
		CHECK_ERR(gmem_uffd_wake(s.uffd, s.view, 0, P), -EIO);
		CHECK_ERR(gmem_uffd_add_view(s.uffd, own), -EIO);
		gmem_view_unmap(own);
		gmem_view_unmap(s.view);
		gmem_uffd_free(s.uffd);
		_exit(0);
	}
	wait_ok(pid);
	/* The parent's views are told of as before. */
	start(&t, s.p, false);
	CHECK_EQ(poll(&p, 1, 20000), 1);
	CHECK_EQ(next_event(s.uffd).off, 0);
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, page_of, P), P);
	finish(&t, 0);
	tear_down(&s);
}
