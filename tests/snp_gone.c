/* SPDX-License-Identifier: MIT */
/* What becomes of a guest's pages while no slot of its machine shows them: the table must not vouch for other bytes. */
#include "snp_util.h"

static _Alignas(4096) unsigned char page[PG];

static uint64_t at(struct snp *s, uint64_t n)
{
	return (LOW_GPA + n * PG) | s->c;
}

static void hide(struct snp *s)
{
	CHECK_OK(set_slot(s->vm, 0, LOW_GPA, 0, NULL, 0));
}

static void show(struct snp *s)
{
	CHECK_OK(set_slot(s->vm, 0, LOW_GPA, LOW_PAGES * PG, s->low, 0));
}

static void launch(struct snp *s, uint64_t n)
{
	memset(page, 'l', sizeof(page));
	CHECK_EQ(gmem_launch_update(s->launch, LOW_GPA + n * PG, page, 1, GMEM_LAUNCH_NORMAL), 1);
}

static void check_launched(struct snp *s, uint64_t n)
{
	CHECK_EQ(load64(s->vcpu, at(s, n)), 0x6c6c6c6c6c6c6c6cull);
}

/* The guest is not given what it has not accepted. */
static void check_pending(struct snp *s, uint64_t n)
{
	uint64_t v;

	CHECK_ERR(gmem_vcpu_load(s->vcpu, at(s, n), &v, sizeof(v)), -EACCES);
	CHECK_STR(state_of(s, n), "GUEST-INVALID");
}

static void convert_and_write(struct snp *s, uint64_t n)
{
	to_shared(s->low, n * PG, PG);
	CHECK_OK(gmem_file_write(s->low, n * PG, "not what was measured", 21));
	to_private(s->low, n * PG, PG);
}

/* What was measured is what the guest finds, or it finds nothing. */
TEST(converted_while_launching)
{
	struct snp s;

	snp_up(&s, NULL, 0);
	launch(&s, 0);
	launch(&s, 1);
	launch(&s, 2);
	hide(&s);
	convert_and_write(&s, 1);
	show(&s);
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	check_launched(&s, 0);
	check_pending(&s, 1);
	check_launched(&s, 2);
	snp_down(&s);
}

/* It may be launched again: it is another page. */
TEST(launched_again)
{
	struct snp s;

	snp_up(&s, NULL, 0);
	launch(&s, 0);
	launch(&s, 1);
	hide(&s);
	convert_and_write(&s, 0);
	show(&s);
	launch(&s, 0);
	CHECK_EQ(gmem_launch_update(s.launch, LOW_GPA + PG, page, 1, GMEM_LAUNCH_NORMAL), -EEXIST);
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	check_launched(&s, 0);
	check_launched(&s, 1);
	snp_down(&s);
}

TEST(while_the_guest_runs)
{
	struct snp s;

	snp_up(&s, NULL, 0);
	for (uint64_t n = 0; n < 4; n++)
		launch(&s, n);
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	for (uint64_t n = 0; n < 4; n++)
		check_launched(&s, n);
	hide(&s);
	convert_and_write(&s, 0);
	CHECK_OK(gmem_file_punch(s.low, 2 * PG, PG));
	show(&s);
	check_pending(&s, 0);
	check_launched(&s, 1);
	check_pending(&s, 2);
	check_launched(&s, 3);
	CHECK_EQ(gmem_vcpu_accept(s.vcpu, at(&s, 2), PG, true, NULL), 0);
	CHECK_EQ(load64(s.vcpu, at(&s, 2)), 0);
	/* Not to be shown for a while changes nothing. */
	hide(&s);
	show(&s);
	CHECK_EQ(load64(s.vcpu, at(&s, 2)), 0);
	snp_down(&s);
}

/* All of a file at once, which is counted otherwise. */
TEST(all_of_a_file)
{
	uint64_t npages = 1200;
	struct gmem_file *file = make_file(npages * PG, GMEM_FILE_INIT_PRIVATE);
	struct snp s;

	snp_up(&s, NULL, 0);
	memset(page, 'l', sizeof(page));
	for (int round = 0; round < 3; round++) {
		CHECK_OK(set_slot(s.vm, 7, 0x10000000, npages * PG, file, 0));
		for (uint64_t n = 0; n < npages; n += 109)
			CHECK_EQ(gmem_launch_update(s.launch, 0x10000000 + n * PG, page, 1, GMEM_LAUNCH_NORMAL), 1);
		CHECK_OK(set_slot(s.vm, 7, 0x10000000, 0, NULL, 0));
		CHECK_OK(gmem_file_punch(file, 0, npages * PG));
	}
	snp_down(&s);
	gmem_file_free(file);
}

/* The same file in another machine, which may do with its pages what it likes. */
static void in_another(struct snp *s, enum gmem_vm_type type)
{
	struct gmem_vm *vm = new_vm(type);

	hide(s);
	CHECK_OK(set_slot(vm, 0, 0, LOW_PAGES * PG, s->low, 0));
	memset(page, 'o', sizeof(page));
	CHECK_EQ(gmem_populate(vm, 0, page, 1, 0, NULL, NULL), 1);
	gmem_vm_free(vm);
	show(s);
}

TEST(another_machine)
{
	struct snp s;

	snp_up(&s, NULL, 0);
	launch(&s, 0);
	in_another(&s, GMEM_VM_SNP);
	launch(&s, 0);
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	check_launched(&s, 0);
	in_another(&s, GMEM_VM_SW_PROTECTED);
	check_pending(&s, 0);
	snp_down(&s);
}
