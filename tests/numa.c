/* SPDX-License-Identifier: MIT */
/*
 * Memory policy of a guest memory file: shared memory's own, by range, set by mbind(2) on any mapping. Beside a plain
 * memfd, which is the kernel's word on what is set and read back; and every way in which a page comes into being, on a
 * machine whose nodes can tell.
 */
#include "tap.h"

#include <fcntl.h>
#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "pager_scene.h"
#include "sys/call.h"
#include "sys/memfd.h"

#define MASK_BITS 64ul
#define NPAGES 64u
#define PRIVATE GMEM_ATTRIBUTE_PRIVATE

/* Nodes that this process may have memory of. */
static unsigned long nodes(void)
{
	unsigned long mask = 0;
	int err = gmem_sys_get_mempolicy(NULL, &mask, MASK_BITS, NULL, MPOL_F_MEMS_ALLOWED);

	if (err || !mask)
		SKIP("numa", "get_mempolicy: %s", strerror(-err));
	return mask;
}

static void need_mbind(char *p)
{
	int err = gmem_sys_mbind(p, P, MPOL_DEFAULT, NULL, 0, 0);

	if (err)
		SKIP("numa", "mbind: %s", strerror(-err));
}

/* ---- set and read back */

struct policy {
	int err, mode;
	unsigned long mask;
};

static struct policy policy_at(void *addr)
{
	struct policy p = { 0 };

	p.err = gmem_sys_get_mempolicy(&p.mode, &p.mask, MASK_BITS, addr, MPOL_F_ADDR);
	return p;
}

static void same_policies(char *ours, char *kernels)
{
	for (unsigned int page = 0; page < NPAGES; page++) {
		struct policy a = policy_at(ours + page * P), b = policy_at(kernels + page * P);

		if (a.err != b.err || a.mode != b.mode || a.mask != b.mask)
			FAIL("page %u: %d, mode 0x%x of 0x%lx; a memfd: %d, mode 0x%x of 0x%lx", page, a.err,
			     (unsigned int)a.mode, a.mask, b.err, (unsigned int)b.mode, b.mask);
	}
}

/* Any mode, known or not, with any flag and any nodes, there or not, over any range; some more likely than others. */
static int random_mbind(uint64_t *s, char *ours, char *kernels)
{
	static const int flags[] = { 0, 0, 0, MPOL_F_STATIC_NODES, MPOL_F_RELATIVE_NODES, 1 << 12 };
	static const unsigned int moves[] = { 0, 0, 0, MPOL_MF_STRICT, MPOL_MF_MOVE, 1u << 9 };
	uint64_t first = tap_rand(s) % NPAGES, n = 1 + tap_rand(s) % (NPAGES - first);
	int mode = (int)(tap_rand(s) % 9) | flags[tap_rand(s) % 6];
	unsigned long mask = tap_rand(s) % 4 ? tap_rand(s) & nodes() : tap_rand(s);
	unsigned int move = moves[tap_rand(s) % 6];
	uint64_t skew = tap_rand(s) % 16 ? 0 : 1;
	int a = gmem_sys_mbind(ours + first * P + skew, n * P, mode, &mask, MASK_BITS, move);
	int b = gmem_sys_mbind(kernels + first * P + skew, n * P, mode, &mask, MASK_BITS, move);

	if (a != b)
		FAIL("mbind of pages %llu to %llu, mode 0x%x, nodes 0x%lx, flags 0x%x: %d; of a memfd: %d",
		     (unsigned long long)first, (unsigned long long)(first + n), (unsigned int)mode, mask, move, a, b);
	return a;
}

TEST(policies_are_those_of_shared_memory)
{
	int fd = gmem_memfd_create("gmem-test", NPAGES * P);
	uint64_t s = tap_seed(), set = 0, refused = 0;
	struct gmem_view *view, *second;
	struct gmem_file *file;
	char *kernels, *kernels2;

	CHECK_OK(fd);
	CHECK_OK(gmem_file_create(NPAGES * P, NULL, &file));
	CHECK_OK(gmem_view_map(file, 0, NPAGES * P, PROT_READ | PROT_WRITE, &view));
	CHECK_OK(gmem_view_map(file, 0, NPAGES * P, PROT_READ | PROT_WRITE, &second));
	kernels = mmap(NULL, NPAGES * P, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	kernels2 = mmap(NULL, NPAGES * P, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(kernels != MAP_FAILED && kernels2 != MAP_FAILED);
	need_mbind(gmem_view_addr(view));
	for (int i = 0; i < (tap_slow() ? 200 : 2000); i++) {
		if (random_mbind(&s, gmem_view_addr(view), kernels))
			refused++;
		else
			set++;
		/* The file's own: what was set through one mapping is there through another, and in the guests'. */
		if (i % 10 == 0) {
			same_policies(gmem_view_addr(second), kernels2);
			same_policies(gmem_file_window(file), kernels2);
		}
		/* Conversions and punches leave it alone. */
		if (i % 7 == 0)
			CHECK_OK(gmem_file_set_attributes(file, tap_rand(&s) % NPAGES * P, P,
							  tap_rand(&s) & 1 ? PRIVATE : 0, NULL));
		if (i % 7 == 3)
			CHECK_OK(gmem_file_punch(file, tap_rand(&s) % NPAGES * P, P));
	}
	printf("%llu policies set, %llu refused, alike\n", (unsigned long long)set, (unsigned long long)refused);
	CHECK(set > 20 && refused > 20);
	munmap(kernels, NPAGES * P);
	munmap(kernels2, NPAGES * P);
	close(fd);
	gmem_view_unmap(second);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

/* ---- every way a page comes */

struct way {
	const char *name;
	uint32_t flags; /* of the file */
	void (*bring_in)(struct gmem_file *file, struct gmem_view *view, uint64_t page);
};

static char bytes[P] __attribute__((aligned(4096)));

static void by_touch(struct gmem_file *file, struct gmem_view *view, uint64_t page)
{
	(void)file;
	((volatile char *)gmem_view_addr(view))[page * P] = 1;
}

static void by_write(struct gmem_file *file, struct gmem_view *view, uint64_t page)
{
	(void)view;
	CHECK_OK(gmem_file_write(file, page * P, bytes, P));
}

static void by_fallocate(struct gmem_file *file, struct gmem_view *view, uint64_t page)
{
	(void)view;
	CHECK_OK(gmem_file_fallocate(file, FALLOC_FL_KEEP_SIZE, (int64_t)(page * P), P));
}

static void by_strict_conversion(struct gmem_file *file, struct gmem_view *view, uint64_t page)
{
	/* Brought in on whatever node, and then moved to its own. */
	by_write(file, view, page);
	CHECK_OK(gmem_file_set_attributes(file, page * P, P, PRIVATE, NULL));
	CHECK_OK(gmem_file_set_attributes(file, page * P, P, 0, NULL));
}

static struct gmem_vm *vm_with(struct gmem_file *file)
{
	struct gmem_memslot slot = { .size = sizeof(slot), .len = NPAGES * P, .file = file };
	struct gmem_vm *vm;

	CHECK_OK(gmem_vm_create(NULL, &vm));
	CHECK_OK(gmem_vm_set_slot(vm, &slot));
	return vm;
}

static void by_guest(struct gmem_file *file, struct gmem_view *view, uint64_t page)
{
	struct gmem_vm *vm = vm_with(file);
	struct gmem_vcpu *vcpu;

	(void)view;
	CHECK_OK(gmem_vcpu_create(vm, NULL, &vcpu));
	CHECK_OK(gmem_vcpu_store(vcpu, page * P, bytes, 8));
	gmem_vcpu_free(vcpu);
	gmem_vm_free(vm);
}

static void by_populate(struct gmem_file *file, struct gmem_view *view, uint64_t page)
{
	struct gmem_vm *vm = vm_with(file);

	(void)view;
	CHECK_OK(gmem_file_set_attributes(file, page * P, P, PRIVATE, NULL));
	CHECK_EQ(gmem_populate(vm, page, bytes, 1, 0, NULL, NULL), 1);
	gmem_vm_free(vm);
}

static void by_pager(struct gmem_file *file, struct gmem_view *view, uint64_t page)
{
	struct src src = SRC(.id = 1);
	struct gmem_source *source = source_of(&src);
	struct gmem_pager *pager = new_pager(1, 0, NULL);

	(void)file;
	CHECK_OK(gmem_pager_add_view(pager, view, source, 0));
	CHECK_EQ(touch((char *)gmem_view_addr(view) + page * P), 0);
	gmem_pager_free(pager);
	gmem_source_unref(source);
}

static void by_fill(struct gmem_file *file, struct gmem_view *view, uint64_t page)
{
	struct src src = SRC(.id = 1);
	struct gmem_source *source = source_of(&src);
	struct gmem_pager *pager = new_pager(1, 0, NULL);

	(void)file;
	(void)page;
	CHECK_OK(gmem_pager_add_view(pager, view, source, 0));
	CHECK_OK(gmem_pager_fill(pager, NULL, NULL));
	gmem_pager_free(pager);
	gmem_source_unref(source);
}

static struct gmem_uffd *uffd_of(struct gmem_view *view)
{
	struct gmem_uffd *uffd;

	CHECK_OK(gmem_uffd_create(NULL, &uffd));
	CHECK_OK(gmem_uffd_add_view(uffd, view));
	return uffd;
}

static void by_uffd_copy(struct gmem_file *file, struct gmem_view *view, uint64_t page)
{
	struct gmem_uffd *uffd = uffd_of(view);

	(void)file;
	CHECK_EQ(gmem_uffd_copy(uffd, view, page * P, bytes, P), (int64_t)P);
	gmem_uffd_free(uffd);
}

/* Known to be zero, and given memory when it is mapped. */
static void by_uffd_continue(struct gmem_file *file, struct gmem_view *view, uint64_t page)
{
	struct gmem_uffd *uffd = uffd_of(view);

	CHECK_OK(gmem_file_punch(file, page * P, P));
	CHECK_EQ(gmem_uffd_continue(uffd, view, page * P, P), (int64_t)P);
	gmem_uffd_free(uffd);
}

static const struct way ways[] = {
	{ "a touch", 0, by_touch },
	{ "gmem_file_write", 0, by_write },
	{ "gmem_file_fallocate", 0, by_fallocate },
	{ "strict conversion", GMEM_FILE_STRICT, by_strict_conversion },
	{ "a guest", 0, by_guest },
	{ "gmem_populate", 0, by_populate },
	{ "a pager", 0, by_pager },
	{ "gmem_pager_fill", 0, by_fill },
	{ "gmem_uffd_copy", 0, by_uffd_copy },
	{ "gmem_uffd_continue", 0, by_uffd_continue },
};

/* The node of a page that is in place, by the mapping of the library's own. */
static int node_of(struct gmem_file *file, uint64_t page)
{
	char *at = gmem_file_window(file) + page * P;
	int node = -1;

	CHECK_EQ(gmem_sys_peek(bytes, at, 1), 1);
	CHECK_OK(gmem_sys_get_mempolicy(&node, NULL, 0, at, MPOL_F_NODE | MPOL_F_ADDR));
	return node;
}

static void pages_come_by(const struct way *way, unsigned int low, unsigned int high)
{
	/* One after the other: neither is where this thread happens to run. */
	for (unsigned int i = 0; i < 2; i++) {
		struct gmem_file_opts o = { .size = sizeof(o), .flags = way->flags };
		unsigned int node = i ? high : low;
		unsigned long mask = 1ul << node;
		struct gmem_file *file;
		struct gmem_view *view;
		uint64_t page = 5 + i;

		CHECK_OK(gmem_file_create(NPAGES * P, &o, &file));
		CHECK_OK(gmem_view_map(file, 0, NPAGES * P, PROT_READ | PROT_WRITE, &view));
		CHECK_OK(gmem_sys_mbind((char *)gmem_view_addr(view) + page * P, P, MPOL_BIND, &mask, MASK_BITS, 0));
		way->bring_in(file, view, page);
		if (node_of(file, page) != (int)node)
			FAIL("%s: page %llu is on node %d, not on %u", way->name, (unsigned long long)page,
			     node_of(file, page), node);
		gmem_view_unmap(view);
		gmem_file_free(file);
	}
}

TEST(pages_come_from_the_nodes_of_their_range)
{
	unsigned long mask = nodes();
	unsigned int low = (unsigned int)__builtin_ctzl(mask), high = 63u - (unsigned int)__builtin_clzl(mask);

	if (low == high)
		SKIP("numa", "one node with memory: every page would be on it");
	need_markers();
	catch_bus();
	memset(bytes, 0x5a, sizeof(bytes));
	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		pages_come_by(&ways[i], low, high);
		printf("%s: nodes %u and %u\n", ways[i].name, low, high);
	}
}
