/* SPDX-License-Identifier: MIT */
#include "launch/snp_digest.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#include "base/err.h"
#include "base/le.h"
#include "base/range.h"
#include "launch/sha384.h"

/* PAGE_INFO. What is not written here is zero: IMI_PAGE and the permissions of VMPL 1 to 3, which KVM never sets. */
#define INFO_DIGEST_CUR 0x00
#define INFO_CONTENTS 0x30
#define INFO_LENGTH 0x60
#define INFO_PAGE_TYPE 0x62
#define INFO_GPA 0x68
#define INFO_LEN 0x70

_Static_assert(INFO_CONTENTS == INFO_DIGEST_CUR + GMEM_SNP_DIGEST_LEN, "contents follow the digest");
_Static_assert(INFO_LENGTH == INFO_CONTENTS + GMEM_SHA384_LEN, "the length follows the contents");
_Static_assert(INFO_GPA + sizeof(uint64_t) == INFO_LEN && INFO_LEN == GMEM_SNP_INFO_LEN,
	       "the address is the last field");
_Static_assert(GMEM_SHA384_LEN == GMEM_SNP_DIGEST_LEN, "one hash function");

/* GUEST_TSC_SCALE and GUEST_TSC_OFFSET of a VMSA page: the firmware sets them itself and measures them as zero. */
#define VMSA_TSC_OFF 0x2f0
#define VMSA_TSC_LEN 16

void gmem_snp_digest_init(struct gmem_snp_digest *d)
{
	memset(d, 0, sizeof(*d));
}

/* What PAGE_INFO says of the bytes: their hash, or 48 zeros where only the page's being there is measured. */
static int hash_contents(enum gmem_snp_page type, const void *page, uint8_t *contents)
{
	uint8_t vmsa[GMEM_PAGE_SIZE];

	switch (type) {
	case GMEM_SNP_PAGE_NORMAL:
		return gmem_sha384(page, GMEM_PAGE_SIZE, contents);
	case GMEM_SNP_PAGE_VMSA:
		memcpy(vmsa, page, sizeof(vmsa));
		memset(vmsa + VMSA_TSC_OFF, 0, VMSA_TSC_LEN);
		return gmem_sha384(vmsa, sizeof(vmsa), contents);
	default:
		memset(contents, 0, GMEM_SHA384_LEN);
		return 0;
	}
}

/* `measured`: there are bytes, or their hash. */
static int check(const char *call, enum gmem_snp_page type, uint64_t gpa, bool measured)
{
	if ((int)type < GMEM_SNP_PAGE_NORMAL || (int)type > GMEM_SNP_PAGE_CPUID)
		return gmem_err(-EINVAL, "%s: gpa 0x%" PRIx64 ": page type %d: 1 to 6 are defined", call, gpa,
				(int)type);
	if (!gmem_page_aligned(gpa))
		return gmem_err(-EINVAL, "%s: gpa 0x%" PRIx64 ": not aligned to a page", call, gpa);
	if (!measured && (type == GMEM_SNP_PAGE_NORMAL || type == GMEM_SNP_PAGE_VMSA))
		return gmem_err(-EINVAL, "%s: gpa 0x%" PRIx64 ": no bytes, which this page type measures", call, gpa);
	return 0;
}

/* All but the contents, which lie in `info` already; zeros, if nothing was put there. */
static void put_info(uint8_t *info, const struct gmem_snp_digest *d, enum gmem_snp_page type, uint64_t gpa)
{
	memcpy(info + INFO_DIGEST_CUR, d->ld, sizeof(d->ld));
	gmem_put_le16(info + INFO_LENGTH, INFO_LEN);
	info[INFO_PAGE_TYPE] = (uint8_t)type;
	gmem_put_le64(info + INFO_GPA, gpa);
}

int gmem_snp_digest_page(struct gmem_snp_digest *d, enum gmem_snp_page type, uint64_t gpa, const void *page)
{
	uint8_t info[INFO_LEN] = { 0 };
	int err = check("gmem_snp_digest_page", type, gpa, page);

	if (err)
		return err;
	err = hash_contents(type, page, info + INFO_CONTENTS);
	if (!err) {
		put_info(info, d, type, gpa);
		err = gmem_sha384(info, sizeof(info), d->ld);
	}
	return err ? gmem_err_prefix(err, "gmem_snp_digest_page: gpa 0x%" PRIx64, gpa) : 0;
}

int gmem_snp_digest_info(const struct gmem_snp_digest *d, enum gmem_snp_page type, uint64_t gpa,
			 const uint8_t *contents, uint8_t ret[GMEM_SNP_INFO_LEN])
{
	int err = check("gmem_snp_digest_info", type, gpa, contents);

	if (err)
		return err;
	memset(ret, 0, INFO_LEN);
	if (type == GMEM_SNP_PAGE_NORMAL || type == GMEM_SNP_PAGE_VMSA)
		memcpy(ret + INFO_CONTENTS, contents, GMEM_SHA384_LEN);
	put_info(ret, d, type, gpa);
	return 0;
}

int gmem_snp_digest_link(struct gmem_snp_digest *d, struct evp_md_ctx_st *ctx, enum gmem_snp_page type, uint64_t gpa,
			 const uint8_t *contents)
{
	uint8_t info[INFO_LEN];
	int err = gmem_snp_digest_info(d, type, gpa, contents, info);

	if (!err)
		err = gmem_sha384_again(ctx, info, sizeof(info), d->ld);
	return err ? gmem_err_prefix(err, "gmem_snp_digest_link: gpa 0x%" PRIx64, gpa) : 0;
}
