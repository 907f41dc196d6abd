/* SPDX-License-Identifier: MIT */
/* Reading pages: whole chunks straight into the caller's buffer, parts of chunks through a small cache. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/range.h"
#include "image/image.h"

/* One pread() of raw chunks: long enough to make the call cheap, short enough that the sums find the bytes in the L2
 * cache. */
#define RUN_MAX (128u * 1024)

static uint64_t full_mask(unsigned int npages)
{
	return npages == 64 ? UINT64_MAX : (UINT64_C(1) << npages) - 1;
}

/* Reads what is stored of a chunk and unpacks it to `dst`, which holds all of its pages. */
static int read_chunk(struct gmem_image *image, const struct gmem_image_reg *reg, uint64_t chunk,
		      const struct gmem_image_chunk *c, uint8_t *dst, bool nowait)
{
	struct gmem_image_scratch *s = NULL;
	uint8_t *stored = dst;
	int r;

	if (c->codec != GMEM_IMAGE_RAW) {
		r = gmem_image_scratch_get(image, &s);
		if (r < 0)
			return r;
		stored = s->stored;
	}
	r = gmem_image_pread(image, stored, c->stored_len, c->off, nowait, "a chunk");
	if (r == 0)
		r = gmem_image_chunk_unpack(image, reg, chunk, c, s, stored, dst);
	if (s)
		gmem_image_scratch_put(image, s);
	return r;
}

/* Drops one reference, with the lock held. */
static void cached_put(struct gmem_image_cached *e)
{
	if (--e->refs == 0)
		free(e);
}

/* The cached chunk, with a reference, or NULL. */
static struct gmem_image_cached *cache_find(struct gmem_image *image, size_t region, uint64_t chunk)
{
	struct gmem_image_cached *e = NULL;

	pthread_mutex_lock(&image->lock);
	for (size_t i = 0; !e && i < GMEM_IMAGE_CACHE; i++) {
		struct gmem_image_cached *c = image->cache[i];

		if (c && c->region == region && c->chunk == chunk)
			e = c;
	}
	if (e) {
		e->refs++;
		e->used = ++image->tick;
	}
	pthread_mutex_unlock(&image->lock);
	return e;
}

/* Puts a chunk in place of the one used longest ago. Two threads may insert the same one; both are right. */
static void cache_insert(struct gmem_image *image, struct gmem_image_cached *e)
{
	size_t oldest = 0;

	pthread_mutex_lock(&image->lock);
	for (size_t i = 0; i < GMEM_IMAGE_CACHE && image->cache[oldest]; i++)
		if (!image->cache[i] || image->cache[i]->used < image->cache[oldest]->used)
			oldest = i;
	if (image->cache[oldest])
		cached_put(image->cache[oldest]);
	e->refs++;
	e->used = ++image->tick;
	image->cache[oldest] = e;
	pthread_mutex_unlock(&image->lock);
}

/* [at, at + len) of one chunk. */
static int read_part(struct gmem_image *image, size_t region, uint64_t chunk, const struct gmem_image_chunk *c,
		     uint64_t at, uint8_t *dst, size_t len, bool nowait)
{
	struct gmem_image_cached *e = cache_find(image, region, chunk);
	int r;

	if (!e) {
		e = malloc(sizeof(*e) + image->h.chunk_len);
		if (!e)
			return gmem_err(-ENOMEM, "%s: no memory to read a chunk", image->name);
		e->refs = 1;
		e->region = region;
		e->chunk = chunk;
		r = read_chunk(image, &image->regions[region], chunk, c, e->bytes, nowait);
		if (r < 0) {
			free(e);
			return r;
		}
		cache_insert(image, e);
	}
	memcpy(dst, e->bytes + at, len);
	pthread_mutex_lock(&image->lock);
	cached_put(e);
	pthread_mutex_unlock(&image->lock);
	return 0;
}

/*
 * Raw chunks whose bytes follow each other in the file: one read into the caller's buffer, each checked where it lies.
 * Returns how many chunks, 0 if `chunk` is not such a one. [chunk, last) are wholly wanted.
 */
static int64_t read_run(struct gmem_image *image, const struct gmem_image_reg *reg, const struct gmem_image_node *leaf,
			uint64_t first, uint64_t chunk, uint64_t last, uint8_t *dst, bool nowait)
{
	const struct gmem_image_chunk *c = &leaf->chunk[chunk - first];
	uint64_t n = 0, at = 0;
	size_t len = 0;
	int r;

	while (chunk + n < last && len < RUN_MAX && c[n].codec == GMEM_IMAGE_RAW &&
	       c[n].mask == full_mask(gmem_image_chunk_pages(image, reg, chunk + n)) && c[n].off == c[0].off + len) {
		len += c[n].stored_len;
		n++;
	}
	if (n == 0)
		return 0;
	r = gmem_image_pread(image, dst, len, c[0].off, nowait, "chunks");
	for (uint64_t i = 0; r == 0 && i < n; i++) {
		r = gmem_image_chunk_unpack(image, reg, chunk + i, &c[i], NULL, dst + at, dst + at);
		at += c[i].stored_len;
	}
	return r < 0 ? r : (int64_t)n;
}

/* [off, end) of a region, all of it below one leaf. */
static int read_leaf(struct gmem_image *image, size_t region, const struct gmem_image_node *leaf, uint64_t first,
		     uint64_t off, uint64_t end, uint8_t *dst, bool nowait)
{
	const struct gmem_image_reg *reg = &image->regions[region];
	uint64_t clen = image->h.chunk_len;

	while (off < end) {
		uint64_t chunk = off / clen;
		uint64_t start = chunk * clen, stop = gmem_min_u64(start + clen, reg->e.len);
		const struct gmem_image_chunk *c = &leaf->chunk[chunk - first];
		uint64_t next = gmem_min_u64(stop, end);
		int64_t r = 0;

		if (!c->mask) {
			memset(dst, 0, next - off);
		} else if (off > start || end < stop) {
			r = read_part(image, region, chunk, c, off - start, dst, next - off, nowait);
		} else {
			/* Chunks are whole up to the last one that ends by `end`: only a region's last may be short. */
			uint64_t last = end == reg->e.len ? reg->nchunks : end / clen;

			r = read_run(image, reg, leaf, first, chunk, last, dst, nowait);
			if (r > 0)
				next = gmem_min_u64((chunk + (uint64_t)r) * clen, end);
			else if (r == 0)
				r = read_chunk(image, reg, chunk, c, dst, nowait);
		}
		if (r < 0)
			return (int)r;
		dst += next - off;
		off = next;
	}
	return 0;
}

int gmem_image_read_pages(struct gmem_image *image, size_t region, uint64_t off, void *buf, size_t len, bool nowait)
{
	const struct gmem_image_reg *reg;
	uint8_t *dst = buf;
	uint64_t end;

	if (region >= image->h.nregions)
		return gmem_err(-ERANGE, "gmem_image_read: %s has %u regions, no number %zu", image->name,
				image->h.nregions, region);
	reg = &image->regions[region];
	if (!gmem_page_aligned(off) || !gmem_page_aligned(len))
		return gmem_err(-EINVAL, "gmem_image_read: off 0x%llx, len 0x%zx: not page-aligned",
				(unsigned long long)off, len);
	if (!gmem_range_inside(off, len, reg->e.len))
		return gmem_err(-ERANGE, "gmem_image_read: off 0x%llx, len 0x%zx: past the end of region \"%s\"",
				(unsigned long long)off, len, reg->e.name);
	for (end = off + len; off < end;) {
		const struct gmem_image_node *leaf;
		uint64_t first, stop, next;
		int r;

		r = gmem_image_leaf(image, reg, off / image->h.chunk_len, nowait, &leaf, &first, &stop);
		if (r < 0)
			return r;
		next = gmem_min_u64(stop * image->h.chunk_len, end);
		if (leaf)
			r = read_leaf(image, region, leaf, first, off, next, dst, nowait);
		else
			memset(dst, 0, next - off);
		if (r < 0)
			return r;
		dst += next - off;
		off = next;
	}
	return 0;
}

int gmem_image_read(struct gmem_image *image, size_t region, uint64_t off, void *buf, size_t len)
{
	return gmem_image_read_pages(image, region, off, buf, len, false);
}
