/* SPDX-License-Identifier: MIT */
/* Populate, for callers that hold the VM's slots_lock. Enters, leaves and locks: see populate.c. */
#ifndef GMEM_LAUNCH_POPULATE_H
#define GMEM_LAUNCH_POPULATE_H

#include "vm/vm.h"

/* Flags of the library's own, which the public function does not take. */
#define GMEM_POPULATE_UNTOUCHED (1u << 30) /* -EEXIST for a page that is mapped: launched, or touched, before */
#define GMEM_POPULATE_ZERO (1u << 31) /* without a source, what the page has is not wanted: nobody brings it in */
#define GMEM_POPULATE_INTERNAL (GMEM_POPULATE_UNTOUCHED | GMEM_POPULATE_ZERO)

/* gmem_populate(), with slots_lock held. *ret_why is what ended it early, also after progress; 0: nothing did. */
int64_t gmem_populate_locked(struct gmem_vm *vm, uint64_t gfn, const void *src, int64_t npages, uint32_t flags,
			     gmem_populate_fn fn, void *opaque, int *ret_why);

#endif
