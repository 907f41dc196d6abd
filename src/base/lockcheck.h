/* SPDX-License-Identifier: MIT */
/*
 * The lock checker: knows which locks this thread holds and in which order locks may be taken.
 *
 * Enters: every acquire and release, and every place that is about to touch memory which could raise a userfault.
 * Leaves: nothing, or, on a violation, both stacks on standard error and a trap. Compiled in with GMEM_LOCKCHECK,
 * which every test build has. Its state is thread-local: no lock of its own.
 */
#ifndef GMEM_BASE_LOCKCHECK_H
#define GMEM_BASE_LOCKCHECK_H

/* Outermost first; a thread may only take a lock of a class greater than all it holds. */
enum gmem_lock_class {
	GMEM_LOCK_SLOTS = 5, /* gmem_vm.slots_lock */
	GMEM_LOCK_PAGER = 10, /* the pager's tables; never held while resolving */
	GMEM_LOCK_INVALIDATE = 20, /* gmem_file.invalidate_lock */
	GMEM_LOCK_PAGE = 30, /* the LOCKED bit of a page's state word */
	GMEM_LOCK_CLEARING = 35, /* gmem_mmu.clearing */
	GMEM_LOCK_MMU = 40, /* gmem_mmu.lock, and the sections in which faults map */
	GMEM_LOCK_VENDOR = 50, /* who keeps external tables: see mmu/external.h */
	GMEM_LOCK_LEAF = 90, /* held for a few instructions, nothing is taken under it */
};

#ifdef GMEM_LOCKCHECK
void gmem_lockcheck_acquire(enum gmem_lock_class cls, const void *lock);
void gmem_lockcheck_release(enum gmem_lock_class cls, const void *lock);

/* This thread must hold `lock`. */
void gmem_lockcheck_assert_held(enum gmem_lock_class cls, const void *lock);
/* This thread must hold a lock of that class, whichever. */
void gmem_lockcheck_assert_class(enum gmem_lock_class cls);

/*
 * Says: the next statement touches the caller's memory, which may block on a userfault whose service needs our locks.
 */
void gmem_might_fault(void);
#else
static inline void gmem_lockcheck_acquire(enum gmem_lock_class cls, const void *lock)
{
	(void)cls;
	(void)lock;
}
static inline void gmem_lockcheck_release(enum gmem_lock_class cls, const void *lock)
{
	(void)cls;
	(void)lock;
}
static inline void gmem_lockcheck_assert_held(enum gmem_lock_class cls, const void *lock)
{
	(void)cls;
	(void)lock;
}
static inline void gmem_lockcheck_assert_class(enum gmem_lock_class cls)
{
	(void)cls;
}
static inline void gmem_might_fault(void)
{
}
#endif

#endif
