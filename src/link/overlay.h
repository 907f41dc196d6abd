/* SPDX-License-Identifier: MIT */
/* A qcow2 overlay beside its base, made by qemu-img. Enters: paths. Leaves: a file. No lock. */
#ifndef GMEM_LINK_OVERLAY_H
#define GMEM_LINK_OVERLAY_H

#include <stdint.h>

/* Creates an empty overlay of `base` (absolute) with the base's owner and mode; its name, allocated, ends in
 * .gmem-XXXXXXXX.qcow2. -ENOENT (no qemu-img), -EIO (its words are the text). */
int gmem_overlay_create(const char *base, const char *format, uint64_t virtual_size, char **ret);

#endif
