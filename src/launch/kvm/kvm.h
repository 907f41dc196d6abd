/* SPDX-License-Identifier: MIT */
/*
 * A launch that KVM does: the commands go to the kernel, and what they mean is AMD's firmware's or Intel's module's
 * business. What is here is what is said to KVM before and around them, and words for what it answers.
 *
 * Enters: as launch/launch.h has it. Leaves: KVM's errno, and the status of who refused. Lock: `m` guards the list of
 * vCPUs, while one is added too, and is not held over a command: KVM has its own locks.
 */
#ifndef GMEM_LAUNCH_KVM_KVM_H
#define GMEM_LAUNCH_KVM_KVM_H

#include <pthread.h>
#include <stdatomic.h>

#include "launch/launch.h"

struct gmem_kvm_launch {
	struct gmem_launch base;
	int vm;
	int sev; /* SNP: /dev/sev. KVM keeps its number from LAUNCH_START for LAUNCH_FINISH: it stays open. TDX: -1 */
	atomic_bool finished;
	pthread_mutex_t m;
	int *vcpus; /* in the order they were added */
	int nvcpus;
};

/* What comes first of all: INIT2 and LAUNCH_START; CAPABILITIES and INIT_VM. */
int gmem_kvm_snp_begin(struct gmem_kvm_launch *launch, const struct gmem_launch_opts *opts);
int gmem_kvm_tdx_begin(struct gmem_kvm_launch *launch, const struct gmem_launch_opts *opts);

/* KVM_MEMORY_ENCRYPT_OP, with the error's text. `fd`: of the VM, or of a vCPU. *ret_status: who refused, and why. */
int gmem_kvm_snp_command(struct gmem_kvm_launch *launch, uint32_t id, void *data, uint64_t *ret_status);
int gmem_kvm_tdx_command(int fd, uint32_t id, uint32_t flags, uint64_t data, uint64_t *ret_status);

#endif
