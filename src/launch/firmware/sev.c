/* SPDX-License-Identifier: MIT */
#include <inttypes.h>

#include "base/le.h"
#include "base/range.h"
#include "launch/firmware/firmware.h"
#include "launch/firmware/metadata.h"

static const struct gmem_metadata_kind sev = {
	.guid = GMEM_GUID_SEV_METADATA,
	.other = GMEM_GUID_TDX_METADATA,
	.name = "SEV metadata",
	.guests = "SEV-SNP",
	.other_guests = "TDX",
	.signature = { 'A', 'S', 'E', 'V' },
	.version = 1,
	.entry_len = 12,
};

static bool type_known(uint32_t type)
{
	switch (type) {
	case GMEM_SEV_SECTION_MEM:
	case GMEM_SEV_SECTION_SECRETS:
	case GMEM_SEV_SECTION_CPUID:
	case GMEM_SEV_SECTION_SVSM_CAA:
	case GMEM_SEV_SECTION_KERNEL_HASHES:
		return true;
	default:
		return false;
	}
}

static bool one_page(uint32_t type)
{
	return type == GMEM_SEV_SECTION_SECRETS || type == GMEM_SEV_SECTION_CPUID;
}

int gmem_firmware_sev(const void *image, size_t len, struct gmem_sev_section *sections, size_t max)
{
	const struct gmem_firmware_image im = { "gmem_firmware_sev", image, len };
	size_t off;
	int n, err;

	if (!image || (!sections && max))
		return gmem_err(-EINVAL, "gmem_firmware_sev: no %s", image ? "room for sections" : "image");
	n = gmem_metadata_open(&im, &sev, max, &off);
	if (n < 0)
		return n;
	for (int i = 0; i < n; i++, off += sev.entry_len) {
		struct gmem_sev_section *s = &sections[i];

		s->gpa = gmem_get_le32(im.bytes + off);
		s->len = gmem_get_le32(im.bytes + off + 4);
		s->type = gmem_get_le32(im.bytes + off + 8);
		if (!type_known(s->type))
			return gmem_firmware_bad(&im, off + 8, "section %d: unknown type 0x%" PRIx32, i, s->type);
		if (!s->len)
			return gmem_firmware_bad(&im, off + 4, "section %d is empty", i);
		if (one_page(s->type) && s->len != GMEM_PAGE_SIZE)
			return gmem_firmware_bad(&im, off + 4,
						 "section %d: 0x%" PRIx64 " bytes of type %" PRIu32 ", not one page", i,
						 s->len, s->type);
		err = gmem_metadata_check_range(&im, off, (size_t)i, s->gpa, s->len, UINT64_C(1) << 32);
		if (err)
			return err;
		for (int j = 0; j < i; j++)
			if (gmem_range_overlaps(s->gpa, s->len, sections[j].gpa, sections[j].len))
				return gmem_firmware_bad(&im, off, "section %d overlaps section %d", i, j);
	}
	return n;
}
