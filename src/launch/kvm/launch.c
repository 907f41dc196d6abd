/* SPDX-License-Identifier: MIT */
/* What SNP and TDX have in common when KVM does the launch. Enters, leaves and locks: see kvm.h. */
#include "launch/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/err.h"
#include "launch/kvm/kvm.h"
#include "sys/kvm.h"
#include "sys/kvm_sev.h"
#include "sys/kvm_tdx.h"
#include "sys/uapi.h"

/* ---- its making */

static void kvm_free(struct gmem_launch *launch)
{
	struct gmem_kvm_launch *l = (struct gmem_kvm_launch *)launch;

	for (int i = 0; i < l->nvcpus; i++)
		close(l->vcpus[i]);
	if (l->sev >= 0)
		close(l->sev);
	if (l->vm >= 0)
		close(l->vm);
	free(l->vcpus);
	pthread_mutex_destroy(&l->m);
	free(l);
}

/*
 * Asked before anything is said to the machine: the two vendors share an ioctl and its numbers, and a default machine
 * takes TDX's first command for one of SEV's.
 */
static int check_vm(int vm, enum gmem_vm_type type)
{
	int types;

	if (vm < 0 || !gmem_kvm_is_vm(vm))
		return gmem_err(-EBADF, "descriptor %d is no KVM machine of this process", vm);
	types = gmem_kvm_check(vm, KVM_CAP_VM_TYPES);
	if (types < 0)
		return gmem_err_sys(types, "KVM_CAP_VM_TYPES");
	if (!(types & 1 << type))
		return gmem_err(-EOPNOTSUPP, "this host's KVM has no %s machines (see gmem info kvm.vm)",
				type == GMEM_VM_SNP ? "SNP" : "TDX");
	return 0;
}

static int dup_fds(struct gmem_kvm_launch *l, int vm, const struct gmem_launch_opts *opts)
{
	l->vm = fcntl(vm, F_DUPFD_CLOEXEC, 0);
	if (l->vm < 0)
		return gmem_err_sys(-errno, "kvm_vm");
	if (l->base.type != GMEM_VM_SNP)
		return 0;
	l->sev = opts->sev_fd ? fcntl(opts->sev_fd, F_DUPFD_CLOEXEC, 0) : gmem_kvm_sev_open();
	if (l->sev < 0)
		return gmem_err_sys(opts->sev_fd ? -errno : l->sev, opts->sev_fd ? "sev_fd" : "/dev/sev");
	return 0;
}

/* ---- commands */

/* The descriptor of a vCPU that was added. It is not closed before the launch is freed. */
static int vcpu_fd(struct gmem_kvm_launch *l, int vcpu)
{
	int fd;

	pthread_mutex_lock(&l->m);
	fd = vcpu < l->nvcpus ? l->vcpus[vcpu] : -1;
	pthread_mutex_unlock(&l->m);
	return fd >= 0 ? fd : gmem_err(-EINVAL, "vCPU %d has not been added", vcpu);
}

static int command(struct gmem_kvm_launch *l, int vcpu, uint32_t id, uint32_t flags, void *data,
		   struct gmem_launch_answer *answer)
{
	int fd = l->vm;

	if (l->base.type == GMEM_VM_SNP) {
		/* `flags` are padding in struct kvm_sev_cmd. */
		if (vcpu >= 0)
			return gmem_err(-ENOTTY, "vCPU %d: SNP has no commands of vCPUs", vcpu);
		return gmem_kvm_snp_command(l, id, data, &answer->status);
	}
	if (vcpu >= 0)
		fd = vcpu_fd(l, vcpu);
	if (fd < 0)
		return fd;
	return gmem_kvm_tdx_command(fd, id, flags, (uintptr_t)data, &answer->status);
}

static int kvm_command(struct gmem_launch *launch, int vcpu, uint32_t id, uint32_t flags, void *data,
		       struct gmem_launch_answer *answer)
{
	struct gmem_kvm_launch *l = (struct gmem_kvm_launch *)launch;
	bool last = id == (launch->type == GMEM_VM_SNP ? GMEM_SNP_CMD_LAUNCH_FINISH : GMEM_TDX_CMD_FINALIZE_VM);
	int err = command(l, vcpu, id, flags, data, answer);

	if (!err && last)
		atomic_store(&l->finished, true);
	return err;
}

/* One more, `fd`, which is taken if that succeeds. KVM measures an SNP machine's vCPUs, all of them, by itself. */
static int add(struct gmem_kvm_launch *l, int fd, uint64_t rcx)
{
	int *more = reallocarray(l->vcpus, (size_t)l->nvcpus + 1, sizeof(*more));
	uint64_t status;
	int err = 0;

	if (!more)
		return gmem_err_sys(-ENOMEM, "vcpu");
	l->vcpus = more;
	if (l->base.type == GMEM_VM_TDX) {
		err = gmem_kvm_tdx_command(fd, GMEM_KVM_TDX_INIT_VCPU, 0, rcx, &status);
		if (err)
			atomic_store(&l->base.status, status);
	}
	if (!err)
		l->vcpus[l->nvcpus++] = fd;
	return err;
}

static int kvm_add_vcpu(struct gmem_launch *launch, const struct gmem_launch_vcpu *vcpu)
{
	struct gmem_kvm_launch *l = (struct gmem_kvm_launch *)launch;
	int fd, err;

	if (vcpu->snp)
		return gmem_err(-EINVAL,
				"on KVM a vCPU begins with what its registers are: `snp` is for the emulation");
	if (vcpu->kvm_vcpu <= 0)
		return gmem_err(-EINVAL, "no kvm_vcpu");
	if (atomic_load(&l->finished))
		return gmem_err(-EBUSY, "the launch is finished");
	fd = fcntl(vcpu->kvm_vcpu, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return gmem_err_sys(-errno, "kvm_vcpu");
	pthread_mutex_lock(&l->m);
	err = add(l, fd, vcpu->rcx);
	pthread_mutex_unlock(&l->m);
	if (err)
		close(fd);
	return err;
}

static const struct gmem_launch_ops kvm_ops = {
	.command = kvm_command,
	.add_vcpu = kvm_add_vcpu,
	.free = kvm_free,
};

int gmem_kvm_launch_create(int kvm_vm, enum gmem_vm_type type, const struct gmem_launch_opts *opts,
			   struct gmem_launch **ret)
{
	struct gmem_kvm_launch *l;
	int err;

	if (type == GMEM_VM_TDX && opts->flags)
		return gmem_err(-EINVAL, "flags 0x%x: not TDX's", opts->flags);
	err = check_vm(kvm_vm, type);
	if (err)
		return err;
	l = calloc(1, sizeof(*l));
	if (!l)
		return gmem_err_sys(-ENOMEM, "launch");
	l->base = (struct gmem_launch){ .ops = &kvm_ops, .type = type };
	l->vm = l->sev = -1;
	pthread_mutex_init(&l->m, NULL);
	err = dup_fds(l, kvm_vm, opts);
	if (!err)
		err = type == GMEM_VM_SNP ? gmem_kvm_snp_begin(l, opts) : gmem_kvm_tdx_begin(l, opts);
	if (err) {
		kvm_free(&l->base);
		return err;
	}
	*ret = &l->base;
	return 0;
}
