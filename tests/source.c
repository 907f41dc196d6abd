/* SPDX-License-Identifier: MIT */
/* Sources of pages: zero, a file, an image, a caller's own. */
#include "tap.h"

#include <limits.h>

#include "image_util.h"
#include "source/source.h"

TEST(zero_is_zero)
{
	uint8_t buf[2 * PAGE];
	struct gmem_source *s;

	memset(buf, 1, sizeof(buf));
	CHECK_OK(gmem_source_new_zero(&s));
	CHECK(gmem_source_is_zero(s, 0, UINT64_MAX - PAGE + 1, false));
	CHECK_EQ(gmem_source_len(s), -1);
	CHECK_OK(gmem_source_read(s, 1 << 20, buf, sizeof(buf)));
	CHECK(buf[0] == 0 && memcmp(buf, buf + 1, sizeof(buf) - 1) == 0);
	buf[7] = 1;
	CHECK_OK(gmem_source_read_nowait(s, 1 << 20, buf, sizeof(buf)));
	CHECK_EQ(buf[7], 0);
	gmem_source_unref(s);
	gmem_source_unref(NULL);
}

TEST(a_file_is_its_bytes_and_then_zero)
{
	uint64_t seed = tap_seed(), start = PAGE, len = PAGE;
	uint8_t *copy, got[4 * PAGE], zero[PAGE] = { 0 };
	int fd = make_memory(8, seed, 0, &copy), r;
	struct gmem_source *s;

	/* Half a page short of the file's end, from its second page on. */
	CHECK_OK(gmem_source_new_fd(fd, PAGE, 6 * PAGE + PAGE / 2, &s));
	for (uint64_t off = 0; off < 6 * PAGE; off += PAGE) {
		CHECK_OK(gmem_source_read(s, off, got, PAGE));
		CHECK_MEM(got, copy + PAGE + off, PAGE);
		CHECK(!gmem_source_is_zero(s, off, PAGE, false));
	}
	CHECK_OK(gmem_source_read(s, 5 * PAGE, got, 4 * PAGE));
	CHECK_MEM(got, copy + 6 * PAGE, PAGE + PAGE / 2);
	CHECK_MEM(got + PAGE + PAGE / 2, zero, PAGE / 2);
	CHECK_MEM(got + 3 * PAGE, zero, PAGE);
	CHECK(!gmem_source_is_zero(s, 6 * PAGE, PAGE, false));
	CHECK(gmem_source_is_zero(s, 7 * PAGE, PAGE, false));
	CHECK_EQ(gmem_source_len(s), 6 * PAGE + PAGE / 2);
	/* From memory nothing comes along. */
	gmem_source_extent(s, &start, &len);
	CHECK(start == PAGE && len == PAGE);
	r = gmem_source_read_nowait(s, 0, got, PAGE);
	CHECK(r == 0 || r == -EAGAIN);
	if (r == 0)
		CHECK_MEM(got, copy + PAGE, PAGE);

	/* What is there still may be other bytes by now. */
	CHECK(ftruncate(fd, 3 * PAGE) == 0);
	CHECK_ERR(gmem_source_read(s, PAGE, got, PAGE), -EIO);
	CHECK_ERR(gmem_source_read(s, PAGE, got, 2 * PAGE), -EIO);
	CHECK_ERR(gmem_source_read(s, 4 * PAGE, got, PAGE), -EIO);
	CHECK_OK(gmem_source_read(s, 7 * PAGE, got, PAGE));
	gmem_source_unref(s);

	/* Longer than the file: what there is. */
	CHECK_OK(gmem_source_new_fd(fd, 0, UINT64_MAX, &s));
	close(fd);
	CHECK_OK(gmem_source_read(s, 2 * PAGE, got, 2 * PAGE));
	CHECK_MEM(got, copy + 2 * PAGE, PAGE);
	CHECK_MEM(got + PAGE, zero, PAGE);
	gmem_source_unref(s);
	free(copy);
}

TEST(what_is_no_file_is_refused)
{
	int fds[2], fd = memfd_create("gmem-test", MFD_CLOEXEC);
	struct gmem_source *s;

	CHECK(pipe2(fds, O_CLOEXEC) == 0);
	CHECK_ERR(gmem_source_new_fd(fds[0], 0, PAGE, &s), -EINVAL);
	CHECK_ERR(gmem_source_new_fd(INT_MAX, 0, PAGE, &s), -EBADF);
	CHECK_ERR(gmem_source_new_fd(fd, PAGE, PAGE, &s), -EINVAL);
	close(fds[0]);
	close(fds[1]);
	close(fd);
}

struct own {
	int frees, answer;
	uint64_t start, len;
};

static int own_read(void *opaque, uint64_t off, void *buf, size_t len)
{
	memset(buf, 7, len);
	return ((struct own *)opaque)->answer;
}

static void own_extent(void *opaque, uint64_t *start, uint64_t *len)
{
	*start = ((struct own *)opaque)->start;
	*len = ((struct own *)opaque)->len;
}

static void own_free(void *opaque)
{
	((struct own *)opaque)->frees++;
}

TEST(a_callers_own_source_is_counted_and_not_trusted)
{
	static const uint64_t K = 1024, none[2] = { 512 * 1024, PAGE };
	struct {
		uint64_t start, len, want_start, want_len;
	} cases[] = {
		{ 512 * K, PAGE, 512 * K, PAGE },
		{ 500 * K, 64 * K, 500 * K, 64 * K },
		{ 0, UINT64_MAX, 256 * K, 512 * K + PAGE },
		{ UINT64_MAX, UINT64_MAX, none[0], none[1] },
		{ 0, 0, none[0], none[1] },
		{ 516 * K, PAGE, none[0], none[1] },
		{ 508 * K, PAGE, none[0], none[1] },
		{ 500 * K + 3, 64 * K, 500 * K, 64 * K },
	};
	struct gmem_source_ops ops = { .size = sizeof(ops), .read = own_read, .free = own_free };
	struct own own = { .answer = 0 };
	struct gmem_source *s;
	uint64_t start = PAGE, len = PAGE;
	uint8_t buf[PAGE];

	CHECK_OK(gmem_source_new(&ops, &own, &s));
	CHECK_OK(gmem_source_read(s, 0, buf, PAGE));
	CHECK_EQ(buf[4095], 7);
	CHECK(!gmem_source_is_zero(s, 0, PAGE, false));
	CHECK_ERR(gmem_source_read_nowait(s, 0, buf, PAGE), -EAGAIN);
	gmem_source_extent(s, &start, &len);
	CHECK(start == PAGE && len == PAGE);
	own.answer = 3;
	CHECK_ERR(gmem_source_read(s, 0, buf, PAGE), -EIO);
	CHECK(gmem_source_ref(s) == s);
	gmem_source_unref(s);
	CHECK_EQ(own.frees, 0);
	gmem_source_unref(s);
	CHECK_EQ(own.frees, 1);

	ops.extent = own_extent;
	CHECK_OK(gmem_source_new(&ops, &own, &s));
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		own.start = cases[i].start;
		own.len = cases[i].len;
		start = none[0];
		len = none[1];
		gmem_source_extent(s, &start, &len);
		if (start != cases[i].want_start || len != cases[i].want_len)
			FAIL("case %zu: 0x%llx, 0x%llx", i, (unsigned long long)start, (unsigned long long)len);
	}
	gmem_source_unref(s);
	ops.size = 8;
	CHECK_ERR(gmem_source_new(&ops, &own, &s), -EINVAL);
	ops.size = sizeof(ops);
	ops.read = NULL;
	CHECK_ERR(gmem_source_new(&ops, &own, &s), -EINVAL);
	CHECK_EQ(own.frees, 2);
}

static void image_source(enum gmem_compression compression, uint32_t chunk_len, uint64_t npages, uint64_t seed)
{
	struct gmem_image_writer_opts opts = writer_opts(compression, chunk_len);
	char *folder = make_folder(), *path = file_in(folder, "vm.gmem");
	uint64_t size = npages * PAGE, clen = chunk_len ? chunk_len : compression == GMEM_COMPRESS_NONE ? PAGE : 65536;
	struct gmem_image_writer *writer;
	struct gmem_image *image;
	struct gmem_source *s;
	uint8_t *copy, *zero = calloc(npages, PAGE), *got = malloc(size);
	int fd = make_memory(npages, seed, 3, &copy), zeros = 0;

	CHECK_OK(gmem_image_create(path, &opts, &writer));
	CHECK_OK(gmem_image_add_region(writer, "ram", 0, fd, 0, size, NULL, NULL));
	CHECK_OK(gmem_image_commit(writer));
	CHECK_OK(gmem_image_open(path, &image));
	CHECK_ERR(gmem_source_new_image(image, 1, &s), -ERANGE);
	CHECK_OK(gmem_source_new_image(image, 0, &s));
	for (int i = 0; i < 2000; i++) {
		uint64_t off = tap_rand(&seed) % npages * PAGE, len = PAGE * (1 + tap_rand(&seed) % 40), start, n;
		bool is_zero;
		int r;

		if (len > size - off)
			len = size - off;
		is_zero = memcmp(copy + off, zero, len) == 0;
		CHECK_EQ(gmem_source_is_zero(s, off, len, false), is_zero);
		zeros += is_zero;
		start = off;
		n = len;
		gmem_source_extent(s, &start, &n);
		CHECK(start <= off && start + n >= off + len && start + n <= size);
		/* No growth past the chunk. */
		CHECK(start >= off / clen * clen && start + n <= (off + len + clen - 1) / clen * clen);
		CHECK_OK(gmem_source_read(s, start, got, n));
		CHECK_MEM(got, copy + start, n);
		memset(got, 1, n);
		r = gmem_source_read_nowait(s, start, got, n);
		CHECK(r == 0 || r == -EAGAIN);
		if (r == 0)
			CHECK_MEM(got, copy + start, n);
	}
	CHECK(zeros > 0);
	CHECK_EQ(gmem_source_len(s), size);
	CHECK(!gmem_source_is_zero(s, size, PAGE, false));
	CHECK_ERR(gmem_source_read(s, size, got, PAGE), -ENODATA);
	gmem_source_unref(s);
	gmem_image_close(image);
	close(fd);
	free(copy);
	free(zero);
	free(got);
	free(path);
	drop_folder(folder);
}

TEST_TIMEOUT(an_image_is_a_source, 60)
{
	uint64_t seed = tap_seed();

	image_source(GMEM_COMPRESS_ZSTD, 0, 5003, tap_rand(&seed));
	image_source(GMEM_COMPRESS_NONE, 0, 5003, tap_rand(&seed));
	image_source(GMEM_COMPRESS_NONE, 32768, 5003, tap_rand(&seed));
	image_source(GMEM_COMPRESS_ZSTD, 262144, 5003, tap_rand(&seed));
}
