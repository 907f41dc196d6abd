/* SPDX-License-Identifier: MIT */
/* What the subcommands share: sizes, times, tables, progress. */
#include "tap.h"

#include <fcntl.h>

#include "tools/ui.h"

static void check_size(uint64_t bytes, const char *text)
{
	char buf[GMEM_UI_TEXT];

	CHECK_STR(gmem_ui_size(buf, bytes), text);
}

TEST(sizes_have_three_digits)
{
	check_size(0, "0 B");
	check_size(1023, "1023 B");
	check_size(1024, "1.00 KiB");
	check_size(10 * 1024 + 512, "10.5 KiB");
	check_size(100 * 1024, "100 KiB");
	check_size((1 << 20) - 1, "1.00 MiB");
	check_size(512ull << 20, "512 MiB");
	check_size(1ull << 30, "1.00 GiB");
	check_size(UINT64_MAX, "16.0 EiB");
}

static void check_time(uint64_t ns, const char *text)
{
	char buf[GMEM_UI_TEXT];

	CHECK_STR(gmem_ui_time(buf, ns), text);
}

TEST(times_have_three_digits)
{
	check_time(0, "0.00 us");
	check_time(1500, "1.50 us");
	check_time(999400, "999 us");
	check_time(999600, "1.00 ms");
	check_time(15200000, "15.2 ms");
	check_time(999600000, "1.00 s");
	check_time(65000000000ull, "65.0 s");
	check_time(125000000000ull, "2 min 05 s");
}

/* Runs fn with standard error in a file and returns what was written. */
static const char *stderr_of(void (*fn)(void))
{
	static char text[8192];
	int file = memfd_create("stderr", MFD_CLOEXEC), old = dup(2);
	ssize_t n;

	CHECK(file >= 0 && old >= 0);
	fflush(stderr);
	dup2(file, 2);
	fn();
	fflush(stderr);
	dup2(old, 2);
	close(old);
	n = pread(file, text, sizeof(text) - 1, 0);
	close(file);
	CHECK(n >= 0);
	text[n] = '\0';
	return text;
}

static void quick_operation(void)
{
	struct gmem_ui_progress p;

	gmem_ui_progress_start(&p, "filling");
	for (uint64_t i = 0; i <= 100; i++)
		CHECK_EQ(gmem_ui_progress_step(&p, i, 100), 0);
	gmem_ui_progress_end(&p);
}

static void slow_operation(void)
{
	struct gmem_ui_progress p;

	gmem_ui_progress_start(&p, "filling");
	p.start -= 10000000000ull; /* as if begun ten seconds ago */
	for (uint64_t i = 1; i <= 50; i++)
		gmem_ui_progress_step(&p, i << 20, 100 << 20);
	gmem_ui_progress_end(&p);
}

TEST(a_quick_operation_draws_nothing)
{
	CHECK_STR(stderr_of(quick_operation), "");
}

TEST(a_log_gets_few_lines)
{
	const char *text = stderr_of(slow_operation);
	unsigned int lines = 0;
	const char *half;
	double rate;

	for (const char *p = text; *p; p++)
		lines += *p == '\n';
	CHECK_EQ(lines, 2); /* the first step, and the end */
	CHECK(!strchr(text, '\r') && !strchr(text, '\033'));
	CHECK_HAS(text, "filling [");
	half = strstr(text, "50%  50.0 MiB of 100 MiB  ");
	CHECK(half && sscanf(half, "50%% 50.0 MiB of 100 MiB %lf MiB/s", &rate) == 1);
	CHECK(rate > 1 && rate <= 5.0); /* ten seconds, and however long the test itself takes */
	CHECK_HAS(text, "s left");
}

static void usage_error(void)
{
	CHECK_EQ(gmem_ui_usage("info", "unknown option '%s'", "-x"), GMEM_UI_USAGE);
	CHECK_EQ(gmem_ui_fail("%s: gone", "image"), GMEM_UI_FAILED);
}

TEST(errors_name_the_program)
{
	CHECK_STR(stderr_of(usage_error),
		  "gmem info: unknown option '-x'\nTry 'gmem info --help'.\ngmem: image: gone\n");
}

TEST(tables_are_aligned)
{
	struct gmem_ui_table table;
	char text[256] = "";
	FILE *out = fmemopen(text, sizeof(text), "w");

	CHECK(out != NULL);
	gmem_ui_table_init(&table, 3, 1u << 1);
	gmem_ui_table_cell(&table, "name");
	gmem_ui_table_cell(&table, "%d", 7);
	gmem_ui_table_cell(&table, "x");
	gmem_ui_table_cell(&table, "a");
	gmem_ui_table_cell(&table, "%d", 1234);
	gmem_ui_table_cell(&table, "long");
	gmem_ui_table_print(&table, out, "  ");
	fclose(out);
	CHECK_STR(text, "  name     7  x\n  a     1234  long\n");
	gmem_ui_table_free(&table);
}
