/* SPDX-License-Identifier: MIT */
#include "launch/firmware/metadata.h"

#include <inttypes.h>
#include <string.h>

#include "base/le.h"
#include "base/range.h"

/* Signature, length of all, version, number of sections: 32 bits each. */
#define HEADER_LEN 16

/* gmem_guid_find() found no entry: says what the image was built for. */
static int absent(const struct gmem_firmware_image *im, const struct gmem_metadata_kind *kind)
{
	char text[GMEM_GUID_TEXT_LEN], other[GMEM_GUID_TEXT_LEN];
	size_t off;
	int err;

	gmem_guid_text(kind->guid, text);
	gmem_guid_text(kind->other, other);
	err = gmem_guid_find(im, kind->other, sizeof(uint32_t), &off);
	if (!err)
		return gmem_firmware_err(im, -ENOENT, off,
					 "the GUID table has no %s, only %s: built for %s, not for %s", text, other,
					 kind->other_guests, kind->guests);
	if (err == -ENOENT && gmem_guid_table(im, &off))
		return gmem_firmware_err(im, err, off, "the GUID table has no %s, nor %s: built for neither %s nor %s",
					 text, other, kind->guests, kind->other_guests);
	return gmem_guid_find(im, kind->guid, sizeof(uint32_t), &off);
}

/* Where the header begins; all of it is inside the image. */
static int find_header(const struct gmem_firmware_image *im, const struct gmem_metadata_kind *kind, size_t *ret_off)
{
	uint32_t from_end;
	size_t entry = 0;
	int err;

	err = gmem_guid_find(im, kind->guid, sizeof(from_end), &entry);
	if (err)
		return err == -ENOENT ? absent(im, kind) : err;
	from_end = gmem_get_le32(im->bytes + entry);
	if (from_end < HEADER_LEN || from_end > im->len)
		return gmem_firmware_bad(im, entry, "the %s begins 0x%" PRIx32 " bytes before the end of 0x%zx",
					 kind->name, from_end, im->len);
	*ret_off = im->len - from_end;
	return 0;
}

int gmem_metadata_open(const struct gmem_firmware_image *im, const struct gmem_metadata_kind *kind, size_t max,
		       size_t *ret_off)
{
	uint32_t length, version, n;
	size_t off = 0;
	int err;

	err = find_header(im, kind, &off);
	if (err)
		return err;
	if (memcmp(im->bytes + off, kind->signature, sizeof(kind->signature)))
		return gmem_firmware_bad(im, off, "the %s does not begin with \"%.4s\"", kind->name, kind->signature);
	length = gmem_get_le32(im->bytes + off + 4);
	version = gmem_get_le32(im->bytes + off + 8);
	n = gmem_get_le32(im->bytes + off + 12);
	/* First of all: what the other fields mean, the version says. */
	if (version != kind->version)
		return gmem_firmware_err(im, -EPROTONOSUPPORT, off + 8,
					 "%s of version %" PRIu32 "; %" PRIu32 " is known", kind->name, version,
					 kind->version);
	if (length != HEADER_LEN + (uint64_t)n * kind->entry_len)
		return gmem_firmware_bad(im, off + 4, "%" PRIu32 " bytes of %s for %" PRIu32 " sections", length,
					 kind->name, n);
	if (length > im->len - off)
		return gmem_firmware_bad(im, off + 4, "%" PRIu32 " bytes of %s, of which the image has %zu", length,
					 kind->name, im->len - off);
	if (n > max)
		return gmem_firmware_err(im, -ENOSPC, off + 12, "%" PRIu32 " sections; there is room for %zu", n, max);
	*ret_off = off + HEADER_LEN;
	return (int)n; /* times entry_len it is less than 32 bits hold */
}

int gmem_metadata_check_range(const struct gmem_firmware_image *im, size_t off, size_t i, uint64_t gpa, uint64_t len,
			      uint64_t limit)
{
	if (!gmem_page_aligned(gpa) || !gmem_page_aligned(len))
		return gmem_firmware_bad(
			im, off, "section %zu: gpa 0x%" PRIx64 ", 0x%" PRIx64 " bytes: not whole pages", i, gpa, len);
	if (!gmem_range_inside(gpa, len, limit))
		return gmem_firmware_bad(
			im, off, "section %zu: gpa 0x%" PRIx64 ", 0x%" PRIx64 " bytes: beyond the address space", i,
			gpa, len);
	return 0;
}
