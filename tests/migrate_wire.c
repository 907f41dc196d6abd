/* SPDX-License-Identifier: MIT */
/* Messages as bytes, the sequence of control messages, and the phases: all of it without a link. */
#include "tap.h"

#include "link/migrate/control.h"
#include "link/migrate/phases.h"
#include "link/migrate/wire.h"

/* ---- messages */

static uint8_t frame[GMEM_WIRE_MAX_FRAME + 1];

static size_t encode(const struct gmem_wire_msg *msg)
{
	size_t len = gmem_wire_encode(frame, msg);
	uint16_t type;

	CHECK(len >= GMEM_WIRE_HEAD_LEN && len <= GMEM_WIRE_MAX_FRAME);
	CHECK_EQ(gmem_wire_decode_head(frame, &type), len - GMEM_WIRE_HEAD_LEN);
	CHECK_EQ(type, msg->type);
	return len - GMEM_WIRE_HEAD_LEN;
}

static int decode(size_t len, struct gmem_wire_msg *ret)
{
	uint16_t type;

	CHECK_OK(gmem_wire_decode_head(frame, &type));
	return gmem_wire_decode(type, frame + GMEM_WIRE_HEAD_LEN, len, ret);
}

/* Every shorter length is refused, and one byte more as well, but for texts, which end with the frame. */
static void lengths(size_t len, bool text)
{
	struct gmem_wire_msg got;
	size_t refused = 0;

	for (size_t n = 0; n < len; n++)
		refused += decode(n, &got) == -EPROTO;
	CHECK(text ? refused > 0 : refused == len);
	frame[GMEM_WIRE_HEAD_LEN + len] = 'x';
	if (!text)
		CHECK_ERR(decode(len + 1, &got), -EPROTO);
}

TEST(hello)
{
	struct gmem_wire_msg msg = { .type = GMEM_WIRE_HELLO }, got;
	size_t len;

	msg.hello = (struct gmem_wire_hello){ .version = 1, .role = 2, .channel = 1, .epoch = 77, .received = 5 };
	memset(msg.hello.id, 0xab, sizeof(msg.hello.id));
	len = encode(&msg);
	CHECK_OK(decode(len, &got));
	CHECK_EQ(got.hello.role, 2);
	CHECK_EQ(got.hello.channel, 1);
	CHECK_EQ(got.hello.epoch, 77);
	CHECK_EQ(got.hello.received, 5);
	CHECK_MEM(got.hello.id, msg.hello.id, sizeof(msg.hello.id));
	lengths(len, false);
	frame[8 + 12] = 3; /* no such role */
	CHECK_ERR(decode(len, &got), -EPROTO);
	frame[8 + 12] = 1;
	frame[8 + 14] = 1; /* reserved */
	CHECK_ERR(decode(len, &got), -EPROTO);
	/* Another version may say more: who it is can be read all the same, to refuse it politely. */
	frame[8 + 8] = 2;
	CHECK_OK(decode(len + 1, &got));
	CHECK_EQ(got.hello.version, 2);
	frame[8] ^= 1;
	CHECK_ERR(decode(len, &got), -EPROTO);
}

TEST(asks_and_pages)
{
	static const uint32_t npages[] = { 0, 65, UINT32_MAX, 1 };
	static const uint64_t off[] = { 0, 0, 0, 4095 };
	struct gmem_wire_msg msg = { .type = GMEM_WIRE_ASK }, got;
	uint8_t bytes[3 * 4096];
	size_t len;

	msg.pages = (struct gmem_wire_pages){ .tag = 9, .off = 0x5000, .region = 3, .npages = 64 };
	len = encode(&msg);
	CHECK_OK(decode(len, &got));
	CHECK_EQ(got.pages.tag, 9);
	CHECK_EQ(got.pages.off, 0x5000);
	CHECK_EQ(got.pages.region, 3);
	CHECK_EQ(got.pages.npages, 64);
	lengths(len, false);
	for (unsigned int i = 0; i < 4; i++) {
		msg.pages.npages = npages[i];
		msg.pages.off = off[i];
		len = encode(&msg);
		CHECK_ERR(decode(len, &got), -EPROTO);
	}
	msg = (struct gmem_wire_msg){ .type = GMEM_WIRE_PAGES };
	memset(bytes, 7, sizeof(bytes));
	msg.pages = (struct gmem_wire_pages){ .tag = 1, .npages = 5, .zero = 0x12, .sum = 4, .bytes = bytes };
	len = encode(&msg);
	CHECK_EQ(len, GMEM_WIRE_PAGES_LEN + 3 * 4096);
	CHECK_OK(decode(len, &got));
	CHECK_EQ(got.pages.zero, 0x12);
	CHECK_MEM(got.pages.bytes, bytes, sizeof(bytes));
	CHECK_ERR(decode(len - 1, &got), -EPROTO);
	CHECK_ERR(decode(len + 1, &got), -EPROTO);
	frame[8 + 24] = 0x30; /* a zero page after the last */
	CHECK_ERR(decode(len, &got), -EPROTO);
	msg.pages.error = EIO;
	msg.pages.zero = 0;
	len = encode(&msg);
	CHECK_EQ(len, GMEM_WIRE_PAGES_LEN);
	CHECK_OK(decode(len, &got));
	CHECK_EQ(got.pages.error, EIO);
}

static int again(const struct gmem_wire_msg *msg, struct gmem_wire_msg *ret)
{
	size_t len = encode(msg);

	return decode(len, ret);
}

TEST(regions)
{
	struct gmem_wire_msg msg = { .type = GMEM_WIRE_REGION, .seq = 3, .text = "ram", .text_len = 3 }, got;

	msg.region.len = 2 << 20;
	msg.region.page_size = 2 << 20;
	msg.region.index = 1;
	msg.region.last = true;
	CHECK_OK(again(&msg, &got));
	CHECK_EQ(got.seq, 3);
	CHECK_EQ(got.region.len, 2 << 20);
	CHECK_EQ(got.region.page_size, 2 << 20);
	CHECK(got.region.last && got.text_len == 3 && !memcmp(got.text, "ram", 3));
	lengths(encode(&msg), true);
	msg.region.len--;
	CHECK_ERR(again(&msg, &got), -EPROTO);
	msg.region.len = 6 << 20;
	msg.region.page_size = 3 << 20;
	CHECK_ERR(again(&msg, &got), -EPROTO);
	msg.region.page_size = 4096;
	msg.text = "a\tb";
	CHECK_ERR(again(&msg, &got), -EPROTO);
	msg.text = "ram";
	CHECK_OK(again(&msg, &got));
	msg.seq = 0;
	CHECK_ERR(again(&msg, &got), -EPROTO);
}

TEST(phases_and_rounds)
{
	struct gmem_wire_msg msg = { .type = GMEM_WIRE_PHASE, .seq = 1, .phase = GMEM_MIGRATE_GO }, got;

	CHECK_OK(again(&msg, &got));
	CHECK_EQ(got.phase, GMEM_MIGRATE_GO);
	lengths(encode(&msg), false);
	msg.phase = GMEM_MIGRATE_ABORTED;
	CHECK_ERR(again(&msg, &got), -EPROTO);
	msg.phase = GMEM_MIGRATE_OPEN;
	CHECK_ERR(again(&msg, &got), -EPROTO);
	msg = (struct gmem_wire_msg){ .type = GMEM_WIRE_ABORT, .seq = 1, .error = EIO, .text = "why", .text_len = 3 };
	CHECK_OK(again(&msg, &got));
	CHECK_EQ(got.error, EIO);
	CHECK_EQ(got.text_len, 3);
	msg = (struct gmem_wire_msg){ .type = GMEM_WIRE_ROUND, .seq = 1, .round = 1ull << 40 };
	CHECK_OK(again(&msg, &got));
	CHECK_EQ(got.round, 1ull << 40);
	lengths(encode(&msg), false);
	msg = (struct gmem_wire_msg){ .type = GMEM_WIRE_PRECOPY, .seq = 1 };
	lengths(encode(&msg), false);
}

TEST(sections_and_bitmaps)
{
	struct gmem_wire_msg msg = { .type = GMEM_WIRE_SECTION, .seq = 1, .text = "state", .text_len = 5 }, got;
	uint8_t bits[3] = { 0xff, 0, 0x03 };

	msg.section.off = 10;
	msg.section.total = 13;
	msg.section.len = 3;
	msg.section.bytes = (const uint8_t *)"abc";
	CHECK_OK(again(&msg, &got));
	CHECK(got.section.off == 10 && got.section.total == 13 && got.section.len == 3);
	CHECK_MEM(got.section.bytes, "abc", 3);
	lengths(encode(&msg), false);
	msg.section.total = 12;
	CHECK_ERR(again(&msg, &got), -EPROTO);
	msg.section.off = UINT64_MAX;
	CHECK_ERR(again(&msg, &got), -EPROTO);
	msg.section.off = 0;
	msg.section.total = UINT64_C(1) << 40;
	CHECK_ERR(again(&msg, &got), -EPROTO);
	/* A piece of nothing would go on for ever. */
	msg.section.total = 5;
	msg.section.len = 0;
	CHECK_ERR(again(&msg, &got), -EPROTO);
	msg = (struct gmem_wire_msg){ .type = GMEM_WIRE_DIRTY, .seq = 1 };
	msg.dirty.off = 4096;
	msg.dirty.npages = 18;
	msg.dirty.bitmap = bits;
	CHECK_OK(again(&msg, &got));
	CHECK_EQ(got.dirty.npages, 18);
	CHECK_MEM(got.dirty.bitmap, bits, 3);
	lengths(encode(&msg), false);
	bits[2] = 4;
	CHECK_ERR(again(&msg, &got), -EPROTO);
}

TEST(heads)
{
	uint8_t head[8] = { 0 };
	struct gmem_wire_msg got;
	uint16_t type;

	CHECK_EQ(gmem_wire_decode_head(head, &type), 0);
	head[6] = 1;
	CHECK_ERR(gmem_wire_decode_head(head, &type), -EPROTO);
	head[6] = 0;
	head[3] = 0x80;
	CHECK_ERR(gmem_wire_decode_head(head, &type), -EPROTO);
	memset(frame, 1, 16);
	for (unsigned int t = 0; t < 65536; t++)
		if (t < 1 || (t > 6 && t < 16) || t > 23)
			CHECK_ERR(gmem_wire_decode((uint16_t)t, frame, 8, &got), -EPROTO);
}

/* ---- the sequence: a model of two sides, whose links break at any time */

struct side {
	struct gmem_control c;
	uint64_t said, heard;
};

/* Frames under way from one side to the other. */
struct wire {
	uint64_t seqs[64];
	unsigned int first, n;
};

static void say(struct side *s)
{
	struct gmem_wire_msg msg = { .type = GMEM_WIRE_ROUND, .round = s->said + 1 };

	if (!gmem_control_post(&s->c, &msg, 4096))
		s->said++;
	else
		CHECK(s->c.bytes > 4096 - 24);
}

static void carry(struct side *from, struct wire *w)
{
	const struct gmem_control_frame *f;

	if (w->n < 64 && (f = gmem_control_next(&from->c)))
		w->seqs[(w->first + w->n++) % 64] = f->seq;
}

static void hear(struct side *to, struct wire *w)
{
	uint64_t seq;

	if (!w->n)
		return;
	seq = w->seqs[w->first];
	w->first = (w->first + 1) % 64;
	w->n--;
	if (!CHECK_OK(gmem_control_take(&to->c, seq)))
		return;
	CHECK_EQ(seq, to->heard + 1);
	to->heard++;
	gmem_control_received(&to->c);
}

static void acknowledge(struct side *a, struct side *b, bool lost)
{
	uint64_t ack = gmem_control_tell(&b->c);

	if (ack && !lost)
		CHECK_OK(gmem_control_ack(&a->c, ack));
}

TEST(the_sequence_loses_and_doubles_nothing)
{
	uint64_t seed = tap_seed(), breaks = 0;
	struct side a = { .said = 0 }, b = { .said = 0 };
	struct wire w = { .n = 0 };

	for (unsigned int i = 0; i < 200000; i++) {
		uint64_t what = tap_rand(&seed) % 64;

		if (what < 16)
			say(&a);
		else if (what < 37)
			carry(&a, &w);
		else if (what < 58)
			hear(&b, &w);
		else if (what < 63)
			acknowledge(&a, &b, tap_rand(&seed) % 2);
		if (what != 63)
			continue;
		breaks++;
		w.n = 0;
		CHECK_OK(gmem_control_fits(&a.c, b.c.received));
		gmem_control_relink(&a.c, b.c.received);
		gmem_control_relink(&b.c, a.c.received);
	}
	w.n = 0;
	gmem_control_relink(&a.c, b.c.received);
	while (b.heard < a.said) {
		carry(&a, &w);
		hear(&b, &w);
	}
	CHECK_EQ(b.heard, a.said);
	CHECK_OK(gmem_control_ack(&a.c, b.c.received));
	CHECK_EQ(a.c.bytes, 0);
	CHECK(a.said > 1000 && breaks > 1000);
	printf("%llu messages, %llu links\n", (unsigned long long)a.said, (unsigned long long)breaks + 1);
	/* Somebody who lies, or has lost its memory. */
	CHECK_ERR(gmem_control_ack(&a.c, a.said + 1), -EPROTO);
	CHECK_ERR(gmem_control_fits(&a.c, a.said + 1), -EPROTO);
	CHECK_ERR(gmem_control_fits(&a.c, a.said - 1), -EPROTO);
	CHECK_ERR(gmem_control_take(&b.c, b.heard + 2), -EPROTO);
	gmem_control_free(&a.c);
	gmem_control_free(&b.c);
}

/* ---- phases: every state two sides can be in, by exhaustion */

struct state {
	uint8_t src, dst;
	uint8_t to_dst[4], to_src[4]; /* phases said and not heard yet, in order */
};

#define MAX_STATES 4096u
static struct state states[MAX_STATES];
static unsigned int nstates;

static void reach(const struct state *s)
{
	for (unsigned int i = 0; i < nstates; i++)
		if (!memcmp(&states[i], s, sizeof(*s)))
			return;
	CHECK(nstates < MAX_STATES);
	states[nstates++] = *s;
}

static void push(uint8_t *queue, uint8_t phase)
{
	unsigned int i = 0;

	while (i < 4 && queue[i])
		i++;
	CHECK(i < 4);
	queue[i] = phase;
}

static void pop(uint8_t *queue)
{
	memmove(queue, queue + 1, 3);
	queue[3] = 0;
}

static bool src_may_run(const struct state *s)
{
	return s->src < GMEM_MIGRATE_GO || s->src == GMEM_MIGRATE_ABORTED;
}

/* It was told GO, and did not abort. */
static bool dst_may_run(const struct state *s)
{
	return s->dst >= GMEM_MIGRATE_GO && s->dst != GMEM_MIGRATE_ABORTED;
}

static void explore(const struct state *s)
{
	struct state t;

	for (uint8_t next = GMEM_MIGRATE_PREPARED; next <= GMEM_MIGRATE_ABORTED; next++) {
		if (s->src != GMEM_MIGRATE_ABORTED && gmem_phase_may_say(GMEM_WIRE_SOURCE, s->src, next)) {
			t = *s;
			t.src = next;
			push(t.to_dst, next);
			reach(&t);
		}
		if (s->dst != GMEM_MIGRATE_ABORTED && gmem_phase_may_say(GMEM_WIRE_DESTINATION, s->dst, next)) {
			t = *s;
			t.dst = next;
			push(t.to_src, next);
			reach(&t);
		}
	}
	if (s->to_dst[0]) {
		CHECK(gmem_phase_may_hear(GMEM_WIRE_DESTINATION, s->dst, s->to_dst[0]));
		t = *s;
		if (s->dst != GMEM_MIGRATE_ABORTED)
			t.dst = s->to_dst[0];
		pop(t.to_dst);
		reach(&t);
	}
	if (s->to_src[0]) {
		CHECK(gmem_phase_may_hear(GMEM_WIRE_SOURCE, s->src, s->to_src[0]));
		t = *s;
		if (s->src != GMEM_MIGRATE_ABORTED)
			t.src = s->to_src[0];
		pop(t.to_src);
		reach(&t);
	}
}

TEST(the_guest_runs_on_one_side_at_most)
{
	struct state first = { .src = GMEM_MIGRATE_OPEN, .dst = GMEM_MIGRATE_OPEN };
	unsigned int closed = 0, aborted = 0;

	reach(&first);
	for (unsigned int i = 0; i < nstates; i++) {
		const struct state s = states[i];

		explore(&s);
		CHECK(!src_may_run(&s) || !dst_may_run(&s));
		/* The source drops what the destination has, and not before. */
		if (s.src >= GMEM_MIGRATE_COMPLETE && s.src != GMEM_MIGRATE_ABORTED)
			CHECK(s.dst >= GMEM_MIGRATE_COMPLETE && s.dst != GMEM_MIGRATE_ABORTED);
		if (s.to_dst[0] || s.to_src[0])
			continue;
		/* Nothing under way: both are of one mind, and one of them may run. */
		CHECK_EQ(s.src, s.dst);
		CHECK(src_may_run(&s) || dst_may_run(&s));
		closed += s.src == GMEM_MIGRATE_CLOSED;
		aborted += s.src == GMEM_MIGRATE_ABORTED;
	}
	CHECK_EQ(closed, 1);
	CHECK_EQ(aborted, 1);
	printf("%u states\n", nstates);
	CHECK_STR(gmem_migrate_phase_name(GMEM_MIGRATE_READY), "ready");
	CHECK_STR(gmem_migrate_phase_name(GMEM_MIGRATE_ABORTED), "aborted");
}
