/* SPDX-License-Identifier: MIT */
/* Hypercalls of guests on KVM: exits and answers. */
#include <sys/wait.h>

#include "vcpu_kvm_hypercall.h"

#ifdef __x86_64__

static const enum guest_routine instructions[] = { GUEST_vmcall, GUEST_vmmcall };

TEST_TIMEOUT(answered, 120)
{
	struct scene s;

	EACH_HC_WAY(&s)
	{
		for (unsigned int i = 0; i < 2; i++) {
			for (uint64_t n = 1; n < 4; n++) {
				begin(&s, instructions[i], NR, GPA + n * PG, n, PRIVATE | n);
				CHECK_OK(gmem_vcpu_run(s.vcpu));
				check_asked(&s, GPA + n * PG, n, PRIVATE | n);
				CHECK_EQ(s.guest.run->hypercall.longmode, 1);
				CHECK_EQ(guest_rip(&s.guest), guest_hypercall_gpa(&s.guest, instructions[i]));
				/* The last answer counts. */
				CHECK_OK(gmem_vcpu_answer(s.vcpu, 1));
				CHECK_OK(gmem_vcpu_answer(s.vcpu, n << 40 | 7));
				CHECK_OK(go_on(&s));
				CHECK_EQ(guest_result(&s.guest), n << 40 | 7);
				CHECK_ERR(gmem_vcpu_answer(s.vcpu, 1), -EINVAL);
			}
			/* No answer is 0. */
			begin(&s, instructions[i], NR, GPA, 1, 0);
			CHECK_OK(gmem_vcpu_run(s.vcpu));
			check_asked(&s, GPA, 1, 0);
			CHECK_OK(go_on(&s));
			CHECK_EQ(guest_result(&s.guest), 0);
		}
	}
}

/* No other register changes. */
TEST(registers_are_kept)
{
	struct kvm_regs before, after;
	struct scene s;

	EACH_HC_WAY(&s)
	{
		begin(&s, GUEST_vmcall, NR, GPA, 1, PRIVATE);
		CHECK_OK(gmem_vcpu_run(s.vcpu));
		check_asked(&s, GPA, 1, PRIVATE);
		CHECK_OK(ioctl(s.guest.vcpu, KVM_GET_REGS, &before));
		CHECK_OK(gmem_vcpu_answer(s.vcpu, 5));
		CHECK_OK(go_on(&s));
		CHECK_OK(ioctl(s.guest.vcpu, KVM_GET_REGS, &after));
		before.rax = 5;
		before.rip = after.rip;
		CHECK(!memcmp(&before, &after, sizeof(before)));
	}
}

static void check_answer(struct scene *s, int64_t want, uint64_t nr, uint64_t gpa, uint64_t npages)
{
	for (unsigned int i = 0; i < 2; i++) {
		begin(s, instructions[i], nr, gpa, npages, PRIVATE);
		CHECK_OK(go_on(s));
		CHECK_EQ((int64_t)guest_result(&s->guest), want);
	}
}

/* What KVM answers by itself: linux/kvm_para.h has the numbers. */
TEST_TIMEOUT(answered_without_an_exit, 120)
{
	struct scene s;

	EACH_HC_WAY(&s)
	{
		check_answer(&s, -1000, 99, GPA, 1);
		check_answer(&s, -1000, NR | 1ull << 32, GPA, 1);
		check_answer(&s, 0, 1, GPA, 1);
		check_answer(&s, -22, NR, GPA + 8, 1);
		check_answer(&s, -22, NR, GPA, 0);
		check_answer(&s, -22, NR, GPA, ~0ull);
	}
}

static void *cancel_often(void *arg)
{
	struct scene *s = arg;

	while (!__atomic_load_n(&s->boot[GUEST_BOOT_LEN - 1], __ATOMIC_SEQ_CST)) {
		usleep(2000);
		gmem_vcpu_cancel(s->vcpu);
	}
	return NULL;
}

/* Of a VM that did not ask for them: KVM's answer, or its loop, which the program can still end. */
TEST(not_asked_for)
{
	struct scene_opts o = { .type = GMEM_VM_DEFAULT, .mode = GUEST_KERNEL };
	struct scene s;
	int err, at = 0;
	pthread_t t;

	hc_set_up(&s, &o);
	CHECK(!s.vm->watch.on);
	t = start(cancel_often, &s);
	begin(&s, GUEST_vmcall, NR, GPA, 1, 0);
	while ((err = gmem_vcpu_run(s.vcpu)) == -EINTR && at < 20)
		at = guest_rip(&s.guest) == guest_hypercall_gpa(&s.guest, GUEST_vmcall) ? at + 1 : 0;
	__atomic_store_n(&s.boot[GUEST_BOOT_LEN - 1], 1, __ATOMIC_SEQ_CST);
	join(t);
	printf("a hypercall that is nobody's: %s\n", err ? "executed again for ever" : guest_what(&s.guest));
	if (!err) {
		CHECK(guest_finished(&s.guest));
		CHECK_EQ((int64_t)guest_result(&s.guest), -1000);
	}
	scene_tear_down(&s);
}

/* User code may make none. */
TEST(of_user_code)
{
	struct scene_opts o = { .type = GMEM_VM_DEFAULT, .mode = GUEST_USER, .vm_flags = GMEM_VM_HYPERCALLS };
	struct scene s;

	hc_set_up(&s, &o);
	for (unsigned int i = 0; i < 2; i++) {
		const char *what;

		begin(&s, instructions[i], NR, GPA, 1, 0);
		CHECK_OK(gmem_vcpu_run(s.vcpu));
		what = guest_what(&s.guest);
		printf("%s\n", what);
		if (guest_finished(&s.guest))
			CHECK_EQ((int64_t)guest_result(&s.guest), -EPERM);
		else
			CHECK(strstr(what, "; exception 6, ") || strstr(what, "; exception 13, "));
		guest_settle(&s.guest);
	}
	scene_tear_down(&s);
}

/* In 32-bit code without paging: all values are of 32 bits. */
TEST(of_32_bits)
{
	static const unsigned char code[] = { 0x0f, 0x01, 0xc1, 0xf4 }; /* vmcall, hlt */
	struct scene_opts o = { .type = GMEM_VM_DEFAULT, .mode = GUEST_KERNEL, .vm_flags = GMEM_VM_HYPERCALLS };
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	struct scene s;
	uint64_t base;

	scene_set_up(&s, &o);
	/* KVM that has to write over the instruction forgets the base. */
	base = s.vm->watch.on ? PG : 0;
	CHECK_OK(gmem_file_write(s.file, CODE, code, sizeof(code)));
	CHECK_OK(ioctl(s.guest.vcpu, KVM_GET_SREGS, &sregs));
	sregs.cr0 = 0x11;
	sregs.efer = sregs.cr4 = 0;
	sregs.cs.l = 0;
	sregs.cs.db = 1;
	sregs.cs.base = base;
	CHECK_OK(ioctl(s.guest.vcpu, KVM_SET_SREGS, &sregs));
	regs = (struct kvm_regs){
		.rax = NR,
		.rbx = 6ull << 32 | GPA,
		.rcx = 7ull << 32 | 2,
		.rdx = 8ull << 32 | PRIVATE,
		.rip = GPA + CODE - base,
		.rflags = 2,
	};
	CHECK_OK(ioctl(s.guest.vcpu, KVM_SET_REGS, &regs));
	CHECK_OK(gmem_vcpu_run(s.vcpu));
	check_asked(&s, GPA, 2, PRIVATE);
	CHECK_EQ(s.guest.run->hypercall.longmode, 0);
	CHECK_OK(gmem_vcpu_answer(s.vcpu, ~0ull));
	CHECK_OK(gmem_vcpu_run(s.vcpu));
	CHECK_EQ(exit_of(s.vcpu).reason, KVM_EXIT_HLT);
	CHECK_OK(ioctl(s.guest.vcpu, KVM_GET_REGS, &regs));
	CHECK_EQ(regs.rax, UINT32_MAX);
	CHECK_EQ(regs.rip, GPA + CODE - base + 4);
	scene_tear_down(&s);
}

/* The instruction lies across two pages, which the guest has elsewhere. */
TEST(across_pages)
{
	const uint64_t large = 2 << 20;

	for (size_t i = 0; i < sizeof(hc_ways) / sizeof(hc_ways[0]); i++) {
		for (uint64_t before = 1; before < 3; before++) {
			struct scene_opts o = hc_ways[i];
			struct scene s;
			uint64_t at, n;

			o.len = 3 * large;
			scene_set_up(&s, &o);
			guest_map(&s.guest, GPA + large, GPA + 2 * large);
			at = guest_hypercall_gpa(&s.guest, GUEST_vmcall) - s.guest.code_gpa;
			n = at + before;
			CHECK_OK(gmem_file_write(s.file, large - n, s.boot, n));
			CHECK_OK(gmem_file_write(s.file, 2 * large, s.boot + n, PG - n));
			s.guest.code_gpa = GPA + large - n;
			begin(&s, GUEST_vmcall, NR, GPA, 1, PRIVATE);
			CHECK_OK(gmem_vcpu_run(s.vcpu));
			check_asked(&s, GPA, 1, PRIVATE);
			CHECK_OK(gmem_vcpu_answer(s.vcpu, before));
			CHECK_OK(go_on(&s));
			CHECK_EQ(guest_result(&s.guest), before);
			scene_tear_down(&s);
		}
	}
}

/* KVM cannot write over the instruction there. */
TEST(in_read_only_memory)
{
	struct gmem_memslot rom = {
		.size = sizeof(rom), .slot = 1, .flags = GMEM_SLOT_READONLY, .gpa = GPA + LEN, .len = PG
	};
	struct scene s;

	EACH_HC_WAY(&s)
	{
		if (!s.vm->watch.on) {
			scene_tear_down(&s);
			SKIP("kvm", "KVM makes the exits itself, of its processor's instruction only");
		}
		rom.hva = mmap(NULL, PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(rom.hva != MAP_FAILED);
		memcpy(rom.hva, s.boot, PG);
		CHECK_OK(gmem_vm_set_slot(s.vm, &rom));
		s.guest.code_gpa = GPA + LEN;
		for (unsigned int i = 0; i < 2; i++) {
			for (uint64_t n = 1; n < 4; n++) {
				begin(&s, instructions[i], NR, GPA + n * PG, n, PRIVATE);
				CHECK_OK(gmem_vcpu_run(s.vcpu));
				check_asked(&s, GPA + n * PG, n, PRIVATE);
				CHECK_OK(gmem_vcpu_answer(s.vcpu, n));
				CHECK_OK(go_on(&s));
				CHECK_EQ(guest_result(&s.guest), n);
			}
			check_answer(&s, -1000, 99, GPA, 1);
		}
		CHECK(!memcmp(rom.hva, s.boot, PG));
		CHECK_OK(del_slot(s.vm, 1));
		munmap(rom.hva, PG);
	}
}

/* A guest that waits for an interrupt in front of the instruction is not at it yet. */
TEST_TIMEOUT(waiting_before_it, 120)
{
	struct kvm_mp_state halted, runs = { .mp_state = KVM_MP_STATE_RUNNABLE };
	struct scene s;

	hc_set_up(&s, &hc_ways[1]);
	begin(&s, GUEST_hlt_vmcall, NR, GPA, 1, PRIVATE);
	for (int i = 0; i < 3; i++) {
		uint32_t ran = atomic_load(&kvm_vcpu_of(gmem_cpu_of(s.vcpu))->watched.runs);
		pthread_t t;

		__atomic_store_n(&s.boot[GUEST_BOOT_LEN - 1], 0, __ATOMIC_SEQ_CST);
		/* Until it was looked at a few times, where that is done. */
		do {
			t = start(cancel_often, &s);
			CHECK_ERR(gmem_vcpu_run(s.vcpu), -EINTR);
			__atomic_store_n(&s.boot[GUEST_BOOT_LEN - 1], 1, __ATOMIC_SEQ_CST);
			join(t);
			__atomic_store_n(&s.boot[GUEST_BOOT_LEN - 1], 0, __ATOMIC_SEQ_CST);
		} while (s.vm->watch.on && atomic_load(&kvm_vcpu_of(gmem_cpu_of(s.vcpu))->watched.runs) - ran < 5);
		CHECK_OK(ioctl(s.guest.vcpu, KVM_GET_MP_STATE, &halted));
		CHECK_EQ(halted.mp_state, KVM_MP_STATE_HALTED);
	}
	CHECK_OK(ioctl(s.guest.vcpu, KVM_SET_MP_STATE, &runs));
	/* One cancellation is left, perhaps. */
	if (gmem_vcpu_run(s.vcpu))
		CHECK_OK(gmem_vcpu_run(s.vcpu));
	check_asked(&s, GPA, 1, PRIVATE);
	CHECK_OK(go_on(&s));
	scene_tear_down(&s);
}

/* ---- conversions */

TEST_TIMEOUT(conversion, 120)
{
	struct scene s;

	EACH_HC_WAY(&s)
	{
		bool reaches = hc_ways[way_].type == GMEM_VM_SW_PROTECTED;
		uint64_t value;

		run(&s, GUEST_store8, GPA + PG, 77);
		begin(&s, GUEST_vmcall, NR, GPA + PG, 1, PRIVATE);
		CHECK_OK(gmem_vcpu_run(s.vcpu));
		check_asked(&s, GPA + PG, 1, PRIVATE);
		to_private(s.file, exit_of(s.vcpu).args[0] - GPA, exit_of(s.vcpu).args[1] * PG);
		CHECK_OK(gmem_vcpu_answer(s.vcpu, 0));
		CHECK_OK(go_on(&s));
		CHECK_EQ(guest_result(&s.guest), 0);
		CHECK_ERR(gmem_file_read(s.file, PG, &value, 8), -EACCES);
		if (!reaches) {
			run_err(&s, -EFAULT, GUEST_load8, GPA + PG);
			check_fault(&s, GPA + PG, 0);
			to_shared(s.file, PG, PG);
			CHECK_OK(go_on(&s));
			CHECK_EQ(guest_result(&s.guest), 77);
			continue;
		}
		CHECK_EQ(run(&s, GUEST_load8, GPA + PG), 77);
		run(&s, GUEST_store8, GPA + PG, 78);
		begin(&s, GUEST_vmcall, NR, GPA + PG, 1, 0);
		CHECK_OK(gmem_vcpu_run(s.vcpu));
		check_asked(&s, GPA + PG, 1, 0);
		to_shared(s.file, PG, PG);
		CHECK_OK(go_on(&s));
		CHECK_EQ(guest_result(&s.guest), 0);
		CHECK_OK(gmem_file_read(s.file, PG, &value, 8));
		CHECK_EQ(value, 78);
	}
}

/* ---- the VM */

TEST(options)
{
	struct gmem_vm_opts o = { .size = sizeof(o), .flags = GMEM_VM_HYPERCALLS };
	struct gmem_vm *vm, *mine;

	CHECK_ERR(gmem_vm_create(&o, &vm), -EINVAL);
	/* In the caller's. */
	mine = new_kvm_vm(GMEM_VM_DEFAULT);
	o.flags |= GMEM_VM_KVM;
	o.kvm_vm = gmem_vm_kvm_fd(mine);
	if (gmem_vm_create(&o, &vm))
		SKIP("kvm", "%s", gmem_last_error());
	gmem_vm_free(vm);
	gmem_vm_free(mine);
}

/* A child has no such thread to wait for. */
TEST(forked_child)
{
	struct scene s;
	int status;
	pid_t pid;

	hc_set_up(&s, &hc_ways[0]);
	fflush(NULL);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		CHECK_ERR(gmem_vcpu_run(s.vcpu), -EIO);
		gmem_kvm_hypercalls_close(s.vm);
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK(WIFEXITED(status) && !WEXITSTATUS(status));
	begin(&s, GUEST_vmcall, NR, GPA, 1, 0);
	CHECK_OK(gmem_vcpu_run(s.vcpu));
	check_asked(&s, GPA, 1, 0);
	CHECK_OK(go_on(&s));
	scene_tear_down(&s);
}

#endif

#include "tap_main.h"
