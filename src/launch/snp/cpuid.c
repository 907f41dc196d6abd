/* SPDX-License-Identifier: MIT */
#include "launch/snp/cpuid.h"

#include <stddef.h>

#include "base/le.h"
#include "launch/snp/status.h"

/* What an entry asks for, as far as an answer depends on it. */
struct query {
	uint32_t leaf, subleaf, fms;
	uint64_t xcr0, xss;
};

/* A rule says what the firmware would have for a value; the value fails if that is another. */
struct rule {
	enum { UNCHECKED, EXACT, MASK, LESSTHAN, CUSTOM } kind;
	uint32_t value;
	uint32_t reserved; /* bits that are zero, whatever the kind */
	uint32_t (*custom)(uint32_t reg, const struct query *q);
};

struct leaf {
	uint32_t leaf, subleaf;
	struct rule regs[4]; /* EAX, EBX, ECX, EDX */
};

#define XCR0_AVX (1u << 2)
#define XCR0_KREGS (1u << 5)
#define XCR0_ZMM_HI256 (1u << 6)
#define XCR0_HI16_ZMM (1u << 7)
#define XCR0_PKRU (1u << 9)
#define XSS_CET_U (1u << 11)
#define XSS_CET_S (1u << 12)

/* Bits [shift, shift + width) are `limit` at most. */
static uint32_t at_most(uint32_t reg, unsigned int shift, unsigned int width, uint32_t limit)
{
	uint32_t mask = ((UINT32_C(1) << width) - 1) << shift;

	return (reg & mask) >> shift > limit ? (reg & ~mask) | limit << shift : reg;
}

static uint32_t digit(uint32_t fms, unsigned int shift)
{
	return fms >> shift & 0xf;
}

/* Not newer than the machine: family, then model, then stepping. The digits of a model are added, not joined. */
static uint32_t fms(uint32_t reg, const struct query *q)
{
	uint32_t family = (reg >> 20 & 0xff) + digit(reg, 8), machine = (q->fms >> 20 & 0xff) + digit(q->fms, 8);
	uint32_t model = digit(reg, 16) + digit(reg, 4), machine_model = digit(q->fms, 16) + digit(q->fms, 4);

	if (family != machine)
		return family < machine ? reg : q->fms;
	if (model != machine_model)
		return model < machine_model ? reg : q->fms;
	return digit(reg, 0) <= digit(q->fms, 0) ? reg : q->fms;
}

/* CLFLUSH works on 8 quadwords. The APIC's number and the count of processors are the hypervisor's. */
static uint32_t clflush(uint32_t reg, const struct query *q)
{
	return (reg & ~UINT32_C(0xff00)) | 8 << 8;
}

/* Fast short REP MOV and L1D flush, or nothing. */
static uint32_t leaf_7_edx(uint32_t reg, const struct query *q)
{
	return reg & ~UINT32_C(0x10000010) ? 0 : reg;
}

/* What XCR0 may have: x87 and SSE always, AVX, AVX-512 and PKRU. */
static uint32_t xcr0_bits(uint32_t reg, const struct query *q)
{
	return (reg | 0x3) & 0x2e7;
}

/* Where the area ends of what XCR0 has enabled: in the standard form components have fixed places. */
static uint32_t xsave_size(uint32_t reg, const struct query *q)
{
	if (q->xcr0 & XCR0_PKRU)
		return 0x988;
	if (q->xcr0 & XCR0_HI16_ZMM)
		return 0x980;
	if (q->xcr0 & XCR0_ZMM_HI256)
		return 0x580;
	if (q->xcr0 & XCR0_KREGS)
		return 0x380;
	return q->xcr0 & XCR0_AVX ? 0x340 : 0x240;
}

/* In the compacted form they follow each other. */
static uint32_t xsaves_size(uint32_t reg, const struct query *q)
{
	uint32_t size = 0x240;

	size += q->xcr0 & XCR0_AVX ? 0x100 : 0;
	size += q->xcr0 & XCR0_KREGS ? 0x40 : 0;
	size += q->xcr0 & XCR0_ZMM_HI256 ? 0x200 : 0;
	size += q->xcr0 & XCR0_HI16_ZMM ? 0x400 : 0;
	size += q->xcr0 & XCR0_PKRU ? 0x8 : 0;
	size += q->xss & XSS_CET_U ? 0x10 : 0;
	size += q->xss & XSS_CET_S ? 0x18 : 0;
	return size;
}

/* Widths of addresses: physical, linear; the guest's physical one may be any. */
static uint32_t address_sizes(uint32_t reg, const struct query *q)
{
	return at_most(at_most(reg, 0, 8, 0x34), 8, 8, 0x39);
}

/* INVLPGB's count, RDPRU's last register. */
static uint32_t instruction_limits(uint32_t reg, const struct query *q)
{
	return at_most(at_most(reg, 0, 16, 7), 16, 8, 1);
}

/*
 * The C-bit is 51. How many bits of addresses that costs is the hypervisor's, but is lost with a wrong C-bit. VMPLs: 4.
 */
static uint32_t encryption(uint32_t reg, const struct query *q)
{
	if ((reg & ~UINT32_C(0xffc0)) != 0x33)
		reg = (reg & ~UINT32_C(0xfff)) | 0x33;
	return at_most(reg, 12, 4, 4);
}

/* Performance counters, entries of the branch record. */
static uint32_t counters(uint32_t reg, const struct query *q)
{
	return at_most(at_most(reg, 0, 4, 6), 4, 6, 0x10);
}

#define ALL UINT32_MAX
#define ANY(reserved_bits)                        \
	{                                         \
		UNCHECKED, 0, reserved_bits, NULL \
	}
#define IS(x, reserved_bits)                  \
	{                                     \
		EXACT, x, reserved_bits, NULL \
	}
#define NONE IS(0, ALL)
#define BITS(mask, reserved_bits)               \
	{                                       \
		MASK, mask, reserved_bits, NULL \
	}
#define ONLY(mask) BITS(mask, ~UINT32_C(mask))
#define MAX(limit)                       \
	{                                \
		LESSTHAN, limit, 0, NULL \
	}
#define FN(fn, reserved_bits)                \
	{                                    \
		CUSTOM, 0, reserved_bits, fn \
	}

static const struct leaf leaves[] = {
	{ 0x00, 0x0, { MAX(0x10), ANY(0), ANY(0), ANY(0) } },
	/* OSXSAVE and the hypervisor's bit, 27 and 31 of ECX, are the guest's and the hypervisor's. */
	{ 0x01,
	  0x0,
	  { FN(fms, 0xf000f000), FN(clflush, 0xff), BITS(0xfefa320b, 0x0105cdf4), BITS(0x178bfbff, 0xe8740400) } },
	{ 0x02, 0x0, { ANY(0), ANY(0), ANY(0), ANY(0) } },
	{ 0x04, 0x0, { ANY(0), ANY(0), ANY(0), ANY(0) } },
	{ 0x05, 0x0, { ANY(0xffff0000), ANY(0xffff0000), ANY(0xfffffffc), ANY(0xffffff00) } },
	{ 0x06, 0x0, { ONLY(0x4), NONE, ONLY(0x1), NONE } },
	/* OSPKE, bit 4 of ECX, is the guest's. */
	{ 0x07,
	  0x0,
	  { MAX(1), BITS(0xf1bf97a9, 0x0e006846), BITS(0x00415fde, 0xffbea021), FN(leaf_7_edx, 0xefffffef) } },
	{ 0x07, 0x1, { ONLY(0x20), NONE, NONE, NONE } },
	{ 0x0b, 0x0, { ANY(0xffffffe0), ANY(0xffff0000), ANY(0xffff0000), ANY(0) } },
	{ 0x0b, 0x1, { ANY(0xffffffe0), ANY(0xffff0000), ANY(0xffff0000), ANY(0) } },
	{ 0x0b, 0x2, { ANY(0xffffffe0), ANY(0xffff0000), ANY(0xffff0000), ANY(0) } },
	{ 0x0d, 0x0, { FN(xcr0_bits, 0xfffffd18), FN(xsave_size, 0), ANY(0), IS(0, 0) } },
	{ 0x0d, 0x1, { ONLY(0xf), FN(xsaves_size, 0), BITS(0x1800, 0), BITS(0, 0) } },
	{ 0x0d, 0x2, { IS(0x100, 0), IS(0x240, 0), IS(0, 0xfffffffc), NONE } },
	{ 0x0d, 0x5, { IS(0x40, 0), IS(0x340, 0), ONLY(0x3), NONE } },
	{ 0x0d, 0x6, { IS(0x200, 0), IS(0x380, 0), ONLY(0x3), NONE } },
	{ 0x0d, 0x7, { IS(0x400, 0), IS(0x580, 0), ONLY(0x3), NONE } },
	{ 0x0d, 0x9, { IS(0x8, 0), IS(0x980, 0), IS(0, 0xfffffffc), NONE } },
	{ 0x0d, 0xb, { IS(0x10, 0), IS(0, 0), IS(1, 0xfffffffc), NONE } },
	{ 0x0d, 0xc, { IS(0x18, 0), IS(0, 0), IS(1, 0xfffffffc), NONE } },
	{ 0x0f, 0x0, { NONE, ANY(0), NONE, ANY(0xfffffffd) } },
	{ 0x0f, 0x1, { ANY(0xfffffe00), ANY(0), ANY(0), ANY(0xfffffff8) } },
	{ 0x10, 0x0, { NONE, ANY(0xfffffff9), NONE, NONE } },
	{ 0x10, 0x1, { ANY(0xffffffe0), ANY(0), ANY(0xfffffffb), ANY(0xffff0000) } },

	{ 0x80000000, 0x0, { MAX(0x80000028), ANY(0), ANY(0), ANY(0) } },
	{ 0x80000001,
	  0x0,
	  { FN(fms, 0xf000f000), ANY(0x0fffffff), BITS(0x75c237ff, 0x803c4000), BITS(0x2fd3fbff, 0x102c0400) } },
	{ 0x80000002, 0x0, { ANY(0), ANY(0), ANY(0), ANY(0) } },
	{ 0x80000003, 0x0, { ANY(0), ANY(0), ANY(0), ANY(0) } },
	{ 0x80000004, 0x0, { ANY(0), ANY(0), ANY(0), ANY(0) } },
	{ 0x80000005, 0x0, { ANY(0), ANY(0), ANY(0), ANY(0) } },
	{ 0x80000006, 0x0, { ANY(0), ANY(0), ANY(0), ANY(0x00030000) } },
	{ 0x80000007, 0x0, { NONE, BITS(0x3b, 0xffffffc0), ANY(0), BITS(0x6799, 0xffff8026) } },
	{ 0x80000008,
	  0x0,
	  { FN(address_sizes, 0xff000000), BITS(0x79bef35f, 0x060008a0), ANY(0xfffc0f00),
	    FN(instruction_limits, 0xff000000) } },
	{ 0x8000000a, 0x0, { ANY(0xffffff00), ANY(0), NONE, BITS(0x1fbfbcff, 0xe0404300) } },
	{ 0x80000019, 0x0, { ANY(0), ANY(0), NONE, NONE } },
	{ 0x8000001a, 0x0, { ANY(0xfffffff8), NONE, NONE, NONE } },
	{ 0x8000001b, 0x0, { BITS(0xbff, 0xfffff000), NONE, NONE, NONE } },
	{ 0x8000001d, 0x0, { ANY(0xfc003c00), ANY(0), ANY(0), ANY(0xfffffffc) } },
	{ 0x8000001d, 0x1, { ANY(0xfc003c00), ANY(0), ANY(0), ANY(0xfffffffc) } },
	{ 0x8000001d, 0x2, { ANY(0xfc003c00), ANY(0), ANY(0), ANY(0xfffffffc) } },
	{ 0x8000001d, 0x3, { ANY(0xfc003c00), ANY(0), ANY(0), ANY(0xfffffffc) } },
	{ 0x8000001d, 0x4, { ANY(0xfffffff0), NONE, ANY(0), NONE } },
	{ 0x8000001e, 0x0, { ANY(0), ANY(0xffff0000), ANY(0xfffff800), NONE } },
	{ 0x8000001f, 0x0, { BITS(0x030fffff, 0xfcf00000), FN(encryption, 0xffff0000), ANY(0), ANY(0) } },
	{ 0x80000020, 0x0, { NONE, ANY(0xffffffe1), NONE, NONE } },
	{ 0x80000020, 0x1, { ANY(0), NONE, NONE, ANY(0) } },
	{ 0x80000020, 0x2, { ANY(0), NONE, NONE, ANY(0) } },
	{ 0x80000020, 0x3, { IS(0, 0), ANY(0), ONLY(0x7f), IS(0, 0) } },
	{ 0x80000021, 0x0, { BITS(0x18062fcf, 0xe7f9d020), ANY(0xfffff000), NONE, NONE } },
	{ 0x80000022, 0x0, { ONLY(0x7), FN(counters, 0), ANY(0), IS(0, 0) } },
	{ 0x80000023, 0x0, { ONLY(0x1), ANY(0), NONE, NONE } },
	/* FEATURE_INFO of the firmware. */
	{ 0x80000024, 0x0, { MAX(1), ONLY(0x1), ONLY(0x3), NONE } },
	{ 0x80000024, 0x1, { ONLY(0x1ff), NONE, NONE, NONE } },
	{ 0x80000026, 0x0, { ANY(0), ANY(0), ANY(0), ANY(0) } },
	{ 0x80000026, 0x1, { ANY(0), ANY(0), ANY(0), ANY(0) } },
	{ 0x80000026, 0x2, { ANY(0), ANY(0), ANY(0), ANY(0) } },
	{ 0x80000026, 0x3, { ANY(0), ANY(0), ANY(0), ANY(0) } },
};

/* Of leaves that are not known: nothing may be said. */
static const struct leaf unknown = { 0, 0, { NONE, NONE, NONE, NONE } };

static const struct leaf *find(uint32_t leaf, uint32_t subleaf)
{
	for (size_t i = 0; i < sizeof(leaves) / sizeof(*leaves); i++)
		if (leaves[i].leaf == leaf && leaves[i].subleaf == subleaf)
			return &leaves[i];
	return &unknown;
}

static uint32_t apply(const struct rule *rule, uint32_t reg, const struct query *q)
{
	switch (rule->kind) {
	case EXACT:
		reg = rule->value;
		break;
	case MASK:
		reg &= rule->value;
		break;
	case LESSTHAN:
		reg = reg > rule->value ? rule->value : reg;
		break;
	case CUSTOM:
		reg = rule->custom(reg, q);
		break;
	case UNCHECKED:
		break;
	}
	return reg & ~rule->reserved;
}

/* True if the entry was right. */
static bool check_entry(uint8_t *entry, const struct gmem_snp_cpu *cpu)
{
	struct query q = {
		.leaf = gmem_get_le32(entry + GMEM_SNP_CPUID_EAX_IN),
		.subleaf = gmem_get_le32(entry + GMEM_SNP_CPUID_ECX_IN),
		.xcr0 = gmem_get_le64(entry + GMEM_SNP_CPUID_XCR0_IN),
		.xss = gmem_get_le64(entry + GMEM_SNP_CPUID_XSS_IN),
		.fms = cpu->fms,
	};
	const struct leaf *leaf;
	bool right;

	/* The ranges that are AMD's; others, as a hypervisor's 0x40000000, are whatever it says. */
	if ((q.leaf & ~UINT32_C(0x80000000)) > 0xffff)
		return true;
	right = !gmem_get_le64(entry + GMEM_SNP_CPUID_RESERVED);
	leaf = find(q.leaf, q.subleaf);
	for (size_t i = 0; i < sizeof(leaf->regs) / sizeof(*leaf->regs); i++) {
		uint8_t *raw = entry + GMEM_SNP_CPUID_EAX + i * sizeof(uint32_t);
		uint32_t reg = gmem_get_le32(raw), want = apply(&leaf->regs[i], reg, &q);

		right = right && reg == want;
		gmem_put_le32(raw, want);
	}
	return right;
}

uint32_t gmem_snp_cpuid_check(uint8_t page[GMEM_PAGE_SIZE], const struct gmem_snp_cpu *cpu, bool *ret_correctable)
{
	uint32_t count = gmem_get_le32(page);
	bool right = true;

	*ret_correctable = false;
	if (gmem_get_le32(page + 4) || gmem_get_le64(page + 8) || count > GMEM_SNP_CPUID_MAX)
		return GMEM_SEV_RET_INVALID_PARAM;
	for (uint32_t i = 0; i < count; i++)
		right = check_entry(page + GMEM_SNP_CPUID_HEADER + i * GMEM_SNP_CPUID_ENTRY, cpu) && right;
	*ret_correctable = !right;
	return right ? GMEM_SEV_RET_SUCCESS : GMEM_SEV_RET_INVALID_PARAM;
}
