/* SPDX-License-Identifier: MIT */
/*
 * What the launch of a guest will measure, computed from its files alone. Nothing of the emulated launch takes part,
 * but the hash steps: two computations that agree say more than one.
 * Enters: firmware and SVSM, borrowed until the object is freed and read again by some calls, and per call what else
 * the guest has. Leaves: digests. What a call has computed is kept for the next. No lock: one thread at a time.
 */
#ifndef GMEM_LAUNCH_MEASURE_MEASURE_H
#define GMEM_LAUNCH_MEASURE_MEASURE_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"
#include "launch/firmware/firmware.h"
#include "launch/measure/pages.h"

#define GMEM_MEASURE_MAX_PARTS GMEM_FIRMWARE_MAX_SECTIONS

struct gmem_measure_image {
	const uint8_t *bytes;
	uint64_t len;
	uint64_t gpa; /* SNP */
};

/* SNP: the digest after each of the pieces a firmware's metadata asks for, and what that came of. */
struct gmem_measure_parts {
	bool valid;
	enum gmem_vmm vmm;
	bool has_kernel;
	struct gmem_kernel_hashes kernel;
	struct gmem_snp_digest before;
	struct gmem_snp_digest after[GMEM_MEASURE_MAX_PARTS];
};

struct gmem_measure_snp {
	struct gmem_sev_section sections[GMEM_FIRMWARE_MAX_SECTIONS];
	uint32_t nsections;
	bool has_images; /* these two are valid */
	struct gmem_snp_digest after_firmware, after_images;
	struct gmem_measure_parts parts; /* of the last call */
	struct evp_md_ctx_st *ctx;
};

/* TDX: after each section, single pass and two passes. */
struct gmem_measure_pass {
	bool valid;
	uint8_t after[GMEM_FIRMWARE_MAX_SECTIONS][GMEM_LAUNCH_DIGEST_LEN];
	uint8_t all[GMEM_LAUNCH_DIGEST_LEN];
};

struct gmem_measure_tdx {
	struct gmem_tdvf_section sections[GMEM_FIRMWARE_MAX_SECTIONS];
	uint32_t nsections;
	struct gmem_measure_pass passes[2];
};

struct gmem_measure {
	enum gmem_vm_type type;
	struct gmem_measure_image firmware, svsm; /* svsm.bytes NULL: the guest has none */
	uint64_t vars_len;
	struct gmem_measure_snp snp;
	struct gmem_measure_tdx tdx;
};

/* Who is told of each range. */
struct gmem_measure_listener {
	gmem_measure_fn fn; /* NULL: nobody */
	void *opaque;
	bool stopped; /* the error is theirs */
};

/* What follows expects a guest that measure.c has checked. */

/* Parses, and hashes what every digest will need. */
int gmem_measure_snp_init(struct gmem_measure *m, const struct gmem_guest *guest,
			  struct gmem_measure_progress *progress);
void gmem_measure_snp_free(struct gmem_measure *m);
int gmem_measure_snp_digest(struct gmem_measure *m, const struct gmem_guest *guest,
			    struct gmem_measure_listener *listener, uint8_t ret[GMEM_LAUNCH_DIGEST_LEN]);
int gmem_measure_snp_vmsa(struct gmem_measure *m, const struct gmem_guest *guest, uint32_t vcpu,
			  uint8_t ret[GMEM_PAGE_SIZE]);

int gmem_measure_tdx_init(struct gmem_measure *m, const struct gmem_guest *guest,
			  struct gmem_measure_progress *progress);
int gmem_measure_tdx_digest(struct gmem_measure *m, const struct gmem_guest *guest,
			    struct gmem_measure_listener *listener, uint8_t ret[GMEM_LAUNCH_DIGEST_LEN]);

/* The page with the table of kernel hashes at `off`, and zeros. */
void gmem_measure_kernel_page(const struct gmem_kernel_hashes *hashes, uint32_t off, uint8_t ret[GMEM_PAGE_SIZE]);

#endif
