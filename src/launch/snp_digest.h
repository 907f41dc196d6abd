/* SPDX-License-Identifier: MIT */
/*
 * The launch digest of an SEV-SNP guest, as the firmware of AMD's security processor computes it: each page given to
 * the guest before its start is one link of a chain of SHA-384 values over PAGE_INFO structures (SEV-SNP Firmware ABI,
 * "PAGE_INFO"). No hardware and no guest take part.
 * Enters: pages, in the order they are launched. Leaves: the digest so far, readable at any time in `ld`.
 * The caller owns the digest, which holds nothing to free and may be copied; pages are borrowed for the call. No lock:
 * one thread at a time a digest.
 */
#ifndef GMEM_LAUNCH_SNP_DIGEST_H
#define GMEM_LAUNCH_SNP_DIGEST_H

#include <stdint.h>

#define GMEM_SNP_DIGEST_LEN 48u

struct evp_md_ctx_st; /* EVP_MD_CTX */

/* PAGE_TYPE of SNP_LAUNCH_UPDATE. */
enum gmem_snp_page {
	GMEM_SNP_PAGE_NORMAL = 1, /* its bytes are measured */
	GMEM_SNP_PAGE_VMSA = 2, /* its bytes, but for the TSC scale and offset, which the host may choose */
	GMEM_SNP_PAGE_ZERO = 3, /* this and what follows: that the page was given, where and as what, not its bytes */
	GMEM_SNP_PAGE_UNMEASURED = 4,
	GMEM_SNP_PAGE_SECRETS = 5,
	GMEM_SNP_PAGE_CPUID = 6,
};

struct gmem_snp_digest {
	uint8_t ld[GMEM_SNP_DIGEST_LEN];
};

/* As after SNP_LAUNCH_START: zero. */
void gmem_snp_digest_init(struct gmem_snp_digest *d);

/*
 * Extends the digest by one 4 KiB page at guest address `gpa`. A 2 MiB page is 512 of these, in ascending order. `page`
 * is 4096 bytes for NORMAL and VMSA; for the other types it is not looked at and may be NULL.
 * Errors: -EINVAL (no such type, gpa not aligned to a page, no bytes where they are measured), -ENOMEM (libcrypto could
 * not compute SHA-384). The digest is then as it was.
 */
int gmem_snp_digest_page(struct gmem_snp_digest *d, enum gmem_snp_page type, uint64_t gpa, const void *page);

/*
 * The same in steps, where the hash of the page is known: `contents`, NULL for the types whose bytes are not measured.
 * _info() writes the PAGE_INFO whose SHA-384 is the extended digest. Errors: -EINVAL, as above. _link() takes that
 * hash too; `ctx` is a running hash of the caller's (gmem_sha384_new()), which forgets what it was made of. Errors: as
 * above.
 */
#define GMEM_SNP_INFO_LEN 112u
int gmem_snp_digest_info(const struct gmem_snp_digest *d, enum gmem_snp_page type, uint64_t gpa,
			 const uint8_t *contents, uint8_t ret[GMEM_SNP_INFO_LEN]);
int gmem_snp_digest_link(struct gmem_snp_digest *d, struct evp_md_ctx_st *ctx, enum gmem_snp_page type, uint64_t gpa,
			 const uint8_t *contents);

#endif
