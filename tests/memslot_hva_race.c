/* SPDX-License-Identifier: MIT */
/*
 * Slots deleted, moved and given bitmaps under accessors that load and store through them. When such a call has
 * returned nobody is at the memory any more: it is overwritten at once, and whoever reads that, or writes over it, was
 * late.
 */
#include "slot_util.h"

#include "sys/futex.h"

#define PAGES 8u
#define LEN (PAGES * PG)
#define GOOD 0x600d600d600d600dull
#define BAD 0xbad0bad0bad0bad0ull
#define STORED 0x5705570557055705ull

struct race {
	struct gmem_vm *vm;
	struct gmem_file *file; /* the memory, or NULL: it is hva */
	char *hva;
	uint64_t gpa[2]; /* where the slot is, or is not */
	_Atomic bool stop;
	_Atomic uint64_t loads, stores, exits;
	uint64_t seed, enough_ns;
};

static void *access_all(void *arg)
{
	struct race *r = arg;
	struct gmem_vcpu *vcpu = new_vcpu(r->vm);
	uint64_t seed = r->seed + (uintptr_t)&seed;

	while (!atomic_load(&r->stop)) {
		uint64_t gpa = r->gpa[tap_rand(&seed) % 2] + tap_rand(&seed) % PAGES * PG, v = STORED;
		bool store = tap_rand(&seed) % 2;
		int err = store ? gmem_vcpu_store(vcpu, gpa + 8, &v, 8) : gmem_vcpu_load(vcpu, gpa, &v, 8);

		if (err) {
			CHECK_EQ(err, -EFAULT);
			atomic_fetch_add(&r->exits, 1);
			/* The one who has to go on may be waiting for a processor. */
			if (tap_rand(&seed) % 32 == 0)
				sched_yield();
			continue;
		}
		if (!store && v != GOOD)
			FAIL("gpa 0x%llx reads 0x%llx", (unsigned long long)gpa, (unsigned long long)v);
		atomic_fetch_add(store ? &r->stores : &r->loads, 1);
	}
	gmem_vcpu_free(vcpu);
	return NULL;
}

/* The first word is loaded by guests, the second stored to. */
static void write_words(struct race *r, unsigned int first, unsigned int end, uint64_t loaded, uint64_t stored)
{
	const uint64_t words[2] = { loaded, stored };

	for (unsigned int i = first; i < end; i++)
		if (r->file)
			CHECK_OK(gmem_file_write(r->file, i * PG, words, sizeof(words)));
		else
			memcpy(r->hva + i * PG, words, sizeof(words));
}

static uint64_t second_word(struct race *r, unsigned int i)
{
	uint64_t v;

	if (r->file)
		CHECK_OK(gmem_file_read(r->file, i * PG + 8, &v, 8));
	else
		memcpy(&v, r->hva + i * PG + 8, 8);
	return v;
}

/* Nobody is at these pages: what is done to them is seen by none, and stays. */
static void check_ours(struct race *r, unsigned int first, unsigned int end)
{
	write_words(r, first, end, BAD, BAD);
	for (int i = 0; i < 3; i++) {
		sched_yield();
		for (unsigned int page = first; page < end; page++)
			if (second_word(r, page) != BAD)
				FAIL("page %u was stored to: 0x%llx", page, (unsigned long long)second_word(r, page));
	}
	write_words(r, first, end, GOOD, 0);
}

static void begin(struct race *r, pthread_t t[2])
{
	r->seed = tap_seed();
	r->enough_ns = gmem_futex_now() + 15000000000ull;
	r->vm = new_vm(GMEM_VM_SW_PROTECTED);
	r->gpa[0] = 0;
	r->gpa[1] = 4 * LEN;
	if (!r->file)
		r->hva = plain_memory(LEN, RW);
	write_words(r, 0, PAGES, GOOD, 0);
	for (int i = 0; i < 2; i++)
		t[i] = start(access_all, r);
}

static void end(struct race *r, pthread_t t[2])
{
	atomic_store(&r->stop, true);
	join(t[0]);
	join(t[1]);
	printf("%llu loads, %llu stores, %llu exits\n", (unsigned long long)r->loads, (unsigned long long)r->stores,
	       (unsigned long long)r->exits);
	gmem_vm_free(r->vm);
	gmem_file_free(r->file);
	if (r->hva)
		munmap(r->hva, LEN);
}

/* Until guests have got somewhere since. */
static void let_run(struct race *r)
{
	uint64_t done = r->loads + r->stores;

	while (r->loads + r->stores < done + 3)
		sched_yield();
}

static int set(struct race *r, int where, const uint64_t *bitmap)
{
	struct gmem_memslot m = {
		.size = sizeof(m),
		.flags = bitmap ? GMEM_SLOT_USERFAULT : 0,
		.gpa = r->gpa[where],
		.len = LEN,
		.file = r->file,
		.hva = r->hva,
		.userfault_bitmap = bitmap,
	};

	return gmem_vm_set_slot(r->vm, &m);
}

/* Every round waits for the accessors: where they hardly get the processor, fewer have to do. */
static bool go_on(const struct race *r, unsigned int done)
{
	const unsigned int rounds = tap_slow() ? 150 : 1500;

	return done < rounds && (done < rounds / 20 || gmem_futex_now() < r->enough_ns);
}

static void delete_and_set(bool file)
{
	struct race r = { .file = file ? make_file(LEN, 0) : NULL };
	pthread_t t[2];

	begin(&r, t);
	for (unsigned int i = 0; go_on(&r, i); i++) {
		CHECK_OK(set(&r, (int)(i % 2), NULL));
		if (i % 2 == 0)
			let_run(&r);
		CHECK_OK(del_slot(r.vm, 0));
		check_ours(&r, 0, PAGES);
	}
	end(&r, t);
}

TEST_TIMEOUT(deleted_and_set, 60)
{
	delete_and_set(false);
}

TEST_TIMEOUT(deleted_and_set_with_a_file, 60)
{
	delete_and_set(true);
}

/* The memory itself comes and goes: not even then is there a signal. */
TEST_TIMEOUT(unmapped_under_the_slot, 60)
{
	struct race r = { .file = NULL };
	pthread_t t[2];

	begin(&r, t);
	CHECK_OK(set(&r, 0, NULL));
	for (unsigned int i = 0; go_on(&r, i); i++) {
		CHECK(mmap(r.hva, LEN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) ==
		      r.hva);
		if (i % 2 == 0)
			sched_yield();
		CHECK_OK(del_slot(r.vm, 0));
		CHECK_EQ(mprotect(r.hva, LEN, RW), 0);
		write_words(&r, 0, PAGES, GOOD, 0);
		CHECK_OK(set(&r, 0, NULL));
		if (i % 2 == 0)
			let_run(&r);
	}
	end(&r, t);
}

/* Moved to where nobody goes, and back. */
TEST_TIMEOUT(moved, 60)
{
	struct race r = { .file = NULL };
	pthread_t t[2];

	begin(&r, t);
	CHECK_OK(set(&r, 0, NULL));
	for (unsigned int i = 0; go_on(&r, i); i++) {
		if (i % 2 == 0)
			let_run(&r);
		CHECK_OK(set_hva_slot(r.vm, 0, 0, 8 * LEN, LEN, r.hva));
		check_ours(&r, 0, PAGES);
		CHECK_OK(set(&r, (int)(i % 2), NULL));
	}
	end(&r, t);
}

/* All bits set: the caller's, at once. */
static void bitmaps(bool file)
{
	struct race r = { .file = file ? make_file(LEN, 0) : NULL };
	uint64_t bitmap[2] = { 0 }, seed = 1;
	pthread_t t[2];

	begin(&r, t);
	CHECK_OK(set(&r, 0, NULL));
	for (unsigned int i = 0; go_on(&r, i); i++) {
		uint64_t *b = &bitmap[i % 2], half = tap_rand(&seed);

		if (i % 2 == 0)
			let_run(&r);
		*b = (1ull << PAGES) - 1;
		CHECK_OK(set(&r, 0, b));
		/* The other one is not looked at any more. */
		bitmap[(i + 1) % 2] = ~0ull;
		check_ours(&r, 0, PAGES);
		/* Filled: some are let in with a bit, the others with the flag. */
		__atomic_fetch_and(b, half, __ATOMIC_RELEASE);
		if (half & 1)
			CHECK_OK(set(&r, 0, NULL));
		else
			__atomic_store_n(b, 0, __ATOMIC_RELEASE);
	}
	end(&r, t);
}

TEST_TIMEOUT(given_bitmaps, 60)
{
	bitmaps(false);
}

TEST_TIMEOUT(given_bitmaps_with_a_file, 60)
{
	bitmaps(true);
}
