/* SPDX-License-Identifier: MIT */
/* The firmware of Debian 12: what its tables say, and which of its files is refused for what. */
#include "tap.h"

#include "firmware_util.h"
#include "launch_util.h"

#define WHOLE "/usr/share/ovmf/OVMF.fd"
#define CODE "/usr/share/OVMF/OVMF_CODE.fd"
#define VARS "/usr/share/OVMF/OVMF_VARS.fd"
#define CODE_4M "/usr/share/OVMF/OVMF_CODE_4M.fd"
#define MAX GMEM_FIRMWARE_MAX_SECTIONS

/* Of the version 2022.11; files of others may have the same length, so the table's bytes are looked at too. */
static uint8_t *read_version(const char *path, size_t len, uint16_t table_len)
{
	size_t n;
	uint8_t *image = read_firmware(path, &n);

	if (n != len || gmem_get_le16(image + n - 50) != table_len)
		SKIP("ovmf", "%s: another version than 2022.11, with other tables", path);
	return image;
}

static void check_sev(const uint8_t *image, size_t len)
{
	static const struct gmem_sev_section want[] = {
		{ 0x800000, 0x9000, GMEM_SEV_SECTION_MEM },	{ 0x80a000, 0x3000, GMEM_SEV_SECTION_MEM },
		{ 0x80d000, 0x1000, GMEM_SEV_SECTION_SECRETS }, { 0x80e000, 0x1000, GMEM_SEV_SECTION_CPUID },
		{ 0x80f000, 0x11000, GMEM_SEV_SECTION_MEM },
	};
	struct gmem_firmware_area area = { 7, 7 };
	struct gmem_firmware_hashes hashes;
	struct gmem_sev_section s[MAX];
	uint32_t eip;

	CHECK_EQ(gmem_firmware_sev(image, len, s, MAX), 5);
	for (int i = 0; i < 5; i++)
		CHECK(s[i].gpa == want[i].gpa && s[i].len == want[i].len && s[i].type == want[i].type);
	CHECK_OK(gmem_firmware_reset_eip(image, len, &eip));
	CHECK_EQ(eip, 0x80b004);
	/* The blocks are there and name nothing: built without a place for either. */
	CHECK_OK(gmem_firmware_secret(image, len, &area));
	CHECK(!area.gpa && !area.len);
	CHECK_SAYS(gmem_firmware_kernel_hashes(image, len, s, 5, &hashes), -ENOENT,
		   HASH_TABLE " (SEV hash table) names no address, and " SEV_METADATA);
	CHECK_SAYS(gmem_firmware_svsm_eip(image, len, 0, &eip), -ENOENT, SVSM_INFO);
}

TEST(whole_image)
{
	static const struct gmem_tdvf_section want[] = {
		{ 0x20000, 0x1e0000, 0xffe20000, 0x1e0000, GMEM_TDVF_SECTION_BFV, GMEM_TDVF_MR_EXTEND },
		{ 0, 0x20000, 0xffe00000, 0x20000, GMEM_TDVF_SECTION_CFV, 0 },
		{ 0, 0, 0x810000, 0x10000, GMEM_TDVF_SECTION_TEMP_MEM, 0 },
		{ 0, 0, 0x80b000, 0x2000, GMEM_TDVF_SECTION_TEMP_MEM, 0 },
		{ 0, 0, 0x809000, 0x2000, GMEM_TDVF_SECTION_TD_HOB, 0 },
		{ 0, 0, 0x800000, 0x6000, GMEM_TDVF_SECTION_TEMP_MEM, 0 },
	};
	uint8_t *image = read_version(WHOLE, 0x200000, 136);
	struct gmem_tdvf_section s[MAX];
	uint64_t gpa;

	check_sev(image, 0x200000);
	CHECK_EQ(gmem_firmware_tdvf(image, 0x200000, s, MAX), 6);
	for (int i = 0; i < 6; i++) {
		CHECK(s[i].off == want[i].off && s[i].raw_len == want[i].raw_len && s[i].gpa == want[i].gpa);
		CHECK(s[i].len == want[i].len && s[i].type == want[i].type && s[i].attr == want[i].attr);
	}
	CHECK_OK(gmem_firmware_gpa(0x200000, 0, &gpa));
	CHECK_EQ(gpa, s[1].gpa);
	free(image);
}

/* For SNP as good as the whole one. For TDX it is refused; and is good behind its variables. */
TEST(code_alone)
{
	uint8_t *image = read_version(CODE, 0x1e0000, 136), *vars = read_version(VARS, 0x20000, 0xffff);
	struct gmem_tdvf_section s[MAX];
	uint64_t gpa;

	check_sev(image, 0x1e0000);
	CHECK_OK(gmem_firmware_gpa(0x1e0000, 0, &gpa));
	CHECK_EQ(gpa, 0xffe20000);
	CHECK_SAYS(gmem_firmware_tdvf(image, 0x1e0000, s, MAX), -EBADMSG,
		   "gmem_firmware_tdvf: offset 0x1df7d0: the sections end 0x20000 bytes past the image's end: ");
	CHECK_HAS(gmem_last_error(), ": it is the code alone (OVMF_CODE.fd), without the 0x20000 bytes of variable "
				     "store before it. A TDX guest needs both in one image (OVMF.fd)");
	CHECK_SAYS(gmem_firmware_tdvf(vars, 0x20000, s, MAX), -ENOENT, TDX_METADATA);
	CHECK_HAS(gmem_last_error(), "offset 0x1ffd0: no GUID table");
	vars = realloc(vars, 0x200000);
	CHECK(vars);
	memcpy(vars + 0x20000, image, 0x1e0000);
	CHECK_EQ(gmem_firmware_tdvf(vars, 0x200000, s, MAX), 6);
	free(vars);
	free(image);
}

TEST(image_of_4_mib_has_no_metadata)
{
	uint8_t *image = read_version(CODE_4M, 0x37c000, 92);
	struct gmem_tdvf_section tdvf[MAX];
	struct gmem_sev_section sev[MAX];
	uint32_t eip;

	CHECK_SAYS(gmem_firmware_sev(image, 0x37c000, sev, MAX), -ENOENT,
		   "offset 0x37bfce: the GUID table has no " SEV_METADATA " (SEV metadata), nor " TDX_METADATA
		   " (TDX metadata): built for neither SEV-SNP nor TDX");
	CHECK_SAYS(gmem_firmware_tdvf(image, 0x37c000, tdvf, MAX), -ENOENT, "has no " TDX_METADATA " (TDX metadata)");
	CHECK_OK(gmem_firmware_reset_eip(image, 0x37c000, &eip));
	CHECK_EQ(eip, 0x808004);
	free(image);
}
