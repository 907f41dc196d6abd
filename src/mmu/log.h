/* SPDX-License-Identifier: MIT */
/*
 * Logs of a slot: which of its pages guests wrote to, and touched.
 *
 * Enters: pages, from faults before they are mapped, and from accesses to the caller's memory after they were made.
 * Leaves: pages, once each where they are cleared; whoever clears them has them mapped no more then. So while a log is
 * kept, what is mapped is in it, and what is mapped writable is in the log of writes. What guests on KVM do is
 * elsewhere, and added when somebody looks: see vm/log.c.
 *
 * Which logs a slot keeps is changed under slots_lock by publishing another one; the old one goes after a wait for
 * readers. Bits are set in a section, or while the caller's memory is in use, and cleared under slots_lock. To set one
 * is a full barrier: see gmem_log_take().
 */
#ifndef GMEM_MMU_LOG_H
#define GMEM_MMU_LOG_H

#include "gmem.h"
#include "mmu/slot.h"

#define GMEM_LOG_ALL (GMEM_LOG_DIRTY | GMEM_LOG_ACCESSED)
#define GMEM_LOG_COUNT 2u

struct gmem_log {
	uint32_t logs; /* GMEM_LOG_*: those that are kept */
	_Atomic uint64_t *bits[GMEM_LOG_COUNT]; /* a bit a page; NULL: not kept. A log that is kept on hands it on */
};

static inline uint64_t gmem_log_words(uint64_t npages)
{
	return (npages + 63) / 64;
}

/* slots_lock held, or as whoever notes. */
static inline uint32_t gmem_slot_logs(const struct gmem_slot *s)
{
	const struct gmem_log *log = atomic_load(&s->log);

	return log ? log->logs : 0;
}

/* In a section in which the slot was found, with `lock` held, or while its memory is in use. */
static inline void gmem_slot_note(const struct gmem_slot *s, uint64_t gfn, bool written)
{
	struct gmem_log *log = atomic_load(&s->log);
	uint64_t page = gfn - s->gfn;

	if (!log)
		return;
	if (written && log->bits[0])
		atomic_fetch_or(&log->bits[0][page / 64], 1ull << page % 64);
	if (log->bits[1])
		atomic_fetch_or(&log->bits[1][page / 64], 1ull << page % 64);
}

/* The bits of that log, one of GMEM_LOG_*. */
static inline _Atomic uint64_t *gmem_log_bits(const struct gmem_log *log, uint32_t which)
{
	return log ? log->bits[which == GMEM_LOG_ACCESSED] : NULL;
}

/* What of `wanted`, bits of the pages from `page` on, is set; if told so, it is not any more. No bit past the end. */
uint64_t gmem_log_take(_Atomic uint64_t *bits, uint64_t page, uint64_t wanted, bool clear);

/* One that keeps those logs, with the bits of `old`, which may be NULL, where that keeps them too. NULL: no memory. */
struct gmem_log *gmem_log_new(const struct gmem_log *old, uint32_t logs, uint64_t npages);
/* Nobody sees it any more; what `but` has of it stays. Either may be NULL. */
void gmem_log_free(struct gmem_log *log, const struct gmem_log *but);

#endif
