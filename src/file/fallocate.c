/* SPDX-License-Identifier: MIT */
/* fallocate(2) of a guest memory file: memory given ahead, and given back, under a guest_memfd's rules. */
#include <errno.h>
#include <fcntl.h>

#include "base/err.h"
#include "base/range.h"
#include "file/anon.h"
#include "sys/hugepages.h"
#include "sys/uapi.h"

/* Between two of these the lock is free. Shared memory undoes what a signal interrupts: the less the better. */
#define STEP_LEN (16ull << 20)

/* What fallocate(2) itself knows, whatever the file: it looks at these before the range, and the file after it. */
static bool known_mode(int mode)
{
	switch (mode) {
	case 0:
	case FALLOC_FL_KEEP_SIZE:
	case FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE:
	case FALLOC_FL_COLLAPSE_RANGE:
	case FALLOC_FL_ZERO_RANGE:
	case FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE:
	case FALLOC_FL_INSERT_RANGE:
	case FALLOC_FL_UNSHARE_RANGE:
	case FALLOC_FL_UNSHARE_RANGE | FALLOC_FL_KEEP_SIZE:
	case FALLOC_FL_WRITE_ZEROES:
		return true;
	default:
		return false;
	}
}

/* The kernel's checks in the kernel's order: those of fallocate(2), then those of guest_memfd. */
static int check(const struct gmem_file *file, int mode, int64_t off, int64_t len, const char **ret_why)
{
	bool punch = mode == (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
	int64_t end;

	*ret_why = "a negative offset, or a length not above 0";
	if (off < 0 || len <= 0)
		return -EINVAL;
	*ret_why = "only FALLOC_FL_KEEP_SIZE, alone or with FALLOC_FL_PUNCH_HOLE";
	if (!known_mode(mode))
		return -EOPNOTSUPP;
	if (__builtin_add_overflow(off, len, &end)) {
		*ret_why = "past what a file can have";
		return -EFBIG;
	}
	if (!punch && mode != FALLOC_FL_KEEP_SIZE)
		return -EOPNOTSUPP;
	*ret_why = "not page-aligned";
	if (!gmem_page_aligned((uint64_t)off) || !gmem_page_aligned((uint64_t)len))
		return -EINVAL;
	*ret_why = "past the end";
	return !punch && (uint64_t)end > file->len ? -EINVAL : 0;
}

/*
 * Is the page to be given memory? A poisoned one is not, or a mapping that knows nothing of it would read a zero; nor
 * an absent one for the second time.
 */
static bool give(struct gmem_file *file, uint64_t page)
{
	uint32_t word = gmem_state_word(&file->state, page);

	if (word & GMEM_WORD_POISONED)
		return false;
	return gmem_word_content(word) != GMEM_WORD_ABSENT || gmem_state_give(&file->state, page);
}

/* Shared memory keeps nothing of what it could not give as a whole. */
static void take_back(struct gmem_file *file, uint64_t page, uint64_t end)
{
	for (; page < end; page++)
		gmem_state_take_back(&file->state, page);
}

/*
 * Memory, zeroed, for what has none. The pages' words stay: an absent page is still to be brought in, and who brings it
 * in writes over the memory that it finds; one that was removed is zero with memory as without. Invalidate lock held.
 */
static int allocate(struct gmem_file *file, uint64_t off, uint64_t len)
{
	uint64_t page = off >> GMEM_PAGE_SHIFT, end = (off + len) >> GMEM_PAGE_SHIFT;
	int err = 0;

	for (uint64_t to; page < end && !err; page = to) {
		for (to = page; to < end && give(file, to);)
			to++;
		if (to > page)
			err = file->ops->allocate(file, page << GMEM_PAGE_SHIFT, (to - page) << GMEM_PAGE_SHIFT);
		if (err)
			take_back(file, page, to);
		/* The one that ended the run is not for this round, or for none. */
		if (to < end)
			to++;
	}
	return err;
}

static int allocate_in_steps(struct gmem_file *file, uint64_t off, uint64_t end)
{
	int err = 0;

	/* Memory that comes by the large page is given so: a second time for its other part would be a second time. */
	if (file->flags & GMEM_FILE_COARSE) {
		off &= ~(GMEM_HUGE_SIZE - 1);
		end = gmem_min_u64((end + GMEM_HUGE_SIZE - 1) & ~(GMEM_HUGE_SIZE - 1), file->len);
	}
	for (uint64_t to; off < end && !err; off = to) {
		to = gmem_min_u64(end, off + STEP_LEN);
		/* Exclusive: who is told that memory was given ahead must not be told before it is there. */
		gmem_rwlock_lock(&file->invalidate_lock);
		err = allocate(file, off, to - off);
		gmem_rwlock_unlock(&file->invalidate_lock);
	}
	return err;
}

int gmem_file_fallocate(struct gmem_file *file, int mode, int64_t off, int64_t len)
{
	uint64_t from = (uint64_t)off, end = from + (uint64_t)len;
	const char *why;
	int err = gmem_file_check_bytes(file, "gmem_file_fallocate");

	if (err)
		return err;
	err = check(file, mode, off, len, &why);
	if (err)
		return gmem_err(err, "gmem_file_fallocate: mode 0x%x, off 0x%llx, len 0x%llx: %s", (unsigned int)mode,
				(unsigned long long)off, (unsigned long long)len, why);
	if (mode & FALLOC_FL_PUNCH_HOLE) {
		end = gmem_min_u64(end, file->len);
		err = from < end ? gmem_file_punch(file, from, end - from) : 0;
		return err ? gmem_err_prefix(err, "gmem_file_fallocate") : 0;
	}
	/* Huge pages are reserved already; and one that has memory and no page in place is taken for a mapping's. */
	err = file->flags & GMEM_FILE_HUGETLB ? 0 : allocate_in_steps(file, from, end);
	return err ? gmem_err_sys(err, "gmem_file_fallocate: off 0x%llx, len 0x%llx", (unsigned long long)off,
				  (unsigned long long)len) :
		     0;
}
