/* SPDX-License-Identifier: MIT */
#include "sys/kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "sys/call.h"
#include "sys/uapi.h"

int gmem_kvm_open(void)
{
	return gmem_sys_open("/dev/kvm", O_RDWR);
}

int gmem_kvm_api_version(int kvm)
{
	return gmem_sys_ioctl_val(kvm, KVM_GET_API_VERSION, 0);
}

int gmem_kvm_check(int fd, unsigned long cap)
{
	return gmem_sys_ioctl_val(fd, KVM_CHECK_EXTENSION, cap);
}

bool gmem_kvm_is_vm(int fd)
{
	/* /dev/kvm answers both. */
	return gmem_kvm_check(fd, KVM_CAP_USER_MEMORY) > 0 && gmem_kvm_api_version(fd) < 0;
}

int gmem_kvm_vm_create(int kvm, unsigned long type)
{
	int rc;

	/* KVM answers EINTR when a signal comes while it sets up its worker threads. */
	do
		rc = gmem_sys_ioctl_val(kvm, KVM_CREATE_VM, type);
	while (rc == -EINTR);
	return rc;
}

int gmem_kvm_vcpu_create(int vm, unsigned long id)
{
	return gmem_sys_ioctl_val(vm, KVM_CREATE_VCPU, id);
}

int gmem_kvm_cap_enable(int vm, uint32_t cap, uint64_t arg)
{
	struct kvm_enable_cap enable = { .cap = cap };

	enable.args[0] = arg;
	return gmem_sys_ioctl(vm, KVM_ENABLE_CAP, &enable);
}

int gmem_kvm_memfd_create(int vm, uint64_t len, uint64_t flags)
{
	struct gmem_kvm_create_guest_memfd create = { .size = len, .flags = flags };

	int fd = gmem_sys_ioctl(vm, KVM_CREATE_GUEST_MEMFD, &create);

	/* KVM makes its other descriptors so. */
	if (fd >= 0)
		(void)fcntl(fd, F_SETFD, FD_CLOEXEC);
	return fd;
}

int gmem_kvm_slot_set(int vm, uint32_t slot, uint64_t gpa, uint64_t len, void *hva, int gmemfd, uint64_t off)
{
	struct gmem_kvm_userspace_memory_region2 region = {
		.slot = slot,
		.guest_phys_addr = gpa,
		.memory_size = len,
		.userspace_addr = (uintptr_t)hva,
	};

	if (gmemfd >= 0) {
		region.flags |= KVM_MEM_GUEST_MEMFD;
		region.guest_memfd = (uint32_t)gmemfd;
		region.guest_memfd_offset = off;
	}
	return gmem_sys_ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &region);
}

int gmem_kvm_attributes_set(int vm, uint64_t gpa, uint64_t len, uint64_t attributes)
{
	struct gmem_kvm_memory_attributes attrs = { .address = gpa, .size = len, .attributes = attributes };

	return gmem_sys_ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &attrs);
}

int gmem_kvm_memfd_attributes_set(int gmemfd, uint64_t off, uint64_t len, uint64_t attributes, uint64_t *ret_error_off)
{
	/* Not every error sets it: the range is to blame then. */
	struct gmem_kvm_memory_attributes2 attrs = {
		.offset = off,
		.size = len,
		.attributes = attributes,
		.error_offset = off,
	};
	int err = gmem_sys_ioctl(gmemfd, KVM_SET_MEMORY_ATTRIBUTES2, &attrs);

	if (err && ret_error_off)
		*ret_error_off = attrs.error_offset;
	return err;
}

int gmem_kvm_pre_fault(int vcpu, uint64_t gpa, uint64_t len)
{
	struct gmem_kvm_pre_fault_memory range = { .gpa = gpa, .size = len };

	return gmem_sys_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
}

int gmem_kvm_plain_slot_set(int vm, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t len, void *hva)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.flags = flags,
		.guest_phys_addr = gpa,
		.memory_size = len,
		.userspace_addr = (uintptr_t)hva,
	};

	return gmem_sys_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
}

int gmem_kvm_dirty_log(int vm, uint32_t slot, uint64_t *bitmap)
{
	struct kvm_dirty_log log = { .slot = slot, .dirty_bitmap = bitmap };

	return gmem_sys_ioctl(vm, KVM_GET_DIRTY_LOG, &log);
}

int gmem_kvm_clear_dirty_log(int vm, uint32_t slot, uint64_t npages, uint64_t *bitmap)
{
	struct kvm_clear_dirty_log log = { .slot = slot, .num_pages = (uint32_t)npages, .dirty_bitmap = bitmap };

	return gmem_sys_ioctl(vm, KVM_CLEAR_DIRTY_LOG, &log);
}

int gmem_kvm_run_len(int kvm)
{
	return gmem_sys_ioctl_val(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
}

int gmem_kvm_signal_mask(int vcpu, const sigset_t *mask)
{
	/* struct kvm_signal_mask with the kernel's set in it: 64 signals, and not a sigset_t. */
	_Alignas(uint32_t) unsigned char arg[sizeof(uint32_t) + 8];
	uint32_t len = 8;

	if (!mask)
		return gmem_sys_ioctl(vcpu, KVM_SET_SIGNAL_MASK, NULL);
	memcpy(arg, &len, sizeof(len));
	memcpy(arg + sizeof(len), mask, len);
	return gmem_sys_ioctl(vcpu, KVM_SET_SIGNAL_MASK, arg);
}

int gmem_kvm_run(int vcpu)
{
	return gmem_sys_ioctl_val(vcpu, KVM_RUN, 0);
}

#ifdef __x86_64__

int gmem_kvm_translate(int vcpu, uint64_t linear, uint64_t *ret_gpa)
{
	struct kvm_translation t = { .linear_address = linear };
	int err = gmem_sys_ioctl(vcpu, KVM_TRANSLATE, &t);

	if (err)
		return err;
	*ret_gpa = t.physical_address;
	return t.valid ? 0 : -EFAULT;
}

int gmem_kvm_fetch_gpa(int vcpu, uint64_t at, uint64_t *ret_gpa)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	int err = gmem_sys_ioctl(vcpu, KVM_GET_REGS, &regs);

	if (!err)
		err = gmem_sys_ioctl(vcpu, KVM_GET_SREGS, &sregs);
	return err ? err : gmem_kvm_translate(vcpu, sregs.cs.base + regs.rip + at, ret_gpa);
}

#define MOST_MSRS 8

struct msrs {
	struct kvm_msrs head;
	struct kvm_msr_entry entry[MOST_MSRS];
};

int gmem_kvm_msrs_get(int vcpu, unsigned int n, const uint32_t *msr, uint64_t *ret_value)
{
	struct msrs m = { .head = { .nmsrs = n } };
	int got;

	for (unsigned int i = 0; i < n; i++)
		m.entry[i].index = msr[i];
	got = gmem_sys_ioctl(vcpu, KVM_GET_MSRS, &m);
	for (int i = 0; i < got; i++)
		ret_value[i] = m.entry[i].data;
	return got;
}

int gmem_kvm_msr_set(int vcpu, uint32_t msr, uint64_t value)
{
	struct msrs m = { .head = { .nmsrs = 1 }, .entry = { { .index = msr, .data = value } } };
	int set = gmem_sys_ioctl(vcpu, KVM_SET_MSRS, &m);

	return set < 0 ? set : set ? 0 : -EINVAL;
}

void gmem_kvm_settle_regs(int vcpu)
{
	struct kvm_regs regs;

	(void)gmem_sys_ioctl(vcpu, KVM_GET_REGS, &regs);
}

#else

int gmem_kvm_translate(int vcpu, uint64_t linear, uint64_t *ret_gpa)
{
	return -EOPNOTSUPP;
}

int gmem_kvm_fetch_gpa(int vcpu, uint64_t at, uint64_t *ret_gpa)
{
	return -EOPNOTSUPP;
}

int gmem_kvm_msrs_get(int vcpu, unsigned int n, const uint32_t *msr, uint64_t *ret_value)
{
	return -EOPNOTSUPP;
}

int gmem_kvm_msr_set(int vcpu, uint32_t msr, uint64_t value)
{
	return -EOPNOTSUPP;
}

void gmem_kvm_settle_regs(int vcpu)
{
}

#endif
