/* SPDX-License-Identifier: MIT */
/* The library's own references to pages: a page that has one stays shared. */
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "file/anon.h"

/* Sparse, and this process's own: a pin must not outlive who has it. */
static _Atomic uint32_t *counts(struct gmem_file *file)
{
	size_t len = (file->len >> GMEM_PAGE_SHIFT) * sizeof(uint32_t);
	_Atomic uint32_t *have = atomic_load(&file->pins), *none = NULL;

	if (have)
		return have;
	have = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (have == MAP_FAILED)
		return NULL;
	if (!atomic_compare_exchange_strong(&file->pins, &none, have)) {
		munmap(have, len);
		return none;
	}
	return have;
}

/* Under the invalidate lock, shared: nobody converts between the look and the count. */
static int pin(struct gmem_file *file, uint64_t first, uint64_t end)
{
	_Atomic uint32_t *count = counts(file);

	if (!count)
		return gmem_err_sys(-ENOMEM, "gmem_file_pin");
	for (uint64_t page = first; page < end; page++)
		if (gmem_state_private(&file->state, page))
			return gmem_err(-EACCES, "gmem_file_pin: page at 0x%llx is private",
					(unsigned long long)page << GMEM_PAGE_SHIFT);
	for (uint64_t page = first; page < end; page++) {
		if (atomic_load(&count[page]) == UINT32_MAX / 2) {
			while (page-- > first)
				atomic_fetch_sub(&count[page], 1);
			return gmem_err(-EOVERFLOW, "gmem_file_pin: too many pins of one page");
		}
		atomic_fetch_add(&count[page], 1);
	}
	return 0;
}

int gmem_file_pin(struct gmem_file *file, uint64_t off, uint64_t len)
{
	int err = gmem_file_check_range(file, "gmem_file_pin", off, len);

	if (!err)
		err = gmem_file_check_bytes(file, "gmem_file_pin");
	if (err)
		return err;
	if (!gmem_file_ours(file))
		return gmem_err(-EIO, "gmem_file_pin: this object is a copy that came with fork(2)");
	gmem_rwlock_lock_shared(&file->invalidate_lock);
	err = pin(file, off >> GMEM_PAGE_SHIFT, (off + len) >> GMEM_PAGE_SHIFT);
	gmem_rwlock_unlock_shared(&file->invalidate_lock);
	return err;
}

/* One pin less; false if there was none, whoever else unpins at the same time. */
static bool take_one(_Atomic uint32_t *count)
{
	uint32_t old = atomic_load(count);

	while (old)
		if (atomic_compare_exchange_weak(count, &old, old - 1))
			return true;
	return false;
}

int gmem_file_unpin(struct gmem_file *file, uint64_t off, uint64_t len)
{
	int err = gmem_file_check_range(file, "gmem_file_unpin", off, len);
	_Atomic uint32_t *count = atomic_load(&file->pins);
	uint64_t first = off >> GMEM_PAGE_SHIFT, end = (off + len) >> GMEM_PAGE_SHIFT;

	if (err)
		return err;
	/* All are looked at before one is taken: a page that is pinned must not seem free for a moment. */
	for (uint64_t page = first; page < end; page++)
		if (!count || !atomic_load(&count[page]))
			return gmem_err(-EINVAL, "gmem_file_unpin: page at 0x%llx is not pinned",
					(unsigned long long)page << GMEM_PAGE_SHIFT);
	for (uint64_t page = first; page < end; page++) {
		if (take_one(&count[page]))
			continue;
		err = gmem_err(-EINVAL, "gmem_file_unpin: page at 0x%llx was unpinned twice",
			       (unsigned long long)page << GMEM_PAGE_SHIFT);
		while (page-- > first)
			atomic_fetch_add(&count[page], 1);
		return err;
	}
	return 0;
}

uint64_t gmem_file_first_pin(struct gmem_file *file, uint64_t off, uint64_t len)
{
	_Atomic uint32_t *count = atomic_load(&file->pins);

	for (uint64_t page = off >> GMEM_PAGE_SHIFT; count && page < (off + len) >> GMEM_PAGE_SHIFT; page++)
		if (atomic_load(&count[page]))
			return page << GMEM_PAGE_SHIFT;
	return UINT64_MAX;
}
