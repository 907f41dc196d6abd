/* SPDX-License-Identifier: MIT */
/*
 * Calls of the TDX module that are busy, or refused for another reason, at each step: nothing is half done, and the VM
 * is dead where KVM takes it for a bug of its own, and nowhere else.
 */
#include "tdx_wraps.h"

#define ERR (GMEM_TDX_EPT_ENTRY_STATE_INCORRECT | GMEM_TDX_RCX)

static int64_t add(struct scene *s, int64_t npages, enum gmem_launch_page type)
{
	return gmem_launch_update(s->launch, GPA, s->src, npages, type);
}

static void set_up_finalized(struct scene *s)
{
	set_up(s);
	CHECK_EQ(add(s, 2, GMEM_LAUNCH_NORMAL), 2);
	CHECK_OK(gmem_launch_finish(s->launch, NULL));
	module.n = 0;
}

/* A page that was not launched after all. */
static void check_absent(struct scene *s, uint64_t page)
{
	CHECK_EQ(gmem_file_page_state(s->file, page * PG), GMEM_PAGE_ABSENT);
	CHECK_EQ(sept_at(s, GPA + page * PG), GMEM_SEPT_FREE);
	CHECK(!gmem_mmu_mapped(&s->vm->mmu, GFN + page));
}

/* What a launch without any trouble comes to. */
static void launch_of_four(char hex[97])
{
	struct scene s;

	set_up(&s);
	CHECK_EQ(add(&s, 4, GMEM_LAUNCH_NORMAL), 4);
	hex_of(s.launch, hex);
	tear_down(&s);
}

static void check_end(struct scene *s, uint64_t status)
{
	CHECK_EQ(gmem_launch_status(s->launch), status);
	CHECK(dead(s));
	CHECK_ERR(gmem_launch_finish(s->launch, NULL), -EIO);
	CHECK_ERR(add(s, 1, GMEM_LAUNCH_NORMAL), -EIO);
}

/* ---- a launch */

TEST(tables_that_are_busy)
{
	char hex[97];
	struct scene s;

	launch_of_four(hex);
	set_up(&s);
	module.n = 0;
	refuse(GMEM_TDX_MEM_SEPT_ADD, BUSY, 1, 3);
	CHECK_EQ(add(&s, 4, GMEM_LAUNCH_NORMAL), 4);
	CHECK_EQ(count(GMEM_TDX_MEM_SEPT_ADD), 3 + 3);
	check_digest(&s, hex);
	CHECK(!dead(&s));
	tear_down(&s);
}

TEST(tables_that_are_refused)
{
	for (int after = 0; after < 3; after++) {
		struct scene s;

		set_up(&s);
		refuse(GMEM_TDX_MEM_SEPT_ADD, ERR, after, 1);
		CHECK_ERR(add(&s, 4, GMEM_LAUNCH_NORMAL), -EIO);
		CHECK_HAS(gmem_last_error(), "TDH.MEM.SEPT.ADD: EPT_ENTRY_STATE_INCORRECT");
		check_absent(&s, 0);
		check_end(&s, ERR);
		tear_down(&s);
	}
}

TEST(no_memory_for_tables)
{
	char hex[97];
	struct scene s;

	launch_of_four(hex);
	set_up(&s);
	module.no_tables = 1;
	CHECK_ERR(add(&s, 4, GMEM_LAUNCH_NORMAL), -ENOMEM);
	check_absent(&s, 0);
	CHECK_EQ(gmem_launch_status(s.launch), 0);
	CHECK(!dead(&s));
	CHECK_EQ(add(&s, 4, GMEM_LAUNCH_NORMAL), 4);
	check_digest(&s, hex);
	tear_down(&s);
}

/* KVM leaves it to its caller to come again. */
TEST(a_page_that_is_busy)
{
	char hex[97];
	struct gmem_tdx_init_mem_region r;
	struct scene s;

	launch_of_four(hex);
	set_up(&s);
	refuse(GMEM_TDX_MEM_PAGE_ADD, BUSY, 2, 2);
	r = (struct gmem_tdx_init_mem_region){ (uintptr_t)s.src, GPA, 4 };
	for (int i = 0; i < 2; i++) {
		uint64_t status;

		CHECK_ERR(gmem_launch_command(s.launch, 0, GMEM_TDX_CMD_INIT_MEM_REGION, GMEM_TDX_MEASURE_MEMORY_REGION,
					      &r, &status),
			  -EBUSY);
		CHECK_EQ(r.nr_pages, 2);
		CHECK_EQ(status, BUSY);
		check_absent(&s, 2);
		CHECK(!dead(&s));
	}
	CHECK_OK(gmem_launch_command(s.launch, 0, GMEM_TDX_CMD_INIT_MEM_REGION, GMEM_TDX_MEASURE_MEMORY_REGION, &r,
				     NULL));
	CHECK_EQ(r.nr_pages, 0);
	check_digest(&s, hex);
	tear_down(&s);
}

TEST(a_page_that_is_refused)
{
	struct scene s;

	set_up(&s);
	refuse(GMEM_TDX_MEM_PAGE_ADD, ERR, 2, 1);
	CHECK_EQ(add(&s, 4, GMEM_LAUNCH_NORMAL), 2);
	check_absent(&s, 2);
	check_end(&s, ERR);
	tear_down(&s);
}

/* The page was added, which cannot be undone: the digest is of no use. */
TEST(a_measurement_that_is_refused)
{
	static const uint64_t statuses[] = { ERR, BUSY };
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN];

	for (int after = 16; after < 32; after += 5) {
		for (int i = 0; i < 2; i++) {
			struct scene s;

			set_up(&s);
			refuse(GMEM_TDX_MR_EXTEND, statuses[i], after, 1);
			CHECK_EQ(add(&s, 4, GMEM_LAUNCH_NORMAL), 1);
			check_absent(&s, 1);
			check_end(&s, statuses[i]);
			CHECK_ERR(gmem_launch_digest(s.launch, digest), -EIO);
			tear_down(&s);
		}
	}
}

TEST(a_hash_that_fails)
{
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN];
	struct scene s;

	set_up(&s);
	CHECK_EQ(add(&s, 1, GMEM_LAUNCH_UNMEASURED), 1);
	module.no_hash = 1;
	CHECK_ERR(gmem_launch_update(s.launch, GPA + PG, s.src, 1, GMEM_LAUNCH_UNMEASURED), -EIO);
	CHECK_EQ(gmem_launch_status(s.launch), 0xe000060400000000);
	CHECK_ERR(gmem_launch_digest(s.launch, digest), -EIO);
	CHECK(dead(&s));
	tear_down(&s);
}

TEST(a_vcpu_that_is_refused)
{
	static const enum gmem_tdx_call calls[] = { GMEM_TDX_VP_CREATE, GMEM_TDX_VP_INIT };
	const struct gmem_launch_vcpu v = { .size = sizeof(v) };

	for (int i = 0; i < 2; i++) {
		struct scene s;

		set_up(&s);
		refuse(calls[i], BUSY, 0, 1);
		CHECK_ERR(gmem_launch_add_vcpu(s.launch, &v), -EIO);
		check_end(&s, BUSY);
		tear_down(&s);
	}
}

TEST(a_finish_that_is_busy)
{
	char byte;
	struct scene s;

	set_up(&s);
	refuse(GMEM_TDX_MR_FINALIZE, BUSY, 0, 1);
	CHECK_ERR(gmem_launch_finish(s.launch, NULL), -EBUSY);
	CHECK_EQ(gmem_launch_status(s.launch), BUSY);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA, &byte, 1), -EINVAL);
	CHECK_EQ(add(&s, 1, GMEM_LAUNCH_NORMAL), 1);
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	CHECK(!dead(&s));
	tear_down(&s);
	set_up(&s);
	refuse(GMEM_TDX_MR_FINALIZE, ERR, 0, 1);
	CHECK_ERR(gmem_launch_finish(s.launch, NULL), -EIO);
	check_end(&s, ERR);
	tear_down(&s);
}

/* ---- a guest that runs */

TEST(a_fault_that_is_busy)
{
	char byte;
	struct scene s;

	set_up_finalized(&s);
	refuse(GMEM_TDX_MEM_PAGE_AUG, BUSY, 0, 5);
	refuse(GMEM_TDX_PAGE_ACCEPT, BUSY, 0, 3);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA + 4 * PG, &byte, 1), -EACCES);
	CHECK_EQ(count(GMEM_TDX_MEM_PAGE_AUG), 6);
	CHECK_EQ(gmem_vcpu_accept(s.vcpu, GPA + 4 * PG, PG, true, NULL), 0);
	CHECK_EQ(count(GMEM_TDX_PAGE_ACCEPT), 4);
	CHECK_OK(gmem_vcpu_load(s.vcpu, GPA + 4 * PG, &byte, 1));
	CHECK(!dead(&s));
	tear_down(&s);
}

TEST(a_fault_that_is_refused)
{
	char byte;
	struct scene s;

	set_up_finalized(&s);
	refuse(GMEM_TDX_MEM_PAGE_AUG, ERR, 0, 1);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA + 4 * PG, &byte, 1), -EIO);
	CHECK(!gmem_mmu_mapped(&s.vm->mmu, GFN + 4));
	CHECK(dead(&s));
	CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA + 5 * PG, &byte, 1), -EIO);
	tear_down(&s);
}

/* A guest's own call is its own affair. */
TEST(an_accept_that_is_refused)
{
	struct scene s;

	set_up_finalized(&s);
	refuse(GMEM_TDX_PAGE_ACCEPT, GMEM_TDX_EXIT_EPT_VIOLATION, 0, 1);
	CHECK_ERR(gmem_vcpu_accept(s.vcpu, GPA + 4 * PG, PG, true, NULL), -EIO);
	CHECK_EQ(sept_at(&s, GPA + 4 * PG), GMEM_SEPT_PENDING);
	CHECK(!dead(&s));
	CHECK_EQ(gmem_vcpu_accept(s.vcpu, GPA + 4 * PG, PG, true, NULL), 0);
	tear_down(&s);
}

static const enum gmem_tdx_call taking[] = { GMEM_TDX_MEM_RANGE_BLOCK, GMEM_TDX_MEM_TRACK, GMEM_TDX_MEM_PAGE_REMOVE };

/* Once is not a bug: KVM sends the vCPUs out and tries again. */
TEST(taking_that_is_busy_once)
{
	for (int i = 0; i < 3; i++) {
		struct scene s;

		set_up_finalized(&s);
		refuse(taking[i], BUSY, 0, 1);
		to_shared(s.file, 0, PG);
		CHECK_EQ(count(taking[i]), 2);
		CHECK_EQ(sept_at(&s, GPA), GMEM_SEPT_FREE);
		CHECK(!dead(&s));
		tear_down(&s);
	}
}

static void take_refused(enum gmem_tdx_call call, uint64_t status, int times)
{
	uint64_t word;
	struct scene s;

	set_up_finalized(&s);
	refuse(call, status, 0, times);
	CHECK_EQ(load64(s.vcpu, GPA + PG), *(const uint64_t *)(s.src + PG));
	/* Whose pages they are is not in doubt, what the guest has of them is: it runs no more. */
	to_shared(s.file, 0, PG);
	CHECK(dead(&s));
	CHECK(!gmem_mmu_mapped(&s.vm->mmu, GFN));
	CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA, &word, 8), -EIO);
	CHECK_ERR(gmem_vcpu_accept(s.vcpu, GPA + PG, PG, true, NULL), -EIO);
	/* The host has nothing of it either. */
	CHECK_OK(gmem_file_read(s.file, 0, &word, 8));
	CHECK_EQ(word, 0);
	tear_down(&s);
}

TEST(taking_that_is_busy_twice)
{
	for (int i = 0; i < 3; i++)
		take_refused(taking[i], BUSY, 2);
}

TEST(taking_that_is_refused)
{
	for (int i = 0; i < 3; i++)
		take_refused(taking[i], ERR, 1);
}
