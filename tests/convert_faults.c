/* SPDX-License-Identifier: MIT */
/* Conversions in which the kernel says no, at every call it is asked. */
#include "tap.h"

#include "convert_util.h"
#include "sys/call.h"
#include "sys/memfd.h"

#define N 150u

/* Which functions fail, at their calls number `fail_at` to `fail_to` from now. */
enum { ZAP = 1, POISON = 2, PUNCH = 4, PWRITE = 8, PREAD = 16, CREATE = 32, REGISTER = 64, MAP_OVER = 128 };
static bool by_mapping;
static unsigned int failing;
static int fail_at, fail_to, fail_err, calls;

static bool fails(unsigned int what)
{
	return failing & what && ++calls >= fail_at && calls <= fail_to;
}

#define WRAP(what, type, name, params, args) \
	type __real_##name params;           \
	type __wrap_##name params;           \
	type __wrap_##name params            \
	{                                    \
		if (fails(what))             \
			return fail_err;     \
		return __real_##name args;   \
	}

WRAP(ZAP, int, gmem_sys_zap, (void *addr, size_t len), (addr, len))
WRAP(PUNCH, int, gmem_memfd_punch, (int fd, uint64_t off, uint64_t len), (fd, off, len))
WRAP(PWRITE, int, gmem_pwrite_all, (int fd, const void *buf, size_t len, uint64_t off), (fd, buf, len, off))
WRAP(PREAD, int, gmem_pread_all, (int fd, void *buf, size_t len, uint64_t off), (fd, buf, len, off))
WRAP(CREATE, int, gmem_memfd_create, (const char *name, uint64_t len), (name, len))
WRAP(REGISTER, int, gmem_sys_uffd_register, (int uffd, uint64_t hva, uint64_t len, unsigned int mode),
     (uffd, hva, len, mode))

int __real_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done);
int __wrap_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done);

int __wrap_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done)
{
	*done = 0;
	/* A part is done before it fails. */
	if (fails(POISON)) {
		if (len > P)
			__real_gmem_sys_uffd_poison(uffd, hva, P, wake, done);
		return fail_err;
	}
	return __real_gmem_sys_uffd_poison(uffd, hva, len, wake, done);
}

/* By this name, with offsets of 64 bits: see _FILE_OFFSET_BITS. */
void *__real_mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t off);
void *__wrap_mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t off);

void *__wrap_mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	if ((flags & MAP_FIXED) && fails(MAP_OVER)) {
		errno = -fail_err;
		return MAP_FAILED;
	}
	return __real_mmap64(addr, len, prot, flags, fd, off);
}

struct case_of {
	struct gmem_file *file;
	struct gmem_view *views[3];
	unsigned char private[N], byte[N];
	bool lossy; /* pages may be lost */
};

static void set_up(struct case_of *c, uint32_t flags)
{
	failing = 0;
	*c = (struct case_of){ .file = file_of(N, flags) };
	c->views[0] = view_of(c->file, 0, N, PROT_READ | PROT_WRITE);
	c->views[1] = view_of(c->file, 7, 100, PROT_READ);
	c->views[2] = view_of(c->file, 90, 60, PROT_READ | PROT_WRITE);
	for (int i = 0; i < 3 && by_mapping; i++)
		c->views[i]->by_mapping = true;
	for (uint64_t i = 0; i < N; i++)
		if (i % 50 < 40)
			*page_of(c->views[0], i) = (char)(c->byte[i] = (unsigned char)(i + 1));
	/* Several runs. */
	convert(c->file, 20, 5, PRIVATE);
	convert(c->file, 95, 3, PRIVATE);
	memset(c->private + 20, 1, 5);
	memset(c->private + 95, 1, 3);
}

static void tear_down(struct case_of *c)
{
	failing = 0;
	for (int i = 0; i < 3; i++)
		gmem_view_unmap(c->views[i]);
	gmem_file_free(c->file);
}

static void fail(unsigned int what, int from, int to, int err)
{
	failing = what;
	fail_at = from;
	fail_to = to;
	fail_err = err;
	calls = 0;
}

/* Lost pages are known as such, and nobody reads a zero in their place. */
static unsigned int check_lost(struct case_of *c)
{
	unsigned int n = 0;

	for (uint64_t i = 0; i < N; i++) {
		if (gmem_file_page_state(c->file, i * P) != GMEM_PAGE_POISONED)
			continue;
		CHECK(c->lossy);
		CHECK_EQ(peek(page_of(c->views[0], i)), -1);
		n++;
	}
	return n;
}

static void check_all(struct case_of *c)
{
	failing = 0;
	/* Nobody holds it: a taker would hang. */
	gmem_rwlock_lock(&c->file->invalidate_lock);
	gmem_rwlock_unlock(&c->file->invalidate_lock);
	check_sides(c->file, c->private, N);
	if (check_lost(c))
		return;
	for (int i = 0; i < 3; i++)
		check_view(c->views[i], c->private, c->byte);
}

/* The k-th call fails, or all from the k-th on do: then the way back is barred too. True while there was a k-th. */
static bool attempt(struct case_of *c, unsigned int what, int k, bool all, int err, uint64_t attributes)
{
	uint64_t error_off = 7;
	int got, n;

	fail(what, k, all ? INT32_MAX : k, err);
	got = gmem_file_set_attributes(c->file, 5 * P, 130 * P, attributes, &error_off);
	n = calls;
	failing = 0;
	if (!got) {
		CHECK_EQ(error_off, 7);
		memset(c->private + 5, attributes == PRIVATE, 130);
	} else {
		CHECK(gmem_last_error()[0]);
		CHECK(error_off % P == 0 && error_off >= 5 * P && error_off < 135 * P);
	}
	if (!all)
		check_all(c);
	return n >= k;
}

/* No host thread reaches a private page; whatever is out of reach besides comes back. */
static void check_safe(struct case_of *c)
{
	uint64_t len, attributes;

	for (uint64_t i = 0; i < N; i++) {
		CHECK_OK(gmem_file_attributes(c->file, i * P, &attributes, &len));
		for (int v = 0; v < 3; v++)
			if (attributes && i >= c->views[v]->off / P && i < (c->views[v]->off + c->views[v]->len) / P)
				CHECK_EQ(peek(page_of(c->views[v], i)), -1);
	}
	convert(c->file, 0, N, PRIVATE);
	convert(c->file, 0, N, 0);
	memset(c->private, 0, N);
	check_all(c);
}

static void every_call(unsigned int what, int err, uint32_t flags, uint64_t attributes)
{
	bool more = true;
	struct case_of c;

	for (int k = 1; more; k++)
		for (int all = 0; all < 2; all++) {
			set_up(&c, flags);
			c.lossy = what == PWRITE;
			if (attributes != PRIVATE) {
				convert(c.file, 10, 100, PRIVATE);
				memset(c.private + 10, 1, 100);
			}
			more = attempt(&c, what, k, all, err, attributes);
			if (!check_lost(&c))
				check_safe(&c);
			tear_down(&c);
			if (k > 500)
				FAIL("there is no end of calls");
		}
}

TEST(zaps_that_fail)
{
	every_call(ZAP, -ENOMEM, 0, PRIVATE);
	every_call(ZAP, -ENOMEM, 0, 0);
}

TEST(markers_that_fail)
{
	every_call(POISON, -ENOMEM, 0, PRIVATE);
	every_call(POISON, -EINVAL, 0, PRIVATE);
	/* On the way back from a zap that failed. */
	every_call(POISON | ZAP, -ENOMEM, 0, 0);
}

/* The kernel says for a while that the address space is changing, or that a toucher was there first. */
TEST(markers_that_need_another_attempt)
{
	struct case_of c;

	for (int err = 0; err < 2; err++) {
		set_up(&c, 0);
		fail(POISON, 1, 50, err ? -EAGAIN : -EEXIST);
		CHECK_EQ(gmem_file_set_attributes(c.file, 5 * P, 130 * P, PRIVATE, NULL), 0);
		memset(c.private + 5, 1, 130);
		check_all(&c);
		tear_down(&c);
	}
}

TEST(registrations_that_fail)
{
	for (int i = 0; i < 3; i++) {
		struct gmem_file *file = file_of(8, 0);
		struct gmem_view *view = view_of(file, 0, 8, PROT_READ);
		/* For want of memory now; never here; somebody else's. */
		const int err = i == 0 ? -ENOMEM : i == 1 ? -EINVAL : -EBUSY;
		int got;

		fail(REGISTER, 1, 1, err);
		got = gmem_file_set_attributes(file, 0, P, PRIVATE, NULL);
		if (!calls) {
			CHECK_EQ(got, 0);
			gmem_view_unmap(view);
			gmem_file_free(file);
			SKIP("uffd", "no userfaultfd with markers");
		}
		failing = 0;
		CHECK_EQ(got, i == 0 ? -ENOMEM : i == 1 ? 0 : -EOPNOTSUPP);
		CHECK_EQ(peek(page_of(view, 0)), got ? 0 : -1);
		CHECK_EQ(view->by_mapping, i == 1);
		convert(file, 0, 1, PRIVATE);
		CHECK_EQ(peek(page_of(view, 0)), -1);
		CHECK_EQ(view->by_mapping, i == 1);
		gmem_view_unmap(view);
		gmem_file_free(file);
	}
}

TEST(empty_files_that_fail)
{
	struct gmem_file *file = file_of(8, 0);
	struct gmem_view *view = view_of(file, 0, 8, PROT_READ);

	/* It is made once a file. */
	view->by_mapping = true;
	fail(CREATE, 1, 1, -EMFILE);
	CHECK_ERR(gmem_file_set_attributes(file, 0, P, PRIVATE, NULL), -EMFILE);
	CHECK_EQ(calls, 1);
	failing = 0;
	CHECK_EQ(peek(page_of(view, 0)), 0);
	convert(file, 0, 1, PRIVATE);
	CHECK_EQ(peek(page_of(view, 0)), -1);
	gmem_view_unmap(view);
	gmem_file_free(file);
	by_mapping = true;
	every_call(MAP_OVER, -ENOMEM, 0, PRIVATE);
	every_call(MAP_OVER, -ENOMEM, 0, 0);
}

/* A page whose new place cannot be had at the second attempt either is lost, and said to be. */
TEST_TIMEOUT(moves_that_fail, 60)
{
	every_call(PREAD, -EINVAL, GMEM_FILE_STRICT, PRIVATE);
	every_call(PUNCH, -ENOMEM, GMEM_FILE_STRICT, PRIVATE);
	every_call(PWRITE, -ENOSPC, GMEM_FILE_STRICT, PRIVATE);
}

TEST(lost_page_stays_out_of_reach)
{
	struct case_of c;
	uint64_t error_off = 7;
	char buf[1];

	set_up(&c, GMEM_FILE_STRICT);
	c.lossy = true;
	/* The batch, then its first page; the other pages of it come back. */
	fail(PWRITE, 1, 2, -ENOSPC);
	CHECK_ERR(gmem_file_set_attributes(c.file, 5 * P, 130 * P, PRIVATE, &error_off), -ENOSPC);
	CHECK_EQ(error_off, 5 * P);
	CHECK_HAS(gmem_last_error(), "lost");
	failing = 0;
	check_sides(c.file, c.private, N);
	CHECK_EQ(check_lost(&c), 1);
	CHECK_ERR(gmem_file_read(c.file, 5 * P, buf, 1), -EHWPOISON);
	for (uint64_t i = 0; i < N; i++)
		CHECK_EQ(peek(page_of(c.views[0], i)), i == 5 || c.private[i] ? -1 : c.byte[i]);
	/* Also once it has been private. */
	convert(c.file, 0, N, PRIVATE);
	convert(c.file, 0, N, 0);
	CHECK_EQ(check_lost(&c), 1);
	CHECK_EQ(peek(page_of(c.views[0], 6)), c.byte[6]);
	tear_down(&c);
	/* A second attempt that does it. */
	set_up(&c, GMEM_FILE_STRICT);
	fail(PWRITE, 1, 1, -ENOSPC);
	CHECK_EQ(gmem_file_set_attributes(c.file, 5 * P, 130 * P, PRIVATE, NULL), 0);
	memset(c.private + 5, 1, 130);
	check_all(&c);
	convert(c.file, 0, N, 0);
	memset(c.private, 0, N);
	check_all(&c);
	tear_down(&c);
}
