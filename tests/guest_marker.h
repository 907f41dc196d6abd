/* SPDX-License-Identifier: MIT */
/* A machine one page of which can be marked in the mapping its slot has. */
#ifndef GMEM_TESTS_GUEST_MARKER_H
#define GMEM_TESTS_GUEST_MARKER_H

#include "guest_util.h"

#include "sys/call.h"
#include "sys/uffd.h"

#define SCRATCH RAM_GPA
#define PAGE 4ull /* that is marked */
#define TWIN 12ull /* the same bytes, never marked; the pages around both are equal, too */
#define SEED 0x8182838485868788ull

struct scene {
	struct machine m;
	int uffd;
};

/* The slot's mapping is registered; the file has all its bytes, and is written to and looked at by the other one. */
static inline void set_up(struct scene *s, enum guest_mode mode, int flags)
{
	bool user_mode_only;

	s->uffd = gmem_sys_uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
					     UFFD_FEATURE_POISON,
				     &user_mode_only);
	if (s->uffd < 0)
		SKIP("uffd", "no userfaultfd with page markers: %s", strerror(-s->uffd));
	machine_make(&s->m, mode, flags);
	machine_signals(&s->m);
	CHECK_OK(gmem_sys_uffd_register(s->uffd, (uintptr_t)s->m.ram, RAM_LEN, GMEM_SYS_UFFD_WP));
	for (uint64_t i = 0; i < RAM_LEN / 8; i++)
		ram_set_word(&s->m, i * 8, guest_pattern(SEED, i % (8 * PG / 8)));
}

static inline void tear_down(struct scene *s)
{
	machine_unmake(&s->m);
	close(s->uffd);
}

static inline void mark(struct scene *s)
{
	uint64_t done;

	CHECK_OK(gmem_sys_zap(s->m.ram + PAGE * PG, PG));
	CHECK_OK(gmem_sys_uffd_poison(s->uffd, (uintptr_t)s->m.ram + PAGE * PG, PG, true, &done));
}

static inline void unmark(struct scene *s)
{
	uint64_t done;

	CHECK_OK(gmem_sys_uffd_continue(s->uffd, (uintptr_t)s->m.ram + PAGE * PG, PG, &done));
	CHECK_EQ(done, PG);
}

/* KVM_RUN, which something other than a stray interruption ends. */
static inline int run(struct scene *s)
{
	int err;

	do
		err = guest_run_raw(&s->m.guest);
	while (err == -EINTR && !bus_pending());
	return err;
}

/* The guest met the marker on the processor. Nothing of the instruction is done. */
static inline void expect_bus(struct scene *s)
{
	siginfo_t info;

	CHECK_EQ(s->m.run->exit_reason, KVM_EXIT_INTR);
	CHECK(take_bus(&info));
	CHECK_EQ((uintptr_t)info.si_addr & -PG, (uintptr_t)s->m.ram + PAGE * PG);
	CHECK(info.si_code == BUS_MCEERR_AR || info.si_code == BUS_ADRERR);
	CHECK(!take_bus(&info));
}

#endif
