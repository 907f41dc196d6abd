/* SPDX-License-Identifier: MIT */
/* Where in guest memory things go: the image itself, and the table of kernel hashes. */
#include <inttypes.h>

#include "base/range.h"
#include "launch/firmware/firmware.h"
#include "launch/firmware/guid.h"

#define FOUR_GIB (UINT64_C(1) << 32)

int gmem_firmware_gpa(uint64_t len, uint64_t above, uint64_t *ret_gpa)
{
	if (!ret_gpa)
		return gmem_err(-EINVAL, "gmem_firmware_gpa: no room for the address");
	if (!len || !gmem_page_aligned(len) || !gmem_page_aligned(above))
		return gmem_err(-EINVAL,
				"gmem_firmware_gpa: an image of 0x%" PRIx64 " bytes, 0x%" PRIx64
				" above it: not whole pages",
				len, above);
	if (!gmem_range_inside(above, len, FOUR_GIB))
		return gmem_err(-EINVAL,
				"gmem_firmware_gpa: an image of 0x%" PRIx64 " bytes, 0x%" PRIx64
				" above it: do not fit below 4 GiB",
				len, above);
	*ret_gpa = FOUR_GIB - above - len;
	return 0;
}

int gmem_firmware_apart(const struct gmem_sev_section *sections, size_t n, uint64_t gpa, uint64_t len)
{
	for (size_t i = 0; i < n; i++)
		if (gmem_range_overlaps(sections[i].gpa, sections[i].len, gpa, len))
			return gmem_err(-EBADMSG,
					"gmem_firmware_apart: section %zu of the SEV metadata, gpa 0x%" PRIx64
					", 0x%" PRIx64 " bytes: overlaps the image of 0x%" PRIx64
					" bytes at gpa 0x%" PRIx64,
					i, sections[i].gpa, sections[i].len, len, gpa);
	return 0;
}

/* The section for the hashes, `n` if there is none. Two would be two tables. */
static int find_section(const struct gmem_firmware_image *im, const struct gmem_sev_section *sections, size_t n,
			size_t *ret)
{
	*ret = n;
	for (size_t i = 0; i < n; i++) {
		if (sections[i].type != GMEM_SEV_SECTION_KERNEL_HASHES)
			continue;
		if (*ret < n)
			return gmem_err(-EBADMSG,
					"%s: sections %zu and %zu of the SEV metadata are both for kernel hashes",
					im->call, *ret, i);
		*ret = i;
	}
	return 0;
}

/* Without an address, or without a section, or without both: says which, by its GUID. */
static int no_place(const struct gmem_firmware_image *im, bool address, bool section)
{
	char table[GMEM_GUID_TEXT_LEN], metadata[GMEM_GUID_TEXT_LEN];
	const char *lacks;
	size_t off;
	int err;

	gmem_guid_text(GMEM_GUID_HASH_TABLE, table);
	gmem_guid_text(GMEM_GUID_SEV_METADATA, metadata);
	err = gmem_guid_find(im, GMEM_GUID_HASH_TABLE, 2 * sizeof(uint32_t), &off);
	if (err && !gmem_guid_table(im, &off))
		return err;
	lacks = err ? "is not in the GUID table" : "names no address";
	if (address)
		return gmem_firmware_err(im, -ENOENT, off,
					 "no kernel for this firmware: %s has no section for its hashes", metadata);
	if (section)
		return gmem_firmware_err(im, -ENOENT, off, "no kernel for this firmware: %s %s", table, lacks);
	return gmem_firmware_err(im, -ENOENT, off,
				 "no kernel for this firmware: %s %s, and %s has no section for its hashes", table,
				 lacks, metadata);
}

int gmem_firmware_kernel_hashes(const void *image, size_t len, const struct gmem_sev_section *sections, size_t n,
				struct gmem_firmware_hashes *ret)
{
	const struct gmem_firmware_image im = { "gmem_firmware_kernel_hashes", image, len };
	struct gmem_firmware_area table = { 0, 0 };
	const struct gmem_sev_section *s;
	size_t i, off = 0;
	int err;

	if (!image || (!sections && n) || !ret)
		return gmem_err(-EINVAL, "%s: no %s", im.call, !image ? "image" : !ret ? "room" : "sections");
	err = gmem_firmware_hash_table(image, len, &table);
	if (err && err != -ENOENT)
		return gmem_err_prefix(err, "%s", im.call);
	err = find_section(&im, sections, n, &i);
	if (err)
		return err;
	if (!table.gpa || !table.len || i == n)
		return no_place(&im, table.gpa && table.len, i < n);
	/* It is there: it has an address. */
	gmem_guid_find(&im, GMEM_GUID_HASH_TABLE, 2 * sizeof(uint32_t), &off);
	s = &sections[i];
	if (s->len != GMEM_PAGE_SIZE)
		return gmem_firmware_bad(
			&im, off, "section %zu, for kernel hashes, has 0x%" PRIx64 " bytes, not one page", i, s->len);
	if (table.len < GMEM_KERNEL_HASHES_LEN)
		return gmem_firmware_bad(&im, off, "0x%" PRIx64 " bytes for kernel hashes, which need %u", table.len,
					 GMEM_KERNEL_HASHES_LEN);
	if (table.gpa < s->gpa || !gmem_range_inside(table.gpa - s->gpa, GMEM_KERNEL_HASHES_LEN, s->len))
		return gmem_firmware_bad(&im, off,
					 "the table of kernel hashes at gpa 0x%" PRIx64
					 " is not inside section %zu, for it, the page at gpa 0x%" PRIx64,
					 table.gpa, i, s->gpa);
	*ret = (struct gmem_firmware_hashes){ i, s->gpa, (uint32_t)(table.gpa - s->gpa) };
	return 0;
}
