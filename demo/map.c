/* SPDX-License-Identifier: MIT */
/*
 * gmem-demo-map: pages are populated into private memory, and each frame is mapped into the guest's second stage while
 * populate holds it, without asking the file for it. The guest reads its pages, the host gets SIGBUS. Exit status: 0,
 * or 1 if anything was otherwise.
 */
#include "common.h"

#include <sys/mman.h>

#define PAGES 512u
#define GPA 0x40000000ull

struct mapping {
	struct gmem_vcpu *vcpu;
	uint64_t lookups; /* of the file, while frames were being mapped */
	uint64_t mapped;
};

static uint64_t lookups(struct gmem_vm *vm)
{
	struct gmem_vm_stats st = { .size = sizeof(st) };

	demo_expect("gmem_vm_stats", gmem_vm_stats(vm, &st), 0);
	return st.lookups;
}

/* Called with the frame held: its address has the bytes already. */
static int map_page(struct gmem_vm *vm, uint64_t gfn, uint64_t pfn, void *src, void *opaque)
{
	struct mapping *m = opaque;
	uint64_t before = lookups(vm);
	int err = gmem_mmu_map_private_pfn(m->vcpu, gfn, pfn);

	m->lookups += lookups(vm) - before;
	m->mapped += !err;
	return err ? err : memcmp(gmem_pfn_addr(pfn), src, PAGE) ? -EIO : 0;
}

static void fill(uint64_t *words, uint64_t page)
{
	for (uint64_t i = 0; i < PAGE / sizeof(*words); i++)
		words[i] = (page + 1) * 0x9e3779b97f4a7c15u ^ i * 0xbf58476d1ce4e5b9u;
}

static void check_guest(struct gmem_vcpu *vcpu)
{
	uint64_t seen[PAGE / 8], expected[PAGE / 8];

	for (uint64_t page = 0; page < PAGES; page++) {
		demo_expect("gmem_vcpu_load", gmem_vcpu_load(vcpu, GPA + page * PAGE, seen, sizeof(seen)), 0);
		fill(expected, page);
		if (memcmp(seen, expected, sizeof(seen)))
			demo_fail("the guest reads wrong bytes in page %llu", (unsigned long long)page);
	}
	printf("guest: %u of %u pages read right\n", PAGES, PAGES);
}

static void check_host(struct gmem_file *file)
{
	struct gmem_view *view;
	unsigned int refused = 0;

	demo_expect("gmem_view_map", gmem_view_map(file, 0, PAGES * PAGE, PROT_READ, &view), 0);
	for (uint64_t page = 0; page < PAGES; page++)
		refused += demo_touch((char *)gmem_view_addr(view) + page * PAGE) == SIGBUS;
	printf("host: %u of %u pages are SIGBUS\n", refused, PAGES);
	if (refused != PAGES)
		demo_fail("the host can read private memory");
	gmem_view_unmap(view);
}

int main(void)
{
	struct gmem_file_opts opts = { .size = sizeof(opts), .flags = GMEM_FILE_INIT_PRIVATE };
	struct gmem_memslot slot = { .size = sizeof(slot), .gpa = GPA, .len = PAGES * PAGE };
	char *src = aligned_alloc(GMEM_PAGE_SIZE, PAGES * PAGE);
	struct mapping m = { .mapped = 0 };
	struct gmem_vm *vm;

	if (!src)
		demo_fail("no memory");
	demo_catch_bus();
	for (uint64_t page = 0; page < PAGES; page++)
		fill((uint64_t *)(src + page * PAGE), page);
	demo_expect("gmem_vm_create", gmem_vm_create(NULL, &vm), 0);
	demo_expect("gmem_file_create", gmem_file_create(PAGES * PAGE, &opts, &slot.file), 0);
	demo_expect("gmem_vm_set_slot", gmem_vm_set_slot(vm, &slot), 0);
	demo_expect("gmem_vcpu_create", gmem_vcpu_create(vm, NULL, &m.vcpu), 0);

	demo_expect("populate from an unaligned source", gmem_populate(vm, GPA / PAGE, src + 1, 1, 0, map_page, &m),
		    -EINVAL);
	printf("unaligned source: EINVAL, nothing done\n");
	demo_expect("gmem_populate", gmem_populate(vm, GPA / PAGE, src, PAGES, 0, map_page, &m), PAGES);
	printf("%llu pages populated, each mapped from the frame held; the file was asked for it %llu times\n",
	       (unsigned long long)m.mapped, (unsigned long long)m.lookups);
	if (m.lookups)
		demo_fail("mapping a frame that is held must not ask for it");
	check_guest(m.vcpu);
	/* The guest's reads neither: everything was mapped. */
	if (lookups(vm))
		demo_fail("the guest faulted on mapped pages");
	check_host(slot.file);

	gmem_vcpu_free(m.vcpu);
	gmem_vm_free(vm);
	gmem_file_free(slot.file);
	free(src);
	return 0;
}
