/* SPDX-License-Identifier: MIT */
#include "launch/tdx_digest.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#include "base/err.h"
#include "base/le.h"
#include "base/range.h"
#include "launch/sha384.h"

/* The block that stands for a call: its name, zero to 16 bytes, then the address, then zeros. */
#define BLOCK_LEN 128
#define BLOCK_GPA 16
#define EXTEND_LEN (BLOCK_LEN + GMEM_TDX_CHUNK_LEN)

_Static_assert(GMEM_SHA384_LEN == GMEM_TDX_DIGEST_LEN, "one hash function");

int gmem_tdx_digest_init(struct gmem_tdx_digest *d)
{
	int err;

	d->ctx = NULL;
	err = gmem_sha384_new(&d->ctx);
	return err ? gmem_err_prefix(err, "gmem_tdx_digest_init") : 0;
}

void gmem_tdx_digest_free(struct gmem_tdx_digest *d)
{
	if (!d)
		return;
	gmem_sha384_free(d->ctx);
	d->ctx = NULL;
}

static void put_block(uint8_t *block, const char *name, uint64_t gpa)
{
	memset(block, 0, BLOCK_LEN);
	memcpy(block, name, strlen(name));
	gmem_put_le64(block + BLOCK_GPA, gpa);
}

static void put_extend(uint8_t *block, uint64_t gpa, const uint8_t *chunk)
{
	put_block(block, "MR.EXTEND", gpa);
	memcpy(block + BLOCK_LEN, chunk, GMEM_TDX_CHUNK_LEN);
}

int gmem_tdx_digest_add(struct gmem_tdx_digest *d, uint64_t gpa)
{
	uint8_t block[BLOCK_LEN];
	int err;

	if (!gmem_page_aligned(gpa))
		return gmem_err(-EINVAL, "gmem_tdx_digest_add: gpa 0x%" PRIx64 ": not aligned to a page", gpa);
	put_block(block, "MEM.PAGE.ADD", gpa);
	err = gmem_sha384_update(d->ctx, block, sizeof(block));
	return err ? gmem_err_prefix(err, "gmem_tdx_digest_add: gpa 0x%" PRIx64, gpa) : 0;
}

int gmem_tdx_digest_extend(struct gmem_tdx_digest *d, uint64_t gpa, const void *chunk)
{
	uint8_t block[BLOCK_LEN + GMEM_TDX_CHUNK_LEN];
	int err;

	if (gpa % GMEM_TDX_CHUNK_LEN)
		return gmem_err(-EINVAL, "gmem_tdx_digest_extend: gpa 0x%" PRIx64 ": not aligned to %u bytes", gpa,
				GMEM_TDX_CHUNK_LEN);
	if (!chunk)
		return gmem_err(-EINVAL, "gmem_tdx_digest_extend: gpa 0x%" PRIx64 ": no bytes", gpa);
	put_extend(block, gpa, chunk);
	err = gmem_sha384_update(d->ctx, block, sizeof(block));
	return err ? gmem_err_prefix(err, "gmem_tdx_digest_extend: gpa 0x%" PRIx64, gpa) : 0;
}

static int hash_page(const char *call, struct gmem_tdx_digest *d, uint64_t gpa, const uint8_t *page, bool add)
{
	uint8_t blocks[BLOCK_LEN + GMEM_PAGE_SIZE / GMEM_TDX_CHUNK_LEN * EXTEND_LEN], *at = blocks;
	int err;

	if (!gmem_page_aligned(gpa) || !page)
		return gmem_err(-EINVAL, "%s: gpa 0x%" PRIx64 ": %s", call, gpa,
				page ? "not aligned to a page" : "no bytes");
	if (add) {
		put_block(at, "MEM.PAGE.ADD", gpa);
		at += BLOCK_LEN;
	}
	for (uint32_t i = 0; i < GMEM_PAGE_SIZE; i += GMEM_TDX_CHUNK_LEN, at += EXTEND_LEN)
		put_extend(at, gpa + i, page + i);
	err = gmem_sha384_update(d->ctx, blocks, (size_t)(at - blocks));
	return err ? gmem_err_prefix(err, "%s: gpa 0x%" PRIx64, call, gpa) : 0;
}

int gmem_tdx_digest_extend_page(struct gmem_tdx_digest *d, uint64_t gpa, const void *page)
{
	return hash_page("gmem_tdx_digest_extend_page", d, gpa, page, false);
}

int gmem_tdx_digest_add_extend_page(struct gmem_tdx_digest *d, uint64_t gpa, const void *page)
{
	return hash_page("gmem_tdx_digest_add_extend_page", d, gpa, page, true);
}

int gmem_tdx_digest_value(const struct gmem_tdx_digest *d, uint8_t ret[GMEM_TDX_DIGEST_LEN])
{
	int err = gmem_sha384_value(d->ctx, ret);

	return err ? gmem_err_prefix(err, "gmem_tdx_digest_value") : 0;
}
