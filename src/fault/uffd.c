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
	uffd->answerer.answer = gmem_uffd_answer;
	uffd->flags = opts ? opts->flags : 0;
	uffd->pid = getpid();
	pthread_mutex_init(&uffd->m, NULL);
	gmem_cond_init(&uffd->resolved);
	gmem_cond_init(&uffd->left);
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
	bool ours;

	if (!uffd)
		return;
	/* In a forked child guests and readers seem to be in it that are not there: nobody to wait for. */
	ours = uffd->pid == getpid();
	while (uffd->members) {
		struct gmem_view *view = uffd->members->view;

		gmem_uffd_delist(uffd, uffd->members);
		view->unmapping = NULL;
		view->server = NULL;
	}
	if (uffd->epoll >= 0)
		close(uffd->epoll);
	if (uffd->guest_event >= 0)
		close(uffd->guest_event);
	if (ours) {
		pthread_cond_destroy(&uffd->left);
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
