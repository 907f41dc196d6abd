/* SPDX-License-Identifier: MIT */
/*
 * What the emulated firmware of SNP is given by a guest's owner, against any bytes: a CPUID page and an ID block with
 * its signatures. The first byte says which. No signature can be guessed, so some bytes of the input say what to put
 * right of an ID block that has a real one.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>

#include "base/le.h"
#include "launch/snp/cpuid.h"
#include "launch/snp/id_block.h"
#include "launch/snp/status.h"

#define POLICY UINT64_C(0x30000)

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const uint8_t ld[48];
static uint8_t block[GMEM_SNP_ID_BLOCK_LEN], auth[GMEM_SNP_ID_AUTH_LEN]; /* signed by one key, its own author */

static void must(bool x)
{
	if (!x)
		abort();
}

static void put_int(const BIGNUM *x, uint8_t *to)
{
	must(BN_bn2lebinpad(x, to, 72) == 72);
}

static void put_key(EVP_PKEY *key, uint8_t *to)
{
	BIGNUM *x = NULL, *y = NULL;

	must(EVP_PKEY_get_bn_param(key, OSSL_PKEY_PARAM_EC_PUB_X, &x) == 1);
	must(EVP_PKEY_get_bn_param(key, OSSL_PKEY_PARAM_EC_PUB_Y, &y) == 1);
	gmem_put_le32(to, 2);
	put_int(x, to + 4);
	put_int(y, to + 76);
	BN_free(x);
	BN_free(y);
}

static void put_signature(EVP_PKEY *key, const uint8_t *data, size_t len, uint8_t *to)
{
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	uint8_t der[256];
	const uint8_t *p = der;
	size_t n = sizeof(der);
	ECDSA_SIG *sig;

	must(ctx && EVP_DigestSignInit(ctx, NULL, EVP_sha384(), NULL, key) == 1);
	must(EVP_DigestSign(ctx, der, &n, data, len) == 1);
	sig = d2i_ECDSA_SIG(NULL, &p, (long)n);
	must(sig);
	put_int(ECDSA_SIG_get0_r(sig), to);
	put_int(ECDSA_SIG_get0_s(sig), to + 72);
	ECDSA_SIG_free(sig);
	EVP_MD_CTX_free(ctx);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	EVP_PKEY *key = EVP_EC_gen("P-384");

	must(key);
	gmem_put_le64(block + 0x58, POLICY);
	gmem_put_le32(auth, 1);
	gmem_put_le32(auth + 4, 1);
	put_key(key, auth + 0x240);
	put_key(key, auth + 0x880);
	put_signature(key, block, sizeof(block), auth + 0x40);
	put_signature(key, auth + 0x240, 0x404, auth + 0x680);
	EVP_PKEY_free(key);
	return 0;
}

static void fuzz_cpuid(const uint8_t *data, size_t size)
{
	static uint8_t page[GMEM_PAGE_SIZE], was[GMEM_PAGE_SIZE], corrected[GMEM_PAGE_SIZE];
	struct gmem_snp_cpu cpu = { .fms = GMEM_SNP_FMS_GENOA };
	bool correctable, again, reserved = false;
	uint32_t status, n;

	memset(page, 0, sizeof(page));
	memcpy(page, data, size < sizeof(page) ? size : sizeof(page));
	memcpy(was, page, sizeof(page));
	status = gmem_snp_cpuid_check(page, &cpu, &correctable);
	must(status == 0 || status == GMEM_SEV_RET_INVALID_PARAM);
	if (!correctable)
		must(!memcmp(page, was, sizeof(page)));
	if (status && !correctable)
		return;
	n = gmem_get_le32(page);
	must(n <= GMEM_SNP_CPUID_MAX && status == (correctable ? GMEM_SEV_RET_INVALID_PARAM : 0));
	/* Outputs of entries that count, and nothing else. */
	for (size_t i = 0; i < sizeof(page); i++)
		must(page[i] == was[i] || (i >= 16 && (i - 16) / 48 < n && (i - 16) % 48 >= 24 && (i - 16) % 48 < 40));
	for (size_t i = 0; i < n; i++)
		reserved |= gmem_get_le64(page + 16 + 48 * i + 40) != 0;
	memcpy(corrected, page, sizeof(page));
	status = gmem_snp_cpuid_check(page, &cpu, &again);
	must(!memcmp(page, corrected, sizeof(page)));
	must(reserved || (!status && !again));
}

/* Any bytes, or the signed ones with changes: two bytes where, one byte what. */
static void fuzz_id(const uint8_t *data, size_t size)
{
	static uint8_t both[GMEM_SNP_ID_BLOCK_LEN + GMEM_SNP_ID_AUTH_LEN];
	bool author = data[0] & 2, any = data[0] & 4;
	uint8_t untouched[sizeof(struct gmem_snp_id)];
	struct gmem_snp_id id;
	int r;

	memcpy(both, block, sizeof(block));
	memcpy(both + sizeof(block), auth, sizeof(auth));
	data++, size--;
	if (any)
		memcpy(both, data, size < sizeof(both) ? size : sizeof(both));
	else
		for (; size >= 3; data += 3, size -= 3)
			both[gmem_get_le16(data) % sizeof(both)] ^= data[2];
	memset(&id, 0xee, sizeof(id));
	memcpy(untouched, &id, sizeof(id));
	r = gmem_snp_id_verify(both, both + sizeof(block), ld, POLICY, author, &id);
	must(!ERR_peek_error());
	must(r >= 0);
	if (r) {
		must(!memcmp(&id, untouched, sizeof(id)));
		must(r == GMEM_SEV_RET_BAD_MEASUREMENT || r == GMEM_SEV_RET_POLICY_FAILURE ||
		     r == GMEM_SEV_RET_INVALID_PARAM || r == GMEM_SEV_RET_BAD_SIGNATURE);
		must((r == GMEM_SEV_RET_BAD_MEASUREMENT) == !!memcmp(both, ld, sizeof(ld)));
		/* Of what is signed and as it was, the signature is right. */
		must(any || author || memcmp(both, block, sizeof(block)) || memcmp(both + 96, auth, 4) ||
		     memcmp(both + 96 + 0x40, auth + 0x40, 144) || memcmp(both + 96 + 0x240, auth + 0x240, 148));
		return;
	}
	/* Nobody else has a key: what is taken is what was signed, but for what is not looked at. */
	must(any || !memcmp(both, block, sizeof(block)));
	must(!memcmp(both, ld, sizeof(ld)) && gmem_get_le64(both + 0x58) == POLICY);
	must(any || !author || !memcmp(both + 96 + 0x240, auth + 0x240, 0x404));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!size)
		return 0;
	if (data[0] & 1)
		fuzz_id(data, size);
	else
		fuzz_cpuid(data + 1, size - 1);
	return 0;
}
