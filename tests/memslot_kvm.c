/* SPDX-License-Identifier: MIT */
/* Slots with memory of the caller's in a machine that runs guests on KVM: KVM has the same. */
#include "kvm_scene.h"
#include "slot_util.h"

#define HVA_GPA (GPA + 16 * LEN)

TEST(guest_reaches_the_callers_memory)
{
	char *hva = plain_memory(4 * PG, RW);
	struct gmem_vcpu *accessor;
	struct scene s;

	scene_set_up(&s, &ways[0]);
	accessor = new_vcpu(s.vm);
	CHECK_OK(set_hva_slot(s.vm, 7, 0, HVA_GPA, 4 * PG, hva));
	*(uint64_t *)(hva + PG) = 5;
	CHECK_EQ(run(&s, GUEST_load8, HVA_GPA + PG), 5);
	run(&s, GUEST_store8, HVA_GPA + PG, 6);
	CHECK_EQ(*(uint64_t *)(hva + PG), 6);
	CHECK_EQ(load64(accessor, HVA_GPA + PG), 6);
	/* Moved, for both; and logged. */
	CHECK_OK(set_hva_slot(s.vm, 7, GMEM_SLOT_LOG_DIRTY, HVA_GPA + 8 * PG, 4 * PG, hva));
	CHECK_EQ(run(&s, GUEST_load8, HVA_GPA + 9 * PG), 6);
	CHECK_EQ(load64(accessor, HVA_GPA + 9 * PG), 6);
	check_no_slot(accessor, HVA_GPA + PG);
	CHECK_OK(set_hva_slot(s.vm, 7, 0, HVA_GPA + 8 * PG, 4 * PG, hva));
	CHECK_EQ(run(&s, GUEST_load8, HVA_GPA + 9 * PG), 6);
	CHECK_OK(del_slot(s.vm, 7));
	check_no_slot(accessor, HVA_GPA + 9 * PG);
	CHECK_OK(gmem_vcpu_pre_fault(s.vcpu, GPA, PG, NULL));
	gmem_vcpu_free(accessor);
	scene_tear_down(&s);
	munmap(hva, 4 * PG);
}

/* The guest's store is the caller's to do, and changes nothing. */
TEST(read_only)
{
	char *hva = plain_memory(PG, RW);
	struct gmem_exit e;
	struct scene s;

	scene_set_up(&s, &ways[2]);
	CHECK_OK(set_hva_slot(s.vm, 7, GMEM_SLOT_READONLY, HVA_GPA, PG, hva));
	*(uint64_t *)hva = 5;
	CHECK_EQ(run(&s, GUEST_load8, HVA_GPA), 5);
	begin(&s, GUEST_store8, HVA_GPA, 6);
	CHECK_OK(gmem_vcpu_run(s.vcpu));
	e = exit_of(s.vcpu);
	CHECK_EQ(e.reason, GMEM_EXIT_MMIO);
	CHECK_EQ(e.flags, GMEM_EXIT_FLAG_WRITE);
	CHECK_EQ(e.gpa, HVA_GPA);
	CHECK_EQ(e.data[0], 6);
	CHECK_OK(gmem_vcpu_answer(s.vcpu, 0));
	CHECK_OK(go_on(&s));
	CHECK_EQ(*(uint64_t *)hva, 5);
	scene_tear_down(&s);
	munmap(hva, PG);
}

/* What KVM does not have. */
TEST(not_to_be_had)
{
	static const uint64_t bitmap[1];
	struct gmem_memslot m = { .size = sizeof(m), .slot = 7, .gpa = HVA_GPA, .len = PG };
	struct gmem_vm *vm = new_kvm_vm(GMEM_VM_DEFAULT);

	/* KVM knows the program's address, and no other. */
	m.hva = plain_memory(PG, RW);
	m.userfault_bitmap = bitmap;
	CHECK_OK(gmem_vm_set_slot(vm, &m));
	m.flags = GMEM_SLOT_USERFAULT;
	CHECK_ERR(gmem_vm_set_slot(vm, &m), -EOPNOTSUPP);
	CHECK_OK(del_slot(vm, 7));
	CHECK_OK(gmem_vm_set_slot(vm, &m));
	CHECK_OK(del_slot(vm, 7));
	munmap(m.hva, PG);
	gmem_vm_free(vm);
}
