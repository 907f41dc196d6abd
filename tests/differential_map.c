/* SPDX-License-Identifier: MIT */
/* Mappings of the two descriptors that the library knows nothing of, each in address space reserved for it. */
#define TAP_NO_MAIN
#include "differential.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "tap.h"

#ifndef MAP_SHARED_VALIDATE
#define MAP_SHARED_VALIDATE 3
#endif

static struct raw_map *map_of(struct side *s, const struct args *a)
{
	return &s->map[a->which % NMAPS];
}

static bool mapped(const struct world *w, const struct args *a)
{
	return w->side[KERNEL].map[a->which % NMAPS].mapped && w->side[USER].map[a->which % NMAPS].mapped;
}

static bool can_map(const struct world *w, const struct args *a)
{
	return w->side[KERNEL].file && w->side[USER].file && !w->side[KERNEL].map[a->which % NMAPS].mapped &&
	       !w->side[USER].map[a->which % NMAPS].mapped;
}

static int flags_of(const struct args *a)
{
	static const int flags[] = { MAP_SHARED,
				     MAP_SHARED,
				     MAP_SHARED | MAP_NORESERVE,
				     MAP_SHARED_VALIDATE,
				     MAP_SHARED | MAP_POPULATE,
				     MAP_PRIVATE,
				     MAP_PRIVATE | MAP_POPULATE,
				     0 };

	return flags[a->kind % (sizeof(flags) / sizeof(flags[0]))];
}

static int prot_of(const struct args *a)
{
	return a->more[0] % 16 ? a->prot : a->prot | PROT_EXEC;
}

static void run_mmap(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	struct raw_map *m = map_of(s, a);
	bool fits = a->len && a->len <= MAP_ROOM;
	void *p = mmap(fits ? m->room : NULL, a->len, prot_of(a), flags_of(a) | (fits ? MAP_FIXED : 0),
		       gmem_file_fd(s->file), (off_t)a->off);

	(void)w;
	r->ret = p == MAP_FAILED ? -errno : 0;
	if (p == MAP_FAILED) {
		/* Some errors come after what was there is gone. */
		diff_map_reset(m);
	} else if (!fits) {
		munmap(p, a->len);
	} else {
		m->mapped = true;
		m->shared = !(flags_of(a) & MAP_PRIVATE) || (flags_of(a) & MAP_SHARED);
		m->off = a->off;
		m->len = (a->len + P - 1) & ~(P - 1);
		m->prot = prot_of(a);
	}
}

static enum difference excuse_mmap(const struct world *w, const struct args *a, const struct answer *k,
				   const struct answer *u, unsigned int *heal)
{
	/* It may have been populated. */
	*heal = HEAL_MAP | HEAL_BYTES;
	if (u->ret)
		return SAME;
	if (k->ret == -ENODEV && diff_unmapped(w))
		return DIFF_RAW_MAPPING;
	if (k->ret == -EINVAL && (flags_of(a) & (MAP_SHARED | MAP_PRIVATE)) == MAP_PRIVATE)
		return DIFF_PRIVATE_MAPPING;
	return k->ret == -EPERM && (prot_of(a) & PROT_EXEC) ? DIFF_EXEC : SAME;
}

static void part(const struct raw_map *m, const struct args *a, uint64_t max, uint64_t *at, uint64_t *n)
{
	*at = a->at % m->len;
	*n = a->n % max;
	if (*n > m->len - *at)
		*n = m->len - *at;
}

static void run_load(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	struct raw_map *m = map_of(s, a);
	uint64_t at, n;

	(void)w;
	part(m, a, a->kind % 4 ? 256 : 3 * P, &at, &n);
	diff_read(m->room, m->room + at, n, r);
}

static void run_store(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	struct raw_map *m = map_of(s, a);
	uint64_t at, n;

	(void)w;
	part(m, a, a->kind % 4 ? 256 : 3 * P, &at, &n);
	diff_write(m->room, m->room + at, n, a->byte, r);
}

/* A child has the mapping, and writes to the same memory. */
static void run_child(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	struct raw_map *m = map_of(s, a);
	int status = 0;
	uint64_t at, n;
	pid_t pid;

	(void)w;
	part(m, a, 256, &at, &n);
	fflush(NULL);
	pid = fork();
	if (pid < 0)
		FAIL("fork: %s", strerror(errno));
	if (!pid) {
		struct answer mine = { 0 };

		diff_write(m->room, m->room + at, n, a->byte, &mine);
		_exit(mine.sig ? mine.sig : 100);
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	r->ret = status;
}

static enum difference excuse_touch(const struct world *w, const struct args *a, const struct answer *k,
				    const struct answer *u, unsigned int *heal)
{
	(void)a;
	*heal = HEAL_BYTES;
	if (!diff_private(w) && !w->converts)
		return SAME;
	/* In a child the signal is in the status. */
	return k->sig == SIGBUS || k->ret != u->ret ? DIFF_RAW_MAPPING : SAME;
}

/* A hole in it is reserved at once, or another mapping might come there. */
static void run_munmap(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	struct raw_map *m = map_of(s, a);
	uint64_t at, n;

	(void)w;
	part(m, a, 8 * P, &at, &n);
	if (a->kind % 4 == 0) {
		r->ret = diff_errno(munmap(m->room, m->len));
		diff_map_reset(m);
		return;
	}
	if (a->kind % 16)
		at &= ~(P - 1);
	r->ret = diff_errno(munmap(m->room + at, n));
	if (!r->ret && mmap(m->room + at, n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
			    0) == MAP_FAILED)
		FAIL("mmap: %s", strerror(errno));
}

/* Longer or shorter, where it is; what is beyond is reserved again. */
static void run_mremap(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	struct raw_map *m = map_of(s, a);
	uint64_t want = P + a->at % MAP_ROOM / P * P, now = m->len;
	void *p;

	(void)w;
	if (want > MAP_ROOM)
		want = MAP_ROOM;
	munmap(m->room + now, MAP_ROOM - now);
	p = mremap(m->room, now, want, 0);
	r->ret = p == MAP_FAILED ? -errno : 0;
	if (p != MAP_FAILED)
		m->len = now = want;
	if (now < MAP_ROOM && mmap(m->room + now, MAP_ROOM - now, PROT_NONE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
		FAIL("mmap: %s", strerror(errno));
}

const struct operation diff_map_ops[] = {
	{ "mmap", 24, can_map, run_mmap, excuse_mmap, NULL },
	{ "map-load", 24, mapped, run_load, excuse_touch, NULL },
	{ "map-store", 24, mapped, run_store, excuse_touch, NULL },
	{ "map-child", 1, mapped, run_child, excuse_touch, NULL },
	{ "munmap", 10, mapped, run_munmap, NULL, NULL },
	{ "mremap", 6, mapped, run_mremap, NULL, NULL },
	{ 0 },
};
