/* SPDX-License-Identifier: MIT */
/*
 * Epochs: readers that look at shared structures without a lock, and writers that wait until no reader can still use
 * what they have unlinked.
 *
 * Enters: a reader, once on the way in and once on the way out; never blocks in between, takes no lock, touches no
 * memory that could be lazily served. Leaves: gmem_epoch_wait(), when every reader that was inside at its call is out.
 * Readers belong to their owners, one thread at a time each. Lock: `m`, a leaf, guards the list of readers.
 *
 * What a reader loads after gmem_epoch_enter() and what a writer stores before gmem_epoch_wait() has to be
 * sequentially consistent: either the reader sees the store, or the writer sees the reader.
 */
#ifndef GMEM_BASE_EPOCH_H
#define GMEM_BASE_EPOCH_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

struct gmem_epoch_reader {
	_Atomic uint64_t since; /* the epoch it came in with, 0: outside */
	struct gmem_epoch_reader *next;
};

struct gmem_epoch {
	_Atomic uint64_t now; /* from 1 on */
	pthread_mutex_t m;
	struct gmem_epoch_reader *readers;
};

void gmem_epoch_init(struct gmem_epoch *e);
void gmem_epoch_destroy(struct gmem_epoch *e); /* no reader is left */

void gmem_epoch_add(struct gmem_epoch *e, struct gmem_epoch_reader *r);
void gmem_epoch_del(struct gmem_epoch *e, struct gmem_epoch_reader *r); /* outside */

static inline void gmem_epoch_enter(struct gmem_epoch *e, struct gmem_epoch_reader *r)
{
	atomic_store(&r->since, atomic_load(&e->now));
}

static inline void gmem_epoch_leave(struct gmem_epoch_reader *r)
{
	/* Pairs with the load in gmem_epoch_wait(): what was read was read before. */
	atomic_store_explicit(&r->since, 0, memory_order_release);
}

/* Not from inside. */
void gmem_epoch_wait(struct gmem_epoch *e);

#endif
