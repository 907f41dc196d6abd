/* SPDX-License-Identifier: MIT */
/*
 * gmem-bench-fill [-f] [-r ROUNDS] [-m MIB] FOLDER: how fast does a memory become whole?
 *
 * gmem_pager_fill() from an image in the page cache into a file that another process has mapped and
 * registered, beside memcpy() from a mapping of the same bytes (populated before) into a fresh mapping of
 * a memory file, and pread() into one. The data do not compress, but for the zstd image. What was filled
 * is compared whole, in the other process.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench.h"
#include "gmem.h"

struct data {
	int fd;
	const char *bytes;
	struct gmem_image *image;
};

static size_t len;

enum plain { MEMCPY, PREAD, PWRITE };

static double measure_plain(const struct data *d, enum plain how)
{
	int memfd = bench_memfd(len);
	char *to = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	const size_t step = 1 << 20;
	double seconds = bench_now();

	if (to == MAP_FAILED)
		bench_die("mmap");
	for (size_t at = 0; at < len; at += step) {
		if (how == MEMCPY)
			memcpy(to + at, d->bytes + at, step);
		else if (how == PREAD && pread(d->fd, to + at, step, (off_t)at) != (ssize_t)step)
			bench_die("pread");
		else if (how == PWRITE && pwrite(memfd, d->bytes + at, step, (off_t)at) != (ssize_t)step)
			bench_die("pwrite");
	}
	seconds = bench_now() - seconds;
	if (memcmp(to, d->bytes, len))
		bench_die("wrong bytes");
	munmap(to, len);
	close(memfd);
	return seconds;
}

static double compare(void *addr, void *arg)
{
	const struct data *d = arg;

	if (memcmp(addr, d->bytes, len))
		bench_die("wrong bytes");
	return 0;
}

/* `image`: from the image, else from the raw file. */
static double measure_fill(struct data *d, bool image)
{
	struct gmem_region region = { .size = sizeof(region), .len = len };
	struct gmem_source *source;
	struct bench_peer peer;
	struct gmem_file *file;
	struct gmem_pager *pager;
	double seconds;

	if (gmem_file_create(len, NULL, &file))
		bench_die("file");
	if (image ? gmem_source_new_image(d->image, 0, &source) : gmem_source_new_fd(d->fd, 0, len, &source))
		bench_die("source");
	bench_peer_start(&peer, gmem_file_fd(file), len, false, compare, d);
	region.file = file;
	region.uffd = peer.uffd;
	region.hva = peer.hva;
	region.source = source;
	if (gmem_pager_create(NULL, &pager) || gmem_pager_add_region(pager, &region) < 0)
		bench_die("pager");
	seconds = bench_now();
	if (gmem_pager_fill(pager, NULL, NULL) != (int64_t)(len / BENCH_PAGE))
		bench_die("fill");
	seconds = bench_now() - seconds;
	bench_peer_go(&peer);
	gmem_pager_free(pager);
	gmem_source_unref(source);
	gmem_file_free(file);
	return seconds;
}

static void make_data(const struct bench *b, bool half, struct data *d)
{
	struct gmem_image_writer_opts opts = { .size = sizeof(opts) };
	struct gmem_image_writer *writer;
	char path[4096];

	opts.compression = half ? GMEM_COMPRESS_ZSTD : GMEM_COMPRESS_NONE;
	d->fd = bench_raw_file(b, "fill.raw", half, path, sizeof(path));
	d->bytes = bench_map_file(d->fd, len);
	unlink(path);
	snprintf(path, sizeof(path), "%s/fill.gmem", b->dir);
	if (gmem_image_create(path, &opts, &writer) ||
	    gmem_image_add_region(writer, "ram", UINT64_MAX, d->fd, 0, len, NULL, NULL) || gmem_image_commit(writer) ||
	    gmem_image_open(path, &d->image))
		bench_die("image");
	bench_warm(gmem_image_fd(d->image));
	unlink(path);
}

int main(int argc, char **argv)
{
	struct bench_row *copy, *by_pread, *by_pwrite, *raw, *none, *zstd;
	struct data random, half;
	static struct bench b;
	double gib;

	bench_begin(&b, "fill", 1024, argc, argv);
	len = (size_t)b.mib << 20;
	gib = b.mib / 1024.0;
	make_data(&b, false, &random);
	make_data(&b, true, &half);
	copy = bench_row(&b, "GiB/s", NULL, "memcpy from a populated mapping into a fresh one");
	by_pread = bench_row(&b, "GiB/s", copy, "pread into a fresh mapping");
	by_pwrite = bench_row(&b, "GiB/s", copy, "pwrite from a populated mapping into the memory file");
	raw = bench_row(&b, "GiB/s", copy, "gmem_pager_fill, raw file");
	none = bench_row(&b, "GiB/s", copy, "gmem_pager_fill, image none");
	zstd = bench_row(&b, "GiB/s", copy, "gmem_pager_fill, image zstd (half compressible)");
	measure_plain(&random, MEMCPY);
	for (unsigned int i = 0; i < b.rounds; i++) {
		bench_add(copy, gib / measure_plain(&random, MEMCPY));
		bench_add(none, gib / measure_fill(&random, true));
		bench_add(by_pread, gib / measure_plain(&random, PREAD));
		bench_add(raw, gib / measure_fill(&random, false));
		bench_add(by_pwrite, gib / measure_plain(&random, PWRITE));
		bench_add(zstd, gib / measure_fill(&half, true));
	}
	bench_target(&b, none, true, 0.8, "fill from an uncompressed page-cached image, beside memcpy");
	gmem_image_close(random.image);
	gmem_image_close(half.image);
	return bench_end(&b);
}
