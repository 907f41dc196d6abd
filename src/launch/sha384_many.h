/* SPDX-License-Identifier: MIT */
/*
 * SHA-384 of many pages, each by itself: of several at a time where the CPU's vector registers and libipsec-mb allow
 * it, else one after another by libcrypto.
 * Enters: pages, borrowed until they are hashed, of any alignment. Leaves: 48 bytes a page. No lock: one thread at a
 * time a hasher.
 */
#ifndef GMEM_LAUNCH_SHA384_MANY_H
#define GMEM_LAUNCH_SHA384_MANY_H

#include <stdbool.h>
#include <stddef.h>

#include "launch/sha384.h"

struct gmem_sha384_many {
	struct evp_md_ctx_st *ctx;
	void *lanes; /* libipsec-mb's IMB_MGR; NULL: without */
	void *link; /* its job for gmem_sha384_many_link() */
	uint32_t npages; /* in lanes */
	bool failed;
};

/* `lanes` false: libcrypto only. Setting lanes up costs as much as some 50 pages. Errors: -ENOMEM. */
int gmem_sha384_many_init(struct gmem_sha384_many *m, bool lanes);
/* Takes one of all zero bytes, and one already freed. What it has begun is not finished. */
void gmem_sha384_many_free(struct gmem_sha384_many *m);

/* Errors: -ENOMEM; `ret` then holds anything. */
int gmem_sha384_many(struct gmem_sha384_many *m, const uint8_t *pages, size_t npages, uint8_t (*ret)[GMEM_SHA384_LEN]);

/*
 * The same page by page: _put() begins with one, or does it; *left is one more until `ret` has the hash. _push() does
 * some of what was begun; 0: nothing is left. Errors: -ENOMEM.
 */
int gmem_sha384_many_put(struct gmem_sha384_many *m, const uint8_t *page, uint8_t ret[GMEM_SHA384_LEN], uint32_t *left);
int gmem_sha384_many_push(struct gmem_sha384_many *m);

/*
 * A short message beside the pages, one at a time: a chain of hashes, each of which needs the one before. `in_lane`: in
 * a lane of its own while pages are in the others: it takes twice as long, but the pages lose less time by it than by
 * waiting. Else at once. _linking(): `ret` does not have it yet; _put() and _push() bring it forward.
 */
int gmem_sha384_many_link(struct gmem_sha384_many *m, const void *data, size_t len, bool in_lane,
			  uint8_t ret[GMEM_SHA384_LEN]);
static inline bool gmem_sha384_many_linking(const struct gmem_sha384_many *m)
{
	return m->link;
}

#endif
