/* SPDX-License-Identifier: MIT */
/* Second-stage tables by themselves: taking translations away, and giving tables back. */
#include "mmu_util.h"

#define PFN(gfn) ((gfn) + 0x100000)
#define GIB_PAGES (1ull << 18)
#define ALL (1ull << GMEM_GFN_BITS)

struct scene {
	struct gmem_mmu mmu;
	struct gmem_vcpu vcpu;
};

static void set_up(struct scene *s)
{
	gmem_mmu_init(&s->mmu);
	gmem_mmu_add_vcpu(&s->mmu, &s->vcpu);
	CHECK_OK(gmem_mmu_reload(&s->vcpu));
}

static void tear_down(struct scene *s)
{
	gmem_mmu_del_vcpu(&s->vcpu);
	gmem_mmu_destroy(&s->mmu);
}

static void map(struct scene *s, uint64_t gfn, int level, bool private)
{
	struct gmem_mapping m = { .gfn = gfn, .pfn = PFN(gfn), .private = private, .writable = true, .level = level };

	CHECK_OK(gmem_table_topup(&s->mmu.pool, &s->vcpu.cache));
	CHECK(gmem_mmu_begin_map(&s->vcpu));
	CHECK_EQ(gmem_mmu_map(&s->vcpu, &m), GMEM_MAP_FIXED);
	gmem_mmu_end_map(&s->vcpu);
}

static bool mapped(struct scene *s, uint64_t gfn)
{
	return gmem_mmu_walk(&s->vcpu, gfn);
}

static uint64_t count(struct scene *s, uint64_t from, uint64_t n)
{
	uint64_t found = 0;

	for (uint64_t i = 0; i < n; i++)
		found += mapped(s, from + i);
	return found;
}

static uint64_t tables(struct scene *s)
{
	return gmem_mmu_table_bytes(&s->mmu) / PG - s->vcpu.cache.n;
}

TEST(edges)
{
	/* Of a table, of two tables, across three. */
	static const struct {
		uint64_t from, n;
	} cut[] = { { 0, 1 },	   { 511, 1 },	  { 512, 1 },	{ 1, 510 },   { 511, 2 },	   { 0, 512 },
		    { 512, 512 },  { 1, 511 },	  { 0, 511 },	{ 511, 514 }, { 0, 1536 },	   { 1, 1534 },
		    { 100, 1000 }, { 1023, 513 }, { 512, 513 }, { 0, ALL },   { 1535, ALL - 1535 } };
	struct scene s;

	for (size_t i = 0; i < sizeof(cut) / sizeof(cut[0]); i++) {
		set_up(&s);
		for (uint64_t gfn = 0; gfn < 1536; gfn++)
			map(&s, gfn, GMEM_LEVEL_4K, gfn & 1);
		gmem_mmu_zap(&s.mmu, cut[i].from, cut[i].n, BOTH_SIDES);
		for (uint64_t gfn = 0; gfn < 1536; gfn++)
			CHECK_EQ(mapped(&s, gfn), gfn < cut[i].from || gfn - cut[i].from >= cut[i].n);
		tear_down(&s);
	}
}

TEST(sides)
{
	struct scene s;

	set_up(&s);
	for (uint64_t gfn = 0; gfn < 1024; gfn++)
		map(&s, gfn, GMEM_LEVEL_4K, gfn & 1);
	map(&s, 1024, GMEM_LEVEL_2M, true);
	map(&s, 1536, GMEM_LEVEL_2M, false);
	gmem_mmu_zap(&s.mmu, 100, 100, GMEM_SIDE_SHARED);
	CHECK_EQ(count(&s, 0, 1024), 1024 - 50);
	for (uint64_t gfn = 100; gfn < 200; gfn++)
		CHECK_EQ(mapped(&s, gfn), gfn & 1);
	gmem_mmu_zap(&s.mmu, 0, ALL, GMEM_SIDE_SHARED);
	CHECK_EQ(count(&s, 0, 1024), 512);
	CHECK(mapped(&s, 1024) && !mapped(&s, 1536));
	gmem_mmu_zap(&s.mmu, 0, ALL, GMEM_SIDE_PRIVATE);
	CHECK_EQ(count(&s, 0, 2048), 0);
	tear_down(&s);
}

TEST(large_leaf_goes_whole)
{
	struct scene s;

	set_up(&s);
	for (uint64_t at = 0; at < 512; at += 73) {
		map(&s, 512, GMEM_LEVEL_2M, false);
		map(&s, 1024, GMEM_LEVEL_2M, false);
		gmem_mmu_zap(&s.mmu, 512 + at, 1, GMEM_SIDE_PRIVATE);
		CHECK_EQ(count(&s, 512, 512), 512);
		gmem_mmu_zap(&s.mmu, 512 + at, 1, GMEM_SIDE_SHARED);
		CHECK_EQ(count(&s, 512, 512), 0);
		CHECK_EQ(count(&s, 1024, 512), 512);
		gmem_mmu_zap(&s.mmu, 1535, 1, BOTH_SIDES);
		CHECK_EQ(count(&s, 1024, 512), 0);
	}
	tear_down(&s);
}

TEST(tables_go_back)
{
	struct scene s;

	set_up(&s);
	for (uint64_t gfn = 0; gfn < 4 * GIB_PAGES; gfn += 512)
		map(&s, gfn, GMEM_LEVEL_4K, false);
	CHECK_EQ(tables(&s), 1 + 1 + 4 + 2048);
	gmem_mmu_zap(&s.mmu, 512, 1024, BOTH_SIDES);
	CHECK_EQ(tables(&s), 1 + 1 + 4 + 2046);
	/* All but the edges. */
	gmem_mmu_zap(&s.mmu, 1, 4 * GIB_PAGES - 513, BOTH_SIDES);
	CHECK_EQ(count(&s, 0, 1), 1);
	CHECK_EQ(count(&s, 4 * GIB_PAGES - 512, 1), 1);
	CHECK_EQ(tables(&s), 1 + 1 + 2 + 2);
	gmem_mmu_zap(&s.mmu, 0, ALL, BOTH_SIDES);
	CHECK_EQ(tables(&s), 1);
	/* They are zero when they come again. */
	map(&s, 3, GMEM_LEVEL_4K, false);
	CHECK_EQ(count(&s, 0, 4 * GIB_PAGES), 1);
	tear_down(&s);
}

/* Where one side was all there was, the tables go with it, so that a large leaf may come in their place. */
TEST(tables_go_back_by_one_side)
{
	struct scene s;
	int level;

	set_up(&s);
	for (uint64_t gfn = 0; gfn < 2048; gfn++)
		map(&s, gfn, GMEM_LEVEL_4K, gfn == 700);
	CHECK_EQ(tables(&s), 3 + 4);
	gmem_mmu_zap(&s.mmu, 0, 2048, GMEM_SIDE_SHARED);
	CHECK_EQ(count(&s, 0, 2048), 1);
	CHECK_EQ(tables(&s), 3 + 1);
	gmem_mmu_zap(&s.mmu, 512, 512, GMEM_SIDE_PRIVATE);
	CHECK_EQ(tables(&s), 1);
	map(&s, 513, GMEM_LEVEL_2M, true);
	CHECK(leaf_at(&s.mmu, 513, &level));
	CHECK_EQ(level, 2);
	/* What lies outside of the range keeps a table; nothing does not. */
	map(&s, 3, GMEM_LEVEL_4K, false);
	map(&s, 200, GMEM_LEVEL_4K, false);
	gmem_mmu_zap(&s.mmu, 100, 412, GMEM_SIDE_SHARED);
	CHECK(mapped(&s, 3));
	CHECK_EQ(tables(&s), 4);
	gmem_mmu_zap(&s.mmu, 513, 1, GMEM_SIDE_PRIVATE);
	gmem_mmu_zap(&s.mmu, 3, 1, GMEM_SIDE_SHARED);
	CHECK_EQ(tables(&s), 1);
	tear_down(&s);
}

/* More tables at the edges of a range than one go can remember. */
TEST(many_tables_at_the_edges)
{
	const uint64_t third = 2ull << 27;
	struct scene s;

	set_up(&s);
	for (uint64_t i = 0; i < 512; i++) {
		map(&s, i << 9, GMEM_LEVEL_4K, false);
		map(&s, third + (511 << 18) + (i << 9), GMEM_LEVEL_4K, false);
	}
	for (uint64_t i = 1; i < 512; i++)
		map(&s, i << 18, GMEM_LEVEL_4K, false);
	for (uint64_t i = 0; i < 511; i++)
		map(&s, third + (i << 18), GMEM_LEVEL_4K, false);
	map(&s, 1ull << 27, GMEM_LEVEL_4K, false);
	gmem_mmu_zap(&s.mmu, 512, third + (1ull << 27) - 1024, BOTH_SIDES);
	CHECK(mapped(&s, 0) && mapped(&s, third + (1ull << 27) - 512));
	/* The root, and three for each of the two pages that are left. */
	CHECK_EQ(tables(&s), 7);
	tear_down(&s);
}

TEST(zap_of_nothing)
{
	struct scene s;

	gmem_mmu_init(&s.mmu);
	gmem_mmu_zap(&s.mmu, 0, ALL, BOTH_SIDES);
	CHECK_EQ(s.mmu.invalidate_seq, 1);
	CHECK_EQ(s.mmu.invalidating, 0);
	gmem_mmu_destroy(&s.mmu);
}

/* ---- who is inside */

struct zapper {
	struct gmem_mmu *mmu;
	uint64_t gfn, n;
	_Atomic bool done;
};

static void *zap(void *arg)
{
	struct zapper *z = arg;

	gmem_mmu_zap(z->mmu, z->gfn, z->n, BOTH_SIDES);
	atomic_store(&z->done, true);
	return NULL;
}

/*
 * An accessor is inside with the translation. The first zap takes it away and waits; the second finds nothing to
 * take, and yet may not return before the accessor is out.
 */
TEST(a_zap_waits_for_what_another_cleared)
{
	struct zapper first, second;
	pthread_t t[2];
	struct scene s;

	set_up(&s);
	map(&s, 5, GMEM_LEVEL_4K, false);
	first = (struct zapper){ .mmu = &s.mmu, .gfn = 5, .n = 1 };
	second = (struct zapper){ .mmu = &s.mmu, .gfn = 0, .n = 100 };
	gmem_epoch_enter(&s.mmu.epoch, &s.vcpu.reader);
	CHECK(mapped(&s, 5));
	t[0] = start(zap, &first);
	while (mapped(&s, 5))
		usleep(100);
	t[1] = start(zap, &second);
	usleep(50000);
	CHECK(!atomic_load(&first.done));
	CHECK(!atomic_load(&second.done));
	gmem_epoch_leave(&s.vcpu.reader);
	join(t[0]);
	join(t[1]);
	CHECK_EQ(s.mmu.invalidating, 0);
	tear_down(&s);
}

/* Tables that are cut off are not used again while somebody may be in them. */
TEST(tables_outlive_those_inside)
{
	struct zapper z;
	const gmem_pte *table;
	struct scene s;
	pthread_t t;
	uint64_t e;

	set_up(&s);
	map(&s, 5, GMEM_LEVEL_4K, false);
	z = (struct zapper){ .mmu = &s.mmu, .gfn = 0, .n = GIB_PAGES };
	gmem_epoch_enter(&s.mmu.epoch, &s.vcpu.reader);
	table = s.vcpu.root;
	for (int level = GMEM_PT_LEVELS; level > 1; level--)
		table = gmem_pte_table(atomic_load(&table[gmem_pt_index(5, level)]));
	e = atomic_load(&table[5]);
	t = start(zap, &z);
	while (mapped(&s, 5))
		usleep(100);
	usleep(20000);
	CHECK_EQ(atomic_load(&table[5]), e);
	/* Nor does a mapping come in between. */
	CHECK_EQ(s.mmu.invalidating, 1);
	gmem_epoch_leave(&s.vcpu.reader);
	join(t);
	CHECK_EQ(atomic_load(&table[5]), 0);
	tear_down(&s);
}

/* ---- at random, beside an array */

#define SPAN 4096ull
#define BASE (GIB_PAGES - SPAN / 2) /* where tables of two levels meet */

TEST(at_random)
{
	static uint8_t model[SPAN]; /* 0: none; 1: shared; 2: private; + 4: in a large leaf */
	uint64_t seed = tap_seed();
	unsigned int rounds = tap_slow() ? 400 : 3000;
	struct scene s;

	set_up(&s);
	for (unsigned int round = 0; round < rounds; round++) {
		uint64_t at = tap_rand(&seed) % SPAN, n = 1 + tap_rand(&seed) % (SPAN - at);
		uint64_t first = at & ~511ull;
		bool private = tap_rand(&seed) & 1;
		int level;

		if (tap_rand(&seed) % 3 == 0) {
			uint32_t sides = 1 + (uint32_t)(tap_rand(&seed) % 3);

			gmem_mmu_zap(&s.mmu, BASE + at, n, sides);
			for (uint64_t i = at & ~511ull; i < SPAN && i < ((at + n + 511) & ~511ull); i++) {
				bool in = model[i] & 4 ? true : i >= at && i < at + n;

				if (in && (model[i] & 3 & sides))
					model[i] = 0;
			}
		} else if (tap_rand(&seed) % 2) {
			for (uint64_t i = at; i < at + n && i < at + 700; i++) {
				if (model[i])
					continue;
				map(&s, BASE + i, GMEM_LEVEL_4K, private);
				model[i] = private ? 2 : 1;
			}
		} else {
			uint64_t e = leaf_at(&s.mmu, BASE + first, &level);

			/* Large only where neither a leaf nor a table is. */
			if (e || level != GMEM_LEVEL_2M)
				continue;
			map(&s, BASE + at, GMEM_LEVEL_2M, private);
			memset(model + first, 4 | (private ? 2 : 1), 512);
		}
		for (uint64_t i = 0; i < SPAN; i++) {
			uint64_t e = gmem_mmu_walk(&s.vcpu, BASE + i);
			unsigned int is = !e ? 0 : e & GMEM_PTE_PRIVATE ? 2 : 1;

			if (is != (model[i] & 3u) || (e && gmem_pte_pfn(e) != PFN(BASE + i)))
				FAIL("round %u: frame %llu is %u, not %u", round, (unsigned long long)i, is, model[i]);
		}
	}
	gmem_mmu_zap(&s.mmu, 0, ALL, BOTH_SIDES);
	CHECK_EQ(tables(&s), 1);
	tear_down(&s);
}
