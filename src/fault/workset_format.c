/* SPDX-License-Identifier: MIT */
/* The file of a working set, as gmem-workset(5) specifies it. */
#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/le.h"
#include "fault/workset.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#define MAGIC "\x89GMWS\r\n\x1a" /* a transfer in text mode breaks it */
#define MAGIC_LEN 8u
#define VERSION 1u
#define BLOCK_MAGIC 0x4b425357u /* "WSBK" */

enum {
	AT_VERSION = 8,
	AT_HEADER_LEN = 12,
	AT_PAGE_SIZE = 16,
	AT_REQUIRED = 20,
	AT_IDENTITY = 24,
	AT_CREATED = 56,
	AT_ENTRIES = 64,
	AT_LOST = 72,
	AT_CUT_FROM = 80,
	AT_HITS = 88,
	AT_LATE = 96,
	AT_UNUSED = 104,
	AT_MISSED = 112,
	AT_REPLAY_NS = 120,
	AT_REPLAYED_PAGES = 128,
	AT_PARTS = 136,
	AT_RUNS = 140,
	AT_OBSERVED = 144,
	AT_PART_LEN = 256,
	AT_SUM = 4088,
};

_Static_assert(AT_PART_LEN + 8 * GMEM_WORKSET_MAX_PARTS <= AT_SUM, "header of a working set");

void gmem_workset_header_encode(const struct gmem_workset_header *h, uint8_t raw[GMEM_WORKSET_HEADER_LEN])
{
	memset(raw, 0, GMEM_WORKSET_HEADER_LEN);
	memcpy(raw, MAGIC, MAGIC_LEN);
	gmem_put_le32(raw + AT_VERSION, VERSION);
	gmem_put_le32(raw + AT_HEADER_LEN, GMEM_WORKSET_HEADER_LEN);
	gmem_put_le32(raw + AT_PAGE_SIZE, GMEM_PAGE_SIZE);
	memcpy(raw + AT_IDENTITY, h->identity, sizeof(h->identity));
	gmem_put_le64(raw + AT_CREATED, h->created_ns);
	gmem_put_le64(raw + AT_ENTRIES, h->entries);
	gmem_put_le64(raw + AT_LOST, h->lost);
	gmem_put_le64(raw + AT_CUT_FROM, h->cut_from);
	gmem_put_le64(raw + AT_HITS, h->hits);
	gmem_put_le64(raw + AT_LATE, h->late);
	gmem_put_le64(raw + AT_UNUSED, h->unused);
	gmem_put_le64(raw + AT_MISSED, h->missed);
	gmem_put_le64(raw + AT_REPLAY_NS, h->replay_ns);
	gmem_put_le64(raw + AT_REPLAYED_PAGES, h->replayed_pages);
	gmem_put_le32(raw + AT_PARTS, h->parts);
	gmem_put_le32(raw + AT_RUNS, h->runs);
	gmem_put_le32(raw + AT_OBSERVED, h->observed);
	for (uint32_t i = 0; i < h->parts; i++)
		gmem_put_le64(raw + AT_PART_LEN + 8 * i, h->part_len[i]);
	gmem_put_le64(raw + AT_SUM, XXH3_64bits(raw, AT_SUM));
}

static int check_header(const struct gmem_workset_header *h, const uint8_t *raw, const char *name)
{
	if (gmem_get_le32(raw + AT_HEADER_LEN) != GMEM_WORKSET_HEADER_LEN ||
	    gmem_get_le32(raw + AT_PAGE_SIZE) != GMEM_PAGE_SIZE)
		return gmem_err(-EBADMSG, "%s: header length %u, page size %u: expected %u and %u", name,
				gmem_get_le32(raw + AT_HEADER_LEN), gmem_get_le32(raw + AT_PAGE_SIZE),
				GMEM_WORKSET_HEADER_LEN, GMEM_PAGE_SIZE);
	if (h->parts > GMEM_WORKSET_MAX_PARTS)
		return gmem_err(-EBADMSG, "%s: %u parts: at most %u", name, h->parts, GMEM_WORKSET_MAX_PARTS);
	if (h->entries > GMEM_WORKSET_MAX_ENTRIES && h->entries != GMEM_WORKSET_OPEN)
		return gmem_err(-EBADMSG, "%s: %llu entries: at most %u", name, (unsigned long long)h->entries,
				GMEM_WORKSET_MAX_ENTRIES);
	for (uint32_t i = 0; i < h->parts; i++)
		if (!h->part_len[i] || h->part_len[i] % GMEM_PAGE_SIZE || h->part_len[i] > GMEM_WORKSET_MAX_PART)
			return gmem_err(-EBADMSG, "%s: part %u of %llu bytes", name, i,
					(unsigned long long)h->part_len[i]);
	return 0;
}

int gmem_workset_header_decode(struct gmem_workset_header *h, const uint8_t raw[GMEM_WORKSET_HEADER_LEN],
			       const char *name)
{
	if (memcmp(raw, MAGIC, MAGIC_LEN))
		return gmem_err(-EMEDIUMTYPE, "%s: no working set", name);
	if (gmem_get_le32(raw + AT_VERSION) != VERSION)
		return gmem_err(-EPROTONOSUPPORT, "%s: version %u of the format: this gmem knows %u", name,
				gmem_get_le32(raw + AT_VERSION), VERSION);
	if (gmem_get_le64(raw + AT_SUM) != XXH3_64bits(raw, AT_SUM))
		return gmem_err(-EBADMSG, "%s: the header does not match its checksum", name);
	if (gmem_get_le32(raw + AT_REQUIRED))
		return gmem_err(-EPROTONOSUPPORT, "%s: required features 0x%x: this gmem knows none", name,
				gmem_get_le32(raw + AT_REQUIRED));
	memset(h, 0, sizeof(*h));
	memcpy(h->identity, raw + AT_IDENTITY, sizeof(h->identity));
	h->created_ns = gmem_get_le64(raw + AT_CREATED);
	h->entries = gmem_get_le64(raw + AT_ENTRIES);
	h->lost = gmem_get_le64(raw + AT_LOST);
	h->cut_from = gmem_get_le64(raw + AT_CUT_FROM);
	h->hits = gmem_get_le64(raw + AT_HITS);
	h->late = gmem_get_le64(raw + AT_LATE);
	h->unused = gmem_get_le64(raw + AT_UNUSED);
	h->missed = gmem_get_le64(raw + AT_MISSED);
	h->replay_ns = gmem_get_le64(raw + AT_REPLAY_NS);
	h->replayed_pages = gmem_get_le64(raw + AT_REPLAYED_PAGES);
	h->parts = gmem_get_le32(raw + AT_PARTS);
	h->runs = gmem_get_le32(raw + AT_RUNS);
	h->observed = gmem_get_le32(raw + AT_OBSERVED);
	for (uint32_t i = 0; i < h->parts && i < GMEM_WORKSET_MAX_PARTS; i++)
		h->part_len[i] = gmem_get_le64(raw + AT_PART_LEN + 8 * i);
	return check_header(h, raw, name);
}

void gmem_workset_block_encode(uint64_t number, const struct gmem_workset_run *runs, uint32_t n, uint8_t *raw)
{
	XXH3_state_t state;

	gmem_put_le32(raw, BLOCK_MAGIC);
	gmem_put_le32(raw + 4, n);
	gmem_put_le64(raw + 8, number);
	for (uint32_t i = 0; i < n; i++) {
		uint8_t *e = raw + GMEM_WORKSET_BLOCK_LEN + (size_t)i * GMEM_WORKSET_ENTRY_LEN;

		gmem_put_le64(e, runs[i].page);
		gmem_put_le64(e + 8, runs[i].ns);
		gmem_put_le32(e + 16, runs[i].npages);
		gmem_put_le16(e + 20, runs[i].part);
		gmem_put_le16(e + 22, runs[i].touches);
	}
	XXH3_64bits_reset(&state);
	XXH3_64bits_update(&state, raw, 16);
	XXH3_64bits_update(&state, raw + GMEM_WORKSET_BLOCK_LEN, (size_t)n * GMEM_WORKSET_ENTRY_LEN);
	gmem_put_le64(raw + 16, XXH3_64bits_digest(&state));
}

static bool run_valid(const struct gmem_workset_header *h, const struct gmem_workset_run *r)
{
	uint64_t pages;

	if (r->part >= h->parts || !r->npages || r->npages > GMEM_WORKSET_RUN_PAGES || !r->touches || r->ns > INT64_MAX)
		return false;
	pages = h->part_len[r->part] / GMEM_PAGE_SIZE;
	return r->page < pages && r->npages <= pages - r->page;
}

uint32_t gmem_workset_block_decode(const struct gmem_workset_header *h, uint64_t number, const uint8_t *raw,
				   uint64_t len, struct gmem_workset_run *runs)
{
	XXH3_state_t state;
	uint32_t n;

	if (len < GMEM_WORKSET_BLOCK_LEN || gmem_get_le32(raw) != BLOCK_MAGIC || gmem_get_le64(raw + 8) != number)
		return 0;
	n = gmem_get_le32(raw + 4);
	if (n > GMEM_WORKSET_BLOCK_ENTRIES || (len - GMEM_WORKSET_BLOCK_LEN) / GMEM_WORKSET_ENTRY_LEN < n)
		return 0;
	XXH3_64bits_reset(&state);
	XXH3_64bits_update(&state, raw, 16);
	XXH3_64bits_update(&state, raw + GMEM_WORKSET_BLOCK_LEN, (size_t)n * GMEM_WORKSET_ENTRY_LEN);
	if (XXH3_64bits_digest(&state) != gmem_get_le64(raw + 16))
		return 0;
	for (uint32_t i = 0; i < n; i++) {
		const uint8_t *e = raw + GMEM_WORKSET_BLOCK_LEN + (size_t)i * GMEM_WORKSET_ENTRY_LEN;

		runs[i] = (struct gmem_workset_run){
			.page = gmem_get_le64(e),
			.ns = gmem_get_le64(e + 8),
			.npages = gmem_get_le32(e + 16),
			.part = gmem_get_le16(e + 20),
			.touches = gmem_get_le16(e + 22),
		};
		if (!run_valid(h, &runs[i]))
			return 0;
	}
	return n;
}
