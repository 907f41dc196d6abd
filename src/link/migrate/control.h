/* SPDX-License-Identifier: MIT */
/*
 * The sequence of control messages: each comes once and in its order, however many links it takes.
 *
 * Enters: messages to send; what the other side has acknowledged; numbers of messages that came. Leaves: frames to put
 * on the wire, and whether a message that came is new. No lock: its owner has one. No input or output.
 */
#ifndef GMEM_LINK_MIGRATE_CONTROL_H
#define GMEM_LINK_MIGRATE_CONTROL_H

#include "link/migrate/wire.h"

struct gmem_control_frame {
	struct gmem_control_frame *next;
	uint64_t seq;
	size_t len;
	uint8_t bytes[];
};

struct gmem_control {
	struct gmem_control_frame *first, *last; /* not acknowledged, in order */
	struct gmem_control_frame *unsent; /* the first of those that this link has not carried; NULL: none */
	uint64_t posted; /* the last number given to a message */
	uint64_t sent; /* the last that any link has carried */
	uint64_t acked; /* the last that has come */
	uint64_t received; /* the last of the other side's */
	uint64_t told; /* the last of those that we acknowledged on this link */
	size_t bytes; /* of `first` and on */
};

void gmem_control_free(struct gmem_control *c); /* what it holds */

/* Encodes and queues; the number is given here. -ENOBUFS (more than `limit` bytes would wait), -ENOMEM. */
int gmem_control_post(struct gmem_control *c, struct gmem_wire_msg *msg, size_t limit);
/* The next frame for the wire, or NULL. It counts as sent, and stays until acknowledged. */
const struct gmem_control_frame *gmem_control_next(struct gmem_control *c);
/* -EPROTO: that was never sent. */
int gmem_control_ack(struct gmem_control *c, uint64_t seq);
/* 1: the next; the caller handles it, and then says so by gmem_control_received(). 0: had already. -EPROTO: a gap. */
int gmem_control_take(const struct gmem_control *c, uint64_t seq);
void gmem_control_received(struct gmem_control *c);
/* What is to be acknowledged now, or 0. */
uint64_t gmem_control_tell(struct gmem_control *c);
/*
 * May a link be made to a side that has got the messages up to `received`? -EPROTO: it has forgotten some that it
 * acknowledged, or has some that were never sent.
 */
int gmem_control_fits(const struct gmem_control *c, uint64_t received);
/* A new link: what the other side lacks is sent again. gmem_control_fits() was asked. */
void gmem_control_relink(struct gmem_control *c, uint64_t received);

#endif
