/* SPDX-License-Identifier: MIT */
/*
 * One machine: its type, memslots, vCPUs.
 *
 * Enters: slots, accesses of guests, cancellations. Leaves: bytes, exits. A gmem_vm is counted: its creator, its slots
 * and its vCPUs have references. Lock: `slots_lock`, outermost of all: slots are changed and pages are populated under
 * it; bytes may be brought in, from memory that is itself lazily served, while it is held. No fault takes it.
 */
#ifndef GMEM_VM_VM_H
#define GMEM_VM_VM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "gmem.h"
#include "mmu/mmu.h"

struct gmem_vm {
	enum gmem_vm_type type;
	uint64_t alias_bit; /* of a guest-physical address: says which side is meant; 0: none */
	bool alias_private; /* set, it means the private one; else the shared one */
	uint64_t gfn_end; /* guest frames below it may be used */
	pid_t pid; /* of the process that made it: a forked copy has neither the windows nor the other threads */
	pthread_mutex_t slots_lock;
	struct gmem_mmu mmu;
	_Atomic uint32_t refs;
	_Atomic uint64_t populated, sources; /* see gmem_vm_stats */
	_Atomic bool cancel; /* the next page of a populate is not done */
};

void gmem_vm_get(struct gmem_vm *vm);
void gmem_vm_put(struct gmem_vm *vm);

void gmem_vm_lock_slots(struct gmem_vm *vm);
void gmem_vm_unlock_slots(struct gmem_vm *vm);

/* Deletes every slot. */
void gmem_vm_delete_slots(struct gmem_vm *vm);

/* The slot of a guest frame; slots_lock held. */
static inline struct gmem_slot *gmem_vm_slot(struct gmem_vm *vm, uint64_t gfn)
{
	return gmem_slots_find(gmem_mmu_slots(&vm->mmu), gfn);
}

/* ---- vcpu.c: what vCPUs of all kinds have */

struct gmem_cpu {
	struct gmem_vcpu vcpu; /* first */
	enum gmem_vcpu_kind kind;
	struct gmem_vm *vm; /* referenced */
	struct gmem_exit exit;
};

static inline struct gmem_cpu *gmem_cpu_of(struct gmem_vcpu *vcpu)
{
	return (struct gmem_cpu *)vcpu;
}

/* ---- accessor.c */

struct gmem_accessor {
	struct gmem_cpu cpu; /* first */
	/* Between guest memory, touched in an epoch, and the caller's, which may be lazily served. */
	_Alignas(64) unsigned char bounce[GMEM_PAGE_SIZE];
};

/* One that is not known to its VM yet. -ENOMEM with text. */
int gmem_accessor_create(struct gmem_cpu **ret);

/* Takes the side out of an address. -EINVAL: beyond what the VM can address. */
int gmem_vm_decode_gpa(const struct gmem_vm *vm, const char *who, uint64_t gpa, uint64_t *ret_gpa,
		       enum gmem_want *ret_want);

#endif
