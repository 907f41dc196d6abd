/* SPDX-License-Identifier: MIT */
#include "source/extents.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"

void gmem_extents_free(struct gmem_extents *x)
{
	free(x->e);
	*x = (struct gmem_extents){ 0 };
}

int gmem_extents_add(struct gmem_extents *x, uint64_t off, uint64_t end, uint32_t layer)
{
	struct gmem_extent *last = x->n ? &x->e[x->n - 1] : NULL;

	if (off >= end)
		return 0;
	if (last && last->end == off && last->layer == layer) {
		last->end = end;
		return 0;
	}
	if (x->n == x->room) {
		size_t room = x->room ? x->room * 2 : 64;
		struct gmem_extent *e = reallocarray(x->e, room, sizeof(*e));

		if (!e)
			return gmem_err(-ENOMEM, "source file: no memory for its %zu extents", x->n + 1);
		x->e = e;
		x->room = room;
	}
	x->e[x->n++] = (struct gmem_extent){ off, end, layer };
	return 0;
}

/* A file system without holes, or a device, answers with one of these, or with the end of the file as its only hole. */
static bool cannot_tell(int err)
{
	return err == EINVAL || err == EOPNOTSUPP || err == ESPIPE;
}

static int scan(struct gmem_extents *x, int fd, uint64_t base, uint64_t len, uint32_t layer)
{
	uint64_t at = base, end = base + len;

	while (at < end) {
		off_t data = lseek(fd, (off_t)at, SEEK_DATA), hole;
		int r;

		if (data < 0 && errno == ENXIO)
			break;
		if (data < 0 && cannot_tell(errno))
			return gmem_extents_add(x, at - base, len, layer);
		if (data < 0)
			return gmem_err_sys(-errno, "source file: extents from offset 0x%llx on",
					    (unsigned long long)at);
		if ((uint64_t)data >= end)
			break;
		hole = lseek(fd, data, SEEK_HOLE);
		/* ENXIO: it has become shorter this moment. Reading it will say so. */
		if (hole < 0 && errno != ENXIO && !cannot_tell(errno))
			return gmem_err_sys(-errno, "source file: extents from offset 0x%llx on",
					    (unsigned long long)data);
		at = hole < 0 ? end : gmem_min_u64((uint64_t)hole, end);
		r = gmem_extents_add(x, (uint64_t)data - base, at - base, layer);
		if (r < 0)
			return r;
		if (at <= (uint64_t)data)
			return gmem_err(-EIO, "source file: extents at offset 0x%llx: the file is changing",
					(unsigned long long)data);
	}
	return 0;
}

int gmem_extents_scan(struct gmem_extents *x, int fd, uint64_t base, uint64_t len, uint32_t layer)
{
	/* The position is the caller's, whose descriptor ours is a duplicate of. */
	off_t was = lseek(fd, 0, SEEK_CUR);
	int r = scan(x, fd, base, len, layer);

	if (was >= 0)
		lseek(fd, was, SEEK_SET);
	return r;
}

int gmem_extents_overlay(const struct gmem_extents *lower, const struct gmem_extents *upper, struct gmem_extents *ret)
{
	struct gmem_extents x = { 0 };
	size_t i = 0, j = 0;
	uint64_t at = 0; /* all before it is in x */
	int r = 0;

	while (!r && (i < lower->n || j < upper->n)) {
		const struct gmem_extent *l = i < lower->n ? &lower->e[i] : NULL;
		const struct gmem_extent *u = j < upper->n ? &upper->e[j] : NULL;
		uint64_t from = l ? gmem_max_u64(l->off, at) : UINT64_MAX;

		if (u && u->off <= from) {
			r = gmem_extents_add(&x, u->off, u->end, u->layer);
			at = u->end;
			j++;
		} else {
			/* What of it comes before the next of the upper ones. */
			uint64_t to = u ? gmem_min_u64(l->end, u->off) : l->end;

			r = gmem_extents_add(&x, from, to, l->layer);
			at = gmem_max_u64(at, to);
		}
		while (i < lower->n && lower->e[i].end <= at)
			i++;
	}
	if (r < 0) {
		gmem_extents_free(&x);
		return r;
	}
	*ret = x;
	return 0;
}

const struct gmem_extent *gmem_extents_find(const struct gmem_extents *x, uint64_t off)
{
	size_t a = 0, b = x->n;

	while (a < b) {
		size_t m = a + (b - a) / 2;

		if (x->e[m].end > off)
			b = m;
		else
			a = m + 1;
	}
	return a < x->n ? &x->e[a] : NULL;
}
