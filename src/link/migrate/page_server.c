/* SPDX-License-Identifier: MIT */
#include "link/migrate/page_server.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "link/migrate/page_server_impl.h"

#define FAREWELL_MS 1000

/* ---- what comes */

static int take_ask(struct gmem_page_server *s, enum gmem_wire_channel channel, const struct gmem_wire_pages *ask)
{
	enum gmem_migrate_phase phase;
	bool allowed;

	pthread_mutex_lock(&s->p.m);
	phase = s->p.phase;
	/* While the guest runs pages must not overtake what is said of them: channel.h. */
	allowed = phase >= GMEM_MIGRATE_STOPPED || (s->precopy && channel == GMEM_WIRE_BULK);
	pthread_mutex_unlock(&s->p.m);
	if (phase == GMEM_MIGRATE_ABORTED)
		return 0;
	if (!allowed)
		return gmem_err(-EPROTO, "migration: the other side asked for pages too early");
	return gmem_asks_push(s, channel, ask);
}

static int take_round_done(struct gmem_page_server *s, uint64_t round)
{
	int err = 0;

	pthread_mutex_lock(&s->p.m);
	if (!s->precopy || (int64_t)round > s->rounds || (int64_t)round < s->rounds_done)
		err = gmem_err(-EPROTO, "migration: the other side has finished a round that was not begun");
	else
		s->rounds_done = (int64_t)round;
	pthread_cond_broadcast(&s->p.changed);
	pthread_mutex_unlock(&s->p.m);
	return err;
}

static int take_phase(struct gmem_page_server *s, const struct gmem_wire_msg *msg)
{
	int err = gmem_phases_hear(&s->p, msg);

	if (err)
		return err;
	if (msg->type == GMEM_WIRE_ABORT)
		gmem_link_finish(s->p.link, false);
	else if (msg->phase == GMEM_MIGRATE_COMPLETE)
		gmem_phases_say(&s->p, GMEM_MIGRATE_CLOSED);
	return 0;
}

static int message(void *opaque, enum gmem_wire_channel channel, const struct gmem_wire_msg *msg)
{
	struct gmem_page_server *s = opaque;

	switch (msg->type) {
	case GMEM_WIRE_ASK:
		return take_ask(s, channel, &msg->pages);
	case GMEM_WIRE_ROUND_DONE:
		return take_round_done(s, msg->round);
	case GMEM_WIRE_PHASE:
	case GMEM_WIRE_ABORT:
		return take_phase(s, msg);
	default:
		return gmem_err(-EPROTO, "migration: the destination sent a message of type %d", msg->type);
	}
}

static int64_t produce(void *opaque, enum gmem_wire_channel channel, uint8_t *frame)
{
	struct gmem_page_server *s = opaque;
	enum gmem_migrate_phase phase;
	uint64_t bytes;

	if (channel == GMEM_WIRE_BULK) {
		phase = gmem_phases_now(&s->p);
		/* The last word has been heard. */
		if (phase >= GMEM_MIGRATE_CLOSED && !gmem_link_unacked(s->p.link, &bytes))
			gmem_link_finish(s->p.link, true);
	}
	return gmem_asks_answer(s, channel, frame);
}

static void up(void *opaque)
{
	struct gmem_page_server *s = opaque;
	bool first = !atomic_fetch_add(&s->links, 1);

	/* What the last link asked and did not get is asked again. */
	gmem_asks_reset(s);
	atomic_store(&s->linked, true);
	if (first)
		gmem_phases_set(&s->p, GMEM_MIGRATE_OPEN);
}

static void down(void *opaque)
{
	struct gmem_page_server *s = opaque;

	atomic_store(&s->linked, false);
}

static void ended(void *opaque, int error, const char *text)
{
	struct gmem_page_server *s = opaque;

	gmem_phases_end(&s->p, error, text);
}

static void event(void *opaque, const struct gmem_channel_event *event)
{
	struct gmem_page_server *s = opaque;

	gmem_phases_tell(&s->p, event);
}

/* ---- making one */

bool gmem_migrate_name_valid(const char *name)
{
	size_t len = name ? strlen(name) : 0;

	for (size_t i = 0; i < len; i++)
		if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
			return false;
	return len && len <= GMEM_WIRE_MAX_TEXT;
}

static int check_region(const struct gmem_migrate_region *regions, size_t i)
{
	const struct gmem_migrate_region *r = &regions[i];

	if (!gmem_migrate_name_valid(r->name))
		return gmem_err(-EINVAL, "migration: region %zu has no name that can be sent", i);
	for (size_t k = 0; k < i; k++)
		if (!strcmp(regions[k].name, r->name))
			return gmem_err(-EINVAL, "migration: two regions are called \"%s\"", r->name);
	if (r->page_size < GMEM_PAGE_SIZE || r->page_size > 1u << 30 || (r->page_size & (r->page_size - 1)) ||
	    !r->len || r->len % r->page_size || r->len > GMEM_MIGRATE_MAX_LEN || r->base > INT64_MAX - r->len)
		return gmem_err(-EINVAL, "migration: region \"%s\": len 0x%llx, pages of 0x%x", r->name,
				(unsigned long long)r->len, r->page_size);
	return 0;
}

static int post_region(struct gmem_page_server *s, size_t i, size_t n)
{
	struct gmem_migrate_region *r = &s->regions[i];
	struct gmem_wire_msg msg = { .type = GMEM_WIRE_REGION, .text = r->name, .text_len = (uint8_t)strlen(r->name) };

	msg.region.len = r->len;
	msg.region.page_size = r->page_size;
	msg.region.index = (uint32_t)i;
	msg.region.last = i + 1 == n;
	return gmem_link_post(s->p.link, &msg, SIZE_MAX);
}

static int copy_regions(struct gmem_page_server *s, const struct gmem_migrate_region *regions, size_t n)
{
	int err = 0;

	s->regions = calloc(n, sizeof(*s->regions));
	if (!s->regions)
		return gmem_err(-ENOMEM, "migration: no memory");
	for (size_t i = 0; i < n && !err; i++) {
		err = check_region(regions, i);
		if (err)
			break;
		s->regions[i] = regions[i];
		s->regions[i].name = strdup(regions[i].name);
		s->regions[i].fd = fcntl(regions[i].fd, F_DUPFD_CLOEXEC, 3);
		s->nregions++;
		if (!s->regions[i].name)
			err = gmem_err(-ENOMEM, "migration: no memory");
		else if (s->regions[i].fd < 0)
			err = gmem_err_sys(-errno, "migration: region \"%s\"", regions[i].name);
		else
			err = post_region(s, i, n);
	}
	return err;
}

int gmem_page_server_new(const struct gmem_channel_opts *opts, const struct gmem_migrate_region *regions,
			 size_t nregions, struct gmem_page_server **ret)
{
	static const struct gmem_link_ops ops = { message, produce, up, down, ended, event };
	struct gmem_page_server *s;
	int err;

	if (!nregions || nregions > GMEM_MIGRATE_MAX_REGIONS)
		return gmem_err(-EINVAL, "migration: %zu regions; 1 to %u can be sent", nregions,
				GMEM_MIGRATE_MAX_REGIONS);
	s = calloc(1, sizeof(*s));
	if (!s)
		return gmem_err(-ENOMEM, "migration: no memory");
	err = gmem_link_new(GMEM_WIRE_SOURCE, opts, &ops, s, &s->p.link);
	if (err) {
		free(s);
		return err;
	}
	s->rounds_done = -1;
	gmem_phases_init(&s->p, GMEM_WIRE_SOURCE, opts);
	err = copy_regions(s, regions, nregions);
	if (!err)
		err = gmem_link_start(s->p.link);
	if (err) {
		gmem_page_server_free(s);
		return err;
	}
	*ret = s;
	return 0;
}

void gmem_page_server_free(struct gmem_page_server *server)
{
	if (!server)
		return;
	/* The other side waits for this word. */
	if (gmem_phases_now(&server->p) >= GMEM_MIGRATE_CLOSED)
		gmem_page_server_farewell(server);
	gmem_link_free(server->p.link);
	for (size_t i = 0; i < server->nregions; i++) {
		if (server->regions[i].fd >= 0)
			close(server->regions[i].fd);
		free((char *)server->regions[i].name);
	}
	for (size_t i = 0; i < server->nsections; i++)
		free(server->sections[i]);
	free(server->regions);
	gmem_phases_destroy(&server->p);
	free(server);
}

void gmem_page_server_farewell(struct gmem_page_server *server)
{
	bool ended;

	pthread_mutex_lock(&server->p.m);
	ended = server->p.ended;
	pthread_mutex_unlock(&server->p.m);
	if (!ended && atomic_load(&server->links))
		gmem_link_wait_acked(server->p.link, FAREWELL_MS);
}
