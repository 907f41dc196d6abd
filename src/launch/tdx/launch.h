/* SPDX-License-Identifier: MIT */
/* An emulated TDX launch, as its loader sees it. Lock: see launch/launch.h. */
#ifndef GMEM_LAUNCH_TDX_LAUNCH_H
#define GMEM_LAUNCH_TDX_LAUNCH_H

#include "launch/launch.h"

/* vCPUs that were added to an emulated TDX launch. */
uint32_t gmem_tdx_launch_nvcpus(struct gmem_launch *launch);

/* gmem_launch_firmware(), of a TDX launch; the length of the image is checked. */
int gmem_tdx_launch_firmware(struct gmem_launch *launch, const struct gmem_guest *guest, gmem_progress_fn progress,
			     void *opaque);

#endif
