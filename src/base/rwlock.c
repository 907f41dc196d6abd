/* SPDX-License-Identifier: MIT */
#include "base/rwlock.h"

void gmem_rwlock_init(struct gmem_rwlock *l, enum gmem_lock_class cls)
{
	*l = (struct gmem_rwlock){ .cls = cls };
	pthread_mutex_init(&l->m, NULL);
	pthread_cond_init(&l->readers, NULL);
	pthread_cond_init(&l->writers, NULL);
}

void gmem_rwlock_destroy(struct gmem_rwlock *l)
{
	pthread_cond_destroy(&l->writers);
	pthread_cond_destroy(&l->readers);
	pthread_mutex_destroy(&l->m);
}

void gmem_rwlock_lock_shared(struct gmem_rwlock *l)
{
	gmem_lockcheck_acquire(l->cls, l);
	pthread_mutex_lock(&l->m);
	if (l->writing || l->writers_waiting) {
		unsigned long phase = l->phase;

		/* The writer that opens the next phase counts us in: nothing to recheck but the phase. */
		l->readers_waiting++;
		while (l->phase == phase)
			pthread_cond_wait(&l->readers, &l->m);
	} else {
		l->reading++;
	}
	pthread_mutex_unlock(&l->m);
}

bool gmem_rwlock_trylock_shared(struct gmem_rwlock *l)
{
	bool got = false;

	if (pthread_mutex_trylock(&l->m))
		return false;
	if (!l->writing && !l->writers_waiting) {
		l->reading++;
		got = true;
	}
	pthread_mutex_unlock(&l->m);
	if (got)
		gmem_lockcheck_acquire(l->cls, l);
	return got;
}

void gmem_rwlock_unlock_shared(struct gmem_rwlock *l)
{
	pthread_mutex_lock(&l->m);
	if (--l->reading == 0 && l->writers_waiting)
		pthread_cond_signal(&l->writers);
	pthread_mutex_unlock(&l->m);
	gmem_lockcheck_release(l->cls, l);
}

void gmem_rwlock_lock(struct gmem_rwlock *l)
{
	gmem_lockcheck_acquire(l->cls, l);
	pthread_mutex_lock(&l->m);
	l->writers_waiting++;
	while (l->writing || l->reading)
		pthread_cond_wait(&l->writers, &l->m);
	l->writers_waiting--;
	l->writing = true;
	pthread_mutex_unlock(&l->m);
}

void gmem_rwlock_unlock(struct gmem_rwlock *l)
{
	pthread_mutex_lock(&l->m);
	l->writing = false;
	if (l->readers_waiting) {
		l->reading += l->readers_waiting;
		l->readers_waiting = 0;
		l->phase++;
		pthread_cond_broadcast(&l->readers);
	} else if (l->writers_waiting) {
		pthread_cond_signal(&l->writers);
	}
	pthread_mutex_unlock(&l->m);
	gmem_lockcheck_release(l->cls, l);
}
