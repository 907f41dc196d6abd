/* SPDX-License-Identifier: MIT */
#include "migrate_raw.h"

#include <poll.h>

static int raw_wait(struct gmem_tls *tls)
{
	struct pollfd p = { .fd = gmem_tls_fd(tls), .events = gmem_tls_wants(tls) };

	return poll(&p, 1, -1);
}

/* False: we were cut off. */
bool raw_write(struct gmem_tls *tls, const void *buf, size_t len)
{
	size_t done = 0;

	while (done < len) {
		int64_t n = gmem_tls_write(tls, (const uint8_t *)buf + done, len - done);

		if (n == -EAGAIN)
			raw_wait(tls);
		else if (n < 0)
			return false;
		else
			done += (size_t)n;
	}
	return true;
}

static bool raw_read(struct gmem_tls *tls, void *buf, size_t len)
{
	size_t done = 0;

	while (done < len) {
		int64_t n = gmem_tls_read(tls, (uint8_t *)buf + done, len - done);

		if (n == -EAGAIN)
			raw_wait(tls);
		else if (n < 0)
			return false;
		else
			done += (size_t)n;
	}
	return true;
}

bool raw_send(struct raw *r, enum gmem_wire_channel channel, struct gmem_wire_msg *msg)
{
	static uint8_t frame[GMEM_WIRE_MAX_FRAME];

	if (msg->type >= GMEM_WIRE_CONTROL)
		msg->seq = ++r->seq;
	return raw_write(r->tls[channel - 1], frame, gmem_wire_encode(frame, msg));
}

/* The next message but pings and acknowledgements. */
bool raw_recv(struct raw *r, enum gmem_wire_channel channel, struct gmem_wire_msg *msg)
{
	uint16_t type;
	int64_t len;

	do {
		if (!raw_read(r->tls[channel - 1], r->in, GMEM_WIRE_HEAD_LEN))
			return false;
		len = CHECK_OK(gmem_wire_decode_head(r->in, &type));
		if (!raw_read(r->tls[channel - 1], r->in + GMEM_WIRE_HEAD_LEN, (size_t)len))
			return false;
		CHECK_OK(gmem_wire_decode(type, r->in + GMEM_WIRE_HEAD_LEN, (size_t)len, msg));
	} while (type == GMEM_WIRE_PING || type == GMEM_WIRE_ACK);
	return true;
}

static struct gmem_tls *raw_connect(struct gmem_tls_ctx *ctx, uint16_t port)
{
	int fd = connect_port(port);
	struct gmem_tls *tls;

	CHECK(fd >= 0);
	CHECK_OK(gmem_tls_new(ctx, fd, false, "the victim", &tls));
	while (gmem_tls_handshake(tls) == -EAGAIN)
		raw_wait(tls);
	return tls;
}

struct gmem_wire_msg raw_hello(const struct raw *r, enum gmem_wire_role role, enum gmem_wire_channel channel,
			       uint64_t epoch)
{
	struct gmem_wire_msg msg = { .type = GMEM_WIRE_HELLO };

	msg.hello = (struct gmem_wire_hello){ .version = 1, .role = (uint8_t)role, .channel = (uint8_t)channel };
	msg.hello.epoch = epoch;
	memcpy(msg.hello.id, r->id, sizeof(r->id));
	return msg;
}

/* Says a HELLO; what comes back. The connection is kept if it was one, too. */
struct gmem_wire_msg raw_greet(struct raw *r, struct gmem_tls_ctx *ctx, uint16_t port, struct gmem_wire_msg *msg)
{
	enum gmem_wire_channel channel = msg->hello.channel;
	struct gmem_wire_msg got;

	r->tls[channel - 1] = raw_connect(ctx, port);
	CHECK(raw_send(r, channel, msg));
	CHECK(raw_recv(r, channel, &got));
	if (got.type != GMEM_WIRE_HELLO) {
		printf("refused: %.*s\n", got.text_len, got.text);
		gmem_tls_free(r->tls[channel - 1]);
		r->tls[channel - 1] = NULL;
	}
	return got;
}

void raw_link(struct raw *r, struct gmem_tls_ctx *ctx, uint16_t port, enum gmem_wire_role role)
{
	memset(r, 0, sizeof(*r));
	memset(r->id, 0x5a, sizeof(r->id));
	for (enum gmem_wire_channel c = GMEM_WIRE_PRIORITY; c <= GMEM_WIRE_BULK; c++) {
		struct gmem_wire_msg msg = raw_hello(r, role, c, 1);

		CHECK_EQ(raw_greet(r, ctx, port, &msg).type, GMEM_WIRE_HELLO);
	}
}

void raw_end(struct raw *r)
{
	gmem_tls_free(r->tls[0]);
	gmem_tls_free(r->tls[1]);
}

/* Both connections go, whichever was the one it was said on. */
void raw_expect_cut(struct raw *r)
{
	struct gmem_wire_msg msg;

	for (int i = 0; i < 2; i++)
		while (raw_recv(r, (enum gmem_wire_channel)(i + 1), &msg))
			;
}
