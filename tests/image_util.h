/* SPDX-License-Identifier: MIT */
/* Memories with a pattern that can be told apart, and images of them. Included by the image tests, after tap.h. */
#ifndef GMEM_TESTS_IMAGE_UTIL_H
#define GMEM_TESTS_IMAGE_UTIL_H

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define PAGE GMEM_PAGE_SIZE

/* A page of random bytes, or one that compresses, each of its own. */
static inline void fill_page(uint8_t *page, uint64_t *seed, bool random)
{
	uint64_t x = tap_rand(seed);

	for (size_t i = 0; i < PAGE; i += 8) {
		if (random || i % 512 == 0)
			x = tap_rand(seed);
		memcpy(page + i, &x, 8);
	}
}

/*
 * A memory of `npages` with runs of holes, zero pages that are there, random pages and compressible ones; `holes` of 8
 * runs are empty. *ret_copy has the same bytes.
 */
static inline int make_memory(uint64_t npages, uint64_t seed, unsigned int holes, uint8_t **ret_copy)
{
	int fd = memfd_create("gmem-test", MFD_CLOEXEC);
	uint8_t *copy = calloc(npages, PAGE);
	uint64_t i = 0;

	CHECK(fd >= 0 && copy && ftruncate(fd, (off_t)(npages * PAGE)) == 0);
	while (i < npages) {
		uint64_t run = 1 + tap_rand(&seed) % (tap_rand(&seed) % 4 ? 6 : 300);
		unsigned int kind = (unsigned int)(tap_rand(&seed) % 8);

		for (; run-- && i < npages; i++) {
			if (kind < holes)
				continue;
			if (kind != 7)
				fill_page(copy + i * PAGE, &seed, kind % 2);
			CHECK(pwrite(fd, copy + i * PAGE, PAGE, (off_t)(i * PAGE)) == PAGE);
		}
	}
	*ret_copy = copy;
	return fd;
}

/* A new folder under $TMPDIR or /tmp, removed with all that is in it by drop_folder(). */
static inline char *make_folder(void)
{
	const char *tmp = getenv("TMPDIR");
	char *path;

	CHECK(asprintf(&path, "%s/gmem-test-XXXXXX", tmp && *tmp ? tmp : "/tmp") > 0);
	CHECK(mkdtemp(path) != NULL);
	return path;
}

/* Names in the folder; with `drop` they are removed. */
static inline int count_files(const char *folder, bool drop)
{
	DIR *dir = opendir(folder);
	struct dirent *e;
	int n = 0;

	CHECK(dir != NULL);
	while ((e = readdir(dir)) != NULL) {
		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
			continue;
		n++;
		if (drop)
			CHECK(unlinkat(dirfd(dir), e->d_name, 0) == 0);
	}
	closedir(dir);
	return n;
}

static inline void drop_folder(char *folder)
{
	count_files(folder, true);
	CHECK(rmdir(folder) == 0);
	free(folder);
}

static inline char *file_in(const char *folder, const char *name)
{
	char *path;

	CHECK(asprintf(&path, "%s/%s", folder, name) > 0);
	return path;
}

static inline struct gmem_image_writer_opts writer_opts(enum gmem_compression compression, uint32_t chunk_len)
{
	return (struct gmem_image_writer_opts){
		.size = sizeof(struct gmem_image_writer_opts),
		.compression = compression,
		.chunk_len = chunk_len,
		.threads = 3,
	};
}

static inline uint8_t *slurp(const char *path, size_t *ret_len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	uint8_t *data;

	CHECK(fd >= 0 && fstat(fd, &st) == 0);
	data = malloc((size_t)st.st_size + 1);
	CHECK(data && read(fd, data, (size_t)st.st_size) == st.st_size);
	close(fd);
	*ret_len = (size_t)st.st_size;
	return data;
}

/* The same bytes in a memory file. */
static inline int file_of(const uint8_t *data, size_t len)
{
	int fd = memfd_create("image", MFD_CLOEXEC);

	CHECK(fd >= 0 && write(fd, data, len) == (ssize_t)len);
	return fd;
}

#endif
