/* SPDX-License-Identifier: MIT */
/*
 * A software-protected machine of the kernel's KVM, to be asked what gmem's own is asked: one guest_memfd, shared
 * memory beside it, one vCPU that runs two instructions. Skips the case with the tag "oracle" where this kernel makes
 * none.
 */
#ifndef GMEM_TESTS_ORACLE_KVM_H
#define GMEM_TESTS_ORACLE_KVM_H

#include <fcntl.h>
#include <sys/ioctl.h>

#include "mmu_util.h"
#include "sys/kvm.h"
#include "sys/uapi.h"

/* Where the vCPU's code is: in a slot of its own, far from the others. */
#define CODE_GPA (1ull << 30)
#define CODE_SLOT 100

struct kvm_machine {
	int kvm, vm, vcpu, memfd;
	bool pre_fault; /* it has KVM_PRE_FAULT_MEMORY */
	uint64_t len;
	char *shared; /* what the guest has where a page is shared */
	char *code;
	struct kvm_run *run;
	size_t run_len;
};

/* How an access of the vCPU ended. */
enum kvm_end { KVM_DONE, KVM_MMIO, KVM_FAULT };

struct kvm_ended {
	enum kvm_end end;
	uint64_t gpa, len, flags; /* KVM_FAULT, KVM_MMIO */
	uint8_t data[8]; /* KVM_MMIO: what is stored */
};

/* What the test's device says when it is read. */
#define DEVICE_SAYS 0x8877665544332211ull

static inline void *kvm_map(size_t len, int flags, int fd)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (p == MAP_FAILED)
		FAIL("mmap of %zu bytes: %s", len, strerror(errno));
	return p;
}

#ifdef __x86_64__

/* mov (%ebx), %eax; hlt     and, 16 bytes behind it     mov %eax, (%ebx); hlt */
static const unsigned char kvm_load_code[] = { 0x8b, 0x03, 0xf4 }, kvm_store_code[] = { 0x89, 0x03, 0xf4 };

/* Protected mode, flat, no paging: an address is a guest-physical address. */
static inline void kvm_set_mode(int vcpu)
{
	struct kvm_segment flat = { .limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .db = 1, .g = 1 };
	struct kvm_sregs sregs;

	CHECK_EQ(ioctl(vcpu, KVM_GET_SREGS, &sregs), 0);
	sregs.cs = flat;
	flat.selector = 16;
	flat.type = 3;
	sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = flat;
	sregs.cr0 |= 1;
	CHECK_EQ(ioctl(vcpu, KVM_SET_SREGS, &sregs), 0);
}

/* Four bytes at `gpa`, which is aligned to four, loaded or stored by the guest. */
static inline struct kvm_ended kvm_access(struct kvm_machine *k, bool store, uint64_t gpa, uint32_t *value)
{
	struct kvm_regs regs = { .rip = CODE_GPA + (store ? 16 : 0), .rbx = gpa, .rax = *value, .rflags = 2 };
	const struct gmem_kvm_memory_fault *fault = (const void *)&k->run->mmio;
	int rc, err;

	CHECK_EQ(ioctl(k->vcpu, KVM_SET_REGS, &regs), 0);
	k->run->exit_reason = ~0u;
	do
		rc = ioctl(k->vcpu, KVM_RUN, 0);
	while (rc < 0 && errno == EINTR);
	err = errno;
	if (!rc && k->run->exit_reason == KVM_EXIT_HLT) {
		CHECK_EQ(ioctl(k->vcpu, KVM_GET_REGS, &regs), 0);
		*value = (uint32_t)regs.rax;
		return (struct kvm_ended){ .end = KVM_DONE };
	}
	if (!rc && k->run->exit_reason == KVM_EXIT_MMIO) {
		struct kvm_ended ended = {
			.end = KVM_MMIO,
			.gpa = k->run->mmio.phys_addr,
			.len = k->run->mmio.len,
			.flags = k->run->mmio.is_write ? GMEM_EXIT_FLAG_WRITE : 0,
		};
		uint64_t says = DEVICE_SAYS;

		if (store)
			memcpy(ended.data, k->run->mmio.data, ended.len);
		else
			memcpy(k->run->mmio.data, &says, sizeof(says));
		/* The instruction is pending until the next KVM_RUN, which here is to do nothing else. */
		k->run->immediate_exit = 1;
		CHECK_EQ(ioctl(k->vcpu, KVM_RUN, 0), -1);
		CHECK_EQ(errno, EINTR);
		k->run->immediate_exit = 0;
		CHECK_EQ(ioctl(k->vcpu, KVM_GET_REGS, &regs), 0);
		*value = (uint32_t)regs.rax;
		return ended;
	}
	if (rc < 0 && err == EFAULT && k->run->exit_reason == KVM_EXIT_MEMORY_FAULT)
		return (struct kvm_ended){ KVM_FAULT, fault->gpa, fault->size, fault->flags };
	FAIL("KVM_RUN, gpa 0x%llx: %d, %s, exit %u", (unsigned long long)gpa, rc, rc < 0 ? strerror(err) : "-",
	     k->run->exit_reason);
}

static inline void kvm_make_vcpu(struct kvm_machine *k)
{
	k->vcpu = (int)CHECK_OK(gmem_kvm_vcpu_create(k->vm, 0));
	k->run_len = (size_t)CHECK_OK(ioctl(k->kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	k->run = kvm_map(k->run_len, MAP_SHARED, k->vcpu);
	k->code = kvm_map(PG, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	memcpy(k->code, kvm_load_code, sizeof(kvm_load_code));
	memcpy(k->code + 16, kvm_store_code, sizeof(kvm_store_code));
	CHECK_OK(gmem_kvm_slot_set(k->vm, CODE_SLOT, CODE_GPA, PG, k->code, -1, 0));
	kvm_set_mode(k->vcpu);
}

#else

static inline struct kvm_ended kvm_access(struct kvm_machine *k, bool store, uint64_t gpa, uint32_t *value)
{
	(void)k;
	(void)store;
	(void)gpa;
	(void)value;
	SKIP("oracle", "software-protected machines are x86-64");
}

static inline void kvm_make_vcpu(struct kvm_machine *k)
{
	(void)k;
	SKIP("oracle", "software-protected machines are x86-64");
}

#endif

/* The first `len` bytes of the guest are to be had by slots of `memfd` and `shared`; there are none yet. */
static inline void kvm_make(struct kvm_machine *k, uint64_t len)
{
	int attributes;

	*k = (struct kvm_machine){ .len = len };
	k->kvm = gmem_kvm_open();
	if (k->kvm < 0)
		SKIP("oracle", "/dev/kvm: %s", strerror(-k->kvm));
	if (!(gmem_kvm_check(k->kvm, KVM_CAP_VM_TYPES) & 1 << KVM_X86_SW_PROTECTED_VM))
		SKIP("oracle", "this kernel's KVM makes no software-protected machines; to run it: make test-oracle");
	k->vm = gmem_kvm_vm_create(k->kvm, KVM_X86_SW_PROTECTED_VM);
	if (k->vm < 0)
		SKIP("oracle", "a software-protected machine: %s", strerror(-k->vm));
	attributes = gmem_kvm_check(k->vm, KVM_CAP_MEMORY_ATTRIBUTES);
	if (attributes < 0 || !(attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE))
		SKIP("oracle", "this KVM's machines have no memory attributes");
	k->pre_fault = gmem_kvm_check(k->vm, KVM_CAP_PRE_FAULT_MEMORY) > 0;
	k->memfd = (int)CHECK_OK(gmem_kvm_memfd_create(k->vm, len, 0));
	k->shared = kvm_map(len, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	kvm_make_vcpu(k);
}

static inline void kvm_unmake(struct kvm_machine *k)
{
	munmap(k->run, k->run_len);
	munmap(k->code, PG);
	munmap(k->shared, k->len);
	close(k->vcpu);
	if (k->memfd >= 0)
		close(k->memfd);
	close(k->vm);
	close(k->kvm);
}

/* 0 or -errno, and how far it came; *done stays as it is if KVM did not look at the range. */
static inline int kvm_pre_fault(struct kvm_machine *k, uint64_t gpa, uint64_t len, uint64_t *done)
{
	struct gmem_kvm_pre_fault_memory range = { .gpa = gpa, .size = len };
	int err = ioctl(k->vcpu, KVM_PRE_FAULT_MEMORY, &range) < 0 ? -errno : 0;

	CHECK_EQ(range.gpa - gpa, len - range.size);
	*done = range.gpa - gpa;
	return err;
}

/* A slot whose guest-physical addresses are offsets: of the guest_memfd, and of the shared memory. */
static inline int kvm_slot(struct kvm_machine *k, uint32_t slot, uint64_t gpa, uint64_t len)
{
	return gmem_kvm_slot_set(k->vm, slot, gpa, len, gpa < k->len ? k->shared + gpa : k->shared, k->memfd, gpa);
}

/* Both memories of the pages are dropped; there is nothing else a punch could mean to two of them. */
static inline int kvm_punch(struct kvm_machine *k, uint64_t off, uint64_t len)
{
	if (fallocate(k->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len) < 0)
		return -errno;
	CHECK_EQ(madvise(k->shared + off, len, MADV_DONTNEED), 0);
	return 0;
}

#endif
