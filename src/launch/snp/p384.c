/* SPDX-License-Identifier: MIT */
#include "launch/snp/p384.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/obj_mac.h>
#include <openssl/params.h>

#include "base/err.h"

#define FIELD_LEN 48
/* A point as libcrypto is given it: the mark of the uncompressed form, x, y, big-endian. */
#define OCTETS_LEN (1 + 2 * FIELD_LEN)

static int lacking(void)
{
	return gmem_err(-ENOMEM, "libcrypto: no P-384: no memory, or its configuration has none");
}

/* Pairs with ERR_set_mark(). */
static int done(int answer)
{
	ERR_pop_to_mark();
	return answer < 0 ? lacking() : answer;
}

/* y^2 = x^3 + ax + b; what fails here is memory. 1, 0 or -ENOMEM. */
static int equation(const BIGNUM *x, const BIGNUM *y, const EC_GROUP *group, BN_CTX *ctx)
{
	BIGNUM *p = BN_CTX_get(ctx), *a = BN_CTX_get(ctx), *b = BN_CTX_get(ctx), *l = BN_CTX_get(ctx);
	BIGNUM *r = BN_CTX_get(ctx); /* if any of them is NULL, the last one is */

	if (!r || !EC_GROUP_get_curve(group, p, a, b, ctx))
		return -ENOMEM;
	if (BN_cmp(x, p) >= 0 || BN_cmp(y, p) >= 0)
		return 0;
	if (!BN_mod_sqr(l, y, p, ctx) || !BN_mod_sqr(r, x, p, ctx) || !BN_mod_add(r, r, a, p, ctx) ||
	    !BN_mod_mul(r, r, x, p, ctx) || !BN_mod_add(r, r, b, p, ctx))
		return -ENOMEM;
	return BN_cmp(l, r) == 0;
}

int gmem_p384_on_curve(const uint8_t point[GMEM_P384_PAIR])
{
	EC_GROUP *group;
	BN_CTX *ctx;
	BIGNUM *x, *y;
	int answer = -ENOMEM;

	ERR_set_mark();
	group = EC_GROUP_new_by_curve_name(NID_secp384r1);
	ctx = BN_CTX_new();
	x = BN_lebin2bn(point, GMEM_P384_INT, NULL);
	y = BN_lebin2bn(point + GMEM_P384_INT, GMEM_P384_INT, NULL);
	if (group && ctx && x && y) {
		BN_CTX_start(ctx);
		answer = equation(x, y, group, ctx);
		BN_CTX_end(ctx);
	}
	BN_free(x);
	BN_free(y);
	BN_CTX_free(ctx);
	EC_GROUP_free(group);
	return done(answer);
}

/* A public key of a point that is on the curve; NULL: as lacking(). */
static EVP_PKEY *make_key(const uint8_t *point)
{
	uint8_t octets[OCTETS_LEN] = { POINT_CONVERSION_UNCOMPRESSED };
	char group[] = SN_secp384r1;
	OSSL_PARAM params[] = {
		OSSL_PARAM_construct_utf8_string(OSSL_PKEY_PARAM_GROUP_NAME, group, 0),
		OSSL_PARAM_construct_octet_string(OSSL_PKEY_PARAM_PUB_KEY, octets, sizeof(octets)),
		OSSL_PARAM_construct_end(),
	};
	EVP_PKEY_CTX *ctx;
	EVP_PKEY *key = NULL;

	for (size_t i = 0; i < FIELD_LEN; i++) {
		octets[1 + i] = point[FIELD_LEN - 1 - i];
		octets[1 + FIELD_LEN + i] = point[GMEM_P384_INT + FIELD_LEN - 1 - i];
	}
	ctx = EVP_PKEY_CTX_new_from_name(NULL, "EC", NULL);
	if (ctx && EVP_PKEY_fromdata_init(ctx) == 1 && EVP_PKEY_fromdata(ctx, &key, EVP_PKEY_PUBLIC_KEY, params) != 1)
		key = NULL;
	EVP_PKEY_CTX_free(ctx);
	return key;
}

/* The signature as libcrypto is given it. Answers its length, or as lacking(). */
static int make_der(const uint8_t *signature, uint8_t **ret)
{
	ECDSA_SIG *sig = ECDSA_SIG_new();
	BIGNUM *r = BN_lebin2bn(signature, GMEM_P384_INT, NULL);
	BIGNUM *s = BN_lebin2bn(signature + GMEM_P384_INT, GMEM_P384_INT, NULL);
	int len = -1;

	if (sig && r && s && ECDSA_SIG_set0(sig, r, s) == 1)
		r = s = NULL; /* the signature has them now */
	if (!r && !s)
		len = i2d_ECDSA_SIG(sig, ret);
	BN_free(r);
	BN_free(s);
	ECDSA_SIG_free(sig);
	return len > 0 ? len : -ENOMEM;
}

/*
 * libcrypto refuses r and s that are out of range, and answers an error, not a no, for a signature by which the sum of
 * points is the one at infinity. Only memory is another error.
 */
static int verify(EVP_PKEY *key, const uint8_t *der, int len, const uint8_t *digest)
{
	EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_from_pkey(NULL, key, NULL);
	int answer = -ENOMEM;

	if (ctx && EVP_PKEY_verify_init(ctx) == 1) {
		answer = EVP_PKEY_verify(ctx, der, (size_t)len, digest, GMEM_SHA384_LEN);
		if (answer < 0)
			answer = ERR_GET_REASON(ERR_peek_last_error()) == ERR_R_MALLOC_FAILURE ? -ENOMEM : 0;
	}
	EVP_PKEY_CTX_free(ctx);
	return answer;
}

int gmem_p384_verify(const uint8_t key[GMEM_P384_PAIR], const uint8_t signature[GMEM_P384_PAIR],
		     const uint8_t digest[GMEM_SHA384_LEN])
{
	uint8_t *der = NULL;
	EVP_PKEY *pkey;
	int len, answer = -ENOMEM;

	ERR_set_mark();
	len = make_der(signature, &der);
	pkey = make_key(key);
	if (len > 0 && pkey)
		answer = verify(pkey, der, len, digest);
	EVP_PKEY_free(pkey);
	OPENSSL_free(der);
	return done(answer);
}
