/* SPDX-License-Identifier: MIT */
/*
 * Metadata that an entry of the GUID table leads to: a header, the same for SEV and TDX, then sections of equal length.
 * Enters: an untrusted image. Leaves: how many sections there are and where, all inside the image. No lock.
 */
#ifndef GMEM_LAUNCH_FIRMWARE_METADATA_H
#define GMEM_LAUNCH_FIRMWARE_METADATA_H

#include "launch/firmware/guid.h"

struct gmem_metadata_kind {
	enum gmem_guid guid; /* whose entry leads there */
	enum gmem_guid other; /* which a firmware without this kind may have instead */
	const char *name;
	const char *guests; /* that are launched by it */
	const char *other_guests;
	char signature[4];
	uint32_t version;
	uint32_t entry_len; /* of one section */
};

/* Answers how many sections follow the header, not more than `max`, the first at *ret_off. The errors of firmware.h. */
int gmem_metadata_open(const struct gmem_firmware_image *im, const struct gmem_metadata_kind *kind, size_t max,
		       size_t *ret_off);

/* Of section `i`, which the image has at `off`: whole pages below `limit`, with no overflow for any gpa and len. */
int gmem_metadata_check_range(const struct gmem_firmware_image *im, size_t off, size_t i, uint64_t gpa, uint64_t len,
			      uint64_t limit);

#endif
