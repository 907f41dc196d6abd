/* SPDX-License-Identifier: MIT */
/* Guests run while other threads take their memory away: none may see a byte that was taken away before. */
#include "kvm_race.h"

/* ---- bytes that were taken away */

static void *load_pages(void *arg)
{
	struct one *one = arg;
	struct race *r = one->r;

	while (!atomic_load(&r->over)) {
		uint64_t n = rnd(&one->seed, PAGES);
		struct page *p = &r->page[n];
		uint64_t going = atomic_load(&r->going), gone = atomic_load(&r->gone), floor = atomic_load(&p->floor),
			 zero = atomic_load(&p->zero), away = atomic_load(&p->away);
		uint64_t v = finish_routine(one, GUEST_load8, GPA + n * PAGE + 8 * rnd(&one->seed, 2));

		if (v == NO_MEMORY) {
			if (!(going & 1) && atomic_load(&r->going) == going)
				FAIL("page %llu: no memory, though its slot is there", (unsigned long long)n);
		} else if (!v) {
			if (!(zero & 1) && atomic_load(&p->zero) == zero)
				FAIL("page %llu: zero, after %llu", (unsigned long long)n, (unsigned long long)floor);
		} else if (v < floor) {
			FAIL("page %llu: %llu, after %llu", (unsigned long long)n, (unsigned long long)v,
			     (unsigned long long)floor);
		}
		if (v != NO_MEMORY && (away & 1) && atomic_load(&p->away) == away)
			FAIL("page %llu: %llu, though no guest may touch it", (unsigned long long)n,
			     (unsigned long long)v);
		if (v != NO_MEMORY && (gone & 1) && atomic_load(&r->gone) == gone)
			FAIL("page %llu: %llu, though there is no slot", (unsigned long long)n, (unsigned long long)v);
		atomic_fetch_add(&one->turns, 1);
	}
	return end_of_thread(one);
}

/* The next generation, into pages that guests may be at; what was punched is so no more. */
static void write_pages(struct race *r, uint64_t first, uint64_t n)
{
	uint64_t word = ++r->generation;

	for (uint64_t i = first; i < first + n; i++) {
		struct page *p = &r->page[i];

		for (unsigned int w = 0; w < 2; w++)
			if (r->o->type == GMEM_VM_DEFAULT)
				CHECK_OK(gmem_file_write(r->file, i * PAGE + w * 8, &word, 8));
			else
				store64(r->hand, GPA + i * PAGE + w * 8, word);
		atomic_store(&p->floor, r->generation);
		if (atomic_load(&p->zero) & 1)
			atomic_fetch_add(&p->zero, 1);
	}
}

/* From now on they may be zero; and, at the end, no older generation is seen. */
static void zero_begins(struct race *r, uint64_t first, uint64_t n)
{
	for (uint64_t i = first; i < first + n; i++)
		if (!(atomic_load(&r->page[i].zero) & 1))
			atomic_fetch_add(&r->page[i].zero, 1);
}

static void zero_is_there(struct race *r, uint64_t first, uint64_t n)
{
	for (uint64_t i = first; i < first + n; i++)
		atomic_store(&r->page[i].floor, r->generation + 1);
}

static void toggle_away(struct race *r, uint64_t first, uint64_t n)
{
	for (uint64_t i = first; i < first + n; i++)
		atomic_fetch_add(&r->page[i].away, 1);
}

static void punch(struct race *r, uint64_t first, uint64_t n)
{
	zero_begins(r, first, n);
	CHECK_OK(gmem_file_punch(r->file, first * PAGE, n * PAGE));
	zero_is_there(r, first, n);
}

static void convert_there_and_back(struct race *r, uint64_t first, uint64_t n)
{
	bool away = r->o->type == GMEM_VM_DEFAULT;

	to_private(r->file, first * PAGE, n * PAGE);
	if (away)
		toggle_away(r, first, n);
	now_and_then();
	if (rnd(&r->seed, 2))
		punch(r, first, n);
	if (away)
		toggle_away(r, first, n);
	else if (rnd(&r->seed, 2))
		write_pages(r, first, n);
	to_shared(r->file, first * PAGE, n * PAGE);
}

static void poison(struct race *r, uint64_t first, uint64_t n)
{
	CHECK_OK(gmem_file_poison(r->file, first * PAGE, n * PAGE));
	toggle_away(r, first, n);
	now_and_then();
	zero_begins(r, first, n);
	toggle_away(r, first, n);
	CHECK_OK(gmem_file_punch(r->file, first * PAGE, n * PAGE));
	zero_is_there(r, first, n);
}

static void delete_slot(struct race *r)
{
	atomic_fetch_add(&r->going, 1);
	CHECK_OK(del_slot(r->vm, 0));
	atomic_fetch_add(&r->gone, 1);
}

static void make_slot(struct race *r)
{
	atomic_fetch_add(&r->gone, 1);
	CHECK_OK(set_slot(r->vm, 0, GPA, RAM_LEN, r->file, 0));
	atomic_fetch_add(&r->going, 1);
}

static void move_slot(struct race *r)
{
	delete_slot(r);
	now_and_then();
	make_slot(r);
}

static void another_file(struct race *r)
{
	gmem_file_free(r->file);
	toggle_away(r, 0, PAGES);
	zero_begins(r, 0, PAGES);
	zero_is_there(r, 0, PAGES);
	now_and_then();
	delete_slot(r);
	r->file = race_file(r->o->flags);
	toggle_away(r, 0, PAGES);
	make_slot(r);
	write_pages(r, 0, PAGES);
}

static void change(struct race *r)
{
	uint64_t first, n;

	random_range(r, &first, &n);
	switch (rnd(&r->seed, 12)) {
	case 0:
	case 1:
		punch(r, first, n);
		break;
	case 2:
		poison(r, first, n);
		break;
	case 3:
		move_slot(r);
		break;
	case 4:
		another_file(r);
		break;
	case 5:
	case 6:
		write_pages(r, first, n);
		break;
	default:
		convert_there_and_back(r, first, n);
	}
	if (rnd(&r->seed, 2))
		write_pages(r, first, n);
}

static void old_bytes(const struct scene_opts *o)
{
	static struct race r;

	set_up(&r, o);
	write_pages(&r, 0, PAGES);
	start_guests(&r, load_pages);
	for (unsigned int i = rounds(200); i; i--) {
		change(&r);
		disturb(&r);
		wait_for_turns(&r);
	}
	atomic_store(&r.over, true);
	join_guests(&r);
	tear_down(&r);
}

TEST_TIMEOUT(old_bytes_are_not_seen, 240)
{
	EACH_OF_THE(o)
	old_bytes(&o);
}

#ifndef GMEM_TEST_HUGE
/* Where each conversion moves pages. */
TEST_TIMEOUT(old_bytes_are_not_seen_strict, 240)
{
	EACH_OF_THE(o)
	{
		o.flags = GMEM_FILE_STRICT;
		old_bytes(&o);
	}
}
#endif

#include "tap_main.h"
