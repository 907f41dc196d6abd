/* SPDX-License-Identifier: MIT */
/*
 * A phase-fair reader-writer lock that sleeps: a waiting writer stops new readers, and the readers that arrived
 * meanwhile all go before the next writer, so neither side starves. Not recursive. Enters and leaves: the lock
 * checker's class given at init.
 *
 * The ticket lock PF-T of Brandenburg and Anderson, "Spin-based reader-writer synchronization for multiprocessor
 * real-time systems" (2010), whose waits sleep after a while. Uncontended, each call is one or two atomic additions.
 */
#ifndef GMEM_BASE_RWLOCK_H
#define GMEM_BASE_RWLOCK_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/lockcheck.h"

struct gmem_rwlock {
	_Atomic uint32_t readers_in; /* readers that came << 8; the low bits: a writer holds or awaits the lock */
	_Atomic uint32_t readers_out; /* readers that went << 8 */
	_Atomic uint32_t writers_in, writers_out; /* tickets */
	_Atomic uint32_t sleepers; /* threads that may be asleep on `changed` */
	pthread_mutex_t m; /* guards nothing but the sleep itself */
	pthread_cond_t changed;
	enum gmem_lock_class cls;
};

void gmem_rwlock_init(struct gmem_rwlock *l, enum gmem_lock_class cls);
void gmem_rwlock_destroy(struct gmem_rwlock *l);

void gmem_rwlock_lock_shared(struct gmem_rwlock *l);
/* False at once if a writer holds or awaits the lock. Never sleeps. */
bool gmem_rwlock_trylock_shared(struct gmem_rwlock *l);
void gmem_rwlock_unlock_shared(struct gmem_rwlock *l);

void gmem_rwlock_lock(struct gmem_rwlock *l);
void gmem_rwlock_unlock(struct gmem_rwlock *l);

#endif
