/* SPDX-License-Identifier: MIT */
/* Nothing is launched twice, however often it is tried: the digest and the guest's bytes stay. */
#include <pthread.h>
#include <stdatomic.h>

#include "mmu_util.h"

#define GPA 0x200000ull
#define NPAGES 8ull
#define TRIES 3

struct scene {
	struct gmem_file *file;
	struct gmem_vm *vm;
	struct gmem_launch *launch;
	struct gmem_vcpu *vcpu;
	uint64_t private; /* what a private address has set */
	int refusal; /* of what was launched before */
	_Atomic bool stop;
	_Atomic unsigned long stores, lost;
};

static _Alignas(4096) unsigned char page[PG];

static void set_up(struct scene *s, enum gmem_vm_type type)
{
	memset(s, 0, sizeof(*s));
	memset(page, 'x', sizeof(page));
	s->file = make_file(NPAGES * PG, GMEM_FILE_INIT_PRIVATE);
	s->vm = new_vm(type);
	CHECK_OK(set_slot(s->vm, 0, GPA, NPAGES * PG, s->file, 0));
	s->vcpu = new_vcpu(s->vm);
	CHECK_OK(gmem_launch_create(s->vm, NULL, &s->launch));
	s->refusal = -EEXIST;
	s->private = type == GMEM_VM_SNP ? gmem_vm_alias_bit(s->vm) : 0;
}

static void tear_down(struct scene *s)
{
	gmem_launch_free(s->launch);
	gmem_vcpu_free(s->vcpu);
	gmem_vm_free(s->vm);
	gmem_file_free(s->file);
}

static int64_t launch(struct scene *s, uint64_t at, enum gmem_launch_page type)
{
	return gmem_launch_update(s->launch, GPA + at * PG, type == GMEM_LAUNCH_ZERO ? NULL : page, 1, type);
}

/* The guest is not there before the launch is finished; then a TD takes no pages at all. */
static void let_run(struct scene *s)
{
	const struct gmem_launch_vcpu vcpu = { .size = sizeof(vcpu) };

	if (gmem_vm_alias_bit(s->vm) != s->private) {
		CHECK_OK(gmem_launch_add_vcpu(s->launch, &vcpu));
		s->refusal = -EINVAL;
	}
	CHECK_OK(gmem_launch_finish(s->launch, NULL));
}

/* Each try is refused and changes nothing of what the launch measured. */
static void refused(struct scene *s, uint64_t at, enum gmem_launch_page type)
{
	uint8_t before[GMEM_LAUNCH_DIGEST_LEN], after[GMEM_LAUNCH_DIGEST_LEN];

	CHECK_OK(gmem_launch_digest(s->launch, before));
	for (int i = 0; i < TRIES; i++) {
		int64_t n = launch(s, at, type);

		if (n != s->refusal)
			FAIL("try %d is %lld", i + 1, (long long)n);
		CHECK_OK(gmem_launch_digest(s->launch, after));
		CHECK_MEM(after, before, sizeof(after));
	}
}

/* Nor of what the guest has there: which it looks for after each, mapping the page anew if it has to. */
static void refused_to_a_guest(struct scene *s, uint64_t at, enum gmem_launch_page type, uint64_t word)
{
	refused(s, at, type);
	for (int i = 0; i < TRIES; i++) {
		CHECK_EQ(load64(s->vcpu, (GPA + at * PG) | s->private), word);
		CHECK_EQ(launch(s, at, type), s->refusal);
	}
}

static void launched(enum gmem_vm_type vm, enum gmem_launch_page first, enum gmem_launch_page then)
{
	struct scene s;

	set_up(&s, vm);
	CHECK_EQ(launch(&s, 0, first), 1);
	refused(&s, 0, then);
	/* The next one is as it would have been. */
	CHECK_EQ(launch(&s, 1, then), 1);
	let_run(&s);
	refused_to_a_guest(&s, 0, then, first == GMEM_LAUNCH_ZERO ? 0 : 0x7878787878787878ull);
	tear_down(&s);
}

/* Launched, and then the guest has written to it. */
static void launched_and_written(enum gmem_vm_type vm, enum gmem_launch_page type)
{
	struct scene s;

	set_up(&s, vm);
	CHECK_EQ(launch(&s, 2, type), 1);
	let_run(&s);
	store64(s.vcpu, (GPA + 2 * PG) | s.private, 0x67);
	refused_to_a_guest(&s, 2, type, 0x67);
	tear_down(&s);
}

/* The guest was there first: what it has accepted, and what it has only touched. */
static void touched(enum gmem_launch_page type)
{
	struct scene s;

	set_up(&s, GMEM_VM_SNP);
	let_run(&s);
	CHECK_EQ(gmem_vcpu_accept(s.vcpu, (GPA + 3 * PG) | s.private, PG, true, NULL), 0);
	store64(s.vcpu, (GPA + 3 * PG) | s.private, 0x67);
	refused_to_a_guest(&s, 3, type, 0x67);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, (GPA + 6 * PG) | s.private, page, 1), -EACCES);
	refused(&s, 6, type);
	CHECK_EQ(gmem_vcpu_accept(s.vcpu, (GPA + 6 * PG) | s.private, PG, true, NULL), 0);
	refused_to_a_guest(&s, 6, type, 0);
	/* Where it was not, the firmware says that it runs. */
	CHECK_EQ(launch(&s, 7, type), -EIO);
	CHECK_EQ(gmem_launch_status(s.launch), 2);
	tear_down(&s);
}

TEST(snp_launched)
{
	launched(GMEM_VM_SNP, GMEM_LAUNCH_NORMAL, GMEM_LAUNCH_NORMAL);
	launched(GMEM_VM_SNP, GMEM_LAUNCH_UNMEASURED, GMEM_LAUNCH_NORMAL);
}

TEST(snp_zero_launched)
{
	launched(GMEM_VM_SNP, GMEM_LAUNCH_NORMAL, GMEM_LAUNCH_ZERO);
	launched(GMEM_VM_SNP, GMEM_LAUNCH_ZERO, GMEM_LAUNCH_NORMAL);
	launched(GMEM_VM_SNP, GMEM_LAUNCH_ZERO, GMEM_LAUNCH_ZERO);
}

TEST(tdx_launched)
{
	launched(GMEM_VM_TDX, GMEM_LAUNCH_NORMAL, GMEM_LAUNCH_NORMAL);
	launched(GMEM_VM_TDX, GMEM_LAUNCH_UNMEASURED, GMEM_LAUNCH_NORMAL);
}

TEST(snp_launched_and_written)
{
	launched_and_written(GMEM_VM_SNP, GMEM_LAUNCH_NORMAL);
	launched_and_written(GMEM_VM_SNP, GMEM_LAUNCH_ZERO);
}

TEST(tdx_launched_and_written)
{
	launched_and_written(GMEM_VM_TDX, GMEM_LAUNCH_NORMAL);
	launched_and_written(GMEM_VM_TDX, GMEM_LAUNCH_UNMEASURED);
}

TEST(snp_touched)
{
	touched(GMEM_LAUNCH_NORMAL);
	touched(GMEM_LAUNCH_ZERO);
}

/* ---- a guest at work on the page */

static void *store_and_load(void *arg)
{
	struct scene *s = arg;
	uint64_t gpa = (GPA + 8) | s->private;

	for (uint64_t n = 1; !atomic_load(&s->stop); n++) {
		store64(s->vcpu, gpa, n);
		if (load64(s->vcpu, gpa) != n)
			atomic_fetch_add(&s->lost, 1);
		atomic_fetch_add(&s->stores, 1);
	}
	return NULL;
}

static void guest_at_work(enum gmem_vm_type vm)
{
	uint8_t before[GMEM_LAUNCH_DIGEST_LEN], after[GMEM_LAUNCH_DIGEST_LEN];
	struct scene s;
	pthread_t t;

	set_up(&s, vm);
	CHECK_EQ(launch(&s, 0, GMEM_LAUNCH_NORMAL), 1);
	CHECK_OK(gmem_launch_digest(s.launch, before));
	let_run(&s);
	t = start(store_and_load, &s);
	while (!atomic_load(&s.stores))
		;
	for (int i = 0; i < (tap_slow() ? 500 : 5000); i++)
		CHECK_EQ(launch(&s, 0, GMEM_LAUNCH_NORMAL), s.refusal);
	atomic_store(&s.stop, true);
	join(t);
	CHECK_OK(gmem_launch_digest(s.launch, after));
	printf("%lu stores\n", (unsigned long)s.stores);
	CHECK_MEM(after, before, sizeof(after));
	CHECK_EQ(s.lost, 0);
	tear_down(&s);
}

TEST(snp_guest_at_work)
{
	guest_at_work(GMEM_VM_SNP);
}

TEST(tdx_guest_at_work)
{
	guest_at_work(GMEM_VM_TDX);
}
