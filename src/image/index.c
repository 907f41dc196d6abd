/* SPDX-License-Identifier: MIT */
/* A region's index: checked blocks, loaded when a chunk below them is first asked for. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/range.h"
#include "image/image.h"

uint64_t gmem_image_entry_span(uint32_t level)
{
	uint64_t span = 1;

	if (level > 1)
		span = GMEM_IMAGE_LEAF_ENTRIES;
	for (; level > 2; level--)
		span *= GMEM_IMAGE_BRANCH_ENTRIES;
	return span;
}

unsigned int gmem_image_chunk_pages(const struct gmem_image *image, const struct gmem_image_reg *reg, uint64_t chunk)
{
	uint64_t left = reg->e.len - chunk * image->h.chunk_len;

	return (unsigned int)(gmem_min_u64(left, image->h.chunk_len) / GMEM_PAGE_SIZE);
}

/* NULL, or what is wrong with an entry. */
static const char *chunk_problem(const struct gmem_image *image, const struct gmem_image_reg *reg, uint64_t chunk,
				 const struct gmem_image_chunk *c)
{
	unsigned int npages = chunk < reg->nchunks ? gmem_image_chunk_pages(image, reg, chunk) : 0;
	uint32_t packed = (uint32_t)__builtin_popcountll(c->mask) * GMEM_PAGE_SIZE;

	if (c->reserved[0] | c->reserved[1] | c->reserved[2])
		return "reserved bytes are not zero";
	if (!c->mask)
		return c->off || c->stored_len || c->codec || c->sum ? "a zero chunk has stored bytes" : NULL;
	if (npages < 64 && c->mask >> npages)
		return "the page mask reaches past the chunk";
	if (c->codec != GMEM_IMAGE_RAW && c->codec != GMEM_IMAGE_ZSTD)
		return "unknown compression";
	if (c->codec == GMEM_IMAGE_RAW && c->stored_len != packed)
		return "the stored length is not that of its pages";
	if (c->codec == GMEM_IMAGE_ZSTD && (c->stored_len == 0 || c->stored_len >= packed))
		return "the stored length is impossible";
	if (c->off < GMEM_IMAGE_HEADER_LEN || !gmem_range_inside(c->off, c->stored_len, image->h.file_len))
		return "its bytes lie outside the file";
	return NULL;
}

static int decode_leaf(const struct gmem_image *image, const struct gmem_image_reg *reg, uint64_t off, uint64_t first,
		       const uint8_t *raw, struct gmem_image_node *node)
{
	for (unsigned int i = 0; i < GMEM_IMAGE_LEAF_ENTRIES; i++) {
		const char *problem;
		char what[160];

		gmem_image_chunk_decode(&node->chunk[i], raw + i * GMEM_IMAGE_CHUNK_ENTRY_LEN);
		problem = chunk_problem(image, reg, first + i, &node->chunk[i]);
		if (!problem)
			continue;
		snprintf(what, sizeof(what), "entry of chunk %llu of region \"%s\"", (unsigned long long)(first + i),
			 reg->e.name);
		return gmem_image_damage(image, what, off + i * GMEM_IMAGE_CHUNK_ENTRY_LEN, problem);
	}
	return 0;
}

static int decode_branch(const struct gmem_image *image, const struct gmem_image_reg *reg, uint64_t off, uint32_t level,
			 uint64_t first, const uint8_t *raw, struct gmem_image_node *node)
{
	uint64_t span = gmem_image_entry_span(level);

	for (unsigned int i = 0; i < GMEM_IMAGE_BRANCH_ENTRIES; i++) {
		struct gmem_image_link *l = &node->link[i];
		const char *problem = NULL;
		char what[160];

		gmem_image_link_decode(l, raw + i * GMEM_IMAGE_LINK_LEN);
		atomic_init(&node->child[i], NULL);
		if (!l->off)
			problem = l->sum ? "an empty link has a checksum" : NULL;
		else if (first + i * span >= reg->nchunks)
			problem = "a link past the region's end";
		else if (l->off < GMEM_IMAGE_HEADER_LEN ||
			 !gmem_range_inside(l->off, GMEM_IMAGE_BLOCK_LEN, image->h.file_len))
			problem = "a link points outside the file";
		if (!problem)
			continue;
		snprintf(what, sizeof(what), "index branch of region \"%s\"", reg->e.name);
		return gmem_image_damage(image, what, off + i * GMEM_IMAGE_LINK_LEN, problem);
	}
	return 0;
}

int gmem_image_node_load(const struct gmem_image *image, const struct gmem_image_reg *reg, struct gmem_image_link link,
			 uint32_t level, uint64_t first, bool nowait, struct gmem_image_node **ret)
{
	uint8_t raw[GMEM_IMAGE_BLOCK_LEN];
	struct gmem_image_node *node;
	char what[160];
	int r;

	snprintf(what, sizeof(what), "index of region \"%s\" from chunk %llu on", reg->e.name,
		 (unsigned long long)first);
	r = gmem_image_pread(image, raw, sizeof(raw), link.off, nowait, what);
	if (r < 0)
		return r;
	if (!gmem_image_sum_ok(raw, sizeof(raw), link.sum))
		return gmem_image_damage(image, what, link.off, "checksum mismatch");
	node = malloc(level == 1 ? offsetof(struct gmem_image_node, chunk) + sizeof(node->chunk) : sizeof(*node));
	if (!node)
		return gmem_err(-ENOMEM, "%s: no memory for an index block", image->name);
	node->leaf = level == 1;
	r = level == 1 ? decode_leaf(image, reg, link.off, first, raw, node) :
			 decode_branch(image, reg, link.off, level, first, raw, node);
	if (r < 0) {
		free(node);
		return r;
	}
	*ret = node;
	return 0;
}

void gmem_image_node_free(struct gmem_image_node *node)
{
	if (!node)
		return;
	for (unsigned int i = 0; !node->leaf && i < GMEM_IMAGE_BRANCH_ENTRIES; i++)
		gmem_image_node_free(atomic_load_explicit(&node->child[i], memory_order_relaxed));
	free(node);
}

/* The child of a branch, loaded if it is not. Two threads may load the same one; the second throws its own away. */
static int node_child(const struct gmem_image *image, const struct gmem_image_reg *reg, struct gmem_image_node *node,
		      unsigned int i, uint32_t level, uint64_t first, bool nowait, struct gmem_image_node **ret)
{
	struct gmem_image_node *child = atomic_load_explicit(&node->child[i], memory_order_acquire);
	struct gmem_image_node *other = NULL;
	int r;

	if (!child) {
		r = gmem_image_node_load(image, reg, node->link[i], level, first, nowait, &child);
		if (r < 0)
			return r;
		if (!atomic_compare_exchange_strong_explicit(&node->child[i], &other, child, memory_order_acq_rel,
							     memory_order_acquire)) {
			free(child);
			child = other;
		}
	}
	*ret = child;
	return 0;
}

int gmem_image_leaf(const struct gmem_image *image, const struct gmem_image_reg *reg, uint64_t chunk, bool nowait,
		    const struct gmem_image_node **ret, uint64_t *first, uint64_t *end)
{
	struct gmem_image_node *node = reg->root;
	uint32_t level = reg->e.levels;
	uint64_t base = 0, stop = reg->nchunks;

	while (node && !node->leaf) {
		uint64_t span = gmem_image_entry_span(level);
		unsigned int i = (unsigned int)((chunk - base) / span);
		int r;

		base += i * span;
		stop = gmem_min_u64(reg->nchunks, base + span);
		level--;
		if (!node->link[i].off) {
			node = NULL;
			break;
		}
		r = node_child(image, reg, node, i, level, base, nowait, &node);
		if (r < 0)
			return r;
	}
	*ret = node;
	*first = base;
	*end = stop;
	return 0;
}
