/* SPDX-License-Identifier: MIT */
/* Guests on KVM: what they read and write, and what brings them out. */
#include "kvm_scene.h"

static uint64_t file_word(struct gmem_file *file, uint64_t off)
{
	uint64_t w = 0;

	CHECK_OK(gmem_file_read(file, off, &w, sizeof(w)));
	return w;
}

static void set_file_word(struct gmem_file *file, uint64_t off, uint64_t w)
{
	CHECK_OK(gmem_file_write(file, off, &w, sizeof(w)));
}

TEST(arguments)
{
	struct gmem_vm_opts vo = { .size = sizeof(vo), .flags = 2 };
	struct gmem_vcpu_opts co = { .size = sizeof(co), .kind = GMEM_VCPU_KVM };
	struct gmem_vcpu *vcpu;
	struct gmem_vm *vm;

	CHECK_ERR(gmem_vm_create(&vo, &vm), -EINVAL);
	vo = (struct gmem_vm_opts){ .size = sizeof(vo), .kvm_vm = 1 };
	CHECK_ERR(gmem_vm_create(&vo, &vm), -EINVAL);
	vo = (struct gmem_vm_opts){ .size = sizeof(vo), .flags = GMEM_VM_KVM, .type = GMEM_VM_SNP };
	CHECK_ERR(gmem_vm_create(&vo, &vm), -EOPNOTSUPP);
	vo = (struct gmem_vm_opts){ .size = sizeof(vo), .flags = GMEM_VM_KVM, .kvm_vm = 1000000 };
	CHECK_ERR(gmem_vm_create(&vo, &vm), -EBADF);
	vm = new_vm(GMEM_VM_DEFAULT);
	CHECK_EQ(gmem_vm_kvm_fd(vm), -1);
	CHECK_ERR(gmem_vcpu_create(vm, &co, &vcpu), -EOPNOTSUPP);
	vcpu = new_vcpu(vm);
	CHECK_ERR(gmem_vcpu_run(vcpu), -EINVAL);
	CHECK_EQ(gmem_vcpu_kvm_fd(vcpu), -1);
	CHECK(!gmem_vcpu_kvm_run(vcpu));
	gmem_vcpu_free(vcpu);
	gmem_vm_free(vm);

	vm = new_kvm_vm(GMEM_VM_DEFAULT);
	CHECK(gmem_vm_kvm_fd(vm) >= 0);
	vcpu = new_kvm_vcpu(vm, 0);
	CHECK_ERR(gmem_vcpu_create(vm, &co, &(struct gmem_vcpu *){ NULL }), -EEXIST);
	CHECK_ERR(gmem_vcpu_load(vcpu, 0, &co, 8), -EINVAL);
	CHECK_ERR(gmem_vcpu_store(vcpu, 0, &co, 8), -EINVAL);
	co.kvm_vcpu = 1000000;
	CHECK_ERR(gmem_vcpu_create(vm, &co, &(struct gmem_vcpu *){ NULL }), -EBADF);
	gmem_vcpu_free(vcpu);
	gmem_vm_free(vm);
}

/* A VM and a vCPU that the caller has made. */
TEST(borrowed)
{
	struct gmem_vm_opts vo = { .size = sizeof(vo), .flags = GMEM_VM_KVM };
	struct gmem_vcpu_opts co = { .size = sizeof(co), .kind = GMEM_VCPU_KVM };
	struct scene s = { .len = LEN };
	int kvm;

	need_kvm();
	kvm = gmem_kvm_open();
	vo.kvm_vm = (int)CHECK_OK(gmem_kvm_vm_create(kvm, 0));
	CHECK_OK(gmem_vm_create(&vo, &s.vm));
	co.kvm_vcpu = (int)CHECK_OK(gmem_kvm_vcpu_create(vo.kvm_vm, 7));
	CHECK_OK(gmem_vcpu_create(s.vm, &co, &s.vcpu));
	s.file = make_file(LEN, 0);
	CHECK_OK(set_slot(s.vm, 0, GPA, LEN, s.file, 0));
	s.boot = boot_range(s.vm, 0);
	guest_init(&s.guest, co.kvm_vcpu, gmem_vcpu_kvm_run(s.vcpu), s.boot, BOOT_GPA, GUEST_USER, false);
	CHECK_EQ(run(&s, GUEST_fill, GPA, LEN / 8, 5), LEN / 8);
	scene_tear_down(&s);
	/* Its slots are gone from the VM that stays. */
	CHECK_OK(gmem_kvm_plain_slot_set(vo.kvm_vm, 1, 0, GPA, PG,
					 mmap(NULL, PG, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)));
	close(co.kvm_vcpu);
	close(vo.kvm_vm);
	close(kvm);
}

static void reads_and_writes(struct scene *s, uint64_t seed)
{
	set_file_word(s->file, 3 * PG, seed);
	CHECK_EQ(run(s, GUEST_load8, GPA + 3 * PG), seed);
	CHECK_EQ(run(s, GUEST_fill, GPA + 8 * PG, PG / 2, seed), PG / 2);
	for (uint64_t i = 0; i < PG / 2; i++)
		CHECK_EQ(file_word(s->file, 8 * PG + i * 8), guest_pattern(seed, i));
	run(s, GUEST_store2, GPA + 5 * PG + 6, 0x1234);
	CHECK_EQ(file_word(s->file, 5 * PG), 0x1234ull << 48);
	CHECK_EQ(run(s, GUEST_cmpxchg8, GPA + 3 * PG, seed, seed + 1), seed);
	CHECK_EQ(file_word(s->file, 3 * PG), seed + 1);
	run(s, GUEST_copy, GPA + 20 * PG + 7, GPA + 8 * PG, PG);
	CHECK_EQ(file_word(s->file, 20 * PG + 15), guest_pattern(seed, 1));
}

TEST_TIMEOUT(memory_is_the_files, 120)
{
	struct scene s;

	EACH_WAY(&s)
	reads_and_writes(&s, tap_seed());
}

TEST(kernel_engine)
{
	for (enum guest_mode mode = GUEST_USER; mode <= GUEST_KERNEL; mode++) {
		struct scene_opts o = { .type = GMEM_VM_DEFAULT, .engine = GMEM_ENGINE_KERNEL, .mode = mode };
		struct scene s;

		scene_set_up(&s, &o);
		reads_and_writes(&s, 77);
		CHECK_OK(gmem_file_punch(s.file, 3 * PG, PG));
		CHECK_EQ(run(&s, GUEST_load8, GPA + 3 * PG), 0);
		scene_tear_down(&s);
	}
}

/* Another VM's guest_memfd. */
TEST(kernel_engine_of_another_vm)
{
	struct gmem_vm *vm = new_kvm_vm(GMEM_VM_DEFAULT), *other = new_kvm_vm(GMEM_VM_DEFAULT);
	struct gmem_file *file = kernel_file(other, LEN);

	CHECK_ERR(set_slot(vm, 0, GPA, LEN, file, 0), -EINVAL);
	CHECK_OK(set_slot(other, 0, GPA, LEN, file, 0));
	gmem_vm_free(vm);
	gmem_vm_free(other);
	gmem_file_free(file);
}

TEST_TIMEOUT(private_pages_bring_it_out, 120)
{
	struct scene s;

	EACH_DEFAULT_WAY(&s)
	{
		/* One that it has touched and one that it has not. */
		run(&s, GUEST_store8, GPA + PG, 11);
		set_file_word(s.file, 2 * PG, 22);
		to_private(s.file, 0, 8 * PG);
		run_err(&s, -EFAULT, GUEST_load8, GPA + PG + 16);
		check_fault(&s, GPA + PG, 0);
		/* And again, for nobody has done anything. */
		CHECK_ERR(go_on(&s), -EFAULT);
		check_fault(&s, GPA + PG, 0);
		to_shared(s.file, PG, PG);
		set_file_word(s.file, PG + 16, 33);
		CHECK_OK(go_on(&s));
		CHECK_EQ(guest_result(&s.guest), 33);
		CHECK_EQ(run(&s, GUEST_load8, GPA + PG), 11);

		run_err(&s, -EFAULT, GUEST_store8, GPA + 2 * PG + 8, 44);
		check_fault(&s, GPA + 2 * PG, 0);
		to_shared(s.file, 2 * PG, PG);
		CHECK_EQ(file_word(s.file, 2 * PG + 8), 0);
		CHECK_OK(go_on(&s));
		CHECK_EQ(file_word(s.file, 2 * PG), 22);
		CHECK_EQ(file_word(s.file, 2 * PG + 8), 44);

		/* Neighbours, and a slot that is set while they are private. */
		CHECK_EQ(run(&s, GUEST_load8, GPA + 8 * PG), 0);
		run_err(&s, -EFAULT, GUEST_load8, GPA + 7 * PG);
		to_shared(s.file, 7 * PG, PG);
		CHECK_OK(go_on(&s));
		CHECK_OK(del_slot(s.vm, 0));
		CHECK_OK(set_slot(s.vm, 1, GPA, LEN, s.file, 0));
		run_err(&s, -EFAULT, GUEST_load8, GPA + 4 * PG);
		check_fault(&s, GPA + 4 * PG, 0);
		to_shared(s.file, 0, 8 * PG);
		CHECK_OK(go_on(&s));
		CHECK_EQ(run(&s, GUEST_load8, GPA + PG), 11);
	}
}

/* A guest of a software-protected machine has both sides, and notices nothing. */
TEST_TIMEOUT(both_sides_of_a_protected_machine, 120)
{
	static const uint32_t flags[] = { 0, GMEM_FILE_STRICT };

	for (size_t i = 0; i < 2; i++) {
		for (enum guest_mode mode = GUEST_USER; mode <= GUEST_KERNEL; mode++) {
			struct scene_opts o = { .type = GMEM_VM_SW_PROTECTED, .mode = mode, .flags = flags[i] };
			struct scene s;

			scene_set_up(&s, &o);
			CHECK_EQ(run(&s, GUEST_fill, GPA, LEN / 8, 9), LEN / 8);
			to_private(s.file, 0, 16 * PG);
			CHECK_ERR(gmem_file_read(s.file, 0, &(uint64_t){ 0 }, 8), -EACCES);
			CHECK_EQ(run(&s, GUEST_verify, GPA, LEN / 8, 9), LEN / 8);
			CHECK_EQ(run(&s, GUEST_fill, GPA, LEN / 8, 10), LEN / 8);
			to_shared(s.file, 0, 16 * PG);
			for (uint64_t w = 0; w < LEN / 8; w += 37)
				CHECK_EQ(file_word(s.file, w * 8), guest_pattern(10, w));
			CHECK_EQ(run(&s, GUEST_verify, GPA, LEN / 8, 10), LEN / 8);
			scene_tear_down(&s);
		}
	}
}

TEST_TIMEOUT(punched_pages_are_zero, 120)
{
	struct scene s;

	EACH_WAY(&s)
	{
		CHECK_EQ(run(&s, GUEST_fill, GPA, LEN / 8, 3), LEN / 8);
		CHECK_OK(gmem_file_punch(s.file, 4 * PG, 4 * PG));
		CHECK_EQ(run(&s, GUEST_sum, GPA + 4 * PG, PG / 2, 8), 0);
		CHECK_EQ(run(&s, GUEST_load8, GPA), guest_pattern(3, 0));
		CHECK_EQ(run(&s, GUEST_load8, GPA + 8 * PG), guest_pattern(3, PG));
		run(&s, GUEST_store8, GPA + 4 * PG, 6);
		CHECK_EQ(file_word(s.file, 4 * PG), 6);
	}
}

TEST_TIMEOUT(poisoned_pages, 120)
{
	struct scene s;

	EACH_WAY(&s)
	{
		run(&s, GUEST_store8, GPA + 2 * PG, 1);
		CHECK_OK(gmem_file_poison(s.file, 2 * PG, 2 * PG));
		for (int i = 0; i < 2; i++) {
			run_err(&s, -EHWPOISON, GUEST_load8, GPA + (2 + (uint64_t)i) * PG);
			CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_MEMORY_FAULT);
			CHECK_EQ(exit_of(s.vcpu).gpa, GPA + (2 + (uint64_t)i) * PG);
			CHECK_OK(gmem_file_punch(s.file, (2 + (uint64_t)i) * PG, PG));
			CHECK_OK(go_on(&s));
			CHECK_EQ(guest_result(&s.guest), 0);
		}
		CHECK_EQ(run(&s, GUEST_load8, GPA + PG), 0);
	}
}

static void set_bitmap(struct scene *s, const uint64_t *bitmap)
{
	struct gmem_memslot m = { .size = sizeof(m), .gpa = GPA, .len = s->len, .file = s->file };

	m.flags = bitmap ? GMEM_SLOT_USERFAULT : 0;
	m.userfault_bitmap = bitmap;
	CHECK_OK(gmem_vm_set_slot(s->vm, &m));
}

/* Pages that are the caller's to fill, with a bit each: those that were touched before too. */
TEST_TIMEOUT(userfault_bitmap, 120)
{
	_Alignas(8) uint64_t bitmap[1], other[1] = { 0 };
	struct scene s;

	EACH_WAY(&s)
	{
		CHECK_EQ(run(&s, GUEST_fill, GPA, LEN / 8, 3), LEN / 8);
		bitmap[0] = 1ull << 5 | 1ull << 63;
		set_bitmap(&s, bitmap);
		CHECK_EQ(run(&s, GUEST_load8, GPA + 4 * PG), guest_pattern(3, 4 * PG / 8));
		run_err(&s, -EFAULT, GUEST_load8, GPA + 5 * PG);
		check_fault(&s, GPA + 5 * PG, GMEM_EXIT_FLAG_USERFAULT);
		CHECK_ERR(go_on(&s), -EFAULT);
		set_file_word(s.file, 5 * PG, 55);
		__atomic_fetch_and(bitmap, ~(1ull << 5), __ATOMIC_RELEASE);
		CHECK_OK(go_on(&s));
		CHECK_EQ(guest_result(&s.guest), 55);
		run_err(&s, -EFAULT, GUEST_store8, GPA + 63 * PG, 7);
		check_fault(&s, GPA + 63 * PG, GMEM_EXIT_FLAG_USERFAULT);
		CHECK_EQ(file_word(s.file, 63 * PG), guest_pattern(3, 63 * PG / 8));
		/* Set where nothing has been touched since: it counts. */
		__atomic_fetch_or(bitmap, 1ull << 9, __ATOMIC_RELEASE);
		__atomic_fetch_and(bitmap, ~(1ull << 63), __ATOMIC_RELEASE);
		CHECK_OK(go_on(&s));
		CHECK_EQ(file_word(s.file, 63 * PG), 7);
		run_err(&s, -EFAULT, GUEST_load8, GPA + 9 * PG);
		/* Another one, and none. */
		other[0] = 1ull << 4;
		set_bitmap(&s, other);
		CHECK_OK(go_on(&s));
		run_err(&s, -EFAULT, GUEST_load8, GPA + 4 * PG);
		set_bitmap(&s, NULL);
		CHECK_OK(go_on(&s));
		CHECK_EQ(run(&s, GUEST_load8, GPA + 5 * PG), 55);
		/* With the slot. */
		CHECK_OK(del_slot(s.vm, 0));
		set_bitmap(&s, other);
		run_err(&s, -EFAULT, GUEST_load8, GPA + 4 * PG);
		check_fault(&s, GPA + 4 * PG, GMEM_EXIT_FLAG_USERFAULT);
		other[0] = 0;
		CHECK_OK(go_on(&s));
	}
}

/* The guest's code itself is in a page that may not be touched. */
TEST_TIMEOUT(instructions_in_private_pages, 120)
{
	struct scene s;

	EACH_DEFAULT_WAY(&s)
	{
		CHECK_OK(gmem_file_write(s.file, 9 * PG, s.boot, PG));
		s.guest.code_gpa = GPA + 9 * PG;
		CHECK_EQ(run(&s, GUEST_load8, GPA), 0);
		to_private(s.file, 9 * PG, PG);
		run_err(&s, -EFAULT, GUEST_load8, GPA);
		check_fault(&s, GPA + 9 * PG, 0);
		to_shared(s.file, 9 * PG, PG);
		set_file_word(s.file, 0, 6);
		CHECK_OK(go_on(&s));
		CHECK_EQ(guest_result(&s.guest), 6);
		s.guest.code_gpa = BOOT_GPA;
	}
}

/* Read, changed and written in one: emulated, it is a read first. */
TEST_TIMEOUT(locked_access_to_private_pages, 120)
{
	struct scene s;

	EACH_DEFAULT_WAY(&s)
	{
		set_file_word(s.file, PG, 5);
		to_private(s.file, PG, PG);
		run_err(&s, -EFAULT, GUEST_cmpxchg8, GPA + PG, 5, 7);
		check_fault(&s, GPA + PG, 0);
		to_shared(s.file, PG, PG);
		CHECK_OK(go_on(&s));
		CHECK_EQ(guest_result(&s.guest), 5);
		CHECK_EQ(file_word(s.file, PG), 7);
		to_private(s.file, PG, PG);
		run_err(&s, -EFAULT, GUEST_hammer, GPA + PG + 8, 100);
		to_shared(s.file, PG, PG);
		CHECK_OK(go_on(&s));
		CHECK_EQ(file_word(s.file, PG + 8), 100);
	}
}

TEST_TIMEOUT(file_closed_first, 120)
{
	struct scene s;

	EACH_WAY(&s)
	{
		run(&s, GUEST_store8, GPA + PG, 1);
		gmem_file_free(s.file);
		s.file = NULL;
		run_err(&s, -EFAULT, GUEST_load8, GPA + PG);
		CHECK_EQ(exit_of(s.vcpu).gpa, GPA + PG);
		run_err(&s, -EFAULT, GUEST_store8, GPA + 5 * PG, 1);
		/* The access is still pending where KVM was emulating it; now no slot has it. */
		CHECK_OK(del_slot(s.vm, 0));
		CHECK_OK(gmem_vcpu_run(s.vcpu));
		CHECK_EQ(exit_of(s.vcpu).reason, KVM_EXIT_MMIO);
	}
}

TEST_TIMEOUT(no_slot_is_mmio, 120)
{
	struct scene s;

	EACH_WAY(&s)
	{
		begin(&s, GUEST_load4, GPA + LEN + 64);
		CHECK_OK(gmem_vcpu_run(s.vcpu));
		CHECK_EQ(exit_of(s.vcpu).reason, KVM_EXIT_MMIO);
		CHECK_EQ(s.guest.run->mmio.phys_addr, GPA + LEN + 64);
		memcpy(s.guest.run->mmio.data, &(uint32_t){ 0xabcdef }, 4);
		CHECK_OK(go_on(&s));
		CHECK_EQ(guest_result(&s.guest), 0xabcdef);
		CHECK_ERR(gmem_vcpu_answer(s.vcpu, 1), -EINVAL);
	}
}

/* The exit has what struct kvm_run has, and an answer goes there. */
TEST_TIMEOUT(a_device_is_answered_for, 120)
{
	const uint64_t value = 0x8877665544332211;
	struct scene s;

	EACH_WAY(&s)
	{
		struct gmem_exit e;

		begin(&s, GUEST_load4, GPA + LEN + 64);
		CHECK_OK(gmem_vcpu_run(s.vcpu));
		e = exit_of(s.vcpu);
		CHECK_EQ(e.reason, GMEM_EXIT_MMIO);
		CHECK_EQ(e.gpa, GPA + LEN + 64);
		CHECK_EQ(e.len, 4);
		CHECK_EQ(e.flags, 0);
		CHECK_OK(gmem_vcpu_answer(s.vcpu, value));
		CHECK_OK(go_on(&s));
		CHECK_EQ(guest_result(&s.guest), (uint32_t)value);
		begin(&s, GUEST_store8, GPA + LEN + 64, value);
		CHECK_OK(gmem_vcpu_run(s.vcpu));
		e = exit_of(s.vcpu);
		CHECK_EQ(e.reason, GMEM_EXIT_MMIO);
		CHECK_EQ(e.gpa, GPA + LEN + 64);
		CHECK_EQ(e.len, 8);
		CHECK_EQ(e.flags, GMEM_EXIT_FLAG_WRITE);
		CHECK_MEM(e.data, &value, 8);
		CHECK_OK(gmem_vcpu_answer(s.vcpu, 0));
		CHECK_OK(go_on(&s));
	}
}

/* ---- what is brought in */

TEST_TIMEOUT(absent_pages_are_brought_in, 120)
{
	struct scene s;

	EACH_WAY(&s)
	{
		struct supplier sup = { .calls = 0 };
		struct gmem_supply *supply;

		/* Touched before anybody supplied it: stays what it is. */
		run(&s, GUEST_store8, GPA + 40 * PG, 4);
		CHECK_OK(gmem_vcpu_pre_fault(s.vcpu, GPA + 41 * PG, PG, NULL));
		supply = new_supply(s.file, 0, 32 * PG, bring_in, &sup);
		CHECK_EQ(run(&s, GUEST_load8, GPA + 40 * PG), 4);
		CHECK_EQ(run(&s, GUEST_load8, GPA + 5 * PG + 24), 5 * PG + 25);
		CHECK_EQ(atomic_load(&sup.calls), 1);
		run(&s, GUEST_store8, GPA + 6 * PG + 8, 1);
		CHECK_EQ(file_word(s.file, 6 * PG), 6 * PG + 1);
		CHECK_EQ(file_word(s.file, 6 * PG + 8), 1);
		/* All the rest, and of each page once. */
		CHECK_EQ(run(&s, GUEST_sum, GPA, 32, PG), 32 * 31 / 2 * PG + 32);
		CHECK_EQ(atomic_load(&sup.calls), 32);
		CHECK_EQ(run(&s, GUEST_sum, GPA, 32, PG), 32 * 31 / 2 * PG + 32);
		CHECK_EQ(run(&s, GUEST_load8, GPA + 33 * PG), 0);
		CHECK_EQ(atomic_load(&sup.calls), 32);
		end_supply(s.file, supply);
	}
}

/* Pages that are in place by the time the guest meets the first of them pass with it; others do not. */
TEST_TIMEOUT(neighbours_pass_together, 120)
{
	struct scene s;

	EACH_WAY(&s)
	{
		struct supplier sup = { .calls = 0 };
		struct gmem_supply *supply = new_supply(s.file, 0, LEN, bring_in, &sup);
		uint64_t before;

		for (uint64_t i = 0; i < 32; i++)
			if (i != 20)
				set_file_word(s.file, i * PG, i);
		before = atomic_load(&sup.calls);
		if (s.vm->type == GMEM_VM_DEFAULT)
			to_private(s.file, 5 * PG, PG);
		begin(&s, GUEST_sum, GPA, 32, PG);
		if (s.vm->type == GMEM_VM_DEFAULT) {
			CHECK_ERR(go_on(&s), -EFAULT);
			check_fault(&s, GPA + 5 * PG, 0);
			to_shared(s.file, 5 * PG, PG);
		}
		CHECK_OK(go_on(&s));
		CHECK_EQ(guest_result(&s.guest), 32 * 31 / 2 - 20 + 20 * PG + 1);
		CHECK_EQ(atomic_load(&sup.calls), before + 1);
		/* Where the runs begin: at 0, 5 or 6, 16, 20 and 21; emulated, an accessor takes its own at each. */
		CHECK(faults_of(s.vm) <= 2 * 6);
		end_supply(s.file, supply);
	}
}

TEST_TIMEOUT(supplier_that_is_gone, 120)
{
	struct scene s;

	EACH_WAY(&s)
	{
		struct supplier sup = { .calls = 0 };

		end_supply(s.file, new_supply(s.file, 0, LEN, bring_in, &sup));
		run_err(&s, -EIO, GUEST_load8, GPA + PG);
		CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_NONE);
		/* Punched: it need not be brought in any more. */
		CHECK_OK(gmem_file_punch(s.file, PG, PG));
		CHECK_OK(go_on(&s));
		CHECK_EQ(guest_result(&s.guest), 0);
	}
}

#include "tap_main.h"
