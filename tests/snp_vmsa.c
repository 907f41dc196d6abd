/* SPDX-License-Identifier: MIT */
/*
 * VMSA pages: the first state of a vCPU as each VMM has it, against hashes that were not computed by this library and
 * against numbers at the offsets of AMD's manual. And the words of the firmware's status codes.
 */
#include "tap.h"

#include "launch/sha384.h"
#include "launch/snp/status.h"
#include "launch/snp/vmsa.h"

#define PAGE 4096u
#define BSP 0xfffffff0u
#define AP 0x80b004u
#define EPYC 0x800f12u /* EAX of CPUID leaf 1 of QEMU's EPYC-v4 */

/* Of vCPUs of type EPYC-v4 with SNPActive alone. */
#define HASH_BSP "77920c4c629ff47e90c0e174fc1ad0eb6fa664f88cd4739488058a8c6cb1a77b3856f55378e9518d0da99452d51c553a"
#define HASH_AP "8413b852790765a310d95867a8b00bfca3a802b5a80830044b45e253fe96222657e11e53fcf63eb0e0afd722385bf7b4"

static void build(enum gmem_vmm vmm, uint32_t eip, uint64_t features, uint8_t *page)
{
	struct gmem_snp_vcpu v = { .size = sizeof(v) };

	memset(page, 0xa5, PAGE);
	CHECK_OK(gmem_snp_vcpu_reset(vmm, eip, EPYC, features, &v));
	gmem_snp_vmsa_build(&v, page);
}

static void check_hash(const uint8_t *page, const char *hex)
{
	uint8_t md[GMEM_SHA384_LEN];
	char text[2 * GMEM_SHA384_LEN + 1];

	CHECK_OK(gmem_sha384(page, PAGE, md));
	for (unsigned int i = 0; i < sizeof(md); i++)
		snprintf(text + 2 * i, 3, "%02x", md[i]);
	CHECK_STR(text, hex);
}

/* Where `page` is to differ from QEMU's, and what is there, up to eight bytes. */
struct field {
	unsigned int off, len;
	uint64_t value;
};

static uint64_t get(const uint8_t *page, unsigned int off, unsigned int len)
{
	uint64_t value = 0;

	for (unsigned int i = len; i--;)
		value = value << 8 | page[off + i];
	return value;
}

/* These fields, and no byte besides them. */
static void check_differs(const uint8_t *page, const uint8_t *qemu, const struct field *fields, size_t n)
{
	uint8_t rest[PAGE];

	memcpy(rest, page, PAGE);
	for (size_t i = 0; i < n; i++) {
		if (get(page, fields[i].off, fields[i].len) != fields[i].value)
			FAIL("at 0x%x: 0x%llx, not 0x%llx", fields[i].off,
			     (unsigned long long)get(page, fields[i].off, fields[i].len),
			     (unsigned long long)fields[i].value);
		CHECK(memcmp(page + fields[i].off, qemu + fields[i].off, fields[i].len));
		memcpy(rest + fields[i].off, qemu + fields[i].off, fields[i].len);
	}
	CHECK_MEM(rest, qemu, PAGE);
}

#define CHECK_DIFFERS(page, qemu, ...)                                              \
	do {                                                                        \
		static const struct field tap_f[] = { __VA_ARGS__ };                \
		check_differs(page, qemu, tap_f, sizeof(tap_f) / sizeof(tap_f[0])); \
	} while (0)

TEST(qemu_vcpus_have_the_known_hashes)
{
	uint8_t page[PAGE];

	build(GMEM_VMM_QEMU, BSP, 1, page);
	check_hash(page, HASH_BSP);
	build(GMEM_VMM_QEMU, AP, 1, page);
	check_hash(page, HASH_AP);
}

TEST(features_and_signature_have_their_place)
{
	uint8_t plain[PAGE], page[PAGE];
	struct gmem_snp_vcpu v = { .size = sizeof(v) };

	build(GMEM_VMM_QEMU, BSP, 1, plain);
	build(GMEM_VMM_QEMU, BSP, 0x21, page);
	CHECK_DIFFERS(page, plain, { 0x3b0, 8, 0x21 });
	CHECK_OK(gmem_snp_vcpu_reset(GMEM_VMM_QEMU, BSP, 0xa00f11, 1, &v));
	gmem_snp_vmsa_build(&v, page);
	CHECK_DIFFERS(page, plain, { 0x310, 8, 0xa00f11 });
	build(GMEM_VMM_QEMU, AP, 1, page);
	CHECK_DIFFERS(page, plain, { 0x18, 8, 0x800000 }, { 0x178, 8, 0xb004 });
}

TEST(ec2_begins_with_unloaded_segments)
{
	uint8_t qemu[PAGE], page[PAGE];
	struct gmem_snp_vcpu v = { .size = sizeof(v) };

	build(GMEM_VMM_QEMU, BSP, 1, qemu);
	build(GMEM_VMM_EC2, BSP, 1, page);
	CHECK_DIFFERS(page, qemu, { 0x12, 2, 0x9a }, { 0x22, 2, 0x92 }, { 0x92, 2, 0x83 }, { 0x310, 8, 0x600 },
		      { 0x408, 4, 0 }, { 0x410, 2, 0 });
	build(GMEM_VMM_QEMU, AP, 1, qemu);
	build(GMEM_VMM_EC2, AP, 1, page);
	CHECK_DIFFERS(page, qemu, { 0x22, 2, 0x92 }, { 0x92, 2, 0x83 }, { 0x310, 8, 0x600 }, { 0x408, 4, 0 },
		      { 0x410, 2, 0 });
	/* The other convention is the caller's to set. */
	CHECK_OK(gmem_snp_vcpu_reset(GMEM_VMM_EC2, AP, EPYC, 1, &v));
	CHECK_EQ(v.rdx, 0x600);
	v.rdx = 0;
	gmem_snp_vmsa_build(&v, page);
	CHECK_DIFFERS(page, qemu, { 0x22, 2, 0x92 }, { 0x92, 2, 0x83 }, { 0x310, 8, 0 }, { 0x408, 4, 0 },
		      { 0x410, 2, 0 });
}

TEST(gce_has_another_pat)
{
	static const uint32_t eips[] = { BSP, AP };
	uint8_t qemu[PAGE], page[PAGE];

	for (int i = 0; i < 2; i++) {
		build(GMEM_VMM_QEMU, eips[i], 1, qemu);
		build(GMEM_VMM_GCE, eips[i], 1, page);
		CHECK_DIFFERS(page, qemu, { 0x268, 8, 0x70106 }, { 0x310, 8, 0x600 }, { 0x408, 4, 0 }, { 0x410, 2, 0 });
	}
}

TEST(krun_begins_with_a_stack)
{
	uint8_t qemu[PAGE], page[PAGE];

	build(GMEM_VMM_QEMU, BSP, 1, qemu);
	build(GMEM_VMM_KRUN, BSP, 1, page);
	CHECK_DIFFERS(page, qemu, { 0x12, 2, 0x9a }, { 0x22, 2, 0x92 }, { 0x92, 2, 0x83 }, { 0x1d8, 8, 0x8ff0 },
		      { 0x310, 8, 0 }, { 0x328, 8, 0x8ff0 }, { 0x330, 8, 0x7000 }, { 0x408, 4, 0 }, { 0x410, 2, 0 });
	build(GMEM_VMM_QEMU, AP, 1, qemu);
	build(GMEM_VMM_KRUN, AP, 1, page);
	CHECK_DIFFERS(page, qemu, { 0x12, 2, 0x9a }, { 0x22, 2, 0x92 }, { 0x92, 2, 0x83 }, { 0x310, 8, 0 },
		      { 0x408, 4, 0 }, { 0x410, 2, 0 });
}

TEST(an_svsm_begins_in_protected_mode)
{
	uint8_t qemu[PAGE], page[PAGE];

	build(GMEM_VMM_QEMU, BSP, 0x21, qemu);
	build(GMEM_VMM_SVSM, 0x80012345, 0x21, page);
	CHECK_DIFFERS(page, qemu,
		      /* es, cs, ss, ds, fs: selector, attributes, limit; gs is real mode's. */
		      { 0x00, 8, 0xffffffff0c930010 }, { 0x10, 8, 0xffffffff0c9b0008 }, { 0x18, 8, 0 },
		      { 0x20, 8, 0xffffffff0c930010 }, { 0x30, 8, 0xffffffff0c930010 }, { 0x40, 8, 0xffffffff0c930010 },
		      { 0x158, 8, 0x11 }, { 0x178, 8, 0x80012345 }, { 0x3b0, 8, 1 });
	CHECK_EQ(get(page, 0x50, 8), 0x0000ffff00930000);
}

TEST(every_register_has_its_offset)
{
	static const struct {
		unsigned int off, len;
	} places[] = {
		/* In the order of the structure: selector, attributes, limit, base of ten segments, then the rest. */
		{ 0x00, 2 },
		{ 0x02, 2 },
		{ 0x04, 4 },
		{ 0x08, 8 },
		{ 0x10, 2 },
		{ 0x12, 2 },
		{ 0x14, 4 },
		{ 0x18, 8 },
		{ 0x20, 2 },
		{ 0x22, 2 },
		{ 0x24, 4 },
		{ 0x28, 8 },
		{ 0x30, 2 },
		{ 0x32, 2 },
		{ 0x34, 4 },
		{ 0x38, 8 },
		{ 0x40, 2 },
		{ 0x42, 2 },
		{ 0x44, 4 },
		{ 0x48, 8 },
		{ 0x50, 2 },
		{ 0x52, 2 },
		{ 0x54, 4 },
		{ 0x58, 8 },
		{ 0x60, 2 },
		{ 0x62, 2 },
		{ 0x64, 4 },
		{ 0x68, 8 },
		{ 0x70, 2 },
		{ 0x72, 2 },
		{ 0x74, 4 },
		{ 0x78, 8 },
		{ 0x80, 2 },
		{ 0x82, 2 },
		{ 0x84, 4 },
		{ 0x88, 8 },
		{ 0x90, 2 },
		{ 0x92, 2 },
		{ 0x94, 4 },
		{ 0x98, 8 },
		/* efer cr0 cr2 cr3 cr4 dr6 dr7 rflags rip xcr0 g_pat sev_features */
		{ 0xd0, 8 },
		{ 0x158, 8 },
		{ 0x240, 8 },
		{ 0x150, 8 },
		{ 0x148, 8 },
		{ 0x168, 8 },
		{ 0x160, 8 },
		{ 0x170, 8 },
		{ 0x178, 8 },
		{ 0x3e8, 8 },
		{ 0x268, 8 },
		{ 0x3b0, 8 },
		/* rax rbx rcx rdx rsi rdi rbp rsp r8 to r15 */
		{ 0x1f8, 8 },
		{ 0x318, 8 },
		{ 0x308, 8 },
		{ 0x310, 8 },
		{ 0x330, 8 },
		{ 0x338, 8 },
		{ 0x328, 8 },
		{ 0x1d8, 8 },
		{ 0x340, 8 },
		{ 0x348, 8 },
		{ 0x350, 8 },
		{ 0x358, 8 },
		{ 0x360, 8 },
		{ 0x368, 8 },
		{ 0x370, 8 },
		{ 0x378, 8 },
		/* mxcsr x87_fcw */
		{ 0x408, 4 },
		{ 0x410, 2 },
	};
	struct gmem_snp_vcpu v;
	uint8_t *raw = (uint8_t *)&v, page[PAGE];
	size_t from = offsetof(struct gmem_snp_vcpu, es);
	uint64_t seed = tap_seed();

	for (size_t i = 0; i < sizeof(v); i++)
		raw[i] = (uint8_t)(tap_rand(&seed) | 1);
	v.size = sizeof(v);
	gmem_snp_vmsa_build(&v, page);
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		CHECK_MEM(page + places[i].off, raw + from, places[i].len);
		memset(page + places[i].off, 0, places[i].len);
		from += places[i].len;
	}
	CHECK_EQ(from, offsetof(struct gmem_snp_vcpu, x87_fcw) + sizeof(v.x87_fcw));
	for (unsigned int i = 0; i < PAGE; i++)
		if (page[i])
			FAIL("at 0x%x: 0x%x where nothing is defined", i, page[i]);
}

TEST(what_is_no_vmm_is_refused)
{
	struct gmem_snp_vcpu v = { .size = sizeof(v) - 1 }, was;

	memcpy(&was, &v, sizeof(v));
	CHECK_ERR(gmem_snp_vcpu_reset(GMEM_VMM_QEMU, BSP, EPYC, 1, &v), -EINVAL);
	CHECK_MEM(&v, &was, sizeof(v));
	v.size = sizeof(v) + 1;
	CHECK_ERR(gmem_snp_vcpu_reset(GMEM_VMM_QEMU, BSP, EPYC, 1, &v), -EINVAL);
	v.size = sizeof(v);
	memcpy(&was, &v, sizeof(v));
	CHECK_ERR(gmem_snp_vcpu_reset((enum gmem_vmm)5, BSP, EPYC, 1, &v), -EINVAL);
	CHECK_ERR(gmem_snp_vcpu_reset((enum gmem_vmm) - 1, BSP, EPYC, 1, &v), -EINVAL);
	CHECK_MEM(&v, &was, sizeof(v));
}

TEST(status_codes_have_names)
{
	static const struct {
		uint32_t status;
		const char *text;
	} known[] = {
		{ 0, "SUCCESS" },
		{ 1, "INVALID_PLATFORM_STATE" },
		{ 2, "INVALID_GUEST_STATE" },
		{ 7, "POLICY_FAILURE" },
		{ 8, "INACTIVE" },
		{ 9, "INVALID_ADDRESS" },
		{ 0xa, "BAD_SIGNATURE" },
		{ 0xb, "BAD_MEASUREMENT" },
		{ 0x10, "INVALID_GUEST" },
		{ 0x16, "INVALID_PARAM" },
		{ 0x17, "RESOURCE_LIMIT" },
		{ 0x19, "INVALID_PAGE_SIZE" },
		{ 0x1a, "INVALID_PAGE_STATE" },
		{ 0x1b, "INVALID_MDATA_ENTRY" },
		{ 0x1c, "INVALID_PAGE_OWNER" },
		{ 0x1d, "AEAD_OFLOW" },
		{ 0x1e, "unknown status" },
		{ 0x20, "RMP_INIT_REQUIRED" },
		{ 0x27, "INVALID_KEY" },
		{ 0x28, "unknown status" },
		{ UINT32_MAX, "unknown status" },
	};

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		CHECK_STR(gmem_snp_status_text(known[i].status), known[i].text);
}
