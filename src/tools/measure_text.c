/* SPDX-License-Identifier: MIT */
#include <inttypes.h>
#include <stdio.h>

#include "tools/digest_text.h"
#include "tools/measure.h"
#include "tools/ui.h"

/* With --verbose as sev-snp-measure says it. */
static const char *mode_text(enum guest_mode mode)
{
	switch (mode) {
	case GUEST_TDX:
		return "TDX";
	case GUEST_SNP_SVSM:
		return "SEV_SNP_SVSM";
	default:
		return "SEV_SNP";
	}
}

void measure_print_digest(const struct measure_report *report)
{
	const struct guest_args *args = report->args;
	char text[GMEM_HEX_TEXT(GMEM_LAUNCH_DIGEST_LEN)];

	if (args->format == GUEST_BASE64 && args->mode != GUEST_SNP_OVMF_HASH)
		gmem_base64_text(text, report->digest, sizeof(report->digest));
	else
		gmem_hex_text(text, report->digest, sizeof(report->digest));
	if (GUEST_GIVEN(args, GUEST_VERBOSE) && args->mode != GUEST_SNP_OVMF_HASH)
		printf("Calculated %s guest measurement: %s\n", mode_text(args->mode), text);
	else
		puts(text);
}

void measure_print_inputs(const struct measure_report *report)
{
	struct gmem_ui_table table;
	char size[GMEM_UI_TEXT];

	gmem_ui_table_init(&table, 3, 2);
	for (int i = 0; i < GUEST_NINPUTS; i++) {
		const struct guest_input *file = &report->inputs->files[i];

		if (!file->path)
			continue;
		gmem_ui_table_cell(&table, "%s", file->name);
		gmem_ui_table_cell(&table, "%s", gmem_ui_size(size, file->len));
		gmem_ui_table_cell(&table, "%s", file->path);
	}
	gmem_ui_table_print(&table, stdout, "");
	gmem_ui_table_free(&table);
}

void measure_print_ranges(const struct measure_report *report)
{
	static const char *const titles[] = { "#", "range", "address", "bytes", "measured", "digest after it" };
	char hex[GMEM_HEX_TEXT(GMEM_LAUNCH_DIGEST_LEN)];
	struct gmem_ui_table table;

	gmem_ui_table_init(&table, 6, 1 | 4 | 8);
	for (int i = 0; i < 6; i++)
		gmem_ui_table_cell(&table, "%s", titles[i]);
	for (size_t i = 0; i < report->nranges; i++) {
		const struct measure_range *range = &report->ranges[i];

		gmem_ui_table_cell(&table, "%zu", i);
		gmem_ui_table_cell(&table, "%s", range->name);
		gmem_ui_table_cell(&table, "0x%" PRIx64, range->gpa);
		gmem_ui_table_cell(&table, "0x%" PRIx64, range->len);
		gmem_ui_table_cell(&table, "%s", range->contents ? "contents" : "presence");
		gmem_ui_table_cell(&table, "%s", gmem_hex_text(hex, range->digest, sizeof(range->digest)));
	}
	gmem_ui_table_print(&table, stdout, "");
	gmem_ui_table_free(&table);
}
