/* SPDX-License-Identifier: MIT */
/*
 * The writing half: the file being written, the builder of indexes, the pool of compressors.
 * Enters: windows of a memory file. Leaves: chunks in order, appended by the thread that owns the writer; workers touch
 * jobs only.
 * Lock: gmem_image_pool.lock, a leaf, guards the counters of the pool; a job belongs to the owner, then to one worker,
 * then to the owner again.
 */
#ifndef GMEM_IMAGE_WRITER_H
#define GMEM_IMAGE_WRITER_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"
#include "image/format.h"

/* What one job brings in: a multiple of every chunk length. */
#define GMEM_IMAGE_WINDOW (1u << 20)
#define GMEM_IMAGE_WINDOW_CHUNKS (GMEM_IMAGE_WINDOW / GMEM_IMAGE_CHUNK_MIN)

struct gmem_image_writer {
	int dir_fd;
	int fd; /* the temporary file; -1 once it is renamed or removed */
	char *path; /* as the caller named it, for texts */
	char *base; /* its last component */
	char *temp; /* the temporary file's, in dir_fd */
	uint64_t pos; /* end of what is written */
	uint64_t pushed; /* end of what is on its way to the disk */
	uint64_t expect; /* bytes the file may come to have, for texts */
	int failed; /* errno of the first failure: commit refuses */
	struct gmem_image_writer_opts opts; /* completed */
	struct gmem_image_region_entry *regions;
	struct gmem_image_section_entry *sections;
	uint32_t nregions, nsections;
};

/* Appends; -ENOSPC, -EFBIG, -EIO with text. `ret_off`, if not NULL, is where it went. */
int gmem_image_append(struct gmem_image_writer *w, const void *data, size_t len, uint64_t *ret_off);

/* Writes anywhere; the errors of gmem_image_append(). */
int gmem_image_write_at(struct gmem_image_writer *w, const void *data, size_t len, uint64_t off);

/* -errno of a failed write or sync, with a text that says how far it got if the disk was full. */
int gmem_image_write_error(const struct gmem_image_writer *w, int err);

int gmem_image_random(const struct gmem_image_writer *w, void *buf, size_t len);

/* 0, or the error of the step that failed before. */
int gmem_image_writer_usable(const struct gmem_image_writer *w);

/* ---- builder.c: the index of one region, from chunks in ascending order */

struct gmem_image_builder {
	struct gmem_image_writer *w;
	uint32_t levels;
	struct gmem_image_link root;
	struct {
		bool open;
		uint64_t block; /* its number in its level */
		uint8_t raw[GMEM_IMAGE_BLOCK_LEN];
	} level[GMEM_IMAGE_MAX_LEVELS + 1]; /* [1] the leaf */
};

void gmem_image_builder_init(struct gmem_image_builder *b, struct gmem_image_writer *w, uint64_t nchunks);
int gmem_image_builder_add(struct gmem_image_builder *b, uint64_t chunk, const struct gmem_image_chunk *c);
int gmem_image_builder_finish(struct gmem_image_builder *b,
			      struct gmem_image_link *ret_root); /* {0, 0}: nothing was added */

/* ---- compress.c */

/* One window of a region on its way: read, cut into chunks, without zero pages, compressed, summed. */
struct gmem_image_job {
	uint64_t off; /* in the region */
	uint32_t len;
	bool done; /* guarded by the pool's lock */
	int error;
	char text[256]; /* of the error */
	uint8_t *in, *packed; /* GMEM_IMAGE_WINDOW bytes each; `packed` only with compression */
	const uint8_t *out; /* one of the two */
	size_t out_len;
	struct gmem_image_chunk chunk[GMEM_IMAGE_WINDOW_CHUNKS]; /* `off` counts from `out` */
};

struct gmem_image_pool_opts {
	int fd;
	uint64_t fd_off; /* where the region begins in it */
	uint32_t chunk_len;
	enum gmem_compression compression;
	int level;
	unsigned int threads;
};

struct gmem_image_pool;

int gmem_image_pool_create(const struct gmem_image_pool_opts *opts, struct gmem_image_pool **ret);
void gmem_image_pool_free(struct gmem_image_pool *pool); /* joins; work not collected is dropped. NULL is allowed */
bool gmem_image_pool_full(const struct gmem_image_pool *pool);
bool gmem_image_pool_empty(const struct gmem_image_pool *pool);
void gmem_image_pool_submit(struct gmem_image_pool *pool, uint64_t off, uint32_t len); /* not when full */
struct gmem_image_job *
gmem_image_pool_collect(struct gmem_image_pool *pool); /* the oldest, waiting for it; not when empty */
void gmem_image_pool_release(struct gmem_image_pool *pool); /* gives back the job last collected */

#endif
