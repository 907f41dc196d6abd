/* SPDX-License-Identifier: MIT */
/*
 * Memslots as KVM has them.
 *
 * User engine: a gate of the slot's own is the memory, and KVM knows it as plain shared memory. Where an access must
 * exit the gate is barred, which is decided here: by the VM's type, by who supplies what is absent, by what is lost.
 * What is barred and need not be any more is let through when a guest meets it (kvm_vcpu.c), so this errs on the side
 * of barring. Kernel engine: KVM has the guest_memfd itself, and makes the exits; its own accesses, as of an
 * instruction that it emulates, go through the slot's address, which is a plain gate's.
 */
#include <errno.h>
#include <stddef.h>

#include "base/err.h"
#include "base/range.h"
#include "file/gate.h"
#include "mmu/log.h"
#include "sys/kvm.h"
#include "vm/caller.h"
#include "vm/vm.h"

#define SIDES (GMEM_SIDE_SHARED | GMEM_SIDE_PRIVATE)

/* ---- which memory */

static uint64_t len_of(const struct gmem_slot *slot)
{
	return slot->npages << GMEM_PAGE_SHIFT;
}

/* Memory of the caller's that is the file's own at the same offsets is no second memory. */
static int find_place(struct gmem_slot *slot, const struct gmem_file *file)
{
	uint64_t ours, len = len_of(slot);
	int err = gmem_caller_shows(slot->hva, len, file, slot->off, &ours);

	if (err)
		return err;
	slot->in_place = ours == len;
	if (slot->in_place || (!ours && file->engine != GMEM_ENGINE_KERNEL))
		return 0;
	return gmem_err(-EOPNOTSUPP, ours ? "a part of hva is the file's, and a part is not" :
					    "memory beside a guest_memfd, on KVM");
}

static int add_caller(struct gmem_slot *slot)
{
	int err = gmem_caller_make_shared(slot->hva, len_of(slot));

	return err ? err : gmem_gate_add_caller(slot->gate, slot->hva);
}

/* The gate of a slot that has none: its file is nobody's, has no page, and is there for what is barred. */
static int open_without_file(struct gmem_slot *slot)
{
	struct gmem_file_opts opts = { .size = sizeof(opts), .engine = GMEM_ENGINE_USER, .name = "gmem-gate" };
	struct gmem_file *file;
	int err = gmem_file_create(len_of(slot), &opts, &file);

	if (err)
		return err;
	err = gmem_gate_open(file, 0, len_of(slot), &slot->vm->holds, &slot->gate);
	gmem_file_free(file);
	return err ? err : add_caller(slot);
}

int gmem_kvm_slot_open(struct gmem_vm *vm, struct gmem_slot *slot)
{
	struct gmem_file *file = atomic_load(&slot->file);
	int err = 0;

	if (vm->kvm < 0)
		return 0;
	if (!file)
		return atomic_load(&slot->userfault) ? open_without_file(slot) : 0;
	if (slot->hva)
		err = find_place(slot, file);
	if (err)
		return err;
	if (file->engine == GMEM_ENGINE_KERNEL)
		return gmem_gate_open_plain(file, slot->off, len_of(slot), &slot->plain_gate);
	err = gmem_gate_open(file, slot->off, len_of(slot), &vm->holds, &slot->gate);
	return !err && gmem_slot_has_hva(slot) ? add_caller(slot) : err;
}

void gmem_kvm_slot_close(struct gmem_slot *slot)
{
	gmem_gate_close(slot->gate);
	gmem_gate_close(slot->plain_gate);
	slot->gate = slot->plain_gate = NULL;
}

/* ---- barring */

void gmem_kvm_holds_failed(struct gmem_gate_holds *holds)
{
	struct gmem_vm *vm = (struct gmem_vm *)((char *)holds - offsetof(struct gmem_vm, holds));

	gmem_mmu_kill(&vm->mmu);
	gmem_vm_kick(vm);
}

/* A translation that stays would show a guest what it must not see. So it gets none at all, and the VM is dead. */
static void give_up(struct gmem_slot *slot)
{
	gmem_mmu_kill(&slot->vm->mmu);
	gmem_gate_shut(slot->gate);
	gmem_vm_kick(slot->vm);
}

/* As part of an invalidation, so that no page is let through meanwhile. */
static void lock(struct gmem_slot *slot)
{
	gmem_rwlock_lock(&slot->gate->file->invalidate_lock);
	gmem_mmu_invalidate_begin(&slot->vm->mmu, slot->gfn, slot->npages, SIDES);
}

static void unlock(struct gmem_slot *slot)
{
	gmem_mmu_invalidate_end(&slot->vm->mmu);
	gmem_rwlock_unlock(&slot->gate->file->invalidate_lock);
}

/* Does the page's side keep guests of this VM out? The others' pages are all within reach, whichever side they are. */
static bool type_bars_private(const struct gmem_vm *vm)
{
	return vm->type == GMEM_VM_DEFAULT;
}

int gmem_kvm_slot_invalidate(struct gmem_slot *slot, uint64_t off, uint64_t len, uint32_t sides)
{
	bool becomes_private = (sides & SIDES) == GMEM_SIDE_SHARED, other_side = (sides & SIDES) != SIDES;
	int err;

	/* The pages themselves may go. */
	if (slot->gate && !other_side && !(sides & GMEM_SIDE_BAR))
		gmem_gate_keep_in_mind(slot->gate, off, len);
	if (!slot->gate || !((sides & GMEM_SIDE_BAR) || (becomes_private && type_bars_private(slot->vm)) ||
			     (other_side && slot->gate->caller)))
		return 0;
	err = gmem_gate_bar(slot->gate, off, len);
	/* Where there are aliases, pages that could not be barred are out of everybody's reach. */
	if (!err || ((sides & GMEM_SIDE_MAY_FAIL) && !slot->gate->caller))
		return err;
	give_up(slot);
	return 0;
}

void gmem_kvm_slot_bar(struct gmem_slot *slot)
{
	struct gmem_gate *gate = slot->gate;

	if (!gate)
		return;
	lock(slot);
	if (gmem_gate_bar(gate, gate->off, gate->len))
		give_up(slot);
	unlock(slot);
}

void gmem_kvm_slot_lose_file(struct gmem_slot *slot)
{
	if (slot->plain_gate) {
		/* Views keep the memory, and KVM would have it on. Where it has no slot, an access is ours to end. */
		(void)gmem_kvm_slot_remove(slot->vm, slot);
		gmem_gate_leave_file(slot->plain_gate);
	}
	gmem_kvm_slot_bar(slot);
}

static int bar_private(struct gmem_gate *gate)
{
	const struct gmem_state *state = &gate->file->state;
	uint64_t page = gate->off >> GMEM_PAGE_SHIFT, end = page + (gate->len >> GMEM_PAGE_SHIFT), to;
	int err = 0;

	for (; page < end && !err; page = to) {
		to = gmem_state_side_end(state, page, end);
		if (gmem_state_private(state, page))
			err = gmem_gate_bar(gate, page << GMEM_PAGE_SHIFT, (to - page) << GMEM_PAGE_SHIFT);
	}
	return err;
}

static int bar_lost(struct gmem_gate *gate)
{
	const struct gmem_state *state = &gate->file->state;
	uint64_t page = gate->off >> GMEM_PAGE_SHIFT, end = page + (gate->len >> GMEM_PAGE_SHIFT);
	int err = 0;

	if (!atomic_load(&state->header->lost))
		return 0;
	for (; !err && (page = gmem_state_next_poisoned(state, page, end)) < end; page++)
		err = gmem_gate_bar(gate, page << GMEM_PAGE_SHIFT, GMEM_PAGE_SIZE);
	return err;
}

static int bar_supplied(struct gmem_gate *gate)
{
	int err = 0;

	for (const struct gmem_supply *s = gate->file->supplies; s && !err; s = s->next) {
		uint64_t from = gmem_max_u64(gate->off, s->off);
		uint64_t to = gmem_min_u64(gate->off + gate->len, s->off + s->len);

		if (from < to)
			err = gmem_gate_bar(gate, from, to - from);
	}
	return err;
}

/* All of it: each page is looked for in the bitmap when a guest meets it first, with the bits of that time. */
static int bar_userfault(struct gmem_slot *slot)
{
	return atomic_load(&slot->userfault) ? gmem_gate_bar(slot->gate, slot->gate->off, slot->gate->len) : 0;
}

int gmem_kvm_slot_set_userfault(struct gmem_slot *slot)
{
	int err;

	if (!slot->gate)
		return 0;
	lock(slot);
	err = bar_userfault(slot);
	unlock(slot);
	return err;
}

/* What is so already when the slot is set. What comes later is an invalidation. */
static int bar_what_is(struct gmem_slot *slot)
{
	struct gmem_gate *gate = slot->gate;
	int err = bar_supplied(gate);

	if (!err)
		err = bar_lost(gate);
	if (!err && type_bars_private(slot->vm))
		err = bar_private(gate);
	if (!err)
		err = bar_userfault(slot);
	if (!err && gate->caller && !atomic_load(&slot->userfault))
		err = gmem_gate_show_caller(gate);
	return err;
}

/* A slot that moves has a gate that guests are at already: what a page is then, they find out when they meet it. */
static int bar_at_first(struct gmem_slot *slot)
{
	struct gmem_gate *gate = slot->gate;
	int err;

	lock(slot);
	err = atomic_load(&gate->in_use) ? gmem_gate_bar(gate, gate->off, gate->len) : bar_what_is(slot);
	unlock(slot);
	return err;
}

int gmem_kvm_slot_keep_touched(struct gmem_slot *slot, _Atomic uint64_t *bits)
{
	int err;

	if (!slot->gate)
		return 0;
	lock(slot);
	err = gmem_gate_keep_touched(slot->gate, bits);
	unlock(slot);
	return err;
}

/* ---- KVM */

/* Of the slot, in KVM, where it is plain memory. */
static uint32_t flags_of(const struct gmem_slot *slot)
{
	uint32_t flags = atomic_load(&slot->flags) & GMEM_SLOT_READONLY;

	return flags | (gmem_slot_logs(slot) & GMEM_LOG_DIRTY ? GMEM_SLOT_LOG_DIRTY : 0);
}

/* Of a gate, or the caller's memory. */
static int set_plain(const struct gmem_slot *slot, uint32_t flags)
{
	return gmem_kvm_plain_slot_set(slot->vm->kvm, slot->id, flags, slot->gfn << GMEM_PAGE_SHIFT, len_of(slot),
				       slot->gate ? gmem_gate_at(slot->gate, slot->off) : slot->hva);
}

int gmem_kvm_slot_log(struct gmem_slot *slot, bool on)
{
	uint32_t flags = (flags_of(slot) & ~GMEM_SLOT_LOG_DIRTY) | (on ? GMEM_SLOT_LOG_DIRTY : 0);
	int err;

	if (!slot->in_kvm)
		return 0;
	err = set_plain(slot, flags);
	return err ? gmem_err_sys(err, "slot %u: KVM", slot->id) : 0;
}

int gmem_kvm_slot_get_log(struct gmem_slot *slot, uint64_t *bitmap)
{
	int err = gmem_kvm_dirty_log(slot->vm->kvm, slot->id, bitmap);

	if (err)
		return gmem_err_sys(err, "slot %u: KVM_GET_DIRTY_LOG", slot->id);
	/*
	 * With KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, which the program may have turned on and nobody tells, that has taken
	 * nothing. Without, what was written to in between is in `bitmap` already.
	 */
	err = gmem_kvm_clear_dirty_log(slot->vm->kvm, slot->id, slot->npages, bitmap);
	return err && err != -ENOTTY ? gmem_err_sys(err, "slot %u: KVM_CLEAR_DIRTY_LOG", slot->id) : 0;
}

bool gmem_kvm_has_dirty_ring(const struct gmem_vm *vm)
{
	/* Asked of no slot at all: without a ring that is an error of the slot's. */
	return gmem_kvm_dirty_log(vm->kvm, UINT32_MAX, NULL) == -ENXIO;
}

int gmem_kvm_slot_add(struct gmem_vm *vm, struct gmem_slot *slot)
{
	int err;

	if (vm->kvm < 0)
		return 0;
	if (slot->plain_gate) {
		err = gmem_kvm_slot_set(vm->kvm, slot->id, slot->gfn << GMEM_PAGE_SHIFT, len_of(slot),
					slot->plain_gate->addr, atomic_load(&slot->file)->fd, slot->off);
	} else {
		err = slot->gate ? bar_at_first(slot) : 0;
		if (err)
			return err;
		err = set_plain(slot, flags_of(slot));
	}
	slot->in_kvm |= !err;
	if (slot->gate)
		slot->gate->in_use |= !err;
	return err ? gmem_err_sys(err, "KVM") : 0;
}

int gmem_kvm_slot_remove(struct gmem_vm *vm, struct gmem_slot *slot)
{
	int err =
		slot->in_kvm ? gmem_kvm_plain_slot_set(vm->kvm, slot->id, 0, slot->gfn << GMEM_PAGE_SHIFT, 0, NULL) : 0;

	slot->in_kvm = err;
	return err;
}

void gmem_kvm_slot_drop(struct gmem_vm *vm, struct gmem_slot *slot)
{
	struct gmem_gate *gate = slot->gate ? slot->gate : slot->plain_gate;

	if (gmem_kvm_slot_remove(vm, slot) && gate)
		gmem_gate_keep_place(gate);
}
