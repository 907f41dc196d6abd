/* SPDX-License-Identifier: MIT */
/*
 * Areas of a guest's memory that KVM reads and writes by itself: its clock, say.
 *
 * At a barred page KVM gives up without a word, and of some areas it does not try again: the guest would have what the
 * page brought with it for its time, for ever. So a page that KVM is told to use is brought in before the guest runs,
 * and whenever it passes the gate KVM is told again. A guest that tells KVM of an area at a barred page, which nobody
 * sees, has to wait until the vCPU returns to the caller and comes back. What need not be here: steal time is tried
 * again at each KVM_RUN, and an interrupt's end that cannot be noted in memory takes the long way.
 */
#include <errno.h>

#include "sys/kvm.h"
#include "vm/kvm_vcpu.h"

#ifdef __x86_64__

#include <linux/kvm_para.h>

static const struct area {
	uint32_t msr;
	uint64_t address; /* bits of its value; the page alone counts */
	uint64_t enabled; /* any of these */
	uint32_t again; /* what is set to have KVM try again, and to which value; 0: that of `msr` */
	uint64_t again_value;
	bool once; /* if it has passed for this; not later: nothing tells when the guest has forgotten it */
	bool needed; /* without the guest's touching it */
} areas[KVM_AREAS] = {
	{ MSR_KVM_SYSTEM_TIME_NEW, ~1ull, 1, MSR_KVM_SYSTEM_TIME_NEW },
	{ MSR_KVM_WALL_CLOCK_NEW, ~0ull, ~0ull, MSR_KVM_WALL_CLOCK_NEW, .once = true },
	/* While it cannot look there, it keeps what it has to say of pages that are ready. To acknowledge is to ask. */
	{ MSR_KVM_ASYNC_PF_EN, ~0x3full, KVM_ASYNC_PF_ENABLED, MSR_KVM_ASYNC_PF_ACK, 1, .needed = true },
};

/* Into `value`; 0 of what this guest has not got. */
static void get(const struct kvm_vcpu *v, uint64_t value[KVM_AREAS])
{
	for (unsigned int i = 0; i < KVM_AREAS;) {
		uint32_t msr[KVM_AREAS];
		unsigned int n = KVM_AREAS - i;
		int got;

		for (unsigned int k = 0; k < n; k++)
			msr[k] = areas[i + k].msr;
		got = gmem_kvm_msrs_get(v->fd, n, msr, value + i);
		if (got < 0)
			got = 0;
		i += (unsigned int)got;
		if (i < KVM_AREAS)
			value[i++] = 0;
	}
}

static void renew(struct kvm_vcpu *v, unsigned int i, uint64_t value)
{
	const struct area *a = &areas[i];
	uint64_t gpa = value & a->address;
	uint32_t bit = 1u << i, passed = atomic_fetch_and(&v->areas_passed, ~bit) & bit;
	bool new = value != v->area_value[i];
	int err;

	if (value & a->enabled && (new || passed || a->needed) &&
	    gmem_mmu_has_gate(&v->cpu.vcpu, gpa >> GMEM_PAGE_SHIFT)) {
		err = gmem_kvm_bring_in(v, gpa);
		if (err == -EINTR) {
			v->areas_due = true;
			atomic_fetch_or(&v->areas_passed, passed);
		}
		/* If it cannot be had now, it passes when the guest is at it, or next time. */
		if (err)
			return;
		passed |= atomic_fetch_and(&v->areas_passed, ~bit) & bit;
		if (a->once ? (new &&passed) : (new || passed))
			(void)gmem_kvm_msr_set(v->fd, a->again, a->again_value ? a->again_value : value);
	}
	v->area_value[i] = value;
}

static void know(struct kvm_vcpu *v, unsigned int i, uint64_t value)
{
	uint64_t gfn = (value & areas[i].address) >> GMEM_PAGE_SHIFT;

	atomic_store(&v->area_gfn[i], value & areas[i].enabled ? gfn : KVM_NO_AREA);
	if (value & areas[i].enabled)
		atomic_store(&v->cpu.vm->areas, true);
}

void gmem_kvm_renew_areas(struct kvm_vcpu *v)
{
	struct gmem_mmu_seen seen = gmem_mmu_see(&v->cpu.vm->mmu);
	uint64_t value[KVM_AREAS] = { 0 };

	if (!v->areas_due && !atomic_load(&v->areas_passed) && seen.invalidate_seq == v->areas_seen.invalidate_seq &&
	    seen.slots_seq == v->areas_seen.slots_seq)
		return;
	v->areas_due = false;
	v->areas_seen = seen;
	v->areas_seen_passed = atomic_load(&v->cpu.vm->passed);
	get(v, value);
	/* One passes with another. */
	for (unsigned int i = 0; i < KVM_AREAS; i++)
		know(v, i, value[i]);
	for (unsigned int i = 0; i < KVM_AREAS; i++)
		renew(v, i, value[i]);
}

#else

void gmem_kvm_renew_areas(struct kvm_vcpu *v)
{
}

#endif

void gmem_kvm_tell_areas(struct gmem_vm *vm, uint64_t gfn, uint64_t npages)
{
	if (!atomic_load(&vm->areas))
		return;
	pthread_mutex_lock(&vm->vcpus_lock);
	for (struct gmem_cpu *cpu = vm->vcpus; cpu; cpu = cpu->next)
		for (unsigned int i = 0; i < KVM_AREAS; i++)
			if (atomic_load(&kvm_vcpu_of(cpu)->area_gfn[i]) - gfn < npages)
				atomic_fetch_or(&kvm_vcpu_of(cpu)->areas_passed, 1u << i);
	pthread_mutex_unlock(&vm->vcpus_lock);
}
