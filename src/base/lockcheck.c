/* SPDX-License-Identifier: MIT */
#include "base/lockcheck.h"

#include "gmem.h"

#ifdef GMEM_LOCKCHECK

#include <execinfo.h>
#include <string.h>
#include <unistd.h>

#define MAX_HELD 16
#define MAX_FRAMES 24

struct held {
	enum gmem_lock_class cls;
	const void *lock;
	void *frames[MAX_FRAMES];
	int nframes;
};

static _Thread_local struct held held[MAX_HELD];
static _Thread_local int nheld;
static _Thread_local uint64_t checks;

uint64_t gmem_lock_checks(void)
{
	return checks;
}

static void say(const char *s)
{
	ssize_t n = write(STDERR_FILENO, s, strlen(s));

	(void)n;
}

static const char *class_name(enum gmem_lock_class cls)
{
	switch (cls) {
	case GMEM_LOCK_SLOTS:
		return "slots";
	case GMEM_LOCK_PAGER:
		return "pager";
	case GMEM_LOCK_INVALIDATE:
		return "invalidate";
	case GMEM_LOCK_PAGE:
		return "page";
	case GMEM_LOCK_CLEARING:
		return "clearing";
	case GMEM_LOCK_MMU:
		return "mmu";
	case GMEM_LOCK_VENDOR:
		return "vendor";
	case GMEM_LOCK_LEAF:
		return "leaf";
	}
	return "?";
}

static _Noreturn void violation(const char *what, enum gmem_lock_class cls, const struct held *other)
{
	void *frames[MAX_FRAMES];

	say("gmem: lock order violation: ");
	say(what);
	if (cls) {
		say(" (");
		say(class_name(cls));
		say(" lock)");
	}
	say(", here:\n");
	backtrace_symbols_fd(frames, backtrace(frames, MAX_FRAMES), STDERR_FILENO);
	if (other) {
		say("while holding the ");
		say(class_name(other->cls));
		say(" lock, taken here:\n");
		backtrace_symbols_fd(other->frames, other->nframes, STDERR_FILENO);
	}
	__builtin_trap();
}

void gmem_lockcheck_acquire(enum gmem_lock_class cls, const void *lock)
{
	checks++;
	for (int i = 0; i < nheld; i++) {
		if (held[i].lock == lock && held[i].cls == cls)
			violation("taken twice", cls, &held[i]);
		/* Page locks are taken in runs, in ascending order and without waiting: any number at once. */
		if (held[i].cls > cls || (held[i].cls == cls && cls != GMEM_LOCK_PAGE))
			violation("taken out of order", cls, &held[i]);
	}
	if (nheld == MAX_HELD)
		violation("too many locks", cls, NULL);
	held[nheld].cls = cls;
	held[nheld].lock = lock;
	held[nheld].nframes = backtrace(held[nheld].frames, MAX_FRAMES);
	nheld++;
}

void gmem_lockcheck_release(enum gmem_lock_class cls, const void *lock)
{
	for (int i = nheld - 1; i >= 0; i--) {
		if (held[i].lock != lock || held[i].cls != cls)
			continue;
		memmove(&held[i], &held[i + 1], (size_t)(nheld - i - 1) * sizeof(held[0]));
		nheld--;
		return;
	}
	violation("released but not held", cls, NULL);
}

void gmem_lockcheck_assert_held(enum gmem_lock_class cls, const void *lock)
{
	for (int i = 0; i < nheld; i++)
		if (held[i].lock == lock && held[i].cls == cls)
			return;
	violation("not held", cls, NULL);
}

void gmem_lockcheck_assert_class(enum gmem_lock_class cls)
{
	for (int i = 0; i < nheld; i++)
		if (held[i].cls == cls)
			return;
	violation("none is held", cls, NULL);
}

void gmem_might_fault(void)
{
	checks++;
	for (int i = 0; i < nheld; i++)
		if (held[i].cls >= GMEM_LOCK_INVALIDATE)
			violation("the caller's memory is touched", 0, &held[i]);
}

#else

uint64_t gmem_lock_checks(void)
{
	return 0;
}

#endif
