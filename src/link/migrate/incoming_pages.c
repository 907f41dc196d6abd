/* SPDX-License-Identifier: MIT */
/* Pages that come: to who waits for them, or kept until somebody takes them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/range.h"
#include "image/hash.h"
#include "link/migrate/incoming_impl.h"

/* ---- requests over bulk */

uint32_t gmem_slot_take(struct gmem_incoming *in, uint32_t region, uint64_t chunk)
{
	uint32_t slot = in->free_slot;

	if (!slot)
		return 0;
	in->free_slot = in->slots[slot - 1].region;
	in->slots[slot - 1] = (struct gmem_slot){
		.used = true, .region = region, .chunk = chunk, .generation = in->slots[slot - 1].generation + 1
	};
	in->used_slots++;
	in->regions[region].chunks[chunk].slot = slot;
	return slot;
}

static void slot_drop(struct gmem_incoming *in, uint32_t slot)
{
	struct gmem_slot *s = &in->slots[slot - 1];

	in->regions[s->region].chunks[s->chunk].slot = 0;
	s->used = false;
	s->region = in->free_slot;
	in->free_slot = slot;
	in->used_slots--;
}

void gmem_slot_drop_all(struct gmem_incoming *in)
{
	for (uint32_t i = 0; i < in->nslots; i++)
		if (in->slots[i].used)
			slot_drop(in, i + 1);
}

struct gmem_wire_msg gmem_chunk_ask(struct gmem_incoming *in, uint32_t region, uint64_t chunk, uint64_t need)
{
	uint32_t slot = in->regions[region].chunks[chunk].slot, first = (uint32_t)__builtin_ctzll(need);
	struct gmem_wire_msg msg = { .type = GMEM_WIRE_ASK };

	msg.pages.tag = (uint64_t)in->slots[slot - 1].generation << 32 | slot;
	msg.pages.region = region;
	msg.pages.off = (chunk << GMEM_CHUNK_SHIFT) + ((uint64_t)first << GMEM_PAGE_SHIFT);
	msg.pages.npages = 64 - (uint32_t)__builtin_clzll(need) - first;
	return msg;
}

/* The slot of an answer, if it is still waited for: it is free from then on. */
static bool take_answer(struct gmem_incoming *in, const struct gmem_wire_pages *g)
{
	uint32_t slot = (uint32_t)g->tag;
	struct gmem_slot *s;

	if (!slot || slot > in->nslots)
		return false;
	s = &in->slots[slot - 1];
	if (!s->used || s->generation != (uint32_t)(g->tag >> 32) || s->region != g->region ||
	    s->chunk != g->off >> GMEM_CHUNK_SHIFT)
		return false;
	slot_drop(in, slot);
	return true;
}

/* ---- bytes that nobody has taken yet */

static void unlink_buf(struct gmem_incoming *in, struct gmem_chunk_buf *buf)
{
	*(buf->prev ? &buf->prev->next : &in->first) = buf->next;
	*(buf->next ? &buf->next->prev : &in->last) = buf->prev;
}

static void link_first(struct gmem_incoming *in, struct gmem_chunk_buf *buf)
{
	buf->prev = NULL;
	buf->next = in->first;
	*(in->first ? &in->first->prev : &in->last) = buf;
	in->first = buf;
}

static void link_last(struct gmem_incoming *in, struct gmem_chunk_buf *buf)
{
	buf->next = NULL;
	buf->prev = in->last;
	*(in->last ? &in->last->next : &in->first) = buf;
	in->last = buf;
}

void gmem_buf_free(struct gmem_incoming *in, struct gmem_chunk_buf *buf)
{
	unlink_buf(in, buf);
	if (buf->chunk)
		buf->chunk->buf = NULL;
	in->nbufs--;
	free(buf);
}

bool gmem_buf_evict(struct gmem_incoming *in)
{
	for (struct gmem_chunk_buf *buf = in->first; buf; buf = buf->next) {
		if (!buf->users) {
			gmem_buf_free(in, buf);
			return true;
		}
	}
	return false;
}

void gmem_buf_done(struct gmem_incoming *in, struct gmem_chunk_buf *buf)
{
	if (in->first == buf)
		return;
	unlink_buf(in, buf);
	link_first(in, buf);
}

/* Puts the pages that were sent as bytes, and are in `want`, where they belong. */
static void spread(uint8_t *chunk, const struct gmem_wire_pages *g, uint64_t want)
{
	const uint8_t *bytes = g->bytes;
	uint32_t first = (uint32_t)(g->off >> GMEM_PAGE_SHIFT) % GMEM_WIRE_MAX_PAGES;

	for (uint32_t i = 0; i < g->npages; i++) {
		if (g->zero >> i & 1)
			continue;
		if (want >> (first + i) & 1)
			memcpy(chunk + ((size_t)(first + i) << GMEM_PAGE_SHIFT), bytes, GMEM_PAGE_SIZE);
		bytes += GMEM_PAGE_SIZE;
	}
}

/* Into the chunk's buffer, or a new one that was filled before with no lock held. */
static void keep(struct gmem_incoming *in, struct gmem_chunk *c, const struct gmem_wire_pages *g, uint64_t come,
		 struct gmem_chunk_buf **fresh)
{
	uint64_t want = come & ~(c->done | c->zero | (c->buf ? c->buf->have : 0));

	in->stats.dropped_pages += (uint64_t)__builtin_popcountll(come & ~want);
	if (!want)
		return;
	if (!c->buf) {
		c->buf = *fresh;
		c->buf->chunk = c;
		link_last(in, c->buf);
		in->nbufs++;
		*fresh = NULL;
	} else {
		spread(c->buf->data, g, want);
	}
	c->buf->have |= want;
}

static int check_sum(const struct gmem_wire_pages *g)
{
	if (gmem_image_hash(g->bytes, gmem_wire_bytes(g)) != g->sum)
		return gmem_err(-EPROTO, "migration: pages at 0x%llx came with a wrong sum",
				(unsigned long long)g->off);
	return 0;
}

/* Inside one chunk of a region whose pages somebody wants. */
static bool inside(struct gmem_incoming *in, const struct gmem_wire_pages *g)
{
	uint64_t last = g->off + ((uint64_t)(g->npages - 1) << GMEM_PAGE_SHIFT);
	const struct gmem_incoming_region *r;
	bool ok;

	pthread_mutex_lock(&in->m);
	r = &in->regions[g->region];
	ok = g->region < in->nregions && r->chunks && last < r->r.len &&
	     g->off >> GMEM_CHUNK_SHIFT == last >> GMEM_CHUNK_SHIFT;
	pthread_mutex_unlock(&in->m);
	return ok;
}

/* Into memory, for who will want them. Filled before the lock is taken: who waits for a page is not to wait for this. */
static int keep_pages(struct gmem_incoming *in, struct gmem_chunk *c, const struct gmem_wire_pages *g)
{
	uint32_t first = (uint32_t)(g->off >> GMEM_PAGE_SHIFT) % GMEM_WIRE_MAX_PAGES;
	uint64_t come = (gmem_wire_mask(g->npages) & ~g->zero) << first;
	struct gmem_chunk_buf *fresh = NULL;

	if (come) {
		fresh = malloc(sizeof(*fresh));
		if (!fresh)
			return gmem_err(-ENOMEM, "migration: no memory for pages");
		fresh->have = 0;
		fresh->users = 0;
		spread(fresh->data, g, come);
	}
	pthread_mutex_lock(&in->m);
	c->zero |= g->zero << first;
	keep(in, c, g, come, &fresh);
	pthread_cond_broadcast(&in->arrived);
	pthread_mutex_unlock(&in->m);
	free(fresh);
	return 0;
}

int gmem_pages_bulk(struct gmem_incoming *in, const struct gmem_wire_pages *g)
{
	uint32_t first = (uint32_t)(g->off >> GMEM_PAGE_SHIFT) % GMEM_WIRE_MAX_PAGES;
	struct gmem_chunk *c;
	bool asked, final;
	int err;

	if (!inside(in, g))
		return gmem_err(-EPROTO, "migration: the source sent pages that nobody can have asked for");
	err = check_sum(g);
	if (err)
		return err;
	pthread_mutex_lock(&in->m);
	c = &in->regions[g->region].chunks[g->off >> GMEM_CHUNK_SHIFT];
	in->stats.bulk_pages += g->error ? 0 : g->npages;
	in->stats.bytes += gmem_wire_bytes(g);
	asked = take_answer(in, g);
	final = in->final; /* this thread sets it */
	/* Pages that cannot be read are left to who really needs them. */
	if (asked && g->error && final)
		c->done |= gmem_wire_mask(g->npages) << first;
	if (!asked)
		in->stats.dropped_pages += g->npages;
	if (!asked || g->error)
		pthread_cond_broadcast(&in->arrived);
	pthread_mutex_unlock(&in->m);
	if (!asked || g->error)
		return 0;
	if (final)
		return keep_pages(in, c, g);
	gmem_store_pages(in, g);
	return 0;
}

/* ---- to who waits */

static struct gmem_request *find_request(struct gmem_incoming *in, uint64_t tag)
{
	struct gmem_request *q = in->requests;

	while (q && q->tag != tag)
		q = q->next;
	return q;
}

static void give(struct gmem_request *q, const struct gmem_wire_pages *g)
{
	const uint8_t *bytes = g->bytes;

	for (uint32_t i = 0; i < g->npages; i++) {
		if (g->zero >> i & 1) {
			memset(q->buf + ((size_t)i << GMEM_PAGE_SHIFT), 0, GMEM_PAGE_SIZE);
			continue;
		}
		memcpy(q->buf + ((size_t)i << GMEM_PAGE_SHIFT), bytes, GMEM_PAGE_SIZE);
		bytes += GMEM_PAGE_SIZE;
	}
}

int gmem_pages_urgent(struct gmem_incoming *in, const struct gmem_wire_pages *g)
{
	struct gmem_request *q;
	int err;

	if (!inside(in, g))
		return gmem_err(-EPROTO, "migration: the source sent pages that nobody can have asked for");
	err = check_sum(g);
	if (err)
		return err;
	pthread_mutex_lock(&in->m);
	in->stats.urgent_pages += g->error ? 0 : g->npages;
	in->stats.bytes += gmem_wire_bytes(g);
	q = find_request(in, g->tag);
	if (q && (q->region != g->region || q->off != g->off || q->npages != g->npages)) {
		err = gmem_err(-EPROTO, "migration: the source answers with other pages than were asked for");
	} else if (q && !q->done) {
		if (g->error)
			q->err = -EIO;
		else
			give(q, g);
		q->done = true;
		pthread_cond_signal(q->wake);
	} else {
		/* Who asked has gone, or asked twice because a link was lost in between. */
		in->stats.dropped_pages += g->npages;
	}
	pthread_mutex_unlock(&in->m);
	return err;
}
