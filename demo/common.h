/* SPDX-License-Identifier: MIT */
/* What the small demonstrations share: how a step fails, and a touch that survives SIGBUS. */
#ifndef DEMO_COMMON_H
#define DEMO_COMMON_H

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gmem.h"

#define PAGE ((uint64_t)GMEM_PAGE_SIZE)

/* Ends the program with status 1. */
static inline _Noreturn void demo_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static inline _Noreturn void demo_fail(const char *fmt, ...)
{
	va_list ap;

	printf("FAILED: ");
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
	exit(1);
}

/* A library call that must answer `expected`. */
static inline void demo_expect(const char *what, int64_t got, int64_t expected)
{
	if (got != expected)
		demo_fail("%s: %lld, not %lld: %s", what, (long long)got, (long long)expected, gmem_last_error());
}

static sigjmp_buf demo_bus;

static inline void demo_on_bus(int sig)
{
	siglongjmp(demo_bus, sig);
}

static inline void demo_catch_bus(void)
{
	struct sigaction sa = { .sa_handler = demo_on_bus, .sa_flags = SA_NODEFER };

	sigaction(SIGBUS, &sa, NULL);
}

/* 0: the byte could be read, else the signal that came instead. */
static inline int demo_touch(const void *p)
{
	int sig = sigsetjmp(demo_bus, 1);

	if (!sig)
		(void)*(const volatile char *)p;
	return sig;
}

#endif
