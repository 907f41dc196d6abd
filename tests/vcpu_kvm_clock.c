/* SPDX-License-Identifier: MIT */
/* KVM's own writes to a guest's memory: of its clock, for which the guest names a page in an MSR. */
#include "kvm_scene.h"

#ifdef __x86_64__

#define SYSTEM_TIME 0x4b564d01 /* MSR_KVM_SYSTEM_TIME_NEW; bit 0 turns it on */
#define PAGE 8ull

static void set_clock(struct scene *s, uint64_t value)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} msrs = { .head.nmsrs = 1, .entry = { .index = SYSTEM_TIME, .data = value } };

	if (ioctl(s->guest.vcpu, KVM_SET_MSRS, &msrs) != 1)
		SKIP("kvm", "no clock of KVM's for guests");
}

/* Version, which KVM counts up by two whenever it writes, and the multiplier of the TSC, which is never 0. */
static bool clock_runs(struct scene *s)
{
	uint32_t clock[8];

	CHECK_OK(gmem_file_read(s->file, PAGE * PG, clock, sizeof(clock)));
	return clock[0] && !(clock[0] & 1) && clock[6];
}

static void let_run(struct scene *s)
{
	(void)run(s, GUEST_load8, GPA);
}

static int bring_in_zero(void *opaque, struct gmem_file *file, uint64_t off, struct gmem_wait *wait)
{
	static uint64_t zeros[PG / 8];
	struct supplier *s = opaque;
	struct gmem_folio folio;
	int err;

	atomic_fetch_add(&s->calls, 1);
	gmem_rwlock_lock_shared(&file->invalidate_lock);
	err = file->ops->alloc(file, off, 1, &folio);
	folio.data = zeros;
	if (!err)
		err = file->ops->insert(file, &folio);
	if (!err)
		file->ops->publish(file, &folio);
	gmem_rwlock_unlock_shared(&file->invalidate_lock);
	return err;
}

/* A page that is lazily served: brought in before the guest runs, as the manual says, it has its clock. */
TEST(clock_in_a_page_that_was_brought_in)
{
	struct scene s;

	EACH_WAY(&s)
	{
		struct supplier sup = { .calls = 0 };
		struct gmem_supply *supply = new_supply(s.file, PAGE * PG, PG, bring_in_zero, &sup);

		CHECK_OK(gmem_vcpu_pre_fault(s.vcpu, GPA + PAGE * PG, PG, NULL));
		CHECK_EQ(atomic_load(&sup.calls), 1);
		set_clock(&s, (GPA + PAGE * PG) | 1);
		let_run(&s);
		CHECK(clock_runs(&s));
		end_supply(s.file, supply);
	}
}

/* Set while the page is barred, KVM's write is lost, and nobody is told; set again it is made. */
TEST(clock_set_again)
{
	struct scene s;

	EACH_DEFAULT_WAY(&s)
	{
		to_private(s.file, PAGE * PG, PG);
		set_clock(&s, (GPA + PAGE * PG) | 1);
		let_run(&s);
		to_shared(s.file, PAGE * PG, PG);
		printf("set while the page was barred, the clock %s\n", clock_runs(&s) ? "runs" : "stands");
		CHECK_EQ(run(&s, GUEST_load8, GPA + PAGE * PG + 64), 0);
		set_clock(&s, (GPA + PAGE * PG) | 1);
		let_run(&s);
		CHECK(clock_runs(&s));
	}
}

#endif

#include "tap_main.h"
