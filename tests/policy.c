/* SPDX-License-Identifier: MIT */
/*
 * Memory policy: shared memory keeps one a range of the file, set through any mapping of it, and every way a page comes
 * into being goes by it. On a machine with one node only what is read back can be looked at.
 */
#include "tap.h"

#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "file/file.h"
#include "sys/call.h"

#define P 4096ull
#define MASK_BITS 64ul

static void bind_to(void *addr, size_t len, unsigned int node)
{
	unsigned long mask = 1ul << node;
	int err = gmem_sys_mbind(addr, len, MPOL_BIND, &mask, MASK_BITS, 0);

	if (err == -ENOSYS || err == -EPERM)
		SKIP("numa", "mbind: %s", strerror(-err));
	CHECK_EQ(err, 0);
}

static int policy_at(void *addr)
{
	unsigned long mask = 0;
	int mode;

	CHECK_OK(gmem_sys_get_mempolicy(&mode, &mask, MASK_BITS, addr, MPOL_F_ADDR));
	return mode;
}

/* The node the page behind an address is on. */
static int node_of(void *addr)
{
	int node;

	CHECK_OK(gmem_sys_get_mempolicy(&node, NULL, 0, addr, MPOL_F_NODE | MPOL_F_ADDR));
	return node;
}

/* The highest node that has memory. */
static unsigned int last_node(void)
{
	unsigned long mask = 0;

	if (gmem_sys_get_mempolicy(NULL, &mask, MASK_BITS, NULL, MPOL_F_MEMS_ALLOWED) || !mask)
		SKIP("numa", "get_mempolicy says no node");
	return 63u - (unsigned int)__builtin_clzl(mask);
}

/* Populate, a write, a guest's first touch and a view's. */
TEST(pages_come_under_the_policy_of_their_range)
{
	struct gmem_memslot slot = { .size = sizeof(slot), .gpa = 0, .len = 8 * P };
	char *src = aligned_alloc(P, P), *bound, *other;
	unsigned int node = last_node();
	struct gmem_view *a, *b;
	struct gmem_vcpu *vcpu;
	struct gmem_vm *vm;

	CHECK(src);
	memset(src, 1, P);
	CHECK_OK(gmem_file_create(8 * P, NULL, &slot.file));
	CHECK_OK(gmem_view_map(slot.file, 0, 8 * P, PROT_READ | PROT_WRITE, &a));
	CHECK_OK(gmem_view_map(slot.file, 0, 8 * P, PROT_READ | PROT_WRITE, &b));
	bound = gmem_view_addr(a);
	other = gmem_view_addr(b);
	bind_to(bound, 4 * P, node);
	/* The file's, not the mapping's. */
	CHECK_EQ(policy_at(other), MPOL_BIND);
	CHECK_EQ(policy_at(other + 3 * P), MPOL_BIND);
	CHECK_EQ(policy_at(other + 4 * P), MPOL_DEFAULT);
	CHECK_EQ(policy_at(gmem_file_window(slot.file) + 3 * P), MPOL_BIND);

	CHECK_OK(gmem_vm_create(NULL, &vm));
	CHECK_OK(gmem_vm_set_slot(vm, &slot));
	CHECK_OK(gmem_vcpu_create(vm, NULL, &vcpu));
	CHECK_OK(gmem_file_set_attributes(slot.file, 0, P, GMEM_ATTRIBUTE_PRIVATE, NULL));
	CHECK_EQ(gmem_populate(vm, 0, src, 1, 0, NULL, NULL), 1);
	CHECK_OK(gmem_file_write(slot.file, P, src, P));
	CHECK_OK(gmem_vcpu_store(vcpu, 2 * P, src, P));
	other[3 * P] = 1;
	for (unsigned int page = 0; page < 4; page++)
		CHECK_EQ(node_of(gmem_file_window(slot.file) + page * P), node);

	gmem_vcpu_free(vcpu);
	gmem_vm_free(vm);
	gmem_view_unmap(a);
	gmem_view_unmap(b);
	gmem_file_free(slot.file);
	free(src);
}
