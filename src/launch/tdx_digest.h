/* SPDX-License-Identifier: MIT */
/*
 * The build-time measurement of a TDX guest (MRTD), as the TDX module computes it: one running SHA-384 over the calls
 * that add pages and extend the measurement by their bytes. No hardware and no guest take part.
 * Enters: the calls, in the order they are made: "page added, its 16 chunks extended, next page" and "all pages of a
 * section added, then all extended" are both legal and give different values. Leaves: the value, at any time.
 * The caller owns the digest from _init() to _free(); chunks are borrowed for the call. No lock: one thread at a time a
 * digest.
 */
#ifndef GMEM_LAUNCH_TDX_DIGEST_H
#define GMEM_LAUNCH_TDX_DIGEST_H

#include <stdint.h>

#define GMEM_TDX_DIGEST_LEN 48u
#define GMEM_TDX_CHUNK_LEN 256u /* what one TDH.MR.EXTEND reads */

struct gmem_tdx_digest {
	struct evp_md_ctx_st *ctx;
};

/* As after TDH.MNG.INIT: nothing hashed. Errors: -ENOMEM. */
int gmem_tdx_digest_init(struct gmem_tdx_digest *d);

/* Takes NULL, a digest of all zero bytes, and one already freed. */
void gmem_tdx_digest_free(struct gmem_tdx_digest *d);

/*
 * TDH.MEM.PAGE.ADD: that a page is there, not its bytes. Errors: -EINVAL (gpa not aligned to a page; the digest is as
 * it was), -ENOMEM (libcrypto; the digest is of no use any more).
 */
int gmem_tdx_digest_add(struct gmem_tdx_digest *d, uint64_t gpa);

/*
 * TDH.MR.EXTEND: the 256 bytes at `gpa`. That the page was added is not checked. Errors: as above, -EINVAL for a gpa
 * not aligned to 256 or no bytes.
 */
int gmem_tdx_digest_extend(struct gmem_tdx_digest *d, uint64_t gpa, const void *chunk);

/*
 * The same, and faster, for a whole page: its 16 chunks extended; or added, then extended. Errors: as above, -EINVAL
 * for a gpa not aligned to a page or no bytes.
 */
int gmem_tdx_digest_extend_page(struct gmem_tdx_digest *d, uint64_t gpa, const void *page);
int gmem_tdx_digest_add_extend_page(struct gmem_tdx_digest *d, uint64_t gpa, const void *page);

/* MRTD, were the build finished now (TDH.MR.FINALIZE); it may go on. Errors: -ENOMEM; `ret` is written on success. */
int gmem_tdx_digest_value(const struct gmem_tdx_digest *d, uint8_t ret[GMEM_TDX_DIGEST_LEN]);

#endif
