/* SPDX-License-Identifier: MIT */
/* The faults that wait for a resolver: a ring that grows. */
#include <stdlib.h>
#include <time.h>

#include "fault/pager.h"
#include "sys/uffd.h"

static bool grow(struct gmem_pager *pager, uint32_t want)
{
	uint32_t size = pager->queue_size ? pager->queue_size : 256;
	struct gmem_fault *queue;

	while (size < want)
		size *= 2;
	queue = calloc(size, sizeof(*queue));
	if (!queue)
		return false;
	for (uint32_t i = 0; i < pager->queue_used; i++)
		queue[i] = pager->queue[(pager->queue_first + i) % pager->queue_size];
	free(pager->queue);
	pager->queue = queue;
	pager->queue_size = size;
	pager->queue_first = 0;
	return true;
}

/* No memory to remember it in: wake the toucher, and the kernel will tell us again. Caller holds pager->m. */
static void turn_away(struct gmem_pager *pager, const struct gmem_fault *f)
{
	const struct gmem_pager_region *region = f->region;

	atomic_fetch_sub(&pager->pending, 1);
	if (!f->guest) {
		gmem_sys_uffd_wake(region->uffd, region->hva + (f->off - region->off), GMEM_PAGE_SIZE);
		return;
	}
	gmem_guest_done_locked(pager, f->guest, -ENOMEM);
}

void gmem_pager_enqueue(struct gmem_pager *pager, const struct gmem_fault *faults, uint32_t n)
{
	pthread_mutex_lock(&pager->m);
	for (uint32_t i = 0; i < n; i++) {
		if (pager->queue_used == pager->queue_size && !grow(pager, pager->queue_used + 1)) {
			turn_away(pager, &faults[i]);
			continue;
		}
		pager->queue[(pager->queue_first + pager->queue_used++) % pager->queue_size] = faults[i];
	}
	if (n == 1)
		pthread_cond_signal(&pager->queued);
	else
		pthread_cond_broadcast(&pager->queued);
	pthread_mutex_unlock(&pager->m);
}

/*
 * Takes the first fault whose time has come. False if there is none; *ret_wake is then when the next is due, 0 if
 * none is queued. Those that are to be tried again are few: nearly always it is the first one.
 */
static bool take_due(struct gmem_pager *pager, struct gmem_fault *ret, uint64_t *ret_wake)
{
	uint64_t now = 0;

	*ret_wake = 0;
	for (uint32_t i = 0; i < pager->queue_used; i++) {
		struct gmem_fault *f = &pager->queue[(pager->queue_first + i) % pager->queue_size];

		if (f->not_before_ns && !now)
			now = gmem_now_ns();
		if (f->not_before_ns > now) {
			if (!*ret_wake || f->not_before_ns < *ret_wake)
				*ret_wake = f->not_before_ns;
			continue;
		}
		*ret = *f;
		*f = pager->queue[pager->queue_first];
		pager->queue_first = (pager->queue_first + 1) % pager->queue_size;
		pager->queue_used--;
		return true;
	}
	return false;
}

bool gmem_pager_dequeue(struct gmem_pager *pager, struct gmem_fault *ret)
{
	bool got = false;
	uint64_t wake;

	pthread_mutex_lock(&pager->m);
	while (!atomic_load(&pager->stopping) && !(got = take_due(pager, ret, &wake))) {
		const struct timespec until = { .tv_sec = (time_t)(wake / 1000000000),
						.tv_nsec = (long)(wake % 1000000000) };

		if (wake)
			pthread_cond_timedwait(&pager->queued, &pager->m, &until);
		else
			pthread_cond_wait(&pager->queued, &pager->m);
	}
	pthread_mutex_unlock(&pager->m);
	return got;
}
