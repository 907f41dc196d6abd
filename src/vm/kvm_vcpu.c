/* SPDX-License-Identifier: MIT */
/* What a vCPU of KVM's is made of. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/err.h"
#include "file/gate.h"
#include "sys/call.h"
#include "sys/kvm.h"
#include "vm/kvm_vcpu.h"

/* Of all that may have passed with the page. */
static void tell_areas(struct gmem_vm *vm, const struct gmem_mapping *m)
{
	uint64_t off = gmem_file_unit_off(m->gate->file, m->off);
	uint64_t len = m->hva ? m->gate->off + m->gate->len - off : gmem_gate_around(m->gate);

	gmem_kvm_tell_areas(vm, m->gfn - ((m->off - off) >> GMEM_PAGE_SHIFT), len >> GMEM_PAGE_SHIFT);
}

static enum gmem_map_result let_pass(struct gmem_vcpu *vcpu, const struct gmem_mapping *m)
{
	struct gmem_vm *vm = gmem_cpu_of(vcpu)->vm;
	int err = -EEXIST;

	if (m->gate) {
		atomic_fetch_add(&vm->passing, 1);
		err = m->hva ? gmem_gate_pass_caller(m->gate, m->off, m->alone) :
			       gmem_gate_pass(m->gate, m->off, m->alone);
		/* Before it is over: see pages_changed() in kvm_exit.c. To show the caller's may have barred others. */
		if (!err || m->hva)
			atomic_fetch_add(&vm->passed, 1);
		atomic_fetch_sub(&vm->passing, 1);
	}
	if (!err) {
		tell_areas(vm, m);
		return GMEM_MAP_FIXED;
	}
	if (err == -EEXIST)
		return GMEM_MAP_SPURIOUS;
	if (err == -EAGAIN)
		return GMEM_MAP_RETRY;
	vcpu->map_err = err;
	return GMEM_MAP_FAILED;
}

/*
 * As many pages as KVM has behind the descriptor. Only /dev/kvm tells the number, which the caller may have no way to
 * any more; a page that is not there cannot be read.
 */
static int map_run(struct kvm_vcpu *v)
{
	const size_t most = 16 * GMEM_PAGE_SIZE;
	char byte, *p = mmap(NULL, most, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	ssize_t n;

	if (p == MAP_FAILED)
		return gmem_err_sys(-errno, "gmem_vcpu_create: struct kvm_run");
	v->run = (struct kvm_run *)p;
	v->run_len = most;
	n = gmem_sys_peek(&byte, p, 1);
	if (n != 1)
		return gmem_err_sys(n < 0 ? (int)n : -EFAULT, "gmem_vcpu_create: struct kvm_run");
	v->run_len = GMEM_PAGE_SIZE;
	while (v->run_len < most && gmem_sys_peek(&byte, p + v->run_len, 1) == 1)
		v->run_len += GMEM_PAGE_SIZE;
	if (v->run_len < most)
		munmap(p + v->run_len, most - v->run_len);
	return 0;
}

static int open_vcpu(struct kvm_vcpu *v, const struct gmem_vm *vm, const struct gmem_vcpu_opts *opts)
{
	if (opts->kvm_vcpu) {
		/* The mask is the library's to set, and only a vCPU has one. */
		if (gmem_kvm_signal_mask(opts->kvm_vcpu, NULL))
			return gmem_err(-EBADF, "gmem_vcpu_create: kvm_vcpu %d: no vCPU of KVM's of this process",
					opts->kvm_vcpu);
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
	*v = (struct kvm_vcpu){ .fd = -1, .areas_due = true };
	for (unsigned int i = 0; i < KVM_AREAS; i++)
		atomic_store(&v->area_gfn[i], KVM_NO_AREA);
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
