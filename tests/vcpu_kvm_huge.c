/* SPDX-License-Identifier: MIT */
/* Guests on KVM whose memory is a file of huge pages: all of one is let through, or none; the exits are of 4 KiB. */
#include "kvm_huge.h"

/* ---- what is there */

TEST_TIMEOUT(memory_is_the_files, 120)
{
	struct scene s;

	EACH_HUGE_WAY(&s)
	{
		set_file_word(s.file, 3 * PG, 33);
		CHECK_EQ(run(&s, GUEST_load8, GPA + 3 * PG), 33);
		CHECK_EQ(run(&s, GUEST_load8, GPA + 4 * PG), 0);
		run(&s, GUEST_store8, GPA + H + 5 * PG, 55);
		CHECK_EQ(file_word(s.file, H + 5 * PG), 55);
		/* Over the edge of two that nobody has touched. */
		CHECK_EQ(run(&s, GUEST_fill, GPA + 3 * H - PG / 2, PG / 8, 9), PG / 8);
		for (uint64_t i = 0; i < PG / 8; i++)
			CHECK_EQ(file_word(s.file, 3 * H - PG / 2 + i * 8), guest_pattern(9, i));
		CHECK_EQ(run(&s, GUEST_cmpxchg8, GPA + 3 * PG, 33, 34), 33);
		CHECK_EQ(file_word(s.file, 3 * PG), 34);
		/* Nothing of it is the library's business. */
		CHECK_EQ(faults_of(s.vm), 0);
	}
}

TEST_TIMEOUT(absent_pages_are_brought_in, 240)
{
	struct scene s;

	EACH_HUGE_WAY(&s)
	{
		struct supplier sup = { .calls = 0 };
		struct gmem_supply *supply;
		uint64_t at_first;

		/* What a guest has touched before is a part of the file that nobody brings in. */
		run(&s, GUEST_store8, GPA + 3 * H + 8, 4);
		supply = new_supply(s.file, 0, 3 * H, bring_in, &sup);
		set_file_word(s.file, H + 7 * PG, 77);
		at_first = atomic_load(&sup.calls);
		CHECK_EQ(run(&s, GUEST_load8, GPA + 5 * PG + 24), 5 * PG + 25);
		CHECK_EQ(atomic_load(&sup.calls), at_first + H_PAGES);
		CHECK_EQ(run(&s, GUEST_sum, GPA, H_PAGES, PG), H_PAGES * (H_PAGES - 1) / 2 * PG + H_PAGES);
		CHECK_EQ(atomic_load(&sup.calls), at_first + H_PAGES);
		/* All but what the host has put there. */
		run(&s, GUEST_store8, GPA + H + 6 * PG + 8, 1);
		CHECK_EQ(atomic_load(&sup.calls), at_first + 2 * H_PAGES - 1);
		CHECK_EQ(file_word(s.file, H + 6 * PG), H + 6 * PG + 1);
		CHECK_EQ(file_word(s.file, H + 6 * PG + 8), 1);
		CHECK_EQ(run(&s, GUEST_load8, GPA + H + 7 * PG), 77);
		CHECK_EQ(run(&s, GUEST_load8, GPA + 3 * H + 8), 4);
		CHECK_EQ(gmem_file_page_state(s.file, 2 * H), GMEM_PAGE_ABSENT);
		end_supply(s.file, supply);
		/* What is there stays so, and of what is not nobody makes a zero. */
		CHECK_EQ(run(&s, GUEST_load8, GPA + H + 9 * PG), H + 9 * PG + 1);
		run_err(&s, -EIO, GUEST_load8, GPA + 2 * H);
		CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_NONE);
		CHECK_OK(gmem_file_punch(s.file, 2 * H, H));
		CHECK_OK(go_on(&s));
		CHECK_EQ(guest_result(&s.guest), 0);
	}
}

static int numbered_pages(void *opaque, uint64_t off, void *buf, size_t len)
{
	(void)opaque;
	for (uint64_t i = 0; i < len / 8; i++)
		((uint64_t *)buf)[i] = off + i * 8 + 1;
	return 0;
}

/* By a pager, which maps the host's view as well. */
TEST_TIMEOUT(a_pager_brings_them_in, 120)
{
	struct scene s;

	EACH_HUGE_WAY(&s)
	{
		struct gmem_source_ops ops = { .size = sizeof(ops), .read = numbered_pages };
		struct gmem_source *source;
		struct gmem_pager *pager;
		struct gmem_view *view;

		CHECK_OK(gmem_view_map(s.file, 0, ALL, PROT_READ | PROT_WRITE, &view));
		CHECK_OK(gmem_source_new(&ops, NULL, &source));
		if (gmem_pager_create(NULL, &pager))
			SKIP("uffd", "%s", gmem_last_error());
		CHECK_OK(gmem_pager_add_view(pager, view, source, 0));
		CHECK_EQ(run(&s, GUEST_load8, GPA + H + 9 * PG), H + 9 * PG + 1);
		CHECK_EQ(run(&s, GUEST_sum, GPA + H, H_PAGES, PG),
			 H_PAGES * H + H_PAGES * (H_PAGES - 1) / 2 * PG + H_PAGES);
		CHECK_EQ(((uint64_t *)gmem_view_addr(view))[H / 8], H + 1);
		CHECK_EQ(gmem_file_page_state(s.file, 2 * H), GMEM_PAGE_ABSENT);
		gmem_pager_free(pager);
		gmem_source_unref(source);
		gmem_view_unmap(view);
	}
}

/* ---- what is not to be touched */

TEST_TIMEOUT(private_pages_bring_it_out, 120)
{
	struct scene s;

	EACH_HUGE_DEFAULT_WAY(&s)
	{
		run(&s, GUEST_store8, GPA + H + 3 * PG, 11);
		set_file_word(s.file, 2 * H + 16, 22);
		to_private(s.file, H, 2 * H);
		/* The page of 4 KiB that it touched, of one that it has touched and of one that it has not. */
		run_err(&s, -EFAULT, GUEST_load8, GPA + H + 3 * PG);
		check_fault(&s, GPA + H + 3 * PG, 0);
		CHECK_ERR(go_on(&s), -EFAULT);
		check_fault(&s, GPA + H + 3 * PG, 0);
		to_shared(s.file, H, H);
		CHECK_OK(go_on(&s));
		CHECK_EQ(guest_result(&s.guest), 11);
		/* The pages around the other one are as they were. */
		CHECK_EQ(run(&s, GUEST_load8, GPA + 3 * H), 0);
		CHECK_EQ(run(&s, GUEST_load8, GPA + 2 * H - 8), 0);
		run_err(&s, -EFAULT, GUEST_store8, GPA + 3 * H - 8, 1);
		check_fault(&s, GPA + 3 * H - PG, 0);
		to_shared(s.file, 2 * H, H);
		CHECK_OK(go_on(&s));
		CHECK_EQ(file_word(s.file, 3 * H - 8), 1);
		to_private(s.file, 2 * H, H);
		/* A slot that is set while they are private. */
		CHECK_OK(del_slot(s.vm, 0));
		CHECK_OK(set_slot(s.vm, 1, GPA, ALL, s.file, 0));
		run_err(&s, -EFAULT, GUEST_load8, GPA + 2 * H + 16);
		check_fault(&s, GPA + 2 * H, 0);
		to_shared(s.file, 2 * H, H);
		CHECK_OK(go_on(&s));
		CHECK_EQ(guest_result(&s.guest), 22);
	}
}

TEST_TIMEOUT(both_sides_of_a_protected_machine, 120)
{
	struct scene s;

	EACH_HUGE_WAY(&s)
	{
		if (s.vm->type == GMEM_VM_DEFAULT)
			continue;
		CHECK_EQ(run(&s, GUEST_touch, GPA, ALL / (16 * PG), 16 * PG, 9), ALL / (16 * PG));
		to_private(s.file, H, 2 * H);
		CHECK_ERR(gmem_file_read(s.file, H, &(uint64_t){ 0 }, 8), -EACCES);
		CHECK_EQ(run(&s, GUEST_load8, GPA + H), 9 + H / (16 * PG));
		run(&s, GUEST_store8, GPA + H, 1);
		CHECK_OK(gmem_file_punch(s.file, 2 * H, H));
		CHECK_EQ(run(&s, GUEST_load8, GPA + 2 * H), 0);
		to_shared(s.file, H, 2 * H);
		CHECK_EQ(file_word(s.file, H), 1);
		CHECK_EQ(file_word(s.file, H + 16 * PG), 10 + H / (16 * PG));
		CHECK_EQ(run(&s, GUEST_load8, GPA + 3 * H), 9 + 3 * H / (16 * PG));
	}
}

/* With a huge page its marker goes. */
TEST_TIMEOUT(punched_pages_are_zero_and_stay_private, 120)
{
	struct scene s;

	EACH_HUGE_WAY(&s)
	{
		bool out = s.vm->type == GMEM_VM_DEFAULT;

		CHECK_EQ(run(&s, GUEST_touch, GPA, ALL / (16 * PG), 16 * PG, 9), ALL / (16 * PG));
		CHECK_OK(gmem_file_punch(s.file, 16 * PG, PG));
		CHECK_OK(gmem_file_punch(s.file, H, 2 * H));
		CHECK_EQ(run(&s, GUEST_load8, GPA + 16 * PG), 0);
		CHECK_EQ(run(&s, GUEST_load8, GPA + 32 * PG), 11);
		CHECK_EQ(run(&s, GUEST_sum, GPA + H, 2 * H / (16 * PG), 16 * PG), 0);
		CHECK_EQ(run(&s, GUEST_load8, GPA + 3 * H), 9 + 3 * H / (16 * PG));
		run(&s, GUEST_store8, GPA + H, 6);
		to_private(s.file, 0, 2 * H);
		CHECK_OK(gmem_file_punch(s.file, 32 * PG, 3 * H));
		for (uint64_t off = 0; off < 2 * H && out; off += H) {
			run_err(&s, -EFAULT, GUEST_store8, GPA + off + 64 * PG, 7);
			check_fault(&s, GPA + off + 64 * PG, 0);
			CHECK_EQ(resident(s.file), 2 * H);
			to_shared(s.file, off, H);
			CHECK_EQ(file_word(s.file, off + 64 * PG), 0);
			CHECK_OK(go_on(&s));
			CHECK_EQ(file_word(s.file, off + 64 * PG), 7);
			CHECK_OK(gmem_file_punch(s.file, H, H));
		}
		to_shared(s.file, 0, 2 * H);
		CHECK_EQ(run(&s, GUEST_load8, GPA), 9);
		CHECK_EQ(run(&s, GUEST_load8, GPA + H), 0);
	}
}

TEST_TIMEOUT(poisoned_pages, 120)
{
	struct scene s;

	EACH_HUGE_WAY(&s)
	{
		run(&s, GUEST_store8, GPA + 2 * PG, 1);
		CHECK_OK(gmem_file_poison(s.file, 2 * PG, PG));
		CHECK_OK(gmem_file_poison(s.file, H, H));
		for (int i = 0; i < 2; i++) {
			const uint64_t unit = (uint64_t)i * H;

			run_err(&s, -EHWPOISON, GUEST_load8, GPA + unit + 5 * PG);
			check_fault(&s, GPA + unit + 5 * PG, 0);
			CHECK_OK(gmem_file_punch(s.file, unit, H));
			CHECK_OK(go_on(&s));
			CHECK_EQ(guest_result(&s.guest), 0);
		}
		CHECK_EQ(run(&s, GUEST_load8, GPA + 2 * H), 0);
	}
}

/* The bytes of one page of 4 KiB never come. */
static int bring_in_or_lose(void *opaque, struct gmem_file *file, uint64_t off, struct gmem_wait *wait)
{
	int err;

	if (off != 300 * PG)
		return bring_in(opaque, file, off, wait);
	gmem_rwlock_lock_shared(&file->invalidate_lock);
	err = gmem_file_poison_page(file, off);
	gmem_rwlock_unlock_shared(&file->invalidate_lock);
	return err < 0 ? err : 0;
}

/* The processor is let through to all of a huge page, or to none. An access that KVM emulates goes by 4 KiB. */
TEST_TIMEOUT(one_lost_page_is_all_of_it, 120)
{
	struct scene s;

	EACH_HUGE_WAY(&s)
	{
		struct supplier sup = { .calls = 0 };
		struct gmem_supply *supply;

		if (ways[way_].mode != GUEST_USER)
			continue;
		supply = new_supply(s.file, 0, ALL, bring_in_or_lose, &sup);
		run_err(&s, -EHWPOISON, GUEST_load8, GPA + 3 * PG);
		check_fault(&s, GPA + 3 * PG, 0);
		run_err(&s, -EHWPOISON, GUEST_load8, GPA + 300 * PG);
		check_fault(&s, GPA + 300 * PG, 0);
		CHECK_EQ(run(&s, GUEST_load8, GPA + H + 300 * PG), H + 300 * PG + 1);
		CHECK_OK(gmem_file_punch(s.file, 300 * PG, PG));
		CHECK_EQ(run(&s, GUEST_load8, GPA + 300 * PG), 0);
		CHECK_EQ(run(&s, GUEST_load8, GPA + 3 * PG), 3 * PG + 1);
		end_supply(s.file, supply);
	}
}

/* An insertion that is undone gives the memory back, by a punch: nobody may take the hole for zero. */
TEST_TIMEOUT(an_insertion_undone, 120)
{
	struct scene s;

	EACH_HUGE_WAY(&s)
	{
		struct supplier sup = { .calls = 0 };
		struct gmem_supply *supply = new_supply(s.file, 0, ALL, bring_in, &sup);
		struct gmem_gate *gate = gate_of(&s);
		struct gmem_folio folio;

		gmem_rwlock_lock_shared(&s.file->invalidate_lock);
		CHECK_OK(s.file->ops->alloc(s.file, H + 7 * PG, 1, &folio));
		CHECK_OK(s.file->ops->insert(s.file, &folio));
		CHECK_EQ(resident(s.file), H);
		CHECK(!within_reach(gate, H));
		s.file->ops->remove(s.file, &folio);
		gmem_rwlock_unlock_shared(&s.file->invalidate_lock);
		CHECK_EQ(resident(s.file), 0);
		CHECK(!within_reach(gate, H));
		CHECK_EQ(run(&s, GUEST_load8, GPA + H + 7 * PG), H + 7 * PG + 1);
		CHECK(within_reach(gate, H));
		end_supply(s.file, supply);
	}
}

/* ---- slots that are no whole pages */

TEST_TIMEOUT(a_slot_that_cuts_pages, 120)
{
	const uint64_t from = H - 3 * PG, len = H + 8 * PG, gpa = GPA + ALL + 5 * PG, unit1 = gpa + 3 * PG;
	struct scene s;

	EACH_HUGE_WAY(&s)
	{
		bool out = s.vm->type == GMEM_VM_DEFAULT;

		for (uint64_t off = from; off < from + len; off += PG)
			set_file_word(s.file, off, off);
		CHECK_OK(del_slot(s.vm, 0));
		CHECK_OK(set_slot(s.vm, 1, gpa, len, s.file, from));
		for (uint64_t i = 0; i < len / PG; i += 7)
			CHECK_EQ(run(&s, GUEST_load8, gpa + i * PG), from + i * PG);
		for (uint64_t unit = 0; unit < 3 * H; unit += H) {
			uint64_t page = unit ? gpa + (unit - from) + PG : gpa + PG;

			to_private(s.file, unit, H);
			begin(&s, GUEST_load8, page);
			if (out) {
				CHECK_ERR(go_on(&s), -EFAULT);
				check_fault(&s, page, 0);
				to_shared(s.file, unit, H);
			}
			CHECK_OK(go_on(&s));
			CHECK_EQ(guest_result(&s.guest), from + (page - gpa));
			to_shared(s.file, unit, H);
			CHECK_EQ(run(&s, GUEST_load8, page), from + (page - gpa));
		}
		CHECK_OK(gmem_file_poison(s.file, 0, PG));
		CHECK_EQ(run(&s, GUEST_load8, unit1), H);
		run_err(&s, -EHWPOISON, GUEST_load8, gpa + 2 * PG);
		check_fault(&s, gpa + 2 * PG, 0);
		CHECK_OK(gmem_file_punch(s.file, 0, H));
		CHECK_OK(go_on(&s));
		CHECK_EQ(guest_result(&s.guest), 0);
		/* Neither before it nor behind it is anything. */
		for (int i = 0; i < 2; i++) {
			begin(&s, GUEST_load8, i ? gpa + len : gpa - PG);
			CHECK_OK(gmem_vcpu_run(s.vcpu));
			CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_MMIO);
			CHECK_OK(gmem_vcpu_answer(s.vcpu, 5));
			CHECK_OK(go_on(&s));
		}
	}
}

TEST_TIMEOUT(two_slots_in_one_page, 120)
{
	const uint64_t second = GPA + ALL;
	struct scene s;

	EACH_HUGE_DEFAULT_WAY(&s)
	{
		CHECK_OK(del_slot(s.vm, 0));
		CHECK_OK(set_slot(s.vm, 1, GPA, H / 2, s.file, 0));
		CHECK_OK(set_slot(s.vm, 2, second, H / 2, s.file, H / 2));
		run(&s, GUEST_store8, GPA + PG, 1);
		run(&s, GUEST_store8, second + PG, 2);
		for (int i = 0; i < 4; i++) {
			uint64_t gpa = i & 1 ? second + PG : GPA + PG;

			to_private(s.file, 0, H);
			if (i & 2)
				CHECK_OK(gmem_file_punch(s.file, 0, H));
			run_err(&s, -EFAULT, GUEST_load8, gpa);
			check_fault(&s, gpa, 0);
			to_shared(s.file, 0, H);
			CHECK_OK(go_on(&s));
			CHECK_EQ(guest_result(&s.guest), i & 2 ? 0 : (i & 1) + 1);
		}
		run(&s, GUEST_store8, second + PG, 3);
		CHECK_EQ(run(&s, GUEST_load8, GPA + PG), 0);
		to_private(s.file, 0, H);
		CHECK_OK(del_slot(s.vm, 2));
		run_err(&s, -EFAULT, GUEST_load8, GPA + PG);
		to_shared(s.file, 0, H);
		CHECK_OK(go_on(&s));
		CHECK_EQ(file_word(s.file, H / 2 + PG), 3);
	}
}

/* ---- what goes by 4 KiB */

TEST_TIMEOUT(logs_and_bitmaps, 120)
{
	uint64_t bits[ALL / PG / 64], bitmap[ALL / PG / 64] = { 0 };
	struct scene s;

	EACH_HUGE_WAY(&s)
	{
		struct gmem_memslot m = { .size = sizeof(m), .gpa = GPA, .len = ALL, .file = s.file };

		m.flags = GMEM_SLOT_USERFAULT;
		m.userfault_bitmap = bitmap;
		CHECK_ERR(gmem_vm_set_slot(s.vm, &m), -EOPNOTSUPP);
		CHECK_HAS(gmem_last_error(), "huge pages");
		CHECK_ERR(gmem_vm_set_log(s.vm, 0, GMEM_LOG_ACCESSED | GMEM_LOG_DIRTY), -EOPNOTSUPP);
		CHECK_HAS(gmem_last_error(), "huge pages");
		/* Large before, and small from now on. */
		CHECK_EQ(run(&s, GUEST_touch, GPA, UNITS, H, 1), UNITS);
		CHECK_OK(gmem_vm_set_log(s.vm, 0, GMEM_LOG_DIRTY));
		for (int i = 0; i < 2; i++) {
			run(&s, GUEST_store8, GPA + 3 * PG, 1);
			run(&s, GUEST_store8, GPA + H + 90 * PG, 1);
			CHECK_EQ(gmem_vm_get_log(s.vm, 0, GMEM_LOG_DIRTY, 0, ALL / PG, bits, GMEM_LOG_CLEAR), 2);
			CHECK_EQ(bits[0], 1ull << 3);
			CHECK_EQ(bits[H_PAGES / 64 + 1], 1ull << (90 - 64));
		}
		CHECK_OK(gmem_vm_set_log(s.vm, 0, 0));
		run(&s, GUEST_store8, GPA + 4 * PG, 1);
	}
}

#include "tap_main.h"
