/* SPDX-License-Identifier: MIT */
/* Sources that fail or hang, and a machine without memory. */
#include "tap.h"

#include "sys/memfd.h"

#include "pager_scene.h"

static _Atomic int fail_writes, fail_allocs; /* so many calls fail with ENOSPC */

int __real_gmem_pwrite_all(int fd, const void *buf, size_t len, uint64_t off);
int __wrap_gmem_pwrite_all(int fd, const void *buf, size_t len, uint64_t off);
int __real_gmem_memfd_allocate(int fd, uint64_t off, uint64_t len);
int __wrap_gmem_memfd_allocate(int fd, uint64_t off, uint64_t len);

static bool count_down(_Atomic int *n)
{
	int old = atomic_load(n);

	while (old > 0)
		if (atomic_compare_exchange_weak(n, &old, old - 1))
			return true;
	return false;
}

int __wrap_gmem_pwrite_all(int fd, const void *buf, size_t len, uint64_t off)
{
	return count_down(&fail_writes) ? -ENOSPC : __real_gmem_pwrite_all(fd, buf, len, off);
}

int __wrap_gmem_memfd_allocate(int fd, uint64_t off, uint64_t len)
{
	return count_down(&fail_allocs) ? -ENOSPC : __real_gmem_memfd_allocate(fd, off, len);
}

TEST(lost_page_touched)
{
	struct scene s = { 0 };

	set_up(&s, (struct src)SRC(.id = 7, .bad_page = 21, .bad_err = -EBADMSG, .bad_left = INT32_MAX), 0, 0, 64 * P);
	catch_bus();
	for (uint64_t i = 0; i < 64; i++) {
		if (i == 21) {
			CHECK_EQ(touch(s.p + i * P + 5), SIGBUS);
			CHECK(((uintptr_t)bus_addr & ~4095ul) == (uintptr_t)(s.p + i * P));
		} else {
			CHECK(page_is(7, i * P, s.p + i * P));
		}
	}
	CHECK_EQ(touch(s.p + 21 * P), SIGBUS);
	CHECK_EQ(gmem_file_page_state(s.file, 21 * P), GMEM_PAGE_POISONED);
	CHECK_EQ(s.told.n[GMEM_PAGER_POISONED], 1);
	CHECK_EQ(s.told.error, -EBADMSG);
	CHECK_EQ(s.told.off, 21 * P);
	CHECK_HAS(s.told.text, "test source: page 21");
	CHECK_EQ(stats_of(s.pager).poisoned, 1);
	CHECK_ERR(gmem_file_read(s.file, 21 * P, &s.seed, 1), -EHWPOISON);
	/* The poisoned page stays with the pager, everything else needs it no more. */
	CHECK_EQ(gmem_pager_unregister(s.pager), 1);
	CHECK_EQ(touch(s.p + 21 * P), SIGBUS);
	tear_down(&s);
}

TEST(lost_page_filled)
{
	struct scene s = { 0 };

	set_up(&s, (struct src)SRC(.id = 7, .bad_page = 21, .bad_err = -EBADMSG, .bad_left = INT32_MAX), 0, 0, 64 * P);
	catch_bus();
	CHECK_EQ(gmem_pager_fill(s.pager, NULL, NULL), 63);
	CHECK_EQ(s.told.n[GMEM_PAGER_POISONED], 1);
	CHECK_EQ(s.told.n[GMEM_PAGER_COMPLETE], 1);
	for (uint64_t i = 0; i < 64; i++)
		CHECK_EQ(touch(s.p + i * P), i == 21 ? SIGBUS : 0);
	CHECK_EQ(gmem_pager_unregister(s.pager), 1);
	tear_down(&s);
}

/* Through another view, which had no part in it. */
TEST(lost_page_in_every_view)
{
	struct scene s = { 0 };
	struct gmem_view *other;
	char *p;

	set_up(&s, (struct src)SRC(.bad_page = 3, .bad_err = -EBADMSG, .bad_left = INT32_MAX), 0, 0, 64 * P);
	p = map_view(s.file, 0, 64 * P, &other);
	CHECK_OK(gmem_pager_add_view(s.pager, other, s.source, 0));
	catch_bus();
	CHECK_EQ(touch(s.p + 3 * P), SIGBUS);
	CHECK_EQ(touch(p + 3 * P), SIGBUS);
	CHECK_EQ(touch(p + 2 * P), 0);
	CHECK_EQ(s.told.n[GMEM_PAGER_POISONED], 1);
	gmem_view_unmap(other);
	tear_down(&s);
}

static void transient(int err)
{
	struct scene s = { 0 };

	set_up(&s, (struct src)SRC(.id = 8, .bad_page = 9, .bad_err = err, .bad_left = 5), 0, 0, 64 * P);
	CHECK(page_is(8, 9 * P, s.p + 9 * P));
	CHECK(s.told.n[GMEM_PAGER_ERROR] >= 1);
	CHECK_EQ(s.told.n[GMEM_PAGER_POISONED], 0);
	CHECK_EQ(s.told.error, err);
	CHECK_EQ(s.told.off, 9 * P);
	CHECK_HAS(s.told.text, "test source: page 9");
	check_all(s.p, 8, 64);
	CHECK_EQ(s.src.bad_left, 0);
	tear_down(&s);
}

TEST(transient_errors)
{
	transient(-EAGAIN);
	transient(-ETIMEDOUT);
	transient(-ENOMEM);
}

TEST(transient_error_in_fill)
{
	struct scene s = { 0 };

	set_up(&s, (struct src)SRC(.id = 8, .bad_page = 9, .bad_err = -ETIMEDOUT, .bad_left = 30), 0, 0, 64 * P);
	CHECK_EQ(gmem_pager_fill(s.pager, NULL, NULL), 64);
	CHECK(s.told.n[GMEM_PAGER_ERROR] >= 1);
	check_all(s.p, 8, 64);
	tear_down(&s);
}

/* Pages that fail again and again must not hold up those that do not. */
TEST(failing_page_does_not_delay_others)
{
	struct scene s = { 0 };
	struct toucher t = { .id = 8, .npages = 10, .touches = 10, .sequential = true };
	pthread_t thread;
	uint64_t start;

	set_up(&s, (struct src)SRC(.id = 8, .bad_page = 9, .bad_err = -ETIMEDOUT, .bad_left = INT32_MAX - 1), 1, 0,
	       LEN);
	t.p = s.p;
	pthread_create(&thread, NULL, touch_pages, &t);
	while (stats_of(s.pager).errors < 12)
		usleep(1000);
	start = now_ms();
	for (uint64_t i = 100; i < 200; i += 2)
		CHECK(page_is(8, i * P, s.p + i * P));
	printf("50 pages in %llu ms beside one that fails\n", (unsigned long long)(now_ms() - start));
	/* One resolver that slept its 100 ms each time would need 2.5 s and more. */
	CHECK(now_ms() - start < 1500);
	atomic_store(&s.src.bad_left, 0);
	pthread_join(thread, NULL);
	tear_down(&s);
}

TEST(no_memory_for_pages)
{
	struct scene s = { 0 };

	set_up(&s, (struct src)SRC(.id = 9, .knows_zero = true), 0, 0, 64 * P);
	atomic_store(&fail_writes, 5);
	CHECK(page_is(9, 0, s.p));
	CHECK_EQ(fail_writes, 0);
	CHECK(s.told.n[GMEM_PAGER_ERROR] >= 1);
	CHECK_EQ(s.told.error, -ENOSPC);
	atomic_store(&fail_allocs, 5);
	CHECK(page_is(9, 7 * P, s.p + 7 * P));
	CHECK_EQ(fail_allocs, 0);
	/* In place, dropped behind the library's back, and no memory to back it again. */
	CHECK_EQ(gmem_memfd_punch(gmem_file_fd(s.file), 0, P), 0);
	atomic_store(&fail_allocs, 5);
	CHECK(page_is_zero(s.p));
	CHECK_EQ(fail_allocs, 0);
	CHECK_EQ(s.told.n[GMEM_PAGER_POISONED], 0);
	for (uint64_t i = 1; i < 64; i++)
		CHECK(page_is(9, i * P, s.p + i * P));
	atomic_store(&fail_writes, 0);
	tear_down(&s);
}

static void *touch_one(void *arg)
{
	(void)*(volatile char *)arg;
	return NULL;
}

TEST(blocked_page_delays_nobody)
{
	struct scene s = { 0 };
	pthread_t thread;

	set_up(&s, (struct src)SRC(.id = 13, .nowait = true, .block_page = 77), 2, GMEM_PAGER_REMOVE_DISCARDS, LEN);
	pthread_create(&thread, NULL, touch_one, s.p + 77 * P);
	while (!atomic_load(&s.src.blocked))
		usleep(1000);
	/* Downwards: a window that a sequential toucher gets would ask the source for that page too. */
	for (uint64_t i = PAGES; i-- > 0;)
		if (i != 77)
			CHECK(page_is(13, i * P, s.p + i * P));
	/* The zapper waits for the reader, which waits for nobody. */
	CHECK_EQ(madvise(s.p + 200 * P, 100 * P, MADV_DONTNEED), 0);
	CHECK_OK(gmem_file_punch(s.file, 300 * P, 10 * P));
	CHECK(page_is_zero(s.p + 300 * P));
	CHECK_EQ(gmem_file_page_state(s.file, 77 * P), GMEM_PAGE_ABSENT);
	atomic_store(&s.src.release, true);
	pthread_join(thread, NULL);
	CHECK(page_is(13, 77 * P, s.p + 77 * P));
	tear_down(&s);
}

/* An event function that hangs stops whoever calls it, and that is not the reader. */
static _Atomic bool hang, hanging;

static void hang_in_event(void *opaque, const struct gmem_pager_event *e)
{
	(void)opaque;
	(void)e;
	while (atomic_load(&hang)) {
		atomic_store(&hanging, true);
		usleep(1000);
	}
}

TEST(event_function_does_not_stop_the_reader)
{
	struct gmem_pager_opts o = { .size = sizeof(o), .resolvers = 1, .event = hang_in_event };
	struct src src = SRC(.id = 14, .nowait = true, .bad_page = 50, .bad_err = -ETIMEDOUT, .bad_left = 1);
	struct gmem_source *source = source_of(&src);
	struct gmem_file *file = new_file(LEN);
	struct gmem_pager *pager;
	struct gmem_view *view;
	pthread_t thread;
	char *p;

	need_uffd();
	p = map_view(file, 0, LEN, &view);
	CHECK_OK(gmem_pager_create(&o, &pager));
	CHECK_OK(gmem_pager_add_view(pager, view, source, 0));
	atomic_store(&hang, true);
	pthread_create(&thread, NULL, touch_one, p + 50 * P);
	while (!atomic_load(&hanging))
		usleep(1000);
	/* The only resolver hangs; the reader serves what it can alone. */
	for (uint64_t i = 100; i < 200; i++)
		CHECK(page_is(14, i * P, p + i * P));
	atomic_store(&hang, false);
	pthread_join(thread, NULL);
	gmem_pager_free(pager);
	gmem_view_unmap(view);
	gmem_source_unref(source);
	gmem_file_free(file);
}
