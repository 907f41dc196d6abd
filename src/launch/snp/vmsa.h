/* SPDX-License-Identifier: MIT */
/*
 * The VMSA page of a vCPU: its registers where hardware looks for them ("VMSA Layout, State Save Area for SEV-ES" in
 * AMD's Programmer's Manual, volume 2, appendix B). Enters: registers. Leaves: the page that is measured, all of it
 * zero but for them. No lock.
 */
#ifndef GMEM_LAUNCH_SNP_VMSA_H
#define GMEM_LAUNCH_SNP_VMSA_H

#include <stdint.h>

#include "base/range.h"
#include "gmem.h"

/* Where the page is measured: KVM gives every vCPU's this address, which no guest can have. */
#define GMEM_SNP_VMSA_GPA UINT64_C(0xfffffffff000)

void gmem_snp_vmsa_build(const struct gmem_snp_vcpu *vcpu, uint8_t page[GMEM_PAGE_SIZE]);

#endif
