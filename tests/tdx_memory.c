/* SPDX-License-Identifier: MIT */
/* A TD's private pages from launch to teardown: which calls of the module are made for them, and what is in them. */
#include "tdx_wraps.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define ADD GMEM_TDX_MEM_PAGE_ADD
#define TABLE GMEM_TDX_MEM_SEPT_ADD
#define AUG GMEM_TDX_MEM_PAGE_AUG
#define ACCEPT GMEM_TDX_PAGE_ACCEPT
#define BLOCK GMEM_TDX_MEM_RANGE_BLOCK
#define TRACK GMEM_TDX_MEM_TRACK
#define REMOVE GMEM_TDX_MEM_PAGE_REMOVE

#define CALLS(...)                                                             \
	do {                                                                   \
		static const struct {                                          \
			enum gmem_tdx_call call;                               \
			uint64_t gpa;                                          \
		} want[] = { __VA_ARGS__ };                                    \
		enum gmem_tdx_call calls[sizeof(want) / sizeof(*want)];        \
		uint64_t gpas[sizeof(want) / sizeof(*want)];                   \
		for (size_t i_ = 0; i_ < sizeof(want) / sizeof(*want); i_++) { \
			calls[i_] = want[i_].call;                             \
			gpas[i_] = want[i_].gpa;                               \
		}                                                              \
		check_calls(calls, gpas, sizeof(want) / sizeof(*want));        \
	} while (0)

static void add(struct scene *s, uint64_t at, int64_t npages)
{
	CHECK_EQ(gmem_launch_update(s->launch, GPA + at * PG, s->src + at * PG, npages, GMEM_LAUNCH_UNMEASURED),
		 npages);
}

static void set_up_finalized(struct scene *s)
{
	set_up(s);
	add(s, 0, 4);
	CHECK_OK(gmem_launch_finish(s->launch, NULL));
	module.n = 0;
}

static void check_zero(struct scene *s, uint64_t gpa)
{
	static const char zeroes[PG];
	char got[PG];

	CHECK_OK(gmem_vcpu_load(s->vcpu, gpa, got, PG));
	CHECK_MEM(got, zeroes, PG);
}

/* ---- given */

TEST(added)
{
	struct scene s;

	set_up(&s);
	module.n = 0;
	CHECK_EQ(gmem_launch_update(s.launch, GPA, s.src, 1, GMEM_LAUNCH_NORMAL), 1);
	CHECK_EQ(count(GMEM_TDX_MR_EXTEND), 16);
	module.n -= 16;
	CALLS({ TABLE, 0 }, { TABLE, 0 }, { TABLE, GPA }, { ADD, GPA });
	/* Tables are there once. */
	add(&s, 1, 2);
	CALLS({ ADD, GPA + PG }, { ADD, GPA + 2 * PG });
	CHECK_EQ(gmem_launch_update(s.launch, 0x1000, s.src, 1, GMEM_LAUNCH_UNMEASURED), 1);
	CALLS({ TABLE, 0 }, { ADD, 0x1000 });
	CHECK_EQ(sept_at(&s, GPA + PG), GMEM_SEPT_MAPPED);
	tear_down(&s);
}

TEST(nobody_is_there_before)
{
	uint64_t done = 1;
	char byte;
	struct scene s;

	set_up(&s);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA, &byte, 1), -EINVAL);
	CHECK_ERR(gmem_vcpu_store(s.vcpu, GPA, "x", 1), -EINVAL);
	CHECK_ERR(gmem_vcpu_accept(s.vcpu, GPA, PG, true, &done), -EINVAL);
	CHECK_EQ(done, 0);
	CHECK_ERR(gmem_vcpu_pre_fault(s.vcpu, GPA, PG, NULL), -EINVAL);
	CHECK_EQ(sept_at(&s, GPA), GMEM_SEPT_FREE);
	CHECK_EQ(count(AUG), 0);
	CHECK(!dead(&s));
	/* Shared memory is no matter of the module's. */
	to_shared(s.file, 0, PG);
	CHECK_OK(gmem_vcpu_store(s.vcpu, GPA | SHARED, "x", 1));
	tear_down(&s);
}

TEST(augmented_and_accepted)
{
	uint64_t gpa = GPA + 6 * PG, done = 0;
	struct scene s;
	char byte = 'x';

	set_up_finalized(&s);
	/* Not zero, whatever it will be. */
	to_shared(s.file, 6 * PG, PG);
	CHECK_OK(gmem_file_write(s.file, 6 * PG, "left over", 9));
	to_private(s.file, 6 * PG, PG);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, gpa, &byte, 1), -EACCES);
	CHECK_ERR(gmem_vcpu_store(s.vcpu, gpa, &byte, 1), -EACCES);
	CHECK_EQ(sept_at(&s, gpa), GMEM_SEPT_PENDING);
	CALLS({ AUG, GPA + 6 * PG });
	CHECK_ERR(gmem_vcpu_accept(s.vcpu, gpa, PG, false, NULL), -EINVAL);
	CHECK_EQ(gmem_vcpu_accept(s.vcpu, gpa, PG, true, &done), 0);
	CHECK_EQ(done, PG);
	CALLS({ ACCEPT, GPA + 6 * PG });
	CHECK_EQ(sept_at(&s, gpa), GMEM_SEPT_MAPPED);
	check_zero(&s, gpa);
	store64(s.vcpu, gpa, 7);
	/* Once. */
	CHECK_EQ(gmem_vcpu_accept(s.vcpu, gpa, PG, true, NULL), 1);
	CHECK_EQ(load64(s.vcpu, gpa), 7);
	/* Without having been touched, and one that was launched. */
	CHECK_EQ(gmem_vcpu_accept(s.vcpu, gpa + PG, 2 * PG, true, &done), 0);
	CHECK_EQ(done, 2 * PG);
	check_zero(&s, gpa + 2 * PG);
	CHECK_EQ(gmem_vcpu_accept(s.vcpu, GPA, PG, true, NULL), 1);
	CHECK_EQ(load64(s.vcpu, GPA + PG), *(const uint64_t *)(s.src + PG));
	CHECK(!dead(&s));
	tear_down(&s);
}

/* ---- taken away, and back */

TEST(converted_there_and_back)
{
	static const char zeroes[PG];
	char got[PG];
	struct scene s;

	set_up_finalized(&s);
	CHECK_OK(gmem_vcpu_load(s.vcpu, GPA + PG, got, PG));
	CHECK_MEM(got, s.src + PG, PG);
	to_shared(s.file, PG, 2 * PG);
	CALLS({ BLOCK, GPA + PG }, { BLOCK, GPA + 2 * PG }, { TRACK, 0 }, { REMOVE, GPA + PG },
	      { REMOVE, GPA + 2 * PG });
	CHECK_EQ(sept_at(&s, GPA + PG), GMEM_SEPT_FREE);
	/* The host has nothing of it. */
	CHECK_OK(gmem_file_read(s.file, PG, got, PG));
	CHECK_MEM(got, zeroes, PG);
	CHECK_OK(gmem_vcpu_store(s.vcpu, (GPA + PG) | SHARED, "x", 1));
	to_private(s.file, PG, 2 * PG);
	CHECK_EQ(module.n, 0);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA + PG, got, 1), -EACCES);
	CHECK_EQ(gmem_vcpu_accept(s.vcpu, GPA + PG, PG, true, NULL), 0);
	CALLS({ AUG, GPA + PG }, { ACCEPT, GPA + PG });
	check_zero(&s, GPA + PG);
	/* Its neighbour is as it was. */
	CHECK_OK(gmem_vcpu_load(s.vcpu, GPA + 3 * PG, got, PG));
	CHECK_MEM(got, s.src + 3 * PG, PG);
	CHECK(!dead(&s));
	tear_down(&s);
}

/* One that waits to be accepted goes too. */
TEST(pending_and_converted)
{
	char byte;
	struct scene s;

	set_up_finalized(&s);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA + 8 * PG, &byte, 1), -EACCES);
	to_shared(s.file, 8 * PG, PG);
	CALLS({ AUG, GPA + 8 * PG }, { BLOCK, GPA + 8 * PG }, { TRACK, 0 }, { REMOVE, GPA + 8 * PG });
	CHECK_EQ(sept_at(&s, GPA + 8 * PG), GMEM_SEPT_FREE);
	to_private(s.file, 8 * PG, PG);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA + 8 * PG, &byte, 1), -EACCES);
	CHECK(!dead(&s));
	tear_down(&s);
}

/* Before it is finalized: it can be launched again, and both times are measured. */
TEST(converted_while_it_is_built)
{
	char before[97], after[97];
	struct scene s;

	set_up(&s);
	add(&s, 0, 1);
	hex_of(s.launch, before);
	module.n = 0;
	to_shared(s.file, 0, PG);
	CALLS({ BLOCK, GPA }, { TRACK, 0 }, { REMOVE, GPA });
	check_digest(&s, before);
	to_private(s.file, 0, PG);
	add(&s, 0, 1);
	CALLS({ ADD, GPA });
	hex_of(s.launch, after);
	CHECK(strcmp(before, after));
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	tear_down(&s);
}

/* What was added, and may be measured yet, is not the guest's to change. */
TEST(not_accessed_while_it_is_built)
{
	uint64_t word = 0;
	struct scene s;

	set_up(&s);
	add(&s, 0, 2);
	CHECK_ERR(gmem_vcpu_store(s.vcpu, GPA, &word, 8), -EINVAL);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA, &word, 8), -EINVAL);
	CHECK_ERR(gmem_vcpu_pre_fault(s.vcpu, GPA, PG, NULL), -EINVAL);
	CHECK_ERR(gmem_vcpu_accept(s.vcpu, GPA, PG, true, NULL), -EINVAL);
	/* Translations that go and come back are none. */
	CHECK_OK(gmem_vm_set_log(s.vm, 0, GMEM_LOG_DIRTY));
	CHECK_ERR(gmem_vcpu_store(s.vcpu, GPA, &word, 8), -EINVAL);
	CHECK_OK(gmem_vm_set_log(s.vm, 0, 0));
	CHECK_ERR(gmem_vcpu_store(s.vcpu, GPA, &word, 8), -EINVAL);
	CHECK_OK(gmem_launch_extend(s.launch, GPA, 2 * PG));
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	module.n = 0;
	CHECK_EQ(load64(s.vcpu, GPA), *(uint64_t *)s.src);
	store64(s.vcpu, GPA, 1);
	CHECK_EQ(module.n, 0);
	tear_down(&s);
}

/* Nor anybody else's, before or after. */
TEST(not_populated_again)
{
	struct scene s;

	set_up(&s);
	add(&s, 0, 1);
	CHECK_ERR(gmem_populate(s.vm, GFN, s.src + PG, 1, 0, NULL, NULL), -EEXIST);
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	CHECK_ERR(gmem_populate(s.vm, GFN, s.src + PG, 1, 0, NULL, NULL), -EEXIST);
	CHECK_EQ(load64(s.vcpu, GPA), *(uint64_t *)s.src);
	/* What is no guest's yet may be. */
	CHECK_EQ(gmem_populate(s.vm, GFN + 1, s.src, 1, 0, NULL, NULL), 1);
	tear_down(&s);
}

/* A slot that goes takes its pages along: KVM has no other way. */
TEST(slot_deleted)
{
	char byte;
	struct scene s;

	set_up_finalized(&s);
	CHECK_OK(del_slot(s.vm, 0));
	CHECK_EQ(count(BLOCK), 4);
	CHECK_EQ(count(TRACK), 1);
	CHECK_EQ(count(REMOVE), 4);
	CHECK_OK(set_slot(s.vm, 0, GPA, NPAGES * PG, s.file, 0));
	CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA, &byte, 1), -EACCES);
	CHECK_EQ(gmem_vcpu_accept(s.vcpu, GPA, PG, true, NULL), 0);
	check_zero(&s, GPA);
	CHECK(!dead(&s));
	tear_down(&s);
}

TEST(punched_and_closed)
{
	char byte;
	struct scene s;

	set_up_finalized(&s);
	CHECK_OK(gmem_file_punch(s.file, 0, PG));
	CALLS({ BLOCK, GPA }, { TRACK, 0 }, { REMOVE, GPA });
	CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA, &byte, 1), -EACCES);
	module.n = 0;
	gmem_file_free(s.file);
	s.file = NULL;
	CHECK_EQ(count(BLOCK), 4);
	CHECK_EQ(count(REMOVE), 4);
	CHECK_EQ(sept_at(&s, GPA + PG), GMEM_SEPT_FREE);
	CHECK(!dead(&s));
	tear_down(&s);
}

TEST(poisoned)
{
	char byte;
	struct scene s;

	set_up_finalized(&s);
	CHECK_OK(gmem_file_poison(s.file, PG, PG));
	CALLS({ BLOCK, GPA + PG }, { TRACK, 0 }, { REMOVE, GPA + PG });
	CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA + PG, &byte, 1), -EHWPOISON);
	CHECK_ERR(gmem_vcpu_accept(s.vcpu, GPA + PG, PG, true, NULL), -EHWPOISON);
	CHECK(!dead(&s));
	tear_down(&s);
}

/* Its bytes cannot be made zero; that is no reason for a signal. */
TEST(memory_that_has_failed)
{
	struct gmem_sept_walk w;
	struct scene s;
	void *frame;

	set_up_finalized(&s);
	CHECK(gmem_sept_walk(&s.tables->td.sept, GPA + PG, GMEM_SEPT_PT, &w));
	frame = (void *)(uintptr_t)gmem_sept_addr(*w.entry);
	CHECK_EQ(mprotect(frame, PG, PROT_NONE), 0);
	to_shared(s.file, PG, PG);
	CHECK_EQ(sept_at(&s, GPA + PG), GMEM_SEPT_FREE);
	CHECK_EQ(mprotect(frame, PG, PROT_READ | PROT_WRITE), 0);
	CHECK(!dead(&s));
	tear_down(&s);
}

/* What only translations go for is no matter of the module's. */
TEST(logged)
{
	uint64_t bitmap = 0;
	struct scene s;

	set_up_finalized(&s);
	store64(s.vcpu, GPA, 5);
	CHECK_OK(gmem_vm_set_log(s.vm, 0, GMEM_LOG_DIRTY));
	store64(s.vcpu, GPA, 6);
	CHECK_EQ(gmem_vm_get_log(s.vm, 0, GMEM_LOG_DIRTY, 0, NPAGES, &bitmap, GMEM_LOG_CLEAR), 1);
	CHECK_EQ(bitmap, 1);
	CHECK_EQ(load64(s.vcpu, GPA), 6);
	CHECK_EQ(module.n, 0);
	/* A page that is accepted is zeroed by it: who copies the guest has to copy it again. */
	CHECK_OK(gmem_vcpu_pre_fault(s.vcpu, GPA + 8 * PG, PG, NULL));
	CHECK_EQ(gmem_vm_get_log(s.vm, 0, GMEM_LOG_DIRTY, 0, NPAGES, &bitmap, 0), 0);
	CHECK_OK(gmem_vcpu_accept(s.vcpu, GPA + 8 * PG, PG, true, NULL));
	CHECK_EQ(gmem_vm_get_log(s.vm, 0, GMEM_LOG_DIRTY, 0, NPAGES, &bitmap, GMEM_LOG_CLEAR), 1);
	CHECK_EQ(bitmap, 1 << 8);
	CHECK_EQ(gmem_vcpu_accept(s.vcpu, GPA + 8 * PG, PG, true, NULL), 1);
	CHECK_EQ(gmem_vm_get_log(s.vm, 0, GMEM_LOG_DIRTY, 0, NPAGES, &bitmap, 0), 0);
	tear_down(&s);
}

/* A child made by fork(2) has the TD, but not its frames: where they were is its own memory. */
TEST(a_forked_child_frees_it)
{
	unsigned char *own[64];
	struct scene s;
	pid_t child;
	int status;

	set_up_finalized(&s);
	child = fork();
	if (!child) {
		bool harmed = false;

		for (size_t i = 0; i < 64; i++) {
			own[i] = mmap(NULL, NPAGES * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			if (own[i] == MAP_FAILED)
				_exit(2);
			memset(own[i], 0xff, NPAGES * PG);
		}
		gmem_launch_free(s.launch);
		gmem_vcpu_free(s.vcpu);
		gmem_vm_free(s.vm);
		for (size_t i = 0; i < 64; i++)
			for (uint64_t at = 0; at < NPAGES * PG; at += PG)
				harmed |= own[i][at] != 0xff;
		_exit(harmed);
	}
	CHECK(child > 0);
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK_EQ(status, 0);
	CHECK_EQ(load64(s.vcpu, GPA), *(uint64_t *)s.src);
	tear_down(&s);
}
