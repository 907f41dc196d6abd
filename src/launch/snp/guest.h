/* SPDX-License-Identifier: MIT */
/*
 * What a machine has of an SNP guest that is launched by software: a secure processor and a reverse map table of its
 * own, the guest's context, and the VMSAs of its vCPUs.
 *
 * Enters: what the guest touches, accepts and loses, as external tables are told of it (mmu/external.h). Leaves:
 * whether it may have the page. Belongs to the VM, and ends with it. Lock: the VM's slots_lock guards all of it but
 * the table, which has its own, and `external`.
 */
#ifndef GMEM_LAUNCH_SNP_GUEST_H
#define GMEM_LAUNCH_SNP_GUEST_H

#include "launch/snp/asp.h"
#include "vm/vm.h"

struct gmem_snp_vmsa {
	void *page; /* the vCPU's registers, until they are measured; then the guest's */
	bool measured;
};

struct gmem_snp_guest {
	struct gmem_mmu_external external; /* first */
	struct gmem_vm *vm; /* whose it is */
	struct gmem_rmp rmp;
	struct gmem_snp_asp asp;
	void *context; /* page of the guest's context */
	bool started; /* it is one */
	uint32_t asid;
	uint64_t sev_features; /* of its vCPUs */
	struct gmem_snp_vmsa *vmsas; /* by vCPU */
	uint32_t nvmsas;
};

/* -ENOMEM. */
int gmem_snp_guest_create(struct gmem_vm *vm, struct gmem_snp_guest **ret);
/* Of one that was not given to a VM. */
void gmem_snp_guest_free(struct gmem_snp_guest *guest);

static inline uint64_t gmem_snp_pfn(const void *page)
{
	return (uintptr_t)page >> GMEM_PAGE_SHIFT;
}

/* A page for the guest's own state. NULL: no memory. */
void *gmem_snp_guest_page(struct gmem_snp_guest *guest);

/*
 * The frame is the memory that a slot shows there now; what is known of other memory, or of what it held before, is
 * forgotten. slots_lock held, or in a mapping section. -ENOMEM, -EFAULT.
 */
int gmem_snp_guest_claim(struct gmem_snp_guest *guest, uint64_t gfn, uint64_t pfn);

#endif
