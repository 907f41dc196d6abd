/* SPDX-License-Identifier: MIT */
/*
 * The table of GUIDs near a firmware image's end: entries of data, length and GUID, read from the table's end to its
 * beginning.
 * Enters: an untrusted image. Leaves: where the data of one entry lies in it. No lock.
 */
#ifndef GMEM_LAUNCH_FIRMWARE_GUID_H
#define GMEM_LAUNCH_FIRMWARE_GUID_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* An untrusted image, read by one public function. */
struct gmem_firmware_image {
	const char *call; /* its name, for error texts */
	const uint8_t *bytes;
	size_t len;
};

enum gmem_guid {
	GMEM_GUID_TABLE, /* the footer, which is the table's last entry */
	GMEM_GUID_SEV_METADATA,
	GMEM_GUID_TDX_METADATA,
	GMEM_GUID_RESET_BLOCK,
	GMEM_GUID_SECRET,
	GMEM_GUID_HASH_TABLE,
	GMEM_GUID_SVSM_INFO,
};

#define GMEM_GUID_TEXT_LEN 96

/* "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx (what it is)"; returns `text`. */
const char *gmem_guid_text(enum gmem_guid guid, char text[GMEM_GUID_TEXT_LEN]);

/* True if there is a table, whatever is in it; its footer begins at *ret_off. */
bool gmem_guid_table(const struct gmem_firmware_image *im, size_t *ret_off);

/*
 * Finds the `len` bytes of data that the entry of this GUID has. Walks all of the table even when the entry is found:
 * two readers that disagree about which of two entries counts would measure different things.
 * -ENOENT, -EBADMSG (the table is malformed, the GUID twice in it, its data of another length).
 */
int gmem_guid_find(const struct gmem_firmware_image *im, enum gmem_guid guid, size_t len, size_t *ret_off);

#define gmem_firmware_err(im, err, off, fmt, ...) \
	gmem_err(err, "%s: offset 0x%zx: " fmt, (im)->call, (size_t)(off), ##__VA_ARGS__)
#define gmem_firmware_bad(im, off, fmt, ...) gmem_firmware_err(im, -EBADMSG, off, fmt, ##__VA_ARGS__)

#endif
