/* SPDX-License-Identifier: MIT */
/* Ends of KVM_RUN that are no exit of a guest's memory: which are the caller's, and which are not. */
#include <fcntl.h>
#include <signal.h>

#include "kvm_reach.h"
#include "slot_util.h"

/* ---- signals that the thread blocks */

static void block_bus(void)
{
	sigset_t bus;

	sigemptyset(&bus);
	sigaddset(&bus, SIGBUS);
	CHECK_EQ(pthread_sigmask(SIG_BLOCK, &bus, NULL), 0);
}

/* Whoever blocks it takes it himself. */
static int take_bus(void)
{
	static const struct timespec now;
	siginfo_t info;
	sigset_t bus;

	sigemptyset(&bus);
	sigaddset(&bus, SIGBUS);
	if (sigtimedwait(&bus, &info, &now) != SIGBUS)
		return 0;
	CHECK_EQ(info.si_code, SI_QUEUE);
	return info.si_value.sival_int;
}

static void send_bus(pthread_t to)
{
	CHECK_EQ(pthread_sigqueue(to, SIGBUS, (union sigval){ .sival_int = 77 }), 0);
}

/* A SIGBUS that was there before keeps no guest from running, and is there afterwards. */
TEST_TIMEOUT(sigbus_that_is_blocked, 120)
{
	struct scene s;

	block_bus();
	EACH_WAY(&s)
	{
		send_bus(pthread_self());
		run(&s, GUEST_store8, GPA, 5);
		CHECK_EQ(file_word(s.file, 0), 5);
		/* Nor does it hide what is the guest's. */
		CHECK_OK(gmem_file_poison(s.file, PG, PG));
		run_err(&s, -EHWPOISON, GUEST_load8, GPA + PG);
		CHECK_EQ(exit_of(s.vcpu).gpa, GPA + PG);
		CHECK_OK(gmem_file_punch(s.file, PG, PG));
		CHECK_OK(go_on(&s));
		CHECK_EQ(take_bus(), 77);
		CHECK_EQ(take_bus(), 0);
	}
}

struct nuisance {
	pthread_t to;
	struct gmem_vcpu *vcpu;
	_Atomic bool cancelled;
};

static void *send_bus_and_cancel(void *arg)
{
	struct nuisance *n = arg;

	usleep(20000);
	send_bus(n->to);
	/* Time to come out for that. */
	usleep(20000);
	atomic_store(&n->cancelled, true);
	gmem_vcpu_cancel(n->vcpu);
	return NULL;
}

TEST_TIMEOUT(sigbus_that_is_blocked_ends_no_run, 120)
{
	struct scene s;

	block_bus();
	EACH_WAY(&s)
	{
		struct nuisance n = { .to = pthread_self(), .vcpu = s.vcpu };
		pthread_t t = start(send_bus_and_cancel, &n);

		begin(&s, GUEST_forever, 0);
		CHECK_ERR(gmem_vcpu_run(s.vcpu), -EINTR);
		CHECK(atomic_load(&n.cancelled));
		join(t);
		CHECK_EQ(take_bus(), 77);
		CHECK_EQ(take_bus(), 0);
	}
}

/* ---- processors that are started by others */

#define APIC 0xfee00000ull
#define SPURIOUS 0xf0
#define COMMAND 0x300
#define COMMAND_TO 0x310
#define INIT 0x4500
#define STARTUP 0x4600

struct second {
	struct gmem_vcpu *vcpu;
	_Atomic int err;
	struct gmem_exit exit;
};

static void *run_second(void *arg)
{
	struct second *ap = arg;

	ap->err = gmem_vcpu_run(ap->vcpu);
	ap->exit = exit_of(ap->vcpu);
	return NULL;
}

static void command(struct scene *s, uint32_t what)
{
	run(s, GUEST_store4, APIC + COMMAND_TO, 1 << 24);
	run(s, GUEST_store4, APIC + COMMAND, what);
}

static uint32_t mp_state(struct gmem_vcpu *vcpu)
{
	struct kvm_mp_state state;

	CHECK_OK(ioctl(gmem_vcpu_kvm_fd(vcpu), KVM_GET_MP_STATE, &state));
	return state.mp_state;
}

/* It waits in gmem_vcpu_run() from before INIT until it has begun, where the caller is told of nothing in between. */
TEST_TIMEOUT(processor_that_another_starts, 120)
{
	for (enum guest_mode mode = GUEST_USER; mode <= GUEST_KERNEL; mode++) {
		struct scene_opts o = { .type = GMEM_VM_DEFAULT, .irqchip = true, .mode = mode };
		/* Real mode, at 0x8000: out %al, $0x51; hlt */
		static const unsigned char code[] = { 0xe6, GUEST_PORT_DONE, 0xf4 };
		struct second ap = { .err = 1 };
		struct gmem_file *low;
		struct scene s;
		pthread_t t;

		scene_set_up(&s, &o);
		low = make_file(16 * PG, 0);
		CHECK_OK(set_slot(s.vm, 1, 0, 16 * PG, low, 0));
		CHECK_OK(gmem_file_write(low, 8 * PG, code, sizeof(code)));
		ap.vcpu = new_kvm_vcpu(s.vm, 1);
		CHECK_EQ(mp_state(ap.vcpu), KVM_MP_STATE_UNINITIALIZED);
		t = start(run_second, &ap);
		run(&s, GUEST_store4, APIC + SPURIOUS, 0x1ff);
		command(&s, INIT);
		/* Time to be told of something. */
		for (int i = 0; i < 50 && ap.err == 1; i++)
			usleep(1000);
		command(&s, STARTUP | 8);
		join(t);
		CHECK_EQ(ap.err, 0);
		CHECK_EQ(ap.exit.reason, KVM_EXIT_IO);
		gmem_vcpu_free(ap.vcpu);
		scene_tear_down(&s);
		gmem_file_free(low);
	}
}

TEST_TIMEOUT(processor_that_nobody_starts, 120)
{
	struct scene_opts o = { .type = GMEM_VM_DEFAULT, .irqchip = true };
	struct second ap = { .err = 1 };
	struct scene s;
	pthread_t t;

	scene_set_up(&s, &o);
	ap.vcpu = new_kvm_vcpu(s.vm, 1);
	t = start(run_second, &ap);
	usleep(20000);
	gmem_vcpu_cancel(ap.vcpu);
	join(t);
	CHECK_EQ(ap.err, -EINTR);
	((struct kvm_run *)gmem_vcpu_kvm_run(ap.vcpu))->immediate_exit = 1;
	CHECK_ERR(gmem_vcpu_run(ap.vcpu), -EINTR);
	gmem_vcpu_free(ap.vcpu);
	scene_tear_down(&s);
}

/* ---- instructions that KVM cannot emulate */

#define NOWHERE (5ull << 30) /* no slot */

/* An instruction in no slot is no matter of any page's that is: KVM's own words are told. */
static void check_fetch_from_nowhere(struct scene *s)
{
	s->guest.code_gpa = NOWHERE;
	for (int i = 0; i < 2; i++) {
		begin(s, GUEST_load8, GPA);
		CHECK_OK(gmem_vcpu_run(s->vcpu));
		CHECK(exit_of(s->vcpu).reason != GMEM_EXIT_MEMORY_FAULT);
		if (s->guest.mode == GUEST_KERNEL)
			CHECK_EQ(exit_of(s->vcpu).reason, KVM_EXIT_INTERNAL_ERROR);
	}
	s->guest.code_gpa = BOOT_GPA;
}

TEST_TIMEOUT(code_in_no_slot, 120)
{
	struct scene s;

	EACH_DEFAULT_WAY(&s)
	{
		struct gmem_file *low = make_file(LEN, 0);

		CHECK_OK(set_slot(s.vm, 1, 0, LEN, low, 0));
		to_private(low, 0, PG);
		check_fetch_from_nowhere(&s);
		CHECK_OK(del_slot(s.vm, 1));
		gmem_file_free(low);
	}
}

TEST_TIMEOUT(code_in_no_slot_after_a_private_page, 120)
{
	struct scene s;

	EACH_DEFAULT_WAY(&s)
	{
		to_private(s.file, 5 * PG, PG);
		run_err(&s, -EFAULT, GUEST_load8, GPA + 5 * PG);
		to_shared(s.file, 5 * PG, PG);
		CHECK_OK(go_on(&s));
		to_private(s.file, 5 * PG, PG);
		check_fetch_from_nowhere(&s);
	}
}

/* ---- pages that need not be met */

/* The guest touches each of the pages, which have been brought in before; it comes out at none. */
static void check_pre_faulted(struct scene *s, uint64_t gpa)
{
	uint64_t done, faults;

	CHECK_OK(gmem_vcpu_pre_fault(s->vcpu, gpa, LEN, &done));
	CHECK_EQ(done, LEN);
	faults = faults_of(s->vm);
	CHECK_EQ(run(s, GUEST_touch, gpa, LEN / PG, PG, 5), LEN / PG);
	CHECK_EQ(faults_of(s->vm), faults);
}

TEST_TIMEOUT(pages_that_are_brought_in_before, 120)
{
	static const uint64_t bitmap[LEN / PG / 64];
	struct scene s;

	EACH_WAY(&s)
	{
		struct supplier sup = { .calls = 0 };
		struct gmem_supply *supply = new_supply(s.file, 0, LEN, bring_in, &sup);
		char *mem = plain_memory(LEN, PROT_READ | PROT_WRITE);
		struct gmem_memslot m = {
			.size = sizeof(m),
			.slot = 1,
			.flags = GMEM_SLOT_USERFAULT,
			.gpa = GPA + 2 * LEN,
			.len = LEN,
			.hva = mem,
			.userfault_bitmap = bitmap,
		};

		check_pre_faulted(&s, GPA);
		CHECK_EQ(atomic_load(&sup.calls), LEN / PG);
		CHECK_EQ(file_word(s.file, LEN - PG), 5 + LEN / PG - 1);
		end_supply(s.file, supply);
		CHECK_OK(gmem_vm_set_slot(s.vm, &m));
		check_pre_faulted(&s, GPA + 2 * LEN);
		CHECK_EQ(mem[PG], 6);
		CHECK_OK(del_slot(s.vm, 1));
		munmap(mem, LEN);
	}
}

/* ---- what a machine of the caller's is made of */

static bool no_dev_kvm;

int __real_gmem_kvm_open(void);
int __wrap_gmem_kvm_open(void);

int __wrap_gmem_kvm_open(void)
{
	return no_dev_kvm ? -EACCES : __real_gmem_kvm_open();
}

static int create_vm(int kvm_vm, struct gmem_vm **vm)
{
	struct gmem_vm_opts o = { .size = sizeof(o), .type = GMEM_VM_DEFAULT, .flags = GMEM_VM_KVM, .kvm_vm = kvm_vm };

	return gmem_vm_create(&o, vm);
}

static int create_vcpu(struct gmem_vm *vm, int kvm_vcpu, struct gmem_vcpu **vcpu)
{
	struct gmem_vcpu_opts o = { .size = sizeof(o), .kind = GMEM_VCPU_KVM, .kvm_vcpu = kvm_vcpu };

	return gmem_vcpu_create(vm, &o, vcpu);
}

TEST(descriptors_that_are_none_of_kvms)
{
	struct gmem_vm *vm = new_kvm_vm(GMEM_VM_DEFAULT), *other;
	int kvm = gmem_kvm_open(), null = open("/dev/null", O_RDWR | O_CLOEXEC);
	int fd = gmem_kvm_vcpu_create(gmem_vm_kvm_fd(vm), 0);
	struct gmem_vcpu *vcpu;

	CHECK(kvm >= 0 && null >= 0 && fd >= 0);
	CHECK_ERR(create_vm(null, &other), -EBADF);
	CHECK_ERR(create_vm(kvm, &other), -EBADF);
	CHECK_ERR(create_vm(fd, &other), -EBADF);
	CHECK_ERR(create_vm(999, &other), -EBADF);
	CHECK_ERR(create_vcpu(vm, null, &vcpu), -EBADF);
	CHECK_ERR(create_vcpu(vm, kvm, &vcpu), -EBADF);
	CHECK_ERR(create_vcpu(vm, gmem_vm_kvm_fd(vm), &vcpu), -EBADF);
	CHECK_ERR(create_vcpu(vm, 999, &vcpu), -EBADF);
	CHECK_OK(create_vcpu(vm, fd, &vcpu));
	gmem_vcpu_free(vcpu);
	CHECK_OK(create_vm(gmem_vm_kvm_fd(vm), &other));
	gmem_vm_free(other);
	gmem_vm_free(vm);
	close(fd);
	close(null);
	close(kvm);
}

/* A program that has been given a machine and a vCPU, and has no way to /dev/kvm. */
TEST(without_dev_kvm)
{
	int kvm, kvm_vm, kvm_vcpu, len;
	struct gmem_vcpu *vcpu;
	struct gmem_vm *vm;
	char byte;

	need_kvm();
	kvm = gmem_kvm_open();
	kvm_vm = gmem_kvm_vm_create(kvm, 0);
	kvm_vcpu = gmem_kvm_vcpu_create(kvm_vm, 0);
	len = gmem_kvm_run_len(kvm);
	CHECK(kvm_vm >= 0 && kvm_vcpu >= 0 && len > 0);
	no_dev_kvm = true;
	CHECK_OK(create_vm(kvm_vm, &vm));
	CHECK_OK(create_vcpu(vm, kvm_vcpu, &vcpu));
	/* All of it, and no more. */
	CHECK(gmem_sys_peek(&byte, (char *)gmem_vcpu_kvm_run(vcpu) + len - 1, 1) == 1);
	CHECK(gmem_sys_peek(&byte, (char *)gmem_vcpu_kvm_run(vcpu) + len, 1) != 1);
	gmem_vcpu_free(vcpu);
	gmem_vm_free(vm);
	close(kvm_vcpu);
	close(kvm_vm);
	close(kvm);
}

#include "tap_main.h"
