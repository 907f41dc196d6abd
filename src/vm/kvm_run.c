/* SPDX-License-Identifier: MIT */
/* One KVM_RUN: what ends it from outside, and whose signals are whose. */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "sys/kvm.h"
#include "sys/process.h"
#include "vm/kvm_vcpu.h"

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

/* Of what the processor fails to touch; which of the two codes it is depends on how the kernel was built. */
static bool is_of_a_page(const siginfo_t *info)
{
	return info->si_code == BUS_MCEERR_AR || info->si_code == BUS_ADRERR;
}

/* Of a thread of this process; kernels differ in which of the two they say. */
static bool is_kick(const siginfo_t *info)
{
	return (info->si_code == SI_TKILL || info->si_code == SI_USER) && info->si_pid == getpid();
}

/*
 * Takes every SIGBUS that has come: those of gates are ours, and that of a kick. Others are the thread's own, and are
 * kept until it may have them: pending, one would end every KVM_RUN before it begins.
 */
static void take_signals(struct kvm_vcpu *v, const sigset_t *bus, bool kicked, struct kvm_ended *e)
{
	static const struct timespec now;
	bool first = !v->foreign.si_signo;
	siginfo_t info;

	e->kicked = kicked;
	while (sigtimedwait(bus, &info, &now) == SIGBUS) {
		uint64_t gpa;

		if (is_of_a_page(&info) && gmem_mmu_behind_gate(&v->cpu.vcpu, info.si_addr, &gpa)) {
			e->barred = true;
			e->gpa = gpa;
		} else if (is_of_a_page(&info) && gmem_mmu_slots_changed(&v->cpu.vm->mmu, &v->seen)) {
			e->gone = true;
		} else if (kicked && is_kick(&info)) {
			kicked = false;
		} else {
			e->foreign = first;
			e->kicked &= first;
			v->foreign = info;
		}
	}
}

void gmem_kvm_put_back_signal(struct kvm_vcpu *v)
{
	if (v->foreign.si_signo)
		gmem_signal_put_back(&v->foreign);
	v->foreign.si_signo = 0;
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

/* Kicks are heard before this is asked. */
bool gmem_kvm_told_to_stop(struct kvm_vcpu *v)
{
	return atomic_load(&v->cpu.vcpu.cancel) || gmem_mmu_dead(&v->cpu.vm->mmu);
}

/* Told to stop, an instruction of which KVM waits for the rest is ended all the same, and no other is begun. */
static int enter(struct kvm_vcpu *v)
{
	bool stop = gmem_kvm_told_to_stop(v);
	int err;

	if (stop && !v->unfinished)
		return -EINTR;
	if (stop || v->rewrites)
		gmem_kvm_vcpu_kick(&v->cpu);
	v->rewrites = false;
	err = gmem_kvm_run(v->fd);
	v->unfinished = !err;
	return err;
}

struct kvm_ended gmem_kvm_run_once(struct kvm_vcpu *v)
{
	struct kvm_ended e = { .err = 0 };
	sigset_t bus, old;

	sigemptyset(&bus);
	sigaddset(&bus, SIGBUS);
	pthread_sigmask(SIG_BLOCK, &bus, &old);
	e.err = set_mask(v, &old);
	if (!e.err) {
		v->thread = pthread_self();
		v->seen = gmem_mmu_see(&v->cpu.vm->mmu);
		v->seen_passed = atomic_load(&v->cpu.vm->passed);
		v->seen_holds = atomic_load(&v->cpu.vm->holds.ended);
		atomic_store(&v->whereabouts, INSIDE);
		gmem_kvm_watch(v);
		e.err = enter(v);
		take_signals(v, &bus, leave(v), &e);
	}
	if (sigismember(&old, SIGBUS))
		return e;
	e.foreign = false;
	e.kicked &= !v->foreign.si_signo;
	gmem_kvm_put_back_signal(v);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return e;
}
