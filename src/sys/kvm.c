/* SPDX-License-Identifier: MIT */
#include "sys/kvm.h"

#include <errno.h>
#include <fcntl.h>

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
