/* SPDX-License-Identifier: MIT */
/*
 * The accessor: a vCPU that executes no instructions and makes a guest's accesses.
 *
 * A page's bytes are copied in an epoch, between guest memory and a page of the accessor's own, so that neither a fault
 * on the caller's memory nor anything else keeps a zap waiting. Memory of the caller's that is in a slot is copied by
 * system calls, outside every epoch.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/err.h"
#include "base/range.h"
#include "mmu/log.h"
#include "sys/call.h"
#include "vm/accessor.h"

int gmem_accessor_create(struct gmem_cpu **ret)
{
	struct gmem_accessor *a;

	if (posix_memalign((void **)&a, _Alignof(struct gmem_accessor), sizeof(*a)))
		return gmem_err_sys(-ENOMEM, "gmem_vcpu_create");
	gmem_accessor_close(a);
	*ret = &a->cpu;
	return 0;
}

struct gmem_accessor *gmem_accessor_of(struct gmem_vcpu *vcpu, const char *who)
{
	struct gmem_cpu *cpu = gmem_cpu_of(vcpu);

	if (cpu->kind == GMEM_VCPU_ACCESSOR)
		return (struct gmem_accessor *)cpu;
	(void)gmem_err(-EINVAL, "%s: this vCPU executes instructions: it is no accessor", who);
	return NULL;
}

/* ---- one page */

/* Where an access is, and on which side. */
struct place {
	uint64_t gpa;
	enum gmem_want want;
};

/* -EINVAL: a part of it is beyond what the guest can address. */
static int decode(const struct gmem_accessor *a, const char *who, uint64_t gpa, uint64_t len, struct place *ret)
{
	int err = gmem_vm_decode_gpa(a->cpu.vm, who, gpa, &ret->gpa, &ret->want);

	if (!err && len > (a->cpu.vm->gfn_end << GMEM_PAGE_SHIFT) - ret->gpa)
		err = gmem_err(-EINVAL, "%s: gpa 0x%llx, len 0x%llx: beyond what the guest can address", who,
			       (unsigned long long)ret->gpa, (unsigned long long)len);
	return err;
}

static size_t in_page(uint64_t gpa)
{
	return gpa & (GMEM_PAGE_SIZE - 1);
}

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

static void make_exit(struct gmem_accessor *a, struct place p, const struct gmem_mmu_exit *exit,
		      const struct gmem_exit *device)
{
	struct gmem_exit fault = gmem_exit_memory_fault(p.gpa, exit);

	if (device && (exit->no_slot || (exit->mmio && (device->flags & GMEM_EXIT_FLAG_WRITE))))
		gmem_accessor_exit(a, device);
	else if (exit->memory_fault || exit->mmio)
		gmem_accessor_exit(a, &fault);
}

/*
 * The byte at `p`, brought in and mapped if need be: from then on in an epoch. Or GMEM_FAULT_HVA: see there. On failure
 * the exit is made: `device` if nothing is there, or nothing that can be written to, and it is not NULL.
 */
static int enter(struct gmem_accessor *a, struct place p, uint32_t access, const struct gmem_exit *device, char **ret,
		 struct gmem_hva *hva)
{
	uint64_t gfn = p.gpa >> GMEM_PAGE_SHIFT;
	char *page;

	while (!(page = gmem_mmu_enter(&a->cpu.vcpu, gfn, access, p.want))) {
		struct gmem_mmu_exit exit;
		int err = gmem_mmu_fault(&a->cpu.vcpu, gfn, access, p.want, &exit, hva);

		if (!err)
			continue;
		if (err != GMEM_FAULT_HVA)
			make_exit(a, p, &exit, device);
		return err;
	}
	*ret = page + in_page(p.gpa);
	return 0;
}

/* The processor's own accesses would end in a signal where nothing is, or where it is bad. */
static int hva_error(ssize_t n, char *page)
{
	if (n < 0 && n != -EFAULT)
		return gmem_err_sys((int)n, "hva %p", (void *)page);
	if (madvise(page, GMEM_PAGE_SIZE, MADV_POPULATE_READ) && errno == EHWPOISON)
		return gmem_err(-EHWPOISON, "hva %p: its page is poisoned", (void *)page);
	return gmem_err(-EFAULT, "hva %p: nothing there, or no right to it", (void *)page);
}

int gmem_accessor_hva(struct gmem_hva *hva, size_t at, void *bounce, size_t n, bool store)
{
	char *page = hva->page;
	ssize_t done;

	gmem_might_fault();
	done = store ? gmem_sys_poke(page + at, bounce, n) : gmem_sys_peek(bounce, page + at, n);
	/* Nothing keeps it from being written to, so after that: who looks in between copies it, and finds it again. */
	if (done > 0)
		gmem_slot_note(hva->slot, hva->slot->gfn + (uint64_t)(page - hva->slot->hva) / GMEM_PAGE_SIZE, store);
	gmem_hva_put(hva);
	return done == (ssize_t)n ? 0 : hva_error(done, page);
}

int gmem_accessor_touch(const struct gmem_hva *hva)
{
	ssize_t done;
	char byte;

	gmem_might_fault();
	done = gmem_sys_peek(&byte, hva->page, 1);
	return done == 1 ? 0 : hva_error(done, hva->page);
}

static int hva_page(struct gmem_accessor *a, struct gmem_hva *hva, struct place p, void *bounce, size_t n, bool store)
{
	int err = gmem_accessor_hva(hva, in_page(p.gpa), bounce, n, store);

	make_exit(a, p, &(struct gmem_mmu_exit){ .memory_fault = err == -EFAULT || err == -EHWPOISON }, NULL);
	return err;
}

/* Between guest memory and the bounce page, within a page each. */
static int load_page(struct gmem_accessor *a, struct place p, void *bounce, size_t n, const struct gmem_exit *device)
{
	struct gmem_hva hva;
	char *guest;
	int err = enter(a, p, GMEM_ACCESS_READ, device, &guest, &hva);

	if (err == GMEM_FAULT_HVA)
		return hva_page(a, &hva, p, bounce, n, false);
	if (!err) {
		copy(bounce, guest, n);
		gmem_mmu_leave(&a->cpu.vcpu);
	}
	return err;
}

static int store_page(struct gmem_accessor *a, struct place p, void *bounce, size_t n, const struct gmem_exit *device)
{
	struct gmem_hva hva;
	char *guest;
	int err = enter(a, p, GMEM_ACCESS_WRITE, device, &guest, &hva);

	if (err == GMEM_FAULT_HVA)
		return hva_page(a, &hva, p, bounce, n, true);
	if (!err) {
		copy(guest, bounce, n);
		gmem_mmu_leave(&a->cpu.vcpu);
	}
	return err;
}

/* ---- loads and stores */

/* The low bytes of what a device said, lowest first. */
static void put_answer(const struct gmem_accessor *a, void *to, size_t len)
{
	_Alignas(8) unsigned char bytes[8];

	for (size_t i = 0; i < len; i++)
		bytes[i] = (unsigned char)(a->answer >> 8 * i);
	gmem_might_fault();
	copy(to, bytes, len);
}

int gmem_vcpu_load(struct gmem_vcpu *vcpu, uint64_t gpa, void *buf, size_t len)
{
	struct gmem_accessor *a = gmem_accessor_of(vcpu, "gmem_vcpu_load");
	struct gmem_exit device;
	bool mmio, answered;
	struct place p;
	int err;

	if (!a)
		return -EINVAL;
	err = decode(a, "gmem_vcpu_load", gpa, len, &p);
	mmio = !err && gmem_exit_mmio(&device, p.gpa, p.want, len, 0);
	answered = mmio && gmem_accessor_answered(a, &device, false);
	gmem_accessor_begin(a);
	if (answered) {
		put_answer(a, buf, len);
		return 0;
	}
	while (!err && len) {
		unsigned char *bounce = a->bounce + in_page(p.gpa);
		size_t n = gmem_min_u64(len, GMEM_PAGE_SIZE - in_page(p.gpa));

		err = load_page(a, p, bounce, n, mmio ? &device : NULL);
		if (err)
			return gmem_err_prefix(err, "gmem_vcpu_load");
		gmem_might_fault();
		copy(buf, bounce, n);
		buf = (char *)buf + n;
		p.gpa += n;
		len -= n;
	}
	return err;
}

int gmem_vcpu_store(struct gmem_vcpu *vcpu, uint64_t gpa, const void *buf, size_t len)
{
	struct gmem_accessor *a = gmem_accessor_of(vcpu, "gmem_vcpu_store");
	struct gmem_exit device;
	bool mmio, answered;
	struct place p;
	int err;

	if (!a)
		return -EINVAL;
	err = decode(a, "gmem_vcpu_store", gpa, len, &p);
	mmio = !err && gmem_exit_mmio(&device, p.gpa, p.want, len, GMEM_EXIT_FLAG_WRITE);
	answered = mmio && gmem_accessor_answered(a, &device, false);
	gmem_accessor_begin(a);
	if (answered)
		return 0;
	while (!err && len) {
		unsigned char *bounce = a->bounce + in_page(p.gpa);
		size_t n = gmem_min_u64(len, GMEM_PAGE_SIZE - in_page(p.gpa));

		gmem_might_fault();
		copy(bounce, buf, n);
		if (mmio)
			memcpy(device.data, bounce, n);
		err = store_page(a, p, bounce, n, mmio ? &device : NULL);
		if (err)
			return gmem_err_prefix(err, "gmem_vcpu_store");
		buf = (const char *)buf + n;
		p.gpa += n;
		len -= n;
	}
	return err;
}

/* ---- copies */

int gmem_vcpu_copy(struct gmem_vcpu *vcpu, uint64_t to, uint64_t from, uint64_t len, uint64_t *ret_done)
{
	struct gmem_accessor *a = gmem_accessor_of(vcpu, "gmem_vcpu_copy");
	struct place dst, src;
	uint64_t done = 0;
	int err;

	if (!a)
		return -EINVAL;
	gmem_accessor_begin(a);
	err = decode(a, "gmem_vcpu_copy", to, len, &dst);
	if (!err)
		err = decode(a, "gmem_vcpu_copy", from, len, &src);
	if (!err && gmem_range_overlaps(dst.gpa, len, src.gpa, len))
		err = gmem_err(-EINVAL, "gmem_vcpu_copy: to 0x%llx, from 0x%llx, len 0x%llx: they overlap",
			       (unsigned long long)dst.gpa, (unsigned long long)src.gpa, (unsigned long long)len);
	if (err)
		return err;
	while (!err && done < len) {
		/* As far as neither page ends; in the bounce page where the source has it, so that words stay whole. */
		unsigned char *bounce = a->bounce + in_page(src.gpa);
		size_t n = gmem_min_u64(len - done, GMEM_PAGE_SIZE - gmem_max_u64(in_page(src.gpa), in_page(dst.gpa)));

		err = load_page(a, src, bounce, n, NULL);
		if (!err)
			err = store_page(a, dst, bounce, n, NULL);
		if (err)
			break;
		src.gpa += n;
		dst.gpa += n;
		done += n;
	}
	if (ret_done)
		*ret_done = done;
	return err ? gmem_err_prefix(err, "gmem_vcpu_copy") : 0;
}

/* ---- compare and exchange */

/* Copies of the caller's operands. */
struct operands {
	unsigned char expected[8], desired[8];
};

/* True if it was exchanged; else `expected` is what is there. */
static bool cmpxchg(void *p, struct operands *o, size_t len)
{
	/* The builtins of this family are full barriers, on processors too where those of C11 are less. */
#define CMPXCHG(type)                                                              \
	{                                                                          \
		type expected, desired, there;                                     \
                                                                                   \
		memcpy(&expected, o->expected, sizeof(type));                      \
		memcpy(&desired, o->desired, sizeof(type));                        \
		there = __sync_val_compare_and_swap((type *)p, expected, desired); \
		memcpy(o->expected, &there, sizeof(type));                         \
		return there == expected;                                          \
	}
	switch (len) {
	case 1:
		CMPXCHG(uint8_t);
	case 2:
		CMPXCHG(uint16_t);
	case 4:
		CMPXCHG(uint32_t);
	default:
		CMPXCHG(uint64_t);
	}
#undef CMPXCHG
}

/*
 * 1, 0 or an error. A device knows no such operation: it is read, and written if it said what was expected, by the same
 * call made twice more.
 */
static int access_cmpxchg(struct gmem_accessor *a, struct place p, struct operands *o, size_t len)
{
	struct gmem_exit read, write;
	bool mmio = gmem_exit_mmio(&read, p.gpa, p.want, len, 0) &&
		    gmem_exit_mmio(&write, p.gpa, p.want, len, GMEM_EXIT_FLAG_WRITE);
	bool was_read = mmio && gmem_accessor_answered(a, &read, true), exchanged;
	bool was_written = mmio && gmem_accessor_answered(a, &write, true);
	struct gmem_hva hva;
	char *guest;
	int err;

	gmem_accessor_begin(a);
	if (was_written)
		return 1;
	if (was_read) {
		unsigned char said[8];

		put_answer(a, said, len);
		if (memcmp(said, o->expected, len)) {
			memcpy(o->expected, said, len);
			return 0;
		}
	}
	if (mmio)
		memcpy(write.data, o->desired, len);
	err = enter(a, p, GMEM_ACCESS_WRITE, !mmio ? NULL : was_read ? &write : &read, &guest, &hva);
	if (err == GMEM_FAULT_HVA) {
		gmem_hva_put(&hva);
		return gmem_err(-EOPNOTSUPP,
				"gmem_vcpu_cmpxchg: gpa 0x%llx: memory of the caller's, which is reached by "
				"system calls: none of them exchanges",
				(unsigned long long)p.gpa);
	}
	if (err) {
		a->exchange = true;
		return gmem_err_prefix(err, "gmem_vcpu_cmpxchg");
	}
	exchanged = cmpxchg(guest, o, len);
	gmem_mmu_leave(&a->cpu.vcpu);
	return exchanged;
}

int gmem_vcpu_cmpxchg(struct gmem_vcpu *vcpu, uint64_t gpa, void *expected, const void *desired, size_t len)
{
	struct gmem_accessor *a = gmem_accessor_of(vcpu, "gmem_vcpu_cmpxchg");
	struct operands o;
	struct place p;
	int err = 0;

	if (!a)
		return -EINVAL;
	if ((len != 1 && len != 2 && len != 4 && len != 8) || (gpa & (len - 1)))
		err = gmem_err(-EINVAL, "gmem_vcpu_cmpxchg: gpa 0x%llx, len 0x%zx: not 1, 2, 4 or 8 aligned bytes",
			       (unsigned long long)gpa, len);
	if (!err)
		err = decode(a, "gmem_vcpu_cmpxchg", gpa, len, &p);
	if (err) {
		gmem_accessor_begin(a);
		return err;
	}
	gmem_might_fault();
	memcpy(o.expected, expected, len);
	memcpy(o.desired, desired, len);
	err = access_cmpxchg(a, p, &o, len);
	if (!err)
		memcpy(expected, o.expected, len);
	return err;
}
