/* SPDX-License-Identifier: MIT */
/*
 * The page that the launch of an SNP guest measures for a vCPU: its VMSA (AMD's manual, volume 2, table B-4), as KVM
 * makes it of what a VMM gives its vCPUs to begin with.
 */
#ifndef GMEM_LAUNCH_MEASURE_VMSA_H
#define GMEM_LAUNCH_MEASURE_VMSA_H

#include <stdint.h>

#include "gmem.h"

#define GMEM_MEASURE_VMSA_GPA UINT64_C(0xfffffffff000) /* of every vCPU */
#define GMEM_MEASURE_FIRST_EIP 0xfffffff0u /* of the first vCPU */

struct gmem_measure_vcpu {
	enum gmem_vmm vmm;
	uint32_t eip;
	uint32_t rdx; /* of VMMs that say one */
	uint64_t sev_features;
};

void gmem_measure_vmsa_build(const struct gmem_measure_vcpu *vcpu, uint8_t ret[GMEM_PAGE_SIZE]);

#endif
