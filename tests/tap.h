/* SPDX-License-Identifier: MIT */
/*
 * A small test header. One test program is one file of cases:
 *
 *	#include "tap.h"
 *
 *	TEST(punch_drops_bytes)
 *	{
 *		struct gmem_file *file;
 *
 *		if (access("/dev/kvm", R_OK | W_OK) < 0)
 *			SKIP("kvm", "/dev/kvm: %s", strerror(errno));
 *		CHECK_OK(gmem_file_create(1 << 20, NULL, &file));
 *		CHECK_ERR(gmem_file_punch(file, 1, 4096), -EINVAL);
 *		gmem_file_free(file);
 *	}
 *
 * There is no main() to write. Each case runs in a process of its own, in a process group of its own, with /dev/null
 * as stdin; what it prints becomes TAP comments. A case fails if a CHECK does, if it is killed, exits by itself, takes
 * longer than its time (TEST: 30 s, TEST_TIMEOUT(name, s): s), or leaves behind a file descriptor, a thread, a mapping
 * of a guest memory file, or a process. A CHECK may be used in a thread or a forked child of the case; it ends that
 * process with status 1.
 *
 *	test-x			run every case
 *	test-x CASE		run one case without forking and without a time limit, for gdb; a failed CHECK aborts
 *	test-x -f CASE...	run these, as in a full run
 *	test-x -l		list the cases
 *
 * GMEM_REQUIRE=kvm,uffd	a SKIP with one of these tags is a failure ("all": every SKIP)
 * GMEM_SEED=N			what tap_seed() returns instead of a random number
 * GMEM_TEST_TIMEOUT_FACTOR=N	multiplies every time limit
 *
 * A helper file linked into a test program defines TAP_NO_MAIN before it includes this header.
 */
#ifndef GMEM_TESTS_TAP_H
#define GMEM_TESTS_TAP_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "gmem.h"

struct tap_case {
	const char *name;
	void (*fn)(void);
	int line;
	unsigned int seconds;
	struct tap_case *next;
};

void tap_add(struct tap_case *c);
void tap_fail(const char *file, int line, const char *fmt, ...) __attribute__((format(printf, 3, 4), noreturn));
void tap_skip(const char *tag, const char *fmt, ...) __attribute__((format(printf, 2, 3), noreturn));

/* GMEM_SEED, or a random number; printed, so that the run can be repeated. */
uint64_t tap_seed(void);
/* True under a sanitizer or an emulator, where a case should do with less data and fewer rounds. */
bool tap_slow(void);
/* What stands between the test and the kernel ("qemu-user") and may not do all that a kernel does; NULL: nothing. */
const char *tap_emulator(void);
/* The next of a sequence of good random numbers (splitmix64); *state is the seed. */
uint64_t tap_rand(uint64_t *state);

#define TEST(name) TEST_TIMEOUT(name, 30)
#define TEST_TIMEOUT(name, s)                                                                                          \
	static void name(void);                                                                                        \
	static struct tap_case tap_case_##name = {#name, name, __LINE__, s, NULL};                                     \
	__attribute__((constructor)) static void tap_add_##name(void)                                                  \
	{                                                                                                              \
		tap_add(&tap_case_##name);                                                                             \
	}                                                                                                              \
	static void name(void)

/* What the machine lacks, as a tag GMEM_REQUIRE can name, and why. Ends the case. */
#define SKIP(tag, ...) tap_skip(tag, __VA_ARGS__)

#define FAIL(...) tap_fail(__FILE__, __LINE__, __VA_ARGS__)

#define CHECK(cond)                                                                                                    \
	do {                                                                                                           \
		if (!(cond))                                                                                           \
			FAIL("CHECK(%s)", #cond);                                                                      \
	} while (0)

/* Integers of any width and sign. */
#define CHECK_EQ(a, b)                                                                                                 \
	do {                                                                                                           \
		long long tap_a = (long long)(a), tap_b = (long long)(b);                                              \
		if (tap_a != tap_b)                                                                                    \
			FAIL("%s is %lld (0x%llx), not %s: %lld (0x%llx)", #a, tap_a, (unsigned long long)tap_a, #b,   \
			     tap_b, (unsigned long long)tap_b);                                                        \
	} while (0)

#define CHECK_STR(a, b)                                                                                                \
	do {                                                                                                           \
		const char *tap_a = (a), *tap_b = (b);                                                                 \
		if (!tap_a || !tap_b || strcmp(tap_a, tap_b))                                                          \
			FAIL("%s is \"%s\", not \"%s\"", #a, tap_a ? tap_a : "(null)", tap_b ? tap_b : "(null)");      \
	} while (0)

/* `a` contains `b`. */
#define CHECK_HAS(a, b)                                                                                                \
	do {                                                                                                           \
		const char *tap_a = (a), *tap_b = (b);                                                                 \
		if (!tap_a || !strstr(tap_a, tap_b))                                                                   \
			FAIL("%s is \"%s\": no \"%s\" in it", #a, tap_a ? tap_a : "(null)", tap_b);                    \
	} while (0)

#define CHECK_MEM(a, b, len)                                                                                           \
	do {                                                                                                           \
		const unsigned char *tap_a = (const void *)(a), *tap_b = (const void *)(b);                            \
		size_t tap_len = (len), tap_i = 0;                                                                     \
		if (memcmp(tap_a, tap_b, tap_len)) {                                                                   \
			while (tap_a[tap_i] == tap_b[tap_i])                                                           \
				tap_i++;                                                                               \
			FAIL("%s and %s differ at byte %zu: 0x%02x, 0x%02x", #a, #b, tap_i, tap_a[tap_i],              \
			     tap_b[tap_i]);                                                                            \
		}                                                                                                      \
	} while (0)

/* A call that answers 0 or more; its value is the value of the expression. */
#define CHECK_OK(call)                                                                                                 \
	({                                                                                                             \
		long long tap_r = (long long)(call);                                                                   \
		if (tap_r < 0)                                                                                         \
			FAIL("%s is %lld; last error \"%s\"; errno %s", #call, tap_r, gmem_last_error(),               \
			     strerror(errno));                                                                         \
		tap_r;                                                                                                 \
	})

/* A library call that fails with `err` and leaves a text. */
#define CHECK_ERR(call, err)                                                                                           \
	do {                                                                                                           \
		long long tap_r, tap_e = (err);                                                                        \
		gmem_err(0, "%s", "");                                                                                 \
		tap_r = (long long)(call);                                                                             \
		if (tap_r != tap_e)                                                                                    \
			FAIL("%s is %lld, not %s (%lld); last error \"%s\"", #call, tap_r, #err, tap_e,                \
			     gmem_last_error());                                                                       \
		if (!gmem_last_error()[0])                                                                             \
			FAIL("%s is %s as it should, but left no error text", #call, #err);                            \
	} while (0)

#ifndef TAP_NO_MAIN
#include "tap_main.h"
#endif

#endif
