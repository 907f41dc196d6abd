/* SPDX-License-Identifier: MIT */
/*
 * Pages whose bytes will never come. What the kernel's UFFDIO_POISON says of one mapping is said here of the page: its
 * word in the table, which every other mapping's server, every guest and every image goes by. Then the view gets its
 * marker, and so do the other views of this process.
 */
#include <errno.h>
#include <sched.h>

#include "base/err.h"
#include "base/range.h"
#include "fault/uffd_job.h"
#include "sys/uffd.h"

/* The words of what is absent of the page. 0: it is poisoned; -EEXIST: nothing is absent; -EBUSY. */
static int lose(const struct gmem_uffd_job *job)
{
	struct gmem_file *file = job->view->file;
	bool any = false;

	for (uint64_t off = job->off; off < job->off + job->unit; off += GMEM_PAGE_SIZE) {
		int err = gmem_file_poison_page(file, off);

		if (err < 0 && err != -EEXIST)
			return err;
		any |= err >= 0;
	}
	return any ? 0 : -EEXIST;
}

/* Its touchers meet it. One that cannot be put leaves them waiting, or they would read a zero. */
static int put_marker(const struct gmem_uffd_job *job)
{
	int tries = 0, err;

	while ((err = gmem_uffd_job_put_marker(job)) == -EAGAIN && ++tries < GMEM_UFFD_MAX_TRIES)
		sched_yield();
	/* A kernel without page markers. */
	return err == -EINVAL ? 0 : err;
}

static int poison_unit(struct gmem_uffd_job *job, uint64_t to)
{
	/* What a mapping has put there was in place before. */
	int err = job->unit > GMEM_PAGE_SIZE ?
			  gmem_uffd_job_unit_absent(job) :
			  job->view->file->ops->adopt(job->view->file, job->off,
						      (uint32_t)((to - job->off) >> GMEM_PAGE_SHIFT));

	if (err == 0 && job->unit == GMEM_PAGE_SIZE)
		err = -EEXIST;
	/* Poisoned before: this view may have no marker yet. */
	if (err >= 0)
		err = lose(job);
	if (err && err != -EHWPOISON)
		return err == -EEXIST ? gmem_uffd_job_refuse(job, err, "is in place") : gmem_uffd_job_explain(job, err);
	err = put_marker(job);
	if (err == -EEXIST)
		return gmem_uffd_job_refuse(job, err, "is poisoned already");
	if (err)
		return gmem_uffd_job_failed(job, err);
	job->off += job->unit;
	return 0;
}

/* Some of it is in other views of this process too. */
static bool is_elsewhere(const struct gmem_uffd_job *job, uint64_t off, uint64_t len)
{
	const struct gmem_file *file = job->view->file;

	for (const struct gmem_view *view = file->views; view; view = view->next) {
		uint64_t at = off, n = len;

		if (view != job->view && gmem_view_part(view, &at, &n))
			return true;
	}
	return false;
}

/*
 * Plain views, and guests, would be shown a zero. What cannot be marked there is as it was: absent, and nobody brings
 * it in. A guest_memfd takes no markers, here neither: what it gets in their place its touchers meet when they wake.
 */
static void mark_elsewhere(const struct gmem_uffd_job *job, uint64_t off)
{
	struct gmem_file *file = job->view->file;
	bool any;

	gmem_rwlock_lock_shared(&file->invalidate_lock);
	any = file->engine == GMEM_ENGINE_KERNEL || file->bindings.n || is_elsewhere(job, off, job->off - off);
	gmem_rwlock_unlock_shared(&file->invalidate_lock);
	if (!any)
		return;
	gmem_rwlock_lock(&file->invalidate_lock);
	/* Where nobody supplies what is absent, a guest on KVM finds it by itself. */
	gmem_file_invalidate_begin(file, off, job->off - off, GMEM_SIDE_SHARED | GMEM_SIDE_PRIVATE | GMEM_SIDE_BAR);
	gmem_file_invalidate_end(file, off, job->off - off);
	(void)gmem_file_mark_lost(file, off, job->off - off);
	gmem_rwlock_unlock(&file->invalidate_lock);
	gmem_sys_uffd_wake(job->view->uffd, (uint64_t)(uintptr_t)gmem_view_at(job->view, off), job->off - off);
}

int64_t gmem_uffd_poison(struct gmem_uffd *uffd, struct gmem_view *view, uint64_t off, uint64_t len)
{
	struct gmem_uffd_job job;
	int err = gmem_uffd_job_begin(&job, "gmem_uffd_poison", uffd, view, off, len);

	if (err)
		return err;
	err = gmem_uffd_job_run(&job, job.end, poison_unit);
	if (job.off > off)
		mark_elsewhere(&job, off);
	gmem_uffd_resolved(uffd, view, off, len, false);
	return gmem_uffd_job_end(&job, off, err);
}
