/* SPDX-License-Identifier: MIT */
#include "fault/pager.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/cond.h"
#include "base/err.h"
#include "base/opts.h"
#include "fault/resolve.h"
#include "fault/serve_view.h"
#include "fault/trace.h"
#include "sys/process.h"
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

/* A source's failure, and for long enough: what passes by itself in microseconds does not count. */
static bool out_of_patience(const struct gmem_pager *pager, const struct gmem_fault *f, int err)
{
	return pager->opts.patience_ms && pager->opts.policy != GMEM_PAGER_WAIT && !f->given_up && err != -EAGAIN &&
	       err != -EBUSY && gmem_now_ns() - f->read_ns > (uint64_t)pager->opts.patience_ms * 1000000;
}

/* Poisons what cannot be had: the page, or of a huge one the first that is absent, by which all of it is lost. */
static int poison(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t off, int error)
{
	uint64_t unit = region->file->page_size, base = gmem_file_unit_off(region->file, off);
	int err;

	for (off = unit > GMEM_PAGE_SIZE ? base : off; off < base + unit - GMEM_PAGE_SIZE; off += GMEM_PAGE_SIZE)
		if (gmem_resolve_absent(region, off))
			break;
	err = gmem_resolve_lose(r, region, off, error);
	return err || unit == GMEM_PAGE_SIZE ? err : gmem_resolve_fault(r, region, base);
}

/* The thread's error text is still the failure's. */
static int give_up(struct gmem_resolver *r, struct gmem_fault *f, int err)
{
	struct gmem_pager_region *region = f->region;
	char text[640];

	snprintf(text, sizeof(text), "no answer within %u ms: %s", r->pager->opts.patience_ms, gmem_last_error());
	gmem_pager_count(&r->pager->c.gave_up, 1);
	gmem_pager_report(r->pager, GMEM_PAGER_GAVE_UP, err, text, region, f->off, region->file->page_size);
	if (r->pager->opts.policy == GMEM_PAGER_POISON)
		return poison(r, region, f->off, err);
	/* Its end comes by itself; until then the fault is tried again as before. */
	f->given_up = true;
	if (region->pidfd >= 0)
		(void)gmem_pidfd_kill(region->pidfd);
	return err;
}

static void *resolver_main(void *arg)
{
	struct gmem_resolver *r = arg;
	struct gmem_pager *pager = r->pager;
	struct gmem_fault f;

	while (gmem_pager_dequeue(pager, &f)) {
		int err = gmem_resolve_fault(r, f.region, f.off);

		if (err && err != -ESRCH && out_of_patience(pager, &f, err))
			err = give_up(r, &f, err);
		if (err && err != -ESRCH) {
			atomic_fetch_add_explicit(&pager->c.retries, 1, memory_order_relaxed);
			/* The thread does not wait with it: other pages may well be there. */
			f.not_before_ns = gmem_now_ns() + back_off_ns(err, f.tries++);
			gmem_pager_enqueue(pager, &f, 1);
			continue;
		}
		if (!err) {
			gmem_pager_count_latency(pager, gmem_now_ns() - f.read_ns);
			gmem_trace_fault(r, &f);
		}
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
	if ((unsigned int)opts->policy > GMEM_PAGER_KILL)
		return gmem_err(-EINVAL, "gmem_pager_create: policy %d: unknown", (int)opts->policy);
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
	gmem_trace_end(pager);
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
		/* The supply is the file's by now. */
		pager->regions[i]->supply = NULL;
		gmem_region_free(pager->regions[i]);
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
	err = gmem_pager_add(pager, &region, 1, view);
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
		.replay_pages = c->replay_pages,
		.zero_pages = c->zero_pages,
		.read_bytes = c->read_bytes,
		.retries = c->retries,
		.errors = c->errors,
		.poisoned = c->poisoned,
		.latency_max_ns = c->latency_max_ns,
		.latency_sum_ns = c->latency_sum_ns,
		.latency_count = c->latency_count,
		.user_mode_only = c->user_mode_only,
		.gave_up = c->gave_up,
		.pending = atomic_load(&pager->pending),
	};
	for (unsigned int i = 0; i < GMEM_LATENCY_BUCKETS; i++)
		stats->latency[i] = c->latency[i];
	return 0;
}
