/* SPDX-License-Identifier: MIT */
/*
 * Images: pages <-> disk.
 * Enters: a path, memory descriptors, sections (writer); a file nobody vouches for (reader). Leaves: a file under its
 * name only when it is complete; bytes only when their checksum held, else an error that names file, thing and offset.
 * Owners: a writer belongs to one thread and joins the workers it starts before each call returns. An image may be read
 * by any number of threads; it owns its descriptor, its loaded index blocks and its caches.
 * Locks: gmem_image.lock, a leaf, guards the chunk cache and the list of idle decompression buffers; never held over
 * I/O. Index blocks are published by atomics, without a lock.
 * Memory: what is loaded of the index is proportional to what was touched (4 KiB for 128 chunks). Nothing is mapped
 * from the file, so one that shrinks is an error, not a signal.
 */
#ifndef GMEM_IMAGE_IMAGE_H
#define GMEM_IMAGE_IMAGE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <zstd.h>

#include "gmem.h"
#include "image/format.h"

#define GMEM_IMAGE_CACHE 8 /* chunks */

/* One block of an index, checked. Immutable but for `child`. */
struct gmem_image_node {
	bool leaf;
	union {
		struct gmem_image_chunk chunk[GMEM_IMAGE_LEAF_ENTRIES];
		struct {
			struct gmem_image_link link[GMEM_IMAGE_BRANCH_ENTRIES];
			/* NULL until loaded. In node_child() the exchange's release pairs with the load's acquire. */
			_Atomic(struct gmem_image_node *) child[GMEM_IMAGE_BRANCH_ENTRIES];
		};
	};
};

struct gmem_image_reg {
	struct gmem_image_region_entry e;
	uint64_t nchunks;
	struct gmem_image_node *root; /* loaded at open; NULL: the region is all zero */
};

/* A chunk kept in the clear, for reads of less than a chunk. Its bytes do not change while `refs` is not 0. */
struct gmem_image_cached {
	unsigned int refs; /* one by the cache, one by each reader; guarded by gmem_image.lock */
	size_t region;
	uint64_t chunk;
	uint64_t used; /* gmem_image.tick of its last use */
	uint8_t bytes[];
};

/* What one thread needs to read a chunk. */
struct gmem_image_scratch {
	struct gmem_image_scratch *next;
	ZSTD_DCtx *dctx; /* made when first needed */
	uint8_t *stored; /* chunk_len bytes */
};

struct gmem_image {
	int fd;
	char *name;
	uint64_t size; /* of the file, when it was opened */
	struct gmem_image_header h;
	struct gmem_image_reg *regions;
	struct gmem_image_section_entry *sections;
	pthread_mutex_t lock; /* guards the fields below */
	struct gmem_image_cached *cache[GMEM_IMAGE_CACHE];
	struct gmem_image_scratch *idle;
	uint64_t tick;
};

/*
 * pread() of all of it inside [0, file_len): -ENODATA if the file has become shorter, `what` for the text. With
 * `nowait`, -EAGAIN if not all of it is in the page cache.
 */
int gmem_image_pread(const struct gmem_image *image, void *buf, size_t len, uint64_t off, bool nowait,
		     const char *what);

/* -EBADMSG and "FILE: WHAT at offset 0x...: PROBLEM". */
int gmem_image_damage(const struct gmem_image *image, const char *what, uint64_t off, const char *problem);

/* True if `len` bytes at `data` sum to `sum`. */
bool gmem_image_sum_ok(const void *data, size_t len, uint64_t sum);

/* ---- index.c */

/*
 * Loads and checks one index block of level `level` (1: leaf) whose first chunk is `first`; the caller frees it, not
 * its children.
 */
int gmem_image_node_load(const struct gmem_image *image, const struct gmem_image_reg *reg, struct gmem_image_link link,
			 uint32_t level, uint64_t first, bool nowait, struct gmem_image_node **ret);
void gmem_image_node_free(struct gmem_image_node *node); /* and everything below it; NULL is allowed */

/*
 * The leaf that holds `chunk`, loading what is missing on the way, and the chunks [*first, *end) it covers. NULL in
 * *ret: all of these are zero, which then may be more than one leaf's.
 */
int gmem_image_leaf(const struct gmem_image *image, const struct gmem_image_reg *reg, uint64_t chunk, bool nowait,
		    const struct gmem_image_node **ret, uint64_t *first, uint64_t *end);

/* Chunks below one entry of a block of this level. */
uint64_t gmem_image_entry_span(uint32_t level);

/* Pages of a chunk: less than the rest in the last one. */
unsigned int gmem_image_chunk_pages(const struct gmem_image *image, const struct gmem_image_reg *reg, uint64_t chunk);

/* ---- read.c */

/* gmem_image_read(), which with `nowait` is -EAGAIN where it would have to wait for the disk. */
int gmem_image_read_pages(struct gmem_image *image, size_t region, uint64_t off, void *buf, size_t len, bool nowait);

/* ---- source.c */

/* gmem_source_new_image(); with `own` the image is taken, on success, and closed with the source. */
int gmem_image_source_new(struct gmem_image *image, size_t region, bool own, struct gmem_source **ret);

/* ---- chunk.c */

int gmem_image_scratch_get(struct gmem_image *image, struct gmem_image_scratch **ret);
void gmem_image_scratch_put(struct gmem_image *image, struct gmem_image_scratch *s);
void gmem_image_scratch_free(struct gmem_image_scratch *s);

/*
 * The stored bytes of a chunk, already in memory, checked and turned into all of its pages at `dst` (chunk_len bytes,
 * or fewer in a region's last chunk). `stored` may be `dst` itself for a raw chunk.
 */
int gmem_image_chunk_unpack(const struct gmem_image *image, const struct gmem_image_reg *reg, uint64_t chunk,
			    const struct gmem_image_chunk *c, struct gmem_image_scratch *s, const uint8_t *stored,
			    uint8_t *dst);

#endif
