/* SPDX-License-Identifier: MIT */
/*
 * What a running QEMU's guest writes, asked of QEMU: a migration is begun whose stream comes to us (ram_stream.h), and
 * the pages in it are the log. QEMU knows what its devices and the completions of its disks wrote; page tables
 * (soft-dirty, write-protect userfaults) do not tell of pages that the kernel had pinned before. Its own convergence is
 * kept: we take no more of the stream than the caller wants to know, and when next to nothing is left QEMU stops the
 * machine by itself.
 *
 * A page written at some instant after gmem_dirty_log_start() has returned is in what a later gmem_dirty_log_take()
 * tells, or will be. Pages that were not written may be in it too.
 *
 * Not under TCG, where a store is made after it is logged, and before 9.0 is not logged at all once the log was read.
 *
 * Enters: a monitor, the memory backends. Leaves: bitmaps; at the end a stopped machine in `postmigrate` and its device
 * state, a stream that is no x-ignore-shared one. Calls are of one thread; the stream is read by a thread of the
 * object's own, `m` guards what both use.
 */
#ifndef GMEM_LINK_MIGRATE_DIRTY_LOG_H
#define GMEM_LINK_MIGRATE_DIRTY_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "link/device_state.h"
#include "link/ram.h"

struct gmem_dirty_log;

/*
 * Switches the log on and returns when it begins: QEMU has by then walked through all of its memory once. `state` is
 * filled as by gmem_device_state_stop(). -EBUSY: the machine does not run; -EOPNOTSUPP: TCG, or a device that sends
 * data of its own while the machine runs; -EREMOTEIO.
 */
int gmem_dirty_log_start(struct gmem_qmp *qmp, const struct gmem_ram *ram, struct gmem_device_state *state,
			 struct gmem_dirty_log **ret);

/*
 * Waits until there is much to take, the log has ended, or the time is over. Returns the pages to take. Negative: it
 * failed, and the machine runs on.
 */
int64_t gmem_dirty_log_wait(struct gmem_dirty_log *log, int timeout_ms);
/* QEMU has stopped the machine by itself. */
bool gmem_dirty_log_ended(struct gmem_dirty_log *log);
/* How many times QEMU has come to the end of what was written, the first walk not counted. */
int gmem_dirty_log_rounds(struct gmem_dirty_log *log, unsigned int *ret);

/*
 * Takes what has been told: calls `each` for stretches of pages of ram->backends[backend], from the multiple of 8 pages
 * `off` on, a bit each, the lowest of the first byte first. Pages are told anew that are written after this was called.
 */
typedef int (*gmem_dirty_log_each_fn)(void *opaque, size_t backend, uint64_t off, uint64_t npages, const void *bitmap);
int gmem_dirty_log_take(struct gmem_dirty_log *log, gmem_dirty_log_each_fn each, void *opaque);

/*
 * Stops the machine, if QEMU has not done so, and waits for the end of the stream. Returns the device state, allocated.
 * gmem_dirty_log_take() then tells the last.
 */
int gmem_dirty_log_stop(struct gmem_dirty_log *log, void **ret, size_t *ret_len);

/*
 * Ends the log wherever it is; NULL is allowed. The error text stays. The machine is as gmem_device_state_resume()
 * expects it.
 */
void gmem_dirty_log_free(struct gmem_dirty_log *log);

#endif
