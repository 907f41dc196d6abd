/* SPDX-License-Identifier: MIT */
/*
 * Mapping a private frame that the caller already holds, in the middle of a populate.
 *
 * The file is not asked again: its invalidate lock is held by the caller, exclusive, and a look-up that took it would
 * wait for itself. That lock, and slots_lock, also keep every invalidation of the frame out but the caller's own, which
 * must not be looked for: so this maps under the MMU lock, and in no mapping section.
 */
#include <errno.h>

#include "base/err.h"
#include "mmu/log.h"
#include "mmu/mmu.h"

int gmem_mmu_map_private_pfn(struct gmem_vcpu *vcpu, uint64_t gfn, uint64_t pfn)
{
	struct gmem_mmu *mmu = vcpu->mmu;
	struct gmem_mapping m = {
		.gfn = gfn,
		.pfn = pfn,
		.private = true,
		/* A slot with private memory cannot be read-only. */
		.writable = true,
		.level = GMEM_LEVEL_4K,
	};
	enum gmem_map_result r;
	struct gmem_slot *slot;
	int err;

	gmem_lockcheck_assert_class(GMEM_LOCK_SLOTS);
	gmem_lockcheck_assert_class(GMEM_LOCK_INVALIDATE);
	if (mmu->no_tables) {
		gmem_mmu_kill(mmu);
		return gmem_err(-EIO, "gmem_mmu_map_private_pfn: this VM has no second-stage tables here: it is dead");
	}
	slot = gmem_slots_find(atomic_load(&mmu->slots), gfn);
	if (slot && atomic_load(&slot->file))
		gmem_lockcheck_assert_held(GMEM_LOCK_INVALIDATE, &atomic_load(&slot->file)->invalidate_lock);
	if (!slot || !gmem_slot_has_file(slot))
		return gmem_err(-EINVAL, "gmem_mmu_map_private_pfn: gfn 0x%llx: no slot%s", (unsigned long long)gfn,
				slot ? " with a file" : "");
	if (gmem_slot_tracked(slot, gfn))
		return gmem_err(-EPERM, "gmem_mmu_map_private_pfn: gfn 0x%llx: its writes are watched",
				(unsigned long long)gfn);
	if (gmem_slot_logs(slot) & GMEM_LOG_DIRTY)
		m.writable = false;
	err = gmem_mmu_reload(vcpu);
	if (err)
		return err;
	do {
		if (gmem_vcpu_cancelled(vcpu))
			return gmem_err(-EINTR, "gmem_mmu_map_private_pfn: cancelled");
		if (gmem_mmu_dead(mmu))
			return gmem_err(-EIO, "gmem_mmu_map_private_pfn: this VM is dead");
		err = gmem_table_topup(&mmu->pool, &vcpu->cache);
		if (err)
			return err;
		m.nx_huge_pages = atomic_load(&mmu->nx_huge_pages);
		/* Exclusive: an invalidation of other frames may be clearing entries. */
		gmem_rwlock_lock(&mmu->lock);
		r = gmem_mmu_map(vcpu, &m);
		gmem_rwlock_unlock(&mmu->lock);
		if (r == GMEM_MAP_RETRY && gmem_mmu_asks(mmu, true))
			gmem_mmu_pause();
	} while (r == GMEM_MAP_RETRY);
	if (r == GMEM_MAP_FAILED)
		return gmem_err_prefix(vcpu->map_err, "gmem_mmu_map_private_pfn: gfn 0x%llx", (unsigned long long)gfn);
	if (r != GMEM_MAP_FIXED)
		return gmem_err(-EIO, "gmem_mmu_map_private_pfn: gfn 0x%llx: %s", (unsigned long long)gfn,
				r == GMEM_MAP_SPURIOUS ? "mapped already" : "something else is mapped there");
	/* slots_lock is held: nobody has looked meanwhile. */
	gmem_slot_note(slot, gfn, false);
	gmem_mmu_count(vcpu, GMEM_MMU_PRIVATE_MAPS);
	return 0;
}
