/* SPDX-License-Identifier: MIT */
/* Pages are read when they are asked for, those that somebody waits for before all others. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/range.h"
#include "image/hash.h"
#include "link/migrate/page_server_impl.h"

#define YIELD_MS 2 /* bulk waits no longer than that for requests to be answered */

int gmem_asks_push(struct gmem_page_server *s, enum gmem_wire_channel channel, const struct gmem_wire_pages *ask)
{
	struct gmem_asks *asks = &s->asks[channel - 1];

	if (ask->region >= s->nregions ||
	    !gmem_range_inside(ask->off, (uint64_t)ask->npages << GMEM_PAGE_SHIFT, s->regions[ask->region].len))
		return gmem_err(-EPROTO, "migration: the other side asked for pages that there are not");
	if (asks->n == GMEM_MAX_ASKS)
		return gmem_err(-EPROTO, "migration: the other side asks for too much at a time");
	asks->ring[(asks->first + asks->n++) % GMEM_MAX_ASKS] = *ask;
	if (channel == GMEM_WIRE_PRIORITY)
		atomic_fetch_add(&s->urgent, 1);
	return 0;
}

void gmem_asks_reset(struct gmem_page_server *s)
{
	s->asks[0].n = s->asks[1].n = 0;
	s->bulk_since_ms = 0;
	atomic_store(&s->urgent, 0);
	atomic_store(&s->bulk_waits, false);
}

static bool is_zero(const uint8_t *page)
{
	uint64_t first;

	memcpy(&first, page, sizeof(first));
	return !first && !memcmp(page, page + 8, GMEM_PAGE_SIZE - 8);
}

/* Nothing is stored there: no need to read. The position that is moved is nobody's. */
static bool is_hole(int fd, off_t off, off_t len)
{
	off_t data = lseek(fd, off, SEEK_DATA);

	return data < 0 ? errno == ENXIO : data >= off + len;
}

/* 0, or errno. */
static uint32_t read_pages(int fd, off_t off, uint8_t *buf, size_t len)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = pread(fd, buf + done, len - done, off + (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 && errno != EAGAIN ? (uint32_t)errno : EIO;
		done += (size_t)n;
	}
	return 0;
}

/* Leaves out pages of zeros: how many bytes are left. */
static size_t squeeze(struct gmem_wire_pages *g, uint8_t *buf)
{
	size_t len = 0;

	for (uint32_t i = 0; i < g->npages; i++) {
		uint8_t *page = buf + (size_t)i * GMEM_PAGE_SIZE;

		if (is_zero(page)) {
			g->zero |= UINT64_C(1) << i;
			continue;
		}
		if (page != buf + len)
			memcpy(buf + len, page, GMEM_PAGE_SIZE);
		len += GMEM_PAGE_SIZE;
	}
	return len;
}

static int64_t answer(struct gmem_page_server *s, const struct gmem_wire_pages *ask, uint8_t *frame)
{
	const struct gmem_migrate_region *r = &s->regions[ask->region];
	uint8_t *buf = frame + GMEM_WIRE_HEAD_LEN + GMEM_WIRE_PAGES_LEN;
	struct gmem_wire_pages g = { .tag = ask->tag, .off = ask->off, .region = ask->region, .npages = ask->npages };
	size_t len = (size_t)ask->npages << GMEM_PAGE_SHIFT;
	off_t off = (off_t)(r->base + ask->off);

	if (is_hole(r->fd, off, (off_t)len)) {
		g.zero = gmem_wire_mask(g.npages);
		len = 0;
	} else {
		g.error = read_pages(r->fd, off, buf, len);
		len = g.error ? 0 : squeeze(&g, buf);
	}
	g.sum = gmem_image_hash(buf, len);
	atomic_fetch_add(&s->zero_pages, (uint64_t)__builtin_popcountll(g.zero));
	atomic_fetch_add(&s->bytes, len);
	return (int64_t)gmem_wire_encode_pages(frame, &g);
}

/* Bulk: who waits for a page goes first, if that does not take long. */
static bool yields(struct gmem_page_server *s)
{
	uint64_t now;

	if (!atomic_load(&s->urgent)) {
		s->bulk_since_ms = 0;
		return false;
	}
	now = gmem_now_ms();
	if (!s->bulk_since_ms)
		s->bulk_since_ms = now;
	if (now - s->bulk_since_ms > YIELD_MS) {
		s->bulk_since_ms = 0;
		return false;
	}
	atomic_store(&s->bulk_waits, true);
	/* It may have become 0 in between, and then nobody wakes us. */
	return atomic_load(&s->urgent) != 0;
}

int64_t gmem_asks_answer(struct gmem_page_server *s, enum gmem_wire_channel channel, uint8_t *frame)
{
	struct gmem_asks *asks = &s->asks[channel - 1];
	const struct gmem_wire_pages *ask = &asks->ring[asks->first];
	int64_t len;

	if (!asks->n || (channel == GMEM_WIRE_BULK && yields(s)))
		return 0;
	len = answer(s, ask, frame);
	atomic_fetch_add(channel == GMEM_WIRE_BULK ? &s->bulk_pages : &s->urgent_pages, ask->npages);
	asks->first = (asks->first + 1) % GMEM_MAX_ASKS;
	asks->n--;
	if (channel == GMEM_WIRE_PRIORITY && atomic_fetch_sub(&s->urgent, 1) == 1 &&
	    atomic_exchange(&s->bulk_waits, false))
		gmem_link_wake(s->p.link, GMEM_WIRE_BULK);
	return len;
}
