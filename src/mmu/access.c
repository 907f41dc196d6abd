/* SPDX-License-Identifier: MIT */
/* What other rooms see of the tables: a page for the time of an epoch, slots, whether the VM lives. */
#include <errno.h>

#include "base/range.h"
#include "file/gate.h"
#include "mmu/mmu.h"

static bool serves(uint64_t e, uint32_t access, enum gmem_want want)
{
	if (!e || ((access & GMEM_ACCESS_WRITE) && !(e & GMEM_PTE_WRITE)))
		return false;
	return want == GMEM_WANT_ANY || (want == GMEM_WANT_PRIVATE) == !!(e & GMEM_PTE_PRIVATE);
}

char *gmem_mmu_enter(struct gmem_vcpu *vcpu, uint64_t gfn, uint32_t access, enum gmem_want want)
{
	struct gmem_mmu *mmu = vcpu->mmu;
	uint64_t e;

	/* Another vCPU, or a launch, may have made the tables. */
	if (!vcpu->root)
		vcpu->root = atomic_load(&mmu->root);
	if (!vcpu->root)
		return NULL;
	gmem_epoch_enter(&mmu->epoch, &vcpu->reader);
	e = gmem_mmu_walk(vcpu, gfn);
	if (serves(e, access, want))
		return (char *)(uintptr_t)(gmem_pte_pfn(e) << GMEM_PAGE_SHIFT);
	gmem_epoch_leave(&vcpu->reader);
	return NULL;
}

void gmem_mmu_leave(struct gmem_vcpu *vcpu)
{
	gmem_epoch_leave(&vcpu->reader);
}

bool gmem_mmu_mapped(struct gmem_mmu *mmu, uint64_t gfn)
{
	struct gmem_vcpu nobody = { .mmu = mmu, .root = atomic_load(&mmu->root) };
	bool mapped;

	if (!nobody.root)
		return false;
	gmem_rwlock_lock_shared(&mmu->lock);
	mapped = gmem_mmu_entry(&nobody, gfn);
	gmem_rwlock_unlock_shared(&mmu->lock);
	return mapped;
}

bool gmem_mmu_has_slot(struct gmem_vcpu *vcpu, uint64_t gfn)
{
	bool found;

	gmem_mmu_begin_look(vcpu);
	found = gmem_slots_find(atomic_load(&vcpu->mmu->slots), gfn);
	gmem_mmu_end_look(vcpu);
	return found;
}

bool gmem_mmu_has_gate(struct gmem_vcpu *vcpu, uint64_t gfn)
{
	const struct gmem_slot *slot;
	bool found;

	gmem_mmu_begin_look(vcpu);
	slot = gmem_slots_find(atomic_load(&vcpu->mmu->slots), gfn);
	found = slot && slot->gate;
	gmem_mmu_end_look(vcpu);
	return found;
}

bool gmem_mmu_behind_gate(struct gmem_vcpu *vcpu, const void *hva, uint64_t *ret_gpa)
{
	const struct gmem_slots *slots;
	bool found = false;

	gmem_mmu_begin_look(vcpu);
	slots = atomic_load(&vcpu->mmu->slots);
	for (uint32_t i = 0; slots && i < slots->n && !found; i++) {
		const struct gmem_slot *s = slots->slot[i];
		uintptr_t first = s->gate ? (uintptr_t)gmem_gate_at(s->gate, s->off) : 0;
		uint64_t at = first ? (uint64_t)((uintptr_t)hva - first) : UINT64_MAX;

		found = at >> GMEM_PAGE_SHIFT < s->npages;
		if (found)
			*ret_gpa = (s->gfn << GMEM_PAGE_SHIFT) + at;
	}
	gmem_mmu_end_look(vcpu);
	return found;
}

/* Inside a look. */
static int page_of(struct gmem_vcpu *vcpu, uint64_t gfn, struct gmem_mmu_page *ret)
{
	const struct gmem_slot *slot = gmem_slots_find(atomic_load(&vcpu->mmu->slots), gfn);
	struct gmem_file *file = slot ? atomic_load(&slot->file) : NULL;

	if (!file)
		return slot ? -EBADF : -ENOENT;
	ret->file = file;
	ret->off = gmem_slot_off(slot, gfn);
	ret->private = gmem_file_private(file, ret->off);
	ret->userfault = gmem_slot_userfault(slot, gfn, 1);
	return 0;
}

int gmem_mmu_page_of(struct gmem_vcpu *vcpu, uint64_t gfn, struct gmem_mmu_page *ret)
{
	int err;

	gmem_mmu_begin_look(vcpu);
	err = page_of(vcpu, gfn, ret);
	if (!err)
		gmem_file_get(ret->file);
	gmem_mmu_end_look(vcpu);
	return err;
}

bool gmem_mmu_is_still(struct gmem_vcpu *vcpu, uint64_t gfn, struct gmem_mmu_page *page)
{
	struct gmem_mmu_page now;
	bool same;

	gmem_mmu_begin_look(vcpu);
	same = !page_of(vcpu, gfn, &now) && now.file == page->file && now.off == page->off;
	gmem_mmu_end_look(vcpu);
	if (same)
		*page = now;
	return same;
}

struct gmem_slots *gmem_mmu_publish_slots(struct gmem_mmu *mmu, struct gmem_slots *new)
{
	struct gmem_slots *old;

	/* Before the table: see gmem_mmu_slots_changed(). */
	atomic_fetch_add(&mmu->slots_seq, 1);
	old = atomic_exchange(&mmu->slots, new);
	/* After the table, and before the wait: see find_slot() in fault.c. */
	atomic_fetch_add(&mmu->slots_seq, 1);
	/* Whoever looks at slots without slots_lock does so in this epoch. */
	gmem_epoch_wait(&mmu->maps);
	return old;
}

void gmem_mmu_wait_readers(struct gmem_mmu *mmu)
{
	gmem_epoch_wait(&mmu->maps);
	gmem_epoch_wait(&mmu->epoch);
}
