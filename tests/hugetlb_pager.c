/* SPDX-License-Identifier: MIT */
/* A pager on 2 MiB pages: all of a page is brought in before any of it is mapped. */
#define TAP_NO_MAIN
#include "tap.h"

#include "huge_util.h"
#include "pager_scene.h"
#include "sys/call.h"

#define N 4ull /* huge pages of a scene */
#define ALL (N * H_PAGES)
#define PRIVATE GMEM_ATTRIBUTE_PRIVATE

static void begin(struct scene *s, struct src src, uint32_t flags)
{
	s->file = huge_file(N, 0);
	s->pager = new_pager(0, flags, &s->told);
	s->src = src;
	s->source = source_of(&s->src);
	s->p = map_view(s->file, 0, N * H, &s->view);
}

static void serve(struct scene *s)
{
	catch_bus();
	CHECK_OK(gmem_pager_add_view(s->pager, s->view, s->source, 0));
}

static uint64_t in_place(const struct gmem_file *file, uint64_t unit)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < H_PAGES; i++)
		n += gmem_file_page_state(file, unit * H + i * P) == GMEM_PAGE_UPTODATE;
	return n;
}

static void random_touches(bool nowait, bool knows_zero, bool fill)
{
	struct scene s = { .seed = tap_seed() };
	struct toucher t[4];
	pthread_t threads[4];

	begin(&s, (struct src)SRC(.nowait = nowait, .knows_zero = knows_zero, .id = 3), 0);
	serve(&s);
	for (int i = 0; i < 4; i++) {
		t[i] = (struct toucher){
			.p = s.p, .id = 3, .npages = ALL, .seed = s.seed + (uint64_t)i, .touches = ALL
		};
		pthread_create(&threads[i], NULL, touch_pages, &t[i]);
	}
	if (fill)
		CHECK_OK(gmem_pager_fill(s.pager, NULL, NULL));
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	check_all(s.p, 3, ALL);
	CHECK_EQ(resident(s.file), N * H);
	CHECK_EQ(stats_of(s.pager).errors, 0);
	CHECK_EQ(stats_of(s.pager).poisoned, 0);
	if (!fill) {
		CHECK_EQ(stats_of(s.pager).demand_pages, ALL);
		CHECK(stats_of(s.pager).missing >= N);
	}
	CHECK_EQ(gmem_pager_unregister(s.pager), 0);
	gmem_pager_free(s.pager);
	/* Whole, and nobody's any more. */
	CHECK_EQ(gmem_sys_zap(s.p, N * H), 0);
	check_all(s.p, 3, ALL);
	gmem_source_unref(s.source);
	gmem_view_unmap(s.view);
	gmem_file_free(s.file);
}

TEST(huge_random_touches_waiting_source)
{
	random_touches(false, false, false);
}

TEST(huge_random_touches_ready_source)
{
	random_touches(true, true, false);
}

TEST(huge_random_touches_beside_a_fill)
{
	random_touches(false, true, true);
}

TEST(huge_fill_alone)
{
	struct scene s = { 0 };

	begin(&s, (struct src)SRC(.knows_zero = true, .id = 1), 0);
	serve(&s);
	CHECK_EQ(gmem_pager_fill(s.pager, NULL, NULL), ALL / 8 * 7);
	CHECK_EQ(stats_of(s.pager).zero_pages, ALL / 8);
	CHECK_EQ(s.told.n[GMEM_PAGER_COMPLETE], 1);
	CHECK_EQ(gmem_pager_fill(s.pager, NULL, NULL), 0);
	CHECK_EQ(gmem_pager_unregister(s.pager), 0);
	check_all(s.p, 1, ALL);
	CHECK_EQ(stats_of(s.pager).demand_pages, 0);
	tear_down(&s);
}

static int all_zero(void *opaque, uint64_t off, uint64_t len, bool nowait)
{
	(void)opaque;
	(void)off;
	(void)len;
	(void)nowait;
	return 1;
}

TEST(huge_fill_of_zeroes_takes_no_memory)
{
	static const struct gmem_source_ops ops = { .size = sizeof(ops), .read = src_read, .is_zero = all_zero };
	struct scene s = { 0 };

	begin(&s, (struct src)SRC(.id = 1), 0);
	gmem_source_unref(s.source);
	CHECK_OK(gmem_source_new(&ops, &s.src, &s.source));
	serve(&s);
	CHECK_EQ(gmem_pager_fill(s.pager, NULL, NULL), 0);
	CHECK_EQ(resident(s.file), 0);
	/* A touch gives one page memory. */
	CHECK_EQ(touch(s.p + H + 5 * P), 0);
	CHECK(page_is_zero(s.p + H + 5 * P));
	CHECK_EQ(resident(s.file), H);
	tear_down(&s);
}

/* Bytes that were there first stay, and what was punched is zero, in the middle of what the source gives. */
TEST(huge_pages_that_are_there_in_part)
{
	struct scene s = { 0 };
	char page[P];

	begin(&s, (struct src)SRC(.id = 2), 0);
	memset(page, 'b', P);
	CHECK_OK(gmem_file_write(s.file, 9 * P, page, P));
	CHECK_OK(gmem_file_punch(s.file, 100 * P, 2 * P));
	CHECK_OK(gmem_file_punch(s.file, H, H));
	serve(&s);
	for (uint64_t i = 0; i < 2 * H_PAGES; i++) {
		if (i == 9)
			CHECK_MEM(s.p + i * P, page, P);
		else if (i == 100 || i == 101 || i >= H_PAGES)
			CHECK(page_is_zero(s.p + i * P));
		else
			CHECK(page_is(2, i * P, s.p + i * P));
	}
	CHECK_EQ(resident(s.file), 2 * H);
	/* Mapped already, one is punched in part, another whole: zero, and the source is not asked. */
	CHECK_EQ(touch(s.p + 2 * H), 0);
	CHECK_OK(gmem_file_punch(s.file, 2 * H - P, 2 * P));
	CHECK_OK(gmem_file_punch(s.file, 0, H));
	CHECK(page_is_zero(s.p + 2 * H));
	CHECK(page_is(2, 2 * H + P, s.p + 2 * H + P));
	CHECK(page_is_zero(s.p + 9 * P));
	tear_down(&s);
}

static void *touch_one(void *arg)
{
	char **at = arg;

	CHECK_EQ(touch(*at), 0);
	atomic_store((_Atomic(char *) *)at, NULL);
	return NULL;
}

/* The first half of the page is in place while the source keeps the second back: nobody sees the first. */
TEST(huge_pages_are_not_mapped_before_they_are_whole)
{
	_Atomic(char *) at;
	struct scene s = { 0 };
	pthread_t thread;

	begin(&s, (struct src)SRC(.id = 2, .block_page = 400), 0);
	serve(&s);
	atomic_store(&at, s.p + 3 * P);
	CHECK_EQ(pthread_create(&thread, NULL, touch_one, &at), 0);
	while (!atomic_load(&s.src.blocked))
		usleep(1000);
	usleep(50000);
	CHECK(atomic_load(&at) != NULL);
	CHECK_EQ(gmem_file_page_state(s.file, 3 * P), GMEM_PAGE_UPTODATE);
	CHECK_EQ(gmem_file_unit(s.file, 0), GMEM_UNIT_PART);
	/* The others come. */
	CHECK_EQ(touch(s.p + H), 0);
	atomic_store(&s.src.release, true);
	pthread_join(thread, NULL);
	check_all(s.p, 2, ALL);
	tear_down(&s);
}

TEST(huge_page_with_a_part_that_is_lost)
{
	struct scene s = { 0 };
	char page[P];

	begin(&s, (struct src)SRC(.id = 2, .bad_page = 70, .bad_err = -EBADMSG, .bad_left = INT32_MAX), 0);
	serve(&s);
	/* Its neighbours too, for a view has it whole or not at all. */
	CHECK_EQ(touch(s.p + 3 * P), SIGBUS);
	CHECK_EQ(touch(s.p + 70 * P), SIGBUS);
	CHECK_EQ(touch(s.p + 511 * P), SIGBUS);
	CHECK_EQ(s.told.n[GMEM_PAGER_POISONED], 1);
	CHECK_EQ(s.told.off, 70 * P);
	CHECK_EQ(in_place(s.file, 0), H_PAGES - 1);
	CHECK_ERR(gmem_file_read(s.file, 70 * P, page, 1), -EHWPOISON);
	for (uint64_t i = 0; i < H_PAGES; i++) {
		if (i == 70)
			continue;
		CHECK_OK(gmem_file_read(s.file, i * P, page, P));
		CHECK(page_is(2, i * P, page));
	}
	CHECK_EQ(touch(s.p + H), 0);
	/* One lost, one page of the view that stays registered. */
	CHECK_OK(gmem_pager_fill(s.pager, NULL, NULL));
	CHECK_EQ(gmem_pager_unregister(s.pager), H_PAGES);
	CHECK_EQ(touch(s.p + 3 * P), SIGBUS);
	for (uint64_t i = H_PAGES; i < ALL; i++)
		CHECK(page_is(2, i * P, s.p + i * P));
	tear_down(&s);
}

TEST(huge_page_of_a_source_that_fails_for_a_while)
{
	struct scene s = { 0 };

	begin(&s, (struct src)SRC(.id = 2, .bad_page = 70, .bad_err = -EAGAIN, .bad_left = 20), 0);
	serve(&s);
	check_all(s.p, 2, ALL);
	CHECK_EQ(stats_of(s.pager).poisoned, 0);
	CHECK(stats_of(s.pager).errors > 0);
	tear_down(&s);
}

TEST(huge_private_pages_of_a_served_view)
{
	struct scene s = { 0 };

	need_markers();
	begin(&s, (struct src)SRC(.id = 2), 0);
	serve(&s);
	CHECK_EQ(touch(s.p), 0);
	CHECK_ERR(gmem_file_set_attributes(s.file, P, P, PRIVATE, NULL), -EINVAL);
	CHECK_OK(gmem_file_set_attributes(s.file, 0, 2 * H, PRIVATE, NULL));
	CHECK_EQ(touch(s.p + 5 * P), SIGBUS);
	CHECK_EQ(touch(s.p + H), SIGBUS);
	/* Brought in, for a guest, and not mapped. */
	CHECK_OK(gmem_pager_fill(s.pager, NULL, NULL));
	CHECK_EQ(touch(s.p + H), SIGBUS);
	CHECK_OK(gmem_file_punch(s.file, 0, H));
	CHECK_EQ(touch(s.p + 5 * P), SIGBUS);
	CHECK_EQ(gmem_pager_unregister(s.pager), 0);
	CHECK_EQ(touch(s.p + H), SIGBUS);
	CHECK_OK(gmem_file_set_attributes(s.file, 0, 2 * H, 0, NULL));
	CHECK(page_is_zero(s.p + 5 * P));
	for (uint64_t i = H_PAGES; i < ALL; i++)
		CHECK(page_is(2, i * P, s.p + i * P));
	tear_down(&s);
}

TEST(huge_pages_of_a_guest_and_a_balloon)
{
	struct gmem_memslot slot = { .size = sizeof(slot), .len = N * H };
	struct scene s = { 0 };
	struct gmem_vcpu *vcpu;
	struct gmem_vm *vm;
	char page[P];

	begin(&s, (struct src)SRC(.id = 2), GMEM_PAGER_REMOVE_DISCARDS);
	serve(&s);
	slot.file = s.file;
	CHECK_OK(gmem_vm_create(NULL, &vm));
	CHECK_OK(gmem_vm_set_slot(vm, &slot));
	CHECK_OK(gmem_vcpu_create(vm, NULL, &vcpu));
	CHECK_OK(gmem_vcpu_load(vcpu, H + 33 * P, page, P));
	CHECK(page_is(2, H + 33 * P, page));
	CHECK_EQ(in_place(s.file, 1), H_PAGES);
	CHECK_EQ(in_place(s.file, 0), 0);
	/* Given up before it ever came. */
	CHECK_EQ(madvise(s.p + 2 * H, H, MADV_REMOVE), 0);
	/* Which the reader applies when it has read of it. */
	while (gmem_file_page_state(s.file, 3 * H - P) != GMEM_PAGE_REMOVED)
		usleep(1000);
	CHECK_OK(gmem_vcpu_load(vcpu, 2 * H + 5 * P, page, P));
	CHECK(page_is_zero(page));
	CHECK(page_is_zero(s.p + 2 * H + 6 * P));
	CHECK(page_is(2, 3 * H, s.p + 3 * H));
	gmem_vcpu_free(vcpu);
	gmem_vm_free(vm);
	tear_down(&s);
}

TEST(huge_regions_are_of_whole_pages)
{
	struct gmem_region r = { .size = sizeof(r) };
	struct scene s = { 0 };

	begin(&s, (struct src)SRC(.id = 2), 0);
	r.file = s.file;
	r.source = s.source;
	r.uffd = gmem_sys_uffd_open(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM, NULL);
	if (r.uffd < 0)
		SKIP("uffd", "no full userfaultfd");
	r.hva = (uintptr_t)s.p;
	r.len = P;
	CHECK_ERR(gmem_pager_add_region(s.pager, &r), -EINVAL);
	CHECK_HAS(gmem_last_error(), "2097152");
	r.len = H;
	r.hva += P;
	CHECK_ERR(gmem_pager_add_region(s.pager, &r), -EINVAL);
	CHECK_HAS(gmem_last_error(), "hva");
	r.hva -= P;
	CHECK_EQ(gmem_sys_uffd_register(r.uffd, r.hva, H, GMEM_SYS_UFFD_MISSING | GMEM_SYS_UFFD_MINOR), 0);
	CHECK_OK(gmem_pager_add_region(s.pager, &r));
	CHECK(page_is(2, 77 * P, s.p + 77 * P));
	close(r.uffd);
	tear_down(&s);
}
