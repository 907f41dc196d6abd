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

#include "file/gate.h"
#include "gmem.h"
#include "mmu/mmu.h"

/* What the MMU's table of slots is kept with, see slots.c. Guarded by slots_lock. */
struct gmem_slot_store {
	struct gmem_slots *spare; /* as the MMU's */
	uint32_t room; /* of either */
	struct gmem_slot **by_id;
	uint32_t ids;
};

/* See kvm_hypercall.c. */
struct gmem_hypercall_watch {
	bool on; /* from the VM's making on */
	pthread_t thread;
	_Atomic uint32_t over, asleep; /* futexes */
	_Atomic uint32_t soon; /* ticks that are to be short */
};

struct gmem_vm {
	enum gmem_vm_type type;
	uint64_t alias_bit; /* of a guest-physical address: says which side is meant; 0: none */
	bool alias_private; /* set, it means the private one; else the shared one */
	uint64_t gfn_end; /* guest frames below it may be used */
	pid_t pid; /* of the process that made it: a forked copy has neither the windows nor the other threads */
	pthread_mutex_t slots_lock;
	struct gmem_mmu mmu;
	struct gmem_slot_store slots;
	_Atomic uint32_t refs;
	int kvm; /* KVM's VM, whose slots are these; -1: none */
	pthread_mutex_t vcpus_lock; /* a leaf; guards the list */
	struct gmem_cpu *vcpus; /* of KVM's */
	struct gmem_hypercall_watch watch;
	_Atomic uint64_t passed; /* times that one has let barred pages pass */
	_Atomic uint32_t passing; /* that are at it */
	struct gmem_gate_holds holds; /* of its slots' gates */
	_Atomic bool areas; /* one has such as kvm_area.c is about */
	_Atomic uint64_t populated, sources; /* see gmem_vm_stats */
	_Atomic bool cancel; /* the next page of a populate is not done */
};

void gmem_vm_get(struct gmem_vm *vm);
void gmem_vm_put(struct gmem_vm *vm);

void gmem_vm_lock_slots(struct gmem_vm *vm);
void gmem_vm_unlock_slots(struct gmem_vm *vm);

/* Deletes every slot. */
void gmem_vm_delete_slots(struct gmem_vm *vm);

/* Guests on KVM come out, and are told that the VM is dead, which it is. Any thread, under any lock. */
void gmem_vm_kick(struct gmem_vm *vm);

/* The slot of a guest frame; slots_lock held. */
static inline struct gmem_slot *gmem_vm_slot(struct gmem_vm *vm, uint64_t gfn)
{
	return gmem_slots_find(gmem_mmu_slots(&vm->mmu), gfn);
}

/* ---- slots.c: slots_lock held */

struct gmem_slot *gmem_vm_slot_by_id(const struct gmem_vm *vm, uint32_t id); /* NULL: none */
/* A slot that has one of the guest frames, but not this one. NULL: none. */
struct gmem_slot *gmem_vm_slot_overlapping(struct gmem_vm *vm, uint64_t gfn, uint64_t npages,
					   const struct gmem_slot *but);
/* `new` instead of `old`, either may be NULL. Nobody finds `old` then. Without one: -ENOMEM, with text. */
int gmem_vm_swap_slot(struct gmem_vm *vm, struct gmem_slot *old, struct gmem_slot *new);
/* The table as it was, whose caller frees it; nobody finds a slot of it any more. */
struct gmem_slots *gmem_vm_take_slots(struct gmem_vm *vm);

/* ---- vcpu.c: what vCPUs of all kinds have */

struct gmem_cpu {
	struct gmem_vcpu vcpu; /* first */
	enum gmem_vcpu_kind kind;
	struct gmem_vm *vm; /* referenced */
	struct gmem_exit exit;
	struct gmem_cpu *next; /* see vm->vcpus */
};

static inline struct gmem_cpu *gmem_cpu_of(struct gmem_vcpu *vcpu)
{
	return (struct gmem_cpu *)vcpu;
}

/* ---- accessor.c */

/* One that is not known to its VM yet. -ENOMEM with text. */
int gmem_accessor_create(struct gmem_cpu **ret);
/* As gmem_vcpu_answer(). */
int gmem_accessor_answer(struct gmem_cpu *cpu, uint64_t value);

/* The exit of an access to the page at `gpa`, which the MMU has refused. */
struct gmem_exit gmem_exit_memory_fault(uint64_t gpa, const struct gmem_mmu_exit *exit);

/* ---- kvm_vcpu.c */

/* -ENOMEM, -EOPNOTSUPP and KVM's errors, with text. */
int gmem_kvm_vcpu_open(struct gmem_vm *vm, const struct gmem_vcpu_opts *opts, struct gmem_cpu **ret);
/* Once the MMU knows it. */
void gmem_kvm_vcpu_added(struct gmem_cpu *cpu);
/* Frees it. */
void gmem_kvm_vcpu_close(struct gmem_cpu *cpu);
int gmem_kvm_vcpu_run(struct gmem_cpu *cpu);
/* As gmem_vcpu_answer(). */
int gmem_kvm_vcpu_answer(struct gmem_cpu *cpu, uint64_t value);
/* Lets it to a page of the caller's memory, and gives that back. -EAGAIN: look again. May wait: for who serves it. */
int gmem_kvm_vcpu_let_have(struct gmem_cpu *cpu, uint64_t gfn, struct gmem_hva *hva);
/* Makes it come out of the guest, if it is in there; and then look at what it was told before. Any thread. */
void gmem_kvm_vcpu_kick(struct gmem_cpu *cpu);
/* So too, and what it waits for is over. Its own flag is set already. */
void gmem_kvm_vcpu_cancel(struct gmem_cpu *cpu);

/* ---- kvm_hypercall.c */

/* A new VM's guests make exits of hypercalls. -EOPNOTSUPP, -EAGAIN, KVM's errors, with text. */
int gmem_kvm_hypercalls_open(struct gmem_vm *vm);
/* When the VM is dead. */
void gmem_kvm_hypercalls_close(struct gmem_vm *vm);

/* ---- kvm_slot.c: slots as KVM has them. slots_lock held; nothing is done in a VM without KVM */

/* For vm->holds: the VM is dead. */
void gmem_kvm_holds_failed(struct gmem_gate_holds *holds);
/* Before a new slot is bound. -EOPNOTSUPP, -ENOMEM. */
int gmem_kvm_slot_open(struct gmem_vm *vm, struct gmem_slot *slot);
/* Once it is bound and in the table: from then on guests reach it. KVM's errors. */
int gmem_kvm_slot_add(struct gmem_vm *vm, struct gmem_slot *slot);
/* No guest reaches it any more; or KVM's error, and all is as before. */
int gmem_kvm_slot_remove(struct gmem_vm *vm, struct gmem_slot *slot);
/* At the VM's end, where there is no way back: what KVM does not let go is nobody's memory. */
void gmem_kvm_slot_drop(struct gmem_vm *vm, struct gmem_slot *slot);
/* KVM has it no more, or was never told. */
void gmem_kvm_slot_close(struct gmem_slot *slot);
/*
 * Invalidate lock held, exclusive, after the tables were invalidated: guests that follow KVM's come out at what is not
 * theirs any more. If that cannot be had: -ENOMEM, with text, where it may fail (GMEM_SIDE_MAY_FAIL); else the VM is
 * dead, and they do not reach the slot at all.
 */
int gmem_kvm_slot_invalidate(struct gmem_slot *slot, uint64_t off, uint64_t len, uint32_t sides);
/* Its bitmap is another one. -ENOMEM: some of it may be barred. No lock of the file held. */
int gmem_kvm_slot_set_userfault(struct gmem_slot *slot);
/* Guests on KVM come out at all of it; if that cannot be had the VM is dead. No lock of the file held. */
void gmem_kvm_slot_bar(struct gmem_slot *slot);
/* Its file is closed: guests come out at all of it, and KVM itself reaches nothing. No lock of the file held. */
void gmem_kvm_slot_lose_file(struct gmem_slot *slot);
/* What guests on KVM touch is noted there from then on; NULL: no more. As gmem_gate_keep_touched(); 0: no gate. */
int gmem_kvm_slot_keep_touched(struct gmem_slot *slot, _Atomic uint64_t *bits);
/* KVM keeps a log of writes from then on, or none. KVM's errors. */
int gmem_kvm_slot_log(struct gmem_slot *slot, bool on);
/* Takes that log: a bit a page. In KVM's slot. */
int gmem_kvm_slot_get_log(struct gmem_slot *slot, uint64_t *bitmap);
/* KVM keeps no logs of slots: what is written to goes to a ring of each vCPU. Of a VM with KVM. */
bool gmem_kvm_has_dirty_ring(const struct gmem_vm *vm);

/* ---- log.c */

/*
 * The slot keeps those logs, GMEM_LOG_*, from then on; what it keeps on stays as it is. -ENOMEM, KVM's errors: as
 * before. Waits for accesses to the caller's memory. slots_lock held.
 */
int gmem_vm_change_logs(struct gmem_slot *slot, uint32_t logs);

/* Takes the side out of an address. -EINVAL: beyond what the VM can address. */
int gmem_vm_decode_gpa(const struct gmem_vm *vm, const char *who, uint64_t gpa, uint64_t *ret_gpa,
		       enum gmem_want *ret_want);

#endif
