/* SPDX-License-Identifier: MIT */
/* What gmem relies on of KVM when a guest touches a page whose mapping in the slot holds a marker. */
#define TAP_NO_MAIN
#include "guest_marker.h"

/* ---- each access once to a marked page, and once to its twin */

static const struct access {
	enum guest_routine routine;
	unsigned int addr; /* which of args is the address of the page, as an offset from it */
	uint64_t args[5];
	bool locked; /* a read, change and write in one */
} accesses[] = {
	{ GUEST_load1, 0, { 9 } },
	{ GUEST_load2, 0, { 10 } },
	{ GUEST_load4, 0, { 12 } },
	{ GUEST_load8, 0, { 16 } },
	{ GUEST_load8, 0, { 21 } },
	{ GUEST_load16, 0, { 32, SCRATCH } },
	{ GUEST_store1, 0, { 9, SEED } },
	{ GUEST_store2, 0, { 10, SEED } },
	{ GUEST_store4, 0, { 12, SEED } },
	{ GUEST_store8, 0, { 16, SEED } },
	{ GUEST_store8, 0, { 21, SEED } },
	{ GUEST_store16, 0, { 32, SCRATCH + 64 } },
	/* Half of it in the page before, and in the page behind. */
	{ GUEST_load8, 0, { -3ull } },
	{ GUEST_load8, 0, { PG - 3 } },
	{ GUEST_store8, 0, { -3ull, SEED } },
	{ GUEST_store8, 0, { PG - 3, SEED } },
	{ GUEST_cmpxchg8, 0, { 64, SEED + (PAGE * PG + 64) / 8 * GUEST_PATTERN_STEP, 6 }, true },
	{ GUEST_cmpxchg8, 0, { 64, 5, 7 }, true },
	{ GUEST_hammer, 0, { 64, 3 }, true },
	{ GUEST_copy, 0, { 100, SCRATCH + 64, 40 } },
	{ GUEST_copy, 0, { -20ull, SCRATCH + 64, 40 } },
	{ GUEST_copy, 1, { SCRATCH + 64, PG - 20, 40 } },
	{ GUEST_copy8, 1, { SCRATCH + 64, PG - 24, 48 } },
	{ GUEST_sum, 0, { 0, 16, 256 } },
	{ GUEST_touch, 0, { 8, 16, 256, SEED } },
	{ GUEST_fill, 0, { PG - 64, 16, SEED } },
};
#define ACCESSES (sizeof(accesses) / sizeof(accesses[0]))

static void begin(struct scene *s, const struct access *a, uint64_t page)
{
	uint64_t args[5];

	memcpy(args, a->args, sizeof(args));
	args[a->addr] += RAM_GPA + page * PG;
	guest_call_args(&s->m.guest, a->routine, args);
}

/* What it is to end with: the result, and the twin's bytes with those of the pages around it. */
static uint64_t on_the_twin(struct scene *s, const struct access *a, unsigned char scratch[PG])
{
	unsigned char before[PG];

	memcpy(before, s->m.low, PG);
	begin(s, a, TWIN);
	CHECK_EQ(run(s), 0);
	CHECK(guest_finished(&s->m.guest));
	memcpy(scratch, s->m.low, PG);
	memcpy(s->m.low, before, PG);
	return guest_result(&s->m.guest);
}

static void check_as_twin(struct scene *s, uint64_t result, const unsigned char scratch[PG])
{
	const unsigned char *low = s->m.low;

	CHECK_EQ(guest_result(&s->m.guest), result);
	CHECK_MEM(low + (PAGE - 1) * PG, low + (TWIN - 1) * PG, 3 * PG);
	CHECK_MEM(low, scratch, PG);
}

/* However often it is run again, it is at the marker until that is gone. */
static void user_access(struct scene *s, const struct access *a)
{
	unsigned char scratch[PG], before[PG];
	uint64_t result;

	result = on_the_twin(s, a, scratch);
	memcpy(before, s->m.low + PAGE * PG, PG);
	mark(s);
	begin(s, a, PAGE);
	for (int i = 0; i < 3; i++) {
		CHECK_EQ(run(s), -EINTR);
		expect_bus(s);
		CHECK_MEM(s->m.low + PAGE * PG, before, PG);
	}
	unmark(s);
	CHECK_EQ(run(s), 0);
	CHECK(guest_finished(&s->m.guest));
	check_as_twin(s, result, scratch);
}

static void user_accesses(int flags)
{
	struct scene s;

	set_up(&s, GUEST_USER, flags);
	for (unsigned int i = 0; i < ACCESSES; i++)
		user_access(&s, &accesses[i]);
	tear_down(&s);
}

TEST(user_code_at_a_marker)
{
	user_accesses(0);
	user_accesses(MACHINE_IF);
}

TEST(user_code_at_a_marker_irqchip)
{
	user_accesses(MACHINE_IRQCHIP);
	user_accesses(MACHINE_IRQCHIP | MACHINE_IF);
}

/* ---- kernel mode: on the processor as user code, or KVM's emulator, which has an exit of its own */

/* What the exit asks for, done by the program on the file's bytes. */
static void serve_mmio(struct scene *s)
{
	struct kvm_run *r = s->m.run;
	unsigned char *at = s->m.low + (r->mmio.phys_addr - RAM_GPA);

	CHECK(r->mmio.len && r->mmio.len <= 8);
	CHECK(r->mmio.phys_addr >= RAM_GPA + PAGE * PG);
	CHECK(r->mmio.phys_addr + r->mmio.len <= RAM_GPA + (PAGE + 1) * PG);
	if (r->mmio.is_write)
		memcpy(at, r->mmio.data, r->mmio.len);
	else
		memcpy(r->mmio.data, at, r->mmio.len);
}

/*
 * The marker stays as long as the guest can do without the page. An instruction that reads, changes and writes under a
 * lock gets what it reads from the exit, and then KVM fails at the write: it needs the page, and begins anew. But if
 * nobody has asked for the registers at the exit, asking after the failure makes half of the instruction true.
 */
static unsigned int kernel_access(struct scene *s, const struct access *a)
{
	unsigned char scratch[PG];
	uint64_t result = on_the_twin(s, a, scratch);
	unsigned int exits = 0, failures = 0;
	int err;

	mark(s);
	begin(s, a, PAGE);
	while (!(err = run(s)) && !guest_finished(&s->m.guest)) {
		if (s->m.run->exit_reason == KVM_EXIT_INTERNAL_ERROR) {
			CHECK(a->locked);
			CHECK_EQ(s->m.run->internal.suberror, KVM_INTERNAL_ERROR_EMULATION);
			CHECK_EQ(guest_rip(&s->m.guest) - guest_routine_gpa(&s->m.guest, a->routine),
				 a->routine == GUEST_cmpxchg8 ? 3 : 0);
			CHECK_EQ(failures++, 0);
			unmark(s);
			continue;
		}
		if (s->m.run->exit_reason != KVM_EXIT_MMIO)
			FAIL("%s", guest_what(&s->m.guest));
		(void)guest_rip(&s->m.guest);
		serve_mmio(s);
		exits++;
	}
	if (err == -EINTR) {
		CHECK_EQ(exits, 0);
		expect_bus(s);
		unmark(s);
		CHECK_EQ(run(s), 0);
	} else {
		CHECK_EQ(err, 0);
		CHECK_EQ(failures, a->locked);
		CHECK(exits);
	}
	CHECK(guest_finished(&s->m.guest));
	check_as_twin(s, result, scratch);
	return exits;
}

static void kernel_accesses(int flags)
{
	struct scene s;
	unsigned int exits = 0;

	set_up(&s, GUEST_KERNEL, flags);
	for (unsigned int i = 0; i < ACCESSES; i++)
		exits += kernel_access(&s, &accesses[i]);
	printf("%zu accesses of kernel code: %u exits KVM_EXIT_MMIO%s\n", ACCESSES, exits,
	       exits ? "" : "; EINTR with SIGBUS instead");
	tear_down(&s);
}

TEST(kernel_code_at_a_marker)
{
	kernel_accesses(0);
	kernel_accesses(MACHINE_IF);
}

TEST(kernel_code_at_a_marker_irqchip)
{
	kernel_accesses(MACHINE_IRQCHIP);
	kernel_accesses(MACHINE_IRQCHIP | MACHINE_IF);
}

/* The first exit is KVM's emulator's: the page is marked. */
static void begin_emulated(struct scene *s, enum guest_routine routine, uint64_t addr, uint64_t arg)
{
	mark(s);
	guest_call(&s->m.guest, routine, addr, arg);
	if (run(s) == -EINTR)
		SKIP("kvm", "kernel-mode guest code runs on the processor here");
	CHECK_EQ(s->m.run->exit_reason, KVM_EXIT_MMIO);
}

static void check_mmio(const struct scene *s, uint64_t gpa, uint32_t len, bool is_write)
{
	const struct kvm_run *r = s->m.run;

	CHECK_EQ(r->exit_reason, KVM_EXIT_MMIO);
	CHECK_EQ(r->mmio.phys_addr, gpa);
	CHECK_EQ(r->mmio.len, len);
	CHECK_EQ(r->mmio.is_write, is_write);
}

/* A load has what is in the exit when it is run again: also if nobody put anything there, and the page has come. */
TEST(kernel_load_is_what_the_exit_holds)
{
	const uint64_t gpa = RAM_GPA + PAGE * PG, data[] = { 0x1020304050607080, 0x90a0b0c0d0e0f001 };
	struct scene s;
	uint64_t stale;

	set_up(&s, GUEST_KERNEL, 0);
	begin_emulated(&s, GUEST_load8, gpa + 8, 0);
	check_mmio(&s, gpa + 8, 8, false);
	CHECK_EQ(guest_rip(&s.m.guest), guest_routine_gpa(&s.m.guest, GUEST_load8));
	memcpy(s.m.run->mmio.data, &data[0], 8);
	CHECK_OK(run(&s));
	CHECK(guest_finished(&s.m.guest));
	CHECK_EQ(guest_result(&s.m.guest), data[0]);

	/* In two parts, the higher one by the second exit. */
	begin_emulated(&s, GUEST_load16, gpa + 16, SCRATCH);
	for (unsigned int i = 0; i < 2; i++) {
		check_mmio(&s, gpa + 16 + i * 8, 8, false);
		memcpy(s.m.run->mmio.data, &data[i], 8);
		CHECK_OK(run(&s));
	}
	CHECK(guest_finished(&s.m.guest));
	CHECK_MEM(s.m.low, data, 16);

	begin_emulated(&s, GUEST_load8, gpa + 8, 0);
	memcpy(&stale, s.m.run->mmio.data, 8);
	CHECK(stale != ram_word(&s.m, PAGE * PG + 8));
	unmark(&s);
	CHECK_OK(run(&s));
	CHECK(guest_finished(&s.m.guest));
	CHECK_EQ(guest_result(&s.m.guest), stale);
	tear_down(&s);
}

/* A store is over for the guest when it is an exit: to write the bytes is all the program's. */
TEST(kernel_store_is_the_programs)
{
	const uint64_t gpa = RAM_GPA + PAGE * PG, next = 3 /* bytes of the instruction */;
	unsigned char before[PG];
	struct scene s;

	set_up(&s, GUEST_KERNEL, 0);
	memcpy(before, s.m.low + PAGE * PG, PG);
	begin_emulated(&s, GUEST_store8, gpa + 8, SEED);
	check_mmio(&s, gpa + 8, 8, true);
	CHECK_MEM(s.m.run->mmio.data, &(uint64_t){ SEED }, 8);
	CHECK_EQ(guest_rip(&s.m.guest), guest_routine_gpa(&s.m.guest, GUEST_store8) + next);
	unmark(&s);
	CHECK_OK(run(&s));
	CHECK(guest_finished(&s.m.guest));
	CHECK_MEM(s.m.low + PAGE * PG, before, PG);

	begin_emulated(&s, GUEST_store16, gpa + 16, SCRATCH);
	for (unsigned int i = 0; i < 2; i++) {
		check_mmio(&s, gpa + 16 + i * 8, 8, true);
		CHECK_MEM(s.m.run->mmio.data, s.m.low + i * 8, 8);
		CHECK_OK(run(&s));
	}
	CHECK(guest_finished(&s.m.guest));
	CHECK_MEM(s.m.low + PAGE * PG, before, PG);
	tear_down(&s);
}

/* Of a store over the end of a page the part in the page that is there is done before the exit, whichever it is. */
TEST(kernel_store_across_the_edge)
{
	const uint64_t gpa = RAM_GPA + PAGE * PG, value = SEED;
	struct scene s;

	set_up(&s, GUEST_KERNEL, 0);
	begin_emulated(&s, GUEST_store8, gpa - 3, value);
	check_mmio(&s, gpa, 5, true);
	CHECK_MEM(s.m.run->mmio.data, (const char *)&value + 3, 5);
	CHECK_MEM(s.m.low + PAGE * PG - 3, &value, 3);
	guest_settle(&s.m.guest);
	begin_emulated(&s, GUEST_store8, gpa + PG - 3, value);
	check_mmio(&s, gpa + PG - 3, 3, true);
	CHECK_MEM(s.m.run->mmio.data, &value, 3);
	CHECK_MEM(s.m.low + (PAGE + 1) * PG, (const char *)&value + 3, 5);
	guest_settle(&s.m.guest);
	tear_down(&s);
}

/* Given the page before it is completed, an instruction under a lock does not fail. */
TEST(kernel_locked_access_with_the_page)
{
	const uint64_t off = PAGE * PG + 64, old = 5;
	struct scene s;

	set_up(&s, GUEST_KERNEL, 0);
	ram_set_word(&s.m, off, old);
	begin_emulated(&s, GUEST_hammer, RAM_GPA + off, 1);
	check_mmio(&s, RAM_GPA + off, 8, false);
	unmark(&s);
	memcpy(s.m.run->mmio.data, &old, 8);
	CHECK_OK(run(&s));
	CHECK(guest_finished(&s.m.guest));
	CHECK_EQ(ram_word(&s.m, off), old + 1);
	tear_down(&s);
}
