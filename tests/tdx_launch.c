/* SPDX-License-Identifier: MIT */
/* The commands of a TDX launch, as KVM answers them. */
#include "tdx_util.h"

#include <sys/mman.h>

#define MEASURE GMEM_TDX_MEASURE_MEMORY_REGION

static int init_region(struct scene *s, struct gmem_tdx_init_mem_region *r, uint32_t flags)
{
	return gmem_launch_command(s->launch, 0, GMEM_TDX_CMD_INIT_MEM_REGION, flags, r, NULL);
}

static struct gmem_tdx_init_mem_region region(struct scene *s, uint64_t gpa, uint64_t npages)
{
	return (struct gmem_tdx_init_mem_region){ (uintptr_t)s->src, gpa, npages };
}

static uint64_t populated(struct scene *s)
{
	struct gmem_vm_stats st = { .size = sizeof(st) };

	CHECK_OK(gmem_vm_stats(s->vm, &st));
	return st.populated;
}

/* ---- what it comes from */

static int64_t create(struct gmem_vm *vm, uint32_t flags, uint64_t attributes, uint64_t xfam)
{
	const struct gmem_launch_opts o = { .size = sizeof(o), .flags = flags, .attributes = attributes, .xfam = xfam };
	struct gmem_launch *launch = NULL;
	int err = gmem_launch_create(vm, &o, &launch);

	CHECK_EQ(!err, !!launch);
	gmem_launch_free(launch);
	return err;
}

TEST(init_vm)
{
	struct gmem_vm *vm = new_vm(GMEM_VM_TDX), *other;

	CHECK_ERR(create(vm, GMEM_LAUNCH_NOT_STARTED, 0, 0), -EINVAL);
	/* KVM knows SEPT_VE_DISABLE alone. */
	CHECK_ERR(create(vm, 0, 1, 0), -EINVAL);
	CHECK_ERR(create(vm, 0, 1ull << 63, 0), -EINVAL);
	CHECK_ERR(create(vm, 0, 0, 1ull << 8), -EINVAL);
	/* It is the module that does not take AVX-512 without AVX. */
	CHECK_ERR(create(vm, 0, 0, 0xe3), -EINVAL);
	CHECK_HAS(gmem_last_error(), "TDH.MNG.INIT: OPERAND_INVALID (0xc000010000000041)");
	/* None of these has left anything behind. */
	CHECK_EQ(create(vm, 0, 1ull << 28, 0x600e7), 0);
	/* One for each VM, also when it is gone. */
	CHECK_ERR(create(vm, 0, 0, 0), -EEXIST);
	gmem_vm_free(vm);
	other = new_vm(GMEM_VM_TDX);
	CHECK_EQ(create(other, 0, 0, 0), 0);
	gmem_vm_free(other);
}

TEST(vcpus)
{
	struct gmem_launch_vcpu v = { .size = sizeof(v), .rcx = 7 };
	struct scene s;

	set_up_without_vcpu(&s);
	for (uint32_t i = 0; i < GMEM_TDX_MAX_VCPUS_PER_TD; i++)
		CHECK_OK(gmem_launch_add_vcpu(s.launch, &v));
	CHECK_EQ(s.tables->td.vps[3].rcx, 7);
	/* Not for the module to say: that would be the end of the VM. */
	CHECK_ERR(gmem_launch_add_vcpu(s.launch, &v), -EINVAL);
	v.kvm_vcpu = 3;
	CHECK_ERR(gmem_launch_add_vcpu(s.launch, &v), -EINVAL);
	CHECK(!dead(&s));
	tear_down(&s);
}

TEST(vm_freed_first)
{
	struct gmem_tdx_init_mem_region r;
	struct scene s;

	set_up(&s);
	gmem_vm_free(s.vm);
	r = region(&s, GPA, 1);
	CHECK_ERR(init_region(&s, &r, 0), -EIO);
	CHECK_ERR(gmem_launch_finish(s.launch, NULL), -EIO);
	check_digest(&s, "38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da"
			 "274edebfe76f65fbd51ad2f14898b95b");
	s.vm = NULL;
	tear_down(&s);
}

/* What it has launched stays. */
TEST(launch_freed_first)
{
	struct gmem_tdx_init_mem_region r;
	uint64_t word;
	struct scene s;

	set_up(&s);
	r = region(&s, GPA, 1);
	CHECK_OK(init_region(&s, &r, 0));
	gmem_launch_free(s.launch);
	s.launch = NULL;
	CHECK_EQ(sept_at(&s, GPA), GMEM_SEPT_MAPPED);
	/* Nobody can finish it. */
	CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA, &word, sizeof(word)), -EINVAL);
	to_shared(s.file, 0, PG);
	CHECK_EQ(sept_at(&s, GPA), GMEM_SEPT_FREE);
	tear_down(&s);
}

/* ---- INIT_MEM_REGION */

TEST(commands_that_there_are_not)
{
	static const uint32_t ids[] = { 0, 1, 2, 5, 6, 7, 100, 101, 102 };
	struct scene s;

	set_up(&s);
	for (size_t i = 0; i < sizeof(ids) / sizeof(*ids); i++)
		for (int vcpu = -1; vcpu <= 0; vcpu++)
			CHECK_ERR(gmem_launch_command(s.launch, vcpu, ids[i], 0, NULL, NULL), -EINVAL);
	CHECK_ERR(gmem_launch_command(s.launch, 0, GMEM_TDX_CMD_FINALIZE_VM, 0, NULL, NULL), -EINVAL);
	CHECK_EQ(gmem_launch_status(s.launch), 0);
	tear_down(&s);
}

TEST(region_is_a_vcpus)
{
	struct gmem_tdx_init_mem_region r;
	uint64_t status = 1;
	struct scene s;

	set_up_without_vcpu(&s);
	r = region(&s, GPA, 1);
	for (int vcpu = -3; vcpu <= 1; vcpu++)
		CHECK_ERR(gmem_launch_command(s.launch, vcpu, GMEM_TDX_CMD_INIT_MEM_REGION, 0, &r, &status), -EINVAL);
	CHECK_EQ(status, 0);
	add_vcpu(&s);
	add_vcpu(&s);
	CHECK_ERR(gmem_launch_command(s.launch, 2, GMEM_TDX_CMD_INIT_MEM_REGION, 0, &r, NULL), -EINVAL);
	CHECK_EQ(populated(&s), 0);
	CHECK_OK(gmem_launch_command(s.launch, 1, GMEM_TDX_CMD_INIT_MEM_REGION, 0, &r, NULL));
	CHECK_EQ(populated(&s), 1);
	tear_down(&s);
}

static void refused(struct scene *s, uint64_t src, uint64_t gpa, uint64_t npages, uint32_t flags)
{
	const struct gmem_tdx_init_mem_region was = { src, gpa, npages };
	struct gmem_tdx_init_mem_region r = was;

	CHECK_ERR(init_region(s, &r, flags), -EINVAL);
	CHECK_MEM(&r, &was, sizeof(r));
	CHECK_EQ(gmem_launch_status(s->launch), 0);
	CHECK_EQ(populated(s), 0);
	CHECK(!dead(s));
}

TEST(region_operands)
{
	struct scene s;
	uint64_t src;

	set_up(&s);
	src = (uintptr_t)s.src;
	for (uint32_t flag = 2; flag; flag <<= 1)
		refused(&s, src, GPA, 1, flag);
	refused(&s, src, GPA, 1, MEASURE | 2);
	refused(&s, src + 1, GPA, 1, 0);
	refused(&s, src + 2048, GPA, 1, MEASURE);
	refused(&s, 0, GPA, 1, 0);
	refused(&s, src, GPA + 1, 1, 0);
	refused(&s, src, GPA, 0, 0);
	/* Wraps. */
	refused(&s, src, GPA, ~0ull, 0);
	refused(&s, src, GPA, 1ull << 52, 0);
	refused(&s, src, ~0ull << 12, 1, 0);
	refused(&s, src, ~0ull << 12, 2, 0);
	/* Shared: all of it, its end. */
	refused(&s, src, GPA | SHARED, 1, 0);
	refused(&s, src, SHARED - PG, 2, 0);
	/* Nothing is there; something is, and is shared. */
	refused(&s, src, GPA + NPAGES * PG, 1, 0);
	refused(&s, src, SHARED - PG, 1, 0);
	to_shared(s.file, 0, PG);
	refused(&s, src, GPA, 1, 0);
	CHECK_ERR(init_region(&s, NULL, 0), -EFAULT);
	CHECK_ERR(init_region(&s, (void *)8, 0), -EFAULT);
	tear_down(&s);
}

/* Whoever calls again goes on where it has ended. */
TEST(region_progress)
{
	struct gmem_tdx_init_mem_region r, whole;
	struct scene s, all;
	char hex[97];

	set_up(&all);
	whole = region(&all, GPA, NPAGES);
	CHECK_OK(init_region(&all, &whole, MEASURE));
	CHECK_EQ(whole.nr_pages, 0);
	CHECK_EQ(whole.gpa, GPA + NPAGES * PG);
	CHECK_EQ(whole.source_addr, (uintptr_t)all.src + NPAGES * PG);
	hex_of(all.launch, hex);
	tear_down(&all);

	set_up(&s);
	to_shared(s.file, 5 * PG, PG);
	r = region(&s, GPA, NPAGES);
	CHECK_ERR(init_region(&s, &r, MEASURE), -EINVAL);
	CHECK_EQ(r.nr_pages, NPAGES - 5);
	CHECK_EQ(r.gpa, GPA + 5 * PG);
	CHECK_EQ(r.source_addr, (uintptr_t)s.src + 5 * PG);
	/* And again nothing. */
	CHECK_ERR(init_region(&s, &r, MEASURE), -EINVAL);
	CHECK_EQ(r.nr_pages, NPAGES - 5);
	to_private(s.file, 5 * PG, PG);
	/* The source ends. */
	CHECK_EQ(mprotect(s.src + 9 * PG, PG, PROT_NONE), 0);
	CHECK_ERR(init_region(&s, &r, MEASURE), -EFAULT);
	CHECK_EQ(r.nr_pages, NPAGES - 9);
	CHECK_EQ(mprotect(s.src + 9 * PG, PG, PROT_READ | PROT_WRITE), 0);
	/* Cancelled. */
	gmem_vm_cancel(s.vm);
	CHECK_ERR(init_region(&s, &r, MEASURE), -EINTR);
	CHECK_EQ(r.nr_pages, NPAGES - 9);
	CHECK_OK(init_region(&s, &r, MEASURE));
	CHECK_EQ(r.nr_pages, 0);
	check_digest(&s, hex);
	CHECK(!dead(&s));
	tear_down(&s);
}

/* One slot after the other; behind the last there is none. */
TEST(region_of_several_slots)
{
	struct gmem_file *more = make_file(4 * PG, GMEM_FILE_INIT_PRIVATE);
	struct gmem_tdx_init_mem_region r;
	struct scene s;

	set_up(&s);
	CHECK_OK(set_slot(s.vm, 2, GPA + NPAGES * PG, 4 * PG, more, 0));
	r = region(&s, GPA + (NPAGES - 2) * PG, 7);
	CHECK_ERR(init_region(&s, &r, 0), -EINVAL);
	CHECK_EQ(r.nr_pages, 1);
	CHECK_EQ(r.gpa, GPA + (NPAGES + 4) * PG);
	CHECK_EQ(populated(&s), 6);
	tear_down(&s);
	gmem_file_free(more);
}

TEST(region_that_cannot_be_told)
{
	struct gmem_tdx_init_mem_region *r = mmap(NULL, PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct scene s;

	set_up(&s);
	CHECK(r != MAP_FAILED);
	*r = region(&s, GPA, 2);
	CHECK_EQ(mprotect(r, PG, PROT_READ), 0);
	/* What was done is. */
	CHECK_ERR(init_region(&s, r, 0), -EFAULT);
	CHECK_EQ(r->nr_pages, 2);
	CHECK_EQ(populated(&s), 2);
	CHECK_ERR(init_region(&s, r, 0), -EFAULT);
	CHECK_EQ(populated(&s), 2);
	munmap(r, PG);
	tear_down(&s);
}

TEST(region_launched_before)
{
	struct gmem_tdx_init_mem_region r;
	char hex[97];
	struct scene s;

	set_up(&s);
	r = region(&s, GPA + PG, 1);
	CHECK_OK(init_region(&s, &r, MEASURE));
	r = region(&s, GPA, 3);
	CHECK_ERR(init_region(&s, &r, MEASURE), -EEXIST);
	CHECK_EQ(r.nr_pages, 2);
	hex_of(s.launch, hex);
	CHECK_ERR(init_region(&s, &r, MEASURE), -EEXIST);
	check_digest(&s, hex);
	CHECK_EQ(sept_at(&s, GPA + PG), GMEM_SEPT_MAPPED);
	CHECK(!dead(&s));
	/* What was there is gone when it has been shared in between. */
	to_shared(s.file, PG, PG);
	CHECK_EQ(sept_at(&s, GPA + PG), GMEM_SEPT_FREE);
	to_private(s.file, PG, PG);
	CHECK_OK(init_region(&s, &r, MEASURE));
	CHECK_EQ(populated(&s), 4);
	tear_down(&s);
}

/* ---- what is measured */

static void one_page(bool pattern, uint32_t flags, const char *expected)
{
	struct gmem_tdx_init_mem_region r;
	struct scene s;

	set_up(&s);
	if (!pattern)
		memset(s.src, 0, PG);
	r = region(&s, 0x1000, 1);
	CHECK_OK(init_region(&s, &r, flags));
	check_digest(&s, expected);
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	check_digest(&s, expected);
	tear_down(&s);
}

TEST(measured_or_not)
{
	one_page(false, 0, TDX_ADDED);
	one_page(true, 0, TDX_ADDED);
	one_page(false, MEASURE, TDX_ZERO);
	one_page(true, MEASURE, TDX_PATTERN);
}

TEST(extended_by_hand)
{
	char one_pass[97], two_pass[97];
	struct scene s;

	/* Of one page it is the same, also in parts; but not in another order. */
	set_up(&s);
	CHECK_ERR(gmem_launch_extend(s.launch, 0x1000, PG), -EIO);
	CHECK_EQ(gmem_launch_status(s.launch), 0xc0000b0300000001);
	CHECK_EQ(gmem_launch_update(s.launch, 0x1000, s.src, 1, GMEM_LAUNCH_UNMEASURED), 1);
	CHECK_OK(gmem_launch_extend(s.launch, 0x1000, 256));
	CHECK_OK(gmem_launch_extend(s.launch, 0x1100, PG - 256));
	check_digest(&s, TDX_PATTERN);
	CHECK_ERR(gmem_launch_extend(s.launch, GPA, 256), -EIO);
	CHECK_ERR(gmem_launch_extend(s.launch, 0x1000 | SHARED, 256), -EIO);
	CHECK_EQ(gmem_launch_status(s.launch), 0xc000010000000001);
	CHECK_ERR(gmem_launch_extend(s.launch, 0x1000, 255), -EINVAL);
	CHECK_ERR(gmem_launch_extend(s.launch, 0x1001, 256), -EINVAL);
	CHECK_ERR(gmem_launch_extend(s.launch, 0x1000, 0), -EINVAL);
	check_digest(&s, TDX_PATTERN);
	CHECK(!dead(&s));
	tear_down(&s);

	set_up(&s);
	CHECK_EQ(gmem_launch_update(s.launch, GPA, s.src, 2, GMEM_LAUNCH_NORMAL), 2);
	hex_of(s.launch, one_pass);
	tear_down(&s);
	set_up(&s);
	CHECK_EQ(gmem_launch_update(s.launch, GPA, s.src, 2, GMEM_LAUNCH_UNMEASURED), 2);
	CHECK_OK(gmem_launch_extend(s.launch, GPA, 2 * PG));
	hex_of(s.launch, two_pass);
	CHECK(strcmp(one_pass, two_pass));
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	CHECK_ERR(gmem_launch_extend(s.launch, GPA, 256), -EIO);
	CHECK_EQ(gmem_launch_status(s.launch), 0xc000060800000000);
	check_digest(&s, two_pass);
	tear_down(&s);
}

/* A range that ends in the middle leaves a digest that nobody can tell anything from. */
TEST(extended_in_part)
{
	uint8_t digest[GMEM_LAUNCH_DIGEST_LEN];
	struct scene s;

	set_up(&s);
	CHECK_EQ(gmem_launch_update(s.launch, GPA, s.src, 1, GMEM_LAUNCH_UNMEASURED), 1);
	CHECK_ERR(gmem_launch_extend(s.launch, GPA, 2 * PG), -EIO);
	CHECK_HAS(gmem_last_error(), "no more use");
	CHECK_ERR(gmem_launch_extend(s.launch, GPA, PG), -EIO);
	CHECK_ERR(gmem_launch_digest(s.launch, digest), -EIO);
	CHECK_ERR(gmem_launch_finish(s.launch, NULL), -EIO);
	CHECK_ERR(gmem_launch_update(s.launch, GPA + PG, s.src, 1, GMEM_LAUNCH_NORMAL), -EIO);
	tear_down(&s);
}

/* ---- FINALIZE_VM */

TEST(finalized_without_a_vcpu)
{
	uint64_t status = 0;
	struct scene s;

	set_up_without_vcpu(&s);
	CHECK_EQ(gmem_launch_update(s.launch, GPA, s.src, 1, GMEM_LAUNCH_NORMAL), 1);
	CHECK_ERR(gmem_launch_command(s.launch, -1, GMEM_TDX_CMD_FINALIZE_VM, 0, NULL, &status), -EIO);
	CHECK_EQ(status, 0xc000060900000000);
	CHECK_EQ(gmem_launch_status(s.launch), status);
	CHECK_HAS(gmem_last_error(), "NO_VCPUS");
	/* KVM takes it for a bug. */
	CHECK(dead(&s));
	CHECK_ERR(gmem_launch_finish(s.launch, NULL), -EIO);
	tear_down(&s);
}

TEST(finalized)
{
	const struct gmem_launch_vcpu v = { .size = sizeof(v) };
	struct gmem_tdx_init_mem_region r;
	struct scene s;

	set_up(&s);
	r = region(&s, GPA, 1);
	CHECK_OK(init_region(&s, &r, MEASURE));
	CHECK_OK(gmem_launch_finish(s.launch, NULL));
	CHECK_ERR(gmem_launch_finish(s.launch, NULL), -EINVAL);
	r = region(&s, GPA + PG, 1);
	CHECK_ERR(init_region(&s, &r, MEASURE), -EINVAL);
	CHECK_EQ(r.nr_pages, 1);
	CHECK_ERR(gmem_launch_update(s.launch, GPA + PG, s.src, 1, GMEM_LAUNCH_NORMAL), -EINVAL);
	CHECK_ERR(gmem_launch_add_vcpu(s.launch, &v), -EBUSY);
	CHECK_EQ(populated(&s), 1);
	CHECK(!dead(&s));
	tear_down(&s);
}

/* ---- cancelled while it runs */

static void *cancel_soon(void *arg)
{
	struct gmem_vm_stats st = { .size = sizeof(st) };
	struct scene *s = arg;

	do
		CHECK_OK(gmem_vm_stats(s->vm, &st));
	while (st.sources < 65);
	gmem_vm_cancel(s->vm);
	return NULL;
}

TEST(cancelled_in_the_middle)
{
	enum { LONG = 2048 };
	struct gmem_file *file = make_file(LONG * PG, GMEM_FILE_INIT_PRIVATE);
	unsigned char *src = aligned_alloc(PG, LONG * PG);
	struct gmem_tdx_init_mem_region r;
	bool was = false;
	struct scene s;

	CHECK(src);
	memset(src, 1, LONG * PG);
	/* A thread that is kept waiting is too late. */
	for (int i = 0; !was && i < 50; i++) {
		int err;
		pthread_t t;

		set_up(&s);
		CHECK_OK(set_slot(s.vm, 2, 0x10000000, LONG * PG, file, 0));
		t = start(cancel_soon, &s);
		r = (struct gmem_tdx_init_mem_region){ (uintptr_t)src, 0x10000000, LONG };
		err = init_region(&s, &r, MEASURE);
		CHECK(!err || err == -EINTR);
		was = err;
		/* All of a page, or nothing of it. */
		CHECK_EQ(sept_at(&s, r.gpa), GMEM_SEPT_FREE);
		CHECK_EQ(sept_at(&s, r.gpa - PG), GMEM_SEPT_MAPPED);
		CHECK_EQ(r.gpa - 0x10000000, r.source_addr - (uintptr_t)src);
		CHECK_EQ(r.gpa - 0x10000000, (LONG - r.nr_pages) * PG);
		join(t);
		tear_down(&s);
	}
	CHECK(was);
	gmem_file_free(file);
	free(src);
}
