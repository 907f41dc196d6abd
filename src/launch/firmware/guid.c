/* SPDX-License-Identifier: MIT */
#include "launch/firmware/guid.h"

#include <stdio.h>
#include <string.h>

#include "base/le.h"

#define GUID_LEN 16
/* The table ends here, counted from the image's end: behind it lies the reset vector. */
#define TABLE_END 32
/* A table entry is its data, then this: the length of the whole entry and its GUID. */
#define ENTRY_TAIL (sizeof(uint16_t) + GUID_LEN)

/* A GUID as it lies in the image: the first three groups little-endian. */
#define BYTE(x, n) (((x) >> (8 * (n))) & 255)
#define GUID(a, b, c, d, e)                                                                                            \
	{                                                                                                              \
		BYTE(a, 0), BYTE(a, 1), BYTE(a, 2), BYTE(a, 3), BYTE(b, 0), BYTE(b, 1), BYTE(c, 0), BYTE(c, 1),        \
			BYTE(d, 1), BYTE(d, 0), BYTE(e, 5), BYTE(e, 4), BYTE(e, 3), BYTE(e, 2), BYTE(e, 1), BYTE(e, 0) \
	}

static const struct {
	uint8_t raw[GUID_LEN];
	const char *name;
} guids[] = {
	[GMEM_GUID_TABLE] = { GUID(0x96b582de, 0x1fb2, 0x45f7, 0xbaea, 0xa366c55a082d), "footer of the GUID table" },
	[GMEM_GUID_SEV_METADATA] = { GUID(0xdc886566, 0x984a, 0x4798, 0xa75e, 0x5585a7bf67cc), "SEV metadata" },
	[GMEM_GUID_TDX_METADATA] = { GUID(0xe47a6535, 0x984a, 0x4798, 0x865e, 0x4685a7bf8ec2), "TDX metadata" },
	[GMEM_GUID_RESET_BLOCK] = { GUID(0x00f771de, 0x1a7e, 0x4fcb, 0x890e, 0x68c77e2fb44e), "SEV-ES reset block" },
	[GMEM_GUID_SECRET] = { GUID(0x4c2eb361, 0x7d9b, 0x4cc3, 0x8081, 0x127c90d3d294), "SEV secret block" },
	[GMEM_GUID_HASH_TABLE] = { GUID(0x7255371f, 0x3a3b, 0x4b04, 0x927b, 0x1da6efa8d454), "SEV hash table" },
	[GMEM_GUID_SVSM_INFO] = { GUID(0xa789a612, 0x0597, 0x4c4b, 0xa49f, 0xcbb1fe9d1ddd), "SVSM info" },
};

const char *gmem_guid_text(enum gmem_guid guid, char text[GMEM_GUID_TEXT_LEN])
{
	const uint8_t *g = guids[guid].raw;

	snprintf(text, GMEM_GUID_TEXT_LEN, "%08x-%04x-%04x-%02x%02x-%02x%02x%02x%02x%02x%02x (%s)",
		 (unsigned int)gmem_get_le32(g), gmem_get_le16(g + 4), gmem_get_le16(g + 6), g[8], g[9], g[10], g[11],
		 g[12], g[13], g[14], g[15], guids[guid].name);
	return text;
}

bool gmem_guid_table(const struct gmem_firmware_image *im, size_t *ret_off)
{
	size_t at;

	if (im->len < TABLE_END + ENTRY_TAIL)
		return false;
	at = im->len - TABLE_END - ENTRY_TAIL;
	if (memcmp(im->bytes + at + sizeof(uint16_t), guids[GMEM_GUID_TABLE].raw, GUID_LEN))
		return false;
	*ret_off = at;
	return true;
}

static int no_table(const struct gmem_firmware_image *im, enum gmem_guid wanted)
{
	char table[GMEM_GUID_TEXT_LEN], want[GMEM_GUID_TEXT_LEN];

	gmem_guid_text(GMEM_GUID_TABLE, table);
	gmem_guid_text(wanted, want);
	if (im->len < TABLE_END + ENTRY_TAIL)
		return gmem_firmware_err(im, -ENOENT, 0, "%zu bytes are too short for a GUID table, and so have no %s",
					 im->len, want);
	return gmem_firmware_err(im, -ENOENT, im->len - TABLE_END - GUID_LEN,
				 "no GUID table: there is no %s, and so no %s", table, want);
}

int gmem_guid_find(const struct gmem_firmware_image *im, enum gmem_guid guid, size_t len, size_t *ret_off)
{
	char text[GMEM_GUID_TEXT_LEN];
	size_t footer, at, left, n, off = 0;
	bool found = false;

	if (!gmem_guid_table(im, &footer))
		return no_table(im, guid);
	left = gmem_get_le16(im->bytes + footer);
	if (left < ENTRY_TAIL || left - ENTRY_TAIL > footer)
		return gmem_firmware_bad(im, footer, "a GUID table of %zu bytes", left);
	/* The footer is an entry of its own. What is left of the table are the `left` bytes before `at`. */
	for (at = footer, left -= ENTRY_TAIL; left; left -= n, at -= n) {
		if (left < ENTRY_TAIL)
			return gmem_firmware_bad(im, at - left, "%zu bytes of the GUID table are no entry", left);
		n = gmem_get_le16(im->bytes + at - ENTRY_TAIL);
		if (n < ENTRY_TAIL || n > left)
			return gmem_firmware_bad(im, at - ENTRY_TAIL,
						 "a GUID table entry of %zu bytes where %zu are left", n, left);
		if (memcmp(im->bytes + at - GUID_LEN, guids[guid].raw, GUID_LEN))
			continue;
		gmem_guid_text(guid, text);
		if (found)
			return gmem_firmware_bad(im, at - n, "%s is twice in the GUID table", text);
		if (n != ENTRY_TAIL + len)
			return gmem_firmware_bad(im, at - n, "%s has %zu bytes of data, not %zu", text, n - ENTRY_TAIL,
						 len);
		found = true;
		off = at - n;
	}
	if (!found)
		return gmem_firmware_err(im, -ENOENT, footer, "the GUID table has no %s", gmem_guid_text(guid, text));
	*ret_off = off;
	return 0;
}
