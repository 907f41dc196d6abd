/* SPDX-License-Identifier: MIT */
/* gmem inspect: what an image holds, from its header and tables. No page is read. */
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "gmem.h"
#include "tools/cmd.h"
#include "tools/ui.h"

struct sums {
	uint64_t len, data, stored; /* bytes, over all regions */
};

static void print_help(void)
{
	printf("Usage: gmem inspect [--json] FILE\n"
	       "\n"
	       "Says what an image holds: who wrote it and when, its regions, its sections, sizes and how well they\n"
	       "compressed. Pages are not read: gmem verify does that.\n"
	       "\n"
	       "  --json      the same as JSON\n"
	       "  -h, --help  this text\n");
}

static void uuid_text(char buf[37], const uint8_t *u)
{
	snprintf(buf, 37, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1], u[2],
		 u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
}

/* RFC 3339, in UTC. */
static void time_text(char *buf, size_t len, uint64_t ns)
{
	time_t seconds = (time_t)(ns / 1000000000);
	struct tm tm;

	if (!gmtime_r(&seconds, &tm) || strftime(buf, len, "%Y-%m-%dT%H:%M:%SZ", &tm) == 0)
		snprintf(buf, len, "unknown");
}

/* The writer's name comes from the file: nothing of it may reach the terminal as a command. */
static void printable(char *buf, size_t len, const char *text)
{
	size_t n = 0;

	for (; *text && n + 1 < len; text++)
		buf[n++] = *text >= ' ' && *text <= '~' ? *text : '?';
	buf[n] = 0;
}

static const char *compression_text(enum gmem_compression compression)
{
	return compression == GMEM_COMPRESS_ZSTD ? "zstd" : "none";
}

static struct sums add_up(const struct gmem_image *image)
{
	struct gmem_image_region region = { .size = sizeof(region) };
	struct sums sums = { 0 };

	for (size_t i = 0; gmem_image_region(image, i, &region) == 0; i++) {
		sums.len += region.len;
		sums.data += region.data_pages * GMEM_PAGE_SIZE;
		sums.stored += region.stored_bytes;
	}
	return sums;
}

static double ratio(uint64_t data, uint64_t stored)
{
	return stored ? (double)data / (double)stored : 1;
}

static void print_regions(const struct gmem_image *image)
{
	struct gmem_image_region region = { .size = sizeof(region) };
	char a[GMEM_UI_TEXT], b[GMEM_UI_TEXT], c[GMEM_UI_TEXT];
	static const char *const titles[] = { "region", "guest address", "size", "not zero", "stored", "ratio" };
	struct gmem_ui_table table;

	gmem_ui_table_init(&table, 6, 0x3e);
	for (int i = 0; i < 6; i++)
		gmem_ui_table_cell(&table, "%s", titles[i]);
	for (size_t i = 0; i < gmem_image_nregions(image) && gmem_image_region(image, i, &region) == 0; i++) {
		gmem_ui_table_cell(&table, "%s", region.name);
		if (region.gpa == UINT64_MAX)
			gmem_ui_table_cell(&table, "-");
		else
			gmem_ui_table_cell(&table, "0x%" PRIx64, region.gpa);
		gmem_ui_table_cell(&table, "%s", gmem_ui_size(a, region.len));
		gmem_ui_table_cell(&table, "%s", gmem_ui_size(b, region.data_pages * GMEM_PAGE_SIZE));
		gmem_ui_table_cell(&table, "%s", gmem_ui_size(c, region.stored_bytes));
		gmem_ui_table_cell(&table, "%.2f", ratio(region.data_pages * GMEM_PAGE_SIZE, region.stored_bytes));
	}
	printf("\n");
	gmem_ui_table_print(&table, stdout, "  ");
	gmem_ui_table_free(&table);
}

static void print_sections(const struct gmem_image *image)
{
	struct gmem_ui_table table;
	char size[GMEM_UI_TEXT];
	const char *name;
	uint64_t len;

	if (gmem_image_nsections(image) == 0)
		return;
	gmem_ui_table_init(&table, 2, 2);
	gmem_ui_table_cell(&table, "section");
	gmem_ui_table_cell(&table, "size");
	for (size_t i = 0; i < gmem_image_nsections(image) && gmem_image_section_at(image, i, &name, &len) == 0; i++) {
		gmem_ui_table_cell(&table, "%s", name);
		gmem_ui_table_cell(&table, "%s", gmem_ui_size(size, len));
	}
	printf("\n");
	gmem_ui_table_print(&table, stdout, "  ");
	gmem_ui_table_free(&table);
}

static void print_text(const char *path, const struct gmem_image *image, const struct gmem_image_info *info)
{
	char uuid[37], when[40], writer[40], a[GMEM_UI_TEXT], b[GMEM_UI_TEXT];
	struct sums sums = add_up(image);

	uuid_text(uuid, gmem_image_uuid(image));
	time_text(when, sizeof(when), info->created_ns);
	printable(writer, sizeof(writer), info->writer);
	printf("%s: gmem image, format %u\n", path, info->version);
	printf("  written      %s by %s\n", when, writer);
	printf("  uuid         %s\n", uuid);
	printf("  file         %s (%" PRIu64 " bytes)\n", gmem_ui_size(a, info->file_len), info->file_len);
	printf("  compression  %s, in chunks of %s\n", compression_text(info->compression),
	       gmem_ui_size(a, info->chunk_len));
	printf("  memory       %s, of which %s not zero", gmem_ui_size(a, sums.len), gmem_ui_size(b, sums.data));
	printf(", stored in %s (%.2f : 1)\n", gmem_ui_size(a, sums.stored), ratio(sums.data, sums.stored));
	print_regions(image);
	print_sections(image);
}

static json_t *regions_json(const struct gmem_image *image)
{
	struct gmem_image_region region = { .size = sizeof(region) };
	json_t *array = json_array();

	for (size_t i = 0; i < gmem_image_nregions(image) && gmem_image_region(image, i, &region) == 0; i++)
		json_array_append_new(
			array, json_pack("{s:s, s:o, s:I, s:I, s:I}", "name", region.name, "gpa",
					 region.gpa == UINT64_MAX ? json_null() : json_integer((json_int_t)region.gpa),
					 "len", (json_int_t)region.len, "data_bytes",
					 (json_int_t)(region.data_pages * GMEM_PAGE_SIZE), "stored_bytes",
					 (json_int_t)region.stored_bytes));
	return array;
}

static json_t *sections_json(const struct gmem_image *image)
{
	json_t *array = json_array();
	const char *name;
	uint64_t len;

	for (size_t i = 0; i < gmem_image_nsections(image) && gmem_image_section_at(image, i, &name, &len) == 0; i++)
		json_array_append_new(array, json_pack("{s:s, s:I}", "name", name, "len", (json_int_t)len));
	return array;
}

static int print_json(const char *path, const struct gmem_image *image, const struct gmem_image_info *info)
{
	char uuid[37], when[40], writer[40], *text;
	struct sums sums = add_up(image);
	json_t *root, *file = json_string(path);

	uuid_text(uuid, gmem_image_uuid(image));
	time_text(when, sizeof(when), info->created_ns);
	printable(writer, sizeof(writer), info->writer);
	/* JSON is UTF-8; a path need not be. */
	root = json_pack("{s:o, s:i, s:s, s:s, s:s, s:I, s:s, s:i, s:I, s:I, s:I, s:f, s:o, s:o}", "file",
			 file ? file : json_null(), "format", (int)info->version, "created", when, "writer", writer,
			 "uuid", uuid, "file_bytes", (json_int_t)info->file_len, "compression",
			 compression_text(info->compression), "chunk_bytes", (int)info->chunk_len, "memory_bytes",
			 (json_int_t)sums.len, "data_bytes", (json_int_t)sums.data, "stored_bytes",
			 (json_int_t)sums.stored, "ratio", ratio(sums.data, sums.stored), "regions",
			 regions_json(image), "sections", sections_json(image));
	text = root ? json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(4)) : NULL;
	json_decref(root);
	if (!text)
		return gmem_ui_fail("inspect: out of memory");
	puts(text);
	free(text);
	return GMEM_UI_OK;
}

int cmd_inspect(int argc, char **argv)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct gmem_image_info info = { .size = sizeof(info) };
	struct gmem_image *image;
	int c, code = GMEM_UI_OK;
	bool json = false;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
		switch (c) {
		case 'j':
			json = true;
			break;
		case 'h':
			print_help();
			return GMEM_UI_OK;
		default:
			return gmem_ui_usage("inspect", "unknown option '%s'", argv[optind - 1]);
		}
	}
	if (argc - optind != 1)
		return gmem_ui_usage("inspect", optind == argc ? "which image?" : "one image at a time");
	if (gmem_image_open(argv[optind], &image) < 0)
		return gmem_ui_fail_last();
	if (gmem_image_query(image, &info) < 0)
		code = gmem_ui_fail_last();
	else if (json)
		code = print_json(argv[optind], image, &info);
	else
		print_text(argv[optind], image, &info);
	gmem_image_close(image);
	return code;
}
