/* SPDX-License-Identifier: MIT */
/*
 * Hypercalls of guests on KVM.
 *
 * KVM makes an exit of them, and nothing is done here; or it is one that executes the instruction for ever
 * (sys/kvm_hypercall.h). Then the VM has a thread that kicks those of its vCPUs out of KVM_RUN that have been in the
 * same one for some ticks. A vCPU that finds itself at a hypercall makes KVM's exit, or gives KVM's answer. Whether KVM
 * has met the instruction yet does not matter: nothing of it has been done, and it is done here, once. Going on behind
 * it is one call, made when its answer is known.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "sys/futex.h"
#include "sys/kvm.h"
#include "sys/uapi.h"
#include "vm/kvm_vcpu.h"

#define TICK_NS 1000000
#define SHORT_TICK_NS 100000
#define SHORT_TICKS 100 /* after a hypercall: they seldom come alone */
#define PATIENCE 7 /* ticks, for a guest that was looked at in vain */
#define QUIET 100 /* ticks without a guest, after which the watcher sleeps until one runs */

/* What KVM answers: linux/kvm_para.h. */
#define HC_VAPIC_POLL_IRQ 1
#define HC_EINVAL 22ll
#define HC_ENOSYS 1000ll

/* ---- the watcher */

/* After so many ticks. For how many it need not be looked at again. */
static uint32_t tick_vcpu(struct kvm_vcpu *v, uint32_t ticks)
{
	struct kvm_watched *w = &v->watched;
	uint32_t runs = atomic_load(&w->runs), patience = atomic_load(&w->patience);

	w->ticks = runs == w->seen ? w->ticks + ticks : 0;
	w->seen = runs;
	if (w->ticks <= patience)
		return patience + 1 - w->ticks;
	gmem_kvm_vcpu_kick(&v->cpu);
	return 1;
}

/* The same of all; 0: no guest runs. */
static uint32_t tick(struct gmem_vm *vm, uint32_t ticks)
{
	uint32_t next = 0;

	pthread_mutex_lock(&vm->vcpus_lock);
	for (struct gmem_cpu *cpu = vm->vcpus; cpu; cpu = cpu->next) {
		struct kvm_vcpu *v = kvm_vcpu_of(cpu);
		uint32_t n = atomic_load(&v->whereabouts) != OUTSIDE ? tick_vcpu(v, ticks) : 0;

		if (n && (!next || n < next))
			next = n;
	}
	pthread_mutex_unlock(&vm->vcpus_lock);
	return next;
}

/* Pairs with gmem_kvm_watch(): either that vCPU is seen inside, or it sees that we sleep. */
static void sleep_long(struct gmem_vm *vm)
{
	struct gmem_hypercall_watch *w = &vm->watch;

	atomic_store(&w->asleep, 1);
	if (!tick(vm, 0) && !atomic_load(&w->over))
		(void)gmem_futex_wait(&w->asleep, 1, GMEM_FUTEX_FOR_EVER);
	atomic_store(&w->asleep, 0);
}

/* One short tick, if it is to be. */
static bool is_short(struct gmem_hypercall_watch *w)
{
	uint32_t soon = atomic_load(&w->soon);

	return soon && atomic_compare_exchange_strong(&w->soon, &soon, soon - 1);
}

static void *watch(void *arg)
{
	struct gmem_vm *vm = arg;
	uint32_t quiet = 0, ticks = 1, next;

	while (!atomic_load(&vm->watch.over)) {
		uint64_t ns = ticks * TICK_NS;

		if (is_short(&vm->watch)) {
			ticks = 1;
			ns = SHORT_TICK_NS;
		}
		(void)gmem_futex_wait(&vm->watch.over, 0, ns);
		next = tick(vm, ticks);
		ticks = next ? next : 1;
		quiet = next ? 0 : quiet + 1;
		if (quiet >= QUIET) {
			sleep_long(vm);
			quiet = 0;
		}
	}
	return NULL;
}

static void wake(struct gmem_hypercall_watch *w)
{
	if (!atomic_load(&w->asleep))
		return;
	atomic_store(&w->asleep, 0);
	gmem_futex_wake(&w->asleep);
}

static int start(struct gmem_vm *vm)
{
	sigset_t all, old;
	int err;

	/* The caller's signals are for the caller's threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = -pthread_create(&vm->watch.thread, NULL, watch, vm);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	vm->watch.on = !err;
	return err ? gmem_err_sys(err, "gmem_vm_create: a thread") : 0;
}

int gmem_kvm_hypercalls_open(struct gmem_vm *vm)
{
	int ret;

	if (!(gmem_kvm_check(vm->kvm, KVM_CAP_EXIT_HYPERCALL) & 1 << KVM_HC_MAP_GPA_RANGE))
		return gmem_err(-EOPNOTSUPP, "gmem_vm_create: GMEM_VM_HYPERCALLS: KVM has no KVM_CAP_EXIT_HYPERCALL");
	ret = gmem_kvm_cap_enable(vm->kvm, KVM_CAP_EXIT_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE);
	if (ret)
		return gmem_err_sys(ret, "gmem_vm_create: KVM_CAP_EXIT_HYPERCALL");
	ret = gmem_kvm_hypercall_spins();
	if (ret < 0)
		return gmem_err_sys(ret, "gmem_vm_create: a VM to try hypercalls on");
	return ret ? start(vm) : 0;
}

void gmem_kvm_hypercalls_close(struct gmem_vm *vm)
{
	/* A forked child has no such thread. */
	if (!vm->watch.on || vm->pid != getpid())
		return;
	atomic_store(&vm->watch.over, 1);
	gmem_futex_wake(&vm->watch.over);
	wake(&vm->watch);
	pthread_join(vm->watch.thread, NULL);
}

/* ---- vCPUs */

void gmem_kvm_watch(struct kvm_vcpu *v)
{
	struct gmem_hypercall_watch *w = &v->cpu.vm->watch;

	if (!w->on)
		return;
	atomic_fetch_add(&v->watched.runs, 1);
	wake(w);
}

/* By the guest's eyes, as KVM fetches it; what cannot be read now KVM meets first. */
static bool read_instruction(struct kvm_vcpu *v, const struct gmem_kvm_next *next, unsigned char *bytes)
{
	/* See gmem_kvm_vcpu_cancel(). */
	atomic_store(&v->hand->cancel, false);
	if (gmem_kvm_told_to_stop(v))
		return false;
	for (unsigned int i = 0; i < GMEM_HYPERCALL_LEN; i++) {
		uint64_t gpa;

		if (gmem_kvm_next_gpa(v->fd, next, i, &gpa) || gmem_vcpu_load(v->hand, gpa, &bytes[i], 1))
			return false;
	}
	return true;
}

/* By KVM's own checks. */
static bool is_the_callers(const struct gmem_kvm_next *next)
{
	uint64_t gfn = next->args[0] >> GMEM_PAGE_SHIFT, npages = next->args[1];

	return next->nr == KVM_HC_MAP_GPA_RANGE && gmem_page_aligned(next->args[0]) && npages && gfn + npages > gfn;
}

/* KVM's, to all others. */
static uint64_t answer_of(const struct gmem_kvm_next *next)
{
	switch (next->nr) {
	case HC_VAPIC_POLL_IRQ:
		return 0;
	case KVM_HC_MAP_GPA_RANGE:
		return (uint64_t)-HC_EINVAL;
	default:
		return (uint64_t)-HC_ENOSYS;
	}
}

static void tell(struct kvm_vcpu *v, const struct gmem_kvm_next *next)
{
	struct kvm_run *run = v->run;

	v->asks = true;
	v->asked = *next;
	memset(&run->hypercall, 0, sizeof(run->hypercall));
	run->exit_reason = KVM_EXIT_HYPERCALL;
	run->hypercall.nr = next->nr;
	memcpy(run->hypercall.args, next->args, 3 * sizeof(next->args[0]));
	run->hypercall.longmode = next->mask == UINT64_MAX; /* KVM_EXIT_HYPERCALL_LONG_MODE of `flags` */
}

static bool is_at_hypercall(struct kvm_vcpu *v, struct gmem_kvm_next *next)
{
	unsigned char bytes[GMEM_HYPERCALL_LEN];

	return !gmem_kvm_next(v->fd, next) && read_instruction(v, next, bytes) && gmem_kvm_is_hypercall(next, bytes);
}

bool gmem_kvm_watched(const struct kvm_vcpu *v)
{
	return v->cpu.vm->watch.on && !__atomic_load_n(&v->run->immediate_exit, __ATOMIC_RELAXED);
}

/* In memory that is read-only, say: the instruction's own place, which no store of a guest's has. */
bool gmem_kvm_rewrites(struct kvm_vcpu *v)
{
	const struct kvm_run *run = v->run;
	uint64_t gpa;

	v->rewrites = v->cpu.vm->watch.on && run->mmio.is_write && run->mmio.len == GMEM_HYPERCALL_LEN &&
		      !gmem_kvm_fetch_gpa(v->fd, 0, &gpa) && gpa == run->mmio.phys_addr;
	return v->rewrites;
}

int gmem_kvm_hypercall(struct kvm_vcpu *v)
{
	uint32_t patience = atomic_load(&v->watched.patience);
	struct gmem_kvm_next next;

	if (!is_at_hypercall(v, &next)) {
		atomic_store(&v->watched.patience, patience < PATIENCE ? patience * 2 + 1 : patience);
		return 0;
	}
	atomic_store(&v->watched.patience, 0);
	atomic_store(&v->cpu.vm->watch.soon, SHORT_TICKS);
	if (is_the_callers(&next)) {
		tell(v, &next);
		return 1;
	}
	/* If the registers cannot be set now, it is still at the instruction. */
	(void)gmem_kvm_hypercall_return(v->fd, &next, answer_of(&next));
	return 0;
}

int gmem_kvm_hypercall_end(struct kvm_vcpu *v)
{
	int err = v->asks ? gmem_kvm_hypercall_return(v->fd, &v->asked, v->run->hypercall.ret) : 0;

	v->asks = err;
	return err ? gmem_err_sys(err, "gmem_vcpu_run: the answer to a hypercall") : 0;
}
