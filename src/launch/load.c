/* SPDX-License-Identifier: MIT */
/* All of a guest, launched as its VMM does: what every guest has is checked here; then see snp/load.c, tdx/load.c. */
#include <errno.h>

#include "base/err.h"
#include "base/range.h"
#include "launch/launch.h"
#include "launch/snp/load.h"
#include "launch/tdx/launch.h"

static int check(const struct gmem_guest *guest)
{
	if (guest->size != sizeof(*guest))
		return gmem_err(-EINVAL, "guest->size is %zu, not %zu", guest->size, sizeof(*guest));
	if (guest->flags & ~(GMEM_GUEST_TWO_PASS | GMEM_GUEST_EC2_RDX_ZERO))
		return gmem_err(-EINVAL, "flags 0x%x: unknown", guest->flags);
	if (!guest->firmware || !guest->firmware_len || !gmem_page_aligned(guest->firmware_len) ||
	    guest->firmware_len > 1ull << 32)
		return gmem_err(-EINVAL, "an image of %llu bytes: none, not whole pages, or over 4 GiB",
				(unsigned long long)guest->firmware_len);
	return 0;
}

int gmem_launch_firmware(struct gmem_launch *launch, const struct gmem_guest *guest, gmem_progress_fn progress,
			 void *opaque)
{
	int err = check(guest);

	if (!err)
		err = launch->type == GMEM_VM_SNP ? gmem_snp_launch_firmware(launch, guest, progress, opaque) :
						    gmem_tdx_launch_firmware(launch, guest, progress, opaque);
	return err ? gmem_err_prefix(err, "gmem_launch_firmware") : 0;
}
