/* SPDX-License-Identifier: MIT */
/* A marker met by the fetch of an instruction or by the walk of the guest's page tables, and what meeting one costs. */
#define TAP_NO_MAIN
#include "guest_marker.h"

static const char *const modes[] = { "user", "kernel" };

/* On the processor as any access; KVM's emulator gives up, at the instruction, which can be run again. */
TEST(code_in_a_marked_page)
{
	for (int mode = GUEST_USER; mode <= GUEST_KERNEL; mode++) {
		struct scene s;

		set_up(&s, mode, 0);
		memcpy(s.m.low + PAGE * PG, s.m.boot, PG);
		s.m.guest.code_gpa = RAM_GPA + PAGE * PG;
		mark(&s);
		guest_call(&s.m.guest, GUEST_load8, RAM_GPA);
		for (int i = 0; i < 2; i++) {
			if (run(&s) == -EINTR) {
				printf("%s code: EINTR with SIGBUS\n", modes[mode]);
				expect_bus(&s);
			} else {
				printf("%s code: %s\n", modes[mode], guest_what(&s.m.guest));
				CHECK_EQ(mode, GUEST_KERNEL);
				CHECK_EQ(s.m.run->exit_reason, KVM_EXIT_INTERNAL_ERROR);
				CHECK_EQ(s.m.run->internal.suberror, KVM_INTERNAL_ERROR_EMULATION);
			}
			CHECK_EQ(guest_rip(&s.m.guest), guest_routine_gpa(&s.m.guest, GUEST_load8));
		}
		unmark(&s);
		CHECK_OK(run(&s));
		CHECK(guest_finished(&s.m.guest));
		CHECK_EQ(guest_result(&s.m.guest), ram_word(&s.m, 0));
		tear_down(&s);
	}
}

/*
 * Where the processor walks the tables, as any access. Where KVM walks them for it, what it cannot read is an address
 * that is not mapped: the guest has an exception, and nobody else hears of it. Here it is the table that maps
 * everything, so that the exception has no handler either.
 */
TEST(tables_in_a_marked_page)
{
	for (int mode = GUEST_USER; mode <= GUEST_KERNEL; mode++) {
		struct scene s;

		set_up(&s, mode, 0);
		guest_init(&s.m.guest, s.m.vcpu, s.m.run, s.m.low, RAM_GPA, mode, false);
		mark(&s);
		guest_call(&s.m.guest, GUEST_load8, BOOT_GPA);
		if (run(&s) == -EINTR) {
			printf("%s code: EINTR with SIGBUS\n", modes[mode]);
			expect_bus(&s);
			unmark(&s);
			CHECK_OK(run(&s));
			CHECK(guest_finished(&s.m.guest));
		} else {
			printf("%s code: %s\n", modes[mode], guest_what(&s.m.guest));
			CHECK_EQ(s.m.run->exit_reason, KVM_EXIT_SHUTDOWN);
			CHECK(!bus_pending());
			unmark(&s);
			guest_do(&s.m.guest, GUEST_load8, BOOT_GPA);
		}
		CHECK_MEM(&(uint64_t){ guest_result(&s.m.guest) }, s.m.boot, 8);
		tear_down(&s);
	}
}

/* ---- what it costs */

static double now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

#define ROUNDS 400

/* From KVM_RUN to the end of the routine, in us. */
static double timed_load(struct scene *s, bool zap, bool marked)
{
	double start;

	if (marked)
		mark(s);
	else if (zap)
		CHECK_OK(gmem_sys_zap(s->m.ram + PAGE * PG, PG));
	guest_call(&s->m.guest, GUEST_load8, RAM_GPA + PAGE * PG);
	start = now_us();
	if (run(s) == -EINTR) {
		CHECK(marked);
		expect_bus(s);
		unmark(s);
		CHECK_OK(run(s));
	}
	start = now_us() - start;
	CHECK(guest_finished(&s->m.guest));
	CHECK_EQ(guest_result(&s->m.guest), ram_word(&s->m, PAGE * PG));
	return start;
}

/* A load of a page that is there; of one that is in the file alone; of a marked one. */
static void cost_of_loads(int flags)
{
	static const char *const what[] = { "present", "not mapped", "marker, UFFDIO_CONTINUE, run again" };
	static double us[ROUNDS];
	const unsigned int rounds = tap_slow() ? ROUNDS / 20 : ROUNDS;
	struct scene s;

	set_up(&s, GUEST_USER, flags);
	for (unsigned int kind = 0; kind < 3; kind++) {
		for (unsigned int i = 0; i < rounds; i++)
			us[i] = timed_load(&s, kind == 1, kind == 2);
		qsort(us, rounds, sizeof(us[0]), compare);
		printf("%s%s: median %.1f us, 10th %.1f, 90th %.1f\n", flags ? "irqchip, " : "", what[kind],
		       us[rounds / 2], us[rounds / 10], us[rounds * 9 / 10]);
	}
	tear_down(&s);
}

TEST_TIMEOUT(cost, 60)
{
	cost_of_loads(0);
	cost_of_loads(MACHINE_IRQCHIP | MACHINE_IF);
}
