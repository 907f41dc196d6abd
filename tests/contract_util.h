/* SPDX-License-Identifier: MIT */
/*
 * The contract of a guest memory file: each case is run on the user engine and on the kernel's, and says once what both
 * have to answer.
 *
 *	CONTRACT(punch_drops_bytes, 4, 0)
 *	{
 *		CHECK_OK(gmem_file_punch(c->file, 0, P));
 *	}
 *
 * `c->file` has 4 pages and the flags 0; it is freed afterwards, unless the case has done so and set it to NULL. 0
 * pages: no file is made.
 */
#ifndef GMEM_TESTS_CONTRACT_UTIL_H
#define GMEM_TESTS_CONTRACT_UTIL_H

#include "tap.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "sys/kvm.h"
#include "sys/uapi.h"

#define P 4096ull
#define RW (PROT_READ | PROT_WRITE)
#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

struct contract {
	enum gmem_engine engine;
	uint64_t len;
	struct gmem_file *file;
};

/* A difference that gmem_file(3) lists: what each of the engines answers. */
#define BY_ENGINE(c, user, kernel) ((c)->engine == GMEM_ENGINE_USER ? (user) : (kernel))

#define CONTRACT(name, npages, flags)                                                                      \
	static void name(struct contract *c);                                                              \
	static void name##_user(void)                                                                      \
	{                                                                                                  \
		contract_run(GMEM_ENGINE_USER, npages, flags, name);                                       \
	}                                                                                                  \
	static void name##_kernel(void)                                                                    \
	{                                                                                                  \
		contract_run(GMEM_ENGINE_KERNEL, npages, flags, name);                                     \
	}                                                                                                  \
	static struct tap_case tap_user_##name = { #name ".user", name##_user, __LINE__, 30, NULL };       \
	static struct tap_case tap_kernel_##name = { #name ".kernel", name##_kernel, __LINE__, 30, NULL }; \
	__attribute__((constructor)) static void contract_add_##name(void)                                 \
	{                                                                                                  \
		tap_add(&tap_user_##name);                                                                 \
		tap_add(&tap_kernel_##name);                                                               \
	}                                                                                                  \
	static void name(struct contract *c)

static inline int contract_create(const struct contract *c, uint64_t len, uint32_t flags, struct gmem_file **ret)
{
	struct gmem_file_opts opts = { .size = sizeof(opts), .engine = c->engine, .flags = flags };

	return gmem_file_create(len, &opts, ret);
}

static inline void contract_run(enum gmem_engine engine, uint64_t npages, uint32_t flags, void (*fn)(struct contract *))
{
	struct contract c = { .engine = engine, .len = npages * P };
	uint64_t len = npages ? c.len : P;
	int err = contract_create(&c, len, flags, &c.file);

	/* The kernel's is there or it is not; what it answers else is the case's to see. */
	if (err && engine == GMEM_ENGINE_KERNEL)
		SKIP("kvm", "%s", gmem_last_error());
	CHECK_EQ(err, 0);
	if (!npages) {
		gmem_file_free(c.file);
		c.file = NULL;
	}
	fn(&c);
	gmem_file_free(c.file);
}

static inline struct gmem_view *map(const struct contract *c, uint64_t off, uint64_t len, int prot)
{
	struct gmem_view *view;

	CHECK_OK(gmem_view_map(c->file, off, len, prot, &view));
	return view;
}

static inline char *at(const struct gmem_view *view, uint64_t off)
{
	return (char *)gmem_view_addr(view) + off;
}

static inline bool is_filled(const char *p, int byte, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++)
		if (p[i] != (char)byte)
			return false;
	return true;
}

static sigjmp_buf touch_jmp;
static void *touch_addr;

static inline void on_touch(int sig, siginfo_t *info, void *context)
{
	(void)context;
	touch_addr = info->si_addr;
	siglongjmp(touch_jmp, sig);
}

/* The signal that a load, or a store, of the byte ends in; 0: none. */
static inline int touch(volatile char *p, bool store)
{
	struct sigaction sa = { .sa_sigaction = on_touch, .sa_flags = SA_SIGINFO | SA_NODEFER };
	int sig;

	sigaction(SIGBUS, &sa, NULL);
	sigaction(SIGSEGV, &sa, NULL);
	sig = sigsetjmp(touch_jmp, 1);
	if (!sig) {
		if (store)
			*p = 'x';
		else
			(void)*p;
	} else {
		CHECK(touch_addr == p);
	}
	signal(SIGBUS, SIG_DFL);
	signal(SIGSEGV, SIG_DFL);
	return sig;
}

static inline int load(char *p)
{
	return touch(p, false);
}

static inline int store(char *p)
{
	return touch(p, true);
}

/* The status a child ends with, which fn() returns. */
static inline int in_child(int (*fn)(struct contract *c, void *arg), struct contract *c, void *arg)
{
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid)
		_exit(fn(c, arg));
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK(WIFEXITED(status));
	return WEXITSTATUS(status);
}

#endif
