/* SPDX-License-Identifier: MIT */
/*
 * Accessors load and store while another thread converts, punches and deletes. What none may do: use a translation
 * after the call that took it away has returned. Yields are put where the windows are.
 */
#include <signal.h>
#include <sys/mman.h>

#include "mmu_util.h"
#include "sys/futex.h"

#define PAGES 16ull
#define LEN (PAGES * PG)
#define ACCESSORS 2

static _Atomic unsigned int calls;

static void now_and_then(void)
{
	unsigned int n = atomic_fetch_add(&calls, 1);

	if (n % 7 == 0)
		usleep(20);
	else if (n % 3 == 0)
		sched_yield();
}

bool __real_gmem_pte_cas(gmem_pte *pte, uint64_t *old, uint64_t new);
bool __wrap_gmem_pte_cas(gmem_pte *pte, uint64_t *old, uint64_t new);
void __real_gmem_epoch_wait(struct gmem_epoch *e);
void __wrap_gmem_epoch_wait(struct gmem_epoch *e);
int __real_gmem_table_topup(struct gmem_table_pool *pool, struct gmem_table_cache *cache);
int __wrap_gmem_table_topup(struct gmem_table_pool *pool, struct gmem_table_cache *cache);

bool __wrap_gmem_pte_cas(gmem_pte *pte, uint64_t *old, uint64_t new)
{
	now_and_then();
	return __real_gmem_pte_cas(pte, old, new);
}

void __wrap_gmem_epoch_wait(struct gmem_epoch *e)
{
	now_and_then();
	__real_gmem_epoch_wait(e);
}

/* Between a page's being looked up and its being mapped. */
int __wrap_gmem_table_topup(struct gmem_table_pool *pool, struct gmem_table_cache *cache)
{
	now_and_then();
	return __real_gmem_table_topup(pool, cache);
}

struct race {
	struct gmem_vm *vm;
	struct gmem_file *file;
	uint64_t bit, seed, enough_ns;
	/*
	 * Of each page: the generation that every load begun from now on must have, or a newer one. Raised when what
	 * took the older bytes away has returned.
	 */
	_Atomic uint64_t oldest[PAGES];
	/* Of each page, modulo 4: settled in 0 and in 2, in 1 on its way from 0 to 2, in 3 on its way back. */
	_Atomic uint64_t phase[PAGES];
	_Atomic bool stop;
	_Atomic uint64_t good, refused;
};

struct accessor {
	struct race *r;
	struct gmem_vcpu *vcpu;
	unsigned int id;
	uint64_t seed;
	void (*fn)(struct accessor *a);
	pthread_t thread;
};

static void *run_accessor(void *arg)
{
	struct accessor *a = arg;

	while (!atomic_load(&a->r->stop))
		a->fn(a);
	return NULL;
}

static void begin(struct race *r, struct accessor *a, enum gmem_vm_type type, void (*fn)(struct accessor *a))
{
	r->seed = tap_seed();
	r->enough_ns = gmem_futex_now() + 20000000000ull;
	r->vm = new_vm(type);
	r->bit = gmem_vm_alias_bit(r->vm);
	r->file = make_file(LEN, 0);
	CHECK_OK(set_slot(r->vm, 0, 0, LEN, r->file, 0));
	for (unsigned int i = 0; i < ACCESSORS; i++) {
		a[i] = (struct accessor){ .r = r, .vcpu = new_vcpu(r->vm), .id = i, .seed = r->seed + i, .fn = fn };
		a[i].thread = start(run_accessor, &a[i]);
	}
}

/* Every round waits for the accessors: where they hardly get the processor, fewer have to do. */
static bool go_on(const struct race *r, uint64_t done, unsigned int rounds)
{
	return done < rounds && (done < rounds / 20 || gmem_futex_now() < r->enough_ns);
}

static void finish(struct race *r, struct accessor *a)
{
	struct gmem_vm_stats stats = { .size = sizeof(stats) };

	atomic_store(&r->stop, true);
	for (unsigned int i = 0; i < ACCESSORS; i++) {
		join(a[i].thread);
		gmem_vcpu_free(a[i].vcpu);
	}
	CHECK_OK(gmem_vm_stats(r->vm, &stats));
	printf("%llu accesses, %llu refused, %llu retries\n", (unsigned long long)r->good,
	       (unsigned long long)r->refused, (unsigned long long)stats.retries);
	CHECK(r->good > 0);
	CHECK_EQ(r->vm->mmu.invalidating, 0);
	gmem_vm_free(r->vm);
	gmem_file_free(r->file);
}

/* ---- punch: bytes that were dropped are never seen again */

static void load_generation(struct accessor *a)
{
	uint64_t page = tap_rand(&a->seed) % PAGES, oldest = atomic_load(&a->r->oldest[page]), v = 0;

	CHECK_OK(gmem_vcpu_load(a->vcpu, page * PG, &v, 8));
	if (v && v < oldest)
		FAIL("page %llu: generation %llu, though %llu was punched before the load began",
		     (unsigned long long)page, (unsigned long long)v, (unsigned long long)oldest - 1);
	atomic_fetch_add(&a->r->good, 1);
}

TEST_TIMEOUT(punched_bytes_are_gone, 60)
{
	unsigned int rounds = tap_slow() ? 1500 : 15000;
	struct accessor a[ACCESSORS];
	static struct race r;

	begin(&r, a, GMEM_VM_SW_PROTECTED, load_generation);
	for (uint64_t gen = 1; go_on(&r, gen - 1, rounds); gen++) {
		uint64_t page = tap_rand(&r.seed) % PAGES, n = 1 + tap_rand(&r.seed) % (PAGES - page);

		for (uint64_t i = page; i < page + n; i++)
			CHECK_OK(gmem_file_write(r.file, i * PG, &gen, 8));
		if (gen % 8 == 0)
			usleep(100);
		CHECK_OK(gmem_file_punch(r.file, page * PG, n * PG));
		for (uint64_t i = page; i < page + n; i++)
			atomic_store(&r.oldest[i], gen + 1);
	}
	finish(&r, a);
}

/* ---- what may be done at a moment, and what may not */

/*
 * The phase is looked at before and after: if it was settled and has not changed meanwhile, the access must end as it
 * says.
 */
static void check_phase(struct accessor *a, uint64_t page, uint64_t before, bool in_phase_2, int err)
{
	CHECK(err == 0 || err == -EFAULT);
	atomic_fetch_add(err ? &a->r->refused : &a->r->good, 1);
	if (atomic_load(&a->r->phase[page]) != before || before % 2)
		return;
	if ((err == 0) != (in_phase_2 == (before % 4 == 2)))
		FAIL("page %llu, in phase %llu: an access that is right in phase %d %s", (unsigned long long)page,
		     (unsigned long long)before % 4, in_phase_2 ? 2 : 0, err ? "is refused" : "succeeds");
}

static int access_at(struct accessor *a, uint64_t gpa)
{
	uint64_t v = 1;

	return tap_rand(&a->seed) & 1 ? gmem_vcpu_store(a->vcpu, gpa, &v, 8) : gmem_vcpu_load(a->vcpu, gpa, &v, 8);
}

/* With the bit set, right in phase 2; else in phase 0. */
static void access_side(struct accessor *a)
{
	uint64_t page = tap_rand(&a->seed) % PAGES, before = atomic_load(&a->r->phase[page]);
	bool bit = tap_rand(&a->seed) & 1;

	check_phase(a, page, before, bit, access_at(a, (page * PG + 64) | (bit ? a->r->bit : 0)));
}

static void convert_all_the_time(struct race *r, unsigned int rounds, bool bit_is_private)
{
	for (unsigned int i = 0; go_on(r, i, rounds); i++) {
		uint64_t page = tap_rand(&r->seed) % PAGES;
		bool to_phase_2 = (atomic_fetch_add(&r->phase[page], 1) + 1) % 4 == 1;

		/* Else they would hardly ever get a translation. */
		if (i % 8 == 0)
			usleep(100);
		CHECK_OK(gmem_file_set_attributes(r->file, page * PG, PG,
						  to_phase_2 == bit_is_private ? GMEM_ATTRIBUTE_PRIVATE : 0, NULL));
		atomic_fetch_add(&r->phase[page], 1);
	}
}

TEST_TIMEOUT(the_wrong_side_never_succeeds, 60)
{
	struct accessor a[ACCESSORS];
	static struct race r;

	begin(&r, a, GMEM_VM_SNP, access_side);
	convert_all_the_time(&r, tap_slow() ? 2000 : 10000, true);
	CHECK(r.refused > 0);
	finish(&r, a);
}

/* While others take the same translations away, for reasons of their own. */
static void *zap_all_the_time(void *arg)
{
	struct race *r = arg;
	uint64_t n = 0;

	while (!atomic_load(&r->stop)) {
		gmem_vm_lock_slots(r->vm);
		CHECK_OK(gmem_mmu_track_write(&r->vm->mmu, n++ % PAGES, false));
		gmem_vm_unlock_slots(r->vm);
		if (n % 64 == 0)
			usleep(200);
	}
	return NULL;
}

TEST_TIMEOUT(the_wrong_side_never_succeeds_amid_zaps, 60)
{
	struct accessor a[ACCESSORS];
	static struct race r;
	pthread_t t;

	/* The bit set means shared, which all pages are at first. */
	for (uint64_t i = 0; i < PAGES; i++)
		atomic_store(&r.phase[i], 2);
	begin(&r, a, GMEM_VM_TDX, access_side);
	t = start(zap_all_the_time, &r);
	convert_all_the_time(&r, tap_slow() ? 1500 : 8000, false);
	CHECK(r.refused > 0);
	atomic_store(&r.stop, true);
	join(t);
	finish(&r, a);
}

/* Phase 2: no slot is there. */
static void access_slot(struct accessor *a)
{
	uint64_t page = tap_rand(&a->seed) % PAGES, before = atomic_load(&a->r->phase[page]);

	check_phase(a, page, before, false, access_at(a, LEN + page * PG + 64));
}

TEST_TIMEOUT(deleted_slots_are_gone, 60)
{
	struct accessor a[ACCESSORS];
	static struct race r;

	for (uint64_t i = 0; i < PAGES; i++)
		atomic_store(&r.phase[i], 2);
	begin(&r, a, GMEM_VM_DEFAULT, access_slot);
	CHECK_OK(del_slot(r.vm, 0));
	for (unsigned int i = 0; go_on(&r, i, tap_slow() ? 1500 : 10000); i++) {
		uint64_t page = tap_rand(&r.seed) % PAGES, at = PAGES - 1 - page;
		bool del = (atomic_fetch_add(&r.phase[page], 1) + 1) % 4 == 1;

		CHECK_OK(del ? del_slot(r.vm, (uint32_t)page) :
			       set_slot(r.vm, (uint32_t)page, LEN + page * PG, PG, r.file, at * PG));
		atomic_fetch_add(&r.phase[page], 1);
	}
	finish(&r, a);
}

/* ---- a store that was done is not lost, whatever happens to its translation */

static void store_and_load(struct accessor *a)
{
	/* Words of its own. */
	uint64_t page = tap_rand(&a->seed) % PAGES, v = tap_rand(&a->seed), back = 0;
	uint64_t gpa = page * PG + 128 + 8ull * a->id;

	CHECK_OK(gmem_vcpu_store(a->vcpu, gpa, &v, 8));
	CHECK_OK(gmem_vcpu_load(a->vcpu, gpa, &back, 8));
	CHECK_EQ(back, v);
	atomic_fetch_add(&a->r->good, 1);
}

TEST_TIMEOUT(stores_are_kept, 60)
{
	struct accessor a[ACCESSORS];
	static struct race r;

	begin(&r, a, GMEM_VM_SW_PROTECTED, store_and_load);
	for (unsigned int i = 0; go_on(&r, i, tap_slow() ? 1500 : 8000); i++) {
		uint64_t page = tap_rand(&r.seed) % PAGES, n = 1 + tap_rand(&r.seed) % (PAGES - page);

		if (i % 4 == 0)
			usleep(100);
		CHECK_OK(gmem_file_set_attributes(r.file, page * PG, n * PG,
						  tap_rand(&r.seed) & 1 ? GMEM_ATTRIBUTE_PRIVATE : 0, NULL));
	}
	finish(&r, a);
}

/* ---- an access that is in the middle of its copy */

static struct copying {
	struct gmem_vm *vm;
	struct gmem_vcpu *vcpu;
	struct gmem_file *file;
	struct gmem_slots *slots;
	bool store;
	_Atomic bool inside, zapped;
} copying;

static char *page_in_window(void)
{
	return gmem_file_window(copying.file) + 3 * PG;
}

/* The copy has met the page it may not touch yet: the translation is taken away under its eyes. */
static void in_the_copy(int sig)
{
	int level;

	(void)sig;
	atomic_store(&copying.inside, true);
	/* A deletion waits twice, the first time when nobody can find the slot any more. */
	while (leaf_at(&copying.vm->mmu, 3, &level) && atomic_load(&copying.vm->mmu.slots) == copying.slots)
		usleep(100);
	usleep(20000);
	CHECK(!atomic_load(&copying.zapped));
	CHECK_EQ(mprotect(page_in_window(), PG, PROT_READ | PROT_WRITE), 0);
}

static void *copy_and_meet(void *arg)
{
	char buf[100] = { 0 };

	(void)arg;
	CHECK_OK(gmem_vcpu_load(copying.vcpu, 3 * PG, buf, sizeof(buf)));
	CHECK_EQ(mprotect(page_in_window(), PG, PROT_NONE), 0);
	if (copying.store)
		CHECK_OK(gmem_vcpu_store(copying.vcpu, 3 * PG + 1, buf, sizeof(buf)));
	else
		CHECK_OK(gmem_vcpu_load(copying.vcpu, 3 * PG + 1, buf, sizeof(buf)));
	return NULL;
}

/* A conversion, a punch and a deletion return when nobody is in the page any more. */
TEST(zaps_wait_for_the_copy)
{
	const struct sigaction sa = { .sa_handler = in_the_copy };

	CHECK_EQ(sigaction(SIGSEGV, &sa, NULL), 0);
	for (unsigned int i = 0; i < 6; i++) {
		pthread_t t;

		copying = (struct copying){ .vm = new_vm(GMEM_VM_SW_PROTECTED), .file = make_file(LEN, 0) };
		copying.store = i % 2;
		CHECK_OK(set_slot(copying.vm, 0, 0, LEN, copying.file, 0));
		copying.slots = atomic_load(&copying.vm->mmu.slots);
		copying.vcpu = new_vcpu(copying.vm);
		t = start(copy_and_meet, NULL);
		while (!atomic_load(&copying.inside))
			usleep(100);
		switch (i / 2) {
		case 0:
			to_private(copying.file, 2 * PG, 2 * PG);
			break;
		case 1:
			CHECK_OK(gmem_file_punch(copying.file, 0, LEN));
			break;
		default:
			CHECK_OK(del_slot(copying.vm, 0));
			break;
		}
		atomic_store(&copying.zapped, true);
		join(t);
		gmem_vcpu_free(copying.vcpu);
		gmem_vm_free(copying.vm);
		gmem_file_free(copying.file);
	}
}
