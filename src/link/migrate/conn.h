/* SPDX-License-Identifier: MIT */
/*
 * One connection: frames over TLS, buffered both ways, and the loop of the thread that owns it.
 *
 * Enters: a connected socket; frames. Leaves: decoded messages, to the owner's function; the reason why the connection
 * is no more. One thread, the owner, runs gmem_conn_step() or gmem_conn_run(); any may send, wake and cut. A leaf lock
 * guards TLS and what waits to be sent; it is held while bytes are encrypted and never while anything waits.
 */
#ifndef GMEM_LINK_MIGRATE_CONN_H
#define GMEM_LINK_MIGRATE_CONN_H

#include "link/migrate/tls.h"
#include "link/migrate/wire.h"

struct gmem_conn;

struct gmem_conn_ops {
	/* A message has come. What it points to is gone when this returns. Negative: the connection is given up. */
	int (*message)(void *opaque, const struct gmem_wire_msg *msg);
	/* Is there something to send? Writes a frame into GMEM_WIRE_MAX_FRAME bytes; its length, or 0. */
	int64_t (*produce)(void *opaque, uint8_t *frame);
};

/* Takes `fd`, also on failure. */
int gmem_conn_new(struct gmem_tls_ctx *ctx, int fd, bool server, uint32_t silence_ms, const char *name,
		  struct gmem_conn **ret);
void gmem_conn_set_bulk(struct gmem_conn *conn, bool bulk); /* which of the two goes first in the host's queues */
void gmem_conn_free(struct gmem_conn *conn); /* NULL is allowed */
const struct gmem_tls *gmem_conn_tls(const struct gmem_conn *conn);

/*
 * As far as it goes without waiting: the handshake, what is to be sent, the first message. 1: it has come, `ret`.
 * -EAGAIN: again when poll(2) says what gmem_conn_events() asks for.
 */
int gmem_conn_step(struct gmem_conn *conn, struct gmem_wire_msg *ret);
short gmem_conn_events(struct gmem_conn *conn);
int gmem_conn_fd(const struct gmem_conn *conn);

/* Sends, or queues for the owner to send. -ENOBUFS, and the errors of gmem_tls_write(). */
int gmem_conn_send(struct gmem_conn *conn, const struct gmem_wire_msg *msg);
void gmem_conn_wake(struct gmem_conn *conn); /* has `produce` called */
/* Ends gmem_conn_run(). */
void gmem_conn_cut(struct gmem_conn *conn);

/* Until the connection is no more: negative errno, with a text. -ETIMEDOUT: nothing came for `silence_ms`. */
int gmem_conn_run(struct gmem_conn *conn, const struct gmem_conn_ops *ops, void *opaque);

#endif
