/* SPDX-License-Identifier: MIT */
/* Faults of guests: their threads touch a page through a second stage, and wait here until it has been brought in. */
#include <errno.h>
#include <stdlib.h>

#include "base/cond.h"
#include "base/err.h"
#include "fault/pager.h"

#define LOOK_NS 20000000 /* how often a wait looks whether it was cancelled */

/* Caller holds pager->m. */
static void put(struct gmem_guest_wait *guest)
{
	if (!--guest->refs)
		free(guest);
}

void gmem_guest_done_locked(struct gmem_pager *pager, struct gmem_guest_wait *guest, int err)
{
	guest->done = true;
	guest->err = err;
	put(guest);
	pthread_cond_broadcast(&pager->served);
}

void gmem_guest_done(struct gmem_pager *pager, struct gmem_guest_wait *guest, int err)
{
	pthread_mutex_lock(&pager->m);
	gmem_guest_done_locked(pager, guest, err);
	pthread_mutex_unlock(&pager->m);
}

/* Caller holds pager->m. */
static int wait_for(struct gmem_pager *pager, const struct gmem_guest_wait *guest, struct gmem_wait *wait)
{
	while (!guest->done) {
		if (atomic_load(&pager->stopping))
			return -ESHUTDOWN;
		if (gmem_wait_over(wait))
			return -EINTR;
		gmem_cond_wait_for(&pager->served, &pager->m, LOOK_NS);
	}
	return guest->err;
}

int gmem_pager_bring_in(void *opaque, struct gmem_file *file, uint64_t off, struct gmem_wait *wait)
{
	struct gmem_pager_region *region = opaque;
	struct gmem_pager *pager = region->pager;
	struct gmem_guest_wait *guest = calloc(1, sizeof(*guest));
	struct gmem_fault fault = { .region = region, .off = off, .read_ns = gmem_now_ns(), .guest = guest };
	int err;

	(void)file;
	if (!guest)
		return gmem_err_sys(-ENOMEM, "pager: a guest's fault");
	guest->refs = 2;
	atomic_fetch_add(&pager->pending, 1);
	gmem_pager_enqueue(pager, &fault, 1);
	pthread_mutex_lock(&pager->m);
	err = wait_for(pager, guest, wait);
	put(guest);
	pthread_mutex_unlock(&pager->m);
	switch (err) {
	case -ESHUTDOWN:
		return gmem_err(-EIO, "page at 0x%llx: its pager is being freed", (unsigned long long)off);
	case -ESRCH:
		return gmem_err(-EIO, "page at 0x%llx: the mapping it was to be served through is gone",
				(unsigned long long)off);
	case 0:
		return 0;
	default:
		return gmem_err_sys(err, "page at 0x%llx", (unsigned long long)off);
	}
}
