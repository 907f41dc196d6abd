/* SPDX-License-Identifier: MIT */
/*
 * A guest's hypercall, seen from outside KVM_RUN.
 *
 * A KVM that emulates a guest's kernel mode, for want of hardware of its own, never makes the hypercall: it writes its
 * processor's instruction over the guest's and executes that, which is to do the same again, for ever (seen on 6.18).
 * A signal brings the vCPU out in between, and then nothing has been done: the instruction is still the next one.
 *
 * Enters: a vCPU that nobody runs, after a KVM_RUN that ended in EINTR. Leaves: plain values, or -errno without error
 * text. No state, no lock.
 */
#ifndef GMEM_SYS_KVM_HYPERCALL_H
#define GMEM_SYS_KVM_HYPERCALL_H

#include <stdbool.h>
#include <stdint.h>

#define GMEM_HYPERCALL_LEN 3

/* What a vCPU is about to execute. */
struct gmem_kvm_next {
	uint64_t rip, linear;
	uint64_t mask; /* of addresses and values: 64 bits in 64-bit code, else 32 */
	bool protected_mode;
	uint64_t nr, args[4]; /* if it is a hypercall */
};

/*
 * -EAGAIN: the vCPU is not in kernel mode, or something comes before its next instruction: an event that is on its way
 * in, the wait of a HLT. What the guest's tables say of executing is not asked. -EOPNOTSUPP: not on this architecture.
 */
int gmem_kvm_next(int vcpu, struct gmem_kvm_next *ret);
/* The `i`-th byte of it, by the guest's tables. -EFAULT: they have none. */
int gmem_kvm_next_gpa(int vcpu, const struct gmem_kvm_next *next, unsigned int i, uint64_t *ret_gpa);
bool gmem_kvm_is_hypercall(const struct gmem_kvm_next *next, const unsigned char bytes[GMEM_HYPERCALL_LEN]);

/* It has returned `value`. Who has moved the vCPU elsewhere meanwhile is asked for nothing. */
int gmem_kvm_hypercall_return(int vcpu, const struct gmem_kvm_next *next, uint64_t value);

/*
 * 1: this KVM is one that never makes an exit of a hypercall; 0: it does. Tried on a VM of its own, in a thread of its
 * own: some milliseconds where the answer is 1.
 */
int gmem_kvm_hypercall_spins(void);

#endif
