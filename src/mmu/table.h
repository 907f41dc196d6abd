/* SPDX-License-Identifier: MIT */
/*
 * Table pages. Enters: nothing. Leaves: zeroed, page-aligned pages for tables, by way of a small cache that each vCPU
 * fills before it takes the MMU lock, so that nothing is allocated under it. Lock: the pool's own, a leaf. A page goes
 * back when no epoch can still see it.
 */
#ifndef GMEM_MMU_TABLE_H
#define GMEM_MMU_TABLE_H

#include <pthread.h>
#include <stdint.h>

#include "mmu/pte.h"

struct gmem_table_slab;

struct gmem_table_pool {
	pthread_mutex_t m; /* guards everything here */
	struct gmem_table_slab *slabs;
	struct gmem_table_page *unused;
	uint64_t used; /* pages out, in caches or in trees */
};

#define GMEM_TABLE_CACHE 8u
#define GMEM_TABLE_NEED (GMEM_PT_LEVELS - 1u) /* of one mapping, at most */

/* A vCPU's own: one thread at a time. */
struct gmem_table_cache {
	gmem_pte *page[GMEM_TABLE_CACHE];
	uint32_t n;
};

void gmem_table_pool_init(struct gmem_table_pool *pool);
void gmem_table_pool_destroy(struct gmem_table_pool *pool);

/* Has at least GMEM_TABLE_NEED pages from then on. -ENOMEM. */
int gmem_table_topup(struct gmem_table_pool *pool, struct gmem_table_cache *cache);
void gmem_table_flush(struct gmem_table_pool *pool, struct gmem_table_cache *cache);

static inline gmem_pte *gmem_table_take(struct gmem_table_cache *cache)
{
	return cache->page[--cache->n];
}

static inline void gmem_table_give(struct gmem_table_cache *cache, gmem_pte *page)
{
	cache->page[cache->n++] = page;
}

gmem_pte *gmem_table_new(struct gmem_table_pool *pool); /* NULL: no memory */
/* A table of that level and all below it. */
void gmem_table_free_tree(struct gmem_table_pool *pool, gmem_pte *table, int level);

#endif
