/* SPDX-License-Identifier: MIT */
/*
 * The reader against any file: opens it, reads every section, pages of every region in several shapes, as a source too,
 * and verifies. A fuzzer cannot guess checksums, so all but some inputs get right ones first: what lies behind them is
 * what is to be tested.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/le.h"
#include "gmem.h"
#include "image/format.h"
#include "image/hash.h"
#include "source/source.h"

#define MAX_LEN (256u * 1024)
#define READ_LEN (256u * 1024)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct fix {
	uint8_t *d;
	size_t len;
	unsigned int budget; /* index blocks still to be summed: links may go in circles */
};

static bool inside(const struct fix *f, uint64_t off, uint64_t len)
{
	return off <= f->len && len <= f->len - off;
}

/* Sums what a leaf or a branch leads to, then the block itself, into `sum`. */
static void fix_block(struct fix *f, uint64_t off, uint32_t level, uint8_t *sum)
{
	if (level == 0 || level > GMEM_IMAGE_MAX_LEVELS || !f->budget || !inside(f, off, GMEM_IMAGE_BLOCK_LEN))
		return;
	f->budget--;
	for (unsigned int i = 0; level == 1 && i < GMEM_IMAGE_LEAF_ENTRIES; i++) {
		uint8_t *e = f->d + off + i * GMEM_IMAGE_CHUNK_ENTRY_LEN;
		uint64_t at = gmem_get_le64(e);
		uint32_t n = gmem_get_le32(e + 8);

		if (gmem_get_le64(e + 16) && inside(f, at, n))
			gmem_put_le64(e + 24, gmem_image_hash(f->d + at, n));
	}
	for (unsigned int i = 0; level > 1 && i < GMEM_IMAGE_BRANCH_ENTRIES; i++) {
		uint8_t *link = f->d + off + i * GMEM_IMAGE_LINK_LEN;

		if (gmem_get_le64(link))
			fix_block(f, gmem_get_le64(link), level - 1, link + 8);
	}
	gmem_put_le64(sum, gmem_image_hash(f->d + off, GMEM_IMAGE_BLOCK_LEN));
}

static void fix_sums(uint8_t *d, size_t len)
{
	struct fix f = { d, len, 64 };
	struct gmem_image_header h;

	memcpy(d, GMEM_IMAGE_MAGIC "\x01\0\0\0", 12);
	gmem_put_le64(d + GMEM_IMAGE_FILE_LEN_OFF, len);
	gmem_image_header_decode(&h, d);
	for (uint32_t i = 0; i < h.nregions && i < 8; i++) {
		uint64_t at = h.regions_off + (uint64_t)i * h.region_entry_len;

		if (inside(&f, at, GMEM_IMAGE_ENTRY_LEN))
			fix_block(&f, gmem_get_le64(d + at + 80), gmem_get_le32(d + at + 116), d + at + 88);
	}
	for (uint32_t i = 0; i < h.nsections && i < 8; i++) {
		uint64_t at = h.sections_off + (uint64_t)i * h.section_entry_len;

		if (inside(&f, at, GMEM_IMAGE_ENTRY_LEN) &&
		    inside(&f, gmem_get_le64(d + at + 72), gmem_get_le64(d + at + 80)))
			gmem_put_le64(d + at + 88,
				      gmem_image_hash(d + gmem_get_le64(d + at + 72), gmem_get_le64(d + at + 80)));
	}
	if (inside(&f, h.regions_off, (uint64_t)h.nregions * h.region_entry_len))
		gmem_put_le64(d + 80, gmem_image_hash(d + h.regions_off, (size_t)h.nregions * h.region_entry_len));
	if (inside(&f, h.sections_off, (uint64_t)h.nsections * h.section_entry_len))
		gmem_put_le64(d + 104, gmem_image_hash(d + h.sections_off, (size_t)h.nsections * h.section_entry_len));
	gmem_put_le64(d + GMEM_IMAGE_HEADER_SUM, gmem_image_hash(d, GMEM_IMAGE_HEADER_SUM));
}

/* A region may claim a petabyte over and over: verify is stopped after a while. */
static int stop(void *opaque, uint64_t done, uint64_t total)
{
	return ++*(unsigned int *)opaque > 100 ? -1 : 0;
}

static void read_region(struct gmem_image *image, size_t i, uint8_t *buf)
{
	struct gmem_image_region region = { .size = sizeof(region) };
	struct gmem_source *source;

	if (gmem_image_region(image, i, &region) < 0 || gmem_source_new_image(image, i, &source) < 0)
		return;
	for (unsigned int n = 0; n < 24; n++) {
		/* The beginning, the end, and places between. */
		uint64_t off = n < 8 ? n * GMEM_PAGE_SIZE : region.len / 24 * n / GMEM_PAGE_SIZE * GMEM_PAGE_SIZE;
		uint64_t len = n % 3 ? GMEM_PAGE_SIZE : READ_LEN;

		if (n == 23)
			off = region.len - GMEM_PAGE_SIZE;
		if (off >= region.len)
			continue;
		if (len > region.len - off)
			len = region.len - off;
		gmem_source_is_zero(source, off, len, false);
		gmem_source_extent(source, &off, &len);
		if (off + len > region.len || off + len < off)
			__builtin_trap();
		if (len > READ_LEN)
			len = READ_LEN;
		gmem_source_read_nowait(source, off, buf, len);
		gmem_image_read(image, i, off, buf, len);
	}
	gmem_source_unref(source);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const names[] = { "device-state", "command-line", "s" };
	uint8_t *d, *buf;
	struct gmem_image *image;
	unsigned int calls = 0;
	int fd;

	if (size < GMEM_IMAGE_HEADER_LEN || size > MAX_LEN)
		return 0;
	fd = memfd_create("fuzz", MFD_CLOEXEC);
	d = malloc(size);
	buf = malloc(READ_LEN);
	memcpy(d, data, size);
	if (data[size - 1] != 0xff)
		fix_sums(d, size);
	if (write(fd, d, size) == (ssize_t)size && gmem_image_open_fd(fd, "fuzz", &image) == 0) {
		for (unsigned int i = 0; i < 3; i++) {
			void *section;
			size_t len;

			if (gmem_image_section(image, names[i], &section, &len) == 0)
				free(section);
		}
		for (size_t i = 0; i < gmem_image_nregions(image) && i < 8; i++)
			read_region(image, i, buf);
		gmem_image_verify(image, NULL, NULL, stop, &calls);
		gmem_image_close(image);
	}
	free(d);
	free(buf);
	close(fd);
	return 0;
}
