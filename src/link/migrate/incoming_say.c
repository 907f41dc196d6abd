/* SPDX-License-Identifier: MIT */
/* What the destination asks and says, pages aside. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/opts.h"
#include "base/range.h"
#include "link/migrate/incoming_impl.h"

size_t gmem_incoming_nregions(struct gmem_incoming *incoming)
{
	return gmem_phases_now(&incoming->p) == GMEM_MIGRATE_NEW ? 0 : incoming->nregions;
}

int gmem_incoming_region(struct gmem_incoming *incoming, size_t i, struct gmem_migrate_region *ret)
{
	if (i >= gmem_incoming_nregions(incoming))
		return gmem_err(-ERANGE, "migration: no region %zu", i);
	*ret = incoming->regions[i].r;
	return 0;
}

static struct gmem_section *whole_section(struct gmem_incoming *in, const char *name)
{
	for (size_t i = 0; i < in->nsections; i++)
		if (in->sections[i].whole && !strcmp(in->sections[i].name, name))
			return &in->sections[i];
	return NULL;
}

int gmem_incoming_section(struct gmem_incoming *incoming, const char *name, int timeout_ms, void **ret, size_t *len)
{
	uint64_t until = gmem_phases_until(timeout_ms);
	struct gmem_section *s;
	uint8_t *copy = NULL;
	int err = 0;

	pthread_mutex_lock(&incoming->p.m);
	while (!(s = whole_section(incoming, name)) && !err) {
		if (incoming->p.phase >= GMEM_MIGRATE_STOPPED && incoming->p.phase != GMEM_MIGRATE_ABORTED)
			err = gmem_err(-ENOENT, "migration: the source sent no section \"%s\"", name);
		else
			err = gmem_phases_wait_locked(&incoming->p, until);
	}
	if (s) {
		copy = malloc(s->total + 1);
		err = copy ? 0 : gmem_err(-ENOMEM, "migration: no memory for section \"%s\"", name);
	}
	if (copy) {
		memcpy(copy, s->bytes, s->total + 1);
		*ret = copy;
		*len = s->total;
	}
	pthread_mutex_unlock(&incoming->p.m);
	return err;
}

/* With `m` held. A hole of zeros until somebody writes there: a region that is large costs little before it is used. */
int gmem_incoming_need_chunks(struct gmem_incoming *in, uint32_t region)
{
	struct gmem_incoming_region *r = &in->regions[region];

	if (!r->chunks)
		r->chunks = calloc(r->nchunks, sizeof(*r->chunks));
	return r->chunks ? 0 : gmem_err(-ENOMEM, "migration: no memory for region \"%s\"", r->r.name);
}

uint32_t gmem_chunk_npages(const struct gmem_incoming_region *r, uint64_t chunk)
{
	return (uint32_t)gmem_min_u64(GMEM_WIRE_MAX_PAGES, (r->r.len - (chunk << GMEM_CHUNK_SHIFT)) >> GMEM_PAGE_SHIFT);
}

int gmem_incoming_store(struct gmem_incoming *incoming, size_t region, int fd, uint64_t base)
{
	enum gmem_migrate_phase phase = gmem_phases_now(&incoming->p);
	struct gmem_incoming_region *r;
	int err, copy;

	if (region >= gmem_incoming_nregions(incoming))
		return gmem_err(-ERANGE, "migration: no region %zu", region);
	r = &incoming->regions[region];
	if (phase != GMEM_MIGRATE_OPEN)
		return gmem_err(-EBUSY, "migration: a store in phase \"%s\"", gmem_migrate_phase_name(phase));
	if (base > INT64_MAX - r->r.len)
		return gmem_err(-EINVAL, "migration: a store at 0x%llx", (unsigned long long)base);
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (copy < 0)
		return gmem_err_sys(-errno, "migration: the store of region \"%s\"", r->r.name);
	pthread_mutex_lock(&incoming->m);
	err = r->store_fd >= 0 ? gmem_err(-EBUSY, "migration: region \"%s\" has a store", r->r.name) :
				 gmem_incoming_need_chunks(incoming, (uint32_t)region);
	if (!err) {
		r->store_fd = copy;
		r->store_base = base;
		/* The pull may have gone by already. */
		incoming->dirtied = true;
	}
	pthread_mutex_unlock(&incoming->m);
	if (err)
		close(copy);
	return err;
}

uint64_t gmem_incoming_stored(struct gmem_incoming *incoming, size_t region)
{
	const struct gmem_incoming_region *r = &incoming->regions[region];
	uint64_t n = 0;

	if (region >= gmem_incoming_nregions(incoming))
		return 0;
	pthread_mutex_lock(&incoming->m);
	for (uint64_t i = 0; r->chunks && i < r->nchunks; i++)
		n += (uint64_t)__builtin_popcountll(r->chunks[i].stored | r->chunks[i].zero);
	pthread_mutex_unlock(&incoming->m);
	return n;
}

/* From now on the stores are filled, if the source has a pre-copy: gmem_store_pull(). */
int gmem_incoming_prepared(struct gmem_incoming *incoming)
{
	return gmem_phases_say(&incoming->p, GMEM_MIGRATE_PREPARED);
}

int gmem_incoming_ready(struct gmem_incoming *incoming)
{
	return gmem_phases_say(&incoming->p, GMEM_MIGRATE_READY);
}

int gmem_incoming_resumed(struct gmem_incoming *incoming)
{
	return gmem_phases_say(&incoming->p, GMEM_MIGRATE_RESUMED);
}

int gmem_incoming_complete(struct gmem_incoming *incoming, int timeout_ms)
{
	int err = gmem_phases_say(&incoming->p, GMEM_MIGRATE_COMPLETE);

	return err ? err : gmem_phases_wait(&incoming->p, GMEM_MIGRATE_CLOSED, timeout_ms);
}

enum gmem_migrate_phase gmem_incoming_phase(struct gmem_incoming *incoming)
{
	return gmem_phases_now(&incoming->p);
}

int gmem_incoming_wait(struct gmem_incoming *incoming, enum gmem_migrate_phase phase, int timeout_ms)
{
	return gmem_phases_wait(&incoming->p, phase, timeout_ms);
}

int gmem_incoming_stats(struct gmem_incoming *incoming, struct gmem_incoming_stats *ret)
{
	size_t size = ret->size;

	if (!gmem_opts_valid(ret, size, sizeof(*ret)))
		return gmem_err(-EINVAL, "migration: statistics of another size");
	pthread_mutex_lock(&incoming->m);
	*ret = incoming->stats;
	ret->linked = incoming->linked;
	pthread_mutex_unlock(&incoming->m);
	ret->size = size;
	return 0;
}
