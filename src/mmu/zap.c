/* SPDX-License-Identifier: MIT */
/*
 * Taking translations away. Once no vCPU is in a mapping section, and none can come into one, entries are cleared under
 * the lock, exclusive; then, without it, the zap waits until every accessor that was inside its epoch is out, and only
 * then do cut-off tables go back to the pool and the zap returns.
 */
#include "mmu/mmu.h"

#define BOTH (GMEM_SIDE_SHARED | GMEM_SIDE_PRIVATE)

/* In one go; where a range has more, it is gone over again. */
#define MAX_CUT 1024u

struct zap {
	uint64_t from, to; /* guest frames */
	uint32_t sides;
	uint64_t cleared; /* entries */
	uint32_t ncut;
	bool full; /* a table is left that could have been cut off */
	struct cut {
		gmem_pte *table;
		int level;
	} cut[MAX_CUT]; /* tables whose trees are cut off */
};

static uint32_t side_of(uint64_t e)
{
	return e & GMEM_PTE_PRIVATE ? GMEM_SIDE_PRIVATE : GMEM_SIDE_SHARED;
}

/* Sequentially consistent: see base/epoch.h. */
static void clear(struct zap *z, gmem_pte *pte)
{
	atomic_store(pte, 0);
	z->cleared++;
}

/* False: there is no room to remember it. */
static bool cut_off(struct zap *z, gmem_pte *pte, uint64_t e, int level)
{
	if (z->ncut == MAX_CUT) {
		z->full = true;
		return false;
	}
	z->cut[z->ncut++] = (struct cut){ gmem_pte_table(e), level };
	clear(z, pte);
	return true;
}

static bool is_empty(const gmem_pte *table)
{
	for (unsigned int i = 0; i < GMEM_PT_ENTRIES; i++)
		if (atomic_load_explicit(&table[i], memory_order_relaxed))
			return false;
	return true;
}

/* `base` is the first frame of the table. True if nothing that it looked at is left. */
static bool zap_table(struct zap *z, gmem_pte *table, int level, uint64_t base)
{
	uint64_t span = gmem_level_pages(level);
	uint64_t first = z->from > base ? (z->from - base) / span : 0;
	bool empty = true;

	for (uint64_t i = first; i < GMEM_PT_ENTRIES && base + i * span < z->to; i++) {
		uint64_t e = atomic_load(&table[i]), at = base + i * span;
		bool whole = at >= z->from && at + span <= z->to;

		if (!(e & GMEM_PTE_PRESENT))
			continue;
		if (e & GMEM_PTE_LEAF) {
			/* A large leaf goes whole, and comes back in small ones. */
			if (z->sides & side_of(e))
				clear(z, &table[i]);
			else
				empty = false;
			continue;
		}
		/* All of it goes; or what is to go does so entry by entry, and the table too if that was all. */
		if (whole && z->sides == BOTH && cut_off(z, &table[i], e, level - 1))
			continue;
		if (!zap_table(z, gmem_pte_table(e), level - 1, at) || !(whole || is_empty(gmem_pte_table(e))) ||
		    !cut_off(z, &table[i], e, level - 1))
			empty = false;
	}
	return empty;
}

static void free_cut(struct gmem_mmu *mmu, const struct zap *z)
{
	for (uint32_t i = 0; i < z->ncut; i++)
		gmem_table_free_tree(&mmu->pool, z->cut[i].table, z->cut[i].level);
}

/* The sections that there are end, and there are no more until `invalidating` is 0 again. */
static void end_maps(struct gmem_mmu *mmu)
{
	/* From inside a section this would wait for itself: says so instead. */
	gmem_lockcheck_acquire(GMEM_LOCK_MMU, &mmu->maps);
	atomic_fetch_add(&mmu->invalidating, 1);
	gmem_epoch_wait(&mmu->maps);
	gmem_lockcheck_release(GMEM_LOCK_MMU, &mmu->maps);
}

void gmem_mmu_invalidate_begin(struct gmem_mmu *mmu, uint64_t gfn, uint64_t npages, uint32_t sides)
{
	struct zap z; /* too large to be zeroed for nothing */
	bool others;

	z.from = gfn;
	z.to = gfn + npages;
	z.sides = sides;
	end_maps(mmu);
	do {
		gmem_pte *root;

		z.cleared = z.ncut = 0;
		z.full = false;
		gmem_rwlock_lock(&mmu->lock);
		root = atomic_load(&mmu->root);
		if (root)
			(void)zap_table(&z, root, GMEM_PT_LEVELS, 0);
		/* Under the lock: who has cleared before us is counted until it has waited. */
		others = atomic_load(&mmu->invalidating) > 1;
		gmem_rwlock_unlock(&mmu->lock);
		/* What another one has cleared, and is waiting for, may be ours too. */
		if (z.cleared || others)
			gmem_epoch_wait(&mmu->epoch);
		free_cut(mmu, &z);
	} while (z.full);
}

void gmem_mmu_invalidate_end(struct gmem_mmu *mmu)
{
	/* Sequence before count: whoever sees no invalidation running sees that one has ended. */
	atomic_fetch_add(&mmu->invalidate_seq, 1);
	atomic_fetch_sub(&mmu->invalidating, 1);
}

void gmem_mmu_zap(struct gmem_mmu *mmu, uint64_t gfn, uint64_t npages, uint32_t sides)
{
	gmem_mmu_invalidate_begin(mmu, gfn, npages, sides);
	gmem_mmu_invalidate_end(mmu);
}
