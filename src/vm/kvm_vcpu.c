/* SPDX-License-Identifier: MIT */
/*
 * A vCPU of KVM's.
 *
 * A guest that meets a barred page (file/gate.h) comes out in one of two ways. Where the processor made the access, KVM
 * fails to map the page, sends the thread SIGBUS with the page's address in the gate, and KVM_RUN is EINTR because the
 * signal is let through while it runs, and nowhere else. Where KVM was emulating the instruction it takes the page for
 * a device's, and KVM_RUN ends with KVM_EXIT_MMIO at an address that is inside a slot: then the load or store is made
 * here, by an accessor, and the next KVM_RUN goes on behind it. An instruction that KVM cannot even read, or one with a
 * lock prefix that met the page again, is KVM_EXIT_INTERNAL_ERROR, and begins again when the page is there.
 *
 * In both cases the page is looked for as for any guest (mmu/fault.c), and mapping it is to let it pass the gate.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "file/gate.h"
#include "sys/kvm.h"
#include "sys/process.h"
#include "sys/uapi.h"
#include "vm/vm.h"

/* Where the thread is, for those who want it out of the guest. */
enum whereabouts {
	OUTSIDE,
	INSIDE, /* KVM_RUN, or about to; SIGBUS is blocked, and is taken before it is not any more */
	KICKED_NOW, /* somebody is sending it a signal */
	KICKED,
};

struct kvm_vcpu {
	struct gmem_cpu cpu; /* first */
	int fd;
	struct kvm_run *run;
	size_t run_len;
	struct gmem_vcpu *hand; /* makes the accesses of instructions that KVM emulates */
	bool mmio_is_ours; /* KVM waits for one: a page of a slot, which could not be had last time */
	uint64_t mmio_gpa; /* of the last one that was ours */
	bool came_out; /* the guest did, at this page; the caller may have done something about it since */
	uint64_t came_out_gpa;
	uint64_t passed; /* pages that were barred, and let through */
	bool mask_known;
	sigset_t mask; /* KVM's, of the last run */
	_Atomic int whereabouts; /* enum whereabouts */
	pthread_t thread; /* while it is inside */
};

static struct kvm_vcpu *kvm_vcpu_of(struct gmem_cpu *cpu)
{
	return (struct kvm_vcpu *)cpu;
}

/* ---- coming and going */

static enum gmem_map_result let_pass(struct gmem_vcpu *vcpu, const struct gmem_mapping *m)
{
	int err = m->gate ? gmem_gate_pass(m->gate, m->off) : -EEXIST;

	if (!err) {
		((struct kvm_vcpu *)vcpu)->passed++;
		return GMEM_MAP_FIXED;
	}
	if (err == -EEXIST)
		return GMEM_MAP_SPURIOUS;
	vcpu->map_err = err;
	return GMEM_MAP_FAILED;
}

static int map_run(struct kvm_vcpu *v)
{
	int kvm = gmem_kvm_open(), len = kvm < 0 ? kvm : gmem_kvm_run_len(kvm);
	void *p;

	if (kvm >= 0)
		close(kvm);
	if (len < 0)
		return gmem_err_sys(len, "gmem_vcpu_create: /dev/kvm");
	p = mmap(NULL, (size_t)len, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (p == MAP_FAILED)
		return gmem_err_sys(-errno, "gmem_vcpu_create: struct kvm_run");
	v->run = p;
	v->run_len = (size_t)len;
	return 0;
}

static int open_vcpu(struct kvm_vcpu *v, const struct gmem_vm *vm, const struct gmem_vcpu_opts *opts)
{
	if (opts->kvm_vcpu) {
		v->fd = fcntl(opts->kvm_vcpu, F_DUPFD_CLOEXEC, 0);
		if (v->fd < 0)
			return gmem_err_sys(-errno, "gmem_vcpu_create: kvm_vcpu %d", opts->kvm_vcpu);
	} else {
		v->fd = gmem_kvm_vcpu_create(vm->kvm, opts->id);
		if (v->fd < 0)
			return gmem_err_sys(v->fd, "gmem_vcpu_create: KVM, vCPU %u", opts->id);
	}
	return map_run(v);
}

static void destroy(struct kvm_vcpu *v)
{
	gmem_vcpu_free(v->hand);
	if (v->run)
		munmap(v->run, v->run_len);
	if (v->fd >= 0)
		close(v->fd);
	free(v);
}

int gmem_kvm_vcpu_open(struct gmem_vm *vm, const struct gmem_vcpu_opts *opts, struct gmem_cpu **ret)
{
	struct kvm_vcpu *v;
	int err;

	if (vm->kvm < 0)
		return gmem_err(-EOPNOTSUPP, "gmem_vcpu_create: this VM has no KVM (GMEM_VM_KVM)");
	if (posix_memalign((void **)&v, _Alignof(struct kvm_vcpu), sizeof(*v)))
		return gmem_err_sys(-ENOMEM, "gmem_vcpu_create");
	*v = (struct kvm_vcpu){ .fd = -1 };
	err = gmem_vcpu_create(vm, NULL, &v->hand);
	if (!err)
		err = open_vcpu(v, vm, opts);
	if (err) {
		destroy(v);
		return err;
	}
	*ret = &v->cpu;
	return 0;
}

void gmem_kvm_vcpu_added(struct gmem_cpu *cpu)
{
	cpu->vcpu.map = let_pass;
	pthread_mutex_lock(&cpu->vm->vcpus_lock);
	cpu->next = cpu->vm->vcpus;
	cpu->vm->vcpus = cpu;
	pthread_mutex_unlock(&cpu->vm->vcpus_lock);
}

void gmem_kvm_vcpu_close(struct gmem_cpu *cpu)
{
	struct gmem_cpu **at;

	gmem_mmu_del_vcpu(&cpu->vcpu);
	pthread_mutex_lock(&cpu->vm->vcpus_lock);
	for (at = &cpu->vm->vcpus; *at != cpu;)
		at = &(*at)->next;
	*at = cpu->next;
	pthread_mutex_unlock(&cpu->vm->vcpus_lock);
	destroy(kvm_vcpu_of(cpu));
}

int gmem_vcpu_kvm_fd(const struct gmem_vcpu *vcpu)
{
	const struct gmem_cpu *cpu = (const struct gmem_cpu *)vcpu;

	return cpu->kind == GMEM_VCPU_KVM ? ((const struct kvm_vcpu *)cpu)->fd : -1;
}

void *gmem_vcpu_kvm_run(const struct gmem_vcpu *vcpu)
{
	const struct gmem_cpu *cpu = (const struct gmem_cpu *)vcpu;

	return cpu->kind == GMEM_VCPU_KVM ? ((const struct kvm_vcpu *)cpu)->run : NULL;
}

/* ---- kicks */

void gmem_kvm_vcpu_kick(struct gmem_cpu *cpu)
{
	struct kvm_vcpu *v = kvm_vcpu_of(cpu);
	int inside = INSIDE;

	/* Who comes in after this looks at what it was told; who was in gets the signal, and cannot leave before. */
	if (!atomic_compare_exchange_strong(&v->whereabouts, &inside, KICKED_NOW))
		return;
	(void)pthread_kill(v->thread, SIGBUS);
	atomic_store(&v->whereabouts, KICKED);
}

void gmem_kvm_vcpu_cancel(struct gmem_cpu *cpu)
{
	struct kvm_vcpu *v = kvm_vcpu_of(cpu);

	/* This one has been told. */
	atomic_store(&v->hand->cancel, true);
	gmem_kvm_vcpu_kick(cpu);
}

/* True if a kick's signal has been sent, and no other will be. */
static bool leave(struct kvm_vcpu *v)
{
	int inside = INSIDE;

	if (atomic_compare_exchange_strong(&v->whereabouts, &inside, OUTSIDE))
		return false;
	while (atomic_load(&v->whereabouts) == KICKED_NOW)
		sched_yield();
	atomic_store(&v->whereabouts, OUTSIDE);
	return true;
}

/* ---- one KVM_RUN */

/* What the processor fails to touch; which of the two codes it is depends on how the kernel was built. */
static bool in_a_gate(struct kvm_vcpu *v, const siginfo_t *info, uint64_t *ret_gpa)
{
	if (info->si_code != BUS_MCEERR_AR && info->si_code != BUS_ADRERR)
		return false;
	return gmem_mmu_behind_gate(&v->cpu.vcpu, info->si_addr, ret_gpa);
}

/* How a KVM_RUN ended. */
struct ended {
	int err;
	bool barred; /* the guest is at a page that may not be touched by itself */
	uint64_t gpa; /* of that */
};

/* Of a thread of this process; kernels differ in which of the two they say. */
static bool is_kick(const siginfo_t *info)
{
	return (info->si_code == SI_TKILL || info->si_code == SI_USER) && info->si_pid == getpid();
}

/* Takes every SIGBUS that has come: those of gates are ours, and that of a kick. */
static void take_signals(struct kvm_vcpu *v, const sigset_t *bus, bool kicked, struct ended *e)
{
	static const struct timespec now;
	siginfo_t info, other = { .si_signo = 0 };

	while (sigtimedwait(bus, &info, &now) == SIGBUS) {
		uint64_t gpa;

		if (in_a_gate(v, &info, &gpa)) {
			e->barred = true;
			e->gpa = gpa;
		} else if (kicked && is_kick(&info)) {
			kicked = false;
		} else {
			other = info;
		}
	}
	if (other.si_signo)
		gmem_signal_put_back(&other);
}

static int set_mask(struct kvm_vcpu *v, const sigset_t *mask)
{
	sigset_t without = *mask;
	int err;

	sigdelset(&without, SIGBUS);
	if (v->mask_known && !memcmp(&without, &v->mask, sizeof(without)))
		return 0;
	err = gmem_kvm_signal_mask(v->fd, &without);
	v->mask_known = !err;
	v->mask = without;
	return err;
}

/* True if there is a reason not to go in; looked at when kicks are heard already. */
static bool told_to_stop(struct kvm_vcpu *v)
{
	return atomic_load(&v->cpu.vcpu.cancel) || gmem_mmu_dead(&v->cpu.vm->mmu);
}

static struct ended run_once(struct kvm_vcpu *v)
{
	struct ended e = { .err = 0 };
	sigset_t bus, old;

	sigemptyset(&bus);
	sigaddset(&bus, SIGBUS);
	pthread_sigmask(SIG_BLOCK, &bus, &old);
	e.err = set_mask(v, &old);
	if (!e.err) {
		v->thread = pthread_self();
		atomic_store(&v->whereabouts, INSIDE);
		e.err = told_to_stop(v) ? -EINTR : gmem_kvm_run(v->fd);
		take_signals(v, &bus, leave(v), &e);
	}
	if (!sigismember(&old, SIGBUS))
		pthread_sigmask(SIG_SETMASK, &old, NULL);
	return e;
}

/* ---- exits */

static enum gmem_want want_of(const struct gmem_vm *vm)
{
	return vm->type == GMEM_VM_DEFAULT ? GMEM_WANT_SHARED : GMEM_WANT_ANY;
}

static int fault_exit(struct kvm_vcpu *v, int err, uint64_t gpa, const struct gmem_mmu_exit *exit)
{
	if (exit->memory_fault) {
		v->cpu.exit.reason = GMEM_EXIT_MEMORY_FAULT;
		v->cpu.exit.flags = exit->private ? GMEM_EXIT_FLAG_PRIVATE : 0;
		v->cpu.exit.gpa = gmem_page_round_down(gpa);
		v->cpu.exit.len = GMEM_PAGE_SIZE;
		v->came_out = true;
		v->came_out_gpa = gpa;
	}
	return gmem_err_prefix(err, "gmem_vcpu_run");
}

/* The guest needs the page. 0: it may try again. */
static int resolve(struct kvm_vcpu *v, uint64_t gpa)
{
	struct gmem_mmu_exit exit;
	int err = gmem_mmu_fault(&v->cpu.vcpu, gpa >> GMEM_PAGE_SHIFT, GMEM_ACCESS_READ, want_of(v->cpu.vm), &exit);

	return err ? fault_exit(v, err, gpa, &exit) : 0;
}

/* 1: what KVM_RUN ended in is the caller's. */
static int run_exit(struct kvm_vcpu *v, uint32_t reason)
{
	const struct kvm_run *run = v->run;
	struct gmem_exit *e = &v->cpu.exit;

	e->reason = (enum gmem_exit_reason)reason;
	if (e->reason == GMEM_EXIT_MMIO) {
		e->gpa = run->mmio.phys_addr;
		e->len = gmem_min_u64(run->mmio.len, sizeof(e->data));
		e->flags = run->mmio.is_write ? GMEM_EXIT_FLAG_WRITE : 0;
		if (run->mmio.is_write)
			memcpy(e->data, run->mmio.data, e->len);
	} else if (e->reason == GMEM_EXIT_HYPERCALL) {
		e->nr = run->hypercall.nr;
		memcpy(e->args, run->hypercall.args, sizeof(e->args));
	}
	return 1;
}

int gmem_kvm_vcpu_answer(struct gmem_cpu *cpu, uint64_t value)
{
	struct kvm_run *run = kvm_vcpu_of(cpu)->run;

	if (cpu->exit.reason == GMEM_EXIT_HYPERCALL) {
		run->hypercall.ret = value;
		return 0;
	}
	if (cpu->exit.reason != GMEM_EXIT_MMIO)
		return gmem_err(-EINVAL, "gmem_vcpu_answer: the last run left nothing open");
	if (!(cpu->exit.flags & GMEM_EXIT_FLAG_WRITE))
		for (uint64_t i = 0; i < cpu->exit.len; i++)
			run->mmio.data[i] = (uint8_t)(value >> 8 * i);
	return 0;
}

/* The guest will make its access again. If it may by now, that need not be another exit; if not, it meets the page. */
static int resolve_again(struct kvm_vcpu *v)
{
	uint64_t gfn = v->came_out_gpa >> GMEM_PAGE_SHIFT;
	struct gmem_mmu_exit unused;

	v->came_out = false;
	if (gmem_mmu_fault(&v->cpu.vcpu, gfn, GMEM_ACCESS_READ, want_of(v->cpu.vm), &unused) != -EINTR)
		return 0;
	return gmem_err(-EINTR, "gmem_vcpu_run: cancelled");
}

/* A load or store that KVM emulates, of a page of a slot. 0: done; else it is still to be done. */
static int finish_mmio(struct kvm_vcpu *v)
{
	struct kvm_run *run = v->run;
	uint64_t gpa = run->mmio.phys_addr;
	struct gmem_mmu_exit unused;
	int err;

	gmem_kvm_settle_regs(v->fd);
	v->mmio_gpa = gpa;
	/* See gmem_kvm_vcpu_cancel(): a flag from before is old, unless this one is set too. */
	atomic_store(&v->hand->cancel, false);
	if (told_to_stop(v))
		return 0;
	err = run->mmio.is_write ? gmem_vcpu_store(v->hand, gpa, run->mmio.data, run->mmio.len) :
				   gmem_vcpu_load(v->hand, gpa, run->mmio.data, run->mmio.len);
	v->mmio_is_ours = err;
	if (err == -EINTR || (err && gmem_mmu_dead(&v->cpu.vm->mmu)))
		return 0;
	if (err && (gmem_cpu_of(v->hand)->exit.reason == GMEM_EXIT_MMIO ||
		    !gmem_mmu_has_slot(&v->cpu.vcpu, gpa >> GMEM_PAGE_SHIFT))) {
		/* It was deleted: nobody's, as KVM sees it too. */
		v->mmio_is_ours = false;
		return run_exit(v, KVM_EXIT_MMIO);
	}
	if (!err) {
		/* The next one need not come out. If this cannot be had, it does. */
		(void)gmem_mmu_fault(&v->cpu.vcpu, gpa >> GMEM_PAGE_SHIFT, GMEM_ACCESS_READ, want_of(v->cpu.vm),
				     &unused);
		return 0;
	}
	(void)gmem_vcpu_exit(v->hand, &v->cpu.exit);
	return gmem_err_prefix(err, "gmem_vcpu_run");
}

static int resolve_if_slot(struct kvm_vcpu *v, uint64_t gpa)
{
	return gmem_mmu_has_slot(&v->cpu.vcpu, gpa >> GMEM_PAGE_SHIFT) ? resolve(v, gpa) : 0;
}

/*
 * KVM could not emulate an instruction. If one of its pages was barred, that was why: the bytes of the instruction,
 * which may lie across two, or what it was at last.
 */
static int handle_emulation_failure(struct kvm_vcpu *v)
{
	const uint64_t longest = 15, before = v->passed;
	uint64_t gpa;
	int err = 0;

	if (!gmem_kvm_fetch_gpa(v->fd, &gpa)) {
		err = resolve_if_slot(v, gpa);
		if (!err && gmem_page_round_down(gpa + longest - 1) != gmem_page_round_down(gpa))
			err = resolve_if_slot(v, gpa + longest - 1);
	}
	if (!err)
		err = resolve_if_slot(v, v->mmio_gpa);
	if (err || v->passed != before)
		return err;
	v->cpu.exit.reason = (enum gmem_exit_reason)KVM_EXIT_INTERNAL_ERROR;
	return 1;
}

/* KVM_RUN ended, and this is no page that may not be touched. 0: go on; 1: an exit. */
static int handle_exit(struct kvm_vcpu *v)
{
	const struct kvm_run *run = v->run;

	if (run->exit_reason == KVM_EXIT_MMIO &&
	    gmem_mmu_has_slot(&v->cpu.vcpu, run->mmio.phys_addr >> GMEM_PAGE_SHIFT))
		return finish_mmio(v);
	if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR && run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION)
		return handle_emulation_failure(v);
	return run_exit(v, run->exit_reason);
}

/* The kernel engine's own. */
static int handle_fault(struct kvm_vcpu *v, int err)
{
	const struct gmem_kvm_memory_fault *fault = (const void *)&v->run->mmio;

	if (v->run->exit_reason == KVM_EXIT_MEMORY_FAULT) {
		v->cpu.exit.reason = GMEM_EXIT_MEMORY_FAULT;
		v->cpu.exit.flags = fault->flags;
		v->cpu.exit.gpa = fault->gpa;
		v->cpu.exit.len = fault->size;
	}
	return gmem_err_sys(err, "gmem_vcpu_run: KVM_RUN");
}

static int step(struct kvm_vcpu *v)
{
	struct ended e;

	if (gmem_mmu_dead(&v->cpu.vm->mmu))
		return gmem_err(-EIO, "gmem_vcpu_run: this VM is dead");
	if (gmem_vcpu_cancelled(&v->cpu.vcpu))
		return gmem_err(-EINTR, "gmem_vcpu_run: cancelled");
	if (v->mmio_is_ours)
		return finish_mmio(v);
	if (v->came_out) {
		int err = resolve_again(v);

		if (err)
			return err;
	}
	v->run->exit_reason = KVM_EXIT_UNKNOWN;
	e = run_once(v);
	if (e.barred)
		return resolve(v, e.gpa);
	/* The next step says why. */
	if (e.err && told_to_stop(v))
		return 0;
	switch (e.err) {
	case 0:
		return handle_exit(v);
	case -EFAULT:
	case -EHWPOISON:
		return handle_fault(v, e.err);
	case -EINTR:
		return gmem_err(-EINTR, "gmem_vcpu_run: a signal, or kvm_run->immediate_exit");
	default:
		return gmem_err_sys(e.err, "gmem_vcpu_run: KVM_RUN");
	}
}

int gmem_kvm_vcpu_run(struct gmem_cpu *cpu)
{
	int r;

	if (cpu->vm->pid != getpid())
		return gmem_err(-EIO, "gmem_vcpu_run: this VM is a copy that came with fork(2)");
	cpu->exit = (struct gmem_exit){ .size = sizeof(cpu->exit) };
	do
		r = step(kvm_vcpu_of(cpu));
	while (!r);
	return r < 0 ? r : 0;
}
