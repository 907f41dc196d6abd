/* SPDX-License-Identifier: MIT */
/* Entries of the GUID table that say all they have to say themselves. */
#include <inttypes.h>

#include "base/le.h"
#include "base/range.h"
#include "launch/firmware/firmware.h"
#include "launch/firmware/guid.h"

#define FOUR_GIB (UINT64_C(1) << 32)

int gmem_firmware_reset_eip(const void *image, size_t len, uint32_t *ret_eip)
{
	const struct gmem_firmware_image im = { "gmem_firmware_reset_eip", image, len };
	uint32_t eip;
	size_t off;
	int err;

	if (!image || !ret_eip)
		return gmem_err(-EINVAL, "%s: no %s", im.call, image ? "room for the address" : "image");
	err = gmem_guid_find(&im, GMEM_GUID_RESET_BLOCK, sizeof(eip), &off);
	if (err)
		return err;
	eip = gmem_get_le32(im.bytes + off);
	/* QEMU takes it for an image without one, too. */
	if (!eip)
		return gmem_firmware_bad(&im, off, "the SEV-ES reset block has address 0");
	*ret_eip = eip;
	return 0;
}

static int read_area(const struct gmem_firmware_image *im, enum gmem_guid guid, struct gmem_firmware_area *ret)
{
	struct gmem_firmware_area area;
	char text[GMEM_GUID_TEXT_LEN];
	size_t off;
	int err;

	if (!im->bytes || !ret)
		return gmem_err(-EINVAL, "%s: no %s", im->call, im->bytes ? "room for the area" : "image");
	err = gmem_guid_find(im, guid, 2 * sizeof(uint32_t), &off);
	if (err)
		return err;
	area.gpa = gmem_get_le32(im->bytes + off);
	area.len = gmem_get_le32(im->bytes + off + 4);
	if (!gmem_range_inside(area.gpa, area.len, FOUR_GIB))
		return gmem_firmware_bad(im, off, "%s: 0x%" PRIx64 " bytes at gpa 0x%" PRIx64 " end beyond 4 GiB",
					 gmem_guid_text(guid, text), area.len, area.gpa);
	*ret = area;
	return 0;
}

int gmem_firmware_secret(const void *image, size_t len, struct gmem_firmware_area *ret)
{
	const struct gmem_firmware_image im = { "gmem_firmware_secret", image, len };

	return read_area(&im, GMEM_GUID_SECRET, ret);
}

int gmem_firmware_hash_table(const void *image, size_t len, struct gmem_firmware_area *ret)
{
	const struct gmem_firmware_image im = { "gmem_firmware_hash_table", image, len };

	return read_area(&im, GMEM_GUID_HASH_TABLE, ret);
}

int gmem_firmware_svsm_eip(const void *svsm, size_t len, uint64_t gpa, uint32_t *ret_eip)
{
	const struct gmem_firmware_image im = { "gmem_firmware_svsm_eip", svsm, len };
	uint32_t entry;
	size_t off;
	int err;

	if (!svsm || !ret_eip)
		return gmem_err(-EINVAL, "%s: no %s", im.call, svsm ? "room for the address" : "image");
	if (!gmem_range_inside(gpa, len, FOUR_GIB))
		return gmem_err(-EINVAL, "%s: an SVSM of 0x%zx bytes at gpa 0x%" PRIx64 " ends beyond 4 GiB", im.call,
				len, gpa);
	err = gmem_guid_find(&im, GMEM_GUID_SVSM_INFO, sizeof(entry), &off);
	if (err)
		return err;
	entry = gmem_get_le32(im.bytes + off);
	if (entry >= len)
		return gmem_firmware_bad(&im, off, "the SVSM's entry at 0x%" PRIx32 " is not inside its 0x%zx bytes",
					 entry, len);
	*ret_eip = (uint32_t)(gpa + entry);
	return 0;
}
