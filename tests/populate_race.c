/* SPDX-License-Identifier: MIT */
/*
 * Populate against everything that can happen to its pages meanwhile. What it put into a page is known from its
 * function, which runs under the file's lock; what else is done to the page is counted before and after.
 */
#include "tap.h"

#include "populate_util.h"

#include <setjmp.h>
#include <signal.h>

#define NPAGES 96u
#define KEPT 16u /* of them, that are never converted to shared */
#define WRITERS 2

/* One page: what was last done to it. */
struct trail {
	_Atomic uint64_t id; /* of the last populate of it that was not refused; 0: none, or being changed */
	_Atomic uint64_t shares_then; /* shares_begun at that time; UINT64_MAX: one was running */
	_Atomic uint64_t punches_then; /* likewise */
	_Atomic uint64_t shares_begun, shares_ended; /* conversions to shared */
	_Atomic uint64_t punches_begun, punches_ended;
};

struct race {
	struct rig r;
	struct trail trail[NPAGES];
	char *view;
	_Atomic bool stop;
	_Atomic uint64_t populated, refused, seen, faults;
};

struct worker {
	struct race *race;
	unsigned int number;
	uint64_t seed;
	struct gmem_vcpu *vcpu;
	uint64_t id; /* of this call's bytes */
	char *src;
};

/* Of a page's words, all of them alike. */
static uint64_t word_for(uint64_t id, uint64_t page)
{
	return id << 8 | page;
}

static void range(struct worker *w, uint64_t first, uint64_t *page, uint64_t *n)
{
	*page = first + tap_rand(&w->seed) % (NPAGES - first);
	*n = 1 + tap_rand(&w->seed) % (tap_rand(&w->seed) % 4 ? 4 : 40);
	if (*n > NPAGES - *page)
		*n = NPAGES - *page;
}

static uint64_t settled(_Atomic uint64_t *begun, _Atomic uint64_t *ended)
{
	uint64_t e = atomic_load(ended), b = atomic_load(begun);

	return b == e ? b : UINT64_MAX;
}

static int record(struct gmem_vm *vm, uint64_t gfn, uint64_t pfn, void *src, void *opaque)
{
	struct worker *w = opaque;
	struct trail *t = &w->race->trail[gfn - GFN];
	uint64_t want = word_for(w->id, gfn - GFN);

	CHECK(vm == w->race->r.vm);
	if (src) {
		CHECK_EQ(*(uint64_t *)src, want);
		CHECK_EQ(*(uint64_t *)gmem_pfn_addr(pfn), want);
	}
	if (tap_rand(&w->seed) % 4 == 0) {
		int err = gmem_mmu_map_private_pfn(w->vcpu, gfn, pfn);

		CHECK(!err || err == -EIO);
		if (err)
			atomic_fetch_add(&w->race->refused, 1);
		if (err)
			return err;
	}
	if (tap_rand(&w->seed) % 16 == 0) {
		atomic_fetch_add(&w->race->refused, 1);
		return gmem_set_error(-EBUSY, "test function");
	}
	if (src) {
		atomic_store(&t->id, 0);
		atomic_store(&t->shares_then, settled(&t->shares_begun, &t->shares_ended));
		atomic_store(&t->punches_then, settled(&t->punches_begun, &t->punches_ended));
		atomic_store(&t->id, w->id);
	}
	atomic_fetch_add(&w->race->populated, 1);
	return 0;
}

static void *populate_again_and_again(void *arg)
{
	struct worker *w = arg;
	uint64_t seq = 0;

	w->src = mmap(NULL, NPAGES * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(w->src != MAP_FAILED);
	while (!atomic_load(&w->race->stop)) {
		bool in_place = tap_rand(&w->seed) % 4 == 0;
		uint32_t flags = !in_place && tap_rand(&w->seed) % 4 == 0 ? GMEM_POPULATE_WRITE_BACK : 0;
		uint64_t page, n;
		int64_t done;

		range(w, 0, &page, &n);
		w->id = ++seq * WRITERS + w->number;
		for (uint64_t i = 0; i < n && !in_place; i++)
			for (uint64_t k = 0; k < P / 8; k++)
				((uint64_t *)(w->src + i * P))[k] = word_for(w->id, page + i);
		done = gmem_populate(w->race->r.vm, GFN + page, in_place ? NULL : w->src, (int64_t)n, flags, record, w);
		CHECK(done != 0 && done <= (int64_t)n);
		/* Shared, or no slot at the moment; refused; cancelled; an error of the mapping's. */
		if (done < 0)
			CHECK(done == -EINVAL || done == -EBUSY || done == -EINTR || done == -EIO);
	}
	munmap(w->src, NPAGES * P);
	return NULL;
}

static void *convert_to_and_fro(void *arg)
{
	struct worker *w = arg;
	struct race *race = w->race;

	while (!atomic_load(&race->stop)) {
		bool private = tap_rand(&w->seed) % 2;
		uint64_t page, n;

		range(w, KEPT, &page, &n);
		for (uint64_t i = page; i < page + n && !private; i++)
			atomic_fetch_add(&race->trail[i].shares_begun, 1);
		convert(&race->r, page, n, private);
		for (uint64_t i = page; i < page + n && !private; i++)
			atomic_fetch_add(&race->trail[i].shares_ended, 1);
		usleep((useconds_t)(tap_rand(&w->seed) % 200));
	}
	return NULL;
}

static void *punch(void *arg)
{
	struct worker *w = arg;
	struct race *race = w->race;

	while (!atomic_load(&race->stop)) {
		uint64_t page, n;

		range(w, 0, &page, &n);
		for (uint64_t i = page; i < page + n; i++)
			atomic_fetch_add(&race->trail[i].punches_begun, 1);
		CHECK_OK(gmem_file_punch(race->r.file, (FIRST + page) * P, n * P));
		for (uint64_t i = page; i < page + n; i++)
			atomic_fetch_add(&race->trail[i].punches_ended, 1);
		usleep((useconds_t)(tap_rand(&w->seed) % 1000));
	}
	return NULL;
}

static void *delete_and_set_the_slot(void *arg)
{
	struct worker *w = arg;
	struct gmem_memslot none = { .size = sizeof(none) };
	struct race *race = w->race;

	while (!atomic_load(&race->stop)) {
		usleep((useconds_t)(tap_rand(&w->seed) % 4000));
		CHECK_OK(gmem_vm_set_slot(race->r.vm, &none));
		set_slot(race->r.vm, 0, GFN, NPAGES, race->r.file, FIRST * P);
		if (tap_rand(&w->seed) % 8 == 0)
			gmem_vm_cancel(race->r.vm);
	}
	return NULL;
}

/* ---- who looks */

static _Thread_local sigjmp_buf bus;

static void on_bus(int sig)
{
	siglongjmp(bus, sig);
}

/* False: SIGBUS. */
static bool touch(const uint64_t *at, uint64_t *ret)
{
	if (sigsetjmp(bus, 1))
		return false;
	*ret = __atomic_load_n(at, __ATOMIC_ACQUIRE);
	return true;
}

/* No byte of a populate that was not converted to shared since. */
static void check_may_be_seen(struct race *race, uint64_t page, uint64_t word)
{
	struct trail *t = &race->trail[page];
	uint64_t id = atomic_load(&t->id), then = atomic_load(&t->shares_then);

	CHECK(page >= KEPT);
	if (!word)
		return;
	CHECK_EQ(word & 0xff, page);
	if (id == word >> 8 && atomic_load(&t->id) == id && then != UINT64_MAX && then == atomic_load(&t->shares_begun))
		FAIL("page %llu: the host reads populate %llx, and it is private", (unsigned long long)page,
		     (unsigned long long)id);
}

static void *touch_the_view(void *arg)
{
	struct worker *w = arg;
	struct race *race = w->race;

	while (!atomic_load(&race->stop)) {
		uint64_t page = tap_rand(&w->seed) % NPAGES, word;

		if (touch((uint64_t *)(race->view + page * P) + tap_rand(&w->seed) % 512, &word)) {
			check_may_be_seen(race, page, word);
			atomic_fetch_add(&race->seen, 1);
		} else {
			atomic_fetch_add(&race->faults, 1);
		}
	}
	return NULL;
}

static void *be_a_guest(void *arg)
{
	struct worker *w = arg;
	struct race *race = w->race;

	while (!atomic_load(&race->stop)) {
		uint64_t page = tap_rand(&w->seed) % NPAGES, word;
		int err = gmem_vcpu_load(w->vcpu, (GFN + page) * P + tap_rand(&w->seed) % 512 * 8, &word, 8);

		CHECK(!err || err == -EFAULT);
		if (!err && word)
			CHECK_EQ(word & 0xff, page);
	}
	return NULL;
}

/* ---- at the end */

static unsigned int check_pages(struct race *race)
{
	static uint64_t got[P / 8];
	unsigned int known = 0;

	/* As a file of shared pages it can be read whole. */
	CHECK_OK(gmem_file_set_attributes(race->r.file, 0, gmem_file_size(race->r.file), 0, NULL));
	for (uint64_t page = 0; page < NPAGES; page++) {
		struct trail *t = &race->trail[page];
		bool intact = t->id && t->punches_then == t->punches_begun;

		CHECK_OK(gmem_file_read(race->r.file, (FIRST + page) * P, got, P));
		for (unsigned int k = 0; k < P / 8; k++) {
			if (got[k] == word_for(t->id, page) || (!intact && !got[k] && !got[0]))
				continue;
			FAIL("page %llu, word %u is %llx, not of populate %llx (%s)", (unsigned long long)page, k,
			     (unsigned long long)got[k], (unsigned long long)t->id, intact ? "intact" : "punched");
		}
		known += intact;
	}
	return known;
}

static void run_race(uint32_t file_flags, uint64_t seed, unsigned int ms)
{
	static void *(*const work[])(void *) = {
		populate_again_and_again, populate_again_and_again, convert_to_and_fro, punch,
		delete_and_set_the_slot,  touch_the_view,	    be_a_guest,
	};
	enum { N = sizeof(work) / sizeof(work[0]) };
	const struct sigaction sa = { .sa_handler = on_bus, .sa_flags = SA_NODEFER };
	static struct race race;
	struct worker w[N];
	struct gmem_view *view;
	pthread_t t[N];
	unsigned int known;

	memset(&race, 0, sizeof(race));
	CHECK_EQ(sigaction(SIGBUS, &sa, NULL), 0);
	rig_up(&race.r, NPAGES, file_flags);
	convert(&race.r, 0, NPAGES, true);
	CHECK_OK(gmem_view_map(race.r.file, FIRST * P, NPAGES * P, PROT_READ | PROT_WRITE, &view));
	race.view = gmem_view_addr(view);
	for (unsigned int i = 0; i < N; i++) {
		w[i] = (struct worker){ .race = &race, .number = i, .seed = tap_rand(&seed) };
		CHECK_OK(gmem_vcpu_create(race.r.vm, NULL, &w[i].vcpu));
		CHECK_EQ(pthread_create(&t[i], NULL, work[i], &w[i]), 0);
	}
	usleep(ms * 1000);
	atomic_store(&race.stop, true);
	for (unsigned int i = 0; i < N; i++) {
		pthread_join(t[i], NULL);
		gmem_vcpu_free(w[i].vcpu);
	}
	check_no_lock(&race.r);
	known = check_pages(&race);
	printf("%llu pages populated, %llu refused; the host saw %llu, was refused %llu; %u pages known at the end\n",
	       (unsigned long long)race.populated, (unsigned long long)race.refused, (unsigned long long)race.seen,
	       (unsigned long long)race.faults, known);
	CHECK(race.populated && race.refused && race.faults && race.seen);
	gmem_view_unmap(view);
	rig_down(&race.r);
}

TEST(populate_against_all)
{
	uint64_t seed = tap_seed();

	for (unsigned int i = 0; i < 4; i++)
		run_race((i & 1 ? GMEM_FILE_INIT_PRIVATE : 0) | (i & 2 ? GMEM_FILE_STRICT : 0), tap_rand(&seed),
			 tap_slow() ? 1500 : 700);
}

/* ---- the file goes */

static void *populate_until_it_is_closed(void *arg)
{
	struct worker *w = arg;
	int64_t done;

	do {
		done = gmem_populate(w->race->r.vm, GFN, w->src, NPAGES, 0, NULL, NULL);
		CHECK(done == NPAGES || done == -EFAULT);
	} while (done == NPAGES);
	CHECK_HAS(gmem_last_error(), "closed");
	return NULL;
}

TEST(file_is_freed_meanwhile)
{
	static struct race race;
	struct worker w = { .race = &race, .seed = tap_seed(), .src = source_pages(0, NPAGES) };
	pthread_t t[2];

	for (unsigned int round = 0; round < 100; round++) {
		rig_up(&race.r, NPAGES, GMEM_FILE_INIT_PRIVATE);
		for (int i = 0; i < 2; i++)
			CHECK_EQ(pthread_create(&t[i], NULL, populate_until_it_is_closed, &w), 0);
		usleep((useconds_t)(tap_rand(&w.seed) % 3000));
		gmem_file_free(race.r.file);
		for (int i = 0; i < 2; i++)
			pthread_join(t[i], NULL);
		gmem_vcpu_free(race.r.vcpu);
		gmem_vm_free(race.r.vm);
	}
}
