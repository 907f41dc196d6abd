/* SPDX-License-Identifier: MIT */
/*
 * ID blocks as an owner of guests makes them, with keys that are generated: by libcrypto's signing, which shares
 * nothing with the library's verifying, and offsets of its own.
 */
#ifndef GMEM_TESTS_SNP_ID_H
#define GMEM_TESTS_SNP_ID_H

#include "tap.h"

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/evp.h>

#include "base/le.h"

#define SNP_ID_KEY_LEN 0x404
#define SNP_ID_SIG_LEN 0x200

struct snp_id {
	uint8_t block[96];
	uint8_t auth[4096];
};

static inline EVP_PKEY *snp_id_new_key(void)
{
	EVP_PKEY *key = EVP_EC_gen("P-384");

	CHECK(key);
	return key;
}

/* 72 bytes. */
static inline void snp_id_put_int(const BIGNUM *x, uint8_t *to)
{
	CHECK_EQ(BN_bn2lebinpad(x, to, 72), 72);
}

/* Curve 2, x, y; the padding is left alone. */
static inline void snp_id_put_key(EVP_PKEY *key, uint8_t *to)
{
	BIGNUM *x = NULL, *y = NULL;

	CHECK_EQ(EVP_PKEY_get_bn_param(key, OSSL_PKEY_PARAM_EC_PUB_X, &x), 1);
	CHECK_EQ(EVP_PKEY_get_bn_param(key, OSSL_PKEY_PARAM_EC_PUB_Y, &y), 1);
	gmem_put_le32(to, 2);
	snp_id_put_int(x, to + 4);
	snp_id_put_int(y, to + 4 + 72);
	BN_free(x);
	BN_free(y);
}

/* r, s, out of a signature in DER; the padding is left alone. */
static inline void snp_id_put_der(const uint8_t *der, size_t len, uint8_t *to)
{
	ECDSA_SIG *sig = d2i_ECDSA_SIG(NULL, &der, (long)len);

	CHECK(sig);
	snp_id_put_int(ECDSA_SIG_get0_r(sig), to);
	snp_id_put_int(ECDSA_SIG_get0_s(sig), to + 72);
	ECDSA_SIG_free(sig);
}

static inline void snp_id_put_signature(EVP_PKEY *key, const uint8_t *data, size_t len, uint8_t *to)
{
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	uint8_t der[256];
	size_t n = sizeof(der);

	CHECK(ctx);
	CHECK_EQ(EVP_DigestSignInit(ctx, NULL, EVP_sha384(), NULL, key), 1);
	CHECK_EQ(EVP_DigestSign(ctx, der, &n, data, len), 1);
	snp_id_put_der(der, n, to);
	EVP_MD_CTX_free(ctx);
}

/* Signs both again, after something in them was changed. `author` may be NULL. */
static inline void snp_id_sign(struct snp_id *id, EVP_PKEY *key, EVP_PKEY *author)
{
	snp_id_put_signature(key, id->block, sizeof(id->block), id->auth + 0x40);
	if (author)
		snp_id_put_signature(author, id->auth + 0x240, SNP_ID_KEY_LEN, id->auth + 0x680);
}

/* Family, image and SVN are numbers one can tell again. */
static inline void snp_id_make(struct snp_id *id, const uint8_t *ld, uint64_t policy, EVP_PKEY *key, EVP_PKEY *author)
{
	memset(id, 0, sizeof(*id));
	memcpy(id->block, ld, 48);
	memset(id->block + 0x30, 0xfa, 16);
	memset(id->block + 0x40, 0x1a, 16);
	gmem_put_le32(id->block + 0x50, 1);
	gmem_put_le32(id->block + 0x54, 0x51110077);
	gmem_put_le64(id->block + 0x58, policy);
	gmem_put_le32(id->auth, 1);
	gmem_put_le32(id->auth + 4, author ? 1 : 0);
	snp_id_put_key(key, id->auth + 0x240);
	if (author)
		snp_id_put_key(author, id->auth + 0x880);
	snp_id_sign(id, key, author);
}

#endif
