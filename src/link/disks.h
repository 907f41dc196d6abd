/* SPDX-License-Identifier: MIT */
/*
 * The disks of a saved machine: a restored guest must never meet a disk that moved on.
 *
 * Enters: a monitor, the command line. Leaves: for every file behind a disk what it looked like at the save; overlays
 * that a machine that goes on writes to, or that a restored one does; or a refusal that names the disk. Who owns it:
 * the caller. No lock.
 */
#ifndef GMEM_LINK_DISKS_H
#define GMEM_LINK_DISKS_H

#include <stdbool.h>

#include "link/saved.h"

struct gmem_cmdline;

/*
 * Lists every file behind the disks into saved->disks and decides what becomes of it. `ends`: the machine ends with the
 * save; else each disk that is written must be one that gmem_disks_snapshot() can take. Changes nothing. -EOPNOTSUPP
 * names the disk and the remedy.
 */
int gmem_disks_survey(struct gmem_qmp *qmp, const struct gmem_cmdline *cl, bool ends, struct gmem_saved *saved);

/*
 * On a stopped machine: freezes every disk that is written, all in one transaction, and lets the machine write to an
 * overlay beside it, disk->overlay. On failure nothing has changed. -EREMOTEIO, -ENOENT (no qemu-img).
 */
int gmem_disks_snapshot(struct gmem_qmp *qmp, struct gmem_saved *saved);

/* Notes what each file looks like now. Call it when nothing writes any more. */
int gmem_disks_identify(struct gmem_saved *saved);

/* Every file as it was noted? -ESTALE names the disk that changed, -ENOENT the one that is gone. */
int gmem_disks_check(const struct gmem_saved *saved);

/* For restoring: a new overlay for each frozen disk, and its -drive option changed to it. disk->overlay is set;
 * gmem_disks_discard() removes the overlays again if the restore fails before the guest runs. */
int gmem_disks_overlay(struct gmem_saved *saved, struct gmem_cmdline *cl);
void gmem_disks_discard(struct gmem_saved *saved);

#endif
