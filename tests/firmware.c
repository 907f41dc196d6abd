/* SPDX-License-Identifier: MIT */
/* The firmware parser: a good image, one damaged in each way there is a check for, and images damaged at random. */
#include "tap.h"

#include "../demo/firmware.h"
#include "base/le.h"
#include "base/range.h"
#include "launch/firmware/firmware.h"
#include "launch_util.h"

#define MAX GMEM_FIRMWARE_MAX_SECTIONS
#define CFV_LEN 0x84000u
#define BFV_LEN (DEMO_FIRMWARE_LEN - CFV_LEN)

/* Offsets from the image's end: the footer's length, and the data and the length of the entries before it. */
#define FOOTER_LEN (DEMO_FIRMWARE_TABLE_END + 18)
#define ENTRY(i) (FOOTER_LEN + 22 * (i)) /* 1: reset block, 2: SEV, 3: TDX */
#define ENTRY_LEN(i) (ENTRY(i) - 4)
#define ENTRY_GUID(i) (ENTRY(i) - 6)
#define SEV(off) (DEMO_FIRMWARE_SEV - (off))
#define SEV_SECTION(i, off) SEV(16 + 12 * (i) + (off))
#define TDVF(off) (DEMO_FIRMWARE_TDVF - (off))
#define TDVF_SECTION(i, off) TDVF(16 + 32 * (i) + (off))
/* All tables lie in this many bytes at the end. */
#define TABLES (DEMO_FIRMWARE_SEV + 0x40)

enum which { SEV_META, TDVF_META };

static uint8_t *new_firmware(void)
{
	uint8_t *image = malloc(DEMO_FIRMWARE_LEN);

	CHECK(image);
	demo_firmware_build(image);
	return image;
}

static int parse(enum which which, const uint8_t *image, size_t len, size_t max)
{
	struct gmem_sev_section sev[MAX];
	struct gmem_tdvf_section tdvf[MAX];
	int n = which == SEV_META ? gmem_firmware_sev(image, len, sev, max) : gmem_firmware_tdvf(image, len, tdvf, max);

	for (int i = 0; i < n; i++) {
		if (which == SEV_META) {
			CHECK(gmem_page_aligned(sev[i].gpa | sev[i].len) && sev[i].len);
			CHECK(sev[i].gpa + sev[i].len <= UINT64_C(1) << 32);
		} else {
			CHECK(gmem_page_aligned(tdvf[i].gpa | tdvf[i].len));
			CHECK(tdvf[i].gpa <= UINT64_MAX - tdvf[i].len && tdvf[i].raw_len <= tdvf[i].len);
			CHECK(gmem_range_inside(tdvf[i].off, tdvf[i].raw_len, len));
		}
	}
	return n;
}

/* The same from memory of exactly that length, not aligned, so that the address sanitizer sees every byte too many. */
static int parse_copy(enum which which, const uint8_t *image, size_t len)
{
	uint8_t *raw = malloc(len + 1);
	int n;

	CHECK(raw);
	memcpy(raw + 1, image, len);
	n = parse(which, raw + 1, len, MAX);
	free(raw);
	return n;
}

static bool known_outcome(int n)
{
	return (n >= 0 && n <= (int)MAX) || n == -ENOENT || n == -EBADMSG || n == -EPROTONOSUPPORT || n == -ENOSPC;
}

TEST(good_image)
{
	static const struct gmem_sev_section want_sev[] = { { 0x800000, 0x9000, GMEM_SEV_SECTION_MEM },
							    { 0x80f000, 0x11000, GMEM_SEV_SECTION_MEM } };
	static const struct gmem_tdvf_section want_tdvf[] = {
		{ CFV_LEN, BFV_LEN, DEMO_FIRMWARE_GPA + CFV_LEN, BFV_LEN, GMEM_TDVF_SECTION_BFV, GMEM_TDVF_MR_EXTEND },
		{ 0, CFV_LEN, DEMO_FIRMWARE_GPA, CFV_LEN, GMEM_TDVF_SECTION_CFV, 0 },
		{ 0, 0, 0x810000, 0x10000, GMEM_TDVF_SECTION_TEMP_MEM, 0 },
		{ 0, 0, 0x809000, 0x2000, GMEM_TDVF_SECTION_TD_HOB, 0 },
	};
	struct gmem_tdvf_section tdvf[4];
	struct gmem_sev_section sev[2];
	uint8_t *image = new_firmware();

	CHECK_EQ(gmem_firmware_sev(image, DEMO_FIRMWARE_LEN, sev, 2), 2);
	for (int i = 0; i < 2; i++) {
		CHECK_EQ(sev[i].gpa, want_sev[i].gpa);
		CHECK_EQ(sev[i].len, want_sev[i].len);
		CHECK_EQ(sev[i].type, want_sev[i].type);
	}
	CHECK_EQ(gmem_firmware_tdvf(image, DEMO_FIRMWARE_LEN, tdvf, 4), 4);
	for (int i = 0; i < 4; i++) {
		CHECK_EQ(tdvf[i].off, want_tdvf[i].off);
		CHECK_EQ(tdvf[i].raw_len, want_tdvf[i].raw_len);
		CHECK_EQ(tdvf[i].gpa, want_tdvf[i].gpa);
		CHECK_EQ(tdvf[i].len, want_tdvf[i].len);
		CHECK_EQ(tdvf[i].type, want_tdvf[i].type);
		CHECK_EQ(tdvf[i].attr, want_tdvf[i].attr);
	}
	CHECK_ERR(gmem_firmware_sev(image, DEMO_FIRMWARE_LEN, sev, 1), -ENOSPC);
	CHECK_ERR(gmem_firmware_sev(image, DEMO_FIRMWARE_LEN, NULL, 0), -ENOSPC);
	CHECK_ERR(gmem_firmware_tdvf(image, DEMO_FIRMWARE_LEN, tdvf, 3), -ENOSPC);
	CHECK_ERR(gmem_firmware_sev(NULL, DEMO_FIRMWARE_LEN, sev, 2), -EINVAL);
	CHECK_ERR(gmem_firmware_sev(image, DEMO_FIRMWARE_LEN, NULL, 2), -EINVAL);
	CHECK_ERR(gmem_firmware_tdvf(NULL, DEMO_FIRMWARE_LEN, tdvf, 4), -EINVAL);
	CHECK_ERR(gmem_firmware_tdvf(image, DEMO_FIRMWARE_LEN, NULL, 4), -EINVAL);
	CHECK_EQ(parse_copy(SEV_META, image, DEMO_FIRMWARE_LEN), 2);
	CHECK_EQ(parse_copy(TDVF_META, image, DEMO_FIRMWARE_LEN), 4);
	free(image);
}

struct patch {
	unsigned int from_end;
	int width; /* bytes; 0: no patch */
	uint64_t value;
};

struct damage {
	const char *what;
	enum which which;
	struct patch patch[2];
	int err; /* or the number of sections */
	const char *text;
};

static const struct damage damages[] = {
	/* The GUID table */
	{ "no footer", SEV_META, { { FOOTER_LEN - 2, 1, 0 } }, -ENOENT, "no GUID table" },
	{ "table shorter than its footer",
	  SEV_META,
	  { { FOOTER_LEN, 2, 17 } },
	  -EBADMSG,
	  "offset 0x3fffce: a GUID table" },
	{ "only a footer",
	  SEV_META,
	  { { FOOTER_LEN, 2, 18 } },
	  -ENOENT,
	  "no dc886566-984a-4798-a75e-5585a7bf67cc (SEV metadata)" },
	{ "no room for an entry", SEV_META, { { FOOTER_LEN, 2, 18 + 17 } }, -EBADMSG, "17 bytes of the GUID table" },
	{ "table ends inside an entry", SEV_META, { { FOOTER_LEN, 2, 18 + 21 } }, -EBADMSG, "entry of 22 bytes" },
	{ "entry of length 0", SEV_META, { { ENTRY_LEN(1), 2, 0 } }, -EBADMSG, "entry of 0 bytes" },
	{ "entry shorter than its tail", TDVF_META, { { ENTRY_LEN(1), 2, 17 } }, -EBADMSG, "entry of 17 bytes" },
	{ "entry longer than the table", TDVF_META, { { ENTRY_LEN(1), 2, 67 } }, -EBADMSG, "entry of 67 bytes" },
	{ "other damage than its own", SEV_META, { { ENTRY_LEN(3), 2, 0 } }, -EBADMSG, "entry of 0 bytes" },
	{ "no SEV entry",
	  SEV_META,
	  { { ENTRY_GUID(2), 1, 0 } },
	  -ENOENT,
	  "no dc886566-984a-4798-a75e-5585a7bf67cc (SEV metadata)" },
	{ "no TDX entry",
	  TDVF_META,
	  { { ENTRY_GUID(3), 1, 0 } },
	  -ENOENT,
	  "no e47a6535-984a-4798-865e-4685a7bf8ec2 (TDX metadata)" },
	{ "SEV with no TDX entry", SEV_META, { { ENTRY_GUID(3), 1, 0 } }, 2, NULL },
	{ "entry without data",
	  TDVF_META,
	  { { ENTRY_LEN(3), 2, 18 }, { FOOTER_LEN, 2, 80 } },
	  -EBADMSG,
	  "(TDX metadata) has 0 bytes of data, not 4" },
	{ "metadata at the end", SEV_META, { { ENTRY(2), 4, 15 } }, -EBADMSG, "begins 0xf bytes before the end" },
	{ "metadata before the image",
	  SEV_META,
	  { { ENTRY(2), 4, DEMO_FIRMWARE_LEN + 1 } },
	  -EBADMSG,
	  "0x400001 bytes" },
	{ "metadata far before it", TDVF_META, { { ENTRY(3), 4, UINT32_MAX } }, -EBADMSG, "0xffffffff bytes before" },
	/* The headers */
	{ "signature", SEV_META, { { SEV(0), 4, 0 } }, -EBADMSG, "offset 0x3ffc00: the SEV metadata does not begin" },
	{ "signature", TDVF_META, { { TDVF(3), 1, 'G' } }, -EBADMSG, "with \"TDVF\"" },
	{ "version", SEV_META, { { SEV(8), 4, 2 } }, -EPROTONOSUPPORT, "version 2; 1 is known" },
	{ "version", TDVF_META, { { TDVF(8), 4, 0 } }, -EPROTONOSUPPORT, "version 0; 1 is known" },
	{ "length", SEV_META, { { SEV(4), 4, 41 } }, -EBADMSG, "41 bytes of SEV metadata for 2 sections" },
	{ "length", TDVF_META, { { TDVF(4), 4, 16 } }, -EBADMSG, "16 bytes of TDX metadata for 4 sections" },
	{ "number", SEV_META, { { SEV(12), 4, 3 } }, -EBADMSG, "for 3 sections" },
	{ "number whose length wraps",
	  SEV_META,
	  { { SEV(12), 4, 0x55555556 }, { SEV(4), 4, 24 } },
	  -EBADMSG,
	  "24 bytes" },
	{ "number whose length wraps",
	  TDVF_META,
	  { { TDVF(12), 4, 1u << 27 }, { TDVF(4), 4, 16 } },
	  -EBADMSG,
	  "16 bytes" },
	{ "beyond the end", SEV_META, { { SEV(12), 4, 85 }, { SEV(4), 4, 16 + 85 * 12 } }, -EBADMSG, "has 1024" },
	{ "too many", SEV_META, { { SEV(12), 4, 65 }, { SEV(4), 4, 16 + 65 * 12 } }, -ENOSPC, "65 sections" },
	{ "no section", SEV_META, { { SEV(12), 4, 0 }, { SEV(4), 4, 16 } }, 0, NULL },
	{ "no section", TDVF_META, { { TDVF(12), 4, 0 }, { TDVF(4), 4, 16 } }, -EBADMSG, "0 TD_HOB" },
	/* SEV sections */
	{ "gpa",
	  SEV_META,
	  { { SEV_SECTION(0, 0), 4, 0x800800 } },
	  -EBADMSG,
	  "offset 0x3ffc10: section 0: gpa 0x800800" },
	{ "size", SEV_META, { { SEV_SECTION(1, 4), 4, 0x11001 } }, -EBADMSG, "section 1: gpa 0x80f000, 0x11001 bytes" },
	{ "size 0", SEV_META, { { SEV_SECTION(1, 4), 4, 0 } }, -EBADMSG, "section 1 is empty" },
	{ "wraps", SEV_META, { { SEV_SECTION(1, 0), 4, 0xffff0000 } }, -EBADMSG, "beyond the address space" },
	{ "ends at 4 GiB", SEV_META, { { SEV_SECTION(1, 0), 4, 0xfffef000 } }, 2, NULL },
	{ "overlap", SEV_META, { { SEV_SECTION(1, 0), 4, 0x808000 } }, -EBADMSG, "section 1 overlaps section 0" },
	{ "side by side", SEV_META, { { SEV_SECTION(1, 0), 4, 0x809000 } }, 2, NULL },
	{ "type 0", SEV_META, { { SEV_SECTION(0, 8), 4, 0 } }, -EBADMSG, "section 0: unknown type 0x0" },
	{ "type 5", SEV_META, { { SEV_SECTION(0, 8), 4, 5 } }, -EBADMSG, "section 0: unknown type 0x5" },
	{ "secrets of two pages",
	  SEV_META,
	  { { SEV_SECTION(0, 4), 4, 0x2000 }, { SEV_SECTION(0, 8), 4, 2 } },
	  -EBADMSG,
	  "section 0: 0x2000 bytes of type 2, not one page" },
	{ "CPUID of 17 pages", SEV_META, { { SEV_SECTION(1, 8), 4, 3 } }, -EBADMSG, "of type 3, not one page" },
	{ "secrets", SEV_META, { { SEV_SECTION(0, 4), 4, 0x1000 }, { SEV_SECTION(0, 8), 4, 2 } }, 2, NULL },
	{ "types", SEV_META, { { SEV_SECTION(0, 8), 4, 0x10 }, { SEV_SECTION(1, 8), 4, 4 } }, 2, NULL },
	/* TDVF sections: 0 BFV, 1 CFV, 2 TEMP_MEM, 3 TD_HOB */
	{ "gpa", TDVF_META, { { TDVF_SECTION(2, 8), 8, 0x810010 } }, -EBADMSG, "section 2: gpa 0x810010" },
	{ "size", TDVF_META, { { TDVF_SECTION(2, 16), 8, 0x10800 } }, -EBADMSG, "0x10800 bytes: not whole pages" },
	{ "wraps",
	  TDVF_META,
	  { { TDVF_SECTION(2, 8), 8, UINT64_MAX - 0xffff } },
	  -EBADMSG,
	  "beyond the address space" },
	{ "wraps",
	  TDVF_META,
	  { { TDVF_SECTION(3, 16), 8, UINT64_MAX - 0xfff } },
	  -EBADMSG,
	  "beyond the address space" },
	{ "raw beyond",
	  TDVF_META,
	  { { TDVF_SECTION(0, 0), 4, CFV_LEN + 1 } },
	  -EBADMSG,
	  "section 0: its 0x37c000 bytes at" },
	{ "raw wraps", TDVF_META, { { TDVF_SECTION(0, 0), 4, UINT32_MAX } }, -EBADMSG, "are not inside the image" },
	{ "raw < memory",
	  TDVF_META,
	  { { TDVF_SECTION(1, 4), 4, 0x83000 } },
	  -EBADMSG,
	  "section 1: a firmware volume of" },
	{ "raw > memory",
	  TDVF_META,
	  { { TDVF_SECTION(1, 16), 8, 0x83000 } },
	  -EBADMSG,
	  "section 1: a firmware volume of" },
	{ "no raw",
	  TDVF_META,
	  { { TDVF_SECTION(1, 4), 4, 0 } },
	  -EBADMSG,
	  "section 1: a firmware volume of 0x0 bytes" },
	{ "empty",
	  TDVF_META,
	  { { TDVF_SECTION(1, 4), 4, 0 }, { TDVF_SECTION(1, 16), 8, 0 } },
	  -EBADMSG,
	  "volume of 0x0" },
	{ "raw of HOB",
	  TDVF_META,
	  { { TDVF_SECTION(3, 4), 4, 16 } },
	  -EBADMSG,
	  "section 3: 0x10 bytes for memory that" },
	{ "raw of memory",
	  TDVF_META,
	  { { TDVF_SECTION(2, 4), 4, 1 } },
	  -EBADMSG,
	  "section 2: 0x1 bytes for memory that" },
	{ "payload", TDVF_META, { { TDVF_SECTION(1, 4), 4, 0x83001 }, { TDVF_SECTION(1, 24), 4, 5 } }, 4, NULL },
	{ "raw > memory",
	  TDVF_META,
	  { { TDVF_SECTION(1, 16), 8, 0x83000 }, { TDVF_SECTION(1, 24), 4, 5 } },
	  -EBADMSG,
	  "section 1: 0x84000 bytes for 0x83000 of memory" },
	{ "overlap", TDVF_META, { { TDVF_SECTION(3, 8), 8, 0x81f000 } }, -EBADMSG, "section 3 overlaps section 2" },
	{ "no HOB", TDVF_META, { { TDVF_SECTION(3, 24), 4, 3 } }, -EBADMSG, "0 TD_HOB sections" },
	{ "two HOBs", TDVF_META, { { TDVF_SECTION(2, 24), 4, 2 } }, -EBADMSG, "2 TD_HOB sections" },
	{ "no BFV", TDVF_META, { { TDVF_SECTION(0, 24), 4, 1 } }, -EBADMSG, "no BFV" },
	{ "two BFVs", TDVF_META, { { TDVF_SECTION(1, 24), 4, 0 } }, 4, NULL },
	{ "type", TDVF_META, { { TDVF_SECTION(2, 24), 4, 8 } }, -EBADMSG, "section 2: unknown type 8" },
	{ "attributes", TDVF_META, { { TDVF_SECTION(2, 28), 4, 4 } }, -EBADMSG, "section 2: unknown attributes 0x4" },
	{ "PAGE_AUG", TDVF_META, { { TDVF_SECTION(2, 28), 4, 2 } }, 4, NULL },
	{ "PAGE_AUG measured", TDVF_META, { { TDVF_SECTION(2, 28), 4, 3 } }, -EBADMSG, "measured, yet not part" },
};

TEST(each_damage_is_named)
{
	uint8_t *image = new_firmware(), *end = image + DEMO_FIRMWARE_LEN, tables[TABLES];

	memcpy(tables, end - TABLES, TABLES);
	for (size_t i = 0; i < sizeof(damages) / sizeof(damages[0]); i++) {
		const struct damage *d = &damages[i];
		int n;

		for (int j = 0; j < 2; j++)
			for (int k = 0; k < d->patch[j].width; k++)
				(end - d->patch[j].from_end)[k] = (uint8_t)(d->patch[j].value >> 8 * k);
		gmem_err(0, "%s", "");
		n = parse(d->which, image, DEMO_FIRMWARE_LEN, MAX);
		if (n != d->err || (d->text && !strstr(gmem_last_error(), d->text)))
			FAIL("damage %zu, %s: %d, not %d; \"%s\", not \"%s\"", i, d->what, n, d->err, gmem_last_error(),
			     d->text ? d->text : "");
		memcpy(end - TABLES, tables, TABLES);
	}
	free(image);
}

TEST(a_guid_twice_in_the_table_is_refused)
{
	uint8_t *image = new_firmware(), *end = image + DEMO_FIRMWARE_LEN;

	memcpy(end - ENTRY(1), end - ENTRY(2), 22);
	CHECK_ERR(parse(SEV_META, image, DEMO_FIRMWARE_LEN, MAX), -EBADMSG);
	CHECK_HAS(gmem_last_error(), "(SEV metadata) is twice");
	CHECK_EQ(parse(TDVF_META, image, DEMO_FIRMWARE_LEN, MAX), 4);
	free(image);
}

/* The longest table there can be, its one entry as long as the table. */
TEST(table_of_64_kib)
{
	uint8_t *image = new_firmware(), *end = image + DEMO_FIRMWARE_LEN;

	gmem_put_le16(end - FOOTER_LEN, 0xffff);
	gmem_put_le16(end - ENTRY_LEN(1), 0xffff - 18);
	CHECK_ERR(parse(SEV_META, image, DEMO_FIRMWARE_LEN, MAX), -ENOENT);
	CHECK_ERR(parse_copy(SEV_META, end - 0xffff - DEMO_FIRMWARE_TABLE_END, 0xffff + DEMO_FIRMWARE_TABLE_END),
		  -ENOENT);
	CHECK_ERR(parse_copy(SEV_META, end - 0xffff, 0xffff), -EBADMSG);
	free(image);
}

TEST(truncated_images)
{
	uint8_t *image = new_firmware(), *end = image + DEMO_FIRMWARE_LEN;

	for (size_t len = 0; len <= TABLES; len++) {
		/* The front is missing. */
		int sev = parse_copy(SEV_META, end - len, len), tdvf = parse_copy(TDVF_META, end - len, len);

		CHECK_EQ(sev, len < FOOTER_LEN ? -ENOENT : len < DEMO_FIRMWARE_SEV ? -EBADMSG : 2);
		/* Never good: the volumes are not there. */
		CHECK_EQ(tdvf, len < FOOTER_LEN ? -ENOENT : -EBADMSG);
		/* The end is missing, and with it the footer. */
		if (len) {
			CHECK_EQ(parse(SEV_META, image, DEMO_FIRMWARE_LEN - len, MAX), -ENOENT);
			CHECK_EQ(parse(TDVF_META, image, DEMO_FIRMWARE_LEN - len, MAX), -ENOENT);
			CHECK_EQ(parse_copy(SEV_META, end - TABLES, TABLES - len), -ENOENT);
		}
	}
	free(image);
}

/* What is missing in front is the variable store, no more and no less: only then it is the code alone. */
TEST(code_without_its_variables)
{
	uint8_t *image = new_firmware(), *end = image + DEMO_FIRMWARE_LEN;

	CHECK_EQ(parse_copy(SEV_META, image + CFV_LEN, BFV_LEN), 2);
	CHECK_ERR(parse_copy(TDVF_META, image + CFV_LEN, BFV_LEN), -EBADMSG);
	CHECK_HAS(gmem_last_error(), "offset 0x37bd10: the sections end 0x84000 bytes past the image's end");
	CHECK_HAS(gmem_last_error(), "OVMF_CODE.fd");
	CHECK_ERR(parse_copy(TDVF_META, image + CFV_LEN + 1, BFV_LEN - 1), -EBADMSG);
	CHECK_HAS(gmem_last_error(), "section 0: its 0x37c000 bytes at 0x84000 are not inside the image of 0x37bfff");
	CHECK_ERR(parse_copy(TDVF_META, image + CFV_LEN - 1, BFV_LEN + 1), -EBADMSG);
	CHECK_HAS(gmem_last_error(), "are not inside the image of 0x37c001");
	/* With no variable store to miss, or one that is not in front. */
	gmem_put_le32(end - TDVF_SECTION(1, 0), 1);
	CHECK_ERR(parse_copy(TDVF_META, image + CFV_LEN, BFV_LEN), -EBADMSG);
	CHECK_HAS(gmem_last_error(), "are not inside the image");
	gmem_put_le32(end - TDVF_SECTION(1, 0), 0);
	gmem_put_le32(end - TDVF_SECTION(1, 24), GMEM_TDVF_SECTION_PAYLOAD);
	CHECK_ERR(parse_copy(TDVF_META, image + CFV_LEN, BFV_LEN), -EBADMSG);
	CHECK_HAS(gmem_last_error(), "are not inside the image");
	free(image);
}

TEST(random_damage_never_crashes)
{
	uint8_t *image = new_firmware(), *end = image + DEMO_FIRMWARE_LEN, tables[TABLES];
	/* Exactly what the tables need: a read before its first byte is seen. */
	uint8_t *small = malloc(DEMO_FIRMWARE_SEV);
	uint64_t seed = tap_seed();
	unsigned int good = 0, rounds = tap_slow() ? 5000 : 50000;

	memcpy(tables, end - TABLES, TABLES);
	for (unsigned int i = 0; i < rounds; i++) {
		for (uint64_t n = 1 + tap_rand(&seed) % 4; n; n--) {
			uint64_t where = tap_rand(&seed) % TABLES;

			/* One bit, or any byte. */
			end[-1 - (ptrdiff_t)where] ^=
				(uint8_t)(tap_rand(&seed) & 1 ? 1u << tap_rand(&seed) % 8 : tap_rand(&seed));
		}
		for (enum which w = SEV_META; w <= TDVF_META; w++) {
			int n = parse(w, image, DEMO_FIRMWARE_LEN, MAX);

			CHECK(known_outcome(n));
			good += n >= 0;
			memcpy(small, end - DEMO_FIRMWARE_SEV, DEMO_FIRMWARE_SEV);
			CHECK(known_outcome(parse(w, small, DEMO_FIRMWARE_SEV, MAX)));
		}
		memcpy(end - TABLES, tables, TABLES);
	}
	/* Damage where nothing is does not matter: most of these bytes are not looked at. */
	CHECK(good > rounds / 10 && good < 2 * rounds);
	free(small);
	free(image);
}

TEST(ovmf)
{
	size_t len;
	uint8_t *image = read_firmware("/usr/share/ovmf/OVMF.fd", &len);
	int n = parse(SEV_META, image, len, MAX);

	/* Newer packages have 4 MiB here, and whether these carry metadata is the distribution's choice. */
	if (n == -ENOENT) {
		free(image);
		SKIP("ovmf", "%s", gmem_last_error());
	}
	CHECK(n >= 3);
	n = parse(TDVF_META, image, len, MAX);
	CHECK(n >= 4 || n == -ENOENT);
	free(image);
}

/* The code without its variables: its TDX metadata speaks of bytes it does not have. */
TEST(ovmf_code_alone_is_no_tdx_image)
{
	static const char *const paths[] = { "/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_CODE.secboot.fd",
					     "/usr/share/OVMF/OVMF_CODE_4M.fd" };
	unsigned int tried = 0;

	for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
		uint8_t *image;
		size_t len;
		int n;

		if (access(paths[i], R_OK))
			continue;
		image = read_firmware(paths[i], &len);
		n = parse(TDVF_META, image, len, MAX);
		CHECK(n == -EBADMSG || n == -ENOENT);
		free(image);
		tried++;
	}
	if (!tried)
		SKIP("ovmf", "%s: %s; Debian's package ovmf has it", paths[0], strerror(ENOENT));
}
