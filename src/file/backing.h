/* SPDX-License-Identifier: MIT */
/*
 * The part of the backing operations that is the page-state table's: finding a page, locking it on its way in, making
 * it up to date. A kind of memory puts these into its table beside functions of its own for the bytes. Contracts and
 * locks: struct gmem_backing_ops in file.h.
 */
#ifndef GMEM_FILE_BACKING_H
#define GMEM_FILE_BACKING_H

#include "file/file.h"

bool gmem_backing_can_userfault(const struct gmem_file *file, uint64_t off, uint64_t len);
bool gmem_backing_present(const struct gmem_file *file, uint64_t off);
int gmem_backing_lookup(struct gmem_file *file, uint64_t off, uint32_t max, struct gmem_folio *ret);
int gmem_backing_adopt(struct gmem_file *file, uint64_t off, uint32_t max);
int gmem_backing_alloc(struct gmem_file *file, uint64_t off, uint32_t npages, struct gmem_folio *ret);
int gmem_backing_insert(struct gmem_file *file, struct gmem_folio *folio);
void gmem_backing_publish(struct gmem_file *file, struct gmem_folio *folio);
void gmem_backing_remove(struct gmem_file *file, struct gmem_folio *folio);

/* 1: absent, and nobody is bringing it in; 0: in place; -EBUSY, -EHWPOISON. */
int gmem_backing_absent(const struct gmem_file *file, uint64_t off);
/* The page's bytes go, and its lock, if that is ours: absent again, or removed if it was doomed. */
void gmem_backing_drop(struct gmem_file *file, uint64_t page, uint32_t generation);

/* coarse.c: the same where memory comes by the large page, whatever part of it was brought in. */
int gmem_unit_adopt(struct gmem_file *file, uint64_t off, uint32_t max);
int gmem_unit_insert(struct gmem_file *file, struct gmem_folio *folio);
void gmem_unit_remove(struct gmem_file *file, struct gmem_folio *folio);

#endif
