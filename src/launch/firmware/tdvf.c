/* SPDX-License-Identifier: MIT */
#include <inttypes.h>

#include "base/le.h"
#include "base/range.h"
#include "launch/firmware/firmware.h"
#include "launch/firmware/metadata.h"

/* Another GUID lies before the header the entry leads to. QEMU does not look at it, nor do we. */
static const struct gmem_metadata_kind tdvf = {
	.guid = GMEM_GUID_TDX_METADATA,
	.other = GMEM_GUID_SEV_METADATA,
	.name = "TDX metadata",
	.guests = "TDX",
	.other_guests = "SEV-SNP",
	.signature = { 'T', 'D', 'V', 'F' },
	.version = 1,
	.entry_len = 32,
};

/* What a section may say by itself. */
static int check(const struct gmem_firmware_image *im, size_t off, size_t i, const struct gmem_tdvf_section *s)
{
	bool volume = s->type == GMEM_TDVF_SECTION_BFV || s->type == GMEM_TDVF_SECTION_CFV;
	bool zeros = s->type == GMEM_TDVF_SECTION_TD_HOB || s->type == GMEM_TDVF_SECTION_TEMP_MEM;

	if (s->type > GMEM_TDVF_SECTION_TD_INFO)
		return gmem_firmware_bad(im, off + 24, "section %zu: unknown type %" PRIu32, i, s->type);
	if (s->attr & ~(GMEM_TDVF_MR_EXTEND | GMEM_TDVF_PAGE_AUG))
		return gmem_firmware_bad(im, off + 28, "section %zu: unknown attributes 0x%" PRIx32, i, s->attr);
	if (s->attr == (GMEM_TDVF_MR_EXTEND | GMEM_TDVF_PAGE_AUG))
		return gmem_firmware_bad(im, off + 28, "section %zu: measured, yet not part of the build", i);
	if (!gmem_range_inside(s->off, s->raw_len, im->len))
		return gmem_firmware_bad(im, off,
					 "section %zu: its 0x%" PRIx64 " bytes at 0x%" PRIx64
					 " are not inside the image of 0x%zx",
					 i, s->raw_len, s->off, im->len);
	if (volume && (!s->raw_len || s->raw_len != s->len))
		return gmem_firmware_bad(im, off + 4,
					 "section %zu: a firmware volume of 0x%" PRIx64 " bytes in 0x%" PRIx64, i,
					 s->raw_len, s->len);
	if (zeros && s->raw_len)
		return gmem_firmware_bad(im, off + 4, "section %zu: 0x%" PRIx64 " bytes for memory that has none", i,
					 s->raw_len);
	if (s->raw_len > s->len)
		return gmem_firmware_bad(im, off + 4, "section %zu: 0x%" PRIx64 " bytes for 0x%" PRIx64 " of memory", i,
					 s->raw_len, s->len);
	/* The last page of the address space is given away, so that an end is never 0. */
	return gmem_metadata_check_range(im, off + 8, i, s->gpa, s->len, UINT64_MAX & GMEM_PAGE_MASK);
}

static void read_section(const struct gmem_firmware_image *im, size_t off, struct gmem_tdvf_section *ret)
{
	ret->off = gmem_get_le32(im->bytes + off);
	ret->raw_len = gmem_get_le32(im->bytes + off + 4);
	ret->gpa = gmem_get_le64(im->bytes + off + 8);
	ret->len = gmem_get_le64(im->bytes + off + 16);
	ret->type = gmem_get_le32(im->bytes + off + 24);
	ret->attr = gmem_get_le32(im->bytes + off + 28);
}

/*
 * Firmware is also shipped in two files, code and variable store: the metadata, at the end of the code, count from the
 * beginning of the whole, which is the variables'. Told apart from other damage so that the user knows which file to
 * take: what is missing is as long as the CFV, which the image was to begin with.
 */
static int check_whole(const struct gmem_firmware_image *im, size_t first, const struct gmem_tdvf_section *s, int n)
{
	uint64_t end = 0;

	for (int i = 0; i < n; i++)
		end = gmem_max_u64(end, s[i].off + s[i].raw_len); /* of 32 bits each */
	if (end <= im->len)
		return 0;
	for (int i = 0; i < n; i++)
		if (s[i].type == GMEM_TDVF_SECTION_CFV && !s[i].off && s[i].raw_len == end - im->len)
			return gmem_firmware_bad(
				im, first,
				"the sections end 0x%" PRIx64 " bytes past the image's end: it is the code "
				"alone (OVMF_CODE.fd), without the 0x%" PRIx64 " bytes of variable store "
				"before it. A TDX guest needs both in one image (OVMF.fd)",
				end - im->len, s[i].raw_len);
	return 0;
}

int gmem_firmware_tdvf(const void *image, size_t len, struct gmem_tdvf_section *sections, size_t max)
{
	const struct gmem_firmware_image im = { "gmem_firmware_tdvf", image, len };
	size_t off, first;
	int n, err, hobs = 0, bfvs = 0;

	if (!image || (!sections && max))
		return gmem_err(-EINVAL, "gmem_firmware_tdvf: no %s", image ? "room for sections" : "image");
	n = gmem_metadata_open(&im, &tdvf, max, &first);
	if (n < 0)
		return n;
	off = first;
	for (int i = 0; i < n; i++)
		read_section(&im, first + (size_t)i * tdvf.entry_len, &sections[i]);
	err = check_whole(&im, first, sections, n);
	if (err)
		return err;
	for (int i = 0; i < n; i++, off += tdvf.entry_len) {
		const struct gmem_tdvf_section *s = &sections[i];

		err = check(&im, off, (size_t)i, s);
		if (err)
			return err;
		for (int j = 0; j < i; j++)
			if (gmem_range_overlaps(s->gpa, s->len, sections[j].gpa, sections[j].len))
				return gmem_firmware_bad(&im, off + 8, "section %d overlaps section %d", i, j);
		hobs += s->type == GMEM_TDVF_SECTION_TD_HOB;
		bfvs += s->type == GMEM_TDVF_SECTION_BFV;
	}
	if (hobs != 1)
		return gmem_firmware_bad(&im, first, "%d TD_HOB sections, not one", hobs);
	if (!bfvs)
		return gmem_firmware_bad(&im, first, "no BFV section");
	return n;
}
