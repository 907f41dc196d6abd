/* SPDX-License-Identifier: MIT */
#include "link/migrate/control.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"

static void drop_first(struct gmem_control *c)
{
	struct gmem_control_frame *f = c->first;

	if (c->unsent == f)
		c->unsent = f->next;
	c->first = f->next;
	if (!c->first)
		c->last = NULL;
	c->bytes -= f->len;
	free(f);
}

void gmem_control_free(struct gmem_control *c)
{
	while (c->first)
		drop_first(c);
}

int gmem_control_post(struct gmem_control *c, struct gmem_wire_msg *msg, size_t limit)
{
	struct gmem_control_frame *f = malloc(sizeof(*f) + GMEM_WIRE_MAX_FRAME), *small;

	if (!f)
		return gmem_err(-ENOMEM, "migration: no memory for a message");
	msg->seq = c->posted + 1;
	f->len = gmem_wire_encode(f->bytes, msg);
	if (c->bytes + f->len > limit) {
		free(f);
		return gmem_err(-ENOBUFS, "migration: %zu bytes of messages wait for an acknowledgement", c->bytes);
	}
	small = realloc(f, sizeof(*f) + f->len);
	if (small)
		f = small;
	f->seq = msg->seq;
	f->next = NULL;
	if (c->last)
		c->last->next = f;
	else
		c->first = f;
	c->last = f;
	if (!c->unsent)
		c->unsent = f;
	c->posted++;
	c->bytes += f->len;
	return 0;
}

const struct gmem_control_frame *gmem_control_next(struct gmem_control *c)
{
	struct gmem_control_frame *f = c->unsent;

	if (!f)
		return NULL;
	c->unsent = f->next;
	if (f->seq > c->sent)
		c->sent = f->seq;
	return f;
}

int gmem_control_fits(const struct gmem_control *c, uint64_t received)
{
	if (received < c->acked)
		return gmem_err(-EPROTO,
				"migration: the other side has forgotten what it had got: it was started anew");
	if (received > c->sent)
		return gmem_err(-EPROTO, "migration: the other side has got messages that were never sent");
	return 0;
}

int gmem_control_ack(struct gmem_control *c, uint64_t seq)
{
	if (seq > c->sent)
		return gmem_control_fits(c, seq);
	while (c->first && c->first->seq <= seq)
		drop_first(c);
	if (seq > c->acked)
		c->acked = seq;
	return 0;
}

int gmem_control_take(const struct gmem_control *c, uint64_t seq)
{
	if (seq <= c->received)
		return 0;
	if (seq != c->received + 1)
		return gmem_err(-EPROTO, "migration: a message is missing before number %llu", (unsigned long long)seq);
	return 1;
}

void gmem_control_received(struct gmem_control *c)
{
	c->received++;
}

uint64_t gmem_control_tell(struct gmem_control *c)
{
	if (c->told == c->received)
		return 0;
	c->told = c->received;
	return c->told;
}

void gmem_control_relink(struct gmem_control *c, uint64_t received)
{
	gmem_control_ack(c, received);
	c->unsent = c->first;
	c->told = 0;
}
