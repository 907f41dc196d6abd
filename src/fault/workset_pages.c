/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>

#include "base/range.h"
#include "fault/workset.h"

#define LEAF_PAGES 32768u
#define LEAF_WORDS (LEAF_PAGES / 64)

int gmem_pageset_init(struct gmem_pageset *set, uint64_t npages)
{
	set->nleaves = (npages + LEAF_PAGES - 1) / LEAF_PAGES;
	set->leaves = calloc(set->nleaves ? set->nleaves : 1, sizeof(*set->leaves));
	return set->leaves ? 0 : -ENOMEM;
}

void gmem_pageset_destroy(struct gmem_pageset *set)
{
	for (uint64_t i = 0; set->leaves && i < set->nleaves; i++)
		free(set->leaves[i]);
	free(set->leaves);
	set->leaves = NULL;
	set->nleaves = 0;
}

/* NULL: past the end, or no memory. */
static uint64_t *word_of(struct gmem_pageset *set, uint64_t page)
{
	uint64_t i = page / LEAF_PAGES;

	if (i >= set->nleaves)
		return NULL;
	if (!set->leaves[i])
		set->leaves[i] = calloc(LEAF_WORDS, sizeof(uint64_t));
	return set->leaves[i] ? &set->leaves[i][page % LEAF_PAGES / 64] : NULL;
}

/* Puts the page in. False: it was, or cannot be. */
static bool put(struct gmem_pageset *set, uint64_t page)
{
	uint64_t *word = word_of(set, page), bit = UINT64_C(1) << page % 64;

	if (!word || *word & bit)
		return false;
	*word |= bit;
	return true;
}

uint64_t gmem_pageset_add(struct gmem_pageset *set, uint64_t page, uint64_t end, uint64_t *ret_end)
{
	uint64_t to;

	while (page < end && !put(set, page))
		page++;
	to = page < end ? page + 1 : page;
	while (to < end && put(set, to))
		to++;
	*ret_end = to;
	return page;
}
