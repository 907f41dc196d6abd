/* SPDX-License-Identifier: MIT */
/* Userfaults on 2 MiB pages, resolved by the caller. */
#define TAP_NO_MAIN
#include "tap.h"

#include <fcntl.h>

#include "huge_util.h"
#include "uffd_util.h"

#define N 4ull

static char *bytes_of(unsigned int id)
{
	char *buf = malloc(N * H);

	for (uint64_t i = 0; i < N * H_PAGES; i++)
		fill_page(id, i * P, buf + i * P);
	return buf;
}

static struct scene begin(uint32_t flags)
{
	struct scene s = { .file = huge_file(N, 0), .len = N * H };

	need_markers();
	catch_bus();
	s.view = new_view(s.file, 0, s.len);
	s.p = gmem_view_addr(s.view);
	s.uffd = new_uffd(flags);
	CHECK_OK(gmem_uffd_add_view(s.uffd, s.view));
	return s;
}

TEST(huge_missing_and_copy)
{
	struct scene s = begin(0);
	struct gmem_uffd_event e;
	char *buf = bytes_of(1);
	struct toucher t;

	start(&t, s.p + H + 5 * P + 8, true);
	e = next_event(s.uffd);
	CHECK_EQ(e.flags, GMEM_UFFD_FAULT_WRITE);
	CHECK_EQ(e.off, H);
	/* By whole pages. */
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, H + 5 * P, buf, P), -EINVAL);
	CHECK_HAS(gmem_last_error(), "2097152");
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, H, buf, P), -EINVAL);
	CHECK_ERR(gmem_uffd_continue(s.uffd, s.view, H, P), -EINVAL);
	CHECK_ERR(gmem_uffd_wake(s.uffd, s.view, H + P, H), -EINVAL);
	CHECK(!goes_on(&t, 50));
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, H, buf + H, H), H);
	finish(&t, 0);
	CHECK_EQ(t.word, 0x77);
	CHECK(page_is(1, H + 6 * P, s.p + H + 6 * P));
	CHECK_EQ(resident(s.file), H);
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, H, buf, H), -EEXIST);
	/* Two at once, from an address of no alignment, up to one that is there. */
	memmove(buf + 3, buf + 2 * H, 2 * H - 3);
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 2 * H, buf + 3, H), H);
	CHECK(page_is(1, 2 * H + 100 * P, s.p + 2 * H + 100 * P));
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, buf, 2 * H), H);
	no_event(s.uffd);
	/* A source that is not there. */
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 3 * H, (void *)P, H), -EFAULT);
	CHECK_EQ(gmem_file_unit(s.file, 3 * H), GMEM_UNIT_ABSENT);
	free(buf);
	tear_down(&s);
}

TEST(huge_copy_around_what_is_there)
{
	struct scene s = begin(0);
	struct gmem_uffd_event e;
	char *buf = bytes_of(1), page[P];
	struct toucher t;

	memset(page, 'h', P);
	CHECK_OK(gmem_file_write(s.file, 9 * P, page, P));
	CHECK_OK(gmem_file_punch(s.file, 11 * P, P));
	/* To the kernel it is a minor fault: the page has memory. The rest of it is wanted all the same. */
	start(&t, s.p, false);
	e = next_event(s.uffd);
	CHECK_EQ(e.flags, 0);
	CHECK_ERR(gmem_uffd_continue(s.uffd, s.view, 0, H), -EFAULT);
	CHECK_EQ(gmem_file_unit(s.file, 0), GMEM_UNIT_PART);
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, buf, H), H);
	finish(&t, 0);
	for (uint64_t i = 0; i < H_PAGES; i++) {
		if (i == 9)
			CHECK_MEM(s.p + i * P, page, P);
		else if (i == 11)
			CHECK(page_is_zero(s.p + i * P));
		else
			CHECK(page_is(1, i * P, s.p + i * P));
	}
	free(buf);
	tear_down(&s);
}

TEST(huge_minor_and_continue)
{
	struct scene s = begin(0);
	struct gmem_view *plain = new_view(s.file, 0, 2 * H);
	struct gmem_uffd_event e;
	struct toucher t;

	/* By another mapping: as it is, with zeroes around it, and not to be overwritten. */
	strcpy((char *)gmem_view_addr(plain) + 7 * P, "mine");
	CHECK_ERR(gmem_uffd_continue(s.uffd, s.view, H, H), -EFAULT);
	start(&t, s.p + P, false);
	e = next_event(s.uffd);
	CHECK_EQ(e.flags, GMEM_UFFD_FAULT_MINOR);
	CHECK_EQ(e.off, 0);
	CHECK_EQ(gmem_uffd_continue(s.uffd, s.view, 0, 2 * H), H);
	finish(&t, 0);
	CHECK_STR(s.p + 7 * P, "mine");
	CHECK_EQ(gmem_file_unit(s.file, 0), GMEM_UNIT_IN_PLACE);
	CHECK_ERR(gmem_uffd_continue(s.uffd, s.view, 0, H), -EEXIST);
	strcpy((char *)gmem_view_addr(plain) + H + 7 * P, "too");
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, H, s.p, H), -EEXIST);
	CHECK_EQ(gmem_uffd_continue(s.uffd, s.view, H, H), H);
	CHECK_STR(s.p + H + 7 * P, "too");
	/* Known to be zero. */
	CHECK_OK(gmem_file_punch(s.file, 2 * H, 2 * H));
	start(&t, s.p + 2 * H, true);
	CHECK_EQ(next_event(s.uffd).flags, GMEM_UFFD_FAULT_MINOR | GMEM_UFFD_FAULT_WRITE);
	CHECK_EQ(gmem_uffd_continue(s.uffd, s.view, 2 * H, 2 * H), 2 * H);
	finish(&t, 0);
	CHECK(page_is_zero(s.p + 3 * H + 9 * P));
	no_event(s.uffd);
	gmem_view_unmap(plain);
	tear_down(&s);
}

/* Reserved is enough: memory given ahead would look like a mapping's bytes. */
TEST(huge_memory_asked_for_ahead)
{
	struct scene s = begin(0);
	char *buf = bytes_of(1);
	struct toucher t;

	CHECK_OK(gmem_file_fallocate(s.file, FALLOC_FL_KEEP_SIZE, 0, N * H));
	start(&t, s.p + 3 * P, false);
	CHECK_EQ(next_event(s.uffd).flags, 0);
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, buf, H), H);
	finish(&t, 0);
	CHECK(page_is(1, 3 * P, s.p + 3 * P));
	CHECK_OK(gmem_file_fallocate(s.file, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, 4 * P));
	CHECK(page_is_zero(s.p + 3 * P));
	CHECK(page_is(1, 4 * P, s.p + 4 * P));
	free(buf);
	tear_down(&s);
}

TEST(huge_wake_tells_again)
{
	struct scene s = begin(0);
	struct toucher t;

	start(&t, s.p + 3 * P, false);
	CHECK_EQ(next_event(s.uffd).off, 0);
	no_event(s.uffd);
	CHECK_OK(gmem_uffd_wake(s.uffd, s.view, 0, H));
	CHECK_EQ(next_event(s.uffd).off, 0);
	CHECK_OK(gmem_file_punch(s.file, 0, H));
	CHECK_EQ(gmem_uffd_continue(s.uffd, s.view, 0, H), H);
	finish(&t, 0);
	tear_down(&s);
}

TEST(huge_poisoned_part)
{
	struct scene s = begin(0);
	char *buf = bytes_of(1), byte;
	struct toucher t;

	CHECK_OK(gmem_file_write(s.file, 3 * P, "x", 1));
	gmem_rwlock_lock_shared(&s.file->invalidate_lock);
	CHECK_EQ(gmem_file_poison_page(s.file, 5 * P), 0);
	gmem_rwlock_unlock_shared(&s.file->invalidate_lock);
	start(&t, s.p + P, false);
	CHECK_EQ(next_event(s.uffd).off, 0);
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 0, buf, H), -EHWPOISON);
	finish(&t, SIGBUS);
	CHECK_EQ(touch(s.p + 3 * P), SIGBUS);
	CHECK_ERR(gmem_uffd_continue(s.uffd, s.view, 0, H), -EHWPOISON);
	CHECK_OK(gmem_file_read(s.file, 3 * P, &byte, 1));
	CHECK_EQ(byte, 'x');
	CHECK_ERR(gmem_file_read(s.file, 5 * P, &byte, 1), -EHWPOISON);
	free(buf);
	tear_down(&s);
}

static void private_pages(bool events)
{
	struct scene s = begin(events ? GMEM_UFFD_PRIVATE_EVENTS : 0);
	char *buf = bytes_of(1);
	struct toucher t;

	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, buf, H), H);
	convert(s.file, 0, 2 * H, PRIVATE);
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, H, buf, H), -EACCES);
	CHECK_ERR(gmem_uffd_continue(s.uffd, s.view, 0, H), -EACCES);
	/* Also a page that is punched whole, which takes its marker away for a moment. */
	CHECK_OK(gmem_file_punch(s.file, 0, H));
	start(&t, s.p + 9 * P, false);
	if (events) {
		struct gmem_uffd_event e = next_event(s.uffd);

		CHECK_EQ(e.off, 0);
		CHECK(e.flags & GMEM_UFFD_FAULT_PRIVATE);
		convert(s.file, 0, 2 * H, 0);
		CHECK_EQ(gmem_uffd_continue(s.uffd, s.view, 0, H), H);
		finish(&t, 0);
		CHECK_EQ(t.word, 0);
	} else {
		finish(&t, SIGBUS);
		no_event(s.uffd);
		convert(s.file, 0, 2 * H, 0);
	}
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, H, buf + H, H), H);
	CHECK(page_is(1, H + 8 * P, s.p + H + 8 * P));
	free(buf);
	tear_down(&s);
}

TEST(huge_private_pages_and_markers)
{
	private_pages(false);
}

TEST(huge_private_pages_and_events)
{
	private_pages(true);
}

struct guest {
	struct gmem_vcpu *vcpu;
	uint64_t gpa;
	char page[P];
};

static void *guest_main(void *arg)
{
	struct guest *g = arg;

	CHECK_OK(gmem_vcpu_load(g->vcpu, g->gpa, g->page, P));
	return NULL;
}

TEST(huge_guest_events)
{
	struct scene s = begin(0);
	struct gmem_memslot slot = { .size = sizeof(slot), .len = N * H, .file = s.file };
	struct guest g = { .gpa = 2 * H + 44 * P };
	char *buf = bytes_of(1);
	struct gmem_uffd_event e;
	pthread_t thread;
	struct gmem_vm *vm;

	CHECK_OK(gmem_vm_create(NULL, &vm));
	CHECK_OK(gmem_vm_set_slot(vm, &slot));
	CHECK_OK(gmem_vcpu_create(vm, NULL, &g.vcpu));
	CHECK_EQ(pthread_create(&thread, NULL, guest_main, &g), 0);
	e = next_event(s.uffd);
	CHECK_EQ(e.flags, GMEM_UFFD_FAULT_GUEST);
	CHECK_EQ(e.off, 2 * H);
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, e.off, buf + e.off, H), H);
	pthread_join(thread, NULL);
	CHECK(page_is(1, g.gpa, g.page));
	gmem_vcpu_free(g.vcpu);
	gmem_vm_free(vm);
	free(buf);
	tear_down(&s);
}

struct copier {
	struct scene *s;
	const char *buf;
	uint64_t done;
};

static void *copier_main(void *arg)
{
	struct copier *c = arg;

	for (uint64_t i = 0; i < N; i++) {
		int64_t n = gmem_uffd_copy(c->s->uffd, c->s->view, i * H, c->buf + i * H, H);

		CHECK(n == H || n == -EEXIST);
		c->done += n == H;
	}
	return NULL;
}

/* Each page is brought in by one of them, or by several, and is whole. */
TEST(huge_copies_at_once)
{
	struct scene s = begin(0);
	char *buf = bytes_of(1);
	struct copier c[4];
	pthread_t threads[4];
	uint64_t done = 0;

	for (int i = 0; i < 4; i++) {
		c[i] = (struct copier){ .s = &s, .buf = buf };
		CHECK_EQ(pthread_create(&threads[i], NULL, copier_main, &c[i]), 0);
	}
	for (int i = 0; i < 4; i++) {
		pthread_join(threads[i], NULL);
		done += c[i].done;
	}
	CHECK(done <= N);
	for (uint64_t i = 0; i < N; i++)
		CHECK_EQ(gmem_file_unit(s.file, i * H), GMEM_UNIT_IN_PLACE);
	(void)gmem_uffd_continue(s.uffd, s.view, 0, N * H);
	for (uint64_t i = 0; i < N; i++)
		(void)gmem_uffd_continue(s.uffd, s.view, i * H, H);
	for (uint64_t i = 0; i < N * H_PAGES; i++)
		CHECK(page_is(1, i * P, s.p + i * P));
	free(buf);
	tear_down(&s);
}
