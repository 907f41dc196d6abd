/* SPDX-License-Identifier: MIT */
/*
 * The reader of working sets against any file, and what is done with what it has read: asked, measured, cut, written
 * and read again. A fuzzer cannot guess checksums, so all but some inputs get right ones first.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/le.h"
#include "fault/workset.h"

#define MAX_LEN (256u * 1024)
#define BLOCK GMEM_WORKSET_BLOCK_LEN
#define ENTRY GMEM_WORKSET_ENTRY_LEN

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fix_sums(uint8_t *d, size_t len)
{
	size_t at = GMEM_WORKSET_HEADER_LEN;
	uint64_t number = 0;

	memcpy(d, "\x89GMWS\r\n\x1a\x01\0\0\0\0\x10\0\0\0\x10\0\0\0\0\0", 24);
	gmem_put_le64(d + 4088, XXH3_64bits(d, 4088));
	while (len - at >= BLOCK) {
		uint32_t n = gmem_get_le32(d + at + 4);
		XXH3_state_t state;

		if (n > (len - at - BLOCK) / ENTRY)
			return;
		gmem_put_le32(d + at, 0x4b425357);
		gmem_put_le64(d + at + 8, number++);
		XXH3_64bits_reset(&state);
		XXH3_64bits_update(&state, d + at, 16);
		XXH3_64bits_update(&state, d + at + BLOCK, n * ENTRY);
		gmem_put_le64(d + at + 16, XXH3_64bits_digest(&state));
		at += BLOCK + n * ENTRY;
		if (!n)
			return;
	}
}

/* What a reader lets through is inside its part, and in one entry. */
static void check(const struct gmem_workset *ws)
{
	struct gmem_workset_entry e = { .size = sizeof(e) };

	for (uint64_t i = 0; i < ws->n; i++) {
		if (gmem_workset_entry(ws, i, &e) || e.part >= ws->h.parts || !e.len || (e.off | e.len) % 4096 ||
		    e.off > ws->h.part_len[e.part] || e.len > ws->h.part_len[e.part] - e.off)
			__builtin_trap();
	}
}

static void measure_and_cut(struct gmem_workset *ws, const uint8_t *data, size_t size)
{
	struct gmem_workset_cut cut = { .size = sizeof(cut), .fill_bytes_per_s = data[0] * 1000000ull };
	uint64_t n = ws->n;

	for (uint32_t i = 0; i < ws->h.parts; i++)
		if (ws->h.part_len[i] > UINT64_C(1) << 34)
			return; /* a set of so many pages takes more than a fuzzer has */
	if (gmem_measure_begin(ws, data[0] & 1))
		return;
	for (uint64_t i = 0; i < n; i++) {
		if (data[i % size] & 1)
			gmem_measure_in_place(ws, i, data[i % size] * 1000);
		if (data[i % size] & 2)
			gmem_measure_touch(ws, data[i % size] % 4, ws->runs[i].page, 1 + data[i % size], i);
	}
	ws->run->pages = ws->run->replay_ns = 1 + n;
	ws->run->done = true;
	if (gmem_workset_cut(ws, &cut) || cut.ret_keep > n || cut.ret_cost_ns > cut.ret_cost_whole_ns + 1)
		__builtin_trap();
}

static void round_trip(struct gmem_workset *ws)
{
	char path[64];
	struct gmem_workset *again;
	struct gmem_workset_stat a = { .size = sizeof(a) }, b = { .size = sizeof(b) };

	snprintf(path, sizeof(path), "/tmp/fuzz-workset-%d", (int)getpid());
	if (gmem_workset_save(ws, path))
		return;
	if (gmem_workset_open(path, &again) || gmem_workset_stat(ws, &a) || gmem_workset_stat(again, &b) ||
	    a.entries != b.entries || a.pages != b.pages || b.torn)
		__builtin_trap();
	gmem_workset_close(again);
	unlink(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct gmem_workset *ws;
	uint8_t *d;
	int fd;

	if (size < GMEM_WORKSET_HEADER_LEN || size > MAX_LEN)
		return 0;
	fd = memfd_create("fuzz", MFD_CLOEXEC);
	d = malloc(size);
	memcpy(d, data, size);
	if (data[size - 1] != 0xff)
		fix_sums(d, size);
	if (write(fd, d, size) == (ssize_t)size && gmem_workset_open_fd(fd, "fuzz", &ws) == 0) {
		check(ws);
		measure_and_cut(ws, data, size);
		if (data[size - 1] % 64 == 1)
			round_trip(ws);
		gmem_workset_close(ws);
	}
	free(d);
	close(fd);
	return 0;
}
