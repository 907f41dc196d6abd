/* SPDX-License-Identifier: MIT */
/* Machines, slots and accessors to test with. */
#ifndef GMEM_TESTS_MMU_UTIL_H
#define GMEM_TESTS_MMU_UTIL_H

#include <pthread.h>

#include "tap.h"

#include "vm/vm.h"

#define PG 4096ull
#define BOTH_SIDES (GMEM_SIDE_SHARED | GMEM_SIDE_PRIVATE)

static inline struct gmem_vm *new_vm(enum gmem_vm_type type)
{
	struct gmem_vm_opts o = { .size = sizeof(o), .type = type };
	struct gmem_vm *vm;

	CHECK_OK(gmem_vm_create(&o, &vm));
	return vm;
}

static inline struct gmem_vcpu *new_vcpu(struct gmem_vm *vm)
{
	struct gmem_vcpu *vcpu;

	CHECK_OK(gmem_vcpu_create(vm, NULL, &vcpu));
	return vcpu;
}

static inline struct gmem_file *make_file(uint64_t len, uint32_t flags)
{
	struct gmem_file_opts o = { .size = sizeof(o), .flags = flags };
	struct gmem_file *file;

	CHECK_OK(gmem_file_create(len, &o, &file));
	return file;
}

static inline int set_slot(struct gmem_vm *vm, uint32_t slot, uint64_t gpa, uint64_t len, struct gmem_file *file,
			   uint64_t off)
{
	struct gmem_memslot m = { .size = sizeof(m), .slot = slot, .gpa = gpa, .len = len, .file = file, .off = off };

	return gmem_vm_set_slot(vm, &m);
}

static inline int del_slot(struct gmem_vm *vm, uint32_t slot)
{
	return set_slot(vm, slot, 0, 0, NULL, 0);
}

static inline struct gmem_exit exit_of(const struct gmem_vcpu *vcpu)
{
	struct gmem_exit e = { .size = sizeof(e) };

	CHECK_OK(gmem_vcpu_exit(vcpu, &e));
	return e;
}

static inline uint64_t load64(struct gmem_vcpu *vcpu, uint64_t gpa)
{
	uint64_t v = ~0ull;

	CHECK_OK(gmem_vcpu_load(vcpu, gpa, &v, sizeof(v)));
	return v;
}

static inline void store64(struct gmem_vcpu *vcpu, uint64_t gpa, uint64_t v)
{
	CHECK_OK(gmem_vcpu_store(vcpu, gpa, &v, sizeof(v)));
}

static inline void to_private(struct gmem_file *file, uint64_t off, uint64_t len)
{
	CHECK_OK(gmem_file_set_attributes(file, off, len, GMEM_ATTRIBUTE_PRIVATE, NULL));
}

static inline void to_shared(struct gmem_file *file, uint64_t off, uint64_t len)
{
	CHECK_OK(gmem_file_set_attributes(file, off, len, 0, NULL));
}

/* The leaf of a guest frame as it stands in the tables, 0: none; and its level. No zap is going on. */
static inline uint64_t leaf_at(struct gmem_mmu *mmu, uint64_t gfn, int *level)
{
	const gmem_pte *table = atomic_load(&mmu->root);

	for (*level = GMEM_PT_LEVELS; table; --*level) {
		uint64_t e = atomic_load(&table[gmem_pt_index(gfn, *level)]);

		if (!(e & GMEM_PTE_PRESENT) || (e & GMEM_PTE_LEAF))
			return e;
		table = gmem_pte_table(e);
	}
	return 0;
}

static inline pthread_t start(void *(*fn)(void *), void *arg)
{
	pthread_t t;

	CHECK_EQ(pthread_create(&t, NULL, fn, arg), 0);
	return t;
}

static inline void join(pthread_t t)
{
	CHECK_EQ(pthread_join(t, NULL), 0);
}

#endif
