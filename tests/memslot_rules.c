/* SPDX-License-Identifier: MIT */
/*
 * The rules of setting, changing, moving and deleting slots: a table of calls, each made on a machine of gmem's and, as
 * the oracle, on one of this host's KVM with a guest_memfd of its own; then random calls on both. The rules are the
 * same for all of KVM's machines that take guest_memfds: before Linux 6.18 software-protected ones, not ordinary ones.
 */
#include "memfd_vm.h"
#include "slot_util.h"

#include "sys/call.h"
#include "sys/kvm.h"
#include "sys/uapi.h"

#define PAGES 16
#define A ((void *)(1ull << 40)) /* nothing is there, and nothing has to be */
#define B ((void *)(2ull << 40))
#define BASE (16ull << 20)
#define D GMEM_SLOT_LOG_DIRTY
#define R GMEM_SLOT_READONLY

/* A call, in the terms of both. */
struct call {
	uint32_t slot, flags;
	uint64_t gpa, len;
	void *hva;
	unsigned int file; /* 0: none; 1 or 2 */
	uint64_t off;
	int ret;
	bool bound; /* -EEXIST from Linux 7.2 on, -EINVAL before */
};

static const struct call calls[] = {
	/* Flags come first, then alignment and ranges, whatever is there. */
	{ 0, 1u << 4, BASE, PG, A, 0, 0, -EINVAL },
	{ 0, 1u << 31, BASE, PG, A, 0, 0, -EINVAL },
	{ 0, D, BASE, PG, A, 1, 0, -EINVAL },
	{ 0, R, BASE, PG, A, 1, 0, -EINVAL },
	{ 0, D | R, BASE, PG, NULL, 1, 0, -EINVAL },
	{ 0, 0, BASE + 1, PG, A, 0, 0, -EINVAL },
	{ 0, 0, BASE, PG + 8, A, 0, 0, -EINVAL },
	{ 0, 0, BASE, PG, (char *)A + 1, 0, 0, -EINVAL },
	{ 0, 0, BASE, PG, (char *)A + 2048, 1, 0, -EINVAL },
	{ 0, 0, BASE, PG, A, 1, 8, -EINVAL },
	{ 0, 0, BASE, PG, (void *)-PG, 0, 0, -EINVAL },
	{ 0, 0, BASE, PG, (void *)(1ull << 63), 0, 0, -EINVAL },
	{ 0, 0, BASE, PG, (void *)(1ull << 62), 0, 0, -EINVAL },
	{ 0, 0, BASE, 2 * PG, (void *)(0 - PG), 0, 0, -EINVAL },
	{ 0, 0, 0 - PG, 2 * PG, A, 0, 0, -EINVAL },
	{ 0, 0, BASE, 2 * PG, A, 1, 0 - PG, -EINVAL },
	{ 0, 0, BASE, 1ull << 43, A, 0, 0, -EINVAL },
	{ 0, 0, 1ull << 60, PG, A, 0, 0, -EINVAL },
	{ 32764, 0, BASE, PG, A, 0, 0, -EINVAL },
	{ 65535, 0, BASE, PG, A, 0, 0, -EINVAL },
	{ 0, 0, 0, 0, NULL, 0, 0, -EINVAL },
	/* Plain memory: set as it is, given flags, moved; not made another. */
	{ 0, 0, BASE, 4 * PG, A, 0, 0, 0 },
	{ 0, 0, BASE, 4 * PG, A, 0, 0, 0 },
	{ 0, D, BASE, 4 * PG, A, 0, 0, 0 },
	{ 0, D, BASE, 4 * PG, A, 0, 0, 0 },
	{ 0, R, BASE, 4 * PG, A, 0, 0, -EINVAL },
	{ 0, D | R, BASE, 4 * PG, A, 0, 0, -EINVAL },
	{ 0, 0, BASE, 4 * PG, A, 0, 0, 0 },
	{ 0, 0, BASE, 3 * PG, A, 0, 0, -EINVAL },
	{ 0, 0, BASE, 5 * PG, A, 0, 0, -EINVAL },
	{ 0, 0, BASE, 4 * PG, B, 0, 0, -EINVAL },
	{ 0, 0, BASE, 4 * PG, A, 1, 0, -EINVAL },
	{ 0, 0, BASE + 2 * PG, 4 * PG, A, 0, 0, 0 },
	{ 0, D, BASE + 8 * PG, 4 * PG, A, 0, 0, 0 },
	{ 0, R, BASE, 4 * PG, A, 0, 0, -EINVAL },
	{ 0, 0, 1ull << 60, 4 * PG, A, 0, 0, -EINVAL },
	{ 0, D, BASE + 8 * PG, 4 * PG, A, 0, 0, 0 },
	/* A read-only one stays so. Two may have one memory. */
	{ 1, R, BASE, 4 * PG, A, 0, 0, 0 },
	{ 1, 0, BASE, 4 * PG, A, 0, 0, -EINVAL },
	{ 1, R, BASE, 4 * PG, A, 0, 0, 0 },
	{ 1, R | D, BASE, 4 * PG, A, 0, 0, 0 },
	{ 1, R, BASE + PG, 4 * PG, A, 0, 0, 0 },
	/* Into another: not made, not moved. What is wrong with it in itself is told first. */
	{ 2, 0, BASE + 8 * PG, PG, B, 0, 0, -EEXIST },
	{ 2, 0, BASE + 4 * PG, 8 * PG, B, 0, 0, -EEXIST },
	{ 2, 0, BASE, 16 * PG, B, 0, 0, -EEXIST },
	{ 2, 0, BASE + 8 * PG, PG, B, 1, 0, -EEXIST },
	{ 2, 0, BASE + 8 * PG, PG, B, 1, PAGES *PG, -EEXIST },
	{ 2, R, BASE + 8 * PG, PG, B, 1, 0, -EINVAL },
	{ 1, R, BASE + 5 * PG, 4 * PG, A, 0, 0, -EEXIST },
	{ 1, R, BASE + 5 * PG, 3 * PG, A, 0, 0, -EINVAL },
	{ 1, 0, BASE + 5 * PG, 4 * PG, A, 0, 0, -EINVAL },
	{ 1, R, BASE + 4 * PG, 4 * PG, A, 0, 0, 0 },
	/* With a file: nothing can be changed, not even to what it is. */
	{ 2, 0, BASE, 4 * PG, A, 1, 4 * PG, 0 },
	{ 2, 0, BASE, 4 * PG, A, 1, 4 * PG, -EINVAL },
	{ 2, 0, BASE, 4 * PG, A, 0, 0, -EINVAL },
	{ 2, D, BASE, 4 * PG, A, 0, 0, -EINVAL },
	{ 2, 0, BASE, 4 * PG, A, 2, 4 * PG, -EINVAL },
	{ 2, 0, BASE, 4 * PG, A, 1, 8 * PG, -EINVAL },
	{ 2, 0, 64 * BASE, 4 * PG, A, 1, 4 * PG, -EINVAL },
	{ 2, 0, BASE, 2 * PG, A, 1, 4 * PG, -EINVAL },
	{ 3, 0, 64 * BASE, 5 * PG, NULL, 1, 0, -EEXIST, true },
	{ 3, 0, 1ull << 60, 5 * PG, NULL, 1, 0, -EEXIST, true },
	{ 3, 0, 64 * BASE, 9 * PG, NULL, 1, 8 * PG, -EINVAL },
	{ 3, 0, 1ull << 60, 4 * PG, NULL, 1, 8 * PG, -EINVAL },
	{ 3, 0, 64 * BASE, 8 * PG, NULL, 1, 8 * PG, 0 },
	{ 4, 0, 128 * BASE, PG, A, 2, 0, 0 },
	{ 4, 0, 128 * BASE, PG, A, 2, 0, -EINVAL },
	{ 5, 0, 64 * BASE + 7 * PG, PG, A, 2, PG, -EEXIST },
	/* Deleting: flags and alignment are looked at, and nothing else; off, if a file is named. */
	{ 3, R, 0, 0, NULL, 1, 0, -EINVAL },
	{ 3, 0, 1, 0, NULL, 0, 0, -EINVAL },
	{ 3, 0, 0, 0, (char *)A + 8, 0, 0, -EINVAL },
	{ 3, 0, 0, 0, NULL, 1, 8, -EINVAL },
	{ 3, D, 3 * PG, 0, B, 0, 8, 0 },
	{ 3, 0, 0, 0, NULL, 0, 0, -EINVAL },
	{ 2, 0, 0, 0, NULL, 2, 512 * PG, 0 },
	{ 3, 0, 64 * BASE, 5 * PG, NULL, 1, 0, 0 },
	{ 2, R, BASE, 4 * PG, A, 0, 8, 0 },
	{ 0, R, 0, 0, NULL, 0, 0, 0 },
	{ 0, 0, 0, 0, NULL, 0, 0, -EINVAL },
	/* A number beyond; the last one. */
	{ 32763, 0, 256 * BASE, PG, A, 0, 0, 0 },
	{ 32763, 0, 257 * BASE, PG, A, 0, 0, 0 },
	{ 32763, 0, 0, 0, NULL, 0, 0, 0 },
};

struct both {
	struct gmem_vm *vm;
	struct gmem_file *file[2];
	int kvm_vm, kvm_file[2]; /* -1: none */
};

static void set_up(struct both *b)
{
	*b = (struct both){ .vm = new_vm(GMEM_VM_DEFAULT), .kvm_vm = -1, .kvm_file = { -1, -1 } };
	for (int i = 0; i < 2; i++)
		b->file[i] = make_file(PAGES * PG, 0);
}

static void tear_down(struct both *b)
{
	gmem_vm_free(b->vm);
	for (int i = 0; i < 2; i++) {
		gmem_file_free(b->file[i]);
		if (b->kvm_file[i] >= 0)
			close(b->kvm_file[i]);
	}
	if (b->kvm_vm >= 0)
		close(b->kvm_vm);
}

/* Skips without a KVM that has machines which take guest_memfds. */
static void set_up_kvm(struct both *b)
{
	set_up(b);
	b->kvm_vm = memfd_vm();
	for (int i = 0; i < 2; i++)
		b->kvm_file[i] = (int)CHECK_OK(gmem_kvm_memfd_create(b->kvm_vm, PAGES * PG, 0));
}

static int ask_gmem(const struct both *b, const struct call *c)
{
	struct gmem_memslot m = {
		.size = sizeof(m),
		.slot = c->slot,
		.flags = c->flags,
		.gpa = c->gpa,
		.len = c->len,
		.file = c->file ? b->file[c->file - 1] : NULL,
		.off = c->off,
		.hva = c->hva,
	};

	return gmem_vm_set_slot(b->vm, &m);
}

static int ask_kvm(const struct both *b, const struct call *c)
{
	struct gmem_kvm_userspace_memory_region2 region = {
		.slot = c->slot,
		.flags = c->flags | (c->file ? KVM_MEM_GUEST_MEMFD : 0),
		.guest_phys_addr = c->gpa,
		.memory_size = c->len,
		.userspace_addr = (uintptr_t)c->hva,
		.guest_memfd_offset = c->off,
		.guest_memfd = c->file ? (uint32_t)b->kvm_file[c->file - 1] : 0,
	};

	return gmem_sys_ioctl(b->kvm_vm, KVM_SET_USER_MEMORY_REGION2, &region);
}

TEST(table)
{
	struct both b;

	set_up(&b);
	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		int ret = ask_gmem(&b, &calls[i]);

		if (ret != calls[i].ret)
			FAIL("call %zu: %d, not %d: %s", i, ret, calls[i].ret, gmem_last_error());
	}
	tear_down(&b);
}

/* The oracle: the same calls, answered by the kernel. */
TEST(table_of_kvm)
{
	struct both b;

	set_up_kvm(&b);
	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		int ret = ask_kvm(&b, &calls[i]);

		if (ret != calls[i].ret && !(calls[i].bound && ret == -EINVAL))
			FAIL("call %zu: %d, not %d", i, ret, calls[i].ret);
	}
	tear_down(&b);
}

static struct call draw(uint64_t *seed)
{
	static const uint64_t odd[] = { 1, PG / 2, PG + 1, 1ull << 52, 1ull << 63, 0 - PG };
	static const uint32_t slots[] = { 0, 1, 2, 3, 4, 5, 32763, 32764 },
			      flags[] = { 0, 0, 0, D, D, R, R, D | R, 16 };
	uint64_t r = tap_rand(seed), q = tap_rand(seed);
	struct call c = {
		.slot = slots[r % 8],
		.flags = flags[(r >> 8) % 9],
		.gpa = BASE + (r >> 16) % PAGES * PG,
		.len = ((r >> 24) % 4 ? 1 + (r >> 32) % 3 : 0) * PG,
		.hva = (r >> 40) % 2 ? A : B,
		.file = (r >> 48) % 3 ? 0 : 1 + (r >> 56) % 2,
		.off = q % (PAGES + 1) * PG,
	};

	if ((q >> 8) % 32 == 0)
		c.gpa = odd[(q >> 16) % 6];
	if ((q >> 8) % 32 == 1)
		c.len = odd[(q >> 16) % 6];
	if ((q >> 8) % 32 == 2)
		c.off = odd[(q >> 16) % 6];
	if ((q >> 8) % 32 == 3)
		c.hva = (char *)A + odd[(q >> 16) % 3];
	return c;
}

TEST_TIMEOUT(random_calls, 120)
{
	uint64_t seed = tap_seed(), counts[3] = { 0 };
	struct both b;

	set_up_kvm(&b);
	for (int i = 0; i < (tap_slow() ? 500 : 4000); i++) {
		struct call c = draw(&seed);
		int kvm = ask_kvm(&b, &c), gmem = ask_gmem(&b, &c);

		/* A part of a file that is in a slot already, before Linux 7.2. */
		if (kvm != gmem && !(c.file && c.len && kvm == -EINVAL && gmem == -EEXIST))
			FAIL("call %d: slot %u, flags 0x%x, gpa 0x%llx, len 0x%llx, hva %p, file %u, off 0x%llx: "
			     "KVM gives %d, gmem %d, \"%s\"",
			     i, c.slot, c.flags, (unsigned long long)c.gpa, (unsigned long long)c.len, c.hva, c.file,
			     (unsigned long long)c.off, kvm, gmem, gmem_last_error());
		counts[!gmem ? 0 : gmem == -EINVAL ? 1 : 2]++;
	}
	printf("%llu calls succeeded, %llu were -EINVAL, %llu else\n", (unsigned long long)counts[0],
	       (unsigned long long)counts[1], (unsigned long long)counts[2]);
	CHECK(counts[0] && counts[1] && counts[2]);
	tear_down(&b);
}

/* ---- what KVM has no answer to, on this kernel or at all */

static int set_userfault(struct gmem_vm *vm, uint32_t flags, uint64_t gpa, struct gmem_file *file, void *hva,
			 const uint64_t *bitmap)
{
	struct gmem_memslot m = {
		.size = sizeof(m),
		.flags = flags | GMEM_SLOT_USERFAULT,
		.gpa = gpa,
		.len = 4 * PG,
		.file = file,
		.hva = hva,
		.userfault_bitmap = bitmap,
	};

	return gmem_vm_set_slot(vm, &m);
}

TEST(userfault_flag)
{
	static const uint64_t bitmap[2];
	struct both b;

	set_up(&b);
	CHECK_ERR(set_userfault(b.vm, 0, 0, NULL, A, NULL), -EINVAL);
	CHECK_ERR(set_userfault(b.vm, 0, 0, NULL, A, (const void *)((const char *)bitmap + 4)), -EINVAL);
	CHECK_ERR(set_userfault(b.vm, D, 0, b.file[0], NULL, bitmap), -EINVAL);
	CHECK_OK(set_userfault(b.vm, 0, 0, b.file[0], NULL, bitmap));
	/* All that can be changed of a slot with a file. */
	CHECK_OK(set_userfault(b.vm, 0, 0, b.file[0], NULL, bitmap));
	CHECK_OK(set_userfault(b.vm, 0, 0, b.file[0], NULL, bitmap + 1));
	CHECK_ERR(set_userfault(b.vm, 0, PG, b.file[0], NULL, bitmap), -EINVAL);
	CHECK_ERR(set_userfault(b.vm, 0, 0, b.file[1], NULL, bitmap), -EINVAL);
	CHECK_ERR(set_userfault(b.vm, 0, 0, b.file[0], A, bitmap), -EINVAL);
	CHECK_ERR(set_userfault(b.vm, 0, 0, NULL, NULL, bitmap), -EINVAL);
	CHECK_ERR(set_userfault(b.vm, 0, 0, NULL, A, bitmap), -EINVAL);
	CHECK_OK(set_slot(b.vm, 0, 0, 4 * PG, b.file[0], 0));
	CHECK_ERR(set_slot(b.vm, 0, 0, 4 * PG, b.file[0], 0), -EINVAL);
	CHECK_OK(set_userfault(b.vm, 0, 0, b.file[0], NULL, bitmap));
	/* The file goes first: there is nothing to change any more. */
	gmem_file_free(b.file[0]);
	b.file[0] = NULL;
	CHECK_ERR(set_userfault(b.vm, 0, 0, b.file[1], NULL, bitmap), -EINVAL);
	CHECK_OK(del_slot(b.vm, 0));
	/* Plain memory: with the other flags, and while it moves. */
	CHECK_OK(set_hva_slot(b.vm, 0, D, 0, 4 * PG, A));
	CHECK_OK(set_userfault(b.vm, D, 0, NULL, A, bitmap));
	CHECK_OK(set_userfault(b.vm, 0, 0, NULL, A, bitmap));
	CHECK_ERR(set_userfault(b.vm, R, 0, NULL, A, bitmap), -EINVAL);
	CHECK_OK(set_userfault(b.vm, D, PG, NULL, A, bitmap));
	CHECK_OK(set_hva_slot(b.vm, 0, 0, 0, 4 * PG, A));
	CHECK_OK(del_slot(b.vm, 0));
	CHECK_OK(set_userfault(b.vm, R | D, 0, NULL, A, bitmap));
	/* To delete, the flag has to come with a bitmap, too. */
	CHECK_ERR(set_hva_slot(b.vm, 0, GMEM_SLOT_USERFAULT, 0, 0, NULL), -EINVAL);
	CHECK_OK(set_hva_slot(b.vm, 0, D | R, 0, 0, NULL));
	tear_down(&b);
}

TEST(nothing_to_show)
{
	static const struct {
		enum gmem_vm_type type;
		int ret;
	} types[] = {
		{ GMEM_VM_DEFAULT, 0 },
		{ GMEM_VM_SW_PROTECTED, 0 },
		{ GMEM_VM_SNP, -EINVAL },
		{ GMEM_VM_TDX, -EINVAL },
	};
	struct both b;

	set_up(&b);
	CHECK_ERR(set_hva_slot(b.vm, 0, 0, 0, PG, NULL), -EINVAL);
	tear_down(&b);
	/* Its guest's registers cannot be seen, so a store cannot be emulated. */
	for (int i = 0; i < 4; i++) {
		struct gmem_vm *vm = new_vm(types[i].type);

		CHECK_EQ(set_hva_slot(vm, 0, R, 0, PG, A), types[i].ret);
		CHECK_OK(set_hva_slot(vm, 1, D, PG, PG, A));
		gmem_vm_free(vm);
	}
}
