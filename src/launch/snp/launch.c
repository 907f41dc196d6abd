/* SPDX-License-Identifier: MIT */
/* An SNP launch by software: its making, its vCPUs, its digest. What is commanded, KVM's part does: kvm.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "launch/snp/kvm.h"
#include "launch/snp/vmsa.h"

#define SNP_ACTIVE 0x1ull
#define OFFERED 0x220ull /* what KVM offers of SEV_FEATURES, KVM_X86_SEV_VMSA_FEATURES: DebugSwap, SecureTsc */

struct snp_launch {
	struct gmem_launch launch; /* first */
	struct gmem_snp_guest *guest; /* the VM's */
};

static struct gmem_snp_guest *guest_of(struct gmem_launch *launch)
{
	return ((struct snp_launch *)launch)->guest;
}

static int command(struct gmem_launch *launch, int vcpu, uint32_t id, uint32_t flags, void *data,
		   struct gmem_launch_answer *answer)
{
	struct gmem_snp_guest *guest = guest_of(launch);
	int err;

	(void)flags; /* padding in KVM's structure, and not looked at */
	if (gmem_mmu_dead(&launch->vm->mmu))
		return answer->why = gmem_err(-EIO, "this VM is dead");
	if (vcpu != -1)
		return answer->why = gmem_err(-ENOTTY, "not a command to a vCPU");
	err = gmem_snp_kvm_command(guest, id, data, answer);
	if (err && !answer->why)
		answer->why = err;
	return err;
}

static int add_vmsa(struct gmem_snp_guest *guest, const struct gmem_snp_vcpu *vcpu)
{
	struct gmem_snp_vmsa *vmsas;
	void *page;

	if (!atomic_load(&guest->external.building))
		return gmem_err(-EBUSY, "the launch is finished");
	vmsas = realloc(guest->vmsas, (guest->nvmsas + 1) * sizeof(*vmsas));
	if (!vmsas)
		return gmem_err_sys(-ENOMEM, "vCPU %u", guest->nvmsas);
	guest->vmsas = vmsas;
	page = gmem_snp_guest_page(guest);
	if (!page)
		return gmem_err_sys(-ENOMEM, "vCPU %u", guest->nvmsas);
	gmem_snp_vmsa_build(vcpu, page);
	guest->vmsas[guest->nvmsas++] = (struct gmem_snp_vmsa){ .page = page };
	return 0;
}

static int add_vcpu(struct gmem_launch *launch, const struct gmem_launch_vcpu *vcpu)
{
	struct gmem_snp_guest *guest = guest_of(launch);
	struct gmem_snp_vcpu snp;
	int err;

	if (!vcpu->snp || vcpu->snp->size != sizeof(snp))
		return gmem_err(-EINVAL, "vcpu->snp: missing, or of another size");
	snp = *vcpu->snp;
	/* KVM takes them from the VM: no machine would measure others. */
	if (snp.sev_features != guest->sev_features)
		return gmem_err(-EINVAL, "sev_features 0x%llx: the launch was made with 0x%llx, and so are its vCPUs",
				(unsigned long long)snp.sev_features, (unsigned long long)guest->sev_features);
	gmem_vm_lock_slots(launch->vm);
	err = add_vmsa(guest, &snp);
	gmem_vm_unlock_slots(launch->vm);
	return err;
}

static int digest(struct gmem_launch *launch, uint8_t *ret)
{
	struct gmem_snp_guest *guest = guest_of(launch);

	gmem_vm_lock_slots(launch->vm);
	if (guest->started)
		memcpy(ret, ((const struct gmem_snp_context *)guest->context)->ld, GMEM_SNP_LD_LEN);
	else
		memset(ret, 0, GMEM_SNP_LD_LEN);
	gmem_vm_unlock_slots(launch->vm);
	return 0;
}

static void free_launch(struct gmem_launch *launch)
{
	gmem_vm_put(launch->vm);
	free(launch);
}

static const struct gmem_launch_ops launch_ops = {
	.command = command,
	.add_vcpu = add_vcpu,
	.digest = digest,
	.free = free_launch,
};

/* KVM_SEV_INIT2, then LAUNCH_START. slots_lock held. */
static int begin(struct gmem_vm *vm, struct gmem_snp_guest *guest, const struct gmem_launch_opts *opts)
{
	struct gmem_snp_launch_start p = { .policy = opts->policy };
	struct gmem_launch_answer answer = { 0 };
	int err = 0;

	memcpy(p.gosvw, opts->gosvw, sizeof(p.gosvw));
	guest->sev_features = opts->sev_features | SNP_ACTIVE;
	if (!(opts->flags & GMEM_LAUNCH_NOT_STARTED))
		err = gmem_snp_kvm_start(guest, &p, &answer);
	return err ? err : gmem_mmu_set_external(&vm->mmu, &guest->external);
}

int gmem_snp_launch_create(struct gmem_vm *vm, const struct gmem_launch_opts *opts, struct gmem_launch **ret)
{
	struct snp_launch *launch;
	int err;

	if (vm->kvm >= 0)
		return gmem_err(-EOPNOTSUPP, "a VM with guests on KVM");
	if (opts->sev_features & ~OFFERED)
		return gmem_err(-EINVAL, "sev_features 0x%llx: KVM has 0x%llx", (unsigned long long)opts->sev_features,
				(unsigned long long)OFFERED);
	launch = calloc(1, sizeof(*launch));
	if (!launch)
		return gmem_err_sys(-ENOMEM, "launch");
	err = gmem_snp_guest_create(vm, &launch->guest);
	if (!err) {
		gmem_vm_lock_slots(vm);
		err = begin(vm, launch->guest, opts);
		gmem_vm_unlock_slots(vm);
		if (err)
			gmem_snp_guest_free(launch->guest);
	}
	if (err) {
		free(launch);
		return err;
	}
	launch->launch = (struct gmem_launch){ .ops = &launch_ops, .type = GMEM_VM_SNP, .vm = vm };
	gmem_vm_get(vm);
	*ret = &launch->launch;
	return 0;
}
