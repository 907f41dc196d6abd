/* SPDX-License-Identifier: MIT */
/* Names of stored descriptors, and ids of VMs, which are names of files too. No state, no lock. */
#ifndef GMEM_LINK_SERVE_NAME_H
#define GMEM_LINK_SERVE_NAME_H

#include <stdbool.h>
#include <stdint.h>

#include "link/serve/store.h"

/* May this be a descriptor's name (sd_notify(3), FDNAME=), and short enough for us? */
bool gmem_name_ok(const char *name);
/* May this be an id: [A-Za-z0-9_-], not empty, not longer than GMEM_STORE_MAX_ID? */
bool gmem_id_ok(const char *id);

/*
 * An id that was not used before: the time in microseconds, to the base of 36. `*last` (0 at first) keeps two of one
 * process apart; two processes that make ids follow one after the other.
 */
void gmem_id_new(uint64_t *last, char ret[GMEM_STORE_MAX_ID + 1]);

#endif
