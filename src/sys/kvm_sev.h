/* SPDX-License-Identifier: MIT */
/*
 * KVM_MEMORY_ENCRYPT_OP of machines of AMD's: SEV-SNP (Documentation/virt/kvm/x86/amd-memory-encryption.rst).
 * Enters: a VM, /dev/sev, and a command with its structure. Leaves: 0 or -errno without error text. No state, no lock.
 *
 * The structures are the kernel's, which older headers lack; those of the launch commands are in gmem.h.
 */
#ifndef GMEM_SYS_KVM_SEV_H
#define GMEM_SYS_KVM_SEV_H

#include <stdint.h>

enum gmem_kvm_sev_cmd_id {
	GMEM_KVM_SEV_INIT2 = 22, /* before the VM's first vCPU, once */
	GMEM_KVM_SEV_SNP_LAUNCH_START = 100,
	GMEM_KVM_SEV_SNP_LAUNCH_UPDATE = 101,
	GMEM_KVM_SEV_SNP_LAUNCH_FINISH = 102,
};

/* `error` of a command that failed without the firmware's having been asked. */
#define GMEM_KVM_SEV_NO_FW_CALL UINT32_MAX

struct gmem_kvm_sev_cmd {
	uint32_t id;
	uint32_t pad0;
	uint64_t data;
	uint32_t error; /* out: what the firmware answered */
	uint32_t sev_fd;
};

struct gmem_kvm_sev_init {
	uint64_t vmsa_features;
	uint32_t flags;
	uint16_t ghcb_version; /* 0: the newest KVM has */
	uint16_t pad1;
	uint32_t pad2[8];
};

/* /dev/sev, close-on-exec. */
int gmem_kvm_sev_open(void);

/* `data` is the command's structure, or NULL. *ret_error: the firmware's answer, as KVM left it; 0 before. */
int gmem_kvm_sev_op(int vm, int sev, uint32_t id, void *data, uint32_t *ret_error);

#endif
