/* SPDX-License-Identifier: MIT */
/*
 * Userfaults in, resolved pages out.
 *
 * Enters: userfault messages of any number of descriptors, and sources. Leaves: pages, in the file by its backing
 * operations and in the toucher's address space by UFFDIO_CONTINUE. A pager owns its threads: one reader, which never
 * waits for a lock, a source or a page, and resolvers. Locks: `m` (the queue), `event_m` (the caller's callback);
 * then the file's own. Nothing here touches guest memory.
 */
#ifndef GMEM_FAULT_PAGER_H
#define GMEM_FAULT_PAGER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "file/file.h"
#include "gmem.h"

#define GMEM_PAGER_MAX_REGIONS 1024u
#define GMEM_PAGER_MAX_THREADS 64u
#define GMEM_DEMAND_MAX_PAGES 64u /* fault-around */
#define GMEM_FILL_MAX_PAGES 256u /* of one step of the fill */
#define GMEM_REPLAY_MAX_PAGES 512u /* of one of the replay */
#define GMEM_STREAMS 4u

struct gmem_pager_region {
	struct gmem_pager *pager;
	struct gmem_file *file; /* referenced */
	struct gmem_supply *supply; /* the file's: a guest's faults come this way */
	struct gmem_source *source;
	struct gmem_view *view; /* NULL: a mapping of the program's own */
	uint64_t hva, off, len, source_off;
	int uffd; /* our duplicate, shared by the regions of one descriptor */
	int caller_uffd;
	int pidfd; /* of who maps it; -1: not known */
	uint64_t uffd_dev, uffd_ino; /* of the descriptor; kernels before 5.12 give all the same */
	unsigned int number;
	_Atomic bool gone; /* the process or the mapping is: nothing to serve */
	_Atomic uint64_t streams[GMEM_STREAMS]; /* sequential touchers: next page << 8 | log2 of the window */
	_Atomic uint32_t next_stream;
};

/* A guest's thread that waits for a page. All but the memory itself is guarded by gmem_pager.m. */
struct gmem_guest_wait {
	unsigned int refs; /* the thread's and the fault's */
	bool done;
	int err;
};

struct gmem_fault {
	struct gmem_pager_region *region;
	struct gmem_guest_wait *guest; /* NULL: a toucher of the region's mapping */
	uint64_t off; /* in the file */
	uint64_t read_ns; /* when its message was read */
	uint64_t not_before_ns; /* when it is to be tried (again) */
	uint32_t tries;
	bool given_up; /* it has been told that nobody serves it, and still waits */
};

/* What a fault brought in, or mapped: the page is in it. */
struct gmem_touched {
	uint64_t from, to; /* in the file */
	uint32_t window; /* pages from the one that was touched on which its toucher was expected to want */
};

struct gmem_pace;

/* What one resolving thread works with. */
struct gmem_resolver {
	struct gmem_pager *pager;
	void *staging; /* GMEM_DEMAND_MAX_PAGES pages; the fill's holds more */
	uint32_t max_pages;
	const char *staged; /* in it: the bytes of the slice that is being installed */
	struct gmem_pace *pace; /* of work behind the faults, else NULL */
	bool nowait;
	bool fill;
	bool replay; /* known zeroes get memory: somebody is about to touch them */
	bool unmapped; /* pages are put into the file and mapped nowhere */
	struct gmem_touched touched; /* of the last fault it served */
};

struct gmem_pager_counters {
	_Atomic uint64_t missing, minor, removes, demand_pages, fill_pages, replay_pages, zero_pages, read_bytes,
		retries, errors, poisoned;
	_Atomic uint64_t latency[GMEM_LATENCY_BUCKETS], latency_max_ns, latency_sum_ns, latency_count;
	_Atomic uint32_t user_mode_only;
	_Atomic uint64_t gave_up;
};

struct gmem_tracer;

struct gmem_pager {
	struct gmem_pager_opts opts;
	int epoll, stop_event;
	int view_uffd; /* of this process's views, -1 until there is one; guarded by m */
	_Atomic bool stopping;
	/* The processors are wanted by others: the reader sleeps when there is nothing to read. NULL: never so. */
	const _Atomic bool *_Atomic crowded;
	_Atomic uint64_t reported_ns; /* when an error was last told */
	_Atomic uint32_t fills; /* calls of gmem_pager_fill() and gmem_pager_replay() */
	_Atomic bool replaying;
	_Atomic(struct gmem_tracer *) tracer; /* NULL: nothing was ever recorded */
	_Atomic uint32_t pending; /* faults read and not yet resolved */

	struct gmem_pager_region *regions[GMEM_PAGER_MAX_REGIONS];
	_Atomic uint32_t nregions; /* release after the entry is whole; entries never change */

	pthread_mutex_t m; /* guards the queue, guests' waits and the adding of regions */
	pthread_cond_t queued;
	pthread_cond_t served; /* a guest's fault is done, or the pager stops */
	struct gmem_fault *queue; /* ring */
	uint32_t queue_size, queue_first, queue_used;

	pthread_mutex_t event_m; /* one call of opts.event at a time */
	pthread_t threads[GMEM_PAGER_MAX_THREADS + 1]; /* the first is the reader */
	struct gmem_resolver resolvers[GMEM_PAGER_MAX_THREADS + 1]; /* a thread's own */
	unsigned int nthreads;
	struct gmem_pager_counters c;
};

/*
 * resolve.c. 0: the toucher goes on. -EAGAIN, -EBUSY: try again a little later. -ESRCH: the region is gone. Anything
 * else was reported as an event and is to be tried again, later.
 */
int gmem_resolve_fault(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t off);
/*
 * Brings in what is absent of [off, off + len), at most r->max_pages of it. Returns the pages looked at, or negative
 * errno.
 */
int64_t gmem_resolve_fill(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t off, uint64_t len);
void gmem_pager_report(struct gmem_pager *pager, enum gmem_pager_event_kind kind, int error, const char *text,
		       const struct gmem_pager_region *region, uint64_t off, uint64_t len);
int gmem_resolver_init(struct gmem_resolver *r, struct gmem_pager *pager, uint32_t max_pages);
void gmem_resolver_destroy(struct gmem_resolver *r);

/*
 * map.c. Lets the touchers of pages in place go on. A private page is never mapped: who touched it before it was
 * converted wakes, and meets the marker. Whole pages of the file's page size, invalidate lock held shared. -EAGAIN: the
 * address space is changing, come again.
 */
int gmem_resolve_map(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t off, uint64_t len);
/* A marker in the toucher's address space, for the page around `off`: SIGBUS. The toucher wakes and dies by it. */
int gmem_resolve_mark_poisoned(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t off);

static inline void gmem_pager_count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* region.c */

/* The file whose states have the journal of this descriptor's messages; NULL: none. */
struct gmem_file *gmem_pager_anon(struct gmem_pager *pager, int uffd);
/* [start, end) of the region's process was removed: what meets the region is zero from now on. */
void gmem_region_removed(struct gmem_pager_region *region, uint64_t start, uint64_t end);
void gmem_region_free(struct gmem_pager_region *region);
/* Adds regions, all of one descriptor, or none. The number of the first; `view`: what the only one is of, or NULL. */
int gmem_pager_add(struct gmem_pager *pager, const struct gmem_region *regions, uint32_t n, struct gmem_view *view);

/* Where the pages that it brings in are counted. */
static inline _Atomic uint64_t *gmem_resolver_pages(const struct gmem_resolver *r)
{
	struct gmem_pager_counters *c = &r->pager->c;

	return r->replay ? &c->replay_pages : r->fill ? &c->fill_pages : &c->demand_pages;
}

/* queue.c */
void gmem_pager_enqueue(struct gmem_pager *pager, const struct gmem_fault *faults, uint32_t n);
bool gmem_pager_dequeue(struct gmem_pager *pager, struct gmem_fault *ret); /* waits; false when the pager stops */

/* guest.c: faults of guests, who touch a file through no mapping */
int gmem_pager_bring_in(void *region, struct gmem_file *file, uint64_t off, struct gmem_wait *wait);
void gmem_guest_done_locked(struct gmem_pager *pager, struct gmem_guest_wait *guest, int err); /* m held */
void gmem_guest_done(struct gmem_pager *pager, struct gmem_guest_wait *guest, int err);

/* trace.h, for those who serve faults: one was served. */
void gmem_trace_push(struct gmem_tracer *tracer, const struct gmem_pager_region *region, uint64_t off,
		     const struct gmem_touched *touched, uint64_t ns);

static inline void gmem_trace_fault(const struct gmem_resolver *r, const struct gmem_fault *f)
{
	struct gmem_tracer *tracer = atomic_load_explicit(&r->pager->tracer, memory_order_acquire);

	if (tracer)
		gmem_trace_push(tracer, f->region, f->off, &r->touched, f->read_ns);
}

/* reader.c */
void *gmem_pager_reader(void *resolver);
void gmem_pager_count_latency(struct gmem_pager *pager, uint64_t ns);

#endif
