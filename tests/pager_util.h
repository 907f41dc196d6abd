/* SPDX-License-Identifier: MIT */
/* Checkable bytes and touches that survive SIGBUS: for tests of the pager and the keeper. */
#ifndef GMEM_TESTS_PAGER_UTIL_H
#define GMEM_TESTS_PAGER_UTIL_H

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include "tap.h"

#include "fault/wire.h"
#include "sys/uffd.h"

#define P 4096ull

/* Two builds of sanitizers and small machines: some cases scale by it. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SLOW_BUILD 1
#else
#define SLOW_BUILD 0
#endif

static inline void need_uffd(void)
{
	bool um;
	int fd = gmem_sys_uffd_open(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM, &um);

	if (fd < 0)
		SKIP("uffd", "no userfaultfd with minor faults on shared memory: %s", strerror(-fd));
	close(fd);
}

/* A view takes a descriptor with markers. */
static inline void need_markers(void)
{
	bool um;
	int fd = gmem_sys_uffd_open(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM |
					    UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
					    UFFD_FEATURE_POISON,
				    &um);

	if (fd < 0)
		SKIP("uffd", "no userfaultfd with page markers: %s", strerror(-fd));
	close(fd);
}

/* The word at `off` of memory number `id`; every eighth page of an image is zero. */
static inline uint64_t word_at(unsigned int id, uint64_t off)
{
	uint64_t z = off + (uint64_t)(id + 1) * 0x9e3779b97f4a7c15ull;

	if (off / P % 8 == 7)
		return 0;
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	return z ^ z >> 27;
}

static inline void fill_page(unsigned int id, uint64_t off, void *buf)
{
	uint64_t *w = buf;

	for (uint64_t i = 0; i < P / 8; i++)
		w[i] = word_at(id, off + i * 8);
}

/* True if the page in memory is the one of `off`. */
static inline bool page_is(unsigned int id, uint64_t off, const void *page)
{
	const uint64_t *w = page;

	for (uint64_t i = 0; i < P / 8; i++)
		if (__atomic_load_n(&w[i], __ATOMIC_RELAXED) != word_at(id, off + i * 8))
			return false;
	return true;
}

static inline bool page_is_zero(const void *page)
{
	const uint64_t *w = page;

	for (uint64_t i = 0; i < P / 8; i++)
		if (__atomic_load_n(&w[i], __ATOMIC_RELAXED))
			return false;
	return true;
}

static inline uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* A touch that may be SIGBUS. 0: read; SIGBUS otherwise. Any thread. */
static _Thread_local sigjmp_buf bus_jmp;
static _Thread_local void *volatile bus_addr;

static inline void on_bus(int sig, siginfo_t *si, void *uc)
{
	(void)uc;
	bus_addr = si->si_addr;
	siglongjmp(bus_jmp, sig);
}

static inline void catch_bus(void)
{
	struct sigaction sa = { .sa_sigaction = on_bus, .sa_flags = SA_SIGINFO | SA_NODEFER };

	CHECK_EQ(sigaction(SIGBUS, &sa, NULL), 0);
}

static inline int touch(const void *p)
{
	int sig = sigsetjmp(bus_jmp, 1);

	if (sig)
		return sig;
	(void)*(const volatile char *)p;
	return 0;
}

static inline pid_t wait_ok(pid_t pid)
{
	int status;

	CHECK_EQ(waitpid(pid, &status, 0), pid);
	if (status)
		FAIL("process %d ended with status 0x%x", (int)pid, status);
	return pid;
}

static inline void kill_and_wait(pid_t pid)
{
	int status;

	kill(pid, SIGKILL);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
}

#define WAIT_FOR(cond)                                                       \
	do {                                                                 \
		uint64_t end_ = now_ms() + (tap_slow() ? 160000 : 20000);    \
		while (!(cond)) {                                            \
			if (tap_shared && tap_shared->outcome == TAP_FAILED) \
				FAIL("stopped: another process has failed"); \
			if (now_ms() > end_)                                 \
				FAIL("waited too long for: %s", #cond);      \
			usleep(300);                                         \
		}                                                            \
	} while (0)

#endif
