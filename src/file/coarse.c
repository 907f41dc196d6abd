/* SPDX-License-Identifier: MIT */
/*
 * Memory that comes by the large page of 2 MiB, while pages of 4 KiB are brought in: hugetlbfs; shared memory that is
 * advised to be large, or where shmem_enabled is set to "always" or "within_size".
 *
 * An absent page has memory then because a neighbour was brought in, and that is no reason to take it for one that a
 * mapping has filled. So a large page is adopted as a whole, if nobody has brought in a part of it, and else not at
 * all; and memory that came with an insertion that is undone goes with it, or it would pass for a mapping's.
 */
#include <errno.h>

#include "base/range.h"
#include "file/backing.h"
#include "sys/hugepages.h"

#define UNIT GMEM_HUGE_SIZE

/* A large page, and what of it is in the file. */
struct unit {
	uint64_t off, end;
};

static struct unit unit_at(const struct gmem_file *file, uint64_t off)
{
	uint64_t first = off & ~(UNIT - 1);

	return (struct unit){ .off = first, .end = gmem_min_u64(first + UNIT, file->len) };
}

bool gmem_file_vague(const struct gmem_file *file, uint64_t off)
{
	uint64_t n = GMEM_HUGE_SIZE >> GMEM_PAGE_SHIFT, first = off >> GMEM_PAGE_SHIFT & ~(n - 1);
	uint64_t end = gmem_min_u64(first + n, file->state.npages);

	if (!(file->flags & (GMEM_FILE_COARSE | GMEM_FILE_HUGETLB)))
		return false;
	for (uint64_t page = first; page < end; page++) {
		uint32_t word = gmem_state_word(&file->state, page);

		if (page != off >> GMEM_PAGE_SHIFT && (gmem_word_content(word) || (word & GMEM_WORD_LOCKED)))
			return true;
	}
	return false;
}

static void unlock_words(struct gmem_file *file, uint64_t off, uint64_t end, uint32_t generation)
{
	for (uint64_t page = off >> GMEM_PAGE_SHIFT; page < end >> GMEM_PAGE_SHIFT; page++)
		gmem_state_unlock(&file->state, page, generation);
}

/* All words, if all are absent and nobody is at one: nobody brings a part of it in meanwhile. */
static bool lock_words(struct gmem_file *file, struct unit unit, uint32_t generation)
{
	for (uint64_t off = unit.off; off < unit.end; off += GMEM_PAGE_SIZE) {
		enum gmem_state_lock got = gmem_state_trylock(&file->state, off >> GMEM_PAGE_SHIFT, generation);

		if (got == GMEM_STATE_LOCKED)
			continue;
		if (got == GMEM_STATE_STALE || got == GMEM_STATE_ABANDONED)
			gmem_backing_drop(file, off >> GMEM_PAGE_SHIFT, generation);
		unlock_words(file, unit.off, off, generation);
		return false;
	}
	return true;
}

/* What of the unit has memory is in place, the rest is unlocked. The locks are ours. */
static void publish_data(struct gmem_file *file, struct unit unit, uint32_t generation)
{
	uint64_t off = unit.off;

	while (off < unit.end) {
		int64_t data = file->ops->next_data(file, off), hole;
		uint64_t from = data < 0 ? unit.end : gmem_min_u64((uint64_t)data, unit.end);

		unlock_words(file, off, from, generation);
		hole = from < unit.end ? file->ops->next_hole(file, from) : -ENXIO;
		off = hole < 0 ? unit.end : gmem_min_u64((uint64_t)hole, unit.end);
		for (uint64_t page = from >> GMEM_PAGE_SHIFT; page < off >> GMEM_PAGE_SHIFT; page++)
			if (!gmem_state_publish(&file->state, page, generation))
				gmem_backing_drop(file, page, generation);
	}
}

int gmem_unit_adopt(struct gmem_file *file, uint64_t off, uint32_t max)
{
	struct unit unit = unit_at(file, off);
	uint32_t generation = gmem_file_generation(file);
	uint64_t n = gmem_min_u64((unit.end - off) >> GMEM_PAGE_SHIFT, max);
	int absent = gmem_backing_absent(file, off);

	if (absent <= 0)
		return absent;
	/* Its neighbours may be in place: who asked inserts up to the first that is. */
	if (gmem_file_vague(file, off) || !gmem_file_has_memory(file, off, n << GMEM_PAGE_SHIFT))
		return (int)n;
	if (!lock_words(file, unit, generation))
		return -EBUSY;
	publish_data(file, unit, generation);
	/* Data may begin behind the page that was asked for. */
	return gmem_backing_present(file, off) ? 0 : 1;
}

/*
 * Gives back memory of which no part is in place. A private huge page keeps it: its markers would go with it, and
 * nobody adopts it.
 */
static void give_back(struct gmem_file *file, struct unit unit)
{
	uint32_t generation = gmem_file_generation(file);

	if (gmem_file_private(file, unit.off) || !lock_words(file, unit, generation))
		return;
	(void)file->ops->punch(file, unit.off, unit.end - unit.off);
	for (uint64_t page = unit.off >> GMEM_PAGE_SHIFT; page < unit.end >> GMEM_PAGE_SHIFT; page++)
		gmem_state_take_back(&file->state, page);
	unlock_words(file, unit.off, unit.end, generation);
}

static void give_back_all(struct gmem_file *file, const struct gmem_folio *folio, uint32_t npages)
{
	uint64_t end = folio->off + ((uint64_t)npages << GMEM_PAGE_SHIFT);

	for (uint64_t off = folio->off & ~(UNIT - 1); folio->fresh && off < end; off += UNIT)
		give_back(file, unit_at(file, off));
}

int gmem_unit_insert(struct gmem_file *file, struct gmem_folio *folio)
{
	uint32_t npages = folio->npages;
	struct unit first = unit_at(file, folio->off);
	struct unit last = unit_at(file, folio->off + ((uint64_t)(npages - 1) << GMEM_PAGE_SHIFT));
	int err;

	folio->fresh = !gmem_file_has_memory(file, first.off, last.end - first.off);
	err = gmem_backing_insert(file, folio);
	if (err)
		give_back_all(file, folio, npages);
	return err;
}

void gmem_unit_remove(struct gmem_file *file, struct gmem_folio *folio)
{
	gmem_backing_remove(file, folio);
	give_back_all(file, folio, folio->npages);
}
