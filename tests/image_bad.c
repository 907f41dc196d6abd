/* SPDX-License-Identifier: MIT */
/* Images that are damaged, cut off, forged, of the future, or none at all: an error that says so, never wrong bytes. */
#include "tap.h"

#include "base/le.h"
#include "image/hash.h"
#include "image/image.h"
#include "image_util.h"

#define NPAGES 300 /* of the small image's first region: three leaves and a branch */

struct small {
	uint8_t *data, *copy, *copy2;
	size_t len;
};

/* A small image with everything in it: a branch, leaves, chunks of both kinds, two regions, two sections. */
static struct small small_image(enum gmem_compression compression, uint32_t chunk_len, uint64_t seed)
{
	struct gmem_image_writer_opts opts = writer_opts(compression, chunk_len);
	char *folder = make_folder(), *path = file_in(folder, "vm.gmem");
	int fd = memfd_create("gmem-test", MFD_CLOEXEC), fd2;
	struct gmem_image_writer *writer;
	struct small s;

	s.copy = calloc(NPAGES, PAGE);
	CHECK(ftruncate(fd, NPAGES * PAGE) == 0);
	for (unsigned int i = 0; i < NPAGES; i++)
		if (i % 29 == 0 || i % 29 == 2 || (i >= 250 && i < 253)) {
			fill_page(s.copy + i * PAGE, &seed, i % 58 == 0);
			CHECK(pwrite(fd, s.copy + i * PAGE, PAGE, i * PAGE) == PAGE);
		}
	fd2 = make_memory(3, seed, 0, &s.copy2);
	CHECK_OK(gmem_image_create(path, &opts, &writer));
	CHECK_OK(gmem_image_add_region(writer, "ram0", 0, fd, 0, NPAGES * PAGE, NULL, NULL));
	CHECK_OK(gmem_image_add_region(writer, "ram1", UINT64_MAX, fd2, 0, 3 * PAGE, NULL, NULL));
	CHECK_OK(gmem_image_add_section(writer, "device-state", "0123456789", 10));
	CHECK_OK(gmem_image_add_section(writer, "command-line", "qemu", 4));
	CHECK_OK(gmem_image_commit(writer));
	s.data = slurp(path, &s.len);
	close(fd);
	close(fd2);
	free(path);
	drop_folder(folder);
	return s;
}

static void drop_small(struct small *s)
{
	free(s->data);
	free(s->copy);
	free(s->copy2);
}

/*
 * Reads everything there is and checks that what is not refused is right. Returns the first error, 0 if there is none,
 * and checks that verify comes to the same judgement.
 */
static int read_all(const struct small *s, int fd)
{
	static uint8_t got[NPAGES * PAGE];
	static const char *const names[] = { "device-state", "command-line" };
	static const char *const texts[] = { "0123456789", "qemu" };
	struct gmem_image *image;
	int r, first = 0;

	r = gmem_image_open_fd(fd, "vm.gmem", &image);
	if (r < 0)
		return r;
	for (int i = 0; i < 2; i++) {
		void *data;
		size_t len;

		r = gmem_image_section(image, names[i], &data, &len);
		if (r == 0) {
			CHECK_EQ(len, strlen(texts[i]));
			CHECK_MEM(data, texts[i], len);
			free(data);
		}
		first = first ? first : r;
	}
	for (int by_page = 0; by_page < 2; by_page++)
		for (uint64_t off = 0, len = by_page ? PAGE : NPAGES * PAGE; off < NPAGES * PAGE; off += len) {
			r = gmem_image_read(image, 0, off, got, len);
			if (r == 0)
				CHECK_MEM(got, s->copy + off, len);
			first = first ? first : r;
		}
	r = gmem_image_read(image, 1, 0, got, 3 * PAGE);
	if (r == 0)
		CHECK_MEM(got, s->copy2, 3 * PAGE);
	first = first ? first : r;
	r = gmem_image_verify(image, NULL, NULL, NULL, NULL);
	CHECK_EQ(r < 0, first < 0);
	gmem_image_close(image);
	return first;
}

static int open_all(const uint8_t *data, size_t len, const struct small *s)
{
	int fd = file_of(data, len), r;

	gmem_err(0, "%s", "");
	r = read_all(s, fd);
	close(fd);
	return r;
}

/* Each byte of the header's fields, the sections and the tables; elsewhere bytes 1 to 33 apart, so no chunk or index
 * block is missed. */
static size_t next_flip(const struct small *s, size_t i, uint64_t *seed)
{
	if (i < 160 || (i >= 4080 && i < 4096) || i > s->len - 4 * GMEM_IMAGE_ENTRY_LEN - 32)
		return i + 1;
	i += 1 + tap_rand(seed) % 33;
	return i > 4080 && i < 4096 ? 4080 : i;
}

static void flip_bytes(enum gmem_compression compression, uint32_t chunk_len, uint64_t seed)
{
	struct small s = small_image(compression, chunk_len, seed);
	int fd = file_of(s.data, s.len);

	CHECK_EQ(read_all(&s, fd), 0);
	for (size_t i = 0; i < s.len; i = next_flip(&s, i, &seed)) {
		uint8_t bad = s.data[i] ^ (uint8_t)(1u << tap_rand(&seed) % 8);
		int r, want = -EBADMSG;

		if (i < 8)
			want = -EMEDIUMTYPE;
		else if (i < 12 && (i > 8 || bad != 0))
			want = -EPROTONOSUPPORT;
		CHECK(pwrite(fd, &bad, 1, (off_t)i) == 1);
		r = read_all(&s, fd);
		if (r != want)
			FAIL("byte %zu of %zu: 0x%02x for 0x%02x gives %d (%s)", i, s.len, bad, s.data[i], r,
			     gmem_last_error());
		CHECK_HAS(gmem_last_error(), "vm.gmem: ");
		if (want == -EBADMSG)
			CHECK_HAS(gmem_last_error(), "damaged: ");
		CHECK(pwrite(fd, &s.data[i], 1, (off_t)i) == 1);
	}
	CHECK_EQ(read_all(&s, fd), 0);
	close(fd);
	drop_small(&s);
}

TEST_TIMEOUT(a_flipped_bit_is_found_wherever_it_is_raw, 240)
{
	flip_bytes(GMEM_COMPRESS_NONE, 4096, tap_seed());
}

TEST_TIMEOUT(a_flipped_bit_is_found_wherever_it_is_raw_in_long_chunks, 240)
{
	flip_bytes(GMEM_COMPRESS_NONE, 16384, tap_seed());
}

TEST_TIMEOUT(a_flipped_bit_is_found_wherever_it_is_zstd, 240)
{
	flip_bytes(GMEM_COMPRESS_ZSTD, 0, tap_seed());
}

TEST_TIMEOUT(a_flipped_bit_is_found_wherever_it_is_zstd_in_short_chunks, 240)
{
	flip_bytes(GMEM_COMPRESS_ZSTD, 4096, tap_seed());
}

TEST_TIMEOUT(a_cut_off_image_is_told_as_such, 120)
{
	uint64_t seed = tap_seed();
	struct small s = small_image(GMEM_COMPRESS_ZSTD, 4096, seed);
	char text[80];

	/* Each length in the first and last structures, steps in between. */
	for (size_t len = 0; len < s.len; len += len < 4200 || s.len - len < 1000 ? 1 : 1 + tap_rand(&seed) % 97) {
		int r = open_all(s.data, len, &s);

		if (r != -ENODATA)
			FAIL("%zu bytes of %zu give %d (%s)", len, s.len, r, gmem_last_error());
		snprintf(text, sizeof(text), "vm.gmem: truncated: %zu bytes of %zu", len, len < 64 ? 4096 : s.len);
		CHECK_STR(gmem_last_error(), text);
	}
	CHECK_EQ(open_all(s.data, s.len, &s), 0);
	drop_small(&s);
}

TEST(a_file_that_shrinks_while_open_is_an_error_not_a_signal)
{
	struct small s = small_image(GMEM_COMPRESS_NONE, 4096, tap_seed());
	int fd = file_of(s.data, s.len);
	static uint8_t got[NPAGES * PAGE];
	struct gmem_image *image;

	CHECK_OK(gmem_image_open_fd(fd, "vm.gmem", &image));
	CHECK(ftruncate(fd, 5000) == 0);
	CHECK_ERR(gmem_image_read(image, 0, 0, got, sizeof(got)), -ENODATA);
	CHECK_HAS(gmem_last_error(), "truncated: ");
	CHECK(gmem_image_verify(image, NULL, NULL, NULL, NULL) < 0);
	gmem_image_close(image);
	close(fd);
	drop_small(&s);
}

TEST(what_is_not_an_image_or_of_the_future_is_told_as_such)
{
	struct small s = small_image(GMEM_COMPRESS_ZSTD, 0, tap_seed());
	char *folder = make_folder(), *fifo = file_in(folder, "fifo");
	struct gmem_image *image;
	static uint8_t other[70000];

	CHECK_EQ(open_all(other, sizeof(other), &s), -EMEDIUMTYPE);
	CHECK_STR(gmem_last_error(), "vm.gmem: not a gmem image");
	CHECK_EQ(open_all((const uint8_t *)"\x7f"
					   "ELF",
			  4, &s),
		 -EMEDIUMTYPE);
	CHECK_ERR(gmem_image_open("/nonexistent/vm.gmem", &image), -ENOENT);
	CHECK_ERR(gmem_image_open(folder, &image), -EISDIR);
	CHECK_ERR(gmem_image_open("/dev/null", &image), -EMEDIUMTYPE);
	CHECK(mkfifo(fifo, 0600) == 0);
	CHECK_ERR(gmem_image_open(fifo, &image), -EMEDIUMTYPE);

	s.data[8] = 2;
	CHECK_EQ(open_all(s.data, s.len, &s), -EPROTONOSUPPORT);
	CHECK_HAS(gmem_last_error(), "written by a newer gmem (format 2)");
	drop_small(&s);
	free(fifo);
	drop_folder(folder);
}

/* ---- forgeries: the sums are right, what they sum is not */

static void put_le(uint8_t *p, uint64_t x, unsigned int bytes)
{
	for (unsigned int i = 0; i < bytes; i++)
		p[i] = (uint8_t)(x >> (8 * i));
}

/* Makes every sum right again, from the leaves of region 0 up to the header. The tables are where `h` says. */
static void resum(uint8_t *d, const struct gmem_image_header *h)
{
	for (uint32_t i = 0; i < h->nregions; i++) {
		uint8_t *entry = d + h->regions_off + (size_t)i * GMEM_IMAGE_ENTRY_LEN;
		uint8_t *root = d + gmem_get_le64(entry + 80);

		if (root == d)
			continue; /* all zero: no index */
		for (uint32_t j = 0; gmem_get_le32(entry + 116) == 2 && j < GMEM_IMAGE_BRANCH_ENTRIES; j++) {
			uint64_t leaf = gmem_get_le64(root + j * 16);

			if (leaf)
				put_le(root + j * 16 + 8, gmem_image_hash(d + leaf, 4096), 8);
		}
		put_le(entry + 88, gmem_image_hash(root, 4096), 8);
	}
	put_le(d + 80, gmem_image_hash(d + h->regions_off, (size_t)h->nregions * GMEM_IMAGE_ENTRY_LEN), 8);
	put_le(d + 104, gmem_image_hash(d + h->sections_off, (size_t)h->nsections * GMEM_IMAGE_ENTRY_LEN), 8);
	put_le(d + 4088, gmem_image_hash(d, 4088), 8);
}

TEST(forged_fields_with_good_checksums_are_refused)
{
	enum where { HEADER, REGION, SECTION, LEAF, BRANCH };
	static const struct {
		enum where where;
		unsigned int at, bytes;
		uint64_t value;
		int error;
		const char *text;
		bool verify; /* found when adding up, not by a read of what is still right */
	} forgeries[] = {
		{ HEADER, 12, 4, 8192, -EBADMSG, "its length is not 4096" },
		{ HEADER, 16, 4, 16384, -EBADMSG, "page size" },
		{ HEADER, 20, 4, 0, -EBADMSG, "chunk length" },
		{ HEADER, 20, 4, 2048, -EBADMSG, "chunk length" },
		{ HEADER, 20, 4, 1u << 31, -EBADMSG, "chunk length" },
		{ HEADER, 20, 4, 12288, -EBADMSG, "chunk length" },
		{ HEADER, 24, 4, 4, -EPROTONOSUPPORT, "newer gmem" },
		{ HEADER, 28, 4, 4, 0, NULL },
		{ HEADER, 2000, 4, 4, 0, NULL },
		{ HEADER, 56, 8, UINT64_MAX, -ENODATA, "truncated" },
		{ HEADER, 56, 8, 4096, -EBADMSG, "lies outside the file" },
		{ HEADER, 64, 8, UINT64_MAX - 100, -EBADMSG, "lies outside the file" },
		{ HEADER, 64, 8, 0, -EBADMSG, "lies outside the file" },
		{ HEADER, 72, 4, UINT32_MAX, -EBADMSG, "too many regions" },
		{ HEADER, 72, 4, 256, -EBADMSG, "region table" },
		{ HEADER, 76, 4, 0, -EBADMSG, "length of its entries" },
		{ HEADER, 76, 4, UINT32_MAX, -EBADMSG, "length of its entries" },
		{ HEADER, 88, 8, UINT64_MAX, -EBADMSG, "lies outside the file" },
		{ HEADER, 96, 4, 257, -EBADMSG, "too many sections" },
		{ HEADER, 100, 4, 64, -EBADMSG, "length of its entries" },
		{ REGION, 0, 1, 0, -EBADMSG, "name" },
		{ REGION, 0, 1, 7, -EBADMSG, "name" },
		{ REGION, 3, 1, '1', -EBADMSG, "two regions have one name" },
		{ REGION, 64, 8, 1, -EBADMSG, "guest address" },
		{ REGION, 64, 8, UINT64_MAX - 4095, -EBADMSG, "guest address" },
		{ REGION, 72, 8, 0, -EBADMSG, "length is impossible" },
		{ REGION, 72, 8, NPAGES * 4096 + 1, -EBADMSG, "length is impossible" },
		{ REGION, 72, 8, UINT64_MAX - 4095, -EBADMSG, "length is impossible" },
		{ REGION, 72, 8, UINT64_C(1) << 50, -EBADMSG, "depth" },
		{ REGION, 72, 8, 257 * 4096, -EBADMSG, "mask reaches past the chunk", true },
		{ REGION, 80, 8, UINT64_MAX, -EBADMSG, "outside the file" },
		{ REGION, 80, 8, 8, -EBADMSG, "outside the file" },
		{ REGION, 80, 8, 0, -EBADMSG, "an empty region has pages" },
		{ REGION, 96, 8, NPAGES + 1, -EBADMSG, "page counts" },
		{ REGION, 96, 8, NPAGES, -EBADMSG, "do not agree", true },
		{ REGION, 104, 8, UINT64_MAX, -EBADMSG, "page counts" },
		{ REGION, 112, 4, 1, -EPROTONOSUPPORT, "newer gmem" },
		{ REGION, 116, 4, 1, -EBADMSG, "depth" },
		{ REGION, 116, 4, UINT32_MAX, -EBADMSG, "depth" },
		{ SECTION, 0, 1, 0xff, -EBADMSG, "name" },
		{ SECTION, 64, 4, 1, 0, NULL },
		{ SECTION, 64, 4, 2, -EPROTONOSUPPORT, "required" },
		{ SECTION, 72, 8, UINT64_MAX, -EBADMSG, "outside the file" },
		{ SECTION, 80, 8, UINT64_MAX, -EBADMSG, "too long" },
		{ SECTION, 80, 8, 1 << 30, -EBADMSG, "outside the file" },
		{ LEAF, 0, 8, UINT64_MAX, -EBADMSG, "outside the file" },
		{ LEAF, 0, 8, 0, -EBADMSG, "outside the file" },
		{ LEAF, 8, 4, 0, -EBADMSG, "stored length" },
		{ LEAF, 8, 4, UINT32_MAX, -EBADMSG, "stored length" },
		{ LEAF, 12, 1, 2, -EBADMSG, "unknown compression" },
		{ LEAF, 12, 1, 1, -EBADMSG, "stored length" },
		{ LEAF, 13, 1, 1, -EBADMSG, "reserved" },
		{ LEAF, 16, 8, 0, -EBADMSG, "zero chunk" },
		{ LEAF, 16, 8, 3, -EBADMSG, "mask" },
		{ LEAF, 32, 8, 4096, -EBADMSG, "zero chunk" },
		{ BRANCH, 0, 8, UINT64_MAX, -EBADMSG, "outside the file" },
		{ BRANCH, 0, 8, 1, -EBADMSG, "outside the file" },
		{ BRANCH, 3 * 16, 8, 4096, -EBADMSG, "past the region" },
		{ BRANCH, 3 * 16 + 8, 8, 1, -EBADMSG, "empty link" },
	};
	struct small s = small_image(GMEM_COMPRESS_NONE, 4096, tap_seed());
	uint8_t *bad = malloc(s.len);
	struct gmem_image_header h;

	gmem_image_header_decode(&h, s.data);
	for (size_t i = 0; i < sizeof(forgeries) / sizeof(forgeries[0]); i++) {
		uint64_t root = gmem_get_le64(s.data + h.regions_off + 80);
		uint64_t base[] = { 0, h.regions_off, h.sections_off, gmem_get_le64(s.data + root), root };
		uint64_t at = base[forgeries[i].where] + forgeries[i].at;
		int r;

		memcpy(bad, s.data, s.len);
		if (forgeries[i].where == LEAF || forgeries[i].where == BRANCH) {
			/* The sums of blocks that links still lead to. */
			put_le(bad + at, forgeries[i].value, forgeries[i].bytes);
			if (forgeries[i].where == LEAF) {
				resum(bad, &h);
			} else {
				put_le(bad + h.regions_off + 88, gmem_image_hash(bad + root, 4096), 8);
				put_le(bad + 80, gmem_image_hash(bad + h.regions_off, 2 * GMEM_IMAGE_ENTRY_LEN), 8);
				put_le(bad + 4088, gmem_image_hash(bad, 4088), 8);
			}
		} else {
			put_le(bad + at, forgeries[i].value, forgeries[i].bytes);
			put_le(bad + 80, gmem_image_hash(bad + h.regions_off, 2 * GMEM_IMAGE_ENTRY_LEN), 8);
			put_le(bad + 104, gmem_image_hash(bad + h.sections_off, 2 * GMEM_IMAGE_ENTRY_LEN), 8);
			put_le(bad + 4088, gmem_image_hash(bad, 4088), 8);
		}
		if (forgeries[i].verify) {
			int fd = file_of(bad, s.len);
			struct gmem_image *image;

			CHECK_OK(gmem_image_open_fd(fd, "vm.gmem", &image));
			r = gmem_image_verify(image, NULL, NULL, NULL, NULL);
			gmem_image_close(image);
			close(fd);
		} else {
			r = open_all(bad, s.len, &s);
		}
		if (r != forgeries[i].error || (r && !strstr(gmem_last_error(), forgeries[i].text)))
			FAIL("forgery %zu gives %d (%s), not %d (%s)", i, r, gmem_last_error(), forgeries[i].error,
			     forgeries[i].text ? forgeries[i].text : "");
	}
	free(bad);
	drop_small(&s);
}

TEST(a_frame_that_decompresses_to_more_is_refused)
{
	/* The frame of one chunk in the entry of a smaller one, and the other way round. */
	struct small s = small_image(GMEM_COMPRESS_ZSTD, 0, tap_seed());
	struct gmem_image_header h;
	uint8_t *leaf;
	int found = 0;

	gmem_image_header_decode(&h, s.data);
	leaf = s.data + gmem_get_le64(s.data + h.regions_off + 80);
	for (unsigned int i = 0; i < GMEM_IMAGE_LEAF_ENTRIES && !found; i++) {
		struct gmem_image_chunk c;

		gmem_image_chunk_decode(&c, leaf + i * 32);
		if (c.codec != GMEM_IMAGE_ZSTD || __builtin_popcountll(c.mask) < 2)
			continue;
		c.mask &= c.mask - 1;
		if (c.stored_len >= (uint32_t)__builtin_popcountll(c.mask) * PAGE)
			continue;
		gmem_image_chunk_encode(&c, leaf + i * 32);
		found++;
	}
	CHECK_EQ(found, 1);
	resum(s.data, &h);
	CHECK_EQ(open_all(s.data, s.len, &s), -EBADMSG);
	CHECK_HAS(gmem_last_error(), "decompress");
	drop_small(&s);
}

static void collect(void *opaque, const char *text)
{
	printf("%s\n", text);
	CHECK_HAS(text, "vm.gmem: damaged: ");
	(*(int *)opaque)++;
}

TEST(verify_tells_every_damage)
{
	struct small s = small_image(GMEM_COMPRESS_NONE, 4096, tap_seed());
	struct gmem_image_header h;
	struct gmem_image *image;
	int fd, n = 0;

	gmem_image_header_decode(&h, s.data);
	/* Chunk 0, chunk 2 and a section; each its own report. */
	s.data[4096] ^= 1;
	s.data[8192 + 7] ^= 1;
	s.data[gmem_get_le64(s.data + h.sections_off + 72)] ^= 1;
	fd = file_of(s.data, s.len);
	CHECK_OK(gmem_image_open_fd(fd, "vm.gmem", &image));
	CHECK_ERR(gmem_image_verify(image, collect, &n, NULL, NULL), -EBADMSG);
	CHECK_EQ(n, 3);
	CHECK_HAS(gmem_last_error(), "section \"device-state\"");
	CHECK_ERR(gmem_image_read(image, 0, 2 * PAGE, s.copy, PAGE), -EBADMSG);
	CHECK_STR(gmem_last_error(),
		  "vm.gmem: damaged: chunk 2 of region \"ram0\" at offset 0x2000: checksum mismatch");
	gmem_image_close(image);
	close(fd);
	drop_small(&s);
}
