/* SPDX-License-Identifier: MIT */
/*
 * Firmware images, and SVSMs, with random metadata, in the form that real ones have. Everything is well-formed; what is
 * refused is tests/firmware*.c's. Included after tap.h.
 */
#ifndef GMEM_TESTS_GUEST_IMAGE_H
#define GMEM_TESTS_GUEST_IMAGE_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/le.h"

#define GI_PAGE 4096ull
#define GI_LOW_LEN 0x100000ull /* sections lie below it, the first page excepted */
#define GI_FOUR_GIB (1ull << 32)

struct guest_image {
	uint8_t *bytes;
	uint64_t len;
	uint64_t rng;
	size_t table; /* where the GUID table begins, growing down */
	size_t data; /* where other data ends, growing down from there */
	bool used[GI_LOW_LEN / GI_PAGE];
	bool hashes; /* it can be given a kernel */
};

static inline uint64_t gi_random(struct guest_image *g, uint64_t n)
{
	return tap_rand(&g->rng) % n;
}

/* As the text of a GUID has it: the first three groups are little-endian in memory. */
static inline void gi_guid(uint8_t *ret, uint32_t a, uint16_t b, uint16_t c, uint64_t rest)
{
	gmem_put_le32(ret, a);
	gmem_put_le16(ret + 4, b);
	gmem_put_le16(ret + 6, c);
	for (int i = 0; i < 8; i++)
		ret[8 + i] = (uint8_t)(rest >> (56 - 8 * i));
}

/* Data, then the length of the whole entry, then its GUID. */
static inline void gi_entry(struct guest_image *g, const void *data, uint16_t n, uint32_t a, uint16_t b, uint16_t c,
			    uint64_t rest)
{
	gi_guid(g->bytes + g->table - 16, a, b, c, rest);
	gmem_put_le16(g->bytes + g->table - 18, (uint16_t)(n + 18));
	memcpy(g->bytes + g->table - 18 - n, data, n);
	g->table -= 18u + n;
}

static inline void gi_entry32(struct guest_image *g, uint32_t v, uint32_t a, uint16_t b, uint16_t c, uint64_t rest)
{
	uint8_t raw[4];

	gmem_put_le32(raw, v);
	gi_entry(g, raw, sizeof(raw), a, b, c, rest);
}

static inline void gi_begin(struct guest_image *g, uint64_t npages, uint64_t seed)
{
	*g = (struct guest_image){ .len = npages * GI_PAGE, .rng = seed };
	g->bytes = malloc(g->len);
	CHECK(g->bytes);
	for (uint64_t i = 0; i < g->len; i += 8)
		gmem_put_le64(g->bytes + i, tap_rand(&g->rng));
	/* Firmware is full of pages of one value. */
	for (uint64_t i = 0; i < npages / 3; i++)
		memset(g->bytes + gi_random(g, npages) * GI_PAGE, gi_random(g, 2) ? 0 : 0xff, GI_PAGE);
	g->table = g->len - 32 - 18;
	g->data = g->len - GI_PAGE;
	g->used[0] = true;
}

/* The footer says how long the table is, itself included. */
static inline void gi_end(struct guest_image *g)
{
	size_t end = g->len - 32;

	gi_guid(g->bytes + end - 16, 0x96b582de, 0x1fb2, 0x45f7, 0xbaeaa366c55a082d);
	gmem_put_le16(g->bytes + end - 18, (uint16_t)(end - g->table));
}

static inline void gi_free(struct guest_image *g)
{
	free(g->bytes);
}

/* A place for a section, all its own. */
static inline uint32_t gi_place(struct guest_image *g, uint64_t npages)
{
	for (;;) {
		uint64_t page = 1 + gi_random(g, GI_LOW_LEN / GI_PAGE - npages);
		bool taken = false;

		for (uint64_t i = 0; i < npages; i++)
			taken |= g->used[page + i];
		if (taken)
			continue;
		memset(g->used + page, 1, npages);
		return (uint32_t)(page * GI_PAGE);
	}
}

/* Of n sections: header and entries below what is there. */
static inline uint8_t *gi_metadata(struct guest_image *g, const char *signature, uint32_t n, uint32_t entry_len)
{
	uint8_t *p;

	g->data -= 16 + n * entry_len;
	p = g->bytes + g->data;
	memcpy(p, signature, 4);
	gmem_put_le32(p + 4, 16 + n * entry_len);
	gmem_put_le32(p + 8, 1);
	gmem_put_le32(p + 12, n);
	return p + 16;
}

/* `flavour` 0: QEMU and its kind; 1: an SVSM's, without a place for hashes. */
static inline void gi_add_sev(struct guest_image *g, bool svsm)
{
	uint32_t n = 1 + (uint32_t)gi_random(g, 6), hashes = svsm ? n : (uint32_t)gi_random(g, 2 * n);
	bool secrets = false, cpuid = false;
	uint32_t hash_gpa = 0;
	uint8_t *p = gi_metadata(g, "ASEV", n, 12);

	gi_entry32(g, (uint32_t)(g->len - g->data), 0xdc886566, 0x984a, 0x4798, 0xa75e5585a7bf67cc);
	for (uint32_t i = 0; i < n; i++, p += 12) {
		uint32_t type = 1, npages = 1 + (uint32_t)gi_random(g, 20), kind = (uint32_t)gi_random(g, 4);

		if (i == hashes)
			type = 0x10;
		else if (kind == 1 && !secrets)
			secrets = true, type = 2;
		else if (kind == 2 && !cpuid)
			cpuid = true, type = 3;
		else if (kind == 3)
			type = 4;
		if (type != 1 && type != 4)
			npages = 1;
		gmem_put_le32(p, gi_place(g, npages));
		gmem_put_le32(p + 4, npages * (uint32_t)GI_PAGE);
		gmem_put_le32(p + 8, type);
		if (type == 0x10)
			hash_gpa = gmem_get_le32(p);
	}
	if (hash_gpa) {
		uint8_t raw[8];

		gmem_put_le32(raw, hash_gpa + (uint32_t)gi_random(g, (GI_PAGE - 176) / 16) * 16);
		gmem_put_le32(raw + 4, 0x400);
		gi_entry(g, raw, sizeof(raw), 0x7255371f, 0x3a3b, 0x4b04, 0x927b1da6efa8d454);
		g->hashes = true;
	}
	gi_entry32(g, svsm ? 0xfffffff0 : 0x800000 | (uint32_t)gi_random(g, 0xffff), 0x00f771de, 0x1a7e, 0x4fcb,
		   0x890e68c77e2fb44e);
	if (svsm)
		gi_entry32(g, (uint32_t)gi_random(g, g->len), 0xa789a612, 0x0597, 0x4c4b, 0xa49fcbb1fe9d1ddd);
}

static inline void gi_put_tdvf(uint8_t *p, uint64_t off, uint64_t raw, uint64_t gpa, uint64_t len, uint32_t type,
			       uint32_t attr)
{
	gmem_put_le32(p, (uint32_t)off);
	gmem_put_le32(p + 4, (uint32_t)raw);
	gmem_put_le64(p + 8, gpa);
	gmem_put_le64(p + 16, len);
	gmem_put_le32(p + 24, type);
	gmem_put_le32(p + 28, attr);
}

static inline void gi_add_tdvf(struct guest_image *g)
{
	uint64_t npages = g->len / GI_PAGE, vars = gi_random(g, npages / 2);
	uint32_t nmem = (uint32_t)gi_random(g, 4), n = 2 + !!vars + nmem, hob;
	uint8_t *p = gi_metadata(g, "TDVF", n, 32);

	gi_entry32(g, (uint32_t)(g->len - g->data), 0xe47a6535, 0x984a, 0x4798, 0x865e4685a7bf8ec2);
	if (vars) {
		gi_put_tdvf(p, 0, vars * GI_PAGE, GI_FOUR_GIB - g->len, vars * GI_PAGE, 1, 0);
		p += 32;
	}
	hob = (uint32_t)gi_random(g, nmem + 2);
	for (uint32_t i = 0; i < nmem + 2; i++, p += 32) {
		uint64_t m = 1 + gi_random(g, 12);

		if (i == hob)
			gi_put_tdvf(p, 0, 0, gi_place(g, m), m * GI_PAGE, 2, 0);
		else if (i == (hob + 1) % (nmem + 2))
			gi_put_tdvf(p, vars * GI_PAGE, g->len - vars * GI_PAGE, GI_FOUR_GIB - g->len + vars * GI_PAGE,
				    g->len - vars * GI_PAGE, 0, 1);
		else
			gi_put_tdvf(p, 0, 0, gi_place(g, m), m * GI_PAGE, 3, (uint32_t)gi_random(g, 2));
	}
}

#endif
