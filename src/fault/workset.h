/* SPDX-License-Identifier: MIT */
/*
 * Working sets: the trace of a guest's first touches, and what was seen of it when it was replayed.
 *
 * Enters: runs of pages with the time of a touch, from the pager's tracer (trace.h) or from a file that is not trusted.
 * Leaves: entries, in order, no page in two; a file that is whole up to where it ends. Locks: `m`, a leaf: entries and
 * numbers, which the tracer adds to and any thread may ask for. All else is the caller's one thread's.
 */
#ifndef GMEM_FAULT_WORKSET_H
#define GMEM_FAULT_WORKSET_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"

#define GMEM_WORKSET_DEFAULT_ENTRIES (1u << 20)
#define GMEM_WORKSET_NEVER UINT64_MAX

/* ---- workset_format.c: gmem-workset(5) */

#define GMEM_WORKSET_HEADER_LEN 4096u
#define GMEM_WORKSET_BLOCK_LEN 24u /* of a block's own header */
#define GMEM_WORKSET_ENTRY_LEN 24u
#define GMEM_WORKSET_BLOCK_ENTRIES 4096u /* at most */
#define GMEM_WORKSET_RUN_PAGES (1u << 20) /* of an entry, at most */
#define GMEM_WORKSET_MAX_PART (UINT64_C(1) << 50)
#define GMEM_WORKSET_OPEN UINT64_MAX /* instead of the number of entries: the recording has not been ended */

struct gmem_workset_run {
	uint64_t page; /* in the part */
	uint64_t ns;
	uint32_t npages;
	uint16_t part;
	uint16_t touches;
};

struct gmem_workset_header {
	uint8_t identity[GMEM_WORKSET_IDENTITY_LEN];
	uint64_t created_ns, entries, lost, cut_from, hits, late, unused, missed, replay_ns, replayed_pages;
	uint32_t parts, runs, observed;
	uint64_t part_len[GMEM_WORKSET_MAX_PARTS];
};

void gmem_workset_header_encode(const struct gmem_workset_header *h, uint8_t raw[GMEM_WORKSET_HEADER_LEN]);
/* -EMEDIUMTYPE, -EPROTONOSUPPORT, -EBADMSG, with text. */
int gmem_workset_header_decode(struct gmem_workset_header *h, const uint8_t raw[GMEM_WORKSET_HEADER_LEN],
			       const char *name);
/* Into `raw`, GMEM_WORKSET_BLOCK_LEN + n * GMEM_WORKSET_ENTRY_LEN bytes. */
void gmem_workset_block_encode(uint64_t number, const struct gmem_workset_run *runs, uint32_t n, uint8_t *raw);
/*
 * The entries of block `number` at the start of `raw`, which has `len` bytes, into `runs` (GMEM_WORKSET_BLOCK_ENTRIES).
 * Returns how many; 0: it is not whole, or an entry is not inside its part.
 */
uint32_t gmem_workset_block_decode(const struct gmem_workset_header *h, uint64_t number, const uint8_t *raw,
				   uint64_t len, struct gmem_workset_run *runs);

/* ---- workset_pages.c: a set of pages of one part, with memory for what is in it only */

struct gmem_pageset {
	uint64_t **leaves;
	uint64_t nleaves;
};

int gmem_pageset_init(struct gmem_pageset *set, uint64_t npages); /* -ENOMEM */
void gmem_pageset_destroy(struct gmem_pageset *set);
/*
 * Adds the first run of [page, end) that is not in it, and returns where it begins; `end`: there is none. Sets where
 * it ends. A run that there is no memory for is taken for one that is in it.
 */
uint64_t gmem_pageset_add(struct gmem_pageset *set, uint64_t page, uint64_t end, uint64_t *ret_end);

/* ---- the object */

/* One replay, as it was seen. Times are since it began. */
struct gmem_replay_run {
	bool observed, done;
	uint64_t began_ns; /* CLOCK_MONOTONIC */
	uint64_t n; /* entries it was made for */
	uint64_t *in_place, *touched; /* of each entry, GMEM_WORKSET_NEVER */
	uint32_t *by_place; /* entries, by part and page */
	struct gmem_pageset seen[GMEM_WORKSET_MAX_PARTS]; /* pages wanted that are in no entry */
	uint64_t missed;
	uint64_t replay_ns, pages;
};

struct gmem_tracer;

struct gmem_workset {
	pthread_mutex_t m; /* guards what follows, up to `fd` */
	struct gmem_workset_header h; /* h.entries is not used while it is in memory: n */
	struct gmem_workset_run *runs;
	uint64_t n, room, flushed, blocks; /* runs[0, flushed) are in the file, in so many blocks */
	uint32_t max_entries;
	uint64_t oldest_ns; /* when the first run was added that is not in the file */
	struct gmem_replay_run *run;
	int write_error; /* of its file: nothing more is written */
	int fd; /* appended to; -1: in memory only */
	char *name;
	bool torn, by_hand;
	struct gmem_pageset *seen; /* of each part: pages in entries; NULL where nothing is recorded */
	/* The pager's that records into it, or sees how it is replayed; NULL. The tracer's lock comes before `m`. */
	struct gmem_tracer *recorder, *measurer;
	uint64_t began_ns; /* the recording, CLOCK_MONOTONIC */
};

/* workset.c; m held for all of these. */

/*
 * Adds the pages that are not in an entry yet. `ns` since the recording began. -ENOSPC: they are counted as lost.
 */
int gmem_workset_touch(struct gmem_workset *ws, uint32_t part, uint64_t page, uint64_t npages, uint64_t ns,
		       uint32_t touches);
/* Makes room for `parts` parts and their lengths in bytes, for touches. -ENOMEM. */
int gmem_workset_set_parts(struct gmem_workset *ws, const uint64_t *len, uint32_t parts);
void gmem_replay_run_free(struct gmem_replay_run *run);

/* workset_file.c; m held, but for the first, whose working set nobody else has yet. */

/* Fills an empty one from a file that is not trusted. */
int gmem_workset_read(struct gmem_workset *ws, int fd);
int gmem_workset_write_header(struct gmem_workset *ws, uint64_t entries);
/* Appends what is not in the file. An error stays: write_error. */
void gmem_workset_flush(struct gmem_workset *ws);

/* measure.c: what is seen of a replay; m of the working set held. */

int gmem_measure_begin(struct gmem_workset *ws, bool observed); /* -ENOMEM */
/* A touch, at CLOCK_MONOTONIC `now_ns`. */
void gmem_measure_touch(struct gmem_workset *ws, uint32_t part, uint64_t page, uint64_t npages, uint64_t now_ns);
void gmem_measure_in_place(struct gmem_workset *ws, uint64_t entry, uint64_t now_ns);
/* Sums the run up, into the header. */
void gmem_measure_sum(struct gmem_workset *ws);
/* When the guest wanted an entry, as far as can be told; GMEM_WORKSET_NEVER. */
uint64_t gmem_measure_wanted(const struct gmem_workset *ws, uint64_t entry);

#endif
