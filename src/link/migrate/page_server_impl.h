/* SPDX-License-Identifier: MIT */
/* What page_server.c and page_asks.c share. */
#ifndef GMEM_LINK_MIGRATE_PAGE_SERVER_IMPL_H
#define GMEM_LINK_MIGRATE_PAGE_SERVER_IMPL_H

#include "link/migrate/page_server.h"
#include "link/migrate/phases.h"

#define GMEM_PAGE_SERVER_MAX_UNACKED (64u << 20) /* bytes, sections aside */
#define GMEM_MAX_ASKS 1024u /* of one connection, not answered */

/* Requests of one connection, in their order: only its thread looks at them. */
struct gmem_asks {
	struct gmem_wire_pages ring[GMEM_MAX_ASKS];
	uint32_t first, n;
};

struct gmem_page_server {
	struct gmem_phases p; /* its `m` guards `sections` to `rounds_done` as well */
	struct gmem_migrate_region *regions; /* fixed */
	size_t nregions;
	char *sections[GMEM_MIGRATE_MAX_SECTIONS];
	size_t nsections, section_bytes;
	bool precopy;
	int64_t rounds, rounds_done; /* -1: not even the first pass */

	struct gmem_asks asks[2]; /* [channel - 1] */
	_Atomic uint32_t urgent; /* requests on the priority connection */
	_Atomic bool bulk_waits; /* for `urgent` to be 0 */
	_Atomic bool linked;
	uint64_t bulk_since_ms; /* the bulk connection's thread's */
	_Atomic uint64_t links, urgent_pages, bulk_pages, zero_pages, bytes;
};

bool gmem_migrate_name_valid(const char *name); /* of a region or section: can be sent */
/* Waits a moment for the last words to be heard. */
void gmem_page_server_farewell(struct gmem_page_server *server);

/* page_asks.c, on the connection's thread. */
int gmem_asks_push(struct gmem_page_server *s, enum gmem_wire_channel channel, const struct gmem_wire_pages *ask);
int64_t gmem_asks_answer(struct gmem_page_server *s, enum gmem_wire_channel channel, uint8_t *frame);
void gmem_asks_reset(struct gmem_page_server *s); /* while there is no link */

#endif
