/* SPDX-License-Identifier: MIT */
/* One pager, one file, one view, and a source that does as it is told: for tests of the pager. */
#ifndef GMEM_TESTS_PAGER_SCENE_H
#define GMEM_TESTS_PAGER_SCENE_H

#include "file/file.h"
#include "pager_util.h"

#define PAGES (SLOW_BUILD ? 1024ull : 4096ull)
#define LEN (PAGES * P)

/* ---- a source */

struct src {
	unsigned int id;
	bool nowait, knows_zero;
	uint64_t bad_page, block_page; /* 0: none */
	int bad_err;
	_Atomic int bad_left; /* so many reads of it fail; INT32_MAX: all */
	_Atomic bool blocked, release;
	_Atomic uint64_t reads;
};

#define SRC(...)            \
	{                   \
		__VA_ARGS__ \
	}

static inline int src_read(void *opaque, uint64_t off, void *buf, size_t len)
{
	struct src *s = opaque;

	atomic_fetch_add(&s->reads, 1);
	for (uint64_t at = 0; at < len; at += P) {
		uint64_t page = (off + at) / P;

		if (page && page == s->bad_page && atomic_load(&s->bad_left) > 0) {
			if (atomic_load(&s->bad_left) != INT32_MAX)
				atomic_fetch_sub(&s->bad_left, 1);
			return gmem_err(s->bad_err, "test source: page %llu", (unsigned long long)page);
		}
		while (page && page == s->block_page && !atomic_load(&s->release)) {
			atomic_store(&s->blocked, true);
			usleep(1000);
		}
		fill_page(s->id, off + at, (char *)buf + at);
	}
	return 0;
}

static inline int src_read_nowait(void *opaque, uint64_t off, void *buf, size_t len)
{
	struct src *s = opaque;

	for (uint64_t page = off / P; page < (off + len) / P; page++)
		if (!s->nowait || (page && (page == s->bad_page || page == s->block_page)))
			return gmem_err(-EAGAIN, "test source: would wait");
	return src_read(opaque, off, buf, len);
}

static inline int src_is_zero(void *opaque, uint64_t off, uint64_t len, bool nowait)
{
	struct src *s = opaque;

	if (!s->knows_zero)
		return 0;
	for (uint64_t page = off / P; page < (off + len) / P; page++)
		if (page % 8 != 7)
			return 0;
	return 1;
}

static inline struct gmem_source *source_of(struct src *s)
{
	static const struct gmem_source_ops ops = {
		.size = sizeof(ops),
		.read = src_read,
		.read_nowait = src_read_nowait,
		.is_zero = src_is_zero,
	};
	struct gmem_source *source;

	CHECK_OK(gmem_source_new(&ops, s, &source));
	return source;
}

/* ---- what the pager tells */

struct told {
	_Atomic unsigned int n[8];
	_Atomic int error;
	_Atomic uint64_t off;
	char text[200];
};

static inline void on_event(void *opaque, const struct gmem_pager_event *e)
{
	struct told *t = opaque;

	atomic_store(&t->error, e->error);
	atomic_store(&t->off, e->off);
	snprintf(t->text, sizeof(t->text), "%s", e->text);
	atomic_fetch_add(&t->n[e->kind], 1);
}

static inline struct gmem_pager *new_pager(unsigned int resolvers, uint32_t flags, struct told *told)
{
	struct gmem_pager_opts o = { .size = sizeof(o), .resolvers = resolvers, .flags = flags };
	struct gmem_pager *pager;

	need_uffd();
	if (told) {
		o.event = on_event;
		o.opaque = told;
	}
	CHECK_OK(gmem_pager_create(&o, &pager));
	return pager;
}

static inline struct gmem_pager_stats stats_of(struct gmem_pager *pager)
{
	struct gmem_pager_stats st = { .size = sizeof(st) };

	CHECK_OK(gmem_pager_stats(pager, &st));
	return st;
}

static inline struct gmem_file *new_file(uint64_t len)
{
	struct gmem_file *file;

	CHECK_OK(gmem_file_create(len, NULL, &file));
	return file;
}

static inline char *map_view(struct gmem_file *file, uint64_t off, uint64_t len, struct gmem_view **view)
{
	CHECK_OK(gmem_view_map(file, off, len, PROT_READ | PROT_WRITE, view));
	return gmem_view_addr(*view);
}

/* One of each: the usual scene. */
struct scene {
	struct src src;
	struct told told;
	struct gmem_source *source;
	struct gmem_file *file;
	struct gmem_view *view;
	struct gmem_pager *pager;
	char *p;
	uint64_t seed;
};

static inline void set_up(struct scene *s, struct src src, unsigned int resolvers, uint32_t flags, uint64_t len)
{
	s->pager = new_pager(resolvers, flags, &s->told);
	s->src = src;
	s->source = source_of(&s->src);
	s->file = new_file(len);
	s->p = map_view(s->file, 0, len, &s->view);
	CHECK_OK(gmem_pager_add_view(s->pager, s->view, s->source, 0));
}

static inline void tear_down(struct scene *s)
{
	gmem_pager_free(s->pager);
	gmem_source_unref(s->source);
	gmem_view_unmap(s->view);
	gmem_file_free(s->file);
}

static inline void check_all(const char *p, unsigned int id, uint64_t npages)
{
	for (uint64_t i = 0; i < npages; i++)
		if (!page_is(id, i * P, p + i * P))
			FAIL("page %llu is wrong", (unsigned long long)i);
}

struct toucher {
	struct scene *s;
	const char *p;
	unsigned int id;
	uint64_t npages, seed, touches;
	bool sequential;
};

static inline void *touch_pages(void *arg)
{
	struct toucher *t = arg;

	for (uint64_t i = 0; i < t->touches; i++) {
		uint64_t page = t->sequential ? i % t->npages : tap_rand(&t->seed) % t->npages;

		if (!page_is(t->id, page * P, t->p + page * P))
			FAIL("page %llu is wrong", (unsigned long long)page);
	}
	return NULL;
}

#endif
