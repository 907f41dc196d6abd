/* SPDX-License-Identifier: MIT */
/*
 * gmem info: the facts of a host, and what they amount to.
 * Enters: a probed host. Leaves: text or JSON on standard output. Borrows the host; no lock.
 */
#ifndef GMEM_TOOLS_INFO_H
#define GMEM_TOOLS_INFO_H

#include <stdbool.h>
#include <stddef.h>

#include "gmem.h"

/* Something people want to do, and the facts that must all hold for it. */
struct gmem_ability {
	const char *name, *what;
	const char *needs[6];
};

extern const struct gmem_ability gmem_abilities[];
extern const size_t gmem_abilities_count;

/* The first fact that is missing for it, or NULL if it can be done. */
const char *gmem_ability_lacks(const struct gmem_host *host, const struct gmem_ability *ability);

/* The engine GMEM_ENGINE_AUTO takes where nothing else is said, and the rest of a sentence that says why. */
const char *gmem_info_engine(void);
void gmem_info_engine_why(const struct gmem_host *host, char *buf, size_t len);

/* The fact of this name; false if there is none. */
bool gmem_info_fact(const struct gmem_host *host, const char *name, struct gmem_host_item *ret);
const char *gmem_info_status(enum gmem_host_status status); /* "yes", "no", "denied" */

void gmem_info_print_text(const struct gmem_host *host);
int gmem_info_print_json(const struct gmem_host *host); /* -ENOMEM */

#endif
