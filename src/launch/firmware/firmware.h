/* SPDX-License-Identifier: MIT */
/*
 * What a guest firmware image (OVMF and its kind) says about its own launch. Its last bytes hold a table of GUIDs.
 * Entries lead to metadata (the pages an SEV-SNP guest needs besides the firmware itself, "ASEV"; the sections a TDX
 * guest is built from, "TDVF"), or are small blocks themselves.
 * Enters: the whole image as bytes of any alignment, borrowed for the call and trusted in nothing. Leaves: sections in
 * the order of their table, which is the order they are measured in, and addresses, all checked as said below. Nothing
 * is allocated. No lock, but nobody may write to the image during the call.
 */
#ifndef GMEM_LAUNCH_FIRMWARE_FIRMWARE_H
#define GMEM_LAUNCH_FIRMWARE_FIRMWARE_H

#include <stddef.h>
#include <stdint.h>

/* An array of this many holds the sections of every firmware known. */
#define GMEM_FIRMWARE_MAX_SECTIONS 64u

enum gmem_sev_section_type {
	GMEM_SEV_SECTION_MEM = 1, /* private memory of zeros, SNP_SEC_MEM */
	GMEM_SEV_SECTION_SECRETS = 2,
	GMEM_SEV_SECTION_CPUID = 3,
	GMEM_SEV_SECTION_SVSM_CAA = 4, /* zeros: where a firmware built for an SVSM calls it */
	GMEM_SEV_SECTION_KERNEL_HASHES = 0x10, /* zeros, or, if a kernel is given, the table of its hashes */
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
 * Errors of all that read an image:
 *	-ENOENT		the image has no GUID table, or the table not that GUID; the text names the GUID
 *	-EBADMSG	malformed; the text names the offset in the image and what is wrong there
 *	-EPROTONOSUPPORT  the metadata is of another version
 *	-ENOSPC		there are more sections than `max`
 *	-EINVAL		a pointer is NULL
 * What is returned through pointers is written on success only, but for sections: beyond the number answered, and after
 * an error, those hold anything.
 *
 * Checked by all: every length and offset stays inside the image and the lengths agree with each other; the GUID that
 * is looked for is not twice in the table, all of which is walked.
 */

/*
 * Both answer the number of sections; `sections` has room for `max` of them. Checked by both: every type is known;
 * every section begins and ends at a page and does not wrap; no two overlap: a page cannot be launched twice.
 */

/*
 * A section of the SEV metadata is not empty and lies below 4 GiB. SECRETS and CPUID are one page each: tools measure
 * the first page only of longer ones, QEMU all.
 */
int gmem_firmware_sev(const void *image, size_t len, struct gmem_sev_section *sections, size_t max);

/*
 * The bytes of a section lie inside the image and are not more than its memory. A BFV or CFV has bytes for all of its
 * memory; a TD_HOB or TEMP_MEM has none. There is one TD_HOB and at least one BFV. No unknown attribute; what is not
 * part of the build is not measured.
 */
int gmem_firmware_tdvf(const void *image, size_t len, struct gmem_tdvf_section *sections, size_t max);

/*
 * Where an image of `len` bytes begins that ends `above` bytes below 4 GiB; of firmware, `above` is 0. -EINVAL: one of
 * them is not whole pages, there is no image, or it would begin below gpa 0.
 */
int gmem_firmware_gpa(uint64_t len, uint64_t above, uint64_t *ret_gpa);

/*
 * That no section lies where an image of `len` bytes is at `gpa`, which does not wrap: firmware, or an SVSM. The image
 * alone does not say where it will lie, so gmem_firmware_sev() cannot know. -EBADMSG: a page would be launched twice.
 */
int gmem_firmware_apart(const struct gmem_sev_section *sections, size_t n, uint64_t gpa, uint64_t len);

/* The SEV-ES reset block: EIP, with the base of CS in its upper half, of all vCPUs but the first. Not 0. */
int gmem_firmware_reset_eip(const void *image, size_t len, uint32_t *ret_eip);

/* Memory that a block of the GUID table names, below 4 GiB, of any alignment. `len` 0: it names none. */
struct gmem_firmware_area {
	uint64_t gpa;
	uint64_t len;
};

/* Where the owner of an SEV guest has its secret put (nothing of it is measured by SNP). */
int gmem_firmware_secret(const void *image, size_t len, struct gmem_firmware_area *ret);

/* Where the firmware looks for the table of kernel hashes. */
int gmem_firmware_hash_table(const void *image, size_t len, struct gmem_firmware_area *ret);

#define GMEM_KERNEL_HASHES_LEN 176u /* the table, with its padding */

struct gmem_firmware_hashes {
	size_t section; /* which of the sections: one page, zeros around the table */
	uint64_t gpa; /* of that page */
	uint32_t off; /* of the table in it; the table's GMEM_KERNEL_HASHES_LEN bytes are inside */
};

/*
 * Where the table of kernel hashes goes, `sections` being the `n` that gmem_firmware_sev() answered for this image.
 * -ENOENT: the firmware cannot be given a kernel, having no block in its GUID table that names the table's address, or
 * no section for it. -EBADMSG: it has two sections, or the table does not lie in the one page of the section: the
 * firmware would read hashes that are not measured.
 */
int gmem_firmware_kernel_hashes(const void *image, size_t len, const struct gmem_sev_section *sections, size_t n,
				struct gmem_firmware_hashes *ret);

/*
 * COCONUT-SVSM, as its QEMU launches it. Three images lie below 4 GiB, downwards without a gap: the firmware, its
 * variables, the SVSM:
 *
 *	gmem_firmware_gpa(firmware_len, 0)			the firmware (OVMF_CODE, built for an SVSM)
 *	  then `vars_len` bytes below it			not launched, not measured
 *	gmem_firmware_gpa(svsm_len, firmware_len + vars_len)	the SVSM
 *
 * Measured: 1. all of the firmware, NORMAL; 2. all of the SVSM, NORMAL; 3. the sections of the SVSM's own SEV metadata,
 * as for any firmware; those of the firmware are not used (the SVSM itself reads them when the guest runs, among them
 * SVSM_CAA, its calling area); there is no table of kernel hashes; 4. the vCPUs, which all begin alike, at the EIP
 * answered here, in flat 32-bit protected mode (gmem_snp_vcpu_reset() with GMEM_VMM_SVSM), with SEV_FEATURES 1. The
 * SVSM's SEV-ES reset block says 0xfffffff0 and counts for nothing.
 *
 * The SVSM has a GUID table and SEV metadata of the same form as firmware. Its block SVSM_INFO holds one 32-bit number,
 * the offset of its entry from its first byte.
 * Answers that entry for an SVSM at `gpa`; it lies in the image, which lies below 4 GiB. -EINVAL: it does not.
 */
int gmem_firmware_svsm_eip(const void *svsm, size_t len, uint64_t gpa, uint32_t *ret_eip);

#endif
