/* SPDX-License-Identifier: MIT */
#include "mmu/table.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

#include "base/err.h"

#define PAGE 4096u
#define SLAB_PAGES 64u

/* What a page holds while nobody uses it; zero but for this. */
struct gmem_table_page {
	struct gmem_table_page *next;
};

/* The head of a run of pages, in its first page. */
struct gmem_table_slab {
	struct gmem_table_slab *next;
};

void gmem_table_pool_init(struct gmem_table_pool *pool)
{
	*pool = (struct gmem_table_pool){ .used = 0 };
	pthread_mutex_init(&pool->m, NULL);
}

void gmem_table_pool_destroy(struct gmem_table_pool *pool)
{
	struct gmem_table_slab *next;

	for (struct gmem_table_slab *s = pool->slabs; s; s = next) {
		next = s->next;
		munmap(s, (size_t)SLAB_PAGES * PAGE);
	}
	pthread_mutex_destroy(&pool->m);
}

/* Caller holds pool->m. */
static bool add_slab(struct gmem_table_pool *pool)
{
	char *p = mmap(NULL, (size_t)SLAB_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct gmem_table_slab *slab = (void *)p;

	if (p == MAP_FAILED)
		return false;
	slab->next = pool->slabs;
	pool->slabs = slab;
	for (unsigned int i = SLAB_PAGES - 1; i; i--) {
		struct gmem_table_page *page = (void *)(p + (size_t)i * PAGE);

		page->next = pool->unused;
		pool->unused = page;
	}
	return true;
}

/* Caller holds pool->m. */
static gmem_pte *take(struct gmem_table_pool *pool)
{
	struct gmem_table_page *page;

	if (!pool->unused && !add_slab(pool))
		return NULL;
	page = pool->unused;
	pool->unused = page->next;
	page->next = NULL;
	pool->used++;
	return (gmem_pte *)page;
}

gmem_pte *gmem_table_new(struct gmem_table_pool *pool)
{
	gmem_pte *page;

	pthread_mutex_lock(&pool->m);
	page = take(pool);
	pthread_mutex_unlock(&pool->m);
	return page;
}

/* A zeroed page. Caller holds pool->m. */
static void put(struct gmem_table_pool *pool, gmem_pte *table)
{
	struct gmem_table_page *page = (void *)table;

	page->next = pool->unused;
	pool->unused = page;
	pool->used--;
}

int gmem_table_topup(struct gmem_table_pool *pool, struct gmem_table_cache *cache)
{
	if (cache->n >= GMEM_TABLE_NEED)
		return 0;
	pthread_mutex_lock(&pool->m);
	while (cache->n < GMEM_TABLE_CACHE) {
		gmem_pte *page = take(pool);

		if (!page)
			break;
		cache->page[cache->n++] = page;
	}
	pthread_mutex_unlock(&pool->m);
	return cache->n >= GMEM_TABLE_NEED ? 0 : gmem_err_sys(-ENOMEM, "second-stage tables");
}

void gmem_table_flush(struct gmem_table_pool *pool, struct gmem_table_cache *cache)
{
	pthread_mutex_lock(&pool->m);
	while (cache->n)
		put(pool, cache->page[--cache->n]);
	pthread_mutex_unlock(&pool->m);
}

/* Zeroes the pages of a tree and puts them before `list`, without the lock: there may be many. */
static struct gmem_table_page *zero_tree(gmem_pte *table, int level, struct gmem_table_page *list, uint64_t *n)
{
	struct gmem_table_page *page = (void *)table;

	for (unsigned int i = 0; level > 1 && i < GMEM_PT_ENTRIES; i++) {
		uint64_t e = atomic_load_explicit(&table[i], memory_order_relaxed);

		if ((e & GMEM_PTE_PRESENT) && !(e & GMEM_PTE_LEAF))
			list = zero_tree(gmem_pte_table(e), level - 1, list, n);
	}
	memset((void *)table, 0, PAGE);
	page->next = list;
	++*n;
	return page;
}

void gmem_table_free_tree(struct gmem_table_pool *pool, gmem_pte *table, int level)
{
	uint64_t n = 0;
	struct gmem_table_page *list = zero_tree(table, level, NULL, &n), *last = list;

	while (last->next)
		last = last->next;
	pthread_mutex_lock(&pool->m);
	last->next = pool->unused;
	pool->unused = list;
	pool->used -= n;
	pthread_mutex_unlock(&pool->m);
}
