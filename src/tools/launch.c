/* SPDX-License-Identifier: MIT */
/* gmem launch: the firmware of an SEV-SNP or TDX guest launched by software, measured, and looked at. */
#include "tools/launch.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "tools/cmd.h"
#include "tools/digest_text.h"
#include "tools/ui.h"

static const char help[] =
	"Usage: gmem launch snp --ovmf FILE --vcpus N --vcpu-type TYPE [OPTION]...\n"
	"       gmem launch tdx --ovmf FILE [OPTION]...\n"
	"\n"
	"Launches the firmware of a guest, page by page, as its machine monitor, KVM and AMD's firmware or\n"
	"Intel's module do; compares the digest with that of gmem measure; reads the guest's private memory\n"
	"from inside, and fails to from outside. All of it is emulated: nothing is encrypted.\n"
	"\n"
	"Options that say which guest it is are those of gmem measure, but for --snp-ovmf-hash.\n"
	"\n"
	"  --output-format FORMAT  hex or base64\n"
	"  --expect DIGEST         exit status 1 if the digest is not this one\n"
	"  --version, -h, --help\n"
	"\n"
	"SEV-SNP:\n"
	"  --policy VALUE          of the guest, 0x30000 if not said\n"
	"  --id-block FILE --id-auth FILE   96 and 4096 bytes, or their base64: checked as the firmware does\n"
	"  --author-key-enabled    the second of them has an author's key\n"
	"  --vcek-disabled\n"
	"  --host-data BYTES       32 of them, in hexadecimal or base64\n";

static const char *digest_text(const struct guest_args *args, char *buf, const uint8_t *digest)
{
	if (args->format == GUEST_BASE64)
		return gmem_base64_text(buf, digest, GMEM_LAUNCH_DIGEST_LEN);
	return gmem_hex_text(buf, digest, GMEM_LAUNCH_DIGEST_LEN);
}

static int compare(const struct guest_args *args, const char *with, const uint8_t *digest, const uint8_t *other)
{
	char a[GMEM_HEX_TEXT(GMEM_LAUNCH_DIGEST_LEN)], b[GMEM_HEX_TEXT(GMEM_LAUNCH_DIGEST_LEN)];

	if (!memcmp(digest, other, GMEM_LAUNCH_DIGEST_LEN))
		return GMEM_UI_OK;
	return gmem_ui_fail("the digest of the launch is %s, not what %s %s", digest_text(args, a, digest), with,
			    digest_text(args, b, other));
}

static void row(struct gmem_ui_table *table, const char *name, const char *text)
{
	gmem_ui_table_cell(table, "%s", name);
	gmem_ui_table_cell(table, "%s", text);
}

static void print_launched(const struct launch_guest *guest, uint64_t took)
{
	char text[GMEM_HEX_TEXT(GMEM_LAUNCH_DIGEST_LEN)], line[128], time[GMEM_UI_TEXT];
	const struct guest_args *args = guest->report->args;
	struct gmem_ui_table table;

	printf("emulated: software stands for the processor, and nothing is encrypted\n\n");
	measure_print_inputs(guest->report);
	putchar('\n');
	measure_print_ranges(guest->report);
	putchar('\n');
	gmem_ui_table_init(&table, 2, 0);
	snprintf(line, sizeof(line), "%" PRIu64 " pages, %" PRIu32 " vCPU%s, in %s", guest->npages, args->vcpus,
		 args->vcpus == 1 ? "" : "s", gmem_ui_time(time, took));
	row(&table, "launched", line);
	row(&table, "digest", digest_text(args, text, guest->digest));
	gmem_ui_table_print(&table, stdout, "");
	gmem_ui_table_free(&table);
}

static int look(struct launch_guest *guest)
{
	int code = launch_guest_look_inside(guest);

	if (code)
		return code;
	printf("inside    the guest reads its %" PRIu64 " private pages, as they were launched\n", guest->npages);
	code = launch_guest_look_outside(guest);
	if (!code)
		puts("outside   of none of them: gmem_file_read() is -EACCES, touching a view is SIGBUS");
	return code;
}

static int run(const struct guest_args *args, const struct measure_report *report)
{
	struct launch_guest guest;
	uint64_t begun;
	int code;

	code = launch_guest_start(&guest, report);
	begun = gmem_ui_now();
	code = code ? code : launch_guest_run(&guest);
	if (!code) {
		print_launched(&guest, gmem_ui_now() - begun);
		code = compare(args, "gmem measure says of the files:", guest.digest, report->digest);
	}
	if (!code) {
		puts("measured  the same, from the files alone");
		code = look(&guest);
	}
	if (!code && GUEST_GIVEN(args, GUEST_EXPECT))
		code = compare(args, "is expected:", guest.digest, args->expected);
	launch_guest_free(&guest);
	return code;
}

int cmd_launch(int argc, char **argv)
{
	struct measure_report report = { 0 };
	struct guest_inputs inputs;
	struct guest_args args;
	int code;

	(void)argc;
	code = guest_args_parse(&args, "launch", true, argv + 1);
	if (code)
		return code;
	if (guest_args_answer(&args, help))
		return GMEM_UI_OK;
	code = guest_inputs_read(&inputs, &args);
	code = code ? code : measure_report_make(&report, &args, &inputs, true);
	code = code ? code : run(&args, &report);
	measure_report_free(&report);
	guest_inputs_free(&inputs);
	return code;
}
