/* SPDX-License-Identifier: MIT */
/*
 * gmem launch, in parts: launch.c (the command), launch_guest.c (the machine that is launched, and looks at it from
 * inside and outside). One thread; no lock.
 */
#ifndef GMEM_TOOLS_LAUNCH_H
#define GMEM_TOOLS_LAUNCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gmem.h"
#include "tools/measure.h"

/* One slot: what is launched next to each other. */
struct launch_area {
	uint64_t gpa, len;
	struct gmem_file *file;
};

struct launch_guest {
	const struct measure_report *report; /* which ranges there are */
	struct gmem_vm *vm;
	struct gmem_launch *launch;
	struct launch_area *areas;
	size_t nareas;
	uint64_t npages;
	uint8_t *id_block, *id_auth; /* NULL: none */
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN]; /* the launch's own */
};

/* GMEM_UI_*, what is wrong is told. launch_guest_free() follows in any case. */
int launch_guest_start(struct launch_guest *guest, const struct measure_report *report);
int launch_guest_run(struct launch_guest *guest);
void launch_guest_free(struct launch_guest *guest);

/* The guest reads all of its private memory: as it was launched? */
int launch_guest_look_inside(struct launch_guest *guest);
/* The host tries to, by a call and by touching each page of a view: -EACCES and SIGBUS? */
int launch_guest_look_outside(struct launch_guest *guest);

#endif
