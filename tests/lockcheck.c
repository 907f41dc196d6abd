/* SPDX-License-Identifier: MIT */
#include "tap.h"

#include <fcntl.h>
#include <sys/wait.h>

#include "base/lockcheck.h"
#include "base/rwlock.h"
#include "dies_util.h"
#include "file/file.h"

#ifndef GMEM_LOCKCHECK
#define NEEDS_CHECKER() SKIP("lockcheck", "this build has no lock checker")
#else
#define NEEDS_CHECKER()
#endif

#define MARK "lock order violation"

static unsigned int lines_after(const char *text, const char *mark)
{
	const char *p = strstr(text, mark);
	unsigned int n = 0;

	if (!p)
		return 0;
	p = strchr(p, '\n');
	while (p && p[1] && (strchr(p + 1, '[') || strchr(p + 1, '('))) {
		if (!strncmp(p + 1, "while", 5))
			break;
		n++;
		p = strchr(p + 1, '\n');
	}
	return n;
}

static int a, b;

static void page_before_invalidate(void)
{
	gmem_lockcheck_acquire(GMEM_LOCK_PAGE, &a);
	gmem_lockcheck_acquire(GMEM_LOCK_INVALIDATE, &b);
}

static void two_of_a_class(void)
{
	gmem_lockcheck_acquire(GMEM_LOCK_INVALIDATE, &a);
	gmem_lockcheck_acquire(GMEM_LOCK_INVALIDATE, &b);
}

static void release_what_is_not_held(void)
{
	gmem_lockcheck_release(GMEM_LOCK_INVALIDATE, &a);
}

static void recursion(void)
{
	struct gmem_rwlock l;

	gmem_rwlock_init(&l, GMEM_LOCK_INVALIDATE);
	gmem_rwlock_lock_shared(&l);
	gmem_rwlock_lock_shared(&l);
}

static void recursion_exclusive(void)
{
	struct gmem_rwlock l;

	gmem_rwlock_init(&l, GMEM_LOCK_INVALIDATE);
	gmem_rwlock_lock(&l);
	gmem_rwlock_lock_shared(&l);
}

static void might_fault_inside(void)
{
	struct gmem_rwlock l;

	gmem_rwlock_init(&l, GMEM_LOCK_INVALIDATE);
	gmem_rwlock_lock_shared(&l);
	gmem_might_fault();
}

/* The real thing: a write into a file from a caller who holds the file's lock. */
static void write_under_the_lock(void)
{
	struct gmem_file *file;

	CHECK_OK(gmem_file_create(1 << 20, NULL, &file));
	gmem_rwlock_lock_shared(&file->invalidate_lock);
	gmem_file_write(file, 0, "x", 1);
}

TEST(violations_trap_and_print_both_stacks)
{
	static const struct {
		void (*fn)(void);
		const char *says;
		bool two;
	} cases[] = {
		{ page_before_invalidate, "taken out of order", true },
		{ two_of_a_class, "taken out of order", true },
		{ recursion, "taken twice", true },
		{ recursion_exclusive, "taken twice", true },
		{ might_fault_inside, "the caller's memory is touched", true },
		{ write_under_the_lock, "the caller's memory is touched", true },
		{ release_what_is_not_held, "released but not held", false },
	};
	static char text[32768];

	NEEDS_CHECKER();
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		dies(cases[i].fn, text, sizeof(text));
		CHECK_HAS(text, MARK);
		CHECK_HAS(text, cases[i].says);
		CHECK(lines_after(text, "here:\n") >= 2);
		if (cases[i].two) {
			CHECK_HAS(text, "taken here:\n");
			CHECK(lines_after(text, "taken here:\n") >= 2);
		}
	}
}

TEST(right_order_passes)
{
	NEEDS_CHECKER();
	gmem_might_fault();
	gmem_lockcheck_acquire(GMEM_LOCK_PAGER, &a);
	gmem_might_fault();
	gmem_lockcheck_acquire(GMEM_LOCK_INVALIDATE, &a);
	gmem_lockcheck_acquire(GMEM_LOCK_PAGE, &a);
	gmem_lockcheck_acquire(GMEM_LOCK_PAGE, &b);
	gmem_lockcheck_acquire(GMEM_LOCK_LEAF, &a);
	/* Any order of release. */
	gmem_lockcheck_release(GMEM_LOCK_INVALIDATE, &a);
	gmem_lockcheck_release(GMEM_LOCK_LEAF, &a);
	gmem_lockcheck_release(GMEM_LOCK_PAGE, &a);
	gmem_lockcheck_release(GMEM_LOCK_PAGE, &b);
	gmem_might_fault();
	gmem_lockcheck_release(GMEM_LOCK_PAGER, &a);
}
