/* SPDX-License-Identifier: MIT */
/* The guest code of tests, by itself: each routine on a plain machine of KVM, in both modes. */
#include "guest_util.h"

#define SEED 0x1122334455667788ull

static void loads_and_stores(struct machine *m)
{
	static const enum guest_routine load[] = { GUEST_load1, GUEST_load2, GUEST_load4, GUEST_load8 };
	static const enum guest_routine store[] = { GUEST_store1, GUEST_store2, GUEST_store4, GUEST_store8 };
	const uint64_t old = 0xaaaaaaaaaaaaaaaa, new = 0x8182838485868788;

	for (unsigned int i = 0; i < 4; i++) {
		uint64_t bits = i == 3 ? ~0ull : (1ull << (8 << i)) - 1;

		ram_set_word(m, i * PG, new);
		CHECK_EQ(guest_do(&m->guest, load[i], RAM_GPA + i * PG), new &bits);
		ram_set_word(m, i * PG + 8, old);
		guest_do(&m->guest, store[i], RAM_GPA + i * PG + 8, new);
		CHECK_EQ(ram_word(m, i * PG + 8), (old & ~bits) | (new &bits));
	}
	/* Across the line between two pages. */
	guest_do(&m->guest, GUEST_store8, RAM_GPA + PG - 3, new);
	CHECK_EQ(guest_do(&m->guest, GUEST_load8, LOW_GPA + PG - 3), new);
	CHECK_MEM(m->low + PG - 3, &new, sizeof(new));

	ram_set_word(m, 64, SEED);
	ram_set_word(m, 72, ~SEED);
	guest_do(&m->guest, GUEST_load16, RAM_GPA + 64, RAM_GPA + PG);
	CHECK_MEM(m->low + PG, m->low + 64, 16);
	guest_do(&m->guest, GUEST_store16, RAM_GPA + 2 * PG, RAM_GPA + 64);
	CHECK_MEM(m->low + 2 * PG, m->low + 64, 16);
}

static void atomics(struct machine *m)
{
	ram_set_word(m, 0, SEED);
	CHECK_EQ(guest_do(&m->guest, GUEST_cmpxchg8, RAM_GPA, SEED + 1, 7), SEED);
	CHECK_EQ(ram_word(m, 0), SEED);
	CHECK_EQ(guest_do(&m->guest, GUEST_cmpxchg8, RAM_GPA, SEED, 7), SEED);
	CHECK_EQ(ram_word(m, 0), 7);
	guest_do(&m->guest, GUEST_hammer, RAM_GPA, 100);
	CHECK_EQ(ram_word(m, 0), 107);
}

static void copies(struct machine *m)
{
	const uint64_t len = 2 * PG - 16;

	for (uint64_t i = 0; i < 3 * PG; i++)
		m->low[i] = (unsigned char)(i * 7 + i / 251);
	CHECK_EQ(guest_do(&m->guest, GUEST_copy, RAM_GPA + 8 * PG + 1, RAM_GPA + 5, len - 1), len - 1);
	CHECK_MEM(m->low + 8 * PG + 1, m->low + 5, len - 1);
	CHECK_EQ(m->low[8 * PG], 0);
	CHECK_EQ(m->low[8 * PG + len], 0);
	CHECK_EQ(guest_do(&m->guest, GUEST_copy8, RAM_GPA + 16 * PG + 8, RAM_GPA + 3, len), len);
	CHECK_MEM(m->low + 16 * PG + 8, m->low + 3, len);
	CHECK_EQ(m->low[16 * PG + 7], 0);
	CHECK_EQ(m->low[16 * PG + 8 + len], 0);
}

static void touches(struct machine *m)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < 32; i++) {
		ram_set_word(m, i * PG + 16, SEED * i);
		sum += SEED * i;
	}
	CHECK_EQ(guest_do(&m->guest, GUEST_sum, RAM_GPA + 16, 32, PG), sum);
	CHECK_EQ(guest_do(&m->guest, GUEST_touch, RAM_GPA + 24, 32, PG, SEED), 32);
	for (uint64_t i = 0; i < 32; i++) {
		CHECK_EQ(ram_word(m, i * PG + 24), SEED + i);
		CHECK_EQ(ram_word(m, i * PG + 16), SEED * i);
	}
	CHECK_EQ(ram_word(m, 32 * PG + 24), 0);
}

static void patterns(struct machine *m)
{
	const uint64_t n = PG / 8 + 3;

	CHECK_EQ(guest_do(&m->guest, GUEST_fill, RAM_GPA + PG - 16, n, SEED), n);
	for (uint64_t i = 0; i < n; i++)
		CHECK_EQ(ram_word(m, PG - 16 + i * 8), guest_pattern(SEED, i));
	CHECK_EQ(ram_word(m, PG - 16 + n * 8), 0);
	CHECK_EQ(guest_do(&m->guest, GUEST_verify, RAM_GPA + PG - 16, n, SEED), n);
	CHECK_EQ(guest_do(&m->guest, GUEST_verify, RAM_GPA + PG - 16, n + 1, SEED), n);
	ram_set_word(m, PG, 0);
	CHECK_EQ(guest_do(&m->guest, GUEST_verify, RAM_GPA + PG - 16, n, SEED), 2);
}

static void *change_word(void *arg)
{
	struct machine *m = arg;

	while (!ram_word(m, 8))
		usleep(100);
	ram_set_word(m, 0, SEED);
	return NULL;
}

/* The word changes only after the guest was seen to run. */
static void waits(struct machine *m)
{
	pthread_t thread;

	ram_set_word(m, 8, 0);
	ram_set_word(m, 0, 5);
	CHECK_EQ(pthread_create(&thread, NULL, change_word, m), 0);
	guest_do(&m->guest, GUEST_hammer, RAM_GPA + 8, 1);
	CHECK_EQ(guest_do(&m->guest, GUEST_wait, RAM_GPA, 5), SEED);
	CHECK_EQ(pthread_join(thread, NULL), 0);
}

/* An exception is reported with what it was, and the guest is as good as new. */
static void exceptions(struct machine *m)
{
	struct guest *g = &m->guest;

	guest_call(g, GUEST_ud2);
	CHECK_OK(guest_run_raw(g));
	CHECK(!guest_finished(g));
	CHECK_HAS(guest_what(g), "in ud2: exit 2,");
	CHECK_HAS(guest_what(g), "; exception 6, error 0x0, at ");
	guest_call(g, GUEST_store8, GUEST_MAPPED + 0x123, 0);
	CHECK_OK(guest_run_raw(g));
	CHECK(!guest_finished(g));
	CHECK_HAS(guest_what(g), "; exception 14, error ");
	CHECK_HAS(guest_what(g), "cr2 0x200000123");
	ram_set_word(m, 0, SEED);
	CHECK_EQ(guest_do(g, GUEST_load8, RAM_GPA), SEED);
}

static void all_routines(enum guest_mode mode, int flags)
{
	struct machine m;

	machine_make(&m, mode, flags);
	loads_and_stores(&m);
	atomics(&m);
	memset(m.low, 0, RAM_LEN);
	copies(&m);
	memset(m.low, 0, RAM_LEN);
	touches(&m);
	memset(m.low, 0, RAM_LEN);
	patterns(&m);
	waits(&m);
	exceptions(&m);
	machine_unmake(&m);
}

TEST_TIMEOUT(user, 60)
{
	all_routines(GUEST_USER, 0);
}

TEST_TIMEOUT(user_interrupts, 60)
{
	all_routines(GUEST_USER, MACHINE_IF);
}

TEST_TIMEOUT(user_irqchip, 60)
{
	all_routines(GUEST_USER, MACHINE_IRQCHIP);
}

TEST_TIMEOUT(user_irqchip_interrupts, 60)
{
	all_routines(GUEST_USER, MACHINE_IRQCHIP | MACHINE_IF);
}

TEST_TIMEOUT(kernel, 60)
{
	all_routines(GUEST_KERNEL, 0);
}

TEST_TIMEOUT(kernel_interrupts, 60)
{
	all_routines(GUEST_KERNEL, MACHINE_IF);
}

TEST_TIMEOUT(kernel_irqchip, 60)
{
	all_routines(GUEST_KERNEL, MACHINE_IRQCHIP);
}

TEST_TIMEOUT(kernel_irqchip_interrupts, 60)
{
	all_routines(GUEST_KERNEL, MACHINE_IRQCHIP | MACHINE_IF);
}

/* The first and the last address a guest reaches are the same byte here, and there is nothing in between. */
TEST(reaches_all_it_maps)
{
	for (int mode = GUEST_USER; mode <= GUEST_KERNEL; mode++) {
		struct machine m;

		machine_make(&m, mode, 0);
		guest_do(&m.guest, GUEST_store1, LOW_GPA, 0x5a);
		CHECK_EQ(guest_do(&m.guest, GUEST_load1, RAM_GPA), 0x5a);
		guest_do(&m.guest, GUEST_store1, GUEST_MAPPED - 1, 0xa5);
		CHECK_EQ(guest_do(&m.guest, GUEST_load1, LOW_GPA + RAM_LEN - 1), 0xa5);
		guest_call(&m.guest, GUEST_load8, 1ull << 32);
		CHECK_OK(guest_run_raw(&m.guest));
		CHECK_EQ(m.run->exit_reason, KVM_EXIT_MMIO);
		CHECK_EQ(m.run->mmio.phys_addr, 1ull << 32);
		CHECK_EQ(m.run->mmio.len, 8);
		CHECK(!m.run->mmio.is_write);
		guest_settle(&m.guest);
		machine_unmake(&m);
	}
}

/* Without interrupt controllers in the kernel the program sees it; user code may not. */
TEST(halt)
{
	struct machine m;

	machine_make(&m, GUEST_KERNEL, 0);
	guest_call(&m.guest, GUEST_hlt);
	CHECK_OK(guest_run_raw(&m.guest));
	CHECK_EQ(m.run->exit_reason, KVM_EXIT_HLT);
	CHECK_OK(guest_run_raw(&m.guest));
	CHECK(guest_finished(&m.guest));
	machine_unmake(&m);

	machine_make(&m, GUEST_USER, 0);
	guest_call(&m.guest, GUEST_hlt);
	CHECK_OK(guest_run_raw(&m.guest));
	CHECK(!guest_finished(&m.guest));
	CHECK_HAS(guest_what(&m.guest), "; exception 13, error 0x0, at ");
	machine_unmake(&m);
}

/* With them the thread sleeps in KVM_RUN, and is to be got out of it. */
TEST(halt_irqchip)
{
	for (int interrupts = 0; interrupts <= 1; interrupts++) {
		struct machine m;
		struct kicker k;
		siginfo_t info;

		machine_make(&m, GUEST_KERNEL, MACHINE_IRQCHIP | (interrupts ? MACHINE_IF : 0));
		machine_signals(&m);
		guest_call(&m.guest, GUEST_hlt);
		kicker_start(&k);
		/* The first kick may come before the instruction. */
		do {
			CHECK_EQ(guest_run_raw(&m.guest), -EINTR);
			take_bus(&info);
		} while (guest_rip(&m.guest) == guest_routine_gpa(&m.guest, GUEST_hlt));
		kicker_stop(&k);
		CHECK_EQ(guest_rip(&m.guest), guest_routine_gpa(&m.guest, GUEST_hlt) + 1);
		machine_unmake(&m);
	}
}

/* ---- more than one vCPU: each has a boot range and a struct guest of its own */

#define COUNT 2000ull

static void *count(void *arg)
{
	guest_do((struct guest *)arg, GUEST_hammer, RAM_GPA, COUNT);
	return NULL;
}

static void two_vcpus(enum guest_mode mode, int flags)
{
	const uint64_t boot_gpa = BOOT_GPA + (1ull << 20);
	unsigned char *boot = machine_map(GUEST_BOOT_LEN, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	struct guest second;
	struct kvm_run *r;
	struct machine m;
	pthread_t thread;
	int vcpu;

	machine_make(&m, mode, flags);
	CHECK_OK(gmem_kvm_slot_set(m.vm, 3, boot_gpa, GUEST_BOOT_LEN, boot, -1, 0));
	vcpu = (int)CHECK_OK(gmem_kvm_vcpu_create(m.vm, 1));
	r = machine_map(m.run_len, MAP_SHARED, vcpu);
	guest_init(&second, vcpu, r, boot, boot_gpa, mode, flags & MACHINE_IF);
	CHECK_EQ(pthread_create(&thread, NULL, count, &second), 0);
	count(&m.guest);
	CHECK_EQ(pthread_join(thread, NULL), 0);
	CHECK_EQ(ram_word(&m, 0), 2 * COUNT);
	munmap(r, m.run_len);
	close(vcpu);
	machine_unmake(&m);
	munmap(boot, GUEST_BOOT_LEN);
}

TEST(two_vcpus_count)
{
	two_vcpus(GUEST_USER, 0);
	two_vcpus(GUEST_USER, MACHINE_IRQCHIP | MACHINE_IF);
	two_vcpus(GUEST_KERNEL, 0);
	two_vcpus(GUEST_KERNEL, MACHINE_IRQCHIP | MACHINE_IF);
}
