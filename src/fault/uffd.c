/* SPDX-License-Identifier: MIT */
#include "fault/uffd.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/cond.h"
#include "base/err.h"
#include "base/opts.h"
#include "fault/serve_view.h"

void gmem_uffd_lock(struct gmem_uffd *uffd)
{
	gmem_lockcheck_acquire(GMEM_LOCK_LEAF, uffd);
	pthread_mutex_lock(&uffd->m);
}

void gmem_uffd_unlock(struct gmem_uffd *uffd)
{
	pthread_mutex_unlock(&uffd->m);
	gmem_lockcheck_release(GMEM_LOCK_LEAF, uffd);
}

int gmem_uffd_check_process(const struct gmem_uffd *uffd, const char *who)
{
	if (uffd->pid != getpid())
		return gmem_err(-EIO, "%s: this object is a copy that came with fork(2)", who);
	return 0;
}

static int check_opts(const struct gmem_uffd_opts *opts)
{
	if (!opts)
		return 0;
	if (!gmem_opts_valid(opts, opts->size, sizeof(*opts)))
		return gmem_err(-EINVAL, "gmem_uffd_create: opts.size %zu: expected %zu", opts->size, sizeof(*opts));
	if (opts->flags & ~GMEM_UFFD_PRIVATE_EVENTS)
		return gmem_err(-EINVAL, "gmem_uffd_create: flags 0x%x: unknown", opts->flags);
	return 0;
}

int gmem_uffd_create(const struct gmem_uffd_opts *opts, struct gmem_uffd **ret)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = NULL };
	struct gmem_uffd *uffd;
	int err = check_opts(opts);

	if (err)
		return err;
	uffd = calloc(1, sizeof(*uffd));
	if (!uffd)
		return gmem_err_sys(-ENOMEM, "gmem_uffd_create");
	uffd->flags = opts ? opts->flags : 0;
	uffd->pid = getpid();
	pthread_mutex_init(&uffd->m, NULL);
	gmem_cond_init(&uffd->resolved);
	uffd->epoll = epoll_create1(EPOLL_CLOEXEC);
	uffd->guest_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (uffd->epoll < 0 || uffd->guest_event < 0 || epoll_ctl(uffd->epoll, EPOLL_CTL_ADD, uffd->guest_event, &ev)) {
		err = gmem_err_sys(-errno, "gmem_uffd_create");
		gmem_uffd_free(uffd);
		return err;
	}
	*ret = uffd;
	return 0;
}

void gmem_uffd_free(struct gmem_uffd *uffd)
{
	struct gmem_uffd_member *next;
	bool ours;

	if (!uffd)
		return;
	/* In a forked child guests and readers seem to be in it that are not there: nobody to wait for. */
	ours = uffd->pid == getpid();
	for (struct gmem_uffd_member *m = uffd->members; m; m = next) {
		next = m->next;
		if (ours)
			gmem_uffd_end_supply(m);
		m->view->unmapping = NULL;
		m->view->server = NULL;
		free(m);
	}
	if (uffd->epoll >= 0)
		close(uffd->epoll);
	if (uffd->guest_event >= 0)
		close(uffd->guest_event);
	if (ours) {
		pthread_cond_destroy(&uffd->resolved);
		pthread_mutex_destroy(&uffd->m);
	}
	free(uffd);
}

int gmem_uffd_fd(const struct gmem_uffd *uffd)
{
	return uffd->epoll;
}

bool gmem_uffd_user_mode_only(const struct gmem_uffd *uffd)
{
	return atomic_load(&uffd->user_mode_only);
}

/* No event of this view is handed out any more once this has returned. */
static void forget_view(void *server, struct gmem_view *view)
{
	struct gmem_uffd *uffd = server;
	struct gmem_uffd_member **at, *m;

	gmem_uffd_lock(uffd);
	at = &uffd->members;
	while ((*at)->view != view)
		at = &(*at)->next;
	m = *at;
	*at = m->next;
	/* Not in a forked child, or the parent would get no event any more. */
	if (uffd->pid == getpid())
		epoll_ctl(uffd->epoll, EPOLL_CTL_DEL, view->uffd, NULL);
	gmem_uffd_unlock(uffd);
	if (uffd->pid == getpid())
		gmem_uffd_end_supply(m);
	free(m);
}

static int enlist(struct gmem_uffd *uffd, struct gmem_uffd_member *member)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = member };
	int err;

	gmem_uffd_lock(uffd);
	err = epoll_ctl(uffd->epoll, EPOLL_CTL_ADD, member->view->uffd, &ev) ? -errno : 0;
	if (!err) {
		member->next = uffd->members;
		uffd->members = member;
	}
	gmem_uffd_unlock(uffd);
	return err ? gmem_err_sys(err, "gmem_uffd_add_view: epoll") : 0;
}

static int serve(struct gmem_uffd *uffd, struct gmem_uffd_member *member)
{
	struct gmem_view *view = member->view;
	struct gmem_serving serving = {
		.who = "gmem_uffd_add_view",
		.use = GMEM_VIEW_SERVED,
		.private_events = uffd->flags & GMEM_UFFD_PRIVATE_EVENTS,
		.uffd = -1,
	};
	int err = gmem_serve_view(view, &serving);

	if (err)
		return err;
	err = enlist(uffd, member);
	if (err) {
		gmem_unserve_view(view, &serving);
		return err;
	}
	view->server = uffd;
	view->unmapping = forget_view;
	if (view->user_mode_only)
		atomic_store(&uffd->user_mode_only, true);
	return 0;
}

int gmem_uffd_add_view(struct gmem_uffd *uffd, struct gmem_view *view)
{
	struct gmem_rwlock *lock = &view->file->invalidate_lock;
	struct gmem_uffd_member *member;
	struct gmem_supply *supply;
	int err = gmem_uffd_check_process(uffd, "gmem_uffd_add_view");

	if (err)
		return err;
	if (gmem_view_past_end(view))
		return gmem_err(-EINVAL, "gmem_uffd_add_view: this view reaches past the end of its file");
	if (!view->file->ops->can_userfault(view->file, view->off, view->len))
		return gmem_err(-EINVAL,
				"gmem_uffd_add_view: pages of this file began private: it takes no userfaults");
	member = malloc(sizeof(*member));
	supply = malloc(sizeof(*supply));
	if (!member || !supply) {
		err = gmem_err_sys(-ENOMEM, "gmem_uffd_add_view");
		goto out_free;
	}
	*member = (struct gmem_uffd_member){ .uffd = uffd, .view = view, .supply = supply };
	*supply = (struct gmem_supply){
		.off = view->off, .len = view->len, .bring_in = gmem_uffd_bring_in, .opaque = member
	};
	gmem_rwlock_lock(lock);
	err = serve(uffd, member);
	gmem_rwlock_unlock(lock);
	if (err)
		goto out_free;
	/* From now on no guest finds an absent page of it to be zero. */
	gmem_file_supply(view->file, supply);
	return 0;

out_free:
	free(supply);
	free(member);
	return err;
}
