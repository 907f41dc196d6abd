/* SPDX-License-Identifier: MIT */
/* A pager's scene with a working set: for tests of recording and replaying. Included after tap.h. */
#ifndef GMEM_TESTS_WORKSET_UTIL_H
#define GMEM_TESTS_WORKSET_UTIL_H

#include "pager_scene.h"

#define N 512ull

static inline struct gmem_workset *new_set(const char *path)
{
	struct gmem_workset_opts opts = { .size = sizeof(opts), .identity = { 7 } };
	struct gmem_workset *ws;

	CHECK_OK(gmem_workset_create(path, &opts, &ws));
	return ws;
}

static inline struct gmem_workset_stat set_stat(struct gmem_workset *ws)
{
	struct gmem_workset_stat st = { .size = sizeof(st) };

	CHECK_OK(gmem_workset_stat(ws, &st));
	return st;
}

static inline struct gmem_workset_entry entry_of(const struct gmem_workset *ws, uint64_t i)
{
	struct gmem_workset_entry e = { .size = sizeof(e) };

	CHECK_OK(gmem_workset_entry(ws, i, &e));
	return e;
}

/* Pages of [0, N), each once, no two in sequence: so no window opens. */
static inline void shuffle(uint64_t *order, uint64_t n, uint64_t *seed)
{
	for (uint64_t i = 0; i < n; i++)
		order[i] = i;
	for (uint64_t i = n; i > 1; i--) {
		uint64_t k = tap_rand(seed) % i, t = order[i - 1];

		order[i - 1] = order[k];
		order[k] = t;
	}
}

static inline void touch_page(const struct scene *s, uint64_t page)
{
	if (!page_is(s->src.id, page * P, s->p + page * P))
		FAIL("page %llu is wrong", (unsigned long long)page);
}

static inline void add(struct gmem_workset *ws, uint64_t page, uint64_t npages)
{
	struct gmem_workset_entry e = { .size = sizeof(e), .off = page * P, .len = npages * P, .touches = 1 };

	CHECK_OK(gmem_workset_add(ws, &e));
}

static inline int64_t replay(struct scene *s, struct gmem_workset *ws, uint32_t flags)
{
	struct gmem_replay_opts opts = { .size = sizeof(opts), .flags = flags, .identity = { 7 } };

	return gmem_pager_replay(s->pager, ws, &opts, NULL, NULL);
}

#endif
