/* SPDX-License-Identifier: MIT */
/*
 * Reading and checking everything, past every damage. Index blocks are loaded afresh and dropped again, so memory does
 * not grow with the image, and what an earlier read found good is looked at once more.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/range.h"
#include "image/image.h"

#define BATCH (1u << 20) /* bytes of one read: chunks that follow each other in the file */

struct verify {
	struct gmem_image *image;
	struct gmem_image_scratch *scratch;
	uint8_t *batch, *pages;
	void (*report)(void *opaque, const char *text);
	void *report_opaque;
	gmem_progress_fn progress;
	void *opaque;
	uint64_t done, total; /* bytes, for progress */
	uint64_t damages;
	uint64_t data_pages, stored_bytes; /* of the present region */
	char first[512]; /* text of the first damage */
};

/* Takes note of the failure whose text is the thread's last. Returns 0 to go on: only damage lets us. */
static int note(struct verify *v, int r)
{
	if (r != -EBADMSG && r != -ENODATA && r != -EIO)
		return r;
	if (v->damages++ == 0)
		snprintf(v->first, sizeof(v->first), "%s", gmem_last_error());
	if (v->report)
		v->report(v->report_opaque, gmem_last_error());
	return 0;
}

/* Bytes the file was said to hold can add up to more than were announced; progress never shows that. */
static int advance(struct verify *v, uint64_t len)
{
	int r;

	v->done = gmem_min_u64(v->done + len, v->total);
	r = v->progress ? v->progress(v->opaque, v->done, v->total) : 0;
	return r < 0 ? r : 0;
}

static int verify_sections(struct verify *v)
{
	for (size_t i = 0; i < v->image->h.nsections; i++) {
		const struct gmem_image_section_entry *s = &v->image->sections[i];
		void *data = NULL;
		size_t len;
		int r = gmem_image_section(v->image, s->name, &data, &len);

		free(data);
		if (r < 0)
			r = note(v, r);
		if (r == 0)
			r = advance(v, s->len);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Chunks c[0, n) lie one after the other in the file, `len` bytes in all. */
static int verify_batch(struct verify *v, const struct gmem_image_reg *reg, uint64_t chunk,
			const struct gmem_image_chunk *c, unsigned int n, size_t len)
{
	size_t at = 0;
	int r;

	r = gmem_image_pread(v->image, v->batch, len, c[0].off, false, "chunks");
	if (r < 0)
		r = note(v, r);
	else
		for (unsigned int i = 0; r == 0 && i < n; i++) {
			r = gmem_image_chunk_unpack(v->image, reg, chunk + i, &c[i], v->scratch, v->batch + at,
						    v->pages);
			if (r < 0)
				r = note(v, r);
			at += c[i].stored_len;
		}
	return r < 0 ? r : advance(v, len);
}

static int verify_leaf(struct verify *v, const struct gmem_image_reg *reg, const struct gmem_image_node *leaf,
		       uint64_t first)
{
	unsigned int i = 0;

	while (i < GMEM_IMAGE_LEAF_ENTRIES) {
		const struct gmem_image_chunk *c = &leaf->chunk[i];
		unsigned int n = 0;
		size_t len = 0;
		int r;

		while (i + n < GMEM_IMAGE_LEAF_ENTRIES && c[n].mask && c[n].off == c[0].off + len &&
		       len + c[n].stored_len <= BATCH) {
			v->data_pages += (unsigned int)__builtin_popcountll(c[n].mask);
			v->stored_bytes += c[n].stored_len;
			len += c[n++].stored_len;
		}
		if (n == 0) {
			i++;
			continue;
		}
		r = verify_batch(v, reg, first + i, c, n, len);
		if (r < 0)
			return r;
		i += n;
	}
	return 0;
}

/* A block and all below it; as deep as GMEM_IMAGE_MAX_LEVELS. */
static int verify_node(struct verify *v, const struct gmem_image_reg *reg, struct gmem_image_link link, uint32_t level,
		       uint64_t first)
{
	struct gmem_image_node *node;
	int r;

	/* Links may lead to one empty block over and over: the caller can stop that, too. */
	r = advance(v, 0);
	if (r < 0)
		return r;
	r = gmem_image_node_load(v->image, reg, link, level, first, false, &node);
	if (r < 0)
		return note(v, r);
	if (level == 1)
		r = verify_leaf(v, reg, node, first);
	for (unsigned int i = 0; level > 1 && r == 0 && i < GMEM_IMAGE_BRANCH_ENTRIES; i++)
		if (node->link[i].off)
			r = verify_node(v, reg, node->link[i], level - 1, first + i * gmem_image_entry_span(level));
	free(node);
	return r;
}

static int verify_region(struct verify *v, const struct gmem_image_reg *reg)
{
	uint64_t before = v->damages;
	int r = 0;

	v->data_pages = v->stored_bytes = 0;
	if (reg->e.root.off)
		r = verify_node(v, reg, reg->e.root, reg->e.levels, 0);
	if (r < 0 || v->damages != before)
		return r;
	if (v->data_pages != reg->e.data_pages || v->stored_bytes != reg->e.stored_bytes)
		r = note(v,
			 gmem_err(-EBADMSG, "%s: damaged: region \"%s\": its index and the region table do not agree",
				  v->image->name, reg->e.name));
	return r;
}

int gmem_image_verify(struct gmem_image *image, void (*report)(void *opaque, const char *text), void *report_opaque,
		      gmem_progress_fn progress, void *opaque)
{
	struct verify v = {
		.image = image,
		.report = report,
		.report_opaque = report_opaque,
		.progress = progress,
		.opaque = opaque,
	};
	int r;

	for (size_t i = 0; i < image->h.nregions; i++)
		v.total += image->regions[i].e.stored_bytes;
	for (size_t i = 0; i < image->h.nsections; i++)
		v.total += image->sections[i].len;
	r = gmem_image_scratch_get(image, &v.scratch);
	if (r < 0)
		return r;
	v.batch = malloc(BATCH);
	v.pages = malloc(image->h.chunk_len);
	if (!v.batch || !v.pages)
		r = gmem_err(-ENOMEM, "%s: no memory to verify", image->name);
	if (r == 0)
		r = verify_sections(&v);
	for (size_t i = 0; r == 0 && i < image->h.nregions; i++)
		r = verify_region(&v, &image->regions[i]);
	gmem_image_scratch_put(image, v.scratch);
	free(v.batch);
	free(v.pages);
	if (r == 0 && v.damages)
		r = gmem_err(-EBADMSG, "%s", v.first);
	return r;
}
