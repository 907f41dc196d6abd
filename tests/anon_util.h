/* SPDX-License-Identifier: MIT */
/* A program with memory of its own that is served through its userfault descriptor: for tests of anon files. */
#ifndef GMEM_TESTS_ANON_UTIL_H
#define GMEM_TESTS_ANON_UTIL_H

#include <fcntl.h>
#include <poll.h>

#include "fault/pager.h"
#include "file/anon.h"
#include "pager_util.h"
#include "sys/uffd.h"

#define ID 5u
#define THREADS 2

/* Shared with the program. */
struct anon_shared {
	uint64_t hva[2];
	_Atomic bool go, end;
	_Atomic uint32_t done; /* threads whose work is over */
	_Atomic uint64_t ops, removals;
	_Atomic uint64_t at[THREADS]; /* 1 + the page a thread is at */
	_Atomic uint64_t hold_at; /* threads stop when `ops` has come so far; 0: never */
};

struct anon_program {
	struct anon_shared *shared;
	uint64_t npages, unit;
	uint64_t split; /* pages of the first of two mappings; 0: one mapping */
	uint64_t seed, nops;
	pid_t pid;
	int uffd; /* the program's, sent */
	bool write_all; /* every page is written to in the end, which must last */
};

static inline char *anon_at(const struct anon_program *a, uint64_t page)
{
	return a->split && page >= a->split ? (char *)a->shared->hva[1] + (page - a->split) * P :
					      (char *)a->shared->hva[0] + page * P;
}

enum anon_is { SAVED, ZERO, MARKED };

struct anon_thread {
	const struct anon_program *a;
	uint32_t number;
	uint8_t *is;
};

static inline uint64_t anon_mark(uint64_t page)
{
	return 0xa5a5000000000000u | page;
}

static inline void anon_check(const struct anon_program *a, const uint8_t *is, uint64_t page)
{
	const uint64_t *w = (const uint64_t *)anon_at(a, page);
	uint64_t first = *(volatile const uint64_t *)w;
	bool ok = is[page] == MARKED ? first == anon_mark(page) :
		  is[page] == ZERO   ? page_is_zero(w) :
				       page_is(ID, page * P, w);

	if (!ok)
		FAIL("page %llu: wrong, should be %s (first word 0x%llx, zero: %d)", (unsigned long long)page,
		     is[page] == MARKED ? "what was written" :
		     is[page] == ZERO	? "zero" :
					  "as saved",
		     (unsigned long long)first, page_is_zero(w));
}

/* One of the units that are this thread's. */
static inline uint64_t anon_pick(const struct anon_thread *t, uint64_t *seed)
{
	uint64_t per = t->a->unit / P, units = t->a->npages / per;

	return (tap_rand(seed) % (units / THREADS) * THREADS + t->number) * per;
}

static inline void *anon_work(void *arg)
{
	struct anon_thread *t = arg;
	const struct anon_program *a = t->a;
	uint64_t seed = a->seed + t->number, per = a->unit / P;

	for (uint64_t i = 0; i < a->nops; i++) {
		uint64_t base = anon_pick(t, &seed), page = base + tap_rand(&seed) % per;
		uint64_t what = tap_rand(&seed) % 8;
		uint64_t hold = atomic_load(&a->shared->hold_at);

		while (hold && atomic_load(&a->shared->ops) >= hold) {
			usleep(300);
			hold = atomic_load(&a->shared->hold_at);
		}
		atomic_store(&a->shared->at[t->number], page + 1);
		if (what < 2) {
			CHECK_EQ(madvise(anon_at(a, base), a->unit, MADV_DONTNEED), 0);
			memset(t->is + base, ZERO, per);
			atomic_fetch_add(&a->shared->removals, 1);
			if (what)
				anon_check(a, t->is, page);
		} else {
			anon_check(a, t->is, page);
			if (what == 7) {
				*(volatile uint64_t *)anon_at(a, page) = anon_mark(page);
				t->is[page] = MARKED;
			}
		}
		atomic_store(&a->shared->at[t->number], 0);
		atomic_fetch_add(&a->shared->ops, 1);
	}
	atomic_fetch_add(&a->shared->done, 1);
	return NULL;
}

static inline void *anon_map(uint64_t len, bool huge)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, huge ? (flags & ~MAP_NORESERVE) | MAP_HUGETLB : flags, -1, 0);

	if (p == MAP_FAILED && huge)
		SKIP("hugetlb", "too few free huge pages");
	CHECK(p != MAP_FAILED);
	if (!huge)
		CHECK_EQ(madvise(p, len, MADV_NOHUGEPAGE), 0);
	return p;
}

/* As a machine monitor does it: maps, registers missing, sends its descriptor. */
static inline int anon_set_up(struct anon_program *a)
{
	uint64_t len[2] = { a->split ? a->split * P : a->npages * P, (a->npages - a->split) * P };
	bool huge = a->unit > P;
	int uffd = gmem_sys_uffd_open(UFFD_FEATURE_EVENT_REMOVE | (huge ? UFFD_FEATURE_MISSING_HUGETLBFS : 0), NULL);

	CHECK_OK(uffd);
	for (int i = 0; i < (a->split ? 2 : 1); i++) {
		a->shared->hva[i] = (uint64_t)(uintptr_t)anon_map(len[i], huge);
		CHECK_OK(gmem_sys_uffd_register(uffd, a->shared->hva[i], len[i], GMEM_SYS_UFFD_MISSING));
	}
	return uffd;
}

static inline _Noreturn void anon_run(struct anon_program *a, int sock)
{
	struct gmem_wire w = { .type = GMEM_WIRE_REGION };
	struct anon_thread t[THREADS];
	pthread_t threads[THREADS];
	uint8_t *is = calloc(a->npages, 1);
	int uffd = anon_set_up(a);

	CHECK_OK(gmem_wire_send(sock, &w, &uffd, 1));
	while (!atomic_load(&a->shared->go))
		usleep(300);
	for (uint32_t i = 0; i < THREADS; i++) {
		t[i] = (struct anon_thread){ .a = a, .number = i, .is = is };
		CHECK_EQ(pthread_create(&threads[i], NULL, anon_work, &t[i]), 0);
	}
	for (uint32_t i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	for (uint64_t page = 0; page < a->npages; page++)
		anon_check(a, is, page);
	/* Again, when everything has settled. */
	for (uint64_t page = 0; page < a->npages; page++)
		anon_check(a, is, page);
	atomic_store(&a->shared->end, true);
	_exit(0);
}

static inline void anon_start(struct anon_program *a)
{
	int fds[GMEM_WIRE_MAX_FDS], sv[2];
	struct gmem_wire w;

	need_uffd();
	a->shared = mmap(NULL, P, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(a->shared != MAP_FAILED);
	if (!a->unit)
		a->unit = P;
	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv), 0);
	a->pid = fork();
	CHECK(a->pid >= 0);
	if (!a->pid) {
		close(sv[0]);
		anon_run(a, sv[1]);
	}
	close(sv[1]);
	if (gmem_wire_recv(sv[0], &w, fds, NULL)) {
		int status;

		/* It has said why. */
		CHECK_EQ(waitpid(a->pid, &status, 0), a->pid);
		_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
	}
	a->uffd = fds[0];
	close(sv[0]);
}

/* Its regions, of a file that has the pages at the offsets that the source has. */
static inline void anon_add(const struct anon_program *a, struct gmem_pager *pager, struct gmem_file *file,
			    struct gmem_source *source, int pidfd)
{
	struct gmem_region r[2];

	for (int i = 0; i < 2; i++) {
		uint64_t off = i ? a->split * P : 0;

		r[i] = (struct gmem_region){
			.size = sizeof(r[i]),
			.file = file,
			.uffd = a->uffd,
			.hva = a->shared->hva[i],
			.off = off,
			.len = (i || !a->split ? a->npages * P : a->split * P) - off,
			.source = source,
			.source_off = off,
			.pidfd = pidfd,
		};
	}
	CHECK_OK(gmem_pager_add_regions(pager, r, a->split ? 2 : 1));
}

static inline void anon_finish(struct anon_program *a)
{
	wait_ok(a->pid);
	close(a->uffd);
	munmap(a->shared, P);
}

#endif
