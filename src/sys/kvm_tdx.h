/* SPDX-License-Identifier: MIT */
/*
 * KVM_MEMORY_ENCRYPT_OP of machines of Intel's: TDX (Documentation/virt/kvm/x86/intel-tdx.rst).
 * Enters: a VM or a vCPU, and a command with its structure. Leaves: 0 or -errno without error text. No state, no lock.
 *
 * The structures are the kernel's, which older headers lack; that of INIT_MEM_REGION is in gmem.h.
 */
#ifndef GMEM_SYS_KVM_TDX_H
#define GMEM_SYS_KVM_TDX_H

#include <stdint.h>

enum gmem_kvm_tdx_cmd_id {
	GMEM_KVM_TDX_CAPABILITIES = 0, /* -E2BIG: `cpuid` has less room than the table needs */
	GMEM_KVM_TDX_INIT_VM = 1, /* before the VM's first vCPU, once */
	GMEM_KVM_TDX_INIT_VCPU = 2, /* of a vCPU, as the next; `data` is its RCX */
	GMEM_KVM_TDX_INIT_MEM_REGION = 3, /* of a vCPU */
	GMEM_KVM_TDX_FINALIZE_VM = 4,
};

/* KVM takes and gives no longer tables. */
#define GMEM_KVM_CPUID_MOST 256u

struct gmem_kvm_tdx_cmd {
	uint32_t id;
	uint32_t flags;
	uint64_t data;
	uint64_t hw_error; /* out: what the module answered */
};

struct gmem_kvm_cpuid_entry2 {
	uint32_t function, index, flags;
	uint32_t eax, ebx, ecx, edx;
	uint32_t padding[3];
};

struct gmem_kvm_cpuid2 {
	uint32_t nent;
	uint32_t padding;
	struct gmem_kvm_cpuid_entry2 entries[];
};

struct gmem_kvm_tdx_capabilities {
	uint64_t supported_attrs, supported_xfam;
	/* What a guest's TDG.VP.VMCALLs reach: since Linux 6.17. */
	uint64_t kernel_tdvmcallinfo_1_r11, user_tdvmcallinfo_1_r11;
	uint64_t kernel_tdvmcallinfo_1_r12, user_tdvmcallinfo_1_r12;
	uint64_t reserved[250];
	struct gmem_kvm_cpuid2 cpuid; /* bits that can be chosen; in: `nent`, its room */
};

struct gmem_kvm_tdx_init_vm {
	uint64_t attributes, xfam;
	uint64_t mrconfigid[6], mrowner[6], mrownerconfig[6];
	uint64_t reserved[12];
	struct gmem_kvm_cpuid2 cpuid;
};

/* `fd`: the VM, or a vCPU. `data` is the command's structure, or a number. *ret_hw_error: the module's answer. */
int gmem_kvm_tdx_op(int fd, uint32_t id, uint32_t flags, uint64_t data, uint64_t *ret_hw_error);

#endif
