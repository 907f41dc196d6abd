/* SPDX-License-Identifier: MIT */
/* Copies within a guest's memory: as in an array, up to the page that stops them, out of memory that is brought in. */
#include <sched.h>
#include <sys/mman.h>

#include "supply_util.h"
#include "vcpu_scene.h"

#define PAGES 64
#define LEN (PAGES * PG)
#define HOLE_AT (LEN / 2) /* of guest-physical addresses: two slots, a page without one between */
#define GPA_LEN (LEN + PG)

static void set_up(struct scene *s, enum gmem_vm_type type)
{
	set_up_without_slots(s, type, LEN);
	CHECK_OK(set_slot(s->vm, 0, 0, HOLE_AT, s->file, 0));
	CHECK_OK(set_slot(s->vm, 1, HOLE_AT + PG, LEN - HOLE_AT, s->file, HOLE_AT));
}

static void check_fault(struct gmem_vcpu *vcpu, uint64_t gpa, uint64_t flags)
{
	struct gmem_exit e = exit_of(vcpu);

	CHECK_EQ(e.reason, GMEM_EXIT_MEMORY_FAULT);
	CHECK_EQ(e.gpa, gpa);
	CHECK_EQ(e.len, PG);
	CHECK_EQ(e.flags, flags);
}

TEST(arguments)
{
	uint64_t done = 5;
	struct scene s;

	set_up(&s, GMEM_VM_SNP);
	CHECK_ERR(gmem_vcpu_copy(s.vcpu, 1ull << 48, 0, 1, &done), -EINVAL);
	CHECK_ERR(gmem_vcpu_copy(s.vcpu, 0, 1ull << 48, 1, &done), -EINVAL);
	CHECK_ERR(gmem_vcpu_copy(s.vcpu, 0, (1ull << 48) - 8, 9, &done), -EINVAL);
	CHECK_ERR(gmem_vcpu_copy(s.vcpu, (1ull << 48) - 8, 0, 9, &done), -EINVAL);
	CHECK_ERR(gmem_vcpu_copy(s.vcpu, PG, 0, UINT64_MAX, &done), -EINVAL);
	CHECK_HAS(gmem_last_error(), "gmem_vcpu_copy");
	/* Ranges that overlap, from either side, by a byte, and where they differ by the side they name alone. */
	CHECK_ERR(gmem_vcpu_copy(s.vcpu, 0, 0, 1, &done), -EINVAL);
	CHECK_ERR(gmem_vcpu_copy(s.vcpu, 8, 0, 9, &done), -EINVAL);
	CHECK_ERR(gmem_vcpu_copy(s.vcpu, 0, 8, 9, &done), -EINVAL);
	CHECK_ERR(gmem_vcpu_copy(s.vcpu, 0, s.bit | 4, 8, &done), -EINVAL);
	CHECK_EQ(done, 5);
	CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_NONE);
	CHECK_OK(gmem_vcpu_copy(s.vcpu, 0, 0, 0, &done));
	CHECK_EQ(done, 0);
	CHECK_EQ(gmem_file_page_state(s.file, 0), GMEM_PAGE_ABSENT);
	CHECK_OK(gmem_vcpu_copy(s.vcpu, 8, 0, 8, NULL));
	CHECK_OK(gmem_vcpu_copy(s.vcpu, 0, 8, 8, &done));
	CHECK_EQ(done, 8);
	tear_down(&s);
}

/* ---- against an array */

/* Where the range stops: how many of its bytes are before the hole. */
static uint64_t until_hole(uint64_t gpa, uint64_t len)
{
	if (gpa >= HOLE_AT + PG)
		return gmem_min_u64(len, GPA_LEN > gpa ? GPA_LEN - gpa : 0);
	return gmem_min_u64(len, HOLE_AT > gpa ? HOLE_AT - gpa : 0);
}

/* A page of either range ends a step: what is done when one of them stops. */
static uint64_t expected_done(uint64_t to, uint64_t from, uint64_t len)
{
	return gmem_min_u64(until_hole(to, len), until_hole(from, len));
}

TEST(as_in_an_array)
{
	static unsigned char model[GPA_LEN], got[GPA_LEN];
	unsigned int whole = 0, stopped = 0;
	uint64_t seed = tap_seed();
	struct scene s;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	for (uint64_t i = 0; i < GPA_LEN; i++)
		model[i] = (unsigned char)tap_rand(&seed);
	memset(model + HOLE_AT, 0, PG);
	CHECK_OK(gmem_vcpu_store(s.vcpu, 0, model, HOLE_AT));
	CHECK_OK(gmem_vcpu_store(s.vcpu, HOLE_AT + PG, model + HOLE_AT + PG, LEN - HOLE_AT));
	for (unsigned int i = 0; i < 2000; i++) {
		uint64_t r = tap_rand(&seed), len = 1 + (r >> 40) % (r & 1 ? 64 : r & 2 ? 3 * PG : 20 * PG);
		uint64_t to = tap_rand(&seed) % (GPA_LEN + PG), from = tap_rand(&seed) % (GPA_LEN + PG), done = 1;
		uint64_t want, stop;
		int err;

		/* Some have both ends in step. */
		if (r & 4)
			to = gmem_page_round_down(to) | (from & (PG - 1));
		want = expected_done(to, from, len);
		err = gmem_vcpu_copy(s.vcpu, to, from, len, &done);
		if (gmem_range_overlaps(to, len, from, len)) {
			CHECK_EQ(err, -EINVAL);
			CHECK_EQ(done, 1);
			continue;
		}
		/* One of the two has nothing there: it is read first. */
		stop = gmem_page_round_down(until_hole(from, len) == want ? from + want : to + want);
		CHECK_EQ(err, want == len ? 0 : -EFAULT);
		CHECK_EQ(done, want);
		if (err)
			check_fault(s.vcpu, stop, 0);
		else
			CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_NONE);
		if (want)
			memcpy(model + to, model + from, want);
		whole += !err;
		stopped += !!err;
		if (i % 16)
			continue;
		CHECK_OK(gmem_vcpu_load(s.vcpu, 0, got, HOLE_AT));
		CHECK_OK(gmem_vcpu_load(s.vcpu, HOLE_AT + PG, got + HOLE_AT + PG, LEN - HOLE_AT));
		CHECK_MEM(got, model, GPA_LEN);
	}
	CHECK_OK(gmem_vcpu_load(s.vcpu, 0, got, HOLE_AT));
	CHECK_OK(gmem_vcpu_load(s.vcpu, HOLE_AT + PG, got + HOLE_AT + PG, LEN - HOLE_AT));
	CHECK_MEM(got, model, GPA_LEN);
	printf("%u whole, %u stopped\n", whole, stopped);
	CHECK(whole > 100 && stopped > 100);
	tear_down(&s);
}

/* ---- sides */

/* A bounce buffer: private memory to shared, and back. */
static void bounce(enum gmem_vm_type type)
{
	unsigned char buf[3 * PG], out[3 * PG];
	uint64_t private, shared, done;
	struct scene s;

	set_up(&s, type);
	private = type == GMEM_VM_SNP ? s.bit : 0;
	shared = s.bit ^ private;
	to_private(s.file, 8 * PG, 8 * PG);
	for (uint64_t i = 0; i < sizeof(buf); i++)
		buf[i] = (unsigned char)(i * 7 + i / PG);
	CHECK_OK(gmem_vcpu_store(s.vcpu, private | (8 * PG + 100), buf, sizeof(buf)));
	CHECK_OK(gmem_vcpu_copy(s.vcpu, shared | 7, private | (8 * PG + 100), sizeof(buf), &done));
	CHECK_EQ(done, sizeof(buf));
	CHECK_OK(gmem_file_read(s.file, 7, out, sizeof(out)));
	CHECK_MEM(out, buf, sizeof(buf));
	buf[5] ^= 1;
	CHECK_OK(gmem_file_write(s.file, 7 + 5, buf + 5, 1));
	CHECK_OK(gmem_vcpu_copy(s.vcpu, private | (12 * PG), shared | 7, sizeof(buf), &done));
	CHECK_OK(gmem_vcpu_load(s.vcpu, private | (12 * PG), out, sizeof(out)));
	CHECK_MEM(out, buf, sizeof(buf));
	/* What stops it is on the wrong side: the source, or where it is to go. */
	CHECK_ERR(gmem_vcpu_copy(s.vcpu, shared | (20 * PG + 8), private | (15 * PG), 2 * PG, &done), -EFAULT);
	CHECK_EQ(done, PG);
	check_fault(s.vcpu, 16 * PG, GMEM_EXIT_FLAG_PRIVATE);
	CHECK_ERR(gmem_vcpu_copy(s.vcpu, shared | (7 * PG), private | (10 * PG + 8), 2 * PG, &done), -EFAULT);
	CHECK_EQ(done, PG);
	check_fault(s.vcpu, 8 * PG, 0);
	CHECK_ERR(gmem_vcpu_answer(s.vcpu, 0), -EINVAL);
	tear_down(&s);
}

TEST(bounce_buffer_snp)
{
	bounce(GMEM_VM_SNP);
}

TEST(bounce_buffer_tdx)
{
	bounce(GMEM_VM_TDX);
}

/* However short: no device takes part in a copy. */
TEST(no_slot_is_a_memory_fault)
{
	uint64_t done = 3;
	struct scene s;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	CHECK_ERR(gmem_vcpu_copy(s.vcpu, 0, HOLE_AT + 8, 8, &done), -EFAULT);
	CHECK_EQ(done, 0);
	check_fault(s.vcpu, HOLE_AT, 0);
	CHECK_ERR(gmem_vcpu_copy(s.vcpu, HOLE_AT + 8, 0, 8, &done), -EFAULT);
	check_fault(s.vcpu, HOLE_AT, 0);
	CHECK_ERR(gmem_vcpu_copy(s.vcpu, HOLE_AT + 8, HOLE_AT + 16, 8, NULL), -EFAULT);
	CHECK_EQ(gmem_file_page_state(s.file, 8 * PG), GMEM_PAGE_ABSENT);
	tear_down(&s);
}

TEST(other_errors)
{
	uint64_t done;
	struct scene s;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	CHECK_OK(gmem_file_poison(s.file, 3 * PG, PG));
	CHECK_ERR(gmem_vcpu_copy(s.vcpu, 10 * PG, 2 * PG, 3 * PG, &done), -EHWPOISON);
	CHECK_EQ(done, PG);
	check_fault(s.vcpu, 3 * PG, 0);
	CHECK_ERR(gmem_vcpu_copy(s.vcpu, 2 * PG + 8, 10 * PG, 3 * PG, &done), -EHWPOISON);
	CHECK_EQ(done, PG - 8);
	check_fault(s.vcpu, 3 * PG, 0);
	/* A page whose writes are watched may be read. */
	gmem_vm_lock_slots(s.vm);
	CHECK_OK(gmem_mmu_track_write(&s.vm->mmu, 20, true));
	gmem_vm_unlock_slots(s.vm);
	CHECK_OK(gmem_vcpu_copy(s.vcpu, 10 * PG, 20 * PG, PG, &done));
	CHECK_ERR(gmem_vcpu_copy(s.vcpu, 19 * PG, 10 * PG, 2 * PG, &done), -EPERM);
	CHECK_EQ(done, PG);
	CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_NONE);
	gmem_vm_free(s.vm);
	s.vm = NULL;
	CHECK_ERR(gmem_vcpu_copy(s.vcpu, 10 * PG, 20 * PG, PG, &done), -EIO);
	CHECK_EQ(done, 0);
	tear_down(&s);
}

/* ---- pages that are brought in */

struct supplier {
	struct gmem_vcpu *vcpu;
	uint64_t wait_at; /* this one never comes; 0: none */
	_Atomic unsigned int calls;
};

static uint64_t word_of(uint64_t off)
{
	return off * 0x9e3779b97f4a7c15ull + 1;
}

static int bring_in(void *opaque, struct gmem_file *file, uint64_t off, struct gmem_wait *wait)
{
	struct supplier *s = opaque;
	uint64_t page[PG / 8];

	off = gmem_page_round_down(off);
	atomic_fetch_add(&s->calls, 1);
	if (s->wait_at && off == s->wait_at) {
		/* From the thread that waits, as well as from any other. */
		gmem_vcpu_cancel(s->vcpu);
		while (!gmem_wait_over(wait))
			usleep(1000);
		return gmem_err(-EINTR, "cancelled");
	}
	for (uint64_t i = 0; i < PG / 8; i++)
		page[i] = word_of(off + i * 8);
	return gmem_file_write(file, off, page, PG);
}

static void check_words(struct scene *s, uint64_t gpa, uint64_t off, uint64_t len)
{
	for (uint64_t i = 0; i < len; i += 8)
		CHECK_EQ(load64(s->vcpu, gpa + i), word_of(off + i));
}

TEST(absent_pages_are_brought_in)
{
	struct supplier supplier = { .wait_at = 0 };
	struct gmem_supply *supply;
	uint64_t done;
	struct scene s;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	supply = new_supply(s.file, 0, HOLE_AT, bring_in, &supplier);
	/* The source, and what is beside the copied bytes where they go. */
	CHECK_OK(gmem_vcpu_copy(s.vcpu, 20 * PG + 8, 4 * PG + 16, 3 * PG, &done));
	CHECK_EQ(done, 3 * PG);
	CHECK_EQ(atomic_load(&supplier.calls), 8);
	check_words(&s, 20 * PG + 8, 4 * PG + 16, 3 * PG);
	check_words(&s, 20 * PG, 20 * PG, 8);
	check_words(&s, 23 * PG + 8, 23 * PG + 8, PG - 8);
	gmem_file_end_supply(s.file, supply);
	CHECK_ERR(gmem_vcpu_copy(s.vcpu, 20 * PG, 7 * PG, 2 * PG, &done), -EIO);
	CHECK_EQ(done, PG);
	tear_down(&s);
}

/* It waits for a page in the middle, and is cancelled; then it goes on from where it was. */
TEST(cancel_in_the_middle)
{
	static const bool where[] = { false, true };

	for (size_t i = 0; i < 2; i++) {
		const uint64_t from = 4 * PG, to = 20 * PG, len = 6 * PG;
		struct supplier supplier = { .wait_at = (where[i] ? to : from) + 3 * PG };
		struct gmem_supply *supply;
		struct scene s;
		uint64_t done;

		set_up(&s, GMEM_VM_SW_PROTECTED);
		supplier.vcpu = s.vcpu;
		supply = new_supply(s.file, 0, HOLE_AT, bring_in, &supplier);
		CHECK_ERR(gmem_vcpu_copy(s.vcpu, to, from, len, &done), -EINTR);
		CHECK_EQ(done, 3 * PG);
		CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_NONE);
		check_words(&s, to, from, done);
		CHECK_EQ(gmem_file_page_state(s.file, to + 3 * PG), GMEM_PAGE_ABSENT);
		supplier.wait_at = 0;
		CHECK_OK(gmem_vcpu_copy(s.vcpu, to + 3 * PG, from + 3 * PG, len - 3 * PG, &done));
		check_words(&s, to, from, len);
		gmem_file_end_supply(s.file, supply);
		tear_down(&s);
	}
}

/* ---- against what takes pages away */

static struct churn {
	struct scene s;
	_Atomic bool stop;
	_Atomic uint64_t rounds;
} churn;

/* Each page of the source is one number, all over: converted back and forth, it stays. */
static void *convert(void *arg)
{
	uint64_t seed = *(uint64_t *)arg;

	while (!atomic_load(&churn.stop)) {
		uint64_t page = tap_rand(&seed) % 8;

		to_private(churn.s.file, page * PG, PG);
		to_shared(churn.s.file, page * PG, PG);
		CHECK_OK(gmem_file_punch(churn.s.file, (16 + page) * PG, PG));
		atomic_fetch_add(&churn.rounds, 1);
	}
	return NULL;
}

TEST_TIMEOUT(against_conversions_and_punches, 60)
{
	unsigned int rounds = tap_slow() ? 300 : 3000;
	uint64_t seed = tap_seed(), buf[PG / 8];
	pthread_t t;

	set_up(&churn.s, GMEM_VM_SW_PROTECTED);
	for (uint64_t page = 0; page < 8; page++) {
		for (size_t i = 0; i < PG / 8; i++)
			buf[i] = page + 1;
		CHECK_OK(gmem_vcpu_store(churn.s.vcpu, page * PG, buf, PG));
	}
	t = start(convert, &seed);
	for (unsigned int i = 0; i < rounds || atomic_load(&churn.rounds) < 3; i++) {
		uint64_t done;

		CHECK_OK(gmem_vcpu_copy(churn.s.vcpu, 16 * PG, 0, 8 * PG, &done));
		CHECK_EQ(done, 8 * PG);
		for (uint64_t page = 0; page < 8; page++) {
			CHECK_OK(gmem_vcpu_load(churn.s.vcpu, (16 + page) * PG, buf, PG));
			/* Of this copy, or punched since. */
			for (size_t k = 0; k < PG / 8; k++)
				CHECK(buf[k] == buf[0] && (!buf[k] || buf[k] == page + 1));
		}
	}
	atomic_store(&churn.stop, true);
	join(t);
	printf("%llu rounds of conversions\n", (unsigned long long)atomic_load(&churn.rounds));
	CHECK_OK(gmem_vcpu_copy(churn.s.vcpu, 16 * PG, 0, 8 * PG, NULL));
	for (uint64_t page = 0; page < 8; page++)
		CHECK_EQ(load64(churn.s.vcpu, (16 + page) * PG + 80), page + 1);
	tear_down(&churn.s);
}
