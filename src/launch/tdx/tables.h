/* SPDX-License-Identifier: MIT */
/*
 * A TD's secure EPT as the MMU's external tables, kept as KVM keeps it: which call of the module is made for what, and
 * what its statuses mean.
 *
 * Enters: the MMU's sets and clears of private pages. Leaves: calls of the module; an error, or the end of the VM.
 * Belongs to the VM once they are its external tables. Locks: the TD's.
 */
#ifndef GMEM_LAUNCH_TDX_TABLES_H
#define GMEM_LAUNCH_TDX_TABLES_H

#include <stdatomic.h>
#include <sys/types.h>

#include "launch/tdx/module.h"
#include "mmu/mmu.h"

struct gmem_tdx_tables {
	struct gmem_mmu_external external; /* first */
	struct gmem_mmu *mmu;
	struct gmem_tdx_td td;
	/* Pages that are mapped for it are added, not augmented: a launch's. NULL: there is no launch. */
	const struct gmem_vcpu *_Atomic adder;
	_Atomic uint64_t status; /* of the last call that was refused */
	pid_t pid; /* whose frames they are: in a forked child something else may be there */
};

/* Of a TD that is not initialized. -ENOMEM. */
int gmem_tdx_tables_create(struct gmem_mmu *mmu, struct gmem_tdx_tables **ret);
/* While they are not the MMU's. */
void gmem_tdx_tables_free(struct gmem_tdx_tables *tables);

/* `call` was refused, and that is the end of the VM: -EIO, with text. */
int gmem_tdx_bug(struct gmem_tdx_tables *tables, const char *call, uint64_t status);
/* It was refused. `err`, with text. */
int gmem_tdx_refused(struct gmem_tdx_tables *tables, int err, const char *call, uint64_t status);

#endif
