/* SPDX-License-Identifier: MIT */
/*
 * Guests run in a slot of two memories while other threads convert its pages: none may reach the memory that is not
 * meant, nor lose a byte of either.
 */
#include "kvm_race.h"
#include "slot_util.h"

#include "sys/futex.h"

#define WORD (PG + 8)

struct two {
	struct race r; /* first */
	char *hva;
	uint64_t enough_ns;
	uint64_t *bitmap;
};

static void set_two(struct two *t, bool userfault)
{
	struct gmem_memslot m = { .size = sizeof(m), .gpa = GPA, .len = RAM_LEN, .file = t->r.file, .hva = t->hva };

	m.flags = userfault ? GMEM_SLOT_USERFAULT : 0;
	m.userfault_bitmap = userfault ? t->bitmap : NULL;
	CHECK_OK(gmem_vm_set_slot(t->r.vm, &m));
}

static void set_up_two(struct two *t, const struct scene_opts *o)
{
	static uint64_t bitmap[1];

	set_up(&t->r, o);
	t->r.always_there = o->type != GMEM_VM_DEFAULT;
	t->bitmap = bitmap;
	t->hva = mmap(NULL, RAM_LEN, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(t->hva != MAP_FAILED);
	CHECK_OK(del_slot(t->r.vm, 0));
	set_two(t, false);
	t->enough_ns = gmem_futex_now() + 2500000000ull;
}

static void tear_down_two(struct two *t)
{
	tear_down(&t->r);
	munmap(t->hva, RAM_LEN);
}

/* A part of the rounds will do where the guests get on slowly. */
static bool go_on_for(const struct two *t, uint64_t done, uint64_t rounds)
{
	return done < rounds && (done < rounds / 20 || gmem_futex_now() < t->enough_ns);
}

static uint64_t hva_word(const struct two *t, uint64_t off)
{
	return __atomic_load_n((uint64_t *)(t->hva + off), __ATOMIC_ACQUIRE);
}

/* ---- increments */

static void *count_until_over(void *arg)
{
	struct one *one = arg;

	while (!atomic_load(&one->r->over)) {
		uint64_t n = 1 + rnd(&one->seed, 50);

		finish_routine(one, GUEST_hammer, GPA + WORD, n);
		one->amount += n;
		atomic_fetch_add(&one->turns, 1);
	}
	return end_of_thread(one);
}

/* The side that is not meant stands still. */
static void there_and_back(struct two *t)
{
	bool both = t->r.o->type != GMEM_VM_DEFAULT;
	uint64_t word;

	to_private(t->r.file, PG, PG);
	word = hva_word(t, WORD);
	if (both && !unhindered)
		wait_for_turns(&t->r);
	else
		now_and_then();
	CHECK_EQ(hva_word(t, WORD), word);
	to_shared(t->r.file, PG, PG);
	word = file_word(t->r.file, WORD);
	if (!unhindered)
		wait_for_turns(&t->r);
	else
		now_and_then();
	CHECK_EQ(file_word(t->r.file, WORD), word);
}

/* Each is made, in one of the two memories. */
static void count_on_two_sides(const struct scene_opts *o, uint64_t rounds_)
{
	static struct two t;
	uint64_t n = 0, all = 0;

	set_up_two(&t, o);
	start_guests(&t.r, count_until_over);
	for (; go_on_for(&t, n, rounds_); n++) {
		there_and_back(&t);
		disturb(&t.r);
	}
	atomic_store(&t.r.over, true);
	join_guests(&t.r);
	for (unsigned int i = 0; i < GUESTS; i++)
		all += t.r.one[i].amount;
	CHECK_EQ(hva_word(&t, WORD) + file_word(t.r.file, WORD), all);
	if (o->type == GMEM_VM_DEFAULT)
		CHECK_EQ(file_word(t.r.file, WORD), 0);
	printf("%llu rounds, %llu increments\n", (unsigned long long)n, (unsigned long long)all);
	tear_down_two(&t);
}

TEST_TIMEOUT(no_increment_is_lost, 240)
{
	for (int strict = 0; strict < 2; strict++) {
		EACH_OF_THE(o)
		{
			o.flags = strict ? GMEM_FILE_STRICT : 0;
			count_on_two_sides(&o, rounds(2000));
		}
	}
}

TEST_TIMEOUT(no_increment_is_lost_unhindered, 240)
{
	unhindered = true;
	EACH_OF_THE(o)
	count_on_two_sides(&o, rounds(20000));
}

/*
 * KVM that cannot read an instruction that it is to emulate tells a guest's program that it is none (a guest's kernel
 * comes out): here that is `out`, by which the routine ends, so all before it was done.
 */
static bool ended_by_ud(const struct one *one)
{
	const struct guest *g = &one->s.guest;

	return g->mode == GUEST_USER && !guest_finished(g) && g->run->exit_reason == KVM_EXIT_IO &&
	       g->run->io.port == GUEST_PORT_FAULT && strstr(guest_what(g), "exception 6,");
}

static void *count_in_converted_code(void *arg)
{
	struct one *one = arg;

	while (!atomic_load(&one->r->over)) {
		uint64_t n = 1 + rnd(&one->seed, 50);
		int err;

		guest_call(&one->s.guest, GUEST_hammer, GPA + WORD, n);
		do
			err = gmem_vcpu_run(one->s.vcpu);
		while (err == -EINTR || (err == -EFAULT && !one->r->always_there));
		CHECK_OK(err);
		if (!guest_finished(&one->s.guest) && !ended_by_ud(one))
			FAIL("the guest came out: %s", guest_what(&one->s.guest));
		one->amount += n;
		atomic_fetch_add(&one->turns, 1);
	}
	return end_of_thread(one);
}

/* The guests' code itself is in the page that is converted: as much of it is on either side. */
TEST_TIMEOUT(code_is_converted, 240)
{
	static const uint64_t CODE = 2 * PG;

	EACH_OF_THE(o)
	{
		static struct two t;
		uint64_t n = 0, all = 0;

		set_up_two(&t, &o);
		memcpy(t.hva + CODE, t.r.one[0].s.boot, PG);
		CHECK_OK(gmem_file_write(t.r.file, CODE, t.r.one[0].s.boot, PG));
		for (unsigned int i = 0; i < GUESTS; i++)
			t.r.one[i].s.guest.code_gpa = GPA + CODE;
		start_guests(&t.r, count_in_converted_code);
		for (; go_on_for(&t, n, rounds(1000)); n++) {
			to_private(t.r.file, PG, 2 * PG);
			if (t.r.always_there)
				wait_for_turns(&t.r);
			to_shared(t.r.file, PG * (1 + n % 2), PG);
			to_shared(t.r.file, PG, 2 * PG);
			wait_for_turns(&t.r);
			disturb(&t.r);
		}
		atomic_store(&t.r.over, true);
		join_guests(&t.r);
		for (unsigned int i = 0; i < GUESTS; i++)
			all += t.r.one[i].amount;
		CHECK_EQ(hva_word(&t, WORD) + file_word(t.r.file, WORD), all);
		CHECK_EQ(memcmp(t.hva + CODE, t.r.one[0].s.boot, PG), 0);
		tear_down_two(&t);
	}
}

/* One guest each at its own slot over the same memory, each with a file of its own. */
static void *count_in_own_slot(void *arg)
{
	struct one *one = arg;

	while (!atomic_load(&one->r->over)) {
		finish_routine(one, GUEST_hammer, GPA + one->number * RAM_LEN + WORD, 20);
		one->amount += 20;
		atomic_fetch_add(&one->turns, 1);
	}
	return end_of_thread(one);
}

TEST_TIMEOUT(two_slots_over_one_memory, 240)
{
	EACH_OF_THE(o)
	{
		static struct two t;
		struct gmem_file *other;
		uint64_t n = 0;

		set_up_two(&t, &o);
		/* Where pages are private guests have to come out, and this one never asks which slot. */
		if (o.type == GMEM_VM_DEFAULT) {
			tear_down_two(&t);
			continue;
		}
		other = make_file(RAM_LEN, 0);
		CHECK_OK(set_both(t.r.vm, 1, GPA + RAM_LEN, RAM_LEN, other, 0, t.hva));
		start_guests(&t.r, count_in_own_slot);
		for (; go_on_for(&t, n, rounds(2000)); n++) {
			struct gmem_file *file = n & 1 ? other : t.r.file;

			to_private(file, PG, PG);
			wait_for_turns(&t.r);
			if (n % 3)
				to_shared(file, PG, PG);
			disturb(&t.r);
		}
		atomic_store(&t.r.over, true);
		join_guests(&t.r);
		to_shared(t.r.file, PG, PG);
		to_shared(other, PG, PG);
		CHECK_EQ(hva_word(&t, WORD) + file_word(t.r.file, WORD) + file_word(other, WORD),
			 t.r.one[0].amount + t.r.one[1].amount);
		CHECK_OK(del_slot(t.r.vm, 1));
		gmem_file_free(other);
		tear_down_two(&t);
	}
}

/* ---- which side */

/*
 * A word of the file's is even, one of the program's is odd, and neither ever gets smaller. `zero` of a page is odd
 * while it is private (the race's own changer writes it).
 */
static void *load_sides(void *arg)
{
	struct one *one = arg;
	struct race *r = one->r;

	while (!atomic_load(&r->over)) {
		uint64_t n = rnd(&one->seed, PAGES);
		struct page *p = &r->page[n];
		uint64_t going = atomic_load(&r->going), gone = atomic_load(&r->gone), floor = atomic_load(&p->floor),
			 side = atomic_load(&p->zero), v;

		v = finish_routine(one, GUEST_load8, GPA + n * PG + 8 * rnd(&one->seed, 2));
		if (v == NO_MEMORY) {
			if (!(going & 1) && atomic_load(&r->going) == going)
				FAIL("page %llu: no memory, though its slot is there", (unsigned long long)n);
			continue;
		}
		if ((gone & 1) && atomic_load(&r->gone) == gone)
			FAIL("page %llu: %llu, though there is no slot", (unsigned long long)n, (unsigned long long)v);
		if (atomic_load(&p->zero) == side) {
			if (side % 4 == 0 && (!(v & 1) || v < floor))
				FAIL("page %llu: %llu, though it is shared, after %llu", (unsigned long long)n,
				     (unsigned long long)v, (unsigned long long)floor);
			if (side % 4 == 2 && ((v & 1) || v < floor))
				FAIL("page %llu: %llu, though it is private, after %llu", (unsigned long long)n,
				     (unsigned long long)v, (unsigned long long)floor);
		}
		atomic_fetch_add(&one->turns, 1);
	}
	return end_of_thread(one);
}

/* New words on the side that is meant. */
static void write_sides(struct two *t, uint64_t first, uint64_t n)
{
	uint64_t word = t->r.generation += 2;

	for (uint64_t i = first; i < first + n; i++) {
		bool private = atomic_load(&t->r.page[i].zero) % 4 == 2;

		word = (word & ~1ull) | !private;
		for (unsigned int w = 0; w < 2; w++)
			if (!private)
				__atomic_store_n((uint64_t *)(t->hva + i * PG + w * 8), word, __ATOMIC_RELEASE);
			else if (t->r.always_there)
				store64(t->r.hand, GPA + i * PG + w * 8, word);
		atomic_store(&t->r.page[i].floor, word);
	}
}

/* From one side to the other: no number of before holds meanwhile. */
static void convert_sides(struct two *t, uint64_t first, uint64_t n, bool private)
{
	for (uint64_t i = first; i < first + n; i++)
		if ((atomic_load(&t->r.page[i].zero) % 4 == 2) != private) {
			atomic_fetch_add(&t->r.page[i].zero, 1);
			atomic_store(&t->r.page[i].floor, 0);
		}
	if (private)
		to_private(t->r.file, first * PG, n * PG);
	else
		to_shared(t->r.file, first * PG, n * PG);
	for (uint64_t i = first; i < first + n; i++)
		if (atomic_load(&t->r.page[i].zero) & 1)
			atomic_fetch_add(&t->r.page[i].zero, 1);
}

static void set_anew(struct two *t)
{
	atomic_fetch_add(&t->r.going, 1);
	CHECK_OK(del_slot(t->r.vm, 0));
	atomic_fetch_add(&t->r.gone, 1);
	now_and_then();
	atomic_fetch_add(&t->r.gone, 1);
	set_two(t, false);
	atomic_fetch_add(&t->r.going, 1);
}

/* No bit of it is set: each page is met anew. */
static void bitmap_on_and_off(struct two *t)
{
	set_two(t, true);
	now_and_then();
	set_two(t, false);
}

static void change_sides(struct two *t)
{
	struct race *r = &t->r;
	uint64_t first, n;

	random_range(r, &first, &n);
	switch (rnd(&r->seed, 10)) {
	case 0:
		set_anew(t);
		break;
	case 1:
		bitmap_on_and_off(t);
		break;
	case 2:
		CHECK_OK(gmem_vm_set_log(r->vm, 0, GMEM_LOG_ACCESSED | GMEM_LOG_DIRTY));
		write_sides(t, first, n);
		CHECK_OK(gmem_vm_set_log(r->vm, 0, 0));
		break;
	case 3:
		write_sides(t, first, n);
		break;
	default:
		convert_sides(t, first, n, rnd(&r->seed, 2));
		write_sides(t, first, n);
	}
}

static void wrong_side(const struct scene_opts *o)
{
	static struct two t;
	uint64_t n = 0;

	set_up_two(&t, o);
	write_sides(&t, 0, PAGES);
	start_guests(&t.r, load_sides);
	for (; go_on_for(&t, n, rounds(1500)); n++) {
		change_sides(&t);
		disturb(&t.r);
		/* A guest at a private page of DEFAULT's gets on when that is shared again. */
		if (t.r.always_there)
			wait_for_turns(&t.r);
	}
	convert_sides(&t, 0, PAGES, false);
	atomic_store(&t.r.over, true);
	join_guests(&t.r);
	tear_down_two(&t);
}

TEST_TIMEOUT(the_wrong_side_is_not_seen, 240)
{
	EACH_OF_THE(o)
	wrong_side(&o);
}

TEST_TIMEOUT(the_wrong_side_is_not_seen_strict, 240)
{
	EACH_OF_THE(o)
	{
		o.flags = GMEM_FILE_STRICT;
		wrong_side(&o);
	}
}

#include "tap_main.h"
