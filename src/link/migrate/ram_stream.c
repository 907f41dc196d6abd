/* SPDX-License-Identifier: MIT */
/*
 * The stream: magic and version, the configuration, then sections. Only "ram" sends any before the machine stands, so
 * that all up to the first device is understood here, and what follows goes through as it is.
 */
#include "link/migrate/ram_stream.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "gmem.h"

#define STREAM_MAGIC 0x5145564du /* "QEVM" */
#define STREAM_VERSION 3u

enum {
	SECTION_START = 0x01,
	SECTION_PART = 0x02,
	SECTION_END = 0x03,
	SECTION_FULL = 0x04,
	SUBSECTION = 0x05,
	CONFIGURATION = 0x07,
	COMMAND = 0x08,
	FOOTER = 0x7e,
};

enum {
	RAM_ZERO = 0x02,
	RAM_MEM_SIZE = 0x04,
	RAM_PAGE = 0x08,
	RAM_EOS = 0x10,
	RAM_CONTINUE = 0x20,
};

/* Small: what waits here is a part of the log that QEMU takes for sent. */
#define BUF_LEN (64u << 10)

struct reader {
	const struct gmem_ram_stream *s;
	unsigned char *buf;
	size_t at, len;
	bool ended;
	uint32_t ram_id; /* of the section "ram" */
	bool ram_known;
	char block[256]; /* of the last page record */
	long number; /* of this block in s->blocks, -1: not the caller's, -2: there was no record */
	char kept[256]; /* block of the last page record that was kept */
};

static int refill(struct reader *r)
{
	memmove(r->buf, r->buf + r->at, r->len - r->at);
	r->len -= r->at;
	r->at = 0;
	for (;;) {
		ssize_t n = read(r->s->fd, r->buf + r->len, BUF_LEN - r->len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return gmem_err_sys(-errno, "migration stream: read");
		r->ended = !n;
		r->len += (size_t)n;
		return 0;
	}
}

/* `n` bytes of the stream, valid until the next call. */
static int take(struct reader *r, size_t n, const unsigned char **ret)
{
	int err;

	while (r->len - r->at < n) {
		err = r->ended ? gmem_err(-ECONNRESET, "migration stream: it ends in the middle") : refill(r);
		if (err)
			return err;
	}
	*ret = r->buf + r->at;
	r->at += n;
	return 0;
}

/* The next byte, which stays; -1 in *ret: the stream is at its end. */
static int peek(struct reader *r, int *ret)
{
	while (r->len == r->at && !r->ended) {
		int err = refill(r);

		if (err)
			return err;
	}
	*ret = r->len == r->at ? -1 : r->buf[r->at];
	return 0;
}

static int keep(struct reader *r, const void *bytes, size_t n)
{
	return r->s->keep(r->s->opaque, bytes, n);
}

/* Takes and keeps; *ret, which may be NULL, as of take(). */
static int pass(struct reader *r, size_t n, const unsigned char **ret)
{
	const unsigned char *p;
	int err = take(r, n, &p);

	if (!err)
		err = keep(r, p, n);
	if (!err && ret)
		*ret = p;
	return err;
}

static uint64_t be(const unsigned char *p, unsigned int n)
{
	uint64_t v = 0;

	while (n--)
		v = v << 8 | *p++;
	return v;
}

static int pass_be(struct reader *r, unsigned int n, uint64_t *ret)
{
	const unsigned char *p = NULL;
	int err = pass(r, n, &p);

	if (!err)
		*ret = be(p, n);
	return err;
}

/* A length of one byte and so many characters. `name` has room for 256. */
static int take_name(struct reader *r, bool kept, char *name)
{
	const unsigned char *p;
	size_t len;
	int err;

	err = take(r, 1, &p);
	if (err)
		return err;
	len = *p;
	if (kept)
		err = keep(r, p, 1);
	if (!err)
		err = take(r, len, &p);
	if (!err && kept)
		err = keep(r, p, len);
	if (err)
		return err;
	if (memchr(p, 0, len))
		return gmem_err(-EPROTO, "migration stream: a name with a zero byte in it");
	memcpy(name, p, len);
	name[len] = '\0';
	return 0;
}

static int pass_capabilities(struct reader *r)
{
	char name[256];
	uint64_t n = 0;
	int err = pass_be(r, 4, &n);

	for (; n && !err; n--)
		err = take_name(r, true, name);
	return err;
}

static int pass_subsection(struct reader *r)
{
	char name[256];
	uint64_t v;
	int err;

	err = pass_be(r, 1, &v);
	if (!err)
		err = take_name(r, true, name);
	if (!err)
		err = pass_be(r, 4, &v);
	if (err)
		return err;
	if (!strcmp(name, "configuration/target-page-bits")) {
		err = pass_be(r, 4, &v);
		if (!err && v != GMEM_PAGE_SHIFT)
			err = gmem_err(-EOPNOTSUPP, "migration stream: the guest's pages are of 2^%llu bytes",
				       (unsigned long long)v);
		return err;
	}
	if (!strcmp(name, "configuration/capabilities"))
		return pass_capabilities(r);
	if (!strcmp(name, "configuration/uuid"))
		return pass(r, 16, NULL);
	return gmem_err(-EOPNOTSUPP, "migration stream: '%s' is not known", name);
}

static int pass_configuration(struct reader *r)
{
	uint64_t v = 0;
	int next, err;

	err = pass_be(r, 1, &v);
	if (!err)
		err = pass_be(r, 4, &v);
	if (!err && v > BUF_LEN)
		err = gmem_err(-EPROTO, "migration stream: a machine type of %llu bytes", (unsigned long long)v);
	if (!err)
		err = pass(r, (size_t)v, NULL);
	for (;;) {
		if (!err)
			err = peek(r, &next);
		if (err || next != SUBSECTION)
			return err;
		err = pass_subsection(r);
	}
}

static int pass_command(struct reader *r)
{
	uint64_t v;
	int err = pass_be(r, 1, &v);

	if (!err)
		err = pass_be(r, 2, &v);
	if (!err)
		err = pass_be(r, 2, &v);
	return err ? err : pass(r, (size_t)v, NULL);
}

/* ---- the section "ram" */

static long number_of(const struct reader *r, const char *name)
{
	for (size_t i = 0; i < r->s->nblocks; i++)
		if (!strcmp(r->s->blocks[i].name, name))
			return (long)i;
	return -1;
}

/* The list of blocks with their sizes. */
static int pass_blocks(struct reader *r, uint64_t total)
{
	char name[256];
	uint64_t len;
	long number;
	int err = 0;

	while (total && !err) {
		err = take_name(r, true, name);
		if (!err)
			err = pass_be(r, 8, &len);
		if (err)
			break;
		if (len > total)
			return gmem_err(-EPROTO, "migration stream: RAM block '%s' is larger than all of them", name);
		total -= len;
		number = number_of(r, name);
		if (number >= 0 && r->s->blocks[number].len != len)
			err = gmem_err(-EPROTO, "migration stream: RAM block '%s' has %llu bytes, not %llu", name,
				       (unsigned long long)len, (unsigned long long)r->s->blocks[number].len);
	}
	return err;
}

/* A page of a block that is not the caller's. Which block is always said: the record before may have been taken out. */
static int keep_page(struct reader *r, uint64_t head, const unsigned char *body, size_t len)
{
	unsigned char text[8 + 1 + 255];
	bool again = !strcmp(r->kept, r->block);
	size_t name_len = strlen(r->block);
	int err;

	head = again ? head | RAM_CONTINUE : head & ~(uint64_t)RAM_CONTINUE;
	for (int i = 0; i < 8; i++)
		text[i] = (unsigned char)(head >> (56 - 8 * i));
	text[8] = (unsigned char)name_len;
	memcpy(text + 9, r->block, name_len);
	memcpy(r->kept, r->block, name_len + 1);
	err = keep(r, text, again ? 8 : 9 + name_len);
	return err ? err : keep(r, body, len);
}

static int take_page(struct reader *r, uint64_t head)
{
	uint64_t off = head & ~(uint64_t)(GMEM_PAGE_SIZE - 1);
	size_t len = head & RAM_PAGE ? GMEM_PAGE_SIZE : 1;
	const unsigned char *p;
	int err = 0;

	if (!(head & RAM_CONTINUE)) {
		err = take_name(r, false, r->block);
		r->number = err ? -2 : number_of(r, r->block);
	}
	if (!err && r->number == -2)
		err = gmem_err(-EPROTO, "migration stream: a page of no block");
	if (!err)
		err = take(r, len, &p);
	if (err)
		return err;
	if (r->number < 0)
		return keep_page(r, head, p, len);
	if (off >= r->s->blocks[r->number].len)
		return gmem_err(-EPROTO, "migration stream: page 0x%llx of RAM block '%s' is past its end",
				(unsigned long long)off, r->block);
	return r->s->page(r->s->opaque, (size_t)r->number, off);
}

/* Records up to the end of the section. */
static int take_ram(struct reader *r)
{
	const unsigned char *p;
	uint64_t head, flags;
	int err;

	for (;;) {
		err = take(r, 8, &p);
		if (err)
			return err;
		head = be(p, 8);
		flags = head & (GMEM_PAGE_SIZE - 1);
		switch (flags & ~(uint64_t)RAM_CONTINUE) {
		case RAM_EOS:
			return keep(r, p, 8);
		case RAM_MEM_SIZE:
			err = keep(r, p, 8);
			if (!err)
				err = pass_blocks(r, head - flags);
			break;
		case RAM_ZERO:
		case RAM_PAGE:
			err = take_page(r, head);
			break;
		default:
			err = gmem_err(-EOPNOTSUPP, "migration stream: RAM in a form that is not known (flags 0x%llx)",
				       (unsigned long long)flags);
		}
		if (err)
			return err;
	}
}

static int take_section_id(struct reader *r, bool start)
{
	char name[256];
	uint64_t v, id;
	int err;

	err = pass_be(r, 1, &v);
	if (!err)
		err = pass_be(r, 4, &id);
	if (err)
		return err;
	if (!start)
		return r->ram_known && id == r->ram_id ?
			       0 :
			       gmem_err(-EPROTO, "migration stream: a section %llu that was never begun",
					(unsigned long long)id);
	err = take_name(r, true, name);
	if (!err)
		err = pass_be(r, 8, &v);
	if (!err && (strcmp(name, "ram") || r->ram_known))
		err = gmem_err(-EOPNOTSUPP, "'%s' sends data while the machine runs, which is not supported", name);
	r->ram_id = (uint32_t)id;
	r->ram_known = !err;
	return err;
}

static int take_section(struct reader *r, bool start)
{
	int next, err = take_section_id(r, start);

	r->kept[0] = '\0';
	if (!err)
		err = take_ram(r);
	if (!err)
		err = peek(r, &next);
	return !err && next == FOOTER ? pass(r, 5, NULL) : err;
}

/* The devices and what follows them. */
static int pass_rest(struct reader *r)
{
	int next, err;

	for (;;) {
		err = peek(r, &next);
		if (err || next < 0)
			return err;
		err = pass(r, r->len - r->at, NULL);
		if (err)
			return err;
	}
}

static int read_sections(struct reader *r)
{
	const unsigned char *p = NULL;
	bool ended = false;
	int next, err;

	err = pass(r, 8, &p);
	if (!err && (be(p, 4) != STREAM_MAGIC || be(p + 4, 4) != STREAM_VERSION))
		err = gmem_err(-EPROTO, "migration stream: it does not begin as one");
	while (!err) {
		err = peek(r, &next);
		if (err)
			break;
		switch (next) {
		case CONFIGURATION:
			err = pass_configuration(r);
			break;
		case COMMAND:
			err = pass_command(r);
			break;
		case SECTION_START:
		case SECTION_PART:
		case SECTION_END:
			err = take_section(r, next == SECTION_START);
			ended |= next == SECTION_END;
			break;
		case SECTION_FULL:
			if (ended)
				return pass_rest(r);
			err = gmem_err(-EOPNOTSUPP, "a device sends its state before the machine stands, which is "
						    "not supported");
			break;
		case -1:
			err = gmem_err(-ECONNRESET, "migration stream: it ends before the devices");
			break;
		default:
			err = gmem_err(-EPROTO, "migration stream: a section of type 0x%02x", (unsigned int)next);
		}
	}
	return err;
}

int gmem_ram_stream_read(const struct gmem_ram_stream *stream)
{
	struct reader r = { .s = stream, .number = -2 };
	int err;

	r.buf = malloc(BUF_LEN);
	if (!r.buf)
		return gmem_err(-ENOMEM, "migration stream: out of memory");
	err = read_sections(&r);
	free(r.buf);
	return err;
}
