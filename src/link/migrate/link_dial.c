/* SPDX-License-Identifier: MIT */
/* The side that connects: again and again, ever more slowly. */
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"
#include "link/migrate/link.h"

#define FIRST_PAUSE_MS 50
#define LAST_PAUSE_MS 2000

/* Waits for the socket, or for the end of the link. */
static int wait_for(struct gmem_link *link, int fd, short events, uint64_t until_ms, const char *name)
{
	struct pollfd p[2] = { { .fd = fd, .events = events }, { .fd = link->wake, .events = POLLIN } };
	uint64_t now = gmem_now_ms();

	if (gmem_link_over(link))
		return gmem_err(-ECANCELED, "%s: given up", name);
	if (now >= until_ms)
		return gmem_err(-ETIMEDOUT, "%s: no answer in time", name);
	poll(p, 2, (int)(until_ms - now));
	if (p[1].revents & POLLIN)
		gmem_link_pause(link, 0);
	return 0;
}

static int finish_connect(struct gmem_link *link, int fd, uint64_t until_ms, const char *name)
{
	socklen_t len = sizeof(int);
	int err = 0;

	for (;;) {
		struct pollfd p = { .fd = fd, .events = POLLOUT };

		if (poll(&p, 1, 0) > 0)
			break;
		err = wait_for(link, fd, POLLOUT, until_ms, name);
		if (err)
			return err;
	}
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0)
		err = errno;
	return err ? gmem_err_sys(-err, "%s", name) : 0;
}

static int connect_one(struct gmem_link *link, const struct addrinfo *ai, uint64_t until_ms, const char *name, int *ret)
{
	int err = 0, fd = socket(ai->ai_family, ai->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, ai->ai_protocol);

	if (fd < 0)
		return gmem_err_sys(-errno, "%s", name);
	if (connect(fd, ai->ai_addr, ai->ai_addrlen) < 0)
		err = errno == EINPROGRESS ? finish_connect(link, fd, until_ms, name) :
					     gmem_err_sys(-errno, "%s", name);
	if (err)
		close(fd);
	else
		*ret = fd;
	return err;
}

static int connect_to(struct gmem_link *link, uint64_t until_ms, const char *name, int *ret)
{
	const struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG };
	struct addrinfo *list, *ai;
	int err = getaddrinfo(link->host, link->port, &hints, &list);

	if (err)
		return gmem_err(-EHOSTUNREACH, "%s: %s", name, gai_strerror(err));
	err = gmem_err(-EHOSTUNREACH, "%s: no address", name);
	for (ai = list; ai && err && err != -ECANCELED; ai = ai->ai_next)
		err = connect_one(link, ai, until_ms, name, ret);
	freeaddrinfo(list);
	return err;
}

/* One of the two connections, as far as the other side's HELLO. */
static int dial_one(struct gmem_link *link, enum gmem_wire_channel channel, struct gmem_conn **ret, uint64_t *received)
{
	struct gmem_wire_msg msg = gmem_link_hello(link, channel);
	uint64_t until = gmem_now_ms() + link->opts.handshake_ms;
	struct gmem_conn *conn;
	char name[300];
	int fd = -1, err;

	snprintf(name, sizeof(name), "%s:%s", link->host, link->port);
	err = connect_to(link, until, name, &fd);
	if (err)
		return err;
	err = gmem_conn_new(link->opts.tls, fd, false, link->opts.silence_ms, name, &conn);
	if (err)
		return err;
	gmem_conn_set_bulk(conn, channel == GMEM_WIRE_BULK);
	err = gmem_conn_send(conn, &msg);
	while (!err && (err = gmem_conn_step(conn, &msg)) == -EAGAIN)
		err = wait_for(link, gmem_conn_fd(conn), gmem_conn_events(conn), until, name);
	if (err == 1 && msg.type == GMEM_WIRE_REFUSE)
		err = gmem_link_refused(&msg, name);
	else if (err == 1 && msg.type != GMEM_WIRE_HELLO)
		err = gmem_err(-EPROTO, "%s: no HELLO", name);
	if (err == 1)
		err = gmem_link_check_hello(link, conn, &msg.hello, channel);
	if (!err && (msg.hello.epoch != link->epoch || memcmp(msg.hello.id, link->id, sizeof(link->id)) != 0))
		err = gmem_err(-EPROTO, "%s: it answers for another migration", name);
	if (err) {
		gmem_conn_free(conn);
		return err;
	}
	*received = msg.hello.received;
	*ret = conn;
	return 0;
}

static int dial_pair(struct gmem_link *link, struct gmem_conn *conns[2], uint64_t *received)
{
	uint8_t pins[2][GMEM_TLS_PIN_LEN];
	int err;

	link->epoch++;
	err = dial_one(link, GMEM_WIRE_PRIORITY, &conns[0], received);
	if (err)
		return err;
	err = dial_one(link, GMEM_WIRE_BULK, &conns[1], received);
	if (!err) {
		gmem_tls_peer_pin(gmem_conn_tls(conns[0]), pins[0]);
		gmem_tls_peer_pin(gmem_conn_tls(conns[1]), pins[1]);
		if (!memcmp(pins[0], pins[1], sizeof(pins[0])))
			return 0;
		err = gmem_err(-EACCES, "%s: two certificates for one migration", link->host);
		gmem_conn_free(conns[1]);
	}
	gmem_conn_free(conns[0]);
	return err;
}

/* It will not become better by itself. */
static bool final(int err)
{
	return err == -EKEYREJECTED || err == -EKEYEXPIRED || err == -EACCES || err == -EPROTO || err == -EBUSY;
}

int gmem_link_dial(struct gmem_link *link)
{
	uint64_t since = gmem_now_ms(), received = 0;
	int pause = FIRST_PAUSE_MS, err = 0, patience;

	while (!gmem_link_over(link)) {
		struct gmem_conn *conns[2];

		err = dial_pair(link, conns, &received);
		if (!err)
			err = gmem_link_pair_start(link, conns, received);
		if (!err) {
			while (!gmem_link_over(link) && !gmem_link_pair_lost(link))
				gmem_link_pause(link, -1);
			gmem_link_pair_stop(link, "");
			since = gmem_now_ms();
			pause = FIRST_PAUSE_MS;
			continue;
		}
		if (err == -ECANCELED)
			continue;
		if (final(err)) {
			if (!link->links)
				return err;
			gmem_link_tell(link, GMEM_CHANNEL_REFUSED, err, gmem_last_error());
		}
		patience = gmem_link_patience(link, since);
		if (!patience)
			return gmem_err_prefix(-ETIMEDOUT, "migration: no link for %llu ms",
					       (unsigned long long)(gmem_now_ms() - since));
		gmem_link_pause(link, patience < 0 || patience > pause ? pause : patience);
		pause = pause * 2 > LAST_PAUSE_MS ? LAST_PAUSE_MS : pause * 2;
	}
	return gmem_err(-ECANCELED, "migration: given up here");
}
