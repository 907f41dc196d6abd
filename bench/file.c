/* SPDX-License-Identifier: MIT */
/* What a guest memory file costs beside a bare memfd: made, touched, looked up, punched and converted. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench.h"
#include "gmem.h"

#define TIB (1ull << 40)
#define GIB (1ull << 30)
#define LARGE (16 * GIB)
#define ARRAY_LEN (LARGE / BENCH_PAGE * sizeof(uint32_t))
#define LOOKUPS (1u << 22)
#define CONVERSIONS 100000u
#define TENTH (CONVERSIONS / 10)
#define CONVERTED (64ull << 20)

static const char *const engine_names[] = { [GMEM_ENGINE_USER] = "user", [GMEM_ENGINE_KERNEL] = "kernel" };

static struct gmem_file *new_file(uint64_t len, enum gmem_engine engine)
{
	struct gmem_file_opts o = { .size = sizeof(o), .engine = engine };
	struct gmem_file *file;

	if (gmem_file_create(len, &o, &file))
		bench_die("gmem_file_create");
	return file;
}

static bool has_kernel_engine(void)
{
	struct gmem_file_opts o = { .size = sizeof(o), .engine = GMEM_ENGINE_KERNEL };
	struct gmem_file *file;

	if (gmem_file_create(BENCH_PAGE, &o, &file)) {
		printf("SKIPPED: kernel engine: %s\n", gmem_last_error());
		return false;
	}
	gmem_file_free(file);
	return true;
}

static struct gmem_view *view_of(struct gmem_file *file)
{
	struct gmem_view *view;

	if (gmem_view_map(file, 0, gmem_file_size(file), PROT_READ | PROT_WRITE, &view))
		bench_die("gmem_view_map");
	return view;
}

static char *map_bare(int fd, size_t len)
{
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);

	if (p == MAP_FAILED)
		bench_die("mmap");
	return p;
}

/* ---- made */

struct create_rows {
	struct bench_row *bare, *ours, *kernel;
};

static void create_round(const struct create_rows *r)
{
	double begun = bench_now();
	struct gmem_file *file;
	int fd = bench_memfd(TIB);

	bench_add(r->bare, (bench_now() - begun) * 1e6);
	close(fd);
	begun = bench_now();
	file = new_file(TIB, GMEM_ENGINE_USER);
	bench_add(r->ours, (bench_now() - begun) * 1e6);
	gmem_file_free(file);
	if (!r->kernel)
		return;
	begun = bench_now();
	file = new_file(TIB, GMEM_ENGINE_KERNEL);
	bench_add(r->kernel, (bench_now() - begun) * 1e6);
	gmem_file_free(file);
}

/* ---- touched for the first time */

struct touch_rows {
	enum gmem_engine engine;
	struct bench_row *bare, *ours;
};

static double touch(char *p, size_t len)
{
	double begun = bench_now();

	for (size_t at = 0; at < len; at += BENCH_PAGE)
		*(volatile char *)(p + at) = 1;
	return (bench_now() - begun) * 1e6 / (double)(len / BENCH_PAGE);
}

static double touch_bare(enum gmem_engine engine, size_t len)
{
	struct gmem_file *file = engine == GMEM_ENGINE_KERNEL ? new_file(len, engine) : NULL;
	int fd = file ? gmem_file_fd(file) : bench_memfd(len);
	char *p = map_bare(fd, len);
	double us = touch(p, len);

	munmap(p, len);
	if (file)
		gmem_file_free(file);
	else
		close(fd);
	return us;
}

static double touch_ours(enum gmem_engine engine, size_t len)
{
	struct gmem_file *file = new_file(len, engine);
	struct gmem_view *view = view_of(file);
	double us = touch(gmem_view_addr(view), len);

	gmem_view_unmap(view);
	gmem_file_free(file);
	return us;
}

/* By turns, and who is first by turns too. */
static void touch_round(const struct touch_rows *r, size_t len, unsigned int round)
{
	double bare, ours = 0;

	if (round % 2)
		ours = touch_ours(r->engine, len);
	bare = touch_bare(r->engine, len);
	if (round % 2 == 0)
		ours = touch_ours(r->engine, len);
	bench_add(r->bare, bare);
	bench_add(r->ours, ours);
}

/* ---- looked up */

struct lookup_rows {
	struct bench_row *array, *state, *attributes;
};

static uint32_t *array; /* in shared memory too: what a lookup is at best */
static volatile uint64_t sink;

/* The next page: the one after, or any. */
static inline uint64_t next(uint64_t page, uint64_t npages, bool random)
{
	return (random ? page * 6364136223846793005ull + 1442695040888963407ull : page + 1) & (npages - 1);
}

#define LOOKUP(row, what)                                                                     \
	do {                                                                                  \
		uint64_t page = 0, sum = 0;                                                   \
		double begun = bench_now();                                                   \
		for (unsigned int i = 0; i < LOOKUPS; i++, page = next(page, npages, random)) \
			sum += (uint64_t)(what);                                              \
		sink = sum;                                                                   \
		bench_add(row, (bench_now() - begun) * 1e9 / LOOKUPS);                        \
	} while (0)

static uint64_t attributes_at(const struct gmem_file *file, uint64_t off)
{
	uint64_t attributes;

	if (gmem_file_attributes(file, off, &attributes, NULL))
		bench_die("gmem_file_attributes");
	return attributes;
}

static void lookup_round(const struct lookup_rows *r, const struct gmem_file *file, uint64_t len, bool random)
{
	uint64_t npages = len / BENCH_PAGE;

	LOOKUP(r->array, array[page]);
	LOOKUP(r->state, gmem_file_page_state(file, page * BENCH_PAGE));
	LOOKUP(r->attributes, attributes_at(file, page * BENCH_PAGE));
}

static void add_lookup_rows(struct bench *b, struct lookup_rows *r, const char *what)
{
	r->array = bench_row(b, "ns", NULL, "lookup, %s: a word of an array", what);
	r->state = bench_row(b, "ns", r->array, "lookup, %s: gmem_file_page_state", what);
	r->attributes = bench_row(b, "ns", r->array, "lookup, %s: gmem_file_attributes, runs of 2 pages", what);
}

/* Runs of two pages on either side, and every word of the table there. */
static struct gmem_file *lookup_file(void)
{
	struct gmem_file *file = new_file(LARGE, GMEM_ENGINE_USER);

	for (uint64_t off = 0; off < LARGE; off += 4 * BENCH_PAGE)
		if (gmem_file_set_attributes(file, off, 2 * BENCH_PAGE, GMEM_ATTRIBUTE_PRIVATE, NULL))
			bench_die("gmem_file_set_attributes");
	if (gmem_file_punch(file, 0, LARGE))
		bench_die("gmem_file_punch");
	memset(array, 1, ARRAY_LEN);
	return file;
}

/* ---- punched */

static const struct punch_size {
	uint64_t len, of; /* of one punch, and of all of them */
	const char *name;
} punch_sizes[] = { { BENCH_PAGE, 16 << 20, "4 KiB" }, { 2 << 20, 256 << 20, "2 MiB" }, { GIB, GIB, "1 GiB" } };
#define NSIZES (sizeof(punch_sizes) / sizeof(punch_sizes[0]))

struct punch_rows {
	enum gmem_engine engine;
	struct bench_row *bare[NSIZES], *bare_written[NSIZES], *view[NSIZES], *written[NSIZES], *bare_absent, *absent,
		*removed;
};

static void punch_bare(int fd, uint64_t off, uint64_t len)
{
	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len))
		bench_die("fallocate");
}

/* Microseconds a punch. */
static double punch_all(struct gmem_file *file, int fd, const struct punch_size *s)
{
	double begun = bench_now();

	for (uint64_t off = 0; off < s->of; off += s->len) {
		if (!file)
			punch_bare(fd, off, s->len);
		else if (gmem_file_punch(file, off, s->len))
			bench_die("gmem_file_punch");
	}
	return (bench_now() - begun) * 1e6 / (double)(s->of / s->len);
}

/* VIEW: put there by a mapping, so that the table knows nothing; WRITTEN: by the library, or write(2), and mapped. */
enum there { ABSENT, VIEW, WRITTEN, REMOVED };

static const char one_page[BENCH_PAGE] = { 1 };

static double measure_bare_punch(enum gmem_engine engine, const struct punch_size *s, enum there there)
{
	struct gmem_file *file = engine == GMEM_ENGINE_KERNEL ? new_file(s->of, engine) : NULL;
	int fd = file ? gmem_file_fd(file) : bench_memfd(s->of);
	char *p = map_bare(fd, s->of);
	double us;

	for (uint64_t off = 0; there == WRITTEN && !file && off < s->of; off += BENCH_PAGE)
		if (pwrite(fd, one_page, BENCH_PAGE, (off_t)off) != BENCH_PAGE)
			bench_die("pwrite");
	if (there != ABSENT)
		touch(p, s->of);
	us = punch_all(NULL, fd, s);
	munmap(p, s->of);
	if (file)
		gmem_file_free(file);
	else
		close(fd);
	return us;
}

static double measure_punch(enum gmem_engine engine, const struct punch_size *s, enum there there)
{
	struct gmem_file *file = new_file(s->of, engine);
	struct gmem_view *view = view_of(file);
	double us;

	for (uint64_t off = 0; there == WRITTEN && off < s->of; off += BENCH_PAGE)
		if (gmem_file_write(file, off, one_page, BENCH_PAGE))
			bench_die("gmem_file_write");
	if (there == VIEW || there == WRITTEN)
		touch(gmem_view_addr(view), s->of);
	if (there == REMOVED)
		punch_all(file, -1, s);
	us = punch_all(file, -1, s);
	if (*(volatile char *)gmem_view_addr(view))
		bench_die("wrong bytes");
	gmem_view_unmap(view);
	gmem_file_free(file);
	return us;
}

static void punch_round(const struct punch_rows *r)
{
	for (unsigned int i = 0; i < NSIZES; i++) {
		bench_add(r->bare[i], measure_bare_punch(r->engine, &punch_sizes[i], VIEW));
		if (r->engine == GMEM_ENGINE_USER)
			bench_add(r->bare_written[i], measure_bare_punch(r->engine, &punch_sizes[i], WRITTEN));
		bench_add(r->view[i], measure_punch(r->engine, &punch_sizes[i], VIEW));
		bench_add(r->written[i], measure_punch(r->engine, &punch_sizes[i], WRITTEN));
	}
	bench_add(r->bare_absent, measure_bare_punch(r->engine, &punch_sizes[2], ABSENT));
	bench_add(r->absent, measure_punch(r->engine, &punch_sizes[2], ABSENT));
	bench_add(r->removed, measure_punch(r->engine, &punch_sizes[2], REMOVED));
}

static void add_punch_rows(struct bench *b, struct punch_rows *r, enum gmem_engine engine)
{
	const char *e = engine_names[engine], *bare = engine == GMEM_ENGINE_KERNEL ? "guest_memfd" : "memfd";

	r->engine = engine;
	for (unsigned int i = 0; i < NSIZES; i++) {
		const char *size = punch_sizes[i].name;

		r->bare[i] = bench_row(b, "us", NULL, "punch, %s: fallocate of a %s", size, bare);
		r->view[i] =
			bench_row(b, "us", r->bare[i], "punch, %s: gmem_file_punch, %s, put there by a view", size, e);
		/* A guest_memfd is written through a second mapping, which is the library's own. */
		if (engine == GMEM_ENGINE_USER)
			r->bare_written[i] = bench_row(b, "us", NULL, "punch, %s: fallocate of a memfd, written", size);
		r->written[i] = bench_row(b, "us", engine == GMEM_ENGINE_USER ? r->bare_written[i] : r->bare[i],
					  "punch, %s: gmem_file_punch, %s, written", size, e);
		if (engine == GMEM_ENGINE_USER)
			bench_target(b, r->view[i], false, 1.5, "gmem_file_punch of %s beside fallocate", size);
	}
	r->bare_absent = bench_row(b, "us", NULL, "punch, 1 GiB absent: fallocate of a %s", bare);
	r->absent = bench_row(b, "us", r->bare_absent, "punch, 1 GiB absent: gmem_file_punch, %s", e);
	r->removed = bench_row(b, "us", r->bare_absent, "punch, 1 GiB absent: gmem_file_punch, %s, again", e);
}

/* ---- converted while it is being touched */

struct convert_rows {
	struct bench_row *first, *last, *vmas;
};

static _Thread_local sigjmp_buf bus_jmp;
static _Atomic bool stop;
static _Atomic uint64_t touches;

static void on_bus(int sig)
{
	siglongjmp(bus_jmp, sig);
}

static void *touch_any(void *view)
{
	char *p = gmem_view_addr(view);
	volatile uint64_t page = 1;

	(void)!sigsetjmp(bus_jmp, 1);
	while (!atomic_load(&stop)) {
		page = next(page, CONVERTED / BENCH_PAGE, true);
		atomic_fetch_add_explicit(&touches, 1, memory_order_relaxed);
		*(volatile char *)(p + page * BENCH_PAGE);
	}
	return NULL;
}

static unsigned int count_vmas(void)
{
	char buf[65536];
	unsigned int n = 0;
	ssize_t got;
	int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		bench_die("/proc/self/maps");
	while ((got = read(fd, buf, sizeof(buf))) > 0)
		for (ssize_t i = 0; i < got; i++)
			n += buf[i] == '\n';
	close(fd);
	return n;
}

/* Turns pages round, any of them. Microseconds a conversion. */
static double convert_some(struct gmem_file *file, uint64_t *seed)
{
	double begun = bench_now();

	for (unsigned int i = 0; i < TENTH; i++) {
		uint64_t attributes, off;

		*seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
		off = (*seed >> 33) % (CONVERTED / BENCH_PAGE) * BENCH_PAGE;
		if (gmem_file_attributes(file, off, &attributes, NULL) ||
		    gmem_file_set_attributes(file, off, BENCH_PAGE, attributes ^ GMEM_ATTRIBUTE_PRIVATE, NULL))
			bench_die("gmem_file_set_attributes");
	}
	return (bench_now() - begun) * 1e6 / TENTH;
}

static void convert_round(const struct convert_rows *r, uint64_t seed)
{
	struct gmem_file *file = new_file(CONVERTED, GMEM_ENGINE_USER);
	struct gmem_view *view = view_of(file);
	unsigned int vmas, most = 0, least = UINT32_MAX;
	pthread_t thread;

	touch(gmem_view_addr(view), CONVERTED);
	atomic_store(&stop, false);
	if (pthread_create(&thread, NULL, touch_any, view))
		bench_die("pthread_create");
	/* What the first conversion, and the thread, need for themselves. */
	convert_some(file, &seed);
	vmas = count_vmas();
	for (int tenth = 0; tenth < 10; tenth++) {
		double us = convert_some(file, &seed);
		unsigned int now = count_vmas();

		most = now > most ? now : most;
		least = now < least ? now : least;
		if (tenth == 0)
			bench_add(r->first, us);
		if (tenth == 9)
			bench_add(r->last, us);
	}
	atomic_store(&stop, true);
	pthread_join(thread, NULL);
	printf("  mappings of the process: %u before, %u to %u during, %u after %u conversions; %llu touches\n", vmas,
	       least, most, count_vmas(), CONVERSIONS, (unsigned long long)atomic_exchange(&touches, 0));
	bench_add(r->vmas, (double)most - (double)vmas);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

int main(int argc, char **argv)
{
	struct create_rows create = { 0 };
	struct touch_rows touched[2];
	struct lookup_rows in_order, any_small, any;
	struct punch_rows punched[2];
	struct convert_rows converted;
	unsigned int engines;
	int fd;
	struct gmem_file *file;
	static struct bench b;

	bench_begin(&b, "file", 256, argc, argv);
	signal(SIGBUS, on_bus);
	engines = has_kernel_engine() ? 2 : 1;
	create.bare = bench_row(&b, "us", NULL, "create 1 TiB: memfd_create, ftruncate");
	create.ours = bench_row(&b, "us", create.bare, "create 1 TiB: gmem_file_create, user");
	if (engines > 1)
		create.kernel = bench_row(&b, "us", create.bare, "create 1 TiB: gmem_file_create, kernel, and its VM");
	for (unsigned int e = 0; e < engines; e++) {
		enum gmem_engine engine = e ? GMEM_ENGINE_KERNEL : GMEM_ENGINE_USER;
		struct touch_rows *t = &touched[e];

		t->engine = engine;
		t->bare = bench_row(&b, "us", NULL, "first touch of a page: a mapping of a bare %s",
				    e ? "guest_memfd" : "memfd");
		t->ours = bench_row(&b, "us", t->bare, "first touch of a page: a view, %s", engine_names[engine]);
	}
	bench_target(&b, touched[0].ours, false, 1.10, "first touch of a shared page through a view");
	add_lookup_rows(&b, &in_order, "in order");
	add_lookup_rows(&b, &any_small, "any of 1 GiB");
	add_lookup_rows(&b, &any, "any of 16 GiB");
	bench_target_absolute(&b, in_order.state, false, 5, "the state of a page, in order");
	bench_target_absolute(&b, any_small.state, false, 5, "the state of a page, any of 1 GiB");
	bench_target_absolute(&b, any.state, false, 5, "the state of a page, any of 16 GiB");
	for (unsigned int e = 0; e < engines; e++)
		add_punch_rows(&b, &punched[e], e ? GMEM_ENGINE_KERNEL : GMEM_ENGINE_USER);
	converted.first = bench_row(&b, "us", NULL, "convert 4 KiB, touched meanwhile: the first tenth of 100,000");
	converted.last = bench_row(&b, "us", converted.first, "convert 4 KiB, touched meanwhile: the last tenth");
	converted.vmas = bench_row(&b, "", NULL, "convert 4 KiB, touched meanwhile: mappings more than before");
	bench_target(&b, converted.last, false, 1.3, "the last tenth of 100,000 conversions beside the first");
	fd = bench_memfd(ARRAY_LEN);
	array = (uint32_t *)map_bare(fd, ARRAY_LEN);
	close(fd);
	file = lookup_file();
	for (unsigned int i = 0; i < b.rounds; i++) {
		create_round(&create);
		for (unsigned int e = 0; e < engines; e++)
			touch_round(&touched[e], (size_t)b.mib << 20, i);
		lookup_round(&in_order, file, LARGE, false);
		lookup_round(&any_small, file, GIB, true);
		lookup_round(&any, file, LARGE, true);
		for (unsigned int e = 0; e < engines; e++)
			punch_round(&punched[e]);
		convert_round(&converted, i + 1);
	}
	gmem_file_free(file);
	munmap(array, ARRAY_LEN);
	return bench_end(&b);
}
