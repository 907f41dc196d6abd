/* SPDX-License-Identifier: MIT */
/* One chunk: from stored bytes to pages. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/le.h"
#include "base/range.h"
#include "image/image.h"

int gmem_image_scratch_get(struct gmem_image *image, struct gmem_image_scratch **ret)
{
	struct gmem_image_scratch *s;

	pthread_mutex_lock(&image->lock);
	s = image->idle;
	if (s)
		image->idle = s->next;
	pthread_mutex_unlock(&image->lock);
	if (!s) {
		s = calloc(1, sizeof(*s));
		if (s)
			s->stored = malloc(image->h.chunk_len);
		if (!s || !s->stored) {
			free(s);
			return gmem_err(-ENOMEM, "%s: no memory to read a chunk", image->name);
		}
	}
	*ret = s;
	return 0;
}

void gmem_image_scratch_put(struct gmem_image *image, struct gmem_image_scratch *s)
{
	pthread_mutex_lock(&image->lock);
	s->next = image->idle;
	image->idle = s;
	pthread_mutex_unlock(&image->lock);
}

void gmem_image_scratch_free(struct gmem_image_scratch *s)
{
	if (!s)
		return;
	ZSTD_freeDCtx(s->dctx);
	free(s->stored);
	free(s);
}

/* Packed pages at the start of `dst` move to where the mask says, last first; the gaps become zero. */
static void spread(uint8_t *dst, uint64_t mask, unsigned int npages)
{
	unsigned int packed = (unsigned int)__builtin_popcountll(mask);

	for (unsigned int i = npages; i-- > 0;) {
		uint8_t *page = dst + (size_t)i * GMEM_PAGE_SIZE;

		if (!(mask >> i & 1))
			memset(page, 0, GMEM_PAGE_SIZE);
		else if (--packed != i)
			memcpy(page, dst + (size_t)packed * GMEM_PAGE_SIZE, GMEM_PAGE_SIZE);
	}
}

static const char *unzstd(struct gmem_image_scratch *s, const struct gmem_image_chunk *c, const uint8_t *stored,
			  uint8_t *dst, size_t packed)
{
	size_t n;

	/* One plain frame: what else libzstd may have been built to accept is no part of the format. */
	if (c->stored_len < 4 || gmem_get_le32(stored) != ZSTD_MAGICNUMBER)
		return "not a zstd frame";
	n = ZSTD_decompressDCtx(s->dctx, dst, packed, stored, c->stored_len);
	if (ZSTD_isError(n))
		return "does not decompress";
	return n == packed ? NULL : "decompresses to another length";
}

int gmem_image_chunk_unpack(const struct gmem_image *image, const struct gmem_image_reg *reg, uint64_t chunk,
			    const struct gmem_image_chunk *c, struct gmem_image_scratch *s, const uint8_t *stored,
			    uint8_t *dst)
{
	unsigned int npages = gmem_image_chunk_pages(image, reg, chunk);
	size_t packed = (size_t)__builtin_popcountll(c->mask) * GMEM_PAGE_SIZE;
	const char *problem = NULL;
	char what[160];

	if (!gmem_image_sum_ok(stored, c->stored_len, c->sum)) {
		problem = "checksum mismatch";
	} else if (c->codec == GMEM_IMAGE_ZSTD) {
		if (!s->dctx)
			s->dctx = ZSTD_createDCtx();
		if (!s->dctx)
			return gmem_err(-ENOMEM, "%s: no memory to decompress", image->name);
		problem = unzstd(s, c, stored, dst, packed);
	} else if (stored != dst) {
		memcpy(dst, stored, packed);
	}
	if (problem) {
		snprintf(what, sizeof(what), "chunk %llu of region \"%s\"", (unsigned long long)chunk, reg->e.name);
		return gmem_image_damage(image, what, c->off, problem);
	}
	if (packed != (size_t)npages * GMEM_PAGE_SIZE)
		spread(dst, c->mask, npages);
	return 0;
}
