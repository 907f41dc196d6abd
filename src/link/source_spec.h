/* SPDX-License-Identifier: MIT */
/*
 * One line of text that says where a memory's bytes are: of a command line, or of a page server's configuration.
 * Enters: the text. Leaves: its parts, unescaped; nothing is opened. Who parsed it frees it. No lock.
 */
#ifndef GMEM_LINK_SOURCE_SPEC_H
#define GMEM_LINK_SOURCE_SPEC_H

#include <stddef.h>

#define GMEM_SOURCE_SPEC_LAYERS 255u

enum gmem_source_kind { GMEM_SOURCE_RAW, GMEM_SOURCE_CH, GMEM_SOURCE_IMAGE, GMEM_SOURCE_NBD, GMEM_SOURCE_ZERO };

struct gmem_source_spec {
	enum gmem_source_kind kind;
	char *path; /* of a file; ch: of a folder; nbd: the URI; zero: NULL */
	char *region; /* image: its name or number, NULL if not said */
	char **layers; /* raw: from the lowest up */
	size_t nlayers;
};

/* -EINVAL, with the part that is wrong; -ENOMEM. */
int gmem_source_spec_parse(const char *text, struct gmem_source_spec *ret);
void gmem_source_spec_free(struct gmem_source_spec *spec);

#endif
