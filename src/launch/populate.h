/* SPDX-License-Identifier: MIT */
/* Populate, for callers that hold the VM's slots_lock. Enters, leaves and locks: see populate.c. */
#ifndef GMEM_LAUNCH_POPULATE_H
#define GMEM_LAUNCH_POPULATE_H

#include "vm/vm.h"

/* gmem_populate(), with slots_lock held. *ret_why is what ended it early, also after progress; 0: nothing did. */
int64_t gmem_populate_locked(struct gmem_vm *vm, uint64_t gfn, const void *src, int64_t npages, uint32_t flags,
			     gmem_populate_fn fn, void *opaque, int *ret_why);

#endif
