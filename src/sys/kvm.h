/* SPDX-License-Identifier: MIT */
/*
 * KVM, one call a function.
 * Enters: descriptors and plain values. Leaves: a descriptor the caller closes, or a value >= 0, or -errno without
 * error text (the caller knows what it was for). No state, no lock. KVM descriptors die in a forked child.
 */
#ifndef GMEM_SYS_KVM_H
#define GMEM_SYS_KVM_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

int gmem_kvm_open(void); /* /dev/kvm */
int gmem_kvm_api_version(int kvm);
bool gmem_kvm_is_vm(int fd); /* one of this process's */
int gmem_kvm_check(int fd, unsigned long cap); /* fd: /dev/kvm, or a VM for what differs by VM; 0: absent */
int gmem_kvm_vm_create(int kvm, unsigned long type);
int gmem_kvm_vcpu_create(int vm, unsigned long id);
int gmem_kvm_cap_enable(int vm, uint32_t cap, uint64_t arg);

/*
 * A guest_memfd of `len` bytes, close-on-exec; `flags` are GUEST_MEMFD_FLAG_*. -EINVAL: no such flag, -ENOTTY: no
 * guest_memfd in this kernel.
 */
int gmem_kvm_memfd_create(int vm, uint64_t len, uint64_t flags);

/* Sets memslot `slot`. gmemfd < 0: plain memory only. len 0 deletes. */
int gmem_kvm_slot_set(int vm, uint32_t slot, uint64_t gpa, uint64_t len, void *hva, int gmemfd, uint64_t off);

/*
 * Attributes of guest-physical addresses of a VM, and of a guest_memfd's own pages (-ENOTTY: no in-place conversion).
 * `ret_error_off`, which may be NULL: on failure the first page that stood in the way.
 */
int gmem_kvm_attributes_set(int vm, uint64_t gpa, uint64_t len, uint64_t attributes);
int gmem_kvm_memfd_attributes_set(int gmemfd, uint64_t off, uint64_t len, uint64_t attributes, uint64_t *ret_error_off);

/* Plain memory, with KVM_MEM_* flags but for a guest_memfd's; on kernels before 6.8 too. len 0 deletes. */
int gmem_kvm_plain_slot_set(int vm, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t len, void *hva);

/* Pages written to since the last call, of a slot with KVM_MEM_LOG_DIRTY_PAGES: a bit each, in words of 64. */
int gmem_kvm_dirty_log(int vm, uint32_t slot, uint64_t *bitmap);

/* The first `npages` of the slot, all of it, are written to no more where `bitmap` says. -ENOTTY: before Linux 5.0. */
int gmem_kvm_clear_dirty_log(int vm, uint32_t slot, uint64_t npages, uint64_t *bitmap);

int gmem_kvm_pre_fault(int vcpu, uint64_t gpa, uint64_t len);

/* Bytes of a vCPU's struct kvm_run, to be mapped from its descriptor. */
int gmem_kvm_run_len(int kvm);
/* The signals that are blocked while KVM_RUN runs; no others are then, whatever the thread's mask says. NULL: that. */
int gmem_kvm_signal_mask(int vcpu, const sigset_t *mask);
/* One KVM_RUN. 0: kvm_run tells why it came back. */
int gmem_kvm_run(int vcpu);
/* The guest-physical address of a linear one. -EFAULT, -EOPNOTSUPP: as below. */
int gmem_kvm_translate(int vcpu, uint64_t linear, uint64_t *ret_gpa);
/*
 * The guest-physical address of byte `at` of the next instruction. -EFAULT: the guest's tables have none; -EOPNOTSUPP:
 * not on this architecture.
 */
int gmem_kvm_fetch_gpa(int vcpu, uint64_t at, uint64_t *ret_gpa);
/* At most 8 of a vCPU's model-specific registers. How many from the first on could be read; the next one it has not. */
int gmem_kvm_msrs_get(int vcpu, unsigned int n, const uint32_t *msr, uint64_t *ret_value);
int gmem_kvm_msr_set(int vcpu, uint32_t msr, uint64_t value); /* -EINVAL: refused */
/*
 * To be called at an MMIO exit: KVM (seen on 6.18) that fails to finish the instruction afterwards otherwise keeps what
 * it has done of it, for the next KVM_GET_REGS to make real.
 */
void gmem_kvm_settle_regs(int vcpu);

#endif
