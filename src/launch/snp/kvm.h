/* SPDX-License-Identifier: MIT */
/*
 * KVM's part in an SNP launch: its ioctls, with its checks in its order, on top of a secure processor by software.
 *
 * Enters: structures of the caller's, which are read once; it may change them meanwhile. Leaves: 0 or KVM's errno, and
 * what is behind it in the answer. Lock: takes the VM's slots_lock, but for what says that it is held.
 */
#ifndef GMEM_LAUNCH_SNP_KVM_H
#define GMEM_LAUNCH_SNP_KVM_H

#include "launch/launch.h"
#include "launch/snp/guest.h"

/* KVM_MEMORY_ENCRYPT_OP of the VM. */
int gmem_snp_kvm_command(struct gmem_snp_guest *guest, uint32_t id, void *data, struct gmem_launch_answer *answer);

/* KVM_SEV_SNP_LAUNCH_START. slots_lock held. */
int gmem_snp_kvm_start(struct gmem_snp_guest *guest, const struct gmem_snp_launch_start *p,
		       struct gmem_launch_answer *answer);

#endif
