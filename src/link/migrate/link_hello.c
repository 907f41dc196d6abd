/* SPDX-License-Identifier: MIT */
/* Who is it: version, side, id, certificate, epoch. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "link/migrate/link.h"

void gmem_link_tell(struct gmem_link *link, enum gmem_channel_event_kind kind, int error, const char *text)
{
	const struct gmem_channel_event event = { .kind = kind, .error = error, .text = text, .epoch = link->epoch };

	link->ops->event(link->opaque, &event);
}

struct gmem_wire_msg gmem_link_hello(struct gmem_link *link, enum gmem_wire_channel channel)
{
	struct gmem_wire_msg msg = { .type = GMEM_WIRE_HELLO };

	msg.hello.version = GMEM_WIRE_VERSION;
	msg.hello.role = (uint8_t)link->role;
	msg.hello.channel = (uint8_t)channel;
	memcpy(msg.hello.id, link->id, sizeof(link->id));
	msg.hello.epoch = link->epoch;
	pthread_mutex_lock(&link->m);
	msg.hello.received = link->control.received;
	pthread_mutex_unlock(&link->m);
	return msg;
}

int gmem_link_check_hello(struct gmem_link *link, const struct gmem_conn *conn, const struct gmem_wire_hello *hello,
			  enum gmem_wire_channel channel)
{
	uint8_t pin[GMEM_TLS_PIN_LEN];
	int err;

	if (hello->version != GMEM_WIRE_VERSION)
		return gmem_err(-EPROTO, "migration: one side speaks version %u of the protocol, the other %u",
				GMEM_WIRE_VERSION, hello->version);
	if (hello->role == link->role)
		return gmem_err(-EPROTO, "migration: both sides are the %s",
				link->role == GMEM_WIRE_SOURCE ? "source" : "destination");
	if (hello->channel != channel)
		return gmem_err(-EPROTO, "migration: the connections come in the wrong order");
	gmem_tls_peer_pin(gmem_conn_tls(conn), pin);
	if (link->bound && memcmp(hello->id, link->id, sizeof(link->id)) != 0)
		return gmem_err(-EBUSY, "migration: another migration is going on here");
	if (link->bound && memcmp(pin, link->pin, sizeof(pin)) != 0)
		return gmem_err(-EACCES, "migration: the certificate is another than at the beginning");
	pthread_mutex_lock(&link->m);
	err = gmem_control_fits(&link->control, hello->received);
	pthread_mutex_unlock(&link->m);
	return err;
}

int gmem_link_refused(const struct gmem_wire_msg *msg, const char *name)
{
	int err = msg->error ? -(int)msg->error : -EPROTO;

	if (err == -EAGAIN)
		err = -EPROTO;
	return gmem_err(err, "%s: the other side refuses: %.*s", name, msg->text_len, msg->text);
}
