/* SPDX-License-Identifier: MIT */
/* A region of the other machine's memory as a source: what is at hand, what is on its way, what is asked for now. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/cond.h"
#include "base/err.h"
#include "base/range.h"
#include "link/migrate/incoming_impl.h"

#define MAX_REQUESTS 16u /* of one read at a time */

struct peer_source {
	struct gmem_incoming *in; /* referenced */
	uint32_t region;
};

/* ---- waiting */

/* A read, or a prefetch: since when it waits, and for which link. */
struct patience {
	uint64_t since_ms;
	uint64_t epoch; /* what it asked for was asked on this link */
};

/* With `m` held. 0: there may be something new. */
static int wait_more(struct gmem_incoming *in, struct patience *p, pthread_cond_t *cond)
{
	bool ready = in->linked && in->final;
	uint64_t now = gmem_now_ms(), limit = ready ? GMEM_INCOMING_ANSWER_MS : in->opts.wait_ms;

	if (in->dead)
		return gmem_err(-ESHUTDOWN, "migration: the channel has ended");
	if (now - p->since_ms >= limit && !in->final)
		return gmem_err(-ETIMEDOUT, "migration: the guest still runs at the source");
	if (now - p->since_ms >= limit)
		return ready ? gmem_err(-ETIMEDOUT, "migration: no answer from the source") :
			       gmem_err(-ETIMEDOUT, "migration: no link for %llu ms",
					(unsigned long long)(now - in->lost_ms));
	gmem_cond_wait_for(cond, &in->m, (limit - (now - p->since_ms)) * 1000000u);
	return 0;
}

/* ---- what is at hand */

/* The pages of a chunk that [off, off + len) names. */
static uint64_t mask_of(uint64_t chunk, uint64_t off, uint64_t len)
{
	uint64_t from = gmem_max_u64(off, chunk << GMEM_CHUNK_SHIFT),
		 to = gmem_min_u64(off + len, (chunk + 1) << GMEM_CHUNK_SHIFT);

	return gmem_wire_mask((uint32_t)((to - from) >> GMEM_PAGE_SHIFT))
	       << (from >> GMEM_PAGE_SHIFT) % GMEM_WIRE_MAX_PAGES;
}

static uint64_t at_hand(const struct gmem_chunk *c)
{
	return c->zero | c->stored | (c->buf ? c->buf->have : 0);
}

/* Where page `i` of the chunk goes. */
static uint8_t *place(uint8_t *buf, uint64_t off, uint64_t chunk, uint32_t i)
{
	return buf + ((chunk << GMEM_CHUNK_SHIFT) + ((uint64_t)i << GMEM_PAGE_SHIFT) - off);
}

/* Copies pages of `mask`, all at hand, out of one chunk. `m` is held, and let go meanwhile. Which were copied. */
static uint64_t copy_out(struct gmem_incoming *in, const struct gmem_incoming_region *r, uint64_t chunk, uint64_t mask,
			 uint64_t off, uint8_t *buf)
{
	struct gmem_chunk *c = &r->chunks[chunk];
	uint64_t zero = c->zero & mask, stored = c->stored & mask & ~zero, lost = 0;
	struct gmem_chunk_buf *b = mask & ~(zero | stored) ? c->buf : NULL;

	if (b)
		b->users++;
	pthread_mutex_unlock(&in->m);
	for (uint32_t i = 0; i < GMEM_WIRE_MAX_PAGES; i++) {
		uint64_t bit = UINT64_C(1) << i, at = (chunk << GMEM_CHUNK_SHIFT) + ((uint64_t)i << GMEM_PAGE_SHIFT);

		if (zero & bit)
			memset(place(buf, off, chunk, i), 0, GMEM_PAGE_SIZE);
		else if (stored & bit && gmem_store_read(r, at, place(buf, off, chunk, i), GMEM_PAGE_SIZE))
			lost |= bit;
		else if (mask & ~stored & bit)
			memcpy(place(buf, off, chunk, i), b->data + ((size_t)i << GMEM_PAGE_SHIFT), GMEM_PAGE_SIZE);
	}
	pthread_mutex_lock(&in->m);
	c->stored &= ~lost;
	if (b) {
		b->users--;
		/* They stay until the room is needed: the pager may have to come again. */
		if (!(b->have & ~(c->done | mask)) && !b->users)
			gmem_buf_done(in, b);
	}
	return mask & ~lost;
}

static void mark_done(const struct gmem_incoming_region *r, uint64_t off, uint64_t len)
{
	for (uint64_t k = off >> GMEM_CHUNK_SHIFT; k << GMEM_CHUNK_SHIFT < off + len; k++)
		r->chunks[k].done |= mask_of(k, off, len);
}

/* ---- asking for what somebody waits for */

struct batch {
	struct gmem_request q[MAX_REQUESTS];
	uint32_t n;
	pthread_cond_t wake;
};

/* Copies what is at hand of [off, end), at most MAX_REQUESTS chunks, and plans a request for each chunk's rest. */
static void plan(struct gmem_incoming *in, uint32_t region, uint64_t off, uint64_t end, uint8_t *buf,
		 struct batch *batch)
{
	const struct gmem_incoming_region *r = &in->regions[region];

	batch->n = 0;
	for (uint64_t k = off >> GMEM_CHUNK_SHIFT; k << GMEM_CHUNK_SHIFT < end; k++) {
		uint64_t mask = mask_of(k, off, end - off), near = in->final ? mask & at_hand(&r->chunks[k]) : 0;
		uint64_t need = mask & ~(near ? copy_out(in, r, k, near, off, buf) : 0);
		uint32_t first = need ? (uint32_t)__builtin_ctzll(need) : 0;

		if (!need)
			continue;
		batch->q[batch->n++] = (struct gmem_request){
			.tag = ++in->next_tag,
			.region = region,
			.off = (k << GMEM_CHUNK_SHIFT) + ((uint64_t)first << GMEM_PAGE_SHIFT),
			.npages = 64 - (uint32_t)__builtin_clzll(need) - first,
			.buf = place(buf, off, k, first),
			.wake = &batch->wake,
		};
	}
}

static void list(struct gmem_incoming *in, struct batch *batch)
{
	for (uint32_t i = 0; i < batch->n; i++) {
		batch->q[i].next = in->requests;
		in->requests = &batch->q[i];
	}
}

static void unlist(struct gmem_incoming *in, struct batch *batch)
{
	for (struct gmem_request **at = &in->requests; *at;) {
		if (*at >= batch->q && *at < batch->q + batch->n)
			*at = (*at)->next;
		else
			at = &(*at)->next;
	}
}

/* With `m` held, which is let go meanwhile. A link that goes in between is met by who waits. */
static void send_asks(struct gmem_incoming *in, enum gmem_wire_channel channel, const struct gmem_wire_msg *msgs,
		      uint32_t n)
{
	in->senders++;
	pthread_mutex_unlock(&in->m);
	for (uint32_t i = 0; i < n; i++)
		gmem_link_send(in->p.link, channel, &msgs[i]);
	pthread_mutex_lock(&in->m);
	if (!--in->senders)
		pthread_cond_broadcast(&in->arrived);
}

static void send_batch(struct gmem_incoming *in, const struct batch *batch)
{
	struct gmem_wire_msg msgs[MAX_REQUESTS];
	uint32_t n = 0;

	for (uint32_t i = 0; i < batch->n; i++) {
		const struct gmem_request *q = &batch->q[i];

		if (q->done)
			continue;
		msgs[n] = (struct gmem_wire_msg){ .type = GMEM_WIRE_ASK };
		msgs[n].pages.tag = q->tag;
		msgs[n].pages.off = q->off;
		msgs[n].pages.region = q->region;
		msgs[n++].pages.npages = q->npages;
	}
	send_asks(in, GMEM_WIRE_PRIORITY, msgs, n);
}

static bool batch_done(const struct batch *batch, int *err)
{
	for (uint32_t i = 0; i < batch->n; i++) {
		if (!batch->q[i].done)
			return false;
		if (batch->q[i].err)
			*err = batch->q[i].err;
	}
	return true;
}

/* With `m` held. */
static int run_batch(struct gmem_incoming *in, struct batch *batch)
{
	struct patience p = { .since_ms = gmem_now_ms() };
	int err = 0, bad = 0;

	list(in, batch);
	while (!err && !batch_done(batch, &bad)) {
		if (in->linked && in->final && !in->dead && p.epoch != in->epoch) {
			p.epoch = in->epoch;
			p.since_ms = gmem_now_ms();
			send_batch(in, batch);
			continue;
		}
		err = wait_more(in, &p, &batch->wake);
	}
	unlist(in, batch);
	if (!err && bad)
		err = gmem_err(bad, "migration: the source's machine cannot read the page at 0x%llx",
			       (unsigned long long)batch->q[0].off);
	return err;
}

static int peer_read(void *opaque, uint64_t off, void *buf, size_t len)
{
	struct peer_source *s = opaque;
	struct gmem_incoming *in = s->in;
	uint64_t at = off, end = off + len, to;
	struct batch batch;
	int err = 0;

	if (!gmem_range_inside(off, len, in->regions[s->region].r.len))
		return gmem_err(-EINVAL, "migration: off 0x%llx lies outside the region", (unsigned long long)off);
	gmem_cond_init(&batch.wake);
	pthread_mutex_lock(&in->m);
	for (; at < end && !err; at = to) {
		to = gmem_min_u64(end, ((at >> GMEM_CHUNK_SHIFT) + MAX_REQUESTS) << GMEM_CHUNK_SHIFT);
		plan(in, s->region, at, to, (uint8_t *)buf + (at - off), &batch);
		if (batch.n)
			err = run_batch(in, &batch);
	}
	if (!err)
		mark_done(&in->regions[s->region], off, len);
	pthread_mutex_unlock(&in->m);
	pthread_cond_destroy(&batch.wake);
	return err;
}

static int peer_read_nowait(void *opaque, uint64_t off, void *buf, size_t len)
{
	struct peer_source *s = opaque;
	struct gmem_incoming *in = s->in;
	const struct gmem_incoming_region *r = &in->regions[s->region];
	int err = 0;

	if (!gmem_range_inside(off, len, r->r.len))
		return gmem_err(-EINVAL, "migration: off 0x%llx lies outside the region", (unsigned long long)off);
	pthread_mutex_lock(&in->m);
	for (uint64_t k = off >> GMEM_CHUNK_SHIFT; k << GMEM_CHUNK_SHIFT < off + len && !err; k++) {
		uint64_t mask = mask_of(k, off, len), near = in->final ? at_hand(&r->chunks[k]) : 0;

		if (mask & ~near || copy_out(in, r, k, mask, off, buf) != mask)
			err = gmem_err(-EAGAIN, "migration: the page at 0x%llx is not here", (unsigned long long)off);
	}
	if (!err)
		mark_done(r, off, len);
	pthread_mutex_unlock(&in->m);
	return err;
}

static int peer_is_zero(void *opaque, uint64_t off, uint64_t len, bool nowait)
{
	struct peer_source *s = opaque;
	struct gmem_incoming *in = s->in;
	const struct gmem_incoming_region *r = &in->regions[s->region];
	int zero = 1;

	if (!gmem_range_inside(off, len, r->r.len))
		return 0;
	pthread_mutex_lock(&in->m);
	if (!in->final)
		zero = 0;
	for (uint64_t k = off >> GMEM_CHUNK_SHIFT; k << GMEM_CHUNK_SHIFT < off + len && zero; k++)
		zero = !(mask_of(k, off, len) & ~r->chunks[k].zero);
	pthread_mutex_unlock(&in->m);
	return zero;
}

/* ---- fetching ahead */

static uint64_t ahead_of(const struct gmem_incoming_region *r, uint64_t chunk)
{
	const struct gmem_chunk *c = &r->chunks[chunk];

	if (c->slot)
		return 0;
	return gmem_wire_mask(gmem_chunk_npages(r, chunk)) & ~(at_hand(c) | c->done);
}

/* With `m` held: a slot, and room for what will come by it. */
static bool make_room(struct gmem_incoming *in)
{
	if (!in->free_slot)
		return false;
	return in->used_slots + in->nbufs < in->nslots || gmem_buf_evict(in);
}

/*
 * With `m` held, which may be let go meanwhile: asks for what is lacking of some chunks. What is kept goes in the order
 * in which it came, so windows of half of all do not drive out what they brought.
 */
static void ask_ahead(struct gmem_incoming *in, uint32_t region, uint64_t from, uint64_t n_chunks)
{
	const struct gmem_incoming_region *r = &in->regions[region];
	uint64_t to = gmem_min_u64(r->nchunks, from + n_chunks);
	struct gmem_wire_msg msgs[32];
	uint32_t n = 0;

	for (uint64_t k = from; k < to && n < 32; k++) {
		uint64_t need = ahead_of(r, k);

		if (!need)
			continue;
		if (!make_room(in))
			break;
		gmem_slot_take(in, region, k);
		msgs[n++] = gmem_chunk_ask(in, region, k, need);
	}
	if (n)
		send_asks(in, GMEM_WIRE_BULK, msgs, n);
}

/* Is nothing of [off, off + len) to come any more? */
static bool settled(const struct gmem_incoming_region *r, uint64_t off, uint64_t len)
{
	for (uint64_t k = off >> GMEM_CHUNK_SHIFT; k << GMEM_CHUNK_SHIFT < off + len; k++)
		if (mask_of(k, off, len) & ~(at_hand(&r->chunks[k]) | r->chunks[k].done))
			return false;
	return true;
}

static int peer_prefetch(void *opaque, uint64_t off, uint64_t len, bool wait)
{
	struct peer_source *s = opaque;
	struct gmem_incoming *in = s->in;
	const struct gmem_incoming_region *r = &in->regions[s->region];
	struct patience p = { .since_ms = gmem_now_ms() };
	uint64_t first = off >> GMEM_CHUNK_SHIFT, ahead = in->nslots / 2;
	int err = 0;

	/* No more than stays at hand. */
	len = gmem_min_u64(len, (uint64_t)in->nslots / 4 << GMEM_CHUNK_SHIFT);
	if (!gmem_range_inside(off, len, r->r.len))
		return gmem_err(-EINVAL, "migration: off 0x%llx lies outside the region", (unsigned long long)off);
	pthread_mutex_lock(&in->m);
	while (!err) {
		if (in->linked && in->final && !in->dead)
			ask_ahead(in, s->region, first, ahead);
		if (!wait || settled(r, off, len))
			break;
		/* Once: from now on for what is waited for, lest two that wait take away each other's. */
		ahead = ((off + len - 1) >> GMEM_CHUNK_SHIFT) + 1 - first;
		if (p.epoch != in->epoch) {
			p.epoch = in->epoch;
			p.since_ms = gmem_now_ms();
		}
		err = wait_more(in, &p, &in->arrived);
	}
	pthread_mutex_unlock(&in->m);
	return err;
}

/* What is here already comes along: its neighbours in the same chunk. */
static void peer_extent(void *opaque, uint64_t *start, uint64_t *len)
{
	struct peer_source *s = opaque;
	struct gmem_incoming *in = s->in;
	const struct gmem_incoming_region *r = &in->regions[s->region];
	uint64_t from = *start, to = *start + *len, near;

	if (!*len || !gmem_range_inside(from, *len, r->r.len) ||
	    from >> GMEM_CHUNK_SHIFT != (to - 1) >> GMEM_CHUNK_SHIFT)
		return;
	pthread_mutex_lock(&in->m);
	near = in->final ? at_hand(&r->chunks[from >> GMEM_CHUNK_SHIFT]) : 0;
	pthread_mutex_unlock(&in->m);
	if (mask_of(from >> GMEM_CHUNK_SHIFT, from, to - from) & ~near)
		return;
	while (from & (GMEM_CHUNK_LEN - 1) && near >> ((from >> GMEM_PAGE_SHIFT) - 1) % GMEM_WIRE_MAX_PAGES & 1)
		from -= GMEM_PAGE_SIZE;
	while (to & (GMEM_CHUNK_LEN - 1) && to < r->r.len && near >> (to >> GMEM_PAGE_SHIFT) % GMEM_WIRE_MAX_PAGES & 1)
		to += GMEM_PAGE_SIZE;
	*start = from;
	*len = to - from;
}

static void peer_free(void *opaque)
{
	struct peer_source *s = opaque;

	gmem_incoming_unref(s->in);
	free(s);
}

int gmem_incoming_source(struct gmem_incoming *incoming, size_t region, struct gmem_source **ret)
{
	static const struct gmem_source_ops ops = {
		.size = sizeof(ops),
		.read = peer_read,
		.read_nowait = peer_read_nowait,
		.extent = peer_extent,
		.is_zero = peer_is_zero,
		.free = peer_free,
		.prefetch = peer_prefetch,
	};
	enum gmem_migrate_phase phase = gmem_phases_now(&incoming->p);
	struct peer_source *s;
	int err;

	if (region >= gmem_incoming_nregions(incoming))
		return gmem_err(-ERANGE, "migration: no region %zu", region);
	if (phase > GMEM_MIGRATE_COMPLETE)
		return gmem_err(-EBUSY, "migration: a source in phase \"%s\"", gmem_migrate_phase_name(phase));
	s = malloc(sizeof(*s));
	if (!s)
		return gmem_err(-ENOMEM, "migration: no memory");
	pthread_mutex_lock(&incoming->m);
	err = incoming->regions[region].source ? gmem_err(-EEXIST, "migration: region %zu has a source", region) :
						 gmem_incoming_need_chunks(incoming, (uint32_t)region);
	if (!err)
		incoming->regions[region].source = true;
	pthread_mutex_unlock(&incoming->m);
	if (err) {
		free(s);
		return err;
	}
	*s = (struct peer_source){ .in = gmem_incoming_ref(incoming), .region = (uint32_t)region };
	err = gmem_source_new(&ops, s, ret);
	if (err)
		peer_free(s);
	return err;
}
