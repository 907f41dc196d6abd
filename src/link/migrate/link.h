/* SPDX-License-Identifier: MIT */
/*
 * Two connections that belong together, and are made again when they are lost: see channel.h.
 *
 * Enters: the options of a channel. Leaves: messages, each connection's in order, control messages once. Owns its
 * threads: the manager, which connects or accepts, and, while there is a link, one a connection. `message` and
 * `produce` are called on the connection's thread, `up` and `down` on the manager's while the others do not run. Lock
 * `m`: a leaf, but for gmem_conn's.
 */
#ifndef GMEM_LINK_MIGRATE_LINK_H
#define GMEM_LINK_MIGRATE_LINK_H

#include <pthread.h>
#include <stdatomic.h>

#include "link/migrate/conn.h"
#include "link/migrate/control.h"

#define GMEM_LINK_PENDING 8u /* connections that have not said yet who they are */

struct gmem_link;

struct gmem_link_ops {
	/* Negative: the link is given up, and made anew. */
	int (*message)(void *opaque, enum gmem_wire_channel channel, const struct gmem_wire_msg *msg);
	/* As of gmem_conn_ops; after control messages. */
	int64_t (*produce)(void *opaque, enum gmem_wire_channel channel, uint8_t *frame);
	void (*up)(void *opaque);
	void (*down)(void *opaque);
	void (*ended)(void *opaque, int error, const char *text); /* the last call; error 0: gmem_link_finish() */
	void (*event)(void *opaque, const struct gmem_channel_event *event); /* UP, LOST, REFUSED */
};

/* What one connection's thread works with. */
struct gmem_link_end {
	struct gmem_link *link;
	enum gmem_wire_channel channel;
	pthread_t thread;
};

struct gmem_link {
	struct gmem_channel_opts opts;
	char *host, *port; /* of opts.address */
	enum gmem_wire_role role;
	const struct gmem_link_ops *ops;
	void *opaque;
	pthread_t manager;
	int listen_fd, wake; /* -1: connects; eventfd: something for the manager to look at */
	_Atomic bool stopping, finished;

	pthread_mutex_t m; /* guards all that follows */
	pthread_cond_t changed;
	struct gmem_control control;
	struct gmem_conn *conns[2]; /* [channel - 1]; NULL: no link. Changed by the manager, with no thread running */
	bool lost; /* a thread has ended */
	int lost_err;
	char lost_text[512];

	struct gmem_link_end ends[2]; /* from here on the manager's */
	uint8_t id[GMEM_WIRE_ID_LEN], pin[GMEM_TLS_PIN_LEN]; /* of the first link on */
	bool bound; /* id and pin are set */
	uint64_t epoch; /* of the last link that was tried */
	uint64_t links;
};

int gmem_link_new(enum gmem_wire_role role, const struct gmem_channel_opts *opts, const struct gmem_link_ops *ops,
		  void *opaque, struct gmem_link **ret);
/* Once `opaque` is whole. -EAGAIN. */
int gmem_link_start(struct gmem_link *link);
void gmem_link_free(struct gmem_link *link); /* NULL is allowed; joins */

int gmem_link_post(struct gmem_link *link, struct gmem_wire_msg *msg, size_t limit); /* a control message */
size_t gmem_link_unacked(struct gmem_link *link, uint64_t *bytes); /* how many */
int gmem_link_wait_acked(struct gmem_link *link, int timeout_ms); /* all of them. -ETIMEDOUT */
/* Over a connection, if there is one: -ENOTCONN. */
int gmem_link_send(struct gmem_link *link, enum gmem_wire_channel channel, const struct gmem_wire_msg *msg);
void gmem_link_wake(struct gmem_link *link, enum gmem_wire_channel channel);
/* There is nothing to say any more: a link that is lost now stays so. `cut`: and is cut here. */
void gmem_link_finish(struct gmem_link *link, bool cut);

/* ---- link_pair.c: the threads of a link. The manager's. */
/* Takes both connections, also on failure. `received`: what the other side's HELLO said. */
int gmem_link_pair_start(struct gmem_link *link, struct gmem_conn *conns[2], uint64_t received);
void gmem_link_pair_stop(struct gmem_link *link, const char *why); /* if there is one */
bool gmem_link_pair_lost(struct gmem_link *link);

/* ---- link_hello.c: who is it? */
struct gmem_wire_msg gmem_link_hello(struct gmem_link *link, enum gmem_wire_channel channel);
/* 0, or -EPROTO, -EACCES with a text, for the other side too. */
int gmem_link_check_hello(struct gmem_link *link, const struct gmem_conn *conn, const struct gmem_wire_hello *hello,
			  enum gmem_wire_channel channel);
int gmem_link_refused(const struct gmem_wire_msg *msg, const char *name); /* the text of a REFUSE, as an error */
void gmem_link_tell(struct gmem_link *link, enum gmem_channel_event_kind kind, int error, const char *text);

/* ---- link_dial.c, link_accept.c: until the link is to end. The error it ends with. */
int gmem_link_dial(struct gmem_link *link);
int gmem_link_accept(struct gmem_link *link);

/* Waits for the eventfd, at most; true if the link is to end. link.c */
bool gmem_link_pause(struct gmem_link *link, int timeout_ms);
bool gmem_link_over(struct gmem_link *link);
/* How long until the other side has been away for too long: milliseconds, -1 without limit, 0 if it has. */
int gmem_link_patience(struct gmem_link *link, uint64_t since_ms);

#endif
