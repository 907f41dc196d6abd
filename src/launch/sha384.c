/* SPDX-License-Identifier: MIT */
#include "launch/sha384.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/evp.h>

#include "base/err.h"

/* Pairs with ERR_set_mark(). */
static int done(bool ok)
{
	ERR_pop_to_mark();
	return ok ? 0 : gmem_err(-ENOMEM, "libcrypto: no SHA-384: no memory, or its configuration has none");
}

int gmem_sha384(const void *data, size_t len, uint8_t ret[GMEM_SHA384_LEN])
{
	uint8_t md[EVP_MAX_MD_SIZE];
	unsigned int n = 0;
	bool ok;

	ERR_set_mark();
	ok = EVP_Digest(data, len, md, &n, EVP_sha384(), NULL) == 1 && n == GMEM_SHA384_LEN;
	if (ok)
		memcpy(ret, md, GMEM_SHA384_LEN);
	return done(ok);
}

int gmem_sha384_new(EVP_MD_CTX **ret)
{
	EVP_MD_CTX *ctx;
	bool ok;

	ERR_set_mark();
	ctx = EVP_MD_CTX_new();
	ok = ctx && EVP_DigestInit_ex(ctx, EVP_sha384(), NULL) == 1;
	if (ok)
		*ret = ctx;
	else
		EVP_MD_CTX_free(ctx);
	return done(ok);
}

void gmem_sha384_free(EVP_MD_CTX *ctx)
{
	EVP_MD_CTX_free(ctx);
}

int gmem_sha384_update(EVP_MD_CTX *ctx, const void *data, size_t len)
{
	ERR_set_mark();
	return done(EVP_DigestUpdate(ctx, data, len) == 1);
}

int gmem_sha384_again(EVP_MD_CTX *ctx, const void *data, size_t len, uint8_t ret[GMEM_SHA384_LEN])
{
	uint8_t md[EVP_MAX_MD_SIZE];
	unsigned int n = 0;
	bool ok;

	ERR_set_mark();
	ok = EVP_DigestInit_ex(ctx, NULL, NULL) == 1 && EVP_DigestUpdate(ctx, data, len) == 1 &&
	     EVP_DigestFinal_ex(ctx, md, &n) == 1 && n == GMEM_SHA384_LEN;
	if (ok)
		memcpy(ret, md, GMEM_SHA384_LEN);
	return done(ok);
}

int gmem_sha384_value(const EVP_MD_CTX *ctx, uint8_t ret[GMEM_SHA384_LEN])
{
	uint8_t md[EVP_MAX_MD_SIZE];
	unsigned int n = 0;
	EVP_MD_CTX *copy;
	bool ok;

	ERR_set_mark();
	copy = EVP_MD_CTX_new();
	ok = copy && EVP_MD_CTX_copy_ex(copy, ctx) == 1 && EVP_DigestFinal_ex(copy, md, &n) == 1 &&
	     n == GMEM_SHA384_LEN;
	EVP_MD_CTX_free(copy);
	if (ok)
		memcpy(ret, md, GMEM_SHA384_LEN);
	return done(ok);
}
