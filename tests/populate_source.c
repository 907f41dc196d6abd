/* SPDX-License-Identifier: MIT */
/* gmem_populate(): what its source may be, and what goes wrong while its bytes are on their way. */
#include "tap.h"

#include <sys/uio.h>

#include "populate_util.h"
#include "sys/memfd.h"

#define NPAGES 16

/* ---- faults */

static int fail_in, fail_err; /* the n-th write or allocation from now on fails; 0: none */
static bool fail_halfway;
static ssize_t peek_most = -1; /* so many bytes a look at a source gives at most; -1: all */
static int peek_err; /* or this error */
static bool all_or_nothing; /* a look across a hole copies nothing */
static bool vm_calls_forbidden;
static unsigned int pokes;
static struct gmem_file *unlocked; /* its lock is free whenever the caller's memory is touched */

int __real_gmem_pwrite_all(int fd, const void *buf, size_t len, uint64_t off);
int __wrap_gmem_pwrite_all(int fd, const void *buf, size_t len, uint64_t off);
int __real_gmem_memfd_allocate(int fd, uint64_t off, uint64_t len);
int __wrap_gmem_memfd_allocate(int fd, uint64_t off, uint64_t len);
ssize_t __real_gmem_sys_peek(void *to, const void *from, size_t len);
ssize_t __wrap_gmem_sys_peek(void *to, const void *from, size_t len);
ssize_t __real_gmem_sys_poke(void *to, const void *from, size_t len);
ssize_t __wrap_gmem_sys_poke(void *to, const void *from, size_t len);
#define VM_CALL(name)                                                                                                 \
	ssize_t __real_##name(pid_t pid, const struct iovec *local, unsigned long nlocal, const struct iovec *remote, \
			      unsigned long nremote, unsigned long flags);                                            \
	ssize_t __wrap_##name(pid_t pid, const struct iovec *local, unsigned long nlocal, const struct iovec *remote, \
			      unsigned long nremote, unsigned long flags);                                            \
	ssize_t __wrap_##name(pid_t pid, const struct iovec *local, unsigned long nlocal, const struct iovec *remote, \
			      unsigned long nremote, unsigned long flags)                                             \
	{                                                                                                             \
		if (!vm_calls_forbidden)                                                                              \
			return __real_##name(pid, local, nlocal, remote, nremote, flags);                             \
		errno = EPERM;                                                                                        \
		return -1;                                                                                            \
	}
VM_CALL(process_vm_readv)
VM_CALL(process_vm_writev)

int __wrap_gmem_pwrite_all(int fd, const void *buf, size_t len, uint64_t off)
{
	if (fail_in && --fail_in == 0) {
		if (fail_halfway)
			__real_gmem_pwrite_all(fd, buf, len / 2, off);
		return fail_err;
	}
	return __real_gmem_pwrite_all(fd, buf, len, off);
}

int __wrap_gmem_memfd_allocate(int fd, uint64_t off, uint64_t len)
{
	if (fail_in && --fail_in == 0) {
		if (fail_halfway)
			__real_gmem_memfd_allocate(fd, off, len);
		return fail_err;
	}
	return __real_gmem_memfd_allocate(fd, off, len);
}

static void check_unlocked(void)
{
	if (!unlocked)
		return;
	CHECK(gmem_rwlock_trylock_shared(&unlocked->invalidate_lock));
	gmem_rwlock_unlock_shared(&unlocked->invalidate_lock);
}

ssize_t __wrap_gmem_sys_peek(void *to, const void *from, size_t len)
{
	size_t most = peek_most >= 0 && peek_most < (ssize_t)len ? (size_t)peek_most : len;
	ssize_t n;

	check_unlocked();
	if (peek_err)
		return peek_err;
	/* Behind what was read there is no byte of the source's. */
	memset(to, 0xdd, len);
	n = most ? __real_gmem_sys_peek(to, from, most) : 0;
	return all_or_nothing && n < (ssize_t)len ? -EFAULT : n;
}

ssize_t __wrap_gmem_sys_poke(void *to, const void *from, size_t len)
{
	check_unlocked();
	pokes++;
	return __real_gmem_sys_poke(to, from, len);
}

/* ---- sources that cannot be read */

static char *map_whole(struct gmem_file *file, struct gmem_view **view)
{
	CHECK_OK(gmem_view_map(file, 0, gmem_file_size(file), PROT_READ | PROT_WRITE, view));
	return gmem_view_addr(*view);
}

/* Progress up to page `at` of the source, which cannot be read; its pages before are those of memory 0. */
static void check_stops_at(struct rig *r, const char *src, uint64_t at)
{
	struct plan plan = { .r = r };

	CHECK_OK(gmem_file_punch(r->file, 0, gmem_file_size(r->file)));
	if (at)
		CHECK_EQ(run(&plan, 0, src, (int64_t)r->npages, 0), (int64_t)at);
	CHECK_EQ(plan.calls, at);
	CHECK_ERR(run(&plan, at, src + at * P, (int64_t)r->npages, 0), -EFAULT);
	CHECK_EQ(plan.calls, at);
	CHECK_EQ(resident(r->file), at);
	check_no_lock(r);
	for (uint64_t i = 0; i < at; i++)
		check_guest(r, i, 0, i);
}

TEST(private_source)
{
	struct gmem_file *other = new_file(NPAGES * P);
	struct gmem_view *view, *own;
	struct rig r;
	char *src;

	rig_up(&r, NPAGES, 0);
	src = map_whole(other, &view);
	for (uint64_t i = 0; i < NPAGES; i++)
		page_bytes(0, i, src + i * P);
	/* The target's own view: its pages are private. */
	map_whole(r.file, &own);
	convert(&r, 0, NPAGES, true);
	for (int forbidden = 0; forbidden < 2; forbidden++) {
		vm_calls_forbidden = forbidden;
		check_stops_at(&r, (char *)gmem_view_addr(own) + FIRST * P, 0);
		/* Another file's, private from page `at` on: as much as is shared. */
		for (uint64_t at = 0; at < NPAGES; at += 5) {
			CHECK_OK(gmem_file_set_attributes(other, at * P, P, GMEM_ATTRIBUTE_PRIVATE, NULL));
			check_stops_at(&r, src, at);
			CHECK_OK(gmem_file_set_attributes(other, at * P, P, 0, NULL));
		}
	}
	gmem_view_unmap(own);
	gmem_view_unmap(view);
	gmem_file_free(other);
	rig_down(&r);
}

/* A shared page of the target's own file is a source like any other. */
TEST(own_shared_page_as_source)
{
	struct gmem_view *view;
	struct rig r;
	char *own;

	rig_up(&r, NPAGES, 0);
	own = map_whole(r.file, &view) + FIRST * P;
	page_bytes(0, 0, own + 5 * P);
	convert(&r, 0, 5, true);
	CHECK_EQ(gmem_populate(r.vm, GFN + 1, own + 5 * P, 1, 0, NULL, NULL), 1);
	check_guest(&r, 1, 0, 0);
	gmem_view_unmap(view);
	rig_down(&r);
}

static char *map_file_pages(uint64_t npages, int *fd)
{
	char page[P], *src;

	*fd = memfd_create("source", MFD_CLOEXEC);
	CHECK(*fd >= 0);
	for (uint64_t i = 0; i < npages; i++) {
		page_bytes(0, i, page);
		CHECK_EQ(pwrite(*fd, page, P, (off_t)(i * P)), (ssize_t)P);
	}
	src = mmap(NULL, npages * P, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	CHECK(src != MAP_FAILED);
	return src;
}

TEST(truncated_source)
{
	struct rig r;
	char *src;
	int fd;

	rig_up(&r, NPAGES, GMEM_FILE_INIT_PRIVATE);
	src = map_file_pages(NPAGES, &fd);
	CHECK_EQ(ftruncate(fd, 7 * P), 0);
	check_stops_at(&r, src, 7);
	CHECK_EQ(ftruncate(fd, 0), 0);
	check_stops_at(&r, src, 0);
	close(fd);
	rig_down(&r);
}

/* 200 pages in several mappings, and a hole at each position in turn: progress is exactly up to it. */
TEST_TIMEOUT(hole_at_every_position, 60)
{
	enum { N = 200 };
	struct rig r;
	char *src;
	int fd;

	rig_up(&r, N, GMEM_FILE_INIT_PRIVATE);
	src = map_file_pages(N, &fd);
	/* Anonymous, and read-only, in between. */
	for (uint64_t from = 30; from < N; from += 60) {
		CHECK(mmap(src + from * P, 20 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
			   0) != MAP_FAILED);
		for (uint64_t i = from; i < from + 20; i++)
			page_bytes(0, i, src + i * P);
		CHECK_EQ(mprotect(src + (from + 20) * P, 10 * P, PROT_READ), 0);
	}
	CHECK_EQ(gmem_populate(r.vm, GFN, src, N, 0, NULL, NULL), N);
	for (uint64_t k = N; k-- > 0;) {
		all_or_nothing = k % 3 == 2;
		if (k % 2)
			CHECK_EQ(munmap(src + k * P, P), 0);
		else
			CHECK_EQ(mprotect(src + k * P, P, PROT_NONE), 0);
		/* All of it for some, from near by for the others: a batch has 64 pages. */
		if (k % 16 == 0 && !tap_emulator()) {
			check_stops_at(&r, src, k);
		} else {
			uint64_t from = k > 70 ? k - 70 : 0;

			if (k)
				CHECK_EQ(gmem_populate(r.vm, GFN + from, src + from * P, (int64_t)(N - from), 0, NULL,
						       NULL),
					 (int64_t)(k - from));
			CHECK_ERR(gmem_populate(r.vm, GFN + k, src + k * P, 1, 0, NULL, NULL), -EFAULT);
		}
		for (uint64_t i = k; i < N && k % 16 == 0 && !tap_emulator(); i++)
			CHECK_EQ(word_of(&r, i), GMEM_WORD_REMOVED);
	}
	close(fd);
	rig_down(&r);
}

/* ---- write-back */

TEST(write_back_only_of_a_refused_page)
{
	char *src = source_pages(0, NPAGES), corrected[P];
	struct rig r;
	struct plan plan = { .r = &r, .src = src, .scribble = true };
	static const int answers[] = { -EINVAL, -EFAULT, -EBUSY, -EEXIST, -EIO, -EINTR };

	memset(corrected, 0xcc, P);
	rig_up(&r, NPAGES, GMEM_FILE_INIT_PRIVATE);
	unlocked = r.file;
	for (size_t i = 0; i < 2 * sizeof(answers) / sizeof(answers[0]); i++) {
		vm_calls_forbidden = i % 2;
		plan.fail = answers[i / 2];
		plan.fail_at = 3;
		pokes = 0;
		CHECK_EQ(run(&plan, 0, src, NPAGES, GMEM_POPULATE_WRITE_BACK), 3);
		CHECK_EQ(pokes, 1);
		CHECK_MEM(src + 3 * P, corrected, P);
		CHECK_EQ(word_of(&r, 3), GMEM_WORD_ABSENT);
		/* Corrected, it is accepted. */
		plan.fail = 0;
		CHECK_EQ(run(&plan, 3, src + 3 * P, 1, GMEM_POPULATE_WRITE_BACK), 1);
		CHECK_EQ(pokes, 1);
		page_bytes(0, 3, src + 3 * P);
		rig_down(&r);
		rig_up(&r, NPAGES, GMEM_FILE_INIT_PRIVATE);
		unlocked = r.file;
	}
	/* Without the flag nothing goes back; nor when it was not the function that refused. */
	plan.fail = -EINVAL;
	CHECK_EQ(run(&plan, 0, src, NPAGES, 0), 3);
	convert(&r, 2, 1, false);
	CHECK_EQ(run(&plan, 0, src, NPAGES, GMEM_POPULATE_WRITE_BACK), 2);
	fail_in = 1;
	fail_err = -ENOSPC;
	CHECK_ERR(run(&plan, 4, src + 4 * P, NPAGES, GMEM_POPULATE_WRITE_BACK), -ENOSPC);
	CHECK_EQ(pokes, 1);
	for (uint64_t i = 0; i < NPAGES; i++) {
		page_bytes(0, i, corrected);
		CHECK_MEM(src + i * P, corrected, P);
	}
	check_no_lock(&r);
	rig_down(&r);
}

TEST(write_back_needs_a_writable_source)
{
	struct rig r;
	struct plan plan = { .r = &r };
	char *src;
	int fd;

	if (tap_emulator())
		SKIP("kernel", "%s does not ask the kernel whether memory can be written to", tap_emulator());
	rig_up(&r, NPAGES, GMEM_FILE_INIT_PRIVATE);
	src = map_file_pages(NPAGES, &fd);
	CHECK_EQ(mprotect(src + 2 * P, P, PROT_READ), 0);
	for (int forbidden = 0; forbidden < 2; forbidden++) {
		vm_calls_forbidden = forbidden;
		plan.calls = 0;
		CHECK_EQ(run(&plan, 0, src, NPAGES, GMEM_POPULATE_WRITE_BACK), 2);
		CHECK_ERR(run(&plan, 2, src + 2 * P, NPAGES, GMEM_POPULATE_WRITE_BACK), -EFAULT);
		CHECK_EQ(plan.calls, 2);
		CHECK_EQ(resident(r.file), 2);
		check_no_lock(&r);
	}
	/* A source need not be writable for anything else. */
	CHECK_EQ(mprotect(src, NPAGES * P, PROT_READ), 0);
	CHECK_EQ(run(&plan, 0, src, NPAGES, 0), NPAGES);
	close(fd);
	rig_down(&r);
}

/* ---- faults on the way */

TEST(poisoned_page)
{
	char *src = source_pages(0, NPAGES);
	struct rig r;
	struct plan plan = { .r = &r };

	rig_up(&r, NPAGES, GMEM_FILE_INIT_PRIVATE);
	gmem_rwlock_lock_shared(&r.file->invalidate_lock);
	CHECK_OK(gmem_file_poison_page(r.file, (FIRST + 4) * P));
	gmem_rwlock_unlock_shared(&r.file->invalidate_lock);
	for (int in_place = 0; in_place < 2; in_place++) {
		plan.calls = 0;
		CHECK_EQ(run(&plan, 0, in_place ? NULL : src, NPAGES, 0), 4);
		CHECK_ERR(run(&plan, 4, in_place ? NULL : src + 4 * P, NPAGES, 0), -EHWPOISON);
		CHECK_EQ(plan.calls, 4);
		CHECK_EQ(gmem_file_page_state(r.file, (FIRST + 4) * P), GMEM_PAGE_POISONED);
	}
	check_no_lock(&r);
	rig_down(&r);
}

TEST(failed_writes_leave_nothing)
{
	char *src = source_pages(0, NPAGES);
	struct rig r;
	struct plan plan = { .r = &r };

	rig_up(&r, NPAGES, 0);
	CHECK_OK(gmem_file_write(r.file, (FIRST + 1) * P, source_pages(5, NPAGES) + P, P));
	convert(&r, 0, NPAGES, true);
	for (int how = 0; how < 8; how++) {
		const char *from = how & 4 ? NULL : src;

		fail_halfway = how & 1;
		fail_err = how & 2 ? -ENOSPC : -ENOMEM;
		fail_in = 1;
		CHECK_ERR(run(&plan, 0, from, NPAGES, 0), fail_err);
		CHECK_EQ(word_of(&r, 0), GMEM_WORD_ABSENT);
		/* In place: as it was. */
		fail_in = 1;
		CHECK_ERR(run(&plan, 1, from ? from + P : NULL, NPAGES, 0), fail_err);
		check_guest(&r, 1, 5, 1);
		CHECK_EQ(resident(r.file), 1);
		CHECK_EQ(plan.calls, 0);
		check_no_lock(&r);
	}
	/* In the middle. */
	fail_in = 6;
	CHECK_EQ(run(&plan, 2, src + 2 * P, NPAGES, 0), 5);
	CHECK_EQ(resident(r.file), 6);
	CHECK_EQ(fail_in, 0);
	check_no_lock(&r);
	rig_down(&r);
}

/* Absent to the table, and a view has put bytes there: they stay. */
static void failed_write_over_a_view(const char *src, gmem_populate_fn fn, bool halfway)
{
	struct gmem_view *view;
	struct rig r;
	struct plan plan = { .r = &r };

	rig_up(&r, NPAGES, 0);
	CHECK_OK(gmem_view_map(r.file, FIRST * P, P, PROT_READ | PROT_WRITE, &view));
	page_bytes(5, 0, gmem_view_addr(view));
	convert(&r, 0, NPAGES, true);
	fail_halfway = halfway;
	fail_err = -ENOSPC;
	fail_in = 1;
	CHECK_ERR(gmem_populate(r.vm, GFN, src, 1, 0, fn, &plan), -ENOSPC);
	CHECK_EQ(fail_in, 0);
	CHECK_EQ(plan.calls, 0);
	check_no_lock(&r);
	check_guest(&r, 0, 5, 0);
	gmem_view_unmap(view);
	rig_down(&r);
}

TEST(failed_allocation_keeps_the_bytes_of_a_view)
{
	for (int how = 0; how < 4; how++)
		failed_write_over_a_view(NULL, how & 1 ? planned : NULL, how & 2);
}

TEST(failed_write_keeps_the_bytes_of_a_view)
{
	const char *src = source_pages(0, 1);

	for (int how = 0; how < 4; how++)
		failed_write_over_a_view(src, how & 1 ? planned : NULL, how & 2);
}

/* Fewer bytes than asked for: whole pages count, half a page is none; never bytes that were not read. */
TEST(short_looks_at_the_source)
{
	static const ssize_t most[] = { 0, 1, 4095, 4096, 4097, 3 * 4096 + 5 };
	char *src = source_pages(0, NPAGES);
	struct rig r;
	struct plan plan = { .r = &r, .src = src };

	for (size_t i = 0; i < sizeof(most) / sizeof(most[0]); i++) {
		rig_up(&r, NPAGES, GMEM_FILE_INIT_PRIVATE);
		peek_most = most[i];
		if (most[i] < 4096)
			CHECK_ERR(run(&plan, 0, src, NPAGES, 0), -EFAULT);
		else
			CHECK_EQ(run(&plan, 0, src, NPAGES, 0), NPAGES);
		CHECK_EQ(resident(r.file), most[i] < 4096 ? 0 : NPAGES);
		for (uint64_t k = 0; k < NPAGES && most[i] >= 4096; k++)
			check_guest(&r, k, 0, k);
		check_no_lock(&r);
		rig_down(&r);
	}
	rig_up(&r, NPAGES, GMEM_FILE_INIT_PRIVATE);
	peek_err = -ENOMEM;
	CHECK_ERR(run(&plan, 0, src, NPAGES, 0), -ENOMEM);
	CHECK_EQ(resident(r.file), 0);
	rig_down(&r);
}

TEST(without_process_vm_readv)
{
	char *src = source_pages(0, 200);
	struct rig r;
	struct plan plan = { .r = &r, .src = src };

	rig_up(&r, 200, GMEM_FILE_INIT_PRIVATE);
	vm_calls_forbidden = true;
	CHECK_EQ(run(&plan, 0, src, 200, 0), 200);
	for (uint64_t i = 0; i < 200; i++)
		check_guest(&r, i, 0, i);
	rig_down(&r);
}
