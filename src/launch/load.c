/* SPDX-License-Identifier: MIT */
/*
 * A firmware image and the sections its metadata names, launched as QEMU does: SNP: the whole image, then the sections
 * of the SEV metadata. TDX: see tdx/load.c.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/range.h"
#include "launch/firmware/firmware.h"
#include "launch/launch.h"
#include "launch/tdx/launch.h"

#define FOUR_GIB (1ull << 32)

/* A run of pages of one type. */
struct part {
	uint64_t gpa, len;
	const char *bytes; /* `raw_len` of them, zeros after; NULL: none */
	uint64_t raw_len;
	enum gmem_launch_page type;
};

struct load {
	struct gmem_launch *launch;
	gmem_progress_fn progress;
	void *opaque;
	uint64_t done, total; /* bytes */
	char *staging; /* GMEM_LAUNCH_BATCH pages, page-aligned */
	struct part parts[GMEM_FIRMWARE_MAX_SECTIONS + 1];
	uint32_t nparts;
};

static void add(struct load *l, struct part part)
{
	l->parts[l->nparts++] = part;
	l->total += part.len;
}

static int parts_of_sev(struct load *l, const void *image, uint64_t len)
{
	struct gmem_sev_section sections[GMEM_FIRMWARE_MAX_SECTIONS];
	int n = gmem_firmware_sev(image, len, sections, GMEM_FIRMWARE_MAX_SECTIONS);

	if (n < 0)
		return n;
	add(l, (struct part){ FOUR_GIB - len, len, image, len, GMEM_LAUNCH_NORMAL });
	for (int i = 0; i < n; i++) {
		const struct gmem_sev_section *s = &sections[i];

		/* A table of kernel hashes without a kernel is zeros. */
		if (s->type != GMEM_SEV_SECTION_MEM && s->type != GMEM_SEV_SECTION_SVSM_CAA &&
		    s->type != GMEM_SEV_SECTION_KERNEL_HASHES)
			return gmem_err(-EOPNOTSUPP,
					"SEV section %d, of type %u: secrets and CPUID pages are not made by "
					"this version",
					i, s->type);
		add(l, (struct part){ s->gpa, s->len, NULL, 0, GMEM_LAUNCH_ZERO });
	}
	return 0;
}

/* Bytes [at, at + len) of a part, page-aligned, with the zeros that follow what the image has. */
static void stage(const struct load *l, const struct part *part, uint64_t at, uint64_t len)
{
	uint64_t have = at < part->raw_len ? gmem_min_u64(len, part->raw_len - at) : 0;

	gmem_might_fault();
	memcpy(l->staging, part->bytes + at, have);
	memset(l->staging + have, 0, len - have);
}

static int launch_part(struct load *l, const struct part *part)
{
	uint64_t at = 0;

	while (at < part->len) {
		uint64_t len = gmem_min_u64(part->len - at, GMEM_LAUNCH_BATCH * GMEM_PAGE_SIZE);
		const char *src = NULL;
		int err, why;
		int64_t n;

		if (part->type != GMEM_LAUNCH_ZERO) {
			stage(l, part, at, len);
			src = l->staging;
		}
		n = gmem_launch_update_why(l->launch, part->gpa + at, src, (int64_t)(len >> GMEM_PAGE_SHIFT),
					   part->type, &why);
		if (n < 0)
			return (int)n;
		/* A cancellation is told of once. */
		if (why)
			return gmem_err_prefix(why, "gpa 0x%llx", (unsigned long long)(part->gpa + at));
		at += (uint64_t)n << GMEM_PAGE_SHIFT;
		l->done += (uint64_t)n << GMEM_PAGE_SHIFT;
		err = l->progress ? l->progress(l->opaque, l->done, l->total) : 0;
		if (err)
			return err;
	}
	return 0;
}

int gmem_launch_firmware(struct gmem_launch *launch, const struct gmem_guest *guest, gmem_progress_fn progress,
			 void *opaque)
{
	const void *image = guest->firmware;
	uint64_t len = guest->firmware_len;
	struct load *l;
	int err;

	if (!len || !gmem_page_aligned(len) || len > FOUR_GIB)
		return gmem_err(-EINVAL, "gmem_launch_firmware: an image of %llu bytes: not whole pages, or over 4 GiB",
				(unsigned long long)len);
	if (launch->type == GMEM_VM_TDX) {
		err = gmem_tdx_launch_firmware(launch, guest, progress, opaque);
		return err ? gmem_err_prefix(err, "gmem_launch_firmware") : 0;
	}
	l = calloc(1, sizeof(*l));
	if (!l || posix_memalign((void **)&l->staging, GMEM_PAGE_SIZE, GMEM_LAUNCH_BATCH * GMEM_PAGE_SIZE)) {
		free(l);
		return gmem_err_sys(-ENOMEM, "gmem_launch_firmware");
	}
	l->launch = launch;
	l->progress = progress;
	l->opaque = opaque;
	err = parts_of_sev(l, image, len);
	for (uint32_t i = 0; !err && i < l->nparts; i++)
		err = launch_part(l, &l->parts[i]);
	free(l->staging);
	free(l);
	return err ? gmem_err_prefix(err, "gmem_launch_firmware") : 0;
}
