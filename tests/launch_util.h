/* SPDX-License-Identifier: MIT */
/* Firmware of the distribution, which tests can do without. Included after tap.h. */
#ifndef GMEM_TESTS_LAUNCH_UTIL_H
#define GMEM_TESTS_LAUNCH_UTIL_H

#include <fcntl.h>
#include <sys/stat.h>

/* Skips the case if the file is not there. The caller frees. */
static inline uint8_t *read_firmware(const char *path, size_t *ret_len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	uint8_t *data;

	if (fd < 0)
		SKIP("ovmf", "%s: %s; Debian's package ovmf has it", path, strerror(errno));
	CHECK(fstat(fd, &st) == 0);
	data = malloc((size_t)st.st_size + 1);
	CHECK(data && read(fd, data, (size_t)st.st_size) == st.st_size);
	close(fd);
	*ret_len = (size_t)st.st_size;
	return data;
}

/* A firmware and nothing else of a guest. */
static inline int launch_image(struct gmem_launch *launch, const void *image, uint64_t len, gmem_progress_fn progress,
			       void *opaque)
{
	struct gmem_guest guest = { .size = sizeof(guest), .firmware = image, .firmware_len = len };

	return gmem_launch_firmware(launch, &guest, progress, opaque);
}

#endif
