/* SPDX-License-Identifier: MIT */
/*
 * A source that is there before its bytes are: "not now" until the real one has been opened. So a machine's userfault
 * descriptor is read from the first moment on (who gives memory back waits until that is done), and faults that wait
 * for a source that cannot be opened are the pager's, with its patience and its policy. No lock; any thread.
 */
#ifndef GMEM_LINK_SERVE_LATE_H
#define GMEM_LINK_SERVE_LATE_H

#include "gmem.h"

struct gmem_late;

/* `*ret_late` is part of the source, and good as long as that is referenced. -ENOMEM. */
int gmem_late_new(struct gmem_source **ret, struct gmem_late **ret_late);

/* Once. References `real`. */
void gmem_late_set(struct gmem_late *late, struct gmem_source *real);

#endif
