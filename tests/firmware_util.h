/* SPDX-License-Identifier: MIT */
/* A small firmware image with the GUID table a test wants. Included after tap.h. */
#ifndef GMEM_TESTS_FIRMWARE_UTIL_H
#define GMEM_TESTS_FIRMWARE_UTIL_H

#include <stdarg.h>

#include "base/le.h"
#include "launch/firmware/firmware.h"

#define SEV_METADATA "dc886566-984a-4798-a75e-5585a7bf67cc"
#define TDX_METADATA "e47a6535-984a-4798-865e-4685a7bf8ec2"
#define RESET_BLOCK "00f771de-1a7e-4fcb-890e-68c77e2fb44e"
#define SECRET_BLOCK "4c2eb361-7d9b-4cc3-8081-127c90d3d294"
#define HASH_TABLE "7255371f-3a3b-4b04-927b-1da6efa8d454"
#define SVSM_INFO "a789a612-0597-4c4b-a49f-cbb1fe9d1ddd"
#define TABLE_FOOTER "96b582de-1fb2-45f7-baea-a366c55a082d"

#define IMAGE_LEN 0x4000u
#define IMAGE_METADATA 0x800u /* from the end */

/* The table grows downwards from its footer, which is at the end but for 32 bytes. */
struct image {
	uint8_t bytes[IMAGE_LEN];
	size_t begin; /* of the table */
};

static inline void put_guid(uint8_t *raw, const char *text)
{
	unsigned int a, b, c, d[8];

	CHECK_EQ(sscanf(text, "%8x-%4x-%4x-%2x%2x-%2x%2x%2x%2x%2x%2x", &a, &b, &c, &d[0], &d[1], &d[2], &d[3], &d[4],
			&d[5], &d[6], &d[7]),
		 11);
	gmem_put_le32(raw, a);
	gmem_put_le16(raw + 4, (uint16_t)b);
	gmem_put_le16(raw + 6, (uint16_t)c);
	for (int i = 0; i < 8; i++)
		raw[8 + i] = (uint8_t)d[i];
}

static inline void image_init(struct image *im)
{
	memset(im->bytes, 0, sizeof(im->bytes));
	im->begin = IMAGE_LEN - 32 - 18;
	gmem_put_le16(im->bytes + im->begin, 18);
	put_guid(im->bytes + im->begin + 2, TABLE_FOOTER);
}

/* One more entry, before the others: `n` numbers of 32 bits. Answers where its data is. */
static inline size_t image_add(struct image *im, const char *guid, int n, ...)
{
	uint8_t *footer = im->bytes + IMAGE_LEN - 32 - 18, *at = im->bytes + im->begin - 18;
	va_list ap;

	put_guid(at + 2, guid);
	gmem_put_le16(at, (uint16_t)(4 * n + 18));
	at -= 4 * n;
	va_start(ap, n);
	for (int i = 0; i < n; i++)
		gmem_put_le32(at + 4 * i, va_arg(ap, uint32_t));
	va_end(ap);
	gmem_put_le16(footer, (uint16_t)(gmem_get_le16(footer) + 4 * n + 18));
	im->begin = (size_t)(at - im->bytes);
	return im->begin;
}

/* SEV metadata of `n` sections, and the entry that leads there. */
static inline void image_add_sev(struct image *im, const struct gmem_sev_section *s, uint32_t n)
{
	uint8_t *p = im->bytes + IMAGE_LEN - IMAGE_METADATA;

	memcpy(p, "ASEV", 4);
	gmem_put_le32(p + 4, 16 + 12 * n);
	gmem_put_le32(p + 8, 1);
	gmem_put_le32(p + 12, n);
	for (uint32_t i = 0; i < n; i++) {
		gmem_put_le32(p + 16 + 12 * i, (uint32_t)s[i].gpa);
		gmem_put_le32(p + 20 + 12 * i, (uint32_t)s[i].len);
		gmem_put_le32(p + 24 + 12 * i, s[i].type);
	}
	image_add(im, SEV_METADATA, 1, IMAGE_METADATA);
}

/* A call that fails with `err`, and says `what`. */
#define CHECK_SAYS(call, err, what)                 \
	do {                                        \
		CHECK_ERR(call, err);               \
		CHECK_HAS(gmem_last_error(), what); \
	} while (0)

#endif
