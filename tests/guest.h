/* SPDX-License-Identifier: MIT */
/*
 * Real guest code on a vCPU of KVM: x86-64, long mode, guest-virtual is guest-physical. Routines of guest_code.h are
 * called by setting registers; who sets the slots and who calls KVM_RUN is up to the test:
 *
 *	guest_init(&g, vcpu_fd, run, boot, BOOT_GPA, GUEST_USER, true);
 *	guest_call(&g, GUEST_load8, gpa);
 *	... KVM_RUN until guest_finished(&g) ...
 *	value = guest_result(&g);
 *
 * On a KVM that has no hardware of its own, GUEST_USER runs on the processor and each instruction of GUEST_KERNEL, and
 * with it each access to memory, is emulated by KVM at about 2 us; elsewhere both run on the processor.
 *
 * Everything but the memory a routine is told to touch is in the boot range. A struct guest is used by one thread at a
 * time, and while nobody is in KVM_RUN; a CHECK fails if KVM refuses something.
 */
#ifndef GMEM_TESTS_GUEST_H
#define GMEM_TESTS_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sys/uapi.h"

#include "guest_code.h"

#define GUEST_BOOT_LEN (16 * 4096ull)
#define GUEST_MAPPED (8ull << 30) /* what the guest's tables map: the first addresses, writable, for user code too */

enum guest_mode {
	GUEST_USER, /* CPL 3, IOPL 3; ports below 256 are also allowed by the TSS */
	GUEST_KERNEL, /* CPL 0 */
};

#define GUEST_ROUTINE_NAME(name) GUEST_##name,
enum guest_routine { GUEST_ROUTINES(GUEST_ROUTINE_NAME) GUEST_ROUTINE_COUNT };

struct guest {
	int vcpu; /* borrowed, as are `run` and `boot` */
	struct kvm_run *run;
	unsigned char *boot;
	uint64_t boot_gpa;
	uint64_t code_gpa; /* of the page with the routines: the first of the boot range, or a copy a test makes */
	enum guest_mode mode;
	bool interrupts; /* IF is set while a routine runs; nothing here raises an interrupt */
	enum guest_routine routine; /* called last */
};

/*
 * `boot` is GUEST_BOOT_LEN bytes that a slot has at `boot_gpa`, which is page-aligned and below GUEST_MAPPED; it stays
 * the guest's until the vCPU is gone. Skips the case where the guest cannot be.
 */
void guest_init(struct guest *g, int vcpu, struct kvm_run *run, void *boot, uint64_t boot_gpa, enum guest_mode mode,
		bool interrupts);

/*
 * The next KVM_RUN begins `routine`, whatever the guest was at. An exit that left an instruction pending
 * (KVM_EXIT_MMIO) must have been completed: KVM would finish it in the middle of the routine. See guest_settle().
 */
#define guest_call(g, routine, ...) guest_call_args(g, routine, (const uint64_t[5]){ __VA_ARGS__ })
void guest_call_args(struct guest *g, enum guest_routine routine, const uint64_t args[5]);

/* KVM completes the instruction that is pending, if one is, and runs no other. */
void guest_settle(struct guest *g);

/* By what KVM_RUN left in `run` when it returned 0 last. */
bool guest_finished(const struct guest *g);

uint64_t guest_result(const struct guest *g);
uint64_t guest_rip(const struct guest *g);

/* Where a routine, or its hypercall instruction, is in the guest. */
uint64_t guest_routine_gpa(const struct guest *g, enum guest_routine routine);
uint64_t guest_hypercall_gpa(const struct guest *g, enum guest_routine routine);

/* Of a failure, in words: the exit, the registers, the exception if it was one. Valid until the next call. */
const char *guest_what(const struct guest *g);

/* Before the guest has been there: these 2 MiB of its addresses are others than they were. */
void guest_map(struct guest *g, uint64_t address, uint64_t gpa);

/* Where the exception was that ended the last routine. */
uint64_t guest_exception_rip(const struct guest *g);

/* KVM_RUN, again after an interruption that is no signal. 0, or -errno: -EINTR is for the caller to look into. */
int guest_run_raw(struct guest *g);

/* One routine from its beginning to its end, whatever signals come; fails the case if it does not end. Its result. */
#define guest_do(g, routine, ...) guest_do_args(g, routine, (const uint64_t[5]){ __VA_ARGS__ })
uint64_t guest_do_args(struct guest *g, enum guest_routine routine, const uint64_t args[5]);

/* What GUEST_fill writes into word `i`. */
static inline uint64_t guest_pattern(uint64_t seed, uint64_t i)
{
	return seed + i * GUEST_PATTERN_STEP;
}

#endif
