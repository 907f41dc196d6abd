/* SPDX-License-Identifier: MIT */
/* The userfault bitmap of a slot: pages that are the caller's to fill before a guest gets to them. */
#include "slot_util.h"
#include "supply_util.h"

#define LARGE (2ull << 20)
#define LEN (2 * LARGE)
#define WORDS (LEN / PG / 64)

enum kind { OF_FILE, OF_HVA, OF_BOTH, KINDS };

struct scene {
	struct gmem_vm *vm;
	struct gmem_vcpu *vcpu;
	struct gmem_file *file;
	char *hva;
	uint64_t bitmap[2][WORDS];
	struct gmem_memslot slot;
};

static void set_up(struct scene *s, enum gmem_vm_type type, enum kind kind, uint64_t gpa)
{
	memset(s, 0, sizeof(*s));
	s->vm = new_vm(type);
	s->vcpu = new_vcpu(s->vm);
	s->file = make_file(LEN, 0);
	s->hva = plain_memory(LEN, RW);
	s->slot = (struct gmem_memslot){
		.size = sizeof(s->slot),
		.gpa = gpa,
		.len = LEN,
		.file = kind == OF_HVA ? NULL : s->file,
		.hva = kind == OF_FILE ? NULL : s->hva,
	};
}

static void tear_down(struct scene *s)
{
	gmem_vcpu_free(s->vcpu);
	gmem_vm_free(s->vm);
	gmem_file_free(s->file);
	munmap(s->hva, LEN);
}

static void set_bit(uint64_t *bitmap, uint64_t page)
{
	bitmap[page / 64] |= 1ull << page % 64;
}

static void clear_bit(uint64_t *bitmap, uint64_t page)
{
	__atomic_fetch_and(&bitmap[page / 64], ~(1ull << page % 64), __ATOMIC_RELEASE);
}

/* -1: without. */
static int set(struct scene *s, int bitmap)
{
	s->slot.flags = bitmap < 0 ? 0 : GMEM_SLOT_USERFAULT;
	s->slot.userfault_bitmap = bitmap < 0 ? NULL : s->bitmap[bitmap];
	return gmem_vm_set_slot(s->vm, &s->slot);
}

/* The bit of each page, at every edge of a word and of the bitmap, stops that page and no other. */
TEST(bits_are_pages_of_the_slot)
{
	static const uint64_t pages[] = { 0, 1, 62, 63, 64, 65, 127, 511, 512, 513, LEN / PG - 1 };
	static struct scene s;

	for (int kind = 0; kind < KINDS; kind++) {
		/* So that a bit is not where a gfn's is. */
		const uint64_t gpa = 3 * PG;

		set_up(&s, GMEM_VM_SW_PROTECTED, (enum kind)kind, gpa);
		for (size_t i = 0; i < sizeof(pages) / sizeof(pages[0]); i++)
			set_bit(s.bitmap[0], pages[i]);
		CHECK_OK(set(&s, 0));
		for (uint64_t page = 0; page < LEN / PG; page++) {
			bool is_set = s.bitmap[0][page / 64] >> page % 64 & 1;
			uint64_t v = page + 1;
			int err = gmem_vcpu_store(s.vcpu, gpa + page * PG, &v, 8);

			CHECK_EQ(err, is_set ? -EFAULT : 0);
			if (!is_set)
				continue;
			check_memory_fault(s.vcpu, gpa + page * PG, GMEM_EXIT_FLAG_USERFAULT);
			check_faults(s.vcpu, gpa + page * PG, GMEM_EXIT_FLAG_USERFAULT);
			CHECK_ERR(gmem_vcpu_pre_fault(s.vcpu, gpa + page * PG, PG, NULL), -EFAULT);
			/* Nothing is mapped, and no memory made. */
			CHECK_EQ(gmem_mmu_mapped(&s.vm->mmu, gpa / PG + page), 0);
			CHECK_EQ(gmem_file_page_state(s.file, page * PG), GMEM_PAGE_ABSENT);
		}
		for (size_t i = 0; i < sizeof(pages) / sizeof(pages[0]); i++) {
			clear_bit(s.bitmap[0], pages[i]);
			store64(s.vcpu, gpa + pages[i] * PG, pages[i] + 1);
		}
		for (uint64_t page = 0; page < LEN / PG; page++)
			CHECK_EQ(load64(s.vcpu, gpa + page * PG), page + 1);
		tear_down(&s);
	}
}

/* An access across pages does what is before the one it stops at. */
TEST(access_across_pages)
{
	static struct scene s;
	char buf[16] = "";

	for (int kind = 0; kind < KINDS; kind++) {
		set_up(&s, GMEM_VM_DEFAULT, (enum kind)kind, 0);
		set_bit(s.bitmap[0], 1);
		CHECK_OK(set(&s, 0));
		CHECK_ERR(gmem_vcpu_store(s.vcpu, PG - 8, "0123456789abcde", 16), -EFAULT);
		check_memory_fault(s.vcpu, PG, GMEM_EXIT_FLAG_USERFAULT);
		CHECK_OK(gmem_vcpu_load(s.vcpu, PG - 8, buf, 8));
		CHECK_STR(buf, "01234567");
		clear_bit(s.bitmap[0], 1);
		CHECK_EQ(load64(s.vcpu, PG), 0);
		CHECK_OK(gmem_vcpu_store(s.vcpu, PG - 8, "0123456789abcde", 16));
		CHECK_OK(gmem_vcpu_load(s.vcpu, PG, buf, 8));
		CHECK_STR(buf, "89abcde");
		tear_down(&s);
	}
}

/* The side is looked at first, as it is in KVM; and told. */
TEST(private_side)
{
	static struct scene s;
	uint64_t bit, v = 1;

	set_up(&s, GMEM_VM_SNP, OF_BOTH, 0);
	bit = gmem_vm_alias_bit(s.vm);
	set_bit(s.bitmap[0], 1);
	CHECK_OK(set(&s, 0));
	CHECK_ERR(gmem_vcpu_load(s.vcpu, PG | bit, &v, 8), -EFAULT);
	check_memory_fault(s.vcpu, PG, GMEM_EXIT_FLAG_PRIVATE);
	to_private(s.file, PG, PG);
	check_faults(s.vcpu, PG, 0);
	CHECK_ERR(gmem_vcpu_store(s.vcpu, PG | bit, &v, 8), -EFAULT);
	check_memory_fault(s.vcpu, PG, GMEM_EXIT_FLAG_PRIVATE | GMEM_EXIT_FLAG_USERFAULT);
	clear_bit(s.bitmap[0], 1);
	store64(s.vcpu, PG | bit, 3);
	CHECK_EQ(load64(s.vcpu, PG | bit), 3);
	tear_down(&s);
	set_up(&s, GMEM_VM_SW_PROTECTED, OF_FILE, 0);
	to_private(s.file, 0, LARGE);
	set_bit(s.bitmap[0], 1);
	CHECK_OK(set(&s, 0));
	check_faults(s.vcpu, PG, GMEM_EXIT_FLAG_PRIVATE | GMEM_EXIT_FLAG_USERFAULT);
	tear_down(&s);
}

/* The bitmap before the store: a read-only slot's pages have to be filled, too. */
TEST(read_only)
{
	static struct scene s;
	uint64_t v = 1;

	set_up(&s, GMEM_VM_DEFAULT, OF_HVA, 0);
	set_bit(s.bitmap[0], 0);
	s.slot.flags = GMEM_SLOT_USERFAULT | GMEM_SLOT_READONLY;
	s.slot.userfault_bitmap = s.bitmap[0];
	CHECK_OK(gmem_vm_set_slot(s.vm, &s.slot));
	check_faults(s.vcpu, 0, GMEM_EXIT_FLAG_USERFAULT);
	clear_bit(s.bitmap[0], 0);
	CHECK_ERR(gmem_vcpu_store(s.vcpu, 0, &v, 8), -EFAULT);
	CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_MMIO);
	tear_down(&s);
}

/* A translation that was made before the bitmap was there, or while another was, goes. */
TEST(turned_on_and_replaced)
{
	static struct scene s;

	for (int kind = 0; kind < KINDS; kind++) {
		set_up(&s, GMEM_VM_SW_PROTECTED, (enum kind)kind, LARGE);
		if (kind == OF_BOTH)
			to_private(s.file, 0, LARGE);
		CHECK_OK(set(&s, -1));
		for (uint64_t page = 0; page < 16; page++)
			store64(s.vcpu, LARGE + page * PG, page);
		set_bit(s.bitmap[0], 3);
		set_bit(s.bitmap[1], 4);
		CHECK_OK(set(&s, 0));
		for (uint64_t page = 0; page < 16; page++)
			if (page == 3)
				check_faults(s.vcpu, LARGE + page * PG,
					     GMEM_EXIT_FLAG_USERFAULT | (kind == OF_BOTH ? GMEM_EXIT_FLAG_PRIVATE : 0));
			else
				CHECK_EQ(load64(s.vcpu, LARGE + page * PG), page);
		CHECK_OK(set(&s, 1));
		CHECK_EQ(load64(s.vcpu, LARGE + 3 * PG), 3);
		check_faults(s.vcpu, LARGE + 4 * PG,
			     GMEM_EXIT_FLAG_USERFAULT | (kind == OF_BOTH ? GMEM_EXIT_FLAG_PRIVATE : 0));
		/* As it is: nothing happens. Not even that a bit counts which was set without telling. */
		set_bit(s.bitmap[1], 3);
		CHECK_OK(set(&s, 1));
		if (kind != OF_HVA)
			CHECK_EQ(load64(s.vcpu, LARGE + 3 * PG), 3);
		CHECK_OK(set(&s, -1));
		/* It is the caller's again. */
		memset(s.bitmap, 0xff, sizeof(s.bitmap));
		for (uint64_t page = 0; page < 16; page++)
			CHECK_EQ(load64(s.vcpu, LARGE + page * PG), page);
		tear_down(&s);
	}
}

/* A large leaf would show pages that are not filled. */
TEST(large_leaves)
{
	static struct scene s;
	char *page = aligned_alloc(PG, LARGE);
	int level;

	CHECK(page);
	set_up(&s, GMEM_VM_SW_PROTECTED, OF_FILE, 0);
	memset(page, 5, LARGE);
	CHECK_OK(gmem_file_write(s.file, 0, page, LARGE));
	CHECK_OK(gmem_file_write(s.file, LARGE, page, LARGE));
	CHECK_OK(set(&s, -1));
	CHECK_EQ(load64(s.vcpu, 0), 0x0505050505050505);
	CHECK(leaf_at(&s.vm->mmu, 0, &level));
	CHECK_EQ(level, GMEM_LEVEL_2M);
	set_bit(s.bitmap[0], LARGE / PG - 1);
	CHECK_OK(set(&s, 0));
	CHECK_EQ(load64(s.vcpu, 0), 0x0505050505050505);
	CHECK(leaf_at(&s.vm->mmu, 0, &level));
	CHECK_EQ(level, GMEM_LEVEL_4K);
	check_faults(s.vcpu, LARGE - PG, GMEM_EXIT_FLAG_USERFAULT);
	/* No bit of this one is set. */
	CHECK_EQ(load64(s.vcpu, LARGE + 9 * PG), 0x0505050505050505);
	CHECK(leaf_at(&s.vm->mmu, (LARGE + 9 * PG) / PG, &level));
	CHECK_EQ(level, GMEM_LEVEL_2M);
	clear_bit(s.bitmap[0], LARGE / PG - 1);
	CHECK_EQ(load64(s.vcpu, LARGE - PG), 0x0505050505050505);
	tear_down(&s);
	free(page);
}

static int never(void *opaque, struct gmem_file *file, uint64_t off, struct gmem_wait *wait)
{
	(void)opaque, (void)file, (void)wait;
	FAIL("off 0x%llx is asked for", (unsigned long long)off);
}

/* Who brings absent pages in is not asked for one that is the caller's to fill. */
TEST(supplier_is_not_asked)
{
	static struct scene s;
	uint64_t v = 8;

	set_up(&s, GMEM_VM_SW_PROTECTED, OF_FILE, 0);
	new_supply(s.file, 0, LEN, never, NULL);
	set_bit(s.bitmap[0], 7);
	CHECK_OK(set(&s, 0));
	check_faults(s.vcpu, 7 * PG, GMEM_EXIT_FLAG_USERFAULT);
	/* The caller fills the page, whole, clears the bit, and the access goes on. */
	CHECK_OK(gmem_file_write(s.file, 7 * PG, &v, 8));
	tear_down(&s);
}

/* ---- one that fills while others touch */

struct filling {
	struct scene *s;
	enum kind kind;
	_Atomic uint64_t exits, filled;
};

static uint64_t value_of(uint64_t page)
{
	return page * 0x9e3779b97f4a7c15ull | 1;
}

/* What a monitor does with the exit. */
static void fill(struct filling *f, uint64_t page)
{
	uint64_t buf[PG / 8];

	for (unsigned int i = 0; i < PG / 8; i++)
		buf[i] = value_of(page);
	if (f->kind == OF_FILE)
		CHECK_OK(gmem_file_write(f->s->file, page * PG, buf, PG));
	else
		memcpy(f->s->hva + page * PG, buf, PG);
	clear_bit(f->s->bitmap[0], page);
}

static void *touch_all(void *arg)
{
	struct filling *f = arg;
	struct gmem_vcpu *vcpu = new_vcpu(f->s->vm);
	uint64_t seed = (uintptr_t)&seed, v[PG / 8];

	for (uint64_t i = 0; i < LEN / PG;) {
		uint64_t page = tap_rand(&seed) % 4 ? i : tap_rand(&seed) % (LEN / PG);
		int err = gmem_vcpu_load(vcpu, page * PG, v, PG);

		if (err) {
			CHECK_EQ(err, -EFAULT);
			check_memory_fault(vcpu, page * PG, GMEM_EXIT_FLAG_USERFAULT);
			atomic_fetch_add(&f->exits, 1);
			sched_yield();
			continue;
		}
		for (unsigned int j = 0; j < PG / 8; j++)
			CHECK_EQ(v[j], value_of(page));
		i += page == i;
	}
	gmem_vcpu_free(vcpu);
	return NULL;
}

static void *fill_all(void *arg)
{
	struct filling *f = arg;

	for (uint64_t i = 0; i < LEN / PG; i++)
		fill(f, i * 389 % (LEN / PG));
	return NULL;
}

/* Nobody sees a page that is not filled, or filled in part. */
TEST_TIMEOUT(filled_while_touched, 60)
{
	static struct scene s;

	for (int kind = 0; kind < OF_BOTH; kind++) {
		struct filling f = { .s = &s, .kind = (enum kind)kind };
		pthread_t t[3];

		set_up(&s, GMEM_VM_SW_PROTECTED, f.kind, 0);
		memset(s.bitmap[0], 0xff, sizeof(s.bitmap[0]));
		CHECK_OK(set(&s, 0));
		for (int i = 0; i < 2; i++)
			t[i] = start(touch_all, &f);
		t[2] = start(fill_all, &f);
		for (int i = 0; i < 3; i++)
			join(t[i]);
		printf("%llu exits\n", (unsigned long long)f.exits);
		tear_down(&s);
	}
}
