/* SPDX-License-Identifier: MIT */
/* Absent pages that a guest touches, through no view: the file's suppliers bring them in. */
#include "tap.h"

#include "convert_util.h"
#include "pager_scene.h"

struct asker {
	struct gmem_wait wait; /* first */
	struct gmem_file *file;
	uint64_t page;
	_Atomic bool cancel;
	_Atomic bool asking;
	int err;
	uint64_t took_ms;
};

static bool asked_enough(struct gmem_wait *wait)
{
	return atomic_load(&((struct asker *)wait)->cancel);
}

static void *ask(void *arg)
{
	struct asker *a = arg;
	uint64_t begun = now_ms();

	a->wait.over = asked_enough;
	atomic_store(&a->asking, true);
	a->err = gmem_file_bring_in(a->file, a->page * P, &a->wait);
	a->took_ms = now_ms() - begun;
	return NULL;
}

TEST(pages_arrive)
{
	struct scene s = { .seed = 0 };

	set_up(&s, (struct src)SRC(.id = 2), 2, 0, LEN);
	catch_bus();
	convert(s.file, 8, 8, PRIVATE);
	/* From the last to the first: who asks one after the other gets more than was asked for. */
	for (uint64_t i = 9; i >= 6; i--) {
		CHECK_EQ(gmem_file_page_state(s.file, i * P), GMEM_PAGE_ABSENT);
		CHECK_EQ(gmem_file_bring_in(s.file, i * P, NULL), 0);
		CHECK_EQ(gmem_file_page_state(s.file, i * P), GMEM_PAGE_UPTODATE);
		CHECK_EQ(*(uint64_t *)guest(s.file, i), word_at(2, i * P));
		CHECK_EQ(peek(s.p + i * P) == -1, i >= 8);
		/* One that is there already. */
		CHECK_EQ(gmem_file_bring_in(s.file, i * P, NULL), 0);
	}
	check_all(s.p, 2, 8);
	gmem_pager_free(s.pager);
	CHECK_ERR(gmem_file_bring_in(s.file, 100 * P, NULL), -EIO);
	CHECK_EQ(gmem_file_page_state(s.file, 100 * P), GMEM_PAGE_ABSENT);
	gmem_source_unref(s.source);
	gmem_view_unmap(s.view);
	gmem_file_free(s.file);
}

TEST(nobody_supplies)
{
	struct gmem_file *file = file_of(16, 0);
	struct gmem_pager *pager = new_pager(1, 0, NULL), *second = new_pager(1, 0, NULL);
	struct src src = SRC(.id = 2), other = SRC(.id = 3);
	struct gmem_source *source = source_of(&src), *others = source_of(&other);
	struct gmem_view *view = view_of(file, 4, 4, PROT_READ), *again = view_of(file, 4, 4, PROT_READ);

	CHECK_EQ(gmem_file_bring_in(file, 0, NULL), -ENOENT);
	/* One that cannot be added has never been. */
	CHECK_ERR(gmem_pager_add_view(pager, view, source, -P), -EINVAL);
	CHECK_EQ(gmem_file_bring_in(file, 4 * P, NULL), -ENOENT);
	CHECK_OK(gmem_pager_add_view(pager, view, source, 4 * P));
	CHECK_EQ(gmem_file_bring_in(file, 3 * P, NULL), -ENOENT);
	CHECK_EQ(gmem_file_bring_in(file, 8 * P, NULL), -ENOENT);
	CHECK_EQ(gmem_file_bring_in(file, 7 * P, NULL), -0);
	gmem_pager_free(pager);
	CHECK_ERR(gmem_file_bring_in(file, 4 * P, NULL), -EIO);
	/* Whoever comes after takes it on. */
	CHECK_OK(gmem_pager_add_view(second, again, others, 4 * P));
	CHECK_EQ(gmem_file_bring_in(file, 4 * P, NULL), 0);
	CHECK_EQ(*(uint64_t *)guest(file, 4), word_at(3, 4 * P));
	CHECK_EQ(*(uint64_t *)guest(file, 7), word_at(2, 7 * P));
	gmem_pager_free(second);
	gmem_source_unref(source);
	gmem_source_unref(others);
	gmem_view_unmap(view);
	gmem_view_unmap(again);
	gmem_file_free(file);
}

TEST(wait_that_is_cancelled)
{
	struct asker a = { .page = 20 };
	struct scene s = { .seed = 0 };
	pthread_t t;

	set_up(&s, (struct src)SRC(.id = 2, .block_page = 20), 2, 0, LEN);
	catch_bus();
	a.file = s.file;
	pthread_create(&t, NULL, ask, &a);
	while (!atomic_load(&s.src.blocked))
		usleep(1000);
	usleep(30000);
	atomic_store(&a.cancel, true);
	pthread_join(t, NULL);
	CHECK_EQ(a.err, -EINTR);
	/* Cancelled before it begins. */
	ask(&a);
	CHECK_EQ(a.err, -EINTR);
	atomic_store(&s.src.release, true);
	atomic_store(&a.cancel, false);
	ask(&a);
	CHECK_EQ(a.err, 0);
	CHECK_EQ(*(uint64_t *)guest(s.file, 20), word_at(2, 20 * P));
	/* The faults whose askers have gone are answered too. */
	while (stats_of(s.pager).latency_count < 3)
		usleep(1000);
	tear_down(&s);
}

static void *let_go(void *arg)
{
	struct scene *s = arg;

	/* The pager waits for its source; those who wait for the pager do not. */
	usleep(200000);
	atomic_store(&s->src.release, true);
	return NULL;
}

TEST(pager_is_freed_while_guests_wait)
{
	struct asker a[4] = { { .page = 20 }, { .page = 20 }, { .page = 21 }, { .page = 300 } };
	pthread_t t[4], releaser;
	struct scene s = { .seed = 0 };

	set_up(&s, (struct src)SRC(.id = 2, .block_page = 20), 1, 0, LEN);
	a[0].file = s.file;
	pthread_create(&t[0], NULL, ask, &a[0]);
	while (!atomic_load(&s.src.blocked))
		usleep(1000);
	for (int i = 1; i < 4; i++) {
		a[i].file = s.file;
		pthread_create(&t[i], NULL, ask, &a[i]);
		while (!atomic_load(&a[i].asking))
			usleep(1000);
	}
	usleep(20000);
	pthread_create(&releaser, NULL, let_go, &s);
	gmem_pager_free(s.pager);
	for (int i = 0; i < 4; i++) {
		pthread_join(t[i], NULL);
		CHECK_EQ(a[i].err, -EIO);
		if (a[i].took_ms > 5000)
			FAIL("asker %d waited %llu ms", i, (unsigned long long)a[i].took_ms);
	}
	pthread_join(releaser, NULL);
	CHECK_ERR(gmem_file_bring_in(s.file, 500 * P, NULL), -EIO);
	gmem_source_unref(s.source);
	gmem_view_unmap(s.view);
	gmem_file_free(s.file);
}

/* A source that cannot give the page: it is lost, and who asked looks again and sees it. */
TEST(page_that_is_lost)
{
	struct scene s = { .seed = 0 };

	set_up(&s, (struct src)SRC(.id = 2, .bad_page = 20, .bad_err = -EBADMSG, .bad_left = INT32_MAX), 2, 0, LEN);
	catch_bus();
	convert(s.file, 20, 1, PRIVATE);
	CHECK_EQ(gmem_file_bring_in(s.file, 20 * P, NULL), 0);
	CHECK_EQ(gmem_file_page_state(s.file, 20 * P), GMEM_PAGE_POISONED);
	CHECK_EQ(peek(s.p + 20 * P), -1);
	convert(s.file, 20, 1, 0);
	CHECK_EQ(peek(s.p + 20 * P), -1);
	tear_down(&s);
}

static _Atomic bool stop;

static void *bring_in_all(void *arg)
{
	struct gmem_file *file = arg;
	uint64_t seed = (uint64_t)(uintptr_t)&seed, n = gmem_file_size(file) / P;

	while (!atomic_load(&stop)) {
		int err = gmem_file_bring_in(file, tap_rand(&seed) % n * P, NULL);

		if (err && err != -ENOENT && err != -EIO)
			FAIL("bringing in: %d", err);
	}
	return NULL;
}

/* Pagers come and go, some of their views are refused, while guests ask without pause. */
TEST(pagers_come_and_go)
{
	struct gmem_file *file = file_of(64, 0);
	struct src src = SRC(.id = 2, .nowait = true);
	struct gmem_source *source = source_of(&src);
	uint64_t until = now_ms() + 1500;
	pthread_t t[2];

	need_uffd();
	for (int i = 0; i < 2; i++)
		pthread_create(&t[i], NULL, bring_in_all, file);
	for (int round = 0; now_ms() < until; round++) {
		struct gmem_pager *pager = new_pager(1, 0, NULL);
		struct gmem_view *view = view_of(file, 8, 48, PROT_READ), *bad = view_of(file, 8, 48, PROT_READ);

		CHECK_ERR(gmem_pager_add_view(pager, bad, source, -P), -EINVAL);
		CHECK_OK(gmem_pager_add_view(pager, view, source, 8 * P));
		for (uint64_t i = 8; i < 56; i += 5)
			CHECK(page_is(2, i * P, page_of(view, i)));
		gmem_pager_free(pager);
		gmem_view_unmap(view);
		gmem_view_unmap(bad);
	}
	atomic_store(&stop, true);
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	gmem_source_unref(source);
	gmem_file_free(file);
}
