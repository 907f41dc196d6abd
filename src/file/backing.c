/* SPDX-License-Identifier: MIT */
/* The part of the backing operations that is the page-state table's, and the same for every kind of memory. */
#include "file/backing.h"

#include <errno.h>

#include "base/err.h"
#include "base/range.h"

static const char zeroes[GMEM_PAGE_SIZE];

bool gmem_backing_can_userfault(const struct gmem_file *file, uint64_t off, uint64_t len)
{
	return gmem_range_inside(off, len, file->len) && !file->state.init_private;
}

bool gmem_backing_present(const struct gmem_file *file, uint64_t off)
{
	return gmem_word_content(gmem_state_word(&file->state, off >> GMEM_PAGE_SHIFT)) != GMEM_WORD_ABSENT;
}

int gmem_backing_lookup(struct gmem_file *file, uint64_t off, uint32_t max, struct gmem_folio *ret)
{
	uint64_t first = off >> GMEM_PAGE_SHIFT;
	uint32_t word = gmem_state_word(&file->state, first);
	uint32_t n = 0;

	if (word & GMEM_WORD_POISONED)
		return -EHWPOISON;
	if (gmem_word_content(word) == GMEM_WORD_ABSENT)
		return gmem_word_locked(word, gmem_file_generation(file)) ? -EBUSY : -ENOENT;
	while (n < max && first + n < file->state.npages &&
	       gmem_word_content(gmem_state_word(&file->state, first + n)) != GMEM_WORD_ABSENT)
		n++;
	*ret = (struct gmem_folio){ .off = off, .npages = n };
	return 0;
}

int gmem_backing_alloc(struct gmem_file *file, uint64_t off, uint32_t npages, struct gmem_folio *ret)
{
	if (off >= file->len)
		return -ERANGE;
	/* The memory itself comes from shmem when the bytes are written, under shmem's own policy for the range. */
	if (npages > GMEM_FOLIO_MAX_PAGES)
		npages = GMEM_FOLIO_MAX_PAGES;
	*ret = (struct gmem_folio){
		.off = off,
		.npages = (uint32_t)gmem_min_u64(npages, (file->len - off) >> GMEM_PAGE_SHIFT),
	};
	return 0;
}

void gmem_backing_drop(struct gmem_file *file, uint64_t page, uint32_t generation)
{
	if (!gmem_state_owns(&file->state, page, generation))
		return;
	(void)file->ops->punch(file, page << GMEM_PAGE_SHIFT, GMEM_PAGE_SIZE);
	gmem_state_take_back(&file->state, page);
	gmem_state_unlock(&file->state, page, generation);
}

static int lock_error(enum gmem_state_lock got)
{
	switch (got) {
	case GMEM_STATE_BUSY:
		return -EBUSY;
	case GMEM_STATE_BAD:
		return -EHWPOISON;
	default:
		return -EEXIST;
	}
}

/* Locks pages from the first on, as many as are there to be locked. Returns how many, or why not even one. */
static int lock_run(struct gmem_file *file, struct gmem_folio *folio, bool *stale)
{
	uint64_t first = folio->off >> GMEM_PAGE_SHIFT;

	*stale = false;
	folio->generation = gmem_file_generation(file);
	for (uint32_t i = 0; i < folio->npages; i++) {
		enum gmem_state_lock got = gmem_state_trylock(&file->state, first + i, folio->generation);

		if (got == GMEM_STATE_ABANDONED) {
			gmem_backing_drop(file, first + i, folio->generation);
			got = GMEM_STATE_IN_PLACE;
		}
		if (got == GMEM_STATE_STALE)
			*stale = true;
		else if (got != GMEM_STATE_LOCKED)
			return i ? (int)i : lock_error(got);
	}
	return (int)folio->npages;
}

static int write_zeroes(struct gmem_file *file, const struct gmem_folio *folio)
{
	for (uint32_t i = 0; i < folio->npages; i++) {
		int err = file->ops->write(file, folio->off + (uint64_t)i * GMEM_PAGE_SIZE, zeroes, GMEM_PAGE_SIZE);

		if (err)
			return err;
	}
	return 0;
}

void gmem_backing_remove(struct gmem_file *file, struct gmem_folio *folio)
{
	uint64_t first = folio->off >> GMEM_PAGE_SHIFT;

	for (uint32_t i = 0; i < folio->npages; i++)
		gmem_backing_drop(file, first + i, folio->generation);
	gmem_lockcheck_release(GMEM_LOCK_PAGE, &file->state.words[first]);
}

/* `stale`: there may be bytes of a dead server. */
static int put_bytes(struct gmem_file *file, const struct gmem_folio *folio, bool stale)
{
	uint64_t len = (uint64_t)folio->npages << GMEM_PAGE_SHIFT;
	int err;

	if (folio->len) {
		err = stale ? file->ops->punch(file, folio->off, len) : 0;
		return err ? err : file->ops->write(file, folio->off + folio->at, folio->data, folio->len);
	}
	if (folio->data)
		return file->ops->write(file, folio->off, folio->data, len);
	return stale ? write_zeroes(file, folio) : file->ops->allocate(file, folio->off, len);
}

/* The page is absent as before, and its memory as bad. */
static void leave_bad(struct gmem_file *file, const struct gmem_folio *folio)
{
	uint64_t page = folio->off >> GMEM_PAGE_SHIFT;

	gmem_state_unlock(&file->state, page, folio->generation);
	gmem_lockcheck_release(GMEM_LOCK_PAGE, &file->state.words[page]);
}

int gmem_backing_insert(struct gmem_file *file, struct gmem_folio *folio)
{
	uint64_t len;
	bool stale;
	int n, err;

	n = lock_run(file, folio, &stale);
	if (n < 0)
		return n;
	gmem_lockcheck_acquire(GMEM_LOCK_PAGE, &file->state.words[folio->off >> GMEM_PAGE_SHIFT]);
	folio->npages = (uint32_t)n;
	len = (uint64_t)n << GMEM_PAGE_SHIFT;
	err = put_bytes(file, folio, stale);
	/* Memory that nobody had brought in has failed. Of whole pages nothing is lost: they get other memory. */
	if (err == -EHWPOISON && folio->len) {
		leave_bad(file, folio);
		return err;
	}
	if (err == -EHWPOISON) {
		err = file->ops->punch(file, folio->off, len);
		if (!err)
			err = put_bytes(file, folio, stale);
	}
	if (err) {
		gmem_backing_remove(file, folio);
		return gmem_err_sys(err, "guest memory file: %llu bytes at 0x%llx", (unsigned long long)len,
				    (unsigned long long)folio->off);
	}
	return 0;
}

void gmem_backing_publish(struct gmem_file *file, struct gmem_folio *folio)
{
	uint64_t first = folio->off >> GMEM_PAGE_SHIFT;

	for (uint32_t i = 0; i < folio->npages; i++)
		if (!gmem_state_publish(&file->state, first + i, folio->generation))
			gmem_backing_drop(file, first + i, folio->generation);
	gmem_lockcheck_release(GMEM_LOCK_PAGE, &file->state.words[first]);
}

/* From `off` on, how many of `max` pages have no memory that was ever written to; -errno. */
static int hole(const struct gmem_file *file, uint64_t off, uint32_t max)
{
	int64_t data = file->ops->next_data(file, off);

	if (data < 0)
		return data == -ENXIO ? (int)max : (int)data;
	return (int)gmem_min_u64(((uint64_t)data - off) >> GMEM_PAGE_SHIFT, max);
}

/* The page lock is ours: nobody can put bytes there, or drop what was seen, but a mapping. */
static int adopt_locked(struct gmem_file *file, uint64_t off, uint32_t generation)
{
	uint64_t page = off >> GMEM_PAGE_SHIFT;
	int n = hole(file, off, 1);

	if (n) {
		gmem_state_unlock(&file->state, page, generation);
		return n;
	}
	if (!gmem_state_publish(&file->state, page, generation))
		gmem_backing_drop(file, page, generation);
	return 0;
}

int gmem_backing_absent(const struct gmem_file *file, uint64_t off)
{
	uint32_t word = gmem_state_word(&file->state, off >> GMEM_PAGE_SHIFT);

	if (word & GMEM_WORD_POISONED)
		return -EHWPOISON;
	if (gmem_word_content(word) != GMEM_WORD_ABSENT)
		return 0;
	return gmem_word_locked(word, gmem_file_generation(file)) ? -EBUSY : 1;
}

int gmem_backing_adopt(struct gmem_file *file, uint64_t off, uint32_t max)
{
	uint64_t page = off >> GMEM_PAGE_SHIFT;
	uint32_t generation = gmem_file_generation(file);
	int n = gmem_backing_absent(file, off);
	enum gmem_state_lock got;

	if (n <= 0)
		return n;
	n = hole(file, off, max);
	if (n)
		return n;
	got = gmem_state_trylock(&file->state, page, generation);
	switch (got) {
	case GMEM_STATE_LOCKED:
		return adopt_locked(file, off, generation);
	case GMEM_STATE_STALE:
	case GMEM_STATE_ABANDONED:
		/* What is there is what a dead server left: absent, or given up. */
		gmem_backing_drop(file, page, generation);
		return got == GMEM_STATE_STALE;
	case GMEM_STATE_IN_PLACE:
		return 0;
	default:
		return lock_error(got);
	}
}
