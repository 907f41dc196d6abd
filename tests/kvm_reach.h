/* SPDX-License-Identifier: MIT */
/* What a guest on KVM could touch, and what its thread's signals are like: for tests that look behind the library. */
#ifndef GMEM_TESTS_KVM_REACH_H
#define GMEM_TESTS_KVM_REACH_H

#include <signal.h>

#include "kvm_scene.h"

#include "file/gate.h"
#include "sys/call.h"

static inline struct gmem_gate *gate_of(struct scene *s)
{
	struct gmem_gate *gate;

	gmem_vm_lock_slots(s->vm);
	gate = gmem_vm_slot(s->vm, GPA >> GMEM_PAGE_SHIFT)->gate;
	gmem_vm_unlock_slots(s->vm);
	CHECK(gate);
	return gate;
}

/* A guest's touch of the page would find it: it does not come out. */
static inline bool within_reach(struct gmem_gate *gate, uint64_t off)
{
	char byte;

	return gmem_sys_peek(&byte, gate->addr + off, 1) == 1;
}

static inline void set_file_word(struct gmem_file *file, uint64_t off, uint64_t w)
{
	CHECK_OK(gmem_file_write(file, off, &w, sizeof(w)));
}

static inline uint64_t file_word(struct gmem_file *file, uint64_t off)
{
	uint64_t w = 0;

	CHECK_OK(gmem_file_read(file, off, &w, sizeof(w)));
	return w;
}

/* ---- SIGBUS: no handler is to see it */

static int handled;

static inline void on_bus(int sig)
{
	(void)sig;
	handled++;
}

static inline void watch_bus(void)
{
	struct sigaction action = { .sa_handler = on_bus };

	handled = 0;
	CHECK_EQ(sigaction(SIGBUS, &action, NULL), 0);
}

static inline void check_signals(void)
{
	sigset_t mask, pending;

	pthread_sigmask(SIG_BLOCK, NULL, &mask);
	sigpending(&pending);
	CHECK(!sigismember(&mask, SIGBUS));
	CHECK(!sigismember(&pending, SIGBUS));
	CHECK_EQ(handled, 0);
}

#endif
