/* SPDX-License-Identifier: MIT */
#include "fault/uffd_job.h"

#include <errno.h>
#include <sched.h>

#include "base/err.h"
#include "base/range.h"
#include "file/protect.h"
#include "sys/uffd.h"

int gmem_uffd_job_begin(struct gmem_uffd_job *job, const char *who, struct gmem_uffd *uffd, struct gmem_view *view,
			uint64_t off, uint64_t len)
{
	int err = gmem_uffd_check_process(uffd, who);

	if (err)
		return err;
	if (view->server != uffd)
		return gmem_err(-EINVAL, "%s: this view is not one of this object's", who);
	err = gmem_file_check_range(view->file, who, off, len);
	if (!err)
		err = gmem_file_check_units(view->file, who, off, len);
	if (err)
		return err;
	if (off < view->off || !gmem_range_inside(off - view->off, len, view->len))
		return gmem_err(-ERANGE, "%s: off 0x%llx, len 0x%llx: not in the view (off 0x%llx, len 0x%llx)", who,
				(unsigned long long)off, (unsigned long long)len, (unsigned long long)view->off,
				(unsigned long long)view->len);
	*job = (struct gmem_uffd_job){
		.who = who, .uffd = uffd, .view = view, .off = off, .end = off + len, .unit = view->file->page_size
	};
	return 0;
}

uint64_t gmem_uffd_job_hva(const struct gmem_uffd_job *job)
{
	return (uint64_t)(uintptr_t)gmem_view_at(job->view, job->off);
}

static void wake_page(const struct gmem_uffd_job *job)
{
	gmem_sys_uffd_wake(job->view->uffd, gmem_uffd_job_hva(job), job->unit);
}

int gmem_uffd_job_refuse(const struct gmem_uffd_job *job, int err, const char *why)
{
	wake_page(job);
	return gmem_err(err, "%s: page at 0x%llx %s", job->who, (unsigned long long)job->off, why);
}

int gmem_uffd_job_put_marker(const struct gmem_uffd_job *job)
{
	uint64_t done;

	/* In the place of the kernel's mark of a protected page there can be no other. */
	gmem_view_lift_protection(job->view, job->off, job->unit);
	return gmem_sys_uffd_poison(job->view->uffd, gmem_uffd_job_hva(job), job->unit, true, &done);
}

int gmem_uffd_job_refuse_poisoned(const struct gmem_uffd_job *job)
{
	(void)gmem_uffd_job_put_marker(job);
	return gmem_uffd_job_refuse(job, -EHWPOISON, "is poisoned");
}

/* Its mappings are told of as gone, which needs a process whose memory has ended. */
static void note_gone(const struct gmem_uffd_job *job)
{
	struct gmem_uffd *uffd = job->uffd;

	gmem_uffd_lock(uffd);
	for (struct gmem_uffd_member *m = uffd->members; m; m = m->next)
		m->gone |= m->view == job->view;
	gmem_uffd_ring(uffd);
	gmem_uffd_unlock(uffd);
}

int gmem_uffd_job_failed(const struct gmem_uffd_job *job, int err)
{
	if (err == -ESRCH)
		note_gone(job);
	return gmem_err_sys(err, "%s: page at 0x%llx", job->who, (unsigned long long)job->off);
}

uint64_t gmem_uffd_job_side_end(const struct gmem_uffd_job *job)
{
	return gmem_state_side_end(&job->view->file->state, job->off >> GMEM_PAGE_SHIFT, job->end >> GMEM_PAGE_SHIFT)
	       << GMEM_PAGE_SHIFT;
}

int gmem_uffd_job_map_run(struct gmem_uffd_job *job, uint64_t to, bool ours)
{
	uint64_t most = to - job->off, backed = UINT64_MAX, done;
	int tries = 0;

	while (job->off < to) {
		uint64_t n = gmem_min_u64(to - job->off, most);
		int err = gmem_view_continue(job->view, job->off, job->off + n, &done);

		job->off += done;
		if (done)
			tries = 0;
		switch (err) {
		case 0:
			break;
		case -EEXIST:
			if (!ours)
				return gmem_uffd_job_refuse(job, err, "is mapped already");
			wake_page(job);
			job->off += job->unit;
			break;
		case -EFAULT:
			/* In place, and no memory: zero, because it was known to be or because it was dropped since. */
			if (backed == job->off)
				return gmem_err(-EAGAIN, "%s: page at 0x%llx is being dropped again and again",
						job->who, (unsigned long long)job->off);
			backed = job->off;
			err = gmem_file_back(job->view->file, job->off, to - job->off);
			if (err)
				return gmem_err_prefix(err, "%s", job->who);
			break;
		case -EAGAIN:
			/* Also what the kernel says of a part that was done. */
			if (done)
				break;
			if (++tries == GMEM_UFFD_MAX_TRIES)
				return gmem_uffd_job_failed(job, err);
			sched_yield();
			break;
		case -EIO:
			/* The kernel lost the page to a memory error. */
			for (uint64_t at = job->off; at < job->off + job->unit; at += GMEM_PAGE_SIZE)
				gmem_state_fail(&job->view->file->state, at >> GMEM_PAGE_SHIFT);
			return gmem_uffd_job_refuse_poisoned(job);
		case -ENOENT:
			/* A border inside the run, where the program has split the mapping: page by page. */
			if (most == job->unit)
				return gmem_uffd_job_failed(job, err);
			most = job->unit;
			break;
		default:
			return gmem_uffd_job_failed(job, err);
		}
	}
	return 0;
}

/* Until nobody is at the page, or was for a moment. */
static void wait_for_unit(const struct gmem_uffd_job *job)
{
	for (uint64_t off = job->off; off < job->off + job->unit; off += GMEM_PAGE_SIZE)
		gmem_file_wait_for_page(job->view->file, off);
}

int64_t gmem_uffd_job_end(const struct gmem_uffd_job *job, uint64_t off, int err)
{
	return job->off > off ? (int64_t)(job->off - off) : err;
}

int gmem_uffd_job_unit_absent(struct gmem_uffd_job *job)
{
	int n;

	switch (gmem_file_unit(job->view->file, job->off)) {
	case GMEM_UNIT_IN_PLACE:
		return -EEXIST;
	case GMEM_UNIT_PART:
		return 0;
	case GMEM_UNIT_BUSY:
		return -EBUSY;
	case GMEM_UNIT_LOST:
		return -EHWPOISON;
	default:
		n = job->view->file->ops->adopt(job->view->file, job->off, 1);
		return n > 0 ? 0 : n ? n : -EEXIST;
	}
}

int gmem_uffd_job_run(struct gmem_uffd_job *job, uint64_t end, gmem_uffd_job_fn fn)
{
	struct gmem_rwlock *lock = &job->view->file->invalidate_lock;
	int err = 0;

	while (!err && job->off < end) {
		gmem_rwlock_lock_shared(lock);
		err = gmem_file_private(job->view->file, job->off) ?
			      gmem_uffd_job_refuse(job, -EACCES, "is private") :
			      fn(job, gmem_min_u64(gmem_uffd_job_side_end(job), end));
		gmem_rwlock_unlock_shared(lock);
		if (err != -EBUSY)
			continue;
		/* It will be in place, or absent again. */
		wait_for_unit(job);
		err = 0;
	}
	return err;
}

int gmem_uffd_job_explain(const struct gmem_uffd_job *job, int err)
{
	switch (err) {
	case 0:
	case -EBUSY:
		return err;
	case -EEXIST:
		return gmem_uffd_job_refuse(job, err, "is in place");
	case -EHWPOISON:
		return gmem_uffd_job_refuse_poisoned(job);
	default:
		return gmem_uffd_job_failed(job, err);
	}
}
