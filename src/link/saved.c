/* SPDX-License-Identifier: MIT */
#include "link/saved.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "gmem.h"

static const char *const hows[] = { "readonly", "ended", "frozen" };

static int oom(void)
{
	return gmem_err(-ENOMEM, "gmem_saved: out of memory");
}

static void clear_disk(struct gmem_disk *disk)
{
	free(disk->path);
	free(disk->drive);
	free(disk->format);
	free(disk->device);
	free(disk->overlay);
}

void gmem_saved_free(struct gmem_saved *saved)
{
	size_t i;

	if (!saved)
		return;
	for (i = 0; i < saved->argc; i++)
		free(saved->argv[i]);
	for (i = 0; i < saved->nbackends; i++) {
		free(saved->backends[i].id);
		free(saved->backends[i].region);
	}
	for (i = 0; i < saved->ndisks; i++)
		clear_disk(&saved->disks[i]);
	free(saved->argv);
	free(saved->backends);
	free(saved->disks);
	free(saved->cwd);
	free(saved->machine);
	free(saved->accel);
	free(saved->cpu);
	free(saved->saved_by);
	free(saved);
}

int gmem_saved_add_backend(struct gmem_saved *saved, const char *id, uint64_t size, bool canonical)
{
	struct gmem_saved_backend *b;

	b = reallocarray(saved->backends, saved->nbackends + 1, sizeof(*b));
	if (!b)
		return oom();
	saved->backends = b;
	b += saved->nbackends++;
	*b = (struct gmem_saved_backend){ .size = size, .canonical = canonical };
	b->id = strdup(id);
	b->region = strdup(id);
	return b->id && b->region ? 0 : oom();
}

static bool copy(char **to, const char *from)
{
	*to = from ? strdup(from) : NULL;
	return *to || !from;
}

int gmem_saved_add_disk(struct gmem_saved *saved, const struct gmem_disk *disk)
{
	struct gmem_disk *d;
	bool ok;

	d = reallocarray(saved->disks, saved->ndisks + 1, sizeof(*d));
	if (!d)
		return oom();
	saved->disks = d;
	d += saved->ndisks++;
	*d = *disk;
	ok = copy(&d->path, disk->path);
	ok &= copy(&d->drive, disk->drive);
	ok &= copy(&d->format, disk->format);
	ok &= copy(&d->device, disk->device);
	ok &= copy(&d->overlay, disk->overlay);
	return ok ? 0 : oom();
}

static json_t *disk_json(const struct gmem_disk *d)
{
	json_t *j;

	j = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I}", "path", d->path, "how", hows[d->how], "dev", (json_int_t)d->dev,
		      "ino", (json_int_t)d->ino, "size", (json_int_t)d->size, "mtime-ns", (json_int_t)d->mtime_ns);
	if (j && d->how == GMEM_DISK_FROZEN) {
		json_object_set_new(j, "drive", json_string(d->drive));
		json_object_set_new(j, "format", json_string(d->format));
		json_object_set_new(j, "virtual-size", json_integer((json_int_t)d->virtual_size));
	}
	return j;
}

int gmem_saved_format(const struct gmem_saved *saved, char **ret)
{
	json_t *argv = json_array(), *backends = json_array(), *disks = json_array(), *top;
	int bad = 0;
	char *text;
	size_t i;

	for (i = 0; i < saved->argc; i++)
		bad |= json_array_append_new(argv, json_string(saved->argv[i]));
	for (i = 0; i < saved->nbackends; i++) {
		const struct gmem_saved_backend *b = &saved->backends[i];

		bad |= json_array_append_new(backends,
					     json_pack("{s:s, s:s, s:I, s:b}", "id", b->id, "region", b->region, "size",
						       (json_int_t)b->size, "canonical", (int)b->canonical));
	}
	for (i = 0; i < saved->ndisks; i++)
		bad |= json_array_append_new(disks, disk_json(&saved->disks[i]));
	top = json_pack("{s:o, s:s, s:{s:i, s:i, s:i}, s:s, s:s, s:s, s:b, s:o, s:o, s:s}", "argv", argv, "cwd",
			saved->cwd, "version", "major", saved->version.major, "minor", saved->version.minor, "micro",
			saved->version.micro, "machine", saved->machine, "accel", saved->accel, "cpu", saved->cpu,
			"running", (int)saved->running, "backends", backends, "disks", disks, "saved-by",
			saved->saved_by);
	text = top && !bad ? json_dumps(top, JSON_INDENT(1)) : NULL;
	json_decref(top);
	if (!text)
		return gmem_err(-EINVAL,
				"QEMU's command line or a disk's path is not UTF-8: it cannot be kept in an image");
	*ret = text;
	return 0;
}

/* A member of the section, checked for its type; the text names it. */
static int need(json_t *obj, const char *key, json_type type, json_t **ret)
{
	json_t *v = json_object_get(obj, key);

	if (!v || (json_typeof(v) != type && !(type == JSON_TRUE && json_is_boolean(v))))
		return gmem_err(-EBADMSG, "image section qemu: '%s' is missing or of the wrong type", key);
	*ret = v;
	return 0;
}

static int need_string(json_t *obj, const char *key, char **ret)
{
	json_t *v = NULL;
	int r;

	r = need(obj, key, JSON_STRING, &v);
	if (r)
		return r;
	*ret = strdup(json_string_value(v));
	return *ret ? 0 : oom();
}

static int need_u64(json_t *obj, const char *key, uint64_t *ret)
{
	json_t *v = NULL;
	int r;

	r = need(obj, key, JSON_INTEGER, &v);
	if (!r)
		*ret = (uint64_t)json_integer_value(v);
	return r;
}

static int parse_argv(struct gmem_saved *saved, json_t *top)
{
	json_t *list = NULL, *item;
	size_t i;
	int r;

	r = need(top, "argv", JSON_ARRAY, &list);
	if (r)
		return r;
	if (!json_array_size(list))
		return gmem_err(-EBADMSG, "image section qemu: 'argv' is empty");
	saved->argv = calloc(json_array_size(list) + 1, sizeof(*saved->argv));
	if (!saved->argv)
		return oom();
	json_array_foreach(list, i, item) {
		if (!json_is_string(item))
			return gmem_err(-EBADMSG, "image section qemu: 'argv' holds something that is not a string");
		saved->argv[i] = strdup(json_string_value(item));
		if (!saved->argv[i])
			return oom();
		saved->argc++;
	}
	return 0;
}

static int parse_backends(struct gmem_saved *saved, json_t *top)
{
	json_t *list = NULL, *item, *canonical = NULL;
	struct gmem_saved_backend *b;
	size_t i;
	int r;

	r = need(top, "backends", JSON_ARRAY, &list);
	if (r)
		return r;
	saved->backends = calloc(json_array_size(list) + 1, sizeof(*saved->backends));
	if (!saved->backends)
		return oom();
	json_array_foreach(list, i, item) {
		b = &saved->backends[saved->nbackends++];
		r = need_string(item, "id", &b->id);
		if (!r)
			r = need_string(item, "region", &b->region);
		if (!r)
			r = need_u64(item, "size", &b->size);
		if (!r)
			r = need(item, "canonical", JSON_TRUE, &canonical);
		if (r)
			return r;
		b->canonical = json_is_true(canonical);
		if (!b->size || b->size % GMEM_PAGE_SIZE)
			return gmem_err(-EBADMSG, "image section qemu: backend '%s' has a size that is not whole pages",
					b->id);
	}
	return saved->nbackends ? 0 : gmem_err(-EBADMSG, "image section qemu: 'backends' is empty");
}

static int parse_disk(struct gmem_disk *d, json_t *item)
{
	uint64_t mtime = 0;
	char *how = NULL;
	size_t k;
	int r;

	r = need_string(item, "path", &d->path);
	if (!r)
		r = need_string(item, "how", &how);
	if (r)
		return r;
	for (k = 0; k < sizeof(hows) / sizeof(*hows) && strcmp(how, hows[k]); k++)
		;
	free(how);
	if (k == sizeof(hows) / sizeof(*hows))
		return gmem_err(-EBADMSG, "image section qemu: disk '%s': 'how' is not known", d->path);
	d->how = (enum gmem_disk_how)k;
	r = need_u64(item, "dev", &d->dev);
	if (!r)
		r = need_u64(item, "ino", &d->ino);
	if (!r)
		r = need_u64(item, "size", &d->size);
	if (!r)
		r = need_u64(item, "mtime-ns", &mtime);
	d->mtime_ns = (int64_t)mtime;
	if (r || d->how != GMEM_DISK_FROZEN)
		return r;
	r = need_string(item, "drive", &d->drive);
	if (!r)
		r = need_string(item, "format", &d->format);
	if (!r)
		r = need_u64(item, "virtual-size", &d->virtual_size);
	return r;
}

static int parse_disks(struct gmem_saved *saved, json_t *top)
{
	json_t *list = NULL, *item;
	size_t i;
	int r;

	r = need(top, "disks", JSON_ARRAY, &list);
	if (r)
		return r;
	saved->disks = calloc(json_array_size(list) + 1, sizeof(*saved->disks));
	if (!saved->disks)
		return oom();
	json_array_foreach(list, i, item) {
		r = parse_disk(&saved->disks[saved->ndisks++], item);
		if (r)
			return r;
	}
	return 0;
}

static int parse_top(struct gmem_saved *saved, json_t *top)
{
	json_t *running = NULL, *v = NULL;
	int r;

	r = parse_argv(saved, top);
	if (!r)
		r = need_string(top, "cwd", &saved->cwd);
	if (!r)
		r = need_string(top, "machine", &saved->machine);
	if (!r)
		r = need_string(top, "accel", &saved->accel);
	if (!r)
		r = need_string(top, "cpu", &saved->cpu);
	if (!r)
		r = need_string(top, "saved-by", &saved->saved_by);
	if (!r)
		r = need(top, "running", JSON_TRUE, &running);
	if (!r)
		r = need(top, "version", JSON_OBJECT, &v);
	if (r)
		return r;
	saved->running = json_is_true(running);
	if (json_unpack(v, "{s:i, s:i, s:i}", "major", &saved->version.major, "minor", &saved->version.minor, "micro",
			&saved->version.micro))
		return gmem_err(-EBADMSG, "image section qemu: 'version' is damaged");
	r = parse_backends(saved, top);
	return r ? r : parse_disks(saved, top);
}

int gmem_saved_parse(const void *data, size_t len, struct gmem_saved **ret)
{
	struct gmem_saved *saved;
	json_error_t jerr;
	json_t *top;
	int r;

	top = json_loadb(data, len, 0, &jerr);
	if (!json_is_object(top)) {
		json_decref(top);
		return gmem_err(-EBADMSG, "image section qemu: not a JSON object");
	}
	saved = calloc(1, sizeof(*saved));
	r = saved ? parse_top(saved, top) : oom();
	json_decref(top);
	if (r) {
		gmem_saved_free(saved);
		return r;
	}
	*ret = saved;
	return 0;
}
