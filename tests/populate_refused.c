/* SPDX-License-Identifier: MIT */
/*
 * A page that the function of a populate refuses, with a guest at it: no store is lost, none of the source is seen. (A
 * function that maps the frame publishes it.)
 */
#include <sched.h>

#include "tap.h"

#include "populate_util.h"

#define NPAGES 4
#define OLD 0x6f6f6f6f6f6f6f6full
#define SRC 0x7878787878787878ull
#define NEW 0x6e6e6e6e6e6e6e6eull
#define ACCESS_MS 50 /* that an access during the function gets; one that has to wait is done later */

struct scene {
	struct rig r;
	struct gmem_view *view;
	uint64_t page;
	bool store; /* else load */
	_Atomic bool go, done, stop;
	_Atomic unsigned long stores, lost, seen;
	uint64_t word; /* loaded */
};

static _Alignas(4096) char source[P];

/* Page 0 the guest has, page 1 is absent, page 2 is absent and has bytes of a view. All are private. */
static void set_up(struct scene *s)
{
	uint64_t word = OLD;

	memset(s, 0, sizeof(*s));
	memset(source, 'x', P);
	rig_up(&s->r, NPAGES, 0);
	CHECK_OK(gmem_view_map(s->r.file, 0, gmem_file_size(s->r.file), PROT_READ | PROT_WRITE, &s->view));
	memset((char *)gmem_view_addr(s->view) + (FIRST + 2) * P, 'o', P);
	convert(&s->r, 0, NPAGES, true);
	CHECK_OK(gmem_vcpu_store(s->r.vcpu, GFN * P, &word, sizeof(word)));
}

static void tear_down(struct scene *s)
{
	gmem_view_unmap(s->view);
	rig_down(&s->r);
}

/* What was there of a page. */
static uint64_t old_of(uint64_t page)
{
	return page == 1 ? 0 : OLD;
}

static void *access_once(void *arg)
{
	struct scene *s = arg;
	uint64_t gpa = (GFN + s->page) * P, word = NEW;

	while (!atomic_load(&s->go))
		sched_yield();
	if (s->store)
		CHECK_OK(gmem_vcpu_store(s->r.vcpu, gpa, &word, sizeof(word)));
	else
		CHECK_OK(gmem_vcpu_load(s->r.vcpu, gpa, &s->word, sizeof(s->word)));
	atomic_store(&s->done, true);
	return NULL;
}

/* The guest's access comes while the source's bytes are in the frame. */
static int refuse_after_an_access(struct gmem_vm *vm, uint64_t gfn, uint64_t pfn, void *src, void *opaque)
{
	struct scene *s = opaque;

	(void)vm;
	CHECK_MEM(gmem_pfn_addr(pfn), src, P);
	(void)gfn;
	atomic_store(&s->go, true);
	for (int i = 0; i < ACCESS_MS && !atomic_load(&s->done); i++)
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	return gmem_set_error(-EACCES, "refused");
}

static void one_access(uint64_t page, bool store)
{
	struct scene s;
	uint64_t word;
	pthread_t t;

	set_up(&s);
	s.page = page;
	s.store = store;
	CHECK_EQ(pthread_create(&t, NULL, access_once, &s), 0);
	CHECK_ERR(gmem_populate(s.r.vm, GFN + page, source, 1, 0, refuse_after_an_access, &s), -EACCES);
	pthread_join(t, NULL);
	if (!store)
		CHECK_EQ(s.word, old_of(page));
	CHECK_OK(gmem_vcpu_load(s.r.vcpu, (GFN + page) * P, &word, sizeof(word)));
	CHECK_EQ(word, store ? NEW : old_of(page));
	CHECK_OK(gmem_vcpu_load(s.r.vcpu, (GFN + page) * P + 8, &word, sizeof(word)));
	CHECK_EQ(word, page ? old_of(page) : 0);
	check_no_lock(&s.r);
	tear_down(&s);
}

TEST(store_to_a_present_page)
{
	one_access(0, true);
}

TEST(load_of_a_present_page)
{
	one_access(0, false);
}

TEST(store_to_an_absent_page)
{
	one_access(1, true);
	one_access(2, true);
}

TEST(load_of_an_absent_page)
{
	one_access(1, false);
	one_access(2, false);
}

/* ---- at any moment of it, and not only in the function */

static void *store_and_load(void *arg)
{
	struct scene *s = arg;
	uint64_t gpa = GFN * P + 8, word;

	for (uint64_t n = 1; !atomic_load(&s->stop); n++) {
		CHECK_OK(gmem_vcpu_store(s->r.vcpu, gpa, &n, sizeof(n)));
		CHECK_OK(gmem_vcpu_load(s->r.vcpu, gpa, &word, sizeof(word)));
		if (word == SRC)
			atomic_fetch_add(&s->seen, 1);
		else if (word != n)
			atomic_fetch_add(&s->lost, 1);
		atomic_fetch_add(&s->stores, 1);
	}
	return NULL;
}

static void *load_on_and_on(void *arg)
{
	struct scene *s = arg;
	uint64_t word;

	while (!atomic_load(&s->stop)) {
		CHECK_OK(gmem_vcpu_load(s->r.vcpu, (GFN + s->page) * P + 8, &word, sizeof(word)));
		if (word == SRC)
			atomic_fetch_add(&s->seen, 1);
		else if (word != old_of(s->page))
			atomic_fetch_add(&s->lost, 1);
		atomic_fetch_add(&s->stores, 1);
	}
	return NULL;
}

static int refuse(struct gmem_vm *vm, uint64_t gfn, uint64_t pfn, void *src, void *opaque)
{
	(void)vm;
	(void)gfn;
	(void)pfn;
	(void)src;
	(void)opaque;
	return gmem_set_error(-EACCES, "refused");
}

static void race(uint64_t page)
{
	struct scene s;
	unsigned long tries = 0;
	struct timespec t0, t1;
	pthread_t t;

	set_up(&s);
	s.page = page;
	CHECK_EQ(pthread_create(&t, NULL, page ? load_on_and_on : store_and_load, &s), 0);
	while (!atomic_load(&s.stores))
		sched_yield();
	clock_gettime(CLOCK_MONOTONIC, &t0);
	do {
		CHECK_ERR(gmem_populate(s.r.vm, GFN + page, source, 1, 0, refuse, &s), -EACCES);
		tries++;
		clock_gettime(CLOCK_MONOTONIC, &t1);
	} while ((t1.tv_sec - t0.tv_sec) * 1000 + (t1.tv_nsec - t0.tv_nsec) / 1000000 < (tap_slow() ? 600 : 200));
	atomic_store(&s.stop, true);
	pthread_join(t, NULL);
	printf("%lu refused, %lu accesses, %lu lost, %lu of the source's\n", tries, (unsigned long)s.stores,
	       (unsigned long)s.lost, (unsigned long)s.seen);
	CHECK_EQ(s.lost, 0);
	CHECK_EQ(s.seen, 0);
	check_no_lock(&s.r);
	tear_down(&s);
}

TEST(refused_again_and_again)
{
	race(0);
}
