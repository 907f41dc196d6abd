/* SPDX-License-Identifier: MIT */
/* What a QEMU command line says of RAM, disks and machine type, and how it is made to say otherwise. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "link/cmdline.h"
#include "link/optstr.h"

#define MIB (1ULL << 20)
#define DEFAULT_RAM (128 * MIB)
#define RAM_ALIGN 8192ULL

int gmem_cmdline_merged(const struct gmem_cmdline *cl, const char *name, const char *implied, const char *key,
			char **ret)
{
	struct gmem_optstr *opts;
	char *found = NULL, *copy;
	const char *v;
	long i;
	int r;

	for (i = gmem_cmdline_find(cl, name, 0); i >= 0; i = gmem_cmdline_find(cl, name, (size_t)i + 1)) {
		r = gmem_optstr_parse(gmem_cmdline_value(cl, (size_t)i), implied, &opts);
		if (r) {
			free(found);
			return r;
		}
		v = gmem_optstr_get(opts, key);
		copy = v ? strdup(v) : NULL;
		gmem_optstr_free(opts);
		if (!v)
			continue;
		free(found);
		found = copy;
		if (!found)
			return gmem_err(-ENOMEM, "gmem_cmdline: out of memory");
	}
	*ret = found;
	return 0;
}

int gmem_cmdline_ram_size(const struct gmem_cmdline *cl, uint64_t *ret)
{
	uint64_t size = 0;
	char *text;
	int r;

	r = gmem_cmdline_merged(cl, "m", "size", "size", &text);
	if (r)
		return r;
	if (text && *text) {
		bool bare = isdigit((unsigned char)text[strlen(text) - 1]);

		r = gmem_size_parse(text, bare ? MIB : 1, &size);
		if (r)
			r = gmem_err_prefix(r, "-m");
	}
	free(text);
	if (r)
		return r;
	if (!size)
		size = DEFAULT_RAM;
	if (__builtin_add_overflow(size, RAM_ALIGN - 1, &size))
		return gmem_err(-ERANGE, "-m: a size too large");
	*ret = size & ~(RAM_ALIGN - 1);
	return 0;
}

int gmem_cmdline_object(const struct gmem_cmdline *cl, const char *id, size_t *ret_index, struct gmem_optstr **ret)
{
	struct gmem_optstr *opts;
	const char *v;
	long i;
	int r;

	for (i = gmem_cmdline_find(cl, "object", 0); i >= 0; i = gmem_cmdline_find(cl, "object", (size_t)i + 1)) {
		r = gmem_optstr_parse(gmem_cmdline_value(cl, (size_t)i), "qom-type", &opts);
		if (r)
			return r;
		v = gmem_optstr_get(opts, "id");
		if (v && !strcmp(v, id)) {
			if (ret_index)
				*ret_index = (size_t)i;
			*ret = opts;
			return 0;
		}
		gmem_optstr_free(opts);
	}
	return gmem_err(-ENOENT, "QEMU command line: no -object with id=%s", id);
}

static int backend_text(const char *id, uint64_t size, int fd, bool canonical, char **ret)
{
	if (asprintf(ret, "memory-backend-file,id=%s,size=%llu,mem-path=/proc/self/fd/%d,share=on%s", id,
		     (unsigned long long)size, fd, canonical ? ",x-use-canonical-path-for-ramblock-id=on" : "") < 0)
		return gmem_err(-ENOMEM, "gmem_cmdline: out of memory");
	return 0;
}

static int refuse_own_backend(const struct gmem_cmdline *cl)
{
	struct gmem_optstr *opts;
	const char *v;
	char *own;
	long i;
	int r;

	if (gmem_cmdline_find(cl, "mem-path", 0) >= 0)
		return gmem_err(-EBUSY, "-mem-path gives RAM a file of its own: leave it out, gmem makes the memory");
	if (gmem_cmdline_find(cl, "mem-prealloc", 0) >= 0)
		return gmem_err(-EBUSY, "-mem-prealloc goes with -mem-path: leave it out, gmem makes the memory");
	r = gmem_cmdline_merged(cl, "machine", "type", "memory-backend", &own);
	if (r)
		return r;
	if (own) {
		r = gmem_err(-EBUSY,
			     "-machine memory-backend=%s gives RAM a backend of its own: leave it out, or start QEMU "
			     "without gmem run "
			     "if that backend is a shared memfd",
			     own);
		free(own);
		return r;
	}
	for (i = gmem_cmdline_find(cl, "numa", 0); i >= 0; i = gmem_cmdline_find(cl, "numa", (size_t)i + 1)) {
		r = gmem_optstr_parse(gmem_cmdline_value(cl, (size_t)i), "type", &opts);
		if (r)
			return r;
		v = gmem_optstr_get(opts, "memdev");
		if (v)
			r = gmem_err(-EBUSY,
				     "-numa memdev=%s gives RAM a backend of its own: leave it out, or start QEMU "
				     "without gmem run "
				     "with shared memfds",
				     v);
		gmem_optstr_free(opts);
		if (r)
			return r;
	}
	for (i = gmem_cmdline_find(cl, "object", 0); i >= 0; i = gmem_cmdline_find(cl, "object", (size_t)i + 1)) {
		r = gmem_optstr_parse(gmem_cmdline_value(cl, (size_t)i), "qom-type", &opts);
		if (r)
			return r;
		v = gmem_optstr_get(opts, "qom-type");
		if (v && !strncmp(v, "memory-backend-", 15))
			r = gmem_err(-EBUSY,
				     "-object %s,id=%s: a memory backend is given already: leave it out, gmem makes "
				     "the memory",
				     v, gmem_optstr_get(opts, "id") ? gmem_optstr_get(opts, "id") : "?");
		gmem_optstr_free(opts);
		if (r)
			return r;
	}
	return 0;
}

int gmem_cmdline_give_ram(struct gmem_cmdline *cl, const char *id, uint64_t size, int fd)
{
	char *text;
	int r;

	r = refuse_own_backend(cl);
	if (r)
		return r;
	r = backend_text(id, size, fd, false, &text);
	if (r)
		return r;
	r = gmem_cmdline_append(cl, "object", text);
	free(text);
	if (r)
		return r;
	if (asprintf(&text, "memory-backend=%s", id) < 0)
		return gmem_err(-ENOMEM, "gmem_cmdline: out of memory");
	r = gmem_cmdline_append(cl, "machine", text);
	free(text);
	return r;
}

int gmem_cmdline_replace_backend(struct gmem_cmdline *cl, const char *id, uint64_t size, int fd, bool canonical)
{
	struct gmem_optstr *opts;
	size_t i;
	char *text;
	int r;

	r = gmem_cmdline_object(cl, id, &i, &opts);
	if (r)
		return r;
	gmem_optstr_free(opts);
	r = backend_text(id, size, fd, canonical, &text);
	if (r)
		return r;
	r = gmem_cmdline_set(cl, i, text);
	free(text);
	return r;
}

long gmem_cmdline_drive(const struct gmem_cmdline *cl, const char *file)
{
	struct gmem_optstr *opts;
	long i, found = -1;
	const char *v;

	for (i = gmem_cmdline_find(cl, "drive", 0); i >= 0; i = gmem_cmdline_find(cl, "drive", (size_t)i + 1)) {
		if (gmem_optstr_parse(gmem_cmdline_value(cl, (size_t)i), NULL, &opts))
			return -1;
		v = gmem_optstr_get(opts, "file");
		if (v && !strcmp(v, file))
			found = found == -1 ? i : -2;
		gmem_optstr_free(opts);
	}
	return found;
}

/* A restored QEMU that is saved again has the monitor of its own restore on its command line. */
static void drop_keyed(struct gmem_cmdline *cl, const char *name, const char *implied, const char *key,
		       const char *value)
{
	struct gmem_optstr *opts;
	size_t i = gmem_cmdline_count(cl);
	const char *v;

	while (i-- > 0) {
		if (strcmp(gmem_cmdline_name(cl, i), name) ||
		    gmem_optstr_parse(gmem_cmdline_value(cl, i), implied, &opts))
			continue;
		v = gmem_optstr_get(opts, key);
		if (v && !strcmp(v, value))
			gmem_cmdline_remove(cl, i);
		gmem_optstr_free(opts);
	}
}

int gmem_cmdline_make_incoming(struct gmem_cmdline *cl, const char *machine, int qmp_fd)
{
	static const char *const gone[] = { "incoming", "loadvm", "daemonize" /* it stays our child */ };
	char *text;
	size_t k;
	long i;
	int r;

	for (k = 0; k < sizeof(gone) / sizeof(*gone); k++)
		while ((i = gmem_cmdline_find(cl, gone[k], 0)) >= 0)
			gmem_cmdline_remove(cl, (size_t)i);
	drop_keyed(cl, "chardev", "backend", "id", "gmem.qmp");
	drop_keyed(cl, "mon", "chardev", "chardev", "gmem.qmp");
	r = gmem_cmdline_append(cl, "incoming", "defer");
	if (r)
		return r;
	if (asprintf(&text, "type=%s", machine) < 0)
		return gmem_err(-ENOMEM, "gmem_cmdline: out of memory");
	r = gmem_cmdline_append(cl, "machine", text);
	free(text);
	if (r)
		return r;
	if (asprintf(&text, "socket,id=gmem.qmp,server=on,wait=off,fd=%d", qmp_fd) < 0)
		return gmem_err(-ENOMEM, "gmem_cmdline: out of memory");
	r = gmem_cmdline_append(cl, "chardev", text);
	free(text);
	if (r)
		return r;
	return gmem_cmdline_append(cl, "mon", "chardev=gmem.qmp,mode=control");
}
