/* SPDX-License-Identifier: MIT */
/* External tables: each set and clear of a private page is asked for, in order, may be refused, and is seen by nobody. */
#include "mmu_util.h"

#define LEN (1024 * PG)
#define GPA 0x40000000ull
#define GFN (GPA / PG)

enum act { TABLE, SET, ACCEPT, BLOCK, TRACK, CLEAR, RELEASE };

struct call {
	enum act act;
	uint64_t gfn;
	int level; /* TABLE */
};

/* Who keeps tables: notes what it is asked, and checks that it makes sense. */
struct keeper {
	struct gmem_mmu_external x;
	struct gmem_vm *vm;
	pthread_mutex_t m;
	struct call calls[4096];
	uint32_t n;
	uint8_t have[LEN / PG]; /* 1: set, 2: blocked */
	uint8_t pending[LEN / PG];
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

static void release(struct gmem_mmu_external *x, uint64_t gfn, uint64_t npages)
{
	struct keeper *k = keeper_of(x);

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

static void set_up(struct scene *s)
{
	s->vm = new_vm(GMEM_VM_TDX);
	s->file = make_file(LEN, 0);
	to_private(s->file, 0, LEN);
	CHECK_OK(set_slot(s->vm, 0, GPA, LEN, s->file, 0));
	s->vcpu = new_vcpu(s->vm);
	s->k = calloc(1, sizeof(*s->k));
	CHECK(s->k);
	s->k->x.ops = &ops;
	s->k->vm = s->vm;
	pthread_mutex_init(&s->k->m, NULL);
	gmem_vm_lock_slots(s->vm);
	CHECK_OK(gmem_mmu_set_external(&s->vm->mmu, &s->k->x));
	CHECK_ERR(gmem_mmu_set_external(&s->vm->mmu, &s->k->x), -EEXIST);
	gmem_vm_unlock_slots(s->vm);
}

static void tear_down(struct scene *s)
{
	s->k->peeker = NULL;
	gmem_vcpu_free(s->vcpu);
	gmem_vm_free(s->vm);
	CHECK(freed);
	gmem_file_free(s->file);
}

static void check_call(const struct scene *s, uint32_t i, enum act act, uint64_t gfn, int level)
{
	CHECK(i < s->k->n);
	CHECK_EQ(s->k->calls[i].act, act);
	CHECK_EQ(s->k->calls[i].gfn, gfn);
	CHECK_EQ(s->k->calls[i].level, level);
}

TEST(a_page_is_asked_for_once)
{
	struct scene s;

	set_up(&s);
	store64(s.vcpu, GPA, 7);
	/* The tables from the root's on, and the page. */
	check_call(&s, 0, TABLE, GFN, 3);
	check_call(&s, 1, TABLE, GFN, 2);
	check_call(&s, 2, TABLE, GFN, 1);
	check_call(&s, 3, SET, GFN, 0);
	CHECK_EQ(load64(s.vcpu, GPA), 7);
	CHECK_EQ(s.k->n, 4);
	store64(s.vcpu, GPA + PG, 8);
	check_call(&s, 4, SET, GFN + 1, 0);
	/* Another table of pages, in the same one of level 2. */
	store64(s.vcpu, GPA + 512 * PG, 9);
	check_call(&s, 5, TABLE, GFN + 512, 1);
	check_call(&s, 6, SET, GFN + 512, 0);
	CHECK_EQ(s.k->n, 7);
	tear_down(&s);
}

TEST(a_shared_page_is_nobodys_matter)
{
	uint64_t bit;
	struct scene s;

	set_up(&s);
	bit = gmem_vm_alias_bit(s.vm);
	to_shared(s.file, 0, 8 * PG);
	s.k->n = 0;
	store64(s.vcpu, GPA | bit, 5);
	CHECK_EQ(load64(s.vcpu, GPA | bit), 5);
	CHECK_EQ(s.k->n, 0);
	/* The tables that it has made are the others' too once a private page wants them. */
	store64(s.vcpu, GPA + 8 * PG, 6);
	CHECK_EQ(s.k->n, 4);
	check_call(&s, 2, TABLE, GFN + 8, 1);
	tear_down(&s);
}

TEST(it_is_taken_away_in_steps)
{
	struct scene s;

	set_up(&s);
	for (int i = 0; i < 3; i++)
		store64(s.vcpu, GPA + (uint64_t)i * PG, 1);
	s.k->n = 0;
	s.k->peeker = s.vcpu;
	to_shared(s.file, PG, 2 * PG);
	check_call(&s, 0, BLOCK, GFN + 1, 0);
	check_call(&s, 1, BLOCK, GFN + 2, 0);
	check_call(&s, 2, TRACK, 0, 0);
	check_call(&s, 3, CLEAR, GFN + 1, 0);
	check_call(&s, 4, CLEAR, GFN + 2, 0);
	check_call(&s, 5, RELEASE, GFN + 1, 2);
	CHECK_EQ(s.k->n, 6);
	CHECK_EQ(load64(s.vcpu, GPA), 1);
	/* Private again, it is asked for again; the tables have stayed. */
	to_private(s.file, PG, 2 * PG);
	s.k->n = 0;
	store64(s.vcpu, GPA + PG, 2);
	check_call(&s, 0, SET, GFN + 1, 0);
	CHECK_EQ(s.k->n, 1);
	tear_down(&s);
}

TEST(what_takes_it_away)
{
	struct scene s;

	set_up(&s);
	store64(s.vcpu, GPA, 1);
	s.k->n = 0;
	CHECK_OK(gmem_file_punch(s.file, 0, PG));
	check_call(&s, 0, BLOCK, GFN, 0);
	check_call(&s, 2, CLEAR, GFN, 0);
	check_call(&s, 3, RELEASE, GFN, 1);
	store64(s.vcpu, GPA, 1);
	/* A slot that goes takes its translations along, and is no conversion. */
	s.k->n = 0;
	CHECK_OK(del_slot(s.vm, 0));
	CHECK_EQ(s.k->n, 3);
	check_call(&s, 2, CLEAR, GFN, 0);
	CHECK_OK(set_slot(s.vm, 0, GPA, LEN, s.file, 0));
	CHECK_EQ(load64(s.vcpu, GPA), 1);
	s.k->n = 0;
	gmem_file_free(s.file);
	s.file = NULL;
	check_call(&s, 2, CLEAR, GFN, 0);
	check_call(&s, 3, RELEASE, GFN, (int)(LEN / PG));
	tear_down(&s);
}

/* Translations come and go for reasons of the library's own, of which nobody hears. */
TEST(what_does_not)
{
	uint64_t bits[LEN / PG / 64];
	struct scene s;

	set_up(&s);
	store64(s.vcpu, GPA, 1);
	s.k->n = 0;
	CHECK_OK(gmem_vm_set_log(s.vm, 0, GMEM_LOG_DIRTY));
	CHECK(!gmem_mmu_enter(s.vcpu, GFN, GMEM_ACCESS_WRITE, GMEM_WANT_ANY));
	CHECK(gmem_mmu_mapped(&s.vm->mmu, GFN));
	CHECK_EQ(load64(s.vcpu, GPA), 1);
	store64(s.vcpu, GPA, 2);
	CHECK_EQ(gmem_vm_get_log(s.vm, 0, GMEM_LOG_DIRTY, 0, LEN / PG, bits, 0), 1);
	CHECK_EQ(bits[0], 1);
	store64(s.vcpu, GPA, 3);
	gmem_vm_lock_slots(s.vm);
	CHECK_OK(gmem_mmu_track_write(&s.vm->mmu, GFN, true));
	gmem_vm_unlock_slots(s.vm);
	CHECK_EQ(load64(s.vcpu, GPA), 3);
	CHECK_ERR(gmem_vcpu_store(s.vcpu, GPA, "", 1), -EPERM);
	CHECK_EQ(s.k->n, 0);
	tear_down(&s);
}

TEST(not_accepted_is_not_accessed)
{
	uint64_t done = 0, v;
	struct scene s;

	set_up(&s);
	s.k->makes_pending = true;
	for (int i = 0; i < 2; i++)
		CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA, &v, 8), -EACCES);
	CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_NONE);
	/* Asked for once, and mapped by pre-faulting too as far as that goes. */
	CHECK_EQ(s.k->n, 4);
	CHECK_OK(gmem_vcpu_pre_fault(s.vcpu, GPA, PG, &done));
	CHECK_EQ(done, PG);
	CHECK_EQ(s.k->n, 4);
	CHECK_OK(gmem_vcpu_accept(s.vcpu, GPA, 2 * PG, true, &done));
	CHECK_EQ(done, 2 * PG);
	store64(s.vcpu, GPA, 5);
	CHECK_EQ(load64(s.vcpu, GPA), 5);
	CHECK_EQ(gmem_vcpu_accept(s.vcpu, GPA, PG, true, NULL), 1);
	CHECK_EQ(load64(s.vcpu, GPA), 5);
	CHECK_OK(gmem_vcpu_accept(s.vcpu, GPA, PG, false, NULL));
	CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA, &v, 8), -EACCES);
	CHECK_EQ(gmem_vcpu_accept(s.vcpu, GPA, PG, false, NULL), 1);
	CHECK_OK(gmem_vcpu_accept(s.vcpu, GPA, PG, true, NULL));
	CHECK_EQ(load64(s.vcpu, GPA), 5);
	/* A pending page is taken away like any other. */
	CHECK_OK(gmem_vcpu_accept(s.vcpu, GPA, PG, false, NULL));
	s.k->n = 0;
	to_shared(s.file, 0, PG);
	check_call(&s, 2, CLEAR, GFN, 0);
	CHECK_ERR(gmem_vcpu_accept(s.vcpu, GPA, PG, true, NULL), -EFAULT);
	CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_MEMORY_FAULT);
	CHECK_EQ(exit_of(s.vcpu).flags, GMEM_EXIT_FLAG_PRIVATE);
	CHECK_ERR(gmem_vcpu_accept(s.vcpu, GPA | gmem_vm_alias_bit(s.vm), PG, true, NULL), -EINVAL);
	CHECK_ERR(gmem_vcpu_accept(s.vcpu, GPA + 1, PG, true, NULL), -EINVAL);
	CHECK_ERR(gmem_vcpu_accept(s.vcpu, GPA, 0, true, NULL), -EINVAL);
	CHECK_ERR(gmem_vcpu_accept(s.vcpu, GPA - PG, PG, true, NULL), -EFAULT);
	tear_down(&s);
}

TEST(a_refusal_leaves_nothing)
{
	struct scene s;
	uint64_t v;

	set_up(&s);
	s.k->fail[SET] = -ENOSPC;
	CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA, &v, 8), -ENOSPC);
	CHECK(!gmem_mmu_mapped(&s.vm->mmu, GFN));
	s.k->fail[SET] = 0;
	s.k->fail[TABLE] = -ENOSPC;
	CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA + 512 * PG, &v, 8), -ENOSPC);
	s.k->fail[TABLE] = 0;
	s.k->busy = 5;
	store64(s.vcpu, GPA, 1);
	store64(s.vcpu, GPA + 512 * PG, 1);
	CHECK_EQ(s.k->busy, 0);
	CHECK_EQ(gmem_vcpu_accept(s.vcpu, GPA, PG, true, NULL), 1);
	s.k->fail[ACCEPT] = -EINVAL;
	CHECK_ERR(gmem_vcpu_accept(s.vcpu, GPA, PG, false, NULL), -EINVAL);
	CHECK_EQ(load64(s.vcpu, GPA), 1);
	tear_down(&s);
}

static void dies_of(enum act act)
{
	struct scene s;
	uint64_t v;

	set_up(&s);
	store64(s.vcpu, GPA, 1);
	s.k->fail[act] = -EIO;
	to_shared(s.file, 0, PG);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA + PG, &v, 8), -EIO);
	tear_down(&s);
}

TEST(a_page_that_cannot_be_taken_away_ends_the_vm_block)
{
	dies_of(BLOCK);
}

TEST(a_page_that_cannot_be_taken_away_ends_the_vm_track)
{
	dies_of(TRACK);
}

TEST(a_page_that_cannot_be_taken_away_ends_the_vm_clear)
{
	dies_of(CLEAR);
}

static int map_it(struct gmem_vm *vm, uint64_t gfn, uint64_t pfn, void *src, void *opaque)
{
	(void)vm;
	(void)src;
	return gmem_mmu_map_private_pfn(opaque, gfn, pfn);
}

TEST(populating)
{
	char *src = aligned_alloc(PG, PG);
	struct scene s;

	set_up(&s);
	CHECK(src);
	memset(src, 'x', PG);
	s.k->fail[SET] = -ENOSPC;
	CHECK_ERR(gmem_populate(s.vm, GFN, src, 1, 0, map_it, s.vcpu), -ENOSPC);
	CHECK(!gmem_mmu_mapped(&s.vm->mmu, GFN));
	s.k->fail[SET] = 0;
	CHECK_EQ(gmem_populate(s.vm, GFN, src, 1, 0, map_it, s.vcpu), 1);
	CHECK_EQ(load64(s.vcpu, GPA), 0x7878787878787878ull);
	/* Other bytes for a page that the guest keeps. */
	s.k->n = 0;
	memset(src, 'y', PG);
	CHECK_EQ(gmem_populate(s.vm, GFN, src, 1, 0, NULL, NULL), 1);
	CHECK_EQ(load64(s.vcpu, GPA), 0x7979797979797979ull);
	CHECK_EQ(s.k->n, 0);
	free(src);
	tear_down(&s);
}

/* ---- races */

struct storm {
	struct scene *s;
	atomic_bool over;
	_Atomic uint64_t loads, accepted, threads;
	uint64_t seed;
};

static void *touch(void *arg)
{
	struct storm *st = arg;
	struct gmem_vcpu *vcpu = new_vcpu(st->s->vm);
	uint64_t r = st->seed + atomic_fetch_add(&st->threads, 1);

	while (!atomic_load(&st->over)) {
		uint64_t gpa, v;
		int err;

		r = r * 6364136223846793005ull + 1442695040888963407ull;
		gpa = GPA + (r >> 40) % 16 * PG;
		err = r >> 63 ? gmem_vcpu_load(vcpu, gpa, &v, 8) : gmem_vcpu_store(vcpu, gpa, &r, 8);
		CHECK(!err || err == -EFAULT || err == -EACCES);
		atomic_fetch_add(&st->loads, !err);
		if (err == -EACCES) {
			err = gmem_vcpu_accept(vcpu, gpa, PG, r >> 62 & 1, NULL);
			CHECK(err >= 0 || err == -EFAULT);
			atomic_fetch_add(&st->accepted, !err);
		}
	}
	gmem_vcpu_free(vcpu);
	return NULL;
}

static void *convert(void *arg)
{
	struct storm *st = arg;
	uint64_t seed = st->seed;

	while (!atomic_load(&st->over)) {
		uint64_t page, n;

		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		page = (seed >> 40) % 16;
		n = 1 + (seed >> 33) % (16 - page);
		if (seed >> 63)
			to_private(st->s->file, page * PG, n * PG);
		else if (seed >> 62 & 1)
			to_shared(st->s->file, page * PG, n * PG);
		else
			CHECK_OK(gmem_file_punch(st->s->file, page * PG, n * PG));
	}
	return NULL;
}

static void *come_and_go(void *arg)
{
	struct storm *st = arg;

	while (!atomic_load(&st->over)) {
		CHECK_OK(del_slot(st->s->vm, 0));
		CHECK_OK(set_slot(st->s->vm, 0, GPA, LEN, st->s->file, 0));
		CHECK_OK(gmem_vm_set_log(st->s->vm, 0, GMEM_LOG_DIRTY));
		CHECK_OK(gmem_vm_set_log(st->s->vm, 0, 0));
		usleep(1000);
	}
	return NULL;
}

/* The keeper checks each step; at the end what it has is what the guest has. */
static void storm(bool pending)
{
	struct storm st = { .seed = tap_seed() };
	pthread_t t[5];
	struct scene s;
	uint64_t v;

	set_up(&s);
	st.s = &s;
	s.k->makes_pending = pending;
	CHECK(!pthread_create(&t[0], NULL, touch, &st));
	CHECK(!pthread_create(&t[1], NULL, touch, &st));
	CHECK(!pthread_create(&t[2], NULL, touch, &st));
	CHECK(!pthread_create(&t[3], NULL, convert, &st));
	CHECK(!pthread_create(&t[4], NULL, come_and_go, &st));
	for (int i = 0; i < 200 && atomic_load(&st.loads) < 2000; i++)
		usleep(20000);
	atomic_store(&st.over, true);
	for (int i = 0; i < 5; i++)
		CHECK(!pthread_join(t[i], NULL));
	CHECK(atomic_load(&st.loads) > 0);
	CHECK(!pending || atomic_load(&st.accepted) > 0);
	to_private(s.file, 0, LEN);
	for (uint64_t i = 0; i < 16; i++) {
		(void)gmem_vcpu_load(s.vcpu, GPA + i * PG, &v, 8);
		CHECK_EQ(s.k->have[i], 1);
		CHECK_EQ(!!gmem_mmu_enter(s.vcpu, GFN + i, GMEM_ACCESS_READ, GMEM_WANT_ANY), !s.k->pending[i]);
		if (!s.k->pending[i])
			gmem_mmu_leave(s.vcpu);
	}
	tear_down(&s);
}

TEST_TIMEOUT(conversions_touches_and_slots, 120)
{
	storm(false);
}

TEST_TIMEOUT(so_too_with_acceptance, 120)
{
	storm(true);
}
