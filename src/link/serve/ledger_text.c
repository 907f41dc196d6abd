/* SPDX-License-Identifier: MIT */
/* Ledgers as text. What is read may be anybody's: each member is checked before it is believed. */
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/range.h"
#include "link/serve/ledger.h"
#include "link/serve/name.h"

#define FORMAT "gmem-ledger"
#define VERSION 1
#define MAX_LEN (4u * (size_t)GMEM_LEDGER_MAX_TEXT + (1u << 20))

/* ---- writing */

/*
 * JSON has one kind of number, and readers that make a double of it: what uses 64 bits is written as text. jansson
 * answers NULL for what is not UTF-8.
 */
static json_t *hex(uint64_t n)
{
	return json_sprintf("0x%llx", (unsigned long long)n);
}

/* 0 or -1; a text that is not there is not written. */
static int put_text(json_t *to, const char *key, const char *text)
{
	return text ? json_object_set_new(to, key, json_string(text)) : 0;
}

static json_t *fd_json(const struct gmem_ledger_fd *fd)
{
	json_t *o = json_object();
	int err = put_text(o, "name", fd->name) | put_text(o, "kind", fd->kind) |
		  json_object_set_new(o, "dev", hex(fd->dev)) | json_object_set_new(o, "ino", hex(fd->ino));

	if (fd->len)
		err |= json_object_set_new(o, "hva", hex(fd->hva)) | json_object_set_new(o, "len", hex(fd->len));
	if (err) {
		json_decref(o);
		return NULL;
	}
	return o;
}

static json_t *ledger_json(const struct gmem_ledger *l)
{
	json_t *o = json_object(), *fds = json_array();
	int err = 0;

	for (uint32_t i = 0; i < l->nfds; i++)
		err |= json_array_append_new(fds, fd_json(&l->fds[i]));
	err |= put_text(o, "format", FORMAT) | json_object_set_new(o, "version", json_integer(VERSION)) |
	       put_text(o, "id", l->id) | put_text(o, "name", l->name) | put_text(o, "kind", l->kind) |
	       json_object_set_new(o, "pid", json_integer(l->pid)) | json_object_set_new(o, "start", hex(l->start)) |
	       put_text(o, "boot", l->boot) | json_object_set_new(o, "uid", json_integer(l->uid)) |
	       json_object_set_new(o, "gid", json_integer(l->gid)) | json_object_set_new(o, "len", hex(l->len)) |
	       json_object_set_new(o, "page_size", hex(l->page_size)) |
	       json_object_set_new(o, "created_ns", hex(l->created_ns)) | put_text(o, "connection", l->connection) |
	       json_object_set(o, "fds", fds) | put_text(o, "source", l->source) | put_text(o, "options", l->options) |
	       put_text(o, "trouble", l->trouble) | put_text(o, "hello", l->hello);
	json_decref(fds);
	if (err) {
		json_decref(o);
		return NULL;
	}
	return o;
}

static bool fits(const struct gmem_ledger *l)
{
	const char *const texts[] = { l->hello, l->source, l->options, l->trouble };

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		if (texts[i] && strlen(texts[i]) > GMEM_LEDGER_MAX_TEXT)
			return false;
	return true;
}

int gmem_ledger_format(const struct gmem_ledger *l, char **ret, size_t *ret_len)
{
	json_t *o;
	char *text;

	if (!gmem_id_ok(l->id) || l->nfds > GMEM_LEDGER_MAX_FDS)
		return gmem_err(-EINVAL, "ledger: an id or a number of descriptors that cannot be");
	if (!fits(l))
		return gmem_err(-E2BIG, "ledger %s: a text is longer than %u bytes", l->id, GMEM_LEDGER_MAX_TEXT);
	o = ledger_json(l);
	if (!o)
		return gmem_err(-EINVAL, "ledger %s: a text is not UTF-8, or there is no memory", l->id);
	text = json_dumps(o, JSON_INDENT(1));
	json_decref(o);
	if (!text)
		return gmem_err_sys(-ENOMEM, "ledger %s", l->id);
	*ret_len = strlen(text);
	*ret = text;
	return 0;
}

/* ---- reading */

/* A member that is there; NULL with the text set. */
static json_t *member(const json_t *o, const char *key)
{
	json_t *v = json_object_get(o, key);

	if (!v)
		gmem_err(-EPROTO, "ledger: no \"%s\"", key);
	return v;
}

static int get_hex(const json_t *o, const char *key, uint64_t *ret)
{
	const char *text = json_string_value(json_object_get(o, key));
	char *end;

	if (!text || text[0] != '0' || text[1] != 'x' || !text[2] || strlen(text) > 18 ||
	    strspn(text + 2, "0123456789abcdef") != strlen(text + 2))
		return gmem_err(-EPROTO, "ledger: \"%s\" is not a number as \"0x1f\"", key);
	*ret = strtoull(text, &end, 16);
	return 0;
}

static int get_int(const json_t *o, const char *key, int64_t max, int64_t *ret)
{
	const json_t *v = member(o, key);

	if (!v || !json_is_integer(v))
		return gmem_err(-EPROTO, "ledger: \"%s\" is no number", key);
	*ret = json_integer_value(v);
	if (*ret < 0 || *ret > max)
		return gmem_err(-EINVAL, "ledger: \"%s\" is %lld", key, (long long)*ret);
	return 0;
}

/* Into an array of the ledger's, which it must fit. */
static int get_short(const json_t *o, const char *key, char *to, size_t size)
{
	const json_t *v = member(o, key);
	size_t len = json_string_length(v);

	if (!v || !json_is_string(v))
		return gmem_err(-EPROTO, "ledger: \"%s\" is no text", key);
	if (len >= size)
		return gmem_err(-EINVAL, "ledger: \"%s\" is %zu bytes long, of at most %zu", key, len, size - 1);
	memcpy(to, json_string_value(v), len + 1);
	return 0;
}

static int get_text(const json_t *o, const char *key, char **ret)
{
	const json_t *v = json_object_get(o, key);

	if (!v)
		return 0;
	if (!json_is_string(v))
		return gmem_err(-EPROTO, "ledger: \"%s\" is no text", key);
	return gmem_ledger_set(ret, json_string_value(v));
}

static int get_fd(const json_t *o, struct gmem_ledger_fd *fd)
{
	int err;

	if (!json_is_object(o))
		return gmem_err(-EPROTO, "ledger: a descriptor is no object");
	err = get_short(o, "name", fd->name, sizeof(fd->name));
	err = err ? err : get_short(o, "kind", fd->kind, sizeof(fd->kind));
	err = err ? err : get_hex(o, "dev", &fd->dev);
	err = err ? err : get_hex(o, "ino", &fd->ino);
	if (!err && json_object_get(o, "len")) {
		err = get_hex(o, "hva", &fd->hva);
		err = err ? err : get_hex(o, "len", &fd->len);
	}
	if (err)
		return err;
	if (!gmem_name_ok(fd->name))
		return gmem_err(-EINVAL, "ledger: a descriptor's name that cannot be");
	if (fd->hva + fd->len < fd->hva)
		return gmem_err(-EINVAL, "ledger: hva 0x%llx, len 0x%llx", (unsigned long long)fd->hva,
				(unsigned long long)fd->len);
	return 0;
}

static int get_fds(const json_t *o, struct gmem_ledger *l)
{
	const json_t *fds = member(o, "fds");
	int err = 0;

	if (!fds || !json_is_array(fds))
		return gmem_err(-EPROTO, "ledger: \"fds\" is no array");
	if (json_array_size(fds) > GMEM_LEDGER_MAX_FDS)
		return gmem_err(-E2BIG, "ledger: %zu descriptors, of at most %u", json_array_size(fds),
				GMEM_LEDGER_MAX_FDS);
	for (l->nfds = 0; l->nfds < json_array_size(fds) && !err; l->nfds++)
		err = get_fd(json_array_get(fds, l->nfds), &l->fds[l->nfds]);
	return err;
}

static int get_numbers(const json_t *o, struct gmem_ledger *l)
{
	int64_t pid = 0, uid = 0, gid = 0;
	int err = get_int(o, "pid", INT_MAX, &pid);

	err = err ? err : get_int(o, "uid", UINT32_MAX, &uid);
	err = err ? err : get_int(o, "gid", UINT32_MAX, &gid);
	err = err ? err : get_hex(o, "start", &l->start);
	err = err ? err : get_hex(o, "len", &l->len);
	err = err ? err : get_hex(o, "page_size", &l->page_size);
	err = err ? err : get_hex(o, "created_ns", &l->created_ns);
	l->pid = (pid_t)pid;
	l->uid = (uid_t)uid;
	l->gid = (gid_t)gid;
	return err;
}

static int get_texts(const json_t *o, struct gmem_ledger *l)
{
	int err = get_short(o, "id", l->id, sizeof(l->id));

	err = err ? err : get_short(o, "name", l->name, sizeof(l->name));
	err = err ? err : get_short(o, "kind", l->kind, sizeof(l->kind));
	err = err ? err : get_short(o, "boot", l->boot, sizeof(l->boot));
	err = err ? err : get_short(o, "connection", l->connection, sizeof(l->connection));
	err = err ? err : get_text(o, "hello", &l->hello);
	err = err ? err : get_text(o, "source", &l->source);
	err = err ? err : get_text(o, "options", &l->options);
	return err ? err : get_text(o, "trouble", &l->trouble);
}

static int check(const struct gmem_ledger *l)
{
	if (!gmem_id_ok(l->id))
		return gmem_err(-EINVAL, "ledger: an id that cannot be");
	if (l->connection[0] && !gmem_name_ok(l->connection))
		return gmem_err(-EINVAL, "ledger %s: a connection's name that cannot be", l->id);
	if (l->page_size != GMEM_PAGE_SIZE && l->page_size != UINT64_C(2) << 20)
		return gmem_err(-EINVAL, "ledger %s: page_size 0x%llx", l->id, (unsigned long long)l->page_size);
	if (l->len % l->page_size || l->len > INT64_MAX)
		return gmem_err(-EINVAL, "ledger %s: len 0x%llx", l->id, (unsigned long long)l->len);
	return 0;
}

static int from_json(const json_t *o, struct gmem_ledger *l)
{
	const char *format = json_string_value(json_object_get(o, "format"));
	int64_t version = 0;
	int err;

	if (!format || strcmp(format, FORMAT))
		return gmem_err(-EPROTO, "not a ledger");
	err = get_int(o, "version", INT64_MAX, &version);
	if (!err && version != VERSION)
		return gmem_err(-EPROTONOSUPPORT, "ledger of version %lld, not %d", (long long)version, VERSION);
	err = err ? err : get_texts(o, l);
	err = err ? err : get_numbers(o, l);
	err = err ? err : get_fds(o, l);
	return err ? err : check(l);
}

int gmem_ledger_parse(const char *text, size_t len, struct gmem_ledger **ret)
{
	struct gmem_ledger *l;
	json_error_t error;
	json_t *o;
	int err;

	if (len > MAX_LEN)
		return gmem_err(-E2BIG, "ledger of %zu bytes", len);
	o = json_loadb(text, len, JSON_REJECT_DUPLICATES, &error);
	if (!o)
		return gmem_err(-EPROTO, "ledger: line %d: %s", error.line, error.text);
	l = calloc(1, sizeof(*l));
	err = l ? from_json(o, l) : gmem_err_sys(-ENOMEM, "ledger");
	json_decref(o);
	if (err) {
		gmem_ledger_free(l);
		return err;
	}
	*ret = l;
	return 0;
}
