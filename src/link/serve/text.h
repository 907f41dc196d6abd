/* SPDX-License-Identifier: MIT */
/*
 * A text that grows. Enters: formats and values. Leaves: a terminated string, or the word that memory ran out, which
 * is asked for once at the end. Owns its bytes; one thread.
 */
#ifndef GMEM_LINK_SERVE_TEXT_H
#define GMEM_LINK_SERVE_TEXT_H

#include <stdbool.h>
#include <stddef.h>

struct gmem_text {
	char *s; /* NULL while nothing was added */
	size_t len, room;
	bool failed; /* there was no memory for all of it */
};

void gmem_text_add(struct gmem_text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void gmem_text_free(struct gmem_text *t);

#endif
