/* SPDX-License-Identifier: MIT */
/*
 * One call of a gmem_uffd that does something to pages of a view: what all of them have in common.
 *
 * Enters: a range. Leaves: how much of it was done, and why no more. Belongs to the thread that calls. Whoever is
 * refused at a page has its touchers woken, so that they meet what is there now: the message of theirs that was read
 * never comes again.
 */
#ifndef GMEM_FAULT_UFFD_JOB_H
#define GMEM_FAULT_UFFD_JOB_H

#include "fault/uffd.h"

#define GMEM_UFFD_MAX_TRIES 1000 /* at a page whose page table another thread is taking away */

struct gmem_uffd_job {
	const char *who;
	struct gmem_uffd *uffd;
	struct gmem_view *view;
	uint64_t off, end; /* in the file: of what is left */
	uint64_t unit; /* what is mapped at once: the file's page size */
	const char *data; /* copy: the bytes of `data_off` on; NULL: zeroes */
	uint64_t data_off;
	bool protect; /* writeprotect */
};

/* The arguments that all have: -EINVAL, -ERANGE, -EIO. */
int gmem_uffd_job_begin(struct gmem_uffd_job *job, const char *who, struct gmem_uffd *uffd, struct gmem_view *view,
			uint64_t off, uint64_t len);
/* What was done, or why nothing was. */
int64_t gmem_uffd_job_end(const struct gmem_uffd_job *job, uint64_t off, int err);

/* Does something about [job->off, to), whose pages are shared, and moves job->off. -EBUSY: somebody is at the page. */
typedef int (*gmem_uffd_job_fn)(struct gmem_uffd_job *job, uint64_t to);
/* Calls it up to `end` under the invalidate lock, shared, for each run of shared pages. -EACCES at a private one. */
int gmem_uffd_job_run(struct gmem_uffd_job *job, uint64_t end, gmem_uffd_job_fn fn);

/* ---- what is done. Invalidate lock held, shared; pages are shared ones, and stay so */

uint64_t gmem_uffd_job_hva(const struct gmem_uffd_job *job);
/* Sets the text and wakes the page's touchers: nothing more will be done for them. Returns `err`. */
int gmem_uffd_job_refuse(const struct gmem_uffd_job *job, int err, const char *why);
/* -EHWPOISON; with a marker there its touchers get SIGBUS. */
int gmem_uffd_job_refuse_poisoned(const struct gmem_uffd_job *job);
int gmem_uffd_job_put_marker(const struct gmem_uffd_job *job);
/* The kernel's error, with text. */
int gmem_uffd_job_failed(const struct gmem_uffd_job *job, int err);
/* One of the backing operations', likewise; -EBUSY and 0 as they are. */
int gmem_uffd_job_explain(const struct gmem_uffd_job *job, int err);
/*
 * Maps what is in place up to `to`, and wakes who waits for it. `ours` was brought in by this call: one who maps it too
 * has done our work.
 */
int gmem_uffd_job_map_run(struct gmem_uffd_job *job, uint64_t to, bool ours);
/* Where the pages end that are on the side of the first one that is left. */
uint64_t gmem_uffd_job_side_end(const struct gmem_uffd_job *job);
/* Is there something of the huge page to bring in? 0: there is. -EEXIST: all of it is in place; -EBUSY, -EHWPOISON. */
int gmem_uffd_job_unit_absent(struct gmem_uffd_job *job);

#endif
