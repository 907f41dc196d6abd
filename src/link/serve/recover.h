/* SPDX-License-Identifier: MIT */
/*
 * Descriptors taken out of the client itself: what is left when the server and its minder were both killed. The client
 * keeps its own copies; a VMM's userfaultfd is found among its descriptors by its inode, or by the memory that is
 * registered with it. Needs the right to trace the client (root, or CAP_SYS_PTRACE, or its user where
 * kernel.yama.ptrace_scope is 0).
 *
 * Enters: a ledger. Leaves: descriptors, negative errnos with a text. No lock, no state; any thread.
 */
#ifndef GMEM_LINK_SERVE_RECOVER_H
#define GMEM_LINK_SERVE_RECOVER_H

#include "link/serve/ledger.h"

/*
 * The ledger's process, as a pidfd of the caller's: surely that one, by its start time and the boot's id. -ESRCH: it
 * has ended (also: another boot), the VM is no more. -ENODATA: the ledger does not know its process.
 */
int gmem_recover_process(const struct gmem_ledger *ledger);

/*
 * Fetches those of the ledger's descriptors whose fds[i] is -1, and stores nothing. 0: all of them are there now.
 * Otherwise those that were found are there, and the error is the first that was met: -EPERM (no right to trace it),
 * -ENOENT (the client has closed it), -ENOTUNIQ (several that cannot be told apart), -ESRCH, -EMFILE. The connection
 * cannot be recovered, and need not: the client's end tells by its pidfd.
 */
int gmem_recover_fds(const struct gmem_ledger *ledger, int pidfd, int *fds);

#endif
