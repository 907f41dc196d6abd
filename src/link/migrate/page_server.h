/* SPDX-License-Identifier: MIT */
/*
 * The source's side of a migration: it answers for pages, and says where the guest is.
 *
 * Enters: the descriptors of a guest's memory, sections (device state and the like), dirty bitmaps. Leaves: phases, and
 * at the end the certainty that every page is on the other side. Pages are read with pread(2) when they are asked for,
 * those a guest waits for before all others. Owns the channel's threads and two of its own. Any thread may call; calls
 * that wait take a time in milliseconds, -1 for no limit. See channel.h for the phases.
 *
 * A migration, from here:
 *
 *	gmem_page_server_new()            regions, and where the other side is
 *	gmem_page_server_section()        what it needs to prepare: the command line
 *	gmem_page_server_wait(PREPARED)
 *	[gmem_page_server_precopy(), and then by rounds: gmem_page_server_wait_round(), the dirty log,
 *	 gmem_page_server_dirty(), gmem_page_server_round()]
 *	the guest is stopped
 *	[the last of the dirty log: gmem_page_server_dirty()]
 *	gmem_page_server_section()        device state
 *	gmem_page_server_stopped()
 *	gmem_page_server_wait(READY)
 *	gmem_page_server_go()             from here on the guest is not ours
 *	gmem_page_server_wait(COMPLETE)   the guest may be dropped
 *	gmem_page_server_free()
 */
#ifndef GMEM_LINK_MIGRATE_PAGE_SERVER_H
#define GMEM_LINK_MIGRATE_PAGE_SERVER_H

#include "link/migrate/channel.h"

struct gmem_page_server;

/*
 * Starts to connect, or to listen, and returns. The names of regions are copied, the descriptors duplicated. -EINVAL
 * (options or regions: the text says which), -EMFILE, -ENOMEM.
 */
int gmem_page_server_new(const struct gmem_channel_opts *opts, const struct gmem_migrate_region *regions,
			 size_t nregions, struct gmem_page_server **ret);
/* Ends the threads and frees. A migration that is not CLOSED is given up, not aborted: see gmem_page_server_abort(). */
void gmem_page_server_free(struct gmem_page_server *server); /* NULL is allowed */

/*
 * Sends bytes under a name; copied. The other side gets each section once and whole, in the order of the calls.
 * -EINVAL (name), -EEXIST, -E2BIG (too many, or too much), -EBUSY (STOPPED was said), -ECANCELED (ABORTED).
 */
int gmem_page_server_section(struct gmem_page_server *server, const char *name, const void *data, size_t len);

/*
 * Lets the destination fetch while the guest runs, as soon as it is PREPARED and into what it has stores for. In phases
 * OPEN and PREPARED, once. -EBUSY, -ECANCELED.
 */
int gmem_page_server_precopy(struct gmem_page_server *server);
/*
 * What the guest wrote: `npages` pages of the region from `off` on, a bit each, the lowest of the first byte first. The
 * destination drops what it has of them, and fetches them again. The rule for the caller: a page written after it was
 * sent has to be in a bitmap given later, so the dirty log is switched on before gmem_page_server_precopy(), and what
 * it says is *taken* (got and cleared) before this is called. Before STOPPED. -EINVAL, -EBUSY, -ENOBUFS (more than 64
 * MiB of messages are not acknowledged), -ECANCELED.
 */
int gmem_page_server_dirty(struct gmem_page_server *server, size_t region, uint64_t off, uint64_t npages,
			   const void *bitmap);
/* Ends a round: all that was dirty has been said. Its number, 1 and up. */
int64_t gmem_page_server_round(struct gmem_page_server *server);
/* Waits until the destination has fetched all of the round (0: the first pass over everything). -ETIMEDOUT, as wait. */
int gmem_page_server_wait_round(struct gmem_page_server *server, int64_t round, int timeout_ms);

/* The guest is stopped, its memory is final, all is said. Phase PREPARED. -EBUSY, -ECANCELED. */
int gmem_page_server_stopped(struct gmem_page_server *server);
/*
 * Hands the guest over. In phase READY. When this has returned 0 the guest must not run here again, unless
 * gmem_page_server_may_run() says so. -EBUSY (another phase), -ECANCELED (ABORTED).
 */
int gmem_page_server_go(struct gmem_page_server *server);
/*
 * Gives the migration up; `reason` is told to the other side. -EBUSY: GO was said. 0 also if it is ABORTED already.
 * Waits up to a second for the message to go out.
 */
int gmem_page_server_abort(struct gmem_page_server *server, const char *reason);

enum gmem_migrate_phase gmem_page_server_phase(struct gmem_page_server *server);
/* True if the guest may run here: GO was not said, or the destination has answered it with an ABORT. */
bool gmem_page_server_may_run(struct gmem_page_server *server);
/*
 * Waits for a phase, or one after it. 0; -ETIMEDOUT; -ECANCELED (ABORTED: the text is the other side's reason);
 * -ENOLINK (the channel has ended: the text says why); -EKEYREJECTED, -EKEYEXPIRED, -EACCES and -EPROTO if there never
 * was a link and the one that was tried failed by that.
 */
int gmem_page_server_wait(struct gmem_page_server *server, enum gmem_migrate_phase phase, int timeout_ms);

struct gmem_page_server_stats {
	size_t size; /* sizeof(struct gmem_page_server_stats) */
	uint64_t urgent_pages, bulk_pages; /* sent; a page may be sent more than once */
	uint64_t zero_pages; /* of those, sent as a bit */
	uint64_t bytes; /* of pages sent */
	uint64_t links; /* made so far */
	uint64_t unacknowledged; /* control messages */
	bool linked; /* there is a link now */
};
int gmem_page_server_stats(struct gmem_page_server *server, struct gmem_page_server_stats *ret);

#endif
