/* SPDX-License-Identifier: MIT */
/* Half-open ranges [off, off + len), checked without overflow. */
#ifndef GMEM_BASE_RANGE_H
#define GMEM_BASE_RANGE_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"

#define GMEM_PAGE_SHIFT 12
#define GMEM_PAGE_MASK (~(uint64_t)(GMEM_PAGE_SIZE - 1))

static inline bool gmem_page_aligned(uint64_t x)
{
	return (x & (GMEM_PAGE_SIZE - 1)) == 0;
}

static inline uint64_t gmem_page_round_down(uint64_t x)
{
	return x & GMEM_PAGE_MASK;
}

/* True if [off, off + len) lies inside [0, size). An empty range at the end does. */
static inline bool gmem_range_inside(uint64_t off, uint64_t len, uint64_t size)
{
	return off <= size && len <= size - off;
}

/* True if the two ranges share a byte. Neither may wrap. */
static inline bool gmem_range_overlaps(uint64_t a, uint64_t alen, uint64_t b, uint64_t blen)
{
	return alen && blen && a < b + blen && b < a + alen;
}

static inline uint64_t gmem_min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t gmem_max_u64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

#endif
