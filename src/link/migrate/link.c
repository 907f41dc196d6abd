/* SPDX-License-Identifier: MIT */
#include "link/migrate/link.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cond.h"
#include "base/err.h"
#include "base/opts.h"

/* "host:port", "[address]:port" */
static int parse_address(struct gmem_link *link, const char *address)
{
	const char *colon = strrchr(address, ':'), *host = address;
	size_t len = colon ? (size_t)(colon - address) : 0;

	if (len >= 2 && host[0] == '[' && host[len - 1] == ']') {
		host++;
		len -= 2;
	}
	if (!colon || !len || !colon[1])
		return gmem_err(-EINVAL, "migration: \"%s\" is not HOST:PORT", address);
	link->host = strndup(host, len);
	link->port = strdup(colon + 1);
	return link->host && link->port ? 0 : gmem_err(-ENOMEM, "migration: no memory");
}

static int listen_on(struct gmem_link *link, int fd)
{
	int accepts = 0, flags = fcntl(fd, F_GETFL);
	socklen_t len = sizeof(accepts);

	if (flags < 0 || getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &len) < 0 || !accepts)
		return gmem_err(-EINVAL, "migration: descriptor %d is no listening socket", fd);
	link->listen_fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (link->listen_fd < 0 || fcntl(link->listen_fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return gmem_err_sys(-errno, "migration: descriptor %d", fd);
	return 0;
}

static int set_up(struct gmem_link *link)
{
	int err = link->opts.address ? parse_address(link, link->opts.address) : listen_on(link, link->opts.listen_fd);

	if (err)
		return err;
	link->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (link->wake < 0)
		return gmem_err_sys(-errno, "migration: eventfd");
	if (!link->opts.address)
		return 0;
	if (getrandom(link->id, sizeof(link->id), 0) != sizeof(link->id))
		return gmem_err_sys(-errno, "migration: no random numbers");
	return 0;
}

int gmem_link_new(enum gmem_wire_role role, const struct gmem_channel_opts *opts, const struct gmem_link_ops *ops,
		  void *opaque, struct gmem_link **ret)
{
	struct gmem_link *link;
	int err;

	if (!opts || !gmem_opts_valid(opts, opts->size, sizeof(*opts)) || !opts->tls)
		return gmem_err(-EINVAL, "migration: options of another size, or without an identity");
	link = calloc(1, sizeof(*link));
	if (!link)
		return gmem_err(-ENOMEM, "migration: no memory");
	link->opts = *opts;
	link->opts.silence_ms = opts->silence_ms ? opts->silence_ms : 5000;
	link->opts.handshake_ms = opts->handshake_ms ? opts->handshake_ms : 10000;
	link->role = role;
	link->ops = ops;
	link->opaque = opaque;
	link->listen_fd = link->wake = -1;
	pthread_mutex_init(&link->m, NULL);
	gmem_cond_init(&link->changed);
	for (unsigned int i = 0; i < 2; i++)
		link->ends[i] = (struct gmem_link_end){ .link = link, .channel = (enum gmem_wire_channel)(i + 1) };
	err = set_up(link);
	if (err) {
		gmem_link_free(link);
		return err;
	}
	link->opts.address = link->host; /* the caller's may go */
	*ret = link;
	return 0;
}

static void *manage(void *opaque)
{
	struct gmem_link *link = opaque;
	int err = link->listen_fd >= 0 ? gmem_link_accept(link) : gmem_link_dial(link);

	gmem_link_pair_stop(link, "");
	if (atomic_load(&link->finished))
		err = 0;
	link->ops->ended(link->opaque, err, err ? gmem_last_error() : "");
	return NULL;
}

int gmem_link_start(struct gmem_link *link)
{
	int err = pthread_create(&link->manager, NULL, manage, link);

	if (err)
		link->manager = 0;
	return err ? gmem_err_sys(-err, "migration: a thread") : 0;
}

static void wake_manager(struct gmem_link *link)
{
	uint64_t one = 1;
	ssize_t n = write(link->wake, &one, sizeof(one));

	(void)n; /* it is awake */
}

void gmem_link_free(struct gmem_link *link)
{
	if (!link)
		return;
	if (link->manager) {
		atomic_store(&link->stopping, true);
		wake_manager(link);
		pthread_join(link->manager, NULL);
	}
	if (link->listen_fd >= 0)
		close(link->listen_fd);
	if (link->wake >= 0)
		close(link->wake);
	gmem_control_free(&link->control);
	pthread_cond_destroy(&link->changed);
	pthread_mutex_destroy(&link->m);
	free(link->host);
	free(link->port);
	free(link);
}

void gmem_link_finish(struct gmem_link *link, bool cut)
{
	atomic_store(&link->finished, true);
	if (cut) {
		pthread_mutex_lock(&link->m);
		if (link->conns[0])
			gmem_conn_cut(link->conns[0]);
		pthread_mutex_unlock(&link->m);
	}
	wake_manager(link);
}

bool gmem_link_over(struct gmem_link *link)
{
	/* With a link that is still there it is not: the other side may want to hear the end of it. */
	return atomic_load(&link->stopping) || (atomic_load(&link->finished) && !link->conns[0]);
}

bool gmem_link_pause(struct gmem_link *link, int timeout_ms)
{
	struct pollfd p = { .fd = link->wake, .events = POLLIN };
	uint64_t n;

	if (!gmem_link_over(link) && poll(&p, 1, timeout_ms) > 0 && read(link->wake, &n, sizeof(n)) < 0)
		return gmem_link_over(link);
	return gmem_link_over(link);
}

int gmem_link_patience(struct gmem_link *link, uint64_t since_ms)
{
	uint32_t limit = link->links ? link->opts.lost_ms : link->opts.first_ms;
	uint64_t gone = gmem_now_ms() - since_ms;

	if (!limit)
		return -1;
	return gone >= limit ? 0 : (int)(limit - gone > 1000000 ? 1000000 : limit - gone);
}

/* ---- sending */

int gmem_link_send(struct gmem_link *link, enum gmem_wire_channel channel, const struct gmem_wire_msg *msg)
{
	struct gmem_conn *conn;
	int err;

	pthread_mutex_lock(&link->m);
	conn = link->lost ? NULL : link->conns[channel - 1];
	err = conn ? gmem_conn_send(conn, msg) : gmem_err(-ENOTCONN, "migration: there is no link now");
	pthread_mutex_unlock(&link->m);
	return err;
}

void gmem_link_wake(struct gmem_link *link, enum gmem_wire_channel channel)
{
	pthread_mutex_lock(&link->m);
	if (link->conns[channel - 1])
		gmem_conn_wake(link->conns[channel - 1]);
	pthread_mutex_unlock(&link->m);
}

int gmem_link_post(struct gmem_link *link, struct gmem_wire_msg *msg, size_t limit)
{
	int err;

	pthread_mutex_lock(&link->m);
	err = gmem_control_post(&link->control, msg, limit);
	if (!err && link->conns[GMEM_WIRE_BULK - 1])
		gmem_conn_wake(link->conns[GMEM_WIRE_BULK - 1]);
	pthread_mutex_unlock(&link->m);
	return err;
}

size_t gmem_link_unacked(struct gmem_link *link, uint64_t *bytes)
{
	size_t n;

	pthread_mutex_lock(&link->m);
	n = (size_t)(link->control.posted - link->control.acked);
	*bytes = link->control.bytes;
	pthread_mutex_unlock(&link->m);
	return n;
}

int gmem_link_wait_acked(struct gmem_link *link, int timeout_ms)
{
	uint64_t until = gmem_now_ms() + (uint64_t)timeout_ms, now;
	int err = 0;

	pthread_mutex_lock(&link->m);
	while (link->control.posted != link->control.acked && !err) {
		now = gmem_now_ms();
		if (timeout_ms < 0)
			pthread_cond_wait(&link->changed, &link->m);
		else if (now >= until)
			err = gmem_err(-ETIMEDOUT, "migration: the other side has not acknowledged in time");
		else
			gmem_cond_wait_for(&link->changed, &link->m, (until - now) * 1000000u);
	}
	pthread_mutex_unlock(&link->m);
	return err;
}
