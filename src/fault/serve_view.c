/* SPDX-License-Identifier: MIT */
#include "fault/serve_view.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "file/place.h"
#include "sys/call.h"
#include "sys/uffd.h"

static uint64_t hva_of(const struct gmem_view *view)
{
	return (uint64_t)(uintptr_t)view->addr;
}

/* Gives the view a descriptor. */
static int give_uffd(struct gmem_view *view, struct gmem_serving *s)
{
	if (!s->had_uffd && s->uffd >= 0) {
		view->uffd = fcntl(s->uffd, F_DUPFD_CLOEXEC, 0);
		return view->uffd < 0 ? gmem_err_sys(-errno, "%s", s->who) : 0;
	}
	if (!s->had_uffd) {
		int err = gmem_view_open_uffd(view);

		if (err)
			return gmem_err_sys(err, "%s: userfaultfd (see gmem info)", s->who);
	}
	s->uffd = view->uffd;
	return 0;
}

/*
 * Write-protect mode too: without it the kernel, when it makes pages of the file one large one, drops the page tables
 * of the view and its markers with them. A kernel that has no such mode here has no markers either.
 */
static int register_view(const struct gmem_view *view, const struct gmem_serving *s)
{
	unsigned int modes = s->modes ? s->modes : GMEM_SYS_UFFD_MISSING | GMEM_SYS_UFFD_MINOR;
	int err = gmem_sys_uffd_register(s->uffd, hva_of(view), view->len, modes | GMEM_SYS_UFFD_WP);

	if (err != -EINVAL)
		return err;
	return modes & GMEM_SYS_UFFD_WP ? -EOPNOTSUPP : gmem_sys_uffd_register(s->uffd, hva_of(view), view->len, modes);
}

/* The descriptor of give_uffd(). */
static void take_uffd(struct gmem_view *view, const struct gmem_serving *s)
{
	if (s->had_uffd || view->uffd < 0)
		return;
	close(view->uffd);
	view->uffd = -1;
}

/* Touching a private page is to be an event: what keeps the host out of it goes. It is served by now. */
static int drop_markers(const struct gmem_view *view)
{
	const struct gmem_state *state = &view->file->state;
	uint64_t page = view->off >> GMEM_PAGE_SHIFT, end = (view->off + view->len) >> GMEM_PAGE_SHIFT;
	int err = 0;

	/* Nothing of a view that is served is past the end. */
	while (page < end && !err) {
		uint64_t next = gmem_state_side_end(state, page, end);

		if (gmem_state_private(state, page))
			err = gmem_sys_zap(gmem_view_at(view, page << GMEM_PAGE_SHIFT), (next - page)
												<< GMEM_PAGE_SHIFT);
		page = next;
	}
	return err;
}

int gmem_check_servable(const struct gmem_view *view, const char *who)
{
	int err;

	if (gmem_view_past_end(view))
		return gmem_err(-EINVAL, "%s: this view reaches past the end of its file", who);
	err = gmem_view_check_whole(view);
	if (err == -EFAULT)
		return gmem_err(-EINVAL,
				"%s: the program has unmapped a part of this view, or mapped something over it", who);
	return err ? gmem_err_sys(err, "%s: /proc/self/maps", who) : 0;
}

/* The rest of gmem_serve_view(). */
static int serve(struct gmem_view *view, struct gmem_serving *s)
{
	int err;

	s->had_uffd = view->uffd >= 0;
	if (view->by_mapping || (s->had_uffd && s->use == GMEM_VIEW_BALLOONED))
		return gmem_err(-EOPNOTSUPP,
				"%s: this view has had private pages, and cannot be registered as it is needed here",
				s->who);
	err = give_uffd(view, s);
	if (err)
		return err;
	err = register_view(view, s);
	if (err) {
		take_uffd(view, s);
		return gmem_err_sys(err, "%s: registering %llu bytes", s->who, (unsigned long long)view->len);
	}
	view->use = s->use;
	view->private_events = s->private_events;
	err = s->private_events ? drop_markers(view) : 0;
	if (err) {
		gmem_unserve_view(view, s);
		return gmem_err_sys(err, "%s: private pages", s->who);
	}
	return 0;
}

int gmem_serve_view(struct gmem_view *view, struct gmem_serving *s)
{
	int err;

	gmem_lockcheck_assert_held(GMEM_LOCK_INVALIDATE, &view->file->invalidate_lock);
	if (view->use != GMEM_VIEW_PLAIN)
		return gmem_err(-EBUSY, "%s: this view is registered already", s->who);
	err = gmem_check_servable(view, s->who);
	if (err)
		return err;
	if (view->by_mapping || s->use == GMEM_VIEW_BALLOONED)
		gmem_view_unmark_lost(view);
	err = serve(view, s);
	/* As before. */
	if (err)
		(void)gmem_view_mark_all_lost(view);
	return err;
}

void gmem_unserve_view(struct gmem_view *view, const struct gmem_serving *s)
{
	/* First, while a toucher still waits: no moment without the one or the other. */
	if (view->private_events) {
		view->private_events = false;
		(void)gmem_view_mark_private(view);
	}
	/* Modes of a registration are added to and never taken away, so it goes whole. */
	gmem_sys_uffd_unregister(s->uffd, hva_of(view), view->len);
	if (s->had_uffd)
		gmem_sys_uffd_register(view->uffd, hva_of(view), view->len, GMEM_SYS_UFFD_WP);
	take_uffd(view, s);
	view->use = GMEM_VIEW_PLAIN;
	/* What was converted, or failed, meanwhile was marked through the registration that has ended. */
	(void)gmem_view_mark_private(view);
	(void)gmem_view_mark_all_lost(view);
}
