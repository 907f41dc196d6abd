/* SPDX-License-Identifier: MIT */
/* What vCPUs of all kinds have in common. */
#include <errno.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/opts.h"
#include "vm/vm.h"

int gmem_vcpu_create(struct gmem_vm *vm, const struct gmem_vcpu_opts *opts, struct gmem_vcpu **ret)
{
	struct gmem_cpu *cpu;
	int err;

	if (opts && !gmem_opts_valid(opts, opts->size, sizeof(*opts)))
		return gmem_err(-EINVAL, "gmem_vcpu_create: opts.size %zu: expected %zu", opts->size, sizeof(*opts));
	if (opts && opts->kind != GMEM_VCPU_ACCESSOR)
		return gmem_err(-EINVAL, "gmem_vcpu_create: kind %d: unknown", (int)opts->kind);
	err = gmem_accessor_create(&cpu);
	if (err)
		return err;
	cpu->kind = GMEM_VCPU_ACCESSOR;
	cpu->vm = vm;
	cpu->exit = (struct gmem_exit){ .size = sizeof(cpu->exit) };
	gmem_vm_get(vm);
	gmem_mmu_add_vcpu(&vm->mmu, &cpu->vcpu);
	*ret = &cpu->vcpu;
	return 0;
}

void gmem_vcpu_free(struct gmem_vcpu *vcpu)
{
	struct gmem_vm *vm;

	if (!vcpu)
		return;
	vm = gmem_cpu_of(vcpu)->vm;
	gmem_mmu_del_vcpu(vcpu);
	free(gmem_cpu_of(vcpu));
	gmem_vm_put(vm);
}

void gmem_vcpu_cancel(struct gmem_vcpu *vcpu)
{
	atomic_store(&vcpu->cancel, true);
}

int gmem_vcpu_exit(const struct gmem_vcpu *vcpu, struct gmem_exit *ret)
{
	if (ret->size < sizeof(*ret))
		return gmem_err(-EINVAL, "gmem_vcpu_exit: size %zu: expected %zu", ret->size, sizeof(*ret));
	*ret = ((const struct gmem_cpu *)vcpu)->exit;
	return 0;
}
