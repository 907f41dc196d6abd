/* SPDX-License-Identifier: MIT */
/*
 * All of an SNP guest, launched as its VMM does: firmware, the pages its metadata asks for, vCPUs.
 * Enters: the guest, as files and numbers. Leaves: commands to a launch, of whichever kind. No lock.
 */
#ifndef GMEM_LAUNCH_SNP_LOAD_H
#define GMEM_LAUNCH_SNP_LOAD_H

#include "launch/launch.h"

/* gmem_launch_firmware(); what all guests have is checked. On KVM, vCPUs are the caller's. */
int gmem_snp_launch_firmware(struct gmem_launch *launch, const struct gmem_guest *guest, gmem_progress_fn progress,
			     void *opaque);

#endif
