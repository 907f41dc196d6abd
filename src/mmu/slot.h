/* SPDX-License-Identifier: MIT */
/*
 * Memslots as the MMU sees them: which pages of which file, or which memory of the caller's, a range of guest frames
 * is.
 *
 * Enters: a guest frame number. Leaves: its slot. The table of slots never changes: whoever sets a slot publishes a new
 * table and waits for the epoch before the old one goes (vm/memslot.c). Looked at in an epoch, or with the VM's
 * slots_lock held. A slot is counted; it does not keep its file. NULL is a table of no slots.
 */
#ifndef GMEM_MMU_SLOT_H
#define GMEM_MMU_SLOT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "file/file.h"

struct gmem_log;

struct gmem_slot {
	uint32_t id;
	_Atomic uint32_t flags; /* GMEM_SLOT_*; changed under the VM's slots_lock, GMEM_SLOT_READONLY never */
	uint64_t gfn, npages;
	uint64_t off; /* in the file */
	struct gmem_file *_Atomic file; /* NULL: none, or closed before the slot was deleted */
	struct gmem_gate *gate; /* of a VM of KVM's: where its vCPUs reach the pages by themselves; else NULL */
	/* A guest_memfd's, on KVM: where KVM itself reaches the pages. It bars nothing; else NULL. Under slots_lock. */
	struct gmem_gate *plain_gate;
	bool in_kvm; /* KVM has it; guarded by slots_lock */
	char *window; /* the library's address of `off`; good as long as the file is open; NULL: never had a file */
	char *hva; /* the caller's memory, of the shared side where there is a file too; NULL: none */
	bool in_place; /* that is the file's own, at the same offset: as if there were none */
	/*
	 * The caller's bitmap, NULL: none. Read in a section only, because it is the caller's again after the next
	 * wait for those.
	 */
	const uint64_t *_Atomic userfault;
	/* Accesses to `hva` that go on, see hva.c. */
	_Atomic uint32_t phase, users[2];
	struct gmem_log *_Atomic log; /* see mmu/log.h; NULL: none is kept; changed under slots_lock */
	uint8_t *_Atomic tracked; /* a flag a page: writes are watched; NULL: none */
	struct gmem_binding binding;
	_Atomic uint32_t refs;
	struct gmem_vm *vm; /* referenced */
};

struct gmem_slots {
	uint32_t n;
	struct gmem_slot *slot[]; /* by gfn, none overlaps */
};

/* The first slot that ends behind a guest frame, or how many there are. */
static inline uint32_t gmem_slots_behind(const struct gmem_slots *slots, uint64_t gfn)
{
	uint32_t from = 0, to = slots ? slots->n : 0;

	while (from < to) {
		uint32_t mid = from + (to - from) / 2;

		if (slots->slot[mid]->gfn + slots->slot[mid]->npages > gfn)
			to = mid;
		else
			from = mid + 1;
	}
	return from;
}

static inline struct gmem_slot *gmem_slots_find(const struct gmem_slots *slots, uint64_t gfn)
{
	uint32_t i = gmem_slots_behind(slots, gfn);

	return slots && i < slots->n && slots->slot[i]->gfn <= gfn ? slots->slot[i] : NULL;
}

/* Also one whose file is closed. */
static inline bool gmem_slot_has_file(const struct gmem_slot *s)
{
	return s->window;
}

/* The caller's memory is meant by a page that is shared. */
static inline bool gmem_slot_has_hva(const struct gmem_slot *s)
{
	return s->hva && !s->in_place;
}

/* One of the guest frames [gfn, gfn + npages) of the slot is the caller's to fill. Inside a section. */
static inline bool gmem_slot_userfault(const struct gmem_slot *s, uint64_t gfn, uint64_t npages)
{
	const uint64_t *bitmap = atomic_load(&s->userfault);
	uint64_t bit = gfn - s->gfn, end = bit + npages;

	while (bitmap && bit < end) {
		/* Pairs with the caller's store-release of a bit that is clear: the page is filled then. */
		uint64_t word = __atomic_load_n(&bitmap[bit / 64], __ATOMIC_ACQUIRE) >> bit % 64;
		uint64_t n = 64 - bit % 64;

		if (end - bit < n)
			word &= (1ull << (end - bit)) - 1;
		if (word)
			return true;
		bit += n;
	}
	return false;
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
