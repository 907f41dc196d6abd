/* SPDX-License-Identifier: MIT */
#include "base/epoch.h"

#include <sched.h>
#include <time.h>

#define LOOKS 100

void gmem_epoch_init(struct gmem_epoch *e)
{
	*e = (struct gmem_epoch){ .now = 1 };
	pthread_mutex_init(&e->m, NULL);
}

void gmem_epoch_destroy(struct gmem_epoch *e)
{
	pthread_mutex_destroy(&e->m);
}

void gmem_epoch_add(struct gmem_epoch *e, struct gmem_epoch_reader *r)
{
	pthread_mutex_lock(&e->m);
	atomic_store(&r->since, 0);
	r->next = e->readers;
	e->readers = r;
	pthread_mutex_unlock(&e->m);
}

void gmem_epoch_del(struct gmem_epoch *e, struct gmem_epoch_reader *r)
{
	struct gmem_epoch_reader **at = &e->readers;

	pthread_mutex_lock(&e->m);
	while (*at != r)
		at = &(*at)->next;
	*at = r->next;
	pthread_mutex_unlock(&e->m);
}

/* Readers are inside for the time of a copy; one that is not running now may be there for a time slice. */
static void wait_for(const struct gmem_epoch_reader *r, uint64_t epoch)
{
	const struct timespec pause = { .tv_nsec = 50000 };

	for (int i = 0;; i++) {
		uint64_t since = atomic_load(&r->since);

		if (!since || since >= epoch)
			return;
		if (i < LOOKS)
			sched_yield();
		else
			nanosleep(&pause, NULL);
	}
}

void gmem_epoch_wait(struct gmem_epoch *e)
{
	uint64_t epoch = atomic_fetch_add(&e->now, 1) + 1;

	pthread_mutex_lock(&e->m);
	for (struct gmem_epoch_reader *r = e->readers; r; r = r->next)
		wait_for(r, epoch);
	pthread_mutex_unlock(&e->m);
}
