/* SPDX-License-Identifier: MIT */
/* A machine, a file and an accessor. */
#ifndef GMEM_TESTS_VCPU_SCENE_H
#define GMEM_TESTS_VCPU_SCENE_H

#include "mmu_util.h"

struct scene {
	struct gmem_vm *vm;
	struct gmem_file *file;
	struct gmem_vcpu *vcpu;
	uint64_t bit; /* names the side */
	uint64_t shared; /* of an address: that bit, or none */
};

static inline void set_up_without_slots(struct scene *s, enum gmem_vm_type type, uint64_t len)
{
	s->vm = new_vm(type);
	s->file = make_file(len, 0);
	s->vcpu = new_vcpu(s->vm);
	s->bit = gmem_vm_alias_bit(s->vm);
	s->shared = type == GMEM_VM_TDX ? s->bit : 0;
}

/* All of the file from address 0 on. */
static inline void set_up_scene(struct scene *s, enum gmem_vm_type type, uint64_t len)
{
	set_up_without_slots(s, type, len);
	CHECK_OK(set_slot(s->vm, 0, 0, len, s->file, 0));
}

static inline void tear_down(struct scene *s)
{
	gmem_vcpu_free(s->vcpu);
	gmem_vm_free(s->vm);
	gmem_file_free(s->file);
}

#endif
