/* SPDX-License-Identifier: MIT */
/*
 * Memslots as the MMU sees them: which pages of which file a range of guest frames is.
 *
 * Enters: a guest frame number. Leaves: its slot. The table of slots never changes: whoever sets a slot publishes a new
 * table and waits for the epoch before the old one goes (vm/memslot.c). Looked at in an epoch, or with the VM's
 * slots_lock held. A slot is counted; it does not keep its file. NULL is a table of no slots.
 */
#ifndef GMEM_MMU_SLOT_H
#define GMEM_MMU_SLOT_H

#include <stddef.h>
#include <stdint.h>

#include "file/file.h"

struct gmem_slot {
	uint32_t id;
	uint64_t gfn, npages;
	uint64_t off; /* in the file */
	struct gmem_file *_Atomic file; /* NULL: closed before the slot was deleted */
	struct gmem_gate *gate; /* of a VM of KVM's: where its vCPUs reach the pages by themselves; else NULL */
	char *window; /* the library's address of `off`; good as long as the file is open */
	uint8_t *_Atomic tracked; /* a flag a page: writes are watched; NULL: none */
	struct gmem_binding binding;
	_Atomic uint32_t refs;
	struct gmem_vm *vm; /* referenced */
};

struct gmem_slots {
	uint32_t n;
	struct gmem_slot *slot[]; /* by gfn, none overlaps */
};

static inline struct gmem_slot *gmem_slots_find(const struct gmem_slots *slots, uint64_t gfn)
{
	uint32_t from = 0, to = slots ? slots->n : 0;

	while (from < to) {
		uint32_t mid = from + (to - from) / 2;
		struct gmem_slot *s = slots->slot[mid];

		if (gfn < s->gfn)
			to = mid;
		else if (gfn - s->gfn >= s->npages)
			from = mid + 1;
		else
			return s;
	}
	return NULL;
}

/* The user engine's frame number: the page of the file's window. */
static inline uint64_t gmem_slot_pfn(const struct gmem_slot *s, uint64_t gfn)
{
	return ((uintptr_t)s->window >> GMEM_PAGE_SHIFT) + (gfn - s->gfn);
}

static inline uint64_t gmem_slot_off(const struct gmem_slot *s, uint64_t gfn)
{
	return s->off + ((gfn - s->gfn) << GMEM_PAGE_SHIFT);
}

#endif
