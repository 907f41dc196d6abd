/* SPDX-License-Identifier: MIT */
#include "fault/workset.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/opts.h"
#include "base/range.h"
#include "fault/trace.h"

#define MERGE_LOOK 8u /* entries that a run may be a continuation of: so many touchers go on in sequence */
#define MERGE_NS 5000000u /* later ones stay apart, or the order would be lost */
#define MERGE_PAGES 512u

static int new_workset(const char *name, struct gmem_workset **ret)
{
	struct gmem_workset *ws = calloc(1, sizeof(*ws));
	struct timespec now;

	if (ws)
		ws->name = strdup(name);
	if (!ws || !ws->name) {
		free(ws);
		return gmem_err_sys(-ENOMEM, "%s", name);
	}
	pthread_mutex_init(&ws->m, NULL);
	clock_gettime(CLOCK_REALTIME, &now);
	ws->h.created_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	ws->max_entries = GMEM_WORKSET_DEFAULT_ENTRIES;
	ws->fd = -1;
	*ret = ws;
	return 0;
}

static int check_opts(const struct gmem_workset_opts *opts)
{
	if (!opts)
		return 0;
	if (!gmem_opts_valid(opts, opts->size, sizeof(*opts)))
		return gmem_err(-EINVAL, "gmem_workset_create: opts.size %zu: expected %zu", opts->size, sizeof(*opts));
	if (opts->max_entries > GMEM_WORKSET_MAX_ENTRIES)
		return gmem_err(-EINVAL, "gmem_workset_create: %u entries: at most %u", opts->max_entries,
				GMEM_WORKSET_MAX_ENTRIES);
	return 0;
}

int gmem_workset_create(const char *path, const struct gmem_workset_opts *opts, struct gmem_workset **ret)
{
	struct gmem_workset *ws = NULL;
	int err = check_opts(opts);

	if (!err)
		err = new_workset(path ? path : "gmem_workset_create", &ws);
	if (err)
		return err;
	if (opts) {
		memcpy(ws->h.identity, opts->identity, sizeof(ws->h.identity));
		if (opts->max_entries)
			ws->max_entries = opts->max_entries;
	}
	if (path) {
		ws->fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		err = ws->fd < 0 ? gmem_err_sys(-errno, "%s", path) : gmem_workset_write_header(ws, GMEM_WORKSET_OPEN);
	}
	if (err) {
		if (ws->fd >= 0)
			unlink(path);
		gmem_workset_close(ws);
		return err;
	}
	*ret = ws;
	return 0;
}

int gmem_workset_open(const char *path, struct gmem_workset **ret)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), err;

	if (fd < 0)
		return gmem_err_sys(-errno, "%s", path);
	err = gmem_workset_open_fd(fd, path, ret);
	close(fd);
	return err;
}

int gmem_workset_open_fd(int fd, const char *name, struct gmem_workset **ret)
{
	struct gmem_workset *ws = NULL;
	int err = new_workset(name, &ws);

	if (err)
		return err;
	err = gmem_workset_read(ws, fd);
	if (err) {
		gmem_workset_close(ws);
		return err;
	}
	*ret = ws;
	return 0;
}

void gmem_replay_run_free(struct gmem_replay_run *run)
{
	if (!run)
		return;
	free(run->in_place);
	free(run->touched);
	free(run->by_place);
	for (uint32_t i = 0; i < GMEM_WORKSET_MAX_PARTS; i++)
		gmem_pageset_destroy(&run->seen[i]);
	free(run);
}

static void forget_pages(struct gmem_workset *ws)
{
	for (uint32_t i = 0; ws->seen && i < GMEM_WORKSET_MAX_PARTS; i++)
		gmem_pageset_destroy(&ws->seen[i]);
	free(ws->seen);
	ws->seen = NULL;
}

void gmem_workset_close(struct gmem_workset *ws)
{
	if (!ws)
		return;
	gmem_workset_stop(ws);
	forget_pages(ws);
	gmem_replay_run_free(ws->run);
	if (ws->fd >= 0)
		close(ws->fd);
	pthread_mutex_destroy(&ws->m);
	free(ws->runs);
	free(ws->name);
	free(ws);
}

int gmem_workset_set_parts(struct gmem_workset *ws, const uint64_t *len, uint32_t parts)
{
	if (!ws->seen)
		ws->seen = calloc(GMEM_WORKSET_MAX_PARTS, sizeof(*ws->seen));
	if (!ws->seen)
		return -ENOMEM;
	for (uint32_t i = 0; i < parts; i++) {
		uint64_t had = ws->seen[i].nleaves;
		struct gmem_pageset longer;
		int err = gmem_pageset_init(&longer, len[i] >> GMEM_PAGE_SHIFT);

		if (err)
			return err;
		/* What was in it stays in it. */
		if (had > longer.nleaves)
			had = longer.nleaves;
		for (uint64_t k = 0; k < had; k++)
			longer.leaves[k] = ws->seen[i].leaves[k];
		free(ws->seen[i].leaves);
		ws->seen[i] = longer;
		ws->h.part_len[i] = len[i];
	}
	ws->h.parts = parts;
	return 0;
}

/* Makes the run part of an entry it continues. */
static bool merge(struct gmem_workset *ws, const struct gmem_workset_run *run)
{
	for (uint64_t k = ws->n; k > ws->flushed && ws->n - k < MERGE_LOOK; k--) {
		struct gmem_workset_run *e = &ws->runs[k - 1];

		if (e->part != run->part || run->ns - e->ns > MERGE_NS || e->npages + run->npages > MERGE_PAGES)
			continue;
		if (e->page + e->npages != run->page && run->page + run->npages != e->page)
			continue;
		e->page = gmem_min_u64(e->page, run->page);
		e->npages += run->npages;
		e->touches = (uint16_t)gmem_min_u64((uint64_t)e->touches + run->touches, UINT16_MAX);
		return true;
	}
	return false;
}

static int append(struct gmem_workset *ws, const struct gmem_workset_run *run)
{
	if (ws->n >= ws->max_entries)
		return -ENOSPC;
	if (ws->n == ws->room) {
		uint64_t room = ws->room ? 2 * ws->room : 1024;
		struct gmem_workset_run *runs = realloc(ws->runs, room * sizeof(*runs));

		if (!runs)
			return -ENOMEM;
		ws->runs = runs;
		ws->room = room;
	}
	if (ws->n == ws->flushed)
		ws->oldest_ns = run->ns;
	ws->runs[ws->n++] = *run;
	return 0;
}

int gmem_workset_touch(struct gmem_workset *ws, uint32_t part, uint64_t page, uint64_t npages, uint64_t ns,
		       uint32_t touches)
{
	uint64_t end = page + npages, to;
	int ret = 0;

	if (!ws->seen || part >= ws->h.parts)
		return -EINVAL;
	end = gmem_min_u64(end, ws->h.part_len[part] >> GMEM_PAGE_SHIFT);
	while (page < end) {
		struct gmem_workset_run run = {
			.page = gmem_pageset_add(&ws->seen[part], page, end, &to),
			.ns = ns,
			.part = (uint16_t)part,
			.touches = (uint16_t)gmem_min_u64(touches, UINT16_MAX),
		};
		int err = 0;

		run.npages = (uint32_t)gmem_min_u64(to - run.page, GMEM_WORKSET_RUN_PAGES);
		page = to;
		if (run.npages && !merge(ws, &run))
			err = append(ws, &run);
		if (err) {
			ws->h.lost++;
			ret = err;
		}
	}
	return ret;
}

int gmem_workset_add(struct gmem_workset *ws, const struct gmem_workset_entry *entry)
{
	uint64_t len[GMEM_WORKSET_MAX_PARTS];
	uint32_t parts;
	int err = 0;

	if (!gmem_opts_valid(entry, entry->size, sizeof(*entry)))
		return gmem_err(-EINVAL, "gmem_workset_add: size %zu: expected %zu", entry->size, sizeof(*entry));
	if (!entry->len || !gmem_page_aligned(entry->off | entry->len) ||
	    !gmem_range_inside(entry->off, entry->len, GMEM_WORKSET_MAX_PART) ||
	    entry->len >> GMEM_PAGE_SHIFT > GMEM_WORKSET_RUN_PAGES || entry->ns > INT64_MAX)
		return gmem_err(-EINVAL, "gmem_workset_add: 0x%llx bytes at 0x%llx", (unsigned long long)entry->len,
				(unsigned long long)entry->off);
	if (entry->part >= GMEM_WORKSET_MAX_PARTS)
		return gmem_err(-ENOSPC, "gmem_workset_add: part %u: at most %u", entry->part, GMEM_WORKSET_MAX_PARTS);
	if (ws->fd >= 0 || ws->recorder || (ws->n && !ws->by_hand))
		return gmem_err(-EINVAL, "gmem_workset_add: %s: has a file, or was recorded", ws->name);
	pthread_mutex_lock(&ws->m);
	parts = ws->h.parts > entry->part ? ws->h.parts : entry->part + 1;
	for (uint32_t i = 0; i < parts; i++) {
		len[i] = i < ws->h.parts ? ws->h.part_len[i] : GMEM_PAGE_SIZE;
		if (i == entry->part)
			len[i] = gmem_max_u64(len[i], entry->off + entry->len);
	}
	ws->by_hand = true;
	err = gmem_workset_set_parts(ws, len, parts);
	if (!err)
		err = gmem_workset_touch(ws, entry->part, entry->off >> GMEM_PAGE_SHIFT, entry->len >> GMEM_PAGE_SHIFT,
					 entry->ns, entry->touches ? entry->touches : 1);
	ws->flushed = ws->n; /* the next is an entry of its own */
	pthread_mutex_unlock(&ws->m);
	return err ? gmem_err_sys(err, "gmem_workset_add") : 0;
}

int gmem_workset_entry(const struct gmem_workset *ws, uint64_t i, struct gmem_workset_entry *ret)
{
	pthread_mutex_t *m = (pthread_mutex_t *)&ws->m;
	bool there;

	if (ret->size < sizeof(*ret))
		return gmem_err(-EINVAL, "gmem_workset_entry: size %zu: expected %zu", ret->size, sizeof(*ret));
	pthread_mutex_lock(m);
	there = i < ws->n;
	if (there)
		*ret = (struct gmem_workset_entry){
			.size = sizeof(*ret),
			.part = ws->runs[i].part,
			.off = ws->runs[i].page << GMEM_PAGE_SHIFT,
			.len = (uint64_t)ws->runs[i].npages << GMEM_PAGE_SHIFT,
			.ns = ws->runs[i].ns,
			.touches = ws->runs[i].touches,
		};
	pthread_mutex_unlock(m);
	return there ? 0 : gmem_err(-ERANGE, "gmem_workset_entry: no entry %llu", (unsigned long long)i);
}

int gmem_workset_stat(struct gmem_workset *ws, struct gmem_workset_stat *ret)
{
	if (ret->size < sizeof(*ret))
		return gmem_err(-EINVAL, "gmem_workset_stat: size %zu: expected %zu", ret->size, sizeof(*ret));
	pthread_mutex_lock(&ws->m);
	gmem_measure_sum(ws);
	*ret = (struct gmem_workset_stat){
		.size = sizeof(*ret),
		.parts = ws->h.parts,
		.entries = ws->n,
		.lost = ws->h.lost,
		.torn = ws->torn,
		.recording = ws->recorder != NULL,
		.runs = ws->h.runs,
		.cut_from = ws->h.cut_from,
		.hits = ws->h.hits,
		.late = ws->h.late,
		.unused = ws->h.unused,
		.missed = ws->h.missed,
		.observed = ws->h.observed,
		.replay_ns = ws->h.replay_ns,
		.replayed_pages = ws->h.replayed_pages,
	};
	memcpy(ret->identity, ws->h.identity, sizeof(ret->identity));
	for (uint64_t i = 0; i < ws->n; i++)
		ret->pages += ws->runs[i].npages;
	pthread_mutex_unlock(&ws->m);
	return 0;
}
