/* SPDX-License-Identifier: MIT */
/* A side of a migration made by hand, which says what it likes. */
#ifndef GMEM_TESTS_MIGRATE_RAW_H
#define GMEM_TESTS_MIGRATE_RAW_H

#include "link/migrate/wire.h"
#include "migrate_util.h"

struct raw {
	struct gmem_tls *tls[2]; /* [channel - 1] */
	uint8_t id[GMEM_WIRE_ID_LEN];
	uint64_t seq; /* of the last control message */
	uint8_t in[GMEM_WIRE_MAX_FRAME];
};

bool raw_write(struct gmem_tls *tls, const void *buf, size_t len); /* false: we were cut off */
bool raw_send(struct raw *r, enum gmem_wire_channel channel, struct gmem_wire_msg *msg); /* numbers control messages */
/* The next message but pings and acknowledgements. */
bool raw_recv(struct raw *r, enum gmem_wire_channel channel, struct gmem_wire_msg *msg);
struct gmem_wire_msg raw_hello(const struct raw *r, enum gmem_wire_role role, enum gmem_wire_channel channel,
			       uint64_t epoch);
/* Says a HELLO; what comes back. The connection is kept if it was one, too. */
struct gmem_wire_msg raw_greet(struct raw *r, struct gmem_tls_ctx *ctx, uint16_t port, struct gmem_wire_msg *msg);
void raw_link(struct raw *r, struct gmem_tls_ctx *ctx, uint16_t port, enum gmem_wire_role role);
void raw_end(struct raw *r);
/* Both connections go, whichever was the one it was said on. */
void raw_expect_cut(struct raw *r);

#endif
