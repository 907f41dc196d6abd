/* SPDX-License-Identifier: MIT */
/*
 * The messages of a migration as bytes: gmem-migrate-protocol(7).
 *
 * Enters: bytes somebody else has written, or a message. Leaves: a message every field of which is in its range, or
 * -EPROTO; or bytes. Variable parts point into the bytes. No lock, no state, nothing is allocated.
 *
 * A frame is an 8-byte head {u32 length of what follows, u16 type, u16 0} and the payload. All integers are
 * little-endian. Types from GMEM_WIRE_CONTROL on are control messages: their payload begins with a u64 sequence number.
 */
#ifndef GMEM_LINK_MIGRATE_WIRE_H
#define GMEM_LINK_MIGRATE_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "link/migrate/channel.h"

#define GMEM_WIRE_VERSION 1u
#define GMEM_WIRE_MAGIC UINT64_C(0x6d67696d6d656d67) /* "gmemmigm" */
#define GMEM_WIRE_HEAD_LEN 8u
#define GMEM_WIRE_MAX_PAGES 64u /* of a request, and of an answer: 256 KiB */
#define GMEM_WIRE_CHUNK_LEN (GMEM_WIRE_MAX_PAGES * 4096u)
#define GMEM_WIRE_PAGES_LEN 48u /* of an answer, before the bytes */
#define GMEM_WIRE_MAX_PAYLOAD (GMEM_WIRE_CHUNK_LEN + 1024u)
#define GMEM_WIRE_MAX_FRAME (GMEM_WIRE_HEAD_LEN + GMEM_WIRE_MAX_PAYLOAD)
#define GMEM_WIRE_MAX_PIECE (128u * 1024) /* of a section */
#define GMEM_WIRE_MAX_BITMAP (64u * 1024) /* bytes of a bitmap: 2 GiB of memory */
#define GMEM_WIRE_MAX_TEXT 255u
#define GMEM_WIRE_ID_LEN 16u

enum gmem_wire_type {
	/* Of the link. */
	GMEM_WIRE_HELLO = 1, /* the first of each connection, both ways */
	GMEM_WIRE_REFUSE = 2, /* instead of a HELLO, and the last */
	GMEM_WIRE_PING = 3, /* I am here; no answer */
	GMEM_WIRE_ACK = 4, /* control messages have come, up to this one. Bulk only */
	GMEM_WIRE_ASK = 5, /* pages, please; destination to source */
	GMEM_WIRE_PAGES = 6, /* the answer, over the same connection */
	/* Of the migration; bulk only. */
	GMEM_WIRE_CONTROL = 16,
	GMEM_WIRE_REGION = 16, /* src: one region, in order; the last says so */
	GMEM_WIRE_SECTION = 17, /* src: a piece of a section */
	GMEM_WIRE_PRECOPY = 18, /* src: fetch, the guest runs */
	GMEM_WIRE_DIRTY = 19, /* src: pages that were written */
	GMEM_WIRE_ROUND = 20, /* src: end of a round's dirty pages */
	GMEM_WIRE_ROUND_DONE = 21, /* dst: all of that round is here */
	GMEM_WIRE_PHASE = 22, /* the sender moves to a phase */
	GMEM_WIRE_ABORT = 23,
};

enum gmem_wire_role { GMEM_WIRE_SOURCE = 1, GMEM_WIRE_DESTINATION = 2 };
enum gmem_wire_channel { GMEM_WIRE_PRIORITY = 1, GMEM_WIRE_BULK = 2 };

struct gmem_wire_hello {
	uint32_t version; /* decoded whatever it is */
	uint8_t role, channel;
	uint8_t id[GMEM_WIRE_ID_LEN];
	uint64_t epoch; /* not 0 */
	uint64_t received; /* the last control message its sender has got; 0: none */
};

struct gmem_wire_pages {
	uint64_t tag; /* of the ASK */
	uint64_t off; /* in the region, page-aligned */
	uint64_t zero; /* a bit a page, the lowest first: it is zero, its bytes are not sent */
	uint64_t sum; /* XXH3-64 of the bytes that are */
	uint32_t region;
	uint32_t npages; /* 1 to GMEM_WIRE_MAX_PAGES */
	uint32_t error; /* not 0: errno; the pages cannot be read, nothing is sent of them */
	const uint8_t *bytes; /* those of pages that are not zero, one after the other */
};

struct gmem_wire_msg {
	enum gmem_wire_type type;
	uint64_t seq; /* of control messages; not 0 */
	union {
		struct gmem_wire_hello hello;
		uint64_t ack;
		struct gmem_wire_pages pages; /* ASK: tag, off, region and npages */
		struct {
			uint64_t len;
			uint32_t page_size;
			uint32_t index;
			bool last;
		} region; /* and `text`: its name */
		struct {
			uint64_t off, total;
			const uint8_t *bytes;
			uint32_t len;
		} section; /* and `text` */
		struct {
			uint64_t off, npages;
			const uint8_t *bitmap; /* npages bits; those after them are 0 */
			uint32_t region;
		} dirty;
		uint64_t round;
		enum gmem_migrate_phase phase;
		uint32_t error; /* REFUSE, ABORT: errno; and `text` */
	};
	const char *text; /* not ended by a 0 byte; printable */
	uint8_t text_len;
};

/* How many bytes follow a head, 0 to GMEM_WIRE_MAX_PAYLOAD, and their type; or -EPROTO. */
int64_t gmem_wire_decode_head(const uint8_t head[GMEM_WIRE_HEAD_LEN], uint16_t *type);
int gmem_wire_decode(uint16_t type, const uint8_t *payload, size_t len, struct gmem_wire_msg *ret);

/* Writes a frame into GMEM_WIRE_MAX_FRAME bytes; how many. The message is one that can be decoded. */
size_t gmem_wire_encode(uint8_t *frame, const struct gmem_wire_msg *msg);
/* The same where the pages' bytes are in the frame already, at GMEM_WIRE_HEAD_LEN + GMEM_WIRE_PAGES_LEN. */
size_t gmem_wire_encode_pages(uint8_t *frame, const struct gmem_wire_pages *pages);

/* Of gmem_wire_pages.bytes: how many. */
static inline size_t gmem_wire_bytes(const struct gmem_wire_pages *pages)
{
	return pages->error ? 0 : (size_t)(pages->npages - (unsigned int)__builtin_popcountll(pages->zero)) * 4096u;
}

/* All pages of a chunk's first `npages`. */
static inline uint64_t gmem_wire_mask(uint32_t npages)
{
	return npages >= 64 ? UINT64_MAX : (UINT64_C(1) << npages) - 1;
}

#endif
