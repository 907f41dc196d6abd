/* SPDX-License-Identifier: MIT */
/*
 * Private pages, and the tables on the way to them, that external tables have to agree to. The MMU's entry is frozen
 * while they are asked: nobody else is at it, and what they answer is what it becomes.
 */
#include "mmu/external.h"

#include <errno.h>

#include "base/err.h"
#include "mmu/log.h"
#include "mmu/mmu.h"

static enum gmem_map_result failed(struct gmem_vcpu *vcpu, int err)
{
	if (err == -EAGAIN)
		return GMEM_MAP_RETRY;
	vcpu->map_err = err;
	return GMEM_MAP_FAILED;
}

static enum gmem_map_result not_accepted(struct gmem_vcpu *vcpu, uint64_t gfn)
{
	return failed(vcpu, gmem_err(-EACCES, "guest frame 0x%llx: the guest has not accepted its private page",
				     (unsigned long long)gfn));
}

static int not_built(uint64_t gfn)
{
	return gmem_err(-EINVAL, "guest frame 0x%llx: its launch is not finished, the guest cannot run",
			(unsigned long long)gfn);
}

/* They have the page already. */
static enum gmem_map_result meet_page(struct gmem_vcpu *vcpu, const struct gmem_mapping *m, gmem_pte *pte, uint64_t e,
				      uint64_t leaf)
{
	if (e & GMEM_PTE_FROZEN)
		return GMEM_MAP_RETRY;
	if (gmem_pte_pfn(e) != m->pfn)
		return GMEM_MAP_CONFLICT;
	if (e & GMEM_PTE_PENDING)
		return not_accepted(vcpu, m->gfn);
	if (atomic_load(&atomic_load(&vcpu->mmu->external)->building))
		return failed(vcpu, not_built(m->gfn));
	return gmem_pte_cas(pte, &e, leaf) ? GMEM_MAP_FIXED : GMEM_MAP_RETRY;
}

enum gmem_map_result gmem_external_set_page(struct gmem_vcpu *vcpu, const struct gmem_mapping *m, gmem_pte *pte,
					    uint64_t leaf)
{
	struct gmem_mmu_external *x = atomic_load(&vcpu->mmu->external);
	uint64_t e = 0, absent = leaf & ~GMEM_PTE_PRESENT;
	int r;

	if (!gmem_pte_cas(pte, &e, absent | GMEM_PTE_FROZEN))
		return e & GMEM_PTE_PRESENT ? GMEM_MAP_RETRY : meet_page(vcpu, m, pte, e, leaf);
	r = x->ops->set_page(x, vcpu, m->gfn, m->pfn);
	if (!r && atomic_load(&x->building))
		leaf = absent;
	atomic_store(pte, !r ? leaf : r == GMEM_EXTERNAL_PENDING ? absent | GMEM_PTE_PENDING : 0);
	if (r == GMEM_EXTERNAL_PENDING)
		return not_accepted(vcpu, m->gfn);
	return r ? failed(vcpu, r) : GMEM_MAP_FIXED;
}

enum gmem_map_result gmem_external_add_table(struct gmem_vcpu *vcpu, uint64_t gfn, int level, gmem_pte *pte,
					     uint64_t *e)
{
	struct gmem_mmu_external *x = atomic_load(&vcpu->mmu->external);
	uint64_t plain = *e & ~GMEM_PTE_FROZEN;
	int r = 0;

	if (*e & GMEM_PTE_FROZEN || !gmem_pte_cas(pte, e, plain | GMEM_PTE_FROZEN))
		return GMEM_MAP_RETRY;
	if (x->ops->add_table)
		r = x->ops->add_table(x, gfn, level);
	*e = r ? plain : plain | GMEM_PTE_EXTERNAL;
	atomic_store(pte, *e);
	return r ? failed(vcpu, r) : GMEM_MAP_FIXED;
}

void gmem_mmu_release(struct gmem_mmu *mmu, uint64_t gfn, uint64_t pfn, uint64_t npages)
{
	struct gmem_mmu_external *x = atomic_load(&mmu->external);

	if (x && x->ops->release)
		x->ops->release(x, gfn, pfn, npages);
}

int gmem_mmu_may_populate(struct gmem_mmu *mmu, uint64_t gfn, uint64_t pfn, bool untouched)
{
	struct gmem_mmu_external *x = atomic_load(&mmu->external);

	if (x && x->ops->may_populate)
		return x->ops->may_populate(x, gfn, pfn);
	if (untouched && gmem_mmu_mapped(mmu, gfn))
		return gmem_err(-EEXIST, "guest frame 0x%llx: launched before, or touched by the guest",
				(unsigned long long)gfn);
	return 0;
}

/* ---- what the guest says */

/* The entry of a page of 4 KiB. NULL: there is none. */
static gmem_pte *find(const struct gmem_vcpu *vcpu, uint64_t gfn)
{
	gmem_pte *table = vcpu->root;

	for (int level = GMEM_PT_LEVELS; level > GMEM_LEVEL_4K; level--) {
		uint64_t e = atomic_load(&table[gmem_pt_index(gfn, level)]);

		if (!(e & GMEM_PTE_PRESENT) || (e & GMEM_PTE_LEAF))
			return NULL;
		table = gmem_pte_table(e);
	}
	return &table[gmem_pt_index(gfn, GMEM_LEVEL_4K)];
}

/* What it has is not what it had: a write of the guest's. In a section. */
static void note_zeroed(struct gmem_mmu *mmu, uint64_t gfn)
{
	const struct gmem_slot *slot = gmem_slots_find(atomic_load(&mmu->slots), gfn);

	if (slot)
		gmem_slot_note(slot, gfn, true);
}

/* In a mapping section, in which no page is taken away. */
static int accept_page(struct gmem_vcpu *vcpu, struct gmem_mmu_external *x, uint64_t gfn, bool accept)
{
	gmem_pte *pte = find(vcpu, gfn);
	uint64_t e = pte ? atomic_load(pte) : 0, plain = e & ~(GMEM_PTE_PENDING | GMEM_PTE_PRESENT);
	int r;

	if (!(e & GMEM_PTE_LEAF))
		return -ENOENT;
	if (!(e & GMEM_PTE_PRIVATE))
		return -EREMOTE;
	if ((e & GMEM_PTE_FROZEN) || !gmem_pte_cas(pte, &e, plain | GMEM_PTE_FROZEN))
		return -EAGAIN;
	/* Who found the page before it was frozen is still at it. */
	if (e & GMEM_PTE_PRESENT)
		gmem_epoch_wait(&vcpu->mmu->epoch);
	r = x->ops->accept(x, gfn, gmem_pte_pfn(e), accept);
	if (!r && accept && x->ops->accept_zeroes)
		note_zeroed(vcpu->mmu, gfn);
	/* Accepted, it is for the next fault to say how it is mapped. */
	atomic_store(pte, r < 0 || (e & GMEM_PTE_PRESENT && accept) ? e : accept ? plain : plain | GMEM_PTE_PENDING);
	return r;
}

int gmem_mmu_accept(struct gmem_vcpu *vcpu, uint64_t gfn, bool accept)
{
	struct gmem_mmu *mmu = vcpu->mmu;
	struct gmem_mmu_external *x = atomic_load(&mmu->external);
	int r = gmem_mmu_reload(vcpu);

	if (r)
		return r;
	if (!x || !x->ops->accept)
		return gmem_err(-EOPNOTSUPP, "this VM's guest is not asked whether it accepts its pages");
	if (atomic_load(&x->building))
		return not_built(gfn);
	do {
		if (gmem_vcpu_cancelled(vcpu))
			return gmem_err(-EINTR, "guest frame 0x%llx: cancelled", (unsigned long long)gfn);
		if (gmem_mmu_dead(mmu))
			return gmem_err(-EIO, "this VM is dead");
		r = -EAGAIN;
		if (gmem_mmu_begin_map(vcpu)) {
			r = accept_page(vcpu, x, gfn, accept);
			gmem_mmu_end_map(vcpu);
		}
		/* Somebody else is at the page, or an invalidation runs. */
		if (r == -EAGAIN)
			gmem_mmu_pause();
	} while (r == -EAGAIN);
	return r;
}
