/* SPDX-License-Identifier: MIT */
#include "sys/kvm_tdx.h"

#include <stddef.h>

#include "gmem.h"
#include "sys/call.h"
#include "sys/uapi.h"

#define AT(type, member, off) _Static_assert(offsetof(struct type, member) == (off), #type "." #member)

AT(gmem_kvm_tdx_cmd, id, 0);
AT(gmem_kvm_tdx_cmd, flags, 4);
AT(gmem_kvm_tdx_cmd, data, 8);
AT(gmem_kvm_tdx_cmd, hw_error, 16);
_Static_assert(sizeof(struct gmem_kvm_tdx_cmd) == 24, "struct kvm_tdx_cmd");

AT(gmem_kvm_cpuid2, nent, 0);
AT(gmem_kvm_cpuid2, entries, 8);
AT(gmem_kvm_cpuid_entry2, flags, 8);
AT(gmem_kvm_cpuid_entry2, eax, 12);
AT(gmem_kvm_cpuid_entry2, edx, 24);
_Static_assert(sizeof(struct gmem_kvm_cpuid_entry2) == 40, "struct kvm_cpuid_entry2");

AT(gmem_kvm_tdx_capabilities, supported_attrs, 0);
AT(gmem_kvm_tdx_capabilities, supported_xfam, 8);
AT(gmem_kvm_tdx_capabilities, reserved, 48);
AT(gmem_kvm_tdx_capabilities, cpuid, 2048);
_Static_assert(sizeof(struct gmem_kvm_tdx_capabilities) == 2056, "struct kvm_tdx_capabilities");

AT(gmem_kvm_tdx_init_vm, attributes, 0);
AT(gmem_kvm_tdx_init_vm, xfam, 8);
AT(gmem_kvm_tdx_init_vm, mrconfigid, 16);
AT(gmem_kvm_tdx_init_vm, mrowner, 64);
AT(gmem_kvm_tdx_init_vm, mrownerconfig, 112);
AT(gmem_kvm_tdx_init_vm, reserved, 160);
AT(gmem_kvm_tdx_init_vm, cpuid, 256);
_Static_assert(sizeof(struct gmem_kvm_tdx_init_vm) == 264, "struct kvm_tdx_init_vm");

AT(gmem_tdx_init_mem_region, source_addr, 0);
AT(gmem_tdx_init_mem_region, gpa, 8);
AT(gmem_tdx_init_mem_region, nr_pages, 16);
_Static_assert(sizeof(struct gmem_tdx_init_mem_region) == 24, "struct kvm_tdx_init_mem_region");

int gmem_kvm_tdx_op(int fd, uint32_t id, uint32_t flags, uint64_t data, uint64_t *ret_hw_error)
{
	/* KVM wants hw_error 0. */
	struct gmem_kvm_tdx_cmd cmd = { .id = id, .flags = flags, .data = data };
	int err = gmem_sys_ioctl(fd, KVM_MEMORY_ENCRYPT_OP, &cmd);

	*ret_hw_error = cmd.hw_error;
	return err;
}
