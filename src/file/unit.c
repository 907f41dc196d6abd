/* SPDX-License-Identifier: MIT */
/* Pages as they are mapped, of 4 KiB or 2 MiB, and the state words of theirs: one for each 4 KiB, whichever it is. */
#include <errno.h>
#include <sys/mman.h>

#include "base/err.h"
#include "base/range.h"
#include "file/file.h"

enum gmem_unit gmem_file_unit(const struct gmem_file *file, uint64_t off)
{
	uint64_t first = gmem_file_unit_off(file, off) >> GMEM_PAGE_SHIFT, n = gmem_file_unit_pages(file);
	uint32_t generation = gmem_file_generation(file);
	uint64_t absent = 0;
	bool busy = false;

	for (uint64_t page = first; page < first + n; page++) {
		uint32_t word = gmem_state_word(&file->state, page);

		if (word & GMEM_WORD_POISONED)
			return GMEM_UNIT_LOST;
		if (gmem_word_content(word) != GMEM_WORD_ABSENT)
			continue;
		busy |= gmem_word_locked(word, generation);
		absent++;
	}
	return busy ? GMEM_UNIT_BUSY : !absent ? GMEM_UNIT_IN_PLACE : absent == n ? GMEM_UNIT_ABSENT : GMEM_UNIT_PART;
}

bool gmem_file_unit_lost(const struct gmem_file *file, uint64_t page)
{
	uint64_t end = page + gmem_file_unit_pages(file);

	if (!atomic_load(&file->state.header->lost))
		return false;
	while (page < end && !gmem_state_poisoned(&file->state, page))
		page++;
	return page < end;
}

int gmem_file_check_units(const struct gmem_file *file, const char *who, uint64_t off, uint64_t len)
{
	if (!((off | len) & (file->page_size - 1)))
		return 0;
	return gmem_err(-EINVAL, "%s: off 0x%llx, len 0x%llx: not multiples of the file's pages of %llu", who,
			(unsigned long long)off, (unsigned long long)len, (unsigned long long)file->page_size);
}

void gmem_file_advise(const struct gmem_file *file, void *addr, uint64_t len)
{
	/* Advice: a kernel that has no such pages says so, and nothing else is different. */
	if (file->flags & GMEM_FILE_THP)
		(void)madvise(addr, len, MADV_HUGEPAGE);
}
