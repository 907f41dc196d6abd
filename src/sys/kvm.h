/* SPDX-License-Identifier: MIT */
/*
 * KVM, one call a function.
 * Enters: descriptors and plain values. Leaves: a descriptor the caller closes, or a value >= 0, or -errno without
 * error text (the caller knows what it was for). No state, no lock. KVM descriptors die in a forked child.
 */
#ifndef GMEM_SYS_KVM_H
#define GMEM_SYS_KVM_H

#include <stdint.h>

int gmem_kvm_open(void); /* /dev/kvm */
int gmem_kvm_api_version(int kvm);
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

int gmem_kvm_pre_fault(int vcpu, uint64_t gpa, uint64_t len);

#endif
