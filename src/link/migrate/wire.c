/* SPDX-License-Identifier: MIT */
#include "link/migrate/wire.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/le.h"
#include "base/range.h"

#define HELLO_LEN 48u
#define ASK_LEN 24u
#define REGION_LEN 20u
#define SECTION_LEN 24u
#define DIRTY_LEN 24u

static int bad(const char *what)
{
	return gmem_err(-EPROTO, "migration: the other side sent %s", what);
}

int64_t gmem_wire_decode_head(const uint8_t head[GMEM_WIRE_HEAD_LEN], uint16_t *type)
{
	uint32_t len = gmem_get_le32(head);

	*type = gmem_get_le16(head + 4);
	if (gmem_get_le16(head + 6))
		return bad("a frame with a field that is not 0");
	if (len > GMEM_WIRE_MAX_PAYLOAD)
		return bad("a frame that is too long");
	return (int64_t)len;
}

/* ---- decoding: `p` and `n` are what is left */

static int decode_text(struct gmem_wire_msg *m, const uint8_t *p, size_t n, size_t min)
{
	if (n < min || n > GMEM_WIRE_MAX_TEXT)
		return bad("a text of a wrong length");
	for (size_t i = 0; i < n; i++)
		if (p[i] < 0x20 || p[i] == 0x7f)
			return bad("a text with control characters");
	m->text = (const char *)p;
	m->text_len = (uint8_t)n;
	return 0;
}

static int decode_hello(struct gmem_wire_hello *h, const uint8_t *p, size_t n)
{
	/* A later version may have more to say. */
	if (n < HELLO_LEN)
		return bad("a short HELLO");
	if (gmem_get_le64(p) != GMEM_WIRE_MAGIC)
		return bad("no HELLO of this protocol");
	h->version = gmem_get_le32(p + 8);
	h->role = p[12];
	h->channel = p[13];
	memcpy(h->id, p + 16, GMEM_WIRE_ID_LEN);
	h->epoch = gmem_get_le64(p + 32);
	h->received = gmem_get_le64(p + 40);
	if (h->version == GMEM_WIRE_VERSION && (n != HELLO_LEN || gmem_get_le16(p + 14)))
		return bad("a HELLO that is too long");
	if (h->role < GMEM_WIRE_SOURCE || h->role > GMEM_WIRE_DESTINATION || h->channel < GMEM_WIRE_PRIORITY ||
	    h->channel > GMEM_WIRE_BULK || !h->epoch)
		return bad("a HELLO with a field out of range");
	return 0;
}

static bool chunk_valid(const struct gmem_wire_pages *g)
{
	return g->npages && g->npages <= GMEM_WIRE_MAX_PAGES && gmem_page_aligned(g->off) &&
	       g->off <= GMEM_MIGRATE_MAX_LEN && g->region < GMEM_MIGRATE_MAX_REGIONS;
}

static void decode_chunk(struct gmem_wire_pages *g, const uint8_t *p)
{
	g->tag = gmem_get_le64(p);
	g->off = gmem_get_le64(p + 8);
	g->region = gmem_get_le32(p + 16);
	g->npages = gmem_get_le32(p + 20);
}

static int decode_ask(struct gmem_wire_pages *g, const uint8_t *p, size_t n)
{
	if (n != ASK_LEN)
		return bad("a request of a wrong length");
	decode_chunk(g, p);
	return chunk_valid(g) ? 0 : bad("a request with a field out of range");
}

static int decode_pages(struct gmem_wire_pages *g, const uint8_t *p, size_t n)
{
	if (n < GMEM_WIRE_PAGES_LEN)
		return bad("short pages");
	decode_chunk(g, p);
	g->zero = gmem_get_le64(p + 24);
	g->sum = gmem_get_le64(p + 32);
	g->error = gmem_get_le32(p + 40);
	g->bytes = p + GMEM_WIRE_PAGES_LEN;
	if (!chunk_valid(g) || gmem_get_le32(p + 44) || g->error > 4095 || (g->zero & ~gmem_wire_mask(g->npages)))
		return bad("pages with a field out of range");
	return n - GMEM_WIRE_PAGES_LEN == gmem_wire_bytes(g) ? 0 : bad("pages of a wrong length");
}

static int decode_region(struct gmem_wire_msg *m, const uint8_t *p, size_t n)
{
	uint32_t last;

	if (n < REGION_LEN)
		return bad("a short region");
	m->region.len = gmem_get_le64(p);
	m->region.page_size = gmem_get_le32(p + 8);
	m->region.index = gmem_get_le32(p + 12);
	last = gmem_get_le32(p + 16);
	m->region.last = last == 1;
	if (last > 1 || m->region.index >= GMEM_MIGRATE_MAX_REGIONS || !m->region.len ||
	    m->region.len > GMEM_MIGRATE_MAX_LEN || m->region.page_size < GMEM_PAGE_SIZE ||
	    m->region.page_size > 1u << 30 || (m->region.page_size & (m->region.page_size - 1)) ||
	    (m->region.len & (m->region.page_size - 1)))
		return bad("a region with a field out of range");
	return decode_text(m, p + REGION_LEN, n - REGION_LEN, 1);
}

static int decode_section(struct gmem_wire_msg *m, const uint8_t *p, size_t n)
{
	uint32_t name;

	if (n < SECTION_LEN)
		return bad("a short section");
	m->section.off = gmem_get_le64(p);
	m->section.total = gmem_get_le64(p + 8);
	m->section.len = gmem_get_le32(p + 16);
	name = gmem_get_le32(p + 20);
	p += SECTION_LEN;
	n -= SECTION_LEN;
	if (name > n || m->section.len != n - name || m->section.len > GMEM_WIRE_MAX_PIECE ||
	    m->section.total > GMEM_MIGRATE_MAX_SECTION_LEN ||
	    !gmem_range_inside(m->section.off, m->section.len, m->section.total) ||
	    (!m->section.len && m->section.total))
		return bad("a section with a field out of range");
	m->section.bytes = p + name;
	return decode_text(m, p, name, 1);
}

static int decode_dirty(struct gmem_wire_msg *m, const uint8_t *p, size_t n)
{
	uint64_t npages;

	if (n < DIRTY_LEN)
		return bad("a short bitmap");
	m->dirty.off = gmem_get_le64(p);
	m->dirty.npages = npages = gmem_get_le64(p + 8);
	m->dirty.region = gmem_get_le32(p + 16);
	m->dirty.bitmap = p + DIRTY_LEN;
	if (gmem_get_le32(p + 20) || !npages || npages > GMEM_WIRE_MAX_BITMAP * 8u ||
	    n - DIRTY_LEN != (npages + 7) / 8 || !gmem_page_aligned(m->dirty.off) ||
	    m->dirty.off > GMEM_MIGRATE_MAX_LEN || m->dirty.region >= GMEM_MIGRATE_MAX_REGIONS)
		return bad("a bitmap with a field out of range");
	if (npages % 8 && m->dirty.bitmap[npages / 8] >> npages % 8)
		return bad("a bitmap with bits after its end");
	return 0;
}

static int decode_control(struct gmem_wire_msg *m, const uint8_t *p, size_t n)
{
	if (n < 8)
		return bad("a short control message");
	m->seq = gmem_get_le64(p);
	if (!m->seq)
		return bad("a control message without a number");
	p += 8;
	n -= 8;
	switch (m->type) {
	case GMEM_WIRE_REGION:
		return decode_region(m, p, n);
	case GMEM_WIRE_SECTION:
		return decode_section(m, p, n);
	case GMEM_WIRE_DIRTY:
		return decode_dirty(m, p, n);
	case GMEM_WIRE_PRECOPY:
		return n ? bad("a PRECOPY of a wrong length") : 0;
	case GMEM_WIRE_ROUND:
	case GMEM_WIRE_ROUND_DONE:
		if (n != 8)
			return bad("a round of a wrong length");
		m->round = gmem_get_le64(p);
		return 0;
	case GMEM_WIRE_PHASE:
		if (n != 4 || gmem_get_le32(p) < GMEM_MIGRATE_PREPARED || gmem_get_le32(p) > GMEM_MIGRATE_CLOSED)
			return bad("a phase that there is not");
		m->phase = (enum gmem_migrate_phase)gmem_get_le32(p);
		return 0;
	case GMEM_WIRE_ABORT:
		if (n < 4 || gmem_get_le32(p) > 4095)
			return bad("an ABORT with a field out of range");
		m->error = gmem_get_le32(p);
		return decode_text(m, p + 4, n - 4, 0);
	default:
		return bad("a message of an unknown type");
	}
}

int gmem_wire_decode(uint16_t type, const uint8_t *payload, size_t len, struct gmem_wire_msg *ret)
{
	memset(ret, 0, sizeof(*ret));
	ret->type = (enum gmem_wire_type)type;
	switch (type) {
	case GMEM_WIRE_HELLO:
		return decode_hello(&ret->hello, payload, len);
	case GMEM_WIRE_REFUSE:
		if (len < 4 || gmem_get_le32(payload) > 4095)
			return bad("a refusal with a field out of range");
		ret->error = gmem_get_le32(payload);
		return decode_text(ret, payload + 4, len - 4, 0);
	case GMEM_WIRE_PING:
		return len ? bad("a PING of a wrong length") : 0;
	case GMEM_WIRE_ACK:
		if (len != 8)
			return bad("an ACK of a wrong length");
		ret->ack = gmem_get_le64(payload);
		return 0;
	case GMEM_WIRE_ASK:
		return decode_ask(&ret->pages, payload, len);
	case GMEM_WIRE_PAGES:
		return decode_pages(&ret->pages, payload, len);
	default:
		return type < GMEM_WIRE_CONTROL ? bad("a message of an unknown type") :
						  decode_control(ret, payload, len);
	}
}

/* ---- encoding: each returns how many bytes it wrote */

static size_t encode_hello(uint8_t *p, const struct gmem_wire_hello *h)
{
	gmem_put_le64(p, GMEM_WIRE_MAGIC);
	gmem_put_le32(p + 8, h->version);
	p[12] = h->role;
	p[13] = h->channel;
	gmem_put_le16(p + 14, 0);
	memcpy(p + 16, h->id, GMEM_WIRE_ID_LEN);
	gmem_put_le64(p + 32, h->epoch);
	gmem_put_le64(p + 40, h->received);
	return HELLO_LEN;
}

static size_t encode_chunk(uint8_t *p, const struct gmem_wire_pages *g)
{
	gmem_put_le64(p, g->tag);
	gmem_put_le64(p + 8, g->off);
	gmem_put_le32(p + 16, g->region);
	gmem_put_le32(p + 20, g->npages);
	return ASK_LEN;
}

static size_t encode_pages(uint8_t *p, const struct gmem_wire_pages *g)
{
	encode_chunk(p, g);
	gmem_put_le64(p + 24, g->zero);
	gmem_put_le64(p + 32, g->sum);
	gmem_put_le32(p + 40, g->error);
	gmem_put_le32(p + 44, 0);
	return GMEM_WIRE_PAGES_LEN;
}

static size_t encode_bytes(uint8_t *p, const void *bytes, size_t len)
{
	if (len)
		memcpy(p, bytes, len);
	return len;
}

static size_t encode_section(uint8_t *p, const struct gmem_wire_msg *m)
{
	gmem_put_le64(p, m->section.off);
	gmem_put_le64(p + 8, m->section.total);
	gmem_put_le32(p + 16, m->section.len);
	gmem_put_le32(p + 20, m->text_len);
	encode_bytes(p + SECTION_LEN, m->text, m->text_len);
	return SECTION_LEN + m->text_len +
	       encode_bytes(p + SECTION_LEN + m->text_len, m->section.bytes, m->section.len);
}

static size_t encode_dirty(uint8_t *p, const struct gmem_wire_msg *m)
{
	gmem_put_le64(p, m->dirty.off);
	gmem_put_le64(p + 8, m->dirty.npages);
	gmem_put_le32(p + 16, m->dirty.region);
	gmem_put_le32(p + 20, 0);
	return DIRTY_LEN + encode_bytes(p + DIRTY_LEN, m->dirty.bitmap, (size_t)((m->dirty.npages + 7) / 8));
}

static size_t encode_error(uint8_t *p, const struct gmem_wire_msg *m)
{
	gmem_put_le32(p, m->error);
	return 4 + encode_bytes(p + 4, m->text, m->text_len);
}

static size_t encode_control(uint8_t *p, const struct gmem_wire_msg *m)
{
	gmem_put_le64(p, m->seq);
	p += 8;
	switch (m->type) {
	case GMEM_WIRE_REGION:
		gmem_put_le64(p, m->region.len);
		gmem_put_le32(p + 8, m->region.page_size);
		gmem_put_le32(p + 12, m->region.index);
		gmem_put_le32(p + 16, m->region.last);
		return 8 + REGION_LEN + encode_bytes(p + REGION_LEN, m->text, m->text_len);
	case GMEM_WIRE_SECTION:
		return 8 + encode_section(p, m);
	case GMEM_WIRE_DIRTY:
		return 8 + encode_dirty(p, m);
	case GMEM_WIRE_ROUND:
	case GMEM_WIRE_ROUND_DONE:
		gmem_put_le64(p, m->round);
		return 16;
	case GMEM_WIRE_PHASE:
		gmem_put_le32(p, (uint32_t)m->phase);
		return 12;
	case GMEM_WIRE_ABORT:
		return 8 + encode_error(p, m);
	default:
		return 8;
	}
}

static size_t finish(uint8_t *frame, enum gmem_wire_type type, size_t len)
{
	gmem_put_le32(frame, (uint32_t)len);
	gmem_put_le16(frame + 4, (uint16_t)type);
	gmem_put_le16(frame + 6, 0);
	return GMEM_WIRE_HEAD_LEN + len;
}

size_t gmem_wire_encode_pages(uint8_t *frame, const struct gmem_wire_pages *pages)
{
	return finish(frame, GMEM_WIRE_PAGES, encode_pages(frame + GMEM_WIRE_HEAD_LEN, pages) + gmem_wire_bytes(pages));
}

size_t gmem_wire_encode(uint8_t *frame, const struct gmem_wire_msg *msg)
{
	uint8_t *p = frame + GMEM_WIRE_HEAD_LEN;

	switch (msg->type) {
	case GMEM_WIRE_HELLO:
		return finish(frame, msg->type, encode_hello(p, &msg->hello));
	case GMEM_WIRE_REFUSE:
		return finish(frame, msg->type, encode_error(p, msg));
	case GMEM_WIRE_PING:
		return finish(frame, msg->type, 0);
	case GMEM_WIRE_ACK:
		gmem_put_le64(p, msg->ack);
		return finish(frame, msg->type, 8);
	case GMEM_WIRE_ASK:
		return finish(frame, msg->type, encode_chunk(p, &msg->pages));
	case GMEM_WIRE_PAGES:
		encode_bytes(p + GMEM_WIRE_PAGES_LEN, msg->pages.bytes, gmem_wire_bytes(&msg->pages));
		return gmem_wire_encode_pages(frame, &msg->pages);
	default:
		return finish(frame, msg->type, encode_control(p, msg));
	}
}
