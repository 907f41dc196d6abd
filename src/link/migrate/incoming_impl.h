/* SPDX-License-Identifier: MIT */
/*
 * What the files of incoming.h share: what the destination knows of each page, and what it has asked for.
 *
 * A region is looked at by chunks of 64 pages, of which one request asks: masks of 64 bits say what is known of each
 * page. Locks: `p.m` (phases, sections, regions' names), then `m` (all of pages), then the link's. Bytes are copied with
 * no lock held where they are many.
 */
#ifndef GMEM_LINK_MIGRATE_INCOMING_IMPL_H
#define GMEM_LINK_MIGRATE_INCOMING_IMPL_H

#include "link/migrate/incoming.h"
#include "link/migrate/phases.h"

#define GMEM_CHUNK_SHIFT 18u
#define GMEM_CHUNK_LEN (1u << GMEM_CHUNK_SHIFT)
#define GMEM_INCOMING_AHEAD (32u << 20)
#define GMEM_INCOMING_MIN_AHEAD (4u << 20)
#define GMEM_INCOMING_MAX_AHEAD (128u << 20) /* half of what a server lets wait */
#define GMEM_INCOMING_ANSWER_MS 30000u /* while there is a link */

/* Bytes that came over bulk and that nobody has taken. In the order in which they may be dropped. */
struct gmem_chunk_buf {
	struct gmem_chunk_buf *next, *prev;
	struct gmem_chunk *chunk;
	uint64_t have; /* pages whose bytes are here */
	uint32_t users; /* copying from it now */
	uint8_t data[GMEM_CHUNK_LEN];
};

struct gmem_chunk {
	struct gmem_chunk_buf *buf; /* NULL: none */
	uint64_t zero; /* known to be zero */
	uint64_t done; /* given to the pager at least once: not fetched ahead any more */
	uint64_t stored; /* in the store, and true */
	uint64_t stale; /* in the store, and not true: to be punched */
	uint32_t slot; /* + 1: a bulk request is on its way; 0: none */
};

struct gmem_incoming_region {
	struct gmem_migrate_region r; /* as said by the source */
	struct gmem_chunk *chunks; /* NULL: nobody has asked for its pages yet */
	uint64_t nchunks;
	int store_fd; /* -1: none */
	uint64_t store_base;
	bool store_failed; /* nothing more is written to it */
	bool source; /* there is one */
};

/* A bulk request. */
struct gmem_slot {
	uint32_t region; /* of a free one: the next free one + 1 */
	bool used;
	uint32_t generation;
	uint64_t chunk;
};

/* Somebody waits for pages of one chunk. On the waiter's stack, in the list until it returns. */
struct gmem_request {
	struct gmem_request *next;
	uint64_t tag, off;
	uint32_t region, npages;
	uint8_t *buf;
	bool done;
	int err;
	pthread_cond_t *wake;
};

struct gmem_section {
	char name[GMEM_WIRE_MAX_TEXT + 1];
	uint8_t *bytes;
	size_t have, room, total;
	bool whole;
};

struct gmem_incoming {
	struct gmem_phases p; /* its `m` guards the four after it as well; regions[].r is fixed from OPEN on */
	struct gmem_section sections[GMEM_MIGRATE_MAX_SECTIONS];
	size_t nsections, section_bytes;
	bool precopy;
	bool opened;

	_Atomic uint32_t refs; /* the caller's, and each source's */
	struct gmem_incoming_opts opts;

	pthread_mutex_t m; /* guards all pages */
	pthread_cond_t arrived; /* something over bulk, a link, its loss, an end */
	struct gmem_incoming_region *regions;
	size_t nregions;
	bool linked, final, dead; /* final: STOPPED was heard */
	uint64_t epoch; /* of links, here */
	uint64_t lost_ms; /* when the link was lost, or the object made */
	uint32_t senders; /* threads of sources that use the link with `m` let go */
	struct gmem_request *requests;
	uint64_t next_tag;
	struct gmem_slot *slots;
	uint32_t nslots, used_slots, free_slot; /* + 1 */
	struct gmem_chunk_buf *first, *last; /* the first goes first */
	uint32_t nbufs;

	/* The pull of pages while the guest runs at the source; `m` too. */
	bool pulling, dirtied;
	uint32_t pull_region;
	uint64_t pull_chunk;
	int64_t round_heard, round_told;

	struct gmem_incoming_stats stats;
};

struct gmem_incoming *gmem_incoming_ref(struct gmem_incoming *in);
void gmem_incoming_unref(struct gmem_incoming *in);

/* How many pages the chunk has: 64, but for the last of a region. */
uint32_t gmem_chunk_npages(const struct gmem_incoming_region *r, uint64_t chunk);
int gmem_incoming_need_chunks(struct gmem_incoming *in, uint32_t region); /* m held. -ENOMEM */

/* ---- incoming_pages.c; `m` held where it says so */
uint32_t gmem_slot_take(struct gmem_incoming *in, uint32_t region, uint64_t chunk); /* + 1; 0: none is free. m held */
void gmem_slot_drop_all(struct gmem_incoming *in); /* m held */
/* The request for what is still lacking of a chunk, `need`, with a slot taken. m held */
struct gmem_wire_msg gmem_chunk_ask(struct gmem_incoming *in, uint32_t region, uint64_t chunk, uint64_t need);
int gmem_pages_urgent(struct gmem_incoming *in, const struct gmem_wire_pages *g);
int gmem_pages_bulk(struct gmem_incoming *in, const struct gmem_wire_pages *g);
void gmem_buf_free(struct gmem_incoming *in, struct gmem_chunk_buf *buf); /* m held */
bool gmem_buf_evict(struct gmem_incoming *in); /* one that nobody uses; false: none. m held */
void gmem_buf_done(struct gmem_incoming *in, struct gmem_chunk_buf *buf); /* it goes first from now on. m held */

/* ---- incoming_store.c, on the bulk connection's thread */
void gmem_store_pages(struct gmem_incoming *in, const struct gmem_wire_pages *g);
int gmem_store_dirty(struct gmem_incoming *in, const struct gmem_wire_msg *msg);
void gmem_store_finish(struct gmem_incoming *in); /* STOPPED was heard: what is not true goes */
int64_t gmem_store_pull(struct gmem_incoming *in, uint8_t *frame);
int gmem_store_read(const struct gmem_incoming_region *r, uint64_t off, void *buf, size_t len);

#endif
