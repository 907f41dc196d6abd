/* SPDX-License-Identifier: MIT */
/*
 * gmem-bench-populate [-f] [-r ROUNDS] [-m MIB] FOLDER: how fast do bytes become private memory?
 *
 * gmem_populate() without a function and with one that does nothing, into a fresh file, beside the bare loop:
 * process_vm_readv(2) of 64 pages into a bounce buffer, and from there memcpy() into a fresh mapping of a memory file,
 * or pwrite(2) into the file, 64 pages or one page at a time. For MIB and for 4 MiB. What was populated is converted to
 * shared and compared whole.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "bench.h"
#include "gmem.h"

#define BATCH (64 * (size_t)BENCH_PAGE)
#define SMALL ((size_t)4 << 20)
#define GFN 0x100000u

enum bare { MEMCPY, PWRITE, PWRITE_PAGES };

static char *source;
static char *bounce;

static void put(enum bare how, int memfd, char *to, size_t at)
{
	size_t step = how == PWRITE ? BATCH : BENCH_PAGE;

	for (size_t i = 0; i < BATCH; i += step) {
		if (how == MEMCPY)
			memcpy(to + at + i, bounce + i, step);
		else if (pwrite(memfd, bounce + i, step, (off_t)(at + i)) != (ssize_t)step)
			bench_die("pwrite");
	}
}

static double measure_bare(size_t len, enum bare how)
{
	int memfd = bench_memfd(len);
	char *to = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	double seconds = bench_now();

	if (to == MAP_FAILED)
		bench_die("mmap");
	for (size_t at = 0; at < len; at += BATCH) {
		struct iovec local = { bounce, BATCH }, remote = { source + at, BATCH };

		if (process_vm_readv(getpid(), &local, 1, &remote, 1, 0) != (ssize_t)BATCH)
			bench_die("process_vm_readv");
		put(how, memfd, to, at);
	}
	seconds = bench_now() - seconds;
	if (memcmp(to, source, len))
		bench_die("wrong bytes");
	munmap(to, len);
	close(memfd);
	return seconds;
}

static int do_nothing(struct gmem_vm *vm, uint64_t gfn, uint64_t pfn, void *src, void *opaque)
{
	return 0;
}

static void compare(struct gmem_file *file, size_t len)
{
	struct gmem_view *view;

	if (gmem_file_set_attributes(file, 0, len, 0, NULL) || gmem_view_map(file, 0, len, PROT_READ, &view))
		bench_die("view");
	if (memcmp(gmem_view_addr(view), source, len))
		bench_die("wrong bytes");
	gmem_view_unmap(view);
}

static double measure_ours(size_t len, gmem_populate_fn fn)
{
	struct gmem_file_opts opts = { .size = sizeof(opts), .flags = GMEM_FILE_INIT_PRIVATE };
	struct gmem_memslot slot = { .size = sizeof(slot), .gpa = (uint64_t)GFN * BENCH_PAGE, .len = len };
	struct gmem_vm *vm;
	double seconds;

	if (gmem_file_create(len, &opts, &slot.file) || gmem_vm_create(NULL, &vm) || gmem_vm_set_slot(vm, &slot))
		bench_die("machine");
	seconds = bench_now();
	if (gmem_populate(vm, GFN, source, (int64_t)(len / BENCH_PAGE), 0, fn, NULL) != (int64_t)(len / BENCH_PAGE))
		bench_die("populate");
	seconds = bench_now() - seconds;
	gmem_vm_free(vm);
	compare(slot.file, len);
	gmem_file_free(slot.file);
	return seconds;
}

struct rows {
	struct bench_row *copy, *write, *write_pages, *ours, *called;
};

static void add_rows(struct bench *b, size_t len, struct rows *r)
{
	unsigned int mib = (unsigned int)(len >> 20);

	r->copy = bench_row(b, "GiB/s", NULL, "%u MiB: process_vm_readv, memcpy into a fresh mapping", mib);
	r->write = bench_row(b, "GiB/s", r->copy, "%u MiB: process_vm_readv, pwrite of 64 pages", mib);
	r->write_pages = bench_row(b, "GiB/s", r->copy, "%u MiB: process_vm_readv, pwrite page by page", mib);
	r->ours = bench_row(b, "GiB/s", r->copy, "%u MiB: gmem_populate", mib);
	r->called = bench_row(b, "GiB/s", r->copy, "%u MiB: gmem_populate, a function that does nothing", mib);
	bench_target(b, r->ours, true, 0.9, "populate of %u MiB beside process_vm_readv and memcpy", mib);
}

/* As often as makes 64 MiB. */
static void round_of(size_t len, const struct rows *r)
{
	size_t times = len < (64u << 20) ? (64u << 20) / len : 1;
	double copy = 0, write = 0, write_pages = 0, ours = 0, called = 0;
	double gib = (double)len * (double)times / (1u << 30);

	for (size_t i = 0; i < times; i++) {
		copy += measure_bare(len, MEMCPY);
		ours += measure_ours(len, NULL);
		write += measure_bare(len, PWRITE);
		called += measure_ours(len, do_nothing);
		write_pages += measure_bare(len, PWRITE_PAGES);
	}
	bench_add(r->copy, gib / copy);
	bench_add(r->write, gib / write);
	bench_add(r->write_pages, gib / write_pages);
	bench_add(r->ours, gib / ours);
	bench_add(r->called, gib / called);
}

int main(int argc, char **argv)
{
	struct rows large, small;
	static struct bench b;
	size_t len;

	bench_begin(&b, "populate", 256, argc, argv);
	len = (size_t)b.mib << 20;
	source = aligned_alloc(BENCH_PAGE, len < SMALL ? SMALL : len);
	bounce = aligned_alloc(BENCH_PAGE, BATCH);
	if (!source || !bounce)
		bench_die("memory");
	memset(bounce, 0, BATCH);
	for (size_t page = 0; page < (len < SMALL ? SMALL : len) / BENCH_PAGE; page++)
		bench_page(page, false, source + page * BENCH_PAGE);
	add_rows(&b, len, &large);
	add_rows(&b, SMALL, &small);
	measure_ours(len, NULL);
	measure_bare(len, MEMCPY);
	for (unsigned int i = 0; i < b.rounds; i++) {
		round_of(len, &large);
		round_of(SMALL, &small);
	}
	free(source);
	free(bounce);
	return bench_end(&b);
}
