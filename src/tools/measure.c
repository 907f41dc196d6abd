/* SPDX-License-Identifier: MIT */
/* gmem measure: what the launch of an SEV-SNP or TDX guest will measure, from its files. */
#include "tools/measure.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/cmd.h"
#include "tools/digest_text.h"
#include "tools/ui.h"

static const char help[] =
	"Usage: gmem measure snp --ovmf FILE --vcpus N --vcpu-type TYPE [OPTION]...\n"
	"       gmem measure tdx --ovmf FILE [OPTION]...\n"
	"\n"
	"Prints the digest that the attestation report of a guest will have: MEASUREMENT of SEV-SNP, MRTD\n"
	"of TDX. From files alone; no such processor is needed. Options as of sev-snp-measure, and more.\n"
	"\n"
	"  --mode MODE             snp, snp:ovmf-hash, snp:svsm or tdx, in place of the first word\n"
	"  --ovmf FILE             the firmware; --firmware is the same\n"
	"  --output-format FORMAT  hex, base64 or json; --json is the last of them\n"
	"  --explain               each measured range in order, with the digest after it\n"
	"  --expect DIGEST         exit status 1 if the digest is not this one\n"
	"  --against FILE          JSON of an earlier --explain: its digest is expected, and what differs is told\n"
	"  -v, --verbose           a few words before the digest\n"
	"  --version, -h, --help\n"
	"\n"
	"SEV-SNP:\n"
	"  --vcpus N               how many vCPUs\n"
	"  --vcpu-type TYPE        " GUEST_VCPU_TYPES "\n"
	"  --vcpu-sig VALUE        instead: EAX of CPUID leaf 1\n"
	"  --vcpu-family N --vcpu-model N --vcpu-stepping N   instead\n"
	"  --vmm-type VMM          QEMU, ec2, gce or krun\n"
	"  --ec2-rdx VALUE         0x600 or 0: what vCPUs on EC2 begin with; tools disagree\n"
	"  --guest-features VALUE  SEV_FEATURES of the vCPUs, 0x1 if not said\n"
	"  --kernel FILE, --initrd FILE, --append TEXT        what is booted directly\n"
	"  --snp-ovmf-hash HASH    what --mode snp:ovmf-hash has said, instead of the firmware's pages\n"
	"  --dump-vmsa             write each vCPU's page to vmsa<N>.bin\n"
	"  --svsm FILE             with --mode snp:svsm, and one of:\n"
	"  --vars-file FILE, --vars-size BYTES\n"
	"\n"
	"TDX:\n"
	"  --two-pass              a section's pages are all added, then all measured: hosts before Linux 6.16\n";

int measure_report_range(void *opaque, const struct gmem_measure_range *range)
{
	struct measure_report *report = opaque;
	struct measure_range *r;

	if (report->nranges == report->room) {
		size_t room = report->room ? 2 * report->room : 32;

		r = reallocarray(report->ranges, room, sizeof(*r));
		if (!r)
			return gmem_set_error(-ENOMEM, "no memory for the ranges");
		report->ranges = r;
		report->room = room;
	}
	r = &report->ranges[report->nranges++];
	snprintf(r->name, sizeof(r->name), "%s", range->name);
	r->gpa = range->gpa;
	r->len = range->len;
	r->contents = range->contents;
	memcpy(r->digest, range->digest, sizeof(r->digest));
	return 0;
}

/* The firmware is what is measured first: its digest is known then, and the rest is not asked for. */
static int first_range(void *opaque, const struct gmem_measure_range *range)
{
	int err = measure_report_range(opaque, range);

	memcpy(((struct measure_report *)opaque)->digest, range->digest, sizeof(range->digest));
	return err ? err : 1;
}

static int write_vmsa(const char *path, const uint8_t *page)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	ssize_t n = fd < 0 ? -1 : write(fd, page, GMEM_PAGE_SIZE);
	int err = n < 0 ? errno : ENOSPC;

	if (fd >= 0 && close(fd) && n == GMEM_PAGE_SIZE) {
		err = errno;
		n = -1;
	}
	return n == GMEM_PAGE_SIZE ? GMEM_UI_OK : gmem_ui_fail("%s: %s", path, strerror(err));
}

static int dump_vmsas(struct gmem_measure *measure, const struct gmem_guest *guest)
{
	uint8_t page[GMEM_PAGE_SIZE];
	char path[32];
	int code;

	for (uint32_t i = 0; i < guest->nvcpus; i++) {
		if (gmem_measure_vmsa(measure, guest, i, page))
			return gmem_ui_fail_last();
		snprintf(path, sizeof(path), "vmsa%" PRIu32 ".bin", i);
		code = write_vmsa(path, page);
		if (code)
			return code;
	}
	return GMEM_UI_OK;
}

/* Whose fault it is: what the library looks at are images. What to take instead, if one is not for such a guest. */
static int failed(const struct guest_args *args, int err, bool created)
{
	if (args->svsm)
		return gmem_ui_fail("%s or %s: %s", args->ovmf, args->svsm, gmem_last_error());
	gmem_ui_fail("%s: %s", args->ovmf, gmem_last_error());
	if (err == -ENOENT && !created)
		gmem_ui_note("it has to be firmware built for %s guests; Debian's and Ubuntu's package ovmf has "
			     "/usr/share/ovmf/OVMF.fd",
			     args->mode == GUEST_TDX ? "TDX" : "SEV-SNP");
	else if (err == -ENOENT && args->kernel)
		gmem_ui_note("edk2's OvmfPkg/AmdSev is built with a place for a kernel's hashes (OVMF.amdsev.fd); "
			     "without --kernel a guest boots from its disk");
	return GMEM_UI_FAILED;
}

static int digest(struct measure_report *report, struct gmem_measure *measure, bool ranges)
{
	const struct gmem_guest *guest = &report->inputs->guest;
	uint8_t rest[GMEM_LAUNCH_DIGEST_LEN];
	int err;

	if (report->args->mode == GUEST_SNP_OVMF_HASH) {
		err = gmem_measure_digest(measure, guest, first_range, report, rest);
		return err == 1 ? GMEM_UI_OK : failed(report->args, err, true);
	}
	err = gmem_measure_digest(measure, guest, ranges ? measure_report_range : NULL, report, report->digest);
	if (err)
		return failed(report->args, err, true);
	return GUEST_GIVEN(report->args, GUEST_DUMP_VMSA) ? dump_vmsas(measure, guest) : GMEM_UI_OK;
}

int measure_report_make(struct measure_report *report, const struct guest_args *args, const struct guest_inputs *inputs,
			bool ranges)
{
	struct gmem_ui_progress progress;
	struct gmem_measure *measure;
	int err, code;

	*report = (struct measure_report){ .args = args, .inputs = inputs };
	gmem_ui_progress_start(&progress, "measure");
	err = gmem_measure_create(guest_args_type(args), &inputs->guest, gmem_ui_progress_step, &progress, &measure);
	gmem_ui_progress_end(&progress);
	if (err)
		return failed(args, err, false);
	code = digest(report, measure, ranges);
	gmem_measure_free(measure);
	return code;
}

void measure_report_free(struct measure_report *report)
{
	free(report->ranges);
}

static int print(const struct measure_report *report)
{
	bool explain = GUEST_GIVEN(report->args, GUEST_EXPLAIN);

	if (report->args->format == GUEST_FORMAT_JSON)
		return measure_print_json(report, explain);
	if (explain) {
		measure_print_inputs(report);
		putchar('\n');
		measure_print_ranges(report);
		putchar('\n');
	}
	measure_print_digest(report);
	return GMEM_UI_OK;
}

static int unexpected(const struct measure_report *report, const uint8_t *expected, const json_t *old)
{
	char want[GMEM_HEX_TEXT(GMEM_LAUNCH_DIGEST_LEN)], is[GMEM_HEX_TEXT(GMEM_LAUNCH_DIGEST_LEN)];
	int code;

	code = gmem_ui_fail("not the expected digest: expected %s, it is %s",
			    gmem_hex_text(want, expected, GMEM_LAUNCH_DIGEST_LEN),
			    gmem_hex_text(is, report->digest, GMEM_LAUNCH_DIGEST_LEN));
	if (old)
		return measure_against_tell(report, report->args->against, old);
	gmem_ui_note("what differs is told with --against FILE, FILE being the output of an earlier --explain --json");
	return code;
}

static int measure(const struct guest_args *args, const struct guest_inputs *inputs)
{
	bool ranges = GUEST_GIVEN(args, GUEST_EXPLAIN) || args->against;
	uint8_t expected[GMEM_LAUNCH_DIGEST_LEN];
	struct measure_report report = { 0 };
	bool expects = false;
	json_t *old = NULL;
	int code = GMEM_UI_OK;

	if (args->against) {
		code = measure_against_load(args->against, &old, expected);
		expects = true;
	}
	if (GUEST_GIVEN(args, GUEST_EXPECT)) {
		memcpy(expected, args->expected, sizeof(expected));
		expects = true;
	}
	code = code ? code : measure_report_make(&report, args, inputs, ranges);
	code = code ? code : print(&report);
	if (!code && expects && memcmp(expected, report.digest, sizeof(expected)))
		code = unexpected(&report, expected, old);
	json_decref(old);
	measure_report_free(&report);
	return code;
}

int cmd_measure(int argc, char **argv)
{
	struct guest_inputs inputs;
	struct guest_args args;
	int code;

	(void)argc;
	code = guest_args_parse(&args, "measure", false, argv + 1);
	if (code)
		return code;
	if (guest_args_answer(&args, help))
		return GMEM_UI_OK;
	code = guest_inputs_read(&inputs, &args);
	code = code ? code : measure(&args, &inputs);
	guest_inputs_free(&inputs);
	return code;
}
