/* SPDX-License-Identifier: MIT */
/*
 * Taking translations away. Once no vCPU is in a mapping section, and none can come into one, entries are cleared under
 * the lock, exclusive; then, without it, the zap waits until every accessor that was inside its epoch is out, and only
 * then do cut-off tables go back to the pool and the zap returns.
 *
 * What external tables have goes in steps (external.h): its entries are frozen while it is blocked; once accessors are
 * out it is cleared, there and here. One thread at a time does so, and what is frozen when it looks is its own.
 */
#include "mmu/mmu.h"

#define BOTH (GMEM_SIDE_SHARED | GMEM_SIDE_PRIVATE)

/* In one go; where a range has more, it is gone over again. */
#define MAX_CUT 1024u

struct zap {
	struct gmem_mmu *mmu;
	struct gmem_mmu_external *x; /* that has the private pages; NULL: nobody */
	uint64_t from, to; /* guest frames */
	uint32_t sides;
	uint64_t cleared; /* entries */
	uint64_t blocked; /* external pages, which are to be cleared */
	bool clearing; /* that is being done */
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
static void change(struct zap *z, gmem_pte *pte, uint64_t e)
{
	atomic_store(pte, e);
	z->cleared++;
}

/* Nobody is there to be told: no guest runs any more. */
static void check(const struct zap *z, int err)
{
	if (err)
		gmem_mmu_kill(z->mmu);
}

/* False: something is left in the entry. */
static bool take_external(struct zap *z, gmem_pte *pte, uint64_t e, uint64_t gfn)
{
	const struct gmem_mmu_external_ops *ops = z->x->ops;

	if (z->sides & GMEM_SIDE_KEEP) {
		if (e & GMEM_PTE_PRESENT)
			change(z, pte, e & ~GMEM_PTE_PRESENT);
		return false;
	}
	if (!z->clearing) {
		/* By an earlier round of this pass. */
		if (e & GMEM_PTE_FROZEN)
			return false;
		if (ops->block)
			check(z, ops->block(z->x, gfn, gmem_pte_pfn(e)));
		/* Accessors are waited for once it has been tracked too. */
		atomic_store(pte, (e & ~(GMEM_PTE_PRESENT | GMEM_PTE_PENDING)) | GMEM_PTE_FROZEN);
		z->blocked++;
		return false;
	}
	if (!(e & GMEM_PTE_FROZEN))
		return false;
	check(z, ops->clear_page(z->x, gfn, gmem_pte_pfn(e)));
	change(z, pte, 0);
	return true;
}

/* False: there is no room to remember it, or others have such a table too, and keep it. */
static bool cut_off(struct zap *z, gmem_pte *pte, uint64_t e, int level)
{
	if (e & GMEM_PTE_EXTERNAL)
		return false;
	if (z->ncut == MAX_CUT) {
		z->full = true;
		return false;
	}
	z->cut[z->ncut++] = (struct cut){ gmem_pte_table(e), level };
	change(z, pte, 0);
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

		if (e & GMEM_PTE_LEAF) {
			/* A large leaf goes whole, and comes back in small ones. */
			if (!(z->sides & side_of(e)))
				empty = false;
			else if (z->x && (e & GMEM_PTE_PRIVATE))
				empty = take_external(z, &table[i], e, at) && empty;
			else
				change(z, &table[i], 0);
			continue;
		}
		if (!(e & GMEM_PTE_PRESENT))
			continue;
		/* All of it goes; or what is to go does so entry by entry, and the table too if that was all. */
		if (whole && (z->sides & BOTH) == BOTH && cut_off(z, &table[i], e, level - 1))
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

/* Goes over the range until all that can go at once is gone. */
static void pass(struct zap *z)
{
	struct gmem_mmu *mmu = z->mmu;
	bool others;

	do {
		gmem_pte *root;

		z->cleared = z->ncut = 0;
		z->full = false;
		gmem_rwlock_lock(&mmu->lock);
		/* Under the lock: a launch that has just begun populates without regard to others' invalidations. */
		if (z->sides & GMEM_SIDE_KEEP)
			z->x = atomic_load(&mmu->external);
		root = atomic_load(&mmu->root);
		if (root)
			(void)zap_table(z, root, GMEM_PT_LEVELS, 0);
		/* Under the lock: who has cleared before us is counted until it has waited. */
		others = atomic_load(&mmu->invalidating) > 1;
		gmem_rwlock_unlock(&mmu->lock);
		/* What another one has cleared, and is waiting for, may be ours too. */
		if (z->cleared || others)
			gmem_epoch_wait(&mmu->epoch);
		free_cut(mmu, z);
	} while (z->full);
}

/* What was blocked is nobody's any more. */
static void clear_blocked(struct zap *z)
{
	if (z->x->ops->track)
		check(z, z->x->ops->track(z->x));
	gmem_epoch_wait(&z->mmu->epoch);
	z->clearing = true;
	pass(z);
}

void gmem_mmu_invalidate_begin(struct gmem_mmu *mmu, uint64_t gfn, uint64_t npages, uint32_t sides)
{
	bool takes = (sides & GMEM_SIDE_PRIVATE) && !(sides & GMEM_SIDE_KEEP);
	struct zap z; /* too large to be zeroed for nothing */

	z.mmu = mmu;
	z.from = gfn;
	z.to = gfn + npages;
	z.sides = sides;
	z.blocked = 0;
	z.clearing = false;
	end_maps(mmu);
	/* Who takes away keeps populating out, by slots_lock or the file's lock. */
	z.x = takes ? atomic_load(&mmu->external) : NULL;
	takes = z.x;
	if (takes) {
		gmem_lockcheck_acquire(GMEM_LOCK_CLEARING, &mmu->clearing);
		pthread_mutex_lock(&mmu->clearing);
	}
	pass(&z);
	if (z.blocked)
		clear_blocked(&z);
	if (takes) {
		pthread_mutex_unlock(&mmu->clearing);
		gmem_lockcheck_release(GMEM_LOCK_CLEARING, &mmu->clearing);
	}
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
