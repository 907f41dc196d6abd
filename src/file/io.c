/* SPDX-License-Identifier: MIT */
/* The library's own accesses to a file's bytes, and their removal. */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/err.h"
#include "base/range.h"
#include "file/anon.h"

/* A page lock is held for the time of a copy, or until its dead holder is fenced. */
void gmem_file_wait_for_page(struct gmem_file *file, uint64_t off)
{
	const struct timespec pause = { .tv_nsec = 20000 };

	while (gmem_state_owns(&file->state, off >> GMEM_PAGE_SHIFT, gmem_file_generation(file)))
		nanosleep(&pause, NULL);
}

int gmem_file_punch(struct gmem_file *file, uint64_t off, uint64_t len)
{
	int err = gmem_file_check_range(file, "gmem_file_punch", off, len);

	if (!err)
		err = gmem_file_check_bytes(file, "gmem_file_punch");
	if (err)
		return err;
	/*
	 * Exclusive: nobody in this process is between insert and publish. State before bytes: one who dies in
	 * between leaves pages that are never filled again, which is what was asked for. Poisoned ones come last.
	 */
	gmem_rwlock_lock(&file->invalidate_lock);
	gmem_file_invalidate_begin(file, off, len, GMEM_SIDE_SHARED | GMEM_SIDE_PRIVATE);
	for (uint64_t page = off >> GMEM_PAGE_SHIFT; page < (off + len) >> GMEM_PAGE_SHIFT; page++)
		if (!gmem_state_poisoned(&file->state, page))
			gmem_state_remove(&file->state, page);
	err = file->ops->punch(file, off, len);
	if (!err)
		gmem_file_heal_locked(file, off, len);
	if (file->page_size > GMEM_PAGE_SIZE) {
		int marked = gmem_hugetlb_mark_again(file, off, len);

		err = err ? err : marked;
	}
	gmem_file_invalidate_end(file, off, len);
	gmem_rwlock_unlock(&file->invalidate_lock);
	if (err)
		return gmem_err_sys(err, "gmem_file_punch: off 0x%llx, len 0x%llx", (unsigned long long)off,
				    (unsigned long long)len);
	return 0;
}

bool gmem_file_has_memory(const struct gmem_file *file, uint64_t off, uint64_t len)
{
	int64_t data = file->ops->next_data(file, off);

	return data >= 0 && (uint64_t)data < off + len;
}

int gmem_file_back(struct gmem_file *file, uint64_t off, uint64_t len)
{
	int err = file->ops->allocate(file, off, len);

	if (err)
		return gmem_err_sys(err, "guest memory file: %llu bytes at 0x%llx", (unsigned long long)len,
				    (unsigned long long)off);
	return 0;
}

int gmem_file_poison_page(struct gmem_file *file, uint64_t off)
{
	uint64_t page = off >> GMEM_PAGE_SHIFT;
	uint32_t generation = gmem_file_generation(file);
	enum gmem_state_lock got = gmem_state_trylock(&file->state, page, generation);

	if (got == GMEM_STATE_BAD)
		return 1;
	if (got == GMEM_STATE_IN_PLACE)
		return -EEXIST;
	if (got == GMEM_STATE_BUSY)
		return -EBUSY;
	(void)file->ops->punch(file, off, GMEM_PAGE_SIZE);
	if (got == GMEM_STATE_ABANDONED || !gmem_state_poison(&file->state, page, generation)) {
		gmem_state_unlock(&file->state, page, generation);
		return -EEXIST;
	}
	return 0;
}

static int check_io(const struct gmem_file *file, const char *who, uint64_t off, size_t len)
{
	if (!gmem_range_inside(off, len, file->len))
		return gmem_err(-ERANGE, "%s: off 0x%llx, len 0x%zx: past the end (0x%llx)", who,
				(unsigned long long)off, len, (unsigned long long)file->len);
	return gmem_file_check_bytes(file, who);
}

static int refuse_private(const struct gmem_file *file, const char *who, uint64_t page)
{
	if (!gmem_state_private(&file->state, page))
		return 0;
	return gmem_err(-EACCES, "%s: page at 0x%llx is private", who, (unsigned long long)page << GMEM_PAGE_SHIFT);
}

static int poisoned(const char *who, uint64_t page)
{
	return gmem_err(-EHWPOISON, "%s: page at 0x%llx is poisoned", who, (unsigned long long)page << GMEM_PAGE_SHIFT);
}

static int io_err(int err, const char *who, uint64_t off)
{
	if (err == -EACCES)
		return gmem_err(err,
				"%s: page at 0x%llx: nobody can map this file, nor can the library "
				"(GMEM_FILE_NO_MMAP)",
				who, (unsigned long long)off);
	return gmem_err_sys(err, "%s: page at 0x%llx", who, (unsigned long long)off);
}

typedef int (*page_fn)(struct gmem_file *file, uint64_t page, uint32_t at, uint32_t n, void *bounce);

/*
 * One attempt at a page. Of memory that has failed the kernel tells who touches it; then the page is poisoned, if
 * another attempt meets the same with nobody else about: it may have been punched meanwhile, and be good.
 */
static int try_page(struct gmem_file *file, uint64_t page, uint32_t at, uint32_t n, void *bounce, page_fn fn)
{
	uint64_t off = page << GMEM_PAGE_SHIFT;
	int err;

	gmem_rwlock_lock_shared(&file->invalidate_lock);
	err = fn(file, page, at, n, bounce);
	gmem_rwlock_unlock_shared(&file->invalidate_lock);
	/* A copy that came with fork(2), or an object that was opened, does not know all views. */
	if (err != -EHWPOISON || gmem_state_poisoned(&file->state, page) || !gmem_file_ours(file) || file->opened)
		return err;
	gmem_rwlock_lock(&file->invalidate_lock);
	err = fn(file, page, at, n, bounce);
	if (err == -EHWPOISON && !gmem_state_poisoned(&file->state, page)) {
		(void)gmem_file_poison_locked(file, off, GMEM_PAGE_SIZE);
		gmem_err(err, "page at 0x%llx: its memory has failed; it is poisoned", (unsigned long long)off);
	}
	gmem_rwlock_unlock(&file->invalidate_lock);
	return err;
}

/* Until it is done, or cannot be. */
static int do_page(struct gmem_file *file, uint64_t page, uint32_t at, uint32_t n, void *bounce, page_fn fn)
{
	int err;

	do {
		err = try_page(file, page, at, n, bounce, fn);
		if (err == -EBUSY)
			gmem_file_wait_for_page(file, page << GMEM_PAGE_SHIFT);
	} while (err == -EBUSY || err == -EAGAIN || err == -EEXIST);
	return err;
}

/* A part of a page of the file and the same part of the caller's buffer, by way of a page of our own. */
static int read_page(struct gmem_file *file, uint64_t page, uint32_t at, uint32_t n, void *bounce)
{
	uint32_t word = gmem_state_word(&file->state, page);
	int err = refuse_private(file, "gmem_file_read", page);

	if (err)
		return err;
	if (word & GMEM_WORD_POISONED)
		return poisoned("gmem_file_read", page);
	/* Bytes on their way in: part of them is neither what was nor what will be. */
	if (gmem_word_locked(word, gmem_file_generation(file)) && !(word & GMEM_WORD_DOOMED))
		return -EBUSY;
	/* Unwanted, or left behind by one who died over them. */
	if (word & GMEM_WORD_LOCKED) {
		memset(bounce, 0, n);
		return 0;
	}
	err = file->ops->read(file, (page << GMEM_PAGE_SHIFT) + at, bounce, n);
	if (err)
		return io_err(err, "gmem_file_read", page << GMEM_PAGE_SHIFT);
	/* Again, for a forked child, whom no lock keeps apart from its parent's conversions. */
	err = refuse_private(file, "gmem_file_read", page);
	if (err)
		return err;
	return gmem_state_word(&file->state, page) == word ? 0 : -EAGAIN;
}

int gmem_file_read(struct gmem_file *file, uint64_t off, void *buf, size_t len)
{
	char bounce[GMEM_PAGE_SIZE], *out = buf;
	int err = check_io(file, "gmem_file_read", off, len);

	while (!err && len) {
		uint64_t page = off >> GMEM_PAGE_SHIFT;
		uint32_t at = (uint32_t)(off - (page << GMEM_PAGE_SHIFT));
		uint32_t n = (uint32_t)gmem_min_u64(len, GMEM_PAGE_SIZE - at);

		err = do_page(file, page, at, n, bounce, read_page);
		if (err)
			break;
		gmem_might_fault();
		memcpy(out, bounce, n);
		out += n;
		off += n;
		len -= n;
	}
	return err;
}

/* Under the shared lock: the page comes into being through the backing operations, or is written where it is. */
static int write_page(struct gmem_file *file, uint64_t page, uint32_t at, uint32_t n, void *bounce)
{
	uint64_t off = page << GMEM_PAGE_SHIFT;
	struct gmem_folio folio;
	int err = refuse_private(file, "gmem_file_write", page);

	if (err)
		return err;
	err = file->ops->lookup(file, off, 1, &folio);
	if (err == -EHWPOISON)
		return poisoned("gmem_file_write", page);
	if (err == 0) {
		err = file->ops->write(file, off + at, bounce, n);
		return err ? io_err(err, "gmem_file_write", off) : 0;
	}
	if (err != -ENOENT)
		return err;
	/*
	 * Absent to the table, but a view may have put bytes there, and may be doing so now; and a server that comes
	 * takes our lock for a dead one's and fills the page. So not one byte more than was asked for is written.
	 */
	err = file->ops->alloc(file, off, 1, &folio);
	if (err)
		return err;
	folio.data = bounce;
	folio.at = at;
	folio.len = n;
	err = file->ops->insert(file, &folio);
	if (err == -EHWPOISON)
		return poisoned("gmem_file_write", page);
	if (err == -EBUSY || err == -EAGAIN || err == -EEXIST)
		return err;
	if (err)
		return io_err(err, "gmem_file_write", off);
	file->ops->publish(file, &folio);
	/* A server that came meanwhile filled the page, perhaps over our bytes: come again and find it in place. */
	return folio.generation == gmem_file_generation(file) ? 0 : -EEXIST;
}

int gmem_file_write(struct gmem_file *file, uint64_t off, const void *buf, size_t len)
{
	int err = check_io(file, "gmem_file_write", off, len);
	char bounce[GMEM_PAGE_SIZE];
	const char *in = buf;

	if (!err && !gmem_file_ours(file) && gmem_state_used(&file->state, GMEM_USE_PRIVATE | GMEM_USE_GUEST))
		err = gmem_err(-EIO, "gmem_file_write: this object is a copy that came with fork(2), of a memory with "
				     "private pages");
	while (!err && len) {
		uint64_t page = off >> GMEM_PAGE_SHIFT;
		uint32_t at = (uint32_t)(off - (page << GMEM_PAGE_SHIFT));
		uint32_t n = (uint32_t)gmem_min_u64(len, GMEM_PAGE_SIZE - at);

		gmem_might_fault();
		memcpy(bounce, in, n);
		err = do_page(file, page, at, n, bounce, write_page);
		in += n;
		off += n;
		len -= n;
	}
	return err;
}
