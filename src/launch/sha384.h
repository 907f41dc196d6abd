/* SPDX-License-Identifier: MIT */
/*
 * SHA-384, by OpenSSL's libcrypto; both kinds of launch digest are made of it.
 * Enters: bytes, borrowed for the call. Leaves: 48 bytes, or a running hash, which the caller ends with
 * gmem_sha384_free(). What libcrypto has put into the thread's error queue by a failure is taken out again: the queue
 * is the program's. No lock: one thread at a time a running hash.
 */
#ifndef GMEM_LAUNCH_SHA384_H
#define GMEM_LAUNCH_SHA384_H

#include <stddef.h>
#include <stdint.h>

#define GMEM_SHA384_LEN 48u

struct evp_md_ctx_st; /* EVP_MD_CTX */

/*
 * All errors of this file are -ENOMEM: memory, or a libcrypto configured without SHA-384. Output is written on success
 * only.
 */
int gmem_sha384(const void *data, size_t len, uint8_t ret[GMEM_SHA384_LEN]);

int gmem_sha384_new(struct evp_md_ctx_st **ret);
/* Takes NULL. */
void gmem_sha384_free(struct evp_md_ctx_st *ctx);
/* After an error the running hash has no meaning any more. */
int gmem_sha384_update(struct evp_md_ctx_st *ctx, const void *data, size_t len);
/* The hash of these bytes alone, faster than gmem_sha384(): `ctx` is used again, and forgets what it was made of. */
int gmem_sha384_again(struct evp_md_ctx_st *ctx, const void *data, size_t len, uint8_t ret[GMEM_SHA384_LEN]);
/* The hash of all bytes so far, which may go on. */
int gmem_sha384_value(const struct evp_md_ctx_st *ctx, uint8_t ret[GMEM_SHA384_LEN]);

#endif
