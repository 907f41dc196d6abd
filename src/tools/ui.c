/* SPDX-License-Identifier: MIT */
#include "tools/ui.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "gmem.h"

#define SECOND 1000000000ull
#define DRAW_AFTER (SECOND / 2)
#define DRAW_EVERY (SECOND / 10)
#define LINE_EVERY (2 * SECOND)
#define BAR 24

int gmem_ui_fail(const char *fmt, ...)
{
	va_list ap;

	fflush(stdout);
	fputs("gmem: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	return GMEM_UI_FAILED;
}

int gmem_ui_fail_last(void)
{
	return gmem_ui_fail("%s", gmem_last_error());
}

int gmem_ui_usage(const char *command, const char *fmt, ...)
{
	const char *space = command ? " " : "";
	va_list ap;

	if (!command)
		command = "";
	fflush(stdout);
	fprintf(stderr, "gmem%s%s: ", space, command);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\nTry 'gmem%s%s --help'.\n", space, command);
	return GMEM_UI_USAGE;
}

void gmem_ui_note(const char *fmt, ...)
{
	va_list ap;

	fflush(stdout);
	fputs("gmem: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
}

bool gmem_ui_color(FILE *out)
{
	const char *no = getenv("NO_COLOR"), *term = getenv("TERM");

	return isatty(fileno(out)) && !(no && *no) && !(term && !strcmp(term, "dumb"));
}

/* Three digits, whatever the size. */
static int digits(double value)
{
	return value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
}

char *gmem_ui_size(char buf[GMEM_UI_TEXT], uint64_t bytes)
{
	static const char *const units[] = { "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	double value = (double)bytes / 1024;
	size_t unit = 0;

	if (bytes < 1024) {
		snprintf(buf, GMEM_UI_TEXT, "%u B", (unsigned int)bytes);
		return buf;
	}
	while (value >= 1023.5 && unit + 1 < sizeof(units) / sizeof(units[0])) {
		value /= 1024;
		unit++;
	}
	snprintf(buf, GMEM_UI_TEXT, "%.*f %s", digits(value), value, units[unit]);
	return buf;
}

char *gmem_ui_time(char buf[GMEM_UI_TEXT], uint64_t ns)
{
	double us = (double)ns / 1e3;

	if (us < 999.5)
		snprintf(buf, GMEM_UI_TEXT, "%.*f us", digits(us), us);
	else if (us < 999.5e3)
		snprintf(buf, GMEM_UI_TEXT, "%.*f ms", digits(us / 1e3), us / 1e3);
	else if (us < 100e6)
		snprintf(buf, GMEM_UI_TEXT, "%.*f s", digits(us / 1e6), us / 1e6);
	else
		snprintf(buf, GMEM_UI_TEXT, "%llu min %02llu s", (unsigned long long)(ns / SECOND / 60),
			 (unsigned long long)(ns / SECOND % 60));
	return buf;
}

uint64_t gmem_ui_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * SECOND + (uint64_t)ts.tv_nsec;
}

void gmem_ui_table_init(struct gmem_ui_table *table, unsigned int columns, uint32_t right)
{
	*table = (struct gmem_ui_table){ .columns = columns, .right = right };
}

void gmem_ui_table_cell(struct gmem_ui_table *table, const char *fmt, ...)
{
	va_list ap;

	if (table->count == table->room) {
		size_t room = table->room ? 2 * table->room : 64;
		char **cells = reallocarray(table->cells, room, sizeof(*cells));

		if (!cells)
			return;
		table->cells = cells;
		table->room = room;
	}
	va_start(ap, fmt);
	if (vasprintf(&table->cells[table->count], fmt, ap) >= 0)
		table->count++;
	va_end(ap);
}

static int column_width(const struct gmem_ui_table *table, unsigned int column)
{
	size_t width = 0;

	for (size_t i = column; i < table->count; i += table->columns)
		if (strlen(table->cells[i]) > width)
			width = strlen(table->cells[i]);
	return (int)width;
}

void gmem_ui_table_print(const struct gmem_ui_table *table, FILE *out, const char *indent)
{
	int widths[32];

	for (unsigned int c = 0; c < table->columns && c < 32; c++)
		widths[c] = column_width(table, c);
	for (size_t i = 0; i < table->count; i++) {
		unsigned int c = (unsigned int)(i % table->columns);
		bool last = c + 1 == table->columns || i + 1 == table->count;
		bool right = table->right & (1u << c);

		fprintf(out, "%s%*s%s", c ? "  " : indent,
			right ? widths[c] :
			last  ? 0 :
				-widths[c],
			table->cells[i], last ? "\n" : "");
	}
}

void gmem_ui_table_free(struct gmem_ui_table *table)
{
	for (size_t i = 0; i < table->count; i++)
		free(table->cells[i]);
	free(table->cells);
	*table = (struct gmem_ui_table){ 0 };
}

void gmem_ui_progress_start(struct gmem_ui_progress *progress, const char *label)
{
	const char *term = getenv("TERM");

	*progress = (struct gmem_ui_progress){
		.label = label,
		.start = gmem_ui_now(),
		.tty = isatty(STDERR_FILENO) && !(term && !strcmp(term, "dumb")),
	};
}

static void draw(struct gmem_ui_progress *p, uint64_t now)
{
	double share = p->total ? (double)p->done / (double)p->total : 1;
	double seconds = (double)(now - p->start) / 1e9;
	double rate = seconds > 0 ? (double)p->done / seconds : 0;
	char done[GMEM_UI_TEXT], total[GMEM_UI_TEXT], speed[GMEM_UI_TEXT], left[GMEM_UI_TEXT], bar[BAR + 1];

	share = share > 1 ? 1 : share;
	memset(bar, '.', BAR);
	memset(bar, '#', (size_t)(share * BAR));
	bar[BAR] = '\0';
	gmem_ui_size(done, p->done);
	gmem_ui_size(total, p->total);
	gmem_ui_size(speed, (uint64_t)rate);
	if (rate > 0 && p->done < p->total)
		gmem_ui_time(left, (uint64_t)((double)(p->total - p->done) / rate * 1e9));
	else
		snprintf(left, sizeof(left), "%s", p->done < p->total ? "?" : "0 s");
	fprintf(stderr,
		p->tty ? "\r%s [%s] %3.0f%%  %s of %s  %s/s  %s left\033[K" :
			 "%s [%s] %3.0f%%  %s of %s  %s/s  %s left\n",
		p->label, bar, share * 100, done, total, speed, left);
	fflush(stderr);
	p->drawn = true;
	p->last = now;
}

int gmem_ui_progress_step(void *opaque, uint64_t done, uint64_t total)
{
	struct gmem_ui_progress *p = opaque;
	uint64_t now = gmem_ui_now();

	p->done = done;
	p->total = total;
	if (now - p->start >= DRAW_AFTER && now - p->last >= (p->tty ? DRAW_EVERY : LINE_EVERY))
		draw(p, now);
	return 0;
}

void gmem_ui_progress_end(struct gmem_ui_progress *progress)
{
	if (!progress->drawn)
		return;
	draw(progress, gmem_ui_now());
	if (progress->tty)
		fputc('\n', stderr);
	progress->drawn = false;
}
