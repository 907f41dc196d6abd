/* SPDX-License-Identifier: MIT */
/*
 * What the subcommands share in talking to people: exit codes, errors, sizes, tables, a progress bar.
 * Enters: values and texts. Leaves: lines on standard error, or on the stream given. Results go to standard output,
 * everything else to standard error. One thread; no lock.
 */
#ifndef GMEM_TOOLS_UI_H
#define GMEM_TOOLS_UI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { GMEM_UI_OK = 0, GMEM_UI_FAILED = 1, GMEM_UI_USAGE = 2 };

/* "gmem: TEXT". Returns GMEM_UI_FAILED. */
int gmem_ui_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* "gmem: " and the library's last error. Returns GMEM_UI_FAILED. */
int gmem_ui_fail_last(void);

/* "gmem COMMAND: TEXT" and where the help is; COMMAND NULL for gmem itself. Returns GMEM_UI_USAGE. */
int gmem_ui_usage(const char *command, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* A remark that is no failure: "gmem: TEXT". */
void gmem_ui_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* True for a terminal, unless NO_COLOR is set or TERM is "dumb". */
bool gmem_ui_color(FILE *out);

/* "1.50 GiB", "12.0 ms": three digits. Return buf. */
#define GMEM_UI_TEXT 24
char *gmem_ui_size(char buf[GMEM_UI_TEXT], uint64_t bytes);
char *gmem_ui_time(char buf[GMEM_UI_TEXT], uint64_t ns);

/* Monotonic clock, in ns. */
uint64_t gmem_ui_now(void);

/* Rows of cells, aligned when printed. */
struct gmem_ui_table {
	unsigned int columns;
	uint32_t right; /* bit i: column i is right-aligned */
	char **cells;
	size_t count, room;
};

void gmem_ui_table_init(struct gmem_ui_table *table, unsigned int columns, uint32_t right);
/* The next cell, row by row. */
void gmem_ui_table_cell(struct gmem_ui_table *table, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void gmem_ui_table_print(const struct gmem_ui_table *table, FILE *out, const char *indent);
void gmem_ui_table_free(struct gmem_ui_table *table);

/*
 * Progress of one long operation: on a terminal a bar, else a line every two seconds at most, so that a log stays
 * short. Nothing is drawn in the first half second.
 */
struct gmem_ui_progress {
	const char *label; /* borrowed */
	uint64_t start, last; /* ns */
	uint64_t done, total; /* bytes */
	bool tty, drawn;
};

void gmem_ui_progress_start(struct gmem_ui_progress *progress, const char *label);
/* A gmem_progress_fn: `opaque` is the struct. Always 0. */
int gmem_ui_progress_step(void *opaque, uint64_t done, uint64_t total);
/* Ends the line of the bar, if one was drawn. */
void gmem_ui_progress_end(struct gmem_ui_progress *progress);

#endif
