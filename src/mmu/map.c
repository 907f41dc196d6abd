/* SPDX-License-Identifier: MIT */
/* The mapping core: from the root down to the leaf, by compare-and-swap, because others map at the same time. */
#include "mmu/mmu.h"

static uint64_t leaf_of(const struct gmem_mapping *m, int level)
{
	uint64_t pfn = m->pfn - (m->gfn & (gmem_level_pages(level) - 1));
	uint64_t e = pfn << GMEM_PAGE_SHIFT | GMEM_PTE_PRESENT | GMEM_PTE_LEAF;

	if (m->writable)
		e |= GMEM_PTE_WRITE;
	if (m->private)
		e |= GMEM_PTE_PRIVATE;
	if (level == GMEM_LEVEL_4K || !m->nx_huge_pages)
		e |= GMEM_PTE_EXEC;
	return e;
}

static bool allows(uint64_t e, uint32_t access)
{
	return !((access & GMEM_ACCESS_WRITE) && !(e & GMEM_PTE_WRITE)) &&
	       !((access & GMEM_ACCESS_EXEC) && !(e & GMEM_PTE_EXEC));
}

/* A leaf of that level is there already. */
static enum gmem_map_result meet_leaf(const struct gmem_mapping *m, uint64_t e, int level)
{
	uint64_t pfn = gmem_pte_pfn(e) + (m->gfn & (gmem_level_pages(level) - 1));

	if (pfn == m->pfn && !!(e & GMEM_PTE_PRIVATE) == m->private && allows(e, m->access))
		return GMEM_MAP_SPURIOUS;
	return GMEM_MAP_CONFLICT;
}

/* A table goes into an empty entry. False: another thread was quicker, *e is what it put there. */
static bool add_table(struct gmem_vcpu *vcpu, gmem_pte *pte, uint64_t *e)
{
	gmem_pte *table = gmem_table_take(&vcpu->cache);
	uint64_t new = (uintptr_t)table | GMEM_PTE_PRESENT;

	if (gmem_pte_cas(pte, e, new)) {
		*e = new;
		return true;
	}
	gmem_table_give(&vcpu->cache, table);
	return false;
}

enum gmem_map_result gmem_mmu_map(struct gmem_vcpu *vcpu, const struct gmem_mapping *m)
{
	bool asks = gmem_mmu_asks(vcpu->mmu, m->private);
	int leaf_level = asks ? GMEM_LEVEL_4K : m->level;
	gmem_pte *table = vcpu->root;

	for (int level = GMEM_PT_LEVELS;; level--) {
		gmem_pte *pte = &table[gmem_pt_index(m->gfn, level)];
		uint64_t e = atomic_load(pte);

		if ((e & GMEM_PTE_PRESENT) && (e & GMEM_PTE_LEAF))
			return meet_leaf(m, e, level);
		/* What external tables have is theirs until they are asked. */
		if (e & GMEM_PTE_LEAF && !asks)
			return GMEM_MAP_CONFLICT;
		/* Where a table is, its pages are mapped one by one, though a large leaf would do. */
		if (!(e & GMEM_PTE_PRESENT)) {
			if (level <= leaf_level && asks)
				return gmem_external_set_page(vcpu, m, pte, leaf_of(m, level));
			if (level <= leaf_level)
				return gmem_pte_cas(pte, &e, leaf_of(m, level)) ? GMEM_MAP_FIXED : GMEM_MAP_RETRY;
			if (!add_table(vcpu, pte, &e) && !(e & GMEM_PTE_PRESENT))
				return GMEM_MAP_RETRY;
			if (e & GMEM_PTE_LEAF)
				return meet_leaf(m, e, level);
		}
		if (asks && !(e & GMEM_PTE_EXTERNAL)) {
			enum gmem_map_result r = gmem_external_add_table(vcpu, m->gfn, level - 1, pte, &e);

			if (r != GMEM_MAP_FIXED)
				return r;
		}
		table = gmem_pte_table(e);
	}
}
