/* SPDX-License-Identifier: MIT */
/*
 * Pages that the caller of a gmem_uffd brings in and maps.
 *
 * The order of resolve.c: bytes are fetched with no lock held; under the invalidate lock, shared, the page's side is
 * looked at again, and what is still absent is inserted, published and mapped.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/range.h"
#include "fault/uffd_job.h"
#include "sys/call.h"
#include "sys/uffd.h"

#define BATCH_LEN (16u * GMEM_PAGE_SIZE) /* of the source's bytes, fetched ahead of the lock */

/* ---- bringing in */

/* Some of the `n` absent pages at `off`, with the job's bytes. Sets how many. */
static int insert(const struct gmem_uffd_job *job, uint64_t off, uint32_t n, uint32_t *ret_done)
{
	struct gmem_file *file = job->view->file;
	struct gmem_folio folio;
	int err;

	/* What is known to be zero needs no memory yet. */
	for (*ret_done = 0; !job->data && *ret_done < n; ++*ret_done)
		if (!gmem_state_zero(&file->state, (off >> GMEM_PAGE_SHIFT) + *ret_done))
			break;
	if (*ret_done)
		return 0;
	err = file->ops->alloc(file, off, n, &folio);
	if (err)
		return err;
	folio.data = job->data ? job->data + (off - job->data_off) : NULL;
	/* Zeroes here are a page that a dead server was at: it may have left bytes. */
	err = file->ops->insert(file, &folio);
	if (err)
		return err;
	file->ops->publish(file, &folio);
	*ret_done = folio.npages;
	return 0;
}

/* The pages from the first one on that nobody has brought in, at most up to `to`. Or why there is none. */
static int insert_run(const struct gmem_uffd_job *job, uint64_t to, uint32_t *ret_done)
{
	struct gmem_file *file = job->view->file;
	int n = file->ops->adopt(file, job->off, (uint32_t)((to - job->off) >> GMEM_PAGE_SHIFT));

	return n > 0 ? insert(job, job->off, (uint32_t)n, ret_done) : n ? n : -EEXIST;
}

static int bring_in_run(struct gmem_uffd_job *job, uint64_t to)
{
	uint32_t n;
	int err = gmem_uffd_job_explain(job, insert_run(job, to, &n));

	return err ? err : gmem_uffd_job_map_run(job, job->off + ((uint64_t)n << GMEM_PAGE_SHIFT), true);
}

static uint32_t absent_run(const struct gmem_file *file, uint64_t off, uint64_t end)
{
	uint64_t to = off;

	while (to < end && !file->ops->present(file, to))
		to += GMEM_PAGE_SIZE;
	return (uint32_t)((to - off) >> GMEM_PAGE_SHIFT);
}

/* Brings in what is absent of the huge page. What is in place stays as it is. -EEXIST: all of it was, by now. */
static int insert_rest(const struct gmem_uffd_job *job)
{
	uint64_t off = job->off, end = off + job->unit;
	bool any = false;

	while (off < end) {
		uint32_t n = absent_run(job->view->file, off, end), done = 1;
		int err = n ? insert(job, off, n, &done) : 0;

		if (err && err != -EEXIST)
			return err;
		any |= n && !err;
		if (!err)
			off += (uint64_t)done << GMEM_PAGE_SHIFT;
	}
	return any ? 0 : -EEXIST;
}

/* A huge page: all of it comes in before any of it is mapped. */
static int bring_in_unit(struct gmem_uffd_job *job, uint64_t to)
{
	int err = gmem_uffd_job_unit_absent(job);

	(void)to;
	err = gmem_uffd_job_explain(job, err ? err : insert_rest(job));
	return err ? err : gmem_uffd_job_map_run(job, job->off + job->unit, true);
}

static gmem_uffd_job_fn bring_in(const struct gmem_uffd_job *job)
{
	return job->unit > GMEM_PAGE_SIZE ? bring_in_unit : bring_in_run;
}

/* The source's bytes, as many whole pages as can be read. */
static int fetch(const struct gmem_uffd_job *job, void *bounce, const char *src, uint64_t *len)
{
	ssize_t got;

	gmem_might_fault();
	got = gmem_sys_peek(bounce, src, *len);
	if (got < 0 && got != -EFAULT)
		return gmem_err_sys((int)got, "%s: source at %p", job->who, (const void *)src);
	*len = got < 0 ? 0 : gmem_file_unit_off(job->view->file, (uint64_t)got);
	return *len ? 0 : gmem_err(-EFAULT, "%s: source at %p cannot be read", job->who, (const void *)src);
}

int64_t gmem_uffd_copy(struct gmem_uffd *uffd, struct gmem_view *view, uint64_t off, const void *src, uint64_t len)
{
	struct gmem_uffd_job job;
	uint64_t batch;
	char *bounce;
	int err = gmem_uffd_job_begin(&job, "gmem_uffd_copy", uffd, view, off, len);

	if (err)
		return err;
	if ((uintptr_t)src + len < (uintptr_t)src)
		return gmem_err(-EINVAL, "gmem_uffd_copy: source at %p wraps", src);
	batch = job.unit > GMEM_PAGE_SIZE ? job.unit : gmem_min_u64(len, BATCH_LEN);
	bounce = malloc(batch);
	if (!bounce)
		return gmem_err_sys(-ENOMEM, "gmem_uffd_copy");
	job.data = bounce;
	while (!err && job.off < job.end) {
		uint64_t n = gmem_min_u64(job.end - job.off, batch);

		job.data_off = job.off;
		err = fetch(&job, bounce, (const char *)src + (job.off - off), &n);
		if (!err)
			err = gmem_uffd_job_run(&job, job.off + n, bring_in(&job));
	}
	free(bounce);
	gmem_uffd_resolved(uffd, view, off, len, false);
	return gmem_uffd_job_end(&job, off, err);
}

int64_t gmem_uffd_zeropage(struct gmem_uffd *uffd, struct gmem_view *view, uint64_t off, uint64_t len)
{
	struct gmem_uffd_job job;
	int err = gmem_uffd_job_begin(&job, "gmem_uffd_zeropage", uffd, view, off, len);

	if (err)
		return err;
	err = gmem_uffd_job_run(&job, job.end, bring_in(&job));
	gmem_uffd_resolved(uffd, view, off, len, false);
	return gmem_uffd_job_end(&job, off, err);
}

/* ---- mapping what is in place */

static int continue_unit(struct gmem_uffd_job *job, uint64_t to)
{
	int err = gmem_uffd_job_unit_absent(job);

	(void)to;
	switch (err) {
	case 0:
		return gmem_err(-EFAULT, "%s: page at 0x%llx is not in place, or not all of it", job->who,
				(unsigned long long)job->off);
	case -EEXIST:
		return gmem_uffd_job_map_run(job, job->off + job->unit, false);
	default:
		return gmem_uffd_job_explain(job, err);
	}
}

static int continue_run(struct gmem_uffd_job *job, uint64_t end)
{
	struct gmem_file *file = job->view->file;
	uint64_t to = job->off;
	int err = 0;

	while (to < end && !err) {
		err = file->ops->present(file, to) ? 0 : file->ops->adopt(file, to, 1);
		if (!err)
			to += GMEM_PAGE_SIZE;
	}
	if (to > job->off)
		return gmem_uffd_job_map_run(job, to, false);
	if (err > 0)
		return gmem_err(-EFAULT, "%s: page at 0x%llx is not in place", job->who, (unsigned long long)job->off);
	return gmem_uffd_job_explain(job, err);
}

int64_t gmem_uffd_continue(struct gmem_uffd *uffd, struct gmem_view *view, uint64_t off, uint64_t len)
{
	struct gmem_uffd_job job;
	int err = gmem_uffd_job_begin(&job, "gmem_uffd_continue", uffd, view, off, len);

	if (err)
		return err;
	err = gmem_uffd_job_run(&job, job.end, job.unit > GMEM_PAGE_SIZE ? continue_unit : continue_run);
	gmem_uffd_resolved(uffd, view, off, len, false);
	return gmem_uffd_job_end(&job, off, err);
}

int gmem_uffd_wake(struct gmem_uffd *uffd, struct gmem_view *view, uint64_t off, uint64_t len)
{
	struct gmem_uffd_job job;
	int err = gmem_uffd_job_begin(&job, "gmem_uffd_wake", uffd, view, off, len);

	if (err)
		return err;
	gmem_uffd_resolved(uffd, view, off, len, true);
	err = gmem_sys_uffd_wake(view->uffd, gmem_uffd_job_hva(&job), len);
	return err ? gmem_uffd_job_failed(&job, err) : 0;
}
