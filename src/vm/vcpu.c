/* SPDX-License-Identifier: MIT */
/* What vCPUs of all kinds have in common. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/err.h"
#include "base/opts.h"
#include "base/range.h"
#include "vm/accessor.h"

int gmem_vcpu_create(struct gmem_vm *vm, const struct gmem_vcpu_opts *opts, struct gmem_vcpu **ret)
{
	enum gmem_vcpu_kind kind = opts ? opts->kind : GMEM_VCPU_ACCESSOR;
	struct gmem_cpu *cpu;
	int err;

	if (opts && !gmem_opts_valid(opts, opts->size, sizeof(*opts)))
		return gmem_err(-EINVAL, "gmem_vcpu_create: opts.size %zu: expected %zu", opts->size, sizeof(*opts));
	if (kind != GMEM_VCPU_ACCESSOR && kind != GMEM_VCPU_KVM)
		return gmem_err(-EINVAL, "gmem_vcpu_create: kind %d: unknown", (int)kind);
	if (vm->pid != getpid())
		return gmem_err(-EIO, "gmem_vcpu_create: this VM is a copy that came with fork(2)");
	err = kind == GMEM_VCPU_KVM ? gmem_kvm_vcpu_open(vm, opts, &cpu) : gmem_accessor_create(&cpu);
	if (err)
		return err;
	cpu->kind = kind;
	cpu->vm = vm;
	cpu->exit = (struct gmem_exit){ .size = sizeof(cpu->exit) };
	gmem_vm_get(vm);
	gmem_mmu_add_vcpu(&vm->mmu, &cpu->vcpu);
	if (kind == GMEM_VCPU_KVM)
		gmem_kvm_vcpu_added(cpu);
	*ret = &cpu->vcpu;
	return 0;
}

void gmem_vcpu_free(struct gmem_vcpu *vcpu)
{
	struct gmem_cpu *cpu = gmem_cpu_of(vcpu);
	struct gmem_vm *vm;

	if (!vcpu)
		return;
	vm = cpu->vm;
	if (cpu->kind == GMEM_VCPU_KVM) {
		gmem_kvm_vcpu_close(cpu);
	} else {
		gmem_mmu_del_vcpu(vcpu);
		free(cpu);
	}
	gmem_vm_put(vm);
}

void gmem_vcpu_cancel(struct gmem_vcpu *vcpu)
{
	atomic_store(&vcpu->cancel, true);
	if (gmem_cpu_of(vcpu)->kind == GMEM_VCPU_KVM)
		gmem_kvm_vcpu_cancel(gmem_cpu_of(vcpu));
}

int gmem_vcpu_run(struct gmem_vcpu *vcpu)
{
	if (gmem_cpu_of(vcpu)->kind != GMEM_VCPU_KVM)
		return gmem_err(-EINVAL, "gmem_vcpu_run: an accessor executes no instructions");
	return gmem_kvm_vcpu_run(gmem_cpu_of(vcpu));
}

int gmem_vcpu_exit(const struct gmem_vcpu *vcpu, struct gmem_exit *ret)
{
	if (ret->size < sizeof(*ret))
		return gmem_err(-EINVAL, "gmem_vcpu_exit: size %zu: expected %zu", ret->size, sizeof(*ret));
	*ret = ((const struct gmem_cpu *)vcpu)->exit;
	return 0;
}

struct gmem_exit gmem_exit_memory_fault(uint64_t gpa, const struct gmem_mmu_exit *exit)
{
	return (struct gmem_exit){
		.size = sizeof(struct gmem_exit),
		.reason = GMEM_EXIT_MEMORY_FAULT,
		.flags =
			(exit->private ? GMEM_EXIT_FLAG_PRIVATE : 0) | (exit->userfault ? GMEM_EXIT_FLAG_USERFAULT : 0),
		.gpa = gmem_page_round_down(gpa),
		.len = GMEM_PAGE_SIZE,
	};
}

static int pre_fault_page(struct gmem_vcpu *vcpu, uint64_t gfn, enum gmem_want want)
{
	struct gmem_hva hva;
	char byte;
	int err;

	do {
		err = gmem_mmu_pre_fault(vcpu, gfn, want, &hva);
		if (err == GMEM_FAULT_HVA)
			err = gmem_cpu_of(vcpu)->kind == GMEM_VCPU_KVM && hva.slot->gate ?
				      gmem_kvm_vcpu_let_have(gmem_cpu_of(vcpu), gfn, &hva) :
				      gmem_accessor_hva(&hva, 0, &byte, 1, false);
	} while (err == -EAGAIN);
	return err;
}

/* Of a call about whole pages. */
static int check_pages(const struct gmem_vm *vm, const char *who, uint64_t *gpa, uint64_t len, enum gmem_want *ret_want)
{
	int err;

	if (!len || !gmem_page_aligned(*gpa) || !gmem_page_aligned(len) || *gpa + len < *gpa)
		return gmem_err(-EINVAL, "%s: gpa 0x%llx, len 0x%llx: not page-aligned, empty or wraps", who,
				(unsigned long long)*gpa, (unsigned long long)len);
	err = gmem_vm_decode_gpa(vm, who, *gpa, gpa, ret_want);
	if (!err && len > (vm->gfn_end << GMEM_PAGE_SHIFT) - *gpa)
		err = gmem_err(-EINVAL, "%s: gpa 0x%llx, len 0x%llx: beyond what the guest can address", who,
			       (unsigned long long)*gpa, (unsigned long long)len);
	return err;
}

int gmem_vcpu_pre_fault(struct gmem_vcpu *vcpu, uint64_t gpa, uint64_t len, uint64_t *ret_done)
{
	const struct gmem_vm *vm = gmem_cpu_of(vcpu)->vm;
	uint64_t done = 0;
	enum gmem_want want;
	int err;

	if (gmem_cpu_of(vcpu)->kind == GMEM_VCPU_ACCESSOR)
		gmem_accessor_close((struct gmem_accessor *)vcpu);
	err = check_pages(vm, "gmem_vcpu_pre_fault", &gpa, len, &want);
	if (err)
		return err;
	for (; done < len; done += GMEM_PAGE_SIZE) {
		err = pre_fault_page(vcpu, (gpa + done) >> GMEM_PAGE_SHIFT, want);
		if (err)
			break;
	}
	if (ret_done)
		*ret_done = done;
	/* What was done stands, as with KVM_PRE_FAULT_MEMORY: the error comes when nothing could be. */
	return !done ? gmem_err_prefix(err, "gmem_vcpu_pre_fault") : 0;
}

/* A page that the guest has not touched before is given to it first. */
static int accept_page(struct gmem_vcpu *vcpu, uint64_t gpa, bool accept)
{
	struct gmem_cpu *cpu = gmem_cpu_of(vcpu);
	struct gmem_mmu_exit exit = { .memory_fault = false };
	uint64_t gfn = gpa >> GMEM_PAGE_SHIFT;
	struct gmem_hva hva;
	int err;

	while ((err = gmem_mmu_accept(vcpu, gfn, accept)) == -ENOENT || err == -EREMOTE) {
		err = gmem_mmu_fault(vcpu, gfn, GMEM_ACCESS_READ, GMEM_WANT_PRIVATE, &exit, &hva);
		if (err && err != -EACCES)
			break;
	}
	if (exit.memory_fault)
		cpu->exit = gmem_exit_memory_fault(gpa, &exit);
	return err;
}

int gmem_vcpu_accept(struct gmem_vcpu *vcpu, uint64_t gpa, uint64_t len, bool accept, uint64_t *ret_done)
{
	const struct gmem_vm *vm = gmem_cpu_of(vcpu)->vm;
	bool changed = false;
	uint64_t done = 0;
	enum gmem_want want;
	int err;

	if (gmem_cpu_of(vcpu)->kind == GMEM_VCPU_ACCESSOR)
		gmem_accessor_close((struct gmem_accessor *)vcpu);
	err = check_pages(vm, "gmem_vcpu_accept", &gpa, len, &want);
	if (!err && want != GMEM_WANT_PRIVATE)
		err = gmem_err(-EINVAL, "gmem_vcpu_accept: gpa 0x%llx: a shared address, or none of its kind",
			       (unsigned long long)gpa);
	for (; !err && done < len; done += GMEM_PAGE_SIZE) {
		err = accept_page(vcpu, gpa + done, accept);
		if (err < 0)
			break;
		changed |= !err;
		err = 0;
	}
	if (ret_done)
		*ret_done = done;
	return err ? gmem_err_prefix(err, "gmem_vcpu_accept") : !changed;
}

int gmem_vcpu_answer(struct gmem_vcpu *vcpu, uint64_t value)
{
	struct gmem_cpu *cpu = gmem_cpu_of(vcpu);

	return cpu->kind == GMEM_VCPU_KVM ? gmem_kvm_vcpu_answer(cpu, value) : gmem_accessor_answer(cpu, value);
}
