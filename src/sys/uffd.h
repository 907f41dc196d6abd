/* SPDX-License-Identifier: MIT */
/*
 * userfaultfd(2): one thin function a command. Enters: descriptors and address ranges. Leaves: negative errno, or how
 * much was done. Owns nothing, takes no lock; every function may be called from any thread, and acts on the process
 * the descriptor was opened in.
 */
#ifndef GMEM_SYS_UFFD_H
#define GMEM_SYS_UFFD_H

#include <stdbool.h>
#include <stdint.h>

#include "sys/uapi.h"

/*
 * Opens a userfault descriptor (non-blocking, close-on-exec) and negotiates `features`, all of which must be there.
 * Tries the system call, then /dev/userfaultfd, then, if `user_mode_only` is not NULL, a user-mode-only one and says
 * so there. -EPERM (not allowed here), -ENOSYS, -EOPNOTSUPP (a feature is missing), -EMFILE.
 */
int gmem_sys_uffd_open(uint64_t features, bool *user_mode_only);

#define GMEM_SYS_UFFD_MISSING 1u
#define GMEM_SYS_UFFD_MINOR 2u
#define GMEM_SYS_UFFD_WP 4u /* nothing is write-protected by it alone: a mode that raises no event by itself */

/* Registers [hva, hva + len). -EBUSY: another descriptor has it. -EINVAL: no such memory, or not this mode on it. */
int gmem_sys_uffd_register(int uffd, uint64_t hva, uint64_t len, unsigned int mode);
int gmem_sys_uffd_unregister(int uffd, uint64_t hva, uint64_t len);
int gmem_sys_uffd_wake(int uffd, uint64_t hva, uint64_t len);
/*
 * UFFDIO_COPY of one page, without waking anybody. -EEXIST: one is there; -EFAULT: `from` cannot be read; -ENOMEM,
 * -EAGAIN: as gmem_sys_uffd_continue().
 */
int gmem_sys_uffd_copy(int uffd, uint64_t hva, uint64_t from, uint64_t len);

/*
 * UFFDIO_CONTINUE: maps pages that are in the page cache and wakes their waiters. `*done` is set to the bytes mapped,
 * also on failure. -EEXIST: the page at `*done` is mapped already; -EFAULT: it is not in the page cache; -EAGAIN: the
 * address space is changing; -ENOENT: no such mapping; -ESRCH: the process is gone.
 */
int gmem_sys_uffd_continue(int uffd, uint64_t hva, uint64_t len, uint64_t *done);

/*
 * UFFDIO_POISON: touching [hva, hva + len) is SIGBUS from now on; `wake`: who waits there is told. As
 * gmem_sys_uffd_continue(); -EINVAL on kernels before 6.6.
 */
int gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done);

/*
 * UFFDIO_WRITEPROTECT, taking protection away: where there is none it changes nothing, and says -ENOENT if some of the
 * mappings in the range are not registered with GMEM_SYS_UFFD_WP. A hole is no mapping.
 */
int gmem_sys_uffd_unprotect(int uffd, uint64_t hva, uint64_t len);

/* Reads up to `n` messages without waiting. Returns how many, 0 if none is queued. */
int gmem_sys_uffd_read(int uffd, struct uffd_msg *msgs, int n);

#endif
