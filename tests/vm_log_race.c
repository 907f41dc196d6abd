/* SPDX-License-Identifier: MIT */
/*
 * Guests store while their memory is copied as a live save does: what is dirty is cleared and copied, again and again,
 * and once more when they have stopped. Then the copy is the memory.
 */
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
