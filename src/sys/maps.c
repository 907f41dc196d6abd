/* SPDX-License-Identifier: MIT */
#include "sys/maps.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "sys/call.h"
#include "sys/uapi.h"

int gmem_sys_maps_open(pid_t pid)
{
	char path[40] = "/proc/self/maps";

	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	return gmem_sys_open(path, O_RDONLY);
}

void gmem_sys_maps_begin(struct gmem_sys_maps *maps, int fd, uint64_t hva)
{
	maps->fd = fd;
	maps->text = false;
	maps->files = false;
	maps->at = hva;
}

static int query(struct gmem_sys_maps *maps, struct gmem_sys_mapping *ret)
{
	struct gmem_procmap_query q = { .size = sizeof(q), .query_addr = maps->at };
	int err;

	q.query_flags =
		GMEM_PROCMAP_QUERY_COVERING_OR_NEXT_VMA | (maps->files ? GMEM_PROCMAP_QUERY_FILE_BACKED_VMA : 0);
	err = gmem_sys_ioctl(maps->fd, GMEM_PROCMAP_QUERY, &q);
	if (err)
		return err;
	*ret = (struct gmem_sys_mapping){
		.hva = q.vma_start,
		.end = q.vma_end,
		.off = q.vma_offset,
		.dev = makedev(q.dev_major, q.dev_minor),
		.ino = q.inode,
		.prot = (q.vma_flags & GMEM_PROCMAP_VMA_READABLE ? PROT_READ : 0) |
			(q.vma_flags & GMEM_PROCMAP_VMA_WRITABLE ? PROT_WRITE : 0) |
			(q.vma_flags & GMEM_PROCMAP_VMA_EXECUTABLE ? PROT_EXEC : 0),
		.shared = q.vma_flags & GMEM_PROCMAP_VMA_SHARED,
	};
	return 0;
}

bool gmem_sys_maps_live(int fd)
{
	struct gmem_sys_mapping mapping;
	struct gmem_sys_maps maps;
	int err;

	gmem_sys_maps_begin(&maps, fd, 0);
	err = query(&maps, &mapping);
	return !err || err == -ENOENT;
}

/* The next line, or the first part of one that is longer than the buffer, which is enough. NULL: none; *err. */
static char *next_line(struct gmem_sys_maps *maps, int *err)
{
	for (;;) {
		char *line = maps->buf + maps->pos, *end = memchr(line, '\n', maps->filled - maps->pos);
		ssize_t n;

		if (end) {
			bool rest = maps->skip;

			*end = '\0';
			maps->pos = (size_t)(end + 1 - maps->buf);
			maps->skip = false;
			if (rest)
				continue;
			return line;
		}
		maps->filled -= maps->pos;
		memmove(maps->buf, line, maps->filled);
		maps->pos = 0;
		if (maps->filled == sizeof(maps->buf) - 1 || maps->skip) {
			bool rest = maps->skip;

			maps->buf[maps->filled] = '\0';
			maps->filled = 0;
			maps->skip = true;
			if (!rest)
				return maps->buf;
		}
		n = read(maps->fd, maps->buf + maps->filled, sizeof(maps->buf) - 1 - maps->filled);
		if (n <= 0) {
			*err = n ? -errno : -ENOENT;
			return NULL;
		}
		maps->filled += (size_t)n;
	}
}

static int read_next(struct gmem_sys_maps *maps, struct gmem_sys_mapping *ret)
{
	unsigned int major, minor;
	char *line, perm[5];
	int err = 0;

	while ((line = next_line(maps, &err))) {
		struct gmem_sys_mapping m = { .hva = 0 };

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64, &m.hva, &m.end, perm, &m.off,
			   &major, &minor, &m.ino) != 7 ||
		    m.end <= maps->at || (maps->files && !m.ino))
			continue;
		m.dev = makedev(major, minor);
		m.prot = (perm[0] == 'r' ? PROT_READ : 0) | (perm[1] == 'w' ? PROT_WRITE : 0) |
			 (perm[2] == 'x' ? PROT_EXEC : 0);
		m.shared = perm[3] == 's';
		*ret = m;
		return 0;
	}
	return err;
}

int gmem_sys_maps_next(struct gmem_sys_maps *maps, struct gmem_sys_mapping *ret)
{
	int err = maps->text ? -ENOTTY : query(maps, ret);

	/* Linux before 6.11, an emulator, a filter of system calls. */
	if (err && err != -ENOENT) {
		if (!maps->text) {
			maps->text = true;
			maps->skip = false;
			maps->pos = maps->filled = 0;
			if (lseek(maps->fd, 0, SEEK_SET) < 0)
				return -errno;
		}
		err = read_next(maps, ret);
	}
	if (!err)
		maps->at = ret->end;
	return err;
}

int gmem_sys_maps_each(pid_t pid, int (*fn)(void *opaque, const struct gmem_sys_mapping *map), void *opaque)
{
	struct gmem_sys_mapping map;
	struct gmem_sys_maps maps;
	int fd = gmem_sys_maps_open(pid), ret;
	bool more;

	if (fd < 0)
		return fd;
	gmem_sys_maps_begin(&maps, fd, 0);
	/* One query each would be as many turns at the lock of a process that has many, and uses it. */
	maps.files = true;
	do {
		ret = gmem_sys_maps_next(&maps, &map);
		more = !ret;
		if (more)
			ret = fn(opaque, &map);
		else if (ret == -ENOENT)
			ret = 0;
	} while (more && !ret);
	close(fd);
	return ret;
}

/* By what /proc calls it, which may be another one's number than getpid(2) tells. */
static pid_t self(void)
{
	char text[16];
	ssize_t n = readlink("/proc/self", text, sizeof(text) - 1);

	if (n <= 0)
		return 0;
	text[n] = '\0';
	return atoi(text);
}

int gmem_sys_processes_each(int (*fn)(void *opaque, pid_t pid), void *opaque)
{
	pid_t me = self();
	struct dirent *e;
	int ret = 0;
	DIR *dir = opendir("/proc");

	if (!dir)
		return -errno;
	while (!ret && (e = readdir(dir))) {
		pid_t pid = isdigit((unsigned char)e->d_name[0]) ? atoi(e->d_name) : 0;

		if (pid > 0 && pid != me)
			ret = fn(opaque, pid);
	}
	closedir(dir);
	return ret;
}
