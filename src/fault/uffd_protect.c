/* SPDX-License-Identifier: MIT */
/* Write-protected pages of a gmem_uffd. What they are, and how they stay so: file/protect.h. */
#include <errno.h>
#include <sched.h>

#include "base/err.h"
#include "base/range.h"
#include "fault/uffd_job.h"
#include "file/protect.h"

/* The kernel does not say how far it got: at a border of the program's own making it is asked page by page. */
static int protect_run(struct gmem_uffd_job *job, uint64_t to)
{
	uint64_t most = to - job->off;
	int tries = 0;

	while (job->off < to) {
		uint64_t n = gmem_min_u64(to - job->off, most);
		int err = gmem_view_protect(job->view, job->off, n, job->protect, true);

		switch (err) {
		case 0:
			job->off += n;
			tries = 0;
			break;
		case -EAGAIN:
			if (++tries == GMEM_UFFD_MAX_TRIES)
				return gmem_uffd_job_failed(job, err);
			sched_yield();
			break;
		case -ENOENT:
			if (most > job->unit) {
				most = job->unit;
				break;
			}
			return gmem_uffd_job_failed(job, err);
		default:
			return gmem_uffd_job_failed(job, err);
		}
	}
	return 0;
}

int64_t gmem_uffd_writeprotect(struct gmem_uffd *uffd, struct gmem_view *view, uint64_t off, uint64_t len, bool protect)
{
	struct gmem_uffd_job job;
	int err = gmem_uffd_job_begin(&job, "gmem_uffd_writeprotect", uffd, view, off, len);

	if (err)
		return err;
	if (!atomic_load(&view->protection))
		return gmem_err(-EINVAL, "gmem_uffd_writeprotect: this view was registered without GMEM_UFFD_MODE_WP");
	job.protect = protect;
	err = gmem_uffd_job_run(&job, job.end, protect_run);
	return gmem_uffd_job_end(&job, off, err);
}
