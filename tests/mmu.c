/* SPDX-License-Identifier: MIT */
/* Second-stage tables by themselves: the mapping core and zaps. No file is asked; frame numbers are made up. */
#include "mmu_util.h"

#define PFN(gfn) ((gfn) + 0x100000)
#define GIB_PAGES (1ull << 18)

struct scene {
	struct gmem_mmu mmu;
	struct gmem_vcpu vcpu;
};

/* What comes in between. */
static void (*before_cas)(gmem_pte *pte, uint64_t *old);
static int lose_cas; /* so many calls fail though the entry is empty again */

bool __real_gmem_pte_cas(gmem_pte *pte, uint64_t *old, uint64_t new);
bool __wrap_gmem_pte_cas(gmem_pte *pte, uint64_t *old, uint64_t new);

bool __wrap_gmem_pte_cas(gmem_pte *pte, uint64_t *old, uint64_t new)
{
	if (before_cas)
		before_cas(pte, old);
	if (lose_cas > 0) {
		lose_cas--;
		return false;
	}
	return __real_gmem_pte_cas(pte, old, new);
}

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

static enum gmem_map_result map_this(struct gmem_vcpu *vcpu, struct gmem_mapping m)
{
	enum gmem_map_result r;

	CHECK_OK(gmem_table_topup(&vcpu->mmu->pool, &vcpu->cache));
	CHECK(gmem_mmu_begin_map(vcpu));
	r = gmem_mmu_map(vcpu, &m);
	gmem_mmu_end_map(vcpu);
	return r;
}

static struct gmem_mapping mapping(uint64_t gfn, int level, bool private)
{
	return (struct gmem_mapping){
		.gfn = gfn, .pfn = PFN(gfn), .private = private, .writable = true, .level = level
	};
}

static enum gmem_map_result map(struct scene *s, uint64_t gfn, int level, bool private)
{
	return map_this(&s->vcpu, mapping(gfn, level, private));
}

/* Pages in trees, the root included. */
static uint64_t tables(struct scene *s)
{
	return gmem_mmu_table_bytes(&s->mmu) / PG - s->vcpu.cache.n;
}

static bool mapped(struct scene *s, uint64_t gfn)
{
	int level;
	uint64_t e = leaf_at(&s->mmu, gfn, &level);

	CHECK_EQ(!!gmem_mmu_walk(&s->vcpu, gfn), !!e);
	if (e)
		CHECK_EQ(gmem_pte_pfn(gmem_mmu_walk(&s->vcpu, gfn)), PFN(gfn));
	return e;
}

/* ---- mapping */

TEST(map_small_and_large)
{
	struct scene s;
	int level;

	set_up(&s);
	CHECK_EQ(tables(&s), 1);
	CHECK_EQ(map(&s, 513, GMEM_LEVEL_4K, false), GMEM_MAP_FIXED);
	CHECK_EQ(tables(&s), 4);
	CHECK(leaf_at(&s.mmu, 513, &level));
	CHECK_EQ(level, 1);
	CHECK(!mapped(&s, 512) && !mapped(&s, 514) && !mapped(&s, 1) && mapped(&s, 513));
	/* Of a large leaf the frame is that of its first page, whichever was asked for. */
	CHECK_EQ(map(&s, 1024 + 77, GMEM_LEVEL_2M, true), GMEM_MAP_FIXED);
	CHECK_EQ(tables(&s), 4);
	CHECK_EQ(gmem_pte_pfn(leaf_at(&s.mmu, 1024, &level)), PFN(1024));
	CHECK_EQ(level, 2);
	for (uint64_t i = 0; i < 512; i++)
		CHECK(mapped(&s, 1024 + i));
	CHECK(gmem_mmu_walk(&s.vcpu, 1030) & GMEM_PTE_PRIVATE);
	CHECK(!mapped(&s, 1023) && !mapped(&s, 1536));
	/* Where small pages are, a large one goes in as a small one. */
	CHECK_EQ(map(&s, 600, GMEM_LEVEL_2M, false), GMEM_MAP_FIXED);
	CHECK(leaf_at(&s.mmu, 600, &level));
	CHECK_EQ(level, 1);
	CHECK(!mapped(&s, 601));
	/* The last frame there is. */
	CHECK_EQ(map(&s, (1ull << GMEM_GFN_BITS) - 1, GMEM_LEVEL_4K, false), GMEM_MAP_FIXED);
	CHECK(mapped(&s, (1ull << GMEM_GFN_BITS) - 1));
	tear_down(&s);
}

TEST(bits_of_a_leaf)
{
	struct gmem_mapping m = mapping(5, GMEM_LEVEL_4K, false);
	struct scene s;
	uint64_t e;

	set_up(&s);
	m.writable = false;
	m.nx_huge_pages = true;
	CHECK_EQ(map_this(&s.vcpu, m), GMEM_MAP_FIXED);
	e = gmem_mmu_walk(&s.vcpu, 5);
	CHECK_EQ(e & GMEM_PTE_FLAGS, GMEM_PTE_PRESENT | GMEM_PTE_LEAF | GMEM_PTE_EXEC);
	m = mapping(512, GMEM_LEVEL_2M, true);
	m.nx_huge_pages = true;
	CHECK_EQ(map_this(&s.vcpu, m), GMEM_MAP_FIXED);
	e = gmem_mmu_walk(&s.vcpu, 600);
	CHECK_EQ(e & GMEM_PTE_FLAGS, GMEM_PTE_PRESENT | GMEM_PTE_LEAF | GMEM_PTE_WRITE | GMEM_PTE_PRIVATE);
	m = mapping(1024, GMEM_LEVEL_2M, false);
	CHECK_EQ(map_this(&s.vcpu, m), GMEM_MAP_FIXED);
	e = gmem_mmu_walk(&s.vcpu, 1024);
	CHECK_EQ(e & GMEM_PTE_FLAGS, GMEM_PTE_PRESENT | GMEM_PTE_LEAF | GMEM_PTE_WRITE | GMEM_PTE_EXEC);
	tear_down(&s);
}

TEST(spurious_and_conflict)
{
	struct gmem_mapping m;
	struct scene s;

	set_up(&s);
	for (int level = GMEM_LEVEL_4K; level <= GMEM_LEVEL_2M; level++) {
		uint64_t gfn = 1024 * (uint64_t)level, before;

		CHECK_EQ(map(&s, gfn, level, false), GMEM_MAP_FIXED);
		before = tables(&s);
		CHECK_EQ(map(&s, gfn, level, false), GMEM_MAP_SPURIOUS);
		CHECK_EQ(map(&s, gfn, GMEM_LEVEL_4K, false), GMEM_MAP_SPURIOUS);
		CHECK_EQ(map(&s, gfn, level, true), GMEM_MAP_CONFLICT);
		m = mapping(gfn, level, false);
		m.pfn += 512;
		CHECK_EQ(map_this(&s.vcpu, m), GMEM_MAP_CONFLICT);
		CHECK_EQ(tables(&s), before);
		CHECK_EQ(gmem_pte_pfn(gmem_mmu_walk(&s.vcpu, gfn)), PFN(gfn));
	}
	/* Within a large leaf. */
	CHECK_EQ(map(&s, 2048 + 9, GMEM_LEVEL_4K, false), GMEM_MAP_SPURIOUS);
	/* What it allows counts only if it is asked for. */
	m = mapping(4096, GMEM_LEVEL_2M, false);
	m.writable = false;
	m.nx_huge_pages = true;
	CHECK_EQ(map_this(&s.vcpu, m), GMEM_MAP_FIXED);
	m.access = GMEM_ACCESS_READ;
	CHECK_EQ(map_this(&s.vcpu, m), GMEM_MAP_SPURIOUS);
	m.access = GMEM_ACCESS_WRITE;
	CHECK_EQ(map_this(&s.vcpu, m), GMEM_MAP_CONFLICT);
	m.access = GMEM_ACCESS_EXEC;
	CHECK_EQ(map_this(&s.vcpu, m), GMEM_MAP_CONFLICT);
	tear_down(&s);
}

/* ---- another thread is quicker */

TEST(lost_exchange_is_retry)
{
	struct scene s;

	set_up(&s);
	/* At each of the levels, the leaf's included. */
	for (int n = 0; n < 4; n++) {
		uint64_t gfn = (uint64_t)n << 27;
		uint32_t cached;

		for (int wins = 0; wins < n; wins++)
			CHECK_EQ(map(&s, gfn, GMEM_LEVEL_4K, false), wins ? GMEM_MAP_SPURIOUS : GMEM_MAP_FIXED);
		CHECK_OK(gmem_table_topup(&s.mmu.pool, &s.vcpu.cache));
		cached = s.vcpu.cache.n;
		lose_cas = 1;
		CHECK_EQ(map(&s, gfn + (1ull << 9 * n), GMEM_LEVEL_4K, false), GMEM_MAP_RETRY);
		CHECK_EQ(lose_cas, 0);
		CHECK_EQ(s.vcpu.cache.n, cached);
		CHECK(!mapped(&s, gfn + (1ull << 9 * n)));
		CHECK_EQ(map(&s, gfn + (1ull << 9 * n), GMEM_LEVEL_4K, false), GMEM_MAP_FIXED);
	}
	tear_down(&s);
}

static struct scene *racing;
static uint64_t race_entry; /* 0: a table */
static unsigned int race_at; /* the exchange it comes before */

static void other_thread(gmem_pte *pte, uint64_t *old)
{
	(void)old;
	if (--race_at)
		return;
	if (!race_entry)
		race_entry = (uintptr_t)gmem_table_new(&racing->mmu.pool) | GMEM_PTE_PRESENT;
	atomic_store(pte, race_entry);
}

static enum gmem_map_result race(struct scene *s, struct gmem_mapping m, unsigned int at, uint64_t entry)
{
	enum gmem_map_result r;

	racing = s;
	race_at = at;
	race_entry = entry;
	before_cas = other_thread;
	r = map_this(&s->vcpu, m);
	before_cas = NULL;
	CHECK_EQ(race_at > UINT32_MAX / 2 || race_at == 0, true);
	return r;
}

TEST(another_thread_adds_the_table)
{
	struct scene s;

	set_up(&s);
	/* The level-3, -2 and -1 table is the other one's: it is used, ours stays in the cache, nothing leaks. */
	for (unsigned int at = 1; at <= 3; at++) {
		uint64_t gfn = (uint64_t)at << 27, before = tables(&s);

		CHECK_EQ(race(&s, mapping(gfn, GMEM_LEVEL_4K, false), at, 0), GMEM_MAP_FIXED);
		CHECK_EQ(tables(&s), before + 3);
		CHECK(mapped(&s, gfn));
	}
	gmem_mmu_zap(&s.mmu, 0, 1ull << GMEM_GFN_BITS, BOTH_SIDES);
	CHECK_EQ(tables(&s), 1);
	tear_down(&s);
}

static uint64_t large_leaf(uint64_t gfn)
{
	return PFN(gfn) << GMEM_PAGE_SHIFT | GMEM_PTE_PRESENT | GMEM_PTE_LEAF | GMEM_PTE_WRITE;
}

TEST(another_thread_adds_a_leaf)
{
	struct scene s;
	uint32_t cached;

	set_up(&s);
	/* The same small leaf: come again, and find it there. */
	CHECK_EQ(race(&s, mapping(7, GMEM_LEVEL_4K, false), 4, large_leaf(7)), GMEM_MAP_RETRY);
	CHECK_EQ(map(&s, 7, GMEM_LEVEL_4K, false), GMEM_MAP_SPURIOUS);
	CHECK_EQ(race(&s, mapping(8, GMEM_LEVEL_4K, false), 1, large_leaf(1000)), GMEM_MAP_RETRY);
	CHECK_EQ(map(&s, 8, GMEM_LEVEL_4K, false), GMEM_MAP_CONFLICT);
	/* A large leaf where a table was to go. */
	CHECK_OK(gmem_table_topup(&s.mmu.pool, &s.vcpu.cache));
	cached = s.vcpu.cache.n;
	CHECK_EQ(race(&s, mapping(512 + 3, GMEM_LEVEL_4K, false), 1, large_leaf(512)), GMEM_MAP_SPURIOUS);
	CHECK_EQ(race(&s, mapping(1024 + 3, GMEM_LEVEL_4K, false), 1, large_leaf(512)), GMEM_MAP_CONFLICT);
	CHECK_EQ(race(&s, mapping(1536 + 3, GMEM_LEVEL_4K, true), 1, large_leaf(1536)), GMEM_MAP_CONFLICT);
	/* A table where a large leaf was to go. */
	CHECK_EQ(race(&s, mapping(2048 + 3, GMEM_LEVEL_2M, false), 1, 0), GMEM_MAP_RETRY);
	CHECK_EQ(s.vcpu.cache.n, cached);
	CHECK_EQ(map(&s, 2048 + 3, GMEM_LEVEL_2M, false), GMEM_MAP_FIXED);
	CHECK(mapped(&s, 2051) && !mapped(&s, 2052));
	tear_down(&s);
}

TEST(vcpus_share_tables)
{
	struct gmem_vcpu other;
	struct scene s;
	uint64_t before;

	set_up(&s);
	gmem_mmu_add_vcpu(&s.mmu, &other);
	CHECK_OK(gmem_mmu_reload(&other));
	CHECK(other.root == s.vcpu.root);
	CHECK_EQ(map(&s, 100, GMEM_LEVEL_4K, false), GMEM_MAP_FIXED);
	CHECK_OK(gmem_table_topup(&s.mmu.pool, &other.cache));
	before = other.cache.n;
	CHECK_EQ(map_this(&other, mapping(101, GMEM_LEVEL_4K, false)), GMEM_MAP_FIXED);
	CHECK_EQ(other.cache.n, before);
	CHECK_EQ(map_this(&other, mapping(100, GMEM_LEVEL_4K, false)), GMEM_MAP_SPURIOUS);
	CHECK_EQ(gmem_mmu_walk(&other, 100), gmem_mmu_walk(&s.vcpu, 100));
	CHECK_EQ(gmem_mmu_walk(&other, 101), gmem_mmu_walk(&s.vcpu, 101));
	/* What the cache held is back when its owner goes. */
	gmem_mmu_del_vcpu(&other);
	CHECK_EQ(tables(&s), 4);
	tear_down(&s);
}

struct mapper {
	struct gmem_mmu *mmu;
	unsigned int from;
	_Atomic uint64_t *fixed;
};

static void *map_all(void *arg)
{
	struct mapper *m = arg;
	struct gmem_vcpu vcpu;
	uint64_t n = 0;

	gmem_mmu_add_vcpu(m->mmu, &vcpu);
	CHECK_OK(gmem_mmu_reload(&vcpu));
	for (uint64_t i = 0; i < 4096; i++) {
		uint64_t gfn = (i + m->from) % 4096 * 331;
		enum gmem_map_result r;

		do
			r = map_this(&vcpu, mapping(gfn, GMEM_LEVEL_4K, false));
		while (r == GMEM_MAP_RETRY);
		CHECK(r == GMEM_MAP_FIXED || r == GMEM_MAP_SPURIOUS);
		CHECK_EQ(gmem_pte_pfn(gmem_mmu_walk(&vcpu, gfn)), PFN(gfn));
		n += r == GMEM_MAP_FIXED;
	}
	atomic_fetch_add(m->fixed, n);
	gmem_mmu_del_vcpu(&vcpu);
	return NULL;
}

/* Each page is mapped by exactly one of them, and no table is lost. */
TEST(threads_map_the_same_pages)
{
	_Atomic uint64_t fixed = 0;
	struct mapper m[3];
	pthread_t t[3];
	struct scene s;

	set_up(&s);
	for (unsigned int i = 0; i < 3; i++) {
		m[i] = (struct mapper){ &s.mmu, i, &fixed };
		t[i] = start(map_all, &m[i]);
	}
	for (int i = 0; i < 3; i++)
		join(t[i]);
	CHECK_EQ(fixed, 4096);
	/* Root, one of level 3, and so many of levels 2 and 1 as the frames need. */
	CHECK_EQ(tables(&s), 2 + (4095 * 331 >> 18) + 1 + (4095 * 331 >> 9) + 1);
	gmem_mmu_zap(&s.mmu, 0, 4096 * 331, BOTH_SIDES);
	tear_down(&s);
}

/* 1 TiB in leaves of 2 MiB. */
TEST(memory_of_tables)
{
	struct scene s;

	set_up(&s);
	for (uint64_t gfn = 0; gfn < 1ull << 28; gfn += 512)
		CHECK_EQ(map(&s, gfn, GMEM_LEVEL_2M, false), GMEM_MAP_FIXED);
	printf("%.3f MiB of tables\n", (double)gmem_mmu_table_bytes(&s.mmu) / (1 << 20));
	CHECK(gmem_mmu_table_bytes(&s.mmu) * 10 <= 42ull << 20);
	CHECK(mapped(&s, (1ull << 28) - 1));
	gmem_mmu_zap(&s.mmu, 0, 1ull << 28, BOTH_SIDES);
	CHECK_EQ(tables(&s), 1);
	tear_down(&s);
}
