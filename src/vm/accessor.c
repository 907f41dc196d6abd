/* SPDX-License-Identifier: MIT */
/*
 * The accessor: a vCPU that executes no instructions and makes a guest's accesses.
 *
 * A page's bytes are copied in an epoch, between guest memory and a page of the accessor's own, so that neither a fault
 * on the caller's memory nor anything else keeps a zap waiting.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/range.h"
#include "vm/vm.h"

int gmem_accessor_create(struct gmem_cpu **ret)
{
	struct gmem_accessor *a;

	if (posix_memalign((void **)&a, _Alignof(struct gmem_accessor), sizeof(*a)))
		return gmem_err_sys(-ENOMEM, "gmem_vcpu_create");
	*ret = &a->cpu;
	return 0;
}

/* NULL, with text: it is none. */
static struct gmem_accessor *accessor_of(struct gmem_vcpu *vcpu, const char *who)
{
	struct gmem_cpu *cpu = gmem_cpu_of(vcpu);

	if (cpu->kind == GMEM_VCPU_ACCESSOR)
		return (struct gmem_accessor *)cpu;
	(void)gmem_err(-EINVAL, "%s: this vCPU executes instructions: it is no accessor", who);
	return NULL;
}

/* ---- one page */

/* Words are never torn: another vCPU, or the host, may be at them. */
static void copy(void *to, const void *from, size_t n)
{
	uintptr_t both = (uintptr_t)to | (uintptr_t)from;

	if (n == 8 && !(both & 7))
		__atomic_store_n((uint64_t *)to, __atomic_load_n((const uint64_t *)from, __ATOMIC_ACQUIRE),
				 __ATOMIC_RELEASE);
	else if (n == 4 && !(both & 3))
		__atomic_store_n((uint32_t *)to, __atomic_load_n((const uint32_t *)from, __ATOMIC_ACQUIRE),
				 __ATOMIC_RELEASE);
	else if (n == 2 && !(both & 1))
		__atomic_store_n((uint16_t *)to, __atomic_load_n((const uint16_t *)from, __ATOMIC_ACQUIRE),
				 __ATOMIC_RELEASE);
	else
		memcpy(to, from, n);
}

/* The bytes of one page, or a part of it, to or from the bounce page. False: no translation allows it. */
static bool try_page(struct gmem_accessor *a, uint64_t gpa, size_t n, uint32_t access, enum gmem_want want)
{
	char *page = gmem_mmu_enter(&a->cpu.vcpu, gpa >> GMEM_PAGE_SHIFT, access, want);
	size_t at = gpa & (GMEM_PAGE_SIZE - 1);

	if (!page)
		return false;
	if (access & GMEM_ACCESS_WRITE)
		copy(page + at, a->bounce + at, n);
	else
		copy(a->bounce + at, page + at, n);
	gmem_mmu_leave(&a->cpu.vcpu);
	return true;
}

static int access_page(struct gmem_accessor *a, uint64_t gpa, size_t n, uint32_t access, enum gmem_want want)
{
	while (!try_page(a, gpa, n, access, want)) {
		struct gmem_mmu_exit exit;
		int err = gmem_mmu_fault(&a->cpu.vcpu, gpa >> GMEM_PAGE_SHIFT, access, want, &exit);

		if (!err)
			continue;
		if (exit.memory_fault)
			a->cpu.exit = (struct gmem_exit){
				.size = sizeof(a->cpu.exit),
				.reason = GMEM_EXIT_MEMORY_FAULT,
				.flags = exit.private ? GMEM_EXIT_FLAG_PRIVATE : 0,
				.gpa = gmem_page_round_down(gpa),
				.len = GMEM_PAGE_SIZE,
			};
		return err;
	}
	return 0;
}

/* ---- accesses */

static int access_guest(struct gmem_vcpu *vcpu, const char *who, uint64_t gpa, void *to, const void *from, size_t len)
{
	struct gmem_accessor *a = accessor_of(vcpu, who);
	enum gmem_want want;
	int err;

	if (!a)
		return -EINVAL;
	err = gmem_vm_decode_gpa(a->cpu.vm, who, gpa, &gpa, &want);
	if (!err && len > (a->cpu.vm->gfn_end << GMEM_PAGE_SHIFT) - gpa)
		err = gmem_err(-EINVAL, "%s: gpa 0x%llx, len 0x%zx: beyond what the guest can address", who,
			       (unsigned long long)gpa, len);
	a->cpu.exit = (struct gmem_exit){ .size = sizeof(a->cpu.exit) };
	while (!err && len) {
		size_t at = gpa & (GMEM_PAGE_SIZE - 1);
		size_t n = gmem_min_u64(len, GMEM_PAGE_SIZE - at);

		if (from) {
			gmem_might_fault();
			copy(a->bounce + at, from, n);
			from = (const char *)from + n;
		}
		err = access_page(a, gpa, n, from ? GMEM_ACCESS_WRITE : GMEM_ACCESS_READ, want);
		if (err)
			gmem_err_prefix(err, "%s", who);
		if (!err && to) {
			gmem_might_fault();
			copy(to, a->bounce + at, n);
			to = (char *)to + n;
		}
		gpa += n;
		len -= n;
	}
	return err;
}

int gmem_vcpu_load(struct gmem_vcpu *vcpu, uint64_t gpa, void *buf, size_t len)
{
	return access_guest(vcpu, "gmem_vcpu_load", gpa, buf, NULL, len);
}

int gmem_vcpu_store(struct gmem_vcpu *vcpu, uint64_t gpa, const void *buf, size_t len)
{
	return access_guest(vcpu, "gmem_vcpu_store", gpa, NULL, buf, len);
}
