/* SPDX-License-Identifier: MIT */
/*
 * ID blocks against the firmware's checks: what is right is taken, and whatever byte is wrong is refused with the
 * status of the firmware, in its order.
 */
#include "snp_id.h"

#include <openssl/err.h>

#include "launch/snp/id_block.h"

#define POLICY UINT64_C(0x30000)
#define POLICY_FAILURE 7
#define BAD_SIGNATURE 0xa
#define BAD_MEASUREMENT 0xb
#define INVALID_PARAM 0x16

/* In the ID authentication page. */
#define ID_SIG 0x40
#define ID_KEY 0x240
#define KEY_SIG 0x680
#define AUTHOR_KEY 0x880

static EVP_PKEY *id_key, *author_key;
static uint8_t ld[48];
static struct snp_id good; /* signed by both */

/* libcrypto, made to fail as without memory: the n-th next call of one of its functions. */
static int fail_group, fail_mul, fail_fromdata, fail_set0, fail_verify;
static int last_verify; /* what libcrypto answered */

static bool fails(int *countdown)
{
	if (!*countdown || --*countdown)
		return false;
	ERR_raise(ERR_LIB_EVP, ERR_R_MALLOC_FAILURE);
	return true;
}

EC_GROUP *__real_EC_GROUP_new_by_curve_name(int nid);
EC_GROUP *__wrap_EC_GROUP_new_by_curve_name(int nid);
int __real_BN_mod_mul(BIGNUM *r, const BIGNUM *a, const BIGNUM *b, const BIGNUM *m, BN_CTX *ctx);
int __wrap_BN_mod_mul(BIGNUM *r, const BIGNUM *a, const BIGNUM *b, const BIGNUM *m, BN_CTX *ctx);
int __real_EVP_PKEY_fromdata(EVP_PKEY_CTX *ctx, EVP_PKEY **key, int selection, OSSL_PARAM *params);
int __wrap_EVP_PKEY_fromdata(EVP_PKEY_CTX *ctx, EVP_PKEY **key, int selection, OSSL_PARAM *params);
int __real_ECDSA_SIG_set0(ECDSA_SIG *sig, BIGNUM *r, BIGNUM *s);
int __wrap_ECDSA_SIG_set0(ECDSA_SIG *sig, BIGNUM *r, BIGNUM *s);
int __real_EVP_PKEY_verify(EVP_PKEY_CTX *ctx, const uint8_t *sig, size_t len, const uint8_t *md, size_t md_len);
int __wrap_EVP_PKEY_verify(EVP_PKEY_CTX *ctx, const uint8_t *sig, size_t len, const uint8_t *md, size_t md_len);

EC_GROUP *__wrap_EC_GROUP_new_by_curve_name(int nid)
{
	return fails(&fail_group) ? NULL : __real_EC_GROUP_new_by_curve_name(nid);
}

int __wrap_BN_mod_mul(BIGNUM *r, const BIGNUM *a, const BIGNUM *b, const BIGNUM *m, BN_CTX *ctx)
{
	return fails(&fail_mul) ? 0 : __real_BN_mod_mul(r, a, b, m, ctx);
}

int __wrap_EVP_PKEY_fromdata(EVP_PKEY_CTX *ctx, EVP_PKEY **key, int selection, OSSL_PARAM *params)
{
	return fails(&fail_fromdata) ? 0 : __real_EVP_PKEY_fromdata(ctx, key, selection, params);
}

int __wrap_ECDSA_SIG_set0(ECDSA_SIG *sig, BIGNUM *r, BIGNUM *s)
{
	return fails(&fail_set0) ? 0 : __real_ECDSA_SIG_set0(sig, r, s);
}

int __wrap_EVP_PKEY_verify(EVP_PKEY_CTX *ctx, const uint8_t *sig, size_t len, const uint8_t *md, size_t md_len)
{
	last_verify = fails(&fail_verify) ? -1 : __real_EVP_PKEY_verify(ctx, sig, len, md, md_len);
	return last_verify;
}

static void make_good(void)
{
	uint64_t seed = tap_seed();

	for (unsigned int i = 0; i < sizeof(ld); i++)
		ld[i] = (uint8_t)tap_rand(&seed);
	id_key = snp_id_new_key();
	author_key = snp_id_new_key();
	snp_id_make(&good, ld, POLICY, id_key, author_key);
}

/* The status; what is refused says nothing about the guest, and no error of libcrypto's is left behind. */
static int check(const struct snp_id *id, bool author, struct gmem_snp_id *ret)
{
	struct gmem_snp_id got, untouched;
	int status;

	memset(&got, 0x77, sizeof(got));
	memcpy(&untouched, &got, sizeof(got));
	ERR_raise(ERR_LIB_USER, 99);
	status = gmem_snp_id_verify(id->block, id->auth, ld, POLICY, author, &got);
	CHECK_EQ(ERR_GET_REASON(ERR_get_error()), 99);
	CHECK_EQ(ERR_get_error(), 0);
	if (status)
		CHECK_MEM(&got, &untouched, sizeof(got));
	else if (ret)
		*ret = got;
	return status;
}

/* With byte `off` of the block or the page changed. */
static int with_block(unsigned int off, bool author)
{
	struct snp_id id = good;

	id.block[off] ^= 0x10;
	return check(&id, author, NULL);
}

static int with_auth(unsigned int off, bool author)
{
	struct snp_id id = good;

	id.auth[off] ^= 0x10;
	return check(&id, author, NULL);
}

static void hash_key(const uint8_t *key, uint8_t *md)
{
	CHECK_EQ(EVP_Digest(key, SNP_ID_KEY_LEN, md, NULL, EVP_sha384(), NULL), 1);
}

static void end(void)
{
	EVP_PKEY_free(id_key);
	EVP_PKEY_free(author_key);
}

TEST(what_is_signed_is_taken)
{
	struct gmem_snp_id r;
	uint8_t family[16], image[16], md[48], zero[48] = { 0 };
	struct snp_id id;

	make_good();
	memset(family, 0xfa, 16);
	memset(image, 0x1a, 16);
	CHECK_EQ(check(&good, true, &r), 0);
	CHECK_MEM(r.family_id, family, 16);
	CHECK_MEM(r.image_id, image, 16);
	CHECK_EQ(r.version, 1);
	CHECK_EQ(r.guest_svn, 0x51110077);
	hash_key(good.auth + ID_KEY, md);
	CHECK_MEM(r.id_key_digest, md, 48);
	hash_key(good.auth + AUTHOR_KEY, md);
	CHECK_MEM(r.author_key_digest, md, 48);
	/* An author who is not asked for is not looked at. */
	CHECK_EQ(check(&good, false, &r), 0);
	hash_key(good.auth + ID_KEY, md);
	CHECK_MEM(r.id_key_digest, md, 48);
	CHECK_MEM(r.author_key_digest, zero, 48);
	snp_id_make(&id, ld, POLICY, id_key, NULL);
	CHECK_EQ(check(&id, false, &r), 0);
	CHECK_EQ(check(&id, true, &r), INVALID_PARAM);
	/* One key may be both. */
	snp_id_make(&id, ld, POLICY, id_key, id_key);
	CHECK_EQ(check(&id, true, &r), 0);
	CHECK_MEM(r.id_key_digest, r.author_key_digest, 48);
	/* The version is the owner's word alone. */
	id = good;
	gmem_put_le32(id.block + 0x50, 7);
	snp_id_sign(&id, id_key, NULL);
	CHECK_EQ(check(&id, true, &r), 0);
	CHECK_EQ(r.version, 7);
	end();
}

TEST(the_first_of_many_faults_is_told)
{
	struct snp_id id;

	make_good();
	id = good;
	id.block[0] ^= 1;
	id.block[0x58] ^= 1;
	id.auth[0] = 2;
	id.auth[4] = 2;
	id.auth[ID_KEY] = 1;
	CHECK_EQ(check(&id, true, NULL), BAD_MEASUREMENT);
	id.block[0] ^= 1;
	CHECK_EQ(check(&id, true, NULL), POLICY_FAILURE);
	id.block[0x58] ^= 1;
	CHECK_EQ(check(&id, true, NULL), INVALID_PARAM);
	id.auth[0] = 1;
	CHECK_EQ(check(&id, true, NULL), INVALID_PARAM);
	id.auth[4] = 1;
	CHECK_EQ(check(&id, true, NULL), BAD_SIGNATURE);
	id.auth[ID_KEY] = 2;
	CHECK_EQ(check(&id, true, NULL), 0);
	end();
}

TEST(no_byte_of_the_block_may_change)
{
	make_good();
	for (unsigned int i = 0; i < sizeof(good.block); i++) {
		int want = i < 48 ? BAD_MEASUREMENT : i >= 0x58 ? POLICY_FAILURE : BAD_SIGNATURE;

		CHECK_EQ(with_block(i, false), want);
	}
	end();
}

/* Under a sanitizer every eighth byte. */
TEST_TIMEOUT(no_byte_of_keys_and_signatures_may_change, 60)
{
	unsigned int step = tap_slow() ? 8 : 1;

	make_good();
	for (unsigned int i = 0; i < 4; i++) {
		CHECK_EQ(with_auth(i, true), INVALID_PARAM);
		CHECK_EQ(with_auth(i, false), INVALID_PARAM);
		CHECK_EQ(with_auth(4 + i, true), INVALID_PARAM);
		CHECK_EQ(with_auth(4 + i, false), 0);
	}
	for (unsigned int i = 0; i < 144; i += step) {
		CHECK_EQ(with_auth(ID_SIG + i, false), BAD_SIGNATURE);
		CHECK_EQ(with_auth(KEY_SIG + i, true), BAD_SIGNATURE);
		CHECK_EQ(with_auth(KEY_SIG + i, false), 0);
	}
	for (unsigned int i = 0; i < 148; i += step) {
		CHECK_EQ(with_auth(ID_KEY + i, false), BAD_SIGNATURE);
		CHECK_EQ(with_auth(AUTHOR_KEY + i, true), BAD_SIGNATURE);
		CHECK_EQ(with_auth(AUTHOR_KEY + i, false), 0);
	}
	end();
}

TEST(padding_is_part_of_a_key_and_of_nothing_else)
{
	struct gmem_snp_id plain, r;
	struct snp_id id;
	uint8_t md[48];

	make_good();
	CHECK_EQ(check(&good, true, &plain), 0);
	/* Reserved bytes, and what lies behind r and s. */
	id = good;
	memset(id.auth + 8, 0xff, ID_SIG - 8);
	memset(id.auth + ID_SIG + 144, 0xff, SNP_ID_SIG_LEN - 144);
	memset(id.auth + ID_KEY + SNP_ID_KEY_LEN, 0xff, KEY_SIG - ID_KEY - SNP_ID_KEY_LEN);
	memset(id.auth + KEY_SIG + 144, 0xff, SNP_ID_SIG_LEN - 144);
	memset(id.auth + AUTHOR_KEY + SNP_ID_KEY_LEN, 0xff, sizeof(id.auth) - AUTHOR_KEY - SNP_ID_KEY_LEN);
	CHECK_EQ(check(&id, true, &r), 0);
	CHECK_MEM(&r, &plain, sizeof(r));
	/* What lies behind x and y is hashed, and signed by the author. */
	id = good;
	id.auth[ID_KEY + SNP_ID_KEY_LEN - 1] = 1;
	CHECK_EQ(check(&id, true, NULL), BAD_SIGNATURE);
	CHECK_EQ(check(&id, false, &r), 0);
	CHECK(memcmp(r.id_key_digest, plain.id_key_digest, 48));
	hash_key(id.auth + ID_KEY, md);
	CHECK_MEM(r.id_key_digest, md, 48);
	snp_id_sign(&id, id_key, author_key);
	CHECK_EQ(check(&id, true, &r), 0);
	CHECK_MEM(r.author_key_digest, plain.author_key_digest, 48);
	id.auth[AUTHOR_KEY + 148] = 1;
	CHECK_EQ(check(&id, true, &r), 0);
	hash_key(id.auth + AUTHOR_KEY, md);
	CHECK_MEM(r.author_key_digest, md, 48);
	end();
}

/* P-384's prime and order. */
static BIGNUM *hex(const char *text)
{
	BIGNUM *x = NULL;

	CHECK(BN_hex2bn(&x, text));
	return x;
}

#define PRIME hex("fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffeffffffff0000000000000000ffffffff")
#define ORDER hex("ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973")

/* Of the ID block's signature (0: r, 1: s), or of the key (2: x, 3: y). */
static uint8_t *number(struct snp_id *id, int which)
{
	return id->auth + (which < 2 ? ID_SIG + 72 * which : ID_KEY + 4 + 72 * (which - 2));
}

static int with_number(int which, const BIGNUM *x)
{
	struct snp_id id = good;

	snp_id_put_int(x, number(&id, which));
	return check(&id, false, NULL);
}

TEST(r_and_s_are_from_1_to_the_order_less_1)
{
	BIGNUM *n = ORDER, *x = BN_new();

	make_good();
	for (int which = 0; which < 2; which++) {
		BN_zero(x);
		CHECK_EQ(with_number(which, x), BAD_SIGNATURE);
		CHECK_EQ(with_number(which, n), BAD_SIGNATURE);
		/* The same modulo the order: 72 bytes have room for it. */
		CHECK(BN_lebin2bn(number(&good, which), 72, x) && BN_add(x, x, n));
		CHECK_EQ(with_number(which, x), BAD_SIGNATURE);
		CHECK(BN_lebin2bn(number(&good, which), 72, x) && BN_set_bit(x, 575));
		CHECK_EQ(with_number(which, x), BAD_SIGNATURE);
	}
	/* Of each signature there is a second one. */
	CHECK(BN_lebin2bn(number(&good, 1), 72, x) && BN_sub(x, n, x));
	CHECK_EQ(with_number(1, x), 0);
	BN_free(n);
	BN_free(x);
	end();
}

TEST(a_key_is_a_point_on_the_curve)
{
	BIGNUM *p = PRIME, *x = BN_new();
	struct snp_id id;

	make_good();
	for (int which = 2; which < 4; which++) {
		CHECK(BN_lebin2bn(number(&good, which), 72, x) && BN_add_word(x, 1));
		CHECK_EQ(with_number(which, x), BAD_SIGNATURE);
		CHECK(BN_lebin2bn(number(&good, which), 72, x) && BN_add(x, x, p));
		CHECK_EQ(with_number(which, x), BAD_SIGNATURE);
		CHECK_EQ(with_number(which, p), BAD_SIGNATURE);
	}
	/* The point's negative is on the curve, too, and nobody's key here. */
	CHECK(BN_lebin2bn(number(&good, 3), 72, x) && BN_sub(x, p, x));
	CHECK_EQ(with_number(3, x), BAD_SIGNATURE);
	/* Infinity, as zeros. */
	id = good;
	memset(number(&id, 2), 0, 144);
	CHECK_EQ(check(&id, false, NULL), BAD_SIGNATURE);
	/* Other curves, the firmware's other one first. */
	for (unsigned int curve = 0; curve < 5; curve++) {
		id = good;
		gmem_put_le32(id.auth + ID_KEY, curve);
		CHECK_EQ(check(&id, false, NULL), curve == 2 ? 0 : BAD_SIGNATURE);
		id = good;
		gmem_put_le32(id.auth + AUTHOR_KEY, curve);
		CHECK_EQ(check(&id, true, NULL), curve == 2 ? 0 : BAD_SIGNATURE);
	}
	BN_free(p);
	BN_free(x);
	end();
}

/* r = -e/d makes u1 G + u2 Q the point at infinity, whatever s is: only who has the key can do it, to no use. */
TEST(a_signature_of_the_point_at_infinity_is_none)
{
	BIGNUM *n = ORDER, *d = NULL, *e, *r = BN_new(), *s = BN_new();
	BN_CTX *ctx = BN_CTX_new();
	struct snp_id id;
	uint8_t md[48];

	make_good();
	id = good;
	CHECK_EQ(EVP_Digest(id.block, sizeof(id.block), md, NULL, EVP_sha384(), NULL), 1);
	e = BN_bin2bn(md, sizeof(md), NULL);
	CHECK_EQ(EVP_PKEY_get_bn_param(id_key, OSSL_PKEY_PARAM_PRIV_KEY, &d), 1);
	CHECK(BN_mod_inverse(r, d, n, ctx) && BN_mod_mul(r, r, e, n, ctx) && BN_sub(r, n, r));
	CHECK(BN_set_word(s, 1));
	snp_id_put_int(r, number(&id, 0));
	snp_id_put_int(s, number(&id, 1));
	CHECK_EQ(check(&id, false, NULL), BAD_SIGNATURE);
	CHECK(last_verify < 0); /* not a no: it was that point */
	BN_free(n);
	BN_clear_free(d);
	BN_free(e);
	BN_free(r);
	BN_free(s);
	BN_CTX_free(ctx);
	end();
}

TEST(another_key_is_no_key)
{
	struct snp_id id;

	make_good();
	id = good;
	snp_id_sign(&id, author_key, author_key);
	CHECK_EQ(check(&id, false, NULL), BAD_SIGNATURE);
	id = good;
	snp_id_put_signature(id_key, id.auth + ID_KEY, SNP_ID_KEY_LEN, id.auth + KEY_SIG);
	CHECK_EQ(check(&id, false, NULL), 0);
	CHECK_EQ(check(&id, true, NULL), BAD_SIGNATURE);
	end();
}

TEST(without_memory_nothing_is_said)
{
	int *const failures[] = { &fail_group, &fail_mul, &fail_fromdata, &fail_set0, &fail_verify };

	make_good();
	for (size_t i = 0; i < sizeof(failures) / sizeof(failures[0]); i++) {
		for (int n = 1; n <= 2; n++) {
			*failures[i] = n;
			CHECK_ERR(check(&good, true, NULL), -ENOMEM);
			CHECK_EQ(*failures[i], 0);
		}
	}
	CHECK_EQ(check(&good, true, NULL), 0);
	end();
}
