/* SPDX-License-Identifier: MIT */
/*
 * Sources: "page at offset" -> bytes. Enters: an offset and a buffer of the caller's. Leaves: the bytes, all of them,
 * or an error. No lock is held by the caller, none is taken here but a source's own. References are counted; the last
 * one frees.
 */
#ifndef GMEM_SOURCE_SOURCE_H
#define GMEM_SOURCE_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"

/* What gmem_source_len() answers; said before anybody else has the source. */
void gmem_source_set_len(struct gmem_source *source, uint64_t len);

/* Reads [off, off + len) into buf. The errors of gmem_source_ops.read. */
int gmem_source_read(struct gmem_source *source, uint64_t off, void *buf, uint64_t len);

/* As gmem_source_read(), without waiting: -EAGAIN if it would, or if the source cannot say. */
int gmem_source_read_nowait(struct gmem_source *source, uint64_t off, void *buf, uint64_t len);

/* Grows [*start, *start + *len) by what comes along at hardly any cost. */
void gmem_source_extent(struct gmem_source *source, uint64_t *start, uint64_t *len);

/*
 * [off, off + len) is about to be read, and nobody waits for it. 1: the source is prepared (`wait`), or has begun; 0:
 * it has nothing to prepare; negative errno: not now.
 */
int gmem_source_prefetch(struct gmem_source *source, uint64_t off, uint64_t len, bool wait);

/* True if [off, off + len) is known to be zero. */
bool gmem_source_is_zero(struct gmem_source *source, uint64_t off, uint64_t len, bool nowait);

#endif
