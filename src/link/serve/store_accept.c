/* SPDX-License-Identifier: MIT */
/*
 * Clients: from the minder, which has stored them, or from the listening sockets. One epoll set tells of both, so that
 * a caller's loop need not know which.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/err.h"
#include "link/serve/name.h"
#include "link/serve/socket.h"
#include "link/serve/store_impl.h"

static int watch(struct gmem_store *s, int fd, bool on)
{
	struct epoll_event e = { .events = EPOLLIN, .data.fd = fd };

	if (epoll_ctl(s->epoll, on ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, fd, &e) && errno != EEXIST && errno != ENOENT)
		return gmem_err_sys(-errno, "waiting for clients");
	return 0;
}

static int watch_listeners(struct gmem_store *s, bool on)
{
	int err = 0;

	for (size_t i = 0; i < s->nlistening && !err; i++)
		if (s->listening[i].clients)
			err = watch(s, s->listening[i].fd, on);
	return err;
}

int gmem_store_watch(struct gmem_store *s)
{
	int err;

	s->epoll = epoll_create1(EPOLL_CLOEXEC);
	s->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (s->epoll < 0 || s->timer < 0)
		return gmem_err_sys(-errno, "waiting for clients");
	err = watch(s, s->timer, true);
	if (err)
		return err;
	return s->channel >= 0 ? watch(s, s->channel, true) : watch_listeners(s, true);
}

/* There is no room for a descriptor: whoever waits in the queue keeps its place, and we look again in a second. */
static int be_deaf(struct gmem_store *s, int err)
{
	const struct itimerspec second = { .it_value.tv_sec = 1 };

	s->deaf = true;
	if (s->channel >= 0)
		watch(s, s->channel, false);
	watch_listeners(s, false);
	timerfd_settime(s->timer, 0, &second, NULL);
	return gmem_err_sys(err, "a client waits");
}

static void hear_again(struct gmem_store *s)
{
	uint64_t n;

	if (read(s->timer, &n, sizeof(n)) < 0)
		return;
	s->deaf = false;
	if (s->channel >= 0)
		watch(s, s->channel, true);
	else
		watch_listeners(s, true);
}

void gmem_store_forget_minder(struct gmem_store *s)
{
	s->minder = GMEM_STORE_NOBODY;
	s->minder_lost = true;
}

/* 1: `ret`; 0: nobody now; -ENOTCONN: the minder is dead, and there is no more to come from it. */
static int from_minder(struct gmem_store *s, struct gmem_store_client *ret)
{
	char id[GMEM_STORE_MAX_ID + 2] = "";
	int n = gmem_socket_recv(s->channel, id, sizeof(id) - 1, &ret->fd);

	if (n == -EAGAIN)
		return 0;
	if (n == -EMFILE || n == -ENFILE || n == -ENOMEM)
		return be_deaf(s, n);
	if (n <= 0) {
		close(s->channel); /* and leaves the set by that */
		s->channel = -1;
		gmem_store_forget_minder(s);
		watch_listeners(s, true);
		return -ENOTCONN;
	}
	if (ret->fd < 0)
		return 0;
	if (!gmem_id_ok(id)) {
		close(ret->fd);
		return 0;
	}
	snprintf(ret->id, sizeof(ret->id), "%s", id);
	return 1;
}

static int from_listeners(struct gmem_store *s, struct gmem_store_client *ret)
{
	char text[96];
	int err;

	for (size_t i = 0; i < s->nlistening; i++) {
		if (!s->listening[i].clients)
			continue;
		/* All that can be done before is: between these two calls a client could be lost with us. */
		gmem_id_new(&s->last_id, ret->id);
		snprintf(text, sizeof(text), "FDSTORE=1\nFDPOLL=0\nFDNAME=%s" GMEM_STORE_CONNECTION, ret->id);
		do {
			ret->fd = accept4(s->listening[i].fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		} while (ret->fd < 0 && (errno == EINTR || errno == ECONNABORTED));
		err = ret->fd < 0 ? -errno : gmem_store_say(s, text, ret->fd, true);
		if (ret->fd >= 0) {
			/* Not stored, it is served all the same: who minds us has trouble, the client has none. */
			s->put += !err && s->minder != GMEM_STORE_NOBODY;
			return 1;
		}
		if (err == -EMFILE || err == -ENFILE || err == -ENOMEM || err == -ENOBUFS)
			return be_deaf(s, err == -ENOBUFS ? -ENOMEM : err);
		if (err != -EAGAIN)
			return gmem_err_sys(err, "accepting a client");
	}
	return 0;
}

int gmem_store_accept(struct gmem_store *s, struct gmem_store_client *ret)
{
	char name[GMEM_STORE_MAX_NAME + 1];
	int got = -ENOTCONN;

	pthread_mutex_lock(&s->m);
	hear_again(s);
	if (s->deaf) {
		pthread_mutex_unlock(&s->m);
		return 0;
	}
	if (s->channel >= 0)
		got = from_minder(s, ret);
	if (got == -ENOTCONN)
		got = from_listeners(s, ret);
	if (got > 0) {
		s->accepted++;
		snprintf(name, sizeof(name), "%s" GMEM_STORE_CONNECTION, ret->id);
		if (s->minder != GMEM_STORE_NOBODY)
			(void)gmem_store_note(s, name, -1);
	}
	pthread_mutex_unlock(&s->m);
	return got;
}

int gmem_store_accept_fd(const struct gmem_store *s)
{
	return s->epoll;
}

/* ---- listening sockets */

/* Somebody who minds us listens there for us. To ask by connecting would be a client that says nothing. */
static bool passed(struct gmem_store *s, const char *path)
{
	bool found = false;

	pthread_mutex_lock(&s->m);
	for (size_t i = 0; i < s->nlistening && !found; i++) {
		struct sockaddr_un sa = { .sun_family = AF_UNSPEC };
		socklen_t len = sizeof(sa);

		found = s->listening[i].clients && !getsockname(s->listening[i].fd, (struct sockaddr *)&sa, &len) &&
			sa.sun_family == AF_UNIX && !strncmp(sa.sun_path, path, sizeof(sa.sun_path));
	}
	pthread_mutex_unlock(&s->m);
	return found;
}

int gmem_store_listen(struct gmem_store *s, const char *path)
{
	struct gmem_store_listening *l;
	int fd, err = 0;

	if (passed(s, path))
		return 0;
	fd = gmem_socket_listen(path);
	if (fd < 0)
		return fd;
	pthread_mutex_lock(&s->m);
	if (s->nlistening == sizeof(s->listening) / sizeof(s->listening[0]))
		err = gmem_err(-ENOSPC, "%s: more than %zu listening sockets", path, s->nlistening);
	if (!err)
		err = gmem_store_say(s, "FDSTORE=1\nFDPOLL=0\nFDNAME=" GMEM_STORE_CLIENTS, fd, true);
	if (!err && s->channel < 0)
		err = watch(s, fd, true);
	if (!err) {
		l = &s->listening[s->nlistening++];
		*l = (struct gmem_store_listening){ .name = GMEM_STORE_CLIENTS, .fd = fd, .clients = true };
		fd = -1;
	}
	pthread_mutex_unlock(&s->m);
	if (fd >= 0)
		close(fd);
	return err;
}

size_t gmem_store_nlisteners(const struct gmem_store *store)
{
	struct gmem_store *s = (struct gmem_store *)(uintptr_t)store;
	size_t n = 0;

	pthread_mutex_lock(&s->m);
	for (size_t i = 0; i < s->nlistening; i++)
		n += s->listening[i].clients;
	pthread_mutex_unlock(&s->m);
	return n;
}

int gmem_store_listener(struct gmem_store *s, const char *name)
{
	int fd = -ENOENT;

	pthread_mutex_lock(&s->m);
	for (size_t i = 0; i < s->nlistening && fd < 0; i++) {
		if (s->listening[i].clients || strcmp(s->listening[i].name, name))
			continue;
		fd = s->listening[i].fd;
		s->listening[i] = s->listening[--s->nlistening];
	}
	pthread_mutex_unlock(&s->m);
	return fd;
}
