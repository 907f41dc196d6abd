/* SPDX-License-Identifier: MIT */
#include "launch/snp/load.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/le.h"
#include "base/range.h"
#include "launch/firmware/firmware.h"
#include "launch/snp/status.h"

#define FIRST_EIP 0xfffffff0u
#define STAGING_LEN (GMEM_LAUNCH_BATCH * (uint64_t)GMEM_PAGE_SIZE)

/* A run of pages of one type. */
struct part {
	uint64_t gpa, len;
	const char *bytes; /* NULL: the type has none, or zeros */
	enum gmem_launch_page type;
};

struct load {
	struct gmem_launch *launch;
	const struct gmem_guest *guest;
	gmem_progress_fn progress;
	void *opaque;
	uint64_t done, total; /* bytes */
	char *staging; /* STAGING_LEN, page-aligned */
	struct gmem_sev_section sections[GMEM_FIRMWARE_MAX_SECTIONS];
	int nsections;
	char hashes[GMEM_PAGE_SIZE]; /* the page with the table of kernel hashes */
	int hashes_section; /* -1: none */
	struct part parts[GMEM_FIRMWARE_MAX_SECTIONS + 2];
	uint32_t nparts;
};

static void add(struct load *l, struct part part)
{
	l->parts[l->nparts++] = part;
	l->total += part.len;
}

/* ---- the table of kernel hashes, as QEMU lays it out for OVMF */

/* A GUID as it is in memory: its first three numbers are little-endian. */
struct guid {
	uint32_t a;
	uint16_t b, c;
	uint8_t d[8];
};

static const struct guid table_guid = { 0x9438d606,
					0x4f22,
					0x4cc9,
					{ 0xb4, 0x79, 0xa7, 0x93, 0xd4, 0x11, 0xfd, 0x21 } };
static const struct guid cmdline_guid = { 0x97d02dd8,
					  0xbd20,
					  0x4c94,
					  { 0xaa, 0x78, 0xe7, 0x71, 0x4d, 0x36, 0xab, 0x2a } };
static const struct guid initrd_guid = { 0x44baf731,
					 0x3a2f,
					 0x4bd7,
					 { 0x9a, 0xf1, 0x41, 0xe2, 0x91, 0x69, 0x78, 0x1d } };
static const struct guid kernel_guid = { 0x4de79437,
					 0xabd2,
					 0x427f,
					 { 0xb8, 0x35, 0xd5, 0xb1, 0x72, 0xd2, 0x04, 0x5b } };

#define HEADER_LEN 18u /* a GUID, and how long all is that it is the name of */
#define HASH_LEN 32u
#define TABLE_LEN (HEADER_LEN + 3 * (HEADER_LEN + HASH_LEN)) /* without the padding to 16 bytes */

_Static_assert(TABLE_LEN == 168 && TABLE_LEN + 8 == GMEM_KERNEL_HASHES_LEN, "three hashes");

static uint8_t *put_header(uint8_t *at, const struct guid *guid, uint16_t len)
{
	gmem_put_le32(at, guid->a);
	gmem_put_le16(at + 4, guid->b);
	gmem_put_le16(at + 6, guid->c);
	memcpy(at + 8, guid->d, sizeof(guid->d));
	gmem_put_le16(at + 16, len);
	return at + HEADER_LEN;
}

static uint8_t *put_hash(uint8_t *at, const struct guid *guid, const uint8_t hash[HASH_LEN])
{
	at = put_header(at, guid, HEADER_LEN + HASH_LEN);
	memcpy(at, hash, HASH_LEN);
	return at + HASH_LEN;
}

static int make_hashes(struct load *l, const void *image, uint64_t len)
{
	const struct gmem_kernel_hashes *k = l->guest->kernel;
	struct gmem_firmware_hashes place;
	uint8_t *at;
	int err;

	l->hashes_section = -1;
	if (!k)
		return 0;
	err = gmem_firmware_kernel_hashes(image, len, l->sections, (size_t)l->nsections, &place);
	if (err)
		return err;
	l->hashes_section = (int)place.section;
	at = put_header((uint8_t *)l->hashes + place.off, &table_guid, TABLE_LEN);
	at = put_hash(at, &cmdline_guid, k->cmdline);
	at = put_hash(at, &initrd_guid, k->initrd);
	(void)put_hash(at, &kernel_guid, k->kernel);
	return 0;
}

/* ---- what is launched, in order */

static struct part part_of(const struct load *l, int i)
{
	const struct gmem_sev_section *s = &l->sections[i];
	struct part part = { .gpa = s->gpa, .len = s->len, .type = GMEM_LAUNCH_ZERO };

	switch (s->type) {
	case GMEM_SEV_SECTION_MEM:
		if (l->guest->vmm == GMEM_VMM_GCE)
			part.type = GMEM_LAUNCH_UNMEASURED;
		break;
	case GMEM_SEV_SECTION_SECRETS:
		part.type = GMEM_LAUNCH_SECRETS;
		break;
	case GMEM_SEV_SECTION_CPUID:
		part.type = GMEM_LAUNCH_CPUID;
		part.bytes = l->guest->cpuid;
		break;
	default:
		if (i == l->hashes_section) {
			part.type = GMEM_LAUNCH_NORMAL;
			part.bytes = l->hashes;
		}
		break;
	}
	return part;
}

/* EC2 launches CPUID pages when all else is. */
static void add_sections(struct load *l)
{
	bool late = l->guest->vmm == GMEM_VMM_EC2;

	for (int i = 0; i < l->nsections; i++)
		if (!late || l->sections[i].type != GMEM_SEV_SECTION_CPUID)
			add(l, part_of(l, i));
	for (int i = 0; late && i < l->nsections; i++)
		if (l->sections[i].type == GMEM_SEV_SECTION_CPUID)
			add(l, part_of(l, i));
}

/* All of an image, where it ends `above` bytes below 4 GiB. */
static int add_image(struct load *l, const void *image, uint64_t len, uint64_t above, uint64_t *ret_gpa)
{
	int err = gmem_firmware_gpa(len, above, ret_gpa);

	if (!err)
		add(l, (struct part){ *ret_gpa, len, image, GMEM_LAUNCH_NORMAL });
	return err;
}

/* *ret_eips: where the first vCPU begins, and the others. */
static int add_parts(struct load *l, uint32_t ret_eips[2])
{
	const struct gmem_guest *g = l->guest;
	bool svsm = g->vmm == GMEM_VMM_SVSM;
	/* Who brings the metadata. */
	const void *image = svsm ? g->svsm : g->firmware;
	uint64_t len = svsm ? g->svsm_len : g->firmware_len, gpa;
	int err = add_image(l, g->firmware, g->firmware_len, 0, &gpa);

	if (!err && svsm && g->vars_len > (1ull << 32) - g->firmware_len)
		err = gmem_err(-EINVAL, "variables of 0x%llx bytes", (unsigned long long)g->vars_len);
	if (!err && svsm)
		err = add_image(l, image, len, g->firmware_len + g->vars_len, &gpa);
	if (err)
		return err;
	l->nsections = gmem_firmware_sev(image, len, l->sections, GMEM_FIRMWARE_MAX_SECTIONS);
	if (l->nsections < 0)
		return l->nsections;
	for (uint32_t i = 0; !err && i < l->nparts; i++)
		err = gmem_firmware_apart(l->sections, (size_t)l->nsections, l->parts[i].gpa, l->parts[i].len);
	if (err)
		return err;
	err = make_hashes(l, image, len);
	if (err)
		return err;
	add_sections(l);
	ret_eips[0] = FIRST_EIP;
	if (svsm) {
		err = gmem_firmware_svsm_eip(image, len, gpa, &ret_eips[1]);
		ret_eips[0] = ret_eips[1];
	} else if (g->nvcpus > 1) {
		err = gmem_firmware_reset_eip(image, len, &ret_eips[1]);
	}
	return err;
}

/* ---- launching it */

static int told(struct load *l, int64_t n, int why)
{
	if (n < 0)
		return (int)n;
	l->done += (uint64_t)n << GMEM_PAGE_SHIFT;
	return why;
}

/*
 * The table as the firmware corrects it, if it does: once, since what it refuses then it will refuse again. Its bytes
 * are in the staging memory.
 */
static int launch_cpuid(struct load *l, const struct part *part)
{
	char *table = l->guest->cpuid;
	int why;
	int64_t n = gmem_launch_update_why(l->launch, part->gpa, l->staging, 1, part->type, &why);

	if (n == -EIO && gmem_launch_status(l->launch) == GMEM_SEV_RET_INVALID_PARAM &&
	    (table ? memcmp(table, l->staging, GMEM_PAGE_SIZE) : 0)) {
		memcpy(table, l->staging, GMEM_PAGE_SIZE);
		n = gmem_launch_update_why(l->launch, part->gpa, l->staging, 1, part->type, &why);
	}
	return told(l, n, why);
}

/* Bytes [at, at + len) of a part, page-aligned. */
static void stage(const struct load *l, const struct part *part, uint64_t at, uint64_t len)
{
	gmem_might_fault();
	if (part->bytes)
		memcpy(l->staging, part->bytes + at, len);
	else
		memset(l->staging, 0, len);
}

static int launch_some(struct load *l, const struct part *part, uint64_t at, uint64_t len)
{
	const char *src = NULL;
	int64_t n;
	int why;

	if (part->type != GMEM_LAUNCH_ZERO) {
		stage(l, part, at, len);
		src = l->staging;
	}
	if (part->type == GMEM_LAUNCH_CPUID)
		return launch_cpuid(l, part);
	n = gmem_launch_update_why(l->launch, part->gpa + at, src, (int64_t)(len >> GMEM_PAGE_SHIFT), part->type, &why);
	return told(l, n, why);
}

static int launch_part(struct load *l, const struct part *part)
{
	for (uint64_t at = 0; at < part->len; at += STAGING_LEN) {
		uint64_t len = gmem_min_u64(part->len - at, STAGING_LEN);
		int err = launch_some(l, part, at, len);

		/* Also if it came after progress: a cancellation is told of once. */
		if (err)
			return gmem_err_prefix(err, "gpa 0x%llx", (unsigned long long)(part->gpa + at));
		err = l->progress ? l->progress(l->opaque, l->done, l->total) : 0;
		if (err)
			return err;
	}
	return 0;
}

static int add_vcpus(const struct load *l, const uint32_t eips[2])
{
	const struct gmem_guest *g = l->guest;
	int err = 0;

	/* On KVM they are its own, with the registers the VMM gives them. */
	for (uint32_t i = 0; !err && l->launch->vm && i < g->nvcpus; i++) {
		struct gmem_snp_vcpu snp = { .size = sizeof(snp) };
		const struct gmem_launch_vcpu vcpu = { .size = sizeof(vcpu), .snp = &snp };

		err = gmem_snp_vcpu_reset(g->vmm, eips[i > 0], g->signature, g->sev_features ? g->sev_features : 1,
					  &snp);
		if (g->vmm == GMEM_VMM_EC2 && (g->flags & GMEM_GUEST_EC2_RDX_ZERO))
			snp.rdx = 0;
		if (!err)
			err = gmem_launch_add_vcpu(l->launch, &vcpu);
	}
	return err;
}

static int check(const struct gmem_guest *g)
{
	bool svsm = g->vmm == GMEM_VMM_SVSM;

	if ((int)g->vmm < GMEM_VMM_QEMU || g->vmm > GMEM_VMM_SVSM)
		return gmem_err(-EINVAL, "vmm %d: unknown", (int)g->vmm);
	if (svsm && !g->svsm)
		return gmem_err(-EINVAL, "no SVSM");
	if (g->nvcpus && !g->signature && (svsm || g->vmm == GMEM_VMM_QEMU))
		return gmem_err(-EINVAL, "vCPUs without a signature");
	return 0;
}

int gmem_snp_launch_firmware(struct gmem_launch *launch, const struct gmem_guest *guest, gmem_progress_fn progress,
			     void *opaque)
{
	struct load *l;
	uint32_t eips[2] = { 0 };
	int err = check(guest);

	if (err)
		return err;
	l = calloc(1, sizeof(*l));
	if (!l || posix_memalign((void **)&l->staging, GMEM_PAGE_SIZE, STAGING_LEN)) {
		free(l);
		return gmem_err_sys(-ENOMEM, "staging memory");
	}
	l->launch = launch;
	l->guest = guest;
	l->progress = progress;
	l->opaque = opaque;
	err = add_parts(l, eips);
	for (uint32_t i = 0; !err && i < l->nparts; i++)
		err = launch_part(l, &l->parts[i]);
	if (!err)
		err = add_vcpus(l, eips);
	free(l->staging);
	free(l);
	return err;
}
