/* SPDX-License-Identifier: MIT */
#include "mmu/found.h"

#include <errno.h>

#include "base/err.h"
#include "base/range.h"
#include "mmu/log.h"

/*
 * What says that the slot of the last fault is still there is a number and no address, which a table that is freed may
 * leave to the next: it is raised when the table that has the slot no more is published, and before the wait for us,
 * after which the slot may go. So whoever reads the old number is waited for. It is read before the table: one that is
 * newer than its number is looked at once too often.
 */
struct gmem_slot *gmem_found_slot(struct gmem_vcpu *vcpu, uint64_t gfn)
{
	struct gmem_mmu *mmu = vcpu->mmu;
	uint64_t seq = atomic_load(&mmu->slots_seq);
	struct gmem_slot *slot = seq == vcpu->last_slots_seq ? vcpu->last_slot : NULL;

	if (slot && gfn >= slot->gfn && gfn - slot->gfn < slot->npages)
		return slot;
	slot = gmem_slots_find(atomic_load(&mmu->slots), gfn);
	vcpu->last_slot = slot;
	vcpu->last_slots_seq = seq;
	return slot;
}

int gmem_find(struct gmem_vcpu *vcpu, uint64_t gfn, struct gmem_found *f)
{
	struct gmem_slot *slot = gmem_found_slot(vcpu, gfn);
	int err = 0;

	/* Nothing that an earlier attempt found out holds any more. */
	*f = (struct gmem_found){ .slot = slot, .file = slot ? atomic_load(&slot->file) : NULL, .in_use = f->in_use };
	if (!slot) {
		err = -ENOENT;
	} else if (!f->file) {
		err = -EBADF;
	} else {
		uint64_t first = gfn & ~(gmem_level_pages(GMEM_LEVEL_2M) - 1);
		uint64_t pfn = gmem_slot_pfn(slot, gfn);
		uint32_t logs = gmem_slot_logs(slot);
		bool large = !logs && first >= slot->gfn &&
			     first + gmem_level_pages(GMEM_LEVEL_2M) <= slot->gfn + slot->npages &&
			     (pfn - gfn) % gmem_level_pages(GMEM_LEVEL_2M) == 0 && !atomic_load(&slot->tracked) &&
			     !gmem_slot_userfault(slot, first, gmem_level_pages(GMEM_LEVEL_2M));

		f->off = gmem_slot_off(slot, gfn);
		f->whole = vcpu->map && slot->gate && f->file->page_size > GMEM_PAGE_SIZE;
		f->tracked = gmem_slot_tracked(slot, gfn);
		f->userfault = !large && gmem_slot_userfault(slot, gfn, 1);
		f->hva = gmem_slot_has_hva(slot);
		f->m = (struct gmem_mapping){
			.gfn = gfn,
			.pfn = pfn,
			.slot = slot,
			.gate = slot->gate,
			.alone = atomic_load(&slot->userfault) || (logs & GMEM_LOG_ACCESSED),
			.logs = logs,
			.off = f->off,
			.writable = !f->tracked,
			.level = large ? GMEM_LEVEL_2M : GMEM_LEVEL_4K,
		};
	}
	return err;
}

/*
 * A slot without a file has shared pages only. One whose file is closed too, for an access that names the shared side;
 * for another it is not known any more which pages those were.
 */
static int find_no_file(uint64_t gfn, uint32_t access, enum gmem_want want, struct gmem_found *f)
{
	struct gmem_slot *slot = f->slot;
	int err;

	if (gmem_slot_has_file(slot) && (!gmem_slot_has_hva(slot) || want != GMEM_WANT_SHARED))
		return -EBADF;
	if (want == GMEM_WANT_PRIVATE)
		return -EREMOTE;
	err = gmem_hva_get(slot, gfn, access, f->in_use);
	return err ? err : GMEM_FAULT_HVA;
}

int gmem_found_get(struct gmem_vcpu *vcpu, uint64_t gfn, uint32_t access, enum gmem_want want, struct gmem_found *f)
{
	int err;

	gmem_mmu_begin_look(vcpu);
	err = gmem_find(vcpu, gfn, f);
	if (!err)
		gmem_file_get(f->file);
	else if (err == -EBADF)
		err = find_no_file(gfn, access, want, f);
	gmem_mmu_end_look(vcpu);
	return err;
}

int gmem_found_hva(struct gmem_vcpu *vcpu, uint32_t access, const struct gmem_found *f)
{
	struct gmem_slot *slot;
	int err = -EAGAIN;

	gmem_mmu_begin_look(vcpu);
	slot = gmem_found_slot(vcpu, f->m.gfn);
	if (slot && gmem_slot_has_hva(slot) && atomic_load(&slot->file) == f->file &&
	    gmem_slot_off(slot, f->m.gfn) == f->off)
		err = gmem_hva_get(slot, f->m.gfn, access, f->in_use);
	gmem_mmu_end_look(vcpu);
	return err ? err : GMEM_FAULT_HVA;
}

/* The large leaf around the page would show nothing that is not in place, and one side only. */
static bool uniform(const struct gmem_file *file, uint64_t off)
{
	uint64_t n = gmem_level_pages(GMEM_LEVEL_2M), first = off >> GMEM_PAGE_SHIFT & ~(n - 1);

	/* The ends first: memory that is being touched in order is settled there. */
	if (gmem_word_content(gmem_state_word(&file->state, first + n - 1)) != GMEM_WORD_UPTODATE ||
	    gmem_state_side_end(&file->state, first, first + n) != first + n)
		return false;
	for (uint64_t page = first; page < first + n; page++)
		if (gmem_word_content(gmem_state_word(&file->state, page)) != GMEM_WORD_UPTODATE)
			return false;
	return true;
}

/*
 * Nobody supplies the pages: they are zero, or have the bytes that views have put there. Of those absent in a row, from
 * the first on.
 */
static int add_zero(struct gmem_file *file, uint64_t off, uint64_t end)
{
	struct gmem_folio folio;
	int err = file->ops->alloc(file, off, (uint32_t)((end - off) >> GMEM_PAGE_SHIFT), &folio);

	if (!err)
		err = file->ops->insert(file, &folio);
	if (!err)
		file->ops->publish(file, &folio);
	return err;
}

/* The first page of 4 KiB from there on that is not in place. */
static uint64_t first_absent(const struct gmem_file *file, uint64_t off, uint64_t end)
{
	while (off < end && file->ops->present(file, off))
		off += GMEM_PAGE_SIZE;
	return off;
}

/* The rest of the huge page. As gmem_found_look(). */
static int look_at_rest(struct gmem_found *f)
{
	struct gmem_file *file = f->file;
	uint64_t off = gmem_file_unit_off(file, f->off), end = off + file->page_size, to;
	enum gmem_unit unit = gmem_file_unit(file, off);
	int err = unit == GMEM_UNIT_LOST ? -EHWPOISON : unit == GMEM_UNIT_BUSY ? -EBUSY : 0;

	while (!err && (off = first_absent(file, off, end)) < end) {
		for (to = off; to < end && !gmem_file_supplied(file, to);)
			to += GMEM_PAGE_SIZE;
		f->absent = off;
		err = to > off ? add_zero(file, off, to) : -ENODATA;
	}
	return err;
}

int gmem_found_look(struct gmem_found *f, enum gmem_want want)
{
	struct gmem_folio folio;
	int err;

	f->absent = f->off;
	f->m.private = gmem_file_private(f->file, f->off);
	if (want != GMEM_WANT_ANY && (want == GMEM_WANT_PRIVATE) != f->m.private)
		return -EREMOTE;
	if (f->userfault)
		return -EREMOTEIO;
	if (f->hva && !f->m.private)
		return -EXDEV;
	err = f->file->ops->lookup(f->file, f->off, 1, &folio);
	if (err == -ENOENT)
		err = gmem_file_supplied(f->file, f->off) ? -ENODATA :
							    add_zero(f->file, f->off, f->off + GMEM_PAGE_SIZE);
	else if (!err &&
		 gmem_word_content(gmem_state_word(&f->file->state, f->off >> GMEM_PAGE_SHIFT)) == GMEM_WORD_REMOVED)
		err = gmem_file_back(f->file, f->off, GMEM_PAGE_SIZE);
	if (!err && f->whole)
		err = look_at_rest(f);
	if (!err && f->m.level > GMEM_LEVEL_4K && !uniform(f->file, f->off))
		f->m.level = GMEM_LEVEL_4K;
	return err;
}

bool gmem_found_in_place(struct gmem_found *f, uint32_t access, enum gmem_want want)
{
	uint32_t word = gmem_state_word(&f->file->state, f->off >> GMEM_PAGE_SHIFT);

	f->m.private = gmem_file_private(f->file, f->off);
	if (gmem_word_content(word) != GMEM_WORD_UPTODATE || (word & GMEM_WORD_POISONED) ||
	    (want != GMEM_WANT_ANY && (want == GMEM_WANT_PRIVATE) != f->m.private) ||
	    (f->tracked && (access & GMEM_ACCESS_WRITE)) || f->userfault || (f->hva && !f->m.private))
		return false;
	if (f->m.level > GMEM_LEVEL_4K && !uniform(f->file, f->off))
		f->m.level = GMEM_LEVEL_4K;
	return true;
}
