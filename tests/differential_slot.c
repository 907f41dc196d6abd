/* SPDX-License-Identifier: MIT */
/*
 * Memslots. In one half of the worlds KVM_SET_USER_MEMORY_REGION2 with the kernel's file stands beside
 * gmem_vm_set_slot() with the user engine's; in the other both files are in machines of the library, whose accessors
 * load and store.
 */
#define TAP_NO_MAIN
#include "differential.h"

#include "sys/call.h"
#include "sys/uapi.h"
#include "tap.h"

#define NO_HVA 0x10000000000ull /* no memory is there, and none has to be: accesses end in an exit */

static struct gmem_memslot slot_of(const struct side *s, const struct args *a)
{
	static const uint64_t odd[] = { 1ull << 52, 1ull << 63, 0 - P, P / 2, 0, P, 1 };
	uint32_t id = a->which % NSLOTS;
	struct gmem_memslot slot = {
		.size = sizeof(slot),
		.slot = a->kind % 32 ? id :
			a->kind & 32 ? 32764 :
				       100000,
		.flags = (a->kind >> 8) % 32 ? 0 : 1u << (a->kind >> 16) % 4,
		.gpa = ((uint64_t)id << GPA_SHIFT_OF_SLOT) + a->at % 16 * P,
		.len = a->more[0] % 3 ? a->len : 0,
		.file = s->file,
		.off = a->off,
	};

	/* Plain memory: it can be moved, and its flags changed. */
	if ((a->kind >> 24) % 4 == 0) {
		slot.file = NULL;
		slot.hva = (void *)NO_HVA;
	}
	if (a->n % 8 == 0)
		slot.gpa = ((a->n >> 8) % NSLOTS << GPA_SHIFT_OF_SLOT) + a->at % 16 * P;
	if (a->n % 16 == 1)
		slot.gpa = odd[(a->n >> 8) % (sizeof(odd) / sizeof(odd[0]))];
	return slot;
}

/* KVM_MEM_GUEST_MEMFD itself is not among the flags. */
static int set_kvm_slot(const struct side *s, const struct gmem_memslot *slot)
{
	bool file = slot->file;

	struct gmem_kvm_userspace_memory_region2 region = {
		.slot = slot->slot,
		.flags = slot->flags | (file ? KVM_MEM_GUEST_MEMFD : 0),
		.guest_phys_addr = slot->gpa,
		.memory_size = slot->len,
		.userspace_addr = NO_HVA,
		.guest_memfd_offset = slot->off,
		.guest_memfd = file ? (uint32_t)gmem_file_fd(s->file) : 0,
	};

	return gmem_sys_ioctl(s->vm, KVM_SET_USER_MEMORY_REGION2, &region);
}

static bool can_bind(const struct world *w, const struct args *a)
{
	struct gmem_memslot slot = slot_of(&w->side[KERNEL], a);

	return w->slots && !(slot.flags & KVM_MEM_GUEST_MEMFD) &&
	       ((w->side[KERNEL].file && w->side[USER].file) || slot.hva || !slot.len);
}

static void run_bind(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	struct gmem_memslot slot = slot_of(s, a);

	(void)w;
	r->ret = s->who == KERNEL ? set_kvm_slot(s, &slot) : gmem_vm_set_slot(s->gvm, &slot);
}

static enum difference excuse_bind(const struct world *w, const struct args *a, const struct answer *k,
				   const struct answer *u, unsigned int *heal)
{
	struct gmem_memslot slot = slot_of(&w->side[USER], a);

	(void)heal;
	return k->ret == -EINVAL && u->ret == -EEXIST && slot.len && slot.file ? DIFF_BOUND_TWICE : SAME;
}

/* ---- accessors */

static bool accessors(const struct world *w, const struct args *a)
{
	struct gmem_memslot slot = slot_of(&w->side[KERNEL], a);

	return !w->slots && ((w->side[KERNEL].file && w->side[USER].file) || slot.hva || !slot.len);
}

static void run_slot(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	struct gmem_memslot slot = slot_of(s, a);

	(void)w;
	r->ret = gmem_vm_set_slot(s->gvm, &slot);
}

static enum difference excuse_slot(const struct world *w, const struct args *a, const struct answer *k,
				   const struct answer *u, unsigned int *heal)
{
	struct gmem_memslot slot = slot_of(&w->side[USER], a);
	/* What the guest can address is looked at after the file, as in KVM. */
	bool high = slot.gpa >> 48 && u->ret == -EINVAL;

	(void)heal;
	if (k->ret != -EOPNOTSUPP || (!diff_private(w) && !diff_unmapped(w)) || (u->ret && u->ret != -EEXIST && !high))
		return SAME;
	slot.len = 0;
	slot.gpa = 0;
	slot.off = 0;
	slot.flags = 0;
	if (!u->ret)
		CHECK_OK(gmem_vm_set_slot(w->side[USER].gvm, &slot));
	return DIFF_OUT_OF_REACH;
}

static bool has_vcpus(const struct world *w, const struct args *a)
{
	(void)a;
	return !w->slots;
}

static void run_guest(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	static unsigned char buf[3 * P];
	uint64_t gpa = ((uint64_t)(a->which % NSLOTS) << GPA_SHIFT_OF_SLOT) + a->at % ((w->npages + 17) * P);
	uint64_t len = a->n % (a->kind % 4 ? 256 : sizeof(buf));
	struct gmem_exit exit = { .size = sizeof(exit) };

	w->prepared = true;
	memset(buf, 0, sizeof(buf));
	if (a->kind & 16) {
		r->ret = gmem_vcpu_load(s->vcpu, gpa, buf, len);
		r->sum = diff_sum(buf, len);
	} else {
		for (uint64_t i = 0; i < len; i++)
			buf[i] = diff_pattern(a->byte, i);
		r->ret = gmem_vcpu_store(s->vcpu, gpa, buf, len);
	}
	CHECK_OK(gmem_vcpu_exit(s->vcpu, &exit));
	r->value[0] = (uint64_t)exit.reason | exit.flags << 32;
	r->value[1] = exit.gpa;
	r->value[2] = exit.len;
}

static void run_pre_fault(struct world *w, struct side *s, const struct args *a, struct answer *r)
{
	w->prepared = true;
	r->ret = gmem_vcpu_pre_fault(
		s->vcpu, ((uint64_t)(a->which % NSLOTS) << GPA_SHIFT_OF_SLOT) + a->at % 32 * P + (a->kind % 16 == 0),
		a->len, &r->value[0]);
}

const struct operation diff_slot_ops[] = {
	{ "bind", 40, can_bind, run_bind, excuse_bind, NULL },
	{ "set_slot", 16, accessors, run_slot, excuse_slot, NULL },
	{ "guest-access", 40, has_vcpus, run_guest, NULL, NULL },
	{ "pre_fault", 6, has_vcpus, run_pre_fault, NULL, NULL },
	{ 0 },
};
