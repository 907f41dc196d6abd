/* SPDX-License-Identifier: MIT */
/* Which sources the regions of a pager come from: the parts of their working set. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/range.h"
#include "fault/trace.h"

static int part_of(struct gmem_parts *parts, struct gmem_source *source, const char *who)
{
	for (uint32_t i = 0; i < parts->n; i++)
		if (parts->source[i] == source)
			return (int)i;
	if (parts->n == GMEM_WORKSET_MAX_PARTS)
		return gmem_err(-ENOSPC, "%s: the regions have more than %u sources", who, GMEM_WORKSET_MAX_PARTS);
	parts->source[parts->n] = source;
	return (int)parts->n++;
}

int gmem_parts_init(struct gmem_parts *parts, const char *who, struct gmem_pager *pager, const unsigned int *regions,
		    size_t nregions)
{
	/* Pairs with the release in gmem_pager_add_region(). */
	uint32_t there = atomic_load_explicit(&pager->nregions, memory_order_acquire);
	size_t n = regions ? nregions : there;

	memset(parts, 0, sizeof(*parts));
	if (!n || n > GMEM_PAGER_MAX_REGIONS)
		return gmem_err(-EINVAL, "%s: %zu regions", who, n);
	parts->regions = calloc(n, sizeof(*parts->regions));
	parts->part = calloc(n, sizeof(*parts->part));
	if (!parts->regions || !parts->part) {
		gmem_parts_destroy(parts);
		return gmem_err_sys(-ENOMEM, "%s", who);
	}
	for (size_t i = 0; i < n; i++) {
		unsigned int number = regions ? regions[i] : (unsigned int)i;
		struct gmem_pager_region *region = number < there ? pager->regions[number] : NULL;
		int part = region ? part_of(parts, region->source, who) :
				    gmem_err(-EINVAL, "%s: no region %u", who, number);

		if (part < 0) {
			gmem_parts_destroy(parts);
			return part;
		}
		parts->regions[i] = region;
		parts->part[i] = (uint16_t)part;
		parts->len[part] = gmem_max_u64(parts->len[part], region->source_off + region->len);
	}
	parts->nregions = (uint32_t)n;
	return 0;
}

void gmem_parts_destroy(struct gmem_parts *parts)
{
	free(parts->regions);
	free(parts->part);
	parts->regions = NULL;
	parts->part = NULL;
}
