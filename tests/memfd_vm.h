/* SPDX-License-Identifier: MIT */
/* A machine of KVM's for guest_memfds. */
#ifndef GMEM_TESTS_MEMFD_VM_H
#define GMEM_TESTS_MEMFD_VM_H

#include <unistd.h>

#include "tap.h"

#include "sys/kvm.h"
#include "sys/uapi.h"

/* The first whose memslots take guest_memfds; skips where none does. */
static inline int memfd_vm(void)
{
	static const unsigned long types[] = { KVM_X86_DEFAULT_VM, KVM_X86_SW_PROTECTED_VM };
	int kvm = gmem_kvm_open(), vm = kvm;

	for (size_t i = 0; kvm >= 0 && i < sizeof(types) / sizeof(types[0]); i++) {
		vm = gmem_kvm_vm_create(kvm, types[i]);
		if (vm >= 0 && gmem_kvm_check(vm, KVM_CAP_GUEST_MEMFD) > 0) {
			close(kvm);
			return vm;
		}
		if (vm >= 0)
			close(vm);
	}
	SKIP("kvm", "no machine that takes guest_memfds: %s", vm < 0 ? strerror(-vm) : "KVM_CAP_GUEST_MEMFD");
}

#endif
