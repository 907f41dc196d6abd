/* SPDX-License-Identifier: MIT */
/* Who keeps external tables, for tests: it notes what it is asked, and checks that it makes sense. */
#ifndef GMEM_TESTS_MMU_EXTERNAL_H
#define GMEM_TESTS_MMU_EXTERNAL_H

#include "mmu_util.h"

#define LEN (1024 * PG)
#define MOST (3ull << 30) /* that a test looks at */
#define GPA 0x40000000ull
#define GFN (GPA / PG)

enum act { TABLE, SET, ACCEPT, BLOCK, TRACK, CLEAR, RELEASE };

struct call {
	enum act act;
	uint64_t gfn;
	int level; /* TABLE */
};

struct keeper {
	struct gmem_mmu_external x;
	struct gmem_vm *vm;
	pthread_mutex_t m;
	struct call calls[4096];
	uint32_t n;
	uint8_t have[MOST / PG]; /* 1: set, 2: blocked */
	uint8_t pending[MOST / PG];
	bool tracked;
	bool makes_pending;
	uint32_t busy; /* times that set_page and add_table are */
	int fail[RELEASE + 1];
	struct gmem_vcpu *peeker; /* looks at what must not be seen */
};

static bool freed;

static struct keeper *keeper_of(struct gmem_mmu_external *x)
{
	return (struct keeper *)x;
}

static int note(struct keeper *k, enum act act, uint64_t gfn, int level)
{
	if (k->n < sizeof(k->calls) / sizeof(k->calls[0]))
		k->calls[k->n++] = (struct call){ act, gfn, level };
	return k->fail[act];
}

/* While it is asked, nobody follows the entry. */
static void peek(struct keeper *k, uint64_t gfn)
{
	if (k->peeker)
		CHECK(!gmem_mmu_enter(k->peeker, gfn, GMEM_ACCESS_READ, GMEM_WANT_ANY));
}

static int add_table(struct gmem_mmu_external *x, uint64_t gfn, int level)
{
	struct keeper *k = keeper_of(x);
	int err;

	pthread_mutex_lock(&k->m);
	err = k->busy ? (k->busy--, -EAGAIN) : note(k, TABLE, gfn, level);
	pthread_mutex_unlock(&k->m);
	return err;
}

static int set_page(struct gmem_mmu_external *x, struct gmem_vcpu *vcpu, uint64_t gfn, uint64_t pfn)
{
	struct keeper *k = keeper_of(x);
	int r;

	(void)vcpu;
	pthread_mutex_lock(&k->m);
	peek(k, gfn);
	r = k->busy ? (k->busy--, -EAGAIN) : note(k, SET, gfn, 0);
	if (!r) {
		CHECK(pfn && !k->have[gfn - GFN]);
		k->have[gfn - GFN] = 1;
		k->pending[gfn - GFN] = k->makes_pending;
		r = k->makes_pending ? GMEM_EXTERNAL_PENDING : 0;
	}
	pthread_mutex_unlock(&k->m);
	return r;
}

static int accept(struct gmem_mmu_external *x, uint64_t gfn, uint64_t pfn, bool yes)
{
	struct keeper *k = keeper_of(x);
	int r;

	(void)pfn;
	pthread_mutex_lock(&k->m);
	r = note(k, ACCEPT, gfn, 0);
	if (!r) {
		CHECK_EQ(k->have[gfn - GFN], 1);
		r = k->pending[gfn - GFN] == !yes;
		k->pending[gfn - GFN] = !yes;
	}
	pthread_mutex_unlock(&k->m);
	return r;
}

static int block(struct gmem_mmu_external *x, uint64_t gfn, uint64_t pfn)
{
	struct keeper *k = keeper_of(x);
	int err;

	(void)pfn;
	pthread_mutex_lock(&k->m);
	CHECK_EQ(k->have[gfn - GFN], 1);
	k->have[gfn - GFN] = 2;
	k->tracked = false;
	err = note(k, BLOCK, gfn, 0);
	pthread_mutex_unlock(&k->m);
	return err;
}

static int track(struct gmem_mmu_external *x)
{
	struct keeper *k = keeper_of(x);
	int err;

	pthread_mutex_lock(&k->m);
	k->tracked = true;
	err = note(k, TRACK, 0, 0);
	pthread_mutex_unlock(&k->m);
	return err;
}

static int clear_page(struct gmem_mmu_external *x, uint64_t gfn, uint64_t pfn)
{
	struct keeper *k = keeper_of(x);
	int err;

	(void)pfn;
	pthread_mutex_lock(&k->m);
	peek(k, gfn);
	CHECK(k->tracked);
	CHECK_EQ(k->have[gfn - GFN], 2);
	k->have[gfn - GFN] = 0;
	err = note(k, CLEAR, gfn, 0);
	pthread_mutex_unlock(&k->m);
	return err;
}

static void release(struct gmem_mmu_external *x, uint64_t gfn, uint64_t pfn, uint64_t npages)
{
	struct keeper *k = keeper_of(x);

	CHECK(pfn);
	pthread_mutex_lock(&k->m);
	for (uint64_t i = 0; i < npages; i++)
		CHECK_EQ(k->have[gfn + i - GFN], 0);
	(void)note(k, RELEASE, gfn, (int)npages);
	pthread_mutex_unlock(&k->m);
}

static void free_keeper(struct gmem_mmu_external *x)
{
	struct keeper *k = keeper_of(x);

	freed = true;
	pthread_mutex_destroy(&k->m);
	free(k);
}

static const struct gmem_mmu_external_ops ops = {
	.add_table = add_table,
	.set_page = set_page,
	.accept = accept,
	.block = block,
	.track = track,
	.clear_page = clear_page,
	.release = release,
	.free = free_keeper,
};

struct scene {
	struct gmem_vm *vm;
	struct gmem_file *file;
	struct gmem_vcpu *vcpu;
	struct keeper *k;
};

/* A slot of `len` bytes, of which the first `private` are so, and a keeper that has nothing to say yet. */
static inline void set_up_without(struct scene *s, uint64_t len, uint64_t private)
{
	s->vm = new_vm(GMEM_VM_TDX);
	s->file = make_file(len, 0);
	to_private(s->file, 0, private);
	CHECK_OK(set_slot(s->vm, 0, GPA, len, s->file, 0));
	s->vcpu = new_vcpu(s->vm);
	s->k = calloc(1, sizeof(*s->k));
	CHECK(s->k);
	s->k->x.ops = &ops;
	s->k->vm = s->vm;
	pthread_mutex_init(&s->k->m, NULL);
}

static inline void set_up_larger(struct scene *s, uint64_t len, uint64_t private)
{
	set_up_without(s, len, private);
	gmem_vm_lock_slots(s->vm);
	CHECK_OK(gmem_mmu_set_external(&s->vm->mmu, &s->k->x));
	CHECK_ERR(gmem_mmu_set_external(&s->vm->mmu, &s->k->x), -EEXIST);
	gmem_vm_unlock_slots(s->vm);
}

static inline void set_up(struct scene *s)
{
	set_up_larger(s, LEN, LEN);
}

static inline void tear_down(struct scene *s)
{
	s->k->peeker = NULL;
	gmem_vcpu_free(s->vcpu);
	gmem_vm_free(s->vm);
	CHECK(freed);
	gmem_file_free(s->file);
}

#endif
