/* SPDX-License-Identifier: MIT */
#include "launch/snp/id_block.h"

#include <string.h>

#include "base/le.h"
#include "launch/snp/p384.h"
#include "launch/snp/status.h"

#define BLOCK_LD 0x00
#define BLOCK_FAMILY_ID 0x30
#define BLOCK_IMAGE_ID 0x40
#define BLOCK_VERSION 0x50
#define BLOCK_GUEST_SVN 0x54
#define BLOCK_POLICY 0x58

#define AUTH_ID_KEY_ALGO 0x000
#define AUTH_AUTHOR_KEY_ALGO 0x004
#define AUTH_ID_BLOCK_SIG 0x040
#define AUTH_ID_KEY 0x240
#define AUTH_ID_KEY_SIG 0x680
#define AUTH_AUTHOR_KEY 0x880

#define ALGO_ECDSA_P384_SHA384 1

/* A public key: its curve, then the point, then padding. */
#define KEY_LEN 0x404
#define KEY_CURVE 0
#define KEY_POINT 4
#define CURVE_P384 2

/* Status, or -ENOMEM. *ret_digest is the key's. */
static int check_signed(const uint8_t *key, const uint8_t *signature, const uint8_t *data, size_t len,
			uint8_t ret_digest[GMEM_SHA384_LEN])
{
	uint8_t digest[GMEM_SHA384_LEN];
	int r;

	if (gmem_get_le32(key + KEY_CURVE) != CURVE_P384)
		return GMEM_SEV_RET_BAD_SIGNATURE;
	r = gmem_p384_on_curve(key + KEY_POINT);
	if (r <= 0)
		return r < 0 ? r : GMEM_SEV_RET_BAD_SIGNATURE;
	r = gmem_sha384(data, len, digest);
	if (r)
		return r;
	r = gmem_p384_verify(key + KEY_POINT, signature, digest);
	if (r <= 0)
		return r < 0 ? r : GMEM_SEV_RET_BAD_SIGNATURE;
	return gmem_sha384(key, KEY_LEN, ret_digest);
}

int gmem_snp_id_verify(const uint8_t id_block[GMEM_SNP_ID_BLOCK_LEN], const uint8_t id_auth[GMEM_SNP_ID_AUTH_LEN],
		       const uint8_t ld[GMEM_SHA384_LEN], uint64_t policy, bool auth_key_en, struct gmem_snp_id *ret)
{
	struct gmem_snp_id id = { 0 };
	int r;

	if (memcmp(id_block + BLOCK_LD, ld, GMEM_SHA384_LEN))
		return GMEM_SEV_RET_BAD_MEASUREMENT;
	if (gmem_get_le64(id_block + BLOCK_POLICY) != policy)
		return GMEM_SEV_RET_POLICY_FAILURE;
	if (gmem_get_le32(id_auth + AUTH_ID_KEY_ALGO) != ALGO_ECDSA_P384_SHA384 ||
	    (auth_key_en && gmem_get_le32(id_auth + AUTH_AUTHOR_KEY_ALGO) != ALGO_ECDSA_P384_SHA384))
		return GMEM_SEV_RET_INVALID_PARAM;
	r = check_signed(id_auth + AUTH_ID_KEY, id_auth + AUTH_ID_BLOCK_SIG, id_block, GMEM_SNP_ID_BLOCK_LEN,
			 id.id_key_digest);
	if (!r && auth_key_en)
		r = check_signed(id_auth + AUTH_AUTHOR_KEY, id_auth + AUTH_ID_KEY_SIG, id_auth + AUTH_ID_KEY, KEY_LEN,
				 id.author_key_digest);
	if (r)
		return r;
	memcpy(id.family_id, id_block + BLOCK_FAMILY_ID, sizeof(id.family_id));
	memcpy(id.image_id, id_block + BLOCK_IMAGE_ID, sizeof(id.image_id));
	id.version = gmem_get_le32(id_block + BLOCK_VERSION);
	id.guest_svn = gmem_get_le32(id_block + BLOCK_GUEST_SVN);
	*ret = id;
	return 0;
}
