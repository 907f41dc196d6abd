/* SPDX-License-Identifier: MIT */
/* Table memory that runs out, where it may be asked for, and large leaves that must not be executed. */
#include <sys/mman.h>

#include "mmu_util.h"

#define LARGE (2ull << 20)

static bool no_memory;
static unsigned int slabs; /* asked for */
static _Thread_local int mmu_held;
static struct gmem_vcpu *mapping; /* whose sections are no place either */

void *__real_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off);
void *__wrap_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off);
void *__wrap_mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t off);

static void *mmap_here(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	if (fd < 0 && !addr && prot == (PROT_READ | PROT_WRITE)) {
		slabs++;
		if (mmu_held)
			FAIL("memory is asked for with the mmu lock held");
		if (mapping && atomic_load(&mapping->mapper.since))
			FAIL("memory is asked for in a mapping section");
		if (no_memory) {
			errno = ENOMEM;
			return MAP_FAILED;
		}
	}
	return __real_mmap(addr, len, prot, flags, fd, off);
}

void *__wrap_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	return mmap_here(addr, len, prot, flags, fd, off);
}

void *__wrap_mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	return mmap_here(addr, len, prot, flags, fd, off);
}

void __real_gmem_rwlock_lock_shared(struct gmem_rwlock *l);
void __wrap_gmem_rwlock_lock_shared(struct gmem_rwlock *l);
void __real_gmem_rwlock_unlock_shared(struct gmem_rwlock *l);
void __wrap_gmem_rwlock_unlock_shared(struct gmem_rwlock *l);
void __real_gmem_rwlock_lock(struct gmem_rwlock *l);
void __wrap_gmem_rwlock_lock(struct gmem_rwlock *l);
void __real_gmem_rwlock_unlock(struct gmem_rwlock *l);
void __wrap_gmem_rwlock_unlock(struct gmem_rwlock *l);

void __wrap_gmem_rwlock_lock_shared(struct gmem_rwlock *l)
{
	__real_gmem_rwlock_lock_shared(l);
	mmu_held += l->cls == GMEM_LOCK_MMU;
}

void __wrap_gmem_rwlock_unlock_shared(struct gmem_rwlock *l)
{
	mmu_held -= l->cls == GMEM_LOCK_MMU;
	__real_gmem_rwlock_unlock_shared(l);
}

void __wrap_gmem_rwlock_lock(struct gmem_rwlock *l)
{
	__real_gmem_rwlock_lock(l);
	mmu_held += l->cls == GMEM_LOCK_MMU;
}

void __wrap_gmem_rwlock_unlock(struct gmem_rwlock *l)
{
	mmu_held -= l->cls == GMEM_LOCK_MMU;
	__real_gmem_rwlock_unlock(l);
}

struct scene {
	struct gmem_vm *vm;
	struct gmem_file *file;
	struct gmem_vcpu *vcpu;
};

static void set_up(struct scene *s, uint64_t gpa, uint64_t len)
{
	s->vm = new_vm(GMEM_VM_SW_PROTECTED);
	s->file = make_file(len, 0);
	CHECK_OK(set_slot(s->vm, 0, gpa, len, s->file, 0));
	mapping = s->vcpu = new_vcpu(s->vm);
}

static void tear_down(struct scene *s)
{
	mapping = NULL;
	gmem_vcpu_free(s->vcpu);
	gmem_vm_free(s->vm);
	gmem_file_free(s->file);
}

/* ---- no memory */

/* All pages that the pool has go into a list, but for `left` of them. */
static gmem_pte *drain(struct gmem_table_pool *pool, unsigned int left)
{
	gmem_pte *list = NULL, *page;

	no_memory = true;
	while ((page = gmem_table_new(pool))) {
		atomic_store(&page[0], (uintptr_t)list);
		list = page;
	}
	while (left--) {
		page = (gmem_pte *)(uintptr_t)atomic_load(&list[0]);
		gmem_table_free_tree(pool, list, 1);
		list = page;
	}
	return list;
}

static void give_back(struct gmem_table_pool *pool, gmem_pte *list)
{
	no_memory = false;
	while (list) {
		gmem_pte *next = (gmem_pte *)(uintptr_t)atomic_load(&list[0]);

		gmem_table_free_tree(pool, list, 1);
		list = next;
	}
}

TEST(no_memory_for_the_root)
{
	struct gmem_mmu *mmu;
	struct scene s;
	uint64_t v = 0;

	set_up(&s, 0, 64 * PG);
	mmu = &s.vm->mmu;
	no_memory = true;
	CHECK_ERR(gmem_vcpu_load(s.vcpu, 0, &v, sizeof(v)), -ENOMEM);
	CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_NONE);
	CHECK_ERR(gmem_vcpu_pre_fault(s.vcpu, 0, PG, NULL), -ENOMEM);
	CHECK(!atomic_load(&mmu->root));
	CHECK_EQ(gmem_mmu_table_bytes(mmu), 0);
	no_memory = false;
	CHECK_EQ(load64(s.vcpu, 0), 0);
	tear_down(&s);
}

TEST(no_memory_for_tables)
{
	for (unsigned int left = 0; left <= GMEM_TABLE_NEED; left++) {
		struct gmem_mmu *mmu;
		gmem_pte *hoard;
		struct scene s;
		uint64_t used, v = 0;

		set_up(&s, 0, 64 * PG);
		mmu = &s.vm->mmu;
		CHECK_OK(gmem_mmu_reload(s.vcpu));
		hoard = drain(&mmu->pool, left);
		used = gmem_mmu_table_bytes(mmu);
		if (left < GMEM_TABLE_NEED) {
			CHECK_ERR(gmem_vcpu_load(s.vcpu, PG, &v, sizeof(v)), -ENOMEM);
			CHECK_ERR(gmem_vcpu_pre_fault(s.vcpu, 0, PG, NULL), -ENOMEM);
			/* What there was is in the cache, once. */
			CHECK_EQ(s.vcpu->cache.n, left);
			CHECK_EQ(gmem_mmu_table_bytes(mmu), used + left * PG);
			/* No lock is held, of the file or of the tables: these would wait for ever. */
			gmem_rwlock_lock(&mmu->lock);
			gmem_rwlock_unlock(&mmu->lock);
			gmem_rwlock_lock(&s.file->invalidate_lock);
			gmem_rwlock_unlock(&s.file->invalidate_lock);
			CHECK_EQ(s.file->refs, 1);
		} else {
			CHECK_EQ(load64(s.vcpu, PG), 0);
		}
		give_back(&mmu->pool, hoard);
		CHECK_EQ(load64(s.vcpu, 2 * PG), 0);
		mapping = NULL;
		gmem_vcpu_free(s.vcpu);
		CHECK_OK(del_slot(s.vm, 0));
		CHECK_EQ(gmem_mmu_table_bytes(mmu), PG);
		s.vcpu = NULL;
		tear_down(&s);
	}
}

/* A deletion needs memory only where slots are left. */
TEST(memory_is_not_asked_for_under_the_lock)
{
	const uint64_t step = 1ull << 30;
	struct scene s;
	unsigned int before;

	set_up(&s, 0, 600 * PG);
	CHECK_OK(del_slot(s.vm, 0));
	for (uint32_t i = 0; i < 600; i++)
		CHECK_OK(set_slot(s.vm, i, i * step, PG, s.file, i * PG));
	before = slabs;
	for (uint32_t i = 0; i < 600; i++)
		CHECK_OK(gmem_vcpu_pre_fault(s.vcpu, i * step, PG, NULL));
	/* Two tables for each page, 63 a slab. */
	CHECK(slabs - before >= 600 * 2 / 63);
	CHECK_EQ(mmu_held, 0);
	before = slabs;
	for (uint32_t i = 0; i < 600; i++)
		CHECK_OK(del_slot(s.vm, i));
	CHECK_EQ(slabs, before);
	CHECK_EQ(gmem_mmu_table_bytes(&s.vm->mmu), (1 + s.vcpu->cache.n) * PG);
	tear_down(&s);
}

/* ---- large leaves */

static void fill(struct scene *s, uint64_t from, uint64_t to)
{
	uint64_t *page = malloc(PG);

	for (uint64_t off = from; off < to; off += PG) {
		for (uint64_t i = 0; i < PG / 8; i++)
			page[i] = off + i;
		CHECK_OK(gmem_file_write(s->file, off, page, PG));
	}
	free(page);
}

static int level_of(struct scene *s, uint64_t gpa)
{
	int level;

	return leaf_at(&s->vm->mmu, gpa / PG, &level) ? level : 0;
}

static bool executable(struct scene *s, uint64_t gpa)
{
	int level;

	return leaf_at(&s->vm->mmu, gpa / PG, &level) & GMEM_PTE_EXEC;
}

static void exec(struct scene *s, uint64_t gpa)
{
	struct gmem_mmu_exit exit;

	CHECK_OK(gmem_mmu_fault(s->vcpu, gpa / PG, GMEM_ACCESS_EXEC, GMEM_WANT_ANY, &exit, NULL));
	CHECK(executable(s, gpa));
}

TEST(large_leaf_of_what_is_in_place)
{
	struct scene s;

	set_up(&s, 0, 4 * LARGE);
	fill(&s, 0, 4 * LARGE - PG);
	CHECK_EQ(load64(s.vcpu, LARGE + 5 * PG), LARGE + 5 * PG);
	CHECK_EQ(level_of(&s, LARGE), 2);
	CHECK_EQ(load64(s.vcpu, LARGE + 511 * PG + 8), LARGE + 511 * PG + 1);
	/* One page of it is not in place. */
	CHECK_EQ(load64(s.vcpu, 3 * LARGE), 3 * LARGE);
	CHECK_EQ(level_of(&s, 3 * LARGE), 1);
	/* One is on the other side; then all are. */
	to_private(s.file, 2 * LARGE + 7 * PG, PG);
	CHECK_EQ(load64(s.vcpu, 2 * LARGE), 2 * LARGE);
	CHECK_EQ(level_of(&s, 2 * LARGE), 1);
	to_private(s.file, 2 * LARGE, LARGE);
	CHECK_EQ(load64(s.vcpu, 2 * LARGE + 9 * PG), 2 * LARGE + 9 * PG);
	CHECK_EQ(level_of(&s, 2 * LARGE), 2);
	/* Part of a large leaf is converted, or punched: all of it goes, and comes back in small ones. */
	to_private(s.file, LARGE + 511 * PG, PG);
	CHECK_EQ(level_of(&s, LARGE), 0);
	CHECK_EQ(load64(s.vcpu, LARGE + 3 * PG), LARGE + 3 * PG);
	CHECK_EQ(level_of(&s, LARGE + 3 * PG), 1);
	CHECK_OK(gmem_file_punch(s.file, 2 * LARGE, PG));
	CHECK_EQ(load64(s.vcpu, 2 * LARGE + PG), 2 * LARGE + PG);
	CHECK_EQ(level_of(&s, 2 * LARGE + PG), 1);
	CHECK_EQ(load64(s.vcpu, 2 * LARGE), 0);
	tear_down(&s);
}

/* The guest's addresses, the slot's ends or a watched page do not allow it. */
TEST(large_leaf_must_fit)
{
	struct scene s;

	set_up(&s, PG, 2 * LARGE);
	fill(&s, 0, 2 * LARGE);
	CHECK_EQ(load64(s.vcpu, LARGE), LARGE - PG);
	CHECK_EQ(level_of(&s, LARGE), 1);
	CHECK_OK(del_slot(s.vm, 0));
	CHECK_OK(set_slot(s.vm, 0, PG, 2 * LARGE - PG, s.file, PG));
	CHECK_EQ(load64(s.vcpu, 2 * PG), 2 * PG);
	CHECK_EQ(level_of(&s, 2 * PG), 1);
	CHECK_EQ(load64(s.vcpu, LARGE), LARGE);
	CHECK_EQ(level_of(&s, LARGE), 2);
	gmem_vm_lock_slots(s.vm);
	CHECK_OK(gmem_mmu_track_write(&s.vm->mmu, (LARGE + 5 * PG) / PG, true));
	gmem_vm_unlock_slots(s.vm);
	CHECK_EQ(level_of(&s, LARGE), 0);
	CHECK_EQ(load64(s.vcpu, LARGE), LARGE);
	CHECK_EQ(level_of(&s, LARGE), 1);
	tear_down(&s);
}

/* Whether a large leaf may be executed is asked at each fault. */
TEST(nx_huge_pages_live)
{
	struct scene s;

	set_up(&s, 0, 4 * LARGE);
	fill(&s, 0, 4 * LARGE);
	CHECK_EQ(load64(s.vcpu, 0), 0);
	CHECK(level_of(&s, 0) == 2 && executable(&s, 0));
	atomic_store(&s.vm->mmu.nx_huge_pages, true);
	CHECK_EQ(load64(s.vcpu, LARGE), LARGE);
	CHECK(level_of(&s, LARGE) == 2 && !executable(&s, LARGE));
	/* An execution splits it. The other pages are as before. */
	exec(&s, LARGE + 3 * PG);
	CHECK_EQ(level_of(&s, LARGE + 3 * PG), 1);
	CHECK_EQ(load64(s.vcpu, LARGE + 4 * PG), LARGE + 4 * PG);
	CHECK_EQ(level_of(&s, LARGE + 4 * PG), 1);
	/* The first touch is an execution. */
	exec(&s, 2 * LARGE);
	CHECK_EQ(level_of(&s, 2 * LARGE), 1);
	atomic_store(&s.vm->mmu.nx_huge_pages, false);
	exec(&s, 3 * LARGE);
	CHECK_EQ(level_of(&s, 3 * LARGE), 2);
	/* The one that was mapped before any of this still stands, for who reads and who executes. */
	exec(&s, PG);
	CHECK_EQ(level_of(&s, 0), 2);
	tear_down(&s);
}
