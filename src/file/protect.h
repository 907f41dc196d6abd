/* SPDX-License-Identifier: MIT */
/*
 * Pages of a view whose writes are to be told.
 *
 * Enters: what the caller of a gmem_uffd protects, and whatever else the library does to a mapping. Leaves: pages that
 * are mapped write-protected if they are to be. Owned by the view. The invalidate lock is held, shared but where it
 * says so; under it a mutex of its own, a leaf, with the kernel's calls inside.
 */
#ifndef GMEM_FILE_PROTECT_H
#define GMEM_FILE_PROTECT_H

#include "file/file.h"

/* Pages can be protected from then on. -ENOMEM. Exclusive. */
int gmem_view_make_protectable(struct gmem_view *view);
/* With the view. */
void gmem_view_drop_protection(struct gmem_view *view);
/*
 * UFFDIO_WRITEPROTECT of [off, off + len), which stays so, whatever the library does to the mapping, until it is taken
 * away. A write that waits there goes on with `wake`, when protection goes. As gmem_sys_uffd_writeprotect().
 */
int gmem_view_protect(struct gmem_view *view, uint64_t off, uint64_t len, bool protect, bool wake);
/*
 * UFFDIO_CONTINUE from `off` on, at most up to `end`, of pages that are all protected or all not, and are mapped so.
 * As gmem_sys_uffd_continue().
 */
int gmem_view_continue(struct gmem_view *view, uint64_t off, uint64_t end, uint64_t *done);
/*
 * Around a zap, which leaves the kernel's marks of protected pages where others are to go: takes them away, and puts
 * them back. Exclusive.
 */
void gmem_view_lift_protection(const struct gmem_view *view, uint64_t off, uint64_t len);
void gmem_view_protect_again(struct gmem_view *view, uint64_t off, uint64_t len);

#endif
