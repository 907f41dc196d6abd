/* SPDX-License-Identifier: MIT */
#include "sys/kvm_hypercall.h"

#include <errno.h>

#ifdef __x86_64__

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/range.h"
#include "sys/call.h"
#include "sys/kvm.h"
#include "sys/uapi.h"

#define CR0_PE 1ull
#define EFER_LMA 0x400ull
#define RFLAGS_VM 0x20000ull

static unsigned int cpl(const struct kvm_regs *regs, const struct kvm_sregs *sregs)
{
	if (!(sregs->cr0 & CR0_PE))
		return 0;
	return regs->rflags & RFLAGS_VM ? 3 : sregs->ss.dpl;
}

/* Setting registers drops an exception that waits; and the shadow of the instruction before is KVM's to end. */
static bool nothing_before(int vcpu)
{
	struct kvm_vcpu_events events;
	struct kvm_mp_state state;

	if (gmem_sys_ioctl(vcpu, KVM_GET_MP_STATE, &state) || gmem_sys_ioctl(vcpu, KVM_GET_VCPU_EVENTS, &events))
		return false;
	return state.mp_state == KVM_MP_STATE_RUNNABLE && !events.exception.injected && !events.exception.pending &&
	       !events.interrupt.injected && !events.interrupt.shadow && !events.nmi.injected;
}

int gmem_kvm_next(int vcpu, struct gmem_kvm_next *ret)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	int err = gmem_sys_ioctl(vcpu, KVM_GET_REGS, &regs);
	bool bits64;

	if (!err)
		err = gmem_sys_ioctl(vcpu, KVM_GET_SREGS, &sregs);
	if (err)
		return err;
	if (cpl(&regs, &sregs) || !nothing_before(vcpu))
		return -EAGAIN;
	bits64 = sregs.efer & EFER_LMA && sregs.cs.l;
	*ret = (struct gmem_kvm_next){
		.rip = regs.rip,
		.protected_mode = sregs.cr0 & CR0_PE,
		.mask = bits64 ? UINT64_MAX : UINT32_MAX,
	};
	ret->linear = (bits64 ? regs.rip : sregs.cs.base + regs.rip) & ret->mask;
	ret->nr = regs.rax & ret->mask;
	ret->args[0] = regs.rbx & ret->mask;
	ret->args[1] = regs.rcx & ret->mask;
	ret->args[2] = regs.rdx & ret->mask;
	ret->args[3] = regs.rsi & ret->mask;
	return 0;
}

int gmem_kvm_next_gpa(int vcpu, const struct gmem_kvm_next *next, unsigned int i, uint64_t *ret_gpa)
{
	return gmem_kvm_translate(vcpu, (next->linear + i) & next->mask, ret_gpa);
}

/* KVM takes either processor's instruction, Intel's anywhere and AMD's in protected mode. */
bool gmem_kvm_is_hypercall(const struct gmem_kvm_next *next, const unsigned char bytes[GMEM_HYPERCALL_LEN])
{
	static const unsigned char vmcall[GMEM_HYPERCALL_LEN] = { 0x0f, 0x01, 0xc1 };
	static const unsigned char vmmcall[GMEM_HYPERCALL_LEN] = { 0x0f, 0x01, 0xd9 };

	return !memcmp(bytes, vmcall, GMEM_HYPERCALL_LEN) ||
	       (next->protected_mode && !memcmp(bytes, vmmcall, GMEM_HYPERCALL_LEN));
}

int gmem_kvm_hypercall_return(int vcpu, const struct gmem_kvm_next *next, uint64_t value)
{
	struct kvm_regs regs;
	int err = gmem_sys_ioctl(vcpu, KVM_GET_REGS, &regs);

	if (err || regs.rip != next->rip)
		return err;
	regs.rax = value & next->mask;
	regs.rip = (regs.rip + GMEM_HYPERCALL_LEN) & next->mask;
	return gmem_sys_ioctl(vcpu, KVM_SET_REGS, &regs);
}

/* ---- which KVM this is */

/* It has come out so often, and has had so much of the processor, and still is where it began. */
#define KICKS 4
#define MS 1000000
#define ENOUGH_NS (4 * MS)
#define KICKS_AT_MOST 2000 /* where time is not accounted */

struct trial {
	int vcpu;
	_Atomic bool over;
	int ret;
};

static uint64_t thread_time(void)
{
	struct timespec t = { 0 };

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000 * MS + (uint64_t)t.tv_nsec;
}

/* All signals are blocked but in KVM_RUN, where SIGBUS is not. */
static void *run_trial(void *arg)
{
	struct trial *t = arg;
	uint64_t begin = thread_time();
	unsigned int kicks = 0;
	sigset_t bus, others;
	siginfo_t info;
	int err;

	sigemptyset(&bus);
	sigaddset(&bus, SIGBUS);
	sigfillset(&others);
	sigdelset(&others, SIGBUS);
	err = gmem_kvm_signal_mask(t->vcpu, &others);
	if (!err) {
		while ((err = gmem_kvm_run(t->vcpu)) == -EINTR) {
			(void)sigtimedwait(&bus, &info, &(struct timespec){ 0 });
			if ((++kicks >= KICKS && thread_time() - begin >= ENOUGH_NS) || kicks == KICKS_AT_MOST)
				break;
		}
	}
	/* A KVM that cannot run it at all does not run it for ever. */
	t->ret = err == -EINTR;
	atomic_store(&t->over, true);
	return NULL;
}

static int try_in_thread(struct trial *t)
{
	sigset_t all, old;
	pthread_t thread;
	int err;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = -pthread_create(&thread, NULL, run_trial, t);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (err)
		return err;
	while (!atomic_load(&t->over)) {
		nanosleep(&(struct timespec){ .tv_nsec = MS }, NULL);
		pthread_kill(thread, SIGBUS);
	}
	pthread_join(thread, NULL);
	return t->ret;
}

/* Flat 32-bit protected mode, from address 0 on. */
static int set_registers(int vcpu)
{
	struct kvm_segment segment = { .limit = ~0u, .selector = 16, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1 };
	struct kvm_regs regs = { .rax = KVM_HC_MAP_GPA_RANGE, .rcx = 1, .rflags = 2 };
	struct kvm_sregs sregs;
	int err = gmem_sys_ioctl(vcpu, KVM_GET_SREGS, &sregs);

	if (err)
		return err;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = segment;
	segment.type = 11;
	segment.selector = 8;
	sregs.cs = segment;
	sregs.cr0 |= CR0_PE;
	err = gmem_sys_ioctl(vcpu, KVM_SET_SREGS, &sregs);
	return err ? err : gmem_sys_ioctl(vcpu, KVM_SET_REGS, &regs);
}

static int try_vm(int vm, void *page)
{
	static const unsigned char code[] = { 0x0f, 0x01, 0xc1, 0xf4 }; /* vmcall, hlt */
	struct trial t = { .vcpu = -1 };
	int ret;

	memcpy(page, code, sizeof(code));
	ret = gmem_kvm_cap_enable(vm, KVM_CAP_EXIT_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE);
	if (!ret)
		ret = gmem_kvm_plain_slot_set(vm, 0, 0, 0, GMEM_PAGE_SIZE, page);
	if (!ret)
		ret = t.vcpu = gmem_kvm_vcpu_create(vm, 0);
	if (ret >= 0)
		ret = set_registers(t.vcpu);
	if (!ret)
		ret = try_in_thread(&t);
	if (t.vcpu >= 0)
		close(t.vcpu);
	return ret;
}

int gmem_kvm_hypercall_spins(void)
{
	int kvm = gmem_kvm_open(), vm = kvm < 0 ? kvm : gmem_kvm_vm_create(kvm, 0), ret = vm;
	void *page;

	if (vm >= 0) {
		page = mmap(NULL, GMEM_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		ret = page == MAP_FAILED ? -errno : try_vm(vm, page);
		close(vm);
		if (page != MAP_FAILED)
			munmap(page, GMEM_PAGE_SIZE);
	}
	if (kvm >= 0)
		close(kvm);
	return ret;
}

#else

int gmem_kvm_next(int vcpu, struct gmem_kvm_next *ret)
{
	return -EOPNOTSUPP;
}

int gmem_kvm_next_gpa(int vcpu, const struct gmem_kvm_next *next, unsigned int i, uint64_t *ret_gpa)
{
	return -EOPNOTSUPP;
}

bool gmem_kvm_is_hypercall(const struct gmem_kvm_next *next, const unsigned char bytes[GMEM_HYPERCALL_LEN])
{
	return false;
}

int gmem_kvm_hypercall_return(int vcpu, const struct gmem_kvm_next *next, uint64_t value)
{
	return -EOPNOTSUPP;
}

int gmem_kvm_hypercall_spins(void)
{
	return 0;
}

#endif
