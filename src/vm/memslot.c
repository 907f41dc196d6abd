/* SPDX-License-Identifier: MIT */
/*
 * Setting and deleting memslots, and what happens when a slot's file is closed first.
 *
 * Under slots_lock a new table of slots is made and published. The old one, and a slot that is in the new one no more,
 * go when no epoch can see them. Whoever found the slot before maps nothing after, because of the invalidation.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/err.h"
#include "base/opts.h"
#include "base/range.h"
#include "file/gate.h"
#include "vm/vm.h"

#define MAX_SLOTS 32764u /* KVM's own limit on x86: KVM_CAP_NR_MEMSLOTS */
#define BOTH (GMEM_SIDE_SHARED | GMEM_SIDE_PRIVATE)

static void put_slot(struct gmem_slot *slot)
{
	struct gmem_vm *vm = slot->vm;

	if (atomic_fetch_sub_explicit(&slot->refs, 1, memory_order_acq_rel) != 1)
		return;
	free(atomic_load(&slot->tracked));
	free(slot);
	gmem_vm_put(vm);
}

/* ---- as a binding of the file */

static struct gmem_slot *slot_of(struct gmem_binding *b)
{
	return (struct gmem_slot *)((char *)b - offsetof(struct gmem_slot, binding));
}

static void invalidate_begin(struct gmem_binding *b, uint64_t off, uint64_t len, uint32_t sides)
{
	struct gmem_slot *slot = slot_of(b);

	gmem_mmu_invalidate_begin(&slot->vm->mmu, slot->gfn + ((off - slot->off) >> GMEM_PAGE_SHIFT),
				  len >> GMEM_PAGE_SHIFT, sides & BOTH);
	gmem_kvm_slot_invalidate(slot, off, len, sides);
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
		gmem_mmu_wait_readers(&vm->mmu);
		gmem_kvm_slot_bar(slot);
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

/* ---- the table */

/* No table is a table of none, so that the last slot can go without memory. */
static uint32_t count(const struct gmem_slots *t)
{
	return t ? t->n : 0;
}

static struct gmem_slots *new_table(uint32_t n)
{
	struct gmem_slots *t = calloc(1, sizeof(*t) + n * sizeof(t->slot[0]));

	if (t)
		t->n = n;
	return t;
}

/* slots_lock held. */
static void publish(struct gmem_vm *vm, struct gmem_slots *new)
{
	free(gmem_mmu_publish_slots(&vm->mmu, new));
}

static int insert(struct gmem_vm *vm, struct gmem_slot *slot)
{
	const struct gmem_slots *old = gmem_mmu_slots(&vm->mmu);
	struct gmem_slots *new = new_table(count(old) + 1);
	uint32_t i = 0;

	if (!new)
		return gmem_err_sys(-ENOMEM, "gmem_vm_set_slot");
	for (; i < count(old) && old->slot[i]->gfn < slot->gfn; i++)
		new->slot[i] = old->slot[i];
	new->slot[i] = slot;
	for (; i < count(old); i++)
		new->slot[i + 1] = old->slot[i];
	publish(vm, new);
	return 0;
}

static struct gmem_slot *find_id(struct gmem_vm *vm, uint32_t id)
{
	const struct gmem_slots *slots = gmem_mmu_slots(&vm->mmu);

	for (uint32_t i = 0; i < count(slots); i++)
		if (slots->slot[i]->id == id)
			return slots->slot[i];
	return NULL;
}

/* Nobody finds the slot any more. Its pages stay in the file. slots_lock held. */
static void forget(struct gmem_vm *vm, struct gmem_slot *slot)
{
	struct gmem_file *file = atomic_load(&slot->file);

	gmem_kvm_slot_remove(vm, slot);
	gmem_mmu_zap(&vm->mmu, slot->gfn, slot->npages, BOTH);
	/* Bound, so its owner cannot have gone past closing it, which needs slots_lock. */
	if (file) {
		gmem_file_get(file);
		(void)gmem_file_unbind(&slot->binding);
		gmem_file_put(file);
	}
	gmem_gate_close(slot->gate);
	slot->gate = NULL;
	put_slot(slot);
}

/* slots_lock held. */
static int delete (struct gmem_vm *vm, uint32_t id)
{
	const struct gmem_slots *old = gmem_mmu_slots(&vm->mmu);
	struct gmem_slot *slot = find_id(vm, id);
	struct gmem_slots *new;
	uint32_t n = 0;

	if (!slot)
		return gmem_err(-EINVAL, "gmem_vm_set_slot: slot %u: there is none to delete", id);
	new = new_table(old->n - 1);
	if (!new)
		return gmem_err_sys(-ENOMEM, "gmem_vm_set_slot");
	for (uint32_t i = 0; i < old->n; i++)
		if (old->slot[i] != slot)
			new->slot[n++] = old->slot[i];
	publish(vm, new);
	forget(vm, slot);
	return 0;
}

void gmem_vm_delete_slots(struct gmem_vm *vm)
{
	struct gmem_slots *all;

	gmem_vm_lock_slots(vm);
	all = gmem_mmu_publish_slots(&vm->mmu, NULL);
	for (uint32_t i = 0; i < count(all); i++)
		forget(vm, all->slot[i]);
	free(all);
	gmem_vm_unlock_slots(vm);
}

/* ---- setting */

static int invalid(const struct gmem_memslot *s, const char *why)
{
	return gmem_err(-EINVAL, "gmem_vm_set_slot: slot %u, gpa 0x%llx, len 0x%llx: %s", s->slot,
			(unsigned long long)s->gpa, (unsigned long long)s->len, why);
}

/* What KVM looks at first, also of a slot that is to be deleted. */
static int check(const struct gmem_memslot *s)
{
	if (!gmem_page_aligned(s->gpa) || !gmem_page_aligned(s->len) || !gmem_page_aligned(s->off))
		return invalid(s, "gpa, len or off is not page-aligned");
	if (s->gpa + s->len < s->gpa || s->off + s->len < s->off)
		return invalid(s, "gpa or off wraps around");
	if (!s->len)
		return 0;
	if (!s->file)
		return invalid(s, "no file");
	if (!gmem_file_ours(s->file))
		return gmem_err(-EIO, "gmem_vm_set_slot: the file is a copy that came with fork(2)");
	return 0;
}

/* slots_lock held. */
static int check_against_others(struct gmem_vm *vm, const struct gmem_memslot *s)
{
	const struct gmem_slots *slots = gmem_mmu_slots(&vm->mmu);

	if (find_id(vm, s->slot))
		return invalid(s, "a slot with a file cannot be changed, only deleted");
	if (count(slots) == MAX_SLOTS)
		return gmem_err(-ENOSPC, "gmem_vm_set_slot: %u slots are the most", MAX_SLOTS);
	for (uint32_t i = 0; i < count(slots); i++) {
		const struct gmem_slot *o = slots->slot[i];

		if (gmem_range_overlaps(s->gpa >> GMEM_PAGE_SHIFT, s->len >> GMEM_PAGE_SHIFT, o->gfn, o->npages))
			return gmem_err(-EEXIST, "gmem_vm_set_slot: gpa 0x%llx, len 0x%llx: overlaps slot %u",
					(unsigned long long)s->gpa, (unsigned long long)s->len, o->id);
	}
	/* After the other slots, as in KVM. */
	if ((s->gpa + s->len) >> GMEM_PAGE_SHIFT > vm->gfn_end)
		return invalid(s, "beyond what the guest can address");
	if (!gmem_range_inside(s->off, s->len, s->file->len))
		return invalid(s, "past the end of the file");
	return 0;
}

/* slots_lock held. */
static int create(struct gmem_vm *vm, const struct gmem_memslot *s)
{
	struct gmem_slot *slot;
	char *window;
	int err = check_against_others(vm, s);

	if (err)
		return err;
	if (s->file->engine == GMEM_ENGINE_KERNEL && (s->file->flags & GMEM_FILE_NO_MMAP))
		return gmem_err(-EOPNOTSUPP, "gmem_vm_set_slot: slot %u: a guest_memfd that is not mapped", s->slot);
	err = gmem_state_claim(&s->file->state, GMEM_USE_GUEST);
	if (err)
		return gmem_err(err,
				"gmem_vm_set_slot: slot %u: the file is open in another object too, or behind a "
				"keeper: what is absent of it could not be told from zero",
				s->slot);
	window = gmem_file_window(s->file);
	slot = window ? calloc(1, sizeof(*slot)) : NULL;
	if (!slot)
		return gmem_err_sys(-ENOMEM, "gmem_vm_set_slot");
	*slot = (struct gmem_slot){
		.id = s->slot,
		.gfn = s->gpa >> GMEM_PAGE_SHIFT,
		.npages = s->len >> GMEM_PAGE_SHIFT,
		.off = s->off,
		.file = s->file,
		.window = window + s->off,
		.binding = { .off = s->off, .len = s->len, .ops = &binding_ops },
		.refs = 1,
		.vm = vm,
	};
	gmem_vm_get(vm);
	err = gmem_kvm_slot_open(vm, slot);
	if (err)
		goto out_put;
	err = gmem_file_bind(s->file, &slot->binding);
	if (err)
		goto out_close;
	err = insert(vm, slot);
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
	(void)gmem_file_unbind(&slot->binding);
out_close:
	gmem_gate_close(slot->gate);
out_put:
	gmem_err_prefix(err, "gmem_vm_set_slot: slot %u", s->slot);
	put_slot(slot);
	return err;
}

int gmem_vm_set_slot(struct gmem_vm *vm, const struct gmem_memslot *memslot)
{
	int err;

	if (!gmem_opts_valid(memslot, memslot->size, sizeof(*memslot)))
		return gmem_err(-EINVAL, "gmem_vm_set_slot: size %zu: expected %zu", memslot->size, sizeof(*memslot));
	if (memslot->slot >= MAX_SLOTS)
		return invalid(memslot, "no such slot number");
	if (memslot->flags)
		return invalid(memslot, "flags: none is defined");
	if (vm->pid != getpid())
		return gmem_err(-EIO, "gmem_vm_set_slot: this VM is a copy that came with fork(2)");
	err = check(memslot);
	if (err)
		return err;
	gmem_vm_lock_slots(vm);
	if (gmem_mmu_dead(&vm->mmu))
		err = gmem_err(-EIO, "gmem_vm_set_slot: this VM is dead");
	else
		err = memslot->len ? create(vm, memslot) : delete (vm, memslot->slot);
	gmem_vm_unlock_slots(vm);
	return err;
}
