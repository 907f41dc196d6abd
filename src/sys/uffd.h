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
/* Of a resolving command: waiters are not woken; what is mapped is write-protected. */
#define GMEM_SYS_UFFD_DONTWAKE 1u
#define GMEM_SYS_UFFD_PROTECTED 2u

/*
 * UFFDIO_COPY of whole pages. `how`: the bits above. `*done` is set to the bytes copied, also on failure. -EEXIST: a
 * page is at `*done`; -EFAULT: `from` cannot be read there; -ENOMEM; -EAGAIN, -ENOENT, -ESRCH: as
 * gmem_sys_uffd_continue().
 */
int gmem_sys_uffd_copy(int uffd, uint64_t hva, uint64_t from, uint64_t len, unsigned int how, uint64_t *done);
/* UFFDIO_ZEROPAGE: the same with zeroes. -EINVAL: huge pages, for which there is none. */
int gmem_sys_uffd_zeropage(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done);

/*
 * UFFDIO_CONTINUE: maps pages that are in the page cache and wakes their waiters. `*done` is set to the bytes mapped,
 * also on failure. -EEXIST: the page at `*done` is mapped already; -EFAULT: it is not in the page cache; -EAGAIN: the
 * address space is changing; -ENOENT: no such mapping; -ESRCH: the process is gone.
 */
int gmem_sys_uffd_continue(int uffd, uint64_t hva, uint64_t len, uint64_t *done);
/* So too, write-protected (UFFDIO_CONTINUE_MODE_WP, Linux 6.4). -EINVAL: an older kernel, or no such mode there. */
int gmem_sys_uffd_continue_protected(int uffd, uint64_t hva, uint64_t len, uint64_t *done);

/*
 * UFFDIO_POISON: touching [hva, hva + len) is SIGBUS from now on; `wake`: who waits there is told. As
 * gmem_sys_uffd_continue(); -EINVAL on kernels before 6.6.
 */
int gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done);

/*
 * UFFDIO_WRITEPROTECT: a write to [hva, hva + len) is an event from now on, or none any more, and then `wake`: who
 * waits there goes on. -ENOENT: some of the mappings in the range are not registered with GMEM_SYS_UFFD_WP (a hole is
 * no mapping), or there is none; -EAGAIN: the address space is changing. How far it got is not told.
 */
int gmem_sys_uffd_writeprotect(int uffd, uint64_t hva, uint64_t len, bool protect, bool wake);
/* Takes protection away and wakes nobody: where there is none it changes nothing, but for saying -ENOENT. */
int gmem_sys_uffd_unprotect(int uffd, uint64_t hva, uint64_t len);

/* Reads up to `n` messages without waiting. Returns how many, 0 if none is queued. */
int gmem_sys_uffd_read(int uffd, struct uffd_msg *msgs, int n);

#endif
