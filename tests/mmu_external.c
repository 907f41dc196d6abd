/* SPDX-License-Identifier: MIT */
/* External tables: each set and clear of a private page is asked for, in order, and may be refused. */
#include "mmu_external.h"

static void check_call(const struct scene *s, uint32_t i, enum act act, uint64_t gfn, int level)
{
	CHECK(i < s->k->n);
	CHECK_EQ(s->k->calls[i].act, act);
	CHECK_EQ(s->k->calls[i].gfn, gfn);
	CHECK_EQ(s->k->calls[i].level, level);
}

TEST(a_page_is_asked_for_once)
{
	struct scene s;

	set_up(&s);
	store64(s.vcpu, GPA, 7);
	/* The tables from the root's on, and the page. */
	check_call(&s, 0, TABLE, GFN, 3);
	check_call(&s, 1, TABLE, GFN, 2);
	check_call(&s, 2, TABLE, GFN, 1);
	check_call(&s, 3, SET, GFN, 0);
	CHECK_EQ(load64(s.vcpu, GPA), 7);
	CHECK_EQ(s.k->n, 4);
	store64(s.vcpu, GPA + PG, 8);
	check_call(&s, 4, SET, GFN + 1, 0);
	/* Another table of pages, in the same one of level 2. */
	store64(s.vcpu, GPA + 512 * PG, 9);
	check_call(&s, 5, TABLE, GFN + 512, 1);
	check_call(&s, 6, SET, GFN + 512, 0);
	CHECK_EQ(s.k->n, 7);
	tear_down(&s);
}

TEST(a_shared_page_is_nobodys_matter)
{
	uint64_t bit;
	struct scene s;

	set_up(&s);
	bit = gmem_vm_alias_bit(s.vm);
	to_shared(s.file, 0, 8 * PG);
	s.k->n = 0;
	store64(s.vcpu, GPA | bit, 5);
	CHECK_EQ(load64(s.vcpu, GPA | bit), 5);
	CHECK_EQ(s.k->n, 0);
	/* The tables that it has made are the others' too once a private page wants them. */
	store64(s.vcpu, GPA + 8 * PG, 6);
	CHECK_EQ(s.k->n, 4);
	check_call(&s, 2, TABLE, GFN + 8, 1);
	tear_down(&s);
}

TEST(it_is_taken_away_in_steps)
{
	struct scene s;

	set_up(&s);
	for (int i = 0; i < 3; i++)
		store64(s.vcpu, GPA + (uint64_t)i * PG, 1);
	s.k->n = 0;
	s.k->peeker = s.vcpu;
	to_shared(s.file, PG, 2 * PG);
	check_call(&s, 0, BLOCK, GFN + 1, 0);
	check_call(&s, 1, BLOCK, GFN + 2, 0);
	check_call(&s, 2, TRACK, 0, 0);
	check_call(&s, 3, CLEAR, GFN + 1, 0);
	check_call(&s, 4, CLEAR, GFN + 2, 0);
	check_call(&s, 5, RELEASE, GFN + 1, 2);
	CHECK_EQ(s.k->n, 6);
	CHECK_EQ(load64(s.vcpu, GPA), 1);
	/* Private again, it is asked for again; the tables have stayed. */
	to_private(s.file, PG, 2 * PG);
	s.k->n = 0;
	store64(s.vcpu, GPA + PG, 2);
	check_call(&s, 0, SET, GFN + 1, 0);
	CHECK_EQ(s.k->n, 1);
	tear_down(&s);
}

/* More tables go than a zap remembers: it goes over the range again, past what it has blocked. */
TEST(it_is_taken_away_among_many_tables)
{
	const uint64_t gib = 1ull << 30, table = 512 * PG;
	struct scene s;
	uint64_t bit;

	set_up_larger(&s, MOST, PG);
	bit = gmem_vm_alias_bit(s.vm);
	for (uint64_t at = 0; at < MOST; at += table) {
		if (at % gib) {
			store64(s.vcpu, (GPA + at) | bit, 1);
			continue;
		}
		to_private(s.file, at, PG);
		store64(s.vcpu, GPA + at, 1);
	}
	s.k->n = 0;
	CHECK_OK(del_slot(s.vm, 0));
	CHECK_EQ(s.k->n, 3 + 1 + 3);
	for (uint32_t i = 0; i < 3; i++) {
		check_call(&s, i, BLOCK, GFN + i * gib / PG, 0);
		check_call(&s, 4 + i, CLEAR, GFN + i * gib / PG, 0);
	}
	tear_down(&s);
}

TEST(what_takes_it_away)
{
	struct scene s;

	set_up(&s);
	store64(s.vcpu, GPA, 1);
	s.k->n = 0;
	CHECK_OK(gmem_file_punch(s.file, 0, PG));
	check_call(&s, 0, BLOCK, GFN, 0);
	check_call(&s, 2, CLEAR, GFN, 0);
	check_call(&s, 3, RELEASE, GFN, 1);
	store64(s.vcpu, GPA, 1);
	/* A slot that goes takes its translations along, and is no conversion. */
	s.k->n = 0;
	CHECK_OK(del_slot(s.vm, 0));
	CHECK_EQ(s.k->n, 3);
	check_call(&s, 2, CLEAR, GFN, 0);
	CHECK_OK(set_slot(s.vm, 0, GPA, LEN, s.file, 0));
	CHECK_EQ(load64(s.vcpu, GPA), 1);
	s.k->n = 0;
	gmem_file_free(s.file);
	s.file = NULL;
	check_call(&s, 2, CLEAR, GFN, 0);
	check_call(&s, 3, RELEASE, GFN, (int)(LEN / PG));
	tear_down(&s);
}

/* Translations come and go for reasons of the library's own, of which nobody hears. */
TEST(what_does_not)
{
	uint64_t bits[LEN / PG / 64];
	struct scene s;

	set_up(&s);
	store64(s.vcpu, GPA, 1);
	s.k->n = 0;
	CHECK_OK(gmem_vm_set_log(s.vm, 0, GMEM_LOG_DIRTY));
	CHECK(!gmem_mmu_enter(s.vcpu, GFN, GMEM_ACCESS_WRITE, GMEM_WANT_ANY));
	CHECK(gmem_mmu_mapped(&s.vm->mmu, GFN));
	CHECK_EQ(load64(s.vcpu, GPA), 1);
	store64(s.vcpu, GPA, 2);
	CHECK_EQ(gmem_vm_get_log(s.vm, 0, GMEM_LOG_DIRTY, 0, LEN / PG, bits, 0), 1);
	CHECK_EQ(bits[0], 1);
	store64(s.vcpu, GPA, 3);
	gmem_vm_lock_slots(s.vm);
	CHECK_OK(gmem_mmu_track_write(&s.vm->mmu, GFN, true));
	gmem_vm_unlock_slots(s.vm);
	CHECK_EQ(load64(s.vcpu, GPA), 3);
	CHECK_ERR(gmem_vcpu_store(s.vcpu, GPA, "", 1), -EPERM);
	CHECK_EQ(s.k->n, 0);
	tear_down(&s);
}

TEST(not_accepted_is_not_accessed)
{
	uint64_t done = 0, v;
	struct scene s;

	set_up(&s);
	s.k->makes_pending = true;
	for (int i = 0; i < 2; i++)
		CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA, &v, 8), -EACCES);
	CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_NONE);
	/* Asked for once, and mapped by pre-faulting too as far as that goes. */
	CHECK_EQ(s.k->n, 4);
	CHECK_OK(gmem_vcpu_pre_fault(s.vcpu, GPA, PG, &done));
	CHECK_EQ(done, PG);
	CHECK_EQ(s.k->n, 4);
	CHECK_OK(gmem_vcpu_accept(s.vcpu, GPA, 2 * PG, true, &done));
	CHECK_EQ(done, 2 * PG);
	store64(s.vcpu, GPA, 5);
	CHECK_EQ(load64(s.vcpu, GPA), 5);
	CHECK_EQ(gmem_vcpu_accept(s.vcpu, GPA, PG, true, NULL), 1);
	CHECK_EQ(load64(s.vcpu, GPA), 5);
	CHECK_OK(gmem_vcpu_accept(s.vcpu, GPA, PG, false, NULL));
	CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA, &v, 8), -EACCES);
	CHECK_EQ(gmem_vcpu_accept(s.vcpu, GPA, PG, false, NULL), 1);
	CHECK_OK(gmem_vcpu_accept(s.vcpu, GPA, PG, true, NULL));
	CHECK_EQ(load64(s.vcpu, GPA), 5);
	/* A pending page is taken away like any other. */
	CHECK_OK(gmem_vcpu_accept(s.vcpu, GPA, PG, false, NULL));
	s.k->n = 0;
	to_shared(s.file, 0, PG);
	check_call(&s, 2, CLEAR, GFN, 0);
	CHECK_ERR(gmem_vcpu_accept(s.vcpu, GPA, PG, true, NULL), -EFAULT);
	CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_MEMORY_FAULT);
	CHECK_EQ(exit_of(s.vcpu).flags, GMEM_EXIT_FLAG_PRIVATE);
	CHECK_ERR(gmem_vcpu_accept(s.vcpu, GPA | gmem_vm_alias_bit(s.vm), PG, true, NULL), -EINVAL);
	CHECK_ERR(gmem_vcpu_accept(s.vcpu, GPA + 1, PG, true, NULL), -EINVAL);
	CHECK_ERR(gmem_vcpu_accept(s.vcpu, GPA, 0, true, NULL), -EINVAL);
	CHECK_ERR(gmem_vcpu_accept(s.vcpu, GPA - PG, PG, true, NULL), -EFAULT);
	tear_down(&s);
}

TEST(a_refusal_leaves_nothing)
{
	struct scene s;
	uint64_t v;

	set_up(&s);
	s.k->fail[SET] = -ENOSPC;
	CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA, &v, 8), -ENOSPC);
	CHECK(!gmem_mmu_mapped(&s.vm->mmu, GFN));
	s.k->fail[SET] = 0;
	s.k->fail[TABLE] = -ENOSPC;
	CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA + 512 * PG, &v, 8), -ENOSPC);
	s.k->fail[TABLE] = 0;
	s.k->busy = 5;
	store64(s.vcpu, GPA, 1);
	store64(s.vcpu, GPA + 512 * PG, 1);
	CHECK_EQ(s.k->busy, 0);
	CHECK_EQ(gmem_vcpu_accept(s.vcpu, GPA, PG, true, NULL), 1);
	s.k->fail[ACCEPT] = -EINVAL;
	CHECK_ERR(gmem_vcpu_accept(s.vcpu, GPA, PG, false, NULL), -EINVAL);
	CHECK_EQ(load64(s.vcpu, GPA), 1);
	tear_down(&s);
}

static void dies_of(enum act act)
{
	struct scene s;
	uint64_t v;

	set_up(&s);
	store64(s.vcpu, GPA, 1);
	s.k->fail[act] = -EIO;
	to_shared(s.file, 0, PG);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, GPA + PG, &v, 8), -EIO);
	tear_down(&s);
}

TEST(a_page_that_cannot_be_taken_away_ends_the_vm_block)
{
	dies_of(BLOCK);
}

TEST(a_page_that_cannot_be_taken_away_ends_the_vm_track)
{
	dies_of(TRACK);
}

TEST(a_page_that_cannot_be_taken_away_ends_the_vm_clear)
{
	dies_of(CLEAR);
}

static int map_it(struct gmem_vm *vm, uint64_t gfn, uint64_t pfn, void *src, void *opaque)
{
	(void)vm;
	(void)src;
	return gmem_mmu_map_private_pfn(opaque, gfn, pfn);
}

TEST(populating)
{
	char *src = aligned_alloc(PG, PG);
	struct scene s;

	set_up(&s);
	CHECK(src);
	memset(src, 'x', PG);
	s.k->fail[SET] = -ENOSPC;
	CHECK_ERR(gmem_populate(s.vm, GFN, src, 1, 0, map_it, s.vcpu), -ENOSPC);
	CHECK(!gmem_mmu_mapped(&s.vm->mmu, GFN));
	s.k->fail[SET] = 0;
	CHECK_EQ(gmem_populate(s.vm, GFN, src, 1, 0, map_it, s.vcpu), 1);
	CHECK_EQ(load64(s.vcpu, GPA), 0x7878787878787878ull);
	/* Other bytes for a page that the guest keeps. */
	s.k->n = 0;
	memset(src, 'y', PG);
	CHECK_EQ(gmem_populate(s.vm, GFN, src, 1, 0, NULL, NULL), 1);
	CHECK_EQ(load64(s.vcpu, GPA), 0x7979797979797979ull);
	CHECK_EQ(s.k->n, 0);
	free(src);
	tear_down(&s);
}
