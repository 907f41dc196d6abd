/* SPDX-License-Identifier: MIT */
/* What the source says of the guest. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/opts.h"
#include "base/range.h"
#include "link/migrate/page_server_impl.h"

/* With `m` held: may more be said of the guest while it is ours? */
static int open_locked(struct gmem_page_server *s)
{
	if (s->p.phase == GMEM_MIGRATE_ABORTED)
		return gmem_err(-ECANCELED, "migration: aborted: %s", s->p.reason);
	if (s->p.phase >= GMEM_MIGRATE_STOPPED)
		return gmem_err(-EBUSY, "migration: all was said: phase \"%s\"", gmem_migrate_phase_name(s->p.phase));
	return 0;
}

static int send_section(struct gmem_page_server *s, const char *name, const void *data, size_t len)
{
	struct gmem_wire_msg msg = { .type = GMEM_WIRE_SECTION, .text = name, .text_len = (uint8_t)strlen(name) };
	int err;

	msg.section.total = len;
	do {
		msg.section.len = (uint32_t)gmem_min_u64(len - msg.section.off, GMEM_WIRE_MAX_PIECE);
		msg.section.bytes = (const uint8_t *)data + msg.section.off;
		err = gmem_link_post(s->p.link, &msg, SIZE_MAX);
		msg.section.off += msg.section.len;
	} while (!err && msg.section.off < len);
	return err;
}

int gmem_page_server_section(struct gmem_page_server *server, const char *name, const void *data, size_t len)
{
	int err;

	if (!gmem_migrate_name_valid(name))
		return gmem_err(-EINVAL, "migration: a section has no name that can be sent");
	pthread_mutex_lock(&server->p.m);
	err = open_locked(server);
	for (size_t i = 0; i < server->nsections && !err; i++)
		if (!strcmp(server->sections[i], name))
			err = gmem_err(-EEXIST, "migration: section \"%s\" was sent", name);
	if (!err && (server->nsections == GMEM_MIGRATE_MAX_SECTIONS ||
		     len > GMEM_MIGRATE_MAX_SECTION_LEN - server->section_bytes))
		err = gmem_err(-E2BIG, "migration: section \"%s\": too many, or too long", name);
	if (!err) {
		server->sections[server->nsections] = strdup(name);
		err = server->sections[server->nsections] ? 0 : gmem_err(-ENOMEM, "migration: no memory");
	}
	if (!err) {
		server->nsections++;
		server->section_bytes += len;
		err = send_section(server, name, data, len);
	}
	pthread_mutex_unlock(&server->p.m);
	return err;
}

int gmem_page_server_precopy(struct gmem_page_server *server)
{
	struct gmem_wire_msg msg = { .type = GMEM_WIRE_PRECOPY };
	int err;

	pthread_mutex_lock(&server->p.m);
	err = open_locked(server);
	if (!err && server->precopy)
		err = gmem_err(-EBUSY, "migration: the pre-copy was begun");
	if (!err)
		err = gmem_link_post(server->p.link, &msg, SIZE_MAX);
	if (!err)
		server->precopy = true;
	pthread_mutex_unlock(&server->p.m);
	return err;
}

static bool any_bit(const uint8_t *bitmap, uint64_t npages)
{
	for (uint64_t i = 0; i < (npages + 7) / 8; i++)
		if (bitmap[i])
			return true;
	return false;
}

/* One message's worth: the bits after the end are cleared in a copy. -EINVAL and so on. */
static int send_dirty(struct gmem_page_server *s, size_t region, uint64_t off, uint64_t npages, const uint8_t *bitmap,
		      uint8_t *copy)
{
	struct gmem_wire_msg msg = { .type = GMEM_WIRE_DIRTY };

	memcpy(copy, bitmap, (size_t)((npages + 7) / 8));
	if (npages % 8)
		copy[npages / 8] &= (uint8_t)((1u << npages % 8) - 1);
	if (!any_bit(copy, npages))
		return 0;
	msg.dirty.off = off;
	msg.dirty.npages = npages;
	msg.dirty.region = (uint32_t)region;
	msg.dirty.bitmap = copy;
	return gmem_link_post(s->p.link, &msg, GMEM_PAGE_SERVER_MAX_UNACKED + s->section_bytes + s->section_bytes / 64);
}

int gmem_page_server_dirty(struct gmem_page_server *server, size_t region, uint64_t off, uint64_t npages,
			   const void *bitmap)
{
	uint64_t len = npages << GMEM_PAGE_SHIFT, n;
	const uint8_t *bits = bitmap;
	uint8_t *copy;
	int err;

	if (region >= server->nregions || !gmem_page_aligned(off) || npages > GMEM_MIGRATE_MAX_LEN >> GMEM_PAGE_SHIFT ||
	    !gmem_range_inside(off, len, server->regions[region].len))
		return gmem_err(-EINVAL, "migration: dirty pages outside region %zu", region);
	copy = malloc(GMEM_WIRE_MAX_BITMAP);
	if (!copy)
		return gmem_err(-ENOMEM, "migration: no memory");
	pthread_mutex_lock(&server->p.m);
	err = open_locked(server);
	for (; npages && !err; npages -= n) {
		n = gmem_min_u64(npages, GMEM_WIRE_MAX_BITMAP * 8u);
		err = send_dirty(server, region, off, n, bits, copy);
		off += n << GMEM_PAGE_SHIFT;
		bits += n / 8;
	}
	pthread_mutex_unlock(&server->p.m);
	free(copy);
	return err;
}

int64_t gmem_page_server_round(struct gmem_page_server *server)
{
	struct gmem_wire_msg msg = { .type = GMEM_WIRE_ROUND };
	int64_t r;

	pthread_mutex_lock(&server->p.m);
	r = open_locked(server);
	if (!r && !server->precopy)
		r = gmem_err(-EBUSY, "migration: a round without a pre-copy");
	if (!r) {
		msg.round = (uint64_t)server->rounds + 1;
		r = gmem_link_post(server->p.link, &msg, SIZE_MAX);
	}
	if (!r)
		r = ++server->rounds;
	pthread_mutex_unlock(&server->p.m);
	return r;
}

int gmem_page_server_wait_round(struct gmem_page_server *server, int64_t round, int timeout_ms)
{
	uint64_t until = gmem_phases_until(timeout_ms);
	int err = 0;

	pthread_mutex_lock(&server->p.m);
	if (round > server->rounds)
		err = gmem_err(-EINVAL, "migration: round %lld was not begun", (long long)round);
	while (!err && server->rounds_done < round)
		err = gmem_phases_wait_locked(&server->p, until);
	pthread_mutex_unlock(&server->p.m);
	return err;
}

int gmem_page_server_stopped(struct gmem_page_server *server)
{
	return gmem_phases_say(&server->p, GMEM_MIGRATE_STOPPED);
}

int gmem_page_server_go(struct gmem_page_server *server)
{
	return gmem_phases_say(&server->p, GMEM_MIGRATE_GO);
}

int gmem_page_server_abort(struct gmem_page_server *server, const char *reason)
{
	int err = gmem_phases_abort(&server->p, reason);

	if (!err)
		gmem_page_server_farewell(server);
	return err;
}

enum gmem_migrate_phase gmem_page_server_phase(struct gmem_page_server *server)
{
	return gmem_phases_now(&server->p);
}

bool gmem_page_server_may_run(struct gmem_page_server *server)
{
	enum gmem_migrate_phase phase = gmem_phases_now(&server->p);

	return phase < GMEM_MIGRATE_GO || phase == GMEM_MIGRATE_ABORTED;
}

int gmem_page_server_wait(struct gmem_page_server *server, enum gmem_migrate_phase phase, int timeout_ms)
{
	return gmem_phases_wait(&server->p, phase, timeout_ms);
}

int gmem_page_server_stats(struct gmem_page_server *server, struct gmem_page_server_stats *ret)
{
	uint64_t bytes;

	if (!gmem_opts_valid(ret, ret->size, sizeof(*ret)))
		return gmem_err(-EINVAL, "migration: statistics of another size");
	ret->urgent_pages = atomic_load(&server->urgent_pages);
	ret->bulk_pages = atomic_load(&server->bulk_pages);
	ret->zero_pages = atomic_load(&server->zero_pages);
	ret->bytes = atomic_load(&server->bytes);
	ret->links = atomic_load(&server->links);
	ret->linked = atomic_load(&server->linked);
	ret->unacknowledged = gmem_link_unacked(server->p.link, &bytes);
	return 0;
}
