/* SPDX-License-Identifier: MIT */
/* Between the files that resolve: steps of a fault that all kinds of memory have. Threads and locks: see pager.h. */
#ifndef GMEM_FAULT_RESOLVE_H
#define GMEM_FAULT_RESOLVE_H

#include "fault/pager.h"

/* Neither in place nor lost, whether or not somebody is at it. */
bool gmem_resolve_absent(const struct gmem_pager_region *region, uint64_t off);
bool gmem_resolve_known_zero(const struct gmem_resolver *r, const struct gmem_pager_region *region, uint64_t off);
/* The source's bytes of [from, to). No lock held. */
int gmem_resolve_fetch(struct gmem_resolver *r, const struct gmem_pager_region *region, uint64_t from, uint64_t to,
		       void *into);
/* False: the reader, and somebody has the file's lock. */
bool gmem_resolve_lock_file(struct gmem_resolver *r, struct gmem_file *file);
/* The bytes will not come, however often they are asked for. Anything else another attempt may not meet. */
bool gmem_resolve_final(int err);
/* Is that an answer of gmem_resolve_fault(), or something to be reported? */
bool gmem_resolve_expected(int err);
/* What gmem_resolve_fault() is to say after a step that failed; with no lock held. */
int gmem_resolve_failed(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t off, int err);
int gmem_resolve_gone(struct gmem_resolver *r, struct gmem_pager_region *region);
/* Poisons a page whose bytes the source cannot give, ever. The thread's error text says why. */
int gmem_resolve_lose(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t off, int error);

/* ---- around.c */

/*
 * A toucher that goes on where the last window ended gets a window twice as wide; anyone else gets one page. A few
 * touchers are told apart; *slot says which this is, for gmem_around_done(). Races between threads lose a window's
 * width, nothing else.
 */
uint32_t gmem_around_window(struct gmem_pager_region *region, uint64_t page, unsigned int *slot);
void gmem_around_done(struct gmem_pager_region *region, unsigned int slot, uint64_t next_page, uint32_t window);

/* ---- copy_in.c: files of another process's memory (file/anon.h). Invalidate lock held shared, but for a unit. */

/* Brings in what is absent of [from, to), staged or zero, and lets its touchers go on. -ENOENT: look again. */
int gmem_copy_in(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t from, uint64_t to, bool zero);
/* A page that has been in place and is missing was removed: zero. */
int gmem_copy_zero(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t off);
/* A huge page, from state to toucher. No lock held. */
int gmem_copy_unit(struct gmem_resolver *r, struct gmem_pager_region *region, uint64_t base);

#endif
