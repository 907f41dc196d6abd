/* SPDX-License-Identifier: MIT */
/*
 * Bytes of files as they are: a raw memory file, a block device, another memory file; and files above it that have what
 * changed (diff snapshots). Which file has a page, and which pages none has, is decided once, when the source is made.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "source/extents.h"
#include "source/source.h"

#define MAX_LAYERS 256u
/*
 * What is read together from a disk when one page of it is wanted, as the kernel does around a fault of a mapped file.
 * From memory each page costs what it costs, and a page that nobody wants is a loss: there only what is wanted is read.
 */
#define WINDOW (64u * 1024)
/* Which of the two it is: more with each read that would have had to wait, less with each that had not. */
#define COLD_STEP 4u
#define COLD_MOST 64u

struct layer {
	int fd;
	bool regular;
	uint64_t size;
	char name[24]; /* for errors */
	struct timespec changed; /* what the file's time of change was before its extents were asked for */
};

struct fd_source {
	struct gmem_extents data; /* of all layers together */
	uint64_t base; /* offset 0 of the source, in a source of one layer */
	_Atomic uint32_t cold;
	_Atomic int64_t looked; /* when the only file was last seen unchanged, by the coarse clock */
	size_t nlayers;
	struct layer layers[];
};

/*
 * Asked after reading: a file system changes the time before the bytes, so bytes that came before it are the old ones.
 * Who changes the file through a mapping, or sets its time back, is not found out.
 */
static int check_unchanged(const struct fd_source *s, uint32_t i)
{
	const struct layer *l = &s->layers[i];
	struct stat st;

	if (!l->regular)
		return 0;
	if (fstat(l->fd, &st) < 0)
		return gmem_err_sys(-EIO, "source %s", l->name);
	if ((uint64_t)st.st_size != l->size || st.st_mtim.tv_sec != l->changed.tv_sec ||
	    st.st_mtim.tv_nsec != l->changed.tv_nsec)
		return gmem_err(-EIO, "source %s: it has been changed since the source was made", l->name);
	return 0;
}

/*
 * What is in memory is read in a fraction of a microsecond, and asking for the file's time takes as long: of one file
 * it is asked once a tick of the clock. Layers, of which all must be as they were, are asked each time.
 */
static int check_nowait(struct fd_source *s, uint32_t layer)
{
	struct timespec now;
	int64_t tick;
	int r;

	if (s->nlayers > 1)
		return check_unchanged(s, layer);
	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	tick = now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
	if (atomic_load_explicit(&s->looked, memory_order_relaxed) == tick)
		return 0;
	r = check_unchanged(s, layer);
	if (r == 0)
		atomic_store_explicit(&s->looked, tick, memory_order_relaxed);
	return r;
}

static void note(struct fd_source *s, bool waits)
{
	uint32_t cold = atomic_load_explicit(&s->cold, memory_order_relaxed);

	if (waits && cold < COLD_MOST)
		atomic_store_explicit(&s->cold, cold + COLD_STEP, memory_order_relaxed);
	else if (!waits && cold)
		atomic_store_explicit(&s->cold, cold - 1, memory_order_relaxed);
}

/* Of one extent. */
static int read_part(struct fd_source *s, uint32_t layer, uint64_t off, char *buf, size_t len, bool nowait)
{
	int fd = s->layers[layer].fd;
	size_t done = 0;

	while (done < len) {
		struct iovec iov = { .iov_base = buf + done, .iov_len = len - done };
		off_t at = (off_t)(s->base + off + done);
		ssize_t n = nowait ? preadv2(fd, &iov, 1, at, RWF_NOWAIT) : pread(fd, iov.iov_base, iov.iov_len, at);

		if (n < 0 && errno == EINTR)
			continue;
		/* EOPNOTSUPP: a file system that cannot say. */
		if (n < 0 && nowait && errno == EAGAIN)
			note(s, true);
		if (n < 0 && nowait && (errno == EAGAIN || errno == EOPNOTSUPP))
			return gmem_err(-EAGAIN, "source %s: not in memory at offset 0x%llx", s->layers[layer].name,
					(unsigned long long)at);
		if (n < 0)
			return gmem_err_sys(-errno, "source %s: cannot read at offset 0x%llx", s->layers[layer].name,
					    (unsigned long long)at);
		if (n == 0)
			return gmem_err(-EIO, "source %s: ends at offset 0x%llx, it has become shorter",
					s->layers[layer].name, (unsigned long long)at);
		done += (size_t)n;
	}
	return nowait ? check_nowait(s, layer) : check_unchanged(s, layer);
}

static int read_at(struct fd_source *s, uint64_t off, char *buf, size_t len, bool nowait)
{
	const struct gmem_extent *e = gmem_extents_find(&s->data, off), *all = s->data.e + s->data.n;
	uint64_t at = off, end = off + len;

	for (; e && e < all && e->off < end; e++) {
		uint64_t from = gmem_max_u64(at, e->off), to = gmem_min_u64(end, e->end);
		int r;

		memset(buf + (at - off), 0, from - at);
		r = read_part(s, e->layer, from, buf + (from - off), to - from, nowait);
		if (r < 0)
			return r;
		at = to;
	}
	memset(buf + (at - off), 0, end - at);
	return 0;
}

static int fd_read(void *opaque, uint64_t off, void *buf, size_t len)
{
	return read_at(opaque, off, buf, len, false);
}

static int fd_read_nowait(void *opaque, uint64_t off, void *buf, size_t len)
{
	int r = read_at(opaque, off, buf, len, true);

	if (r == 0)
		note(opaque, false);
	return r;
}

/* From what is in memory: as quick with `nowait` as without. */
static int fd_is_zero(void *opaque, uint64_t off, uint64_t len, bool nowait)
{
	const struct fd_source *s = opaque;
	const struct gmem_extent *e = gmem_extents_find(&s->data, off);

	return !e || e->off >= off + len;
}

/* To the ends of the windows it begins and ends in, but not out of the extents it begins and ends in; if it is cold. */
static void fd_extent(void *opaque, uint64_t *start, uint64_t *len)
{
	const struct fd_source *s = opaque;
	uint64_t from = *start, to = from + *len;
	const struct gmem_extent *e;
	uint64_t first = from, last = to;

	if (!atomic_load_explicit(&s->cold, memory_order_relaxed))
		return;
	e = gmem_extents_find(&s->data, from);
	if (e && e->off <= from)
		first = gmem_max_u64(from - from % WINDOW, (e->off + GMEM_PAGE_SIZE - 1) & GMEM_PAGE_MASK);
	e = gmem_extents_find(&s->data, to - 1);
	if (e && e->off < to && to % WINDOW && to < UINT64_MAX - WINDOW)
		last = gmem_min_u64(to - to % WINDOW + WINDOW, gmem_page_round_down(e->end));
	from = gmem_min_u64(from, first);
	to = gmem_max_u64(to, last);
	*start = from;
	*len = to - from;
}

static void fd_free(void *opaque)
{
	struct fd_source *s = opaque;

	for (size_t i = 0; i < s->nlayers; i++)
		if (s->layers[i].fd >= 0)
			close(s->layers[i].fd);
	gmem_extents_free(&s->data);
	free(s);
}

/* Fills in a layer from the caller's descriptor: a regular file or a block device. */
static int take(struct layer *l, int fd, const char *call)
{
	struct stat st;
	off_t was, end;

	if (fstat(fd, &st) < 0)
		return gmem_err_sys(-errno, "%s: descriptor %d", call, fd);
	l->regular = S_ISREG(st.st_mode);
	if (!l->regular && !S_ISBLK(st.st_mode))
		return gmem_err(-EINVAL, "%s: descriptor %d: neither a regular file nor a block device", call, fd);
	l->size = (uint64_t)st.st_size;
	l->changed = st.st_mtim;
	if (!l->regular) {
		was = lseek(fd, 0, SEEK_CUR);
		end = lseek(fd, 0, SEEK_END);
		if (end < 0)
			return gmem_err_sys(-errno, "%s: descriptor %d", call, fd);
		lseek(fd, was, SEEK_SET);
		l->size = (uint64_t)end;
	}
	l->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (l->fd < 0)
		return gmem_err_sys(-errno, "%s: descriptor %d", call, fd);
	return 0;
}

static struct fd_source *source_new(size_t n)
{
	struct fd_source *s = calloc(1, sizeof(*s) + n * sizeof(s->layers[0]));

	if (!s)
		return NULL;
	s->nlayers = n;
	for (size_t i = 0; i < n; i++) {
		s->layers[i].fd = -1;
		snprintf(s->layers[i].name, sizeof(s->layers[i].name), n > 1 ? "layer %zu" : "file", i);
	}
	return s;
}

static int publish(struct fd_source *s, uint64_t len, struct gmem_source **ret)
{
	static const struct gmem_source_ops ops = {
		.size = sizeof(ops),
		.read = fd_read,
		.read_nowait = fd_read_nowait,
		.extent = fd_extent,
		.is_zero = fd_is_zero,
		.free = fd_free,
	};
	int r = gmem_source_new(&ops, s, ret);

	if (r == 0)
		gmem_source_set_len(*ret, len);
	return r;
}

int gmem_source_new_fd(int fd, uint64_t base, uint64_t len, struct gmem_source **ret)
{
	struct fd_source *s = source_new(1);
	int r;

	if (!s)
		return gmem_err(-ENOMEM, "gmem_source_new_fd: no memory");
	r = take(&s->layers[0], fd, "gmem_source_new_fd");
	if (r == 0 && base > s->layers[0].size)
		r = gmem_err(-EINVAL, "gmem_source_new_fd: base 0x%llx lies past the file's end, 0x%llx",
			     (unsigned long long)base, (unsigned long long)s->layers[0].size);
	if (r == 0) {
		s->base = base;
		len = gmem_min_u64(len, s->layers[0].size - base);
		r = gmem_extents_scan(&s->data, s->layers[0].fd, base, len, 0);
	}
	if (r == 0)
		r = publish(s, len, ret);
	if (r < 0)
		fd_free(s);
	return r;
}

/*
 * A layer has what was written, so its holes have to be those of the pages that were not. A file system that knows no
 * holes, or a copy that filled them, has data everywhere; one that keeps books in larger units than pages (a record, a
 * huge page) has zeros beside what was written. Both would hide the layers below.
 */
static int check_holes(const struct fd_source *s, uint32_t i, const struct gmem_extents *x)
{
	uint64_t size = s->layers[i].size, unit;
	struct stat st;

	if (x->n == 1 && x->e[0].off == 0 && x->e[0].end == size)
		return gmem_err(
			-EINVAL,
			"gmem_source_new_layers: layer %u has no holes, so it would hide all below it: "
			"its file system cannot tell them, or a copy filled them (cp --sparse=never, a network); "
			"a layer that does have every page needs none below it",
			i);
	if (fstat(s->layers[i].fd, &st) < 0)
		return gmem_err_sys(-errno, "gmem_source_new_layers: layer %u", i);
	unit = st.st_blksize > 0 ? (uint64_t)st.st_blksize : 0;
	if (unit <= GMEM_PAGE_SIZE || x->n == 0)
		return 0;
	for (size_t k = 0; k < x->n; k++)
		if (x->e[k].off % unit || (x->e[k].end % unit && x->e[k].end != size))
			return 0;
	return gmem_err(-EINVAL,
			"gmem_source_new_layers: layer %u: its file system tells holes in units of %llu bytes, "
			"so pages that were not written cannot be told from zeros",
			i, (unsigned long long)unit);
}

/* The extents of one more layer, over those there are. */
static int add_layer(struct fd_source *s, uint32_t i)
{
	struct gmem_extents own = { 0 }, both;
	const struct layer *l = &s->layers[i];
	int r;

	if (l->size != s->layers[0].size)
		return gmem_err(-EINVAL, "gmem_source_new_layers: layer %u has %llu bytes, the lowest %llu", i,
				(unsigned long long)l->size, (unsigned long long)s->layers[0].size);
	if (i && !l->regular)
		return gmem_err(-EINVAL, "gmem_source_new_layers: layer %u is a device, which has no holes", i);
	r = gmem_extents_scan(&own, l->fd, 0, l->size, i);
	if (r == 0 && i)
		r = check_holes(s, i, &own);
	if (r == 0)
		r = gmem_extents_overlay(&s->data, &own, &both);
	gmem_extents_free(&own);
	if (r < 0)
		return r;
	gmem_extents_free(&s->data);
	s->data = both;
	/* What was decided is of the file as it was before. */
	return check_unchanged(s, i);
}

int gmem_source_new_layers(const int *fds, size_t n, struct gmem_source **ret)
{
	struct fd_source *s;
	int r = 0;

	if (!n || n > MAX_LAYERS)
		return gmem_err(-EINVAL, "gmem_source_new_layers: %zu layers; 1 to %u", n, MAX_LAYERS);
	s = source_new(n);
	if (!s)
		return gmem_err(-ENOMEM, "gmem_source_new_layers: no memory");
	for (size_t i = 0; i < n && r == 0; i++)
		r = take(&s->layers[i], fds[i], "gmem_source_new_layers");
	for (size_t i = 0; i < n && r == 0; i++)
		r = add_layer(s, (uint32_t)i);
	if (r == 0)
		r = publish(s, s->layers[0].size, ret);
	if (r < 0)
		fd_free(s);
	return r;
}
