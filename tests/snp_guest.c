/* SPDX-License-Identifier: MIT */
/* What an SNP guest that runs may do with its memory: the states of a page, from the guest's side and the host's. */
#include "snp_util.h"

#include <sys/mman.h>

static _Alignas(4096) unsigned char page[PG];

static uint64_t at(struct snp *s, uint64_t n)
{
	return (LOW_GPA + n * PG) | s->c;
}

/* Page 0 is launched, with 'l' in it. */
static void run(struct snp *s)
{
	snp_up(s, NULL, 0);
	memset(page, 'l', sizeof(page));
	CHECK_EQ(gmem_launch_update(s->launch, LOW_GPA, page, 1, GMEM_LAUNCH_NORMAL), 1);
	CHECK_OK(gmem_launch_finish(s->launch, NULL));
}

static void check_launched(struct snp *s, uint64_t gpa)
{
	CHECK_EQ(load64(s->vcpu, gpa), 0x6c6c6c6c6c6c6c6cull);
}

static void check_pending(struct snp *s, uint64_t n)
{
	uint64_t v = 1;

	CHECK_ERR(gmem_vcpu_load(s->vcpu, at(s, n), &v, sizeof(v)), -EACCES);
	CHECK_ERR(gmem_vcpu_store(s->vcpu, at(s, n), &v, sizeof(v)), -EACCES);
	CHECK_STR(state_of(s, n), "GUEST-INVALID");
}

static int accept_one(struct snp *s, uint64_t n, bool on)
{
	return gmem_vcpu_accept(s->vcpu, at(s, n), PG, on, NULL);
}

TEST(accept)
{
	uint64_t done = 0;
	struct snp s;

	run(&s);
	check_launched(&s, at(&s, 0));
	CHECK_STR(state_of(&s, 1), "HYPERVISOR");
	check_pending(&s, 1);
	CHECK_EQ(accept_one(&s, 1, true), 0);
	CHECK_STR(state_of(&s, 1), "GUEST-VALID");
	store64(s.vcpu, at(&s, 1), 7);
	CHECK_EQ(accept_one(&s, 1, true), 1);
	CHECK_EQ(load64(s.vcpu, at(&s, 1)), 7);
	/* Given back and taken again, it has what it had. */
	CHECK_EQ(accept_one(&s, 1, false), 0);
	CHECK_EQ(accept_one(&s, 1, false), 1);
	check_pending(&s, 1);
	CHECK_EQ(accept_one(&s, 1, true), 0);
	CHECK_EQ(load64(s.vcpu, at(&s, 1)), 7);
	/* What was launched is accepted; untouched pages can be at once. */
	CHECK_EQ(accept_one(&s, 0, true), 1);
	CHECK_EQ(gmem_vcpu_accept(s.vcpu, at(&s, 0), 4 * PG, true, &done), 0);
	CHECK_EQ(done, 4 * PG);
	CHECK_EQ(gmem_vcpu_accept(s.vcpu, at(&s, 0), 4 * PG, true, &done), 1);
	CHECK_EQ(load64(s.vcpu, at(&s, 3)), 0);
	CHECK_EQ(accept_one(&s, 0, false), 0);
	check_pending(&s, 0);
	snp_down(&s);
}

/* To be given a page is not to accept it. */
TEST(pre_fault)
{
	uint64_t done = 0;
	struct snp s;

	run(&s);
	CHECK_OK(gmem_vcpu_pre_fault(s.vcpu, at(&s, 0), 3 * PG, &done));
	CHECK_EQ(done, 3 * PG);
	check_launched(&s, at(&s, 0));
	check_pending(&s, 2);
	snp_down(&s);
}

TEST(converted)
{
	uint64_t v = 0;
	struct snp s;

	run(&s);
	CHECK_EQ(accept_one(&s, 1, true), 0);
	store64(s.vcpu, at(&s, 1), 7);
	to_shared(s.low, 0, 2 * PG);
	for (uint64_t n = 0; n < 2; n++) {
		CHECK_STR(state_of(&s, n), "HYPERVISOR");
		CHECK_ERR(gmem_vcpu_load(s.vcpu, at(&s, n), &v, sizeof(v)), -EFAULT);
		CHECK_ERR(accept_one(&s, n, true), -EFAULT);
	}
	store64(s.vcpu, LOW_GPA + PG, 8);
	to_private(s.low, 0, 2 * PG);
	for (uint64_t n = 0; n < 2; n++) {
		check_pending(&s, n);
		CHECK_EQ(accept_one(&s, n, true), 0);
	}
	snp_down(&s);
}

/* One that was launched may be launched again where its memory is new: but not when the guest runs. */
TEST(punched)
{
	struct snp s;

	snp_up(&s, NULL, 0);
	memset(page, 'l', sizeof(page));
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA, page, 1, GMEM_LAUNCH_NORMAL), 1);
	CHECK_OK(gmem_file_punch(s.low, 0, PG));
	CHECK_STR(state_of(&s, 0), "HYPERVISOR");
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA, page, 1, GMEM_LAUNCH_NORMAL), 1);
	to_shared(s.low, 0, PG);
	to_private(s.low, 0, PG);
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA, page, 1, GMEM_LAUNCH_NORMAL), 1);
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	check_launched(&s, at(&s, 0));
	CHECK_OK(gmem_file_punch(s.low, 0, PG));
	check_pending(&s, 0);
	CHECK_EQ(accept_one(&s, 0, true), 0);
	CHECK_EQ(load64(s.vcpu, at(&s, 0)), 0);
	snp_down(&s);
}

/* So is one that was punched while no slot showed it. */
TEST(punched_without_a_slot)
{
	struct snp s;

	snp_up(&s, NULL, 0);
	memset(page, 'l', sizeof(page));
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA, page, 1, GMEM_LAUNCH_NORMAL), 1);
	CHECK_OK(set_slot(s.vm, 0, LOW_GPA, 0, NULL, 0));
	CHECK_OK(gmem_file_punch(s.low, 0, PG));
	CHECK_OK(set_slot(s.vm, 0, LOW_GPA, LOW_PAGES * PG, s.low, 0));
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA, page, 1, GMEM_LAUNCH_NORMAL), 1);
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA, page, 1, GMEM_LAUNCH_NORMAL), -EEXIST);
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	check_launched(&s, at(&s, 0));
	snp_down(&s);
}

/* A slot is how the guest sees memory, not whose it is. */
TEST(slot_deleted)
{
	struct snp s;

	run(&s);
	CHECK_EQ(accept_one(&s, 1, true), 0);
	check_launched(&s, at(&s, 0));
	CHECK_OK(set_slot(s.vm, 0, LOW_GPA, 0, NULL, 0));
	CHECK_STR(state_of(&s, 0), "GUEST-VALID");
	CHECK_OK(set_slot(s.vm, 0, LOW_GPA, LOW_PAGES * PG, s.low, 0));
	check_launched(&s, at(&s, 0));
	CHECK_EQ(load64(s.vcpu, at(&s, 1)), 0);
	/* At another address it is not the guest's. */
	CHECK_OK(set_slot(s.vm, 0, LOW_GPA, 0, NULL, 0));
	CHECK_OK(set_slot(s.vm, 0, LOW_GPA + PG, LOW_PAGES * PG, s.low, 0));
	CHECK_ERR(gmem_vcpu_load(s.vcpu, at(&s, 1), page, 1), -EIO);
	CHECK_HAS(gmem_last_error(), "another address");
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA + PG, page, 1, GMEM_LAUNCH_NORMAL), -EEXIST);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, at(&s, 10), page, 1), -EACCES);
	CHECK_STR(state_of(&s, 9), "GUEST-INVALID");
	/* The first 2 MiB of the guest's memory are back where they were. */
	CHECK_OK(set_slot(s.vm, 0, LOW_GPA, 0, NULL, 0));
	CHECK_OK(set_slot(s.vm, 0, LOW_GPA, LOW_PAGES * PG, s.low, 0));
	check_launched(&s, at(&s, 0));
	snp_down(&s);
}

/*
 * A file that goes while no slot shows it tells nobody. Its frames' numbers come again: the table must not take the
 * next file's for it.
 */
TEST(file_gone_without_a_slot)
{
	uint64_t old;
	bool again = false;
	struct snp s;

	run(&s);
	old = (uintptr_t)gmem_file_window(s.low);
	check_launched(&s, at(&s, 0));
	CHECK_OK(set_slot(s.vm, 0, LOW_GPA, 0, NULL, 0));
	for (int i = 0; i < 20 && !again; i++) {
		gmem_file_free(s.low);
		s.low = make_file(LOW_PAGES * PG, GMEM_FILE_INIT_PRIVATE);
		again = (uintptr_t)gmem_file_window(s.low) == old;
	}
	printf("the same frames: %d\n", again);
	CHECK_OK(set_slot(s.vm, 0, LOW_GPA, LOW_PAGES * PG, s.low, 0));
	check_pending(&s, 0);
	CHECK_EQ(accept_one(&s, 0, true), 0);
	CHECK_EQ(load64(s.vcpu, at(&s, 0)), 0);
	snp_down(&s);
}

TEST(file_closed)
{
	uint64_t pfn;
	struct gmem_rmp_entry e;
	struct snp s;

	run(&s);
	check_launched(&s, at(&s, 0));
	pfn = (uintptr_t)gmem_file_window(s.low) >> 12;
	gmem_file_free(s.low);
	s.low = NULL;
	e = gmem_rmp_lookup(&guest_of(&s)->rmp, pfn);
	CHECK_EQ(gmem_rmp_entry_state(&e), GMEM_RMP_HYPERVISOR);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, at(&s, 0), page, 1), -EFAULT);
	snp_down(&s);
}

/* A translation that goes for another reason takes nothing from the guest. */
TEST(translations_go)
{
	struct snp s;

	run(&s);
	CHECK_EQ(accept_one(&s, 1, true), 0);
	store64(s.vcpu, at(&s, 1), 7);
	check_pending(&s, 2);
	gmem_vm_lock_slots(s.vm);
	gmem_mmu_zap(&s.vm->mmu, 0, 1ull << 40, BOTH_SIDES | GMEM_SIDE_KEEP);
	gmem_vm_unlock_slots(s.vm);
	check_launched(&s, at(&s, 0));
	CHECK_EQ(load64(s.vcpu, at(&s, 1)), 7);
	check_pending(&s, 2);
	snp_down(&s);
}

/* ---- the host */

/*
 * What hardware would do with a store of the host's, #PF, and what the file does: a page that is a guest's is kept from
 * the host; one that is shared is the host's, and no guest's. A private page that no guest has taken yet, the file
 * keeps too.
 */
static void check_host(struct snp *s, uint64_t n, const char *state, bool shared)
{
	uint64_t pfn = ((uintptr_t)gmem_file_window(s->low) >> 12) + n;
	int rmp = gmem_rmp_check_host_write(&guest_of(s)->rmp, pfn);
	int file = gmem_file_write(s->low, n * PG + 8, "host", 4);

	CHECK_STR(state_of(s, n), state);
	CHECK_EQ(file, shared ? 0 : -EACCES);
	CHECK_EQ(rmp, strcmp(state, "HYPERVISOR") ? -EFAULT : 0);
	CHECK(!(rmp && !file));
}

/* Nor does a populate, which is the library's own way into private pages. */
TEST(populated)
{
	struct snp s;

	run(&s);
	memset(page, 'p', sizeof(page));
	CHECK_EQ(gmem_populate(s.vm, LOW_GPA / PG, page, 1, 0, NULL, NULL), -EEXIST);
	check_launched(&s, at(&s, 0));
	CHECK_EQ(gmem_populate(s.vm, LOW_GPA / PG + 1, page, 1, 0, NULL, NULL), 1);
	check_pending(&s, 1);
	CHECK_EQ(gmem_populate(s.vm, LOW_GPA / PG + 1, page, 1, 0, NULL, NULL), -EEXIST);
	CHECK_EQ(accept_one(&s, 1, true), 0);
	CHECK_EQ(load64(s.vcpu, at(&s, 1)), 0x7070707070707070ull);
	snp_down(&s);
}

TEST(host_writes)
{
	struct snp s;

	snp_up(&s, NULL, 0);
	check_host(&s, 0, "HYPERVISOR", false);
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA, page, 1, GMEM_LAUNCH_NORMAL), 1);
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA + PG, page, 1, GMEM_LAUNCH_UNMEASURED), 1);
	check_host(&s, 0, "GUEST-VALID", false);
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	check_host(&s, 1, "GUEST-VALID", false);
	check_pending(&s, 2);
	check_host(&s, 2, "GUEST-INVALID", false);
	CHECK_EQ(accept_one(&s, 2, true), 0);
	check_host(&s, 2, "GUEST-VALID", false);
	CHECK_EQ(accept_one(&s, 2, false), 0);
	check_host(&s, 2, "GUEST-INVALID", false);
	to_shared(s.low, 0, 4 * PG);
	for (uint64_t n = 0; n < 4; n++)
		check_host(&s, n, "HYPERVISOR", true);
	to_private(s.low, 0, 4 * PG);
	for (uint64_t n = 0; n < 4; n++)
		check_host(&s, n, "HYPERVISOR", false);
	check_pending(&s, 0);
	CHECK_OK(gmem_file_punch(s.low, 0, PG));
	check_host(&s, 0, "HYPERVISOR", false);
	snp_down(&s);
}
