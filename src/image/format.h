/* SPDX-License-Identifier: MIT */
/*
 * Image format v1, as gmem-image(5) specifies it: where each field lies on disk, and the structures it becomes in
 * memory.
 * Enters: bytes of any alignment. Leaves: host integers, and back. Decoding never fails and checks nothing: the reader
 * does. No lock.
 */
#ifndef GMEM_IMAGE_FORMAT_H
#define GMEM_IMAGE_FORMAT_H

#include <stdint.h>

#include "gmem.h"

#define GMEM_IMAGE_MAGIC "\x89GMEM\r\n\x1a" /* a transfer in text mode breaks it */
#define GMEM_IMAGE_MAGIC_LEN 8u
#define GMEM_IMAGE_VERSION 1u

#define GMEM_IMAGE_HEADER_LEN 4096u
#define GMEM_IMAGE_HEADER_SUM 4088u /* checksum of everything before it */
#define GMEM_IMAGE_VERSION_OFF 8u
#define GMEM_IMAGE_FILE_LEN_OFF 56u

#define GMEM_IMAGE_NAME_LEN 64u /* with the terminating NUL */
#define GMEM_IMAGE_ENTRY_LEN 128u /* of the region and section tables, as v1 writes them */
#define GMEM_IMAGE_ENTRY_MAX 4096u
#define GMEM_IMAGE_MAX_REGIONS 256u
#define GMEM_IMAGE_MAX_SECTIONS 256u
#define GMEM_IMAGE_MAX_SECTION_LEN (1u << 30)
#define GMEM_IMAGE_MAX_REGION_LEN (UINT64_C(1) << 50)

#define GMEM_IMAGE_CHUNK_MIN 4096u
#define GMEM_IMAGE_CHUNK_MAX (256u * 1024)
#define GMEM_IMAGE_CHUNK_PAGES (GMEM_IMAGE_CHUNK_MAX / GMEM_PAGE_SIZE)

/* A region's index is a tree of 4 KiB blocks: leaves of chunk entries, above them branches. */
#define GMEM_IMAGE_BLOCK_LEN 4096u
#define GMEM_IMAGE_LEAF_ENTRIES 128u
#define GMEM_IMAGE_BRANCH_ENTRIES 256u
#define GMEM_IMAGE_CHUNK_ENTRY_LEN 32u
#define GMEM_IMAGE_LINK_LEN 16u
#define GMEM_IMAGE_MAX_LEVELS 6u /* the longest region in the smallest chunks: a leaf and four branches */

/* Bits of `required` words: a reader that meets one it does not know refuses. v1 defines one, in section entries. */
#define GMEM_IMAGE_SECTION_REQUIRED (1u << 0)

enum gmem_image_codec {
	GMEM_IMAGE_RAW = 0,
	GMEM_IMAGE_ZSTD = 1,
};

struct gmem_image_header {
	uint32_t version;
	uint32_t header_len;
	uint32_t page_size;
	uint32_t chunk_len;
	uint32_t required; /* flags */
	uint32_t optional; /* flags */
	uint8_t uuid[16];
	uint64_t created_ns; /* since 1970 */
	uint64_t file_len;
	uint64_t regions_off;
	uint32_t nregions;
	uint32_t region_entry_len;
	uint64_t regions_sum;
	uint64_t sections_off;
	uint32_t nsections;
	uint32_t section_entry_len;
	uint64_t sections_sum;
	uint32_t codec; /* what the writer was asked for; each chunk says its own */
	char writer[33]; /* "gmem 0.1.0" */
	uint64_t sum;
};

/* Where an index block lies and what it sums to; off 0: nothing below it, all zero. */
struct gmem_image_link {
	uint64_t off;
	uint64_t sum;
};

struct gmem_image_chunk {
	uint64_t off;
	uint32_t stored_len;
	uint8_t codec;
	uint8_t reserved[3];
	uint64_t mask; /* bit i: page i of the chunk is stored, in that order, without gaps */
	uint64_t sum; /* of the stored bytes */
};

struct gmem_image_region_entry {
	char name[GMEM_IMAGE_NAME_LEN];
	uint64_t gpa;
	uint64_t len;
	struct gmem_image_link root;
	uint64_t data_pages;
	uint64_t stored_bytes;
	uint32_t required;
	uint32_t levels; /* of the index; 1: the root is a leaf */
};

struct gmem_image_section_entry {
	char name[GMEM_IMAGE_NAME_LEN];
	uint32_t required;
	uint64_t off;
	uint64_t len;
	uint64_t sum;
};

void gmem_image_header_encode(const struct gmem_image_header *h, uint8_t raw[GMEM_IMAGE_HEADER_LEN]); /* sums it too */
void gmem_image_header_decode(struct gmem_image_header *h, const uint8_t raw[GMEM_IMAGE_HEADER_LEN]);
void gmem_image_link_encode(const struct gmem_image_link *l, uint8_t raw[GMEM_IMAGE_LINK_LEN]);
void gmem_image_link_decode(struct gmem_image_link *l, const uint8_t raw[GMEM_IMAGE_LINK_LEN]);
void gmem_image_chunk_encode(const struct gmem_image_chunk *c, uint8_t raw[GMEM_IMAGE_CHUNK_ENTRY_LEN]);
void gmem_image_chunk_decode(struct gmem_image_chunk *c, const uint8_t raw[GMEM_IMAGE_CHUNK_ENTRY_LEN]);
void gmem_image_region_encode(const struct gmem_image_region_entry *r, uint8_t raw[GMEM_IMAGE_ENTRY_LEN]);
void gmem_image_region_decode(struct gmem_image_region_entry *r, const uint8_t raw[GMEM_IMAGE_ENTRY_LEN]);
void gmem_image_section_encode(const struct gmem_image_section_entry *s, uint8_t raw[GMEM_IMAGE_ENTRY_LEN]);
void gmem_image_section_decode(struct gmem_image_section_entry *s, const uint8_t raw[GMEM_IMAGE_ENTRY_LEN]);

/* Levels of the index of a region of `nchunks` chunks: 1 is one leaf. */
uint32_t gmem_image_levels(uint64_t nchunks);

/* True for 1..63 printable ASCII characters without a space. */
bool gmem_image_name_ok(const char *name);

#endif
