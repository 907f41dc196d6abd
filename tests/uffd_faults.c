/* SPDX-License-Identifier: MIT */
/* A kernel that fails a gmem_uffd at every call it makes, and one that allows user-mode descriptors only. */
#include "tap.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>

#include "sys/call.h"
#include "sys/memfd.h"
#include "uffd_util.h"

/* The n-th call from now on of a function fails, and `more` after it. */
static struct fail {
	int in, err, more;
} fail_write, fail_alloc, fail_open, fail_register, fail_continue, fail_peek, fail_zap, fail_epoll;

static bool fails(struct fail *f)
{
	if (!f->in || --f->in)
		return false;
	if (f->more) {
		f->more--;
		f->in = 1;
	}
	return true;
}

static bool user_mode; /* full descriptors are denied */

int __real_gmem_pwrite_all(int fd, const void *buf, size_t len, uint64_t off);
int __wrap_gmem_pwrite_all(int fd, const void *buf, size_t len, uint64_t off);
int __real_gmem_memfd_allocate(int fd, uint64_t off, uint64_t len);
int __wrap_gmem_memfd_allocate(int fd, uint64_t off, uint64_t len);
int __real_gmem_sys_uffd_open(uint64_t features, bool *user_mode_only);
int __wrap_gmem_sys_uffd_open(uint64_t features, bool *user_mode_only);
int __real_gmem_sys_uffd_register(int uffd, uint64_t hva, uint64_t len, unsigned int mode);
int __wrap_gmem_sys_uffd_register(int uffd, uint64_t hva, uint64_t len, unsigned int mode);
int __real_gmem_sys_uffd_continue(int uffd, uint64_t hva, uint64_t len, uint64_t *done);
int __wrap_gmem_sys_uffd_continue(int uffd, uint64_t hva, uint64_t len, uint64_t *done);
ssize_t __real_gmem_sys_peek(void *to, const void *from, size_t len);
ssize_t __wrap_gmem_sys_peek(void *to, const void *from, size_t len);
int __real_gmem_sys_zap(void *addr, size_t len);
int __wrap_gmem_sys_zap(void *addr, size_t len);
int __real_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev);
int __wrap_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev);

int __wrap_gmem_pwrite_all(int fd, const void *buf, size_t len, uint64_t off)
{
	if (!fails(&fail_write))
		return __real_gmem_pwrite_all(fd, buf, len, off);
	/* As a disk that fills up does it. */
	__real_gmem_pwrite_all(fd, buf, len / 2, off);
	return fail_write.err;
}

int __wrap_gmem_memfd_allocate(int fd, uint64_t off, uint64_t len)
{
	return fails(&fail_alloc) ? fail_alloc.err : __real_gmem_memfd_allocate(fd, off, len);
}

int __wrap_gmem_sys_uffd_open(uint64_t features, bool *user_mode_only)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd;

	if (fails(&fail_open))
		return fail_open.err;
	if (!user_mode || !user_mode_only)
		return __real_gmem_sys_uffd_open(features, user_mode_only);
	fd = gmem_sys_userfaultfd(UFFD_USER_MODE_ONLY | O_CLOEXEC | O_NONBLOCK);
	CHECK_OK(fd);
	CHECK_EQ(ioctl(fd, UFFDIO_API, &api), 0);
	*user_mode_only = true;
	return fd;
}

int __wrap_gmem_sys_uffd_register(int uffd, uint64_t hva, uint64_t len, unsigned int mode)
{
	return fails(&fail_register) ? fail_register.err : __real_gmem_sys_uffd_register(uffd, hva, len, mode);
}

int __wrap_gmem_sys_uffd_continue(int uffd, uint64_t hva, uint64_t len, uint64_t *done)
{
	if (!fails(&fail_continue))
		return __real_gmem_sys_uffd_continue(uffd, hva, len, done);
	*done = 0;
	return fail_continue.err;
}

ssize_t __wrap_gmem_sys_peek(void *to, const void *from, size_t len)
{
	return fails(&fail_peek) ? fail_peek.err : __real_gmem_sys_peek(to, from, len);
}

int __wrap_gmem_sys_zap(void *addr, size_t len)
{
	return fails(&fail_zap) ? fail_zap.err : __real_gmem_sys_zap(addr, len);
}

int __wrap_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev)
{
	if (op != EPOLL_CTL_ADD || !fails(&fail_epoll))
		return __real_epoll_ctl(epfd, op, fd, ev);
	errno = -fail_epoll.err;
	return -1;
}

/* ---- adding a view */

#define PRIVATE_AT 4ull /* of 16 pages: the fifth */

static struct gmem_uffd *uffd;
static struct gmem_file *file;
static struct gmem_view *view;
static char *p;

/* The view is as plain as it was: private pages are SIGBUS, shared ones memory. */
static void check_plain(bool marked)
{
	CHECK_EQ(view->use, GMEM_VIEW_PLAIN);
	CHECK(!view->private_events && !view->server && !view->unmapping);
	CHECK_EQ(view->uffd >= 0, marked);
	for (uint64_t i = 0; i < 16; i++)
		CHECK_EQ(touch(p + i * P), marked && i == PRIVATE_AT ? SIGBUS : 0);
	no_event(uffd);
	CHECK_ERR(gmem_uffd_continue(uffd, view, 0, P), -EINVAL);
	/* It converts as ever. */
	convert(file, 9 * P, P, PRIVATE);
	CHECK_EQ(touch(p + 9 * P), SIGBUS);
	convert(file, 9 * P, P, 0);
	CHECK_EQ(touch(p + 9 * P), 0);
}

static void refused(struct fail *f, int err, uint32_t flags, bool marked)
{
	uffd = new_uffd(flags);
	file = new_file(16 * P, 0);
	view = new_view(file, 0, 16 * P);
	p = gmem_view_addr(view);
	if (marked)
		convert(file, PRIVATE_AT * P, P, PRIVATE);
	*f = (struct fail){ .in = 1, .err = err };
	CHECK_ERR(gmem_uffd_add_view(uffd, view), err);
	CHECK_EQ(f->in, 0);
	check_plain(marked);
	/* Nothing is in the way of another attempt. */
	CHECK_OK(gmem_uffd_add_view(uffd, view));
	gmem_view_unmap(view);
	gmem_uffd_free(uffd);
	gmem_file_free(file);
}

TEST(view_that_cannot_be_added)
{
	static const int open_errs[] = { -EPERM, -ENOSYS, -EOPNOTSUPP, -EMFILE };
	/* Not -EINVAL, which may be about one mode: the others are tried. */
	static const int register_errs[] = { -EBUSY, -EPERM, -ENOMEM };

	need_markers();
	catch_bus();
	for (int i = 0; i < 4; i++)
		refused(&fail_open, open_errs[i], 0, false);
	for (uint32_t flags = 0; flags <= GMEM_UFFD_PRIVATE_EVENTS; flags++) {
		for (int i = 0; i < 3; i++) {
			refused(&fail_register, register_errs[i], flags, false);
			refused(&fail_register, register_errs[i], flags, true);
		}
		refused(&fail_epoll, -ENOSPC, flags, false);
		refused(&fail_epoll, -ENOSPC, flags, true);
	}
	refused(&fail_zap, -ENOMEM, GMEM_UFFD_PRIVATE_EVENTS, true);
}

/* Where there are no markers an empty file is mapped over private pages, and no gmem_uffd takes the view. */
TEST(view_marked_by_mapping)
{
	need_markers();
	catch_bus();
	uffd = new_uffd(0);
	file = new_file(16 * P, 0);
	view = new_view(file, 0, 16 * P);
	fail_open = (struct fail){ .in = 1, .err = -EOPNOTSUPP };
	convert(file, 0, P, PRIVATE);
	CHECK(view->by_mapping);
	CHECK_ERR(gmem_uffd_add_view(uffd, view), -EOPNOTSUPP);
	CHECK_EQ(touch(gmem_view_addr(view)), SIGBUS);
	convert(file, 0, P, 0);
	CHECK_EQ(touch(gmem_view_addr(view)), 0);
	gmem_view_unmap(view);
	gmem_uffd_free(uffd);
	gmem_file_free(file);
}

/* ---- bringing in and mapping */

static char bytes[64 * P];

/* No lock is left: what fails may be done again. */
static void check_whole(struct scene *s, uint64_t from, uint64_t npages)
{
	gmem_rwlock_lock(&s->file->invalidate_lock);
	gmem_rwlock_unlock(&s->file->invalidate_lock);
	for (uint64_t i = from; i < from + npages; i++)
		CHECK_EQ(gmem_state_word(&s->file->state, i), GMEM_WORD_ABSENT);
}

static uint64_t resident(const struct gmem_file *f)
{
	struct gmem_file_counts c = { .size = sizeof(c) };

	CHECK_OK(gmem_file_query(f, &c));
	return c.resident;
}

TEST(copy_without_memory)
{
	static const int errs[] = { -ENOSPC, -ENOMEM, -EFBIG };

	/* 64 pages are four writes, each of which may be the one. */
	for (int n = 1; n <= 4; n++) {
		for (int i = 0; i < 3; i++) {
			struct scene s = set_up(64 * P, 0);
			uint64_t done = (uint64_t)(n - 1) * 16;
			struct toucher t;

			start(&t, s.p + done * P, false);
			CHECK_EQ(next_event(s.uffd).off, done * P);
			fail_write = (struct fail){ .in = n, .err = errs[i] };
			if (n == 1)
				CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 0, bytes, 64 * P), errs[i]);
			else
				CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, bytes, 64 * P), done * P);
			check_whole(&s, done, 64 - done);
			CHECK_EQ(resident(s.file), done * P);
			CHECK(!goes_on(&t, 5));
			CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, done * P, bytes, (64 - done) * P), (64 - done) * P);
			finish(&t, 0);
			tear_down(&s);
		}
	}
}

TEST(zero_page_without_memory)
{
	struct scene s = set_up(64 * P, 0);

	CHECK_OK(gmem_file_punch(s.file, 0, 8 * P));
	fail_alloc = (struct fail){ .in = 1, .err = -ENOSPC };
	CHECK_ERR(gmem_uffd_continue(s.uffd, s.view, 0, 8 * P), -ENOSPC);
	CHECK_EQ(resident(s.file), 0);
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 8 * P, bytes, P), P);
	gmem_rwlock_lock(&s.file->invalidate_lock);
	gmem_rwlock_unlock(&s.file->invalidate_lock);
	CHECK_EQ(gmem_uffd_continue(s.uffd, s.view, 0, 8 * P), 8 * P);
	CHECK(page_is_zero(s.p + 7 * P));
	tear_down(&s);
}

TEST(source_that_fails)
{
	struct scene s = set_up(64 * P, 0);

	fail_peek = (struct fail){ .in = 1, .err = -EMFILE };
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 0, bytes, 64 * P), -EMFILE);
	fail_peek = (struct fail){ .in = 3, .err = -EFAULT };
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, bytes, 64 * P), 32 * P);
	check_whole(&s, 32, 32);
	tear_down(&s);
}

/* Bytes are in place and cannot be mapped: said so, and made good by gmem_uffd_continue(). */
TEST(mapping_that_fails)
{
	static const int errs[] = { -ENOMEM, -ENOENT, -EAGAIN };

	for (int i = 0; i < 3; i++) {
		struct scene s = set_up(64 * P, 0);
		struct toucher t;

		start(&t, s.p, false);
		CHECK_EQ(next_event(s.uffd).off, 0);
		fail_continue = (struct fail){ .in = 1, .err = errs[i], .more = 5000 };
		CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 0, bytes, 4 * P), errs[i]);
		CHECK_ERR(gmem_uffd_continue(s.uffd, s.view, 0, 4 * P), errs[i]);
		fail_continue.in = 0;
		CHECK_EQ(gmem_file_page_state(s.file, 0), GMEM_PAGE_UPTODATE);
		CHECK(!goes_on(&t, 20));
		CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 0, bytes, P), -EEXIST);
		CHECK_EQ(gmem_uffd_continue(s.uffd, s.view, 0, 4 * P), 4 * P);
		finish(&t, 0);
		/* Now and then is no failure. */
		fail_continue = (struct fail){ .in = 1, .err = -EAGAIN, .more = 50 };
		CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 8 * P, bytes, 4 * P), 4 * P);
		tear_down(&s);
	}
}

/* A memory error of the machine's. */
TEST(page_lost_by_the_kernel)
{
	struct scene s = set_up(64 * P, 0);
	struct toucher t;

	start(&t, s.p + 2 * P, false);
	CHECK_EQ(next_event(s.uffd).off, 2 * P);
	CHECK_OK(gmem_file_write(s.file, 2 * P, bytes, P));
	fail_continue = (struct fail){ .in = 1, .err = -EIO };
	CHECK_ERR(gmem_uffd_continue(s.uffd, s.view, 2 * P, P), -EHWPOISON);
	finish(&t, SIGBUS);
	tear_down(&s);
}

/* The program has split the mapping, or has taken a piece out of it. */
TEST(split_mapping)
{
	struct scene s = set_up(64 * P, 0);

	CHECK_EQ(mprotect(s.p + 5 * P, P, PROT_READ), 0);
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, bytes, 16 * P), 16 * P);
	CHECK_EQ(touch(s.p + 15 * P), 0);
	CHECK_EQ(munmap(s.p + 20 * P, P), 0);
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 16 * P, bytes, 16 * P), 4 * P);
	CHECK_ERR(gmem_uffd_continue(s.uffd, s.view, 20 * P, P), -ENOENT);
	CHECK_EQ(gmem_uffd_continue(s.uffd, s.view, 21 * P, 11 * P), 11 * P);
	tear_down(&s);
}

/* ---- user-mode-only */

TEST(user_mode_only)
{
	struct scene s;
	struct toucher t;
	int fds[2];

	need_markers();
	s = set_up(16 * P, 0);
	if (!gmem_uffd_user_mode_only(s.uffd)) {
		struct gmem_view *other = new_view(s.file, 0, P);

		user_mode = true;
		CHECK_OK(gmem_uffd_add_view(s.uffd, other));
		CHECK(gmem_uffd_user_mode_only(s.uffd));
		gmem_view_unmap(other);
	}
	tear_down(&s);
	user_mode = true;
	s = set_up(16 * P, 0);
	CHECK(gmem_uffd_user_mode_only(s.uffd));
	CHECK_EQ(pipe(fds), 0);
	CHECK_EQ(write(fds[1], s.p, 1), -1);
	CHECK_EQ(errno, EFAULT);
	no_event(s.uffd);
	/* As a source too: bytes that are not there yet cannot be waited for. */
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 0, s.p + P, P), -EFAULT);
	start(&t, s.p, false);
	CHECK_EQ(next_event(s.uffd).off, 0);
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, bytes, P), P);
	finish(&t, 0);
	CHECK_EQ(write(fds[1], s.p, 1), 1);
	convert(s.file, 0, P, PRIVATE);
	CHECK_EQ(touch(s.p), SIGBUS);
	close(fds[0]);
	close(fds[1]);
	tear_down(&s);
}
