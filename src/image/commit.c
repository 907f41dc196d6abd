/* SPDX-License-Identifier: MIT */
/* Completing an image: tables, header, disk, name, in this order. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "image/hash.h"
#include "image/writer.h"

static int write_tables(struct gmem_image_writer *w, struct gmem_image_header *h)
{
	size_t len = ((size_t)w->nregions + w->nsections) * GMEM_IMAGE_ENTRY_LEN;
	uint8_t *raw = malloc(len + 1);
	uint8_t *sections = raw + (size_t)w->nregions * GMEM_IMAGE_ENTRY_LEN;
	int r;

	if (!raw)
		return gmem_err(-ENOMEM, "%s: no memory for its tables", w->path);
	for (uint32_t i = 0; i < w->nregions; i++)
		gmem_image_region_encode(&w->regions[i], raw + (size_t)i * GMEM_IMAGE_ENTRY_LEN);
	for (uint32_t i = 0; i < w->nsections; i++)
		gmem_image_section_encode(&w->sections[i], sections + (size_t)i * GMEM_IMAGE_ENTRY_LEN);
	h->regions_sum = gmem_image_hash(raw, (size_t)w->nregions * GMEM_IMAGE_ENTRY_LEN);
	h->sections_sum = gmem_image_hash(sections, (size_t)w->nsections * GMEM_IMAGE_ENTRY_LEN);
	r = gmem_image_append(w, raw, len, &h->regions_off);
	h->sections_off = h->regions_off + (size_t)w->nregions * GMEM_IMAGE_ENTRY_LEN;
	free(raw);
	return r;
}

/* The header goes in last: until then the file does not even claim to be an image. */
static int write_header(struct gmem_image_writer *w, struct gmem_image_header *h)
{
	uint8_t raw[GMEM_IMAGE_HEADER_LEN];
	struct timespec now;
	int r;

	r = gmem_image_random(w, h->uuid, sizeof(h->uuid));
	if (r < 0)
		return r;
	h->uuid[6] = (h->uuid[6] & 0x0f) | 0x40; /* version 4, RFC 9562 */
	h->uuid[8] = (h->uuid[8] & 0x3f) | 0x80;
	clock_gettime(CLOCK_REALTIME, &now);
	h->version = GMEM_IMAGE_VERSION;
	h->header_len = GMEM_IMAGE_HEADER_LEN;
	h->page_size = GMEM_PAGE_SIZE;
	h->chunk_len = w->opts.chunk_len;
	h->created_ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
	h->file_len = w->pos;
	h->nregions = w->nregions;
	h->nsections = w->nsections;
	h->region_entry_len = h->section_entry_len = GMEM_IMAGE_ENTRY_LEN;
	h->codec = w->opts.compression == GMEM_COMPRESS_ZSTD ? GMEM_IMAGE_ZSTD : GMEM_IMAGE_RAW;
	snprintf(h->writer, sizeof(h->writer), "gmem %s", gmem_version());
	gmem_image_header_encode(h, raw);
	return gmem_image_write_at(w, raw, sizeof(raw), 0);
}

int gmem_image_commit(struct gmem_image_writer *w)
{
	struct gmem_image_header h = { 0 };
	int r = gmem_image_writer_usable(w);

	if (r == 0)
		r = write_tables(w, &h);
	if (r == 0)
		r = write_header(w, &h);
	if (r == 0 && fsync(w->fd) < 0)
		r = gmem_image_write_error(w, -errno);
	if (r == 0 && renameat(w->dir_fd, w->temp, w->dir_fd, w->base) < 0)
		r = gmem_err_sys(-errno, "%s: cannot take its name", w->path);
	if (r == 0) {
		free(w->temp);
		w->temp = NULL;
		/* Some file systems cannot: then the name is as durable as they make it. */
		if (fsync(w->dir_fd) < 0 && errno != EINVAL && errno != EROFS)
			r = gmem_err_sys(-errno, "%s: written, but its folder cannot be synced", w->path);
	}
	gmem_image_abort(w);
	return r;
}
