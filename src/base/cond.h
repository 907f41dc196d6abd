/* SPDX-License-Identifier: MIT */
/* Condition variables whose timed waits go by CLOCK_MONOTONIC: setting the clock must not end or prolong a wait. */
#ifndef GMEM_BASE_COND_H
#define GMEM_BASE_COND_H

#include <pthread.h>
#include <stdint.h>
#include <time.h>

static inline void gmem_cond_init(pthread_cond_t *cond)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(cond, &attr);
	pthread_condattr_destroy(&attr);
}

/* Waits no longer than `ns`. `m` is held, as for pthread_cond_wait(3). */
static inline void gmem_cond_wait_for(pthread_cond_t *cond, pthread_mutex_t *m, uint64_t ns)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	ns += (uint64_t)until.tv_nsec;
	until.tv_sec += (time_t)(ns / 1000000000u);
	until.tv_nsec = (long)(ns % 1000000000u);
	pthread_cond_timedwait(cond, m, &until);
}

#endif
