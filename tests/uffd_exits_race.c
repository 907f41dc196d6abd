/* SPDX-License-Identifier: MIT */
/* One loop for all: guests that come out for a page's side or its bytes, and the host's touches of the same pages. */
#define TAP_NO_MAIN
#include "tap.h"

#include "uffd_exit_util.h"

#define GUESTS 3

struct world {
	struct guest g;
	_Atomic int left;
	_Atomic uint64_t exits, faults;
};

struct one {
	struct world *w;
	struct gmem_vcpu *vcpu;
	uint64_t seed;
	pthread_t thread;
};

static uint64_t value_of(uint64_t page)
{
	return page * 0x9e3779b97f4a7c15ull | 1;
}

/* Pages in random order, on either side as it likes: whatever it comes out for, it hands over. */
static void *run_guest(void *arg)
{
	struct one *one = arg;
	struct guest *g = &one->w->g;

	for (uint64_t i = 0; i < 4 * PAGES; i++) {
		uint64_t page = tap_rand(&one->seed) % PAGES, word = 0;
		uint64_t gpa = GPA | page * P | (tap_rand(&one->seed) % 2 ? g->alias : 0);
		int err;

		while ((err = gmem_vcpu_load(one->vcpu, gpa + 8, &word, 8))) {
			CHECK_EQ(err, -EFAULT);
			err = gmem_vcpu_hand_exit(one->vcpu, g->s.uffd);
			if (err < 0)
				FAIL("%d: %s", err, gmem_last_error());
		}
		CHECK_EQ(word, value_of(page));
	}
	atomic_fetch_sub(&one->w->left, 1);
	return NULL;
}

/* The host: a page that is private at the moment is SIGBUS. */
static void *touch_all(void *arg)
{
	struct world *w = arg;
	uint64_t seed = (uintptr_t)&seed;

	for (uint64_t i = 0; i < 4 * PAGES; i++) {
		uint64_t page = tap_rand(&seed) % PAGES;

		if (sigsetjmp(bus_jmp, 1))
			continue;
		CHECK_EQ(__atomic_load_n((uint64_t *)(w->g.s.p + page * P + 8), __ATOMIC_RELAXED), value_of(page));
	}
	atomic_fetch_sub(&w->left, 1);
	return NULL;
}

/* Puts the page in place, and says that it is. */
static void put(struct world *w, struct gmem_view *view, uint64_t off)
{
	uint64_t words[P / 8];
	int64_t got;

	for (uint64_t i = 0; i < P / 8; i++)
		words[i] = value_of(off / P);
	got = gmem_uffd_copy(w->g.s.uffd, view, off, words, P);
	if (got == -EEXIST)
		got = gmem_uffd_continue(w->g.s.uffd, view, off, P);
	CHECK(got == (int64_t)P || got == -EEXIST || got == -EACCES);
}

static void answer_exit(struct world *w, const struct gmem_uffd_event *e)
{
	struct gmem_file *file = w->g.s.file;

	if (e->u.exit.flags & GMEM_EXIT_FLAG_USERFAULT) {
		uint64_t was;

		CHECK_OK(gmem_file_attributes(file, e->off, &was, NULL));
		if (was)
			convert(file, e->off, P, 0);
		put(w, e->view, e->off);
		if (was)
			convert(file, e->off, P, PRIVATE);
		clear_bit(&w->g, e->off / P);
	} else {
		/* What was never filled must not go over as it is. */
		put(w, e->view, e->off);
		clear_bit(&w->g, e->off / P);
		convert(file, e->off, P, e->u.exit.flags & GMEM_EXIT_FLAG_PRIVATE ? PRIVATE : 0);
	}
	CHECK_OK(gmem_uffd_wake(w->g.s.uffd, e->view, e->off, e->len));
	atomic_fetch_add(&w->exits, 1);
}

static void serve(struct world *w)
{
	struct pollfd p = { .fd = gmem_uffd_fd(w->g.s.uffd), .events = POLLIN };
	struct gmem_uffd_event e[3];

	while (atomic_load(&w->left)) {
		int n;

		poll(&p, 1, 10);
		n = (int)CHECK_OK(gmem_uffd_read(w->g.s.uffd, e, 3));
		for (int i = 0; i < n; i++) {
			if (e[i].kind == GMEM_UFFD_EVENT_EXIT) {
				answer_exit(w, &e[i]);
				continue;
			}
			CHECK_EQ(e[i].kind, GMEM_UFFD_EVENT_FAULT);
			put(w, e[i].view, e[i].off);
			atomic_fetch_add(&w->faults, 1);
		}
	}
}

TEST_TIMEOUT(one_loop_for_all, 60)
{
	struct one ones[GUESTS];
	uint64_t seed = tap_seed();
	struct world w = { .left = GUESTS + 1 };
	pthread_t host;

	set_up_guest(&w.g, GMEM_VM_SNP, true);
	for (int i = 0; i < GUESTS; i++) {
		ones[i] = (struct one){ .w = &w, .seed = tap_rand(&seed) };
		CHECK_OK(gmem_vcpu_create(w.g.vm, NULL, &ones[i].vcpu));
		CHECK_EQ(pthread_create(&ones[i].thread, NULL, run_guest, &ones[i]), 0);
	}
	CHECK_EQ(pthread_create(&host, NULL, touch_all, &w), 0);
	serve(&w);
	pthread_join(host, NULL);
	for (int i = 0; i < GUESTS; i++) {
		pthread_join(ones[i].thread, NULL);
		gmem_vcpu_free(ones[i].vcpu);
	}
	printf("%llu exits, %llu faults\n", (unsigned long long)w.exits, (unsigned long long)w.faults);
	tear_down_guest(&w.g);
}
