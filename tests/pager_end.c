/* SPDX-License-Identifier: MIT */
/* Arguments, sources of the library, and how a pager ends. */
#include "tap.h"

#include "sys/memfd.h"

#include "pager_scene.h"

static _Atomic int went_on;

static void *touch_and_tell(void *arg)
{
	char c = *(volatile char *)arg;

	atomic_store(&went_on, c ? 1 : 2);
	return NULL;
}

/* In a child: its touchers never end. */
TEST(free_leaves_touchers_waiting)
{
	struct scene s = { 0 };
	pthread_t a, b;
	pid_t pid;

	need_uffd();
	pid = fork();
	if (!pid) {
		set_up(&s, (struct src)SRC(.id = 15, .bad_page = 5, .bad_err = -ETIMEDOUT, .bad_left = INT32_MAX), 0, 0,
		       64 * P);
		pthread_create(&a, NULL, touch_and_tell, s.p + 5 * P);
		while (!s.told.n[GMEM_PAGER_ERROR])
			usleep(1000);
		gmem_pager_free(s.pager);
		/* One that waited before, one that comes after. */
		pthread_create(&b, NULL, touch_and_tell, s.p + 40 * P);
		usleep(300000);
		CHECK_EQ(went_on, 0);
		_exit(0);
	}
	wait_ok(pid);
}

TEST(add_view_twice)
{
	struct scene s = { 0 };
	struct gmem_pager *other;

	set_up(&s, (struct src)SRC(.id = 16), 0, 0, 64 * P);
	CHECK_ERR(gmem_pager_add_view(s.pager, s.view, s.source, 0), -EBUSY);
	other = new_pager(1, 0, NULL);
	CHECK_ERR(gmem_pager_add_view(other, s.view, s.source, 0), -EBUSY);
	gmem_pager_free(other);
	/* The first registration has not suffered. */
	check_all(s.p, 16, 64);
	tear_down(&s);
}

/* What is private of the view keeps its markers, and what is shared is not left waiting for nobody. */
TEST(refused_view_is_plain_again)
{
	struct gmem_file_opts o = { .size = sizeof(o), .flags = GMEM_FILE_INIT_PRIVATE };
	struct src src = { .id = 1 };
	struct gmem_source *source = source_of(&src);
	struct gmem_pager *pager = new_pager(1, 0, NULL);
	struct gmem_file *file;
	struct gmem_view *view;
	char *p;

	CHECK_OK(gmem_file_create(64 * P, &o, &file));
	p = map_view(file, 0, 64 * P, &view);
	catch_bus();
	for (uint64_t i = 0; i < 3; i++) {
		CHECK_ERR(gmem_pager_add_view(pager, view, source, 0), -EINVAL);
		CHECK_EQ(touch(p + 9 * P), SIGBUS);
		CHECK_OK(gmem_file_set_attributes(file, i * P, P, 0, NULL));
		CHECK_EQ(touch(p + i * P), 0);
		CHECK_EQ(touch(p + (i + 1) * P), SIGBUS);
	}
	gmem_pager_free(pager);
	gmem_view_unmap(view);
	gmem_source_unref(source);
	gmem_file_free(file);
}

TEST(bad_arguments)
{
	struct gmem_pager_opts o = { .size = 4 };
	struct gmem_pager_stats st = { .size = 8 };
	struct gmem_pager *pager = (void *)1;
	struct gmem_region r = { .size = sizeof(r) };
	struct src src = SRC(.id = 0);
	struct gmem_source *source = source_of(&src);
	struct gmem_file *file = new_file(16 * P);
	int uffd;

	need_uffd();
	CHECK_ERR(gmem_pager_create(&o, &pager), -EINVAL);
	o = (struct gmem_pager_opts){ .size = sizeof(o), .flags = 1u << 31 };
	CHECK_ERR(gmem_pager_create(&o, &pager), -EINVAL);
	o = (struct gmem_pager_opts){ .size = sizeof(o), .resolvers = 100000 };
	CHECK_ERR(gmem_pager_create(&o, &pager), -EINVAL);
	CHECK(pager == (void *)1);
	CHECK_OK(gmem_pager_create(NULL, &pager));
	CHECK_ERR(gmem_pager_stats(pager, &st), -EINVAL);
	uffd = gmem_sys_uffd_open(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM, NULL);
	CHECK_OK(uffd);
	r = (struct gmem_region){ .size = 4 };
	CHECK_ERR(gmem_pager_add_region(pager, &r), -EINVAL);
	r = (struct gmem_region){
		.size = sizeof(r), .file = file, .source = source, .uffd = uffd, .hva = 4096, .len = 16 * P
	};
	r.uffd = -1;
	CHECK_ERR(gmem_pager_add_region(pager, &r), -EINVAL);
	r.uffd = uffd;
	r.len = 17 * P;
	CHECK(gmem_pager_add_region(pager, &r) < 0);
	r.len = 100;
	CHECK_ERR(gmem_pager_add_region(pager, &r), -EINVAL);
	r.len = 16 * P;
	r.hva = 17;
	CHECK_ERR(gmem_pager_add_region(pager, &r), -EINVAL);
	r.hva = -8 * P;
	CHECK_ERR(gmem_pager_add_region(pager, &r), -EINVAL);
	r.hva = 1ull << 32;
	r.file = NULL;
	CHECK_ERR(gmem_pager_add_region(pager, &r), -EINVAL);
	r.file = file;
	r.source = NULL;
	CHECK_ERR(gmem_pager_add_region(pager, &r), -EINVAL);
	r.source = source;
	CHECK_EQ(gmem_pager_add_region(pager, &r), 0);
	r.hva += 8 * P;
	CHECK_ERR(gmem_pager_add_region(pager, &r), -EEXIST);
	gmem_pager_free(pager);
	gmem_pager_free(NULL);
	gmem_source_unref(source);
	gmem_file_free(file);
	close(uffd);
}

TEST(unregister_when_complete)
{
	struct scene s = { 0 };
	uint64_t before;

	set_up(&s, (struct src)SRC(.id = 17, .knows_zero = true), 0, 0, LEN);
	for (uint64_t i = 0; i < 10; i++)
		CHECK(page_is(17, i * P, s.p + i * P));
	/* Not complete: what is absent stays. */
	CHECK(gmem_pager_unregister(s.pager) > 0);
	for (uint64_t i = 0; i < 20; i++)
		CHECK(page_is(17, i * P, s.p + i * P));
	CHECK_OK(gmem_pager_fill(s.pager, NULL, NULL));
	CHECK_EQ(gmem_pager_unregister(s.pager), 0);
	before = stats_of(s.pager).missing + stats_of(s.pager).minor;
	check_all(s.p, 17, PAGES);
	CHECK_EQ(stats_of(s.pager).missing + stats_of(s.pager).minor, before);
	gmem_pager_free(s.pager);
	/* With no pager at all. */
	CHECK_EQ(madvise(s.p, LEN, MADV_DONTNEED), 0);
	check_all(s.p, 17, PAGES);
	s.pager = NULL;
	tear_down(&s);
}

/* ---- sources of the library */

TEST(fd_and_zero_sources)
{
	struct gmem_pager *pager = new_pager(0, 0, NULL);
	struct gmem_file *files[2] = { new_file(64 * P), new_file(64 * P) };
	struct gmem_view *views[2];
	struct gmem_source *fd_source, *zero;
	int fd = gmem_memfd_create("dump", 40 * P);
	char page[4096], *p[2];

	for (uint64_t i = 0; i < 40; i++) {
		fill_page(18, i * P, page);
		CHECK_EQ(gmem_pwrite_all(fd, page, P, i * P), 0);
	}
	CHECK_OK(gmem_source_new_fd(fd, 8 * P, UINT64_MAX, &fd_source));
	CHECK_OK(gmem_source_new_zero(&zero));
	p[0] = map_view(files[0], 0, 64 * P, &views[0]);
	p[1] = map_view(files[1], 0, 64 * P, &views[1]);
	CHECK_OK(gmem_pager_add_view(pager, views[0], fd_source, 0));
	CHECK_OK(gmem_pager_add_view(pager, views[1], zero, 0));
	gmem_source_unref(fd_source);
	gmem_source_unref(zero);
	for (uint64_t i = 0; i < 64; i++) {
		CHECK(i < 32 ? page_is(18, (i + 8) * P, p[0] + i * P) : page_is_zero(p[0] + i * P));
		CHECK(page_is_zero(p[1] + i * P));
	}
	CHECK(stats_of(pager).zero_pages >= 64 + 32);
	gmem_pager_free(pager);
	for (int i = 0; i < 2; i++) {
		gmem_view_unmap(views[i]);
		gmem_file_free(files[i]);
	}
	close(fd);
}
