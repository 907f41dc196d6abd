/* SPDX-License-Identifier: MIT */
/*
 * The arguments that say which confidential guest is meant: of gmem measure and of gmem launch, spelt as
 * sev-snp-measure spells them.
 * Enters: argv. Leaves: checked values; texts are borrowed from argv. No file is opened. One thread.
 */
#ifndef GMEM_TOOLS_GUEST_ARGS_H
#define GMEM_TOOLS_GUEST_ARGS_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"

enum guest_option {
	GUEST_HELP,
	GUEST_VERSION,
	GUEST_VERBOSE,
	GUEST_MODE,
	GUEST_VCPUS,
	GUEST_VCPU_TYPE,
	GUEST_VCPU_SIG,
	GUEST_VCPU_FAMILY,
	GUEST_VCPU_MODEL,
	GUEST_VCPU_STEPPING,
	GUEST_VMM_TYPE,
	GUEST_OVMF,
	GUEST_KERNEL,
	GUEST_INITRD,
	GUEST_APPEND,
	GUEST_FEATURES,
	GUEST_OUTPUT_FORMAT,
	GUEST_OVMF_HASH,
	GUEST_DUMP_VMSA,
	GUEST_SVSM,
	GUEST_VARS_SIZE,
	GUEST_VARS_FILE,
	/* Not sev-snp-measure's. */
	GUEST_FIRMWARE,
	GUEST_OVMF_HASH_TOO, /* what the README of that program calls it */
	GUEST_EC2_RDX,
	GUEST_TWO_PASS,
	GUEST_JSON,
	GUEST_EXPLAIN,
	GUEST_EXPECT,
	GUEST_AGAINST,
	/* gmem launch alone. */
	GUEST_POLICY,
	GUEST_ID_BLOCK,
	GUEST_ID_AUTH,
	GUEST_AUTHOR_KEY,
	GUEST_VCEK_DISABLED,
	GUEST_HOST_DATA,
	GUEST_NOPTIONS,
};

enum guest_mode { GUEST_SNP, GUEST_SNP_OVMF_HASH, GUEST_SNP_SVSM, GUEST_TDX };
enum guest_format { GUEST_HEX, GUEST_BASE64, GUEST_FORMAT_JSON };

#define GUEST_GIVEN(args, option) ((args)->given >> (option)&1)

struct guest_args {
	const char *command;
	bool launch; /* which of the two commands */
	uint64_t given; /* bit i: option i was */
	enum guest_mode mode;
	enum guest_format format;
	enum gmem_vmm vmm;
	uint32_t flags; /* GMEM_GUEST_* */
	uint32_t vcpus, signature;
	uint64_t features, vars_len, policy;
	/* Files and texts; NULL: not given, or empty, which is the same to sev-snp-measure. */
	const char *ovmf, *kernel, *initrd, *append, *svsm, *vars_file, *against, *id_block, *id_auth;
	uint8_t ovmf_hash[GMEM_LAUNCH_DIGEST_LEN], expected[GMEM_LAUNCH_DIGEST_LEN], host_data[32];

	/* While they are read. */
	const char *word, *mode_text, *vmm_text;
	uint64_t family, model, stepping;
	uint32_t type_signature;
};

/* GMEM_UI_OK, or an exit code: wrong usage has been told. --help and --version are only noted in `given`. */
int guest_args_parse(struct guest_args *args, const char *command, bool launch, char **argv);
/* True if that was all: --help or --version, which has been answered. */
bool guest_args_answer(const struct guest_args *args, const char *help);

static inline enum gmem_vm_type guest_args_type(const struct guest_args *args)
{
	return args->mode == GUEST_TDX ? GMEM_VM_TDX : GMEM_VM_SNP;
}

const char *guest_mode_text(enum guest_mode mode); /* as --mode has it */
const char *guest_vmm_text(enum gmem_vmm vmm);

/* guest_types.c: EAX of CPUID leaf 1 of a processor that QEMU calls so; false: it knows none. */
bool guest_vcpu_type(const char *name, uint32_t *ret_signature);
uint32_t guest_vcpu_signature(uint32_t family, uint32_t model, uint32_t stepping);
/* The names, as a sentence has them. */
#define GUEST_VCPU_TYPES                                                                                          \
	"EPYC, EPYC-v1 to -v5, EPYC-IBPB, EPYC-Rome, -Rome-v1 to -v5, EPYC-Milan, -Milan-v1 to -v3, EPYC-Genoa, " \
	"-Genoa-v1, -v2, EPYC-Turin, -Turin-v1"

#endif
