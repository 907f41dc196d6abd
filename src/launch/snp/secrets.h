/* SPDX-License-Identifier: MIT */
/*
 * The secrets page, version 3: what the firmware tells a guest that nobody else is to know ("Secrets Page Format" of
 * the SEV-SNP Firmware ABI). Enters: what the guest's context holds. Leaves: the page, none of it measured. No lock.
 */
#ifndef GMEM_LAUNCH_SNP_SECRETS_H
#define GMEM_LAUNCH_SNP_SECRETS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/range.h"

#define GMEM_SNP_VMPCKS 4u

/*
 * A guest has one of these for all its secrets pages: the firmware makes the keys with its context. What is zero is
 * allowed: no migration's image, no tweaked quadwords in its VMSAs.
 */
struct gmem_snp_secrets {
	uint8_t vmpck[GMEM_SNP_VMPCKS][32]; /* by which VMPL 0 to 3 speak with the firmware: AES-256-GCM */
	bool imi_en; /* an initial migration image */
	uint32_t fms; /* the machine's family, model and stepping: EAX of CPUID leaf 1 */
	uint8_t gosvw[16]; /* guest OS visible workarounds, as LAUNCH_START was given them */
	uint8_t vmsa_tweak_bitmap[64]; /* a bit a quadword of a VMSA that hardware keeps masked */
	uint32_t tsc_factor; /* how much slower than its nominal frequency the TSC may be, in 1/100000 */
};

/* New keys, from the kernel's random numbers. Waits for these only right after boot. -ENOSYS, -EIO: there are none. */
int gmem_snp_secrets_make_keys(struct gmem_snp_secrets *secrets);

/* The area that is the guest's own use, and all that is reserved, begins as zero. */
void gmem_snp_secrets_build(const struct gmem_snp_secrets *secrets, uint8_t page[GMEM_PAGE_SIZE]);

#endif
