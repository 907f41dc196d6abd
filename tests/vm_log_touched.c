/* SPDX-License-Identifier: MIT */
/* The log of touches of guests on KVM: the very pages, by nobody's help and with nobody in the way. */
#include "kvm_scene.h"
#include "slot_util.h"

#include "sys/pagemap.h"

#define A GMEM_LOG_ACCESSED
#define D GMEM_LOG_DIRTY
#define BIT(i) (1ull << (i))
#define HVA_GPA (GPA + 16 * LEN)
#define HUGE (2ull << 20)

static bool no_scan;
static unsigned int scans, reads;
static void (*before_zap)(void), (*after_zap)(void);

int __real_gmem_sys_ioctl(int fd, unsigned long request, void *arg);
int __wrap_gmem_sys_ioctl(int fd, unsigned long request, void *arg);
int __real_gmem_sys_pagemap_next(struct gmem_sys_pagemap *map, struct gmem_sys_run *ret);
int __wrap_gmem_sys_pagemap_next(struct gmem_sys_pagemap *map, struct gmem_sys_run *ret);

int __real_gmem_sys_zap(void *addr, size_t len);
int __wrap_gmem_sys_zap(void *addr, size_t len);

/* Once. */
static void call(void (**hook)(void))
{
	void (*fn)(void) = *hook;

	*hook = NULL;
	if (fn)
		fn();
}

int __wrap_gmem_sys_zap(void *addr, size_t len)
{
	int err;

	call(&before_zap);
	err = __real_gmem_sys_zap(addr, len);
	call(&after_zap);
	return err;
}

/* A kernel before 6.7 does not know it. */
int __wrap_gmem_sys_ioctl(int fd, unsigned long request, void *arg)
{
	int err = no_scan && request == GMEM_PAGEMAP_SCAN ? -ENOTTY : __real_gmem_sys_ioctl(fd, request, arg);

	scans += request == GMEM_PAGEMAP_SCAN && err >= 0;
	return err;
}

int __wrap_gmem_sys_pagemap_next(struct gmem_sys_pagemap *map, struct gmem_sys_run *ret)
{
	int err = __real_gmem_sys_pagemap_next(map, ret);

	reads += map->entries;
	return err;
}

/* LEN is 64 pages: one word. */
static uint64_t touched(struct scene *s, uint32_t slot, uint32_t flags)
{
	uint64_t bits = ~0ull;

	CHECK_EQ(gmem_vm_get_log(s->vm, slot, A, 0, LEN / PG, &bits, flags), __builtin_popcountll(bits));
	return bits;
}

/* Memory that is all there, which the kernel maps some of around a touch. */
static void fill(struct scene *s)
{
	static char ones[LEN];

	memset(ones, 1, LEN);
	CHECK_OK(gmem_file_write(s->file, 0, ones, LEN));
}

static void check_each_page(struct scene *s, uint32_t slot, uint64_t gpa)
{
	for (uint64_t i = 0; i < 64; i++) {
		run(s, GUEST_load8, gpa + i * PG);
		CHECK_EQ(touched(s, slot, 0), BIT(i));
		run(s, GUEST_store8, gpa + (i ^ 33) * PG, i);
		CHECK_EQ(touched(s, slot, GMEM_LOG_CLEAR), BIT(i) | BIT(i ^ 33));
		CHECK_EQ(touched(s, slot, 0), 0);
	}
}

TEST_TIMEOUT(one_page_and_no_other, 60)
{
	struct scene s;

	EACH_WAY(&s)
	{
		fill(&s);
		run(&s, GUEST_sum, GPA, 64, PG);
		CHECK_OK(gmem_vm_set_log(s.vm, 0, A));
		check_each_page(&s, 0, GPA);
	}
	CHECK(scans + reads);
}

TEST_TIMEOUT(by_entries_that_are_read, 60)
{
	struct scene s;

	no_scan = true;
	EACH_WAY(&s)
	{
		fill(&s);
		CHECK_OK(gmem_vm_set_log(s.vm, 0, A));
		check_each_page(&s, 0, GPA);
	}
	CHECK(reads && !scans);
}

/* More runs than one look at the page tables tells, and than entries are read at once. */
TEST_TIMEOUT(many_runs, 60)
{
	const uint64_t n = 4096;
	struct scene_opts o = { .type = GMEM_VM_DEFAULT, .mode = GUEST_USER, .len = n * PG };
	static uint64_t bits[4096 / 64], again[4096 / 64];

	for (int i = 0; i < 2; i++) {
		struct scene s;

		no_scan = i;
		scene_set_up(&s, &o);
		CHECK_OK(gmem_vm_set_log(s.vm, 0, A));
		for (uint64_t round = 0; round < 2; round++) {
			run(&s, GUEST_touch, GPA + round * PG, n / 2, 2 * PG, 1);
			run(&s, GUEST_touch, GPA + 1000 * PG, 1000, PG, 1);
			CHECK_EQ(gmem_vm_get_log(s.vm, 0, A, 0, n, bits, 0), n / 2 + 500);
			CHECK_EQ(gmem_vm_get_log(s.vm, 0, A, 0, n, again, GMEM_LOG_CLEAR), n / 2 + 500);
			CHECK_MEM(bits, again, sizeof(bits));
			for (uint64_t page = 0; page < n; page++)
				CHECK_EQ(bits[page / 64] >> page % 64 & 1,
					 page % 2 == round || (page >= 1000 && page < 2000));
			CHECK_EQ(gmem_vm_get_log(s.vm, 0, A, 0, n, bits, 0), 0);
		}
		scene_tear_down(&s);
	}
}

static struct scene *the_scene;

static void touch_between(void)
{
	run(the_scene, GUEST_load8, GPA + 101 * PG);
	run(the_scene, GUEST_load8, GPA + 2 * PG);
}

static void touch_the_first(void)
{
	run(the_scene, GUEST_load8, GPA);
}

/* Pages go one by one, however many: one that is touched when others go is in the next result, and after it went. */
TEST(touched_meanwhile)
{
	const uint64_t n = 256;
	uint64_t bits[4];
	struct scene s;

	EACH_WAY(&s)
	{
		struct scene_opts o = ways[way_];

		scene_tear_down(&s);
		o.len = n * PG;
		scene_set_up(&s, &o);
		the_scene = &s;
		for (uint64_t stride = 2; stride < 64; stride += 30) {
			CHECK_OK(gmem_vm_set_log(s.vm, 0, 0));
			CHECK_OK(gmem_vm_set_log(s.vm, 0, A));
			run(&s, GUEST_sum, GPA, n / stride, stride * PG);
			before_zap = touch_between;
			after_zap = touch_the_first;
			CHECK_EQ(gmem_vm_get_log(s.vm, 0, A, 0, n, bits, GMEM_LOG_CLEAR), (int64_t)(n / stride));
			CHECK(!before_zap && !after_zap);
			/* One that was about to go may have gone with the touch, which the first result has. */
			CHECK(gmem_vm_get_log(s.vm, 0, A, 0, n, bits, 0) >= 2);
			CHECK_EQ(bits[0] & ~BIT(2), BIT(0));
			CHECK_EQ(bits[1], BIT(101 - 64));
			CHECK(stride == 2 || (bits[0] & BIT(2)));
		}
	}
}

/* A large page would be touched as a whole; afterwards it may be had again. */
TEST(large_pages)
{
	struct scene_opts o = { .type = GMEM_VM_DEFAULT, .mode = GUEST_USER, .len = 4 * HUGE, .flags = GMEM_FILE_THP };
	uint64_t bits[4 * HUGE / PG / 64];
	struct gmem_view *view;
	struct scene s;

	scene_set_up(&s, &o);
	CHECK_OK(gmem_view_map(s.file, 0, 4 * HUGE, RW, &view));
	memset(gmem_view_addr(view), 1, 4 * HUGE);
	for (uint64_t i = 0; i < 4; i++)
		(void)madvise((char *)gmem_view_addr(view) + i * HUGE, HUGE, MADV_COLLAPSE);
	run(&s, GUEST_sum, GPA, 4, HUGE);
	CHECK_OK(gmem_vm_set_log(s.vm, 0, A));
	for (uint64_t page = 3; page < 4 * HUGE / PG; page += 300) {
		run(&s, GUEST_load8, GPA + page * PG);
		run(&s, GUEST_store8, GPA + (page + 2) * PG, 1);
		CHECK_EQ(gmem_vm_get_log(s.vm, 0, A, 0, 4 * HUGE / PG, bits, GMEM_LOG_CLEAR), 2);
		CHECK_EQ(bits[page / 64] >> page % 64 & 1, 1);
		CHECK_EQ(bits[(page + 2) / 64] >> (page + 2) % 64 & 1, 1);
	}
	gmem_view_unmap(view);
	scene_tear_down(&s);
}

/* The host's own accesses are not the guest's. */
TEST(not_the_hosts)
{
	struct gmem_view *view;
	struct scene s;

	scene_set_up(&s, &ways[0]);
	fill(&s);
	CHECK_OK(gmem_view_map(s.file, 0, LEN, RW, &view));
	CHECK_OK(gmem_vm_set_log(s.vm, 0, A));
	memset(gmem_view_addr(view), 2, LEN);
	fill(&s);
	CHECK_EQ(touched(&s, 0, 0), 0);
	run(&s, GUEST_load8, GPA);
	CHECK_EQ(touched(&s, 0, 0), 1);
	gmem_view_unmap(view);
	scene_tear_down(&s);
}

/* What the library takes away itself has been touched all the same. */
TEST(pages_that_go)
{
	struct scene s;

	EACH_WAY(&s)
	{
		bool out = s.vm->type == GMEM_VM_DEFAULT;
		struct supplier sup = { .stuck = false };
		struct gmem_supply *supply;

		fill(&s);
		CHECK_OK(gmem_vm_set_log(s.vm, 0, A));
		run(&s, GUEST_sum, GPA, 8, PG);
		to_private(s.file, PG, 2 * PG);
		CHECK_OK(gmem_file_punch(s.file, 2 * PG, 2 * PG));
		CHECK_OK(gmem_file_poison(s.file, 4 * PG, PG));
		CHECK_EQ(touched(&s, 0, GMEM_LOG_CLEAR), 0xff);
		CHECK_EQ(touched(&s, 0, 0), 0);
		/* Those that are barred are not touched by being met. */
		begin(&s, GUEST_load8, GPA + PG);
		if (out) {
			CHECK_ERR(go_on(&s), -EFAULT);
			CHECK_EQ(touched(&s, 0, 0), 0);
		}
		to_shared(s.file, PG, 2 * PG);
		CHECK_OK(go_on(&s));
		run_err(&s, -EHWPOISON, GUEST_load8, GPA + 4 * PG);
		CHECK_EQ(touched(&s, 0, GMEM_LOG_CLEAR), BIT(1));
		CHECK_OK(gmem_file_punch(s.file, 4 * PG, PG));
		CHECK_OK(go_on(&s));
		run(&s, GUEST_load8, GPA + PG);
		CHECK_EQ(touched(&s, 0, GMEM_LOG_CLEAR), BIT(1) | BIT(4));
		run(&s, GUEST_load8, GPA + PG);
		run(&s, GUEST_load8, GPA + 3 * PG);
		CHECK_EQ(touched(&s, 0, 0), BIT(1) | BIT(3));
		/* Barred as a whole while it has what was touched. */
		supply = new_supply(s.file, 0, LEN, bring_in, &sup);
		CHECK_EQ(touched(&s, 0, GMEM_LOG_CLEAR), BIT(1) | BIT(3));
		run(&s, GUEST_load8, GPA + 20 * PG);
		CHECK_EQ(touched(&s, 0, GMEM_LOG_CLEAR), BIT(20));
		end_supply(s.file, supply);
	}
}

static void set_userfault_slot(struct scene *s, uint64_t gpa, char *hva, uint64_t *bitmap)
{
	struct gmem_memslot m = { .size = sizeof(m),
				  .slot = 7,
				  .flags = GMEM_SLOT_USERFAULT,
				  .gpa = gpa,
				  .len = LEN,
				  .hva = hva,
				  .userfault_bitmap = bitmap };

	CHECK_OK(gmem_vm_set_slot(s->vm, &m));
}

/* The caller's memory, in a gate. */
TEST_TIMEOUT(memory_of_the_callers, 60)
{
	uint64_t bitmap[2][1] = { { 0 } };
	struct scene s;

	EACH_WAY(&s)
	{
		char *hva = plain_memory(LEN, RW);

		memset(hva, 1, LEN);
		set_userfault_slot(&s, HVA_GPA, hva, bitmap[0]);
		run(&s, GUEST_sum, HVA_GPA, 64, PG);
		CHECK_OK(gmem_vm_set_log(s.vm, 7, A | D));
		check_each_page(&s, 7, HVA_GPA);
		run(&s, GUEST_sum, HVA_GPA, 5, PG);
		/* Another bitmap bars it all, and a move does. */
		set_userfault_slot(&s, HVA_GPA, hva, bitmap[1]);
		CHECK_EQ(touched(&s, 7, 0), 0x1f);
		run(&s, GUEST_load8, HVA_GPA + 6 * PG);
		CHECK_EQ(touched(&s, 7, 0), 0x5f);
		set_userfault_slot(&s, HVA_GPA + LEN, hva, bitmap[1]);
		CHECK_EQ(touched(&s, 7, GMEM_LOG_CLEAR), 0x5f);
		run(&s, GUEST_load8, HVA_GPA + LEN + 9 * PG);
		CHECK_EQ(touched(&s, 7, GMEM_LOG_CLEAR), BIT(9));
		CHECK_OK(del_slot(s.vm, 7));
		munmap(hva, LEN);
	}
}

TEST_TIMEOUT(two_memories, 60)
{
	struct scene s;

	EACH_WAY(&s)
	{
		struct gmem_file *file = make_file(LEN, 0);
		char *hva = plain_memory(LEN, RW);

		memset(hva, 1, LEN);
		CHECK_OK(set_both(s.vm, 7, HVA_GPA, LEN, file, 0, hva));
		CHECK_OK(gmem_vm_set_log(s.vm, 7, A));
		check_each_page(&s, 7, HVA_GPA);
		run(&s, GUEST_sum, HVA_GPA, 8, PG);
		to_private(file, 2 * PG, 4 * PG);
		CHECK_EQ(touched(&s, 7, GMEM_LOG_CLEAR), 0xff);
		if (s.vm->type != GMEM_VM_DEFAULT) {
			run(&s, GUEST_sum, HVA_GPA, 4, PG);
			to_shared(file, 0, LEN);
			CHECK_EQ(touched(&s, 7, GMEM_LOG_CLEAR), 0xf);
		}
		to_shared(file, 0, LEN);
		check_each_page(&s, 7, HVA_GPA);
		CHECK_OK(del_slot(s.vm, 7));
		gmem_file_free(file);
		munmap(hva, LEN);
	}
}

/* ---- KVM's own accesses do not fail */

/* All that KVM reads to run it, its page tables too, is in the slot. */
TEST(tables_of_the_guest)
{
	for (int mode = 0; mode < 2; mode++) {
		struct gmem_vm *vm = new_kvm_vm(GMEM_VM_DEFAULT);
		struct gmem_file *file = make_file(GUEST_BOOT_LEN + PG, 0);
		struct gmem_vcpu *vcpu = new_kvm_vcpu(vm, 0);
		uint64_t data = BOOT_GPA + GUEST_BOOT_LEN, bits;
		struct gmem_view *view;
		struct guest g;

		CHECK_OK(gmem_view_map(file, 0, GUEST_BOOT_LEN + PG, RW, &view));
		CHECK_OK(set_slot(vm, 0, BOOT_GPA, GUEST_BOOT_LEN + PG, file, 0));
		guest_init(&g, gmem_vcpu_kvm_fd(vcpu), gmem_vcpu_kvm_run(vcpu), gmem_view_addr(view), BOOT_GPA,
			   mode ? GUEST_KERNEL : GUEST_USER, false);
		CHECK_OK(gmem_vm_set_log(vm, 0, A | D));
		for (uint64_t i = 0; i < 10; i++) {
			guest_call(&g, i % 2 ? GUEST_load8 : GUEST_store8, data, i);
			CHECK_OK(gmem_vcpu_run(vcpu));
			if (!guest_finished(&g))
				FAIL("the guest came out: %s", guest_what(&g));
			CHECK(i % 2 == 0 || guest_result(&g) == i - 1);
			CHECK(gmem_vm_get_log(vm, 0, A, 0, 17, &bits, GMEM_LOG_CLEAR) >= 1);
			CHECK(bits & BIT(16));
		}
		gmem_vcpu_free(vcpu);
		gmem_view_unmap(view);
		gmem_vm_free(vm);
		gmem_file_free(file);
	}
}

#ifdef __x86_64__

#define KVM_CLOCK_MSR 0x4b564d01u
#define SYSTEM_TIME 16 /* in struct pvclock_vcpu_time_info */
#define SECOND 1000000000ull

/* What KVM writes for the guest arrives, and is a touch. */
TEST(clock_of_the_guest)
{
	struct {
		struct kvm_msrs msrs;
		struct kvm_msr_entry entry;
	} set = { .msrs = { .nmsrs = 1 }, .entry = { .index = KVM_CLOCK_MSR, .data = (GPA + PG) | 1 } };
	struct scene s;

	scene_set_up(&s, &ways[0]);
	fill(&s);
	if (ioctl(gmem_vcpu_kvm_fd(s.vcpu), KVM_SET_MSRS, &set) != 1)
		SKIP("kvm", "no clock for guests");
	CHECK_OK(gmem_vm_set_log(s.vm, 0, A));
	for (uint64_t i = 1; i < 5; i++) {
		struct kvm_clock_data clock = { .clock = i * 10000 * SECOND };
		uint64_t time;

		CHECK_EQ(ioctl(gmem_vm_kvm_fd(s.vm), KVM_SET_CLOCK, &clock), 0);
		run(&s, GUEST_load8, GPA + 9 * PG);
		CHECK_EQ(pread(s.file->fd, &time, 8, PG + SYSTEM_TIME), 8);
		CHECK(time >= clock.clock && time < clock.clock + 5000 * SECOND);
		CHECK_EQ(touched(&s, 0, GMEM_LOG_CLEAR), BIT(1) | BIT(9));
	}
	scene_tear_down(&s);
}

#endif
