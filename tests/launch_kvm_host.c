/* SPDX-License-Identifier: MIT */
/*
 * This host's KVM, asked for what it may not have. Where it has no SNP and no TDX, that is what the caller is told; and
 * if it is asked all the same (ld --wrap takes the look at KVM_CAP_VM_TYPES away) its answer is the library's.
 */
#include "tap.h"

#include "sys/call.h"
#include "sys/kvm.h"
#include "sys/kvm_sev.h"
#include "sys/kvm_tdx.h"
#include "sys/uapi.h"

int __real_gmem_kvm_check(int fd, unsigned long cap);
int __wrap_gmem_kvm_check(int fd, unsigned long cap);

static bool all_types;

int __wrap_gmem_kvm_check(int fd, unsigned long cap)
{
	return all_types && cap == KVM_CAP_VM_TYPES ? 0x3f : __real_gmem_kvm_check(fd, cap);
}

static int default_vm(void)
{
	int kvm = gmem_kvm_open(), vm;

	if (kvm < 0)
		SKIP("kvm", "/dev/kvm: %s", strerror(-kvm));
	vm = (int)CHECK_OK(gmem_kvm_vm_create(kvm, KVM_X86_DEFAULT_VM));
	close(kvm);
	return vm;
}

static const enum gmem_vm_type kinds[] = { GMEM_VM_SNP, GMEM_VM_TDX };

TEST(a_host_without)
{
	int vm = default_vm(), types = gmem_kvm_check(vm, KVM_CAP_VM_TYPES);
	struct gmem_launch *launch;

	for (unsigned int i = 0; i < 2; i++) {
		if (types & 1 << kinds[i])
			continue; /* it has that kind: a default machine is told nothing of it here */
		CHECK_ERR(gmem_launch_create_kvm(vm, kinds[i], NULL, &launch), -EOPNOTSUPP);
		CHECK_HAS(gmem_last_error(), "kvm.vm");
	}
	close(vm);
}

TEST(what_is_no_machine)
{
	int kvm = gmem_kvm_open(), vcpu, vm;
	struct gmem_launch *launch;

	if (kvm < 0)
		SKIP("kvm", "/dev/kvm: %s", strerror(-kvm));
	vm = default_vm();
	vcpu = (int)CHECK_OK(gmem_kvm_vcpu_create(vm, 0));
	all_types = true;
	for (unsigned int i = 0; i < 2; i++) {
		CHECK_ERR(gmem_launch_create_kvm(kvm, kinds[i], NULL, &launch), -EBADF);
		CHECK_ERR(gmem_launch_create_kvm(vcpu, kinds[i], NULL, &launch), -EBADF);
	}
	close(vcpu);
	close(vm);
	close(kvm);
}

/* KVM's errno and the library's: the same, and in words. */
TEST(what_kvm_answers_is_passed_on)
{
	struct gmem_launch_opts opts = { .size = sizeof(opts) };
	struct gmem_kvm_sev_init init = { 0 };
	struct gmem_launch *launch;
	uint64_t hw_error;
	uint32_t error;
	int vm = default_vm(), err;

	if (gmem_kvm_check(vm, KVM_CAP_VM_TYPES) & 0x3c)
		SKIP("no-sev", "this KVM has SEV or TDX, which would take the commands for its own");
	opts.sev_fd = vm; /* nobody looks at it before the machine */
	all_types = true;

	err = gmem_kvm_sev_op(vm, vm, GMEM_KVM_SEV_INIT2, &init, &error);
	CHECK(err < 0);
	CHECK_EQ(error, 0);
	CHECK_ERR(gmem_launch_create_kvm(vm, GMEM_VM_SNP, &opts, &launch), err);
	CHECK_HAS(gmem_last_error(), "gmem_launch_create_kvm: KVM_SEV_INIT2: ");
	if (err == -ENOTTY)
		CHECK_HAS(gmem_last_error(), "this KVM has no SEV");

	err = gmem_kvm_tdx_op(vm, GMEM_KVM_TDX_CAPABILITIES, 0, 0, &hw_error);
	CHECK(err < 0);
	CHECK_EQ(hw_error, 0);
	CHECK_ERR(gmem_launch_create_kvm(vm, GMEM_VM_TDX, &opts, &launch), err);
	CHECK_HAS(gmem_last_error(), "gmem_launch_create_kvm: KVM_TDX_CAPABILITIES: ");
	if (err == -ENOTTY)
		CHECK_HAS(gmem_last_error(), "this KVM has no TDX");
	close(vm);
}

/* Each of the others, at the seam: a machine that is not one for it refuses, and leaves no status behind. */
TEST(every_command_is_refused)
{
	static const uint32_t sev[] = { GMEM_KVM_SEV_INIT2, GMEM_KVM_SEV_SNP_LAUNCH_START,
					GMEM_KVM_SEV_SNP_LAUNCH_UPDATE, GMEM_KVM_SEV_SNP_LAUNCH_FINISH };
	int vm = default_vm(), vcpu = (int)CHECK_OK(gmem_kvm_vcpu_create(vm, 0));
	uint8_t data[256] = { 0 };
	uint64_t hw_error;
	uint32_t error;

	if (gmem_kvm_check(vm, KVM_CAP_VM_TYPES) & 0x3c)
		SKIP("no-sev", "this KVM has SEV or TDX, which would take the commands for its own");
	for (unsigned int i = 0; i < 4; i++) {
		CHECK_EQ(gmem_kvm_sev_op(vm, vm, sev[i], data, &error), -ENOTTY);
		CHECK_EQ(error, 0);
	}
	for (uint32_t id = GMEM_KVM_TDX_CAPABILITIES; id <= GMEM_KVM_TDX_FINALIZE_VM; id++) {
		bool of_vcpu = id == GMEM_KVM_TDX_INIT_VCPU || id == GMEM_KVM_TDX_INIT_MEM_REGION;

		CHECK_EQ(gmem_kvm_tdx_op(of_vcpu ? vcpu : vm, id, 0, (uintptr_t)data, &hw_error), -ENOTTY);
		CHECK_EQ(hw_error, 0);
	}
	close(vcpu);
	close(vm);
}
