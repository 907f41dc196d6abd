/* SPDX-License-Identifier: MIT */
/*
 * gmem-bench-replay [-f] [-r ROUNDS] [-m MIB] FOLDER: what is a recorded working set worth?
 *
 * Speed: gmem_pager_replay() of working sets of runs of 2 MiB, of 64 KiB and of single pages, a quarter of the memory
 * each, in random order, beside memcpy() of the same runs from a populated mapping into a fresh one, and pread() into
 * one. Faults: how long a touch takes that needs a page, alone, while gmem_pager_fill() runs, and while a replay does;
 * the toucher computes for 100 us between touches. A restore: the touches of a quarter of the memory, lazily, and with
 * a replay that begins when they do. Everything is touched in another process, and compared there.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"
#include "gmem.h"

#define MAX_TOUCHES 4000u
#define THINK_S 100e-6
#define NKINDS 3u

struct set {
	const char *name;
	uint32_t run; /* pages */
	uint32_t n; /* runs */
	uint32_t *first; /* page of each, in the order they are wanted */
	struct gmem_workset *ws;
};

/* Shared with the process that touches. */
struct shared {
	_Atomic bool stop;
	_Atomic uint32_t n;
	double us[MAX_TOUCHES];
};

static struct {
	size_t len;
	uint32_t npages;
	int fd;
	const char *bytes;
	struct gmem_source *source;
	struct set sets[NKINDS];
	struct shared *shared;
} all;

static uint64_t rnd(uint64_t *x)
{
	*x = *x * 6364136223846793005u + 1442695040888963407u;
	return *x >> 33;
}

/* Every fourth run of the memory, shuffled. */
static void make_set(struct set *s, const char *name, uint32_t run)
{
	uint64_t x = run;

	s->name = name;
	s->run = run;
	s->n = all.npages / run / 4;
	s->first = calloc(s->n, sizeof(*s->first));
	for (uint32_t i = 0; i < s->n; i++)
		s->first[i] = (4 * i + (uint32_t)(rnd(&x) % 3)) * run;
	for (uint32_t i = s->n; i > 1; i--) {
		uint32_t k = (uint32_t)(rnd(&x) % i), t = s->first[i - 1];

		s->first[i - 1] = s->first[k];
		s->first[k] = t;
	}
	if (gmem_workset_create(NULL, NULL, &s->ws))
		bench_die("working set");
	for (uint32_t i = 0; i < s->n; i++) {
		struct gmem_workset_entry e = {
			.size = sizeof(e),
			.off = (uint64_t)s->first[i] * BENCH_PAGE,
			.len = (uint64_t)run * BENCH_PAGE,
			.ns = i * 1000u,
			.touches = 1,
		};

		if (gmem_workset_add(s->ws, &e))
			bench_die("working set");
	}
}

/* ---- speed */

static double plain(const struct set *s, bool by_pread)
{
	size_t n = (size_t)s->run * BENCH_PAGE;
	int memfd = bench_memfd(all.len);
	char *to = mmap(NULL, all.len, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	double seconds = bench_now();

	if (to == MAP_FAILED)
		bench_die("mmap");
	for (uint32_t i = 0; i < s->n; i++) {
		size_t at = (size_t)s->first[i] * BENCH_PAGE;

		if (!by_pread)
			memcpy(to + at, all.bytes + at, n);
		else if (pread(all.fd, to + at, n, (off_t)at) != (ssize_t)n)
			bench_die("pread");
	}
	seconds = bench_now() - seconds;
	munmap(to, all.len);
	close(memfd);
	return seconds;
}

struct served {
	struct gmem_file *file;
	struct gmem_pager *pager;
	struct bench_peer peer;
};

static void serve(struct served *v, double (*run)(void *, void *), void *arg)
{
	struct gmem_region region = { .size = sizeof(region), .len = all.len, .source = all.source };

	if (gmem_file_create(all.len, NULL, &v->file))
		bench_die("file");
	bench_peer_start(&v->peer, gmem_file_fd(v->file), all.len, false, run, arg);
	region.file = v->file;
	region.uffd = v->peer.uffd;
	region.hva = v->peer.hva;
	if (gmem_pager_create(NULL, &v->pager) || gmem_pager_add_region(v->pager, &region) < 0)
		bench_die("pager");
}

static void end(struct served *v)
{
	gmem_pager_free(v->pager);
	gmem_file_free(v->file);
}

static double compare_set(void *addr, void *arg)
{
	const struct set *s = arg;

	for (uint32_t i = 0; i < s->n; i++) {
		size_t at = (size_t)s->first[i] * BENCH_PAGE;

		if (memcmp((const char *)addr + at, all.bytes + at, (size_t)s->run * BENCH_PAGE))
			bench_die("wrong bytes");
	}
	return 0;
}

/* Of this thread: on a machine that others use the clock on the wall says little of what a thread can do. */
static double processor_time(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double replay_speed(struct set *s, double *ret_processor)
{
	struct gmem_pager_stats stats = { .size = sizeof(stats) };
	struct served v;
	double seconds;

	serve(&v, compare_set, s);
	*ret_processor = processor_time();
	seconds = bench_now();
	if (gmem_pager_replay(v.pager, s->ws, NULL, NULL, NULL) != (int64_t)s->n * s->run)
		bench_die("replay: %s", gmem_last_error());
	seconds = bench_now() - seconds;
	*ret_processor = processor_time() - *ret_processor;
	bench_peer_go(&v.peer);
	gmem_pager_stats(v.pager, &stats);
	if (stats.missing)
		bench_die("%llu faults after the replay", (unsigned long long)stats.missing);
	end(&v);
	return seconds;
}

/* ---- how long a fault takes */

/* Pages of the last quarter, where a fill comes last, in an order in which no window opens. */
static double touch_now_and_then(void *addr, void *arg)
{
	uint32_t first = all.npages / 4 * 3, n = all.npages / 4, wrong = 0;
	uint64_t x = 7;

	for (uint32_t i = 0; i < MAX_TOUCHES && !atomic_load(&all.shared->stop); i++) {
		uint32_t page = first + (uint32_t)((i * 7919u + rnd(&x) % 4) % n);
		double begun = bench_now(), us;

		wrong += *(const volatile uint64_t *)((const char *)addr + (size_t)page * BENCH_PAGE) !=
			 bench_first_word(page);
		us = (bench_now() - begun) * 1e6;
		/* What was there already is no fault. */
		if (us > 1.5) {
			all.shared->us[all.shared->n] = us;
			atomic_fetch_add(&all.shared->n, 1);
		}
		while (bench_now() - begun < us * 1e-6 + THINK_S)
			;
	}
	if (wrong)
		bench_die("%u wrong words", wrong);
	return 0;
}

enum beside { NOTHING, FILL, REPLAY };

struct work {
	struct served *v;
	enum beside beside;
	_Atomic bool stop;
};

static int stop_work(void *opaque, uint64_t done, uint64_t total)
{
	struct work *w = opaque;

	/* From where its toucher is on it would have no faults to be measured. */
	return atomic_load(&w->stop) || done > total / 4 * 3 ? -1 : 0;
}

static void *do_work(void *arg)
{
	struct work *w = arg;

	if (w->beside == FILL)
		gmem_pager_fill(w->v->pager, stop_work, w);
	else
		gmem_pager_replay(w->v->pager, all.sets[1].ws, NULL, stop_work, w);
	atomic_store(&all.shared->stop, true);
	return NULL;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double fault_p99(enum beside beside, double *ret_median)
{
	struct served v;
	struct work w = { .v = &v, .beside = beside };
	pthread_t thread;
	uint32_t n;

	atomic_store(&all.shared->stop, false);
	atomic_store(&all.shared->n, 0);
	serve(&v, touch_now_and_then, NULL);
	if (beside != NOTHING && pthread_create(&thread, NULL, do_work, &w))
		bench_die("thread");
	bench_peer_go(&v.peer);
	atomic_store(&w.stop, true);
	if (beside != NOTHING)
		pthread_join(thread, NULL);
	end(&v);
	n = atomic_load(&all.shared->n);
	if (!n)
		bench_die("no faults");
	qsort(all.shared->us, n, sizeof(double), by_value);
	*ret_median = all.shared->us[n / 2];
	return all.shared->us[(uint64_t)n * 99 / 100];
}

/* ---- a restore */

static double touch_set(void *addr, void *arg)
{
	const struct set *s = arg;
	double begun = bench_now();
	uint32_t wrong = 0;

	for (uint32_t i = 0; i < s->n; i++)
		for (uint32_t k = 0; k < s->run; k++)
			wrong += *(const volatile uint64_t *)((const char *)addr +
							      (size_t)(s->first[i] + k) * BENCH_PAGE) !=
				 bench_first_word(s->first[i] + k);
	if (wrong)
		bench_die("%u wrong words", wrong);
	return bench_now() - begun;
}

struct restoring {
	struct served *v;
	struct gmem_workset *ws;
};

static void *replay_thread(void *arg)
{
	struct restoring *r = arg;

	if (gmem_pager_replay(r->v->pager, r->ws, NULL, NULL, NULL) < 0)
		bench_die("replay: %s", gmem_last_error());
	return NULL;
}

static double restore(struct set *s, bool replay, double *ret_faults)
{
	struct gmem_pager_stats stats = { .size = sizeof(stats) };
	struct served v;
	struct restoring r = { &v, s->ws };
	pthread_t thread;

	serve(&v, touch_set, s);
	if (replay && pthread_create(&thread, NULL, replay_thread, &r))
		bench_die("thread");
	bench_peer_go(&v.peer);
	if (replay)
		pthread_join(thread, NULL);
	gmem_pager_stats(v.pager, &stats);
	*ret_faults = (double)(stats.missing + stats.minor);
	end(&v);
	return v.peer.seconds;
}

int main(int argc, char **argv)
{
	struct bench_row *copy[NKINDS], *pread_row[NKINDS], *speed[NKINDS], *cpu[NKINDS], *p99[3], *median[3], *time[2],
		*faults[2];
	static const char *const beside[] = { "alone", "while a fill runs", "while a replay runs" };
	static struct bench b;
	char path[4096];

	bench_begin(&b, "replay", 512, argc, argv);
	all.len = (size_t)b.mib << 20;
	all.npages = b.mib << 8;
	all.fd = bench_raw_file(&b, "replay.raw", false, path, sizeof(path));
	all.bytes = bench_map_file(all.fd, all.len);
	unlink(path);
	all.shared = mmap(NULL, sizeof(*all.shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (all.shared == MAP_FAILED || gmem_source_new_fd(all.fd, 0, all.len, &all.source))
		bench_die("source");
	make_set(&all.sets[0], "runs of 2 MiB", 512);
	make_set(&all.sets[1], "runs of 64 KiB", 16);
	make_set(&all.sets[2], "single pages", 1);
	for (unsigned int k = 0; k < NKINDS; k++) {
		const char *name = all.sets[k].name;

		copy[k] = bench_row(&b, "GB/s", NULL, "%s: memcpy into a fresh mapping", name);
		pread_row[k] = bench_row(&b, "GB/s", copy[k], "%s: pread into a fresh mapping", name);
		speed[k] = bench_row(&b, "GB/s", copy[k], "%s: replay", name);
		cpu[k] = bench_row(&b, "GB/s", NULL, "%s: replay, by the thread's own time", name);
		bench_target_absolute(&b, cpu[k], true, 1.5, "replay, of one thread's time, %s", name);
	}
	for (unsigned int k = 0; k < 3; k++) {
		median[k] = bench_row(&b, "us", k ? median[0] : NULL, "a fault, median: %s", beside[k]);
		p99[k] = bench_row(&b, "us", k ? p99[0] : NULL, "a fault, p99: %s", beside[k]);
		if (k)
			bench_target(&b, p99[k], false, 2, "p99 of a fault %s, beside alone", beside[k]);
	}
	for (unsigned int k = 0; k < 2; k++) {
		time[k] = bench_row(&b, "ms", k ? time[0] : NULL, "set touched, 64 KiB: %s", k ? "replayed" : "lazily");
		faults[k] = bench_row(&b, "", k ? faults[0] : NULL, "faults of it: %s", k ? "replayed" : "lazily");
	}
	for (unsigned int i = 0; i < b.rounds + 1; i++) {
		for (unsigned int k = 0; k < NKINDS; k++) {
			double gb = (double)all.sets[k].n * all.sets[k].run * BENCH_PAGE / 1e9, s[4];

			s[0] = plain(&all.sets[k], false);
			s[1] = replay_speed(&all.sets[k], &s[3]);
			s[2] = plain(&all.sets[k], true);
			if (!i)
				continue;
			bench_add(copy[k], gb / s[0]);
			bench_add(speed[k], gb / s[1]);
			bench_add(pread_row[k], gb / s[2]);
			bench_add(cpu[k], gb / s[3]);
		}
		for (unsigned int k = 0; k < 3; k++) {
			double m, p = fault_p99((enum beside)k, &m);

			if (!i)
				continue;
			bench_add(median[k], m);
			bench_add(p99[k], p);
		}
		for (unsigned int k = 0; k < 2; k++) {
			double f, s = restore(&all.sets[1], k == 1, &f);

			if (!i)
				continue;
			bench_add(time[k], s * 1e3);
			bench_add(faults[k], f);
		}
	}
	for (unsigned int k = 0; k < NKINDS; k++)
		gmem_workset_close(all.sets[k].ws);
	gmem_source_unref(all.source);
	return bench_end(&b);
}
