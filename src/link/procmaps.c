/* SPDX-License-Identifier: MIT */
#include "link/procmaps.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/err.h"

static int say_proc(pid_t pid, int r)
{
	if (r == -ENOENT || r == -ESRCH)
		return gmem_err(-ESRCH, "process %d: there is none", (int)pid);
	if (r == -EACCES || r == -EPERM)
		return gmem_err(-EACCES, "process %d belongs to another user: run gmem as that user, or as root",
				(int)pid);
	return gmem_err_sys(r, "process %d: its mappings", (int)pid);
}

static int add(struct gmem_procmaps *maps, const struct gmem_procmap *map)
{
	struct gmem_procmap *a = maps->maps;

	if (!(maps->n & (maps->n - 1))) {
		a = reallocarray(a, maps->n ? 2 * maps->n : 1, sizeof(*a));
		if (!a)
			return gmem_err(-ENOMEM, "gmem_procmaps: out of memory");
		maps->maps = a;
	}
	a[maps->n++] = *map;
	return 0;
}

int gmem_procmaps_read(pid_t pid, struct gmem_procmaps **ret)
{
	struct gmem_procmaps *maps;
	char path[48], *line = NULL;
	size_t cap = 0;
	FILE *f;
	int r = 0;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	f = fopen(path, "re");
	if (!f)
		return say_proc(pid, -errno);
	maps = calloc(1, sizeof(*maps));
	if (!maps)
		r = gmem_err(-ENOMEM, "gmem_procmaps: out of memory");
	else
		maps->pid = pid;
	while (!r && getline(&line, &cap, f) > 0) {
		struct gmem_procmap map = { .start = 0 };
		unsigned int maj, min;
		char perm[5];
		uint64_t inode;

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64, &map.start, &map.end, perm,
			   &map.off, &maj, &min, &inode) != 7)
			continue;
		map.dev = makedev(maj, min);
		map.inode = (ino_t)inode;
		map.shared = perm[3] == 's';
		r = add(maps, &map);
	}
	if (!r && ferror(f))
		r = say_proc(pid, -errno);
	free(line);
	fclose(f);
	if (r) {
		gmem_procmaps_free(maps);
		return r;
	}
	*ret = maps;
	return 0;
}

void gmem_procmaps_free(struct gmem_procmaps *maps)
{
	if (!maps)
		return;
	free(maps->maps);
	free(maps);
}

const struct gmem_procmap *gmem_procmaps_find(const struct gmem_procmaps *maps, uint64_t hva)
{
	size_t lo = 0, hi = maps->n;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		const struct gmem_procmap *m = &maps->maps[mid];

		if (hva < m->start)
			hi = mid;
		else if (hva >= m->end)
			lo = mid + 1;
		else
			return m;
	}
	return NULL;
}

/* The process's own descriptors, for users who may not use map_files. */
static int open_by_fd(const struct gmem_procmaps *maps, const struct gmem_procmap *map, int *ret_fd)
{
	struct dirent *d;
	char path[64];
	struct stat st;
	int fd, r = -ENOENT;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)maps->pid);
	dir = opendir(path);
	if (!dir)
		return -errno;
	while (r == -ENOENT && (d = readdir(dir))) {
		if (d->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/%d/fd/%.20s", (int)maps->pid, d->d_name);
		if (stat(path, &st) || st.st_ino != map->inode || st.st_dev != map->dev || !S_ISREG(st.st_mode))
			continue;
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0) {
			r = -errno;
		} else {
			*ret_fd = fd;
			r = 0;
		}
	}
	closedir(dir);
	return r;
}

int gmem_procmaps_open(const struct gmem_procmaps *maps, const struct gmem_procmap *map, int *ret_fd)
{
	char path[96];
	int fd, r;

	snprintf(path, sizeof(path), "/proc/%d/map_files/%" PRIx64 "-%" PRIx64, (int)maps->pid, map->start, map->end);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		*ret_fd = fd;
		return 0;
	}
	r = open_by_fd(maps, map, ret_fd);
	if (r == -EACCES || r == -EPERM)
		return say_proc(maps->pid, r);
	if (r)
		return gmem_err_sys(r, "process %d: the file mapped at 0x%" PRIx64, (int)maps->pid, map->start);
	return 0;
}
