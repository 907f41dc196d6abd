/* SPDX-License-Identifier: MIT */
#include "link/migrate/incoming.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cond.h"
#include "base/err.h"
#include "base/opts.h"
#include "base/range.h"
#include "link/migrate/incoming_impl.h"

#define FAREWELL_MS 1000

/* ---- what the source says */

/* The array is that large already, so that nobody who looks at it meanwhile sees it move. */
static int take_region(struct gmem_incoming *in, const struct gmem_wire_msg *msg)
{
	struct gmem_incoming_region *r;
	char name[GMEM_WIRE_MAX_TEXT + 1];

	if (in->opened || msg->region.index != in->nregions)
		return gmem_err(-EPROTO, "migration: the source sent a region out of place");
	memcpy(name, msg->text, msg->text_len);
	name[msg->text_len] = 0;
	for (size_t i = 0; i < in->nregions; i++)
		if (!strcmp(in->regions[i].r.name, name))
			return gmem_err(-EPROTO, "migration: the source has two regions \"%s\"", name);
	r = &in->regions[in->nregions];
	r->r.name = strdup(name);
	if (!r->r.name)
		return gmem_err(-ENOMEM, "migration: no memory");
	r->r.len = msg->region.len;
	r->r.page_size = msg->region.page_size;
	r->r.fd = -1;
	r->store_fd = -1;
	r->nchunks = (r->r.len + GMEM_CHUNK_LEN - 1) >> GMEM_CHUNK_SHIFT;
	pthread_mutex_lock(&in->m);
	in->nregions++;
	pthread_mutex_unlock(&in->m);
	if (!msg->region.last)
		return 0;
	in->opened = true;
	gmem_phases_set(&in->p, GMEM_MIGRATE_OPEN);
	return 0;
}

static struct gmem_section *find_section(struct gmem_incoming *in, const char *name, size_t len)
{
	for (size_t i = 0; i < in->nsections; i++)
		if (strlen(in->sections[i].name) == len && !memcmp(in->sections[i].name, name, len))
			return &in->sections[i];
	return NULL;
}

static int new_section(struct gmem_incoming *in, const struct gmem_wire_msg *msg, struct gmem_section **ret)
{
	struct gmem_section *s = &in->sections[in->nsections];

	if (msg->section.off || in->nsections == GMEM_MIGRATE_MAX_SECTIONS ||
	    (in->nsections && !in->sections[in->nsections - 1].whole) ||
	    msg->section.total > GMEM_MIGRATE_MAX_SECTION_LEN - in->section_bytes)
		return gmem_err(-EPROTO, "migration: the source sent a section out of place, or too much");
	memcpy(s->name, msg->text, msg->text_len);
	s->total = (size_t)msg->section.total;
	in->section_bytes += s->total;
	in->nsections++;
	*ret = s;
	return 0;
}

/* Room grows with what comes, not with what is said to come. */
static int grow_section(struct gmem_section *s, size_t len)
{
	size_t room = s->room ? s->room : GMEM_WIRE_MAX_PIECE + 1;
	uint8_t *bytes;

	while (room < s->have + len + 1)
		room *= 2;
	if (room == s->room)
		return 0;
	bytes = realloc(s->bytes, room);
	if (!bytes)
		return gmem_err(-ENOMEM, "migration: no memory for a section");
	s->bytes = bytes;
	s->room = room;
	return 0;
}

static int take_section_locked(struct gmem_incoming *in, const struct gmem_wire_msg *msg)
{
	struct gmem_section *s = find_section(in, msg->text, msg->text_len);
	int err = s ? 0 : new_section(in, msg, &s);

	if (err)
		return err;
	if (s->whole || msg->section.off != s->have || msg->section.total != s->total)
		return gmem_err(-EPROTO, "migration: the source sent a piece of section \"%s\" out of place", s->name);
	err = grow_section(s, msg->section.len);
	if (err)
		return err;
	memcpy(s->bytes + s->have, msg->section.bytes, msg->section.len);
	s->have += msg->section.len;
	s->bytes[s->have] = 0;
	s->whole = s->have == s->total;
	pthread_cond_broadcast(&in->p.changed);
	return 0;
}

static int take_precopy(struct gmem_incoming *in)
{
	if (in->precopy)
		return gmem_err(-EPROTO, "migration: the source begins the pre-copy twice");
	in->precopy = true;
	pthread_mutex_lock(&in->m);
	in->pulling = true;
	pthread_mutex_unlock(&in->m);
	return 0;
}

static int take_round(struct gmem_incoming *in, uint64_t round)
{
	int err = 0;

	pthread_mutex_lock(&in->m);
	if (!in->pulling || (int64_t)round != in->round_heard + 1)
		err = gmem_err(-EPROTO, "migration: the source sent a round out of place");
	else
		in->round_heard++;
	pthread_mutex_unlock(&in->m);
	return err;
}

static int take_phase(struct gmem_incoming *in, const struct gmem_wire_msg *msg)
{
	int err;

	/* Before anybody is told: from then on pages may be read. */
	if (msg->type == GMEM_WIRE_PHASE && msg->phase == GMEM_MIGRATE_STOPPED &&
	    gmem_phases_now(&in->p) == GMEM_MIGRATE_PREPARED)
		gmem_store_finish(in);
	err = gmem_phases_hear(&in->p, msg);
	if (err)
		return err;
	if (msg->type == GMEM_WIRE_ABORT || msg->phase == GMEM_MIGRATE_CLOSED)
		gmem_link_finish(in->p.link, false);
	return 0;
}

/* What is said of a guest that runs at the source, or has just been stopped. */
static int take_said(struct gmem_incoming *in, const struct gmem_wire_msg *msg)
{
	enum gmem_migrate_phase phase;
	int err;

	pthread_mutex_lock(&in->p.m);
	phase = in->p.phase;
	if (phase == GMEM_MIGRATE_ABORTED)
		err = 0;
	else if (phase != GMEM_MIGRATE_OPEN && phase != GMEM_MIGRATE_PREPARED)
		err = gmem_err(-EPROTO, "migration: the source sent a message of type %d in phase \"%s\"", msg->type,
			       gmem_migrate_phase_name(phase));
	else if (msg->type == GMEM_WIRE_SECTION)
		err = take_section_locked(in, msg);
	else if (msg->type == GMEM_WIRE_PRECOPY)
		err = take_precopy(in);
	else if (msg->type == GMEM_WIRE_ROUND)
		err = take_round(in, msg->round);
	else
		err = gmem_store_dirty(in, msg);
	pthread_mutex_unlock(&in->p.m);
	return err;
}

static int message(void *opaque, enum gmem_wire_channel channel, const struct gmem_wire_msg *msg)
{
	struct gmem_incoming *in = opaque;

	switch (msg->type) {
	case GMEM_WIRE_PAGES:
		return channel == GMEM_WIRE_PRIORITY ? gmem_pages_urgent(in, &msg->pages) :
						       gmem_pages_bulk(in, &msg->pages);
	case GMEM_WIRE_REGION:
		return take_region(in, msg);
	case GMEM_WIRE_SECTION:
	case GMEM_WIRE_PRECOPY:
	case GMEM_WIRE_DIRTY:
	case GMEM_WIRE_ROUND:
		return take_said(in, msg);
	case GMEM_WIRE_PHASE:
	case GMEM_WIRE_ABORT:
		return take_phase(in, msg);
	default:
		return gmem_err(-EPROTO, "migration: the source sent a message of type %d", msg->type);
	}
}

static int64_t produce(void *opaque, enum gmem_wire_channel channel, uint8_t *frame)
{
	struct gmem_incoming *in = opaque;
	uint64_t bytes;

	if (channel != GMEM_WIRE_BULK)
		return 0;
	if (gmem_phases_now(&in->p) == GMEM_MIGRATE_ABORTED && !gmem_link_unacked(in->p.link, &bytes))
		gmem_link_finish(in->p.link, true);
	return gmem_store_pull(in, frame);
}

/* ---- the link */

static void wake_all_locked(struct gmem_incoming *in)
{
	for (struct gmem_request *q = in->requests; q; q = q->next)
		pthread_cond_signal(q->wake);
	pthread_cond_broadcast(&in->arrived);
}

static void up(void *opaque)
{
	struct gmem_incoming *in = opaque;

	pthread_mutex_lock(&in->m);
	in->linked = true;
	in->epoch++;
	in->stats.links++;
	in->pull_region = 0;
	in->pull_chunk = 0;
	wake_all_locked(in);
	pthread_mutex_unlock(&in->m);
}

static void down(void *opaque)
{
	struct gmem_incoming *in = opaque;

	pthread_mutex_lock(&in->m);
	in->linked = false;
	in->lost_ms = gmem_now_ms();
	gmem_slot_drop_all(in);
	wake_all_locked(in);
	pthread_mutex_unlock(&in->m);
}

static void die(struct gmem_incoming *in)
{
	pthread_mutex_lock(&in->m);
	in->dead = true;
	wake_all_locked(in);
	pthread_mutex_unlock(&in->m);
}

static void ended(void *opaque, int error, const char *text)
{
	struct gmem_incoming *in = opaque;

	die(in);
	gmem_phases_end(&in->p, error, text);
}

static void event(void *opaque, const struct gmem_channel_event *event)
{
	struct gmem_incoming *in = opaque;

	gmem_phases_tell(&in->p, event);
}

/* ---- making one */

struct gmem_incoming *gmem_incoming_ref(struct gmem_incoming *in)
{
	atomic_fetch_add(&in->refs, 1);
	return in;
}

void gmem_incoming_unref(struct gmem_incoming *in)
{
	if (atomic_fetch_sub(&in->refs, 1) != 1)
		return;
	while (in->first)
		gmem_buf_free(in, in->first);
	for (size_t i = 0; i < in->nregions; i++) {
		if (in->regions[i].store_fd >= 0)
			close(in->regions[i].store_fd);
		free((char *)in->regions[i].r.name);
		free(in->regions[i].chunks);
	}
	for (size_t i = 0; i < in->nsections; i++)
		free(in->sections[i].bytes);
	free(in->regions);
	free(in->slots);
	gmem_phases_destroy(&in->p);
	pthread_cond_destroy(&in->arrived);
	pthread_mutex_destroy(&in->m);
	free(in);
}

static int set_up(struct gmem_incoming *in, const struct gmem_incoming_opts *opts)
{
	if (opts)
		in->opts = *opts;
	if (!in->opts.ahead)
		in->opts.ahead = GMEM_INCOMING_AHEAD;
	if (!in->opts.wait_ms)
		in->opts.wait_ms = 1000;
	in->opts.ahead = gmem_min_u64(gmem_max_u64(in->opts.ahead, GMEM_INCOMING_MIN_AHEAD), GMEM_INCOMING_MAX_AHEAD);
	in->nslots = (uint32_t)(in->opts.ahead >> GMEM_CHUNK_SHIFT);
	in->slots = calloc(in->nslots, sizeof(*in->slots));
	in->regions = calloc(GMEM_MIGRATE_MAX_REGIONS, sizeof(*in->regions));
	if (!in->slots || !in->regions)
		return gmem_err(-ENOMEM, "migration: no memory");
	for (uint32_t i = 0; i < in->nslots; i++)
		in->slots[i].region = i + 1 < in->nslots ? i + 2 : 0;
	in->free_slot = 1;
	in->round_told = -1;
	in->lost_ms = gmem_now_ms();
	return 0;
}

int gmem_incoming_new(const struct gmem_channel_opts *channel, const struct gmem_incoming_opts *opts,
		      struct gmem_incoming **ret)
{
	static const struct gmem_link_ops ops = { message, produce, up, down, ended, event };
	struct gmem_incoming *in;
	int err;

	if (opts && !gmem_opts_valid(opts, opts->size, sizeof(*opts)))
		return gmem_err(-EINVAL, "migration: options of another size");
	in = calloc(1, sizeof(*in));
	if (!in)
		return gmem_err(-ENOMEM, "migration: no memory");
	err = gmem_link_new(GMEM_WIRE_DESTINATION, channel, &ops, in, &in->p.link);
	if (err) {
		free(in);
		return err;
	}
	atomic_init(&in->refs, 1);
	gmem_phases_init(&in->p, GMEM_WIRE_DESTINATION, channel);
	pthread_mutex_init(&in->m, NULL);
	gmem_cond_init(&in->arrived);
	err = set_up(in, opts);
	if (!err)
		err = gmem_link_start(in->p.link);
	if (err) {
		gmem_incoming_free(in);
		return err;
	}
	*ret = in;
	return 0;
}

static void farewell(struct gmem_incoming *in)
{
	bool ended, known = gmem_incoming_nregions(in) != 0;

	pthread_mutex_lock(&in->p.m);
	ended = in->p.ended;
	pthread_mutex_unlock(&in->p.m);
	if (!ended && known)
		gmem_link_wait_acked(in->p.link, FAREWELL_MS);
}

void gmem_incoming_free(struct gmem_incoming *incoming)
{
	if (!incoming)
		return;
	die(incoming);
	pthread_mutex_lock(&incoming->m);
	while (incoming->senders)
		pthread_cond_wait(&incoming->arrived, &incoming->m);
	pthread_mutex_unlock(&incoming->m);
	gmem_link_free(incoming->p.link);
	gmem_incoming_unref(incoming);
}

int gmem_incoming_abort(struct gmem_incoming *incoming, const char *reason)
{
	int err = gmem_phases_abort(&incoming->p, reason);

	if (!err)
		farewell(incoming);
	return err;
}
