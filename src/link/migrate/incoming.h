/* SPDX-License-Identifier: MIT */
/*
 * The destination's side of a migration: sections, and pages as sources for a pager.
 *
 * Enters: messages of the source's page server. Leaves: sections, phases, and a gmem_source for each region. It asks for
 * every page itself: for those somebody waits for over the priority connection, for the others ahead of the pager's fill
 * over the bulk connection, so many at a time that the link is never idle. What it has got and nobody has taken yet is
 * bounded. Owns the channel's threads; any thread may call. Nothing here touches guest memory. Calls that wait take
 * milliseconds, -1 for no limit. See channel.h for the phases.
 *
 *	gmem_incoming_new()
 *	gmem_incoming_wait(OPEN), gmem_incoming_nregions(), gmem_incoming_region()
 *	gmem_incoming_section("qemu")     waits for it
 *	[gmem_incoming_store()            for each region, if a pre-copy round may come]
 *	gmem_incoming_source()            one for each region: regions of a pager; the machine is started
 *	gmem_incoming_prepared()
 *	gmem_incoming_wait(STOPPED)
 *	gmem_incoming_section("device-state"), loaded
 *	gmem_incoming_ready()
 *	gmem_incoming_wait(GO)
 *	the guest runs; gmem_incoming_resumed()
 *	gmem_pager_fill()
 *	gmem_incoming_complete()          waits until the source knows
 *	gmem_incoming_free()
 */
#ifndef GMEM_LINK_MIGRATE_INCOMING_H
#define GMEM_LINK_MIGRATE_INCOMING_H

#include "gmem.h"
#include "link/migrate/channel.h"

struct gmem_incoming;

struct gmem_incoming_opts {
	size_t size; /* sizeof(struct gmem_incoming_opts) */
	uint64_t ahead; /* bytes fetched ahead of the fill at most; 0: 32 MiB; at least 4 MiB */
	uint32_t wait_ms; /* how long a read waits while there is no link before it says -ETIMEDOUT; 0: 1000 */
};

/* Starts to connect, or to listen, and returns. `opts` may be NULL. -EINVAL, -EMFILE, -ENOMEM. */
int gmem_incoming_new(const struct gmem_channel_opts *channel, const struct gmem_incoming_opts *opts,
		      struct gmem_incoming **ret);
/*
 * Ends the threads. Sources that somebody still holds stay valid, and answer -ESHUTDOWN, which loses no page and brings
 * none. A migration that is not CLOSED is given up, not aborted.
 */
void gmem_incoming_free(struct gmem_incoming *incoming); /* NULL is allowed */

/* What the source said when the link was made; fixed from phase OPEN on. The name lives as long as the object. */
size_t gmem_incoming_nregions(struct gmem_incoming *incoming);
int gmem_incoming_region(struct gmem_incoming *incoming, size_t i, struct gmem_migrate_region *ret); /* -ERANGE */

/*
 * Waits for a section and returns a copy, allocated, with a 0 byte after it that `len` does not count. -ENOENT (STOPPED
 * was said, and there is none), and as gmem_incoming_wait().
 */
int gmem_incoming_section(struct gmem_incoming *incoming, const char *name, int timeout_ms, void **ret, size_t *len);

/*
 * Where pages go that come while the guest still runs at the source: `fd` is written with pwrite(2) and punched, at
 * offset `base` of it and on. It may be the memory the guest will run in, provided that nobody looks at it before the
 * page state says that a page is in place: such a page is read from it, and written to it again, by who brings it in.
 * Before gmem_incoming_prepared(); duplicated. Without one, a region is not fetched before STOPPED. -ERANGE, -EBUSY,
 * -ENOMEM.
 */
int gmem_incoming_store(struct gmem_incoming *incoming, size_t region, int fd, uint64_t base);
/* Pages of the region that came before STOPPED and are still true. */
uint64_t gmem_incoming_stored(struct gmem_incoming *incoming, size_t region);

/*
 * A region as a source, which the caller owns; offset 0 is the region's. In phases OPEN to COMPLETE; one a region.
 * `read` asks over the priority connection for what is not at hand and waits; -ETIMEDOUT (no link, or no answer, or the
 * guest still runs at the source, so that no byte is final: the page is asked for again when the pager does), -EIO only
 * if the source's machine said that it cannot read that page. `prefetch` waits for what comes over bulk. -ERANGE,
 * -EBUSY, -EEXIST, -ENOMEM.
 */
int gmem_incoming_source(struct gmem_incoming *incoming, size_t region, struct gmem_source **ret);

int gmem_incoming_prepared(struct gmem_incoming *incoming); /* memory and machine are there. -EBUSY, -ECANCELED */
int gmem_incoming_ready(struct gmem_incoming *incoming); /* the device state is loaded. Phase STOPPED. -EBUSY */
int gmem_incoming_resumed(struct gmem_incoming *incoming); /* the guest runs. Phase GO. -EBUSY */
/*
 * Every page of every region is in place. Phase RESUMED. Then waits until the source has said that it knows (CLOSED).
 * -ETIMEDOUT and -ENOLINK: it did not, and may keep its copy; the guest here lacks nothing. -EBUSY.
 */
int gmem_incoming_complete(struct gmem_incoming *incoming, int timeout_ms);
/* The guest will not run here. -EBUSY: RESUMED was said. 0 if it is ABORTED already. Waits up to a second. */
int gmem_incoming_abort(struct gmem_incoming *incoming, const char *reason);

enum gmem_migrate_phase gmem_incoming_phase(struct gmem_incoming *incoming);
/* As gmem_page_server_wait(). Only after it returned 0 for GO may the guest run here. */
int gmem_incoming_wait(struct gmem_incoming *incoming, enum gmem_migrate_phase phase, int timeout_ms);

struct gmem_incoming_stats {
	size_t size; /* sizeof(struct gmem_incoming_stats) */
	uint64_t urgent_pages, bulk_pages; /* received */
	uint64_t dropped_pages; /* received and not needed: had already, or dirty meanwhile */
	uint64_t stored_pages; /* written to a store, before STOPPED */
	uint64_t bytes; /* of pages received */
	uint64_t links; /* made so far */
	bool linked; /* there is one now */
};
int gmem_incoming_stats(struct gmem_incoming *incoming, struct gmem_incoming_stats *ret);

#endif
