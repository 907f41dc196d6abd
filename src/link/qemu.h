/* SPDX-License-Identifier: MIT */
/*
 * QEMU, for the commands that save, start and restore one: all of this room that tools may use.
 *
 * Enters: a monitor's socket, a command line. Leaves: memory files, device state, disks, a command line to restore
 * with; see each header. Every object belongs to its caller and is used from one thread at a time. No lock.
 */
#ifndef GMEM_LINK_QEMU_H
#define GMEM_LINK_QEMU_H

#include "link/cmdline.h"
#include "link/complete.h"
#include "link/devices.h"
#include "link/disks.h"
#include "link/machine.h"
#include "link/optstr.h"
#include "link/process.h"
#include "link/qmp.h"
#include "link/ram.h"
#include "link/saved.h"
#include "link/spawn.h"
#include "link/device_state.h"

/* The backend id that `gmem run` gives RAM. */
#define GMEM_QEMU_RAM_ID "gmem.ram"

/* Sections of an image. */
#define GMEM_SECTION_STATE "device-state"
#define GMEM_SECTION_QEMU "qemu"

/*
 * The command line that restores `saved`: its own with every RAM backend replaced by fds[i] (in the order of
 * saved->backends, inherited by QEMU), the machine type pinned, waiting for a stream, with a monitor on the inherited
 * listening socket `qmp_fd`. `override`, which may be NULL, replaces the saved command line; its -machine type is
 * pinned too, unless it names one itself. Disks are not touched: gmem_disks_overlay().
 */
int gmem_qemu_restore_cmdline(const struct gmem_saved *saved, const struct gmem_cmdline *override, const int *fds,
			      int qmp_fd, struct gmem_cmdline **ret);

#endif
