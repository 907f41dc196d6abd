/* SPDX-License-Identifier: MIT */
/* Opening an image: header, tables, the roots of the indexes. */
#include "image/image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/err.h"
#include "base/le.h"
#include "base/range.h"
#include "image/hash.h"

/* Sections this library's users can be required to understand; see gmem-image(5). */
static const char *const known_sections[] = { "device-state", "qemu" };

int gmem_image_damage(const struct gmem_image *image, const char *what, uint64_t off, const char *problem)
{
	return gmem_err(-EBADMSG, "%s: damaged: %s at offset 0x%llx: %s", image->name, what, (unsigned long long)off,
			problem);
}

bool gmem_image_sum_ok(const void *data, size_t len, uint64_t sum)
{
	return gmem_image_hash(data, len) == sum;
}

static int truncated(const struct gmem_image *image, uint64_t have, uint64_t want)
{
	return gmem_err(-ENODATA, "%s: truncated: %llu bytes of %llu", image->name, (unsigned long long)have,
			(unsigned long long)want);
}

int gmem_image_pread(const struct gmem_image *image, void *buf, size_t len, uint64_t off, bool nowait, const char *what)
{
	size_t done = 0;

	while (done < len) {
		struct iovec iov = { .iov_base = (uint8_t *)buf + done, .iov_len = len - done };
		ssize_t n = nowait ? preadv2(image->fd, &iov, 1, (off_t)(off + done), RWF_NOWAIT) :
				     pread(image->fd, iov.iov_base, iov.iov_len, (off_t)(off + done));

		if (n < 0 && errno == EINTR)
			continue;
		/* EOPNOTSUPP: a file system that cannot say. */
		if (n < 0 && nowait && (errno == EAGAIN || errno == EOPNOTSUPP))
			return gmem_err(-EAGAIN, "%s: %s: not in memory", image->name, what);
		if (n < 0)
			return gmem_err_sys(-errno, "%s: cannot read %s at offset 0x%llx", image->name, what,
					    (unsigned long long)off);
		if (n == 0)
			return truncated(image, off + done, image->h.file_len);
		done += (size_t)n;
	}
	return 0;
}

static int check_geometry(const struct gmem_image *image)
{
	const struct gmem_image_header *h = &image->h;

	if (h->version != GMEM_IMAGE_VERSION)
		return gmem_image_damage(image, "header", GMEM_IMAGE_VERSION_OFF, "format 0 does not exist");
	if (h->required)
		return gmem_err(-EPROTONOSUPPORT, "%s: needs features (0x%x) of a newer gmem", image->name,
				h->required);
	if (h->header_len != GMEM_IMAGE_HEADER_LEN)
		return gmem_image_damage(image, "header", 12, "its length is not 4096");
	if (h->page_size != GMEM_PAGE_SIZE)
		return gmem_image_damage(image, "header", 16, "the page size is not 4096");
	if (h->chunk_len < GMEM_IMAGE_CHUNK_MIN || h->chunk_len > GMEM_IMAGE_CHUNK_MAX ||
	    h->chunk_len & (h->chunk_len - 1))
		return gmem_image_damage(image, "header", 20,
					 "the chunk length is not a power of two from 4 KiB to 256 KiB");
	if (h->nregions > GMEM_IMAGE_MAX_REGIONS)
		return gmem_image_damage(image, "header", 72, "too many regions");
	if (h->nsections > GMEM_IMAGE_MAX_SECTIONS)
		return gmem_image_damage(image, "header", 96, "too many sections");
	return 0;
}

/* The length of the file by the first bytes of its header; nothing vouches for it. */
static uint64_t promised_len(const uint8_t *raw, size_t have)
{
	if (have < GMEM_IMAGE_FILE_LEN_OFF + 8)
		return GMEM_IMAGE_HEADER_LEN;
	return gmem_max_u64(gmem_get_le64(raw + GMEM_IMAGE_FILE_LEN_OFF), GMEM_IMAGE_HEADER_LEN);
}

static int read_header(struct gmem_image *image)
{
	uint64_t size = image->size;
	size_t have = size < GMEM_IMAGE_HEADER_LEN ? (size_t)size : GMEM_IMAGE_HEADER_LEN;
	uint8_t raw[GMEM_IMAGE_HEADER_LEN] = { 0 };
	bool sum_ok;
	int r;

	r = gmem_image_pread(image, raw, have, 0, false, "header");
	if (r < 0)
		return r;
	if (memcmp(raw, GMEM_IMAGE_MAGIC, have < GMEM_IMAGE_MAGIC_LEN ? have : GMEM_IMAGE_MAGIC_LEN) != 0)
		return gmem_err(-EMEDIUMTYPE, "%s: not a gmem image", image->name);
	if (have < GMEM_IMAGE_HEADER_LEN)
		return truncated(image, size, promised_len(raw, have));
	gmem_image_header_decode(&image->h, raw);
	sum_ok = gmem_image_sum_ok(raw, GMEM_IMAGE_HEADER_SUM, image->h.sum);
	/* Before the checksum: a later format may keep it elsewhere. */
	if (image->h.version > GMEM_IMAGE_VERSION)
		return gmem_err(-EPROTONOSUPPORT, "%s: written by a newer gmem (format %u)%s", image->name,
				image->h.version, sum_ok ? "" : ", or its header is damaged");
	if (!sum_ok)
		return gmem_image_damage(image, "header", 0, "checksum mismatch");
	if (size < image->h.file_len)
		return truncated(image, size, image->h.file_len);
	return check_geometry(image);
}

/* Reads a table of `n` entries and checks its sum. *ret is NULL for none. */
static int read_table(struct gmem_image *image, const char *what, uint64_t off, uint32_t n, uint32_t entry_len,
		      uint64_t sum, uint8_t **ret)
{
	size_t len = (size_t)n * entry_len;
	uint8_t *raw;
	int r;

	if (n == 0) {
		*ret = NULL;
		return 0;
	}
	if (entry_len < GMEM_IMAGE_ENTRY_LEN || entry_len > GMEM_IMAGE_ENTRY_MAX)
		return gmem_image_damage(image, what, off, "the length of its entries is impossible");
	if (off < GMEM_IMAGE_HEADER_LEN || !gmem_range_inside(off, len, image->h.file_len))
		return gmem_image_damage(image, what, off, "lies outside the file");
	raw = malloc(len);
	if (!raw)
		return gmem_err(-ENOMEM, "%s: no memory for the %s", image->name, what);
	r = gmem_image_pread(image, raw, len, off, false, what);
	if (r == 0 && !gmem_image_sum_ok(raw, len, sum))
		r = gmem_image_damage(image, what, off, "checksum mismatch");
	if (r < 0) {
		free(raw);
		return r;
	}
	*ret = raw;
	return 0;
}

static const char *region_problem(const struct gmem_image *image, const struct gmem_image_reg *reg, size_t n)
{
	const struct gmem_image_region_entry *e = &reg->e;

	if (!gmem_image_name_ok(e->name))
		return "a region's name is not printable";
	for (size_t i = 0; i < n; i++)
		if (strcmp(image->regions[i].e.name, e->name) == 0)
			return "two regions have one name";
	if (e->len == 0 || e->len > GMEM_IMAGE_MAX_REGION_LEN || !gmem_page_aligned(e->len))
		return "a region's length is impossible";
	if (e->gpa != UINT64_MAX && (!gmem_page_aligned(e->gpa) || e->gpa > UINT64_MAX - e->len))
		return "a region's guest address is impossible";
	if (e->levels != gmem_image_levels(reg->nchunks))
		return "a region's index has the wrong depth";
	if (e->data_pages > e->len / GMEM_PAGE_SIZE || e->stored_bytes > e->data_pages * GMEM_PAGE_SIZE)
		return "a region's page counts are impossible";
	if (!e->root.off)
		return e->root.sum || e->data_pages || e->stored_bytes ? "an empty region has pages" : NULL;
	if (e->root.off < GMEM_IMAGE_HEADER_LEN ||
	    !gmem_range_inside(e->root.off, GMEM_IMAGE_BLOCK_LEN, image->h.file_len))
		return "a region's index lies outside the file";
	return NULL;
}

static int read_regions(struct gmem_image *image)
{
	const struct gmem_image_header *h = &image->h;
	uint8_t *raw;
	int r;

	r = read_table(image, "region table", h->regions_off, h->nregions, h->region_entry_len, h->regions_sum, &raw);
	if (r < 0)
		return r;
	image->regions = calloc(h->nregions ? h->nregions : 1, sizeof(*image->regions));
	if (!image->regions)
		r = gmem_err(-ENOMEM, "%s: no memory for %u regions", image->name, h->nregions);
	for (size_t i = 0; r == 0 && i < h->nregions; i++) {
		struct gmem_image_reg *reg = &image->regions[i];
		const char *problem;

		gmem_image_region_decode(&reg->e, raw + i * h->region_entry_len);
		reg->nchunks = reg->e.len / h->chunk_len + (reg->e.len % h->chunk_len != 0);
		problem = region_problem(image, reg, i);
		if (problem)
			r = gmem_image_damage(image, "region table", h->regions_off + i * h->region_entry_len, problem);
		else if (reg->e.required)
			r = gmem_err(-EPROTONOSUPPORT, "%s: region \"%s\" needs features (0x%x) of a newer gmem",
				     image->name, reg->e.name, reg->e.required);
		else if (reg->e.root.off)
			r = gmem_image_node_load(image, reg, reg->e.root, reg->e.levels, 0, false, &reg->root);
	}
	free(raw);
	return r;
}

static const char *section_problem(const struct gmem_image *image, const struct gmem_image_section_entry *s, size_t n)
{
	if (!gmem_image_name_ok(s->name))
		return "a section's name is not printable";
	for (size_t i = 0; i < n; i++)
		if (strcmp(image->sections[i].name, s->name) == 0)
			return "two sections have one name";
	if (s->len > GMEM_IMAGE_MAX_SECTION_LEN)
		return "a section is too long";
	if (s->off < GMEM_IMAGE_HEADER_LEN || !gmem_range_inside(s->off, s->len, image->h.file_len))
		return "a section lies outside the file";
	return NULL;
}

static bool section_known(const char *name)
{
	for (size_t i = 0; i < sizeof(known_sections) / sizeof(known_sections[0]); i++)
		if (strcmp(name, known_sections[i]) == 0)
			return true;
	return false;
}

static int read_sections(struct gmem_image *image)
{
	const struct gmem_image_header *h = &image->h;
	uint8_t *raw;
	int r;

	r = read_table(image, "section table", h->sections_off, h->nsections, h->section_entry_len, h->sections_sum,
		       &raw);
	if (r < 0)
		return r;
	image->sections = calloc(h->nsections ? h->nsections : 1, sizeof(*image->sections));
	if (!image->sections)
		r = gmem_err(-ENOMEM, "%s: no memory for %u sections", image->name, h->nsections);
	for (size_t i = 0; r == 0 && i < h->nsections; i++) {
		struct gmem_image_section_entry *s = &image->sections[i];
		const char *problem;

		gmem_image_section_decode(s, raw + i * h->section_entry_len);
		problem = section_problem(image, s, i);
		if (problem)
			r = gmem_image_damage(image, "section table", h->sections_off + i * h->section_entry_len,
					      problem);
		else if (s->required & ~GMEM_IMAGE_SECTION_REQUIRED || (s->required && !section_known(s->name)))
			r = gmem_err(-EPROTONOSUPPORT, "%s: section \"%s\" is required and this gmem does not know it",
				     image->name, s->name);
	}
	free(raw);
	return r;
}

int gmem_image_open_fd(int fd, const char *name, struct gmem_image **ret)
{
	struct gmem_image *image = calloc(1, sizeof(*image));
	struct stat st;
	int r;

	if (!name)
		name = "image";
	if (image)
		image->name = strdup(name);
	if (!image || !image->name) {
		free(image);
		return gmem_err(-ENOMEM, "%s: no memory", name);
	}
	pthread_mutex_init(&image->lock, NULL);
	image->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (image->fd < 0 || fstat(image->fd, &st) < 0)
		r = gmem_err_sys(-errno, "%s", name);
	else if (S_ISDIR(st.st_mode))
		r = gmem_err_sys(-EISDIR, "%s", name);
	else if (!S_ISREG(st.st_mode))
		r = gmem_err(-EMEDIUMTYPE, "%s: not a gmem image: not a regular file", name);
	else {
		image->size = (uint64_t)st.st_size;
		r = read_header(image);
	}
	if (r == 0)
		r = read_regions(image);
	if (r == 0)
		r = read_sections(image);
	if (r < 0) {
		gmem_image_close(image);
		return r;
	}
	*ret = image;
	return 0;
}

int gmem_image_open(const char *path, struct gmem_image **ret)
{
	/* A FIFO under this name must not hang us before fstat() can refuse it. */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	int r;

	if (fd < 0)
		return gmem_err_sys(-errno, "%s", path);
	r = gmem_image_open_fd(fd, path, ret);
	close(fd);
	return r;
}

void gmem_image_close(struct gmem_image *image)
{
	if (!image)
		return;
	for (size_t i = 0; image->regions && i < image->h.nregions; i++)
		gmem_image_node_free(image->regions[i].root);
	for (size_t i = 0; i < GMEM_IMAGE_CACHE; i++)
		free(image->cache[i]);
	while (image->idle) {
		struct gmem_image_scratch *s = image->idle;

		image->idle = s->next;
		gmem_image_scratch_free(s);
	}
	pthread_mutex_destroy(&image->lock);
	if (image->fd >= 0)
		close(image->fd);
	free(image->regions);
	free(image->sections);
	free(image->name);
	free(image);
}

int gmem_image_fd(const struct gmem_image *image)
{
	return image->fd;
}

const uint8_t *gmem_image_uuid(const struct gmem_image *image)
{
	return image->h.uuid;
}

size_t gmem_image_nregions(const struct gmem_image *image)
{
	return image->h.nregions;
}

int gmem_image_region(const struct gmem_image *image, size_t i, struct gmem_image_region *ret)
{
	const struct gmem_image_region_entry *e;

	if (ret->size < sizeof(*ret))
		return gmem_err(-EINVAL, "gmem_image_region: size %zu is not that of the structure", ret->size);
	if (i >= image->h.nregions)
		return gmem_err(-ERANGE, "gmem_image_region: %s has %u regions, no number %zu", image->name,
				image->h.nregions, i);
	e = &image->regions[i].e;
	ret->name = e->name;
	ret->gpa = e->gpa;
	ret->len = e->len;
	ret->data_pages = e->data_pages;
	ret->stored_bytes = e->stored_bytes;
	return 0;
}

int gmem_image_query(const struct gmem_image *image, struct gmem_image_info *ret)
{
	if (ret->size < sizeof(*ret))
		return gmem_err(-EINVAL, "gmem_image_query: size %zu is not that of the structure", ret->size);
	ret->version = image->h.version;
	ret->chunk_len = image->h.chunk_len;
	ret->compression = image->h.codec == GMEM_IMAGE_ZSTD ? GMEM_COMPRESS_ZSTD : GMEM_COMPRESS_NONE;
	ret->file_len = image->h.file_len;
	ret->created_ns = image->h.created_ns;
	ret->writer = image->h.writer;
	return 0;
}
