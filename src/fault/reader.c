/* SPDX-License-Identifier: MIT */
/*
 * The reader: drains every userfault descriptor, applies removals, hands faults on.
 *
 * It must never wait for anything but messages: a thread of the program that zaps memory sleeps until its REMOVE
 * message is read, and while it sleeps every UFFDIO command answers EAGAIN, so a reader that waited for a lock whose
 * holder resolves a page would wait for ever. A single fault that can be resolved without waiting is resolved here at
 * once: handing it to another thread costs as much again.
 */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "base/range.h"
#include "fault/pager.h"
#include "file/anon.h"
#include "sys/uffd.h"

#define BATCH 64
#define JOURNAL (GMEM_STATE_JOURNAL_LEN / sizeof(struct uffd_msg))

/*
 * How long the reader looks for the next message before it sleeps, at most and at least. A message that comes
 * meanwhile is served without a thread's being put to sleep and woken, which costs as much as its page does.
 */
#define LOOK_MAX_NS 20000u
#define LOOK_MIN_NS 1000u

struct batch {
	struct gmem_fault faults[4 * BATCH];
	uint32_t n;
};

void gmem_pager_count_latency(struct gmem_pager *pager, uint64_t ns)
{
	struct gmem_pager_counters *c = &pager->c;
	uint64_t max = atomic_load_explicit(&c->latency_max_ns, memory_order_relaxed);
	uint64_t us = ns / 1000;
	unsigned int bucket = us ? 63u - (unsigned int)__builtin_clzll(us) : 0;

	if (bucket >= GMEM_LATENCY_BUCKETS)
		bucket = GMEM_LATENCY_BUCKETS - 1;
	atomic_fetch_add_explicit(&c->latency[bucket], 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&c->latency_sum_ns, ns, memory_order_relaxed);
	atomic_fetch_add_explicit(&c->latency_count, 1, memory_order_relaxed);
	while (ns > max && !atomic_compare_exchange_weak_explicit(&c->latency_max_ns, &max, ns, memory_order_relaxed,
								  memory_order_relaxed))
		;
}

static struct gmem_pager_region *find(struct gmem_pager *pager, int uffd, uint64_t hva)
{
	uint32_t n = atomic_load_explicit(&pager->nregions, memory_order_acquire);

	for (uint32_t i = 0; i < n; i++) {
		struct gmem_pager_region *r = pager->regions[i];

		if (r->uffd == uffd && hva >= r->hva && hva - r->hva < r->len && !atomic_load(&r->gone))
			return r;
	}
	return NULL;
}

/*
 * A REMOVE message tells of madvise(MADV_DONTNEED), which keeps the bytes of shared memory, or of MADV_REMOVE, which
 * drops them, and comes before either is done. A page in place needs nothing: its next fault finds the bytes, or
 * finds none and is zero.
 */
static void apply_remove(struct gmem_pager *pager, int uffd, uint64_t start, uint64_t end)
{
	uint32_t n = atomic_load_explicit(&pager->nregions, memory_order_acquire);

	atomic_fetch_add_explicit(&pager->c.removes, 1, memory_order_relaxed);
	for (uint32_t i = 0; i < n; i++) {
		struct gmem_pager_region *r = pager->regions[i];

		if (r->uffd == uffd && (pager->opts.flags & GMEM_PAGER_REMOVE_DISCARDS || gmem_file_anon(r->file)))
			gmem_region_removed(r, start, end);
	}
}

static void flush(struct gmem_pager *pager, struct batch *batch)
{
	if (batch->n)
		gmem_pager_enqueue(pager, batch->faults, batch->n);
	batch->n = 0;
}

static void take_fault(struct gmem_pager *pager, int uffd, const struct uffd_msg *msg, uint64_t now,
		       struct batch *batch)
{
	uint64_t hva = gmem_page_round_down(msg->arg.pagefault.address);
	struct gmem_pager_region *region = find(pager, uffd, hva);

	if (!region)
		return;
	if (msg->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR)
		atomic_fetch_add_explicit(&pager->c.minor, 1, memory_order_relaxed);
	else
		atomic_fetch_add_explicit(&pager->c.missing, 1, memory_order_relaxed);
	if (batch->n == sizeof(batch->faults) / sizeof(batch->faults[0]))
		flush(pager, batch);
	atomic_fetch_add(&pager->pending, 1);
	batch->faults[batch->n++] = (struct gmem_fault){
		.region = region,
		.off = region->off + (hva - region->hva),
		.read_ns = now,
	};
}

/* One read of a descriptor of another process's own memory. Why a journal, and a lock: file/anon.h. */
static int read_journaled(struct gmem_pager *pager, int uffd, struct gmem_file *file, struct uffd_msg *msgs)
{
	struct uffd_msg *journal = (struct uffd_msg *)file->state.header->journal;
	int n;

	gmem_rwlock_lock(&file->removals);
	memset(journal, 0, GMEM_STATE_JOURNAL_LEN);
	n = gmem_sys_uffd_read(uffd, journal, JOURNAL);
	for (int i = 0; i < n; i++) {
		msgs[i] = journal[i];
		if (msgs[i].event == UFFD_EVENT_REMOVE)
			apply_remove(pager, uffd, msgs[i].arg.remove.start, msgs[i].arg.remove.end);
	}
	gmem_rwlock_unlock(&file->removals);
	return n;
}

/* Reads until nothing is queued, so that a removal is applied before any fault that came after it is served. */
static void drain(struct gmem_pager *pager, int uffd, struct batch *batch)
{
	struct gmem_file *anon = gmem_pager_anon(pager, uffd);
	int most = anon ? (int)JOURNAL : BATCH, n;
	struct uffd_msg msgs[BATCH];

	do {
		uint64_t now;

		n = anon ? read_journaled(pager, uffd, anon, msgs) : gmem_sys_uffd_read(uffd, msgs, BATCH);
		now = gmem_now_ns();
		for (int i = 0; i < n; i++)
			if (msgs[i].event == UFFD_EVENT_PAGEFAULT)
				take_fault(pager, uffd, &msgs[i], now, batch);
			else if (msgs[i].event == UFFD_EVENT_REMOVE && !anon)
				apply_remove(pager, uffd, msgs[i].arg.remove.start, msgs[i].arg.remove.end);
	} while (n == most);
}

static void serve(struct gmem_resolver *r, struct batch *batch)
{
	struct gmem_fault *f = &batch->faults[0];

	if (batch->n == 1 && gmem_resolve_fault(r, f->region, f->off) == 0) {
		gmem_pager_count_latency(r->pager, gmem_now_ns() - f->read_ns);
		gmem_trace_fault(r, f);
		atomic_fetch_sub(&r->pager->pending, 1);
		batch->n = 0;
	}
	flush(r->pager, batch);
}

struct look {
	uint64_t ns; /* how long to look before the next sleep */
	uint32_t waits; /* so far */
	bool may;
};

/* Where all threads share one processor, looking would only keep the touchers from running. */
static bool may_look(void)
{
	cpu_set_t cpus;

	return sched_getaffinity(0, sizeof(cpus), &cpus) || CPU_COUNT(&cpus) > 1;
}

static bool is_crowded(const struct gmem_pager *pager)
{
	const _Atomic bool *crowded = atomic_load_explicit(&pager->crowded, memory_order_relaxed);

	return crowded && atomic_load_explicit(crowded, memory_order_relaxed);
}

/*
 * Waits for descriptors with messages. Looks first, for a time that halves whenever that was in vain and doubles when
 * a message came soon after the reader had gone to sleep: a reader without work soon costs nothing.
 */
static int wait_for_messages(struct gmem_pager *pager, struct epoll_event *events, int max, struct look *look)
{
	uint64_t begun;
	int n = 0;

	/* The answer may change, seldom; asking costs as much as a wait. */
	if (look->waits++ % 4096 == 0)
		look->may = may_look();
	if (!look->may || is_crowded(pager))
		return epoll_wait(pager->epoll, events, max, -1);
	begun = gmem_now_ns();
	while (look->ns && !n && gmem_now_ns() - begun < look->ns)
		n = epoll_wait(pager->epoll, events, max, 0);
	if (n)
		return n;
	look->ns = look->ns / 2 >= LOOK_MIN_NS ? look->ns / 2 : 0;
	n = epoll_wait(pager->epoll, events, max, -1);
	if (gmem_now_ns() - begun < LOOK_MAX_NS)
		look->ns = look->ns ? gmem_min_u64(2 * look->ns, LOOK_MAX_NS) : 4 * LOOK_MIN_NS;
	return n;
}

void *gmem_pager_reader(void *arg)
{
	struct gmem_resolver *r = arg;
	struct gmem_pager *pager = r->pager;
	struct batch batch = { .n = 0 };
	struct look look = { 0 };

	r->nowait = true;
	while (!atomic_load(&pager->stopping)) {
		struct epoll_event events[16];
		int n = wait_for_messages(pager, events, 16, &look);

		if (n < 0 && errno != EINTR)
			break;
		for (int i = 0; i < n; i++) {
			int uffd = events[i].data.fd;

			if (uffd == pager->stop_event)
				continue;
			/* The last copy of the address space is gone. */
			if (events[i].events & (EPOLLERR | EPOLLHUP))
				epoll_ctl(pager->epoll, EPOLL_CTL_DEL, uffd, NULL);
			else
				drain(pager, uffd, &batch);
		}
		serve(r, &batch);
	}
	return NULL;
}
