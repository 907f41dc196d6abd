/* SPDX-License-Identifier: MIT */
/*
 * Launch digests against values that were not computed by this library: single steps, the demo's firmware, and, where
 * it is installed, a firmware whose digests are known. tests/reference/launch.py computes the same ones.
 */
#include "tap.h"

#include <openssl/err.h>
#include <openssl/evp.h>

#include "../demo/firmware.h"
#include "../demo/firmware_digests.h"
#include "base/le.h"
#include "launch/firmware/firmware.h"
#include "launch/sha384.h"
#include "launch/snp_digest.h"
#include "launch/tdx_digest.h"
#include "launch_util.h"

#define PAGE 4096u
#define LEN 48u
#define GPA 0x1000u
#define VMSA_GPA 0xfffffffff000u
#define OVMF "/usr/share/ovmf/OVMF.fd"

/* From the empty digest, one page at GPA. The contents are sha384("page"); the pattern is fill_pattern()'s. */
#define SNP_CONTENTS "3ebc1a70acc0bae5ae2788fae29a0371f983b19a68faf9843064f36040f58571ce5bb6bcdc9c361087073f8cffd92635"
#define SNP_PATTERN "0008ec48544088b72890fe9c997274f54b71b8667527c0a48ddf10053cce7020f95a9b43650c800db58b39bbaaa198a2"

/* The VMSA pages by themselves, and the first one measured. */
#define VMSA_AP "8413b852790765a310d95867a8b00bfca3a802b5a80830044b45e253fe96222657e11e53fcf63eb0e0afd722385bf7b4"
#define VMSA_BSP "77920c4c629ff47e90c0e174fc1ad0eb6fa664f88cd4739488058a8c6cb1a77b3856f55378e9518d0da99452d51c553a"
#define SNP_VMSA "108432463da76821f35c5daf2f7aecc0ce9ce88652de5f70f638c7a0345c11f2f80025654b80e7be10a9fe0ee1b75f33"

/* No call; one page added at GPA; then extended by its bytes. */
#define TDX_EMPTY "38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da274edebfe76f65fbd51ad2f14898b95b"
#define TDX_ADD "fcdabf6fdf38b87d2e3a89b1ab68c242abb261dffa70ef6f1dc2220c2752d2729cdf1be92afc2e0e4297f04e2b629552"
#define TDX_ZERO "ca76d5541328afef8bc9364261c515aebef90412ebc56ca0c2260ec531a14462cfc0c11de61d84292ddf8ca871da1ff1"
#define TDX_PATTERN "1d6a39508485f397068c05784a4b63a370570e76aece69da8d9803c7ec110b31872fb82a115e9bb2ba454fad78293be6"

/* The file of Debian 12; tests/reference/launch.py --firmware prints its digests, here with 1 and 4 vCPUs. */
#define OVMF_FILE "fa0dd56f4e3156e03cb377d56b5785bda51999a9c01fcf4e3d00e8848d6fe02a94d95e2c1fab707a000bb08674a7ce6a"
#define OVMF_SNP_1 "11570979c77a0adb515761a702527c8b9e11554e730552621d950988613a3a75c6ff1703f540bd22a9beede8fe7a97e3"
#define OVMF_SNP_4 "32ac9d7a17d28f7cd4404a4516d2f00519668c40ada2062351c36767e908eb3f090d66c33ab10f80150e00a4385b6d0f"
#define OVMF_TDX "4c7206f0f483c524f12c366c711e9049030a8d47c471ee5aa9c4999a08de4057fb887fed0744d5631a212967fb231c47"
#define OVMF_TDX_TWO_PASS \
	"acccbcc870a381adab0d3919d90a7f268ac3b0364771f202ed4bb4e892d045b33db3b32e6924cba830a724eed443f7e1"

#define CHECK_HEX(bytes, hex)            \
	do {                             \
		char tap_h[2 * LEN + 1]; \
		to_hex(bytes, tap_h);    \
		CHECK_STR(tap_h, hex);   \
	} while (0)

static const uint8_t zero[PAGE];

static void to_hex(const uint8_t *bytes, char *hex)
{
	for (unsigned int i = 0; i < LEN; i++)
		snprintf(hex + 2 * i, 3, "%02x", bytes[i]);
}

static void fill_pattern(uint8_t *page)
{
	for (unsigned int i = 0; i < PAGE; i++)
		page[i] = (uint8_t)(7 * i + 3);
}

/* The first state of a vCPU of type EPYC-v4, as QEMU and KVM make it. */
static void build_vmsa(uint8_t *page, uint32_t eip)
{
	/* es, cs, ss, ds, fs, gs, gdtr, ldtr, idtr, tr */
	static const uint8_t attrs[] = { 0x93, 0x9b, 0x93, 0x93, 0x93, 0x93, 0, 0x82, 0, 0x8b };
	const struct {
		unsigned int off;
		uint64_t value;
	} regs[] = {
		{ 0x0d0, 0x1000 }, /* efer */
		{ 0x148, 0x40 }, /* cr4 */
		{ 0x158, 0x10 }, /* cr0 */
		{ 0x160, 0x400 }, /* dr7 */
		{ 0x168, 0xffff0ff0 }, /* dr6 */
		{ 0x170, 2 }, /* rflags */
		{ 0x178, eip & 0xffff }, /* rip */
		{ 0x268, 0x7040600070406 }, /* pat */
		{ 0x310, 0x800f12 }, /* rdx: family, model, stepping */
		{ 0x3b0, 1 }, /* SEV features */
		{ 0x3e8, 1 }, /* xcr0 */
		{ 0x408, 0x1f80 }, /* mxcsr */
		{ 0x410, 0x37f }, /* x87 control word */
	};

	memset(page, 0, PAGE);
	for (unsigned int i = 0; i < sizeof(attrs); i++) {
		page[16 * i + 2] = attrs[i];
		gmem_put_le32(page + 16 * i + 4, 0xffff);
	}
	gmem_put_le16(page + 0x10, 0xf000);
	gmem_put_le64(page + 0x18, eip & 0xffff0000);
	for (size_t i = 0; i < sizeof(regs) / sizeof(regs[0]); i++)
		gmem_put_le64(page + regs[i].off, regs[i].value);
}

/* libcrypto, made to fail: the n-th next call does, and leaves an error in the queue. */
static int fail_digest, fail_update, fail_ctx;

int __real_EVP_Digest(const void *data, size_t len, unsigned char *md, unsigned int *n, const EVP_MD *t, ENGINE *e);
int __wrap_EVP_Digest(const void *data, size_t len, unsigned char *md, unsigned int *n, const EVP_MD *t, ENGINE *e);
int __real_EVP_DigestUpdate(EVP_MD_CTX *ctx, const void *data, size_t len);
int __wrap_EVP_DigestUpdate(EVP_MD_CTX *ctx, const void *data, size_t len);
EVP_MD_CTX *__real_EVP_MD_CTX_new(void);
EVP_MD_CTX *__wrap_EVP_MD_CTX_new(void);

static bool fails(int *countdown)
{
	if (!*countdown || --*countdown)
		return false;
	ERR_put_error(ERR_LIB_EVP, 0, ERR_R_MALLOC_FAILURE, __FILE__, __LINE__);
	return true;
}

int __wrap_EVP_Digest(const void *data, size_t len, unsigned char *md, unsigned int *n, const EVP_MD *t, ENGINE *e)
{
	return fails(&fail_digest) ? 0 : __real_EVP_Digest(data, len, md, n, t, e);
}

int __wrap_EVP_DigestUpdate(EVP_MD_CTX *ctx, const void *data, size_t len)
{
	return fails(&fail_update) ? 0 : __real_EVP_DigestUpdate(ctx, data, len);
}

EVP_MD_CTX *__wrap_EVP_MD_CTX_new(void)
{
	return fails(&fail_ctx) ? NULL : __real_EVP_MD_CTX_new();
}

TEST(snp_pages_are_measured_as_specified)
{
	static const struct {
		enum gmem_snp_page type;
		const uint8_t *page;
		const char *ld;
	} cases[] = {
		{ GMEM_SNP_PAGE_NORMAL, zero,
		  "e6e4d78904d9d6b33c0cbfd121998fd2d11744dae606b3aee35e2a45d6869b60b35c63928a9232bef72d6be386f48ec6" },
		{ GMEM_SNP_PAGE_ZERO, NULL,
		  "4bd4147976a1e7554c1c778a781affc1c672f1965a727ba16084989b7e356044a28bbe585a2f75dac9356fa5ab78f061" },
		{ GMEM_SNP_PAGE_UNMEASURED, NULL,
		  "81475a112c0223cebe1ccb31a0aa2567772871200b33515a3cbbd5ed6a68a8e630902dd83469ea6553554bfb67111fad" },
		{ GMEM_SNP_PAGE_SECRETS, NULL,
		  "ede71fa5ddc72c3de70c6ff1149b8ecb6ef08b74b1d3a72c2cece10bd140c06a6181343d33def7db6cc0da1ff9ba4805" },
		{ GMEM_SNP_PAGE_CPUID, NULL,
		  "af3c8d305f882f039a48318a961572ddc7ebf40b3d1eae828f4fa6e27a7b3078cf2d84b459e002fb58b4ae83efd7f29c" },
	};
	uint8_t pattern[PAGE];
	struct gmem_snp_digest d;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		gmem_snp_digest_init(&d);
		CHECK_MEM(d.ld, zero, LEN);
		CHECK_OK(gmem_snp_digest_page(&d, cases[i].type, GPA, cases[i].page));
		CHECK_HEX(d.ld, cases[i].ld);
	}
	fill_pattern(pattern);
	gmem_snp_digest_init(&d);
	CHECK_OK(gmem_snp_digest_page(&d, GMEM_SNP_PAGE_NORMAL, GPA, pattern));
	CHECK_HEX(d.ld, SNP_PATTERN);
	/* A type that is not measured by its bytes does not look at them. */
	gmem_snp_digest_init(&d);
	CHECK_OK(gmem_snp_digest_page(&d, GMEM_SNP_PAGE_UNMEASURED, GPA, pattern));
	CHECK_HEX(d.ld, cases[2].ld);
}

/* The same PAGE_INFO by hand, around a hash of something that is no page. */
TEST(snp_page_info_is_what_is_hashed)
{
	uint8_t info[0x70] = { 0 }, md[LEN];

	CHECK_OK(gmem_sha384("page", 4, info + 0x30));
	info[0x60] = 0x70;
	info[0x62] = GMEM_SNP_PAGE_NORMAL;
	info[0x69] = GPA >> 8;
	CHECK_OK(gmem_sha384(info, sizeof(info), md));
	CHECK_HEX(md, SNP_CONTENTS);
}

TEST(snp_vmsa_is_measured_without_its_tsc)
{
	uint8_t vmsa[PAGE], md[LEN];
	struct gmem_snp_digest d, as_normal;

	build_vmsa(vmsa, 0x80b004);
	CHECK_OK(gmem_sha384(vmsa, PAGE, md));
	CHECK_HEX(md, VMSA_AP);
	build_vmsa(vmsa, 0xfffffff0);
	CHECK_OK(gmem_sha384(vmsa, PAGE, md));
	CHECK_HEX(md, VMSA_BSP);
	for (int tweaked = 0; tweaked < 2; tweaked++) {
		gmem_snp_digest_init(&d);
		CHECK_OK(gmem_snp_digest_page(&d, GMEM_SNP_PAGE_VMSA, VMSA_GPA, vmsa));
		CHECK_HEX(d.ld, SNP_VMSA);
		memset(vmsa + 0x2f0, 0xa5, 16);
	}
	CHECK_EQ(vmsa[0x2f0], 0xa5);
	/* The bytes beside them count, and in a NORMAL page all do. */
	for (unsigned int off = 0x2ef; off <= 0x300; off += 0x11) {
		gmem_snp_digest_init(&as_normal);
		vmsa[off] ^= 1;
		CHECK_OK(gmem_snp_digest_page(&as_normal, GMEM_SNP_PAGE_VMSA, VMSA_GPA, vmsa));
		vmsa[off] ^= 1;
		CHECK(memcmp(&d, &as_normal, sizeof(d)));
	}
}

TEST(snp_wrong_arguments_leave_the_digest)
{
	struct gmem_snp_digest d, was;

	gmem_snp_digest_init(&d);
	CHECK_OK(gmem_snp_digest_page(&d, GMEM_SNP_PAGE_NORMAL, GPA, zero));
	was = d;
	CHECK_ERR(gmem_snp_digest_page(&d, (enum gmem_snp_page)0, GPA, zero), -EINVAL);
	CHECK_ERR(gmem_snp_digest_page(&d, (enum gmem_snp_page)7, GPA, zero), -EINVAL);
	CHECK_ERR(gmem_snp_digest_page(&d, (enum gmem_snp_page) - 1, GPA, zero), -EINVAL);
	CHECK_ERR(gmem_snp_digest_page(&d, (enum gmem_snp_page)0x101, GPA, zero), -EINVAL);
	CHECK_ERR(gmem_snp_digest_page(&d, GMEM_SNP_PAGE_ZERO, GPA + 1, NULL), -EINVAL);
	CHECK_ERR(gmem_snp_digest_page(&d, GMEM_SNP_PAGE_NORMAL, GPA + 2048, zero), -EINVAL);
	CHECK_ERR(gmem_snp_digest_page(&d, GMEM_SNP_PAGE_NORMAL, GPA, NULL), -EINVAL);
	CHECK_ERR(gmem_snp_digest_page(&d, GMEM_SNP_PAGE_VMSA, GPA, NULL), -EINVAL);
	CHECK_HAS(gmem_last_error(), "gpa 0x1000");
	CHECK_MEM(d.ld, was.ld, LEN);
}

TEST(snp_failing_libcrypto_leaves_the_digest_and_its_error_queue)
{
	struct gmem_snp_digest d, was;
	unsigned long mine;

	gmem_snp_digest_init(&d);
	CHECK_OK(gmem_snp_digest_page(&d, GMEM_SNP_PAGE_ZERO, GPA, NULL));
	was = d;
	for (int n = 1; n <= 2; n++) {
		fail_digest = n;
		CHECK_ERR(gmem_snp_digest_page(&d, GMEM_SNP_PAGE_NORMAL, 2 * GPA, zero), -ENOMEM);
		CHECK_MEM(d.ld, was.ld, LEN);
		CHECK_EQ(ERR_peek_error(), 0);
	}
	/* What the program has not yet looked at stays. */
	ERR_put_error(ERR_LIB_PEM, 0, ERR_R_PASSED_NULL_PARAMETER, __FILE__, __LINE__);
	mine = ERR_peek_error();
	fail_digest = 1;
	CHECK_ERR(gmem_snp_digest_page(&d, GMEM_SNP_PAGE_NORMAL, 2 * GPA, zero), -ENOMEM);
	CHECK_OK(gmem_snp_digest_page(&d, GMEM_SNP_PAGE_NORMAL, 2 * GPA, zero));
	CHECK_EQ(ERR_get_error(), mine);
	CHECK_EQ(ERR_get_error(), 0);
}

TEST(snp_order_and_address_matter)
{
	struct gmem_snp_digest a, b;

	gmem_snp_digest_init(&a);
	CHECK_OK(gmem_snp_digest_page(&a, GMEM_SNP_PAGE_ZERO, 0x1000, NULL));
	CHECK_OK(gmem_snp_digest_page(&a, GMEM_SNP_PAGE_ZERO, 0x2000, NULL));
	gmem_snp_digest_init(&b);
	CHECK_OK(gmem_snp_digest_page(&b, GMEM_SNP_PAGE_ZERO, 0x2000, NULL));
	CHECK_OK(gmem_snp_digest_page(&b, GMEM_SNP_PAGE_ZERO, 0x1000, NULL));
	CHECK(memcmp(&a, &b, sizeof(a)));
	/* All of its 64 bits. */
	gmem_snp_digest_init(&a);
	CHECK_OK(gmem_snp_digest_page(&a, GMEM_SNP_PAGE_ZERO, 0x1000, NULL));
	gmem_snp_digest_init(&b);
	CHECK_OK(gmem_snp_digest_page(&b, GMEM_SNP_PAGE_ZERO, UINT64_C(1) << 63 | 0x1000, NULL));
	CHECK(memcmp(&a, &b, sizeof(a)));
}

static void extend_page(struct gmem_tdx_digest *d, uint64_t gpa, const uint8_t *page)
{
	for (unsigned int off = 0; off < PAGE; off += GMEM_TDX_CHUNK_LEN)
		CHECK_OK(gmem_tdx_digest_extend(d, gpa + off, page + off));
}

TEST(tdx_calls_are_measured_as_specified)
{
	uint8_t pattern[PAGE], md[LEN];
	struct gmem_tdx_digest d;

	fill_pattern(pattern);
	for (int with = 0; with < 2; with++) {
		CHECK_OK(gmem_tdx_digest_init(&d));
		CHECK_OK(gmem_tdx_digest_value(&d, md));
		CHECK_HEX(md, TDX_EMPTY);
		CHECK_OK(gmem_tdx_digest_add(&d, GPA));
		/* Asking ends nothing, however often. */
		for (int i = 0; i < 3; i++) {
			CHECK_OK(gmem_tdx_digest_value(&d, md));
			CHECK_HEX(md, TDX_ADD);
		}
		extend_page(&d, GPA, with ? pattern : zero);
		CHECK_OK(gmem_tdx_digest_value(&d, md));
		if (with)
			CHECK_HEX(md, TDX_PATTERN);
		else
			CHECK_HEX(md, TDX_ZERO);
		gmem_tdx_digest_free(&d);
	}
}

TEST(tdx_wrong_arguments_leave_the_digest)
{
	uint8_t was[LEN], md[LEN];
	struct gmem_tdx_digest d;

	CHECK_OK(gmem_tdx_digest_init(&d));
	CHECK_OK(gmem_tdx_digest_add(&d, GPA));
	CHECK_OK(gmem_tdx_digest_value(&d, was));
	CHECK_ERR(gmem_tdx_digest_add(&d, GPA + 256), -EINVAL);
	CHECK_ERR(gmem_tdx_digest_extend(&d, GPA + 128, zero), -EINVAL);
	CHECK_ERR(gmem_tdx_digest_extend(&d, GPA, NULL), -EINVAL);
	CHECK_OK(gmem_tdx_digest_value(&d, md));
	CHECK_MEM(md, was, LEN);
	gmem_tdx_digest_free(&d);
	gmem_tdx_digest_free(&d);
	gmem_tdx_digest_free(NULL);
}

TEST(tdx_failing_libcrypto_is_an_error)
{
	uint8_t md[LEN] = { 0 };
	struct gmem_tdx_digest d;

	fail_ctx = 1;
	CHECK_ERR(gmem_tdx_digest_init(&d), -ENOMEM);
	gmem_tdx_digest_free(&d);
	CHECK_OK(gmem_tdx_digest_init(&d));
	fail_ctx = 1;
	CHECK_ERR(gmem_tdx_digest_value(&d, md), -ENOMEM);
	CHECK_MEM(md, zero, LEN);
	fail_update = 1;
	CHECK_ERR(gmem_tdx_digest_add(&d, GPA), -ENOMEM);
	fail_update = 1;
	CHECK_ERR(gmem_tdx_digest_extend(&d, GPA, zero), -ENOMEM);
	CHECK_EQ(ERR_peek_error(), 0);
	gmem_tdx_digest_free(&d);
}

TEST(tdx_order_and_address_matter)
{
	/* One pass; two passes; the second page's chunks first; another address. */
	static const struct {
		bool extend;
		unsigned int gpa;
	} calls[4][4] = {
		{ { false, 0x1000 }, { true, 0x1000 }, { false, 0x2000 }, { true, 0x2000 } },
		{ { false, 0x1000 }, { false, 0x2000 }, { true, 0x1000 }, { true, 0x2000 } },
		{ { false, 0x1000 }, { false, 0x2000 }, { true, 0x2000 }, { true, 0x1000 } },
		{ { false, 0x1000 }, { true, 0x1000 }, { false, 0x3000 }, { true, 0x3000 } },
	};
	uint8_t md[4][LEN];

	for (int i = 0; i < 4; i++) {
		struct gmem_tdx_digest d;

		CHECK_OK(gmem_tdx_digest_init(&d));
		for (int j = 0; j < 4; j++) {
			if (calls[i][j].extend)
				extend_page(&d, calls[i][j].gpa, zero);
			else
				CHECK_OK(gmem_tdx_digest_add(&d, calls[i][j].gpa));
		}
		CHECK_OK(gmem_tdx_digest_value(&d, md[i]));
		gmem_tdx_digest_free(&d);
		for (int j = 0; j < i; j++)
			CHECK(memcmp(md[i], md[j], LEN));
	}
}

/* The whole image, then the sections, as QEMU launches them when it is given no kernel. */
static void measure_snp(const uint8_t *image, size_t len, struct gmem_snp_digest *d)
{
	struct gmem_sev_section s[GMEM_FIRMWARE_MAX_SECTIONS];
	uint64_t base = (UINT64_C(1) << 32) - len;
	int n = (int)CHECK_OK(gmem_firmware_sev(image, len, s, GMEM_FIRMWARE_MAX_SECTIONS));

	gmem_snp_digest_init(d);
	for (size_t off = 0; off < len; off += PAGE)
		CHECK_OK(gmem_snp_digest_page(d, GMEM_SNP_PAGE_NORMAL, base + off, image + off));
	for (int i = 0; i < n; i++) {
		enum gmem_snp_page type = s[i].type == GMEM_SEV_SECTION_SECRETS ? GMEM_SNP_PAGE_SECRETS :
					  s[i].type == GMEM_SEV_SECTION_CPUID	? GMEM_SNP_PAGE_CPUID :
										  GMEM_SNP_PAGE_ZERO;

		for (uint64_t off = 0; off < s[i].len; off += PAGE)
			CHECK_OK(gmem_snp_digest_page(d, type, s[i].gpa + off, NULL));
	}
}

static void measure_tdx(const uint8_t *image, size_t len, bool two_pass, uint8_t *md)
{
	struct gmem_tdvf_section s[GMEM_FIRMWARE_MAX_SECTIONS];
	int n = (int)CHECK_OK(gmem_firmware_tdvf(image, len, s, GMEM_FIRMWARE_MAX_SECTIONS));
	struct gmem_tdx_digest d;

	CHECK_OK(gmem_tdx_digest_init(&d));
	for (int i = 0; i < n; i++) {
		for (int pass = 0; pass < 1 + two_pass; pass++) {
			for (uint64_t off = 0; off < s[i].len; off += PAGE) {
				if (pass == 0)
					CHECK_OK(gmem_tdx_digest_add(&d, s[i].gpa + off));
				if (pass == two_pass && s[i].attr & GMEM_TDVF_MR_EXTEND)
					extend_page(&d, s[i].gpa + off,
						    off < s[i].raw_len ? image + s[i].off + off : zero);
			}
		}
	}
	CHECK_OK(gmem_tdx_digest_value(&d, md));
	gmem_tdx_digest_free(&d);
}

TEST(demo_firmware_has_the_digests_it_says)
{
	uint8_t *image = malloc(DEMO_FIRMWARE_LEN), md[LEN];
	struct gmem_snp_digest d;

	demo_firmware_build(image);
	measure_snp(image, DEMO_FIRMWARE_LEN, &d);
	CHECK_HEX(d.ld, DEMO_FIRMWARE_SNP_DIGEST);
	measure_tdx(image, DEMO_FIRMWARE_LEN, false, md);
	CHECK_HEX(md, DEMO_FIRMWARE_TDX_DIGEST);
	free(image);
}

TEST(debian_firmware_has_its_known_digests)
{
	size_t len;
	uint8_t *image = read_firmware(OVMF, &len), vmsa[PAGE], md[LEN];
	struct gmem_snp_digest d;
	char hex[2 * LEN + 1];

	CHECK_OK(gmem_sha384(image, len, md));
	to_hex(md, hex);
	if (strcmp(hex, OVMF_FILE)) {
		free(image);
		SKIP("ovmf", "%s: not the one of Debian 12 (2022.11-6+deb12u2), whose digests are known", OVMF);
	}
	measure_snp(image, len, &d);
	for (int i = 0; i < 4; i++) {
		build_vmsa(vmsa, i ? 0x80b004 : 0xfffffff0);
		CHECK_OK(gmem_snp_digest_page(&d, GMEM_SNP_PAGE_VMSA, VMSA_GPA, vmsa));
		if (i == 0)
			CHECK_HEX(d.ld, OVMF_SNP_1);
	}
	CHECK_HEX(d.ld, OVMF_SNP_4);
	measure_tdx(image, len, false, md);
	CHECK_HEX(md, OVMF_TDX);
	measure_tdx(image, len, true, md);
	CHECK_HEX(md, OVMF_TDX_TWO_PASS);
	free(image);
}
