/* SPDX-License-Identifier: MIT */
/*
 * Small guest programs that end the same whoever runs them: an accessor, or a guest on KVM in user mode or in kernel
 * mode, each on the user engine, with small pages and, on KVM, in a huge one, and on the kernel's. A program is a row
 * of steps, of the guest and of the host:
 *
 *	PROGRAM(freed, BOTH_TYPES, EVERYONE,
 *		{ WRITE, P(1), .value = 5 },
 *		{ FREE_FILE },
 *		{ LOAD, P(1), .n = 8, .want = 6, .exits = { FAULT(P(1), DELETE, 0), DEVICE_LOAD(P(1), 8, 6) } })
 *
 * It is a case for each who runs it ("freed.user_mode"), in which the accessor on the user engine runs it first. Every
 * value and every exit must be what the row says, and what the accessor saw. What ends an access that a device is to
 * answer is -EFAULT of an accessor and 0 of gmem_vcpu_run(); it is told as 0 here. Other differences between the two
 * have a name in the row, which is printed.
 *
 * Places are offsets from GPA, and of the file: it has PAGES pages, half of them in slot 0 and half in slot 1; then
 * nothing has them, but for the caller's memory from HVA on (slot 2), and from HVA_READONLY on (slot 3), and for two
 * memories of HVA_PAGES from TWO on (slot 5): a file of the user engine, and the caller's where a page is shared.
 */
#ifndef GMEM_TESTS_PROGRAMS_H
#define GMEM_TESTS_PROGRAMS_H

#include "kvm_scene.h"

#define P(page) ((page)*PG)
#define PAGES 16ull
#define DEVICE P(20)
#define HVA P(32)
#define HVA_READONLY P(40)
#define HVA_PAGES 4ull
#define TWO P(48)
#define TWO_FILE P(56) /* for the host's eyes: what the file of TWO has where its pages are private */
#define EXITS 8

enum op {
	NOTHING,
	/* The guest's. */
	LOAD, /* n bytes: the value */
	STORE, /* n bytes of `value` */
	CMPXCHG, /* 8 bytes, from `with` to `value`: what was there */
	COPY, /* n bytes, from `with` */
	MOVE16, /* 16 bytes from `with`, by one load and one store */
	FILL, /* n words of the pattern, of `value`: n */
	TOUCH, /* n words, one a page, become value, value + 1, ...: n */
	SUM, /* of n words, one a page */
	HYPERCALL, /* KVM_HC_MAP_GPA_RANGE of n pages: the answer */
	/* The host's; `refused` is what it is answered. */
	WRITE, /* a word */
	READ, /* a word: it */
	PRIVATE, /* n pages */
	SHARED,
	PUNCH,
	POISON,
	FREE_FILE,
	DELETE, /* slot n */
	SET, /* slot n as it was */
	SUPPLY, /* n pages: who touches them first has them brought in */
	SUPPLIED, /* how many pages have been */
	END_SUPPLY,
	HIDE, /* n pages of the caller's memory: nobody may touch them */
	SHOW,
	/* At an exit alone. */
	ANSWER, /* with n */
	GIVE_UP, /* the guest's step is over */
};

/* An exit, and what whoever runs the guest does about it: with the page there, or with slot, or answer, n. */
struct met {
	int err;
	enum gmem_exit_reason reason;
	uint64_t at, len, flags, data;
};

struct stop {
	struct met met;
	enum op act;
	uint64_t n;
};

#define FAULT_AS(err, page, flags, act, n)                                  \
	{                                                                   \
		{ err, GMEM_EXIT_MEMORY_FAULT, page, PG, flags, 0 }, act, n \
	}
#define FAULT(page, act, n) FAULT_AS(-EFAULT, page, 0, act, n)
#define LOST(page) FAULT_AS(-EHWPOISON, page, 0, PUNCH, 1)
#define LOST_PRIVATE(page) FAULT_AS(-EHWPOISON, page, GMEM_EXIT_FLAG_PRIVATE, PUNCH, 1)
/* No exit: what the call answers. */
#define FAILS(err, page, act)                                  \
	{                                                      \
		{ err, GMEM_EXIT_NONE, page, 0, 0, 0 }, act, 1 \
	}
/* A memory fault, or, where KVM meets the page by itself, nothing but the number. */
#define FAULT_OR_NONE ((enum gmem_exit_reason)1000)
#define FAULT_OR_FAILS(page, act)                                  \
	{                                                          \
		{ -EFAULT, FAULT_OR_NONE, page, PG, 0, 0 }, act, 1 \
	}
#define DEVICE_LOAD(at, len, value)                                 \
	{                                                           \
		{ 0, GMEM_EXIT_MMIO, at, len, 0, 0 }, ANSWER, value \
	}
#define DEVICE_STORE(at, len, value)                                                   \
	{                                                                              \
		{ 0, GMEM_EXIT_MMIO, at, len, GMEM_EXIT_FLAG_WRITE, value }, ANSWER, 0 \
	}
#define ASKED(npages, value)                                                                      \
	{                                                                                         \
		{ 0, GMEM_EXIT_HYPERCALL, P(1), npages, 0, GMEM_HC_MAP_GPA_RANGE }, ANSWER, value \
	}

struct step {
	enum op op;
	uint64_t at, with, n, value;
	uint64_t want;
	int refused;
	struct stop exits[EXITS];
	/* Where guests on KVM have other exits: why, and theirs. */
	const char *differs;
	struct stop kvm[EXITS];
	uint64_t kvm_want; /* 0: as `want` */
};

#define BOTH_TYPES (1u << GMEM_VM_DEFAULT | 1u << GMEM_VM_SW_PROTECTED)
#define DEFAULT_TYPE (1u << GMEM_VM_DEFAULT)
#define PROTECTED_TYPE (1u << GMEM_VM_SW_PROTECTED)

/* By number, in the order of ways_to_run[]. */
enum {
	ACCESSOR,
	USER_MODE,
	KERNEL_MODE,
	ACCESSOR_KERNEL_ENGINE,
	USER_MODE_KERNEL_ENGINE,
	KERNEL_MODE_KERNEL_ENGINE,
	USER_MODE_HUGE_PAGE,
	KERNEL_MODE_HUGE_PAGE,
};
/* Alone where pages are converted, or brought in: gmem_file(3) says so of the kernel's. */
#define USER_ENGINE (1u << ACCESSOR | 1u << USER_MODE | 1u << KERNEL_MODE)
#define KVM_ON_KERNEL_ENGINE (1u << USER_MODE_KERNEL_ENGINE | 1u << KERNEL_MODE_KERNEL_ENGINE)
/* The file is one huge page: nothing is converted there, or lost, or brought in, by less. */
#define KVM_ON_HUGE_PAGE (1u << USER_MODE_HUGE_PAGE | 1u << KERNEL_MODE_HUGE_PAGE)
#define EVERYONE (USER_ENGINE | 1u << ACCESSOR_KERNEL_ENGINE | KVM_ON_KERNEL_ENGINE | KVM_ON_HUGE_PAGE)

struct program {
	unsigned int types, ways;
	const struct step *steps;
	size_t nsteps;
};

void program_run(const struct program *p, unsigned int way);

#define PROGRAM_CASE(name, way, WAY)                                                                      \
	static void name##_##way(void)                                                                    \
	{                                                                                                 \
		program_run(&program_##name, WAY);                                                        \
	}                                                                                                 \
	static struct tap_case tap_##way##_##name = { #name "." #way, name##_##way, __LINE__, 60, NULL }; \
	__attribute__((constructor)) static void add_##way##_##name(void)                                 \
	{                                                                                                 \
		if (program_##name.ways & 1u << (WAY))                                                    \
			tap_add(&tap_##way##_##name);                                                     \
	}

#define PROGRAM(name, types, ways, ...)                                                                  \
	static const struct step steps_##name[] = { __VA_ARGS__ };                                       \
	static const struct program program_##name = { types, ways, steps_##name,                        \
						       sizeof(steps_##name) / sizeof(steps_##name[0]) }; \
	PROGRAM_CASE(name, accessor, ACCESSOR)                                                           \
	PROGRAM_CASE(name, user_mode, USER_MODE)                                                         \
	PROGRAM_CASE(name, kernel_mode, KERNEL_MODE)                                                     \
	PROGRAM_CASE(name, accessor_kernel_engine, ACCESSOR_KERNEL_ENGINE)                               \
	PROGRAM_CASE(name, user_mode_kernel_engine, USER_MODE_KERNEL_ENGINE)                             \
	PROGRAM_CASE(name, kernel_mode_kernel_engine, KERNEL_MODE_KERNEL_ENGINE)                         \
	PROGRAM_CASE(name, user_mode_huge_page, USER_MODE_HUGE_PAGE)                                     \
	PROGRAM_CASE(name, kernel_mode_huge_page, KERNEL_MODE_HUGE_PAGE)

#endif
