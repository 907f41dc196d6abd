/* SPDX-License-Identifier: MIT */
/* The time since some moment before the program began, which nobody sets. Any thread. */
#ifndef GMEM_BASE_CLOCK_H
#define GMEM_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t gmem_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline uint64_t gmem_now_ms(void)
{
	return gmem_now_ns() / 1000000u;
}

#endif
