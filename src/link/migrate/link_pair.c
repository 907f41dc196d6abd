/* SPDX-License-Identifier: MIT */
/* A link while it is there: its two threads, and the control messages between them and the wire. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "link/migrate/link.h"

/* A control message, on the bulk connection's thread: new ones go to the caller, and count when it has handled them. */
static int take_control(struct gmem_link *link, const struct gmem_wire_msg *msg)
{
	int r;

	pthread_mutex_lock(&link->m);
	r = gmem_control_take(&link->control, msg->seq);
	pthread_mutex_unlock(&link->m);
	if (r <= 0)
		return r;
	r = link->ops->message(link->opaque, GMEM_WIRE_BULK, msg);
	if (r < 0)
		return r;
	pthread_mutex_lock(&link->m);
	gmem_control_received(&link->control);
	pthread_mutex_unlock(&link->m);
	return 0;
}

static int take_ack(struct gmem_link *link, uint64_t seq)
{
	int err;

	pthread_mutex_lock(&link->m);
	err = gmem_control_ack(&link->control, seq);
	pthread_cond_broadcast(&link->changed);
	pthread_mutex_unlock(&link->m);
	return err;
}

static int message(void *opaque, const struct gmem_wire_msg *msg)
{
	struct gmem_link_end *end = opaque;
	bool bulk = end->channel == GMEM_WIRE_BULK;

	if (msg->type >= GMEM_WIRE_CONTROL && bulk)
		return take_control(end->link, msg);
	if (msg->type == GMEM_WIRE_ACK && bulk)
		return take_ack(end->link, msg->ack);
	if (msg->type != GMEM_WIRE_ASK && msg->type != GMEM_WIRE_PAGES)
		return gmem_err(-EPROTO, "migration: the other side sent a message of type %d out of place", msg->type);
	return end->link->ops->message(end->link->opaque, end->channel, msg);
}

static int64_t produce(void *opaque, uint8_t *frame)
{
	struct gmem_link_end *end = opaque;
	struct gmem_link *link = end->link;
	const struct gmem_control_frame *f;
	struct gmem_wire_msg ack = { .type = GMEM_WIRE_ACK };
	int64_t len = 0;

	if (end->channel == GMEM_WIRE_BULK) {
		pthread_mutex_lock(&link->m);
		ack.ack = gmem_control_tell(&link->control);
		f = ack.ack ? NULL : gmem_control_next(&link->control);
		if (ack.ack)
			len = (int64_t)gmem_wire_encode(frame, &ack);
		else if (f)
			memcpy(frame, f->bytes, f->len);
		if (f)
			len = (int64_t)f->len;
		pthread_mutex_unlock(&link->m);
	}
	return len ? len : link->ops->produce(link->opaque, end->channel, frame);
}

static void *run(void *opaque)
{
	static const struct gmem_conn_ops ops = { .message = message, .produce = produce };
	struct gmem_link_end *end = opaque;
	struct gmem_link *link = end->link;
	int err = gmem_conn_run(link->conns[end->channel - 1], &ops, end);
	uint64_t one = 1;
	ssize_t n;

	pthread_mutex_lock(&link->m);
	if (!link->lost) {
		link->lost = true;
		link->lost_err = err;
		snprintf(link->lost_text, sizeof(link->lost_text), "%s", gmem_last_error());
	}
	gmem_conn_cut(link->conns[2 - end->channel]);
	pthread_mutex_unlock(&link->m);
	n = write(link->wake, &one, sizeof(one));
	(void)n; /* the manager is awake */
	return NULL;
}

bool gmem_link_pair_lost(struct gmem_link *link)
{
	bool lost;

	pthread_mutex_lock(&link->m);
	lost = link->lost;
	pthread_mutex_unlock(&link->m);
	return lost;
}

static void drop_conns(struct gmem_link *link)
{
	struct gmem_conn *conns[2];

	pthread_mutex_lock(&link->m);
	memcpy(conns, link->conns, sizeof(conns));
	memset(link->conns, 0, sizeof(link->conns));
	pthread_mutex_unlock(&link->m);
	gmem_conn_free(conns[0]);
	gmem_conn_free(conns[1]);
}

int gmem_link_pair_start(struct gmem_link *link, struct gmem_conn *conns[2], uint64_t received)
{
	int err;

	if (!link->bound)
		gmem_tls_peer_pin(gmem_conn_tls(conns[0]), link->pin);
	link->bound = true;
	link->links++;
	pthread_mutex_lock(&link->m);
	gmem_control_relink(&link->control, received);
	pthread_cond_broadcast(&link->changed);
	memcpy(link->conns, conns, sizeof(link->conns));
	link->lost = false;
	pthread_mutex_unlock(&link->m);
	link->ops->up(link->opaque);
	gmem_link_tell(link, GMEM_CHANNEL_UP, 0, "");
	err = pthread_create(&link->ends[0].thread, NULL, run, &link->ends[0]);
	if (!err) {
		err = pthread_create(&link->ends[1].thread, NULL, run, &link->ends[1]);
		if (err) {
			gmem_conn_cut(conns[0]);
			pthread_join(link->ends[0].thread, NULL);
		}
	}
	if (!err)
		return 0;
	link->ops->down(link->opaque);
	drop_conns(link);
	return gmem_err_sys(-err, "migration: a thread");
}

void gmem_link_pair_stop(struct gmem_link *link, const char *why)
{
	if (!link->conns[0])
		return;
	gmem_conn_cut(link->conns[0]);
	gmem_conn_cut(link->conns[1]);
	pthread_join(link->ends[0].thread, NULL);
	pthread_join(link->ends[1].thread, NULL);
	link->ops->down(link->opaque);
	drop_conns(link);
	if (!atomic_load(&link->stopping) && !atomic_load(&link->finished))
		gmem_link_tell(link, GMEM_CHANNEL_LOST, link->lost_err, why[0] ? why : link->lost_text);
}
