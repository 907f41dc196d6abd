/* SPDX-License-Identifier: MIT */
#include "image/format.h"

#include <string.h>

#include "base/le.h"
#include "image/hash.h"

void gmem_image_header_encode(const struct gmem_image_header *h, uint8_t raw[GMEM_IMAGE_HEADER_LEN])
{
	memset(raw, 0, GMEM_IMAGE_HEADER_LEN);
	memcpy(raw, GMEM_IMAGE_MAGIC, GMEM_IMAGE_MAGIC_LEN);
	gmem_put_le32(raw + GMEM_IMAGE_VERSION_OFF, h->version);
	gmem_put_le32(raw + 12, h->header_len);
	gmem_put_le32(raw + 16, h->page_size);
	gmem_put_le32(raw + 20, h->chunk_len);
	gmem_put_le32(raw + 24, h->required);
	gmem_put_le32(raw + 28, h->optional);
	memcpy(raw + 32, h->uuid, 16);
	gmem_put_le64(raw + 48, h->created_ns);
	gmem_put_le64(raw + GMEM_IMAGE_FILE_LEN_OFF, h->file_len);
	gmem_put_le64(raw + 64, h->regions_off);
	gmem_put_le32(raw + 72, h->nregions);
	gmem_put_le32(raw + 76, h->region_entry_len);
	gmem_put_le64(raw + 80, h->regions_sum);
	gmem_put_le64(raw + 88, h->sections_off);
	gmem_put_le32(raw + 96, h->nsections);
	gmem_put_le32(raw + 100, h->section_entry_len);
	gmem_put_le64(raw + 104, h->sections_sum);
	gmem_put_le32(raw + 112, h->codec);
	memcpy(raw + 120, h->writer, strnlen(h->writer, 32));
	gmem_put_le64(raw + GMEM_IMAGE_HEADER_SUM, gmem_image_hash(raw, GMEM_IMAGE_HEADER_SUM));
}

void gmem_image_header_decode(struct gmem_image_header *h, const uint8_t raw[GMEM_IMAGE_HEADER_LEN])
{
	memset(h, 0, sizeof(*h));
	h->version = gmem_get_le32(raw + GMEM_IMAGE_VERSION_OFF);
	h->header_len = gmem_get_le32(raw + 12);
	h->page_size = gmem_get_le32(raw + 16);
	h->chunk_len = gmem_get_le32(raw + 20);
	h->required = gmem_get_le32(raw + 24);
	h->optional = gmem_get_le32(raw + 28);
	memcpy(h->uuid, raw + 32, 16);
	h->created_ns = gmem_get_le64(raw + 48);
	h->file_len = gmem_get_le64(raw + GMEM_IMAGE_FILE_LEN_OFF);
	h->regions_off = gmem_get_le64(raw + 64);
	h->nregions = gmem_get_le32(raw + 72);
	h->region_entry_len = gmem_get_le32(raw + 76);
	h->regions_sum = gmem_get_le64(raw + 80);
	h->sections_off = gmem_get_le64(raw + 88);
	h->nsections = gmem_get_le32(raw + 96);
	h->section_entry_len = gmem_get_le32(raw + 100);
	h->sections_sum = gmem_get_le64(raw + 104);
	h->codec = gmem_get_le32(raw + 112);
	memcpy(h->writer, raw + 120, 32);
	h->sum = gmem_get_le64(raw + GMEM_IMAGE_HEADER_SUM);
}

void gmem_image_link_encode(const struct gmem_image_link *l, uint8_t raw[GMEM_IMAGE_LINK_LEN])
{
	gmem_put_le64(raw, l->off);
	gmem_put_le64(raw + 8, l->sum);
}

void gmem_image_link_decode(struct gmem_image_link *l, const uint8_t raw[GMEM_IMAGE_LINK_LEN])
{
	l->off = gmem_get_le64(raw);
	l->sum = gmem_get_le64(raw + 8);
}

void gmem_image_chunk_encode(const struct gmem_image_chunk *c, uint8_t raw[GMEM_IMAGE_CHUNK_ENTRY_LEN])
{
	gmem_put_le64(raw, c->off);
	gmem_put_le32(raw + 8, c->stored_len);
	raw[12] = c->codec;
	memcpy(raw + 13, c->reserved, 3);
	gmem_put_le64(raw + 16, c->mask);
	gmem_put_le64(raw + 24, c->sum);
}

void gmem_image_chunk_decode(struct gmem_image_chunk *c, const uint8_t raw[GMEM_IMAGE_CHUNK_ENTRY_LEN])
{
	c->off = gmem_get_le64(raw);
	c->stored_len = gmem_get_le32(raw + 8);
	c->codec = raw[12];
	memcpy(c->reserved, raw + 13, 3);
	c->mask = gmem_get_le64(raw + 16);
	c->sum = gmem_get_le64(raw + 24);
}

void gmem_image_region_encode(const struct gmem_image_region_entry *r, uint8_t raw[GMEM_IMAGE_ENTRY_LEN])
{
	memset(raw, 0, GMEM_IMAGE_ENTRY_LEN);
	memcpy(raw, r->name, strnlen(r->name, GMEM_IMAGE_NAME_LEN - 1));
	gmem_put_le64(raw + 64, r->gpa);
	gmem_put_le64(raw + 72, r->len);
	gmem_image_link_encode(&r->root, raw + 80);
	gmem_put_le64(raw + 96, r->data_pages);
	gmem_put_le64(raw + 104, r->stored_bytes);
	gmem_put_le32(raw + 112, r->required);
	gmem_put_le32(raw + 116, r->levels);
}

void gmem_image_region_decode(struct gmem_image_region_entry *r, const uint8_t raw[GMEM_IMAGE_ENTRY_LEN])
{
	memcpy(r->name, raw, GMEM_IMAGE_NAME_LEN);
	r->gpa = gmem_get_le64(raw + 64);
	r->len = gmem_get_le64(raw + 72);
	gmem_image_link_decode(&r->root, raw + 80);
	r->data_pages = gmem_get_le64(raw + 96);
	r->stored_bytes = gmem_get_le64(raw + 104);
	r->required = gmem_get_le32(raw + 112);
	r->levels = gmem_get_le32(raw + 116);
}

void gmem_image_section_encode(const struct gmem_image_section_entry *s, uint8_t raw[GMEM_IMAGE_ENTRY_LEN])
{
	memset(raw, 0, GMEM_IMAGE_ENTRY_LEN);
	memcpy(raw, s->name, strnlen(s->name, GMEM_IMAGE_NAME_LEN - 1));
	gmem_put_le32(raw + 64, s->required);
	gmem_put_le64(raw + 72, s->off);
	gmem_put_le64(raw + 80, s->len);
	gmem_put_le64(raw + 88, s->sum);
}

void gmem_image_section_decode(struct gmem_image_section_entry *s, const uint8_t raw[GMEM_IMAGE_ENTRY_LEN])
{
	memcpy(s->name, raw, GMEM_IMAGE_NAME_LEN);
	s->required = gmem_get_le32(raw + 64);
	s->off = gmem_get_le64(raw + 72);
	s->len = gmem_get_le64(raw + 80);
	s->sum = gmem_get_le64(raw + 88);
}

uint32_t gmem_image_levels(uint64_t nchunks)
{
	uint64_t blocks = (nchunks + GMEM_IMAGE_LEAF_ENTRIES - 1) / GMEM_IMAGE_LEAF_ENTRIES;
	uint32_t levels = 1;

	while (blocks > 1) {
		blocks = (blocks + GMEM_IMAGE_BRANCH_ENTRIES - 1) / GMEM_IMAGE_BRANCH_ENTRIES;
		levels++;
	}
	return levels;
}

bool gmem_image_name_ok(const char *name)
{
	size_t n = strnlen(name, GMEM_IMAGE_NAME_LEN);

	if (n == 0 || n == GMEM_IMAGE_NAME_LEN)
		return false;
	for (size_t i = 0; i < n; i++)
		if (name[i] <= ' ' || name[i] > '~')
			return false;
	return true;
}
