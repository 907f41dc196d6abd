/* SPDX-License-Identifier: MIT */
#include "tools/guest_args.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "tools/digest_text.h"
#include "tools/options.h"
#include "tools/ui.h"

static const struct gmem_option options[GUEST_NOPTIONS] = {
	[GUEST_HELP] = { .name = "help", .letter = 'h' },
	[GUEST_VERSION] = { .name = "version" },
	[GUEST_VERBOSE] = { .name = "verbose", .letter = 'v' },
	[GUEST_MODE] = { .name = "mode", .value = true },
	[GUEST_VCPUS] = { .name = "vcpus", .value = true },
	[GUEST_VCPU_TYPE] = { .name = "vcpu-type", .value = true },
	[GUEST_VCPU_SIG] = { .name = "vcpu-sig", .value = true },
	[GUEST_VCPU_FAMILY] = { .name = "vcpu-family", .value = true },
	[GUEST_VCPU_MODEL] = { .name = "vcpu-model", .value = true },
	[GUEST_VCPU_STEPPING] = { .name = "vcpu-stepping", .value = true },
	[GUEST_VMM_TYPE] = { .name = "vmm-type", .value = true },
	[GUEST_OVMF] = { .name = "ovmf", .value = true },
	[GUEST_KERNEL] = { .name = "kernel", .value = true },
	[GUEST_INITRD] = { .name = "initrd", .value = true },
	[GUEST_APPEND] = { .name = "append", .value = true },
	[GUEST_FEATURES] = { .name = "guest-features", .value = true },
	[GUEST_OUTPUT_FORMAT] = { .name = "output-format", .value = true },
	[GUEST_OVMF_HASH] = { .name = "snp-ovmf-hash", .value = true },
	[GUEST_DUMP_VMSA] = { .name = "dump-vmsa" },
	[GUEST_SVSM] = { .name = "svsm", .value = true },
	[GUEST_VARS_SIZE] = { .name = "vars-size", .value = true },
	[GUEST_VARS_FILE] = { .name = "vars-file", .value = true },
	[GUEST_FIRMWARE] = { .name = "firmware", .value = true, .later = true },
	[GUEST_OVMF_HASH_TOO] = { .name = "ovmf-hash", .value = true, .later = true },
	[GUEST_EC2_RDX] = { .name = "ec2-rdx", .value = true, .later = true },
	[GUEST_TWO_PASS] = { .name = "two-pass", .later = true },
	[GUEST_JSON] = { .name = "json", .later = true },
	[GUEST_EXPLAIN] = { .name = "explain", .later = true },
	[GUEST_EXPECT] = { .name = "expect", .value = true, .later = true },
	[GUEST_AGAINST] = { .name = "against", .value = true, .later = true },
	[GUEST_POLICY] = { .name = "policy", .value = true, .later = true },
	[GUEST_ID_BLOCK] = { .name = "id-block", .value = true, .later = true },
	[GUEST_ID_AUTH] = { .name = "id-auth", .value = true, .later = true },
	[GUEST_AUTHOR_KEY] = { .name = "author-key-enabled", .later = true },
	[GUEST_VCEK_DISABLED] = { .name = "vcek-disabled", .later = true },
	[GUEST_HOST_DATA] = { .name = "host-data", .value = true, .later = true },
};

#define MAX_VCPUS 65536u /* far beyond what any machine has */

#define BIT(option) (UINT64_C(1) << (option))
#define LAUNCH_ALONE                                                                            \
	(BIT(GUEST_POLICY) | BIT(GUEST_ID_BLOCK) | BIT(GUEST_ID_AUTH) | BIT(GUEST_AUTHOR_KEY) | \
	 BIT(GUEST_VCEK_DISABLED) | BIT(GUEST_HOST_DATA))
#define MEASURE_ALONE (BIT(GUEST_OVMF_HASH) | BIT(GUEST_DUMP_VMSA) | BIT(GUEST_EXPLAIN) | BIT(GUEST_AGAINST))
#define SNP_ALONE                                                                                                     \
	(LAUNCH_ALONE | BIT(GUEST_VCPU_TYPE) | BIT(GUEST_VCPU_SIG) | BIT(GUEST_VCPU_FAMILY) | BIT(GUEST_VCPU_MODEL) | \
	 BIT(GUEST_VCPU_STEPPING) | BIT(GUEST_VMM_TYPE) | BIT(GUEST_FEATURES) | BIT(GUEST_OVMF_HASH) |                \
	 BIT(GUEST_DUMP_VMSA) | BIT(GUEST_SVSM) | BIT(GUEST_VARS_SIZE) | BIT(GUEST_VARS_FILE) | BIT(GUEST_EC2_RDX))
#define KERNEL (BIT(GUEST_KERNEL) | BIT(GUEST_INITRD) | BIT(GUEST_APPEND))

static const char *const modes[] = { "snp", "snp:ovmf-hash", "snp:svsm", "tdx" };
static const char *const vmms[] = { "QEMU", "ec2", "gce", "krun", "svsm" };

const char *guest_mode_text(enum guest_mode mode)
{
	return modes[mode];
}

const char *guest_vmm_text(enum gmem_vmm vmm)
{
	return vmms[vmm];
}

static int number(const struct guest_args *args, enum guest_option i, const char *text, uint64_t max, uint64_t *ret)
{
	bool prefixed = i == GUEST_VCPU_SIG || i == GUEST_FEATURES || i == GUEST_EC2_RDX || i == GUEST_POLICY;

	if (gmem_options_number(text, prefixed, max, ret))
		return GMEM_UI_OK;
	return gmem_ui_usage(args->command, "--%s: '%s' is no number from 0 to %llu", options[i].name, text,
			     (unsigned long long)max);
}

static int bytes(const struct guest_args *args, enum guest_option i, const char *text, uint8_t *ret, size_t n)
{
	if (gmem_digest_parse(text, ret, n))
		return GMEM_UI_OK;
	return gmem_ui_usage(args->command, "--%s: '%s' is not %zu bytes in hexadecimal or base64", options[i].name,
			     text, n);
}

static int format(struct guest_args *args, const char *text)
{
	static const char *const formats[] = { "hex", "base64", "json" };

	for (int i = 0; i < 3; i++) {
		if (strcmp(text, formats[i]))
			continue;
		args->format = (enum guest_format)i;
		return GMEM_UI_OK;
	}
	return gmem_ui_usage(args->command, "--output-format: '%s' is not hex, base64 or json", text);
}

static int vcpu_type(struct guest_args *args, const char *text)
{
	if (guest_vcpu_type(text, &args->type_signature))
		return GMEM_UI_OK;
	return gmem_ui_usage(args->command, "--vcpu-type: '%s' is not one of " GUEST_VCPU_TYPES, text);
}

static int ec2_rdx(struct guest_args *args, const char *text)
{
	uint64_t value;

	if (!gmem_options_number(text, true, 0x600, &value) || (value && value != 0x600))
		return gmem_ui_usage(args->command, "--ec2-rdx: '%s' is neither 0x600 nor 0", text);
	args->flags &= ~GMEM_GUEST_EC2_RDX_ZERO;
	args->flags |= value ? 0 : GMEM_GUEST_EC2_RDX_ZERO;
	return GMEM_UI_OK;
}

/* Numbers, and what else is checked by itself. */
static int take_checked(struct guest_args *args, enum guest_option i, const char *value)
{
	uint64_t n = 0;
	int code;

	switch (i) {
	case GUEST_VCPUS:
		code = number(args, i, value, MAX_VCPUS, &n);
		args->vcpus = (uint32_t)n;
		return code;
	case GUEST_VCPU_SIG:
		code = number(args, i, value, UINT32_MAX, &n);
		args->signature = (uint32_t)n;
		return code;
	case GUEST_VCPU_TYPE:
		return vcpu_type(args, value);
	case GUEST_VCPU_FAMILY:
		return number(args, i, value, 15 + 255, &args->family);
	case GUEST_VCPU_MODEL:
		return number(args, i, value, 255, &args->model);
	case GUEST_VCPU_STEPPING:
		return number(args, i, value, 15, &args->stepping);
	case GUEST_FEATURES:
		return number(args, i, value, UINT64_MAX, &args->features);
	case GUEST_VARS_SIZE:
		return number(args, i, value, UINT64_C(1) << 32, &args->vars_len);
	case GUEST_POLICY:
		return number(args, i, value, UINT64_MAX, &args->policy);
	case GUEST_OUTPUT_FORMAT:
		return format(args, value);
	case GUEST_EC2_RDX:
		return ec2_rdx(args, value);
	case GUEST_OVMF_HASH:
		return bytes(args, i, value, args->ovmf_hash, sizeof(args->ovmf_hash));
	case GUEST_EXPECT:
		return bytes(args, i, value, args->expected, sizeof(args->expected));
	case GUEST_HOST_DATA:
		return bytes(args, i, value, args->host_data, sizeof(args->host_data));
	default:
		return GMEM_UI_OK;
	}
}

static int take(struct guest_args *args, enum guest_option i, const char *value)
{
	const char **const texts[GUEST_NOPTIONS] = {
		[GUEST_MODE] = &args->mode_text,      [GUEST_VMM_TYPE] = &args->vmm_text,
		[GUEST_OVMF] = &args->ovmf,	      [GUEST_FIRMWARE] = &args->ovmf,
		[GUEST_KERNEL] = &args->kernel,	      [GUEST_INITRD] = &args->initrd,
		[GUEST_APPEND] = &args->append,	      [GUEST_SVSM] = &args->svsm,
		[GUEST_VARS_FILE] = &args->vars_file, [GUEST_AGAINST] = &args->against,
		[GUEST_ID_BLOCK] = &args->id_block,   [GUEST_ID_AUTH] = &args->id_auth,
	};

	if (i == GUEST_OVMF_HASH_TOO)
		i = GUEST_OVMF_HASH;
	args->given |= BIT(i);
	if (texts[i])
		*texts[i] = *value || i == GUEST_MODE || i == GUEST_VMM_TYPE ? value : NULL;
	if (i == GUEST_JSON)
		args->format = GUEST_FORMAT_JSON;
	if (i == GUEST_TWO_PASS)
		args->flags |= GMEM_GUEST_TWO_PASS;
	if (GUEST_GIVEN(args, GUEST_VARS_SIZE) && GUEST_GIVEN(args, GUEST_VARS_FILE))
		return gmem_ui_usage(args->command, "--vars-size and --vars-file: one of them");
	return take_checked(args, i, value);
}

/* What `mode` says, and the word that may stand for it: "snp", also before a --mode that says more. */
static int check_mode(struct guest_args *args)
{
	const char *text = args->mode_text ? args->mode_text : args->word;

	if (!text)
		return gmem_ui_usage(args->command, "which kind of guest? snp, tdx, or --mode");
	if (!strcmp(text, "sev") || !strcmp(text, "seves"))
		return gmem_ui_usage(args->command,
				     "mode '%s': gmem measures SEV-SNP and TDX guests; for SEV and SEV-ES there is "
				     "sev-snp-measure",
				     text);
	for (int i = 0; i <= GUEST_TDX; i++) {
		if (strcmp(text, modes[i]))
			continue;
		args->mode = (enum guest_mode)i;
		if (!args->word || !args->mode_text || !strcmp(args->word, args->mode_text) ||
		    (!strcmp(args->word, "snp") && i != GUEST_TDX))
			return GMEM_UI_OK;
		return gmem_ui_usage(args->command, "'%s' and --mode %s: one of them", args->word, text);
	}
	return gmem_ui_usage(args->command, "%s'%s': there are snp, snp:ovmf-hash, snp:svsm and tdx",
			     args->mode_text ? "mode " : "", text);
}

static int check_vmm(struct guest_args *args)
{
	int vmm = GMEM_VMM_QEMU;

	while (args->vmm_text && vmm < GMEM_VMM_SVSM && strcasecmp(args->vmm_text, vmms[vmm]))
		vmm++;
	if (vmm == GMEM_VMM_SVSM)
		return gmem_ui_usage(args->command, "unknown VMM type '%s': there are QEMU, ec2, gce and krun",
				     args->vmm_text);
	if (vmm != GMEM_VMM_QEMU && args->mode == GUEST_SNP_SVSM)
		return gmem_ui_usage(args->command, "--vmm-type %s: an SVSM is launched by QEMU", vmms[vmm]);
	if (vmm != GMEM_VMM_EC2 && GUEST_GIVEN(args, GUEST_EC2_RDX))
		return gmem_ui_usage(args->command, "--ec2-rdx belongs to --vmm-type ec2");
	args->vmm = args->mode == GUEST_SNP_SVSM ? GMEM_VMM_SVSM : (enum gmem_vmm)vmm;
	return GMEM_UI_OK;
}

/* The order in which one is taken before another is sev-snp-measure's, to which a 0 is none. */
static int check_signature(struct guest_args *args)
{
	bool model = GUEST_GIVEN(args, GUEST_VCPU_MODEL), stepping = GUEST_GIVEN(args, GUEST_VCPU_STEPPING);

	if (args->family) {
		if (!model || !stepping)
			return gmem_ui_usage(args->command, "--vcpu-family goes with --vcpu-model and --vcpu-stepping");
		args->signature =
			guest_vcpu_signature((uint32_t)args->family, (uint32_t)args->model, (uint32_t)args->stepping);
	} else if (args->signature) {
		return GMEM_UI_OK;
	} else if (GUEST_GIVEN(args, GUEST_VCPU_TYPE)) {
		args->signature = args->type_signature;
	} else if (args->vmm == GMEM_VMM_QEMU || args->vmm == GMEM_VMM_SVSM) {
		return gmem_ui_usage(args->command,
				     "missing --vcpu-type or --vcpu-sig or --vcpu-family in guest mode '%s'",
				     modes[args->mode]);
	}
	return GMEM_UI_OK;
}

static int check_snp(struct guest_args *args)
{
	if (args->initrd && !GUEST_GIVEN(args, GUEST_KERNEL))
		return gmem_ui_usage(args->command, "--kernel required when using --initrd");
	if (args->append && !GUEST_GIVEN(args, GUEST_KERNEL))
		return gmem_ui_usage(args->command, "--kernel required when using --append");
	if (!GUEST_GIVEN(args, GUEST_VCPUS))
		return gmem_ui_usage(args->command, "missing --vcpus N in guest mode '%s'", modes[args->mode]);
	if (!args->vcpus)
		return gmem_ui_usage(args->command, "--vcpus: a guest has one at least");
	if (!(args->features & 1))
		return gmem_ui_usage(args->command,
				     "--guest-features 0x%llx: bit 0, SNPActive, is set in every SNP guest",
				     (unsigned long long)args->features);
	if (args->flags & GMEM_GUEST_TWO_PASS)
		return gmem_ui_usage(args->command, "--two-pass belongs to tdx");
	/* To the library it is none, and another is taken. */
	if (GUEST_GIVEN(args, GUEST_POLICY) && !args->policy)
		return gmem_ui_usage(args->command, "--policy 0: bit 17 is set in every policy; 0x30000 is usual");
	if (!args->id_block != !args->id_auth)
		return gmem_ui_usage(args->command, "--id-block and --id-auth go together");
	if (GUEST_GIVEN(args, GUEST_AUTHOR_KEY) && !args->id_auth)
		return gmem_ui_usage(args->command, "--author-key-enabled goes with --id-block and --id-auth");
	return GMEM_UI_OK;
}

static int check_svsm(struct guest_args *args)
{
	if (args->mode != GUEST_SNP_SVSM) {
		if (args->svsm)
			return gmem_ui_usage(args->command, "--svsm belongs to --mode snp:svsm");
		return GMEM_UI_OK;
	}
	if (!args->vars_file && !args->vars_len)
		return gmem_ui_usage(args->command, "snp:svsm mode requires --vars-size or --vars-file");
	if (!args->svsm)
		return gmem_ui_usage(args->command, "snp:svsm mode requires --svsm");
	if (args->features != 1)
		gmem_ui_note("--guest-features 0x%llx: with an SVSM they are 0x1, whatever is said",
			     (unsigned long long)args->features);
	args->features = 1;
	return GMEM_UI_OK;
}

static int first_of(uint64_t given)
{
	return __builtin_ctzll(given);
}

/* Nothing that was asked for is passed over in silence. */
static int check_tdx(struct guest_args *args)
{
	uint64_t given = args->given;

	if (given & KERNEL)
		return gmem_ui_usage(args->command,
				     "--%s: MRTD does not cover it; the firmware measures what it boots into RTMRs",
				     options[first_of(given & KERNEL)].name);
	if (given & SNP_ALONE)
		return gmem_ui_usage(args->command, "--%s belongs to snp", options[first_of(given & SNP_ALONE)].name);
	if (!args->launch && (given & BIT(GUEST_VCPUS)))
		return gmem_ui_usage(args->command, "--vcpus: MRTD does not cover them");
	if (!(given & BIT(GUEST_VCPUS)))
		args->vcpus = 1;
	return args->vcpus ? GMEM_UI_OK : gmem_ui_usage(args->command, "--vcpus: a guest has one at least");
}

static int check(struct guest_args *args)
{
	uint64_t wrong = args->given & (args->launch ? MEASURE_ALONE : LAUNCH_ALONE);
	int code;

	if (wrong)
		return gmem_ui_usage(args->command, "--%s belongs to gmem %s", options[first_of(wrong)].name,
				     args->launch ? "measure" : "launch");
	if (args->launch && args->format == GUEST_FORMAT_JSON)
		return gmem_ui_usage(args->command, "JSON belongs to gmem measure");
	code = check_mode(args);
	if (code)
		return code;
	if (!args->ovmf)
		return gmem_ui_usage(args->command, "the following arguments are required: --ovmf");
	if (args->mode == GUEST_TDX)
		return check_tdx(args);
	if (args->mode == GUEST_SNP_OVMF_HASH) {
		/* One vCPU, which is behind what is asked for. */
		args->vcpus = args->vcpus ? args->vcpus : 1;
		args->signature = args->signature ? args->signature : 0x800f12;
		return args->launch ? gmem_ui_usage(args->command, "mode snp:ovmf-hash belongs to gmem measure") :
				      GMEM_UI_OK;
	}
	code = check_snp(args);
	code = code ? code : check_vmm(args);
	code = code ? code : check_signature(args);
	return code ? code : check_svsm(args);
}

int guest_args_parse(struct guest_args *args, const char *command, bool launch, char **argv)
{
	struct gmem_options o = { .command = command, .table = options, .count = GUEST_NOPTIONS, .argv = argv };
	const char *value;
	int i, code;

	*args = (struct guest_args){ .command = command, .launch = launch, .features = 1 };
	while ((i = gmem_options_next(&o, &value)) != GMEM_OPTION_END) {
		if (i == GMEM_OPTION_WRONG)
			return GMEM_UI_USAGE;
		if (i == GMEM_OPTION_WORD) {
			if (args->word)
				return gmem_ui_usage(command, "unrecognized arguments: %s", value);
			args->word = value;
			continue;
		}
		code = take(args, (enum guest_option)i, value);
		if (code)
			return code;
		/* As they come: what is behind them is not looked at. */
		if (i == GUEST_HELP || i == GUEST_VERSION)
			return GMEM_UI_OK;
	}
	return check(args);
}

bool guest_args_answer(const struct guest_args *args, const char *help)
{
	if (GUEST_GIVEN(args, GUEST_HELP))
		fputs(help, stdout);
	else if (GUEST_GIVEN(args, GUEST_VERSION))
		printf("gmem %s %s\n", args->command, gmem_version());
	else
		return false;
	return true;
}
