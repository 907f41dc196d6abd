/* SPDX-License-Identifier: MIT */
/*
 * A firmware image launched as QEMU does, or as older hosts did: the sections of its TDVF metadata, in the order of
 * their table.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/range.h"
#include "launch/firmware/firmware.h"
#include "launch/tdx/launch.h"

struct load {
	struct gmem_launch *launch;
	const char *image;
	bool two_pass;
	gmem_progress_fn progress;
	void *opaque;
	uint64_t done, total; /* bytes */
	char *staging; /* GMEM_LAUNCH_BATCH pages, page-aligned */
	struct gmem_tdvf_section sections[GMEM_FIRMWARE_MAX_SECTIONS];
	int nsections;
};

static bool is_built(const struct gmem_tdvf_section *s)
{
	return !(s->attr & GMEM_TDVF_PAGE_AUG);
}

static int read_sections(struct load *l, uint64_t len)
{
	l->nsections = gmem_firmware_tdvf(l->image, len, l->sections, GMEM_FIRMWARE_MAX_SECTIONS);
	for (int i = 0; i < l->nsections; i++) {
		const struct gmem_tdvf_section *s = &l->sections[i];

		if (!is_built(s))
			continue;
		if (s->type > GMEM_TDVF_SECTION_TEMP_MEM)
			return gmem_err(-EOPNOTSUPP, "TDVF section %d, of type %u: not launched by QEMU", i, s->type);
		l->total += s->len;
	}
	return l->nsections < 0 ? l->nsections : 0;
}

/* The first begins with the address of the TD HOB, as all others. Those of a launch on KVM are the caller's. */
static int add_vcpus(const struct load *l, uint32_t nvcpus)
{
	struct gmem_launch_vcpu vcpu = { .size = sizeof(vcpu) };
	int err = 0;

	if (!l->launch->vm)
		return 0;
	for (int i = 0; i < l->nsections; i++)
		if (l->sections[i].type == GMEM_TDVF_SECTION_TD_HOB)
			vcpu.rcx = l->sections[i].gpa;
	for (uint32_t n = gmem_tdx_launch_nvcpus(l->launch); !err && n < gmem_max_u64(nvcpus, 1); n++)
		err = gmem_launch_add_vcpu(l->launch, &vcpu);
	return err;
}

/* Bytes [at, at + len) of a section, page-aligned, with the zeros that follow what the image has. */
static void stage(const struct load *l, const struct gmem_tdvf_section *s, uint64_t at, uint64_t len)
{
	uint64_t have = at < s->raw_len ? gmem_min_u64(len, s->raw_len - at) : 0;

	gmem_might_fault();
	if (have)
		memcpy(l->staging, l->image + s->off + at, have);
	memset(l->staging + have, 0, len - have);
}

static int launch_section(struct load *l, const struct gmem_tdvf_section *s)
{
	bool measured = s->attr & GMEM_TDVF_MR_EXTEND;
	enum gmem_launch_page type = measured && !l->two_pass ? GMEM_LAUNCH_NORMAL : GMEM_LAUNCH_UNMEASURED;

	for (uint64_t at = 0; at < s->len;) {
		uint64_t len = gmem_min_u64(s->len - at, GMEM_LAUNCH_BATCH * GMEM_PAGE_SIZE);
		int err, why;
		int64_t n;

		stage(l, s, at, len);
		n = gmem_launch_update_why(l->launch, s->gpa + at, l->staging, (int64_t)(len >> GMEM_PAGE_SHIFT), type,
					   &why);
		if (n < 0)
			return (int)n;
		/* A cancellation is told of once. */
		if (why)
			return gmem_err_prefix(why, "gpa 0x%llx", (unsigned long long)(s->gpa + at));
		at += (uint64_t)n << GMEM_PAGE_SHIFT;
		l->done += (uint64_t)n << GMEM_PAGE_SHIFT;
		err = l->progress ? l->progress(l->opaque, l->done, l->total) : 0;
		if (err)
			return err;
	}
	return measured && l->two_pass && s->len ? gmem_launch_extend(l->launch, s->gpa, s->len) : 0;
}

static int check_guest(const struct gmem_launch *launch, const struct gmem_guest *guest)
{
	if (guest->flags & ~GMEM_GUEST_TWO_PASS)
		return gmem_err(-EINVAL, "guest->flags 0x%x: unknown, or not TDX's", guest->flags);
	if (guest->vmm != GMEM_VMM_QEMU || guest->kernel || guest->svsm)
		return gmem_err(-EINVAL, "a TDX guest is launched as QEMU does, without a kernel or an SVSM");
	/* Before anything is launched that cannot be taken back. */
	if ((guest->flags & GMEM_GUEST_TWO_PASS) && !launch->ops->extend)
		return gmem_err(-EOPNOTSUPP, "KVM measures pages as they are added: there are no two passes");
	return 0;
}

int gmem_tdx_launch_firmware(struct gmem_launch *launch, const struct gmem_guest *guest, gmem_progress_fn progress,
			     void *opaque)
{
	struct load *l;
	int err = check_guest(launch, guest);

	if (err)
		return err;
	l = calloc(1, sizeof(*l));
	if (!l || posix_memalign((void **)&l->staging, GMEM_PAGE_SIZE, GMEM_LAUNCH_BATCH * GMEM_PAGE_SIZE)) {
		free(l);
		return gmem_err_sys(-ENOMEM, "a firmware's pages");
	}
	l->launch = launch;
	l->image = guest->firmware;
	l->two_pass = guest->flags & GMEM_GUEST_TWO_PASS;
	l->progress = progress;
	l->opaque = opaque;
	err = read_sections(l, guest->firmware_len);
	if (!err)
		err = add_vcpus(l, guest->nvcpus);
	for (int i = 0; !err && i < l->nsections; i++)
		if (is_built(&l->sections[i]))
			err = launch_section(l, &l->sections[i]);
	free(l->staging);
	free(l);
	return err;
}
