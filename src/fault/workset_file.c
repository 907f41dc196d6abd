/* SPDX-License-Identifier: MIT */
/*
 * A working set's file: read, appended to, written anew. Blocks are appended by one write(2) each, so what a process
 * has written is there when it is killed; the last block may be torn, and its sum says so.
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "fault/workset.h"

#define BLOCK_MAX (GMEM_WORKSET_BLOCK_LEN + (size_t)GMEM_WORKSET_BLOCK_ENTRIES * GMEM_WORKSET_ENTRY_LEN)

static int write_all(int fd, const void *buf, size_t len, off_t off)
{
	for (size_t at = 0; at < len;) {
		ssize_t n = pwrite(fd, (const char *)buf + at, len - at, off + (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		at += (size_t)n;
	}
	return 0;
}

/* As many bytes as there are. */
static ssize_t read_all(int fd, void *buf, size_t len, off_t off)
{
	size_t at = 0;

	while (at < len) {
		ssize_t n = pread(fd, (char *)buf + at, len - at, off + (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		at += (size_t)n;
	}
	return (ssize_t)at;
}

static int put_header(const struct gmem_workset *ws, int fd, uint64_t entries)
{
	struct gmem_workset_header h = ws->h;
	uint8_t raw[GMEM_WORKSET_HEADER_LEN];

	h.entries = entries;
	gmem_workset_header_encode(&h, raw);
	return write_all(fd, raw, sizeof(raw), 0);
}

int gmem_workset_write_header(struct gmem_workset *ws, uint64_t entries)
{
	int err = put_header(ws, ws->fd, entries);

	return err ? gmem_err_sys(err, "%s", ws->name) : 0;
}

/* Where a block begins, if all before it have as many entries as they can, or as `flushed` says. */
static off_t block_off(uint64_t blocks, uint64_t entries)
{
	return (off_t)(GMEM_WORKSET_HEADER_LEN + blocks * GMEM_WORKSET_BLOCK_LEN + entries * GMEM_WORKSET_ENTRY_LEN);
}

/* Writes runs[*done, n) into blocks, from the one with number *blocks on. */
static int put_blocks(const struct gmem_workset *ws, int fd, uint64_t *done, uint64_t *blocks)
{
	uint8_t *raw = malloc(BLOCK_MAX);
	int err = raw ? 0 : -ENOMEM;

	while (*done < ws->n && !err) {
		uint64_t left = ws->n - *done;
		uint32_t n = left < GMEM_WORKSET_BLOCK_ENTRIES ? (uint32_t)left : GMEM_WORKSET_BLOCK_ENTRIES;

		gmem_workset_block_encode(*blocks, &ws->runs[*done], n, raw);
		err = write_all(fd, raw, GMEM_WORKSET_BLOCK_LEN + (size_t)n * GMEM_WORKSET_ENTRY_LEN,
				block_off(*blocks, *done));
		if (err)
			break;
		*done += n;
		++*blocks;
	}
	free(raw);
	return err;
}

void gmem_workset_flush(struct gmem_workset *ws)
{
	if (ws->fd < 0) {
		ws->flushed = ws->n;
		return;
	}
	if (!ws->write_error)
		ws->write_error = put_blocks(ws, ws->fd, &ws->flushed, &ws->blocks);
	/* They stay in memory, and are not tried again. */
	if (ws->write_error)
		ws->flushed = ws->n;
}

/* ---- written anew */

static int save_to(const struct gmem_workset *ws, int fd)
{
	uint64_t done = 0, blocks = 0;
	int err = put_header(ws, fd, ws->n);

	if (!err)
		err = put_blocks(ws, fd, &done, &blocks);
	if (!err && fsync(fd))
		err = -errno;
	return err;
}

static int sync_folder(const char *path)
{
	char *copy = strdup(path);
	int fd, err = 0;

	if (!copy)
		return -ENOMEM;
	fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	/* A file system that cannot sync a folder has nothing to sync. */
	if (fd < 0 || (fsync(fd) && errno != EINVAL))
		err = -errno;
	if (fd >= 0)
		close(fd);
	free(copy);
	return err;
}

int gmem_workset_save(struct gmem_workset *ws, const char *path)
{
	char *temp;
	int fd, err;

	if (ws->recorder)
		return gmem_err(-EBUSY, "%s: it is being recorded into", ws->name);
	if (asprintf(&temp, "%s.XXXXXX", path) < 0)
		return gmem_err_sys(-ENOMEM, "%s", path);
	fd = mkostemp(temp, O_CLOEXEC);
	if (fd < 0) {
		err = -errno;
		goto out_free;
	}
	pthread_mutex_lock(&ws->m);
	gmem_measure_sum(ws);
	err = save_to(ws, fd);
	pthread_mutex_unlock(&ws->m);
	close(fd);
	if (!err && rename(temp, path))
		err = -errno;
	if (err)
		unlink(temp);
	else
		err = sync_folder(path);

out_free:
	free(temp);
	return err ? gmem_err_sys(err, "%s", path) : 0;
}

/* ---- read */

static int by_place(const void *a, const void *b)
{
	const struct gmem_workset_run *x = a, *y = b;

	if (x->part != y->part)
		return x->part < y->part ? -1 : 1;
	return x->page < y->page ? -1 : x->page > y->page;
}

/* No page is in two entries: whoever writes a file sees to that. */
static int check_apart(const struct gmem_workset *ws)
{
	struct gmem_workset_run *sorted = malloc((ws->n ? ws->n : 1) * sizeof(*sorted));
	int err = 0;

	if (!sorted)
		return gmem_err_sys(-ENOMEM, "%s", ws->name);
	if (ws->n)
		memcpy(sorted, ws->runs, ws->n * sizeof(*sorted));
	qsort(sorted, ws->n, sizeof(*sorted), by_place);
	for (uint64_t i = 1; i < ws->n && !err; i++)
		if (sorted[i].part == sorted[i - 1].part && sorted[i - 1].page + sorted[i - 1].npages > sorted[i].page)
			err = gmem_err(-EBADMSG, "%s: page 0x%llx of part %u is in two entries", ws->name,
				       (unsigned long long)sorted[i].page, sorted[i].part);
	free(sorted);
	return err;
}

static int take(struct gmem_workset *ws, const struct gmem_workset_run *runs, uint32_t n)
{
	if (ws->n + n > ws->room) {
		uint64_t room = 2 * ws->room > ws->n + n ? 2 * ws->room : ws->n + n;
		struct gmem_workset_run *more = realloc(ws->runs, room * sizeof(*more));

		if (!more)
			return gmem_err_sys(-ENOMEM, "%s", ws->name);
		ws->runs = more;
		ws->room = room;
	}
	memcpy(&ws->runs[ws->n], runs, n * sizeof(*runs));
	ws->n += n;
	return 0;
}

/* Blocks, one after the other, up to the first that is not whole. */
static int read_blocks(struct gmem_workset *ws, int fd)
{
	struct gmem_workset_run *runs = malloc(GMEM_WORKSET_BLOCK_ENTRIES * sizeof(*runs));
	uint8_t *raw = malloc(BLOCK_MAX);
	int err = runs && raw ? 0 : gmem_err_sys(-ENOMEM, "%s", ws->name);

	while (!err) {
		ssize_t len = read_all(fd, raw, BLOCK_MAX, block_off(ws->blocks, ws->n));
		uint32_t n;

		if (len < 0) {
			err = gmem_err_sys((int)len, "%s", ws->name);
			break;
		}
		n = gmem_workset_block_decode(&ws->h, ws->blocks, raw, (uint64_t)len, runs);
		ws->torn |= !n && len > 0;
		if (!n)
			break;
		if (ws->n + n > GMEM_WORKSET_MAX_ENTRIES)
			err = gmem_err(-EBADMSG, "%s: more than %u entries", ws->name, GMEM_WORKSET_MAX_ENTRIES);
		if (!err)
			err = take(ws, runs, n);
		ws->blocks++;
	}
	free(runs);
	free(raw);
	return err;
}

int gmem_workset_read(struct gmem_workset *ws, int fd)
{
	uint8_t raw[GMEM_WORKSET_HEADER_LEN];
	ssize_t len = read_all(fd, raw, sizeof(raw), 0);
	int err;

	if (len < 0)
		return gmem_err_sys((int)len, "%s", ws->name);
	if (len < (ssize_t)sizeof(raw))
		return gmem_err(-EMEDIUMTYPE, "%s: no working set: %zd bytes", ws->name, len);
	err = gmem_workset_header_decode(&ws->h, raw, ws->name);
	if (!err)
		err = read_blocks(ws, fd);
	if (!err)
		err = check_apart(ws);
	if (err)
		return err;
	if (ws->h.entries != ws->n)
		ws->torn = true;
	ws->flushed = ws->n;
	return 0;
}
