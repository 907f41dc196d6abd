/* SPDX-License-Identifier: MIT */
/* Where gmem_uffd_copy() takes bytes from, and two who resolve one page. */
#include "tap.h"

#include "uffd_util.h"

struct resolver {
	pthread_t thread;
	struct scene *s;
	pthread_barrier_t *barrier;
	uint64_t npages;
	int64_t *results;
	char byte;
};

static void *resolve_all(void *arg)
{
	struct resolver *r = arg;
	char page[P];

	memset(page, r->byte, P);
	for (uint64_t i = 0; i < r->npages; i++) {
		pthread_barrier_wait(r->barrier);
		r->results[i] = gmem_uffd_copy(r->s->uffd, r->s->view, i * P, page, P);
	}
	return NULL;
}

TEST(two_resolvers_at_once)
{
	enum { N = SLOW_BUILD ? 200 : 1000 };
	struct scene s = set_up(N * P, 0);
	static int64_t results[2][N];
	pthread_barrier_t barrier;
	struct resolver r[2];

	pthread_barrier_init(&barrier, NULL, 2);
	for (int i = 0; i < 2; i++) {
		r[i] = (struct resolver){ .s = &s, .barrier = &barrier, .npages = N, .results = results[i] };
		r[i].byte = (char)('a' + i);
		pthread_create(&r[i].thread, NULL, resolve_all, &r[i]);
	}
	for (int i = 0; i < 2; i++)
		pthread_join(r[i].thread, NULL);
	for (uint64_t i = 0; i < N; i++) {
		int won = results[1][i] == (int64_t)P;

		CHECK_EQ(results[won][i], P);
		CHECK_EQ(results[!won][i], -EEXIST);
		for (uint64_t k = 0; k < P; k++)
			CHECK_EQ(s.p[i * P + k], 'a' + won);
	}
	pthread_barrier_destroy(&barrier);
	tear_down(&s);
}

TEST(bad_sources)
{
	struct scene s = set_up(64 * P, 0);
	char *hole = mmap(NULL, 64 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK_EQ(munmap(hole + 20 * P, P), 0);
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 0, NULL, P), -EFAULT);
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 0, hole + 20 * P, 3 * P), -EFAULT);
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 0, hole + 19 * P + 1, P), -EFAULT);
	CHECK_EQ(gmem_file_page_state(s.file, 0), GMEM_PAGE_ABSENT);
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, hole, 64 * P), 20 * P);
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 32 * P, hole + 100, 30 * P), 19 * P);
	CHECK_EQ(gmem_file_page_state(s.file, 51 * P), GMEM_PAGE_ABSENT);
	munmap(hole, 64 * P);
	tear_down(&s);
}

/* Served by a pager, of its own file or of ours. */
TEST(source_behind_a_pager)
{
	struct scene s = set_up(64 * P, 0);
	struct gmem_file *file = new_file(64 * P, 0);
	struct gmem_view *from = new_view(file, 0, 64 * P);
	struct gmem_pager_stats stats = { .size = sizeof(stats) };
	struct gmem_pager *pager;
	struct gmem_source *zero;

	CHECK_OK(gmem_pager_create(NULL, &pager));
	CHECK_OK(gmem_source_new_zero(&zero));
	CHECK_OK(gmem_pager_add_view(pager, from, zero, 0));
	CHECK_OK(gmem_pager_stats(pager, &stats));
	if (stats.user_mode_only)
		SKIP("uffd", "only user-mode userfaults here");
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, gmem_view_addr(from), 64 * P), 64 * P);
	CHECK(page_is_zero(s.p + 63 * P));
	CHECK_OK(gmem_pager_stats(pager, &stats));
	CHECK(stats.missing > 0);
	gmem_pager_free(pager);
	gmem_source_unref(zero);
	gmem_view_unmap(from);
	gmem_file_free(file);
	tear_down(&s);
}

TEST(private_source)
{
	struct scene s = set_up(64 * P, 0);
	struct gmem_file *file = new_file(64 * P, 0);
	struct gmem_view *from = new_view(file, 0, 64 * P);

	convert(file, 3 * P, P, PRIVATE);
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 0, gmem_view_addr(from), 8 * P), 3 * P);
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 3 * P, (char *)gmem_view_addr(from) + 3 * P, P), -EFAULT);
	CHECK_EQ(gmem_file_page_state(s.file, 3 * P), GMEM_PAGE_ABSENT);
	/* Of the same file; and the page itself. */
	convert(s.file, 9 * P, P, PRIVATE);
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 3 * P, s.p + 9 * P, P), -EFAULT);
	CHECK_ERR(gmem_uffd_copy(s.uffd, s.view, 9 * P, s.p + 9 * P, P), -EFAULT);
	CHECK_EQ(gmem_file_page_state(s.file, 9 * P), GMEM_PAGE_ABSENT);
	gmem_view_unmap(from);
	gmem_file_free(file);
	tear_down(&s);
}

struct loop {
	pthread_t thread;
	struct scene *s;
	_Atomic bool stop;
	_Atomic unsigned int served;
};

/* The caller's loop as one would write it. */
static void *loop_main(void *arg)
{
	struct loop *l = arg;
	struct pollfd p = { .fd = gmem_uffd_fd(l->s->uffd), .events = POLLIN };
	struct gmem_uffd_event e[16];
	char page[P];

	while (!atomic_load(&l->stop)) {
		int n;

		poll(&p, 1, 20);
		n = (int)CHECK_OK(gmem_uffd_read(l->s->uffd, e, 16));
		for (int i = 0; i < n; i++) {
			fill_page(3, e[i].off, page);
			if (e[i].flags & GMEM_UFFD_FAULT_MINOR)
				gmem_uffd_continue(l->s->uffd, e[i].view, e[i].off, P);
			else
				gmem_uffd_copy(l->s->uffd, e[i].view, e[i].off, page, P);
			atomic_fetch_add(&l->served, 1);
		}
	}
	return NULL;
}

/* The source raises userfaults of its own while it is read: no lock may be held then, of this file or of another. */
TEST(source_in_served_memory)
{
	struct scene a = set_up(64 * P, 0), b = set_up(64 * P, 0);
	struct loop l = { .s = &a };

	if (gmem_uffd_user_mode_only(a.uffd))
		SKIP("uffd", "only user-mode userfaults here");
	pthread_create(&l.thread, NULL, loop_main, &l);
	CHECK_EQ(gmem_uffd_copy(b.uffd, b.view, 0, a.p, 64 * P), 64 * P);
	for (uint64_t i = 0; i < 64; i++)
		CHECK(page_is(3, i * P, b.p + i * P));
	atomic_store(&l.stop, true);
	pthread_join(l.thread, NULL);
	CHECK_EQ(l.served, 64);
	tear_down(&b);
	tear_down(&a);
}

TEST(source_in_the_same_file)
{
	struct scene s = set_up(64 * P, 0);
	struct loop l = { .s = &s };

	if (gmem_uffd_user_mode_only(s.uffd))
		SKIP("uffd", "only user-mode userfaults here");
	pthread_create(&l.thread, NULL, loop_main, &l);
	CHECK_EQ(gmem_uffd_copy(s.uffd, s.view, 32 * P, s.p, 32 * P), 32 * P);
	for (uint64_t i = 0; i < 32; i++)
		CHECK(page_is(3, i * P, s.p + (32 + i) * P));
	atomic_store(&l.stop, true);
	pthread_join(l.thread, NULL);
	tear_down(&s);
}
