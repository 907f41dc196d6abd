/* SPDX-License-Identifier: MIT */
/*
 * A running QEMU that is to be saved or moved: all that can be asked, and refused, before it is stopped.
 *
 * Enters: a monitor. Leaves: this structure. Who owns it: the caller. No lock.
 */
#ifndef GMEM_LINK_MACHINE_H
#define GMEM_LINK_MACHINE_H

#include "link/cmdline.h"
#include "link/ram.h"
#include "link/saved.h"

struct gmem_machine {
	pid_t pid;
	int process; /* gmem_process_open(), -1: none */
	struct gmem_saved *saved; /* backends and disks included */
	struct gmem_cmdline *cl;
	struct gmem_ram *ram;
};

/*
 * `pid`: 0 where the monitor's socket tells. `ends`: as gmem_disks_survey(). -EOPNOTSUPP and the like name what cannot
 * be saved; what has been filled in is to be released all the same.
 */
int gmem_machine_inspect(struct gmem_qmp *qmp, pid_t pid, bool ends, struct gmem_machine *machine);
void gmem_machine_release(struct gmem_machine *machine);

#endif
