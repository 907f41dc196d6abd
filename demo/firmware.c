/* SPDX-License-Identifier: MIT */
#include "firmware.h"

#include <stdint.h>
#include <string.h>

#define CFV_LEN 0x84000u
#define MR_EXTEND 1u

/* Appends the low `n` bytes of x, little-endian. */
static uint8_t *put(uint8_t *p, uint64_t x, int n)
{
	for (; n > 0; n--, x >>= 8)
		*p++ = (uint8_t)x;
	return p;
}

/* a-b-c-d-e: the first three groups little-endian, the others as they are written. */
static uint8_t *put_guid(uint8_t *p, uint32_t a, uint16_t b, uint16_t c, uint16_t d, uint64_t e)
{
	p = put(put(put(p, a, 4), b, 2), c, 2);
	p = put(put(p, d >> 8, 1), d, 1);
	for (int shift = 40; shift >= 0; shift -= 8)
		p = put(p, e >> shift, 1);
	return p;
}

/* gpa, length, type 1 (SNP_SEC_MEM) */
static uint8_t *put_sev(uint8_t *p, uint32_t gpa, uint32_t len)
{
	return put(put(put(p, gpa, 4), len, 4), 1, 4);
}

static uint8_t *put_tdvf(uint8_t *p, uint32_t off, uint32_t raw_len, uint64_t gpa, uint64_t len, uint32_t type,
			 uint32_t attr)
{
	p = put(put(p, off, 4), raw_len, 4);
	p = put(put(p, gpa, 8), len, 8);
	return put(put(p, type, 4), attr, 4);
}

/* Signature, length of it all, version 1, number of sections. */
static uint8_t *put_header(uint8_t *p, const char *signature, uint32_t nsections, uint32_t section_len)
{
	memcpy(p, signature, 4);
	return put(put(put(p + 4, 16 + nsections * section_len, 4), 1, 4), nsections, 4);
}

static void put_table(uint8_t *end)
{
	/* Three entries of 4 bytes, and the footer, which counts itself. */
	uint8_t *p = end - (3 * 22 + 18);

	p = put(put(p, DEMO_FIRMWARE_TDVF, 4), 22, 2);
	p = put_guid(p, 0xe47a6535, 0x984a, 0x4798, 0x865e, 0x4685a7bf8ec2);
	p = put(put(p, DEMO_FIRMWARE_SEV, 4), 22, 2);
	p = put_guid(p, 0xdc886566, 0x984a, 0x4798, 0xa75e, 0x5585a7bf67cc);
	p = put(put(p, 0x80b004, 4), 22, 2);
	p = put_guid(p, 0x00f771de, 0x1a7e, 0x4fcb, 0x890e, 0x68c77e2fb44e);
	p = put(p, 3 * 22 + 18, 2);
	put_guid(p, 0x96b582de, 0x1fb2, 0x45f7, 0xbaea, 0xa366c55a082d);
}

void demo_firmware_build(void *buf)
{
	uint8_t *image = buf, *end = image + DEMO_FIRMWARE_LEN, *p;

	for (uint32_t page = 0; page < DEMO_FIRMWARE_PAGES; page++) {
		for (uint32_t w = page * 1024; w < (page + 1) * 1024; w++)
			put(image + 4 * w, page % 16 == 5 ? 0 : w * 2654435761u + 97, 4);
	}
	p = put_header(end - DEMO_FIRMWARE_SEV, "ASEV", 2, 12);
	p = put_sev(p, 0x800000, 0x9000);
	put_sev(p, 0x80f000, 0x11000);
	put_guid(end - DEMO_FIRMWARE_TDVF - 16, 0xe9eaf9f3, 0x168e, 0x44d5, 0xa8eb, 0x7f4d8738f6ae);
	p = put_header(end - DEMO_FIRMWARE_TDVF, "TDVF", 4, 32);
	p = put_tdvf(p, CFV_LEN, DEMO_FIRMWARE_LEN - CFV_LEN, DEMO_FIRMWARE_GPA + CFV_LEN, DEMO_FIRMWARE_LEN - CFV_LEN,
		     0, MR_EXTEND);
	p = put_tdvf(p, 0, CFV_LEN, DEMO_FIRMWARE_GPA, CFV_LEN, 1, 0);
	p = put_tdvf(p, 0, 0, 0x810000, 0x10000, 3, 0);
	put_tdvf(p, 0, 0, 0x809000, 0x2000, 2, 0);
	put_table(end - DEMO_FIRMWARE_TABLE_END);
}
