/* SPDX-License-Identifier: MIT */
/* Sections: small named pieces of an image, read whole. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "image/image.h"

size_t gmem_image_nsections(const struct gmem_image *image)
{
	return image->h.nsections;
}

int gmem_image_section_at(const struct gmem_image *image, size_t i, const char **ret_name, uint64_t *ret_len)
{
	if (i >= image->h.nsections)
		return gmem_err(-ERANGE, "gmem_image_section_at: %s has %u sections, no number %zu", image->name,
				image->h.nsections, i);
	*ret_name = image->sections[i].name;
	*ret_len = image->sections[i].len;
	return 0;
}

int gmem_image_section(const struct gmem_image *image, const char *name, void **ret, size_t *ret_len)
{
	const struct gmem_image_section_entry *s = NULL;
	char what[GMEM_IMAGE_NAME_LEN + 16];
	void *data;
	int r;

	for (size_t i = 0; !s && i < image->h.nsections; i++)
		if (strcmp(image->sections[i].name, name) == 0)
			s = &image->sections[i];
	if (!s)
		return gmem_err(-ENOENT, "%s: no section \"%s\"", image->name, name);
	/* One byte more, so that text sections can be used as strings. */
	data = malloc((size_t)s->len + 1);
	if (!data)
		return gmem_err(-ENOMEM, "%s: no memory for section \"%s\"", image->name, name);
	snprintf(what, sizeof(what), "section \"%s\"", s->name);
	r = gmem_image_pread(image, data, (size_t)s->len, s->off, false, what);
	if (r == 0 && !gmem_image_sum_ok(data, (size_t)s->len, s->sum))
		r = gmem_image_damage(image, what, s->off, "checksum mismatch");
	if (r < 0) {
		free(data);
		return r;
	}
	((char *)data)[s->len] = 0;
	*ret = data;
	*ret_len = (size_t)s->len;
	return 0;
}
