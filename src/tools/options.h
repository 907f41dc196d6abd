/* SPDX-License-Identifier: MIT */
/*
 * Long options as Python's argparse reads them, for commands whose users come from tools that are written with it:
 * --name VALUE and --name=VALUE, abbreviations, letters in a cluster, options and words in any order.
 * Enters: a table and argv. Leaves: one option or word a call; what is wrong is told as a usage error. One thread.
 */
#ifndef GMEM_TOOLS_OPTIONS_H
#define GMEM_TOOLS_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gmem_option {
	const char *name; /* without its dashes; NULL: a place of the table that is not used */
	char letter; /* 0: none */
	bool value; /* it takes one */
	bool later; /* came after the others: what abbreviated one of those goes on doing so */
};

struct gmem_options {
	const char *command; /* for error texts */
	const struct gmem_option *table;
	size_t count;
	char **argv; /* from the first argument on, ends with NULL */
	const char *cluster; /* letters that are left of "-vh" */
	bool words_only; /* "--" has been seen */
};

enum { GMEM_OPTION_END = -1, GMEM_OPTION_WORD = -2, GMEM_OPTION_WRONG = -3 };

/* The place of the next option in the table, or one of these. `*ret_value`: its value, or the word. */
int gmem_options_next(struct gmem_options *o, const char **ret_value);

/*
 * A number as Python's int() reads it: decimal, or with `prefixed` also 0x, 0o and 0b; underscores between digits.
 * False: it is none, or more than `max`.
 */
bool gmem_options_number(const char *text, bool prefixed, uint64_t max, uint64_t *ret);

#endif
