/* SPDX-License-Identifier: MIT */
/* What brought a guest on KVM out: what can be done about it is done, the rest is the caller's. */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "sys/kvm.h"
#include "sys/uapi.h"
#include "vm/accessor.h"
#include "vm/kvm_vcpu.h"

static enum gmem_want want_of(const struct gmem_vm *vm)
{
	return vm->type == GMEM_VM_DEFAULT ? GMEM_WANT_SHARED : GMEM_WANT_ANY;
}

static int fault_exit(struct kvm_vcpu *v, int err, uint64_t gpa, const struct gmem_mmu_exit *exit)
{
	if (exit->memory_fault) {
		v->cpu.exit = gmem_exit_memory_fault(gpa, exit);
		v->came_out = true;
		v->came_out_gpa = gpa;
	}
	return gmem_err_prefix(err, "gmem_vcpu_run");
}

int gmem_kvm_vcpu_let_have(struct gmem_cpu *cpu, uint64_t gfn, struct gmem_hva *hva)
{
	int err = 0;

	/* Without a gate KVM reaches it by itself. */
	if (hva->slot->gate) {
		err = gmem_accessor_touch(hva);
		if (!err)
			err = gmem_mmu_map_hva(&cpu->vcpu, gfn, hva);
	}
	gmem_hva_put(hva);
	return err;
}

/* Lets a guest have the page, if it may. */
static int look(struct kvm_vcpu *v, uint64_t gpa, struct gmem_mmu_exit *exit)
{
	uint64_t gfn = gpa >> GMEM_PAGE_SHIFT;
	struct gmem_hva hva;
	int err;

	do {
		err = gmem_mmu_fault(&v->cpu.vcpu, gfn, GMEM_ACCESS_READ, want_of(v->cpu.vm), exit, &hva);
		if (err == GMEM_FAULT_HVA) {
			err = gmem_kvm_vcpu_let_have(&v->cpu, gfn, &hva);
			exit->memory_fault = err == -EFAULT || err == -EHWPOISON;
		}
	} while (err == -EAGAIN);
	return err;
}

int gmem_kvm_bring_in(struct kvm_vcpu *v, uint64_t gpa)
{
	struct gmem_mmu_exit unused;
	int err = look(v, gpa, &unused);

	/* It is told once. */
	if (err == -EINTR)
		atomic_store(&v->cpu.vcpu.cancel, true);
	return err;
}

/* The guest needs the page. 0: it may try again. */
static int resolve(struct kvm_vcpu *v, uint64_t gpa)
{
	struct gmem_mmu_exit exit;
	int err = look(v, gpa, &exit);

	/* The next step says so, or KVM that it is no memory any more. */
	if (err && (gmem_mmu_dead(&v->cpu.vm->mmu) || exit.no_slot))
		return 0;
	return err ? fault_exit(v, err, gpa, &exit) : 0;
}

/* 1: what KVM_RUN ended in is the caller's. */
static int run_exit(struct kvm_vcpu *v, uint32_t reason)
{
	struct kvm_run *run = v->run;
	struct gmem_exit *e = &v->cpu.exit;

	e->reason = (enum gmem_exit_reason)reason;
	if (e->reason == GMEM_EXIT_MMIO) {
		e->gpa = run->mmio.phys_addr;
		e->len = gmem_min_u64(run->mmio.len, sizeof(e->data));
		e->flags = run->mmio.is_write ? GMEM_EXIT_FLAG_WRITE : 0;
		if (run->mmio.is_write)
			memcpy(e->data, run->mmio.data, e->len);
	} else if (e->reason == GMEM_EXIT_HYPERCALL) {
		/* KVM has left what was there. */
		run->hypercall.ret = 0;
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
	struct gmem_mmu_exit unused;

	v->came_out = false;
	if (look(v, v->came_out_gpa, &unused) != -EINTR)
		return 0;
	return gmem_err(-EINTR, "gmem_vcpu_run: cancelled");
}

/* A load or store that KVM emulates, of a page of a slot. 0: done, or the next step says why not. */
static int finish_mmio(struct kvm_vcpu *v)
{
	struct kvm_run *run = v->run;
	uint64_t gpa = run->mmio.phys_addr;
	int err;

	gmem_kvm_settle_regs(v->fd);
	v->mmio_gpa = gpa;
	v->mmio_is_ours = true;
	/* See gmem_kvm_vcpu_cancel(): a flag from before is old, unless this one is set too. */
	atomic_store(&v->hand->cancel, false);
	if (gmem_kvm_told_to_stop(v))
		return 0;
	err = run->mmio.is_write ? gmem_vcpu_store(v->hand, gpa, run->mmio.data, run->mmio.len) :
				   gmem_vcpu_load(v->hand, gpa, run->mmio.data, run->mmio.len);
	v->mmio_is_ours = err;
	v->mmio_done = !err;
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
		(void)gmem_kvm_bring_in(v, gpa);
		return 0;
	}
	(void)gmem_vcpu_exit(v->hand, &v->cpu.exit);
	return gmem_err_prefix(err, "gmem_vcpu_run");
}

/* Since the guest went in. In this order: who is seen to let no page pass any more has counted it. */
static bool pages_changed(const struct kvm_vcpu *v)
{
	struct gmem_vm *vm = v->cpu.vm;

	return atomic_load(&vm->passing) || atomic_load(&vm->passed) != v->seen_passed ||
	       gmem_gates_were_held(&vm->holds, v->seen_holds) || gmem_mmu_pages_changed(&vm->mmu, &v->seen);
}

static int resolve_if_slot(struct kvm_vcpu *v, uint64_t gpa)
{
	return gmem_mmu_has_slot(&v->cpu.vcpu, gpa >> GMEM_PAGE_SHIFT) ? resolve(v, gpa) : 0;
}

/* The pages that the bytes of the next instruction lie in, as far as the guest's tables have them. */
static int resolve_fetch(struct kvm_vcpu *v)
{
	const uint64_t longest = 15;
	uint64_t gpa, end_gpa;
	int err;

	if (gmem_kvm_fetch_gpa(v->fd, 0, &gpa))
		return 0;
	err = resolve_if_slot(v, gpa);
	if (err || gmem_kvm_fetch_gpa(v->fd, longest - 1, &end_gpa) ||
	    gmem_page_round_down(end_gpa) == gmem_page_round_down(gpa))
		return err;
	return resolve_if_slot(v, end_gpa);
}

/*
 * KVM could not emulate an instruction. If a page of its bytes was barred, that was why. So it may be if any was barred
 * meanwhile, or was let through by another vCPU since; or if KVM had just been given bytes of the page, as for a locked
 * access, whose second half goes another way. That is tried again, once: the guest comes out at the page if that is it.
 */
static int handle_emulation_failure(struct kvm_vcpu *v, bool after_mmio)
{
	int err = resolve_fetch(v);

	if (err || pages_changed(v))
		return err;
	if (after_mmio) {
		(void)gmem_kvm_bring_in(v, v->mmio_gpa);
		return 0;
	}
	v->cpu.exit.reason = (enum gmem_exit_reason)KVM_EXIT_INTERNAL_ERROR;
	return 1;
}

/* KVM_RUN ended, and this is no page that may not be touched. 0: go on; 1: an exit. */
static int handle_exit(struct kvm_vcpu *v, bool after_mmio)
{
	const struct kvm_run *run = v->run;

	if (run->exit_reason == KVM_EXIT_MMIO && gmem_kvm_rewrites(v))
		return 0;
	if (run->exit_reason == KVM_EXIT_MMIO &&
	    gmem_mmu_has_slot(&v->cpu.vcpu, run->mmio.phys_addr >> GMEM_PAGE_SHIFT))
		return finish_mmio(v);
	if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR && run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION)
		return handle_emulation_failure(v, after_mmio);
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
	struct kvm_ended e;
	bool after_mmio;

	if (gmem_mmu_dead(&v->cpu.vm->mmu))
		return gmem_err(-EIO, "gmem_vcpu_run: this VM is dead");
	if ((v->mmio_is_ours || !v->unfinished) && gmem_vcpu_cancelled(&v->cpu.vcpu))
		return gmem_err(-EINTR, "gmem_vcpu_run: cancelled");
	if (v->mmio_is_ours)
		return finish_mmio(v);
	if (v->came_out) {
		int err = resolve_again(v);

		if (err)
			return err;
	}
	gmem_kvm_renew_areas(v);
	after_mmio = v->mmio_done;
	v->mmio_done = false;
	v->run->exit_reason = KVM_EXIT_UNKNOWN;
	e = gmem_kvm_run_once(v);
	/* The next step says so, whatever it was at. */
	if (gmem_mmu_dead(&v->cpu.vm->mmu))
		return 0;
	/* Beside an exit it is met again. */
	if (e.barred && e.err)
		return resolve(v, e.gpa);
	/* The next step says why. */
	if (e.err && (e.gone || gmem_kvm_told_to_stop(v)))
		return 0;
	if (e.err == -EINTR && e.kicked && gmem_kvm_watched(v))
		return gmem_kvm_hypercall(v) ? run_exit(v, KVM_EXIT_HYPERCALL) : 0;
	switch (e.err) {
	case 0:
		return handle_exit(v, after_mmio);
	case -EFAULT:
		/* It met a page that was out of everybody's reach for a moment: see file/alias.c, gmem_gates_hold(). */
		if (pages_changed(v)) {
			sched_yield();
			return 0;
		}
		return handle_fault(v, e.err);
	case -EHWPOISON:
		return handle_fault(v, e.err);
	case -EAGAIN:
		/* An interrupt controller has begun to start it, and has more to say: KVM waits for that. */
		return 0;
	case -EINTR:
		/* Only what the thread blocks. One that KVM makes each time it tries is not tried for ever. */
		if (e.foreign)
			return 0;
		return gmem_err(-EINTR, "gmem_vcpu_run: a signal, or kvm_run->immediate_exit");
	default:
		return gmem_err_sys(e.err, "gmem_vcpu_run: KVM_RUN");
	}
}

int gmem_kvm_vcpu_run(struct gmem_cpu *cpu)
{
	struct kvm_vcpu *v = kvm_vcpu_of(cpu);
	int r;

	if (cpu->vm->pid != getpid())
		return gmem_err(-EIO, "gmem_vcpu_run: this VM is a copy that came with fork(2)");
	cpu->exit = (struct gmem_exit){ .size = sizeof(cpu->exit) };
	r = gmem_kvm_hypercall_end(v);
	if (r)
		return r;
	v->areas_due |= atomic_load(&cpu->vm->passed) != v->areas_seen_passed;
	do
		r = step(v);
	while (!r);
	gmem_kvm_put_back_signal(v);
	return r < 0 ? r : 0;
}
