/* SPDX-License-Identifier: MIT */
/* SNP_LAUNCH_UPDATE of one page, in small: the page is the guest's, and one more link of the digest. */
#include <string.h>

#include "base/range.h"
#include "launch/launch.h"

_Static_assert((int)GMEM_LAUNCH_NORMAL == (int)GMEM_SNP_PAGE_NORMAL &&
		       (int)GMEM_LAUNCH_ZERO == (int)GMEM_SNP_PAGE_ZERO &&
		       (int)GMEM_LAUNCH_UNMEASURED == (int)GMEM_SNP_PAGE_UNMEASURED,
	       "page types are the firmware's");

int gmem_launch_snp_page(struct gmem_vm *vm, uint64_t gfn, uint64_t pfn, void *src, void *opaque)
{
	struct gmem_launch *launch = opaque;
	int err = gmem_mmu_map_private_pfn(&launch->vcpu, gfn, pfn);

	(void)vm;
	if (err)
		return err;
	if (launch->type == GMEM_LAUNCH_ZERO)
		memset(gmem_pfn_addr(pfn), 0, GMEM_PAGE_SIZE);
	return gmem_snp_digest_page(&launch->snp, (enum gmem_snp_page)launch->type, gfn << GMEM_PAGE_SHIFT, src);
}
