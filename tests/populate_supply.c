/* SPDX-License-Identifier: MIT */
/* Populate in place, where somebody brings in what is absent. */
#include "tap.h"

#include "populate_util.h"
#include "supply_util.h"

#define NPAGES 16

struct supplier {
	struct rig *r;
	unsigned int calls;
	bool cancelled, poisons;
};

static int supply(void *opaque, struct gmem_file *file, uint64_t off, struct gmem_wait *wait)
{
	struct supplier *s = opaque;
	struct gmem_folio folio;
	char page[P];

	CHECK(++s->calls < 100);
	if (s->cancelled) {
		gmem_vm_cancel(s->r->vm);
		CHECK(gmem_wait_over(wait));
		return -EINTR;
	}
	page_bytes(3, off / P - FIRST, page);
	/* Its own lock is there to be taken. */
	gmem_rwlock_lock_shared(&file->invalidate_lock);
	if (s->poisons) {
		CHECK(gmem_file_poison_page(file, off) >= 0);
	} else {
		CHECK_OK(file->ops->alloc(file, off, 1, &folio));
		folio.data = page;
		CHECK_OK(file->ops->insert(file, &folio));
		file->ops->publish(file, &folio);
	}
	gmem_rwlock_unlock_shared(&file->invalidate_lock);
	return 0;
}

TEST(in_place_asks_the_supplier)
{
	struct rig r;
	struct plan plan = { .r = &r };
	struct supplier s = { .r = &r };
	struct gmem_supply *supplied;

	rig_up(&r, NPAGES, GMEM_FILE_INIT_PRIVATE);
	supplied = new_supply(r.file, FIRST * P, 8 * P, supply, &s);
	/* Not for a page that is not private, and not with a source. */
	convert(&r, 3, 1, false);
	CHECK_EQ(gmem_populate(r.vm, GFN, source_pages(0, 1), 1, 0, NULL, NULL), 1);
	CHECK_EQ(run(&plan, 0, NULL, NPAGES, 0), 3);
	CHECK_EQ(s.calls, 2);
	CHECK_ERR(run(&plan, 3, NULL, 1, 0), -EINVAL);
	convert(&r, 3, 1, true);
	/* Cancelled in there: told of once. */
	s.cancelled = true;
	CHECK_ERR(run(&plan, 3, NULL, NPAGES, 0), -EINTR);
	CHECK_EQ(s.calls, 3);
	s.cancelled = false;
	CHECK_EQ(run(&plan, 3, NULL, 1, 0), 1);
	CHECK_EQ(s.calls, 4);
	/* Its bytes are lost. */
	s.poisons = true;
	CHECK_ERR(run(&plan, 4, NULL, 1, 0), -EHWPOISON);
	CHECK_EQ(s.calls, 5);
	s.poisons = false;
	/* Refused, it is as absent as before. */
	plan.fail = -EIO;
	plan.fail_at = 9;
	CHECK_EQ(run(&plan, 5, NULL, NPAGES, 0), 4);
	CHECK_EQ(s.calls, 8);
	CHECK_EQ(word_of(&r, 9), GMEM_WORD_ABSENT);
	/* Who was to bring them in is gone: not zero. */
	CHECK_OK(gmem_file_punch(r.file, 0, P));
	gmem_file_end_supply(r.file, supplied);
	for (uint64_t i = 0; i < 8; i++)
		if (i != 4)
			check_guest(&r, i, i ? 3 : 0, i);
	check_guest(&r, 8, -1, 0);
	gmem_file_end_supply(r.file, new_supply(r.file, (FIRST + 12) * P, P, supply, &s));
	CHECK_ERR(run(&plan, 12, NULL, 1, 0), -EIO);
	check_no_lock(&r);
	rig_down(&r);
}
