/* SPDX-License-Identifier: MIT */
/* Mapping without a lock: sections, which whoever takes something away waits for; and what a vCPU keeps for itself. */
#include "mmu_util.h"

#include "dies_util.h"

#define PAGES 64ull
#define LEN (PAGES * PG)
#define AT 5ull /* the page that is mapped */

bool __real_gmem_pte_cas(gmem_pte *pte, uint64_t *old, uint64_t new);
bool __wrap_gmem_pte_cas(gmem_pte *pte, uint64_t *old, uint64_t new);

static void (*at_leaf)(void); /* called once, before a leaf goes in: in the middle of a section */

bool __wrap_gmem_pte_cas(gmem_pte *pte, uint64_t *old, uint64_t new)
{
	void (*fn)(void) = at_leaf;

	if (fn && (new &GMEM_PTE_LEAF)) {
		at_leaf = NULL;
		fn();
	}
	return __real_gmem_pte_cas(pte, old, new);
}

static struct gmem_vm *vm;
static struct gmem_file *file;
static struct gmem_vcpu *vcpu;

/* Every page is in place, and says which it is. */
static struct gmem_file *numbered(uint64_t base)
{
	struct gmem_file *f = make_file(LEN, 0);

	for (uint64_t page = 0; page < PAGES; page++) {
		uint64_t v = base + page;

		CHECK_OK(gmem_file_write(f, page * PG, &v, sizeof(v)));
	}
	return f;
}

static void set_up(void)
{
	vm = new_vm(GMEM_VM_SW_PROTECTED);
	file = numbered(1000);
	CHECK_OK(set_slot(vm, 0, 0, LEN, file, 0));
	vcpu = new_vcpu(vm);
}

static void tear_down(void)
{
	gmem_vcpu_free(vcpu);
	gmem_vm_free(vm);
	if (file)
		gmem_file_free(file);
}

/* ---- what takes pages away waits for a fault that has looked at them and not mapped yet */

static void convert(void)
{
	to_private(file, 0, LEN);
}

static void punch(void)
{
	CHECK_OK(gmem_file_punch(file, AT * PG, PG));
}

static void fail(void)
{
	CHECK_OK(gmem_file_poison(file, AT * PG, PG));
}

static void delete_slot(void)
{
	CHECK_OK(del_slot(vm, 0));
}

static void free_file(void)
{
	gmem_file_free(file);
}

static const struct {
	void (*fn)(void);
	int err; /* of an access after it */
	uint64_t v;
} takers[] = { { convert, 0, 1000 + AT },
	       { punch, 0, 0 },
	       { fail, -EHWPOISON, 0 },
	       { delete_slot, -EFAULT, 0 },
	       { free_file, -EFAULT, 0 } };

static unsigned int taker;
static struct gmem_slots *slots;
static pthread_t thread;
static _Atomic bool taken;

static void *take(void *arg)
{
	takers[taker].fn();
	atomic_store(&taken, true);
	return arg;
}

static bool begun(void)
{
	return atomic_load(&vm->mmu.invalidating) || atomic_load(&vm->mmu.slots) != slots;
}

/* The fault has seen the page in place, and shared. */
static void take_it_away(void)
{
	CHECK(atomic_load(&vcpu->mapper.since));
	thread = start(take, NULL);
	while (!begun())
		usleep(100);
	usleep(20000);
	CHECK(!atomic_load(&taken));
	CHECK_EQ(gmem_state_word(&file->state, AT), GMEM_WORD_UPTODATE);
	CHECK(!gmem_file_private(file, AT * PG));
}

TEST(takers_wait_for_the_section)
{
	for (taker = 0; taker < sizeof(takers) / sizeof(takers[0]); taker++) {
		uint64_t v = 0;
		int level;

		set_up();
		slots = atomic_load(&vm->mmu.slots);
		atomic_store(&taken, false);
		at_leaf = take_it_away;
		/* A pre-fault reads nothing: the page may go again as soon as it is mapped. */
		CHECK_OK(gmem_vcpu_pre_fault(vcpu, AT * PG, PG, NULL));
		join(thread);
		CHECK(!leaf_at(&vm->mmu, AT, &level));
		CHECK_EQ(gmem_vcpu_load(vcpu, AT * PG, &v, sizeof(v)), takers[taker].err);
		CHECK_EQ(v, takers[taker].v);
		if (takers[taker].fn == free_file)
			file = NULL;
		tear_down();
	}
}

/* ---- while one runs */

static void *load_it(void *arg)
{
	*(uint64_t *)arg = load64(vcpu, AT * PG);
	atomic_store(&taken, true);
	return NULL;
}

TEST(no_section_while_an_invalidation_runs)
{
	struct gmem_vm_stats stats = { .size = sizeof(stats) };
	uint64_t v = 0;
	int level;

	set_up();
	/* Of other pages: what is said of them all is that nobody maps. */
	gmem_mmu_invalidate_begin(&vm->mmu, 40, 1, BOTH_SIDES);
	gmem_mmu_invalidate_begin(&vm->mmu, 50, 1, BOTH_SIDES);
	CHECK(!gmem_mmu_begin_map(vcpu));
	CHECK(!atomic_load(&vcpu->mapper.since));
	gmem_mmu_invalidate_end(&vm->mmu);
	CHECK(!gmem_mmu_begin_map(vcpu));
	thread = start(load_it, &v);
	do
		CHECK_OK(gmem_vm_stats(vm, &stats));
	while (stats.retries < 3);
	CHECK(!atomic_load(&taken));
	CHECK(!leaf_at(&vm->mmu, AT, &level));
	gmem_mmu_invalidate_end(&vm->mmu);
	join(thread);
	CHECK_EQ(v, 1000 + AT);
	CHECK(gmem_mmu_begin_map(vcpu));
	gmem_mmu_end_map(vcpu);
	tear_down();
}

/* ---- the lock checker */

static void zap_in_a_section(void)
{
	CHECK(gmem_mmu_begin_map(vcpu));
	gmem_mmu_zap(&vm->mmu, 0, 1, BOTH_SIDES);
}

static void lock_in_a_section(void)
{
	CHECK(gmem_mmu_begin_map(vcpu));
	gmem_rwlock_lock_shared(&file->invalidate_lock);
}

static void touch_in_a_section(void)
{
	CHECK(gmem_mmu_begin_map(vcpu));
	gmem_might_fault();
}

TEST(what_a_section_forbids)
{
	static void (*const fn[])(void) = { zap_in_a_section, lock_in_a_section, touch_in_a_section };
	static char text[32768];

#ifndef GMEM_LOCKCHECK
	SKIP("lockcheck", "this build has no lock checker");
#endif
	set_up();
	for (unsigned int i = 0; i < sizeof(fn) / sizeof(fn[0]); i++) {
		dies(fn[i], text, sizeof(text));
		CHECK_HAS(text, "lock order violation");
		CHECK_HAS(text, "while holding the mmu lock");
	}
	tear_down();
}

/* ---- the slot of the last fault */

/*
 * Slots come and go where the last fault was. The memory of one that went is likely to be the next one's, and so is
 * that of the table.
 */
TEST(the_last_slot_is_not_remembered_too_long)
{
	struct gmem_file *other, *third;

	set_up();
	other = numbered(2000);
	third = numbered(3000);
	CHECK_OK(set_slot(vm, 1, LEN, LEN, third, 0));
	CHECK_EQ(load64(vcpu, AT * PG), 1000 + AT);
	for (unsigned int i = 0; i < 200; i++) {
		struct gmem_file *f = i % 2 ? file : other;
		uint64_t base = i % 2 ? 1000 : 2000, off = i % 7, v;

		CHECK_OK(del_slot(vm, 0));
		CHECK_ERR(gmem_vcpu_load(vcpu, AT * PG, &v, sizeof(v)), -EFAULT);
		CHECK_OK(set_slot(vm, 0, 0, 16 * PG, f, off * PG));
		CHECK_EQ(load64(vcpu, AT * PG), base + off + AT);
		CHECK_EQ(load64(vcpu, LEN + AT * PG), 3000 + AT);
		CHECK_EQ(load64(vcpu, (AT + 1) * PG), base + off + AT + 1);
	}
	gmem_file_free(third);
	gmem_file_free(other);
	tear_down();
}

/* Not only the pages of the last slot are found. */
TEST(slots_by_turns)
{
	struct gmem_file *other;

	set_up();
	other = numbered(2000);
	CHECK_OK(set_slot(vm, 1, LEN, LEN, other, 0));
	for (uint64_t page = 0; page < PAGES; page++) {
		CHECK_EQ(load64(vcpu, page * PG), 1000 + page);
		CHECK_EQ(load64(vcpu, LEN + page * PG), 2000 + page);
	}
	gmem_file_free(other);
	tear_down();
}

/* ---- counts, and two at once */

struct mapper {
	struct gmem_vcpu *vcpu;
	uint64_t first;
	_Atomic int *ready;
};

static void *map_every_other(void *arg)
{
	struct mapper *m = arg;

	atomic_fetch_add(m->ready, 1);
	while (atomic_load(m->ready) < 2)
		sched_yield();
	for (uint64_t page = m->first; page < PAGES; page += 2)
		CHECK_OK(gmem_vcpu_pre_fault(m->vcpu, page * PG, PG, NULL));
	return NULL;
}

TEST(two_map_side_by_side)
{
	struct gmem_vm_stats stats = { .size = sizeof(stats) };
	unsigned int rounds = tap_slow() ? 20 : 200;
	uint64_t looked = 0;

	set_up();
	for (unsigned int round = 1; round <= rounds; round++) {
		_Atomic int ready = 0;
		struct mapper m[2] = { { new_vcpu(vm), 0, &ready }, { new_vcpu(vm), 1, &ready } };
		pthread_t t[2];

		for (int i = 0; i < 2; i++)
			t[i] = start(map_every_other, &m[i]);
		for (int i = 0; i < 2; i++)
			join(t[i]);
		for (uint64_t page = 0; page < PAGES; page++) {
			int level;

			CHECK_EQ(gmem_pte_pfn(leaf_at(&vm->mmu, page, &level)),
				 gmem_slot_pfn(gmem_vm_slot(vm, 0), page));
		}
		/* Those of one vCPU that is gone, of one that is here, and then of both that are gone. */
		gmem_vcpu_free(m[round % 2].vcpu);
		CHECK_OK(gmem_vm_stats(vm, &stats));
		CHECK_EQ(stats.faults, round * PAGES);
		gmem_vcpu_free(m[!(round % 2)].vcpu);
		CHECK_OK(gmem_vm_stats(vm, &stats));
		CHECK_EQ(stats.faults, round * PAGES);
		/* A vCPU that met another's table may have had to look twice. */
		CHECK(stats.lookups >= looked + PAGES);
		looked = stats.lookups;
		gmem_mmu_zap(&vm->mmu, 0, PAGES, BOTH_SIDES);
	}
	/* The tables that were lost to the other went back. */
	CHECK_EQ(gmem_mmu_table_bytes(&vm->mmu), PG);
	tear_down();
}
