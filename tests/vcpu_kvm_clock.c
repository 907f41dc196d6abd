/* SPDX-License-Identifier: MIT */
/* Areas of a guest's memory that KVM writes to by itself, in pages that are not there when it does. */
#include "kvm_reach.h"
#include "slot_util.h"

#ifdef __x86_64__

#include <linux/kvm_para.h>
#include <time.h>

#define CLOCK (GPA + 20 * PG) /* with no other page within 64 KiB, where pages pass together */
#define WALL (GPA + 40 * PG)
#define READY (GPA + 60 * PG)
#define ELSEWHERE (GPA + PG)
#define SECOND 1000000000ull
#define SET_TO (1000000 * SECOND) /* what KVM has counted by itself is less */

static void set_msr(struct gmem_vcpu *vcpu, uint32_t msr, uint64_t value)
{
	if (gmem_kvm_msr_set(gmem_vcpu_kvm_fd(vcpu), msr, value))
		SKIP("kvm", "no register 0x%x", msr);
}

static void set_clock(struct scene *s, uint64_t to)
{
	CHECK_OK(ioctl(gmem_vm_kvm_fd(s->vm), KVM_SET_CLOCK, &(struct kvm_clock_data){ .clock = to }));
}

/* What the guest finds, once it has been somewhere else, which KVM writes its time before. */
static void check_clock(struct scene *s, uint64_t gpa, uint64_t from)
{
	run(s, GUEST_load8, ELSEWHERE);
	/* In words: version; TSC then; time then; multiplier, shift and flags. */
	run(s, GUEST_load8, gpa);
	CHECK_EQ(run(s, GUEST_load4, gpa) & 1, 0);
	CHECK(run(s, GUEST_load8, gpa + 16) >= from);
	CHECK(run(s, GUEST_load8, gpa + 16) < from + SET_TO);
	CHECK(run(s, GUEST_load4, gpa + 24) >> 31);
}

struct lazy {
	struct supplier sup;
	struct gmem_supply *supply;
};

static void lazy_begin(struct scene *s, struct lazy *l)
{
	*l = (struct lazy){ .sup = { .stuck = false } };
	l->supply = new_supply(s->file, 0, LEN, bring_in, &l->sup);
}

static void lazy_end(struct scene *s, struct lazy *l)
{
	end_supply(s->file, l->supply);
}

TEST_TIMEOUT(clock_in_a_page_that_is_absent, 120)
{
	struct scene s;
	struct lazy l;

	EACH_WAY(&s)
	{
		lazy_begin(&s, &l);
		set_clock(&s, SET_TO);
		set_msr(s.vcpu, MSR_KVM_SYSTEM_TIME_NEW, CLOCK | 1);
		check_clock(&s, CLOCK, SET_TO);
		/* The rest of the page is as it was brought in, and no page was but those that are wanted. */
		CHECK_EQ(file_word(s.file, CLOCK - GPA + 64), CLOCK - GPA + 65);
		CHECK_EQ(atomic_load(&l.sup.calls), 2);
		lazy_end(&s, &l);
	}
}

/* As that of a Linux guest's first processors. The second one's has passed by the time it runs first. */
TEST_TIMEOUT(clocks_in_one_page, 120)
{
	struct scene_opts o = { .type = GMEM_VM_DEFAULT };
	struct gmem_vcpu *second;
	struct scene s, other;
	unsigned char *boot;
	struct lazy l;

	scene_set_up(&s, &o);
	other = s;
	other.vcpu = second = new_kvm_vcpu(s.vm, 1);
	boot = boot_range(s.vm, 1);
	guest_init(&other.guest, gmem_vcpu_kvm_fd(second), gmem_vcpu_kvm_run(second), boot, BOOT_GPA + GUEST_BOOT_LEN,
		   GUEST_USER, false);
	lazy_begin(&s, &l);
	set_clock(&s, SET_TO);
	set_msr(s.vcpu, MSR_KVM_SYSTEM_TIME_NEW, CLOCK | 1);
	set_msr(second, MSR_KVM_SYSTEM_TIME_NEW, (CLOCK + 64) | 1);
	check_clock(&s, CLOCK, SET_TO);
	check_clock(&other, CLOCK + 64, SET_TO);
	/* Barred again, and let through by one of them. */
	CHECK_OK(gmem_vm_set_log(s.vm, 0, GMEM_LOG_ACCESSED));
	set_clock(&s, 3 * SET_TO);
	run(&other, GUEST_load8, ELSEWHERE);
	check_clock(&s, CLOCK, 3 * SET_TO);
	check_clock(&other, CLOCK + 64, 3 * SET_TO);
	lazy_end(&s, &l);
	gmem_vcpu_free(second);
	scene_tear_down(&s);
	munmap(boot, GUEST_BOOT_LEN);
}

/* In memory of the program's, which is the program's to fill, and passes whole when a page of it is met. */
TEST_TIMEOUT(clock_in_memory_of_the_programs, 120)
{
	struct scene s;

	EACH_WAY(&s)
	{
		uint64_t bitmap = ~0ull, gpa = GPA + 2 * LEN;
		char *mem = plain_memory(LEN, PROT_READ | PROT_WRITE);
		struct gmem_memslot m = {
			.size = sizeof(m),
			.slot = 1,
			.flags = GMEM_SLOT_USERFAULT,
			.gpa = gpa,
			.len = LEN,
			.hva = mem,
			.userfault_bitmap = &bitmap,
		};

		CHECK_OK(gmem_vm_set_slot(s.vm, &m));
		set_clock(&s, SET_TO);
		set_msr(s.vcpu, MSR_KVM_SYSTEM_TIME_NEW, (gpa + 40 * PG) | 1);
		run(&s, GUEST_load8, ELSEWHERE);
		run_err(&s, -EFAULT, GUEST_load8, gpa + 40 * PG);
		check_fault(&s, gpa + 40 * PG, GMEM_EXIT_FLAG_USERFAULT);
		/* Whatever it was left at. */
		mem[40 * PG] = 1;
		__atomic_store_n(&bitmap, 0, __ATOMIC_RELEASE);
		CHECK_OK(go_on(&s));
		check_clock(&s, gpa + 40 * PG, SET_TO);
		CHECK_OK(del_slot(s.vm, 1));
		munmap(mem, LEN);
	}
}

/* It may not be had, which is the guest's matter when it looks at its clock, and keeps it from nothing else. */
TEST_TIMEOUT(clock_in_a_page_that_may_not_be_had, 120)
{
	struct scene s;

	EACH_DEFAULT_WAY(&s)
	{
		set_clock(&s, SET_TO);
		to_private(s.file, CLOCK - GPA, PG);
		set_msr(s.vcpu, MSR_KVM_SYSTEM_TIME_NEW, CLOCK | 1);
		run(&s, GUEST_load8, ELSEWHERE);
		run_err(&s, -EFAULT, GUEST_load8, CLOCK + 16);
		check_fault(&s, CLOCK, 0);
		to_shared(s.file, CLOCK - GPA, PG);
		CHECK_OK(go_on(&s));
		check_clock(&s, CLOCK, SET_TO);
		CHECK_OK(gmem_file_poison(s.file, CLOCK - GPA, PG));
		set_clock(&s, 3 * SET_TO);
		run(&s, GUEST_load8, ELSEWHERE);
		run_err(&s, -EHWPOISON, GUEST_load8, CLOCK + 16);
		CHECK_OK(gmem_file_punch(s.file, CLOCK - GPA, PG));
		CHECK_OK(go_on(&s));
		check_clock(&s, CLOCK, 3 * SET_TO);
	}
}

TEST_TIMEOUT(clock_that_is_set_when_its_page_is_barred_again, 120)
{
	struct scene s;
	struct lazy l;

	EACH_WAY(&s)
	{
		lazy_begin(&s, &l);
		set_msr(s.vcpu, MSR_KVM_SYSTEM_TIME_NEW, CLOCK | 1);
		check_clock(&s, CLOCK, 0);
		CHECK_OK(gmem_vm_set_log(s.vm, 0, GMEM_LOG_ACCESSED));
		set_clock(&s, SET_TO);
		check_clock(&s, CLOCK, SET_TO);
		/* Another place, of which nothing is known when it is met. */
		set_msr(s.vcpu, MSR_KVM_SYSTEM_TIME_NEW, (CLOCK + 32 * PG) | 1);
		check_clock(&s, CLOCK + 32 * PG, SET_TO);
		lazy_end(&s, &l);
	}
}

static void *cancel_soon(void *arg)
{
	usleep(20000);
	gmem_vcpu_cancel(arg);
	return NULL;
}

/* To wait for it is to wait in the call. */
TEST_TIMEOUT(clock_that_is_waited_for, 120)
{
	struct scene s;
	struct lazy l;

	EACH_WAY(&s)
	{
		pthread_t t;

		lazy_begin(&s, &l);
		atomic_store(&l.sup.stuck, true);
		set_clock(&s, SET_TO);
		set_msr(s.vcpu, MSR_KVM_SYSTEM_TIME_NEW, CLOCK | 1);
		begin(&s, GUEST_store8, BOOT_GPA + GUEST_BOOT_LEN - 8, 7);
		for (int i = 0; i < 2; i++) {
			t = start(cancel_soon, s.vcpu);
			CHECK_ERR(gmem_vcpu_run(s.vcpu), -EINTR);
			join(t);
		}
		CHECK(!s.boot[GUEST_BOOT_LEN - 8]);
		atomic_store(&l.sup.stuck, false);
		CHECK_OK(go_on(&s));
		CHECK_EQ(s.boot[GUEST_BOOT_LEN - 8], 7);
		check_clock(&s, CLOCK, SET_TO);
		lazy_end(&s, &l);
	}
}

TEST_TIMEOUT(wall_clock_in_a_page_that_is_absent, 120)
{
	struct scene s;
	struct lazy l;

	EACH_WAY(&s)
	{
		const int64_t day = 24 * 60 * 60;
		int64_t began;

		lazy_begin(&s, &l);
		set_clock(&s, SET_TO);
		set_msr(s.vcpu, MSR_KVM_WALL_CLOCK_NEW, WALL);
		run(&s, GUEST_load8, ELSEWHERE);
		/* In words of 4 bytes: version, seconds. */
		CHECK_EQ(run(&s, GUEST_load4, WALL) & 1, 0);
		began = time(NULL) - (int64_t)(SET_TO / SECOND) - (int64_t)run(&s, GUEST_load4, WALL + 4);
		CHECK(began > -day && began < day);
		/* It is the guest's from then on. */
		set_file_word(s.file, WALL - GPA, 5);
		CHECK_OK(gmem_vm_set_log(s.vm, 0, GMEM_LOG_ACCESSED));
		run(&s, GUEST_load8, WALL);
		run(&s, GUEST_load8, ELSEWHERE);
		CHECK_EQ(run(&s, GUEST_load8, WALL), 5);
		lazy_end(&s, &l);
	}
}

#define APIC_SPURIOUS 0xfee000f0

/* What a guest is told of its tasks that wait for pages: that any may be ready, after a restore. */
static void tell_ready(struct scene *s)
{
	set_msr(s->vcpu, MSR_KVM_ASYNC_PF_EN, READY | KVM_ASYNC_PF_ENABLED | KVM_ASYNC_PF_DELIVERY_AS_INT);
}

static bool told_ready(struct scene *s)
{
	/* Flags, token. */
	return file_word(s->file, READY - GPA) >> 32 == ~0u;
}

TEST_TIMEOUT(page_that_is_ready_told_in_one_that_is_absent, 120)
{
	for (enum guest_mode mode = GUEST_USER; mode <= GUEST_KERNEL; mode++) {
		struct scene_opts o = { .type = GMEM_VM_DEFAULT, .irqchip = true, .mode = mode };
		struct scene s;
		struct lazy l;

		scene_set_up(&s, &o);
		run(&s, GUEST_store4, APIC_SPURIOUS, 0x1ff);
		lazy_begin(&s, &l);
		set_msr(s.vcpu, MSR_KVM_ASYNC_PF_INT, 0x40);
		tell_ready(&s);
		run(&s, GUEST_load8, ELSEWHERE);
		CHECK(told_ready(&s));
		/* The guest has read it, and never looks at a page unless it is told to. */
		set_file_word(s.file, READY - GPA, 0);
		CHECK_OK(gmem_vm_set_log(s.vm, 0, GMEM_LOG_ACCESSED));
		tell_ready(&s);
		run(&s, GUEST_load8, ELSEWHERE);
		CHECK(told_ready(&s));
		lazy_end(&s, &l);
		scene_tear_down(&s);
	}
}

#else

TEST(areas)
{
	SKIP("kvm", "areas that KVM writes to are x86-64's");
}

#endif

#include "tap_main.h"
