/* SPDX-License-Identifier: MIT */
/*
 * Guests store while their memory is copied as a live save does: what is dirty is cleared and copied, again and again,
 * and once more when they have stopped. Then the copy is the memory. Before that, each of the orders that this rests
 * on, at its one moment.
 */
#include "mmu/log.h"
#include "slot_util.h"
#include "sys/call.h"

#define NPAGES 96u
#define LEN (NPAGES * PG)
#define GPA (1ull << 30)
#define D GMEM_LOG_DIRTY
#define A GMEM_LOG_ACCESSED
#define WORDS ((NPAGES + 63) / 64)
#define STORERS 3
#define ROUNDS (tap_slow() ? 100 : 500)

static void (*before_map)(const struct gmem_mapping *m), (*before_poke)(void), (*after_zap)(void);

enum gmem_map_result __real_gmem_mmu_map(struct gmem_vcpu *vcpu, const struct gmem_mapping *m);
enum gmem_map_result __wrap_gmem_mmu_map(struct gmem_vcpu *vcpu, const struct gmem_mapping *m);
ssize_t __real_gmem_sys_poke(void *to, const void *from, size_t n);
ssize_t __wrap_gmem_sys_poke(void *to, const void *from, size_t n);
void __real_gmem_mmu_zap(struct gmem_mmu *mmu, uint64_t gfn, uint64_t npages, uint32_t sides);
void __wrap_gmem_mmu_zap(struct gmem_mmu *mmu, uint64_t gfn, uint64_t npages, uint32_t sides);

enum gmem_map_result __wrap_gmem_mmu_map(struct gmem_vcpu *vcpu, const struct gmem_mapping *m)
{
	if (before_map)
		before_map(m);
	return __real_gmem_mmu_map(vcpu, m);
}

ssize_t __wrap_gmem_sys_poke(void *to, const void *from, size_t n)
{
	if (before_poke)
		before_poke();
	return __real_gmem_sys_poke(to, from, n);
}

void __wrap_gmem_mmu_zap(struct gmem_mmu *mmu, uint64_t gfn, uint64_t npages, uint32_t sides)
{
	void (*hook)(void) = after_zap;

	/* Once, and not for its own faults. */
	if (hook)
		after_zap = NULL;
	__real_gmem_mmu_zap(mmu, gfn, npages, sides);
	if (hook)
		hook();
}

/* ---- orders */

static struct gmem_vm *the_vm;
static struct gmem_vcpu *the_vcpu;
static unsigned int hooks;

static int64_t dirty(uint32_t flags)
{
	uint64_t bits[WORDS];

	return CHECK_OK(gmem_vm_get_log(the_vm, 0, D, 0, NPAGES, bits, flags));
}

static void is_noted(const struct gmem_mapping *m)
{
	uint64_t page = m->gfn - GPA / PG;

	hooks++;
	for (uint32_t i = m->access & GMEM_ACCESS_WRITE ? 0 : 1; i < 2; i++)
		CHECK(atomic_load(&atomic_load(&m->slot->log)->bits[i][page / 64]) >> page % 64 & 1);
}

/* Else another vCPU could use what is mapped, and not be in the log. */
TEST(noted_before_it_is_mapped)
{
	struct gmem_file *file = make_file(LEN, 0);

	the_vm = new_vm(GMEM_VM_SW_PROTECTED);
	the_vcpu = new_vcpu(the_vm);
	CHECK_OK(set_slot(the_vm, 0, GPA, LEN, file, 0));
	CHECK_OK(gmem_vm_set_log(the_vm, 0, D | A));
	before_map = is_noted;
	/* Absent, in place, in place but not for writing. */
	CHECK_EQ(load64(the_vcpu, GPA), 0);
	store64(the_vcpu, GPA, 1);
	CHECK_OK(gmem_file_write(file, PG, "x", 1));
	store64(the_vcpu, GPA + PG, 1);
	store64(the_vcpu, GPA + 2 * PG, 1);
	before_map = NULL;
	CHECK(hooks >= 4);
	gmem_vcpu_free(the_vcpu);
	gmem_vm_free(the_vm);
	gmem_file_free(file);
}

static void clear_it(void)
{
	hooks++;
	(void)dirty(GMEM_LOG_CLEAR);
}

/* Who clears the log and copies just before a system call writes finds the page again. */
TEST(noted_after_the_callers_memory_is_written)
{
	char *hva = plain_memory(LEN, RW);

	the_vm = new_vm(GMEM_VM_DEFAULT);
	the_vcpu = new_vcpu(the_vm);
	CHECK_OK(set_hva_slot(the_vm, 0, GMEM_SLOT_LOG_DIRTY, GPA, LEN, hva));
	before_poke = clear_it;
	store64(the_vcpu, GPA, 1);
	CHECK_EQ(hooks, 1);
	CHECK_EQ(dirty(0), 1);
	before_poke = NULL;
	gmem_vcpu_free(the_vcpu);
	gmem_vm_free(the_vm);
	munmap(hva, LEN);
}

static void store_again(void)
{
	hooks++;
	store64(the_vcpu, GPA, 2);
}

/* A store that comes when the page is mapped no more is in the log, however long the call goes on. */
TEST(taken_before_it_is_zapped)
{
	struct gmem_file *file = make_file(LEN, 0);

	the_vm = new_vm(GMEM_VM_SW_PROTECTED);
	the_vcpu = new_vcpu(the_vm);
	CHECK_OK(set_slot(the_vm, 0, GPA, LEN, file, 0));
	CHECK_OK(gmem_vm_set_log(the_vm, 0, D));
	store64(the_vcpu, GPA, 1);
	after_zap = store_again;
	CHECK_EQ(dirty(GMEM_LOG_CLEAR), 1);
	CHECK_EQ(hooks, 1);
	CHECK_EQ(dirty(0), 1);
	gmem_vcpu_free(the_vcpu);
	gmem_vm_free(the_vm);
	gmem_file_free(file);
}

/* ---- all at once */

struct race {
	struct gmem_vm *vm;
	struct gmem_file *file; /* or hva */
	char *hva;
	uint64_t seed;
	_Atomic bool stop;
	_Atomic uint64_t stored; /* by all */
	uint64_t copied;
	char *copy;
};

struct storer {
	struct race *r;
	struct gmem_vcpu *vcpu;
	uint64_t number;
	pthread_t thread;
};

/* Each has its own word of every page. */
static void *store(void *arg)
{
	struct storer *s = arg;
	uint64_t rand = s->r->seed + s->number;

	for (uint64_t generation = 1; !atomic_load(&s->r->stop); generation++) {
		uint64_t page = tap_rand(&rand) % NPAGES, gpa = GPA + page * PG + 8 * s->number;

		/* Read first, at times: then it is mapped, but not for this. */
		if (tap_rand(&rand) % 2)
			(void)load64(s->vcpu, gpa);
		store64(s->vcpu, gpa, generation);
		atomic_fetch_add(&s->r->stored, 1);
	}
	return NULL;
}

static void *convert(void *arg)
{
	struct race *r = arg;
	uint64_t rand = r->seed - 1;

	while (!atomic_load(&r->stop)) {
		uint64_t page = tap_rand(&rand) % NPAGES;

		CHECK_OK(gmem_file_set_attributes(r->file, page * PG, PG,
						  tap_rand(&rand) % 2 ? GMEM_ATTRIBUTE_PRIVATE : 0, NULL));
		usleep(100);
	}
	return NULL;
}

/* As the host reads it: no access of a guest's. */
static void read_memory(const struct race *r, uint64_t page, char *to)
{
	if (r->file)
		CHECK_EQ(pread(r->file->fd, to, PG, (off_t)(page * PG)), PG);
	else
		CHECK_EQ(gmem_sys_peek(to, r->hva + page * PG, PG), PG);
}

static void copy_dirty(struct race *r, uint32_t round)
{
	uint64_t bits[WORDS], touched[WORDS];

	if (round % 2) {
		CHECK_OK(gmem_vm_get_log(r->vm, 0, D, 0, NPAGES, bits, GMEM_LOG_CLEAR));
	} else {
		CHECK_OK(gmem_vm_get_log(r->vm, 0, D, 0, NPAGES, bits, 0));
		CHECK_OK(gmem_vm_clear_log(r->vm, 0, D, 0, NPAGES, bits));
	}
	for (uint64_t i = 0; i < NPAGES; i++) {
		if (!(bits[i / 64] >> i % 64 & 1))
			continue;
		read_memory(r, i, r->copy + i * PG);
		r->copied++;
	}
	/* The other log comes and goes meanwhile, and is looked at. */
	if (round % 7 == 3)
		CHECK_OK(gmem_vm_set_log(r->vm, 0, D | A));
	if (round % 7 == 4 || round % 7 == 5)
		CHECK_OK(gmem_vm_get_log(r->vm, 0, A, 0, NPAGES, touched, GMEM_LOG_CLEAR));
	if (round % 7 == 6)
		CHECK_OK(gmem_vm_set_log(r->vm, 0, D));
}

static void race(struct race *r)
{
	struct storer s[STORERS];
	pthread_t converter = 0;
	char page[PG];

	r->seed = tap_seed();
	r->copy = calloc(NPAGES, PG);
	CHECK(r->copy);
	CHECK_OK(gmem_vm_set_log(r->vm, 0, D));
	for (uint64_t i = 0; i < STORERS; i++) {
		s[i] = (struct storer){ .r = r, .vcpu = new_vcpu(r->vm), .number = i };
		s[i].thread = start(store, &s[i]);
	}
	if (r->file)
		converter = start(convert, r);
	for (int round = 0; round < ROUNDS; round++) {
		/* Something has been stored since, so that a round is one. */
		uint64_t stored = atomic_load(&r->stored);

		while (atomic_load(&r->stored) == stored)
			sched_yield();
		copy_dirty(r, (uint32_t)round);
	}
	atomic_store(&r->stop, true);
	for (int i = 0; i < STORERS; i++)
		join(s[i].thread);
	if (r->file)
		join(converter);
	copy_dirty(r, 1);
	for (uint64_t i = 0; i < NPAGES; i++) {
		read_memory(r, i, page);
		CHECK_MEM(page, r->copy + i * PG, PG);
	}
	CHECK(r->copied > (uint64_t)ROUNDS / 2);
	for (int i = 0; i < STORERS; i++)
		gmem_vcpu_free(s[i].vcpu);
	gmem_vm_free(r->vm);
	free(r->copy);
}

TEST_TIMEOUT(copy_of_a_file, 60)
{
	struct race r = { .vm = new_vm(GMEM_VM_SW_PROTECTED), .file = make_file(LEN, 0) };

	CHECK_OK(set_slot(r.vm, 0, GPA, LEN, r.file, 0));
	race(&r);
	gmem_file_free(r.file);
}

TEST_TIMEOUT(copy_of_the_callers_memory, 60)
{
	struct race r = { .vm = new_vm(GMEM_VM_DEFAULT), .hva = plain_memory(LEN, RW) };

	CHECK_OK(set_hva_slot(r.vm, 0, 0, GPA, LEN, r.hva));
	race(&r);
	munmap(r.hva, LEN);
}
