/* SPDX-License-Identifier: MIT */
/*
 * The pages of an image as links of an SNP launch digest: hashed by a thread a CPU, linked in order by the caller's.
 * Enters: bytes, borrowed for the call. Leaves: the digest after them. Its threads are joined when the call returns.
 */
#ifndef GMEM_LAUNCH_MEASURE_PAGES_H
#define GMEM_LAUNCH_MEASURE_PAGES_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"
#include "launch/snp_digest.h"

/* What a long measurement tells its caller; `done` of `total` bytes. */
struct gmem_measure_progress {
	gmem_progress_fn fn; /* NULL: nothing */
	void *opaque;
	uint64_t done, total;
	bool stopped; /* the error is theirs */
};

/* `bytes` more are done. Not 0: what the caller's function returned. */
int gmem_measure_went_on(struct gmem_measure_progress *progress, uint64_t bytes);

/*
 * `npages` NORMAL pages from `gpa` on. Errors: -ENOMEM, what the progress function returned; the digest is then of no
 * use.
 */
int gmem_measure_pages(struct gmem_snp_digest *digest, uint64_t gpa, const uint8_t *bytes, uint64_t npages,
		       struct gmem_measure_progress *progress);

#endif
