/* SPDX-License-Identifier: MIT */
/* What a line of text names, opened as a source. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "image/image.h"
#include "link/source_spec.h"

/* O_NONBLOCK: a FIFO is refused, and not waited for. */
static int open_file(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	return fd < 0 ? gmem_err_sys(-errno, "source: %s", path) : fd;
}

static int open_raw(const struct gmem_source_spec *spec, struct gmem_source **ret)
{
	int *fds = malloc((spec->nlayers + 1) * sizeof(*fds)), r = 0;
	size_t n;

	if (!fds)
		return gmem_err(-ENOMEM, "source: no memory");
	for (n = 0; n <= spec->nlayers; n++) {
		r = open_file(n ? spec->layers[n - 1] : spec->path);
		if (r < 0)
			break;
		fds[n] = r;
	}
	if (r >= 0) {
		r = spec->nlayers ? gmem_source_new_layers(fds, n, ret) :
				    gmem_source_new_fd(fds[0], 0, UINT64_MAX, ret);
		if (r < 0)
			gmem_err_prefix(r, "source: %s", spec->path);
	}
	while (n--)
		close(fds[n]);
	free(fds);
	return r;
}

/* A snapshot's folder; its memory is one file. */
static int open_ch(const struct gmem_source_spec *spec, struct gmem_source **ret)
{
	char *path;
	int fd, r;

	if (asprintf(&path, "%s/memory-ranges", spec->path) < 0)
		return gmem_err(-ENOMEM, "source: no memory");
	fd = open_file(path);
	r = fd < 0 ? fd : gmem_source_new_fd(fd, 0, UINT64_MAX, ret);
	if (fd >= 0)
		close(fd);
	free(path);
	return r;
}

static int named(const struct gmem_image *image, const char *name, size_t *ret)
{
	size_t n = gmem_image_nregions(image);
	unsigned long long number;
	char *end;

	for (size_t i = 0; i < n; i++) {
		struct gmem_image_region region = { .size = sizeof(region) };
		int r = gmem_image_region(image, i, &region);

		if (r < 0)
			return r;
		if (strcmp(region.name, name) == 0) {
			*ret = i;
			return 0;
		}
	}
	errno = 0;
	number = strtoull(name, &end, 10);
	if (*name < '0' || *name > '9' || *end || errno || number >= n)
		return gmem_err(-EINVAL, "no region '%s' in it; it has %zu", name, n);
	*ret = (size_t)number;
	return 0;
}

static int open_image(const struct gmem_source_spec *spec, struct gmem_source **ret)
{
	struct gmem_image *image;
	size_t region = 0;
	int r = gmem_image_open(spec->path, &image);

	if (r < 0)
		return gmem_err_prefix(r, "source");
	if (spec->region)
		r = named(image, spec->region, &region);
	else if (gmem_image_nregions(image) != 1)
		r = gmem_err(-EINVAL, "it has %zu regions: say which, with #NAME or #NUMBER",
			     gmem_image_nregions(image));
	if (r == 0)
		r = gmem_image_source_new(image, region, true, ret);
	if (r < 0) {
		gmem_image_close(image);
		return gmem_err_prefix(r, "source: %s", spec->path);
	}
	return 0;
}

static int open_spec(const struct gmem_source_spec *spec, const struct gmem_nbd_opts *nbd, struct gmem_source **ret)
{
	switch (spec->kind) {
	case GMEM_SOURCE_RAW:
		return open_raw(spec, ret);
	case GMEM_SOURCE_CH:
		return open_ch(spec, ret);
	case GMEM_SOURCE_IMAGE:
		return open_image(spec, ret);
	case GMEM_SOURCE_NBD:
		return gmem_source_new_nbd(spec->path, nbd, ret);
	case GMEM_SOURCE_ZERO:
		break;
	}
	return gmem_source_new_zero(ret);
}

int gmem_source_open(const char *text, const struct gmem_nbd_opts *nbd, struct gmem_source **ret)
{
	struct gmem_source_spec spec;
	int r = gmem_source_spec_parse(text, &spec);

	if (r < 0)
		return r;
	r = open_spec(&spec, nbd, ret);
	gmem_source_spec_free(&spec);
	return r < 0 ? r : 0;
}
