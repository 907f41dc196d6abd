/* SPDX-License-Identifier: MIT */
#include "link/migrate/conn.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"

#define SMALL_LEN (128u * 1024) /* of messages that are not produced */
#define SMALL_FRAME 512u /* the longest of those */
#define MESSAGES_AT_ONCE 64u
#define FRAMES_AT_ONCE 4u

struct out {
	uint8_t *bytes; /* [sent, len) waits; both 0 if nothing does */
	size_t sent, len;
};

struct gmem_conn {
	struct gmem_tls *tls;
	int wake;
	uint32_t silence_ms;
	_Atomic bool cut;
	bool secure; /* the handshake is done; the owner's */
	uint64_t heard_ns; /* when something last came; the owner's */

	pthread_mutex_t m; /* guards `tls` and the following */
	struct out small; /* SMALL_LEN bytes: what any thread sends */
	struct out frame; /* one frame: the owner fills it, if it is empty */
	struct out *active; /* the one that is half written */
	short out_wants;
	uint64_t said_ns; /* when something was last queued */

	short in_wants; /* the owner's, from here on */
	uint8_t *in; /* GMEM_WIRE_MAX_FRAME bytes */
	size_t in_len, in_want; /* the head, then head and payload */
	uint16_t in_type;
};

/* What a socket of another kind does not have, it does not need. */
static void tune(int fd, uint32_t silence_ms)
{
	unsigned int timeout = silence_ms;
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, sizeof(timeout));
}

void gmem_conn_set_bulk(struct gmem_conn *conn, bool bulk)
{
	int tos = bulk ? 0x08 : 0x10, prio = bulk ? 2 : 6, unsent = 512 * 1024, fd = gmem_tls_fd(conn->tls);

	setsockopt(fd, IPPROTO_IP, IP_TOS, &tos, sizeof(tos));
	setsockopt(fd, IPPROTO_IPV6, IPV6_TCLASS, &tos, sizeof(tos));
	setsockopt(fd, SOL_SOCKET, SO_PRIORITY, &prio, sizeof(prio));
	/* What lies in the kernel unsent cannot be overtaken by a PING. */
	if (bulk)
		setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof(unsent));
}

int gmem_conn_new(struct gmem_tls_ctx *ctx, int fd, bool server, uint32_t silence_ms, const char *name,
		  struct gmem_conn **ret)
{
	struct gmem_conn *c = calloc(1, sizeof(*c));
	int err;

	tune(fd, silence_ms);
	if (!c) {
		close(fd);
		return gmem_err(-ENOMEM, "%s: no memory for a connection", name);
	}
	err = gmem_tls_new(ctx, fd, server, name, &c->tls);
	if (err) {
		free(c);
		return err;
	}
	pthread_mutex_init(&c->m, NULL);
	c->silence_ms = silence_ms;
	c->heard_ns = c->said_ns = gmem_now_ns();
	c->in_want = GMEM_WIRE_HEAD_LEN;
	c->in_wants = POLLIN;
	c->small.bytes = malloc(SMALL_LEN);
	c->frame.bytes = malloc(GMEM_WIRE_MAX_FRAME);
	c->in = malloc(GMEM_WIRE_MAX_FRAME);
	c->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!c->small.bytes || !c->frame.bytes || !c->in || c->wake < 0) {
		err = c->wake < 0 ? -errno : -ENOMEM;
		gmem_conn_free(c);
		return gmem_err_sys(err, "%s: a connection", name);
	}
	*ret = c;
	return 0;
}

void gmem_conn_free(struct gmem_conn *conn)
{
	if (!conn)
		return;
	gmem_tls_free(conn->tls);
	if (conn->wake >= 0)
		close(conn->wake);
	pthread_mutex_destroy(&conn->m);
	free(conn->small.bytes);
	free(conn->frame.bytes);
	free(conn->in);
	free(conn);
}

const struct gmem_tls *gmem_conn_tls(const struct gmem_conn *conn)
{
	return conn->tls;
}

int gmem_conn_fd(const struct gmem_conn *conn)
{
	return gmem_tls_fd(conn->tls);
}

void gmem_conn_wake(struct gmem_conn *conn)
{
	uint64_t one = 1;
	ssize_t n = write(conn->wake, &one, sizeof(one));

	(void)n; /* it is awake */
}

void gmem_conn_cut(struct gmem_conn *conn)
{
	atomic_store(&conn->cut, true);
	shutdown(gmem_tls_fd(conn->tls), SHUT_RDWR);
	gmem_conn_wake(conn);
}

/* ---- out */

/* Writes what it can of one buffer. 0, also if some is left; or an error that is final. */
static int write_locked(struct gmem_conn *c, struct out *o)
{
	while (o->sent < o->len) {
		int64_t n = gmem_tls_write(c->tls, o->bytes + o->sent, o->len - o->sent);

		if (n == -EAGAIN) {
			c->out_wants = gmem_tls_wants(c->tls);
			return 0;
		}
		if (n < 0)
			return (int)n;
		o->sent += (size_t)n;
	}
	o->sent = o->len = 0;
	return 0;
}

/* What was begun is finished first; then small messages go before frames. */
static int flush_locked(struct gmem_conn *c)
{
	int err;

	c->out_wants = 0;
	while (c->small.len || c->frame.len) {
		struct out *o = c->active ? c->active : c->small.len ? &c->small : &c->frame;

		err = write_locked(c, o);
		c->active = o->len ? o : NULL;
		if (err || o->len)
			return err;
	}
	err = gmem_tls_flush(c->tls);
	if (err != -EAGAIN)
		return err;
	c->out_wants = gmem_tls_wants(c->tls);
	return 0;
}

static int queue_locked(struct gmem_conn *c, const struct gmem_wire_msg *msg)
{
	struct out *o = &c->small;

	if (SMALL_LEN - o->len < SMALL_FRAME) {
		/* TLS takes the same bytes from another place. */
		memmove(o->bytes, o->bytes + o->sent, o->len - o->sent);
		o->len -= o->sent;
		o->sent = 0;
	}
	if (SMALL_LEN - o->len < SMALL_FRAME)
		return gmem_err(-ENOBUFS, "migration: too much waits to be sent");
	o->len += gmem_wire_encode(o->bytes + o->len, msg);
	c->said_ns = gmem_now_ns();
	return 0;
}

int gmem_conn_send(struct gmem_conn *conn, const struct gmem_wire_msg *msg)
{
	bool wake;
	int err;

	pthread_mutex_lock(&conn->m);
	err = queue_locked(conn, msg);
	if (!err && conn->secure)
		err = flush_locked(conn);
	wake = conn->small.len || conn->out_wants;
	pthread_mutex_unlock(&conn->m);
	if (wake)
		gmem_conn_wake(conn);
	return err;
}

static bool frame_empty(struct gmem_conn *c)
{
	bool empty;

	pthread_mutex_lock(&c->m);
	empty = !c->frame.len;
	pthread_mutex_unlock(&c->m);
	return empty;
}

/*
 * Only the owner writes to `frame` while it is empty, so there is no lock while it does. How many frames, or an error.
 */
static int64_t produce(struct gmem_conn *c, const struct gmem_conn_ops *ops, void *opaque)
{
	int64_t n = 0, len;

	while (n < FRAMES_AT_ONCE && frame_empty(c)) {
		len = ops->produce(opaque, c->frame.bytes);
		if (len <= 0)
			return len < 0 ? len : n;
		n++;
		pthread_mutex_lock(&c->m);
		c->frame.len = (size_t)len;
		c->said_ns = gmem_now_ns();
		len = flush_locked(c);
		pthread_mutex_unlock(&c->m);
		if (len < 0)
			return len;
	}
	return n;
}

/* ---- in */

/* 1: a whole frame is in the buffer; -EAGAIN; or an error that is final. */
static int read_frame(struct gmem_conn *c)
{
	while (c->in_len < c->in_want) {
		int64_t n;

		pthread_mutex_lock(&c->m);
		n = gmem_tls_read(c->tls, c->in + c->in_len, c->in_want - c->in_len);
		c->in_wants = n == -EAGAIN ? gmem_tls_wants(c->tls) : POLLIN;
		pthread_mutex_unlock(&c->m);
		if (n < 0)
			return (int)n;
		c->heard_ns = gmem_now_ns();
		c->in_len += (size_t)n;
		if (c->in_len == c->in_want && c->in_want == GMEM_WIRE_HEAD_LEN) {
			n = gmem_wire_decode_head(c->in, &c->in_type);
			if (n < 0)
				return (int)n;
			c->in_want += (size_t)n;
		}
	}
	return 1;
}

/* 1: a message; what it points to is good until the next call. */
static int next_message(struct gmem_conn *c, struct gmem_wire_msg *ret)
{
	int r = read_frame(c);

	if (r != 1)
		return r;
	r = gmem_wire_decode(c->in_type, c->in + GMEM_WIRE_HEAD_LEN, c->in_want - GMEM_WIRE_HEAD_LEN, ret);
	c->in_len = 0;
	c->in_want = GMEM_WIRE_HEAD_LEN;
	return r < 0 ? r : 1;
}

/* ---- before it belongs to a link */

int gmem_conn_step(struct gmem_conn *conn, struct gmem_wire_msg *ret)
{
	int r;

	if (!conn->secure) {
		pthread_mutex_lock(&conn->m);
		r = gmem_tls_handshake(conn->tls);
		conn->in_wants = r == -EAGAIN ? gmem_tls_wants(conn->tls) : POLLIN;
		conn->secure = r == 0;
		if (!r)
			gmem_tls_cork(conn->tls);
		pthread_mutex_unlock(&conn->m);
		if (r)
			return r;
	}
	pthread_mutex_lock(&conn->m);
	r = flush_locked(conn);
	pthread_mutex_unlock(&conn->m);
	return r ? r : next_message(conn, ret);
}

short gmem_conn_events(struct gmem_conn *conn)
{
	short events;

	pthread_mutex_lock(&conn->m);
	events = conn->in_wants | conn->out_wants;
	pthread_mutex_unlock(&conn->m);
	return events;
}

/* ---- the owner's loop */

static int read_some(struct gmem_conn *c, const struct gmem_conn_ops *ops, void *opaque)
{
	struct gmem_wire_msg msg;
	unsigned int n = 0;
	int r;

	while (n < MESSAGES_AT_ONCE) {
		r = next_message(c, &msg);
		if (r == -EAGAIN)
			return (int)n;
		if (r < 0)
			return r;
		n++;
		r = msg.type == GMEM_WIRE_PING ? 0 : ops->message(opaque, &msg);
		if (r < 0)
			return r;
	}
	return (int)n;
}

/* Says that we are here, if nothing else was said for long enough; says how long to wait for more. */
static int keep_alive(struct gmem_conn *c, int *wait_ms)
{
	const struct gmem_wire_msg ping = { .type = GMEM_WIRE_PING };
	uint64_t now = gmem_now_ns(), silent_ms = (now - c->heard_ns) / 1000000u, quiet_ms;
	uint32_t every = c->silence_ms / 4 + 1;
	int err = 0;

	if (silent_ms >= c->silence_ms)
		return gmem_err(-ETIMEDOUT, "the link was cut: nothing came for %llu ms",
				(unsigned long long)silent_ms);
	pthread_mutex_lock(&c->m);
	quiet_ms = (now - c->said_ns) / 1000000u;
	/* What waits says it as well. */
	if (quiet_ms >= every && !c->out_wants) {
		err = queue_locked(c, &ping);
		if (!err)
			err = flush_locked(c);
		quiet_ms = 0;
	}
	pthread_mutex_unlock(&c->m);
	*wait_ms = (int)(quiet_ms < every ? every - quiet_ms : every);
	if (*wait_ms > (int)(c->silence_ms - silent_ms))
		*wait_ms = (int)(c->silence_ms - silent_ms);
	return err;
}

static void wait_for_more(struct gmem_conn *c, int wait_ms)
{
	struct pollfd p[2] = { { .fd = gmem_tls_fd(c->tls), .events = gmem_conn_events(c) },
			       { .fd = c->wake, .events = POLLIN } };
	uint64_t n;

	poll(p, 2, wait_ms);
	if (p[1].revents & POLLIN && read(c->wake, &n, sizeof(n)) < 0)
		return; /* somebody else's wake-up was it */
}

int gmem_conn_run(struct gmem_conn *conn, const struct gmem_conn_ops *ops, void *opaque)
{
	int wait_ms = 0;
	int64_t r = 0;

	while (r >= 0 && !atomic_load(&conn->cut)) {
		int64_t made;

		pthread_mutex_lock(&conn->m);
		r = flush_locked(conn);
		pthread_mutex_unlock(&conn->m);
		if (r < 0)
			break;
		made = r = produce(conn, ops, opaque);
		if (r < 0)
			break;
		r = read_some(conn, ops, opaque);
		if (r < 0)
			break;
		if (!made && !r) {
			r = keep_alive(conn, &wait_ms);
			if (r >= 0)
				wait_for_more(conn, wait_ms);
		}
	}
	return r < 0 ? (int)r : gmem_err(-ECANCELED, "the link was given up here");
}
