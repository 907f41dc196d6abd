/* SPDX-License-Identifier: MIT */
/* Slots with memory of the caller's, and the exits of accesses to them. */
#ifndef GMEM_TESTS_SLOT_UTIL_H
#define GMEM_TESTS_SLOT_UTIL_H

#include <sys/mman.h>

#include "mmu_util.h"

static inline int set_hva_slot(struct gmem_vm *vm, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t len, void *hva)
{
	struct gmem_memslot m = { .size = sizeof(m), .slot = slot, .flags = flags, .gpa = gpa, .len = len, .hva = hva };

	return gmem_vm_set_slot(vm, &m);
}

/* As set_slot(), with memory for the shared side. */
static inline int set_both(struct gmem_vm *vm, uint32_t slot, uint64_t gpa, uint64_t len, struct gmem_file *file,
			   uint64_t off, void *hva)
{
	struct gmem_memslot m = {
		.size = sizeof(m), .slot = slot, .gpa = gpa, .len = len, .file = file, .off = off, .hva = hva
	};

	return gmem_vm_set_slot(vm, &m);
}

/* Fresh zero pages of this process; -1: nothing may be done with them. */
static inline char *plain_memory(uint64_t len, int prot)
{
	char *p = mmap(NULL, len, prot < 0 ? PROT_NONE : prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	CHECK(p != MAP_FAILED);
	return p;
}

#define RW (PROT_READ | PROT_WRITE)

/* The last access ended in a memory fault of the page at `gpa`. */
static inline void check_memory_fault(const struct gmem_vcpu *vcpu, uint64_t gpa, uint64_t flags)
{
	struct gmem_exit e = exit_of(vcpu);

	CHECK_EQ(e.reason, GMEM_EXIT_MEMORY_FAULT);
	CHECK_EQ(e.gpa, gpa);
	CHECK_EQ(e.len, PG);
	CHECK_EQ(e.flags, flags);
}

/* A load, and a store, of the word at gpa + 8 both end so. */
static inline void check_faults(struct gmem_vcpu *vcpu, uint64_t gpa, uint64_t flags)
{
	uint64_t v = 1;

	CHECK_ERR(gmem_vcpu_load(vcpu, gpa + 8, &v, sizeof(v)), -EFAULT);
	check_memory_fault(vcpu, gpa & ~(PG - 1), flags);
	CHECK_ERR(gmem_vcpu_store(vcpu, gpa + 8, &v, sizeof(v)), -EFAULT);
	check_memory_fault(vcpu, gpa & ~(PG - 1), flags);
	CHECK_EQ(v, 1);
}

/* Nothing is there: a device's, to a load and a store. */
static inline void check_no_slot(struct gmem_vcpu *vcpu, uint64_t gpa)
{
	uint64_t v = 1;

	CHECK_ERR(gmem_vcpu_load(vcpu, gpa + 8, &v, sizeof(v)), -EFAULT);
	CHECK_EQ(exit_of(vcpu).reason, GMEM_EXIT_MMIO);
	CHECK_EQ(exit_of(vcpu).flags, 0);
	CHECK_ERR(gmem_vcpu_store(vcpu, gpa + 8, &v, sizeof(v)), -EFAULT);
	CHECK_EQ(exit_of(vcpu).reason, GMEM_EXIT_MMIO);
	CHECK_EQ(exit_of(vcpu).gpa, gpa + 8);
	CHECK_EQ(v, 1);
}

#endif
