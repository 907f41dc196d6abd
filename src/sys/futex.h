/* SPDX-License-Identifier: MIT */
/*
 * futex(2) on memory that processes share. Enters: a word. Leaves: negative errno. Owns nothing, takes no lock; any
 * thread.
 */
#ifndef GMEM_SYS_FUTEX_H
#define GMEM_SYS_FUTEX_H

#include <stdatomic.h>
#include <stdint.h>

#define GMEM_FUTEX_FOR_EVER UINT64_MAX

/*
 * Sleeps while the word has this value, until it is woken or `ns` have passed. 0: woken, or woken by nothing; -EAGAIN:
 * the word has another value; -ETIMEDOUT; -EINTR.
 */
int gmem_futex_wait(_Atomic uint32_t *word, uint32_t value, uint64_t ns);
/* The clock of those waits, CLOCK_MONOTONIC, in nanoseconds. */
uint64_t gmem_futex_now(void);
/* Wakes all who sleep at it. */
void gmem_futex_wake(_Atomic uint32_t *word);

#endif
