/* SPDX-License-Identifier: MIT */
#include "vm/vm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/err.h"
#include "base/opts.h"
#include "sys/kvm.h"
#include "sys/uapi.h"

/* Bits of a guest-physical address that say which side is meant: where QEMU and KVM have them. */
#define SNP_C_BIT 51
#define TDX_SHARED_BIT 47

static int set_type(struct gmem_vm *vm, enum gmem_vm_type type)
{
	vm->type = type;
	vm->gfn_end = 1ull << GMEM_GFN_BITS;
	switch (type) {
	case GMEM_VM_DEFAULT:
	case GMEM_VM_SW_PROTECTED:
		return 0;
	case GMEM_VM_SNP:
		vm->alias_bit = 1ull << SNP_C_BIT;
		vm->alias_private = true;
		return 0;
	case GMEM_VM_TDX:
		vm->alias_bit = 1ull << TDX_SHARED_BIT;
		vm->gfn_end = vm->alias_bit >> GMEM_PAGE_SHIFT;
		return 0;
	}
	return gmem_err(-EINVAL, "gmem_vm_create: type %d: unknown", (int)type);
}

static int open_vm(struct gmem_vm *vm, int kvm_vm)
{
	int kvm, err = 0;

	if (kvm_vm) {
		if (!gmem_kvm_is_vm(kvm_vm))
			return gmem_err(-EBADF, "gmem_vm_create: kvm_vm %d: no KVM machine of this process", kvm_vm);
		vm->kvm = fcntl(kvm_vm, F_DUPFD_CLOEXEC, 0);
		return vm->kvm < 0 ? gmem_err_sys(-errno, "gmem_vm_create: kvm_vm %d", kvm_vm) : 0;
	}
	kvm = gmem_kvm_open();
	if (kvm < 0)
		return gmem_err_sys(kvm, "gmem_vm_create: /dev/kvm");
	vm->kvm = gmem_kvm_vm_create(kvm, KVM_X86_DEFAULT_VM);
	if (vm->kvm < 0)
		err = gmem_err_sys(vm->kvm, "gmem_vm_create: KVM");
	close(kvm);
	return err;
}

/* A VM of the host's default type plays the others: what they have to keep guests from is kept from them here. */
static int open_kvm(struct gmem_vm *vm, int kvm_vm)
{
	int err;

	if (vm->alias_bit)
		return gmem_err(-EOPNOTSUPP, "gmem_vm_create: VMs of this type have accessors only, and no KVM");
	err = open_vm(vm, kvm_vm);
	if (err)
		return err;
	/*
	 * An instruction that it could not emulate because of a barred page begins again when the page may be had. By
	 * itself KVM raises an exception in the guest, in user code without an exit. Linux 5.15; before, it stays so.
	 */
	(void)gmem_kvm_cap_enable(vm->kvm, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1);
	return 0;
}

int gmem_vm_create(const struct gmem_vm_opts *opts, struct gmem_vm **ret)
{
	struct gmem_vm *vm;
	int err;

	if (opts && !gmem_opts_valid(opts, opts->size, sizeof(*opts)))
		return gmem_err(-EINVAL, "gmem_vm_create: opts.size %zu: expected %zu", opts->size, sizeof(*opts));
	if (opts && opts->flags & ~(GMEM_VM_KVM | GMEM_VM_HYPERCALLS))
		return gmem_err(-EINVAL, "gmem_vm_create: flags 0x%x: unknown", opts->flags);
	if (opts && opts->kvm_vm && !(opts->flags & GMEM_VM_KVM))
		return gmem_err(-EINVAL, "gmem_vm_create: kvm_vm without GMEM_VM_KVM");
	if (opts && (opts->flags & (GMEM_VM_KVM | GMEM_VM_HYPERCALLS)) == GMEM_VM_HYPERCALLS)
		return gmem_err(-EINVAL, "gmem_vm_create: GMEM_VM_HYPERCALLS without GMEM_VM_KVM");
	vm = calloc(1, sizeof(*vm));
	if (!vm)
		return gmem_err_sys(-ENOMEM, "gmem_vm_create");
	vm->kvm = -1;
	err = set_type(vm, opts ? opts->type : GMEM_VM_SW_PROTECTED);
	if (!err && opts && opts->flags & GMEM_VM_KVM)
		err = open_kvm(vm, opts->kvm_vm);
	if (err) {
		free(vm);
		return err;
	}
	vm->pid = getpid();
	gmem_mmu_init(&vm->mmu);
	pthread_mutex_init(&vm->slots_lock, NULL);
	pthread_mutex_init(&vm->vcpus_lock, NULL);
	vm->holds.failed = gmem_kvm_holds_failed;
	atomic_store(&vm->refs, 1);
	if (opts && opts->flags & GMEM_VM_HYPERCALLS)
		err = gmem_kvm_hypercalls_open(vm);
	if (err) {
		gmem_vm_put(vm);
		return err;
	}
	*ret = vm;
	return 0;
}

void gmem_vm_get(struct gmem_vm *vm)
{
	atomic_fetch_add_explicit(&vm->refs, 1, memory_order_relaxed);
}

void gmem_vm_put(struct gmem_vm *vm)
{
	if (atomic_fetch_sub_explicit(&vm->refs, 1, memory_order_acq_rel) != 1)
		return;
	gmem_mmu_destroy(&vm->mmu);
	pthread_mutex_destroy(&vm->slots_lock);
	pthread_mutex_destroy(&vm->vcpus_lock);
	if (vm->kvm >= 0)
		close(vm->kvm);
	free(vm);
}

void gmem_vm_kick(struct gmem_vm *vm)
{
	pthread_mutex_lock(&vm->vcpus_lock);
	for (struct gmem_cpu *cpu = vm->vcpus; cpu; cpu = cpu->next)
		gmem_kvm_vcpu_kick(cpu);
	pthread_mutex_unlock(&vm->vcpus_lock);
}

void gmem_vm_free(struct gmem_vm *vm)
{
	if (!vm)
		return;
	gmem_mmu_kill(&vm->mmu);
	gmem_vm_kick(vm);
	gmem_kvm_hypercalls_close(vm);
	gmem_vm_delete_slots(vm);
	gmem_vm_put(vm);
}

void gmem_vm_cancel(struct gmem_vm *vm)
{
	atomic_store(&vm->cancel, true);
}

int gmem_vm_stats(struct gmem_vm *vm, struct gmem_vm_stats *stats)
{
	if (stats->size < sizeof(*stats))
		return gmem_err(-EINVAL, "gmem_vm_stats: size %zu: expected %zu", stats->size, sizeof(*stats));
	*stats = (struct gmem_vm_stats){
		.size = sizeof(*stats),
		.populated = vm->populated,
		.sources = vm->sources,
	};
	gmem_mmu_stats(&vm->mmu, stats);
	return 0;
}

uint64_t gmem_vm_alias_bit(const struct gmem_vm *vm)
{
	return vm->alias_bit;
}

int gmem_vm_kvm_fd(const struct gmem_vm *vm)
{
	return vm->kvm;
}

void gmem_vm_lock_slots(struct gmem_vm *vm)
{
	gmem_lockcheck_acquire(GMEM_LOCK_SLOTS, &vm->slots_lock);
	pthread_mutex_lock(&vm->slots_lock);
}

void gmem_vm_unlock_slots(struct gmem_vm *vm)
{
	pthread_mutex_unlock(&vm->slots_lock);
	gmem_lockcheck_release(GMEM_LOCK_SLOTS, &vm->slots_lock);
}

int gmem_vm_decode_gpa(const struct gmem_vm *vm, const char *who, uint64_t gpa, uint64_t *ret_gpa,
		       enum gmem_want *ret_want)
{
	bool set = gpa & vm->alias_bit;

	gpa &= ~vm->alias_bit;
	if (gpa >> GMEM_PAGE_SHIFT >= vm->gfn_end)
		return gmem_err(-EINVAL, "%s: gpa 0x%llx: beyond 0x%llx", who, (unsigned long long)gpa,
				(unsigned long long)vm->gfn_end << GMEM_PAGE_SHIFT);
	*ret_gpa = gpa;
	if (vm->alias_bit)
		*ret_want = set == vm->alias_private ? GMEM_WANT_PRIVATE : GMEM_WANT_SHARED;
	else
		*ret_want = vm->type == GMEM_VM_DEFAULT ? GMEM_WANT_SHARED : GMEM_WANT_ANY;
	return 0;
}
