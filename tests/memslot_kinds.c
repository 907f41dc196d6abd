/* SPDX-License-Identifier: MIT */
/* What accesses find in slots of each kind: a file, memory of the caller's, both; and read-only ones. */
#include "slot_util.h"

#include "sys/uffd.h"

#define LEN (16 * PG)

struct scene {
	struct gmem_vm *vm;
	struct gmem_vcpu *vcpu;
	struct gmem_file *file;
	char *hva;
	uint64_t bit;
};

static void set_up(struct scene *s, enum gmem_vm_type type)
{
	s->vm = new_vm(type);
	s->vcpu = new_vcpu(s->vm);
	s->file = make_file(LEN, 0);
	s->hva = plain_memory(LEN, RW);
	s->bit = gmem_vm_alias_bit(s->vm);
}

static void tear_down(struct scene *s)
{
	gmem_vcpu_free(s->vcpu);
	gmem_vm_free(s->vm);
	gmem_file_free(s->file);
	munmap(s->hva, LEN);
}

static uint64_t *word(const struct scene *s, uint64_t at)
{
	return (uint64_t *)(s->hva + at);
}

TEST(guest_and_caller_see_one_memory)
{
	char buf[3 * PG], back[3 * PG];
	struct scene s;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	CHECK_OK(set_hva_slot(s.vm, 0, 0, 4 * PG, LEN, s.hva));
	for (size_t i = 0; i < sizeof(buf); i++)
		buf[i] = (char)(i * 7 + i / PG);
	/* Unaligned and across pages. */
	CHECK_OK(gmem_vcpu_store(s.vcpu, 5 * PG + 3, buf, sizeof(buf)));
	CHECK_EQ(memcmp(s.hva + PG + 3, buf, sizeof(buf)), 0);
	CHECK_OK(gmem_vcpu_load(s.vcpu, 5 * PG + 3, back, sizeof(back)));
	CHECK_EQ(memcmp(back, buf, sizeof(buf)), 0);
	*word(&s, LEN - 8) = 5;
	CHECK_EQ(load64(s.vcpu, 4 * PG + LEN - 8), 5);
	CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_NONE);
	/* Nothing of it is translated. */
	CHECK_EQ(gmem_mmu_mapped(&s.vm->mmu, 4), 0);
	CHECK_EQ(gmem_mmu_mapped(&s.vm->mmu, 6), 0);
	/* The slot ends. */
	check_no_slot(s.vcpu, 4 * PG + LEN);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, 4 * PG + LEN - 8, buf, 16), -EFAULT);
	CHECK_EQ(*(uint64_t *)buf, 5);
	CHECK_OK(del_slot(s.vm, 0));
	check_no_slot(s.vcpu, 4 * PG);
	CHECK_EQ(*word(&s, LEN - 8), 5);
	tear_down(&s);
}

/* Never a signal: nothing mapped, nothing to be written to, past the end of a file. */
TEST(nothing_there)
{
	FILE *f = tmpfile();
	char *mem, *of_file;
	struct scene s;
	uint64_t done = 1;

	set_up(&s, GMEM_VM_DEFAULT);
	mem = plain_memory(4 * PG, -1);
	CHECK_OK(set_hva_slot(s.vm, 0, 0, 0, 4 * PG, mem));
	check_faults(s.vcpu, PG, 0);
	CHECK_HAS(gmem_last_error(), "gmem_vcpu_store");
	CHECK_ERR(gmem_vcpu_pre_fault(s.vcpu, 0, PG, &done), -EFAULT);
	CHECK_EQ(done, 0);
	CHECK_EQ(exit_of(s.vcpu).gpa, PG);
	/* It need not have been there when the slot was set. */
	CHECK_EQ(mprotect(mem, 2 * PG, RW), 0);
	store64(s.vcpu, PG + 8, 6);
	CHECK_EQ(load64(s.vcpu, PG + 8), 6);
	CHECK_OK(gmem_vcpu_pre_fault(s.vcpu, 0, 4 * PG, &done));
	CHECK_EQ(done, 2 * PG);
	/* What is before the bad page has been done. */
	CHECK_ERR(gmem_vcpu_store(s.vcpu, 2 * PG - 8, "0123456789abcde", 16), -EFAULT);
	check_memory_fault(s.vcpu, 2 * PG, 0);
	CHECK_EQ(memcmp(mem + 2 * PG - 8, "01234567", 8), 0);
	CHECK_EQ(mprotect(mem, PG, PROT_READ), 0);
	CHECK_EQ(load64(s.vcpu, 0), 0);
	CHECK_ERR(gmem_vcpu_store(s.vcpu, 0, &done, 8), -EFAULT);
	check_memory_fault(s.vcpu, 0, 0);
	munmap(mem, 4 * PG);
	check_faults(s.vcpu, 0, 0);
	/* A file that ends before its mapping does: SIGBUS to the processor. */
	CHECK(f && !ftruncate(fileno(f), PG));
	of_file = mmap(NULL, 2 * PG, RW, MAP_SHARED, fileno(f), 0);
	CHECK(of_file != MAP_FAILED);
	CHECK_OK(set_hva_slot(s.vm, 1, 0, LEN, 2 * PG, of_file));
	store64(s.vcpu, LEN, 7);
	check_faults(s.vcpu, LEN + PG, 0);
	CHECK_OK(del_slot(s.vm, 1));
	munmap(of_file, 2 * PG);
	fclose(f);
	tear_down(&s);
}

/* A view of this library's whose page is private is marked: bad memory, to a slot as to everybody. */
TEST(poisoned_or_private_page_of_a_view)
{
	struct gmem_view *view;
	struct scene s;
	uint64_t v = 1;
	int err;

	set_up(&s, GMEM_VM_DEFAULT);
	CHECK_OK(gmem_view_map(s.file, 0, LEN, RW, &view));
	CHECK_OK(set_hva_slot(s.vm, 0, 0, 0, LEN, gmem_view_addr(view)));
	store64(s.vcpu, PG, 1);
	CHECK_OK(gmem_file_poison(s.file, PG, PG));
	to_private(s.file, 2 * PG, PG);
	for (uint64_t gpa = PG; gpa < 3 * PG; gpa += PG) {
		err = gmem_vcpu_load(s.vcpu, gpa, &v, 8);
		CHECK(err == -EHWPOISON || err == -EFAULT);
		check_memory_fault(s.vcpu, gpa, 0);
		err = gmem_vcpu_store(s.vcpu, gpa, &v, 8);
		CHECK(err == -EHWPOISON || err == -EFAULT);
		check_memory_fault(s.vcpu, gpa, 0);
	}
	to_shared(s.file, 2 * PG, PG);
	CHECK_OK(gmem_file_punch(s.file, PG, PG));
	CHECK_EQ(load64(s.vcpu, PG), 0);
	store64(s.vcpu, 2 * PG, 4);
	CHECK_OK(del_slot(s.vm, 0));
	gmem_view_unmap(view);
	tear_down(&s);
}

/* A marker is told from a hole. */
TEST(poison_is_told)
{
	struct scene s;
	uint64_t done, v;
	int uffd = gmem_sys_uffd_open(UFFD_FEATURE_POISON, NULL);

	if (uffd < 0)
		SKIP("uffd", "no page markers: %s", strerror(-uffd));
	set_up(&s, GMEM_VM_DEFAULT);
	CHECK_OK(gmem_sys_uffd_register(uffd, (uintptr_t)s.hva, LEN, GMEM_SYS_UFFD_MISSING));
	CHECK_OK(gmem_sys_uffd_poison(uffd, (uintptr_t)s.hva + PG, PG, false, &done));
	CHECK_OK(set_hva_slot(s.vm, 0, 0, 0, LEN, s.hva));
	CHECK_ERR(gmem_vcpu_load(s.vcpu, PG, &v, 8), -EHWPOISON);
	check_memory_fault(s.vcpu, PG, 0);
	CHECK_ERR(gmem_vcpu_store(s.vcpu, PG, &v, 8), -EHWPOISON);
	check_memory_fault(s.vcpu, PG, 0);
	CHECK_ERR(gmem_vcpu_pre_fault(s.vcpu, PG, PG, NULL), -EHWPOISON);
	close(uffd);
	tear_down(&s);
}

/* ---- read-only */

static void check_mmio(const struct gmem_vcpu *vcpu, uint64_t gpa, uint64_t len)
{
	struct gmem_exit e = exit_of(vcpu);

	CHECK_EQ(e.reason, GMEM_EXIT_MMIO);
	CHECK_EQ(e.flags, GMEM_EXIT_FLAG_WRITE);
	CHECK_EQ(e.gpa, gpa);
	CHECK_EQ(e.len, len);
}

TEST(read_only)
{
	struct scene s;
	uint64_t v = 9;
	char *none;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	none = plain_memory(PG, -1);
	CHECK_OK(set_hva_slot(s.vm, 0, GMEM_SLOT_READONLY, 0, 2 * PG, s.hva));
	CHECK_OK(set_hva_slot(s.vm, 1, 0, 2 * PG, PG, s.hva + 2 * PG));
	*word(&s, 16) = 3;
	CHECK_EQ(load64(s.vcpu, 16), 3);
	CHECK_ERR(gmem_vcpu_store(s.vcpu, 16, &v, 8), -EFAULT);
	check_mmio(s.vcpu, 16, 8);
	CHECK_EQ(*word(&s, 16), 3);
	CHECK_EQ(load64(s.vcpu, 16), 3);
	CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_NONE);
	CHECK_OK(gmem_vcpu_pre_fault(s.vcpu, 0, 2 * PG, NULL));
	/* What no device takes: its last bytes, out of a store that goes on in the next slot. */
	CHECK_ERR(gmem_vcpu_store(s.vcpu, 2 * PG - 3, &v, 8), -EFAULT);
	check_memory_fault(s.vcpu, PG, 0);
	/* The store is the caller's to do, who says that it is done. */
	CHECK_ERR(gmem_vcpu_store(s.vcpu, 16, &v, 8), -EFAULT);
	check_mmio(s.vcpu, 16, 8);
	CHECK_EQ(memcmp(exit_of(s.vcpu).data, &v, 8), 0);
	CHECK_OK(gmem_vcpu_answer(s.vcpu, 0));
	CHECK_OK(gmem_vcpu_store(s.vcpu, 16, &v, 8));
	CHECK_EQ(*word(&s, 16), 3);
	/* No system call exchanges. */
	CHECK_ERR(gmem_vcpu_cmpxchg(s.vcpu, 16, &v, &v, 8), -EFAULT);
	check_memory_fault(s.vcpu, 0, 0);
	CHECK_ERR(gmem_vcpu_cmpxchg(s.vcpu, 2 * PG, &v, &v, 8), -EOPNOTSUPP);
	CHECK_OK(gmem_vcpu_copy(s.vcpu, 2 * PG + 64, 16, 8, NULL));
	CHECK_EQ(*word(&s, 2 * PG + 64), 3);
	CHECK_EQ(*word(&s, 2 * PG), 0);
	/* It is the slot that is read-only, whatever is there. */
	CHECK_OK(set_hva_slot(s.vm, 2, GMEM_SLOT_READONLY, LEN, PG, none));
	CHECK_ERR(gmem_vcpu_store(s.vcpu, LEN, &v, 1), -EFAULT);
	check_mmio(s.vcpu, LEN, 1);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, LEN, &v, 1), -EFAULT);
	check_memory_fault(s.vcpu, LEN, 0);
	/* Deleted and set without the flag. */
	CHECK_OK(del_slot(s.vm, 0));
	CHECK_OK(set_hva_slot(s.vm, 0, 0, 0, 2 * PG, s.hva));
	store64(s.vcpu, 16, 4);
	CHECK_EQ(*word(&s, 16), 4);
	munmap(none, PG);
	tear_down(&s);
}

/* ---- the wanted side */

TEST(private_access_without_a_file)
{
	static const enum gmem_vm_type types[] = { GMEM_VM_SNP, GMEM_VM_TDX };
	struct scene s;

	for (int i = 0; i < 2; i++) {
		uint64_t private, shared;

		set_up(&s, types[i]);
		private = types[i] == GMEM_VM_SNP ? s.bit : 0;
		shared = s.bit - private;
		CHECK_OK(set_hva_slot(s.vm, 0, 0, PG, LEN, s.hva));
		store64(s.vcpu, PG | shared, 8);
		CHECK_EQ(*word(&s, 0), 8);
		CHECK_ERR(gmem_vcpu_load(s.vcpu, PG | private, &shared, 8), -EFAULT);
		check_memory_fault(s.vcpu, PG, GMEM_EXIT_FLAG_PRIVATE);
		CHECK_ERR(gmem_vcpu_store(s.vcpu, PG | private, &shared, 8), -EFAULT);
		check_memory_fault(s.vcpu, PG, GMEM_EXIT_FLAG_PRIVATE);
		CHECK_ERR(gmem_vcpu_pre_fault(s.vcpu, PG | private, PG, NULL), -EFAULT);
		tear_down(&s);
	}
}

/* Shared pages at hva, private ones in the file; each keeps its bytes while the other is the guest's. */
TEST(separately_backed)
{
	struct scene s;
	uint64_t v;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	CHECK_OK(set_both(s.vm, 0, PG, 8 * PG, s.file, 4 * PG, s.hva));
	v = 1;
	CHECK_OK(gmem_file_write(s.file, 6 * PG, &v, 8));
	CHECK_EQ(load64(s.vcpu, 3 * PG), 0);
	store64(s.vcpu, 3 * PG, 2);
	CHECK_EQ(*word(&s, 2 * PG), 2);
	CHECK_EQ(gmem_mmu_mapped(&s.vm->mmu, 3), 0);
	to_private(s.file, 6 * PG, PG);
	CHECK_EQ(load64(s.vcpu, 3 * PG), 1);
	CHECK_EQ(gmem_mmu_mapped(&s.vm->mmu, 3), 1);
	store64(s.vcpu, 3 * PG, 3);
	CHECK_EQ(*word(&s, 2 * PG), 2);
	/* Its neighbours are shared still. */
	store64(s.vcpu, 4 * PG, 4);
	CHECK_EQ(*word(&s, 3 * PG), 4);
	to_shared(s.file, 6 * PG, PG);
	CHECK_EQ(load64(s.vcpu, 3 * PG), 2);
	CHECK_OK(gmem_file_read(s.file, 6 * PG, &v, 8));
	CHECK_EQ(v, 3);
	CHECK_OK(gmem_vcpu_pre_fault(s.vcpu, PG, 8 * PG, &v));
	CHECK_EQ(v, 8 * PG);
	/* What is not there of the caller's does not keep the file's from the guest. */
	CHECK_EQ(mprotect(s.hva, 8 * PG, PROT_NONE), 0);
	check_faults(s.vcpu, 3 * PG, 0);
	to_private(s.file, 4 * PG, 8 * PG);
	CHECK_EQ(load64(s.vcpu, 3 * PG), 3);
	/* No memory of the file's is spent on what is shared. */
	CHECK_EQ(gmem_file_page_state(s.file, 7 * PG), GMEM_PAGE_ABSENT);
	tear_down(&s);
}

TEST(separately_backed_by_the_alias_bit)
{
	struct scene s;
	uint64_t v = 5;

	set_up(&s, GMEM_VM_SNP);
	CHECK_OK(set_both(s.vm, 0, 0, LEN, s.file, 0, s.hva));
	store64(s.vcpu, PG, 5);
	CHECK_EQ(*word(&s, PG), 5);
	CHECK_ERR(gmem_vcpu_store(s.vcpu, PG | s.bit, &v, 8), -EFAULT);
	check_memory_fault(s.vcpu, PG, GMEM_EXIT_FLAG_PRIVATE);
	to_private(s.file, PG, PG);
	store64(s.vcpu, PG | s.bit, 6);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, PG, &v, 8), -EFAULT);
	check_memory_fault(s.vcpu, PG, 0);
	CHECK_EQ(load64(s.vcpu, PG | s.bit), 6);
	CHECK_EQ(*word(&s, PG), 5);
	/* The file is closed: what is shared needs it not. */
	gmem_file_free(s.file);
	s.file = NULL;
	CHECK_EQ(load64(s.vcpu, PG), 5);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, PG | s.bit, &v, 8), -EFAULT);
	check_memory_fault(s.vcpu, PG, GMEM_EXIT_FLAG_PRIVATE);
	CHECK_HAS(gmem_last_error(), "closed");
	tear_down(&s);
}

/* Which pages were private nobody knows any more. */
TEST(separately_backed_and_closed)
{
	struct scene s;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	CHECK_OK(set_both(s.vm, 0, 0, LEN, s.file, 0, s.hva));
	store64(s.vcpu, PG, 5);
	gmem_file_free(s.file);
	s.file = NULL;
	check_faults(s.vcpu, PG, 0);
	CHECK_OK(del_slot(s.vm, 0));
	tear_down(&s);
}

/* One mapping of the whole, where that is all private. */
TEST(large_leaf_of_the_private_side)
{
	const uint64_t large = 2 << 20;
	struct gmem_file *file = make_file(2 * large, GMEM_FILE_INIT_PRIVATE);
	char *src = aligned_alloc(PG, large), *hva = plain_memory(2 * large, RW);
	struct gmem_vm *vm = new_vm(GMEM_VM_SW_PROTECTED);
	struct gmem_vcpu *vcpu = new_vcpu(vm);
	int level;

	CHECK(src);
	CHECK_OK(set_both(vm, 0, 0, 2 * large, file, 0, hva));
	for (uint64_t gfn = 0; gfn < large / PG;) {
		memset(src, 7, large);
		gfn += (uint64_t)CHECK_OK(gmem_populate(vm, gfn, src, (int64_t)(large / PG - gfn), 0, NULL, NULL));
	}
	CHECK_EQ(load64(vcpu, 8 * PG), 0x0707070707070707);
	CHECK(leaf_at(&vm->mmu, 8, &level));
	CHECK_EQ(level, GMEM_LEVEL_2M);
	to_shared(file, 8 * PG, PG);
	CHECK_EQ(load64(vcpu, 8 * PG), 0);
	CHECK_EQ(load64(vcpu, 9 * PG), 0x0707070707070707);
	CHECK(leaf_at(&vm->mmu, 9, &level));
	CHECK_EQ(level, GMEM_LEVEL_4K);
	free(src);
	gmem_vcpu_free(vcpu);
	gmem_vm_free(vm);
	gmem_file_free(file);
	munmap(hva, 2 * large);
}

/* ---- populate */

TEST(populate)
{
	static _Alignas(4096) char src[PG];
	struct gmem_file *file = make_file(LEN, GMEM_FILE_INIT_PRIVATE);
	struct scene s;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	memset(src, 1, PG);
	CHECK_OK(set_hva_slot(s.vm, 0, 0, 0, LEN, s.hva));
	CHECK_ERR(gmem_populate(s.vm, 0, src, 1, 0, NULL, NULL), -EINVAL);
	CHECK_HAS(gmem_last_error(), "no file");
	CHECK_OK(set_both(s.vm, 1, LEN, LEN / 2, file, LEN / 2, s.hva));
	CHECK_EQ(gmem_populate(s.vm, LEN / PG, src, 1, 0, NULL, NULL), 1);
	CHECK_EQ(load64(s.vcpu, LEN), 0x0101010101010101);
	CHECK_EQ(*word(&s, 0), 0);
	to_shared(file, LEN / 2, PG);
	CHECK_ERR(gmem_populate(s.vm, LEN / PG, src, 1, 0, NULL, NULL), -EINVAL);
	gmem_file_free(file);
	tear_down(&s);
}
