/* SPDX-License-Identifier: MIT */
/*
 * Guests run while other threads change their memory: none may lose a byte that it wrote, or that is brought in for it,
 * or stay inside when it is told to come out.
 */
#include "kvm_race.h"

/* ---- bytes that are written */

#define WORD (PAGE + 8)

static void *count(void *arg)
{
	struct one *one = arg;

	while (one->amount) {
		uint64_t n = one->amount < 50 ? one->amount : 1 + rnd(&one->seed, 50);

		finish_routine(one, GUEST_hammer, GPA + WORD, n);
		one->amount -= n;
		atomic_fetch_add(&one->turns, 1);
	}
	return end_of_thread(one);
}

/* Each on pages of its own. */
static void *fill_and_verify(void *arg)
{
	struct one *one = arg;

	for (; one->amount; one->amount--) {
		uint64_t at = GPA + (1 + one->number) * (PAGES / 4) * PAGE, n = 1 + rnd(&one->seed, PG / 4),
			 seed = one->seed;

		CHECK_EQ(finish_routine(one, GUEST_fill, at + PAGE - PG / 2, n, seed), n);
		CHECK_EQ(finish_routine(one, GUEST_verify, at + PAGE - PG / 2, n, seed), n);
		atomic_fetch_add(&one->turns, 1);
	}
	return end_of_thread(one);
}

static bool all_done(struct race *r)
{
	for (unsigned int i = 0; i < GUESTS; i++)
		if (!atomic_load(&r->one[i].done))
			return false;
	return true;
}

static void bytes_kept(const struct scene_opts *o, void *(*fn)(void *), unsigned int amount)
{
	static struct race r;
	/* Against an unhindered storm of conversions guests hardly get anywhere: it ends, and they go on. */
	const uint64_t most = unhindered ? (tap_slow() ? 2000 : 10000) : UINT64_MAX;
	uint64_t conversions = 0;

	set_up(&r, o);
	r.always_there = o->type != GMEM_VM_DEFAULT;
	for (unsigned int i = 0; i < GUESTS; i++)
		r.one[i].amount = amount;
	start_guests(&r, fn);
	while (!all_done(&r) && conversions < most) {
		uint64_t first, n;

		random_range(&r, &first, &n);
		if (unhindered)
			first = WORD / PAGE, n = 1;
		to_private(r.file, first * PAGE, n * PAGE);
		if (o->type == GMEM_VM_DEFAULT || rnd(&r.seed, 3))
			to_shared(r.file, first * PAGE, n * PAGE);
		conversions++;
		disturb(&r);
		if (!unhindered)
			wait_for_turns(&r);
	}
	join_guests(&r);
	to_shared(r.file, 0, RAM_LEN);
	if (fn == count)
		CHECK_EQ(file_word(r.file, WORD), (uint64_t)GUESTS * amount);
	printf("%llu conversions\n", (unsigned long long)conversions);
	tear_down(&r);
}

static void bytes_kept_in_each_way(void *(*fn)(void *), unsigned int amount)
{
	for (unsigned int strict = 0; strict < STRICT_TOO; strict++) {
		EACH_OF_THE(o)
		{
			o.flags = strict ? GMEM_FILE_STRICT : 0;
			bytes_kept(&o, fn, rounds(amount));
		}
	}
}

TEST_TIMEOUT(no_increment_is_lost, 240)
{
	bytes_kept_in_each_way(count, 5000);
}

/* The one page that they are at is barred all the time: also between the two halves of an increment. */
TEST_TIMEOUT(no_increment_is_lost_unhindered, 240)
{
	unhindered = true;
	bytes_kept_in_each_way(count, 50000);
}

TEST_TIMEOUT(no_word_is_lost, 240)
{
	bytes_kept_in_each_way(fill_and_verify, 100);
}

/* ---- bytes that are brought in */

static void *sum_all(void *arg)
{
	struct one *one = arg;

	for (; one->amount; one->amount--) {
		uint64_t n = rnd(&one->seed, PAGES);

		CHECK_EQ(finish_routine(one, GUEST_load8, GPA + n * PAGE + 16), n * PAGE + 17);
		CHECK_EQ(finish_routine(one, GUEST_sum, GPA, PAGES, PAGE), PAGES * (PAGES - 1) / 2 * PAGE + PAGES);
		atomic_fetch_add(&one->turns, 1);
	}
	return end_of_thread(one);
}

/* While pages around them are barred, absent ones must not become zero. */
TEST_TIMEOUT(absent_pages_are_brought_in, 240)
{
	EACH_OF_THE(o)
	{
		for (unsigned int i = 0; i < rounds(12); i++) {
			struct supplier sup = { .calls = 0 };
			static struct race r;
			struct gmem_supply *supply;

			o.flags = i % STRICT_TOO ? GMEM_FILE_STRICT : 0;
			set_up(&r, &o);
			supply = new_supply(r.file, 0, RAM_LEN, bring_in, &sup);
			for (unsigned int k = 0; k < GUESTS; k++)
				r.one[k].amount = 3;
			start_guests(&r, sum_all);
			while (!all_done(&r)) {
				uint64_t first, n;

				random_range(&r, &first, &n);
				to_private(r.file, first * PAGE, n * PAGE);
				to_shared(r.file, first * PAGE, n * PAGE);
				disturb(&r);
				/* One that asks for a page that changes all the time would ask for ever. */
				wait_for_turns(&r);
			}
			join_guests(&r);
			end_supply(r.file, supply);
			tear_down(&r);
		}
	}
}

/* ---- coming out */

static void *run_until_cancelled(void *arg)
{
	struct one *one = arg;
	int err;

	if (one->number)
		guest_call(&one->s.guest, GUEST_forever, 0);
	else
		guest_call(&one->s.guest, GUEST_hammer, GPA + WORD, 0);
	do {
		err = gmem_vcpu_run(one->s.vcpu);
		atomic_fetch_add(&one->turns, 1);
		CHECK(err == -EINTR || err == -EFAULT || err == -EIO);
	} while (err != -EIO);
	return end_of_thread(one);
}

/* Each cancellation ends a call, whatever it is at; and in the end the VM goes under them. */
TEST_TIMEOUT(told_to_come_out, 240)
{
	EACH_OF_THE(o)
	{
		for (unsigned int strict = 0; strict < STRICT_TOO; strict++) {
			static struct race r;

			o.flags = strict ? GMEM_FILE_STRICT : 0;
			set_up(&r, &o);
			start_guests(&r, run_until_cancelled);
			for (unsigned int i = 0; i < rounds(100); i++) {
				uint64_t first, n;

				random_range(&r, &first, &n);
				to_private(r.file, first * PAGE, n * PAGE);
				to_shared(r.file, first * PAGE, n * PAGE);
				for (unsigned int k = 0; k < GUESTS; k++) {
					struct one *one = &r.one[rnd(&r.seed, GUESTS)];
					uint64_t turns = atomic_load(&one->turns);

					gmem_vcpu_cancel(one->s.vcpu);
					while (atomic_load(&one->turns) == turns)
						usleep(10);
				}
			}
			gmem_vcpu_free(r.hand);
			gmem_vm_free(r.vm);
			join_guests(&r);
			r.vm = NULL;
			r.hand = NULL;
			tear_down(&r);
		}
	}
}

#include "tap_main.h"
