/* SPDX-License-Identifier: MIT */
/* Ledgers on disk, and the fence. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "link/serve/fence.h"
#include "link/serve/ledger.h"
#include "link/serve/name.h"

#define LEDGER ".json"
#define STATE ".state"
#define HALF ".json.new"
#define MAX_FILE_NAME (GMEM_STORE_MAX_ID + 16)
#define MAX_FILE_LEN (17u << 20)

struct gmem_ledger_dir {
	int fd;
	struct gmem_fence fence;
};

int gmem_ledger_dir_open(const char *path, struct gmem_ledger_dir **ret)
{
	struct gmem_ledger_dir *dir = calloc(1, sizeof(*dir));
	struct stat st;
	int err = 0;

	if (!dir)
		return gmem_err_sys(-ENOMEM, "%s", path);
	gmem_fence_init(&dir->fence);
	if (mkdir(path, 0700) && errno != EEXIST)
		err = gmem_err_sys(-errno, "%s", path);
	dir->fd = err ? -1 : open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (!err && (dir->fd < 0 || fstat(dir->fd, &st)))
		err = gmem_err_sys(-errno, "%s", path);
	/* Who can write there decides which memory is filled with what. */
	if (!err && (st.st_uid != geteuid() || st.st_mode & 022))
		err = gmem_err(-EPERM, "%s: must be this user's, and writable by nobody else (chmod 0700)", path);
	if (err) {
		gmem_ledger_dir_free(dir);
		return err;
	}
	*ret = dir;
	return 0;
}

void gmem_ledger_dir_free(struct gmem_ledger_dir *dir)
{
	if (!dir)
		return;
	gmem_fence_drop(&dir->fence);
	if (dir->fd >= 0)
		close(dir->fd);
	free(dir);
}

int gmem_ledger_dir_fd(const struct gmem_ledger_dir *dir)
{
	return dir->fd;
}

int gmem_ledger_dir_lock(struct gmem_ledger_dir *dir, unsigned int timeout_ms, pid_t *ret_pid)
{
	return gmem_fence_take(&dir->fence, dir->fd, "lock", timeout_ms, ret_pid);
}

int gmem_ledger_dir_take_over(struct gmem_ledger_dir *dir, unsigned int timeout_ms)
{
	return gmem_fence_take_over(&dir->fence, dir->fd, "lock", timeout_ms);
}

/* ---- files */

static int file_name(char *buf, const char *id, const char *suffix)
{
	if (!gmem_id_ok(id))
		return gmem_err(-EINVAL, "ledger: an id that cannot be");
	snprintf(buf, MAX_FILE_NAME, "%s%s", id, suffix);
	return 0;
}

int gmem_ledger_dir_state(struct gmem_ledger_dir *dir, const char *id, bool create)
{
	char name[MAX_FILE_NAME];
	int err = file_name(name, id, STATE), fd;

	if (err)
		return err;
	fd = openat(dir->fd, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW | (create ? O_CREAT | O_EXCL : 0), 0600);
	return fd < 0 ? gmem_err_sys(-errno, "%s", name) : fd;
}

static int write_all(int fd, const char *text, size_t len)
{
	while (len) {
		ssize_t n = write(fd, text, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		text += n;
		len -= (size_t)n;
	}
	return 0;
}

int gmem_ledger_write(struct gmem_ledger_dir *dir, const struct gmem_ledger *ledger)
{
	char name[MAX_FILE_NAME], half[MAX_FILE_NAME], *text;
	size_t len;
	int fd, err = file_name(name, ledger->id, LEDGER);

	if (!err)
		err = file_name(half, ledger->id, HALF);
	if (!err)
		err = gmem_ledger_format(ledger, &text, &len);
	if (err)
		return err;
	fd = openat(dir->fd, half, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	err = fd < 0 ? -errno : write_all(fd, text, len);
	if (fd >= 0)
		close(fd);
	if (!err && renameat(dir->fd, half, dir->fd, name))
		err = -errno;
	if (err && fd >= 0)
		unlinkat(dir->fd, half, 0);
	free(text);
	return err ? gmem_err_sys(err, "ledger %s", ledger->id) : 0;
}

static int read_file(int dir, const char *name, char **ret, size_t *ret_len)
{
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	char *text = NULL;
	struct stat st;
	size_t len = 0;
	ssize_t n = 0;
	int err = 0;

	if (fd < 0 || fstat(fd, &st))
		err = -errno;
	else if (!S_ISREG(st.st_mode))
		err = -EINVAL;
	else if (st.st_size > MAX_FILE_LEN)
		err = -E2BIG;
	else
		text = malloc((size_t)st.st_size + 1);
	if (!err && !text)
		err = -ENOMEM;
	while (!err && len < (size_t)st.st_size) {
		n = read(fd, text + len, (size_t)st.st_size - len);
		if (n > 0)
			len += (size_t)n;
		else if (!n)
			break;
		else if (errno != EINTR)
			err = -errno;
	}
	if (fd >= 0)
		close(fd);
	if (err) {
		free(text);
		return gmem_err_sys(err, "%s", name);
	}
	*ret = text;
	*ret_len = len;
	return 0;
}

int gmem_ledger_read(struct gmem_ledger_dir *dir, const char *id, struct gmem_ledger **ret)
{
	char name[MAX_FILE_NAME], *text = NULL;
	struct gmem_ledger *ledger;
	size_t len = 0;
	int err = file_name(name, id, LEDGER);

	if (!err)
		err = read_file(dir->fd, name, &text, &len);
	if (err)
		return err;
	err = gmem_ledger_parse(text, len, &ledger);
	free(text);
	if (!err && strcmp(ledger->id, id)) {
		err = gmem_err(-EPROTO, "it is of \"%s\"", ledger->id);
		gmem_ledger_free(ledger);
	}
	if (err)
		return gmem_err_prefix(err, "%s", name);
	*ret = ledger;
	return 0;
}

int gmem_ledger_remove(struct gmem_ledger_dir *dir, const char *id)
{
	static const char *const suffixes[] = { LEDGER, STATE };
	char name[MAX_FILE_NAME];
	int err = 0;

	for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]) && !err; i++) {
		err = file_name(name, id, suffixes[i]);
		if (!err && unlinkat(dir->fd, name, 0) && errno != ENOENT)
			err = gmem_err_sys(-errno, "removing %s", name);
	}
	return err;
}

/* ---- all of them */

/* The id before a suffix; false: another kind of file. */
static bool split(const char *file, const char *suffix, char id[GMEM_STORE_MAX_ID + 1])
{
	size_t len = strlen(file), n = strlen(suffix);

	if (len <= n || len - n > GMEM_STORE_MAX_ID || strcmp(file + len - n, suffix))
		return false;
	memcpy(id, file, len - n);
	id[len - n] = '\0';
	return gmem_id_ok(id);
}

static int by_name(const void *a, const void *b)
{
	return strcmp(a, b);
}

/* Ids of all files with a suffix, sorted; `*ret` is the caller's. */
static int list(struct gmem_ledger_dir *dir, const char *suffix, char (**ret)[GMEM_STORE_MAX_ID + 1], size_t *ret_n)
{
	char(*ids)[GMEM_STORE_MAX_ID + 1] = NULL, id[GMEM_STORE_MAX_ID + 1];
	size_t n = 0, room = 0;
	struct dirent *de;
	int fd = openat(dir->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), err = 0;
	DIR *d = fd < 0 ? NULL : fdopendir(fd);

	if (!d) {
		err = gmem_err_sys(-errno, "the state directory");
		if (fd >= 0)
			close(fd);
		return err;
	}
	while (!err && (errno = 0, de = readdir(d))) {
		void *more = ids;

		if (!split(de->d_name, suffix, id))
			continue;
		if (n == room) {
			room = room ? 2 * room : 64;
			more = reallocarray(ids, room, sizeof(*ids));
		}
		if (!more) {
			err = gmem_err_sys(-ENOMEM, "the state directory");
			break;
		}
		ids = more;
		memcpy(ids[n++], id, sizeof(id));
	}
	if (!err && errno)
		err = gmem_err_sys(-errno, "the state directory");
	closedir(d);
	if (err) {
		free(ids);
		return err;
	}
	if (n)
		qsort(ids, n, sizeof(*ids), by_name);
	*ret = ids;
	*ret_n = n;
	return 0;
}

static int sweep(struct gmem_ledger_dir *dir, const char *suffix)
{
	char(*ids)[GMEM_STORE_MAX_ID + 1], name[MAX_FILE_NAME];
	int removed = 0, err;
	size_t n;

	err = list(dir, suffix, &ids, &n);
	for (size_t i = 0; i < n && !err; i++) {
		snprintf(name, sizeof(name), "%s" LEDGER, ids[i]);
		/* A half-written ledger is rubbish even beside a whole one. */
		if (strcmp(suffix, STATE) == 0 && (faccessat(dir->fd, name, F_OK, 0) == 0 || errno != ENOENT))
			continue;
		snprintf(name, sizeof(name), "%s%s", ids[i], suffix);
		if (unlinkat(dir->fd, name, 0) == 0)
			removed++;
		else if (errno != ENOENT)
			err = gmem_err_sys(-errno, "removing %s", name);
	}
	if (!err || n)
		free(ids);
	return err ? err : removed;
}

int gmem_ledger_dir_sweep(struct gmem_ledger_dir *dir)
{
	int halves = sweep(dir, HALF), states = halves < 0 ? 0 : sweep(dir, STATE);

	if (halves < 0)
		return halves;
	return states < 0 ? states : halves + states;
}

int gmem_ledger_each(struct gmem_ledger_dir *dir,
		     int (*fn)(void *opaque, const char *id, struct gmem_ledger *ledger, int err), void *opaque)
{
	char(*ids)[GMEM_STORE_MAX_ID + 1];
	struct gmem_ledger *ledger;
	size_t n;
	int err = list(dir, LEDGER, &ids, &n), ret = 0;

	if (err)
		return err;
	for (size_t i = 0; i < n && !ret; i++) {
		ledger = NULL;
		err = gmem_ledger_read(dir, ids[i], &ledger);
		ret = fn(opaque, ids[i], ledger, err);
	}
	free(ids);
	return ret;
}
