/* SPDX-License-Identifier: MIT */
/*
 * KVM's machine is the caller's, and a software-protected one: the user engine's slots are shared memory to it, and the
 * library's rules are what they are elsewhere. What no kernel serves is refused. Skips with the tag "oracle" where this
 * kernel makes no such machine.
 */
#include "kvm_scene.h"

#include "sys/uapi.h"

static int protected_vm(void)
{
	int kvm = gmem_kvm_open(), vm;

	if (kvm < 0)
		SKIP("oracle", "/dev/kvm: %s", strerror(-kvm));
	vm = gmem_kvm_vm_create(kvm, KVM_X86_SW_PROTECTED_VM);
	close(kvm);
	if (vm < 0)
		SKIP("oracle", "a software-protected machine: %s; to run it: make test-oracle", strerror(-vm));
	return vm;
}

static struct gmem_vm *vm_on(int kvm_vm, enum gmem_vm_type type)
{
	struct gmem_vm_opts o = { .size = sizeof(o), .type = type, .flags = GMEM_VM_KVM, .kvm_vm = kvm_vm };
	struct gmem_vm *vm;

	CHECK_OK(gmem_vm_create(&o, &vm));
	return vm;
}

static void set_up(struct scene *s, int kvm_vm, enum gmem_vm_type type, enum guest_mode mode)
{
	*s = (struct scene){ .len = LEN, .vm = vm_on(kvm_vm, type) };
	s->file = make_file(LEN, 0);
	CHECK_OK(set_slot(s->vm, 0, GPA, LEN, s->file, 0));
	s->vcpu = new_kvm_vcpu(s->vm, 0);
	s->boot = boot_range(s->vm, 0);
	guest_init(&s->guest, gmem_vcpu_kvm_fd(s->vcpu), gmem_vcpu_kvm_run(s->vcpu), s->boot, BOOT_GPA, mode, false);
}

#define EACH_MODE(mode) for (enum guest_mode mode = GUEST_USER; mode <= GUEST_KERNEL; mode++)

TEST(default_type)
{
	EACH_MODE(mode)
	{
		int kvm_vm = protected_vm();
		struct scene s;

		set_up(&s, kvm_vm, GMEM_VM_DEFAULT, mode);
		CHECK_EQ(run(&s, GUEST_fill, GPA, LEN / 8, 9), LEN / 8);
		to_private(s.file, 2 * PG, 2 * PG);
		run_err(&s, -EFAULT, GUEST_verify, GPA, LEN / 8, 9);
		check_fault(&s, GPA + 2 * PG, 0);
		to_shared(s.file, 2 * PG, PG);
		CHECK_ERR(go_on(&s), -EFAULT);
		check_fault(&s, GPA + 3 * PG, 0);
		to_shared(s.file, 3 * PG, PG);
		CHECK_OK(go_on(&s));
		CHECK_EQ(guest_result(&s.guest), LEN / 8);
		scene_tear_down(&s);
		close(kvm_vm);
	}
}

TEST(protected_type)
{
	EACH_MODE(mode)
	{
		struct supplier sup = { .calls = 0 };
		int kvm_vm = protected_vm();
		struct gmem_supply *supply;
		struct scene s;

		set_up(&s, kvm_vm, GMEM_VM_SW_PROTECTED, mode);
		supply = new_supply(s.file, 0, 32 * PG, bring_in, &sup);
		to_private(s.file, 16 * PG, 32 * PG);
		CHECK_EQ(run(&s, GUEST_sum, GPA, 32, PG), 32 * 31 / 2 * PG + 32);
		CHECK_EQ(atomic_load(&sup.calls), 32);
		CHECK_EQ(run(&s, GUEST_fill, GPA, LEN / 8, 9), LEN / 8);
		CHECK_ERR(gmem_file_read(s.file, 16 * PG, &(uint64_t){ 0 }, 8), -EACCES);
		to_shared(s.file, 0, LEN);
		CHECK_EQ(run(&s, GUEST_verify, GPA, LEN / 8, 9), LEN / 8);
		end_supply(s.file, supply);
		scene_tear_down(&s);
		close(kvm_vm);
	}
}

/* Attributes of KVM's are the caller's business. Of a slot without private memory KVM makes the exit by itself. */
TEST(attributes_of_the_caller)
{
	EACH_MODE(mode)
	{
		int kvm_vm = protected_vm();
		struct scene s;

		set_up(&s, kvm_vm, GMEM_VM_SW_PROTECTED, mode);
		run(&s, GUEST_store8, GPA + 5 * PG, 7);
		CHECK_OK(gmem_kvm_attributes_set(kvm_vm, GPA + 5 * PG, PG, KVM_MEMORY_ATTRIBUTE_PRIVATE));
		run_err(&s, -EFAULT, GUEST_load8, GPA + 5 * PG + 8);
		check_fault(&s, GPA + 5 * PG, GMEM_EXIT_FLAG_PRIVATE);
		CHECK_ERR(go_on(&s), -EFAULT);
		CHECK_OK(gmem_kvm_attributes_set(kvm_vm, GPA + 5 * PG, PG, 0));
		CHECK_OK(go_on(&s));
		CHECK_EQ(guest_result(&s.guest), 0);
		CHECK_EQ(run(&s, GUEST_load8, GPA + 5 * PG), 7);
		scene_tear_down(&s);
		close(kvm_vm);
	}
}

/* Its guest_memfds are private memory, which no vCPU of the library's reaches. */
TEST(kernel_engine)
{
	struct gmem_file_opts o = { .size = sizeof(o), .engine = GMEM_ENGINE_KERNEL };
	int kvm_vm = protected_vm();
	struct gmem_vm *vm = vm_on(kvm_vm, GMEM_VM_SW_PROTECTED);
	struct gmem_file *file;

	o.kvm_vm = kvm_vm;
	o.flags = GMEM_FILE_INIT_PRIVATE | GMEM_FILE_NO_MMAP;
	CHECK_OK(gmem_file_create(LEN, &o, &file));
	CHECK_ERR(set_slot(vm, 0, GPA, LEN, file, 0), -EOPNOTSUPP);
	CHECK_HAS(gmem_last_error(), "not mapped");
	/* Nothing of it is in KVM. */
	CHECK_OK(gmem_kvm_slot_set(kvm_vm, 0, GPA, LEN, NULL, gmem_file_fd(file), 0));
	CHECK_OK(gmem_kvm_slot_set(kvm_vm, 0, 0, 0, NULL, -1, 0));
	gmem_file_free(file);

	o.needs = GMEM_NEED_VCPU;
	CHECK_ERR(gmem_file_create(LEN, &o, &file), -EOPNOTSUPP);
	o.flags = 0;
	/* As plain memory: from Linux 6.18 on, and not in machines that have private memory. */
	if (gmem_kvm_check(kvm_vm, KVM_CAP_GUEST_MEMFD_FLAGS) <= 0) {
		CHECK_ERR(gmem_file_create(LEN, &o, &file), -EOPNOTSUPP);
		CHECK_HAS(gmem_last_error(), "GUEST_MEMFD_FLAG_MMAP");
		o.engine = GMEM_ENGINE_AUTO;
		CHECK_OK(gmem_file_create(LEN, &o, &file));
		CHECK_EQ(gmem_file_engine(file), GMEM_ENGINE_USER);
		CHECK_HAS(gmem_file_explain(file), "GUEST_MEMFD_FLAG_MMAP");
		CHECK_OK(set_slot(vm, 0, GPA, LEN, file, 0));
	} else {
		file = NULL;
	}
	gmem_vm_free(vm);
	gmem_file_free(file);
	close(kvm_vm);
}

/* The machine that a file makes for itself takes the file into its slots, whatever kind of machine it has to be. */
TEST(slot_of_the_files_own_machine)
{
	struct gmem_file_opts o = {
		.size = sizeof(o),
		.engine = GMEM_ENGINE_KERNEL,
		.flags = GMEM_FILE_INIT_PRIVATE | GMEM_FILE_NO_MMAP,
		.needs = GMEM_NEED_KVM_SLOT,
	};
	int kvm = gmem_kvm_open(), ordinary = kvm < 0 ? kvm : gmem_kvm_vm_create(kvm, KVM_X86_DEFAULT_VM);
	bool takes = ordinary >= 0 && gmem_kvm_check(ordinary, KVM_CAP_GUEST_MEMFD) > 0;
	struct gmem_file *file;

	if (ordinary < 0)
		SKIP("kvm", "KVM: %s", strerror(-ordinary));
	if (!takes)
		close(protected_vm());
	CHECK_OK(gmem_file_create(LEN, &o, &file));
	CHECK_OK(gmem_kvm_slot_set(gmem_file_kvm_vm(file), 0, GPA, LEN, NULL, gmem_file_fd(file), 0));
	gmem_file_free(file);
	/* Before Linux 6.18 an ordinary one makes guest_memfds, which its slots do not take. */
	o.kvm_vm = ordinary;
	if (takes) {
		CHECK_OK(gmem_file_create(LEN, &o, &file));
		gmem_file_free(file);
	} else {
		CHECK_ERR(gmem_file_create(LEN, &o, &file), -EOPNOTSUPP);
		CHECK_HAS(gmem_last_error(), "KVM_CAP_GUEST_MEMFD");
		o.engine = GMEM_ENGINE_AUTO;
		CHECK_ERR(gmem_file_create(LEN, &o, &file), -EOPNOTSUPP);
	}
	close(ordinary);
	close(kvm);
}

#include "tap_main.h"
