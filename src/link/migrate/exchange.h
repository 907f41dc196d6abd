/* SPDX-License-Identifier: MIT */
/*
 * A source behind which another one can be put, while a pager holds it: pages that came over one session of a migration
 * come over the next. Enters: a source of the session. Leaves: a source that lasts. Any thread; `m` guards which one it
 * is and is not held while it reads.
 */
#ifndef GMEM_LINK_MIGRATE_EXCHANGE_H
#define GMEM_LINK_MIGRATE_EXCHANGE_H

#include "gmem.h"

struct gmem_exchange;

/* Without a source behind it a read is -ETIMEDOUT: not now. `*ret_source` is the caller's; it outlives the exchange. */
int gmem_exchange_new(struct gmem_exchange **ret, struct gmem_source **ret_source);
void gmem_exchange_free(struct gmem_exchange *exchange); /* NULL is allowed */

/* Takes the reference; NULL: none. Reads that have begun end with the source they began with. */
void gmem_exchange_set(struct gmem_exchange *exchange, struct gmem_source *source);

#endif
