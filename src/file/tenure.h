/* SPDX-License-Identifier: MIT */
/*
 * Tenures: who keeps a table of its own of a file's private pages (an RMP) has to learn that a page is not what it was,
 * also of pages that no slot of its machine showed when that happened.
 *
 * Enters: bindings, and invalidations by which private pages are given up: converted, punched, poisoned. Leaves: a
 * number for each page, another one after each of these, and after another machine's slot has shown the page. Counted
 * from the first binding on that asks. Lock: changed under the file's invalidate lock, exclusive; read without it, by
 * whom a binding keeps in touch.
 */
#ifndef GMEM_FILE_TENURE_H
#define GMEM_FILE_TENURE_H

#include "file/file.h"

/* Invalidate lock held, exclusive, for these. */

/* Of a file that is to be bound. -ENOMEM if `b` asks, with text. */
int gmem_tenure_bind(struct gmem_file *file, const struct gmem_binding *b);
/* The pages are given up. */
void gmem_tenure_end(struct gmem_file *file, uint64_t off, uint64_t len);

/* Of the page at `off`. */
uint64_t gmem_tenure_number(const struct gmem_file *file, uint64_t off);

/* With the file. */
void gmem_tenure_destroy(struct gmem_file *file);

#endif
