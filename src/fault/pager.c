/* SPDX-License-Identifier: MIT */
#include "fault/pager.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cond.h"
#include "base/err.h"
#include "base/opts.h"
#include "base/range.h"
#include "fault/serve_view.h"
#include "source/source.h"
#include "sys/uffd.h"

#define MAX_DEFAULT_RESOLVERS 8

/* Longer and longer, to a tenth of a second: a source that is away for a while must not be hammered. */
static uint64_t back_off_ns(int err, uint32_t tries)
{
	/* The address space is changing, or another thread is at the page: a program that zaps without pause must not
	 * starve its touchers. */
	if (err == -EAGAIN || err == -EBUSY)
		return tries < 4 ? 20000ull << tries : 200000;
	return tries < 12 ? 20000ull << tries : 100000000;
}

static void *resolver_main(void *arg)
{
	struct gmem_resolver *r = arg;
	struct gmem_pager *pager = r->pager;
	struct gmem_fault f;

	while (gmem_pager_dequeue(pager, &f)) {
		int err = gmem_resolve_fault(r, f.region, f.off);

		if (err && err != -ESRCH) {
			atomic_fetch_add_explicit(&pager->c.retries, 1, memory_order_relaxed);
			/* The thread does not wait with it: other pages may well be there. */
			f.not_before_ns = gmem_now_ns() + back_off_ns(err, f.tries++);
			gmem_pager_enqueue(pager, &f, 1);
			continue;
		}
		if (!err)
			gmem_pager_count_latency(pager, gmem_now_ns() - f.read_ns);
		if (f.guest)
			gmem_guest_done(pager, f.guest, err);
		atomic_fetch_sub(&pager->pending, 1);
	}
	return NULL;
}

static int check_opts(const struct gmem_pager_opts *opts)
{
	if (!opts)
		return 0;
	if (!gmem_opts_valid(opts, opts->size, sizeof(*opts)))
		return gmem_err(-EINVAL, "gmem_pager_create: opts.size %zu: expected %zu", opts->size, sizeof(*opts));
	if (opts->flags & ~GMEM_PAGER_REMOVE_DISCARDS)
		return gmem_err(-EINVAL, "gmem_pager_create: flags 0x%x: unknown", opts->flags);
	if (opts->resolvers > GMEM_PAGER_MAX_THREADS)
		return gmem_err(-EINVAL, "gmem_pager_create: %u resolvers: at most %u", opts->resolvers,
				GMEM_PAGER_MAX_THREADS);
	return 0;
}

static unsigned int default_resolvers(void)
{
	long n = sysconf(_SC_NPROCESSORS_ONLN);

	return n < 1 ? 1 : n > MAX_DEFAULT_RESOLVERS ? MAX_DEFAULT_RESOLVERS : (unsigned int)n;
}

static int start_threads(struct gmem_pager *pager, unsigned int resolvers)
{
	for (unsigned int i = 0; i <= resolvers; i++) {
		struct gmem_resolver *r = &pager->resolvers[i];
		int err = gmem_resolver_init(r, pager, GMEM_DEMAND_MAX_PAGES);

		if (err)
			return err;
		err = pthread_create(&pager->threads[i], NULL, i ? resolver_main : gmem_pager_reader, r);
		if (err)
			return gmem_err_sys(-err, "gmem_pager_create: thread %u", i);
		pager->nthreads++;
	}
	return 0;
}

int gmem_pager_create(const struct gmem_pager_opts *opts, struct gmem_pager **ret)
{
	struct epoll_event ev = { .events = EPOLLIN };
	struct gmem_pager *pager;
	int err = check_opts(opts);

	if (err)
		return err;
	pager = calloc(1, sizeof(*pager));
	if (!pager)
		return gmem_err_sys(-ENOMEM, "gmem_pager_create");
	if (opts)
		pager->opts = *opts;
	pthread_mutex_init(&pager->m, NULL);
	pthread_mutex_init(&pager->event_m, NULL);
	gmem_cond_init(&pager->queued);
	gmem_cond_init(&pager->served);
	pager->view_uffd = -1;
	pager->epoll = epoll_create1(EPOLL_CLOEXEC);
	pager->stop_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ev.data.fd = pager->stop_event;
	if (pager->epoll < 0 || pager->stop_event < 0 ||
	    epoll_ctl(pager->epoll, EPOLL_CTL_ADD, pager->stop_event, &ev)) {
		err = gmem_err_sys(-errno, "gmem_pager_create");
		goto out_free;
	}
	err = start_threads(pager, opts && opts->resolvers ? opts->resolvers : default_resolvers());
	if (err)
		goto out_free;
	*ret = pager;
	return 0;

out_free:
	gmem_pager_free(pager);
	return err;
}

static void stop_threads(struct gmem_pager *pager)
{
	uint64_t one = 1;

	pthread_mutex_lock(&pager->m);
	atomic_store(&pager->stopping, true);
	pthread_cond_broadcast(&pager->queued);
	pthread_cond_broadcast(&pager->served);
	pthread_mutex_unlock(&pager->m);
	if (pager->stop_event >= 0)
		(void)!write(pager->stop_event, &one, sizeof(one));
	for (unsigned int i = 0; i < pager->nthreads; i++)
		pthread_join(pager->threads[i], NULL);
}

/* Regions of one descriptor share one duplicate. */
static bool first_of_its_uffd(const struct gmem_pager *pager, uint32_t i)
{
	for (uint32_t k = 0; k < i; k++)
		if (pager->regions[k]->uffd == pager->regions[i]->uffd)
			return false;
	return true;
}

void gmem_pager_free(struct gmem_pager *pager)
{
	uint32_t n;

	if (!pager)
		return;
	stop_threads(pager);
	while (atomic_load(&pager->fills))
		nanosleep(&(struct timespec){ .tv_nsec = 100000 }, NULL);
	for (unsigned int i = 0; i <= GMEM_PAGER_MAX_THREADS; i++)
		gmem_resolver_destroy(&pager->resolvers[i]);
	n = atomic_load(&pager->nregions);
	/* Guests that wait have seen that the pager stops, and go; none comes after this. */
	for (uint32_t i = 0; i < n; i++)
		gmem_file_end_supply(pager->regions[i]->file, pager->regions[i]->supply);
	for (uint32_t i = 0; i < pager->queue_used; i++) {
		struct gmem_fault *f = &pager->queue[(pager->queue_first + i) % pager->queue_size];

		if (f->guest)
			gmem_guest_done(pager, f->guest, -ESHUTDOWN);
	}
	for (uint32_t i = 0; i < n; i++)
		if (first_of_its_uffd(pager, i))
			close(pager->regions[i]->uffd);
	for (uint32_t i = 0; i < n; i++) {
		gmem_source_unref(pager->regions[i]->source);
		gmem_file_put(pager->regions[i]->file);
		free(pager->regions[i]);
	}
	if (pager->view_uffd >= 0)
		close(pager->view_uffd);
	if (pager->epoll >= 0)
		close(pager->epoll);
	if (pager->stop_event >= 0)
		close(pager->stop_event);
	free(pager->queue);
	pthread_cond_destroy(&pager->served);
	pthread_cond_destroy(&pager->queued);
	pthread_mutex_destroy(&pager->event_m);
	pthread_mutex_destroy(&pager->m);
	free(pager);
}

static int check_region(const struct gmem_region *region)
{
	int err;

	if (!gmem_opts_valid(region, region->size, sizeof(*region)))
		return gmem_err(-EINVAL, "gmem_pager_add_region: size %zu: expected %zu", region->size,
				sizeof(*region));
	if (!region->file || !region->source || region->uffd < 0)
		return gmem_err(-EINVAL, "gmem_pager_add_region: file, source and uffd are needed");
	if (!gmem_page_aligned(region->hva) || !gmem_page_aligned(region->source_off) ||
	    region->hva + region->len < region->hva || region->source_off + region->len < region->source_off)
		return gmem_err(-EINVAL, "gmem_pager_add_region: hva 0x%llx, source_off 0x%llx: not aligned, or wraps",
				(unsigned long long)region->hva, (unsigned long long)region->source_off);
	err = gmem_file_check_range(region->file, "gmem_pager_add_region", region->off, region->len);
	if (!err)
		err = gmem_file_check_units(region->file, "gmem_pager_add_region", region->off, region->len);
	if (!err && (region->hva & (region->file->page_size - 1)))
		err = gmem_err(-EINVAL, "gmem_pager_add_region: hva 0x%llx: not a multiple of the file's pages of %llu",
			       (unsigned long long)region->hva, (unsigned long long)region->file->page_size);
	return err;
}

/*
 * Is it the descriptor of that region? A number says nothing once the caller has closed it, and every userfault
 * descriptor has an inode of its own; on kernels where they share the anonymous one the number must do, so it must
 * stay open as long as its regions are added to.
 */
static bool same_uffd(const struct gmem_pager_region *old, const struct gmem_pager_region *new,
		      const struct stat *shared)
{
	if (old->uffd_dev != new->uffd_dev || old->uffd_ino != new->uffd_ino)
		return false;
	return shared->st_dev != new->uffd_dev || shared->st_ino != new->uffd_ino ||
	       old->caller_uffd == new->caller_uffd;
}

static bool inside(const struct gmem_pager_region *a, const struct gmem_pager_region *b)
{
	return a->hva >= b->hva && a->hva + a->len <= b->hva + b->len;
}

/* Mapped a second time in part, as it was: either serves it. */
static bool same_bytes(const struct gmem_pager_region *a, const struct gmem_pager_region *b)
{
	return a->file == b->file && a->source == b->source && a->off - a->hva == b->off - b->hva &&
	       a->source_off - a->hva == b->source_off - b->hva;
}

/* Caller holds pager->m. */
static int dup_uffd(struct gmem_pager *pager, const struct gmem_region *region, struct gmem_pager_region *new)
{
	struct epoll_event ev = { .events = EPOLLIN };
	uint32_t n = atomic_load(&pager->nregions);
	struct stat st, shared;
	int fd;

	if (fstat(region->uffd, &st) || fstat(pager->epoll, &shared))
		return gmem_err_sys(-errno, "gmem_pager_add_region: uffd %d", region->uffd);
	new->uffd_dev = st.st_dev;
	new->uffd_ino = st.st_ino;
	for (uint32_t i = 0; i < n; i++) {
		const struct gmem_pager_region *old = pager->regions[i];

		if (!same_uffd(old, new, &shared))
			continue;
		new->uffd = old->uffd;
		if (!atomic_load(&old->gone) && gmem_range_overlaps(old->hva, old->len, new->hva, new->len) &&
		    !inside(old, new) && !same_bytes(old, new))
			return gmem_err(-EEXIST, "gmem_pager_add_region: hva 0x%llx: overlaps region %u",
					(unsigned long long)region->hva, i);
	}
	if (new->uffd >= 0) {
		/* An address has one mapping: what was there before is not any more. */
		for (uint32_t i = 0; i < n; i++)
			if (pager->regions[i]->uffd == new->uffd && inside(pager->regions[i], new))
				atomic_store(&pager->regions[i]->gone, true);
		return 0;
	}
	fd = fcntl(region->uffd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return gmem_err_sys(-errno, "gmem_pager_add_region: uffd %d", region->uffd);
	ev.data.fd = fd;
	/* A descriptor that blocks is never ready to poll(2), and would hold the reader up. */
	if (fcntl(fd, F_SETFL, O_NONBLOCK) || epoll_ctl(pager->epoll, EPOLL_CTL_ADD, fd, &ev)) {
		int err = gmem_err_sys(-errno, "gmem_pager_add_region: epoll");

		close(fd);
		return err;
	}
	new->uffd = fd;
	return 0;
}

static int add_region(struct gmem_pager *pager, const struct gmem_region *region, struct gmem_view *view)
{
	struct gmem_pager_region *new;
	struct gmem_supply *supply;
	uint32_t n;
	int err = check_region(region);

	if (err)
		return err;
	if (!region->file->ops->can_userfault(region->file, region->off, region->len))
		return gmem_err(-EINVAL, "gmem_pager_add_region: this file takes no userfaults");
	new = calloc(1, sizeof(*new));
	supply = calloc(1, sizeof(*supply));
	if (!new || !supply) {
		free(new);
		free(supply);
		return gmem_err_sys(-ENOMEM, "gmem_pager_add_region");
	}
	*supply = (struct gmem_supply){
		.off = region->off,
		.len = region->len,
		.bring_in = gmem_pager_bring_in,
		.opaque = new,
	};
	new->pager = pager;
	new->file = region->file;
	new->hva = region->hva;
	new->off = region->off;
	new->len = region->len;
	new->source_off = region->source_off;
	new->caller_uffd = region->uffd;
	new->supply = supply;
	new->view = view;
	new->uffd = -1;
	pthread_mutex_lock(&pager->m);
	n = atomic_load(&pager->nregions);
	new->number = n;
	err = n < GMEM_PAGER_MAX_REGIONS ? dup_uffd(pager, region, new) :
					   gmem_err(-ENOSPC, "gmem_pager_add_region: %u regions are the most", n);
	if (!err) {
		new->source = gmem_source_ref(region->source);
		gmem_file_get(region->file);
		pager->regions[n] = new;
		/* Pairs with the acquire in the reader's find(). */
		atomic_store_explicit(&pager->nregions, n + 1, memory_order_release);
	}
	pthread_mutex_unlock(&pager->m);
	if (err) {
		free(supply);
		free(new);
		return err;
	}
	/* Only now that nothing can fail: guests may ask at once. */
	gmem_file_supply(region->file, supply);
	/*
	 * Faults read before the region was known, by us or by a server that died, are not told again unless their
	 * touchers wake.
	 */
	gmem_sys_uffd_wake(new->uffd, new->hva, new->len);
	return (int)n;
}

int gmem_pager_add_region(struct gmem_pager *pager, const struct gmem_region *region)
{
	return add_region(pager, region, NULL);
}

/* One descriptor serves all views of this process. Caller holds pager->m. */
static int view_uffd(struct gmem_pager *pager)
{
	uint64_t features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM;
	bool user_mode_only = false;
	int fd;

	if (pager->view_uffd >= 0)
		return pager->view_uffd;
	if (pager->opts.flags & GMEM_PAGER_REMOVE_DISCARDS)
		features |= UFFD_FEATURE_EVENT_REMOVE;
	fd = gmem_sys_uffd_open(features, &user_mode_only);
	if (fd < 0)
		return gmem_err_sys(fd, "gmem_pager_add_view: userfaultfd (see gmem info)");
	atomic_store(&pager->c.user_mode_only, user_mode_only);
	pager->view_uffd = fd;
	return fd;
}

int gmem_pager_add_view(struct gmem_pager *pager, struct gmem_view *view, struct gmem_source *source,
			uint64_t source_off)
{
	struct gmem_region region = {
		.size = sizeof(region),
		.file = view->file,
		.hva = (uint64_t)(uintptr_t)view->addr,
		.off = view->off,
		.len = view->len,
		.source = source,
		.source_off = source_off,
	};
	struct gmem_serving serving = {
		.who = "gmem_pager_add_view",
		.use = pager->opts.flags & GMEM_PAGER_REMOVE_DISCARDS ? GMEM_VIEW_BALLOONED : GMEM_VIEW_SERVED,
	};
	struct gmem_rwlock *lock = &view->file->invalidate_lock;
	int err;

	pthread_mutex_lock(&pager->m);
	serving.uffd = view_uffd(pager);
	pthread_mutex_unlock(&pager->m);
	if (serving.uffd < 0)
		return serving.uffd;
	gmem_rwlock_lock(lock);
	err = gmem_serve_view(view, &serving);
	gmem_rwlock_unlock(lock);
	if (err)
		return err;
	region.uffd = serving.uffd;
	err = add_region(pager, &region, view);
	if (err < 0) {
		gmem_rwlock_lock(lock);
		gmem_unserve_view(view, &serving);
		gmem_rwlock_unlock(lock);
	}
	return err;
}

int gmem_pager_stats(const struct gmem_pager *pager, struct gmem_pager_stats *stats)
{
	const struct gmem_pager_counters *c = &pager->c;

	if (stats->size < sizeof(*stats))
		return gmem_err(-EINVAL, "gmem_pager_stats: size %zu: expected %zu", stats->size, sizeof(*stats));
	*stats = (struct gmem_pager_stats){
		.size = sizeof(*stats),
		.missing = c->missing,
		.minor = c->minor,
		.removes = c->removes,
		.demand_pages = c->demand_pages,
		.fill_pages = c->fill_pages,
		.zero_pages = c->zero_pages,
		.read_bytes = c->read_bytes,
		.retries = c->retries,
		.errors = c->errors,
		.poisoned = c->poisoned,
		.latency_max_ns = c->latency_max_ns,
		.latency_sum_ns = c->latency_sum_ns,
		.latency_count = c->latency_count,
		.user_mode_only = c->user_mode_only,
	};
	for (unsigned int i = 0; i < GMEM_LATENCY_BUCKETS; i++)
		stats->latency[i] = c->latency[i];
	return 0;
}
