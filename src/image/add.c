/* SPDX-License-Identifier: MIT */
/* Adding regions and sections to an image. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "image/hash.h"
#include "image/writer.h"

/* The first byte from `pos` on that may not be zero, or `end`. Moves the descriptor's position. */
static uint64_t next_data(int fd, uint64_t pos, uint64_t end, bool *seekable)
{
	off_t at;

	if (!*seekable)
		return pos;
	at = lseek(fd, (off_t)pos, SEEK_DATA);
	if (at >= 0)
		return gmem_min_u64((uint64_t)at, end);
	if (errno == ENXIO)
		return end;
	*seekable = false;
	return pos;
}

static int write_job(struct gmem_image_writer *w, struct gmem_image_builder *b, struct gmem_image_region_entry *e,
		     struct gmem_image_job *job)
{
	uint32_t clen = w->opts.chunk_len;
	uint64_t off;
	int r;

	if (job->error < 0)
		return gmem_err(job->error, "%s", job->text);
	if (job->out_len == 0)
		return 0;
	r = gmem_image_append(w, job->out, job->out_len, &off);
	for (uint32_t at = 0; r == 0 && at < job->len; at += clen) {
		struct gmem_image_chunk *c = &job->chunk[at / clen];

		if (!c->mask)
			continue;
		c->off += off;
		e->data_pages += (unsigned int)__builtin_popcountll(c->mask);
		e->stored_bytes += c->stored_len;
		r = gmem_image_builder_add(b, (job->off + at) / clen, c);
	}
	return r;
}

/* Windows with data go to the workers, come back in order and are written, until the end or a failure. */
static int write_windows(struct gmem_image_writer *w, struct gmem_image_pool *pool, struct gmem_image_builder *b,
			 struct gmem_image_region_entry *e, int fd, uint64_t off, gmem_progress_fn progress,
			 void *opaque)
{
	uint64_t pos = 0, len = e->len;
	bool seekable = true;
	int r = 0;

	while (r == 0) {
		struct gmem_image_job *job;
		uint64_t done;

		while (pos < len && !gmem_image_pool_full(pool)) {
			uint64_t start = next_data(fd, off + pos, off + len, &seekable) - off;

			if (start >= len) {
				pos = len;
				break;
			}
			start -= start % GMEM_IMAGE_WINDOW;
			pos = gmem_min_u64(start + GMEM_IMAGE_WINDOW, len);
			gmem_image_pool_submit(pool, start, (uint32_t)(pos - start));
		}
		if (gmem_image_pool_empty(pool))
			break;
		job = gmem_image_pool_collect(pool);
		done = job->off + job->len;
		r = write_job(w, b, e, job);
		gmem_image_pool_release(pool);
		if (r == 0 && progress)
			r = progress(opaque, done, len);
	}
	if (r == 0 && progress)
		r = progress(opaque, len, len);
	return r < 0 ? r : 0;
}

static int check_region(const struct gmem_image_writer *w, const char *name, uint64_t gpa, int fd, uint64_t off,
			uint64_t len, struct stat *st)
{
	if (!gmem_image_name_ok(name))
		return gmem_err(-EINVAL, "gmem_image_add_region: the name is not 1 to 63 printable characters");
	for (uint32_t i = 0; i < w->nregions; i++)
		if (strcmp(w->regions[i].name, name) == 0)
			return gmem_err(-EEXIST, "gmem_image_add_region: %s has a region \"%s\"", w->path, name);
	if (w->nregions == GMEM_IMAGE_MAX_REGIONS)
		return gmem_err(-ENOSPC, "gmem_image_add_region: %s has %u regions, the most there may be", w->path,
				w->nregions);
	if (len == 0 || len > GMEM_IMAGE_MAX_REGION_LEN || !gmem_page_aligned(len) || !gmem_page_aligned(off))
		return gmem_err(-EINVAL, "gmem_image_add_region: off 0x%llx, len 0x%llx: not page-aligned, or too long",
				(unsigned long long)off, (unsigned long long)len);
	if (gpa != UINT64_MAX && (!gmem_page_aligned(gpa) || gpa > UINT64_MAX - len))
		return gmem_err(-EINVAL,
				"gmem_image_add_region: gpa 0x%llx: not page-aligned, or past the end of memory",
				(unsigned long long)gpa);
	if (fstat(fd, st) < 0)
		return gmem_err_sys(-errno, "gmem_image_add_region: descriptor %d", fd);
	if (S_ISREG(st->st_mode) && !gmem_range_inside(off, len, (uint64_t)st->st_size))
		return gmem_err(-EINVAL, "gmem_image_add_region: off 0x%llx, len 0x%llx: past the end of the memory",
				(unsigned long long)off, (unsigned long long)len);
	return 0;
}

int gmem_image_add_region(struct gmem_image_writer *w, const char *name, uint64_t gpa, int fd, uint64_t off,
			  uint64_t len, gmem_progress_fn progress, void *opaque)
{
	struct gmem_image_pool_opts po = {
		.fd = fd,
		.fd_off = off,
		.chunk_len = w->opts.chunk_len,
		.compression = w->opts.compression,
		.level = w->opts.level,
		.threads = w->opts.threads,
	};
	struct gmem_image_region_entry *e = &w->regions[w->nregions];
	struct gmem_image_builder *b = NULL;
	struct gmem_image_pool *pool = NULL;
	uint64_t nchunks;
	struct stat st;
	off_t position;
	int r;

	r = gmem_image_writer_usable(w);
	if (r == 0)
		r = check_region(w, name, gpa, fd, off, len, &st);
	if (r < 0)
		return r;
	memset(e, 0, sizeof(*e));
	strcpy(e->name, name);
	e->gpa = gpa;
	e->len = len;
	nchunks = len / w->opts.chunk_len + (len % w->opts.chunk_len != 0);
	e->levels = gmem_image_levels(nchunks);
	/* Aligned pages copy faster, and can be shared or read past the page cache one day. */
	if (w->opts.compression == GMEM_COMPRESS_NONE)
		w->pos = gmem_page_round_down(w->pos + GMEM_PAGE_SIZE - 1);
	w->expect = w->pos + gmem_min_u64(len, S_ISREG(st.st_mode) ? (uint64_t)st.st_blocks * 512 : len);
	position = lseek(fd, 0, SEEK_CUR);
	b = malloc(sizeof(*b));
	if (!b)
		r = gmem_err(-ENOMEM, "gmem_image_add_region: no memory");
	if (r == 0)
		r = gmem_image_pool_create(&po, &pool);
	if (r == 0) {
		gmem_image_builder_init(b, w, nchunks);
		r = write_windows(w, pool, b, e, fd, off, progress, opaque);
	}
	if (r == 0)
		r = gmem_image_builder_finish(b, &e->root);
	gmem_image_pool_free(pool);
	free(b);
	/* SEEK_DATA moved a position that every holder of this open file shares. */
	if (position >= 0)
		(void)lseek(fd, position, SEEK_SET);
	if (r < 0)
		return w->failed = r;
	w->nregions++;
	return 0;
}

int gmem_image_add_section(struct gmem_image_writer *w, const char *name, const void *data, size_t len)
{
	struct gmem_image_section_entry *s = &w->sections[w->nsections];
	int r = gmem_image_writer_usable(w);

	if (r < 0)
		return r;
	if (!gmem_image_name_ok(name))
		return gmem_err(-EINVAL, "gmem_image_add_section: the name is not 1 to 63 printable characters");
	for (uint32_t i = 0; i < w->nsections; i++)
		if (strcmp(w->sections[i].name, name) == 0)
			return gmem_err(-EEXIST, "gmem_image_add_section: %s has a section \"%s\"", w->path, name);
	if (w->nsections == GMEM_IMAGE_MAX_SECTIONS)
		return gmem_err(-ENOSPC, "gmem_image_add_section: %s has %u sections, the most there may be", w->path,
				w->nsections);
	if (len > GMEM_IMAGE_MAX_SECTION_LEN)
		return gmem_err(-EFBIG, "gmem_image_add_section: \"%s\" has %zu bytes, more than 1 GiB", name, len);
	memset(s, 0, sizeof(*s));
	strcpy(s->name, name);
	s->len = len;
	s->sum = gmem_image_hash(data, len);
	w->expect = w->pos + len;
	r = gmem_image_append(w, data, len, &s->off);
	if (r < 0)
		return w->failed = r;
	w->nsections++;
	return 0;
}
