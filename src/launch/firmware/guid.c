/* SPDX-License-Identifier: MIT */
#include "launch/firmware/firmware.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

#include "base/err.h"
#include "base/le.h"
#include "base/range.h"

#define GUID_LEN 16
/* The table ends here, counted from the image's end: behind it lies the reset vector. */
#define TABLE_END 32
/* A table entry is its data, then this: the length of the whole entry and its GUID. */
#define ENTRY_TAIL (sizeof(uint16_t) + GUID_LEN)
/* Signature, length of all, version, number of sections: both kinds of metadata begin with these, 32 bits each. */
#define HEADER_LEN 16

struct kind {
	const char *call; /* for error texts */
	const char *name;
	uint8_t guid[GUID_LEN]; /* of the table entry that leads there */
	char signature[4];
	uint32_t version;
	uint32_t entry_len; /* of one section */
};

/* A GUID as it lies in the image: the first three groups little-endian. */
#define BYTE(x, n) (((x) >> (8 * (n))) & 255)
#define GUID(a, b, c, d, e)                                                                                            \
	{                                                                                                              \
		BYTE(a, 0), BYTE(a, 1), BYTE(a, 2), BYTE(a, 3), BYTE(b, 0), BYTE(b, 1), BYTE(c, 0), BYTE(c, 1),        \
			BYTE(d, 1), BYTE(d, 0), BYTE(e, 5), BYTE(e, 4), BYTE(e, 3), BYTE(e, 2), BYTE(e, 1), BYTE(e, 0) \
	}

static const uint8_t footer_guid[GUID_LEN] = GUID(0x96b582de, 0x1fb2, 0x45f7, 0xbaea, 0xa366c55a082d);

static const struct kind sev = {
	.call = "gmem_firmware_sev",
	.name = "SEV metadata",
	.guid = GUID(0xdc886566, 0x984a, 0x4798, 0xa75e, 0x5585a7bf67cc),
	.signature = { 'A', 'S', 'E', 'V' },
	.version = 1,
	.entry_len = 12,
};

/* Another GUID lies before the header the entry leads to. QEMU does not look at it, nor do we. */
static const struct kind tdvf = {
	.call = "gmem_firmware_tdvf",
	.name = "TDX metadata",
	.guid = GUID(0xe47a6535, 0x984a, 0x4798, 0x865e, 0x4685a7bf8ec2),
	.signature = { 'T', 'D', 'V', 'F' },
	.version = 1,
	.entry_len = 32,
};

/* An untrusted image, read by one call for one kind of metadata. */
struct reader {
	const struct kind *kind;
	const uint8_t *image;
	size_t len;
};

#define bad(r, off, fmt, ...) \
	gmem_err(-EBADMSG, "%s: offset 0x%zx: " fmt, (r)->kind->call, (size_t)(off), ##__VA_ARGS__)

/*
 * Walks the GUID table from its end to its beginning, all of it even when the entry is found: two readers that
 * disagree about which of two entries counts would measure different things.
 */
static int find_metadata(const struct reader *r, size_t *ret_off)
{
	size_t at, left, n, entry = 0;
	uint32_t from_end = 0;
	bool found = false;

	if (r->len < TABLE_END + ENTRY_TAIL)
		return gmem_err(-ENOENT, "%s: an image of %zu bytes has no GUID table", r->kind->call, r->len);
	at = r->len - TABLE_END - ENTRY_TAIL;
	if (memcmp(r->image + at + sizeof(uint16_t), footer_guid, GUID_LEN))
		return gmem_err(-ENOENT, "%s: the image has no GUID table", r->kind->call);
	left = gmem_get_le16(r->image + at);
	if (left < ENTRY_TAIL || left - ENTRY_TAIL > at)
		return bad(r, at, "a GUID table of %zu bytes", left);
	/* The footer is an entry of its own. What is left of the table are the `left` bytes before `at`. */
	for (left -= ENTRY_TAIL; left; left -= n, at -= n) {
		if (left < ENTRY_TAIL)
			return bad(r, at - left, "%zu bytes of the GUID table are no entry", left);
		n = gmem_get_le16(r->image + at - ENTRY_TAIL);
		if (n < ENTRY_TAIL || n > left)
			return bad(r, at - ENTRY_TAIL, "a GUID table entry of %zu bytes where %zu are left", n, left);
		if (memcmp(r->image + at - GUID_LEN, r->kind->guid, GUID_LEN))
			continue;
		if (found)
			return bad(r, at - n, "the GUID of the %s is twice in the table", r->kind->name);
		if (n != ENTRY_TAIL + sizeof(from_end))
			return bad(r, at - n, "%zu bytes lead to the %s, not 4", n - ENTRY_TAIL, r->kind->name);
		found = true;
		entry = at - n;
		from_end = gmem_get_le32(r->image + entry);
	}
	if (!found)
		return gmem_err(-ENOENT, "%s: the image has no %s", r->kind->call, r->kind->name);
	if (from_end < HEADER_LEN || from_end > r->len)
		return bad(r, entry, "the %s begins 0x%" PRIx32 " bytes before the end of 0x%zx", r->kind->name,
			   from_end, r->len);
	*ret_off = r->len - from_end;
	return 0;
}

/* The metadata's header. Answers how many sections follow, the first at *ret_off, all inside the image. */
static int open_metadata(const struct reader *r, size_t max, size_t *ret_off)
{
	uint32_t length, version, n;
	size_t off = 0;
	int err;

	err = find_metadata(r, &off);
	if (err)
		return err;
	if (memcmp(r->image + off, r->kind->signature, sizeof(r->kind->signature)))
		return bad(r, off, "the %s does not begin with \"%.4s\"", r->kind->name, r->kind->signature);
	length = gmem_get_le32(r->image + off + 4);
	version = gmem_get_le32(r->image + off + 8);
	n = gmem_get_le32(r->image + off + 12);
	/* First of all: what the other fields mean, the version says. */
	if (version != r->kind->version)
		return gmem_err(-EPROTONOSUPPORT, "%s: offset 0x%zx: %s of version %" PRIu32 "; %" PRIu32 " is known",
				r->kind->call, off + 8, r->kind->name, version, r->kind->version);
	if (length != HEADER_LEN + (uint64_t)n * r->kind->entry_len)
		return bad(r, off + 4, "%" PRIu32 " bytes of %s for %" PRIu32 " sections", length, r->kind->name, n);
	if (length > r->len - off)
		return bad(r, off + 4, "%" PRIu32 " bytes of %s, of which the image has %zu", length, r->kind->name,
			   r->len - off);
	if (n > max)
		return gmem_err(-ENOSPC, "%s: offset 0x%zx: %" PRIu32 " sections; there is room for %zu", r->kind->call,
				off + 12, n, max);
	*ret_off = off + HEADER_LEN;
	return (int)n; /* times entry_len it is less than 32 bits hold */
}

/* `off` is where the image has the section. Checked with no overflow for any gpa and len. */
static int check_range(const struct reader *r, size_t off, size_t i, uint64_t gpa, uint64_t len, uint64_t limit)
{
	if (!gmem_page_aligned(gpa) || !gmem_page_aligned(len))
		return bad(r, off, "section %zu: gpa 0x%" PRIx64 ", 0x%" PRIx64 " bytes: not whole pages", i, gpa, len);
	if (!gmem_range_inside(gpa, len, limit))
		return bad(r, off, "section %zu: gpa 0x%" PRIx64 ", 0x%" PRIx64 " bytes: beyond the address space", i,
			   gpa, len);
	return 0;
}

static bool sev_type_known(uint32_t type)
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

int gmem_firmware_sev(const void *image, size_t len, struct gmem_sev_section *sections, size_t max)
{
	const struct reader r = { &sev, image, len };
	size_t off;
	int n, err;

	if (!image || (!sections && max))
		return gmem_err(-EINVAL, "gmem_firmware_sev: no %s", image ? "room for sections" : "image");
	n = open_metadata(&r, max, &off);
	if (n < 0)
		return n;
	for (int i = 0; i < n; i++, off += sev.entry_len) {
		struct gmem_sev_section *s = &sections[i];

		s->gpa = gmem_get_le32(r.image + off);
		s->len = gmem_get_le32(r.image + off + 4);
		s->type = gmem_get_le32(r.image + off + 8);
		if (!sev_type_known(s->type))
			return bad(&r, off + 8, "section %d: unknown type 0x%" PRIx32, i, s->type);
		if (!s->len)
			return bad(&r, off + 4, "section %d is empty", i);
		err = check_range(&r, off, (size_t)i, s->gpa, s->len, UINT64_C(1) << 32);
		if (err)
			return err;
		for (int j = 0; j < i; j++)
			if (gmem_range_overlaps(s->gpa, s->len, sections[j].gpa, sections[j].len))
				return bad(&r, off, "section %d overlaps section %d", i, j);
	}
	return n;
}

/* What a section may say by itself. */
static int check_tdvf(const struct reader *r, size_t off, size_t i, const struct gmem_tdvf_section *s)
{
	bool volume = s->type == GMEM_TDVF_SECTION_BFV || s->type == GMEM_TDVF_SECTION_CFV;
	bool zeros = s->type == GMEM_TDVF_SECTION_TD_HOB || s->type == GMEM_TDVF_SECTION_TEMP_MEM;

	if (s->type > GMEM_TDVF_SECTION_TD_INFO)
		return bad(r, off + 24, "section %zu: unknown type %" PRIu32, i, s->type);
	if (s->attr & ~(GMEM_TDVF_MR_EXTEND | GMEM_TDVF_PAGE_AUG))
		return bad(r, off + 28, "section %zu: unknown attributes 0x%" PRIx32, i, s->attr);
	if (s->attr == (GMEM_TDVF_MR_EXTEND | GMEM_TDVF_PAGE_AUG))
		return bad(r, off + 28, "section %zu: measured, yet not part of the build", i);
	if (!gmem_range_inside(s->off, s->raw_len, r->len))
		return bad(r, off, "section %zu: its 0x%" PRIx64 " bytes at 0x%" PRIx64 " are not inside the image", i,
			   s->raw_len, s->off);
	if (volume && (!s->raw_len || s->raw_len != s->len))
		return bad(r, off + 4, "section %zu: a firmware volume of 0x%" PRIx64 " bytes in 0x%" PRIx64, i,
			   s->raw_len, s->len);
	if (zeros && s->raw_len)
		return bad(r, off + 4, "section %zu: 0x%" PRIx64 " bytes for memory that has none", i, s->raw_len);
	if (s->raw_len > s->len)
		return bad(r, off + 4, "section %zu: 0x%" PRIx64 " bytes for 0x%" PRIx64 " of memory", i, s->raw_len,
			   s->len);
	/* The last page of the address space is given away, so that an end is never 0. */
	return check_range(r, off + 8, i, s->gpa, s->len, UINT64_MAX & GMEM_PAGE_MASK);
}

int gmem_firmware_tdvf(const void *image, size_t len, struct gmem_tdvf_section *sections, size_t max)
{
	const struct reader r = { &tdvf, image, len };
	size_t off, first;
	int n, err, hobs = 0, bfvs = 0;

	if (!image || (!sections && max))
		return gmem_err(-EINVAL, "gmem_firmware_tdvf: no %s", image ? "room for sections" : "image");
	n = open_metadata(&r, max, &first);
	if (n < 0)
		return n;
	off = first;
	for (int i = 0; i < n; i++, off += tdvf.entry_len) {
		struct gmem_tdvf_section *s = &sections[i];

		s->off = gmem_get_le32(r.image + off);
		s->raw_len = gmem_get_le32(r.image + off + 4);
		s->gpa = gmem_get_le64(r.image + off + 8);
		s->len = gmem_get_le64(r.image + off + 16);
		s->type = gmem_get_le32(r.image + off + 24);
		s->attr = gmem_get_le32(r.image + off + 28);
		err = check_tdvf(&r, off, (size_t)i, s);
		if (err)
			return err;
		for (int j = 0; j < i; j++)
			if (gmem_range_overlaps(s->gpa, s->len, sections[j].gpa, sections[j].len))
				return bad(&r, off + 8, "section %d overlaps section %d", i, j);
		hobs += s->type == GMEM_TDVF_SECTION_TD_HOB;
		bfvs += s->type == GMEM_TDVF_SECTION_BFV;
	}
	if (hobs != 1)
		return bad(&r, first, "%d TD_HOB sections, not one", hobs);
	if (!bfvs)
		return bad(&r, first, "no BFV section");
	return n;
}
