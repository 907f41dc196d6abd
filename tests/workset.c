/* SPDX-License-Identifier: MIT */
/* Working sets as objects and files: what is kept, and what a torn or hostile file comes to. */
#include "tap.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/le.h"
#include "fault/workset.h"

#define P 4096ull

static struct gmem_workset *new_set(const char *path, uint32_t max)
{
	struct gmem_workset_opts opts = { .size = sizeof(opts), .identity = { 1, 2, 3 }, .max_entries = max };
	struct gmem_workset *ws;

	CHECK_OK(gmem_workset_create(path, &opts, &ws));
	return ws;
}

static int add(struct gmem_workset *ws, uint32_t part, uint64_t page, uint64_t npages, uint64_t ns)
{
	struct gmem_workset_entry e = {
		.size = sizeof(e), .part = part, .off = page * P, .len = npages * P, .ns = ns, .touches = 1
	};

	return gmem_workset_add(ws, &e);
}

static struct gmem_workset_stat stat_of(struct gmem_workset *ws)
{
	struct gmem_workset_stat st = { .size = sizeof(st) };

	CHECK_OK(gmem_workset_stat(ws, &st));
	return st;
}

static struct gmem_workset_entry entry_of(const struct gmem_workset *ws, uint64_t i)
{
	struct gmem_workset_entry e = { .size = sizeof(e) };

	CHECK_OK(gmem_workset_entry(ws, i, &e));
	return e;
}

static void check_entry(const struct gmem_workset *ws, uint64_t i, uint32_t part, uint64_t page, uint64_t npages)
{
	struct gmem_workset_entry e = entry_of(ws, i);

	CHECK_EQ(e.part, part);
	CHECK_EQ(e.off, page * P);
	CHECK_EQ(e.len, npages * P);
}

/* A name in a folder that goes with the test. */
static const char *path_of(const char *name)
{
	static char path[2][128];
	static int n;
	static char folder[64];

	if (!*folder) {
		snprintf(folder, sizeof(folder), "/tmp/gmem-workset-XXXXXX");
		CHECK(mkdtemp(folder));
	}
	n = !n;
	snprintf(path[n], sizeof(path[n]), "%s/%s", folder, name);
	return path[n];
}

static void remove_path(const char *path)
{
	char *slash, copy[128];

	CHECK_EQ(unlink(path), 0);
	snprintf(copy, sizeof(copy), "%s", path);
	slash = strrchr(copy, '/');
	*slash = '\0';
	(void)rmdir(copy);
}

TEST(duplicates_are_left_out)
{
	struct gmem_workset *ws = new_set(NULL, 0);
	struct gmem_workset_stat st;

	CHECK_OK(add(ws, 0, 10, 4, 100));
	CHECK_OK(add(ws, 0, 12, 4, 200)); /* 14, 15 are new */
	CHECK_OK(add(ws, 0, 8, 10, 300)); /* 8, 9 and 16, 17 */
	CHECK_OK(add(ws, 0, 8, 10, 400)); /* nothing */
	CHECK_OK(add(ws, 1, 8, 1, 500)); /* another part */
	st = stat_of(ws);
	CHECK_EQ(st.parts, 2);
	CHECK_EQ(st.entries, 5);
	CHECK_EQ(st.pages, 11);
	CHECK_EQ(st.lost, 0);
	CHECK_EQ(st.identity[2], 3);
	check_entry(ws, 0, 0, 10, 4);
	check_entry(ws, 1, 0, 14, 2);
	check_entry(ws, 2, 0, 8, 2);
	check_entry(ws, 3, 0, 16, 2);
	check_entry(ws, 4, 1, 8, 1);
	CHECK_EQ(entry_of(ws, 3).ns, 300);
	gmem_workset_close(ws);
}

TEST(what_is_refused)
{
	struct gmem_workset_entry e = { .size = sizeof(e) };
	struct gmem_workset_opts opts = { .size = sizeof(opts) - 1 };
	struct gmem_workset *ws = new_set(NULL, 2), *other;

	CHECK_ERR(add(ws, 0, 0, 0, 0), -EINVAL);
	CHECK_ERR(add(ws, GMEM_WORKSET_MAX_PARTS, 0, 1, 0), -ENOSPC);
	CHECK_ERR(add(ws, 0, (GMEM_WORKSET_MAX_PART >> 12), 1, 0), -EINVAL);
	CHECK_ERR(add(ws, 0, 0, 1, UINT64_MAX), -EINVAL);
	e.off = 1;
	e.len = P;
	CHECK_ERR(gmem_workset_add(ws, &e), -EINVAL);
	CHECK_ERR(gmem_workset_entry(ws, 0, &e), -ERANGE);
	CHECK_ERR(gmem_workset_create(NULL, &opts, &other), -EINVAL);
	opts = (struct gmem_workset_opts){ .size = sizeof(opts), .max_entries = GMEM_WORKSET_MAX_ENTRIES + 1 };
	CHECK_ERR(gmem_workset_create(NULL, &opts, &other), -EINVAL);
	CHECK_OK(add(ws, 0, 0, 1, 0));
	CHECK_OK(add(ws, 0, 5, 1, 0));
	CHECK_ERR(add(ws, 0, 7, 1, 0), -ENOSPC);
	CHECK_EQ(stat_of(ws).lost, 1);
	CHECK_EQ(stat_of(ws).entries, 2);
	gmem_workset_close(ws);
	gmem_workset_close(NULL);
	CHECK_ERR(gmem_workset_open("/nonexistent/x", &ws), -ENOENT);
	CHECK_ERR(gmem_workset_create("/nonexistent/x", NULL, &ws), -ENOENT);
}

/* More entries than one block has, in several parts. */
static void fill_set(struct gmem_workset *ws, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		CHECK_OK(add(ws, (uint32_t)(i % 3), 2 * i, 1 + i % 2, i * 1000));
}

static void check_set(const struct gmem_workset *ws, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		check_entry(ws, i, (uint32_t)(i % 3), 2 * i, 1 + i % 2);
		CHECK_EQ(entry_of(ws, i).ns, i * 1000);
	}
}

TEST(saved_and_opened)
{
	const uint64_t n = GMEM_WORKSET_BLOCK_ENTRIES + 100;
	const char *path = path_of("set");
	struct gmem_workset *ws = new_set(NULL, 0), *again;
	struct gmem_workset_stat st;

	fill_set(ws, n);
	CHECK_OK(gmem_workset_save(ws, path));
	CHECK_OK(gmem_workset_save(ws, path)); /* in its place */
	CHECK_OK(gmem_workset_open(path, &again));
	st = stat_of(again);
	CHECK_EQ(st.entries, n);
	CHECK_EQ(st.parts, 3);
	CHECK_EQ(st.identity[0], 1);
	CHECK(!st.torn && !st.recording);
	check_set(again, n);
	CHECK_ERR(add(again, 0, 1, 1, 0), -EINVAL);
	gmem_workset_close(again);
	/* It is there: who records does not write over it. */
	CHECK_ERR(gmem_workset_create(path, NULL, &again), -EEXIST);
	gmem_workset_close(ws);
	remove_path(path);
}

/* ---- torn and hostile */

struct bytes {
	uint8_t *d;
	size_t len;
};

static struct bytes read_file(const char *path)
{
	struct stat st;
	struct bytes b;
	int fd = open(path, O_RDONLY);

	CHECK(fd >= 0);
	CHECK_EQ(fstat(fd, &st), 0);
	b.len = (size_t)st.st_size;
	b.d = malloc(b.len);
	CHECK_EQ(read(fd, b.d, b.len), (ssize_t)b.len);
	close(fd);
	return b;
}

static int open_bytes(const uint8_t *d, size_t len, struct gmem_workset **ret)
{
	int fd = memfd_create("workset", MFD_CLOEXEC), err;

	CHECK(fd >= 0);
	CHECK_EQ(write(fd, d, len), (ssize_t)len);
	err = gmem_workset_open_fd(fd, "bytes", ret);
	close(fd);
	return err;
}

/* A file of `n` entries, in blocks of at most 4096. */
static struct bytes saved(uint64_t n)
{
	const char *path = path_of("set");
	struct gmem_workset *ws = new_set(NULL, 0);
	struct bytes b;

	fill_set(ws, n);
	CHECK_OK(gmem_workset_save(ws, path));
	b = read_file(path);
	gmem_workset_close(ws);
	remove_path(path);
	return b;
}

/* Wherever it ends, what is whole before is used. */
TEST(cut_off_anywhere)
{
	const uint64_t first = GMEM_WORKSET_BLOCK_ENTRIES, n = first + 50;
	struct bytes b = saved(n);
	size_t block1 = GMEM_WORKSET_HEADER_LEN + GMEM_WORKSET_BLOCK_LEN + first * GMEM_WORKSET_ENTRY_LEN;
	uint64_t seed = tap_seed();

	for (int i = 0; i < 60; i++) {
		size_t len = i < 8 ? (size_t[]){ 0, 1, 4095, 4096, block1 - 1, block1, block1 + 1, b.len - 1 }[i] :
				     tap_rand(&seed) % b.len;
		struct gmem_workset *ws;
		int err = open_bytes(b.d, len, &ws);

		if (len < GMEM_WORKSET_HEADER_LEN) {
			CHECK_EQ(err, -EMEDIUMTYPE);
			continue;
		}
		CHECK_OK(err);
		CHECK_EQ(stat_of(ws).entries, len >= block1 ? first : 0);
		CHECK(stat_of(ws).torn);
		check_set(ws, stat_of(ws).entries);
		gmem_workset_close(ws);
	}
	free(b.d);
}

/* Any bit: refused, or the entries before it. */
TEST(flipped_bits)
{
	struct bytes b = saved(20);
	size_t len = b.len;

	for (size_t bit = 0; bit < 8 * len; bit += bit < 8 * 300 || bit > 8 * 4080 ? 1 : 1001) {
		struct gmem_workset *ws;
		int err;

		b.d[bit / 8] ^= (uint8_t)(1u << bit % 8);
		err = open_bytes(b.d, b.len, &ws);
		b.d[bit / 8] ^= (uint8_t)(1u << bit % 8);
		if (bit < 64)
			CHECK_EQ(err, -EMEDIUMTYPE);
		else if (bit < 96)
			CHECK_EQ(err, -EPROTONOSUPPORT);
		else if (bit < 8 * GMEM_WORKSET_HEADER_LEN)
			CHECK_EQ(err, -EBADMSG);
		else
			CHECK_OK(err);
		if (err)
			continue;
		CHECK_EQ(stat_of(ws).entries, 0);
		CHECK(stat_of(ws).torn);
		gmem_workset_close(ws);
	}
	free(b.d);
}

/* Right sums, wrong words. */
static int open_with(const struct gmem_workset_header *h, const struct gmem_workset_run *runs, uint32_t n,
		     struct gmem_workset **ret)
{
	uint8_t raw[GMEM_WORKSET_HEADER_LEN + GMEM_WORKSET_BLOCK_LEN + 8 * GMEM_WORKSET_ENTRY_LEN];

	gmem_workset_header_encode(h, raw);
	gmem_workset_block_encode(0, runs, n, raw + GMEM_WORKSET_HEADER_LEN);
	return open_bytes(raw, GMEM_WORKSET_HEADER_LEN + GMEM_WORKSET_BLOCK_LEN + n * GMEM_WORKSET_ENTRY_LEN, ret);
}

TEST(hostile_words)
{
	const struct gmem_workset_run good = { .page = 1, .npages = 2, .touches = 1 };
	struct gmem_workset_header h = { .parts = 1, .part_len = { 16 * P }, .entries = 1 };
	struct gmem_workset_run bad[] = {
		{ .page = 15, .npages = 2, .touches = 1 },
		{ .page = 16, .npages = 1, .touches = 1 },
		{ .page = UINT64_MAX, .npages = 2, .touches = 1 },
		{ .page = UINT64_MAX >> 12, .npages = 2, .touches = 1 },
		{ .page = 1, .npages = 0, .touches = 1 },
		{ .page = 1, .npages = UINT32_MAX, .touches = 1 },
		{ .page = 1, .npages = 1, .touches = 0 },
		{ .page = 1, .npages = 1, .touches = 1, .part = 1 },
		{ .page = 1, .npages = 1, .touches = 1, .ns = UINT64_MAX },
	};
	struct gmem_workset *ws;

	CHECK_OK(open_with(&h, &good, 1, &ws));
	CHECK_EQ(stat_of(ws).entries, 1);
	CHECK(!stat_of(ws).torn);
	gmem_workset_close(ws);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct gmem_workset_run two[2] = { good, bad[i] };

		two[0].page = 4;
		CHECK_OK(open_with(&h, two, 2, &ws));
		CHECK_EQ(stat_of(ws).entries, 0);
		CHECK(stat_of(ws).torn);
		gmem_workset_close(ws);
	}
	/* A page in two entries. */
	bad[0] = good;
	bad[1] = (struct gmem_workset_run){ .page = 2, .npages = 1, .touches = 1 };
	CHECK_ERR(open_with(&h, bad, 2, &ws), -EBADMSG);
	h.part_len[0] = 1;
	CHECK_ERR(open_with(&h, &good, 1, &ws), -EBADMSG);
	h.part_len[0] = GMEM_WORKSET_MAX_PART + P;
	CHECK_ERR(open_with(&h, &good, 1, &ws), -EBADMSG);
	h.part_len[0] = 16 * P;
	h.entries = GMEM_WORKSET_MAX_ENTRIES + 1ull;
	CHECK_ERR(open_with(&h, &good, 1, &ws), -EBADMSG);
	/* The longest part there can be costs nothing. */
	h = (struct gmem_workset_header){ .parts = GMEM_WORKSET_MAX_PARTS, .entries = 1 };
	for (uint32_t i = 0; i < GMEM_WORKSET_MAX_PARTS; i++)
		h.part_len[i] = GMEM_WORKSET_MAX_PART;
	CHECK_OK(open_with(&h, &good, 1, &ws));
	CHECK_EQ(stat_of(ws).entries, 1);
	gmem_workset_close(ws);
}
