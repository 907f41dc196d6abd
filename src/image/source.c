/* SPDX-License-Identifier: MIT */
/* A region of an image as a source of pages. */
#include <errno.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/range.h"
#include "image/image.h"
#include "source/source.h"

struct image_source {
	struct gmem_image *image;
	size_t region;
	bool own; /* the image goes with the source */
};

static int read_at(const struct image_source *s, uint64_t off, void *buf, size_t len, bool nowait)
{
	/* Asked for ever, it will not be there. */
	if (!gmem_range_inside(off, len, s->image->regions[s->region].e.len))
		return gmem_err(-ENODATA, "%s: region %zu has no offset 0x%llx", s->image->name, s->region,
				(unsigned long long)off);
	return gmem_image_read_pages(s->image, s->region, off, buf, len, nowait);
}

static int read_pages(void *opaque, uint64_t off, void *buf, size_t len)
{
	return read_at(opaque, off, buf, len, false);
}

static int read_nowait(void *opaque, uint64_t off, void *buf, size_t len)
{
	return read_at(opaque, off, buf, len, true);
}

/* True if reading any page of this chunk reads all of it. What is not known yet is not waited for: no growth. */
static bool comes_whole(const struct image_source *s, uint64_t chunk)
{
	const struct gmem_image_reg *reg = &s->image->regions[s->region];
	const struct gmem_image_node *leaf;
	uint64_t first, end;

	return chunk < reg->nchunks && gmem_image_leaf(s->image, reg, chunk, true, &leaf, &first, &end) == 0 && leaf &&
	       leaf->chunk[chunk - first].mask;
}

/* To the ends of the chunks that the range begins and ends in: checksums are a chunk's, so the rest of it is read
 * anyway. */
static void extent(void *opaque, uint64_t *start, uint64_t *len)
{
	const struct image_source *s = opaque;
	uint64_t clen = s->image->h.chunk_len, size = s->image->regions[s->region].e.len;
	uint64_t from = *start, to = *start + *len;

	if (from % clen && comes_whole(s, from / clen))
		from -= from % clen;
	if (to % clen && to < size && comes_whole(s, to / clen))
		to = gmem_min_u64(to - to % clen + clen, size);
	*start = from;
	*len = to - from;
}

static uint64_t mask_of(unsigned int from, unsigned int to)
{
	return (to == 64 ? UINT64_MAX : (UINT64_C(1) << to) - 1) & ~((UINT64_C(1) << from) - 1);
}

static int is_zero(void *opaque, uint64_t off, uint64_t len, bool nowait)
{
	const struct image_source *s = opaque;
	const struct gmem_image_reg *reg = &s->image->regions[s->region];
	uint64_t clen = s->image->h.chunk_len, end = off + len;

	if (!gmem_range_inside(off, len, reg->e.len))
		return 0;
	while (off < end) {
		const struct gmem_image_node *leaf;
		uint64_t first, stop, chunk = off / clen, next;

		/* A damaged index is "not known": the read that follows reports it. */
		if (gmem_image_leaf(s->image, reg, chunk, nowait, &leaf, &first, &stop) < 0)
			return 0;
		if (leaf)
			stop = chunk + 1;
		next = gmem_min_u64(stop * clen, end);
		if (leaf &&
		    leaf->chunk[chunk - first].mask & mask_of((unsigned int)(off % clen / GMEM_PAGE_SIZE),
							      (unsigned int)((next - chunk * clen) / GMEM_PAGE_SIZE)))
			return 0;
		off = next;
	}
	return 1;
}

static void source_free(void *opaque)
{
	struct image_source *s = opaque;

	if (s->own)
		gmem_image_close(s->image);
	free(s);
}

int gmem_image_source_new(struct gmem_image *image, size_t region, bool own, struct gmem_source **ret)
{
	static const struct gmem_source_ops ops = {
		.size = sizeof(ops),
		.read = read_pages,
		.read_nowait = read_nowait,
		.extent = extent,
		.is_zero = is_zero,
		.free = source_free,
	};
	struct image_source *s;
	int r;

	if (region >= image->h.nregions)
		return gmem_err(-ERANGE, "gmem_source_new_image: %s has %u regions, no number %zu", image->name,
				image->h.nregions, region);
	s = malloc(sizeof(*s));
	if (!s)
		return gmem_err(-ENOMEM, "gmem_source_new_image: no memory");
	*s = (struct image_source){ image, region, own };
	r = gmem_source_new(&ops, s, ret);
	if (r < 0) {
		free(s);
		return r;
	}
	gmem_source_set_len(*ret, image->regions[region].e.len);
	return 0;
}

int gmem_source_new_image(struct gmem_image *image, size_t region, struct gmem_source **ret)
{
	return gmem_image_source_new(image, region, false, ret);
}
