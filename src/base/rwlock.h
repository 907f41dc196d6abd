/* SPDX-License-Identifier: MIT */
/*
 * A phase-fair reader-writer lock that sleeps: a waiting writer stops new readers, and the readers that arrived
 * meanwhile all go before the next writer, so neither side starves. Not recursive. Enters and leaves: the lock
 * checker's class given at init.
 */
#ifndef GMEM_BASE_RWLOCK_H
#define GMEM_BASE_RWLOCK_H

#include <pthread.h>
#include <stdbool.h>

#include "base/lockcheck.h"

struct gmem_rwlock {
	pthread_mutex_t m; /* guards every field below */
	pthread_cond_t readers; /* a read phase began */
	pthread_cond_t writers; /* the lock may be free for a writer */
	unsigned int reading; /* readers inside */
	unsigned int readers_waiting;
	unsigned int writers_waiting;
	unsigned long phase; /* counts read phases */
	bool writing;
	enum gmem_lock_class cls;
};

void gmem_rwlock_init(struct gmem_rwlock *l, enum gmem_lock_class cls);
void gmem_rwlock_destroy(struct gmem_rwlock *l);

void gmem_rwlock_lock_shared(struct gmem_rwlock *l);
/* False at once if a writer holds or awaits the lock, or another thread is just changing it. Never sleeps. */
bool gmem_rwlock_trylock_shared(struct gmem_rwlock *l);
void gmem_rwlock_unlock_shared(struct gmem_rwlock *l);

void gmem_rwlock_lock(struct gmem_rwlock *l);
void gmem_rwlock_unlock(struct gmem_rwlock *l);

#endif
