/* SPDX-License-Identifier: MIT */
/* A ZERO page of a launch, where somebody else supplies what is absent: it is zero, and nobody is asked. */
#include "tap.h"

#include "mmu_util.h"
#include "pager_scene.h"

#define GPA 0x200000ull
#define NPAGES 8ull

struct guest {
	struct gmem_vm *vm;
	struct gmem_vcpu *vcpu;
	struct gmem_launch *launch;
};

static void guest_up(struct guest *g, struct gmem_file *file)
{
	g->vm = new_vm(GMEM_VM_SNP);
	CHECK_OK(set_slot(g->vm, 0, GPA, NPAGES * P, file, 0));
	g->vcpu = new_vcpu(g->vm);
	CHECK_OK(gmem_launch_create(g->vm, NULL, &g->launch));
	to_private(file, 0, NPAGES * P);
}

static void guest_down(struct guest *g)
{
	gmem_launch_free(g->launch);
	gmem_vcpu_free(g->vcpu);
	gmem_vm_free(g->vm);
}

static void check_zero(struct guest *g, uint64_t page)
{
	static const char zeroes[P];
	char got[P];

	CHECK_OK(gmem_vcpu_load(g->vcpu, (GPA + page * P) | gmem_vm_alias_bit(g->vm), got, P));
	CHECK_MEM(got, zeroes, P);
}

static void launch_zeroes(struct guest *g, struct gmem_file *file)
{
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN], want[GMEM_LAUNCH_DIGEST_LEN];
	struct gmem_file *plain = new_file(NPAGES * P);
	struct guest other;

	CHECK_EQ(gmem_launch_update(g->launch, GPA + P, NULL, 2, GMEM_LAUNCH_ZERO), 2);
	CHECK_OK(gmem_launch_finish(g->launch, NULL));
	check_zero(g, 1);
	check_zero(g, 2);
	CHECK_EQ(gmem_file_page_state(file, P), GMEM_PAGE_UPTODATE);
	/* Measured as where nobody supplies. */
	guest_up(&other, plain);
	CHECK_EQ(gmem_launch_update(other.launch, GPA + P, NULL, 2, GMEM_LAUNCH_ZERO), 2);
	CHECK_OK(gmem_launch_digest(g->launch, digest));
	CHECK_OK(gmem_launch_digest(other.launch, want));
	CHECK_MEM(digest, want, sizeof(digest));
	guest_down(&other);
	gmem_file_free(plain);
}

TEST(zero_page_that_a_uffd_supplies)
{
	struct gmem_uffd_event e;
	struct gmem_file *file;
	struct gmem_view *view;
	struct gmem_uffd *uffd;
	struct guest g;

	need_markers();
	file = new_file(NPAGES * P);
	map_view(file, 0, NPAGES * P, &view);
	CHECK_OK(gmem_uffd_create(NULL, &uffd));
	CHECK_OK(gmem_uffd_add_view(uffd, view));
	guest_up(&g, file);
	launch_zeroes(&g, file);
	CHECK_EQ(gmem_uffd_read(uffd, &e, 1), 0);
	guest_down(&g);
	gmem_uffd_free(uffd);
	gmem_view_unmap(view);
	gmem_file_free(file);
}

TEST(zero_page_that_a_pager_supplies)
{
	struct scene s = { 0 };
	struct guest g;

	set_up(&s, (struct src)SRC(.id = 4), 2, 0, NPAGES * P);
	guest_up(&g, s.file);
	launch_zeroes(&g, s.file);
	CHECK_EQ(s.src.reads, 0);
	CHECK_EQ(gmem_file_page_state(s.file, 3 * P), GMEM_PAGE_ABSENT);
	/* Nor does the pager bring in later what it has. */
	CHECK_OK(gmem_pager_fill(s.pager, NULL, NULL));
	check_zero(&g, 1);
	check_zero(&g, 2);
	guest_down(&g);
	tear_down(&s);
}
