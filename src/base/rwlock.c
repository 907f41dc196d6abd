/* SPDX-License-Identifier: MIT */
#include "base/rwlock.h"

#define READER 0x100u
#define PRESENT 0x2u /* a writer holds or awaits the lock */
#define PHASE 0x1u /* whose parity tells two writers in a row apart */
#define WRITER (PRESENT | PHASE)

#define LOOKS 64 /* before a sleep; those who hold the lock for long are those who sleep in it */

void gmem_rwlock_init(struct gmem_rwlock *l, enum gmem_lock_class cls)
{
	*l = (struct gmem_rwlock){ .cls = cls };
	pthread_mutex_init(&l->m, NULL);
	pthread_cond_init(&l->changed, NULL);
}

void gmem_rwlock_destroy(struct gmem_rwlock *l)
{
	pthread_cond_destroy(&l->changed);
	pthread_mutex_destroy(&l->m);
}

/* Is (word & mask) == value, or with `differs`, is it not? */
static bool reached(_Atomic uint32_t *word, uint32_t mask, uint32_t value, bool differs)
{
	return ((atomic_load(word) & mask) == value) != differs;
}

/*
 * Waits. The load above and the addition to `sleepers` are sequentially consistent, and so are the change of the word
 * and the look at `sleepers` of those who wake: one of the two sees the other.
 */
static void wait_until(struct gmem_rwlock *l, _Atomic uint32_t *word, uint32_t mask, uint32_t value, bool differs)
{
	for (int i = 0; i < LOOKS; i++)
		if (reached(word, mask, value, differs))
			return;
	atomic_fetch_add(&l->sleepers, 1);
	pthread_mutex_lock(&l->m);
	while (!reached(word, mask, value, differs))
		pthread_cond_wait(&l->changed, &l->m);
	pthread_mutex_unlock(&l->m);
	atomic_fetch_sub(&l->sleepers, 1);
}

static void wake(struct gmem_rwlock *l)
{
	if (!atomic_load(&l->sleepers))
		return;
	pthread_mutex_lock(&l->m);
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->m);
}

void gmem_rwlock_lock_shared(struct gmem_rwlock *l)
{
	uint32_t writer;

	gmem_lockcheck_acquire(l->cls, l);
	writer = atomic_fetch_add(&l->readers_in, READER) & WRITER;
	/* The end of this writer's phase lets us in, also if another writer waits already: its bits differ. */
	if (writer)
		wait_until(l, &l->readers_in, WRITER, writer, true);
}

bool gmem_rwlock_trylock_shared(struct gmem_rwlock *l)
{
	uint32_t in = atomic_load(&l->readers_in);

	do {
		if (in & WRITER)
			return false;
	} while (!atomic_compare_exchange_weak(&l->readers_in, &in, in + READER));
	gmem_lockcheck_acquire(l->cls, l);
	return true;
}

void gmem_rwlock_unlock_shared(struct gmem_rwlock *l)
{
	atomic_fetch_add(&l->readers_out, READER);
	wake(l);
	gmem_lockcheck_release(l->cls, l);
}

void gmem_rwlock_lock(struct gmem_rwlock *l)
{
	uint32_t ticket, readers;

	gmem_lockcheck_acquire(l->cls, l);
	ticket = atomic_fetch_add(&l->writers_in, 1);
	wait_until(l, &l->writers_out, ~0u, ticket, false);
	readers = atomic_fetch_add(&l->readers_in, PRESENT | (ticket & PHASE));
	wait_until(l, &l->readers_out, ~0u, readers & ~(READER - 1), false);
}

void gmem_rwlock_unlock(struct gmem_rwlock *l)
{
	/* Readers first: those who came in this phase go before the next writer. */
	atomic_fetch_and(&l->readers_in, ~WRITER);
	atomic_fetch_add(&l->writers_out, 1);
	wake(l);
	gmem_lockcheck_release(l->cls, l);
}
