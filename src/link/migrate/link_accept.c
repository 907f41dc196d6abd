/* SPDX-License-Identifier: MIT */
/*
 * The side that is connected to. Anybody may connect; who has not said in time who it is has gone before it cost much,
 * and nobody waits for it meanwhile.
 */
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

struct pending {
	struct gmem_conn *conn; /* NULL: free */
	uint64_t until_ms;
	char name[300];
};

struct acceptor {
	struct gmem_link *link;
	struct pending pending[GMEM_LINK_PENDING];
	/* A priority connection whose bulk connection has not come. */
	struct gmem_conn *half;
	struct gmem_wire_hello hello;
	uint64_t half_until_ms;
	uint64_t since_ms; /* without a link since then */
};

static void drop(struct pending *p)
{
	gmem_conn_free(p->conn);
	p->conn = NULL;
}

static void drop_half(struct acceptor *a)
{
	gmem_conn_free(a->half);
	a->half = NULL;
}

/* A place for a newcomer: if none is free, that of who has waited longest. */
static struct pending *place(struct acceptor *a)
{
	struct pending *oldest = &a->pending[0];

	for (unsigned int i = 0; i < GMEM_LINK_PENDING; i++) {
		if (!a->pending[i].conn)
			return &a->pending[i];
		if (a->pending[i].until_ms < oldest->until_ms)
			oldest = &a->pending[i];
	}
	drop(oldest);
	return oldest;
}

static void accept_one(struct acceptor *a)
{
	struct sockaddr_storage addr;
	socklen_t len = sizeof(addr);
	char host[256] = "?", port[32] = "?";
	struct pending *p;
	int fd = accept4(a->link->listen_fd, (struct sockaddr *)&addr, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return;
	getnameinfo((struct sockaddr *)&addr, len, host, sizeof(host), port, sizeof(port),
		    NI_NUMERICHOST | NI_NUMERICSERV);
	p = place(a);
	snprintf(p->name, sizeof(p->name), "%s:%s", host, port);
	p->until_ms = gmem_now_ms() + a->link->opts.handshake_ms;
	if (gmem_conn_new(a->link->opts.tls, fd, true, a->link->opts.silence_ms, p->name, &p->conn) < 0)
		p->conn = NULL;
}

/* Tells why, if somebody is there to be told, and drops it. */
static void refuse(struct acceptor *a, struct pending *p, int err)
{
	struct gmem_wire_msg msg = { .type = GMEM_WIRE_REFUSE, .error = (uint32_t)-err };
	char text[512];

	snprintf(text, sizeof(text), "%s", gmem_last_error());
	msg.text = text;
	msg.text_len = (uint8_t)strnlen(text, GMEM_WIRE_MAX_TEXT);
	gmem_conn_send(p->conn, &msg);
	drop(p);
	/* Who just goes away, or is cut off, was not refused. */
	if (err == -ECONNRESET || err == -EPIPE || err == -ETIMEDOUT)
		return;
	gmem_err(err, "%s: refused: %s", p->name, text);
	gmem_link_tell(a->link, GMEM_CHANNEL_REFUSED, err, gmem_last_error());
}

static int reply(struct acceptor *a, struct gmem_conn *conn, const struct gmem_wire_hello *hello)
{
	struct gmem_wire_msg msg = gmem_link_hello(a->link, (enum gmem_wire_channel)hello->channel);

	msg.hello.epoch = hello->epoch;
	memcpy(msg.hello.id, hello->id, sizeof(hello->id));
	gmem_conn_set_bulk(conn, hello->channel == GMEM_WIRE_BULK);
	return gmem_conn_send(conn, &msg);
}

static int take_priority(struct acceptor *a, struct pending *p, const struct gmem_wire_hello *hello)
{
	int err = gmem_link_check_hello(a->link, p->conn, hello, GMEM_WIRE_PRIORITY);

	if (!err && a->link->bound && hello->epoch <= a->link->epoch)
		err = gmem_err(-EPROTO, "migration: a link that was before this one");
	if (!err)
		err = reply(a, p->conn, hello);
	if (err)
		return err;
	drop_half(a);
	a->half = p->conn;
	a->hello = *hello;
	a->half_until_ms = gmem_now_ms() + a->link->opts.handshake_ms;
	p->conn = NULL;
	return 0;
}

static int take_bulk(struct acceptor *a, struct pending *p, const struct gmem_wire_hello *hello)
{
	uint8_t pins[2][GMEM_TLS_PIN_LEN];
	struct gmem_conn *conns[2] = { a->half, p->conn };
	int err = gmem_link_check_hello(a->link, p->conn, hello, GMEM_WIRE_BULK);

	if (err)
		return err;
	if (!a->half || hello->epoch != a->hello.epoch || memcmp(hello->id, a->hello.id, sizeof(hello->id)) != 0)
		return gmem_err(-EPROTO, "migration: a bulk connection without its priority connection");
	gmem_tls_peer_pin(gmem_conn_tls(a->half), pins[0]);
	gmem_tls_peer_pin(gmem_conn_tls(p->conn), pins[1]);
	if (memcmp(pins[0], pins[1], sizeof(pins[0])) != 0)
		return gmem_err(-EACCES, "migration: two certificates for one migration");
	gmem_link_pair_stop(a->link, "the other side made a new link");
	/* The old link's threads may have taken more: what is told now is final. */
	err = gmem_link_check_hello(a->link, p->conn, hello, GMEM_WIRE_BULK);
	if (!err)
		err = reply(a, p->conn, hello);
	if (err)
		return err;
	memcpy(a->link->id, hello->id, sizeof(hello->id));
	a->link->epoch = hello->epoch;
	a->half = NULL;
	p->conn = NULL;
	return gmem_link_pair_start(a->link, conns, hello->received);
}

static void step(struct acceptor *a, struct pending *p)
{
	struct gmem_wire_msg msg;
	int r = gmem_conn_step(p->conn, &msg);

	if (r == -EAGAIN)
		return;
	if (r == 1 && msg.type != GMEM_WIRE_HELLO)
		r = gmem_err(-EPROTO, "%s: no HELLO", p->name);
	else if (r == 1)
		r = msg.hello.channel == GMEM_WIRE_PRIORITY ? take_priority(a, p, &msg.hello) :
							      take_bulk(a, p, &msg.hello);
	if (r < 0 && p->conn)
		refuse(a, p, r);
}

static int timeout_of(struct acceptor *a)
{
	uint64_t now = gmem_now_ms(), first = UINT64_MAX;
	int patience;

	for (unsigned int i = 0; i < GMEM_LINK_PENDING; i++)
		if (a->pending[i].conn && a->pending[i].until_ms < first)
			first = a->pending[i].until_ms;
	if (a->half && a->half_until_ms < first)
		first = a->half_until_ms;
	if (!a->link->conns[0]) {
		patience = gmem_link_patience(a->link, a->since_ms);
		if (patience >= 0 && now + (uint64_t)patience < first)
			first = now + (uint64_t)patience;
	}
	if (first == UINT64_MAX)
		return -1;
	return first <= now ? 0 : (int)(first - now > 1000000 ? 1000000 : first - now);
}

static void expire(struct acceptor *a)
{
	uint64_t now = gmem_now_ms();

	for (unsigned int i = 0; i < GMEM_LINK_PENDING; i++)
		if (a->pending[i].conn && a->pending[i].until_ms <= now)
			drop(&a->pending[i]);
	if (a->half && a->half_until_ms <= now)
		drop_half(a);
}

static void wait_and_step(struct acceptor *a)
{
	struct pollfd p[GMEM_LINK_PENDING + 2] = { { .fd = a->link->listen_fd, .events = POLLIN },
						   { .fd = a->link->wake, .events = POLLIN } };

	for (unsigned int i = 0; i < GMEM_LINK_PENDING; i++) {
		struct gmem_conn *conn = a->pending[i].conn;

		p[i + 2].fd = conn ? gmem_conn_fd(conn) : -1;
		p[i + 2].events = conn ? gmem_conn_events(conn) : 0;
	}
	poll(p, GMEM_LINK_PENDING + 2, timeout_of(a));
	if (p[1].revents)
		gmem_link_pause(a->link, 0);
	for (unsigned int i = 0; i < GMEM_LINK_PENDING; i++)
		if (p[i + 2].revents && a->pending[i].conn)
			step(a, &a->pending[i]);
	if (p[0].revents)
		accept_one(a);
}

int gmem_link_accept(struct gmem_link *link)
{
	struct acceptor a = { .link = link, .since_ms = gmem_now_ms() };
	int err = 0;

	while (!gmem_link_over(link) && !err) {
		wait_and_step(&a);
		expire(&a);
		if (link->conns[0] && gmem_link_pair_lost(link))
			gmem_link_pair_stop(link, "");
		if (link->conns[0])
			a.since_ms = gmem_now_ms();
		else if (!gmem_link_patience(link, a.since_ms))
			err = gmem_err(-ETIMEDOUT, "migration: nobody made a link for %llu ms",
				       (unsigned long long)(gmem_now_ms() - a.since_ms));
	}
	for (unsigned int i = 0; i < GMEM_LINK_PENDING; i++)
		drop(&a.pending[i]);
	drop_half(&a);
	return err ? err : gmem_err(-ECANCELED, "migration: given up here");
}
