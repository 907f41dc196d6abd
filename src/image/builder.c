/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "image/hash.h"
#include "image/writer.h"

void gmem_image_builder_init(struct gmem_image_builder *b, struct gmem_image_writer *w, uint64_t nchunks)
{
	memset(b, 0, sizeof(*b));
	b->w = w;
	b->levels = gmem_image_levels(nchunks);
}

static int put(struct gmem_image_builder *b, uint32_t level, uint64_t slot, const uint8_t *entry, size_t len);

/* Writes the open block of a level and enters it one level up. */
static int flush(struct gmem_image_builder *b, uint32_t level)
{
	uint8_t *raw = b->level[level].raw;
	uint8_t entry[GMEM_IMAGE_LINK_LEN];
	struct gmem_image_link link;
	int r;

	link.sum = gmem_image_hash(raw, GMEM_IMAGE_BLOCK_LEN);
	r = gmem_image_append(b->w, raw, GMEM_IMAGE_BLOCK_LEN, &link.off);
	if (r < 0)
		return r;
	b->level[level].open = false;
	memset(raw, 0, GMEM_IMAGE_BLOCK_LEN);
	if (level == b->levels) {
		b->root = link;
		return 0;
	}
	gmem_image_link_encode(&link, entry);
	return put(b, level + 1, b->level[level].block, entry, sizeof(entry));
}

static int put(struct gmem_image_builder *b, uint32_t level, uint64_t slot, const uint8_t *entry, size_t len)
{
	uint64_t per_block = GMEM_IMAGE_BLOCK_LEN / len;
	int r;

	if (b->level[level].open && b->level[level].block != slot / per_block) {
		r = flush(b, level);
		if (r < 0)
			return r;
	}
	b->level[level].open = true;
	b->level[level].block = slot / per_block;
	memcpy(b->level[level].raw + slot % per_block * len, entry, len);
	return 0;
}

int gmem_image_builder_add(struct gmem_image_builder *b, uint64_t chunk, const struct gmem_image_chunk *c)
{
	uint8_t entry[GMEM_IMAGE_CHUNK_ENTRY_LEN];

	gmem_image_chunk_encode(c, entry);
	return put(b, 1, chunk, entry, sizeof(entry));
}

int gmem_image_builder_finish(struct gmem_image_builder *b, struct gmem_image_link *ret_root)
{
	for (uint32_t level = 1; level <= b->levels; level++) {
		int r = b->level[level].open ? flush(b, level) : 0;

		if (r < 0)
			return r;
	}
	*ret_root = b->root;
	return 0;
}
