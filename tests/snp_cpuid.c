/* SPDX-License-Identifier: MIT */
/* The firmware's check of a CPUID page: every kind of rule and every leaf with rules of its own, by numbers. */
#include "tap.h"

#include "base/le.h"
#include "launch/snp/cpuid.h"

#define PAGE 4096u
#define REFUSED 0x16u

static const struct gmem_snp_cpu genoa = { .fms = GMEM_SNP_FMS_GENOA };

struct entry {
	uint32_t leaf, subleaf;
	uint64_t xcr0, xss;
	uint32_t in[4], want[4]; /* EAX, EBX, ECX, EDX */
};

static uint8_t *entry_at(uint8_t *page, unsigned int i)
{
	return page + 16 + 48 * i;
}

static void put_entry(uint8_t *at, const struct entry *e)
{
	memset(at, 0, 48);
	gmem_put_le32(at, e->leaf);
	gmem_put_le32(at + 4, e->subleaf);
	gmem_put_le64(at + 8, e->xcr0);
	gmem_put_le64(at + 16, e->xss);
	for (int i = 0; i < 4; i++)
		gmem_put_le32(at + 24 + 4 * i, e->in[i]);
}

static void put_one(uint8_t *page, const struct entry *e)
{
	memset(page, 0, PAGE);
	gmem_put_le32(page, 1);
	put_entry(entry_at(page, 0), e);
}

/* Alone in a page, the entry is refused and corrected, or taken; corrected it is taken as it is. */
static void check_one(const struct entry *e, const struct gmem_snp_cpu *cpu)
{
	bool right = !memcmp(e->in, e->want, sizeof(e->in)), correctable = right;
	uint8_t page[PAGE], want[PAGE];
	struct entry w = *e;

	memcpy(w.in, e->want, sizeof(w.in));
	put_one(want, &w);
	put_one(page, e);
	if (gmem_snp_cpuid_check(page, cpu, &correctable) != (right ? 0 : REFUSED) || correctable == right)
		FAIL("leaf 0x%x.%u: not %s", e->leaf, e->subleaf, right ? "taken" : "refused and corrected");
	for (int i = 0; i < 4; i++)
		if (gmem_get_le32(page + 40 + 4 * i) != e->want[i])
			FAIL("leaf 0x%x.%u: e%cx 0x%x became 0x%x, not 0x%x", e->leaf, e->subleaf, "abcd"[i],
			     e -> in[i], gmem_get_le32(page + 40 + 4 * i), e -> want[i]);
	CHECK_MEM(page, want, PAGE);
	CHECK_EQ(gmem_snp_cpuid_check(page, cpu, &correctable), 0);
	CHECK(!correctable);
	CHECK_MEM(page, want, PAGE);
}

static void check_all(const struct entry *e, size_t n)
{
	for (size_t i = 0; i < n; i++)
		check_one(&e[i], &genoa);
}

#define CHECK_ALL(entries) check_all(entries, sizeof(entries) / sizeof((entries)[0]))

TEST(a_rule_of_each_kind)
{
	static const struct entry entries[] = {
		/* At most; unchecked: the vendor's name. */
		{ 0, 0, 0, 0, { 0x10, 1, 2, 3 }, { 0x10, 1, 2, 3 } },
		{ 0, 0, 0, 0, { 0, ~0u, ~0u, ~0u }, { 0, ~0u, ~0u, ~0u } },
		{ 0, 0, 0, 0, { 0x11, 1, 2, 3 }, { 0x10, 1, 2, 3 } },
		{ 0x80000000, 0, 0, 0, { 0x80000029, 0, 0, 0 }, { 0x80000028, 0, 0, 0 } },
		/* Unchecked, but for reserved bits. */
		{ 5, 0, 0, 0, { 0x40, 0x40, 3, 0x11 }, { 0x40, 0x40, 3, 0x11 } },
		{ 5, 0, 0, 0, { 0x10040, 0x80000040, 7, 0x100 }, { 0x40, 0x40, 3, 0 } },
		{ 0x80000006, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { ~0u, ~0u, ~0u, 0xfffcffff } },
		{ 2, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { ~0u, ~0u, ~0u, ~0u } },
		/* A mask, zero exactly. */
		{ 6, 0, 0, 0, { 4, 0, 1, 0 }, { 4, 0, 1, 0 } },
		{ 6, 0, 0, 0, { 7, 1, 9, 0x80000000 }, { 4, 0, 1, 0 } },
		{ 7, 1, 0, 0, { 0x30, 1, 1, 1 }, { 0x20, 0, 0, 0 } },
		/* Other values exactly: too little is as wrong as too much. */
		{ 0xd, 2, 0, 0, { 0x100, 0x240, 0, 0 }, { 0x100, 0x240, 0, 0 } },
		{ 0xd, 2, 0, 0, { 0, 0, 0, 0 }, { 0x100, 0x240, 0, 0 } },
		{ 0xd, 5, 0, 0, { 0x41, 0x341, 7, 1 }, { 0x40, 0x340, 3, 0 } },
		{ 0xd, 6, 0, 0, { 0x1ff, 0, 0, 0 }, { 0x200, 0x380, 0, 0 } },
		{ 0xd, 7, 0, 0, { 0, 0x580, 1, 0 }, { 0x400, 0x580, 1, 0 } },
		{ 0xd, 9, 0, 0, { 8, 0x980, 1, 0 }, { 8, 0x980, 0, 0 } },
		{ 0xd, 0xb, 0, 0, { 0x10, 0, 0, 0 }, { 0x10, 0, 1, 0 } },
		{ 0xd, 0xc, 0, 0, { 0x18, 4, 3, 0 }, { 0x18, 0, 1, 0 } },
		/* The rest of the table, everything at once. */
		{ 4, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { ~0u, ~0u, ~0u, ~0u } },
		{ 0xb, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { 0x1f, 0xffff, 0xffff, ~0u } },
		{ 0xb, 1, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { 0x1f, 0xffff, 0xffff, ~0u } },
		{ 0xb, 2, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { 0x1f, 0xffff, 0xffff, ~0u } },
		{ 0xf, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { 0, ~0u, 0, 2 } },
		{ 0xf, 1, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { 0x1ff, ~0u, ~0u, 7 } },
		{ 0x10, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { 0, 6, 0, 0 } },
		{ 0x10, 1, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { 0x1f, ~0u, 4, 0xffff } },
		{ 0x80000002, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { ~0u, ~0u, ~0u, ~0u } },
		{ 0x80000003, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { ~0u, ~0u, ~0u, ~0u } },
		{ 0x80000004, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { ~0u, ~0u, ~0u, ~0u } },
		{ 0x80000005, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { ~0u, ~0u, ~0u, ~0u } },
		{ 0x80000007, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { 0, 0x3b, ~0u, 0x6799 } },
		{ 0x8000000a, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { 0xff, ~0u, 0, 0x1fbfbcff } },
		{ 0x80000019, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { ~0u, ~0u, 0, 0 } },
		{ 0x8000001a, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { 7, 0, 0, 0 } },
		{ 0x8000001b, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { 0xbff, 0, 0, 0 } },
		{ 0x8000001d, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { 0x03ffc3ff, ~0u, ~0u, 3 } },
		{ 0x8000001d, 3, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { 0x03ffc3ff, ~0u, ~0u, 3 } },
		{ 0x8000001d, 4, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { 0xf, 0, ~0u, 0 } },
		{ 0x8000001e, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { ~0u, 0xffff, 0x7ff, 0 } },
		{ 0x80000020, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { 0, 0x1e, 0, 0 } },
		{ 0x80000020, 1, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { ~0u, 0, 0, ~0u } },
		{ 0x80000020, 2, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { ~0u, 0, 0, ~0u } },
		{ 0x80000020, 3, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { 0, ~0u, 0x7f, 0 } },
		{ 0x80000021, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { 0x18062fcf, 0xfff, 0, 0 } },
		{ 0x80000023, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { 1, ~0u, 0, 0 } },
		{ 0x80000024, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { 1, 1, 3, 0 } },
		{ 0x80000024, 1, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { 0x1ff, 0, 0, 0 } },
		{ 0x80000026, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { ~0u, ~0u, ~0u, ~0u } },
		{ 0x80000026, 3, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { ~0u, ~0u, ~0u, ~0u } },
	};

	CHECK_ALL(entries);
}

TEST(features_and_what_is_the_guests)
{
	static const struct entry entries[] = {
		/* CLFLUSH 8, APIC number and count free; OSXSAVE and the hypervisor's bit free. */
		{ 1, 0, 0, 0, { 0x800f12, 0x07040800, 0x88000000, 0 }, { 0x800f12, 0x07040800, 0x88000000, 0 } },
		{ 1, 0, 0, 0, { 0x800f12, 0x07040000, 0, 0 }, { 0x800f12, 0x07040800, 0, 0 } },
		{ 1, 0, 0, 0, { 0x800f12, 0x00000901, 0, 0 }, { 0x800f12, 0x00000800, 0, 0 } },
		{ 1, 0, 0, 0, { 0, 0x800, ~0u, ~0u }, { 0, 0x800, 0xfefa320b, 0x178bfbff } },
		/* OSPKE free; of EDX all goes if a bit is wrong. */
		{ 7, 0, 0, 0, { 0, 0, 0x10, 0x10000010 }, { 0, 0, 0x10, 0x10000010 } },
		{ 7, 0, 0, 0, { 2, ~0u, ~0u, 0x10000010 }, { 1, 0xf1bf97a9, 0x00415fde, 0x10000010 } },
		{ 7, 0, 0, 0, { 1, 0, 0, 0x10000011 }, { 1, 0, 0, 0 } },
		{ 0x80000001, 0, 0, 0, { 0, 0xf0000000, 0, 0 }, { 0, 0xf0000000, 0, 0 } },
		{ 0x80000001, 0, 0, 0, { 0, ~0u, ~0u, ~0u }, { 0, 0xf0000000, 0x75c237ff, 0x2fd3fbff } },
	};

	CHECK_ALL(entries);
}

TEST(sizes_of_the_xsave_area)
{
	static const struct entry entries[] = {
		/* x87 and SSE cannot be missing. */
		{ 0xd, 0, 0, 0, { 0x2e7, 0x240, 0x988, 0 }, { 0x2e7, 0x240, 0x988, 0 } },
		{ 0xd, 0, 1, 0, { 0, 0x240, ~0u, 0 }, { 3, 0x240, ~0u, 0 } },
		{ 0xd, 0, 3, 0, { ~0u, 0, 0, 1 }, { 0x2e7, 0x240, 0, 0 } },
		{ 0xd, 0, 0x7, 0, { 7, 0x240, 0, 0 }, { 7, 0x340, 0, 0 } },
		{ 0xd, 0, 0x27, 0, { 7, 0x340, 0, 0 }, { 7, 0x380, 0, 0 } },
		{ 0xd, 0, 0x67, 0, { 7, 0x340, 0, 0 }, { 7, 0x580, 0, 0 } },
		{ 0xd, 0, 0xe7, 0, { 7, 0x340, 0, 0 }, { 7, 0x980, 0, 0 } },
		{ 0xd, 0, 0x2e7, 0, { 7, 0x340, 0, 0 }, { 7, 0x988, 0, 0 } },
		{ 0xd, 0, 0x203, 0, { 7, 0x988, 0, 0 }, { 7, 0x988, 0, 0 } },
		{ 0xd, 0, UINT64_C(0x700000000), 0, { 7, 0x340, 0, 0 }, { 7, 0x240, 0, 0 } },
		/* The compacted form: a sum. */
		{ 0xd, 1, 0x3, 0, { 0xf, 0x240, 0x1800, 0 }, { 0xf, 0x240, 0x1800, 0 } },
		{ 0xd, 1, 0x3, 0, { 0x1f, 0, 0x3800, 4 }, { 0xf, 0x240, 0x1800, 0 } },
		{ 0xd, 1, 0x7, 0, { 0, 0, 0, 0 }, { 0, 0x340, 0, 0 } },
		{ 0xd, 1, 0x23, 0, { 0, 0, 0, 0 }, { 0, 0x280, 0, 0 } },
		{ 0xd, 1, 0x43, 0, { 0, 0, 0, 0 }, { 0, 0x440, 0, 0 } },
		{ 0xd, 1, 0x83, 0, { 0, 0, 0, 0 }, { 0, 0x640, 0, 0 } },
		{ 0xd, 1, 0x203, 0, { 0, 0, 0, 0 }, { 0, 0x248, 0, 0 } },
		{ 0xd, 1, 0x2e7, 0, { 0, 0, 0, 0 }, { 0, 0x988, 0, 0 } },
		{ 0xd, 1, 0x3, 0x800, { 0, 0, 0, 0 }, { 0, 0x250, 0, 0 } },
		{ 0xd, 1, 0x3, 0x1000, { 0, 0, 0, 0 }, { 0, 0x258, 0, 0 } },
		{ 0xd, 1, 0x207, 0x1800, { 0, 0x370, 0, 0 }, { 0, 0x370, 0, 0 } },
	};

	CHECK_ALL(entries);
}

TEST(fields_of_a_register_have_limits_of_their_own)
{
	static const struct entry entries[] = {
		/* Address widths. */
		{ 0x80000008, 0, 0, 0, { 0xff3934, 0, 0, 0x10007 }, { 0xff3934, 0, 0, 0x10007 } },
		{ 0x80000008, 0, 0, 0, { 0x3035, 0, 0, 8 }, { 0x3034, 0, 0, 7 } },
		{ 0x80000008, 0, 0, 0, { 0x3a30, 0, 0, 0x20001 }, { 0x3930, 0, 0, 0x10001 } },
		{ 0x80000008, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { 0xff3934, 0x79bef35f, 0x3f0ff, 0x10007 } },
		/* The C-bit is 51; bits 6 to 11 are free as long as it is right; four VMPLs. */
		{ 0x8000001f, 0, 0, 0, { 0x30fffff, 0x4ff3, ~0u, ~0u }, { 0x30fffff, 0x4ff3, ~0u, ~0u } },
		{ 0x8000001f, 0, 0, 0, { ~0u, 0x5173, 0, 0 }, { 0x30fffff, 0x4173, 0, 0 } },
		{ 0x8000001f, 0, 0, 0, { 2, 0x116f, 0, 0 }, { 2, 0x1033, 0, 0 } },
		{ 0x8000001f, 0, 0, 0, { 2, 0x33, 0, 0 }, { 2, 0x33, 0, 0 } },
		{ 0x8000001f, 0, 0, 0, { 2, 0x11173, 0, 0 }, { 2, 0x1033, 0, 0 } },
		{ 0x8000001f, 0, 0, 0, { 0, 0x37, 0, 0 }, { 0, 0x33, 0, 0 } },
		/* Counters and branch records; the rest of EBX is free. */
		{ 0x80000022, 0, 0, 0, { 7, 0xfffffd06, 1, 0 }, { 7, 0xfffffd06, 1, 0 } },
		{ 0x80000022, 0, 0, 0, { 8, 0x117, 0, 1 }, { 0, 0x106, 0, 0 } },
		{ 0x80000022, 0, 0, 0, { 0, ~0u, ~0u, 0 }, { 0, 0xfffffd06, ~0u, 0 } },
	};

	CHECK_ALL(entries);
}

TEST(no_guest_has_a_newer_processor)
{
	static const struct {
		uint32_t machine, guest, want;
	} cases[] = {
		{ 0xa10f11, 0xa10f11, 0xa10f11 },
		{ 0xa10f11, 0xa10f10, 0xa10f10 },
		{ 0xa10f11, 0xa10f12, 0xa10f11 },
		{ 0xa10f11, 0xa00f1f, 0xa00f1f },
		{ 0xa10f11, 0xb00f00, 0xa10f11 },
		{ 0xa10f11, 0x800f12, 0x800f12 },
		{ 0xa10f11, 0x8f0fff, 0x8f0fff },
		{ 0xa00f11, 0xa10f11, 0xa00f11 },
		{ 0xa00f11, 0xa00f10, 0xa00f10 },
		{ 0xa10f11, 0, 0 },
		/* Reserved bits. */
		{ 0xa10f11, 0xf0a0ff11, 0x00a00f11 & 0x0fff0fff },
		/* The digits of a model are added: 0x02 is as new as 0x11, and 0x03 newer. */
		{ 0xa10f11, 0xa00f21, 0xa00f21 },
		{ 0xa10f11, 0xa00f31, 0xa10f11 },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const struct gmem_snp_cpu cpu = { .fms = cases[i].machine };
		struct entry e = { .leaf = 1 };

		e.in[0] = cases[i].guest;
		e.want[0] = cases[i].want;
		e.in[1] = e.want[1] = 0x800;
		check_one(&e, &cpu);
		e.leaf = 0x80000001;
		e.in[1] = e.want[1] = 0;
		check_one(&e, &cpu);
	}
}

TEST(leaves_without_rules)
{
	static const struct entry entries[] = {
		/* Inside AMD's ranges nothing may be said. */
		{ 3, 0, 0, 0, { 0, 0, 0, 0 }, { 0, 0, 0, 0 } },
		{ 3, 0, 0, 0, { 0, 0, 0, 1 }, { 0, 0, 0, 0 } },
		{ 0xffff, 0, 0, 0, { 1, 2, 3, 4 }, { 0, 0, 0, 0 } },
		{ 0x8000ffff, 0, 0, 0, { 1, 2, 3, 4 }, { 0, 0, 0, 0 } },
		/* A leaf without subleaves has none. */
		{ 0, 1, 0, 0, { 0x10, 0, 0, 0 }, { 0, 0, 0, 0 } },
		{ 1, 0xffffffff, 0, 0, { 0x800f12, 0x800, 0, 0 }, { 0, 0, 0, 0 } },
		{ 0xd, 3, 0, 0, { 1, 0, 0, 0 }, { 0, 0, 0, 0 } },
		{ 0x80000026, 4, 0, 0, { 1, 0, 0, 0 }, { 0, 0, 0, 0 } },
		/* Outside, anything. */
		{ 0x10000, 0, 0, 0, { 1, 2, 3, 4 }, { 1, 2, 3, 4 } },
		{ 0x40000000, 0, 0, 0, { ~0u, ~0u, ~0u, ~0u }, { ~0u, ~0u, ~0u, ~0u } },
		{ 0x7fffffff, 0, 0, 0, { 1, 2, 3, 4 }, { 1, 2, 3, 4 } },
		{ 0x80010000, 0, 0, 0, { 1, 2, 3, 4 }, { 1, 2, 3, 4 } },
		{ 0xffffffff, 0, 0, 0, { 1, 2, 3, 4 }, { 1, 2, 3, 4 } },
	};

	CHECK_ALL(entries);
}

TEST(a_header_that_is_wrong_is_not_corrected)
{
	static const struct entry bad = { .leaf = 3, .in = { 1 } };
	uint8_t page[PAGE], was[PAGE];
	bool correctable;

	for (unsigned int i = 4; i < 16; i++) {
		put_one(page, &bad);
		page[i] = 0x80;
		memcpy(was, page, PAGE);
		correctable = true;
		CHECK_EQ(gmem_snp_cpuid_check(page, &genoa, &correctable), REFUSED);
		CHECK(!correctable);
		CHECK_MEM(page, was, PAGE);
	}
	put_one(page, &bad);
	gmem_put_le32(page, 65);
	memcpy(was, page, PAGE);
	correctable = true;
	CHECK_EQ(gmem_snp_cpuid_check(page, &genoa, &correctable), REFUSED);
	CHECK(!correctable);
	gmem_put_le32(page, UINT32_MAX);
	CHECK_EQ(gmem_snp_cpuid_check(page, &genoa, &correctable), REFUSED);
	CHECK(!correctable);
	gmem_put_le32(page, 65);
	CHECK_MEM(page, was, PAGE);
	/* What is not counted is not looked at. */
	gmem_put_le32(page, 0);
	CHECK_EQ(gmem_snp_cpuid_check(page, &genoa, &correctable), 0);
	CHECK(!correctable);
}

TEST(the_last_of_64_is_checked_and_no_more)
{
	static const struct entry bad = { .leaf = 3, .in = { 1, 2, 3, 4 } };
	uint8_t page[PAGE], want[PAGE];
	bool correctable;

	memset(page, 0xee, PAGE);
	memset(page, 0, 16 + 48 * 64);
	gmem_put_le32(page, 64);
	memcpy(want, page, PAGE);
	gmem_put_le32(entry_at(want, 63), 3);
	put_entry(entry_at(page, 63), &bad);
	CHECK_EQ(gmem_snp_cpuid_check(page, &genoa, &correctable), REFUSED);
	CHECK(correctable);
	/* Entries of zeros are leaf 0, with no leaves: right. */
	CHECK_MEM(page, want, PAGE);
	put_entry(entry_at(page, 63), &bad);
	gmem_put_le32(page, 63);
	CHECK_EQ(gmem_snp_cpuid_check(page, &genoa, &correctable), 0);
}

TEST(reserved_bytes_of_an_entry_stay_wrong)
{
	struct entry e = { .leaf = 3, .in = { 1 } };
	uint8_t page[PAGE], was[PAGE];
	bool correctable;

	for (unsigned int i = 40; i < 48; i++) {
		put_one(page, &e);
		entry_at(page, 0)[i] = 1;
		CHECK_EQ(gmem_snp_cpuid_check(page, &genoa, &correctable), REFUSED);
		CHECK(correctable);
		CHECK_EQ(gmem_get_le32(page + 40), 0);
		memcpy(was, page, PAGE);
		CHECK_EQ(gmem_snp_cpuid_check(page, &genoa, &correctable), REFUSED);
		CHECK_MEM(page, was, PAGE);
	}
	/* In other ranges they are anything, too. */
	e.leaf = 0x40000000;
	put_one(page, &e);
	entry_at(page, 0)[40] = 1;
	CHECK_EQ(gmem_snp_cpuid_check(page, &genoa, &correctable), 0);
}

/* Mostly leaves that have rules, and registers of few bits as of many. */
static void put_random(uint8_t *page, uint64_t *seed)
{
	unsigned int n = tap_rand(seed) % 65;

	for (unsigned int i = 0; i < PAGE; i += 8)
		gmem_put_le64(page + i, tap_rand(seed));
	memset(page, 0, 16);
	gmem_put_le32(page, n);
	for (unsigned int i = 0; i < n; i++) {
		uint64_t r = tap_rand(seed);
		struct entry e = { .leaf = (uint32_t)(r & 0x3f), .subleaf = r >> 8 & 0x7 ? 0 : r >> 16 & 0xf };

		e.leaf |= r >> 24 & 1 ? 0x80000000 : r >> 25 & 0xf ? 0 : 0x40000000;
		e.xcr0 = r >> 32 & 0x3ff;
		e.xss = r >> 44 & 0x1fff;
		for (int k = 0; k < 4; k++)
			e.in[k] = (uint32_t)(tap_rand(seed) & (r >> 60 & 1 ? tap_rand(seed) & tap_rand(seed) : ~0ull));
		put_entry(entry_at(page, i), &e);
	}
}

TEST(a_corrected_page_is_taken)
{
	uint64_t seed = tap_seed();
	unsigned int refused = 0, rounds = tap_slow() ? 200 : 5000;

	for (unsigned int round = 0; round < rounds; round++) {
		uint8_t page[PAGE], was[PAGE], corrected[PAGE];
		const struct gmem_snp_cpu cpu = { .fms = (uint32_t)tap_rand(&seed) & 0x0fff0fff };
		bool correctable, again;
		uint32_t status;

		put_random(page, &seed);
		memcpy(was, page, PAGE);
		status = gmem_snp_cpuid_check(page, &cpu, &correctable);
		CHECK(status == 0 || status == REFUSED);
		CHECK_EQ(correctable, status != 0);
		CHECK_EQ(!memcmp(page, was, PAGE), status == 0);
		memcpy(corrected, page, PAGE);
		CHECK_EQ(gmem_snp_cpuid_check(page, &cpu, &again), 0);
		CHECK(!again);
		CHECK_MEM(page, corrected, PAGE);
		/* Outputs only, and of entries only. */
		for (unsigned int i = 0; i < PAGE; i++)
			if (page[i] != was[i])
				CHECK(i >= 16 && (i - 16) / 48 < gmem_get_le32(was) && (i - 16) % 48 >= 24 &&
				      (i - 16) % 48 < 40);
		refused += status != 0;
	}
	CHECK(refused > rounds / 2);
}
