/* SPDX-License-Identifier: MIT */
/* Logs of what guests on KVM write to and touch, on the processor and where KVM emulates each instruction. */
#include <sched.h>

#include "kvm_scene.h"
#include "slot_util.h"

#include "file/gate.h"

#define D GMEM_LOG_DIRTY
#define A GMEM_LOG_ACCESSED
#define HVA_GPA (GPA + 16 * LEN)

static int pagemap_error, zap_error, slot_error, log_error, clear_error;

int __real_gmem_sys_pagemap_open(void);
int __wrap_gmem_sys_pagemap_open(void);
int __real_gmem_sys_zap(void *addr, size_t len);
int __wrap_gmem_sys_zap(void *addr, size_t len);
int __real_gmem_kvm_plain_slot_set(int vm, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t len, void *hva);
int __wrap_gmem_kvm_plain_slot_set(int vm, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t len, void *hva);
int __real_gmem_kvm_dirty_log(int vm, uint32_t slot, uint64_t *bitmap);
int __wrap_gmem_kvm_dirty_log(int vm, uint32_t slot, uint64_t *bitmap);
int __real_gmem_kvm_clear_dirty_log(int vm, uint32_t slot, uint64_t npages, uint64_t *bitmap);
int __wrap_gmem_kvm_clear_dirty_log(int vm, uint32_t slot, uint64_t npages, uint64_t *bitmap);

int __wrap_gmem_sys_pagemap_open(void)
{
	return pagemap_error ? pagemap_error : __real_gmem_sys_pagemap_open();
}

int __wrap_gmem_sys_zap(void *addr, size_t len)
{
	return zap_error ? zap_error : __real_gmem_sys_zap(addr, len);
}

int __wrap_gmem_kvm_clear_dirty_log(int vm, uint32_t slot, uint64_t npages, uint64_t *bitmap)
{
	return clear_error ? clear_error : __real_gmem_kvm_clear_dirty_log(vm, slot, npages, bitmap);
}

int __wrap_gmem_kvm_plain_slot_set(int vm, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t len, void *hva)
{
	return slot_error ? slot_error : __real_gmem_kvm_plain_slot_set(vm, slot, flags, gpa, len, hva);
}

int __wrap_gmem_kvm_dirty_log(int vm, uint32_t slot, uint64_t *bitmap)
{
	return log_error ? log_error : __real_gmem_kvm_dirty_log(vm, slot, bitmap);
}

/* LEN is 64 pages: one word. */
static uint64_t log_of(struct scene *s, uint32_t slot, uint32_t log, uint32_t flags)
{
	uint64_t bits = ~0ull;

	CHECK_EQ(gmem_vm_get_log(s->vm, slot, log, 0, LEN / PG, &bits, flags), __builtin_popcountll(bits));
	return bits;
}

#define BIT(i) (1ull << (i))

/* KVM maps a page writable that is only read, where it can, and then it is in its log. */
static void check_written(struct scene *s, uint32_t flags, uint64_t written, uint64_t read)
{
	uint64_t bits = log_of(s, 0, D, flags);

	CHECK_EQ(bits & written, written);
	CHECK_EQ(bits & ~(written | read), 0);
}

TEST(writes)
{
	struct scene s;

	EACH_WAY(&s)
	{
		struct gmem_vcpu *accessor = new_vcpu(s.vm);
		uint64_t some = BIT(9) | BIT(10);

		/* Both within reach of both, and written to, before there is a log. */
		run(&s, GUEST_store8, GPA + PG, 1);
		store64(accessor, GPA + 2 * PG, 1);
		CHECK_OK(gmem_vm_set_log(s.vm, 0, D));
		CHECK_EQ(log_of(&s, 0, D, 0), 0);
		CHECK_EQ(run(&s, GUEST_load8, GPA + 2 * PG), 1);
		CHECK_EQ(run(&s, GUEST_load8, GPA + 4 * PG), 0);
		check_written(&s, GMEM_LOG_CLEAR, 0, BIT(2) | BIT(4));
		run(&s, GUEST_store8, GPA + PG, 2);
		store64(accessor, GPA + 2 * PG, 2);
		CHECK_EQ(log_of(&s, 0, D, 0), BIT(1) | BIT(2));
		run(&s, GUEST_store8, GPA + 3 * PG, 2);
		CHECK_EQ(log_of(&s, 0, D, GMEM_LOG_CLEAR), BIT(1) | BIT(2) | BIT(3));
		CHECK_EQ(log_of(&s, 0, D, 0), 0);
		run(&s, GUEST_touch, GPA + 8 * PG, 8, PG, 5);
		CHECK_EQ(run(&s, GUEST_cmpxchg8, GPA + 20 * PG, 0, 1), 0);
		CHECK_EQ(log_of(&s, 0, D, 0), 0xff00 | BIT(20));
		/* What KVM told once is not lost when only a part of it is cleared. */
		CHECK_OK(gmem_vm_clear_log(s.vm, 0, D, 0, 64, &some));
		CHECK_EQ(log_of(&s, 0, D, 0), (0xff00 | BIT(20)) & ~some);
		run(&s, GUEST_store8, GPA + 9 * PG, 3);
		CHECK_EQ(log_of(&s, 0, D, GMEM_LOG_CLEAR), ((0xff00 | BIT(20)) & ~some) | BIT(9));
		/* Nothing is kept any more, and begins empty. */
		CHECK_OK(gmem_vm_set_log(s.vm, 0, 0));
		run(&s, GUEST_store8, GPA + 30 * PG, 3);
		CHECK_OK(gmem_vm_set_log(s.vm, 0, D));
		CHECK_EQ(log_of(&s, 0, D, 0), 0);
		gmem_vcpu_free(accessor);
	}
}

TEST(touches)
{
	struct scene s;

	EACH_WAY(&s)
	{
		struct gmem_vcpu *accessor = new_vcpu(s.vm);
		uint64_t some = BIT(6);

		CHECK_EQ(run(&s, GUEST_load8, GPA + PG), 0);
		CHECK_OK(gmem_vm_set_log(s.vm, 0, D | A));
		CHECK_EQ(log_of(&s, 0, A, 0), 0);
		CHECK_EQ(run(&s, GUEST_load8, GPA + PG), 0);
		CHECK_EQ(log_of(&s, 0, A, 0), BIT(1));
		/* Pages beside it do not pass unseen. */
		CHECK_EQ(run(&s, GUEST_load8, GPA + 5 * PG), 0);
		run(&s, GUEST_store8, GPA + 6 * PG, 1);
		store64(accessor, GPA + 7 * PG, 1);
		CHECK_EQ(log_of(&s, 0, A, 0), BIT(1) | BIT(5) | BIT(6) | BIT(7));
		check_written(&s, 0, BIT(6) | BIT(7), BIT(1) | BIT(5));
		CHECK_OK(gmem_vm_clear_log(s.vm, 0, A, 0, 64, &some));
		CHECK_EQ(log_of(&s, 0, A, 0), BIT(1) | BIT(5) | BIT(7));
		CHECK_EQ(run(&s, GUEST_load8, GPA + 6 * PG), 1);
		CHECK_EQ(log_of(&s, 0, A, GMEM_LOG_CLEAR), BIT(1) | BIT(5) | BIT(6) | BIT(7));
		CHECK_EQ(log_of(&s, 0, A, 0), 0);
		CHECK_EQ(run(&s, GUEST_sum, GPA + 4 * PG, 4, PG), 2);
		CHECK_EQ(log_of(&s, 0, A, 0), BIT(4) | BIT(5) | BIT(6) | BIT(7));
		check_written(&s, 0, BIT(6) | BIT(7), BIT(1) | BIT(4) | BIT(5));
		/* Punched, it is what it was to the log. */
		CHECK_OK(gmem_file_punch(s.file, 4 * PG, PG));
		CHECK_EQ(run(&s, GUEST_load8, GPA + 4 * PG), 0);
		CHECK_EQ(log_of(&s, 0, A, GMEM_LOG_CLEAR), BIT(4) | BIT(5) | BIT(6) | BIT(7));
		CHECK_OK(gmem_file_punch(s.file, 4 * PG, PG));
		CHECK_EQ(log_of(&s, 0, A, 0), 0);
		CHECK_EQ(run(&s, GUEST_load8, GPA + 4 * PG), 0);
		CHECK_EQ(log_of(&s, 0, A, 0), BIT(4));
		gmem_vcpu_free(accessor);
	}
}

TEST(memory_of_the_callers)
{
	char *hva = plain_memory(LEN, RW);
	struct gmem_vcpu *accessor;
	struct scene s;

	scene_set_up(&s, &ways[0]);
	accessor = new_vcpu(s.vm);
	CHECK_OK(set_hva_slot(s.vm, 7, GMEM_SLOT_LOG_DIRTY, HVA_GPA, LEN, hva));
	run(&s, GUEST_store8, HVA_GPA + PG, 1);
	store64(accessor, HVA_GPA + 2 * PG, 1);
	CHECK_EQ(log_of(&s, 7, D, 0), BIT(1) | BIT(2));
	CHECK_OK(set_hva_slot(s.vm, 7, GMEM_SLOT_LOG_DIRTY, HVA_GPA + LEN, LEN, hva));
	run(&s, GUEST_store8, HVA_GPA + LEN + 3 * PG, 1);
	CHECK_EQ(log_of(&s, 7, D, GMEM_LOG_CLEAR), BIT(1) | BIT(2) | BIT(3));
	CHECK_EQ(log_of(&s, 7, D, 0), 0);
	CHECK_ERR(gmem_vm_set_log(s.vm, 7, A), -EOPNOTSUPP);
	CHECK_ERR(gmem_vm_set_log(s.vm, 7, D | A), -EOPNOTSUPP);
	run(&s, GUEST_store8, HVA_GPA + LEN + 4 * PG, 1);
	CHECK_EQ(log_of(&s, 7, D, 0), BIT(4));
	CHECK_OK(gmem_vm_set_log(s.vm, 7, 0));
	CHECK_OK(gmem_vm_set_log(s.vm, 7, D));
	CHECK_EQ(log_of(&s, 7, D, 0), 0);
	run(&s, GUEST_store8, HVA_GPA + LEN + 5 * PG, 1);
	CHECK_EQ(log_of(&s, 7, D, 0), BIT(5));
	gmem_vcpu_free(accessor);
	scene_tear_down(&s);
	munmap(hva, LEN);
}

TEST(kernel_engine)
{
	struct scene s;

	scene_set_up(&s, &(struct scene_opts){ .type = GMEM_VM_DEFAULT, .engine = GMEM_ENGINE_KERNEL });
	CHECK_ERR(gmem_vm_set_log(s.vm, 0, D), -EOPNOTSUPP);
	CHECK_ERR(gmem_vm_set_log(s.vm, 0, A), -EOPNOTSUPP);
	CHECK_OK(gmem_vm_set_log(s.vm, 0, 0));
	scene_tear_down(&s);
}

/* What cannot be had leaves all as it was. */
TEST(refusals)
{
	struct gmem_vcpu *accessor;
	struct scene s;
	const uint64_t written = BIT(1) | BIT(2) | BIT(5) | BIT(10);
	uint64_t bits;

	scene_set_up(&s, &ways[0]);
	accessor = new_vcpu(s.vm);
	pagemap_error = -EMFILE;
	CHECK_ERR(gmem_vm_set_log(s.vm, 0, D | A), -EMFILE);
	pagemap_error = -ENOENT;
	CHECK_ERR(gmem_vm_set_log(s.vm, 0, D | A), -EOPNOTSUPP);
	pagemap_error = 0;
	zap_error = -EINVAL;
	CHECK_ERR(gmem_vm_set_log(s.vm, 0, D | A), -EINVAL);
	zap_error = 0;
	/* Nor does KVM keep one. */
	CHECK_EQ(gmem_kvm_dirty_log(gmem_vm_kvm_fd(s.vm), 0, &bits), -ENOENT);
	CHECK_ERR(gmem_vm_get_log(s.vm, 0, D, 0, 64, &bits, 0), -EINVAL);
	CHECK_ERR(gmem_vm_get_log(s.vm, 0, A, 0, 64, &bits, 0), -EINVAL);
	slot_error = -ENOMEM;
	CHECK_ERR(gmem_vm_set_log(s.vm, 0, D), -ENOMEM);
	slot_error = 0;
	CHECK_ERR(gmem_vm_get_log(s.vm, 0, D, 0, 64, &bits, 0), -EINVAL);
	CHECK_OK(gmem_vm_set_log(s.vm, 0, D | A));
	run(&s, GUEST_store8, GPA + PG, 1);
	run(&s, GUEST_store8, GPA + 2 * PG, 1);
	run(&s, GUEST_store8, GPA + 10 * PG, 1);
	store64(accessor, GPA + 5 * PG, 1);
	pagemap_error = -EMFILE;
	CHECK_ERR(gmem_vm_get_log(s.vm, 0, A, 0, 64, &bits, GMEM_LOG_CLEAR), -EMFILE);
	/* What cannot be told when pages go counts as touched. */
	to_private(s.file, 10 * PG, 2 * PG);
	pagemap_error = 0;
	zap_error = -EINVAL;
	CHECK_ERR(gmem_vm_get_log(s.vm, 0, A, 0, 64, &bits, GMEM_LOG_CLEAR), -EINVAL);
	zap_error = 0;
	log_error = -ENOMEM;
	CHECK_ERR(gmem_vm_get_log(s.vm, 0, D, 0, 64, &bits, GMEM_LOG_CLEAR), -ENOMEM);
	log_error = 0;
	clear_error = -EFAULT;
	CHECK_ERR(gmem_vm_get_log(s.vm, 0, D, 0, 64, &bits, GMEM_LOG_CLEAR), -EFAULT);
	/* Before Linux 5.0 there is nothing to clear. */
	clear_error = -ENOTTY;
	CHECK_EQ(log_of(&s, 0, D, 0), written);
	clear_error = 0;
	CHECK_EQ(log_of(&s, 0, D, 0), written);
	CHECK_EQ(log_of(&s, 0, A, 0), written | BIT(11));
	slot_error = -ENOMEM;
	CHECK_ERR(gmem_vm_set_log(s.vm, 0, A), -ENOMEM);
	slot_error = 0;
	run(&s, GUEST_store8, GPA + 3 * PG, 1);
	CHECK_EQ(log_of(&s, 0, D, GMEM_LOG_CLEAR), written | BIT(3));
	CHECK_EQ(log_of(&s, 0, A, GMEM_LOG_CLEAR), written | BIT(11) | BIT(3));
	gmem_vcpu_free(accessor);
	scene_tear_down(&s);
}

/* Off and on, by the program: what KVM shows once is cleared all the same. */
static void manual_protect(uint64_t how, uint64_t at_first)
{
	struct scene s;

	EACH_WAY(&s)
	{
		if (gmem_kvm_cap_enable(gmem_vm_kvm_fd(s.vm), KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, how))
			SKIP("kvm", "no KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2");
		CHECK_OK(gmem_vm_set_log(s.vm, 0, D));
		CHECK_EQ(log_of(&s, 0, D, GMEM_LOG_CLEAR), at_first);
		for (uint64_t i = 1; i < 4; i++) {
			run(&s, GUEST_store8, GPA + PG, i);
			run(&s, GUEST_store8, GPA + 9 * i * PG, i);
			CHECK_EQ(log_of(&s, 0, D, 0), BIT(1) | BIT(9 * i));
			CHECK_EQ(log_of(&s, 0, D, GMEM_LOG_CLEAR), BIT(1) | BIT(9 * i));
			CHECK_EQ(log_of(&s, 0, D, GMEM_LOG_CLEAR), 0);
		}
	}
}

TEST(writes_protected_by_hand)
{
	manual_protect(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, 0);
}

TEST(writes_that_count_at_first)
{
	manual_protect(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET, ~0ull);
}

/* Of a machine of the program's that has rings instead. */
TEST(dirty_ring)
{
	struct scene s;

	need_kvm();
	s.vm = new_kvm_vm(GMEM_VM_DEFAULT);
	if (gmem_kvm_cap_enable(gmem_vm_kvm_fd(s.vm), KVM_CAP_DIRTY_LOG_RING, 4096))
		SKIP("kvm", "no KVM_CAP_DIRTY_LOG_RING");
	s.file = make_file(LEN, 0);
	CHECK_OK(set_slot(s.vm, 0, GPA, LEN, s.file, 0));
	CHECK_ERR(gmem_vm_set_log(s.vm, 0, D), -EOPNOTSUPP);
	CHECK_HAS(gmem_last_error(), "dirty ring");
	CHECK_ERR(gmem_vm_set_log(s.vm, 0, D | A), -EOPNOTSUPP);
	CHECK_OK(gmem_vm_set_log(s.vm, 0, A));
	CHECK_EQ(log_of(&s, 0, A, 0), 0);
	gmem_vm_free(s.vm);
	gmem_file_free(s.file);
}

/* ---- a guest stores while its memory is copied, see vm_log_race.c */

struct race {
	struct scene s;
	_Atomic bool stop;
	_Atomic uint64_t stored;
};

static void *store(void *arg)
{
	struct race *r = arg;
	struct gmem_vcpu *accessor = new_vcpu(r->s.vm);

	for (uint64_t generation = 1; !atomic_load(&r->stop); generation++) {
		run(&r->s, GUEST_touch, GPA + generation % 32 * PG, 32, PG, generation * 1000);
		store64(accessor, GPA + generation % 64 * PG + 8, generation);
		atomic_fetch_add(&r->stored, 1);
	}
	gmem_vcpu_free(accessor);
	return NULL;
}

static void copy_dirty(struct race *r, uint32_t log, char *copy)
{
	uint64_t bits = log_of(&r->s, 0, log, GMEM_LOG_CLEAR);

	for (uint64_t i = 0; i < 64; i++)
		if (bits & BIT(i))
			CHECK_EQ(pread(r->s.file->fd, copy + i * PG, PG, (off_t)(i * PG)), PG);
}

/* By the log of touches, what was written to is copied as well. */
static void race(const struct scene_opts *way, uint32_t log)
{
	static char copy[LEN], memory[LEN];
	struct race r = { .stop = false };
	pthread_t storer;

	scene_set_up(&r.s, way);
	memset(copy, 0, LEN);
	CHECK_OK(gmem_vm_set_log(r.s.vm, 0, log));
	storer = start(store, &r);
	for (int round = 0; round < (tap_slow() ? 20 : 60); round++) {
		uint64_t stored = atomic_load(&r.stored);

		/* Also in the middle of a routine. */
		while (round % 2 && atomic_load(&r.stored) == stored)
			sched_yield();
		copy_dirty(&r, log, copy);
	}
	atomic_store(&r.stop, true);
	join(storer);
	copy_dirty(&r, log, copy);
	CHECK_EQ(pread(r.s.file->fd, memory, LEN, 0), LEN);
	CHECK_MEM(memory, copy, LEN);
	CHECK(*(uint64_t *)(void *)(memory + 40 * PG));
	scene_tear_down(&r.s);
}

TEST_TIMEOUT(copy_by_writes, 120)
{
	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++)
		race(&ways[i], D);
}

TEST_TIMEOUT(copy_by_touches, 120)
{
	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++)
		race(&ways[i], A);
}
