/* SPDX-License-Identifier: MIT */
/* A kernel that fails what a gmem_uffd asks of it for its modes, mappings and marks. */
#include "tap.h"

#include <sys/epoll.h>

#include "uffd_kid.h"

#define LEN (16 * P)
#define BOTH (GMEM_UFFD_MODE_MISSING | GMEM_UFFD_MODE_WP)

/* The n-th call from now on fails, and `more` after it. */
static struct fail {
	int in, err, more;
} fail_epoll, fail_register, fail_protect, fail_poison, fail_open;

static bool no_protection; /* the kernel has no such mode */

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

int __real_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev);
int __wrap_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev);
int __real_gmem_sys_uffd_open(uint64_t features, bool *user_mode_only);
int __wrap_gmem_sys_uffd_open(uint64_t features, bool *user_mode_only);
int __real_gmem_sys_uffd_register(int uffd, uint64_t hva, uint64_t len, unsigned int mode);
int __wrap_gmem_sys_uffd_register(int uffd, uint64_t hva, uint64_t len, unsigned int mode);
int __real_gmem_sys_uffd_writeprotect(int uffd, uint64_t hva, uint64_t len, bool protect, bool wake);
int __wrap_gmem_sys_uffd_writeprotect(int uffd, uint64_t hva, uint64_t len, bool protect, bool wake);
int __real_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done);
int __wrap_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done);

int __wrap_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev)
{
	if (op != EPOLL_CTL_ADD || !fails(&fail_epoll))
		return __real_epoll_ctl(epfd, op, fd, ev);
	errno = -fail_epoll.err;
	return -1;
}

int __wrap_gmem_sys_uffd_open(uint64_t features, bool *user_mode_only)
{
	return fails(&fail_open) ? fail_open.err : __real_gmem_sys_uffd_open(features, user_mode_only);
}

int __wrap_gmem_sys_uffd_register(int uffd, uint64_t hva, uint64_t len, unsigned int mode)
{
	if (no_protection && (mode & GMEM_SYS_UFFD_WP))
		return -EINVAL;
	return fails(&fail_register) ? fail_register.err : __real_gmem_sys_uffd_register(uffd, hva, len, mode);
}

int __wrap_gmem_sys_uffd_writeprotect(int uffd, uint64_t hva, uint64_t len, bool protect, bool wake)
{
	return fails(&fail_protect) ? fail_protect.err :
				      __real_gmem_sys_uffd_writeprotect(uffd, hva, len, protect, wake);
}

int __wrap_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done)
{
	if (!fails(&fail_poison))
		return __real_gmem_sys_uffd_poison(uffd, hva, len, wake, done);
	*done = 0;
	return fail_poison.err;
}

static struct scene begin(uint32_t modes)
{
	struct scene s = { .len = LEN };

	need_markers();
	catch_bus();
	s.file = new_file(LEN, 0);
	s.view = new_view(s.file, 0, LEN);
	s.p = gmem_view_addr(s.view);
	s.uffd = new_uffd(0);
	if (modes)
		CHECK_OK(gmem_uffd_register(s.uffd, s.view, modes));
	return s;
}

/* The view is as it was: its memory plain, its pages convertible, another attempt as good as the first. */
static void refused(struct fail *f, int in, int err, uint32_t modes)
{
	struct scene s = begin(0);

	*f = (struct fail){ .in = in, .err = err };
	CHECK_ERR(gmem_uffd_register(s.uffd, s.view, modes), err);
	CHECK_EQ(f->in, 0);
	CHECK_EQ(s.view->use, GMEM_VIEW_PLAIN);
	CHECK(s.view->uffd < 0 && !s.view->protection && !s.view->server && !s.view->unmapping);
	s.p[0] = 1;
	no_event(s.uffd);
	CHECK_OK(gmem_uffd_register(s.uffd, s.view, modes));
	tear_down(&s);
}

TEST(view_that_cannot_be_registered)
{
	static const uint32_t modes[] = { BOTH, GMEM_UFFD_MODE_WP, BOTH | GMEM_UFFD_MODE_REMOVE };

	for (int i = 0; i < 3; i++) {
		refused(&fail_open, 1, -EMFILE, modes[i]);
		refused(&fail_register, 1, -ENOMEM, modes[i]);
		refused(&fail_register, 1, -EBUSY, modes[i]);
		refused(&fail_epoll, 1, -ENOSPC, modes[i]);
	}
}

/* A kernel without write protection of shared memory: who asks for it is told, others do without. */
TEST(no_such_mode)
{
	struct scene s = begin(0);

	no_protection = true;
	CHECK_ERR(gmem_uffd_register(s.uffd, s.view, BOTH), -EOPNOTSUPP);
	CHECK_EQ(s.view->use, GMEM_VIEW_PLAIN);
	CHECK_OK(gmem_uffd_register(s.uffd, s.view, GMEM_UFFD_MODE_MISSING));
	CHECK_EQ(gmem_uffd_zeropage(s.uffd, s.view, 0, P), P);
	CHECK_ERR(gmem_uffd_writeprotect(s.uffd, s.view, 0, P, true), -EINVAL);
	tear_down(&s);
}

TEST(mapping_that_cannot_be_registered)
{
	static const struct {
		struct fail *f;
		int in, err;
	} cases[] = {
		{ &fail_register, 1, -ENOMEM }, { &fail_register, 1, -EBUSY }, { &fail_register, 1, -EINVAL },
		{ &fail_epoll, 1, -ENOSPC },	{ &fail_epoll, 2, -ENOSPC },
	};
	struct gmem_uffd *uffd = new_uffd(0);
	struct gmem_uffd_mapping m;
	struct gmem_view *view = NULL;
	struct gmem_file *file;
	struct kid kid;

	need_markers();
	file = new_file(LEN, 0);
	kid = new_kid(file, KID_FEATURES);
	m = mapping_of(&kid, file, BOTH);
	m.pidfd = kid.pidfd;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		*cases[i].f = (struct fail){ .in = cases[i].in, .err = cases[i].err };
		CHECK_ERR(gmem_uffd_register_mapping(uffd, &m, &view), cases[i].err);
		CHECK(!view);
		CHECK_EQ(cases[i].f->in, 0);
	}
	CHECK_OK(gmem_uffd_register_mapping(uffd, &m, &view));
	kid_tell(&kid, KID_READ, 0, 0);
	CHECK_EQ(next_event(uffd).off, 0);
	CHECK_EQ(gmem_uffd_zeropage(uffd, view, 0, P), P);
	CHECK_EQ(kid_answer(&kid), 0);
	gmem_view_unmap(view);
	gmem_uffd_free(uffd);
	end_kid(&kid);
	gmem_file_free(file);
}

TEST(protection)
{
	struct scene s = begin(BOTH);
	struct toucher t;

	/* The address space changes for a while, or all the time. */
	fail_protect = (struct fail){ .in = 1, .err = -EAGAIN, .more = 20 };
	CHECK_EQ(gmem_uffd_writeprotect(s.uffd, s.view, 0, LEN, true), LEN);
	fail_protect = (struct fail){ .in = 1, .err = -EAGAIN, .more = 1000000 };
	CHECK_ERR(gmem_uffd_writeprotect(s.uffd, s.view, 0, LEN, false), -EAGAIN);
	fail_protect = (struct fail){ .in = 1, .err = -ENOMEM };
	CHECK_ERR(gmem_uffd_writeprotect(s.uffd, s.view, 0, LEN, false), -ENOMEM);
	/* Memory of the program's own in the middle: so far, and no further; and from there on. */
	CHECK(mmap(s.p + 5 * P, P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
	      s.p + 5 * P);
	CHECK_EQ(gmem_uffd_writeprotect(s.uffd, s.view, 0, LEN, true), 5 * P);
	CHECK_ERR(gmem_uffd_writeprotect(s.uffd, s.view, 5 * P, LEN - 5 * P, true), -ENOENT);
	CHECK_EQ(gmem_uffd_writeprotect(s.uffd, s.view, 6 * P, LEN - 6 * P, true), LEN - 6 * P);
	s.p[5 * P] = 1;
	/* What failed changed nothing. */
	CHECK_EQ(gmem_uffd_zeropage(s.uffd, s.view, 0, P), P);
	start(&t, s.p, true);
	CHECK_EQ(next_event(s.uffd).kind, GMEM_UFFD_EVENT_WP);
	CHECK_EQ(gmem_uffd_writeprotect(s.uffd, s.view, 0, P, false), P);
	finish(&t, 0);
	tear_down(&s);
}

TEST(poison)
{
	struct scene s = begin(BOTH);

	fail_poison = (struct fail){ .in = 1, .err = -EAGAIN, .more = 20 };
	CHECK_EQ(gmem_uffd_poison(s.uffd, s.view, 0, P), P);
	CHECK_EQ(touch(s.p), SIGBUS);
	/* Lost it is; that its touchers meet that comes with another attempt. */
	fail_poison = (struct fail){ .in = 1, .err = -ENOMEM };
	CHECK_ERR(gmem_uffd_poison(s.uffd, s.view, P, P), -ENOMEM);
	CHECK_EQ(gmem_file_page_state(s.file, P), GMEM_PAGE_POISONED);
	CHECK_EQ(gmem_uffd_poison(s.uffd, s.view, P, P), P);
	CHECK_EQ(touch(s.p + P), SIGBUS);
	/* The program's own memory is there: it is left alone. */
	CHECK(mmap(s.p + 5 * P, P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
	      s.p + 5 * P);
	CHECK_EQ(gmem_uffd_poison(s.uffd, s.view, 4 * P, 4 * P), P);
	CHECK_ERR(gmem_uffd_poison(s.uffd, s.view, 5 * P, P), -ENOENT);
	s.p[5 * P] = 1;
	tear_down(&s);
}
