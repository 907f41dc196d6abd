/* SPDX-License-Identifier: MIT */
/* An accessor, in a machine whose one slot is the file of a gmem_uffd's scene. */
#ifndef GMEM_TESTS_UFFD_EXIT_UTIL_H
#define GMEM_TESTS_UFFD_EXIT_UTIL_H

#include "uffd_util.h"

#define PAGES 64ull
#define GPA 0x40000000ull

struct guest {
	struct scene s;
	struct gmem_vm *vm;
	struct gmem_vcpu *vcpu;
	uint64_t alias; /* means private */
	uint64_t bitmap[PAGES / 64];
	pthread_t thread;
	_Atomic bool done;
	int err;
};

static inline void set_up_guest(struct guest *g, enum gmem_vm_type type, bool bitmap)
{
	struct gmem_vm_opts o = { .size = sizeof(o), .type = type };
	struct gmem_memslot slot = {
		.size = sizeof(slot),
		.gpa = GPA,
		.len = PAGES * P,
		.flags = bitmap ? GMEM_SLOT_USERFAULT : 0,
		.userfault_bitmap = bitmap ? g->bitmap : NULL,
	};

	memset(g, 0, sizeof(*g));
	g->s = set_up(PAGES * P, 0);
	memset(g->bitmap, bitmap ? 0xff : 0, sizeof(g->bitmap));
	CHECK_OK(gmem_vm_create(&o, &g->vm));
	g->alias = gmem_vm_alias_bit(g->vm);
	slot.file = g->s.file;
	CHECK_OK(gmem_vm_set_slot(g->vm, &slot));
	CHECK_OK(gmem_vcpu_create(g->vm, NULL, &g->vcpu));
}

static inline void tear_down_guest(struct guest *g)
{
	gmem_vcpu_free(g->vcpu);
	gmem_vm_free(g->vm);
	tear_down(&g->s);
}

static inline void clear_bit(struct guest *g, uint64_t page)
{
	__atomic_fetch_and(&g->bitmap[page / 64], ~(1ull << page % 64), __ATOMIC_RELEASE);
}

#endif
