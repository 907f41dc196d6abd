/* SPDX-License-Identifier: MIT */
/*
 * Memory of the caller's in a slot. It may be missing, unmapped, lazily served or poisoned, so nothing is known of it
 * and nothing mapped: an access is made by a system call, outside every epoch, since it may take long. Instead of by an
 * epoch its users are counted, in one of two counters, so that those who came before a change can be told from those
 * who come after it.
 */
#include <errno.h>
#include <sched.h>
#include <time.h>

#include "base/err.h"
#include "base/range.h"
#include "mmu/mmu.h"

#define LOOKS 100
#define LONGEST_PAUSE 1000000 /* ns */

int gmem_hva_get(struct gmem_slot *slot, uint64_t gfn, uint32_t access, struct gmem_hva *ret)
{
	if (gmem_slot_userfault(slot, gfn, 1))
		return -EREMOTEIO;
	if ((access & GMEM_ACCESS_WRITE) && (atomic_load(&slot->flags) & GMEM_SLOT_READONLY))
		return -EROFS;
	if ((access & GMEM_ACCESS_WRITE) && gmem_slot_tracked(slot, gfn))
		return gmem_err(-EPERM, "guest frame 0x%llx: its writes are watched", (unsigned long long)gfn);
	*ret = (struct gmem_hva){
		.page = slot->hva + ((gfn - slot->gfn) << GMEM_PAGE_SHIFT),
		.slot = slot,
		.phase = atomic_load(&slot->phase),
	};
	atomic_fetch_add(&slot->users[ret->phase], 1);
	return 0;
}

void gmem_hva_put(struct gmem_hva *hva)
{
	/* Pairs with the load in gmem_hva_drain(). The slot may be gone at once. */
	atomic_fetch_sub_explicit(&hva->slot->users[hva->phase], 1, memory_order_release);
}

void gmem_hva_drain(struct gmem_mmu *mmu, struct gmem_slot *slot)
{
	uint32_t old = atomic_load(&slot->phase);
	struct timespec pause = { .tv_nsec = 20000 };

	gmem_lockcheck_assert_class(GMEM_LOCK_SLOTS);
	if (!slot->hva)
		return;
	atomic_store(&slot->phase, !old);
	/* Who has read the old phase has counted itself. */
	gmem_mmu_wait_readers(mmu);
	for (int i = 0; atomic_load_explicit(&slot->users[old], memory_order_acquire); i++) {
		if (i < LOOKS) {
			sched_yield();
			continue;
		}
		nanosleep(&pause, NULL);
		pause.tv_nsec = (long)gmem_min_u64((uint64_t)pause.tv_nsec * 2, LONGEST_PAUSE);
	}
}
