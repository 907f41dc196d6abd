/* SPDX-License-Identifier: MIT */
/* The blocks of a firmware's GUID table: vCPU's reset address, secret, kernel hashes, SVSM; and where images lie. */
#include "tap.h"

#include "base/range.h"
#include "firmware_util.h"

#define P GMEM_PAGE_SIZE
#define FOUR_GIB (UINT64_C(1) << 32)
#define MAX GMEM_FIRMWARE_MAX_SECTIONS
#define FOOTER "offset 0x3fce: " /* of every image here */

static int eip_of(const struct image *im, uint32_t *ret)
{
	return gmem_firmware_reset_eip(im->bytes, IMAGE_LEN, ret);
}

TEST(reset_address)
{
	struct image im;
	uint32_t eip = 7;

	image_init(&im);
	CHECK_SAYS(eip_of(&im, &eip), -ENOENT,
		   "gmem_firmware_reset_eip: " FOOTER "the GUID table has no " RESET_BLOCK " (SEV-ES reset block)");
	image_add(&im, SECRET_BLOCK, 2, 0x1000, 0x1000);
	image_add(&im, RESET_BLOCK, 1, 0x80b004);
	image_add(&im, HASH_TABLE, 2, 0, 0);
	CHECK_OK(eip_of(&im, &eip));
	CHECK_EQ(eip, 0x80b004);
	CHECK_ERR(gmem_firmware_reset_eip(NULL, IMAGE_LEN, &eip), -EINVAL);
	CHECK_ERR(gmem_firmware_reset_eip(im.bytes, IMAGE_LEN, NULL), -EINVAL);

	/* Once more, wherever: nobody can tell which counts. */
	image_add(&im, RESET_BLOCK, 1, 0x80b004);
	eip = 7;
	CHECK_SAYS(eip_of(&im, &eip), -EBADMSG, RESET_BLOCK " (SEV-ES reset block) is twice");
	image_init(&im);
	CHECK_EQ(image_add(&im, RESET_BLOCK, 1, 0), 0x3fb8);
	CHECK_SAYS(eip_of(&im, &eip), -EBADMSG, "offset 0x3fb8: the SEV-ES reset block has address 0");
	image_init(&im);
	image_add(&im, RESET_BLOCK, 2, 0x80b004, 0);
	CHECK_SAYS(eip_of(&im, &eip), -EBADMSG, "(SEV-ES reset block) has 8 bytes of data, not 4");
	image_init(&im);
	image_add(&im, RESET_BLOCK, 0);
	CHECK_SAYS(eip_of(&im, &eip), -EBADMSG, "(SEV-ES reset block) has 0 bytes of data, not 4");
	CHECK_EQ(eip, 7);
}

TEST(no_table_at_all)
{
	struct gmem_firmware_area area;
	struct gmem_sev_section s[1];
	struct image im;
	uint32_t eip;

	image_init(&im);
	im.bytes[IMAGE_LEN - 33] ^= 1;
	CHECK_SAYS(eip_of(&im, &eip), -ENOENT,
		   "offset 0x3fd0: no GUID table: there is no " TABLE_FOOTER
		   " (footer of the GUID table), and so no " RESET_BLOCK);
	CHECK_SAYS(gmem_firmware_sev(im.bytes, IMAGE_LEN, s, 1), -ENOENT, "no GUID table");
	CHECK_HAS(gmem_last_error(), SEV_METADATA);
	CHECK_SAYS(gmem_firmware_tdvf(im.bytes, IMAGE_LEN, NULL, 0), -ENOENT, TDX_METADATA);
	for (size_t len = 0; len < 50; len++)
		CHECK_SAYS(gmem_firmware_secret(im.bytes, len, &area), -ENOENT, "too short for a GUID table");
	CHECK_HAS(gmem_last_error(), SECRET_BLOCK);
}

TEST(neither_metadata_and_only_the_other)
{
	static const struct gmem_sev_section mem = { 0x800000, P, GMEM_SEV_SECTION_MEM };
	struct gmem_tdvf_section tdvf[1];
	struct gmem_sev_section sev[1];
	struct image im;

	image_init(&im);
	image_add(&im, RESET_BLOCK, 1, 0x80b004);
	CHECK_SAYS(gmem_firmware_sev(im.bytes, IMAGE_LEN, sev, 1), -ENOENT,
		   FOOTER "the GUID table has no " SEV_METADATA " (SEV metadata), nor " TDX_METADATA
			  " (TDX metadata): built for neither SEV-SNP nor TDX");
	CHECK_SAYS(gmem_firmware_tdvf(im.bytes, IMAGE_LEN, tdvf, 1), -ENOENT, "built for neither TDX nor SEV-SNP");
	image_add_sev(&im, &mem, 1);
	CHECK_EQ(gmem_firmware_sev(im.bytes, IMAGE_LEN, sev, 1), 1);
	CHECK_SAYS(gmem_firmware_tdvf(im.bytes, IMAGE_LEN, tdvf, 1), -ENOENT,
		   "has no " TDX_METADATA " (TDX metadata), only " SEV_METADATA
		   " (SEV metadata): built for SEV-SNP, not for TDX");
	/* The other one is of no use either. */
	image_add(&im, SEV_METADATA, 1, IMAGE_METADATA);
	CHECK_SAYS(gmem_firmware_tdvf(im.bytes, IMAGE_LEN, tdvf, 1), -ENOENT, "the GUID table has no " TDX_METADATA);
	CHECK_SAYS(gmem_firmware_sev(im.bytes, IMAGE_LEN, sev, 1), -EBADMSG, "is twice in the GUID table");
}

TEST(secret_and_hash_table)
{
	struct gmem_firmware_area area = { 7, 7 };
	struct image im;

	image_init(&im);
	CHECK_SAYS(gmem_firmware_secret(im.bytes, IMAGE_LEN, &area), -ENOENT, SECRET_BLOCK " (SEV secret block)");
	CHECK_SAYS(gmem_firmware_hash_table(im.bytes, IMAGE_LEN, &area), -ENOENT, HASH_TABLE " (SEV hash table)");
	CHECK_EQ(image_add(&im, SECRET_BLOCK, 2, 0xfffff400, 0xc01), 0x3fb4);
	CHECK_EQ(image_add(&im, HASH_TABLE, 2, 0x80fc00, 0x400), 0x3f9a);
	CHECK_SAYS(gmem_firmware_secret(im.bytes, IMAGE_LEN, &area), -EBADMSG,
		   "offset 0x3fb4: " SECRET_BLOCK
		   " (SEV secret block): 0xc01 bytes at gpa 0xfffff400 end beyond 4 GiB");
	CHECK(area.gpa == 7 && area.len == 7);
	CHECK_OK(gmem_firmware_hash_table(im.bytes, IMAGE_LEN, &area));
	CHECK(area.gpa == 0x80fc00 && area.len == 0x400);
	gmem_put_le32(im.bytes + 0x3fb4 + 4, 0xc00);
	CHECK_OK(gmem_firmware_secret(im.bytes, IMAGE_LEN, &area));
	CHECK(area.gpa == 0xfffff400 && area.len == 0xc00);
	/* As an SVSM has it: none. */
	gmem_put_le32(im.bytes + 0x3fb4, 0xdeadbeef);
	gmem_put_le32(im.bytes + 0x3fb4 + 4, 0);
	CHECK_OK(gmem_firmware_secret(im.bytes, IMAGE_LEN, &area));
	CHECK_EQ(area.len, 0);
	CHECK_ERR(gmem_firmware_secret(NULL, IMAGE_LEN, &area), -EINVAL);
	CHECK_ERR(gmem_firmware_secret(im.bytes, IMAGE_LEN, NULL), -EINVAL);
	image_init(&im);
	image_add(&im, SECRET_BLOCK, 1, 0x80f000);
	CHECK_SAYS(gmem_firmware_secret(im.bytes, IMAGE_LEN, &area), -EBADMSG, "has 4 bytes of data, not 8");
}

/* What is not said here is good. */
struct hashes {
	uint32_t gpa, len; /* of the table */
	struct gmem_sev_section s[2];
	uint32_t n;
	int err;
	const char *text; /* or where the table is in its page */
	uint32_t off;
};

#define HASHES GMEM_SEV_SECTION_KERNEL_HASHES

TEST(kernel_hashes)
{
	static const struct hashes cases[] = {
		{ 0x80fc00, 0x400, { { 0x800000, P, 1 }, { 0x80f000, P, HASHES } }, 2, 0, NULL, 0xc00 },
		{ 0x80f000, 176, { { 0x80f000, P, HASHES } }, 1, 0, NULL, 0 },
		{ 0x80ff50, 176, { { 0x80f000, P, HASHES } }, 1, 0, NULL, 0xf50 },
		{ 0x80f001, 177, { { 0x80f000, P, HASHES } }, 1, 0, NULL, 1 },
		{ 0xffffff50, 176, { { 0xfffff000, P, HASHES } }, 1, 0, NULL, 0xf50 },
		{ 0x80ff51, 176, { { 0x80f000, P, HASHES } }, 1, -EBADMSG, "gpa 0x80ff51 is not inside section 0", 0 },
		{ 0x80ffff, 0x400, { { 0x80f000, P, HASHES } }, 1, -EBADMSG, "the page at gpa 0x80f000", 0 },
		{ 0x80efff, 0x400, { { 0x80f000, P, HASHES } }, 1, -EBADMSG, "is not inside section 0", 0 },
		{ 0x810000, 0x400, { { 0x80f000, P, HASHES } }, 1, -EBADMSG, "is not inside section 0", 0 },
		{ 0xfffff000, 0x400, { { 0x80f000, P, HASHES } }, 1, -EBADMSG, "is not inside section 0", 0 },
		{ 0x80f000,
		  175,
		  { { 0x80f000, P, HASHES } },
		  1,
		  -EBADMSG,
		  "0xaf bytes for kernel hashes, which need 176",
		  0 },
		{ 0x80f000, 0x400, { { 0x80f000, 2 * P, HASHES } }, 1, -EBADMSG, "has 0x2000 bytes, not one page", 0 },
		{ 0xfffffff0, 0x400, { { 0xfffff000, P, HASHES } }, 1, -EBADMSG, "end beyond 4 GiB", 0 },
		{ 0x80f000,
		  0x400,
		  { { 0x80e000, P, HASHES }, { 0x80f000, P, HASHES } },
		  2,
		  -EBADMSG,
		  "sections 0 and 1 of the SEV metadata are both",
		  0 },
		{ 0x80f000,
		  0x400,
		  { { 0x80f000, P, 1 } },
		  1,
		  -ENOENT,
		  ": " SEV_METADATA " (SEV metadata) has no section for its hashes",
		  0 },
		{ 0,
		  0x400,
		  { { 0x80f000, P, HASHES } },
		  1,
		  -ENOENT,
		  HASH_TABLE " (SEV hash table) names no address",
		  0 },
		{ 0x80f000, 0, { { 0x80f000, P, HASHES } }, 1, -ENOENT, "names no address", 0 },
		{ 0,
		  0,
		  { { 0x80f000, P, 1 } },
		  1,
		  -ENOENT,
		  HASH_TABLE " (SEV hash table) names no address, and " SEV_METADATA " (SEV metadata) has no section",
		  0 },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const struct hashes *c = &cases[i];
		struct gmem_firmware_hashes h = { .section = 77 };
		struct gmem_sev_section s[MAX];
		struct image im;
		int n, err;

		image_init(&im);
		image_add_sev(&im, c->s, c->n);
		image_add(&im, HASH_TABLE, 2, c->gpa, c->len);
		n = (int)CHECK_OK(gmem_firmware_sev(im.bytes, IMAGE_LEN, s, MAX));
		err = gmem_firmware_kernel_hashes(im.bytes, IMAGE_LEN, s, (size_t)n, &h);
		if (err != c->err || (c->text && !strstr(gmem_last_error(), c->text)))
			FAIL("case %zu: %d, not %d; \"%s\", not \"%s\"", i, err, c->err, gmem_last_error(),
			     c->text ? c->text : "");
		if (err)
			CHECK_EQ(h.section, 77);
		else
			CHECK(h.section == c->n - 1 && h.gpa == c->s[h.section].gpa && h.off == c->off);
	}
}

TEST(kernel_hashes_of_a_firmware_without)
{
	static const struct gmem_sev_section s = { 0x80f000, P, HASHES };
	struct gmem_firmware_hashes h;
	struct image im;

	image_init(&im);
	image_add_sev(&im, &s, 1);
	CHECK_SAYS(gmem_firmware_kernel_hashes(im.bytes, IMAGE_LEN, &s, 1, &h), -ENOENT,
		   FOOTER "no kernel for this firmware: " HASH_TABLE " (SEV hash table) is not in the GUID table");
	CHECK_SAYS(gmem_firmware_kernel_hashes(im.bytes, IMAGE_LEN, NULL, 0, &h), -ENOENT, SEV_METADATA);
	CHECK_HAS(gmem_last_error(), HASH_TABLE);
	CHECK_SAYS(gmem_firmware_kernel_hashes(im.bytes, 40, &s, 1, &h), -ENOENT, HASH_TABLE);
	image_add(&im, HASH_TABLE, 2, 0x80f000, 0x400);
	CHECK_OK(gmem_firmware_kernel_hashes(im.bytes, IMAGE_LEN, &s, 1, &h));
	CHECK_ERR(gmem_firmware_kernel_hashes(NULL, IMAGE_LEN, &s, 1, &h), -EINVAL);
	CHECK_ERR(gmem_firmware_kernel_hashes(im.bytes, IMAGE_LEN, NULL, 1, &h), -EINVAL);
	CHECK_ERR(gmem_firmware_kernel_hashes(im.bytes, IMAGE_LEN, &s, 1, NULL), -EINVAL);
}

TEST(images_end_below_4_gib)
{
	uint64_t gpa = 7;

	CHECK_OK(gmem_firmware_gpa(0x200000, 0, &gpa));
	CHECK_EQ(gpa, 0xffe00000);
	/* An SVSM of 0x7e000 bytes below 0x20000 bytes of variables below 0x1e0000 bytes of firmware. */
	CHECK_OK(gmem_firmware_gpa(0x7e000, 0x20000 + 0x1e0000, &gpa));
	CHECK_EQ(gpa, 0xffd82000);
	CHECK_OK(gmem_firmware_gpa(P, FOUR_GIB - P, &gpa));
	CHECK_EQ(gpa, 0);
	CHECK_OK(gmem_firmware_gpa(FOUR_GIB, 0, &gpa));
	CHECK_EQ(gpa, 0);
	gpa = 7;
	CHECK_SAYS(gmem_firmware_gpa(0, 0, &gpa), -EINVAL, "not whole pages");
	CHECK_SAYS(gmem_firmware_gpa(P + 1, 0, &gpa), -EINVAL, "an image of 0x1001 bytes");
	CHECK_SAYS(gmem_firmware_gpa(P, 1, &gpa), -EINVAL, "not whole pages");
	CHECK_SAYS(gmem_firmware_gpa(P, FOUR_GIB, &gpa), -EINVAL, "do not fit below 4 GiB");
	CHECK_SAYS(gmem_firmware_gpa(FOUR_GIB, P, &gpa), -EINVAL, "do not fit below 4 GiB");
	CHECK_SAYS(gmem_firmware_gpa(FOUR_GIB + P, 0, &gpa), -EINVAL, "do not fit below 4 GiB");
	/* Sums that wrap. */
	CHECK_SAYS(gmem_firmware_gpa(UINT64_MAX - P + 1, P, &gpa), -EINVAL, "do not fit below 4 GiB");
	CHECK_SAYS(gmem_firmware_gpa(P, UINT64_MAX - P + 1, &gpa), -EINVAL, "do not fit below 4 GiB");
	CHECK_ERR(gmem_firmware_gpa(P, 0, NULL), -EINVAL);
	CHECK_EQ(gpa, 7);
}

TEST(sections_lie_beside_the_image)
{
	static const struct gmem_sev_section s[] = { { 0x800000, P, GMEM_SEV_SECTION_MEM },
						     { 0xffdff000, P, GMEM_SEV_SECTION_MEM } };

	CHECK_OK(gmem_firmware_apart(s, 2, 0xffe00000, 0x200000));
	CHECK_OK(gmem_firmware_apart(s, 2, 0xffdfe000, P));
	CHECK_OK(gmem_firmware_apart(NULL, 0, 0xffe00000, 0x200000));
	CHECK_SAYS(gmem_firmware_apart(s, 2, 0xffdff000, 0x201000), -EBADMSG,
		   "section 1 of the SEV metadata, gpa 0xffdff000, 0x1000 bytes: overlaps the image of 0x201000 bytes");
	CHECK_SAYS(gmem_firmware_apart(s, 1, 0, FOUR_GIB), -EBADMSG, "section 0");
}

TEST(svsm_entry)
{
	static const struct gmem_sev_section s[] = { { 0x800000, 0x6000, GMEM_SEV_SECTION_MEM },
						     { 0x806000, P, GMEM_SEV_SECTION_SECRETS },
						     { 0x807000, P, GMEM_SEV_SECTION_CPUID },
						     { 0x808000, 0xc8000, GMEM_SEV_SECTION_MEM } };
	struct gmem_sev_section got[4];
	struct image im;
	uint32_t eip = 7;
	uint64_t gpa;
	size_t off;

	image_init(&im);
	image_add(&im, RESET_BLOCK, 1, 0xfffffff0);
	CHECK_OK(gmem_firmware_gpa(IMAGE_LEN, 0x20000 + 0x1e0000, &gpa));
	CHECK_SAYS(gmem_firmware_svsm_eip(im.bytes, IMAGE_LEN, gpa, &eip), -ENOENT,
		   FOOTER "the GUID table has no " SVSM_INFO " (SVSM info)");
	off = image_add(&im, SVSM_INFO, 1, 0x123);
	image_add_sev(&im, s, 4);
	CHECK_EQ(gmem_firmware_sev(im.bytes, IMAGE_LEN, got, 4), 4);
	CHECK_OK(gmem_firmware_svsm_eip(im.bytes, IMAGE_LEN, gpa, &eip));
	CHECK_EQ(eip, 0xffdfc123);
	/* The last byte below 4 GiB, and none beyond the image. */
	gmem_put_le32(im.bytes + off, IMAGE_LEN - 1);
	CHECK_OK(gmem_firmware_svsm_eip(im.bytes, IMAGE_LEN, FOUR_GIB - IMAGE_LEN, &eip));
	CHECK_EQ(eip, UINT32_MAX);
	eip = 7;
	CHECK_SAYS(gmem_firmware_svsm_eip(im.bytes, IMAGE_LEN, FOUR_GIB - IMAGE_LEN + 1, &eip), -EINVAL,
		   "ends beyond 4 GiB");
	CHECK_SAYS(gmem_firmware_svsm_eip(im.bytes, IMAGE_LEN, UINT64_MAX, &eip), -EINVAL, "ends beyond 4 GiB");
	gmem_put_le32(im.bytes + off, IMAGE_LEN);
	CHECK_SAYS(gmem_firmware_svsm_eip(im.bytes, IMAGE_LEN, 0, &eip), -EBADMSG,
		   "the SVSM's entry at 0x4000 is not inside its 0x4000 bytes");
	gmem_put_le32(im.bytes + off, UINT32_MAX);
	CHECK_SAYS(gmem_firmware_svsm_eip(im.bytes, IMAGE_LEN, gpa, &eip), -EBADMSG, "is not inside");
	CHECK_ERR(gmem_firmware_svsm_eip(NULL, IMAGE_LEN, gpa, &eip), -EINVAL);
	CHECK_ERR(gmem_firmware_svsm_eip(im.bytes, IMAGE_LEN, gpa, NULL), -EINVAL);
	/* The longer block of another SVSM, in a table of the same form. */
	image_init(&im);
	image_add(&im, SVSM_INFO, 4, 0, 0, 0, 0);
	CHECK_SAYS(gmem_firmware_svsm_eip(im.bytes, IMAGE_LEN, gpa, &eip), -EBADMSG, "has 16 bytes of data, not 4");
	CHECK_EQ(eip, 7);
}
