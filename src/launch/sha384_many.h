/* SPDX-License-Identifier: MIT */
/*
 * SHA-384 of many pages, each by itself: of several at a time where the CPU's vector registers and libipsec-mb allow
 * it, else one after another by libcrypto.
 * Enters: pages, borrowed for the call, of any alignment. Leaves: 48 bytes a page. No lock: one thread at a time a
 * hasher.
 */
#ifndef GMEM_LAUNCH_SHA384_MANY_H
#define GMEM_LAUNCH_SHA384_MANY_H

#include <stdbool.h>
#include <stddef.h>

#include "launch/sha384.h"

struct gmem_sha384_many {
	struct evp_md_ctx_st *ctx;
	void *lanes; /* libipsec-mb's IMB_MGR; NULL: without */
};

/* `lanes` false: libcrypto only. Setting lanes up costs as much as some 50 pages. Errors: -ENOMEM. */
int gmem_sha384_many_init(struct gmem_sha384_many *m, bool lanes);
/* Takes one of all zero bytes, and one already freed. */
void gmem_sha384_many_free(struct gmem_sha384_many *m);

/* Errors: -ENOMEM; `ret` then holds anything. */
int gmem_sha384_many(struct gmem_sha384_many *m, const uint8_t *pages, size_t npages, uint8_t (*ret)[GMEM_SHA384_LEN]);

#endif
