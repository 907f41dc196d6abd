/* SPDX-License-Identifier: MIT */
/* A guest on KVM whose hypercalls are exits: its code is in memory that the library knows. */
#ifndef GMEM_TESTS_VCPU_KVM_HYPERCALL_H
#define GMEM_TESTS_VCPU_KVM_HYPERCALL_H

#include "kvm_scene.h"

#include "vm/kvm_vcpu.h"

#define NR GMEM_HC_MAP_GPA_RANGE
#define PRIVATE GMEM_MAP_GPA_RANGE_ENCRYPTED
#define CODE (32 * PG) /* in the file; what follows it is free */

static const struct scene_opts hc_ways[] = {
	{ .type = GMEM_VM_DEFAULT, .mode = GUEST_KERNEL, .vm_flags = GMEM_VM_HYPERCALLS },
	{ .type = GMEM_VM_DEFAULT,
	  .mode = GUEST_KERNEL,
	  .irqchip = true,
	  .interrupts = true,
	  .vm_flags = GMEM_VM_HYPERCALLS },
	{ .type = GMEM_VM_SW_PROTECTED, .mode = GUEST_KERNEL, .irqchip = true, .vm_flags = GMEM_VM_HYPERCALLS },
};

/* The routines at that offset of the file. */
static inline void put_code(struct scene *s, struct guest *g, uint64_t off)
{
	CHECK_OK(gmem_file_write(s->file, off, s->boot, PG));
	g->code_gpa = GPA + off;
}

static inline void hc_set_up(struct scene *s, const struct scene_opts *o)
{
	scene_set_up(s, o);
	put_code(s, &s->guest, CODE);
}

#define EACH_HC_WAY(s)                                                             \
	for (size_t way_ = 0; way_ < sizeof(hc_ways) / sizeof(hc_ways[0]); way_++) \
		for (bool once_ = (hc_set_up(s, &hc_ways[way_]), true); once_; once_ = (scene_tear_down(s), false))

static inline void check_asked(struct scene *s, uint64_t gpa, uint64_t npages, uint64_t attributes)
{
	struct gmem_exit e = exit_of(s->vcpu);

	if (e.reason != GMEM_EXIT_HYPERCALL)
		FAIL("%s", guest_what(&s->guest));
	CHECK_EQ(e.nr, NR);
	CHECK_EQ(e.args[0], gpa);
	CHECK_EQ(e.args[1], npages);
	CHECK_EQ(e.args[2], attributes);
	CHECK_EQ(s->guest.run->exit_reason, KVM_EXIT_HYPERCALL);
}

#endif
