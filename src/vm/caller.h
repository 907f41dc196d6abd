/* SPDX-License-Identifier: MIT */
/*
 * Memory of the caller's that a slot has, as the process maps it: whose it is, and whether it can be mapped twice.
 *
 * Enters: a range of addresses. Leaves: what is mapped there; or shared memory in place of private memory. Owns
 * nothing. The caller keeps its mappings as they are meanwhile; slots_lock held.
 */
#ifndef GMEM_VM_CALLER_H
#define GMEM_VM_CALLER_H

#include "gmem.h"

/*
 * How many bytes of [hva, hva + len) show the file at the offset that belongs to them, `off` at `hva`. -EOPNOTSUPP:
 * some show it at another one. Errors of looking.
 */
int gmem_caller_shows(const char *hva, uint64_t len, const struct gmem_file *file, uint64_t off, uint64_t *ret);

/*
 * All that is mapped in [hva, hva + len) can be mapped a second time when this returns. Private anonymous memory is
 * *adopted*: shared memory with the same bytes and rights takes its place, at once for every thread that touches it;
 * what forked children inherit, and what the kernel still has references to (a system call in flight, registered
 * buffers), is the old memory. -EBUSY: it is registered with userfaultfd(2). -EOPNOTSUPP: a private mapping of a file,
 * memory that cannot be read or is a device's, huge pages, a server that is told of moves, no userfaultfd. -EHWPOISON,
 * -ENOMEM, -EMFILE: some of it may be adopted, and no byte is lost.
 */
int gmem_caller_make_shared(char *hva, uint64_t len);

#endif
