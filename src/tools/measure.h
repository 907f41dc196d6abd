/* SPDX-License-Identifier: MIT */
/*
 * What was measured, and how it is told: measure.c (the command, the numbers), measure_text.c (line and table),
 * measure_json.c, measure_against.c (where two of them differ).
 * Enters: arguments and inputs, borrowed. Leaves: results on standard output, what differs on standard error. One
 * thread.
 */
#ifndef GMEM_TOOLS_MEASURE_H
#define GMEM_TOOLS_MEASURE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gmem.h"
#include "tools/guest_args.h"
#include "tools/guest_inputs.h"

struct measure_range {
	char name[32];
	uint64_t gpa, len;
	bool contents;
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN];
};

struct measure_report {
	const struct guest_args *args;
	const struct guest_inputs *inputs;
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN];
	struct measure_range *ranges; /* in the order they are measured */
	size_t nranges, room;
};

/* A gmem_measure_fn: `opaque` is the report, which keeps the range. -ENOMEM. */
int measure_report_range(void *opaque, const struct gmem_measure_range *range);
/* Fills it, with ranges if they are wanted. GMEM_UI_*. */
int measure_report_make(struct measure_report *report, const struct guest_args *args, const struct guest_inputs *inputs,
			bool ranges);
void measure_report_free(struct measure_report *report);

/* measure_text.c: the digest, as a line of its own. */
void measure_print_digest(const struct measure_report *report);
void measure_print_inputs(const struct measure_report *report);
void measure_print_ranges(const struct measure_report *report);

/* measure_json.c. NULL: no memory. */
json_t *measure_json(const struct measure_report *report, bool ranges);
int measure_print_json(const struct measure_report *report, bool ranges);

/* measure_against.c: an earlier document, checked in everything that is used of it. The caller releases. GMEM_UI_*. */
int measure_against_load(const char *path, json_t **ret, uint8_t ret_digest[GMEM_LAUNCH_DIGEST_LEN]);
/* Tells what differs: parameters, files, the first range. */
int measure_against_tell(const struct measure_report *report, const char *path, const json_t *old);

#endif
