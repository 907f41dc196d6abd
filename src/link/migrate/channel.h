/* SPDX-License-Identifier: MIT */
/*
 * A migration's channel: two TLS connections between the machine a guest leaves, the *source*, and the one it goes to,
 * the *destination*. The **priority** connection carries what a guest waits for, and nothing else; the **bulk**
 * connection all else. Either side may be the one that connects: that has nothing to do with which way the guest goes.
 *
 * Enters: an identity (tls.h), an address or a listening socket. Leaves: messages (wire.h), in order. The callers are
 * page_server.h, the source's side, and incoming.h, the destination's; nobody else needs this header but for the
 * options and the phases.
 *
 * The two connections are one *link*. They carry the migration's random id and the number of the link, the *epoch*,
 * which whoever connects raises. If one of them is lost, or silent too long, the other is given up too and a new link
 * is made: same id, same certificate, higher epoch. What is said of the guest itself goes over a sequence of *control
 * messages*, numbered, kept by their sender until acknowledged and sent again on the next link, taken once by their
 * receiver: a lost link loses and doubles none. Pages are different: the destination asks for each, any number of
 * times, and drops what it has already. The source keeps nothing about pages, so there is nothing to lose.
 *
 * ## Phases
 *
 * Control messages move both sides through these phases, forwards only; `who` sends what leads there:
 *
 *	phase      who   means                                               guest may run at
 *	OPEN             the regions are known; sections may come            source
 *	PREPARED   dst   memory and a machine to run are there               source
 *	STOPPED    src   stopped, memory final, every section was sent       source (not both: it is stopped)
 *	READY      dst   the device state is loaded                          source (so too)
 *	GO         src   the guest is the destination's                      destination
 *	RESUMED    dst   it runs there                                       destination
 *	COMPLETE   dst   it has every page                                   destination
 *	CLOSED     src   the source has seen that, and is not needed         destination
 *	ABORTED    any   from the source before it sent GO, from the         source
 *	                 destination before it sent RESUMED
 *
 * (gmem_phase_may_say() and gmem_phase_may_hear() are this table; a test goes through all states two sides can be in.)
 *
 * Until the source has *sent* GO it may go on running the guest, whatever happens; from then on never again, unless the
 * destination says ABORT. The destination runs it only after it *received* GO, and never after it sent ABORT. So the
 * guest runs on one side at most, at every instant and with every link lost; and the source keeps memory and device
 * state until COMPLETE. A link lost between GO and its receipt leaves a guest that runs nowhere until there is a link
 * again: whether the GO arrived cannot be known otherwise. That wait has no limit unless the caller sets one.
 *
 * While the guest runs on (before STOPPED) pages are asked for over bulk only, so that a page and the message that
 * calls it dirty cannot overtake each other. See gmem_page_server_dirty().
 */
#ifndef GMEM_LINK_MIGRATE_CHANNEL_H
#define GMEM_LINK_MIGRATE_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "link/migrate/tls.h"

enum gmem_migrate_phase {
	GMEM_MIGRATE_NEW = 0, /* no link yet, or no regions */
	GMEM_MIGRATE_OPEN,
	GMEM_MIGRATE_PREPARED,
	GMEM_MIGRATE_STOPPED,
	GMEM_MIGRATE_READY,
	GMEM_MIGRATE_GO,
	GMEM_MIGRATE_RESUMED,
	GMEM_MIGRATE_COMPLETE,
	GMEM_MIGRATE_CLOSED,
	GMEM_MIGRATE_ABORTED,
};

const char *gmem_migrate_phase_name(enum gmem_migrate_phase phase); /* "prepared" */

enum gmem_channel_event_kind {
	GMEM_CHANNEL_UP = 1, /* a link is made; `epoch` */
	GMEM_CHANNEL_LOST = 2, /* the link is lost; `error` and `text` say why. Another is being made */
	GMEM_CHANNEL_REFUSED = 3, /* somebody who connected, or was connected to, is not who it has to be */
	GMEM_CHANNEL_PHASE = 4, /* the other side has moved the migration on; `phase` */
	GMEM_CHANNEL_ENDED = 5, /* no link will be made any more: `error`, 0 if all was done */
};

struct gmem_channel_event {
	enum gmem_channel_event_kind kind;
	int error; /* negative errno or 0 */
	const char *text; /* "" if there is nothing to say */
	uint64_t epoch;
	enum gmem_migrate_phase phase;
};

/* How a channel is made. The source's and the destination's side are alike. */
struct gmem_channel_opts {
	size_t size; /* sizeof(struct gmem_channel_opts) */
	struct gmem_tls_ctx *tls; /* borrowed until the channel is freed */
	/* Either the other side's "host:port", "[address]:port"; or NULL, and a listening stream socket. */
	const char *address;
	int listen_fd; /* duplicated; used if `address` is NULL */
	uint32_t silence_ms; /* a link from which nothing came for so long is lost; 0: 5000 */
	uint32_t handshake_ms; /* how long a new connection may take to say who it is; 0: 10000 */
	uint32_t first_ms; /* how long the first link may take to be made; 0: no limit */
	uint32_t lost_ms; /* how long a lost link may stay lost; 0: no limit */
	/*
	 * Optional. Called by the channel's threads, one call at a time. It may call gmem_*_phase() and nothing else of
	 * the object whose channel this is.
	 */
	void (*event)(void *opaque, const struct gmem_channel_event *event);
	void *opaque;
};

/* A piece of guest memory. `name` says which it is to both sides. */
struct gmem_migrate_region {
	const char *name; /* 1 to 255 bytes, none of them a control character; no two alike */
	uint64_t len; /* bytes, a multiple of page_size */
	uint32_t page_size; /* 4096, or that of huge pages */
	int fd; /* source: its memory, read with pread(2); duplicated. Its file position moves (SEEK_DATA) */
	uint64_t base; /* source: where in `fd` it begins */
};

#define GMEM_MIGRATE_MAX_REGIONS 1024u
#define GMEM_MIGRATE_MAX_SECTIONS 64u
#define GMEM_MIGRATE_MAX_SECTION_LEN (1u << 30) /* of one, and of all together */
#define GMEM_MIGRATE_MAX_LEN (UINT64_C(1) << 52) /* of a region */

#endif
