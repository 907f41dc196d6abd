/* SPDX-License-Identifier: MIT */
#include "link/ram.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/err.h"
#include "link/procmaps.h"
#include "link/qmp.h"

#define REMEDY "start it with gmem run, or with -object memory-backend-memfd,share=on"

/* Where some byte of a RAM block is in guest memory. */
struct place {
	uint64_t gpa, off;
	bool found, start; /* start: off is 0 */
};

static int prop(struct gmem_qmp *qmp, const char *id, const char *name, json_t **ret)
{
	char *path;
	int r;

	if (asprintf(&path, "/objects/%s", id) < 0)
		return gmem_err(-ENOMEM, "gmem_ram: out of memory");
	r = gmem_qmp_execf(qmp, ret, "qom-get", "{s:s, s:s}", "path", path, "property", name);
	free(path);
	return r;
}

static int describe(struct gmem_qmp *qmp, struct gmem_ram_backend *b)
{
	json_t *v;
	bool share;
	int r;

	r = prop(qmp, b->id, "size", &v);
	if (r)
		return r;
	b->size = (uint64_t)json_integer_value(v);
	json_decref(v);
	r = prop(qmp, b->id, "share", &v);
	if (r)
		return r;
	share = json_is_true(v);
	json_decref(v);
	if (!strcmp(b->type, "memory-backend-ram"))
		return gmem_err(-EOPNOTSUPP, "RAM '%s' is anonymous memory of QEMU's own (%s): %s", b->id,
				share ? "memory-backend-ram" : "no shared memory backend was given", REMEDY);
	if (!share)
		return gmem_err(-EOPNOTSUPP,
				"RAM '%s' was started with share=off: its bytes cannot be read from outside; %s", b->id,
				REMEDY);
	if (strcmp(b->type, "memory-backend-memfd") && strcmp(b->type, "memory-backend-file") &&
	    strcmp(b->type, "memory-backend-shm"))
		return gmem_err(-EOPNOTSUPP, "RAM '%s' is a %s, which is not supported: %s", b->id, b->type, REMEDY);
	/* From 8.1 on x-ignore-shared leaves out named files only. */
	if (strcmp(b->type, "memory-backend-file")) {
		const struct gmem_qmp_version *ver = gmem_qmp_version(qmp);

		if (ver->major > 8 || (ver->major == 8 && ver->minor >= 1))
			return gmem_err(-EOPNOTSUPP,
					"RAM '%s' is a %s, whose pages QEMU %d.%d would put into the device state: "
					"start it with "
					"gmem run, or with memory-backend-file,share=on",
					b->id, b->type, ver->major, ver->minor);
	}
	return 0;
}

static int add_backend(struct gmem_ram *ram, const char *id, const char *type, size_t type_len)
{
	struct gmem_ram_backend *b;

	b = reallocarray(ram->backends, ram->n + 1, sizeof(*b));
	if (!b)
		return gmem_err(-ENOMEM, "gmem_ram: out of memory");
	ram->backends = b;
	b += ram->n++;
	*b = (struct gmem_ram_backend){ .fd = -1, .gpa = UINT64_MAX };
	b->id = strdup(id);
	b->type = strndup(type, type_len);
	return b->id && b->type ? 0 : gmem_err(-ENOMEM, "gmem_ram: out of memory");
}

static int list_backends(struct gmem_qmp *qmp, struct gmem_ram *ram)
{
	json_t *list, *item;
	size_t i;
	int r;

	r = gmem_qmp_execf(qmp, &list, "qom-list", "{s:s}", "path", "/objects");
	if (r)
		return r;
	json_array_foreach(list, i, item) {
		const char *name = json_string_value(json_object_get(item, "name"));
		const char *type = json_string_value(json_object_get(item, "type"));
		size_t len = type ? strlen(type) : 0;

		if (!name || len < 22 || strncmp(type, "child<memory-backend-", 21))
			continue;
		r = add_backend(ram, name, type + 6, len - 7);
		if (!r)
			r = describe(qmp, &ram->backends[ram->n - 1]);
		if (r)
			break;
	}
	json_decref(list);
	if (!r && !ram->n)
		r = gmem_err(-EOPNOTSUPP, "%s: this QEMU's RAM has no memory backend: %s", gmem_qmp_name(qmp), REMEDY);
	return r;
}

/* One line of `info mtree -f`: "  START-END (prio N, ram): NAME @OFF KVM". */
static void match_line(const char *line, const char *block, struct place *place)
{
	uint64_t start, end, off = 0;
	char kind[16];
	size_t len = strlen(block);
	int at = 0;

	if (sscanf(line, " %" SCNx64 "-%" SCNx64 " (prio %*d, %15[a-z-]): %n", &start, &end, kind, &at) < 3 || !at)
		return;
	line += at;
	if (strncmp(line, block, len) || (line[len] && line[len] != ' ' && line[len] != '\n' && line[len] != '\r'))
		return;
	line += len;
	if (!strncmp(line, " @", 2))
		off = strtoull(line + 2, NULL, 16);
	if (place->found && (place->start || off))
		return;
	*place = (struct place){ .gpa = start, .off = off, .found = true, .start = !off };
}

/* Looks through the flat view of system memory only: other address spaces have addresses of their own. */
static void find_place(const char *mtree, const char *block, struct place *place)
{
	bool in_memory = false;
	const char *line, *next;
	char buf[512];

	for (line = mtree; *line; line = next) {
		size_t len = strcspn(line, "\n");

		next = line + len + (line[len] == '\n');
		if (len >= sizeof(buf))
			continue;
		memcpy(buf, line, len);
		buf[len] = '\0';
		if (!strncmp(buf, "FlatView", 8))
			in_memory = false;
		else if (!strncmp(buf, " AS \"memory\"", 12))
			in_memory = true;
		else if (in_memory)
			match_line(buf, block, place);
	}
}

static int ask_hva(struct gmem_qmp *qmp, struct gmem_ram_backend *b, const char *block, const struct place *place)
{
	char line[48], name[256], *text;
	uint64_t hva;
	int n, r;

	snprintf(line, sizeof(line), "gpa2hva 0x%" PRIx64, place->gpa);
	r = gmem_qmp_hmp(qmp, line, &text);
	if (r)
		return r;
	n = sscanf(text, "Host virtual address for 0x%*x (%255[^)]) is 0x%" SCNx64, name, &hva);
	free(text);
	if (n != 2 || strcmp(name, block))
		return gmem_err(-EPROTO,
				"RAM '%s': QEMU does not tell where guest address 0x%" PRIx64 " is in its memory",
				b->id, place->gpa);
	b->hva = hva - place->off;
	b->gpa = place->start ? place->gpa : UINT64_MAX;
	return 0;
}

static int locate(struct gmem_qmp *qmp, const char *mtree, struct gmem_ram_backend *b)
{
	struct place place = { .found = false };
	char *canonical;
	int r;

	find_place(mtree, b->id, &place);
	if (place.found)
		return ask_hva(qmp, b, b->id, &place);
	if (asprintf(&canonical, "/objects/%s", b->id) < 0)
		return gmem_err(-ENOMEM, "gmem_ram: out of memory");
	find_place(mtree, canonical, &place);
	if (place.found) {
		b->canonical = true;
		r = ask_hva(qmp, b, canonical, &place);
	} else {
		r = gmem_err(
			-EOPNOTSUPP,
			"memory backend '%s' is not part of the guest's memory: remove it from QEMU (object-del), or "
			"give it to a device",
			b->id);
	}
	free(canonical);
	return r;
}

/* The mapping may be in several pieces (a policy or advice on part of it), but it must be one file from end to end. */
static int check_mapping(const struct gmem_procmaps *maps, struct gmem_ram_backend *b, const struct gmem_procmap **ret)
{
	const struct gmem_procmap *first, *m;
	uint64_t at;

	first = gmem_procmaps_find(maps, b->hva);
	if (!first)
		return gmem_err(-ESRCH,
				"RAM '%s': process %d has nothing mapped at 0x%" PRIx64 ": is --pid this QEMU's?",
				b->id, (int)maps->pid, b->hva);
	for (at = b->hva; at < b->hva + b->size; at = m->end) {
		m = gmem_procmaps_find(maps, at);
		if (!m || m->inode != first->inode || m->dev != first->dev ||
		    m->off - m->start != first->off - first->start)
			return gmem_err(-EOPNOTSUPP, "RAM '%s': its memory is not one file from end to end", b->id);
		if (!m->shared || !m->inode)
			return gmem_err(-EOPNOTSUPP, "RAM '%s' is a private mapping (share=off): %s", b->id, REMEDY);
	}
	b->off = first->off + (b->hva - first->start);
	*ret = first;
	return 0;
}

static int check_file(struct gmem_ram_backend *b)
{
	struct statfs fs;
	struct stat st;

	if (fstatfs(b->fd, &fs) || fstat(b->fd, &st))
		return gmem_err_sys(-errno, "RAM '%s': its memory file", b->id);
	if (fs.f_type == HUGETLBFS_MAGIC)
		return gmem_err(-EOPNOTSUPP,
				"RAM '%s' is on huge pages (hugetlbfs), which cannot be restored on demand: leave out "
				"hugetlb=on",
				b->id);
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size < b->off || (uint64_t)st.st_size - b->off < b->size)
		return gmem_err(-EOPNOTSUPP, "RAM '%s': its memory file has %lld bytes, fewer than the RAM's %" PRIu64,
				b->id, (long long)st.st_size, b->off + b->size);
	return 0;
}

int gmem_ram_find(struct gmem_qmp *qmp, pid_t pid, struct gmem_ram **ret)
{
	struct gmem_procmaps *maps = NULL;
	const struct gmem_procmap *map = NULL;
	struct gmem_ram *ram;
	char *mtree = NULL;
	size_t i;
	int r;

	ram = calloc(1, sizeof(*ram));
	if (!ram)
		return gmem_err(-ENOMEM, "gmem_ram: out of memory");
	r = list_backends(qmp, ram);
	if (!r)
		r = gmem_qmp_hmp(qmp, "info mtree -f", &mtree);
	if (!r)
		r = gmem_procmaps_read(pid, &maps);
	for (i = 0; i < ram->n && !r; i++) {
		struct gmem_ram_backend *b = &ram->backends[i];

		r = locate(qmp, mtree, b);
		if (!r)
			r = check_mapping(maps, b, &map);
		if (!r)
			r = gmem_procmaps_open(maps, map, &b->fd);
		if (!r)
			r = check_file(b);
	}
	gmem_procmaps_free(maps);
	free(mtree);
	if (r) {
		gmem_ram_free(ram);
		return r;
	}
	*ret = ram;
	return 0;
}

void gmem_ram_free(struct gmem_ram *ram)
{
	size_t i;

	if (!ram)
		return;
	for (i = 0; i < ram->n; i++) {
		free(ram->backends[i].id);
		free(ram->backends[i].type);
		if (ram->backends[i].fd >= 0)
			close(ram->backends[i].fd);
	}
	free(ram->backends);
	free(ram);
}
