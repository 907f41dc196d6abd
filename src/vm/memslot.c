/* SPDX-License-Identifier: MIT */
/*
 * Setting and deleting memslots, and what happens when a slot's file is closed first.
 *
 * Under slots_lock a table of slots is published. What is in it no more goes when no epoch can see it. Whoever found
 * the slot before maps nothing after, because of the invalidation; whoever is at the caller's memory is waited for.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/err.h"
#include "base/opts.h"
#include "base/range.h"
#include "file/gate.h"
#include "mmu/log.h"
#include "vm/vm.h"

#define MAX_SLOTS 32764u /* KVM's own limit on x86: KVM_CAP_NR_MEMSLOTS */
#define MAX_PAGES ((1ull << 31) - 1) /* KVM's too: KVM_MEM_MAX_NR_PAGES */
#define HVA_END (1ull << 56) /* no machine's programs have addresses beyond */
#define BOTH (GMEM_SIDE_SHARED | GMEM_SIDE_PRIVATE)

static void put_slot(struct gmem_slot *slot)
{
	struct gmem_vm *vm = slot->vm;

	if (atomic_fetch_sub_explicit(&slot->refs, 1, memory_order_acq_rel) != 1)
		return;
	free(atomic_load(&slot->tracked));
	gmem_log_free(atomic_load(&slot->log), NULL);
	free(slot);
	gmem_vm_put(vm);
}

/* ---- as a binding of the file */

static struct gmem_slot *slot_of(struct gmem_binding *b)
{
	return (struct gmem_slot *)((char *)b - offsetof(struct gmem_slot, binding));
}

static int invalidate_begin(struct gmem_binding *b, uint64_t off, uint64_t len, uint32_t sides)
{
	struct gmem_slot *slot = slot_of(b);
	uint64_t gfn = slot->gfn + ((off - slot->off) >> GMEM_PAGE_SHIFT), npages = len >> GMEM_PAGE_SHIFT;

	gmem_mmu_invalidate_begin(&slot->vm->mmu, gfn, npages, sides & (BOTH | GMEM_SIDE_KEEP));
	if ((sides & GMEM_SIDE_PRIVATE) && !(sides & GMEM_SIDE_KEEP))
		gmem_mmu_release(&slot->vm->mmu, gfn, gmem_slot_pfn(slot, gfn), npages);
	return gmem_kvm_slot_invalidate(slot, off, len, sides);
}

static void invalidate_end(struct gmem_binding *b)
{
	gmem_mmu_invalidate_end(&slot_of(b)->vm->mmu);
}

static void hold(struct gmem_binding *b)
{
	atomic_fetch_add_explicit(&slot_of(b)->refs, 1, memory_order_relaxed);
}

/* The slot stays, without a file: touching it is a memory fault. */
static void close_file(struct gmem_binding *b)
{
	struct gmem_slot *slot = slot_of(b);
	struct gmem_vm *vm = slot->vm;

	gmem_vm_get(vm);
	gmem_vm_lock_slots(vm);
	if (gmem_file_unbind(b)) {
		atomic_store(&slot->file, NULL);
		gmem_mmu_zap(&vm->mmu, slot->gfn, slot->npages, BOTH);
		gmem_mmu_release(&vm->mmu, slot->gfn, gmem_slot_pfn(slot, slot->gfn), slot->npages);
		gmem_mmu_wait_readers(&vm->mmu);
		gmem_kvm_slot_lose_file(slot);
	}
	gmem_vm_unlock_slots(vm);
	put_slot(slot);
	gmem_vm_put(vm);
}

static const struct gmem_binding_ops binding_ops = {
	.invalidate_begin = invalidate_begin,
	.invalidate_end = invalidate_end,
	.hold = hold,
	.close = close_file,
};

/* ---- deleting */

/* Nobody finds the slot any more, and KVM has it no more. Its pages stay in the file. slots_lock held. */
static void forget(struct gmem_vm *vm, struct gmem_slot *slot)
{
	struct gmem_file *file = atomic_load(&slot->file);

	gmem_mmu_zap(&vm->mmu, slot->gfn, slot->npages, BOTH);
	/* Bound, so its owner cannot have gone past closing it, which needs slots_lock. */
	if (file) {
		gmem_file_get(file);
		(void)gmem_file_unbind(&slot->binding);
		gmem_file_put(file);
	}
	gmem_hva_drain(&vm->mmu, slot);
	gmem_kvm_slot_close(slot);
	put_slot(slot);
}

/* slots_lock held. */
static int delete (struct gmem_vm *vm, uint32_t id)
{
	struct gmem_slot *slot = gmem_vm_slot_by_id(vm, id);
	int err;

	if (!slot)
		return gmem_err(-EINVAL, "gmem_vm_set_slot: slot %u: there is none to delete", id);
	err = gmem_kvm_slot_remove(vm, slot);
	if (err)
		return gmem_err_sys(err, "gmem_vm_set_slot: slot %u: KVM", id);
	err = gmem_vm_swap_slot(vm, slot, NULL);
	if (err)
		return err;
	forget(vm, slot);
	return 0;
}

void gmem_vm_delete_slots(struct gmem_vm *vm)
{
	struct gmem_slots *all;

	gmem_vm_lock_slots(vm);
	all = gmem_vm_take_slots(vm);
	for (uint32_t i = 0; all && i < all->n; i++) {
		gmem_kvm_slot_drop(vm, all->slot[i]);
		forget(vm, all->slot[i]);
	}
	free(all);
	gmem_vm_unlock_slots(vm);
}

/* ---- setting */

static int invalid(const struct gmem_memslot *s, const char *why)
{
	return gmem_err(-EINVAL, "gmem_vm_set_slot: slot %u, gpa 0x%llx, len 0x%llx: %s", s->slot,
			(unsigned long long)s->gpa, (unsigned long long)s->len, why);
}

/* KVM looks at flags before anything else, also of a slot that is to be deleted. */
static int check_flags(const struct gmem_vm *vm, const struct gmem_memslot *s)
{
	/* A write to a read-only slot is emulated, for which the host would have to see the guest's registers. */
	bool can_emulate = vm->type == GMEM_VM_DEFAULT || vm->type == GMEM_VM_SW_PROTECTED;

	if (s->flags & ~(GMEM_SLOT_LOG_DIRTY | GMEM_SLOT_READONLY | GMEM_SLOT_USERFAULT))
		return invalid(s, "flags: unknown");
	if (s->file && (s->flags & (GMEM_SLOT_LOG_DIRTY | GMEM_SLOT_READONLY)))
		return invalid(s, "a slot with a file is neither read-only nor logged");
	if (!can_emulate && (s->flags & GMEM_SLOT_READONLY))
		return invalid(s, "a confidential machine has no read-only slots");
	if ((s->flags & GMEM_SLOT_USERFAULT) && (!s->userfault_bitmap || (uintptr_t)s->userfault_bitmap % 8))
		return invalid(s, "userfault_bitmap is NULL or not aligned");
	return 0;
}

/* What KVM looks at next, whatever is to become of the slot. */
static int check(const struct gmem_memslot *s)
{
	uint64_t hva = (uintptr_t)s->hva;

	if (!gmem_page_aligned(s->gpa) || !gmem_page_aligned(s->len) || !gmem_page_aligned(hva) ||
	    (s->file && !gmem_page_aligned(s->off)))
		return invalid(s, "gpa, len, hva or off is not page-aligned");
	if (s->gpa + s->len < s->gpa || (s->file && s->off + s->len < s->off))
		return invalid(s, "gpa or off wraps around");
	if (hva > HVA_END || s->len > HVA_END - hva)
		return invalid(s, "hva is no address of a program");
	if (s->len >> GMEM_PAGE_SHIFT > MAX_PAGES)
		return invalid(s, "larger than a slot can be");
	if (!s->len)
		return 0;
	if (!s->file && !s->hva)
		return invalid(s, "neither a file nor hva");
	if (s->file && !gmem_file_ours(s->file))
		return gmem_err(-EIO, "gmem_vm_set_slot: the file is a copy that came with fork(2)");
	return 0;
}

/* slots_lock held. */
static int check_overlap(struct gmem_vm *vm, const struct gmem_memslot *s, const struct gmem_slot *but)
{
	const struct gmem_slot *other =
		gmem_vm_slot_overlapping(vm, s->gpa >> GMEM_PAGE_SHIFT, s->len >> GMEM_PAGE_SHIFT, but);

	if (!other)
		return 0;
	return gmem_err(-EEXIST, "gmem_vm_set_slot: gpa 0x%llx, len 0x%llx: overlaps slot %u",
			(unsigned long long)s->gpa, (unsigned long long)s->len, other->id);
}

/* After all else, as in KVM. */
static int check_addressable(const struct gmem_vm *vm, const struct gmem_memslot *s)
{
	return (s->gpa + s->len) >> GMEM_PAGE_SHIFT > vm->gfn_end ? invalid(s, "beyond what the guest can address") : 0;
}

static const uint64_t *bitmap_of(const struct gmem_memslot *s)
{
	return s->flags & GMEM_SLOT_USERFAULT ? s->userfault_bitmap : NULL;
}

/* That a slot keeps, which keeps others: with a file, not the flags decide. */
static uint32_t logs_of(const struct gmem_memslot *s, uint32_t logs)
{
	if (s->file)
		return logs;
	return (logs & ~GMEM_LOG_DIRTY) | (s->flags & GMEM_SLOT_LOG_DIRTY ? GMEM_LOG_DIRTY : 0);
}

/* No slot yet: nobody finds it, and it is not bound. */
static struct gmem_slot *new_slot(struct gmem_vm *vm, const struct gmem_memslot *s)
{
	struct gmem_slot *slot = calloc(1, sizeof(*slot));

	if (!slot)
		return NULL;
	*slot = (struct gmem_slot){
		.id = s->slot,
		.flags = s->flags,
		.gfn = s->gpa >> GMEM_PAGE_SHIFT,
		.npages = s->len >> GMEM_PAGE_SHIFT,
		.hva = s->hva,
		.userfault = bitmap_of(s),
		.refs = 1,
		.vm = vm,
	};
	gmem_vm_get(vm);
	return slot;
}

/* ---- a new one */

static int check_file(const struct gmem_memslot *s)
{
	int err;

	if (!gmem_range_inside(s->off, s->len, s->file->len))
		return invalid(s, "past the end of the file");
	if (s->file->engine == GMEM_ENGINE_KERNEL && (s->file->flags & GMEM_FILE_NO_MMAP))
		return gmem_err(-EOPNOTSUPP, "gmem_vm_set_slot: slot %u: a guest_memfd that is not mapped", s->slot);
	err = gmem_state_claim(&s->file->state, GMEM_USE_GUEST);
	if (err)
		return gmem_err(err,
				"gmem_vm_set_slot: slot %u: the file is open in another object too, or behind a "
				"keeper: what is absent of it could not be told from zero",
				s->slot);
	return 0;
}

static int bind_file(struct gmem_vm *vm, struct gmem_slot *slot, const struct gmem_memslot *s)
{
	char *window = gmem_file_window(s->file);
	int err;

	if (!window)
		return gmem_err_sys(-ENOMEM, "gmem_vm_set_slot");
	slot->off = s->off;
	slot->window = window + s->off;
	slot->binding = (struct gmem_binding){
		.off = s->off,
		.len = s->len,
		.ops = &binding_ops,
		.by = vm,
		.counts_tenures = vm->type == GMEM_VM_SNP,
	};
	atomic_store(&slot->file, s->file);
	err = gmem_kvm_slot_open(vm, slot);
	if (!err)
		err = gmem_file_bind(s->file, &slot->binding);
	return err;
}

/* slots_lock held. */
static int create(struct gmem_vm *vm, const struct gmem_memslot *s)
{
	struct gmem_slot *slot;
	int err = check_overlap(vm, s, NULL);

	if (!err && s->file)
		err = check_file(s);
	if (err)
		return err;
	slot = new_slot(vm, s);
	if (!slot)
		return gmem_err_sys(-ENOMEM, "gmem_vm_set_slot");
	err = s->file ? bind_file(vm, slot, s) : gmem_kvm_slot_open(vm, slot);
	if (err) {
		gmem_err_prefix(err, "gmem_vm_set_slot: slot %u", s->slot);
		goto out_close;
	}
	err = check_addressable(vm, s);
	if (!err)
		err = gmem_vm_change_logs(slot, logs_of(s, 0));
	if (!err)
		err = gmem_vm_swap_slot(vm, NULL, slot);
	if (err)
		goto out_unbind;
	err = gmem_kvm_slot_add(vm, slot);
	if (!err)
		return 0;
	/* It was in the table already. */
	gmem_err_prefix(err, "gmem_vm_set_slot: slot %u", s->slot);
	(void)delete (vm, s->slot);
	return err;

out_unbind:
	if (s->file)
		(void)gmem_file_unbind(&slot->binding);
out_close:
	gmem_kvm_slot_close(slot);
	put_slot(slot);
	return err;
}

/* ---- one that is there */

/* Its number and memory at other addresses. slots_lock held. */
static int move(struct gmem_vm *vm, struct gmem_slot *old, const struct gmem_memslot *s)
{
	const uint64_t *bitmap = bitmap_of(s), *had = atomic_load(&old->userfault);
	uint32_t logs = gmem_slot_logs(old);
	struct gmem_slot *new;
	int err = check_overlap(vm, s, old);

	if (!err)
		err = check_addressable(vm, s);
	if (err)
		return err;
	new = new_slot(vm, s);
	if (!new)
		return gmem_err_sys(-ENOMEM, "gmem_vm_set_slot");
	/* Logs move with it, as KVM's does. One that is new has its memory before anything is changed. */
	err = gmem_vm_change_logs(old, logs | logs_of(s, logs));
	/* To KVM it is one change, of the slot of that number. */
	atomic_store(&new->log, atomic_load(&old->log));
	new->gate = old->gate;
	/* Guests find the old slot until it is swapped: with the new bits or, if there are to be none, the old ones. */
	if (!err && bitmap && old->gate)
		atomic_store(&old->userfault, bitmap);
	if (!err)
		err = gmem_kvm_slot_add(vm, new);
	if (!err)
		err = gmem_vm_swap_slot(vm, old, new);
	if (err) {
		atomic_store(&old->userfault, had);
		gmem_mmu_wait_readers(&vm->mmu);
		if (had && bitmap)
			gmem_kvm_slot_bar(old);
		atomic_store(&new->log, NULL);
		put_slot(new);
		if (logs != gmem_slot_logs(old))
			(void)gmem_vm_change_logs(old, logs);
		return err;
	}
	gmem_hva_drain(&vm->mmu, old);
	atomic_store(&old->log, NULL);
	old->gate = NULL;
	forget(vm, old);
	return gmem_vm_change_logs(new, logs_of(s, logs));
}

/* What faults found out before this maps nothing after it, and nobody looks at the old bitmap. slots_lock held. */
static int set_flags(struct gmem_vm *vm, struct gmem_slot *slot, const struct gmem_memslot *s)
{
	const uint64_t *bitmap = bitmap_of(s), *had;
	uint32_t logs = gmem_slot_logs(slot), old;
	int err = gmem_vm_change_logs(slot, logs_of(s, logs));

	if (err)
		return gmem_err_prefix(err, "gmem_vm_set_slot");
	/* Bitmaps are no flag of KVM's. */
	old = atomic_exchange(&slot->flags, s->flags);
	had = atomic_exchange(&slot->userfault, bitmap);
	if (had == bitmap)
		return 0;
	if (bitmap && gmem_slot_has_file(slot))
		gmem_mmu_zap(&vm->mmu, slot->gfn, slot->npages, BOTH | GMEM_SIDE_KEEP);
	if (bitmap)
		err = gmem_kvm_slot_set_userfault(slot);
	if (err) {
		atomic_store(&slot->flags, old);
		atomic_store(&slot->userfault, had);
		(void)gmem_vm_change_logs(slot, logs);
	}
	gmem_mmu_wait_readers(&vm->mmu);
	if (bitmap)
		gmem_hva_drain(&vm->mmu, slot);
	return err ? gmem_err_prefix(err, "gmem_vm_set_slot: slot %u", s->slot) : 0;
}

/* slots_lock held. */
static int modify(struct gmem_vm *vm, struct gmem_slot *slot, const struct gmem_memslot *s)
{
	bool moved = s->gpa >> GMEM_PAGE_SHIFT != slot->gfn;
	uint32_t flags = atomic_load(&slot->flags);

	if (s->len >> GMEM_PAGE_SHIFT != slot->npages || s->hva != slot->hva)
		return invalid(s, "the slot is there: len and hva cannot be changed, only the slot be deleted");
	if (gmem_slot_has_file(slot)) {
		if (moved || !s->file || s->file != atomic_load(&slot->file) || s->off != slot->off ||
		    !((flags | s->flags) & GMEM_SLOT_USERFAULT))
			return invalid(s, "a slot with a file cannot be changed, only deleted");
	} else if (s->file || ((flags ^ s->flags) & GMEM_SLOT_READONLY)) {
		return invalid(s, "the slot is there: file and GMEM_SLOT_READONLY cannot be changed");
	}
	if (bitmap_of(s) && vm->kvm >= 0 && !slot->gate)
		return gmem_err(-EOPNOTSUPP,
				"gmem_vm_set_slot: slot %u: a bitmap, on KVM, of the program's memory: only from the "
				"beginning",
				s->slot);
	if (moved)
		return move(vm, slot, s);
	return set_flags(vm, slot, s);
}

/* What guests on KVM cannot be kept from: accesses that are KVM's own business. */
static int check_kvm(const struct gmem_vm *vm, const struct gmem_memslot *s)
{
	if (vm->kvm < 0 || !s->len || !(s->flags & GMEM_SLOT_USERFAULT) || !s->file)
		return 0;
	/* A huge page is let through as a whole: a bit of 4 KiB cannot keep its page from guests. */
	if (s->file->engine == GMEM_ENGINE_KERNEL || s->file->page_size > GMEM_PAGE_SIZE)
		return gmem_err(-EOPNOTSUPP, "gmem_vm_set_slot: slot %u: a bitmap of %s, on KVM", s->slot,
				s->file->engine == GMEM_ENGINE_KERNEL ? "a guest_memfd" : "a file of huge pages");
	return 0;
}

int gmem_vm_set_slot(struct gmem_vm *vm, const struct gmem_memslot *memslot)
{
	struct gmem_slot *slot;
	int err;

	if (!gmem_opts_valid(memslot, memslot->size, sizeof(*memslot)))
		return gmem_err(-EINVAL, "gmem_vm_set_slot: size %zu: expected %zu", memslot->size, sizeof(*memslot));
	if (memslot->slot >= MAX_SLOTS)
		return invalid(memslot, "no such slot number");
	err = check_flags(vm, memslot);
	if (err)
		return err;
	if (vm->pid != getpid())
		return gmem_err(-EIO, "gmem_vm_set_slot: this VM is a copy that came with fork(2)");
	err = check(memslot);
	if (err)
		return err;
	err = check_kvm(vm, memslot);
	if (err)
		return err;
	gmem_vm_lock_slots(vm);
	slot = gmem_vm_slot_by_id(vm, memslot->slot);
	if (gmem_mmu_dead(&vm->mmu))
		err = gmem_err(-EIO, "gmem_vm_set_slot: this VM is dead");
	else if (!memslot->len)
		err = delete (vm, memslot->slot);
	else
		err = slot ? modify(vm, slot, memslot) : create(vm, memslot);
	gmem_vm_unlock_slots(vm);
	return err;
}
