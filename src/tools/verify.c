/* SPDX-License-Identifier: MIT */
/* gmem verify: every byte of an image read and checked, every damage told. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>

#include "gmem.h"
#include "tools/cmd.h"
#include "tools/ui.h"

struct found {
	struct gmem_ui_progress progress;
	uint64_t damages;
};

static void print_help(void)
{
	printf("Usage: gmem verify FILE\n"
	       "\n"
	       "Reads the whole of an image and checks it: tables, indexes, sections, every chunk of every\n"
	       "region. Each damage is a line on standard output; the exit status is 1 if there is any.\n"
	       "\n"
	       "  -h, --help  this text\n");
}

static void report(void *opaque, const char *text)
{
	struct found *found = opaque;

	gmem_ui_progress_end(&found->progress);
	puts(text);
	found->damages++;
}

static int step(void *opaque, uint64_t done, uint64_t total)
{
	return gmem_ui_progress_step(&((struct found *)opaque)->progress, done, total);
}

static int verify(const char *path, struct gmem_image *image)
{
	struct gmem_image_region region = { .size = sizeof(region) };
	char memory[GMEM_UI_TEXT], stored[GMEM_UI_TEXT], took[GMEM_UI_TEXT];
	uint64_t start = gmem_ui_now(), len = 0, bytes = 0;
	struct found found = { .damages = 0 };
	int r;

	gmem_ui_progress_start(&found.progress, "verify");
	r = gmem_image_verify(image, report, &found, step, &found);
	gmem_ui_progress_end(&found.progress);
	if (found.damages)
		return gmem_ui_fail("%s: %" PRIu64 " damaged place%s", path, found.damages,
				    found.damages == 1 ? "" : "s");
	if (r < 0)
		return gmem_ui_fail_last();
	for (size_t i = 0; i < gmem_image_nregions(image) && gmem_image_region(image, i, &region) == 0; i++) {
		len += region.len;
		bytes += region.stored_bytes;
	}
	printf("%s: good: %s of memory, %s stored, checked in %s\n", path, gmem_ui_size(memory, len),
	       gmem_ui_size(stored, bytes), gmem_ui_time(took, gmem_ui_now() - start));
	return GMEM_UI_OK;
}

int cmd_verify(int argc, char **argv)
{
	static const struct option options[] = {
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct gmem_image *image;
	int c, code;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
		if (c != 'h')
			return gmem_ui_usage("verify", "unknown option '%s'", argv[optind - 1]);
		print_help();
		return GMEM_UI_OK;
	}
	if (argc - optind != 1)
		return gmem_ui_usage("verify", optind == argc ? "which image?" : "one image at a time");
	if (gmem_image_open(argv[optind], &image) < 0)
		return gmem_ui_fail_last();
	code = verify(argv[optind], image);
	gmem_image_close(image);
	return code;
}
