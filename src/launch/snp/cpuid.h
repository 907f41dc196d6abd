/* SPDX-License-Identifier: MIT */
/*
 * The CPUID page of a launch: a table of what the guest will be told, which the firmware compares with what the machine
 * can do before it gives the page to the guest ("CPUID Reporting" and "PAGE_TYPE_CPUID" of the SEV-SNP Firmware ABI).
 * Enters: the page, trusted in nothing, and the machine. Leaves: the firmware's status; a table that is refused is
 * corrected in place. No lock, but nobody may write to the page during the call.
 *
 * Which values are right is the processor's: AMD publishes one firmware, that of EPYC 9004 ("Genoa", Zen 4), and these
 * are its rules. Other machines differ. A Zen 3 ("Milan") has no AVX-512 (leaf 7, leaf 0xd from 5 to 7 and the sizes of
 * 0xd.0 and 0xd.1), fewer extended leaves and narrower addresses; newer ones have more of all. The rules of one machine
 * change with its firmware, too. What is accepted here may be refused there, and the other way round; what is taken for
 * unchecked here (topology, caches, brand string) is so wherever the manuals leave it to the hypervisor.
 *
 * One difference is meant. That firmware corrects EBX of leaf 0x8000001f so that wrong bits 2 and 3 stay, and refuses
 * the page it has corrected for ever; here they go. Two oddities are kept: EDX of leaf 7 is corrected to zero if any
 * bit of it is wrong, and models are compared by the sum of their two digits.
 */
#ifndef GMEM_LAUNCH_SNP_CPUID_H
#define GMEM_LAUNCH_SNP_CPUID_H

#include <stdbool.h>
#include <stdint.h>

#include "base/range.h"

/* The page: a count, 4 and 8 reserved bytes, then as many entries, little-endian. The rest is anything. */
#define GMEM_SNP_CPUID_MAX 64u
#define GMEM_SNP_CPUID_HEADER 16u
#define GMEM_SNP_CPUID_ENTRY 48u
/* In an entry, all of 32 bits but XCR0, XSS and what is reserved. */
#define GMEM_SNP_CPUID_EAX_IN 0u
#define GMEM_SNP_CPUID_ECX_IN 4u
#define GMEM_SNP_CPUID_XCR0_IN 8u
#define GMEM_SNP_CPUID_XSS_IN 16u
#define GMEM_SNP_CPUID_EAX 24u /* then EBX, ECX, EDX */
#define GMEM_SNP_CPUID_RESERVED 40u

/* EAX of CPUID leaf 1 of an EPYC 9004. */
#define GMEM_SNP_FMS_GENOA 0xa10f11u

/* The machine. */
struct gmem_snp_cpu {
	uint32_t fms; /* EAX of CPUID leaf 1: no guest may be told of a newer one */
};

/*
 * 0, or GMEM_SEV_RET_INVALID_PARAM: the header is wrong and the page is as it was (*ret_correctable false), or an entry
 * is, and the page is what the firmware writes back to it (true). Corrected it is taken, unless an entry's reserved
 * bytes are not zero, which nothing corrects.
 */
uint32_t gmem_snp_cpuid_check(uint8_t page[GMEM_PAGE_SIZE], const struct gmem_snp_cpu *cpu, bool *ret_correctable);

#endif
