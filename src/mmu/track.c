/* SPDX-License-Identifier: MIT */
/* Pages whose writes are watched. */
#include <errno.h>
#include <stdlib.h>

#include "base/err.h"
#include "mmu/mmu.h"

int gmem_mmu_track_write(struct gmem_mmu *mmu, uint64_t gfn, bool on)
{
	struct gmem_slot *slot;
	uint8_t *tracked;

	gmem_lockcheck_assert_class(GMEM_LOCK_SLOTS);
	slot = gmem_slots_find(atomic_load(&mmu->slots), gfn);
	if (!slot)
		return gmem_err(-EINVAL, "guest frame 0x%llx: no slot", (unsigned long long)gfn);
	tracked = atomic_load(&slot->tracked);
	if (!tracked) {
		tracked = calloc(slot->npages, 1);
		if (!tracked)
			return gmem_err_sys(-ENOMEM, "guest frame 0x%llx", (unsigned long long)gfn);
		atomic_store(&slot->tracked, tracked);
	}
	__atomic_store_n(&tracked[gfn - slot->gfn], on, __ATOMIC_SEQ_CST);
	/* What is mapped goes, and a fault that looked before this retries. */
	gmem_mmu_zap(mmu, gfn, 1, GMEM_SIDE_SHARED | GMEM_SIDE_PRIVATE | GMEM_SIDE_KEEP);
	gmem_hva_drain(mmu, slot);
	return 0;
}
