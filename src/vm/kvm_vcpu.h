/* SPDX-License-Identifier: MIT */
/*
 * A vCPU of KVM's.
 *
 * A guest that meets a barred page (file/gate.h) comes out in one of two ways. Where the processor made the access, KVM
 * fails to map the page, sends the thread SIGBUS with the page's address in the gate, and KVM_RUN is EINTR because the
 * signal is let through while it runs, and nowhere else (kvm_run.c). Where KVM was emulating the instruction it takes
 * the page for a device's, and KVM_RUN ends with KVM_EXIT_MMIO at an address that is inside a slot: then the load or
 * store is made here, by an accessor, and the next KVM_RUN goes on behind it. An instruction that KVM cannot even read,
 * or one with a lock prefix that met the page again, is KVM_EXIT_INTERNAL_ERROR, and begins again when the page is
 * there (kvm_exit.c).
 *
 * In all cases the page is looked for as for any guest (mmu/fault.c), and mapping it is to let it pass the gate.
 */
#ifndef GMEM_VM_KVM_VCPU_H
#define GMEM_VM_KVM_VCPU_H

#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>

#include "sys/kvm_hypercall.h"
#include "vm/vm.h"

/* Where the thread is, for those who want it out of the guest. */
enum whereabouts {
	OUTSIDE,
	INSIDE, /* KVM_RUN, or about to; SIGBUS is blocked, and is taken before it is not any more */
	KICKED_NOW, /* somebody is sending it a signal */
	KICKED,
};

/* Of a vCPU of a watched VM. */
struct kvm_watched {
	_Atomic uint32_t runs; /* KVM_RUNs */
	_Atomic uint32_t patience; /* ticks that one is left alone for */
	uint32_t seen, ticks; /* the watcher's: `runs`, and for how long it has been the same */
};

#define KVM_AREAS 3
#define KVM_NO_AREA UINT64_MAX

struct kvm_vcpu {
	struct gmem_cpu cpu; /* first */
	int fd;
	struct kvm_run *run;
	size_t run_len;
	struct gmem_vcpu *hand; /* makes the accesses of instructions that KVM emulates */
	bool mmio_is_ours; /* KVM waits for one: a page of a slot, which could not be had yet */
	bool unfinished; /* KVM_RUN told an exit last time: the next one begins with the rest of the instruction */
	struct gmem_mmu_seen seen; /* before the last KVM_RUN, as is the next */
	uint64_t seen_passed, seen_holds; /* vm->passed, vm->holds.ended */
	bool mmio_done; /* that has been made, and KVM has not been told yet */
	uint64_t mmio_gpa; /* of the last one that was ours */
	bool areas_due; /* see kvm_area.c: somebody may have set others */
	_Atomic uint32_t areas_passed; /* a bit each: it may have passed the gate since */
	_Atomic uint64_t area_gfn[KVM_AREAS]; /* or KVM_NO_AREA */
	uint64_t area_value[KVM_AREAS]; /* what KVM is told of it */
	struct gmem_mmu_seen areas_seen; /* when they were looked at last, as is the next */
	uint64_t areas_seen_passed; /* vm->passed */
	bool came_out; /* the guest did, at this page; the caller may have done something about it since */
	uint64_t came_out_gpa;
	siginfo_t foreign; /* a SIGBUS that is the thread's own, which blocks it; si_signo 0: none */
	bool mask_known;
	sigset_t mask; /* KVM's, of the last run */
	_Atomic int whereabouts; /* enum whereabouts */
	pthread_t thread; /* while it is inside */
	bool asks; /* a hypercall was told as an exit, and has not returned yet */
	struct gmem_kvm_next asked; /* that */
	bool rewrites; /* KVM writes over a hypercall that it cannot write to: once it has, to be looked at */
	struct kvm_watched watched;
};

static inline struct kvm_vcpu *kvm_vcpu_of(struct gmem_cpu *cpu)
{
	return (struct kvm_vcpu *)cpu;
}

/* ---- kvm_run.c */

/* How a KVM_RUN ended. */
struct kvm_ended {
	int err;
	bool kicked; /* and that may have been all */
	bool barred; /* the guest is at a page that may not be touched by itself */
	uint64_t gpa; /* of that */
	bool gone; /* it was at a page that may be of no slot any more; if it is, it is met again */
	bool foreign; /* a SIGBUS has come that the thread blocks, the first of this call */
};

/* True if there is a reason not to go in, or to come out: a cancellation, or the end of the VM. */
bool gmem_kvm_told_to_stop(struct kvm_vcpu *v);
/* One KVM_RUN. SIGBUS is the thread's own again when it returns. */
struct kvm_ended gmem_kvm_run_once(struct kvm_vcpu *v);
/* What was kept of the thread's own signals is pending again. */
void gmem_kvm_put_back_signal(struct kvm_vcpu *v);

/* ---- kvm_hypercall.c */

/* It is inside from now on. */
void gmem_kvm_watch(struct kvm_vcpu *v);
/* Kicks come to look what it is at, and the program does not want it out. */
bool gmem_kvm_watched(const struct kvm_vcpu *v);
/* The MMIO exit is of such a write, and need not be made. */
bool gmem_kvm_rewrites(struct kvm_vcpu *v);
/* A kick has brought it out. 1: it was at a hypercall, and kvm_run tells of it; 0: go on. */
int gmem_kvm_hypercall(struct kvm_vcpu *v);
/* Before it goes on: what was told so returns. KVM's errors, with text. */
int gmem_kvm_hypercall_end(struct kvm_vcpu *v);

/* ---- kvm_area.c */

/* Before KVM_RUN. May wait: for who serves them; a cancellation ends that, and is there afterwards. */
void gmem_kvm_renew_areas(struct kvm_vcpu *v);
/* Those pages may have passed a gate. Any thread; the MMU's lock may be held, shared. */
void gmem_kvm_tell_areas(struct gmem_vm *vm, uint64_t gfn, uint64_t npages);

/* ---- kvm_exit.c */

/* Lets guests have a page of a slot, if they may. -EINTR: cancelled, which is to be seen yet. */
int gmem_kvm_bring_in(struct kvm_vcpu *v, uint64_t gpa);

#endif
