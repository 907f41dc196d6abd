/* SPDX-License-Identifier: MIT */
/*
 * One page of KVM_TDX_INIT_MEM_REGION, in small: mapped, added, and its 16 chunks measured. The frame is mapped first,
 * as TDH.MEM.PAGE.ADD needs its secure EPT entry.
 */
#include "base/range.h"
#include "launch/launch.h"

static int measure(struct gmem_launch *launch, uint64_t gpa, const char *bytes)
{
	int err = gmem_tdx_digest_add(&launch->tdx, gpa);

	for (uint32_t at = 0; !err && launch->type == GMEM_LAUNCH_NORMAL && at < GMEM_PAGE_SIZE;
	     at += GMEM_TDX_CHUNK_LEN)
		err = gmem_tdx_digest_extend(&launch->tdx, gpa + at, bytes + at);
	return err;
}

int gmem_launch_tdx_page(struct gmem_vm *vm, uint64_t gfn, uint64_t pfn, void *src, void *opaque)
{
	struct gmem_launch *launch = opaque;
	int err = gmem_mmu_map_private_pfn(&launch->vcpu, gfn, pfn);

	(void)vm;
	if (err)
		return err;
	/* One running hash: what went into it does not come out again. */
	err = measure(launch, gfn << GMEM_PAGE_SHIFT, src);
	if (err)
		launch->broken = true;
	return err;
}
