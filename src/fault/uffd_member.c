/* SPDX-License-Identifier: MIT */
/* Views of a gmem_uffd: how they come to be polled, and how they go. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/err.h"
#include "fault/serve_view.h"
#include "fault/uffd.h"
#include "file/protect.h"
#include "sys/uffd.h"

#define MODES (GMEM_UFFD_MODE_MISSING | GMEM_UFFD_MODE_MINOR | GMEM_UFFD_MODE_WP | GMEM_UFFD_MODE_REMOVE)

int gmem_uffd_check_modes(const char *who, uint32_t modes)
{
	if (modes & ~MODES)
		return gmem_err(-EINVAL, "%s: modes 0x%x: unknown", who, modes);
	if (!(modes & ~GMEM_UFFD_MODE_REMOVE))
		return gmem_err(-EINVAL, "%s: modes 0x%x: none of MISSING, MINOR and WP", who, modes);
	return 0;
}

unsigned int gmem_uffd_kernel_modes(uint32_t modes)
{
	return (modes & GMEM_UFFD_MODE_MISSING ? GMEM_SYS_UFFD_MISSING | GMEM_SYS_UFFD_MINOR : 0) |
	       (modes & GMEM_UFFD_MODE_MINOR ? GMEM_SYS_UFFD_MINOR : 0) |
	       (modes & GMEM_UFFD_MODE_WP ? GMEM_SYS_UFFD_WP : 0);
}

/* ---- channels. Caller holds m */

/*
 * That of the same descriptor: as in the pager, every userfault descriptor has an inode of its own; where they share
 * the anonymous one, as the poll set's own does, the number must do.
 */
static struct gmem_uffd_channel *find_channel(const struct gmem_uffd *uffd, int caller_fd, const struct stat *st,
					      const struct stat *shared)
{
	for (struct gmem_uffd_channel *c = uffd->channels; c; c = c->link) {
		if (!c->ours || c->process || c->dev != st->st_dev || c->ino != st->st_ino)
			continue;
		if (shared->st_dev != st->st_dev || shared->st_ino != st->st_ino || c->caller_fd == caller_fd)
			return c;
	}
	return NULL;
}

static int open_channel(struct gmem_uffd *uffd, int fd, bool ours, struct gmem_uffd_channel **ret)
{
	struct gmem_uffd_channel *c = calloc(1, sizeof(*c));
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = c };
	int err;

	if (!c)
		return -ENOMEM;
	c->ours = ours;
	c->caller_fd = fd;
	c->fd = ours ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : fd;
	/* A descriptor that blocks is never ready to poll(2). */
	if (c->fd < 0 || epoll_ctl(uffd->epoll, EPOLL_CTL_ADD, c->fd, &ev)) {
		err = -errno;
		if (ours && c->fd >= 0)
			close(c->fd);
		free(c);
		return err;
	}
	c->members = 1;
	c->link = uffd->channels;
	uffd->channels = c;
	*ret = c;
	return 0;
}

static void leave_channel(struct gmem_uffd *uffd, struct gmem_uffd_channel *c)
{
	struct gmem_uffd_channel **at = &uffd->channels;

	if (!c || --c->members)
		return;
	while (*at != c)
		at = &(*at)->link;
	*at = c->link;
	/* Not in a forked child, or the parent would get no event any more. */
	if (uffd->pid == getpid())
		epoll_ctl(uffd->epoll, EPOLL_CTL_DEL, c->fd, NULL);
	if (c->ours)
		close(c->fd);
	free(c);
}

/* Of another process's descriptor. */
static int join_channel(struct gmem_uffd *uffd, int caller_fd, struct gmem_uffd_channel **ret)
{
	struct gmem_uffd_channel *c;
	struct stat st, shared;
	int err;

	if (fstat(caller_fd, &st) || fstat(uffd->epoll, &shared))
		return -errno;
	c = find_channel(uffd, caller_fd, &st, &shared);
	if (c) {
		c->members++;
		*ret = c;
		return 0;
	}
	err = open_channel(uffd, caller_fd, true, ret);
	if (!err) {
		(*ret)->dev = st.st_dev;
		(*ret)->ino = st.st_ino;
	}
	return err;
}

/* ---- members */

static bool overlaps(const struct gmem_view *a, const struct gmem_view *b)
{
	uint64_t x = (uint64_t)(uintptr_t)a->addr, y = (uint64_t)(uintptr_t)b->addr;

	return x < y + b->len && y < x + a->len;
}

/* One that somebody unmapped in its process may have another one at its address; it is to be let go of first. */
static int check_overlap(const struct gmem_uffd *uffd, const struct gmem_uffd_member *member, const char *who)
{
	for (const struct gmem_uffd_member *m = uffd->members; m; m = m->next)
		if (m->channel == member->channel && overlaps(m->view, member->view))
			return gmem_err(-EEXIST, "%s: hva %p: overlaps a mapping of the same descriptor at %p", who,
					member->view->addr, m->view->addr);
	return 0;
}

static int join(struct gmem_uffd *uffd, struct gmem_uffd_member *member, const char *who, int caller_fd, int pidfd)
{
	int err = member->view->foreign ? join_channel(uffd, caller_fd, &member->channel) :
					  open_channel(uffd, member->view->uffd, false, &member->channel);

	if (!err && pidfd >= 0)
		err = open_channel(uffd, pidfd, true, &member->process);
	if (err)
		return gmem_err_sys(err, "%s: epoll", who);
	if (member->process)
		member->process->process = true;
	return member->view->foreign ? check_overlap(uffd, member, who) : 0;
}

int gmem_uffd_enlist(struct gmem_uffd *uffd, struct gmem_uffd_member *member, const char *who, int caller_fd, int pidfd)
{
	int err;

	gmem_uffd_lock(uffd);
	err = join(uffd, member, who, caller_fd, pidfd);
	if (err) {
		leave_channel(uffd, member->process);
		leave_channel(uffd, member->channel);
		member->process = member->channel = NULL;
	} else {
		/* What is half told happened before it was there. */
		if (member->channel->told)
			member->channel->told++;
		member->next = uffd->members;
		uffd->members = member;
	}
	gmem_uffd_unlock(uffd);
	return err;
}

void gmem_uffd_delist(struct gmem_uffd *uffd, struct gmem_uffd_member *member)
{
	struct gmem_uffd_member **at = &uffd->members;
	bool ours = uffd->pid == getpid();
	uint32_t before = 0;

	/* In a forked child the lock may be held by a thread that is not there. */
	if (ours)
		gmem_uffd_lock(uffd);
	for (; *at != member; at = &(*at)->next)
		before += (*at)->channel == member->channel;
	*at = member->next;
	if (before < member->channel->told)
		member->channel->told--;
	leave_channel(uffd, member->process);
	leave_channel(uffd, member->channel);
	if (ours) {
		gmem_uffd_unlock(uffd);
		gmem_uffd_end_supply(member);
	}
	free(member);
}

void gmem_uffd_forget_view(void *server, struct gmem_view *view)
{
	struct gmem_uffd *uffd = server;
	bool ours = uffd->pid == getpid();
	struct gmem_uffd_member *m;

	if (ours)
		gmem_uffd_lock(uffd);
	for (m = uffd->members; m->view != view;)
		m = m->next;
	if (ours)
		gmem_uffd_unlock(uffd);
	/* Two do not unmap one view. */
	gmem_uffd_delist(uffd, m);
}

int gmem_uffd_new_member(struct gmem_uffd *uffd, struct gmem_view *view, uint32_t modes, const char *who,
			 struct gmem_uffd_member **ret)
{
	struct gmem_uffd_member *member = malloc(sizeof(*member));
	struct gmem_supply *supply = modes & GMEM_UFFD_MODE_MISSING ? malloc(sizeof(*supply)) : NULL;

	if (!member || (!supply && (modes & GMEM_UFFD_MODE_MISSING))) {
		free(supply);
		free(member);
		return gmem_err_sys(-ENOMEM, "%s", who);
	}
	*member = (struct gmem_uffd_member){
		.uffd = uffd,
		.view = view,
		.modes = modes,
		/* Elsewhere what is private has a mark of the library's, and SIGBUS. */
		.tells_private = view->foreign || view->file->engine == GMEM_ENGINE_KERNEL ||
				 ((uffd->flags & GMEM_UFFD_PRIVATE_EVENTS) && (modes & GMEM_UFFD_MODE_MISSING)),
		.supply = supply,
	};
	if (supply)
		*supply = (struct gmem_supply){
			.off = view->off, .len = view->len, .bring_in = gmem_uffd_bring_in, .opaque = member
		};
	*ret = member;
	return 0;
}

/* ---- views of this process */

static int serve(struct gmem_uffd *uffd, struct gmem_uffd_member *member, struct gmem_serving *serving)
{
	struct gmem_view *view = member->view;
	int err = gmem_serve_view(view, serving);

	if (err)
		return err;
	if (member->modes & GMEM_UFFD_MODE_WP)
		err = gmem_view_make_protectable(view);
	if (err)
		gmem_err_sys(err, "%s", serving->who);
	else
		err = gmem_uffd_enlist(uffd, member, serving->who, -1, -1);
	if (err) {
		gmem_view_drop_protection(view);
		gmem_unserve_view(view, serving);
		return err;
	}
	view->server = uffd;
	view->unmapping = gmem_uffd_forget_view;
	if (view->user_mode_only)
		atomic_store(&uffd->user_mode_only, true);
	return 0;
}

static int check_view(const struct gmem_view *view, const char *who, uint32_t modes)
{
	if (view->foreign)
		return gmem_err(-EBUSY, "%s: this stands for a mapping of another process, which is registered", who);
	if (gmem_view_past_end(view))
		return gmem_err(-EINVAL, "%s: this view reaches past the end of its file", who);
	if (view->file->state.init_private)
		return gmem_err(-EINVAL, "%s: pages of this file began private: it takes no userfaults", who);
	if (!view->file->ops->can_userfault(view->file, view->off, view->len))
		return gmem_err(-EINVAL, "%s: this kernel's guest_memfd takes no userfaults, or was not asked for it",
				who);
	if ((modes & GMEM_UFFD_MODE_WP) && view->file->engine == GMEM_ENGINE_KERNEL)
		return gmem_err(-EOPNOTSUPP, "%s: no guest_memfd takes write protection", who);
	return 0;
}

/* One that is told of removals; the view has a copy of it then. */
static int open_for_removals(const struct gmem_view *view, const char *who, bool *user_mode_only)
{
	int fd = gmem_sys_uffd_open(gmem_view_uffd_features(view) | UFFD_FEATURE_EVENT_REMOVE, user_mode_only);

	return fd < 0 ? gmem_err_sys(fd, "%s: userfaultfd (see gmem info)", who) : fd;
}

static int do_register(struct gmem_uffd *uffd, struct gmem_view *view, uint32_t modes, const char *who)
{
	struct gmem_serving serving = {
		.who = who,
		.use = modes & GMEM_UFFD_MODE_REMOVE ? GMEM_VIEW_BALLOONED : GMEM_VIEW_SERVED,
		.modes = gmem_uffd_kernel_modes(modes),
		.uffd = -1,
	};
	struct gmem_rwlock *lock = &view->file->invalidate_lock;
	struct gmem_uffd_member *member;
	bool user_mode_only = false;
	struct gmem_supply *supply;
	int err = gmem_uffd_check_process(uffd, who), removals = -1;

	if (!err)
		err = gmem_uffd_check_modes(who, modes);
	if (!err)
		err = check_view(view, who, modes);
	if (!err && (modes & GMEM_UFFD_MODE_REMOVE))
		err = serving.uffd = removals = open_for_removals(view, who, &user_mode_only);
	if (err < 0)
		return err;
	err = gmem_uffd_new_member(uffd, view, modes, who, &member);
	if (err)
		goto out_close;
	supply = member->supply;
	serving.private_events = member->tells_private && view->file->engine == GMEM_ENGINE_USER;
	gmem_rwlock_lock(lock);
	err = serve(uffd, member, &serving);
	if (!err && user_mode_only) {
		view->user_mode_only = true;
		atomic_store(&uffd->user_mode_only, true);
	}
	gmem_rwlock_unlock(lock);
	if (err) {
		free(supply);
		free(member);
		goto out_close;
	}
	/* From now on no guest finds an absent page of it to be zero. */
	if (supply)
		gmem_file_supply(view->file, supply);

out_close:
	if (removals >= 0)
		close(removals);
	return err;
}

int gmem_uffd_register(struct gmem_uffd *uffd, struct gmem_view *view, uint32_t modes)
{
	return do_register(uffd, view, modes, "gmem_uffd_register");
}

int gmem_uffd_add_view(struct gmem_uffd *uffd, struct gmem_view *view)
{
	return do_register(uffd, view, GMEM_UFFD_MODE_MISSING | GMEM_UFFD_MODE_MINOR, "gmem_uffd_add_view");
}
