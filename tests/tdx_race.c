/* SPDX-License-Identifier: MIT */
/* A TD's pages change sides, and are launched, while guests are at them: the module never refuses what the MMU asks. */
#include "tdx_util.h"

#include <sched.h>

#define GUESTS 3

struct storm {
	struct scene s;
	_Atomic bool stop;
	_Atomic unsigned long accesses, launched, shared;
};

/* Of a private page: zeroes since it was accepted, or what guests have put there. */
#define GUESTS_WORD 0x4747474747474747ull
#define HOSTS_WORD 0x4848484848484848ull

static int guests_turn(struct storm *st, struct gmem_vcpu *vcpu, uint64_t gpa, uint64_t *state)
{
	uint64_t word = 0;
	int err = gmem_vcpu_load(vcpu, gpa, &word, 8);

	if (!err && word != 0 && word != GUESTS_WORD)
		FAIL("a private page has 0x%llx", (unsigned long long)word);
	if (!err && tap_rand(state) % 2) {
		word = GUESTS_WORD;
		err = gmem_vcpu_store(vcpu, gpa, &word, 8);
	}
	if (err == -EACCES)
		err = gmem_vcpu_accept(vcpu, gpa, PG, true, NULL);
	else if (!err)
		atomic_fetch_add(&st->accesses, 1);
	/* By another guest. */
	return err == 1 ? 0 : err;
}

struct guest {
	struct storm *st;
	uint64_t seed;
};

static void *guest(void *arg)
{
	struct guest *g = arg;
	struct gmem_vcpu *vcpu = new_vcpu(g->st->s.vm);

	while (!atomic_load(&g->st->stop)) {
		uint64_t gpa = GPA + tap_rand(&g->seed) % NPAGES * PG;
		int err = guests_turn(g->st, vcpu, gpa, &g->seed);

		/* It is shared. */
		if (err && err != -EFAULT)
			FAIL("a guest's access is %d: %s", err, gmem_last_error());
		if (err)
			atomic_fetch_add(&g->st->shared, 1);
	}
	gmem_vcpu_free(vcpu);
	return NULL;
}

/* A page that no guest was given has what the host has put there; any other has nothing. */
static void check_nothing_of_a_guests(struct scene *s, uint64_t off, uint64_t npages)
{
	for (uint64_t i = 0; i < npages; i++) {
		uint64_t words[PG / 8];

		CHECK_OK(gmem_file_read(s->file, off + i * PG, words, PG));
		CHECK(!words[0] || words[0] == HOSTS_WORD);
		for (size_t k = 1; k < PG / 8; k++)
			CHECK_EQ(words[k], 0);
	}
}

/* There and back, some pages at a time: nothing of a guest's is seen by the host, nor the other way round. */
static void convert(struct scene *s, uint64_t *seed, int rounds)
{
	const uint64_t word = HOSTS_WORD;

	for (int i = 0; i < rounds; i++) {
		uint64_t at = tap_rand(seed) % NPAGES, n = 1 + tap_rand(seed) % (NPAGES - at);

		to_shared(s->file, at * PG, n * PG);
		check_nothing_of_a_guests(s, at * PG, n);
		for (uint64_t k = 0; k < n; k++)
			CHECK_OK(gmem_file_write(s->file, (at + k) * PG, &word, 8));
		to_private(s->file, at * PG, n * PG);
	}
}

TEST_TIMEOUT(conversions_and_guests, 120)
{
	struct storm st = { .stop = false };
	struct guest guests[GUESTS];
	pthread_t threads[GUESTS];
	uint64_t seed = tap_seed();

	set_up(&st.s);
	CHECK_OK(gmem_launch_finish(st.s.launch, NULL));
	for (int i = 0; i < GUESTS; i++) {
		guests[i] = (struct guest){ &st, tap_rand(&seed) };
		threads[i] = start(guest, &guests[i]);
	}
	convert(&st.s, &seed, tap_slow() ? 300 : 3000);
	/* On a loaded machine they may not have come to anything yet. */
	while (!atomic_load(&st.accesses))
		sched_yield();
	atomic_store(&st.stop, true);
	for (int i = 0; i < GUESTS; i++)
		join(threads[i]);
	printf("%lu accesses, %lu of shared pages\n", (unsigned long)st.accesses, (unsigned long)st.shared);
	CHECK(!dead(&st.s));
	tear_down(&st.s);
}

/* ---- while it is built */

static void *convert_until_stopped(void *arg)
{
	struct storm *st = arg;
	uint64_t seed = 1;

	while (!atomic_load(&st->stop)) {
		uint64_t at = tap_rand(&seed) % NPAGES;

		CHECK_OK(gmem_file_set_attributes(st->s.file, at * PG, PG, 0, NULL));
		CHECK_OK(gmem_file_set_attributes(st->s.file, at * PG, PG, GMEM_ATTRIBUTE_PRIVATE, NULL));
		atomic_fetch_add(&st->shared, 1);
	}
	return NULL;
}

static void update_everything(struct storm *st, uint64_t *seed)
{
	struct scene *s = &st->s;
	uint64_t at = tap_rand(seed) % NPAGES;
	int64_t n = gmem_launch_update(s->launch, GPA + at * PG, s->src, (int64_t)(NPAGES - at),
				       tap_rand(seed) % 2 ? GMEM_LAUNCH_NORMAL : GMEM_LAUNCH_UNMEASURED);

	if (n < 0 && n != -EINVAL && n != -EEXIST)
		FAIL("an update is %lld: %s", (long long)n, gmem_last_error());
	if (n > 0)
		atomic_fetch_add(&st->launched, (unsigned long)n);
	/* One chunk: it is there, or it is not. */
	n = gmem_launch_extend(s->launch, GPA + at * PG, 256);
	if (n && n != -EIO)
		FAIL("an extend is %lld: %s", (long long)n, gmem_last_error());
}

TEST_TIMEOUT(conversions_and_updates, 120)
{
	struct storm st = { .stop = false };
	uint64_t seed = tap_seed();
	pthread_t t;

	set_up(&st.s);
	t = start(convert_until_stopped, &st);
	for (int i = 0; i < (tap_slow() ? 200 : 2000) || !atomic_load(&st.shared) || !atomic_load(&st.launched); i++)
		update_everything(&st, &seed);
	CHECK_OK(gmem_launch_finish(st.s.launch, NULL));
	atomic_store(&st.stop, true);
	join(t);
	printf("%lu pages launched, %lu converted\n", (unsigned long)st.launched, (unsigned long)st.shared);
	CHECK(!dead(&st.s));
	tear_down(&st.s);
}

/* It is finalized between a block and a remove, which want an epoch from then on. */
TEST_TIMEOUT(conversions_and_finish, 120)
{
	for (int i = 0; i < (tap_slow() ? 30 : 300); i++) {
		struct storm st = { .stop = false };
		pthread_t t;

		set_up(&st.s);
		CHECK_EQ(gmem_launch_update(st.s.launch, GPA, st.s.src, NPAGES, GMEM_LAUNCH_UNMEASURED), NPAGES);
		t = start(convert_until_stopped, &st);
		while (!atomic_load(&st.shared))
			;
		CHECK_OK(gmem_launch_finish(st.s.launch, NULL));
		atomic_store(&st.stop, true);
		join(t);
		CHECK(!dead(&st.s));
		tear_down(&st.s);
	}
}

/* ---- guests among themselves */

struct acceptors {
	struct scene s;
	_Atomic uint32_t ready, round;
	_Atomic uint32_t done[NPAGES]; /* accepts that changed something */
};

static void *accept_all(void *arg)
{
	struct acceptors *a = arg;
	struct gmem_vcpu *vcpu = new_vcpu(a->s.vm);

	atomic_fetch_add(&a->ready, 1);
	while (!atomic_load(&a->round))
		;
	for (uint64_t i = 0; i < NPAGES; i++) {
		int r = gmem_vcpu_accept(vcpu, GPA + i * PG, PG, true, NULL);

		CHECK_OK(r);
		if (!r)
			atomic_fetch_add(&a->done[i], 1);
		/* What another one accepted is there. */
		(void)load64(vcpu, GPA + i * PG);
	}
	gmem_vcpu_free(vcpu);
	return NULL;
}

TEST_TIMEOUT(accepted_once, 120)
{
	for (int i = 0; i < (tap_slow() ? 20 : 200); i++) {
		struct acceptors a = { .ready = 0 };
		pthread_t threads[GUESTS];

		set_up(&a.s);
		CHECK_OK(gmem_launch_finish(a.s.launch, NULL));
		for (int k = 0; k < GUESTS; k++)
			threads[k] = start(accept_all, &a);
		while (atomic_load(&a.ready) < GUESTS)
			sched_yield();
		atomic_store(&a.round, 1);
		for (int k = 0; k < GUESTS; k++)
			join(threads[k]);
		for (uint64_t k = 0; k < NPAGES; k++)
			CHECK_EQ(a.done[k], 1);
		CHECK(!dead(&a.s));
		tear_down(&a.s);
	}
}
