/* SPDX-License-Identifier: MIT */
/*
 * Somebody with the right certificate who does not keep to the protocol. It is cut off, each time; what it said is
 * without effect, and an honest one can go on.
 */
#include "tap.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "base/range.h"
#include "image/hash.h"
#include "link/migrate/wire.h"
#include "migrate_util.h"
#include "source/source.h"

/* ---- a side made by hand */

struct raw {
	struct gmem_tls *tls[2]; /* [channel - 1] */
	uint8_t id[GMEM_WIRE_ID_LEN];
	uint64_t seq; /* of the last control message */
	uint8_t in[GMEM_WIRE_MAX_FRAME];
};

static int raw_wait(struct gmem_tls *tls)
{
	struct pollfd p = { .fd = gmem_tls_fd(tls), .events = gmem_tls_wants(tls) };

	return poll(&p, 1, -1);
}

/* False: we were cut off. */
static bool raw_write(struct gmem_tls *tls, const void *buf, size_t len)
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

static bool raw_send(struct raw *r, enum gmem_wire_channel channel, struct gmem_wire_msg *msg)
{
	static uint8_t frame[GMEM_WIRE_MAX_FRAME];

	if (msg->type >= GMEM_WIRE_CONTROL)
		msg->seq = ++r->seq;
	return raw_write(r->tls[channel - 1], frame, gmem_wire_encode(frame, msg));
}

/* The next message but pings and acknowledgements. */
static bool raw_recv(struct raw *r, enum gmem_wire_channel channel, struct gmem_wire_msg *msg)
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

static struct gmem_wire_msg raw_hello(const struct raw *r, enum gmem_wire_role role, enum gmem_wire_channel channel,
				      uint64_t epoch)
{
	struct gmem_wire_msg msg = { .type = GMEM_WIRE_HELLO };

	msg.hello = (struct gmem_wire_hello){ .version = 1, .role = (uint8_t)role, .channel = (uint8_t)channel };
	msg.hello.epoch = epoch;
	memcpy(msg.hello.id, r->id, sizeof(r->id));
	return msg;
}

/* Says a HELLO; what comes back. The connection is kept if it was one, too. */
static struct gmem_wire_msg raw_greet(struct raw *r, struct gmem_tls_ctx *ctx, uint16_t port, struct gmem_wire_msg *msg)
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

static void raw_link(struct raw *r, struct gmem_tls_ctx *ctx, uint16_t port, enum gmem_wire_role role)
{
	memset(r, 0, sizeof(*r));
	memset(r->id, 0x5a, sizeof(r->id));
	for (enum gmem_wire_channel c = GMEM_WIRE_PRIORITY; c <= GMEM_WIRE_BULK; c++) {
		struct gmem_wire_msg msg = raw_hello(r, role, c, 1);

		CHECK_EQ(raw_greet(r, ctx, port, &msg).type, GMEM_WIRE_HELLO);
	}
}

static void raw_end(struct raw *r)
{
	gmem_tls_free(r->tls[0]);
	gmem_tls_free(r->tls[1]);
}

/* Both connections go, whichever was the one it was said on. */
static void expect_cut(struct raw *r)
{
	struct gmem_wire_msg msg;

	for (int i = 0; i < 2; i++)
		while (raw_recv(r, (enum gmem_wire_channel)(i + 1), &msg))
			;
}

/* ---- victims */

struct victim {
	struct both both;
	int listen_fd, memfd;
	uint16_t port;
	struct gmem_incoming *incoming;
	struct gmem_page_server *server;
};

static void victim_begin(struct victim *v, bool source)
{
	struct gmem_channel_opts opts = { .size = sizeof(opts), .silence_ms = 60000, .handshake_ms = 60000 };
	struct gmem_migrate_region region = { .name = "ram", .len = 1 << 20, .page_size = 4096 };
	struct gmem_incoming_opts in_opts = { .size = sizeof(in_opts), .wait_ms = 50 };

	memset(v, 0, sizeof(*v));
	both_begin(&v->both);
	opts.listen_fd = v->listen_fd = listen_any(&v->port);
	opts.tls = source ? v->both.alpha_ctx : v->both.beta_ctx;
	region.fd = v->memfd = memfd_create("victim", MFD_CLOEXEC);
	CHECK(v->memfd >= 0 && !ftruncate(v->memfd, 1 << 20));
	if (source)
		CHECK_OK(gmem_page_server_new(&opts, &region, 1, &v->server));
	else
		CHECK_OK(gmem_incoming_new(&opts, &in_opts, &v->incoming));
}

static void victim_end(struct victim *v)
{
	gmem_page_server_free(v->server);
	gmem_incoming_free(v->incoming);
	close(v->listen_fd);
	close(v->memfd);
	both_end(&v->both);
}

/* ---- a hostile source */

static struct gmem_wire_msg region_msg(uint32_t index, const char *name, bool last)
{
	struct gmem_wire_msg msg = { .type = GMEM_WIRE_REGION, .text = name, .text_len = (uint8_t)strlen(name) };

	msg.region.len = 1 << 20;
	msg.region.page_size = 4096;
	msg.region.index = index;
	msg.region.last = last;
	return msg;
}

static struct gmem_wire_msg section_msg(const char *name, uint64_t off, uint32_t len, uint64_t total)
{
	static const uint8_t bytes[GMEM_WIRE_MAX_PIECE];
	struct gmem_wire_msg msg = { .type = GMEM_WIRE_SECTION, .text = name, .text_len = (uint8_t)strlen(name) };

	msg.section.off = off;
	msg.section.len = len;
	msg.section.total = total;
	msg.section.bytes = bytes;
	return msg;
}

static struct gmem_wire_msg dirty_msg(uint32_t region, uint64_t off, uint64_t npages)
{
	static const uint8_t bits[GMEM_WIRE_MAX_BITMAP];
	struct gmem_wire_msg msg = { .type = GMEM_WIRE_DIRTY };

	msg.dirty.region = region;
	msg.dirty.off = off;
	msg.dirty.npages = npages;
	msg.dirty.bitmap = bits;
	return msg;
}

static struct gmem_wire_msg pages_msg(uint64_t tag, uint32_t region, uint64_t off, uint32_t npages)
{
	static uint8_t bytes[GMEM_WIRE_CHUNK_LEN];
	struct gmem_wire_msg msg = { .type = GMEM_WIRE_PAGES };

	memset(bytes, 0x77, sizeof(bytes));
	msg.pages = (struct gmem_wire_pages){ .tag = tag, .region = region, .off = off, .npages = npages };
	msg.pages.bytes = bytes;
	msg.pages.sum = gmem_image_hash(bytes, (size_t)npages * 4096);
	return msg;
}

#define MESSAGE(name, expr)                    \
	static struct gmem_wire_msg name(void) \
	{                                      \
		return expr;                   \
	}

MESSAGE(none, (struct gmem_wire_msg){ .type = 0 })
MESSAGE(region_1, region_msg(1, "ram", true))
MESSAGE(region_0, region_msg(0, "ram", false))
MESSAGE(region_twin, region_msg(1, "ram", true))
MESSAGE(region_late, region_msg(1, "more", true))
MESSAGE(section_hole, section_msg("s", 10, 10, 20))
MESSAGE(section_part, section_msg("s", 0, 10, 20))
MESSAGE(section_other, section_msg("t", 0, 10, 20))
MESSAGE(section_again, section_msg("s", 0, 10, 20))
MESSAGE(section_total, section_msg("s", 10, 10, 21))
MESSAGE(section_whole, section_msg("s", 0, 20, 20))
MESSAGE(dirty_region, dirty_msg(1, 0, 8))
MESSAGE(dirty_past, dirty_msg(0, 0, 257))
MESSAGE(dirty_far, dirty_msg(0, GMEM_MIGRATE_MAX_LEN, 1))
MESSAGE(round_alone, ((struct gmem_wire_msg){ .type = GMEM_WIRE_ROUND, .round = 1 }))
MESSAGE(precopy, (struct gmem_wire_msg){ .type = GMEM_WIRE_PRECOPY })
MESSAGE(round_2, ((struct gmem_wire_msg){ .type = GMEM_WIRE_ROUND, .round = 2 }))
MESSAGE(round_done, ((struct gmem_wire_msg){ .type = GMEM_WIRE_ROUND_DONE, .round = 0 }))
MESSAGE(go, ((struct gmem_wire_msg){ .type = GMEM_WIRE_PHASE, .phase = GMEM_MIGRATE_GO }))
MESSAGE(prepared, ((struct gmem_wire_msg){ .type = GMEM_WIRE_PHASE, .phase = GMEM_MIGRATE_PREPARED }))
MESSAGE(stopped, ((struct gmem_wire_msg){ .type = GMEM_WIRE_PHASE, .phase = GMEM_MIGRATE_STOPPED }))
MESSAGE(ack, ((struct gmem_wire_msg){ .type = GMEM_WIRE_ACK, .ack = 1000 }))
MESSAGE(hello, ((struct gmem_wire_msg){ .type = GMEM_WIRE_HELLO,
					.hello = { .version = 1, .role = 1, .channel = 2, .epoch = 9 } }))
MESSAGE(ask, ((struct gmem_wire_msg){ .type = GMEM_WIRE_ASK, .pages = { .npages = 1 } }))
MESSAGE(pages_none, pages_msg(1, 0, 0, 1)) /* nobody has made a source of the region */
MESSAGE(pages_region, pages_msg(1, 1023, 0, 64))

/* What a source may not say, on a link whose one region is known. */
static const struct {
	const char *what;
	bool fresh; /* it is not */
	enum gmem_wire_channel channel;
	struct gmem_wire_msg (*first)(void), (*second)(void);
} lies[] = {
	{ "a region that is not the first", true, GMEM_WIRE_BULK, none, region_1 },
	{ "two regions of one name", true, GMEM_WIRE_BULK, region_0, region_twin },
	{ "a phase without regions", true, GMEM_WIRE_BULK, none, stopped },
	{ "a region too late", false, GMEM_WIRE_BULK, none, region_late },
	{ "a section that begins in its middle", false, GMEM_WIRE_BULK, none, section_hole },
	{ "a section in a section", false, GMEM_WIRE_BULK, section_part, section_other },
	{ "a piece twice", false, GMEM_WIRE_BULK, section_part, section_again },
	{ "a section that grows", false, GMEM_WIRE_BULK, section_part, section_total },
	{ "a section twice", false, GMEM_WIRE_BULK, section_whole, section_again },
	{ "dirty pages of no region", false, GMEM_WIRE_BULK, none, dirty_region },
	{ "dirty pages past the end", false, GMEM_WIRE_BULK, none, dirty_past },
	{ "dirty pages far away", false, GMEM_WIRE_BULK, none, dirty_far },
	{ "a round without a pre-copy", false, GMEM_WIRE_BULK, none, round_alone },
	{ "a round too far", false, GMEM_WIRE_BULK, precopy, round_2 },
	{ "a pre-copy twice", false, GMEM_WIRE_BULK, precopy, precopy },
	{ "the destination's words", false, GMEM_WIRE_BULK, none, round_done },
	{ "GO out of the blue", false, GMEM_WIRE_BULK, none, go },
	{ "the destination's phase", false, GMEM_WIRE_BULK, none, prepared },
	{ "STOPPED too early", false, GMEM_WIRE_BULK, none, stopped },
	{ "an acknowledgement of nothing", false, GMEM_WIRE_BULK, none, ack },
	{ "HELLO again", false, GMEM_WIRE_BULK, none, hello },
	{ "a request to the destination", false, GMEM_WIRE_BULK, none, ask },
	{ "pages of a region nobody reads", false, GMEM_WIRE_BULK, none, pages_none },
	{ "pages of no region", false, GMEM_WIRE_PRIORITY, none, pages_region },
	{ "a control message over priority", false, GMEM_WIRE_PRIORITY, none, go },
	{ "an acknowledgement over priority", false, GMEM_WIRE_PRIORITY, none, ack },
};

TEST_TIMEOUT(what_a_source_may_not_say, 120)
{
	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		struct gmem_wire_msg msg = region_msg(0, "ram", true);
		struct victim v;
		struct raw r;

		printf("%s\n", lies[i].what);
		victim_begin(&v, false);
		raw_link(&r, v.both.alpha_ctx, v.port, GMEM_WIRE_SOURCE);
		if (!lies[i].fresh)
			CHECK(raw_send(&r, GMEM_WIRE_BULK, &msg));
		msg = lies[i].first();
		if (msg.type)
			CHECK(raw_send(&r, GMEM_WIRE_BULK, &msg));
		msg = lies[i].second();
		raw_send(&r, lies[i].channel, &msg);
		expect_cut(&r);
		CHECK(gmem_incoming_phase(v.incoming) <= GMEM_MIGRATE_OPEN);
		raw_end(&r);
		victim_end(&v);
	}
}

/* Frames that are none. */
TEST(bytes_that_are_no_message)
{
	static const uint8_t frames[][16] = {
		{ 0xff, 0xff, 0xff, 0xff, 3, 0, 0, 0 }, /* 4 GiB to come */
		{ 0, 0, 0, 0, 99, 0, 0, 0 },
		{ 0, 0, 0, 0, 3, 0, 1, 0 },
		{ 8, 0, 0, 0, 3, 0, 0, 0 },
	};

	for (size_t i = 0; i < sizeof(frames) / sizeof(frames[0]); i++) {
		struct victim v;
		struct raw r;

		victim_begin(&v, i % 2);
		raw_link(&r, i % 2 ? v.both.beta_ctx : v.both.alpha_ctx, v.port,
			 i % 2 ? GMEM_WIRE_DESTINATION : GMEM_WIRE_SOURCE);
		raw_write(r.tls[i / 2 % 2], frames[i], sizeof(frames[i]));
		expect_cut(&r);
		raw_end(&r);
		victim_end(&v);
	}
}

static struct gmem_source *hostile_stopped(struct victim *v, struct raw *r)
{
	struct gmem_wire_msg msg = region_msg(0, "ram", true);
	struct gmem_source *source;

	raw_link(r, v->both.alpha_ctx, v->port, GMEM_WIRE_SOURCE);
	CHECK(raw_send(r, GMEM_WIRE_BULK, &msg));
	CHECK_OK(gmem_incoming_wait(v->incoming, GMEM_MIGRATE_OPEN, -1));
	CHECK_OK(gmem_incoming_source(v->incoming, 0, &source));
	CHECK_OK(gmem_incoming_prepared(v->incoming));
	/* PREPARED comes before it is answered. */
	CHECK(raw_recv(r, GMEM_WIRE_BULK, &msg));
	CHECK_EQ(msg.phase, GMEM_MIGRATE_PREPARED);
	msg = (struct gmem_wire_msg){ .type = GMEM_WIRE_PHASE, .phase = GMEM_MIGRATE_STOPPED };
	CHECK(raw_send(r, GMEM_WIRE_BULK, &msg));
	CHECK_OK(gmem_incoming_wait(v->incoming, GMEM_MIGRATE_STOPPED, -1));
	return source;
}

struct one_read {
	struct gmem_source *source;
	uint8_t page[4096];
	int err;
	pthread_t thread;
};

static void *read_one(void *opaque)
{
	struct one_read *o = opaque;

	o->err = gmem_source_read(o->source, 0x3000, o->page, 4096);
	return NULL;
}

/* Pages nobody asked for take no memory and change nothing; wrong answers are no answers. */
TEST_TIMEOUT(answers_to_other_questions, 60)
{
	for (unsigned int variant = 0; variant < 5; variant++) {
		struct gmem_incoming_stats stats = { .size = sizeof(stats) };
		struct gmem_wire_msg msg, question;
		struct one_read o;
		struct victim v;
		struct raw r;

		victim_begin(&v, false);
		o.source = hostile_stopped(&v, &r);
		for (unsigned int i = 0; i < 100; i++) {
			msg = pages_msg(i, 0, (uint64_t)(i % 4) << GMEM_PAGE_SHIFT << 6, 64);
			CHECK(raw_send(&r, i % 2 ? GMEM_WIRE_BULK : GMEM_WIRE_PRIORITY, &msg));
		}
		CHECK(!pthread_create(&o.thread, NULL, read_one, &o));
		CHECK(raw_recv(&r, GMEM_WIRE_PRIORITY, &question));
		CHECK_EQ(question.type, GMEM_WIRE_ASK);
		CHECK_EQ(question.pages.off, 0x3000);
		CHECK_EQ(question.pages.npages, 1);
		msg = pages_msg(question.pages.tag, 0, 0x3000, 1);
		if (variant == 0)
			msg.pages.sum ^= 1;
		if (variant == 1)
			msg = pages_msg(question.pages.tag, 0, 0x4000, 1);
		if (variant == 2)
			msg = pages_msg(question.pages.tag, 0, 0x3000, 2);
		if (variant == 3)
			msg = pages_msg(question.pages.tag, 0, 0x3f000, 64); /* not of one chunk */
		raw_send(&r, GMEM_WIRE_PRIORITY, &msg);
		if (variant < 4)
			expect_cut(&r);
		pthread_join(o.thread, NULL);
		CHECK_EQ(o.err, variant < 4 ? -ETIMEDOUT : 0);
		if (variant == 4)
			CHECK_MEM(o.page, msg.pages.bytes, 4096);
		CHECK_OK(gmem_incoming_stats(v.incoming, &stats));
		CHECK(stats.dropped_pages > 0 && stats.stored_pages == 0);
		CHECK_ERR(gmem_source_read_nowait(o.source, 0, o.page, 4096), -EAGAIN);
		raw_end(&r);
		victim_end(&v);
		gmem_source_unref(o.source);
	}
}

/* ---- a hostile destination */

TEST(what_a_destination_may_not_ask)
{
	for (unsigned int variant = 0; variant < 6; variant++) {
		struct gmem_wire_msg msg = { .type = GMEM_WIRE_ASK };
		struct victim v;
		struct raw r;

		victim_begin(&v, true);
		raw_link(&r, v.both.beta_ctx, v.port, GMEM_WIRE_DESTINATION);
		CHECK(raw_recv(&r, GMEM_WIRE_BULK, &msg));
		CHECK_EQ(msg.type, GMEM_WIRE_REGION);
		msg = (struct gmem_wire_msg){ .type = GMEM_WIRE_ASK, .pages = { .npages = 1 } };
		if (variant < 2) {
			/* Too early, for priority even in a pre-copy. */
			if (variant)
				CHECK_OK(gmem_page_server_precopy(v.server));
			raw_send(&r, GMEM_WIRE_PRIORITY, &msg);
			expect_cut(&r);
		} else {
			CHECK_OK(gmem_page_server_precopy(v.server));
			CHECK(raw_recv(&r, GMEM_WIRE_BULK, &msg));
			msg = (struct gmem_wire_msg){ .type = GMEM_WIRE_ASK, .pages = { .npages = 64 } };
			if (variant == 2)
				msg.pages.region = 1;
			if (variant == 3)
				msg.pages.off = (1 << 20) - 4096;
			if (variant == 4)
				msg = (struct gmem_wire_msg){ .type = GMEM_WIRE_PHASE, .phase = GMEM_MIGRATE_RESUMED };
			if (variant == 5)
				msg = (struct gmem_wire_msg){ .type = GMEM_WIRE_ROUND_DONE, .round = 1 };
			raw_send(&r, GMEM_WIRE_BULK, &msg);
			expect_cut(&r);
		}
		CHECK_EQ(gmem_page_server_phase(v.server), GMEM_MIGRATE_OPEN);
		raw_end(&r);
		victim_end(&v);
	}
}

/* ---- who comes in between */

TEST(who_else_connects)
{
	struct gmem_tls_ctx *twin_ctx;
	struct gmem_wire_msg msg, got;
	struct identity twin;
	int silent[40];
	struct victim v;
	struct raw r, other = { .seq = 0 };

	victim_begin(&v, true);
	/* More than it keeps, and none of them says a word. */
	for (unsigned int i = 0; i < 40; i++)
		CHECK((silent[i] = connect_port(v.port)) >= 0);
	raw_link(&r, v.both.beta_ctx, v.port, GMEM_WIRE_DESTINATION);
	CHECK(raw_recv(&r, GMEM_WIRE_BULK, &got));
	/* Another migration, from the same machine. */
	msg = raw_hello(&other, GMEM_WIRE_DESTINATION, GMEM_WIRE_PRIORITY, 2);
	got = raw_greet(&other, v.both.beta_ctx, v.port, &msg);
	CHECK_EQ(got.type, GMEM_WIRE_REFUSE);
	CHECK_EQ(got.error, EBUSY);
	/* The same one, by a certificate of the same name. */
	identity_make(&v.both.pki, &v.both.ca, "beta", "DNS:beta.test", -3600, 3600, &twin);
	twin_ctx = identity_ctx(&v.both.ca, &twin, "alpha.test", NULL);
	memcpy(other.id, r.id, sizeof(r.id));
	msg = raw_hello(&other, GMEM_WIRE_DESTINATION, GMEM_WIRE_PRIORITY, 2);
	got = raw_greet(&other, twin_ctx, v.port, &msg);
	CHECK_EQ(got.type, GMEM_WIRE_REFUSE);
	CHECK_EQ(got.error, EACCES);
	/* A link of before; one that has got what was never sent; a bulk connection alone; the same side; no version. */
	for (unsigned int i = 0; i < 5; i++) {
		msg = raw_hello(&other, i == 3 ? GMEM_WIRE_SOURCE : GMEM_WIRE_DESTINATION,
				i == 2 ? GMEM_WIRE_BULK : GMEM_WIRE_PRIORITY, i == 0 ? 1 : 2);
		msg.hello.received = i == 1 ? 1000 : 0;
		msg.hello.version = i == 4 ? 2 : 1;
		got = raw_greet(&other, v.both.beta_ctx, v.port, &msg);
		CHECK_EQ(got.type, GMEM_WIRE_REFUSE);
		CHECK_EQ(got.error, EPROTO);
	}
	/* The link has not suffered. */
	CHECK_OK(gmem_page_server_section(v.server, "s", "x", 1));
	CHECK(raw_recv(&r, GMEM_WIRE_BULK, &got));
	CHECK_EQ(got.type, GMEM_WIRE_SECTION);
	raw_end(&r);
	gmem_tls_ctx_free(twin_ctx);
	for (unsigned int i = 0; i < 40; i++)
		close(silent[i]);
	victim_end(&v);
}
