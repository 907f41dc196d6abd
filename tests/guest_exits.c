/* SPDX-License-Identifier: MIT */
/* What gmem relies on of KVM_RUN: how it is left by a signal, by request, and by a hypercall. */
#define TAP_NO_MAIN
#include "guest_util.h"

#include <sched.h>

static const int chips[] = { 0, MACHINE_IRQCHIP | MACHINE_IF };

/* ---- a signal that is blocked in the thread and unblocked in KVM_RUN */

static int handled;

static void on_bus(int sig)
{
	__atomic_fetch_add(&handled, 1, __ATOMIC_SEQ_CST);
}

struct kick {
	struct machine *m;
	pthread_t target;
	uint64_t from; /* the guest has counted on from here when it is kicked; ~0: no matter */
};

static void *kick_main(void *arg)
{
	struct kick *k = arg;

	while (k->from != ~0ull && ram_word(k->m, 0) <= k->from)
		sched_yield();
	CHECK_EQ(pthread_kill(k->target, SIGBUS), 0);
	return NULL;
}

/* One kick, and KVM_RUN ends once, as the guest goes on with what it was at. */
static void kick_once(struct machine *m, uint64_t from)
{
	struct kick k = { m, pthread_self(), from };
	pthread_t thread;
	siginfo_t info;

	CHECK_EQ(pthread_create(&thread, NULL, kick_main, &k), 0);
	do
		CHECK_EQ(guest_run_raw(&m->guest), -EINTR);
	while (!bus_pending());
	CHECK_EQ(m->run->exit_reason, KVM_EXIT_INTR);
	CHECK(take_bus(&info));
	CHECK(info.si_code == SI_TKILL || info.si_code == SI_USER); /* glibc writes one over the other */
	CHECK_EQ(info.si_pid, getpid());
	CHECK_EQ(pthread_join(thread, NULL), 0);
	CHECK(!take_bus(&info));
}

static void cancel(enum guest_mode mode, int flags)
{
	struct machine m;

	machine_make(&m, mode, flags);
	machine_signals(&m);
	guest_call(&m.guest, GUEST_hammer, RAM_GPA, 0);
	for (int i = 0; i < 20; i++)
		kick_once(&m, ram_word(&m, 0));
	guest_call(&m.guest, GUEST_forever);
	for (int i = 0; i < 20; i++)
		kick_once(&m, ~0ull);
	CHECK(guest_rip(&m.guest) - guest_routine_gpa(&m.guest, GUEST_forever) < 4);
	/* And from there to something else. */
	ram_set_word(&m, 8, 5);
	CHECK_EQ(guest_do(&m.guest, GUEST_load8, RAM_GPA + 8), 5);
	machine_unmake(&m);
}

TEST(a_blocked_signal_ends_a_run)
{
	struct sigaction action = { .sa_handler = on_bus };

	CHECK_EQ(sigaction(SIGBUS, &action, NULL), 0);
	for (unsigned int i = 0; i < 2; i++) {
		cancel(GUEST_USER, chips[i]);
		cancel(GUEST_KERNEL, chips[i]);
	}
	CHECK_EQ(__atomic_load_n(&handled, __ATOMIC_SEQ_CST), 0);
}

/* Pending before KVM_RUN, it keeps the guest from running at all, until it is taken. */
TEST(a_pending_signal_lets_no_guest_run)
{
	for (int mode = GUEST_USER; mode <= GUEST_KERNEL; mode++) {
		struct machine m;
		siginfo_t info;

		machine_make(&m, mode, 0);
		machine_signals(&m);
		guest_call(&m.guest, GUEST_store8, RAM_GPA, 7);
		CHECK_EQ(pthread_kill(pthread_self(), SIGBUS), 0);
		for (int i = 0; i < 10; i++)
			CHECK_EQ(guest_run_raw(&m.guest), -EINTR);
		CHECK_EQ(guest_rip(&m.guest), guest_routine_gpa(&m.guest, GUEST_store8));
		CHECK_EQ(ram_word(&m, 0), 0);
		CHECK(take_bus(&info));
		CHECK_OK(guest_run_raw(&m.guest));
		CHECK(guest_finished(&m.guest));
		CHECK_EQ(ram_word(&m, 0), 7);
		machine_unmake(&m);
	}
}

TEST(immediate_exit)
{
	for (int mode = GUEST_USER; mode <= GUEST_KERNEL; mode++) {
		struct machine m;

		machine_make(&m, mode, 0);
		machine_signals(&m);
		guest_call(&m.guest, GUEST_store8, RAM_GPA, 7);
		m.run->immediate_exit = 1;
		for (int i = 0; i < 10; i++)
			CHECK_EQ(guest_run_raw(&m.guest), -EINTR);
		CHECK(!bus_pending());
		CHECK_EQ(guest_rip(&m.guest), guest_routine_gpa(&m.guest, GUEST_store8));
		CHECK_EQ(ram_word(&m, 0), 0);
		m.run->immediate_exit = 0;
		CHECK_OK(guest_run_raw(&m.guest));
		CHECK(guest_finished(&m.guest));
		CHECK_EQ(ram_word(&m, 0), 7);
		machine_unmake(&m);
	}
}

/* ---- registers of a routine that was interrupted */

#ifdef __x86_64__

/* They may be read and written back. What KVM makes of IOPL is for nobody to rely on. */
TEST(registers_written_back)
{
	for (int mode = GUEST_USER; mode <= GUEST_KERNEL; mode++) {
		struct kvm_regs regs;
		struct machine m;

		machine_make(&m, mode, 0);
		machine_signals(&m);
		guest_call(&m.guest, GUEST_hammer, RAM_GPA, 0);
		kick_once(&m, 0);
		CHECK_OK(ioctl(m.vcpu, KVM_GET_REGS, &regs));
		printf("%s: IOPL 3 reads as %llu\n", mode ? "kernel" : "user", regs.rflags >> 12 & 3);
		CHECK_EQ(regs.rdi, RAM_GPA);
		regs.rsi = 0;
		regs.rip = guest_routine_gpa(&m.guest, GUEST_load8);
		CHECK_OK(ioctl(m.vcpu, KVM_SET_REGS, &regs));
		CHECK_OK(guest_run_raw(&m.guest));
		CHECK(guest_finished(&m.guest));
		CHECK_EQ(guest_result(&m.guest), ram_word(&m, 0));
		machine_unmake(&m);
	}
}

/* ---- a hypercall that is the program's to answer */

#define PORT_HYPERCALL 0x53
#define ANSWER 0x77
#define ENOUGH 50 /* kicks in a row that find the guest at the same instruction */

static const uint64_t hc_args[] = { RAM_GPA + PG, 3, 0x10 };

/* In the place of the instruction, `out` is an exit at least; three bytes as it has. */
static void answer_by_out(struct machine *m, uint64_t gpa)
{
	static const unsigned char out[] = { 0xe6, PORT_HYPERCALL, 0x90 };
	unsigned char *at = m->boot + (gpa - BOOT_GPA);
	struct kvm_regs regs;

	CHECK(at[0] == 0x0f && at[1] == 0x01 && (at[2] == 0xc1 || at[2] == 0xd9));
	memcpy(at, out, sizeof(out));
	CHECK_OK(guest_run_raw(&m->guest));
	CHECK_EQ(m->run->exit_reason, KVM_EXIT_IO);
	CHECK_EQ(m->run->io.port, PORT_HYPERCALL);
	CHECK_OK(ioctl(m->vcpu, KVM_GET_REGS, &regs));
	CHECK_EQ(regs.rax, KVM_HC_MAP_GPA_RANGE);
	CHECK_EQ(regs.rbx, hc_args[0]);
	CHECK_EQ(regs.rcx, hc_args[1]);
	CHECK_EQ(regs.rdx, hc_args[2]);
	regs.rax = ANSWER;
	CHECK_OK(ioctl(m->vcpu, KVM_SET_REGS, &regs));
}

static void answer_exit(struct machine *m)
{
	CHECK_EQ(m->run->hypercall.nr, KVM_HC_MAP_GPA_RANGE);
	for (unsigned int i = 0; i < 3; i++)
		CHECK_EQ(m->run->hypercall.args[i], hc_args[i]);
	m->run->hypercall.ret = ANSWER;
}

static void check_refused(struct machine *m, const char *name)
{
	const char *what = guest_what(&m->guest);

	if (guest_finished(&m->guest)) {
		printf("user, %s: answered by KVM with %lld\n", name, (long long)guest_result(&m->guest));
		CHECK_EQ(guest_result(&m->guest), -EPERM);
	} else {
		printf("user, %s: %s\n", name, what);
		CHECK(strstr(what, "; exception 6, ") || strstr(what, "; exception 13, "));
	}
}

/*
 * User code, which may not, is answered -EPERM, or has an exception if the instruction is not its processor's. Kernel
 * code is an exit, or at an instruction that KVM executes again for ever.
 */
static void hypercall(enum guest_mode mode, enum guest_routine routine)
{
	const char *name = routine == GUEST_vmcall ? "vmcall" : "vmmcall";
	const char *who = mode == GUEST_USER ? "user" : "kernel";
	struct machine m;
	struct kicker k;
	siginfo_t info;
	uint64_t gpa;
	int err, at = 0;

	machine_make(&m, mode, 0);
	if (!(gmem_kvm_check(m.vm, KVM_CAP_EXIT_HYPERCALL) & 1 << KVM_HC_MAP_GPA_RANGE))
		SKIP("kvm", "no hypercall for conversion (KVM_CAP_EXIT_HYPERCALL)");
	CHECK_OK(gmem_kvm_cap_enable(m.vm, KVM_CAP_EXIT_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE));
	machine_signals(&m);
	guest_call(&m.guest, routine, KVM_HC_MAP_GPA_RANGE, hc_args[0], hc_args[1], hc_args[2]);
	gpa = guest_hypercall_gpa(&m.guest, routine);
	kicker_start(&k);
	while ((err = guest_run_raw(&m.guest)) == -EINTR && at < ENOUGH) {
		take_bus(&info);
		/* User code is never stuck: a kick a little too early each time only delays it. */
		if (mode == GUEST_KERNEL)
			at = guest_rip(&m.guest) == gpa ? at + 1 : 0;
	}
	kicker_stop(&k);
	if (err == -EINTR) {
		printf("%s, %s: executed again for ever\n", who, name);
		answer_by_out(&m, gpa);
	} else if (!err && m.run->exit_reason == KVM_EXIT_HYPERCALL) {
		CHECK_EQ(mode, GUEST_KERNEL);
		printf("%s, %s: KVM_EXIT_HYPERCALL\n", who, name);
		answer_exit(&m);
	} else {
		CHECK_OK(err);
		CHECK_EQ(mode, GUEST_USER);
		check_refused(&m, name);
		machine_unmake(&m);
		return;
	}
	CHECK_OK(guest_run_raw(&m.guest));
	CHECK(guest_finished(&m.guest));
	CHECK_EQ(guest_result(&m.guest), ANSWER);
	machine_unmake(&m);
}

TEST(hypercall_of_user_code)
{
	hypercall(GUEST_USER, GUEST_vmcall);
	hypercall(GUEST_USER, GUEST_vmmcall);
}

TEST(hypercall_of_kernel_code)
{
	hypercall(GUEST_KERNEL, GUEST_vmcall);
	hypercall(GUEST_KERNEL, GUEST_vmmcall);
}

#endif
