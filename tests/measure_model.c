/* SPDX-License-Identifier: MIT */
/*
 * Random small guests against a naive model: each step of a launch is one EVP_Digest() over bytes laid out here. One
 * object is asked for many guests, in any order, and has to answer as if it had been made for each; the ranges it tells
 * of are those of the model, one by one.
 */
#include "tap.h"

#include <openssl/evp.h>

#include "measure_util.h"

#define PAGE 4096u
#define LEN GMEM_LAUNCH_DIGEST_LEN
#define MAX_RANGES 64u
#define MAX_IMAGE_PAGES 200u

struct model {
	uint8_t ld[LEN]; /* SNP */
	uint8_t *stream; /* TDX: all that is hashed */
	size_t stream_len;
	struct gmem_measure_range ranges[MAX_RANGES];
	char names[MAX_RANGES][24];
	unsigned int nranges, told;
};

static void sha384(const void *data, size_t len, uint8_t *ret)
{
	uint8_t md[EVP_MAX_MD_SIZE];

	CHECK_EQ(EVP_Digest(data, len, md, NULL, EVP_sha384(), NULL), 1);
	memcpy(ret, md, LEN);
}

static void sha256(const void *data, size_t len, uint8_t *ret)
{
	uint8_t md[EVP_MAX_MD_SIZE];

	CHECK_EQ(EVP_Digest(data, len, md, NULL, EVP_sha256(), NULL), 1);
	memcpy(ret, md, 32);
}

static void add_range(struct model *m, const char *name, uint64_t gpa, uint64_t len, bool contents)
{
	struct gmem_measure_range *r = &m->ranges[m->nranges];

	CHECK(m->nranges < MAX_RANGES);
	snprintf(m->names[m->nranges], sizeof(m->names[0]), "%s", name);
	*r = (struct gmem_measure_range){
		.size = sizeof(*r), .name = m->names[m->nranges], .gpa = gpa, .len = len, .contents = contents
	};
	if (m->stream)
		sha384(m->stream, m->stream_len, r->digest);
	else
		memcpy(r->digest, m->ld, LEN);
	m->nranges++;
}

static void snp_page(struct model *m, uint8_t type, uint64_t gpa, const void *page)
{
	uint8_t info[112] = { 0 };

	memcpy(info, m->ld, LEN);
	if (type <= 2)
		sha384(page, PAGE, info + 48);
	info[96] = 112;
	info[98] = type;
	gmem_put_le64(info + 104, gpa);
	sha384(info, sizeof(info), m->ld);
}

static void snp_pages(struct model *m, uint8_t type, uint64_t gpa, const uint8_t *pages, uint64_t len)
{
	for (uint64_t at = 0; at < len; at += PAGE)
		snp_page(m, type, gpa + at, pages ? pages + at : NULL);
}

/* A number of 1, 2, 4 or 8 bytes at an offset of a VMSA page. */
struct field {
	unsigned int off, len;
	uint64_t value;
};

static void put_fields(uint8_t *page, const struct field *fields, size_t n)
{
	for (size_t i = 0; i < n; i++)
		for (unsigned int b = 0; b < fields[i].len; b++)
			page[fields[i].off + b] = (uint8_t)(fields[i].value >> (8 * b));
}

#define PUT_FIELDS(page, ...)                                   \
	put_fields(page, (const struct field[]){ __VA_ARGS__ }, \
		   sizeof((const struct field[]){ __VA_ARGS__ }) / sizeof(struct field))

/* QEMU's, and then what others have otherwise. */
static void build_vmsa(uint8_t *page, const struct gmem_guest *g, uint32_t eip)
{
	bool first = eip == 0xfffffff0;

	memset(page, 0, PAGE);
	for (unsigned int seg = 0; seg < 10; seg++)
		PUT_FIELDS(page, { 16 * seg + 2, 2, 0x93 }, { 16 * seg + 4, 4, 0xffff });
	PUT_FIELDS(page, { 0x10, 2, 0xf000 }, { 0x12, 2, 0x9b }, { 0x18, 8, eip & 0xffff0000 }, { 0x62, 2, 0 },
		   { 0x72, 2, 0x82 }, { 0x82, 2, 0 }, { 0x92, 2, 0x8b }, { 0xd0, 8, 0x1000 }, { 0x148, 8, 0x40 },
		   { 0x158, 8, 0x10 }, { 0x160, 8, 0x400 }, { 0x168, 8, 0xffff0ff0 }, { 0x170, 8, 2 },
		   { 0x178, 8, eip & 0xffff }, { 0x268, 8, 0x7040600070406 }, { 0x310, 8, g->signature },
		   { 0x3b0, 8, g->sev_features ? g->sev_features : 1 }, { 0x3e8, 8, 1 }, { 0x408, 4, 0x1f80 },
		   { 0x410, 2, 0x37f });
	if (g->vmm == GMEM_VMM_EC2 || g->vmm == GMEM_VMM_KRUN)
		PUT_FIELDS(page, { 0x12, 2, 0x9a }, { 0x22, 2, 0x92 }, { 0x92, 2, 0x83 }, { 0x310, 8, 0 },
			   { 0x408, 4, 0 }, { 0x410, 2, 0 });
	if (g->vmm == GMEM_VMM_EC2 && !first)
		PUT_FIELDS(page, { 0x12, 2, 0x9b });
	if (g->vmm == GMEM_VMM_EC2 && !(g->flags & GMEM_GUEST_EC2_RDX_ZERO))
		PUT_FIELDS(page, { 0x310, 8, 0x600 });
	if (g->vmm == GMEM_VMM_KRUN && first)
		PUT_FIELDS(page, { 0x1d8, 8, 0x8ff0 }, { 0x328, 8, 0x8ff0 }, { 0x330, 8, 0x7000 });
	if (g->vmm == GMEM_VMM_GCE)
		PUT_FIELDS(page, { 0x268, 8, 0x70106 }, { 0x310, 8, 0x600 }, { 0x408, 4, 0 }, { 0x410, 2, 0 });
	if (g->vmm != GMEM_VMM_SVSM)
		return;
	for (unsigned int seg = 0; seg < 5; seg++)
		PUT_FIELDS(page, { 16 * seg, 2, 0x10 }, { 16 * seg + 2, 2, 0xc93 }, { 16 * seg + 4, 4, 0xffffffff });
	PUT_FIELDS(page, { 0x10, 2, 8 }, { 0x12, 2, 0xc9b }, { 0x18, 8, 0 }, { 0x158, 8, 0x11 }, { 0x178, 8, eip },
		   { 0x3b0, 8, 1 });
}

static void kernel_table(uint8_t *at, const struct gmem_kernel_hashes *kernel)
{
	put_guid(at, "9438d6064f224cc9b479a793d411fd21");
	gmem_put_le16(at + 16, 168);
	put_guid(at + 18, "97d02dd8bd204c94aa78e7714d36ab2a");
	gmem_put_le16(at + 34, 50);
	memcpy(at + 36, kernel->cmdline, 32);
	put_guid(at + 68, "44baf7313a2f4bd79af141e29169781d");
	gmem_put_le16(at + 84, 50);
	memcpy(at + 86, kernel->initrd, 32);
	put_guid(at + 118, "4de79437abd2427fb835d5b172d2045b");
	gmem_put_le16(at + 134, 50);
	memcpy(at + 136, kernel->kernel, 32);
}

static void snp_section(struct model *m, const struct gmem_guest *g, const struct image_tables *t,
			const struct gmem_sev_section *s)
{
	uint8_t page[PAGE] = { 0 };

	switch (s->type) {
	case GMEM_SEV_SECTION_MEM:
		snp_pages(m, g->vmm == GMEM_VMM_GCE ? 4 : 3, s->gpa, NULL, s->len);
		add_range(m, "sec-mem", s->gpa, s->len, false);
		break;
	case GMEM_SEV_SECTION_SECRETS:
		snp_pages(m, 5, s->gpa, NULL, s->len);
		add_range(m, "secrets", s->gpa, s->len, false);
		break;
	case GMEM_SEV_SECTION_CPUID:
		snp_pages(m, 6, s->gpa, NULL, s->len);
		add_range(m, "cpuid", s->gpa, s->len, false);
		break;
	case GMEM_SEV_SECTION_SVSM_CAA:
		snp_pages(m, 3, s->gpa, NULL, s->len);
		add_range(m, "svsm-caa", s->gpa, s->len, false);
		break;
	default:
		if (g->kernel)
			kernel_table(page + t->hashes.gpa % PAGE, g->kernel);
		snp_pages(m, g->kernel ? 1 : 3, s->gpa, page, s->len);
		add_range(m, "kernel-hashes", s->gpa, s->len, g->kernel);
	}
}

/* `t` is what the firmware's tables say, or the SVSM's if there is one. */
static void model_snp(struct model *m, const struct gmem_guest *g, const struct image_tables *t)
{
	uint64_t gpa = (1ull << 32) - g->firmware_len;
	uint8_t page[PAGE];
	char name[24];

	snp_pages(m, 1, gpa, g->firmware, g->firmware_len);
	if (g->firmware_digest)
		memcpy(m->ld, g->firmware_digest, LEN);
	add_range(m, "firmware", gpa, g->firmware_len, true);
	if (g->vmm == GMEM_VMM_SVSM) {
		gpa -= g->vars_len + g->svsm_len;
		snp_pages(m, 1, gpa, g->svsm, g->svsm_len);
		add_range(m, "svsm", gpa, g->svsm_len, true);
	}
	for (unsigned int i = 0; i < t->nsev; i++)
		if (g->vmm != GMEM_VMM_EC2 || t->sev[i].type != GMEM_SEV_SECTION_CPUID)
			snp_section(m, g, t, &t->sev[i]);
	for (unsigned int i = 0; i < t->nsev; i++)
		if (g->vmm == GMEM_VMM_EC2 && t->sev[i].type == GMEM_SEV_SECTION_CPUID)
			snp_section(m, g, t, &t->sev[i]);
	for (uint32_t i = 0; i < g->nvcpus; i++) {
		uint32_t eip = i ? t->reset_eip : 0xfffffff0;

		build_vmsa(page, g, g->vmm == GMEM_VMM_SVSM ? (uint32_t)gpa + t->svsm_entry : eip);
		snp_page(m, 2, 0xfffffffff000, page);
		snprintf(name, sizeof(name), "vmsa %u", i);
		add_range(m, name, 0xfffffffff000, PAGE, true);
	}
}

static void tdx_call(struct model *m, const char *call, uint64_t gpa, const void *data, size_t len)
{
	uint8_t *at;

	m->stream = realloc(m->stream, m->stream_len + 128 + len);
	CHECK(m->stream);
	at = m->stream + m->stream_len;
	memset(at, 0, 128);
	strcpy((char *)at, call);
	gmem_put_le64(at + 16, gpa);
	if (len)
		memcpy(at + 128, data, len);
	m->stream_len += 128 + len;
}

static void model_tdx(struct model *m, const struct gmem_guest *g, const struct image_tables *t)
{
	static const char *const names[] = { "BFV",	 "CFV",	    "TD_HOB",	     "TEMP_MEM",
					     "PERM_MEM", "PAYLOAD", "PAYLOAD_PARAM", "TD_INFO" };

	for (unsigned int i = 0; i < t->ntdvf; i++) {
		const struct gmem_tdvf_section *s = &t->tdvf[i];
		bool measured = s->attr & GMEM_TDVF_MR_EXTEND;
		uint8_t *bytes;

		if (s->attr & GMEM_TDVF_PAGE_AUG)
			continue;
		bytes = calloc(1, s->len);
		CHECK(bytes);
		memcpy(bytes, (const uint8_t *)g->firmware + s->off, s->raw_len);
		for (uint64_t at = 0; at < s->len; at += 256) {
			if (at % PAGE == 0)
				tdx_call(m, "MEM.PAGE.ADD", s->gpa + at, NULL, 0);
			if (measured && !(g->flags & GMEM_GUEST_TWO_PASS))
				tdx_call(m, "MR.EXTEND", s->gpa + at, bytes + at, 256);
		}
		for (uint64_t at = 0; measured && g->flags & GMEM_GUEST_TWO_PASS && at < s->len; at += 256)
			tdx_call(m, "MR.EXTEND", s->gpa + at, bytes + at, 256);
		free(bytes);
		add_range(m, names[s->type], s->gpa, s->len, measured);
	}
	sha384(m->stream, m->stream_len, m->ld);
}

static int as_in_model(void *opaque, const struct gmem_measure_range *range)
{
	struct model *m = opaque;
	const struct gmem_measure_range *want = &m->ranges[m->told];

	CHECK(m->told < m->nranges);
	CHECK_EQ(range->size, sizeof(*range));
	CHECK_STR(range->name, want->name);
	CHECK_EQ(range->gpa, want->gpa);
	CHECK_EQ(range->len, want->len);
	CHECK_EQ(range->contents, want->contents);
	CHECK_MEM(range->digest, want->digest, LEN);
	m->told++;
	return 0;
}

static void check_guest(enum gmem_vm_type type, struct gmem_measure *measure, const struct gmem_guest *g,
			const struct image_tables *t, bool explain)
{
	struct model *m = calloc(1, sizeof(*m));
	uint8_t got[LEN];

	CHECK(m);
	if (type == GMEM_VM_SNP)
		model_snp(m, g, t);
	else
		model_tdx(m, g, t);
	CHECK_OK(gmem_measure_digest(measure, g, explain ? as_in_model : NULL, m, got));
	CHECK_MEM(got, m->ld, LEN);
	CHECK_EQ(m->told, explain ? m->nranges : 0);
	free(m->stream);
	free(m);
}

/* Up to seven sections with holes between them, below the images. */
static void random_sections(uint64_t *seed, struct image_tables *t)
{
	static const uint32_t types[] = { GMEM_SEV_SECTION_MEM, GMEM_SEV_SECTION_SECRETS, GMEM_SEV_SECTION_CPUID,
					  GMEM_SEV_SECTION_SVSM_CAA };
	uint64_t gpa = 0x800000, kernel = tap_rand(seed) % 10;

	t->nsev = 1 + (unsigned int)(tap_rand(seed) % 7);
	for (unsigned int i = 0; i < t->nsev; i++) {
		struct gmem_sev_section *s = &t->sev[i];

		gpa += tap_rand(seed) % 3 * PAGE;
		*s = (struct gmem_sev_section){ gpa, PAGE, types[tap_rand(seed) % 4] };
		if (s->type == GMEM_SEV_SECTION_MEM || s->type == GMEM_SEV_SECTION_SVSM_CAA)
			s->len = (1 + tap_rand(seed) % 9) * PAGE;
		if (i == kernel) {
			*s = (struct gmem_sev_section){ gpa, PAGE, GMEM_SEV_SECTION_KERNEL_HASHES };
			t->hashes.gpa = gpa + tap_rand(seed) % (PAGE - 176);
			t->hashes.len = gpa + PAGE - t->hashes.gpa;
		}
		gpa += s->len;
	}
}

static void random_guest(uint64_t *seed, struct gmem_guest *g, struct gmem_kernel_hashes *kernel,
			 const struct image_tables *t, uint8_t *firmware_digest)
{
	if (g->vmm != GMEM_VMM_SVSM)
		g->vmm = (enum gmem_vmm)(tap_rand(seed) % GMEM_VMM_SVSM);
	g->flags = tap_rand(seed) % 2 ? GMEM_GUEST_EC2_RDX_ZERO : 0;
	g->nvcpus = 1 + (uint32_t)(tap_rand(seed) % 5);
	g->signature = 1 + (uint32_t)(tap_rand(seed) % 0xffffff);
	g->sev_features = tap_rand(seed) % 3 ? tap_rand(seed) : 0;
	g->kernel = t->hashes.gpa && tap_rand(seed) % 2 ? kernel : NULL;
	kernel->cmdline[0] = (uint8_t)(tap_rand(seed) % 2);
	g->firmware_digest = tap_rand(seed) % 4 ? NULL : firmware_digest;
	firmware_digest[0] = (uint8_t)(tap_rand(seed) % 2);
}

TEST_TIMEOUT(snp_guests_as_in_the_model, 120)
{
	unsigned int rounds = tap_slow() ? 6 : 40;
	uint64_t seed = tap_seed();

	for (unsigned int round = 0; round < rounds; round++) {
		struct image_tables tables = { .reset_eip = 0x80b004 + (uint32_t)(tap_rand(&seed) % 999) },
				    none = { 0 };
		size_t len = (1 + tap_rand(&seed) % MAX_IMAGE_PAGES) * PAGE, svsm_len;
		uint8_t firmware_digest[LEN] = { 0 };
		struct gmem_kernel_hashes kernel = { { 0 } };
		struct gmem_measure *m;
		struct gmem_guest g;
		bool svsm = tap_rand(&seed) % 4 == 0;

		random_sections(&seed, &tables);
		svsm_len = (1 + tap_rand(&seed) % MAX_IMAGE_PAGES) * PAGE;
		tables.svsm_entry = svsm ? (uint32_t)(1 + tap_rand(&seed) % (svsm_len - 1)) : 0;
		g = guest_of(new_image(len, tap_rand(&seed), svsm ? &none : &tables), len, 1);
		if (svsm) {
			g.vmm = GMEM_VMM_SVSM;
			g.svsm = new_image(svsm_len, tap_rand(&seed), &tables);
			g.svsm_len = svsm_len;
			g.vars_len = tap_rand(&seed) % 20 * PAGE;
		}
		random_guest(&seed, &g, &kernel, &tables, firmware_digest);
		CHECK_OK(gmem_measure_create(GMEM_VM_SNP, &g, NULL, NULL, &m));
		for (unsigned int i = 0; i < 8; i++) {
			check_guest(GMEM_VM_SNP, m, &g, &tables, tap_rand(&seed) % 2);
			random_guest(&seed, &g, &kernel, &tables, firmware_digest);
		}
		gmem_measure_free(m);
		free((void *)(uintptr_t)g.firmware);
		free((void *)(uintptr_t)g.svsm);
	}
}

static void random_tdvf(uint64_t *seed, struct image_tables *t, size_t len)
{
	uint64_t gpa = 0x800000;
	unsigned int hob;

	t->ntdvf = 2 + (unsigned int)(tap_rand(seed) % 6);
	hob = 1 + (unsigned int)(tap_rand(seed) % (t->ntdvf - 1));
	for (unsigned int i = 0; i < t->ntdvf; i++) {
		struct gmem_tdvf_section *s = &t->tdvf[i];

		gpa += tap_rand(seed) % 3 * PAGE;
		*s = (struct gmem_tdvf_section){ .gpa = gpa, .len = (1 + tap_rand(seed) % 9) * PAGE };
		s->type = !i ? GMEM_TDVF_SECTION_BFV : (uint32_t)(tap_rand(seed) % 8);
		if (i && s->type == GMEM_TDVF_SECTION_TD_HOB)
			s->type = GMEM_TDVF_SECTION_TEMP_MEM;
		if (i == hob)
			s->type = GMEM_TDVF_SECTION_TD_HOB;
		if (s->type < GMEM_TDVF_SECTION_TD_HOB)
			s->raw_len = s->len;
		else if (s->type > GMEM_TDVF_SECTION_TEMP_MEM)
			s->raw_len = tap_rand(seed) % (s->len + 1);
		s->off = tap_rand(seed) % (len - s->raw_len + 1);
		s->attr =
			tap_rand(seed) % 3 ? GMEM_TDVF_MR_EXTEND : (uint32_t)(tap_rand(seed) % 2 * GMEM_TDVF_PAGE_AUG);
		gpa += s->len;
	}
}

TEST_TIMEOUT(tdx_guests_as_in_the_model, 120)
{
	unsigned int rounds = tap_slow() ? 4 : 30;
	uint64_t seed = tap_seed();

	for (unsigned int round = 0; round < rounds; round++) {
		size_t len = (10 + tap_rand(&seed) % 50) * PAGE;
		struct image_tables tables = { 0 };
		struct gmem_measure *m;
		struct gmem_guest g;

		random_tdvf(&seed, &tables, len);
		g = guest_of(new_image(len, tap_rand(&seed), &tables), len, 0);
		g.flags = tap_rand(&seed) % 2 ? GMEM_GUEST_TWO_PASS : 0;
		CHECK_OK(gmem_measure_create(GMEM_VM_TDX, &g, NULL, NULL, &m));
		for (unsigned int i = 0; i < 4; i++) {
			check_guest(GMEM_VM_TDX, m, &g, &tables, tap_rand(&seed) % 2);
			g.flags = tap_rand(&seed) % 2 ? GMEM_GUEST_TWO_PASS : 0;
		}
		gmem_measure_free(m);
		free((void *)(uintptr_t)g.firmware);
	}
}

/* More than threads are ahead of each other: the window has moved on many times. */
TEST_TIMEOUT(an_image_of_many_pages, 120)
{
	struct image_tables tables = { .sev = { { 0x800000, PAGE, GMEM_SEV_SECTION_MEM } }, .nsev = 1 };
	size_t len = (tap_slow() ? 5001u : 16385u) * PAGE;
	struct gmem_measure *m;
	struct gmem_guest g = guest_of(new_image(len, tap_seed(), &tables), len, 1);

	CHECK_OK(gmem_measure_create(GMEM_VM_SNP, &g, NULL, NULL, &m));
	check_guest(GMEM_VM_SNP, m, &g, &tables, true);
	gmem_measure_free(m);
	free((void *)(uintptr_t)g.firmware);
}

TEST(kernel_hashes_of_files)
{
	struct gmem_kernel_hashes got, want;

	sha256("kernel", 6, want.kernel);
	sha256("initrd", 6, want.initrd);
	sha256("a b", 4, want.cmdline);
	CHECK_OK(gmem_kernel_hashes("kernel", 6, "initrd", 6, "a b", &got));
	CHECK_MEM(&got, &want, sizeof(got));
	sha256("", 0, want.initrd);
	sha256("", 1, want.cmdline);
	CHECK_OK(gmem_kernel_hashes("kernel", 6, NULL, 0, NULL, &got));
	CHECK_MEM(&got, &want, sizeof(got));
	CHECK_ERR(gmem_kernel_hashes(NULL, 1, NULL, 0, NULL, &got), -EINVAL);
	CHECK_ERR(gmem_kernel_hashes("", 0, NULL, 1, NULL, &got), -EINVAL);
}
