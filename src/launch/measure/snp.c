/* SPDX-License-Identifier: MIT */
/*
 * An SNP guest: the firmware, an SVSM if it has one, what the metadata of the one that runs first asks for, the vCPUs.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/range.h"
#include "launch/measure/measure.h"
#include "launch/measure/vmsa.h"
#include "launch/sha384.h"

/* What EC2 and GCE give their vCPUs instead of a CPU signature. */
#define RESET_RDX 0x600u

/* A run of pages that is measured as one kind. */
struct part {
	const char *name;
	enum gmem_snp_page type;
	uint64_t gpa, len;
	const uint8_t *contents; /* NORMAL: the hash of its one page */
};

struct parts {
	struct part v[GMEM_MEASURE_MAX_PARTS];
	uint32_t n;
	uint8_t kernel_contents[GMEM_SHA384_LEN];
};

/* The image whose metadata and vCPU entry count: an SVSM begins before the firmware. */
static const struct gmem_measure_image *first_image(const struct gmem_measure *m)
{
	return m->svsm.bytes ? &m->svsm : &m->firmware;
}

static int tell(struct gmem_measure_listener *listener, const struct part *part, const struct gmem_snp_digest *digest)
{
	int err;

	struct gmem_measure_range range = {
		.size = sizeof(range), .name = part->name, .gpa = part->gpa, .len = part->len
	};

	if (!listener->fn)
		return 0;
	range.contents = part->type == GMEM_SNP_PAGE_NORMAL || part->type == GMEM_SNP_PAGE_VMSA;
	memcpy(range.digest, digest->ld, sizeof(range.digest));
	err = listener->fn(listener->opaque, &range);
	listener->stopped = err;
	return err;
}

static struct part image_part(const char *name, const struct gmem_measure_image *image)
{
	return (struct part){ name, GMEM_SNP_PAGE_NORMAL, image->gpa, image->len, NULL };
}

static int parse(struct gmem_measure *m)
{
	int n, err;

	err = gmem_firmware_gpa(m->firmware.len, 0, &m->firmware.gpa);
	if (!err && m->svsm.bytes)
		err = gmem_firmware_gpa(m->svsm.len, m->firmware.len + m->vars_len, &m->svsm.gpa);
	if (err)
		return err;
	n = gmem_firmware_sev(first_image(m)->bytes, first_image(m)->len, m->snp.sections, GMEM_FIRMWARE_MAX_SECTIONS);
	if (n < 0)
		return n;
	m->snp.nsections = (uint32_t)n;
	/* A page given twice would be refused by the launch. */
	err = gmem_firmware_apart(m->snp.sections, m->snp.nsections, m->firmware.gpa, m->firmware.len);
	if (!err && m->svsm.bytes)
		err = gmem_firmware_apart(m->snp.sections, m->snp.nsections, m->svsm.gpa, m->svsm.len);
	return err;
}

static int link_image(struct gmem_snp_digest *d, const struct gmem_measure_image *image,
		      struct gmem_measure_progress *progress)
{
	return gmem_measure_pages(d, image->gpa, image->bytes, image->len >> GMEM_PAGE_SHIFT, progress);
}

/* The firmware's own pages and the SVSM's, once. */
static int need_images(struct gmem_measure *m, struct gmem_measure_progress *progress)
{
	struct gmem_snp_digest d, after_firmware;
	int err;

	if (m->snp.has_images)
		return 0;
	progress->total = m->firmware.len + m->svsm.len;
	gmem_snp_digest_init(&d);
	err = link_image(&d, &m->firmware, progress);
	after_firmware = d;
	if (!err && m->svsm.bytes)
		err = link_image(&d, &m->svsm, progress);
	if (err)
		return err;
	m->snp.after_firmware = after_firmware;
	m->snp.after_images = d;
	m->snp.has_images = true;
	return 0;
}

int gmem_measure_snp_init(struct gmem_measure *m, const struct gmem_guest *guest,
			  struct gmem_measure_progress *progress)
{
	int err = parse(m);

	if (!err)
		err = gmem_sha384_new(&m->snp.ctx);
	/* Whoever knows the digest after the firmware may not want it hashed at all. */
	if (!err && !guest->firmware_digest)
		err = need_images(m, progress);
	return err;
}

void gmem_measure_snp_free(struct gmem_measure *m)
{
	gmem_sha384_free(m->snp.ctx);
}

/* The digest after the images; `*d` begins as anything. */
static int after_images(struct gmem_measure *m, const struct gmem_guest *guest, struct gmem_measure_listener *listener,
			struct gmem_snp_digest *d)
{
	struct part firmware = image_part("firmware", &m->firmware), svsm = image_part("svsm", &m->svsm);
	struct gmem_measure_progress silent = { 0 };
	int err;

	if (guest->firmware_digest) {
		memcpy(d->ld, guest->firmware_digest, sizeof(d->ld));
	} else {
		err = need_images(m, &silent);
		if (err)
			return err;
		*d = m->snp.after_firmware;
	}
	err = tell(listener, &firmware, d);
	if (err || !m->svsm.bytes)
		return err;
	if (guest->firmware_digest)
		err = link_image(d, &m->svsm, &silent);
	else
		*d = m->snp.after_images;
	return err ? err : tell(listener, &svsm, d);
}

static struct part part_of(const struct gmem_sev_section *s, const struct gmem_guest *guest)
{
	struct part part = { "sec-mem", GMEM_SNP_PAGE_ZERO, s->gpa, s->len, NULL };

	switch (s->type) {
	case GMEM_SEV_SECTION_MEM:
		if (guest->vmm == GMEM_VMM_GCE)
			part.type = GMEM_SNP_PAGE_UNMEASURED;
		break;
	case GMEM_SEV_SECTION_SECRETS:
		part.name = "secrets";
		part.type = GMEM_SNP_PAGE_SECRETS;
		break;
	case GMEM_SEV_SECTION_CPUID:
		part.name = "cpuid";
		part.type = GMEM_SNP_PAGE_CPUID;
		break;
	case GMEM_SEV_SECTION_SVSM_CAA:
		part.name = "svsm-caa";
		break;
	case GMEM_SEV_SECTION_KERNEL_HASHES:
		part.name = "kernel-hashes";
		break;
	}
	return part;
}

/* Which section gets the kernel's hashes, and the hash of its page. */
static int place_kernel(const struct gmem_measure *m, const struct gmem_guest *guest, struct parts *parts,
			size_t *ret_section)
{
	const struct gmem_measure_image *image = first_image(m);
	struct gmem_firmware_hashes place;
	uint8_t page[GMEM_PAGE_SIZE];
	int err;

	err = gmem_firmware_kernel_hashes(image->bytes, image->len, m->snp.sections, m->snp.nsections, &place);
	if (err)
		return err;
	gmem_measure_kernel_page(guest->kernel, place.off, page);
	err = gmem_sha384_again(m->snp.ctx, page, sizeof(page), parts->kernel_contents);
	if (!err)
		*ret_section = place.section;
	return err;
}

/* In the order they are measured: as in the metadata, but that EC2 leaves CPUID pages for the end. */
static int plan(const struct gmem_measure *m, const struct gmem_guest *guest, struct parts *parts)
{
	size_t kernel_section = SIZE_MAX;
	int err = 0;

	parts->n = 0;
	if (guest->kernel)
		err = place_kernel(m, guest, parts, &kernel_section);
	for (int last = 0; !err && last < 2; last++) {
		for (uint32_t i = 0; i < m->snp.nsections; i++) {
			struct part part = part_of(&m->snp.sections[i], guest);

			if (last != (guest->vmm == GMEM_VMM_EC2 && part.type == GMEM_SNP_PAGE_CPUID))
				continue;
			if (i == kernel_section) {
				part.type = GMEM_SNP_PAGE_NORMAL;
				part.contents = parts->kernel_contents;
			}
			parts->v[parts->n++] = part;
		}
	}
	return err;
}

static bool same_parts(const struct gmem_measure_parts *kept, const struct gmem_guest *guest,
		       const struct gmem_snp_digest *before)
{
	if (!kept->valid || kept->vmm != guest->vmm || kept->has_kernel != !!guest->kernel)
		return false;
	if (guest->kernel && memcmp(&kept->kernel, guest->kernel, sizeof(kept->kernel)))
		return false;
	return !memcmp(&kept->before, before, sizeof(*before));
}

static int link_parts(struct gmem_measure *m, const struct parts *parts, const struct gmem_guest *guest,
		      const struct gmem_snp_digest *before)
{
	struct gmem_measure_parts *kept = &m->snp.parts;
	struct gmem_snp_digest d = *before;
	int err = 0;

	kept->valid = false;
	for (uint32_t i = 0; !err && i < parts->n; i++) {
		const struct part *p = &parts->v[i];

		for (uint64_t at = 0; !err && at < p->len; at += GMEM_PAGE_SIZE)
			err = gmem_snp_digest_link(&d, m->snp.ctx, p->type, p->gpa + at, p->contents);
		kept->after[i] = d;
	}
	if (err)
		return err;
	kept->vmm = guest->vmm;
	kept->has_kernel = guest->kernel;
	if (guest->kernel)
		kept->kernel = *guest->kernel;
	kept->before = *before;
	kept->valid = true;
	return 0;
}

/* What the metadata asks for, after `*d`. */
static int after_parts(struct gmem_measure *m, const struct gmem_guest *guest, struct gmem_measure_listener *listener,
		       struct gmem_snp_digest *d)
{
	struct parts parts;
	int err = plan(m, guest, &parts);

	if (!err && !same_parts(&m->snp.parts, guest, d))
		err = link_parts(m, &parts, guest, d);
	for (uint32_t i = 0; !err && i < parts.n; i++) {
		*d = m->snp.parts.after[i];
		err = tell(listener, &parts.v[i], d);
	}
	return err;
}

/* What a vCPU begins with, the first one or another. */
static int begin_vcpu(const struct gmem_measure *m, const struct gmem_guest *guest, bool first,
		      struct gmem_measure_vcpu *v)
{
	int err = 0;

	*v = (struct gmem_measure_vcpu){ .vmm = guest->vmm, .eip = GMEM_MEASURE_FIRST_EIP };
	v->sev_features = guest->sev_features ? guest->sev_features : 1;
	switch (guest->vmm) {
	case GMEM_VMM_SVSM:
		v->sev_features = 1;
		v->rdx = guest->signature;
		break;
	case GMEM_VMM_QEMU:
		v->rdx = guest->signature;
		break;
	case GMEM_VMM_EC2:
		v->rdx = guest->flags & GMEM_GUEST_EC2_RDX_ZERO ? 0 : RESET_RDX;
		break;
	case GMEM_VMM_GCE:
		v->rdx = RESET_RDX;
		break;
	case GMEM_VMM_KRUN:
		break;
	}
	if (m->svsm.bytes)
		err = gmem_firmware_svsm_eip(m->svsm.bytes, m->svsm.len, m->svsm.gpa, &v->eip);
	else if (!first)
		err = gmem_firmware_reset_eip(m->firmware.bytes, m->firmware.len, &v->eip);
	return err;
}

static int after_vcpus(struct gmem_measure *m, const struct gmem_guest *guest, struct gmem_measure_listener *listener,
		       struct gmem_snp_digest *d)
{
	uint8_t page[GMEM_PAGE_SIZE], contents[GMEM_SHA384_LEN];
	char name[sizeof("vmsa 4294967295")];
	struct gmem_measure_vcpu vcpu;
	const struct part part = { name, GMEM_SNP_PAGE_VMSA, GMEM_MEASURE_VMSA_GPA, GMEM_PAGE_SIZE, NULL };
	int err = 0;

	for (uint32_t i = 0; !err && i < guest->nvcpus; i++) {
		/* All but the first are alike. */
		if (i < 2) {
			err = begin_vcpu(m, guest, !i, &vcpu);
			if (err)
				return err;
			gmem_measure_vmsa_build(&vcpu, page);
			err = gmem_sha384_again(m->snp.ctx, page, sizeof(page), contents);
		}
		if (!err)
			err = gmem_snp_digest_link(d, m->snp.ctx, GMEM_SNP_PAGE_VMSA, GMEM_MEASURE_VMSA_GPA, contents);
		if (!err && listener->fn) {
			snprintf(name, sizeof(name), "vmsa %" PRIu32, i);
			err = tell(listener, &part, d);
		}
	}
	return err;
}

int gmem_measure_snp_digest(struct gmem_measure *m, const struct gmem_guest *guest,
			    struct gmem_measure_listener *listener, uint8_t ret[GMEM_LAUNCH_DIGEST_LEN])
{
	struct gmem_snp_digest d;
	int err;

	err = after_images(m, guest, listener, &d);
	if (!err)
		err = after_parts(m, guest, listener, &d);
	if (!err)
		err = after_vcpus(m, guest, listener, &d);
	if (!err)
		memcpy(ret, d.ld, sizeof(d.ld));
	return err;
}

int gmem_measure_snp_vmsa(struct gmem_measure *m, const struct gmem_guest *guest, uint32_t vcpu,
			  uint8_t ret[GMEM_PAGE_SIZE])
{
	struct gmem_measure_vcpu v;
	int err = begin_vcpu(m, guest, !vcpu, &v);

	if (!err)
		gmem_measure_vmsa_build(&v, ret);
	return err;
}
