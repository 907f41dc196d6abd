/* SPDX-License-Identifier: MIT */
/* Touches of addresses at which anything may be: SIGBUS and SIGSEGV are answers. */
#ifndef GMEM_TESTS_VIEW_UTIL_H
#define GMEM_TESTS_VIEW_UTIL_H

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "convert_util.h"

#define BUS (-1)
#define SEGV (-2)

static inline void on_fault(int sig, siginfo_t *si, void *uc)
{
	(void)si;
	(void)uc;
	siglongjmp(bus_jmp, sig);
}

static inline void catch_faults(void)
{
	struct sigaction sa = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER };

	CHECK_EQ(sigaction(SIGBUS, &sa, NULL), 0);
	CHECK_EQ(sigaction(SIGSEGV, &sa, NULL), 0);
}

/* The byte there, BUS or SEGV. Any thread. */
static inline int look(const void *p)
{
	int sig = sigsetjmp(bus_jmp, 1);

	if (sig)
		return sig == SIGBUS ? BUS : SEGV;
	return __atomic_load_n((const unsigned char *)p, __ATOMIC_RELAXED);
}

/* 0, BUS or SEGV. */
static inline int put(void *p, int byte)
{
	int sig = sigsetjmp(bus_jmp, 1);

	if (sig)
		return sig == SIGBUS ? BUS : SEGV;
	__atomic_store_n((unsigned char *)p, (unsigned char)byte, __ATOMIC_RELAXED);
	return 0;
}

#endif
