/* SPDX-License-Identifier: MIT */
/* The file being written: a hidden temporary one beside the target, until commit.c gives it its name. */
#include "image/writer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/opts.h"
#include "base/range.h"

#define PUSH_LEN (8u << 20)

#define BASE_IN_TEMP 200 /* of the target's name: the temporary one must fit into NAME_MAX */

int gmem_image_write_error(const struct gmem_image_writer *w, int err)
{
	if (err != -ENOSPC && err != -EDQUOT && err != -EFBIG)
		return gmem_err_sys(err, "%s: cannot write", w->path);
	return gmem_err_sys(err, "no space left for %s: wrote %llu MiB of about %llu MiB", w->path,
			    (unsigned long long)(w->pos >> 20),
			    (unsigned long long)((gmem_max_u64(w->expect, w->pos) + (1 << 20) - 1) >> 20));
}

int gmem_image_write_at(struct gmem_image_writer *w, const void *data, size_t len, uint64_t off)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = pwrite(w->fd, (const char *)data + done, len - done, (off_t)(off + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return gmem_image_write_error(w, -errno);
		done += (size_t)n;
	}
	return 0;
}

/*
 * The disk works while we compress, or it would all be left to the fsync() at the end. Only a hint: what it misses,
 * and its errors, that fsync() finds.
 */
static void push(struct gmem_image_writer *w)
{
	if (w->pos - w->pushed < PUSH_LEN)
		return;
	(void)sync_file_range(w->fd, (off_t)w->pushed, (off_t)(w->pos - w->pushed), SYNC_FILE_RANGE_WRITE);
	w->pushed = w->pos;
}

int gmem_image_append(struct gmem_image_writer *w, const void *data, size_t len, uint64_t *ret_off)
{
	uint64_t off = w->pos;
	int r = gmem_image_write_at(w, data, len, off);

	if (r < 0)
		return r;
	w->pos += len;
	push(w);
	if (ret_off)
		*ret_off = off;
	return 0;
}

static int check_opts(const struct gmem_image_writer_opts *in, struct gmem_image_writer_opts *out)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	memset(out, 0, sizeof(*out));
	if (in && !gmem_opts_valid(in, in->size, sizeof(*in)))
		return gmem_err(-EINVAL, "gmem_image_create: opts.size %zu is not that of the structure", in->size);
	if (in)
		*out = *in;
	if (out->compression != GMEM_COMPRESS_ZSTD && out->compression != GMEM_COMPRESS_NONE)
		return gmem_err(-EINVAL, "gmem_image_create: unknown compression %d", (int)out->compression);
	if (out->level < 0 || out->level > 19)
		return gmem_err(-EINVAL, "gmem_image_create: level %d: not 0 to 19", out->level);
	if (out->level == 0)
		out->level = 1;
	if (out->chunk_len == 0)
		out->chunk_len = out->compression == GMEM_COMPRESS_ZSTD ? 64 * 1024 : 4096;
	if (out->chunk_len < GMEM_IMAGE_CHUNK_MIN || out->chunk_len > GMEM_IMAGE_CHUNK_MAX ||
	    out->chunk_len & (out->chunk_len - 1))
		return gmem_err(-EINVAL, "gmem_image_create: chunk length %u: not a power of two from 4 KiB to 256 KiB",
				out->chunk_len);
	if (out->threads == 0)
		out->threads = cpus < 1 ? 1 : cpus > 8 ? 8 : (unsigned int)cpus;
	if (out->threads > 64)
		out->threads = 64;
	return 0;
}

/* Splits the path, opens the folder, refuses a target that a rename should not replace. */
static int open_folder(struct gmem_image_writer *w)
{
	const char *slash = strrchr(w->path, '/');
	const char *base = slash ? slash + 1 : w->path;
	char *dir = slash ? strndup(w->path, slash == w->path ? 1 : (size_t)(slash - w->path)) : strdup(".");
	struct stat st;
	int r = 0;

	w->base = strdup(base);
	if (!dir || !w->base) {
		r = gmem_err(-ENOMEM, "%s: no memory", w->path);
		goto out;
	}
	if (!*base || strcmp(base, ".") == 0 || strcmp(base, "..") == 0) {
		r = gmem_err(-EISDIR, "%s: not the name of a file", w->path);
		goto out;
	}
	w->dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (w->dir_fd < 0)
		r = gmem_err_sys(-errno, "%s: cannot open the folder %s", w->path, dir);
	else if (fstatat(w->dir_fd, base, &st, 0) == 0 && !S_ISREG(st.st_mode))
		r = gmem_err(S_ISDIR(st.st_mode) ? -EISDIR : -EINVAL, "%s: exists and is not a regular file", w->path);
out:
	free(dir);
	return r;
}

int gmem_image_random(const struct gmem_image_writer *w, void *buf, size_t len)
{
	ssize_t n;

	do
		n = getrandom(buf, len, 0);
	while (n < 0 && errno == EINTR);
	if (n != (ssize_t)len)
		return gmem_err_sys(n < 0 ? -errno : -EIO, "%s: no random bytes", w->path);
	return 0;
}

/* As mkostemp(), but relative to the folder's descriptor: the caller may change directory before the commit. */
static int open_temp(struct gmem_image_writer *w)
{
	static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
	uint8_t bytes[6];
	char suffix[7];
	char *name;
	int r;

	for (int tries = 0; tries < 100; tries++) {
		r = gmem_image_random(w, bytes, sizeof(bytes));
		if (r < 0)
			return r;
		for (int i = 0; i < 6; i++)
			suffix[i] = letters[bytes[i] % (sizeof(letters) - 1)];
		suffix[6] = 0;
		if (asprintf(&name, ".%.*s.%s", BASE_IN_TEMP, w->base, suffix) < 0)
			return gmem_err(-ENOMEM, "%s: no memory", w->path);
		w->fd = openat(w->dir_fd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
		if (w->fd >= 0) {
			w->temp = name;
			/* A umask may have taken even the owner's bits. */
			return fchmod(w->fd, 0600) < 0 ? gmem_err_sys(-errno, "%s: cannot set its mode", w->path) : 0;
		}
		r = -errno;
		free(name);
		if (r != -EEXIST)
			return gmem_err_sys(r, "%s: cannot create a file in its folder", w->path);
	}
	return gmem_err(-EEXIST, "%s: no free name for a temporary file", w->path);
}

int gmem_image_create(const char *path, const struct gmem_image_writer_opts *opts, struct gmem_image_writer **ret)
{
	struct gmem_image_writer *w = calloc(1, sizeof(*w));
	int r;

	if (w) {
		w->path = strdup(path);
		w->regions = calloc(GMEM_IMAGE_MAX_REGIONS, sizeof(*w->regions));
		w->sections = calloc(GMEM_IMAGE_MAX_SECTIONS, sizeof(*w->sections));
		w->dir_fd = w->fd = -1;
		w->pos = GMEM_IMAGE_HEADER_LEN;
	}
	if (!w || !w->path || !w->regions || !w->sections)
		r = gmem_err(-ENOMEM, "%s: no memory", path);
	else
		r = check_opts(opts, &w->opts);
	if (r == 0)
		r = open_folder(w);
	if (r == 0)
		r = open_temp(w);
	if (r < 0) {
		gmem_image_abort(w);
		return r;
	}
	*ret = w;
	return 0;
}

void gmem_image_abort(struct gmem_image_writer *w)
{
	if (!w)
		return;
	if (w->temp)
		unlinkat(w->dir_fd, w->temp, 0);
	if (w->fd >= 0)
		close(w->fd);
	if (w->dir_fd >= 0)
		close(w->dir_fd);
	free(w->temp);
	free(w->base);
	free(w->path);
	free(w->regions);
	free(w->sections);
	free(w);
}

int gmem_image_writer_usable(const struct gmem_image_writer *w)
{
	return w->failed ? gmem_err(w->failed, "%s: an earlier step of writing it failed", w->path) : 0;
}
