/* SPDX-License-Identifier: MIT */
/* External tables, while guests touch, pages are converted and punched, and the slot comes and goes. */
#include "mmu_external.h"

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

static void *zap_translations(void *arg)
{
	gmem_mmu_zap(arg, GFN, 1, BOTH_SIDES | GMEM_SIDE_KEEP);
	return NULL;
}

/*
 * A fault is taking a translation away while a launch begins, and gives the guest that very page: populating maps
 * without regard to an invalidation that is not its own.
 */
TEST_TIMEOUT(a_launch_begins_during_a_zap, 60)
{
	struct gmem_mapping m = { .gfn = GFN, .private = true, .writable = true, .level = GMEM_LEVEL_4K };
	struct gmem_mmu *mmu;
	struct scene s;
	pthread_t t;

	set_up_without(&s, LEN, LEN);
	mmu = &s.vm->mmu;
	CHECK_OK(gmem_mmu_reload(s.vcpu));
	CHECK_OK(gmem_table_topup(&mmu->pool, &s.vcpu->cache));
	m.slot = gmem_vm_slot(s.vm, GFN);
	m.pfn = gmem_slot_pfn(m.slot, GFN);
	gmem_rwlock_lock(&mmu->lock);
	t = start(zap_translations, mmu);
	while (!atomic_load(&mmu->invalidating))
		sched_yield();
	/* For the zap to get as far as the lock; if it does not, nothing is shown, and nothing fails. */
	usleep(50000);
	atomic_store(&mmu->external, &s.k->x);
	CHECK_EQ(gmem_mmu_map(s.vcpu, &m), GMEM_MAP_FIXED);
	gmem_rwlock_unlock(&mmu->lock);
	join(t);
	/* It is the guest's still, and not asked for again. */
	CHECK(gmem_mmu_mapped(mmu, GFN));
	store64(s.vcpu, GPA, 1);
	CHECK_EQ(s.k->have[0], 1);
	tear_down(&s);
}
