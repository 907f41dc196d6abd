/* SPDX-License-Identifier: MIT */
/* gmem_populate(): its errors, its progress, its function. Sources are populate_source.c's. */
#include "tap.h"

#include "populate_util.h"

#define NPAGES 16

TEST(errors_in_order)
{
	char *src = source_pages(0, 4);
	struct rig r;
	struct plan plan = { .r = &r };
	/* Each call has the faults of all lines below it too: the one that is told of comes first. */
	const struct {
		uint64_t gfn;
		const void *src;
		int64_t npages;
		uint32_t flags;
		int err;
		const char *says;
		bool alive;
	} t[] = {
		{ 1, src + 1, 0, 2, -EINVAL, "0 pages" },
		{ 1, src + 1, -1, 2, -EINVAL, "-1 pages" },
		{ 1, src + 1, INT64_MIN, 2, -EINVAL, " pages" },
		{ 1, src + 1, 4, 2, -EINVAL, "not page-aligned" },
		{ 1, src + 2048, 4, 2, -EINVAL, "not page-aligned" },
		{ 1, src, 4, 2, -EINVAL, "unknown" },
		{ 1, NULL, 4, 3, -EINVAL, "unknown" },
		{ 1, NULL, 4, 1, -EINVAL, "without a source" },
		{ 1, src, 4, 0, -EIO, "dead" },
		{ 1, src, 4, 0, -EINVAL, "no slot", true },
		{ GFN - 1, src, 4, 0, -EINVAL, "no slot", true },
		{ GFN + NPAGES, src, 4, 0, -EINVAL, "no slot", true },
		{ UINT64_MAX, src, 4, 0, -EINVAL, "no slot", true },
	};

	rig_up(&r, NPAGES, GMEM_FILE_INIT_PRIVATE);
	convert(&r, 0, 1, false);
	CHECK_ERR(run(&plan, 0, src, 4, 0), -EINVAL);
	CHECK_HAS(gmem_last_error(), "not private");
	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		atomic_store(&r.vm->mmu.dead, !t[i].alive);
		CHECK_ERR(gmem_populate(r.vm, t[i].gfn, t[i].src, t[i].npages, t[i].flags, planned, &plan), t[i].err);
		CHECK_HAS(gmem_last_error(), t[i].says);
	}
	CHECK_EQ(plan.calls, 0);
	CHECK_EQ(resident(r.file), 0);
	check_no_lock(&r);
	rig_down(&r);
}

TEST(closed_file)
{
	char *src = source_pages(0, 4);
	struct rig r;
	struct plan plan = { .r = &r };

	rig_up(&r, NPAGES, GMEM_FILE_INIT_PRIVATE);
	CHECK_EQ(gmem_populate(r.vm, GFN, src, 1, 0, NULL, NULL), 1);
	gmem_file_free(r.file);
	CHECK_ERR(run(&plan, 0, src, 4, 0), -EFAULT);
	CHECK_HAS(gmem_last_error(), "closed");
	CHECK_ERR(run(&plan, 0, NULL, 4, 0), -EFAULT);
	/* A bad argument is told of first. */
	CHECK_ERR(run(&plan, 0, src, 4, 4), -EINVAL);
	CHECK_EQ(plan.calls, 0);
	gmem_vcpu_free(r.vcpu);
	gmem_vm_free(r.vm);
}

TEST(after_fork)
{
	char *src = source_pages(0, 4);
	struct rig r;
	struct plan plan = { .r = &r };
	int status;
	pid_t pid;

	rig_up(&r, NPAGES, GMEM_FILE_INIT_PRIVATE);
	fflush(NULL);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		CHECK_ERR(run(&plan, 0, src, 4, 0), -EIO);
		CHECK_EQ(plan.calls, 0);
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	CHECK_EQ(resident(r.file), 0);
	rig_down(&r);
}

/* A page that is not private in the middle: those before it are done, it and those after it untouched. */
TEST(not_private_in_the_middle)
{
	char *src = source_pages(0, NPAGES);
	struct rig r;
	struct plan plan = { .r = &r, .src = src };

	rig_up(&r, NPAGES, GMEM_FILE_INIT_PRIVATE);
	for (uint64_t at = 1; at < NPAGES; at++) {
		CHECK_OK(gmem_file_punch(r.file, 0, gmem_file_size(r.file)));
		convert(&r, at, 1, false);
		plan.calls = 0;
		CHECK_EQ(run(&plan, 0, src, NPAGES, 0), (int64_t)at);
		CHECK_EQ(plan.calls, at);
		CHECK_EQ(resident(r.file), at);
		CHECK_ERR(run(&plan, at, src + at * P, NPAGES, 0), -EINVAL);
		check_no_lock(&r);
		convert(&r, at, 1, true);
		CHECK_EQ(run(&plan, at, src + at * P, NPAGES, 0), (int64_t)(NPAGES - at));
		for (uint64_t i = 0; i < NPAGES; i++)
			check_guest(&r, i, 0, i);
	}
	rig_down(&r);
}

TEST(clamped_to_the_end_of_the_slot)
{
	char *src = source_pages(0, NPAGES + 4);
	struct gmem_file *other = new_file(NPAGES * P);
	struct rig r;
	struct plan plan = { .r = &r, .src = src };

	rig_up(&r, NPAGES, GMEM_FILE_INIT_PRIVATE);
	CHECK_OK(gmem_file_set_attributes(other, 0, NPAGES * P, GMEM_ATTRIBUTE_PRIVATE, NULL));
	/* Next to it in the guest, but another slot. */
	set_slot(r.vm, 1, GFN + NPAGES, NPAGES, other, 0);
	CHECK_EQ(run(&plan, 0, src, NPAGES + 4, 0), NPAGES);
	CHECK_EQ(run(&plan, 10, src + 10 * P, NPAGES, 0), 6);
	CHECK_EQ(run(&plan, NPAGES - 1, src + (NPAGES - 1) * P, INT64_MAX, 0), 1);
	CHECK_EQ(plan.calls, NPAGES + 7);
	CHECK_EQ(resident(r.file), NPAGES);
	CHECK_EQ(resident(other), 0);
	CHECK_EQ(gmem_file_page_state(r.file, 0), GMEM_PAGE_ABSENT);
	gmem_file_free(other);
	rig_down(&r);
}

TEST(partial_progress_and_going_on)
{
	char *src = source_pages(0, 150);
	struct rig r;
	struct plan plan = { .r = &r, .src = src };
	uint64_t seed = tap_seed(), page = 0;

	rig_up(&r, 150, GMEM_FILE_INIT_PRIVATE);
	while (page < r.npages) {
		uint64_t stop = page + tap_rand(&seed) % 70;
		int64_t n;

		plan.fail = -EREMOTEIO;
		plan.fail_at = stop;
		n = run(&plan, page, src + page * P, (int64_t)(r.npages - page), 0);
		CHECK_EQ(n, page == stop ? -EREMOTEIO : (int64_t)((stop < 150 ? stop : 150) - page));
		if (n > 0)
			page += (uint64_t)n;
		CHECK_EQ(resident(r.file), page);
		if (n < 0)
			CHECK_HAS(gmem_last_error(), "test function");
	}
	for (uint64_t i = 0; i < r.npages; i++) {
		check_guest(&r, i, 0, i);
		CHECK_EQ(gmem_file_page_state(r.file, (FIRST + i) * P), GMEM_PAGE_UPTODATE);
	}
	rig_down(&r);
}

/* ---- a function that refuses a page */

/* Whatever it answers is its own, not the library's way to say "come again". */
static const int answers[] = { -EINVAL, -EBUSY, -EEXIST, -EAGAIN,    -ENODATA, -ENOENT,
			       -EFAULT, -EINTR, -EIO,	 -EHWPOISON, -ENOMEM,  1 };

TEST(refused_absent_page_is_absent_again)
{
	char *src = source_pages(0, NPAGES);
	struct rig r;
	struct plan plan = { .r = &r, .fail_at = 3, .scribble = true };

	rig_up(&r, NPAGES, GMEM_FILE_INIT_PRIVATE);
	for (size_t i = 0; i < 2 * sizeof(answers) / sizeof(answers[0]); i++) {
		plan.fail = answers[i / 2];
		plan.src = i % 2 ? NULL : src;
		plan.in_place = i % 2;
		plan.calls = 0;
		CHECK_ERR(run(&plan, 3, plan.src ? src + 3 * P : NULL, 4, 0), plan.fail > 0 ? -EINVAL : plan.fail);
		CHECK_EQ(plan.calls, 1);
		CHECK_EQ(word_of(&r, 3), GMEM_WORD_ABSENT);
		CHECK_EQ(resident(r.file), 0);
		check_no_lock(&r);
	}
	check_guest(&r, 3, -1, 0);
	rig_down(&r);
}

static void write_shared(struct rig *r, uint64_t page, int id)
{
	struct gmem_view *view;

	CHECK_OK(gmem_view_map(r->file, (FIRST + page) * P, P, PROT_READ | PROT_WRITE, &view));
	page_bytes((unsigned int)id, page, gmem_view_addr(view));
	gmem_view_unmap(view);
}

/* Its bytes come back, wherever they had come from; a punched page takes no memory again. */
TEST(refused_present_page_has_its_bytes_back)
{
	char *src = source_pages(1, NPAGES);
	struct rig r;
	struct plan plan = { .r = &r, .fail = -EBUSY, .scribble = true };

	rig_up(&r, NPAGES, 0);
	/* 0: absent to the table, written by a view; 1: written by the library; 2: punched; 3: zero, in place. */
	write_shared(&r, 0, 5);
	page_bytes(5, 1, src);
	CHECK_OK(gmem_file_write(r.file, (FIRST + 1) * P, src, P));
	page_bytes(1, 0, src);
	CHECK_OK(gmem_file_punch(r.file, (FIRST + 2) * P, P));
	convert(&r, 0, NPAGES, true);
	CHECK_EQ(gmem_populate(r.vm, GFN + 3, NULL, 1, 0, NULL, NULL), 1);
	CHECK_EQ(word_of(&r, 0), GMEM_WORD_ABSENT);
	for (int in_place = 0; in_place < 2; in_place++) {
		for (uint64_t page = 0; page < 4; page++) {
			uint32_t word = word_of(&r, page);

			plan.src = in_place ? NULL : src;
			plan.in_place = in_place;
			plan.fail_at = page;
			CHECK_ERR(run(&plan, page, in_place ? NULL : src + page * P, NPAGES, 0), -EBUSY);
			CHECK_EQ(word_of(&r, page), word);
			CHECK_EQ(resident(r.file), 3);
			check_no_lock(&r);
		}
	}
	check_guest(&r, 0, 5, 0);
	check_guest(&r, 1, 5, 1);
	check_guest(&r, 2, -1, 0);
	check_guest(&r, 3, -1, 0);
	/* And each takes new ones. */
	CHECK_EQ(gmem_populate(r.vm, GFN, src, 4, 0, NULL, NULL), 4);
	for (uint64_t page = 0; page < 4; page++)
		check_guest(&r, page, 1, page);
	rig_down(&r);
}

/* It had mapped the frame before it failed: no translation is left, and the next attempt may map it. */
TEST(refused_page_is_not_mapped)
{
	char *src = source_pages(0, NPAGES);
	struct rig r;
	struct plan plan = { .r = &r, .fail = -EIO, .fail_at = 2, .map = true, .scribble = true };

	rig_up(&r, NPAGES, GMEM_FILE_INIT_PRIVATE);
	for (int how = 0; how < 4; how++) {
		plan.src = how % 2 ? NULL : src;
		plan.in_place = how % 2;
		/* From the third round on the page is in place. */
		if (how == 2)
			CHECK_EQ(gmem_populate(r.vm, GFN, src, 3, 0, NULL, NULL), 3);
		plan.fail = -EIO;
		CHECK_EQ(run(&plan, 0, plan.src, 4, 0), 2);
		CHECK(mapped(&r, 0) && mapped(&r, 1));
		CHECK(!mapped(&r, 2));
		CHECK_ERR(run(&plan, 2, plan.src ? src + 2 * P : NULL, 4, 0), -EIO);
		CHECK(!mapped(&r, 2));
		check_no_lock(&r);
		plan.fail = 0;
		CHECK_EQ(run(&plan, 2, plan.src ? src + 2 * P : NULL, 1, 0), 1);
		CHECK(mapped(&r, 2));
		if (plan.src)
			for (uint64_t i = 0; i < 3; i++)
				check_guest(&r, i, 0, i);
		if (how < 2)
			CHECK_OK(gmem_file_punch(r.file, 0, gmem_file_size(r.file)));
		else
			gmem_mmu_zap(&r.vm->mmu, GFN, NPAGES, GMEM_SIDE_PRIVATE);
		CHECK(!mapped(&r, 2));
	}
	rig_down(&r);
}

/* ---- cancelling */

TEST(cancelled)
{
	char *src = source_pages(0, NPAGES);
	struct rig r;
	struct plan plan = { .r = &r, .src = src, .cancel_at = 5 };

	rig_up(&r, NPAGES, GMEM_FILE_INIT_PRIVATE);
	/* Before it runs: once, however often it was asked for. */
	gmem_vm_cancel(r.vm);
	gmem_vm_cancel(r.vm);
	CHECK_ERR(run(&plan, 0, src, NPAGES, 0), -EINTR);
	CHECK_EQ(plan.calls, 0);
	/* From inside: the page itself is done. */
	CHECK_EQ(run(&plan, 0, src, NPAGES, 0), 6);
	plan.cancel_at = 0;
	CHECK_EQ(run(&plan, 6, src + 6 * P, NPAGES, 0), NPAGES - 6);
	/* In the last page there is no next one: the next populate has it. */
	plan.cancel_at = NPAGES - 1;
	CHECK_EQ(run(&plan, 0, src, NPAGES, 0), NPAGES);
	CHECK_ERR(run(&plan, 0, src, NPAGES, 0), -EINTR);
	plan.cancel_at = 0;
	CHECK_EQ(run(&plan, 0, src, NPAGES, 0), NPAGES);
	/* A call that does not get as far leaves it. */
	gmem_vm_cancel(r.vm);
	CHECK_ERR(run(&plan, NPAGES, src, 1, 0), -EINVAL);
	CHECK_ERR(run(&plan, 0, NULL, 1, 0), -EINTR);
	check_no_lock(&r);
	rig_down(&r);
}

static void *cancel_soon(void *arg)
{
	struct plan *plan = arg;

	while (!atomic_load(&plan->calls))
		usleep(100);
	gmem_vm_cancel(plan->r->vm);
	return NULL;
}

TEST(cancelled_from_another_thread)
{
	char *src = source_pages(0, NPAGES);
	struct rig r;
	struct plan plan = { .r = &r, .src = src, .sleep_ns = 30000000 };
	pthread_t t;
	int64_t n;

	rig_up(&r, NPAGES, GMEM_FILE_INIT_PRIVATE);
	CHECK_EQ(pthread_create(&t, NULL, cancel_soon, &plan), 0);
	n = run(&plan, 0, src, NPAGES, 0);
	CHECK(n > 0 && n < NPAGES);
	pthread_join(t, NULL);
	plan.sleep_ns = 0;
	CHECK_EQ(run(&plan, (uint64_t)n, src + n * (int64_t)P, NPAGES, 0), NPAGES - n);
	rig_down(&r);
}

/* ---- in place */

TEST(in_place)
{
	struct rig r;
	struct plan plan = { .r = &r, .in_place = true, .map = true };
	char *bytes = source_pages(7, NPAGES);

	rig_up(&r, NPAGES, 0);
	write_shared(&r, 0, 7);
	CHECK_OK(gmem_file_write(r.file, (FIRST + 1) * P, bytes + P, P));
	CHECK_OK(gmem_file_write(r.file, (FIRST + 2) * P, bytes + 2 * P, P));
	CHECK_OK(gmem_file_punch(r.file, (FIRST + 2) * P, P));
	/* 3 is absent. */
	CHECK_ERR(run(&plan, 0, NULL, 4, 0), -EINVAL);
	convert(&r, 0, NPAGES, true);
	CHECK_EQ(run(&plan, 0, NULL, 4, 0), 4);
	CHECK_EQ(plan.calls, 4);
	for (uint64_t i = 0; i < 4; i++) {
		check_guest(&r, i, i < 2 ? 7 : -1, i);
		CHECK_EQ(gmem_file_page_state(r.file, (FIRST + i) * P), GMEM_PAGE_UPTODATE);
	}
	CHECK_EQ(resident(r.file), 4);
	/* Back: the host reads what the guest had. */
	convert(&r, 0, NPAGES, false);
	CHECK_OK(gmem_file_read(r.file, FIRST * P, bytes + 8 * P, P));
	CHECK_MEM(bytes + 8 * P, bytes, P);
	rig_down(&r);
}

/* Punched before, with bytes and without; and the next populate finds it as any other. */
TEST(punched_page_is_up_to_date)
{
	char *src = source_pages(0, NPAGES);
	struct rig r;
	struct plan plan = { .r = &r, .src = src };

	rig_up(&r, NPAGES, GMEM_FILE_INIT_PRIVATE);
	CHECK_EQ(run(&plan, 0, src, 1, 0), 1);
	CHECK_OK(gmem_file_punch(r.file, FIRST * P, 2 * P));
	for (int round = 0; round < 2; round++) {
		CHECK_EQ(run(&plan, 0, src, 2, 0), 2);
		for (uint64_t i = 0; i < 2; i++) {
			CHECK_EQ(gmem_file_page_state(r.file, (FIRST + i) * P), GMEM_PAGE_UPTODATE);
			check_guest(&r, i, 0, i);
		}
		CHECK_EQ(resident(r.file), 2);
	}
	rig_down(&r);
}

/* ---- turns */

static void *populate_half(void *arg)
{
	struct plan *plan = arg;
	uint64_t half = NPAGES / 2, from;

	for (from = 0; from < 40 * half; from += half) {
		uint64_t page = from % NPAGES;

		CHECK_EQ(run(plan, page, plan->src + page * P, (int64_t)half, 0), (int64_t)half);
	}
	return NULL;
}

/* The plan says so itself if it is entered while it runs. */
TEST(two_populates_take_turns)
{
	struct rig r;
	struct plan plan = { .r = &r, .src = source_pages(0, NPAGES), .sleep_ns = 100000 };
	pthread_t t[2];

	rig_up(&r, NPAGES, GMEM_FILE_INIT_PRIVATE);
	for (int i = 0; i < 2; i++)
		CHECK_EQ(pthread_create(&t[i], NULL, populate_half, &plan), 0);
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	CHECK_EQ(plan.calls, 2 * 40 * NPAGES / 2);
	for (uint64_t i = 0; i < NPAGES; i++)
		check_guest(&r, i, 0, i);
	rig_down(&r);
}
