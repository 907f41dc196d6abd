/* SPDX-License-Identifier: MIT */
/*
 * Pages that the caller of a gmem_uffd brings in and maps.
 *
 * The order of resolve.c: bytes are fetched with no lock held; under the invalidate lock, shared, the page's side is
 * looked at again, and what is still absent is inserted, published and mapped. Whoever is refused at a page has its
 * touchers woken, so that they meet what is there now: the message of theirs that was read never comes again.
 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/range.h"
#include "fault/uffd.h"
#include "sys/call.h"
#include "sys/uffd.h"

#define BATCH_LEN (16u * GMEM_PAGE_SIZE) /* of the source's bytes, fetched ahead of the lock */
#define MAX_TRIES 1000 /* at a page whose page table another thread is taking away */

/* One call: where it is, and how far it got. */
struct job {
	const char *who;
	struct gmem_view *view;
	uint64_t off, end; /* in the file: of what is left */
	uint64_t unit; /* what is mapped at once: the file's page size */
};

static int begin(struct job *job, const char *who, const struct gmem_uffd *uffd, struct gmem_view *view, uint64_t off,
		 uint64_t len)
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
	*job = (struct job){ .who = who, .view = view, .off = off, .end = off + len, .unit = view->file->page_size };
	return 0;
}

static uint64_t hva_of(const struct job *job)
{
	return (uint64_t)(uintptr_t)gmem_view_at(job->view, job->off);
}

static void wake_page(const struct job *job)
{
	gmem_sys_uffd_wake(job->view->uffd, hva_of(job), job->unit);
}

/* Sets the text and wakes the page's touchers: nothing more will be done for them. */
static int refuse(const struct job *job, int err, const char *why)
{
	wake_page(job);
	return gmem_err(err, "%s: page at 0x%llx %s", job->who, (unsigned long long)job->off, why);
}

static int refuse_private(const struct job *job)
{
	return refuse(job, -EACCES, "is private");
}

/* With a marker there its touchers get SIGBUS. */
static int refuse_poisoned(const struct job *job)
{
	uint64_t done;

	(void)gmem_sys_uffd_poison(job->view->uffd, hva_of(job), job->unit, true, &done);
	return refuse(job, -EHWPOISON, "is poisoned");
}

static int failed(const struct job *job, int err)
{
	return gmem_err_sys(err, "%s: page at 0x%llx", job->who, (unsigned long long)job->off);
}

/* Where the pages end that are on the side of the first one that is left. */
static uint64_t side_end(const struct job *job)
{
	return gmem_state_side_end(&job->view->file->state, job->off >> GMEM_PAGE_SHIFT, job->end >> GMEM_PAGE_SHIFT)
	       << GMEM_PAGE_SHIFT;
}

/*
 * Maps what is in place up to `to`, and wakes who waits for it. `ours` was brought in by this call: one who maps it too
 * has done our work. Invalidate lock held shared; pages are shared ones, and stay so.
 */
static int map_run(struct job *job, uint64_t to, bool ours)
{
	uint64_t most = to - job->off, backed = UINT64_MAX, done;
	int tries = 0;

	while (job->off < to) {
		uint64_t n = gmem_min_u64(to - job->off, most);
		int err = gmem_sys_uffd_continue(job->view->uffd, hva_of(job), n, &done);

		job->off += done;
		if (done)
			tries = 0;
		switch (err) {
		case 0:
			break;
		case -EEXIST:
			if (!ours)
				return refuse(job, err, "is mapped already");
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
			if (++tries == MAX_TRIES)
				return failed(job, err);
			sched_yield();
			break;
		case -EIO:
			/* The kernel lost the page to a memory error. */
			for (uint64_t at = job->off; at < job->off + job->unit; at += GMEM_PAGE_SIZE)
				gmem_state_fail(&job->view->file->state, at >> GMEM_PAGE_SHIFT);
			return refuse_poisoned(job);
		case -ENOENT:
			/* A border inside the run, where the program has split the mapping: page by page. */
			if (most == job->unit)
				return failed(job, err);
			most = job->unit;
			break;
		default:
			return failed(job, err);
		}
	}
	return 0;
}

/* The pages from the first one on that nobody has brought in, at most up to `to`. Or why there is none. */
static int insert_run(struct job *job, uint64_t to, const void *data, struct gmem_folio *folio)
{
	struct gmem_file *file = job->view->file;
	int n = file->ops->adopt(file, job->off, (uint32_t)((to - job->off) >> GMEM_PAGE_SHIFT)), err;

	if (n <= 0)
		return n ? n : -EEXIST;
	err = file->ops->alloc(file, job->off, (uint32_t)n, folio);
	if (err)
		return err;
	folio->data = data;
	return file->ops->insert(file, folio);
}

/* One turn under the lock. -EBUSY: somebody else is at the page. */
static int copy_locked(struct job *job, uint64_t end, const char *data)
{
	uint64_t from = job->off;

	while (job->off < end) {
		struct gmem_folio folio;
		int err;

		if (gmem_file_private(job->view->file, job->off))
			return refuse_private(job);
		err = insert_run(job, gmem_min_u64(side_end(job), end), data + (job->off - from), &folio);
		switch (err) {
		case 0:
			break;
		case -EBUSY:
			return err;
		case -EEXIST:
			return refuse(job, err, "is in place");
		case -EHWPOISON:
			return refuse_poisoned(job);
		default:
			return failed(job, err);
		}
		job->view->file->ops->publish(job->view->file, &folio);
		err = map_run(job, job->off + ((uint64_t)folio.npages << GMEM_PAGE_SHIFT), true);
		if (err)
			return err;
	}
	return 0;
}

/* Is there something of the huge page to bring in? 0: there is. -EEXIST: all of it is in place; -EBUSY. */
static int unit_absent(struct job *job)
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
		return refuse_poisoned(job);
	default:
		n = job->view->file->ops->adopt(job->view->file, job->off, 1);
		return n > 0 ? 0 : n ? n : -EEXIST;
	}
}

static uint32_t absent_run(const struct gmem_file *file, uint64_t off, uint64_t end)
{
	uint64_t to = off;

	while (to < end && !file->ops->present(file, to))
		to += GMEM_PAGE_SIZE;
	return (uint32_t)((to - off) >> GMEM_PAGE_SHIFT);
}

/* Brings in what is absent of the huge page. What is in place stays as it is. -EEXIST: all of it was, by now. */
static int insert_rest(const struct job *job, const char *data)
{
	struct gmem_file *file = job->view->file;
	uint64_t off = job->off, end = off + job->unit;
	bool any = false;

	while (off < end) {
		uint32_t n = absent_run(file, off, end);
		struct gmem_folio folio;
		int err;

		if (!n) {
			off += GMEM_PAGE_SIZE;
			continue;
		}
		err = file->ops->alloc(file, off, n, &folio);
		folio.data = data + (off - job->off);
		if (!err)
			err = file->ops->insert(file, &folio);
		if (err == -EEXIST)
			continue;
		if (err)
			return err;
		file->ops->publish(file, &folio);
		off += (uint64_t)folio.npages << GMEM_PAGE_SHIFT;
		any = true;
	}
	return any ? 0 : -EEXIST;
}

/* A huge page, as copy_locked(): all of it comes in before any of it is mapped. */
static int copy_unit_locked(struct job *job, const char *data)
{
	int err = gmem_file_private(job->view->file, job->off) ? refuse_private(job) : unit_absent(job);

	if (err == -EEXIST)
		return refuse(job, err, "is in place");
	if (err)
		return err;
	err = insert_rest(job, data);
	switch (err) {
	case 0:
		return map_run(job, job->off + job->unit, true);
	case -EEXIST:
		return refuse(job, err, "is in place");
	case -EBUSY:
		return err;
	case -EHWPOISON:
		return refuse_poisoned(job);
	default:
		return failed(job, err);
	}
}

static int continue_unit_locked(struct job *job)
{
	int err = gmem_file_private(job->view->file, job->off) ? refuse_private(job) : unit_absent(job);

	switch (err) {
	case 0:
		return gmem_err(-EFAULT, "%s: page at 0x%llx is not in place, or not all of it", job->who,
				(unsigned long long)job->off);
	case -EEXIST:
		return map_run(job, job->off + job->unit, false);
	default:
		return err;
	}
}

static int continue_locked(struct job *job)
{
	struct gmem_file *file = job->view->file;

	while (job->off < job->end) {
		uint64_t to = job->off, end = side_end(job);
		int err = 0;

		if (gmem_file_private(file, job->off))
			return refuse_private(job);
		while (to < end && !err) {
			err = file->ops->present(file, to) ? 0 : file->ops->adopt(file, to, 1);
			if (!err)
				to += GMEM_PAGE_SIZE;
		}
		if (to > job->off)
			err = map_run(job, to, false);
		else if (err == -EHWPOISON)
			err = refuse_poisoned(job);
		else if (err > 0)
			err = gmem_err(-EFAULT, "%s: page at 0x%llx is not in place", job->who,
				       (unsigned long long)job->off);
		else if (err != -EBUSY)
			err = failed(job, err);
		if (err)
			return err;
	}
	return 0;
}

/* Until nobody is at the page, or was for a moment. */
static void wait_for_unit(const struct job *job)
{
	for (uint64_t off = job->off; off < job->off + job->unit; off += GMEM_PAGE_SIZE)
		gmem_file_wait_for_page(job->view->file, off);
}

/* What was done, or why nothing was. */
static int64_t end(const struct job *job, uint64_t off, int err)
{
	return job->off > off ? (int64_t)(job->off - off) : err;
}

/* The source's bytes, as many whole pages as can be read. */
static int fetch(const struct job *job, void *bounce, const char *src, uint64_t *len)
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
	struct gmem_rwlock *lock;
	struct job job;
	uint64_t batch;
	char *bounce;
	bool huge;
	int err = begin(&job, "gmem_uffd_copy", uffd, view, off, len);

	if (err)
		return err;
	if ((uintptr_t)src + len < (uintptr_t)src)
		return gmem_err(-EINVAL, "gmem_uffd_copy: source at %p wraps", src);
	huge = job.unit > GMEM_PAGE_SIZE;
	batch = huge ? job.unit : gmem_min_u64(len, BATCH_LEN);
	bounce = malloc(batch);
	if (!bounce)
		return gmem_err_sys(-ENOMEM, "gmem_uffd_copy");
	lock = &view->file->invalidate_lock;
	while (!err && job.off < job.end) {
		uint64_t from = job.off, n = gmem_min_u64(job.end - from, batch);

		err = fetch(&job, bounce, (const char *)src + (from - off), &n);
		while (!err && job.off < from + n) {
			gmem_rwlock_lock_shared(lock);
			err = huge ? copy_unit_locked(&job, bounce) :
				     copy_locked(&job, from + n, bounce + (job.off - from));
			gmem_rwlock_unlock_shared(lock);
			if (err != -EBUSY)
				continue;
			/* It will be in place, or absent again. */
			wait_for_unit(&job);
			err = 0;
		}
	}
	free(bounce);
	gmem_uffd_resolved(uffd, view, off, len, false);
	return end(&job, off, err);
}

int64_t gmem_uffd_continue(struct gmem_uffd *uffd, struct gmem_view *view, uint64_t off, uint64_t len)
{
	struct job job;
	int err = begin(&job, "gmem_uffd_continue", uffd, view, off, len);

	if (err)
		return err;
	do {
		gmem_rwlock_lock_shared(&view->file->invalidate_lock);
		err = job.unit > GMEM_PAGE_SIZE ? continue_unit_locked(&job) : continue_locked(&job);
		gmem_rwlock_unlock_shared(&view->file->invalidate_lock);
		if (err == -EBUSY)
			wait_for_unit(&job);
		/* Of huge pages one at a time. */
	} while (err == -EBUSY || (!err && job.off < job.end));
	gmem_uffd_resolved(uffd, view, off, len, false);
	return end(&job, off, err);
}

int gmem_uffd_wake(struct gmem_uffd *uffd, struct gmem_view *view, uint64_t off, uint64_t len)
{
	struct job job;
	int err = begin(&job, "gmem_uffd_wake", uffd, view, off, len);

	if (err)
		return err;
	gmem_uffd_resolved(uffd, view, off, len, true);
	err = gmem_sys_uffd_wake(view->uffd, hva_of(&job), len);
	return err ? failed(&job, err) : 0;
}
