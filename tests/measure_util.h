/* SPDX-License-Identifier: MIT */
/* Firmware images with whatever tables a case wants, and guests to be measured. Included after tap.h. */
#ifndef GMEM_TESTS_MEASURE_UTIL_H
#define GMEM_TESTS_MEASURE_UTIL_H

#include "base/le.h"
#include "launch/firmware/firmware.h"
#include "launch_util.h"

#define HEX_LEN (2 * GMEM_LAUNCH_DIGEST_LEN)

struct image_tables {
	struct gmem_sev_section sev[8];
	unsigned int nsev;
	struct gmem_tdvf_section tdvf[8];
	unsigned int ntdvf;
	uint32_t reset_eip; /* 0: no such block */
	struct gmem_firmware_area hashes; /* gpa 0: no such block */
	uint32_t svsm_entry; /* 0: no such block */
};

/* A GUID is written as people do, without its dashes. */
static inline void put_guid(uint8_t *at, const char *hex)
{
	static const uint8_t order[16] = { 3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15 };

	for (unsigned int i = 0; i < 16; i++) {
		unsigned int byte;

		CHECK_EQ(sscanf(hex + 2 * i, "%2x", &byte), 1);
		at[order[i]] = (uint8_t)byte;
	}
}

/* Puts a table entry of `n` 32-bit words before `at`; returns where it begins. */
static inline uint8_t *put_entry(uint8_t *at, const char *guid, unsigned int n, const uint32_t *words)
{
	put_guid(at - 16, guid);
	gmem_put_le16(at - 18, (uint16_t)(18 + 4 * n));
	at -= 18 + 4 * n;
	for (unsigned int i = 0; i < n; i++)
		gmem_put_le32(at + 4 * i, words[i]);
	return at;
}

/* Writes the tables over the end of an image; they take less than a page. */
static inline void put_tables(uint8_t *image, size_t len, const struct image_tables *t)
{
	uint8_t *footer = image + len - 32 - 18, *at = footer, *end = image + len;
	const uint32_t sev_at = 0x400, tdvf_at = 0x300;

	CHECK(len >= 4096);
	if (t->reset_eip)
		at = put_entry(at, "00f771de1a7e4fcb890e68c77e2fb44e", 1, &t->reset_eip);
	if (t->hashes.gpa) {
		const uint32_t area[2] = { (uint32_t)t->hashes.gpa, (uint32_t)t->hashes.len };

		at = put_entry(at, "7255371f3a3b4b04927b1da6efa8d454", 2, area);
	}
	if (t->svsm_entry)
		at = put_entry(at, "a789a61205974c4ba49fcbb1fe9d1ddd", 1, &t->svsm_entry);
	if (t->nsev)
		at = put_entry(at, "dc886566984a4798a75e5585a7bf67cc", 1, &sev_at);
	if (t->ntdvf)
		at = put_entry(at, "e47a6535984a4798865e4685a7bf8ec2", 1, &tdvf_at);
	put_guid(footer + 2, "96b582de1fb245f7baeaa366c55a082d");
	gmem_put_le16(footer, (uint16_t)(footer - at + 18));
	if (t->nsev) {
		memcpy(end - sev_at, "ASEV", 4);
		gmem_put_le32(end - sev_at + 4, 16 + 12 * t->nsev);
		gmem_put_le32(end - sev_at + 8, 1);
		gmem_put_le32(end - sev_at + 12, t->nsev);
	}
	for (unsigned int i = 0; i < t->nsev; i++) {
		uint8_t *s = end - sev_at + 16 + 12 * i;

		gmem_put_le32(s, (uint32_t)t->sev[i].gpa);
		gmem_put_le32(s + 4, (uint32_t)t->sev[i].len);
		gmem_put_le32(s + 8, t->sev[i].type);
	}
	if (t->ntdvf) {
		memcpy(end - tdvf_at, "TDVF", 4);
		gmem_put_le32(end - tdvf_at + 4, 16 + 32 * t->ntdvf);
		gmem_put_le32(end - tdvf_at + 8, 1);
		gmem_put_le32(end - tdvf_at + 12, t->ntdvf);
	}
	for (unsigned int i = 0; i < t->ntdvf; i++) {
		uint8_t *s = end - tdvf_at + 16 + 32 * i;

		gmem_put_le32(s, (uint32_t)t->tdvf[i].off);
		gmem_put_le32(s + 4, (uint32_t)t->tdvf[i].raw_len);
		gmem_put_le64(s + 8, t->tdvf[i].gpa);
		gmem_put_le64(s + 16, t->tdvf[i].len);
		gmem_put_le32(s + 24, t->tdvf[i].type);
		gmem_put_le32(s + 28, t->tdvf[i].attr);
	}
}

/* Bytes that a formula gives; some pages are zero. */
static inline uint8_t *new_image(size_t len, uint64_t seed, const struct image_tables *t)
{
	uint8_t *image = malloc(len);

	CHECK(image);
	for (size_t at = 0; at < len; at += 8)
		gmem_put_le64(image + at, tap_rand(&seed));
	for (size_t at = 0; at < len; at += 4096)
		if (tap_rand(&seed) % 8 == 0)
			memset(image + at, 0, 4096);
	put_tables(image, len, t);
	return image;
}

/* A guest as QEMU launches it. */
static inline struct gmem_guest guest_of(const void *firmware, size_t len, uint32_t nvcpus)
{
	return (struct gmem_guest){ .size = sizeof(struct gmem_guest),
				    .firmware = firmware,
				    .firmware_len = len,
				    .nvcpus = nvcpus,
				    .signature = 0x800f12 };
}

/* By an object that is made for this guest alone. */
static inline void measure_afresh(enum gmem_vm_type type, const struct gmem_guest *guest,
				  uint8_t ret[GMEM_LAUNCH_DIGEST_LEN])
{
	struct gmem_measure *m;

	CHECK_OK(gmem_measure_create(type, guest, NULL, NULL, &m));
	CHECK_OK(gmem_measure_digest(m, guest, NULL, NULL, ret));
	gmem_measure_free(m);
}

static inline void unhex(const char *hex, uint8_t *ret, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		unsigned int byte;

		CHECK_EQ(sscanf(hex + 2 * i, "%2x", &byte), 1);
		ret[i] = (uint8_t)byte;
	}
}

#endif
