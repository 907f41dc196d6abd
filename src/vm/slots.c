/* SPDX-License-Identifier: MIT */
/*
 * The table of a VM's slots, by guest frame and by number.
 *
 * There are two tables by guest frame. The one that is out is never changed: the other one is, and put out, and when no
 * epoch can see the first any more that is changed likewise. So a change copies no table and needs no memory, but for a
 * slot that is one more than ever before.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "vm/vm.h"

static uint32_t count(const struct gmem_slots *t)
{
	return t ? t->n : 0;
}

struct gmem_slot *gmem_vm_slot_by_id(const struct gmem_vm *vm, uint32_t id)
{
	return id < vm->slots.ids ? vm->slots.by_id[id] : NULL;
}

struct gmem_slot *gmem_vm_slot_overlapping(struct gmem_vm *vm, uint64_t gfn, uint64_t npages,
					   const struct gmem_slot *but)
{
	const struct gmem_slots *t = gmem_mmu_slots(&vm->mmu);

	for (uint32_t i = gmem_slots_behind(t, gfn); i < count(t) && t->slot[i]->gfn < gfn + npages; i++)
		if (t->slot[i] != but)
			return t->slot[i];
	return NULL;
}

static void change(struct gmem_slots *t, struct gmem_slot *old, struct gmem_slot *new)
{
	uint32_t i;

	if (old) {
		i = gmem_slots_behind(t, old->gfn);
		memmove(&t->slot[i], &t->slot[i + 1], (--t->n - i) * sizeof(t->slot[0]));
	}
	if (new) {
		i = gmem_slots_behind(t, new->gfn);
		memmove(&t->slot[i + 1], &t->slot[i], (t->n++ - i) * sizeof(t->slot[0]));
		t->slot[i] = new;
	}
}

static struct gmem_slots *copy_table(const struct gmem_slots *from, uint32_t room)
{
	struct gmem_slots *t = malloc(sizeof(*t) + room * sizeof(t->slot[0]));

	if (!t)
		return NULL;
	t->n = count(from);
	if (t->n)
		memcpy(t->slot, from->slot, t->n * sizeof(t->slot[0]));
	return t;
}

/* Both tables get room for one more. The one that is out is exchanged for it. */
static int grow(struct gmem_vm *vm)
{
	struct gmem_slots *out = gmem_mmu_slots(&vm->mmu);
	uint32_t room = vm->slots.room ? vm->slots.room * 2 : 8;
	struct gmem_slots *a, *b;

	if (count(out) < vm->slots.room)
		return 0;
	a = copy_table(out, room);
	b = copy_table(out, room);
	if (!a || !b) {
		free(a);
		free(b);
		return -ENOMEM;
	}
	free(gmem_mmu_publish_slots(&vm->mmu, a));
	free(vm->slots.spare);
	vm->slots.spare = b;
	vm->slots.room = room;
	return 0;
}

static int grow_ids(struct gmem_vm *vm, uint32_t id)
{
	uint32_t ids = vm->slots.ids ? vm->slots.ids : 8;
	struct gmem_slot **by_id;

	while (ids <= id)
		ids *= 2;
	if (ids == vm->slots.ids)
		return 0;
	by_id = realloc(vm->slots.by_id, ids * sizeof(struct gmem_slot *));
	if (!by_id)
		return -ENOMEM;
	memset(by_id + vm->slots.ids, 0, (ids - vm->slots.ids) * sizeof(struct gmem_slot *));
	vm->slots.by_id = by_id;
	vm->slots.ids = ids;
	return 0;
}

int gmem_vm_swap_slot(struct gmem_vm *vm, struct gmem_slot *old, struct gmem_slot *new)
{
	int err = old ? 0 : grow(vm);

	if (!err && !old)
		err = grow_ids(vm, new->id);
	if (err)
		return gmem_err_sys(err, "gmem_vm_set_slot");
	change(vm->slots.spare, old, new);
	vm->slots.by_id[old ? old->id : new->id] = new;
	vm->slots.spare = gmem_mmu_publish_slots(&vm->mmu, vm->slots.spare);
	change(vm->slots.spare, old, new);
	return 0;
}

struct gmem_slots *gmem_vm_take_slots(struct gmem_vm *vm)
{
	free(vm->slots.spare);
	free(vm->slots.by_id);
	vm->slots = (struct gmem_slot_store){ .room = 0 };
	return gmem_mmu_publish_slots(&vm->mmu, NULL);
}
