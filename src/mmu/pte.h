/* SPDX-License-Identifier: MIT */
/*
 * Entries of second-stage tables: four levels of 512 entries of 8 bytes, as of the hardware's own tables.
 *
 * Enters and leaves: entries. An entry is changed by compare-and-swap in a mapping section or under the MMU lock,
 * exclusive, and stored to under that lock when there can be no mapping section; it is read without a lock inside an
 * epoch. Loads and stores are sequentially consistent: see base/epoch.h.
 */
#ifndef GMEM_MMU_PTE_H
#define GMEM_MMU_PTE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef _Atomic uint64_t gmem_pte;

#define GMEM_PTE_PRESENT (1ull << 0)
#define GMEM_PTE_WRITE (1ull << 1)
#define GMEM_PTE_EXEC (1ull << 2)
#define GMEM_PTE_LEAF (1ull << 3)
#define GMEM_PTE_PRIVATE (1ull << 4) /* of a leaf: which side of the page it maps */
/*
 * With external tables (external.h). A private leaf that they have is not PRESENT while it is FROZEN, or PENDING, or if
 * only its translation was taken away: none of these is followed. A table that is FROZEN is.
 */
#define GMEM_PTE_FROZEN (1ull << 5) /* they are being asked: to be looked at again */
#define GMEM_PTE_PENDING (1ull << 6) /* the guest has not accepted the page */
#define GMEM_PTE_EXTERNAL (1ull << 7) /* of a table: they have one too */
#define GMEM_PTE_FLAGS 0xfffull /* the rest: a frame's address, or a table's */

#define GMEM_PT_LEVELS 4
#define GMEM_PT_SHIFT 9
#define GMEM_PT_ENTRIES 512u
#define GMEM_LEVEL_4K 1
#define GMEM_LEVEL_2M 2

#define GMEM_GFN_BITS (GMEM_PT_LEVELS * GMEM_PT_SHIFT) /* 48-bit guest-physical addresses */

/* Pages that an entry of a level stands for. */
static inline uint64_t gmem_level_pages(int level)
{
	return 1ull << (level - 1) * GMEM_PT_SHIFT;
}

static inline unsigned int gmem_pt_index(uint64_t gfn, int level)
{
	return gfn >> (level - 1) * GMEM_PT_SHIFT & (GMEM_PT_ENTRIES - 1);
}

static inline gmem_pte *gmem_pte_table(uint64_t e)
{
	return (gmem_pte *)(uintptr_t)(e & ~GMEM_PTE_FLAGS);
}

static inline uint64_t gmem_pte_pfn(uint64_t e)
{
	return (e & ~GMEM_PTE_FLAGS) >> 12;
}

/* A function, so that a test can come in between. */
bool gmem_pte_cas(gmem_pte *pte, uint64_t *old, uint64_t new);

#endif
