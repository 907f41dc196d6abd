/* SPDX-License-Identifier: MIT */
/* gmem_mmu_map_private_pfn(): a frame that the caller of a populate holds goes into the second stage. */
#include <sys/mman.h>

#include "mmu_util.h"
#include "pager_util.h"

#include "dies_util.h"

#define LEN (64 * PG)

static void (*at_cas)(void); /* called at each exchange */
static unsigned int lose, cas_calls, locks, unlocks;
static int topup_error;

bool __real_gmem_pte_cas(gmem_pte *pte, uint64_t *old, uint64_t new);
bool __wrap_gmem_pte_cas(gmem_pte *pte, uint64_t *old, uint64_t new);
void __real_gmem_rwlock_lock(struct gmem_rwlock *l);
void __wrap_gmem_rwlock_lock(struct gmem_rwlock *l);
void __real_gmem_rwlock_unlock(struct gmem_rwlock *l);
void __wrap_gmem_rwlock_unlock(struct gmem_rwlock *l);
int __real_gmem_table_topup(struct gmem_table_pool *pool, struct gmem_table_cache *cache);
int __wrap_gmem_table_topup(struct gmem_table_pool *pool, struct gmem_table_cache *cache);
gmem_pte *__real_gmem_table_new(struct gmem_table_pool *pool);
gmem_pte *__wrap_gmem_table_new(struct gmem_table_pool *pool);

static struct gmem_vm *vm;
static struct gmem_file *file;
static struct gmem_vcpu *vcpu;

/* A fault maps in a section, and without the lock; a private frame goes in under it. */
bool __wrap_gmem_pte_cas(gmem_pte *pte, uint64_t *old, uint64_t new)
{
	bool in_section = atomic_load(&vcpu->mapper.since);

	cas_calls++;
	CHECK_EQ(locks, unlocks + !in_section);
	if (at_cas)
		at_cas();
	if (lose) {
		lose--;
		return false;
	}
	return __real_gmem_pte_cas(pte, old, new);
}

void __wrap_gmem_rwlock_lock(struct gmem_rwlock *l)
{
	__real_gmem_rwlock_lock(l);
	locks += l->cls == GMEM_LOCK_MMU;
}

void __wrap_gmem_rwlock_unlock(struct gmem_rwlock *l)
{
	unlocks += l->cls == GMEM_LOCK_MMU;
	__real_gmem_rwlock_unlock(l);
}

int __wrap_gmem_table_topup(struct gmem_table_pool *pool, struct gmem_table_cache *cache)
{
	return topup_error ? gmem_err(topup_error, "injected") : __real_gmem_table_topup(pool, cache);
}

gmem_pte *__wrap_gmem_table_new(struct gmem_table_pool *pool)
{
	return topup_error ? NULL : __real_gmem_table_new(pool);
}

static void set_up(uint32_t flags)
{
	vm = new_vm(GMEM_VM_SNP);
	file = make_file(LEN, flags);
	CHECK_OK(set_slot(vm, 0, 0, LEN, file, 0));
	vcpu = new_vcpu(vm);
}

static void tear_down(void)
{
	gmem_vcpu_free(vcpu);
	gmem_vm_free(vm);
	gmem_file_free(file);
}

static void lock(void)
{
	gmem_vm_lock_slots(vm);
	gmem_rwlock_lock(&file->invalidate_lock);
}

static void unlock(void)
{
	gmem_rwlock_unlock(&file->invalidate_lock);
	gmem_vm_unlock_slots(vm);
}

static uint64_t pfn_of(uint64_t gfn)
{
	return gmem_slot_pfn(gmem_vm_slot(vm, gfn), gfn);
}

static void track(uint64_t gfn, bool on)
{
	gmem_vm_lock_slots(vm);
	CHECK_OK(gmem_mmu_track_write(&vm->mmu, gfn, on));
	gmem_vm_unlock_slots(vm);
}

/* ---- errors */

TEST(maps_small_writable_private)
{
	int level;
	uint64_t e;

	set_up(GMEM_FILE_INIT_PRIVATE);
	lock();
	CHECK_EQ(gmem_mmu_map_private_pfn(vcpu, 3, pfn_of(3)), 0);
	unlock();
	e = leaf_at(&vm->mmu, 3, &level);
	CHECK_EQ(level, GMEM_LEVEL_4K);
	CHECK_EQ(gmem_pte_pfn(e), pfn_of(3));
	CHECK_EQ(e & GMEM_PTE_FLAGS,
		 GMEM_PTE_PRESENT | GMEM_PTE_LEAF | GMEM_PTE_WRITE | GMEM_PTE_EXEC | GMEM_PTE_PRIVATE);
	CHECK(!leaf_at(&vm->mmu, 2, &level) && !leaf_at(&vm->mmu, 4, &level));
	tear_down();
}

TEST(no_tables)
{
	uint64_t v;

	set_up(GMEM_FILE_INIT_PRIVATE);
	vm->mmu.no_tables = true;
	gmem_vcpu_cancel(vcpu);
	lock();
	/* Before the slot, the watch, the cancellation and the memory. */
	topup_error = -ENOMEM;
	CHECK_ERR(gmem_mmu_map_private_pfn(vcpu, 9999, 1), -EIO);
	CHECK_HAS(gmem_last_error(), "no second-stage tables");
	unlock();
	topup_error = 0;
	CHECK(atomic_load(&vm->mmu.dead));
	CHECK(atomic_load(&vcpu->cancel));
	CHECK_ERR(gmem_vcpu_load(vcpu, 0, &v, sizeof(v)), -EIO);
	CHECK_ERR(set_slot(vm, 1, LEN, PG, file, 0), -EIO);
	CHECK_ERR(del_slot(vm, 0), -EIO);
	CHECK_ERR(gmem_populate(vm, 0, NULL, 1, 0, NULL, NULL), -EIO);
	tear_down();
}

TEST(no_slot)
{
	set_up(GMEM_FILE_INIT_PRIVATE);
	gmem_vcpu_cancel(vcpu);
	topup_error = -ENOMEM;
	atomic_store(&vm->mmu.dead, true);
	lock();
	CHECK_ERR(gmem_mmu_map_private_pfn(vcpu, LEN / PG, 1), -EINVAL);
	CHECK_ERR(gmem_mmu_map_private_pfn(vcpu, ~0ull, 1), -EINVAL);
	CHECK_EQ(cas_calls, 0);
	unlock();
	tear_down();
}

TEST(watched)
{
	set_up(GMEM_FILE_INIT_PRIVATE);
	track(5, true);
	gmem_vcpu_cancel(vcpu);
	topup_error = -ENOMEM;
	atomic_store(&vm->mmu.dead, true);
	lock();
	CHECK_ERR(gmem_mmu_map_private_pfn(vcpu, 5, pfn_of(5)), -EPERM);
	CHECK(atomic_load(&vcpu->cancel));
	unlock();
	topup_error = 0;
	atomic_store(&vm->mmu.dead, false);
	atomic_store(&vcpu->cancel, false);
	lock();
	CHECK_EQ(gmem_mmu_map_private_pfn(vcpu, 6, pfn_of(6)), 0);
	unlock();
	track(5, false);
	lock();
	CHECK_EQ(gmem_mmu_map_private_pfn(vcpu, 5, pfn_of(5)), 0);
	unlock();
	tear_down();
}

TEST(no_memory)
{
	set_up(GMEM_FILE_INIT_PRIVATE);
	topup_error = -ENOMEM;
	lock();
	/* The root first, and that before the cancellation. */
	gmem_vcpu_cancel(vcpu);
	CHECK_ERR(gmem_mmu_map_private_pfn(vcpu, 5, pfn_of(5)), -ENOMEM);
	CHECK(!atomic_load(&vm->mmu.root) && atomic_load(&vcpu->cancel));
	topup_error = 0;
	CHECK_OK(gmem_mmu_reload(vcpu));
	topup_error = -ENOMEM;
	CHECK_ERR(gmem_mmu_map_private_pfn(vcpu, 5, pfn_of(5)), -EINTR);
	CHECK_ERR(gmem_mmu_map_private_pfn(vcpu, 5, pfn_of(5)), -ENOMEM);
	CHECK_EQ(locks, 0);
	topup_error = 0;
	CHECK_EQ(gmem_mmu_map_private_pfn(vcpu, 5, pfn_of(5)), 0);
	unlock();
	tear_down();
}

TEST(cancelled_and_dead)
{
	set_up(GMEM_FILE_INIT_PRIVATE);
	lock();
	CHECK_OK(gmem_mmu_reload(vcpu));
	gmem_vcpu_cancel(vcpu);
	atomic_store(&vm->mmu.dead, true);
	topup_error = -ENOMEM;
	CHECK_ERR(gmem_mmu_map_private_pfn(vcpu, 5, pfn_of(5)), -EINTR);
	CHECK_ERR(gmem_mmu_map_private_pfn(vcpu, 5, pfn_of(5)), -EIO);
	CHECK_HAS(gmem_last_error(), "dead");
	CHECK_EQ(locks + cas_calls, 0);
	atomic_store(&vm->mmu.dead, false);
	topup_error = 0;
	CHECK_EQ(gmem_mmu_map_private_pfn(vcpu, 5, pfn_of(5)), 0);
	unlock();
	tear_down();
}

TEST(mapped_already)
{
	set_up(GMEM_FILE_INIT_PRIVATE);
	lock();
	CHECK_EQ(gmem_mmu_map_private_pfn(vcpu, 5, pfn_of(5)), 0);
	CHECK_ERR(gmem_mmu_map_private_pfn(vcpu, 5, pfn_of(5)), -EIO);
	CHECK_HAS(gmem_last_error(), "mapped already");
	CHECK_ERR(gmem_mmu_map_private_pfn(vcpu, 5, pfn_of(6)), -EIO);
	CHECK_HAS(gmem_last_error(), "something else");
	CHECK(!atomic_load(&vm->mmu.dead));
	CHECK_EQ(locks, unlocks);
	unlock();
	/* A guest was quicker. */
	CHECK_EQ(load64(vcpu, gmem_vm_alias_bit(vm) | 7 * PG), 0);
	lock();
	CHECK_ERR(gmem_mmu_map_private_pfn(vcpu, 7, pfn_of(7)), -EIO);
	unlock();
	tear_down();
}

/* The shared side of the same page is something else. */
TEST(shared_is_mapped)
{
	set_up(0);
	CHECK_EQ(load64(vcpu, 7 * PG), 0);
	lock();
	CHECK_ERR(gmem_mmu_map_private_pfn(vcpu, 7, pfn_of(7)), -EIO);
	CHECK_HAS(gmem_last_error(), "something else");
	unlock();
	tear_down();
}

/* ---- retry */

TEST(retries)
{
	set_up(GMEM_FILE_INIT_PRIVATE);
	lose = 25;
	lock();
	CHECK_EQ(gmem_mmu_map_private_pfn(vcpu, 5, pfn_of(5)), 0);
	/* 25 that were lost, three tables and the leaf; the lock was let go of after each that was lost. */
	CHECK_EQ(cas_calls, 25 + 4);
	CHECK_EQ(locks, 26);
	CHECK_EQ(unlocks, 26);
	unlock();
	tear_down();
}

static void cancel_in_the_third(void)
{
	if (cas_calls == 3)
		gmem_vcpu_cancel(vcpu);
}

TEST(cancelled_amid_retries)
{
	set_up(GMEM_FILE_INIT_PRIVATE);
	lose = 100;
	at_cas = cancel_in_the_third;
	lock();
	CHECK_ERR(gmem_mmu_map_private_pfn(vcpu, 5, pfn_of(5)), -EINTR);
	CHECK_EQ(cas_calls, 3);
	CHECK_EQ(locks, 3);
	CHECK_EQ(unlocks, 3);
	unlock();
	lose = 0;
	tear_down();
}

static void die_in_the_third(void)
{
	if (cas_calls == 3)
		atomic_store(&vm->mmu.dead, true);
}

TEST(dies_amid_retries)
{
	set_up(GMEM_FILE_INIT_PRIVATE);
	lose = 100;
	at_cas = die_in_the_third;
	lock();
	CHECK_ERR(gmem_mmu_map_private_pfn(vcpu, 5, pfn_of(5)), -EIO);
	CHECK_EQ(cas_calls, 3);
	CHECK_EQ(unlocks, 3);
	unlock();
	lose = 0;
	tear_down();
}

/* ---- the file is not asked */

static struct gmem_backing_ops counting;
static unsigned int asked;

static int counting_lookup(struct gmem_file *f, uint64_t off, uint32_t max, struct gmem_folio *ret)
{
	asked++;
	return gmem_memfd_backing.lookup(f, off, max, ret);
}

static bool counting_present(const struct gmem_file *f, uint64_t off)
{
	asked++;
	return gmem_memfd_backing.present(f, off);
}

static int counting_alloc(struct gmem_file *f, uint64_t off, uint32_t n, struct gmem_folio *ret)
{
	asked++;
	return gmem_memfd_backing.alloc(f, off, n, ret);
}

static int counting_insert(struct gmem_file *f, struct gmem_folio *folio)
{
	asked++;
	return gmem_memfd_backing.insert(f, folio);
}

static int map_in_callback(struct gmem_vm *v, uint64_t gfn, uint64_t pfn, void *src, void *opaque)
{
	unsigned int before = asked, *calls = opaque;

	CHECK(v == vm);
	CHECK_MEM(gmem_pfn_addr(pfn), src, PG);
	/* Each page was asked for by populate itself: the count works. */
	CHECK(asked > *calls);
	CHECK_EQ(gmem_mmu_map_private_pfn(vcpu, gfn, pfn), 0);
	CHECK_EQ(asked, before);
	++*calls;
	return 0;
}

TEST(from_a_populate)
{
	char *src = aligned_alloc(PG, 8 * PG), page[PG];
	struct gmem_vm_stats before = { .size = sizeof(before) }, after = before;
	struct gmem_view *view;
	unsigned int calls = 0;

	catch_bus();
	set_up(0);
	CHECK_OK(gmem_view_map(file, 0, LEN, PROT_READ | PROT_WRITE, &view));
	to_private(file, 0, 8 * PG);
	for (uint64_t i = 0; i < 8; i++)
		fill_page(3, i * PG, src + i * PG);
	counting = gmem_memfd_backing;
	counting.lookup = counting_lookup;
	counting.present = counting_present;
	counting.alloc = counting_alloc;
	counting.insert = counting_insert;
	file->ops = &counting;
	lose = 3;
	CHECK_EQ(gmem_populate(vm, 0, src, 8, 0, map_in_callback, &calls), 8);
	CHECK_EQ(calls, 8);
	/* The guest finds the pages without a fault, the host finds none of them. */
	CHECK_OK(gmem_vm_stats(vm, &before));
	for (uint64_t i = 0; i < 8; i++) {
		CHECK_OK(gmem_vcpu_load(vcpu, gmem_vm_alias_bit(vm) | i * PG, page, PG));
		CHECK_MEM(page, src + i * PG, PG);
		CHECK_EQ(touch((char *)gmem_view_addr(view) + i * PG), SIGBUS);
	}
	CHECK_OK(gmem_vm_stats(vm, &after));
	CHECK_EQ(after.faults, before.faults);
	CHECK_EQ(load64(vcpu, 9 * PG), 0);
	CHECK_OK(gmem_vm_stats(vm, &after));
	CHECK_EQ(after.faults, before.faults + 1);
	file->ops = &gmem_memfd_backing;
	gmem_view_unmap(view);
	tear_down();
	free(src);
}

static int map_and_fail(struct gmem_vm *v, uint64_t gfn, uint64_t pfn, void *src, void *opaque)
{
	(void)v;
	(void)src;
	(void)opaque;
	CHECK_EQ(gmem_mmu_map_private_pfn(vcpu, gfn, pfn), 0);
	return gfn == 2 ? gmem_set_error(-EACCES, "refused") : 0;
}

/* What was mapped of a page that is refused goes again. */
TEST(mapped_and_refused)
{
	char *src = aligned_alloc(PG, 4 * PG);
	int level;

	set_up(GMEM_FILE_INIT_PRIVATE);
	memset(src, 5, 4 * PG);
	CHECK_EQ(gmem_populate(vm, 0, src, 4, 0, map_and_fail, NULL), 2);
	CHECK(leaf_at(&vm->mmu, 1, &level));
	CHECK(!leaf_at(&vm->mmu, 2, &level));
	CHECK_EQ(load64(vcpu, gmem_vm_alias_bit(vm) | 2 * PG), 0);
	tear_down();
	free(src);
}

/* ---- the locks that its caller holds */

static void without_the_invalidate_lock(void)
{
	gmem_vm_lock_slots(vm);
	gmem_mmu_map_private_pfn(vcpu, 5, pfn_of(5));
}

static void without_slots_lock(void)
{
	uint64_t pfn = pfn_of(5);

	gmem_rwlock_lock(&file->invalidate_lock);
	gmem_mmu_map_private_pfn(vcpu, 5, pfn);
}

/* That of another file does not do. */
static void with_anothers_invalidate_lock(void)
{
	struct gmem_file *other = make_file(LEN, GMEM_FILE_INIT_PRIVATE);

	gmem_vm_lock_slots(vm);
	gmem_rwlock_lock(&other->invalidate_lock);
	gmem_mmu_map_private_pfn(vcpu, 5, pfn_of(5));
}

static void violates(void (*fn)(void), const char *how)
{
	static char text[32768];

	dies(fn, text, sizeof(text));
	CHECK_HAS(text, "lock order violation");
	CHECK_HAS(text, how);
}

TEST(asserts_its_locks)
{
#ifndef GMEM_LOCKCHECK
	SKIP("lockcheck", "this build has no lock checker");
#endif
	set_up(GMEM_FILE_INIT_PRIVATE);
	violates(without_the_invalidate_lock, "held");
	violates(without_slots_lock, "held");
	violates(with_anothers_invalidate_lock, "not held");
	tear_down();
}
