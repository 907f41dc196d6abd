/* SPDX-License-Identifier: MIT */
/*
 * Taking translations away. Entries are cleared under the lock, exclusive; then, without it, the zap waits until every
 * accessor that was inside its epoch is out, and only then do cut-off tables go back to the pool and the zap returns.
 */
#include "mmu/mmu.h"

#define BOTH (GMEM_SIDE_SHARED | GMEM_SIDE_PRIVATE)

/* Enough for the edges of any range at two levels. */
#define MAX_CUT 1024u

struct zap {
	uint64_t from, to; /* guest frames */
	uint32_t sides;
	uint64_t cleared; /* entries */
	uint32_t ncut;
	struct cut {
		gmem_pte *table;
		int level;
	} cut[MAX_CUT]; /* tables whose trees are cut off */
};

static uint32_t side_of(uint64_t e)
{
	return e & GMEM_PTE_PRIVATE ? GMEM_SIDE_PRIVATE : GMEM_SIDE_SHARED;
}

/* `base` is the first frame of the table. */
static void zap_table(struct zap *z, gmem_pte *table, int level, uint64_t base)
{
	uint64_t span = gmem_level_pages(level);
	uint64_t first = z->from > base ? (z->from - base) / span : 0;

	for (uint64_t i = first; i < GMEM_PT_ENTRIES && base + i * span < z->to; i++) {
		uint64_t e = atomic_load(&table[i]), at = base + i * span;
		bool whole = at >= z->from && at + span <= z->to;

		if (!(e & GMEM_PTE_PRESENT))
			continue;
		if (e & GMEM_PTE_LEAF) {
			if (!(z->sides & side_of(e)))
				continue;
		} else if (!whole || z->sides != BOTH || z->ncut == MAX_CUT) {
			/* Not all of it goes, or there is no room to remember it: entry by entry. */
			zap_table(z, gmem_pte_table(e), level - 1, at);
			continue;
		} else {
			z->cut[z->ncut++] = (struct cut){ gmem_pte_table(e), level - 1 };
		}
		/* Sequentially consistent: see base/epoch.h. A large leaf goes whole, and comes back in small ones. */
		atomic_store(&table[i], 0);
		z->cleared++;
	}
}

static void finish(struct gmem_mmu *mmu, struct zap *z)
{
	if (!z->cleared)
		return;
	gmem_epoch_wait(&mmu->epoch);
	for (uint32_t i = 0; i < z->ncut; i++)
		gmem_table_free_tree(&mmu->pool, z->cut[i].table, z->cut[i].level);
}

static void zap_begin(struct gmem_mmu *mmu, struct zap *z, uint64_t gfn, uint64_t npages, uint32_t sides)
{
	gmem_pte *root = atomic_load(&mmu->root);

	z->from = gfn;
	z->to = gfn + npages;
	z->sides = sides;
	z->cleared = 0;
	z->ncut = 0;
	if (root)
		zap_table(z, root, GMEM_PT_LEVELS, 0);
}

void gmem_mmu_invalidate_begin(struct gmem_mmu *mmu, uint64_t gfn, uint64_t npages, uint32_t sides)
{
	struct zap z;

	gmem_rwlock_lock(&mmu->lock);
	atomic_fetch_add(&mmu->invalidating, 1);
	zap_begin(mmu, &z, gfn, npages, sides);
	gmem_rwlock_unlock(&mmu->lock);
	finish(mmu, &z);
}

void gmem_mmu_invalidate_end(struct gmem_mmu *mmu)
{
	gmem_rwlock_lock(&mmu->lock);
	/* Sequence before count: whoever sees no invalidation running sees that one has ended. */
	atomic_fetch_add(&mmu->invalidate_seq, 1);
	atomic_fetch_sub(&mmu->invalidating, 1);
	gmem_rwlock_unlock(&mmu->lock);
}

void gmem_mmu_zap(struct gmem_mmu *mmu, uint64_t gfn, uint64_t npages, uint32_t sides)
{
	gmem_mmu_invalidate_begin(mmu, gfn, npages, sides);
	gmem_mmu_invalidate_end(mmu);
}
