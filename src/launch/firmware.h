/* SPDX-License-Identifier: MIT */
/*
 * What a guest firmware image (OVMF and its kind) says about its own launch. Its last bytes hold a table of GUIDs; two
 * of the entries lead to metadata: the pages an SEV-SNP guest needs besides the firmware itself ("ASEV"), and the
 * sections a TDX guest is built from ("TDVF").
 * Enters: the whole image as bytes of any alignment, borrowed for the call and trusted in nothing. Leaves: sections in
 * the order of their table, which is the order they are measured in, checked as said below. Nothing is allocated. No
 * lock, but nobody may write to the image during the call.
 */
#ifndef GMEM_LAUNCH_FIRMWARE_H
#define GMEM_LAUNCH_FIRMWARE_H

#include <stddef.h>
#include <stdint.h>

/* An array of this many holds the sections of every firmware known. */
#define GMEM_FIRMWARE_MAX_SECTIONS 64u

enum gmem_sev_section_type {
	GMEM_SEV_SECTION_MEM = 1, /* private memory of zeros, SNP_SEC_MEM */
	GMEM_SEV_SECTION_SECRETS = 2,
	GMEM_SEV_SECTION_CPUID = 3,
	GMEM_SEV_SECTION_SVSM_CAA = 4, /* zeros */
	GMEM_SEV_SECTION_KERNEL_HASHES = 0x10,
};

struct gmem_sev_section {
	uint64_t gpa;
	uint64_t len;
	uint32_t type;
};

enum gmem_tdvf_section_type {
	GMEM_TDVF_SECTION_BFV = 0, /* boot firmware volume */
	GMEM_TDVF_SECTION_CFV = 1, /* configuration firmware volume */
	GMEM_TDVF_SECTION_TD_HOB = 2,
	GMEM_TDVF_SECTION_TEMP_MEM = 3,
	GMEM_TDVF_SECTION_PERM_MEM = 4,
	GMEM_TDVF_SECTION_PAYLOAD = 5,
	GMEM_TDVF_SECTION_PAYLOAD_PARAM = 6,
	GMEM_TDVF_SECTION_TD_INFO = 7,
};

#define GMEM_TDVF_MR_EXTEND (1u << 0) /* the bytes are measured */
#define GMEM_TDVF_PAGE_AUG (1u << 1) /* not part of the build: the guest accepts these pages itself */

struct gmem_tdvf_section {
	uint64_t off; /* of the bytes in the image */
	uint64_t raw_len; /* how many there are; zeros follow up to `len` */
	uint64_t gpa;
	uint64_t len;
	uint32_t type;
	uint32_t attr; /* GMEM_TDVF_... */
};

/*
 * Both answer the number of sections. `sections` has room for `max` of them; beyond what is answered, and after an
 * error, it holds anything.
 *	-ENOENT		the image has no GUID table, or the table no such metadata
 *	-EBADMSG	malformed; the text names the offset in the image and what is wrong there
 *	-EPROTONOSUPPORT  the metadata is of another version
 *	-ENOSPC		there are more than `max`
 *	-EINVAL		image or sections are NULL
 *
 * Checked by both: every length and offset stays inside the image and the lengths agree with each other; no GUID is
 * twice in the table; every type is known; every section begins and ends at a page and does not wrap; no two overlap:
 * a page cannot be launched twice.
 */

/* A section of the SEV metadata is not empty and lies below 4 GiB. */
int gmem_firmware_sev(const void *image, size_t len, struct gmem_sev_section *sections, size_t max);

/*
 * The bytes of a section lie inside the image and are not more than its memory. A BFV or CFV has bytes for all of its
 * memory; a TD_HOB or TEMP_MEM has none. There is one TD_HOB and at least one BFV. No unknown attribute; what is not
 * part of the build is not measured.
 */
int gmem_firmware_tdvf(const void *image, size_t len, struct gmem_tdvf_section *sections, size_t max);

#endif
