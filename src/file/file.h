/* SPDX-License-Identifier: MIT */
/*
 * The guest memory file.
 *
 * Enters: pages, by the backing operations below and by no other way. Leaves: mappings, bytes, page states. The
 * object belongs to its creator; the memory and the state table to whoever holds a descriptor of them. Locks:
 * `invalidate_lock` (shared: bring in, continue; exclusive: punch), then the page lock, which is a bit of the page's
 * state word. Nothing that can block on a userfault happens under either. Other processes that remove pages of the
 * same memory are kept apart by the state words alone.
 */
#ifndef GMEM_FILE_FILE_H
#define GMEM_FILE_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/rwlock.h"
#include "file/state.h"
#include "gmem.h"

/* A run of pages on its way into a file, or in it. */
struct gmem_folio {
	uint64_t off; /* of its first page */
	uint32_t npages;
	const void *data; /* the bytes to be, NULL for zeroes; borrowed, in memory that never faults */
	uint32_t generation; /* of its page locks, set by insert */
	uint32_t at,
		len; /* of a folio of one page: `data` is these bytes of it, the others stay as they are; len 0: all */
};

#define GMEM_FOLIO_MAX_PAGES 512u

/*
 * How pages of one kind of memory are found and brought in: one table a kind. Callers of all but `present` hold the
 * invalidate lock shared. A page goes alloc -> insert -> publish, or is undone by remove.
 */
struct gmem_backing_ops {
	/* May [off, off + len) take userfaults? */
	bool (*can_userfault)(const struct gmem_file *file, uint64_t off, uint64_t len);
	/* Is the page in place (or known to be zero)? No lock needed; the answer may be old. */
	bool (*present)(const struct gmem_file *file, uint64_t off);
	/*
	 * The run of pages in place from `off`, at most `max`. Never allocates. -ENOENT: not in place; -EBUSY:
	 * somebody is bringing it in; -EHWPOISON. The invalidate lock keeps the pages.
	 */
	int (*lookup)(struct gmem_file *file, uint64_t off, uint32_t max, struct gmem_folio *ret);
	/*
	 * A folio for [off, off + npages), under the range's policy, else the task's; cut at the end of the file,
	 * -ERANGE past it.
	 */
	int (*alloc)(struct gmem_file *file, uint64_t off, uint32_t npages, struct gmem_folio *ret);
	/*
	 * Puts a folio into the file, locked, with its bytes: as many of its pages as nobody else brought in first,
	 * from the first on (folio->npages says how many). -EEXIST: the first page is in place, look it up; -EBUSY;
	 * -EHWPOISON; -ENOSPC, -ENOMEM. On failure nothing is locked and nothing kept.
	 */
	int (*insert)(struct gmem_file *file, struct gmem_folio *folio);
	/* Makes an inserted folio up to date and unlocks it. A page that was removed meanwhile is dropped. */
	void (*publish)(struct gmem_file *file, struct gmem_folio *folio);
	/* Undoes insert: drops the pages and unlocks. */
	void (*remove)(struct gmem_file *file, struct gmem_folio *folio);
};

struct gmem_file {
	struct gmem_rwlock invalidate_lock;
	const struct gmem_backing_ops *ops; /* never changes */
	struct gmem_state state;
	uint64_t len;
	uint32_t generation; /* of a server behind a keeper, see gmem_file_set_generation(); 0: none */
	int fd;
};

extern const struct gmem_backing_ops gmem_memfd_backing;

/* Makes the caller a server: before any page is brought in, the generation the keeper gave it. */
void gmem_file_set_generation(struct gmem_file *file, uint32_t generation);

/*
 * The generation of the page locks that are alive. A server's is its own, for ever: one that was fenced must not pass
 * for its successor. Anyone else who writes takes the present one, or it would take the locks of the server at work
 * for a dead one's.
 */
static inline uint32_t gmem_file_generation(const struct gmem_file *file)
{
	uint32_t now;

	if (file->generation)
		return file->generation;
	now = atomic_load(&file->state.header->generation);
	/* Without a server, one that no server will have: a lock left behind is stale to the first. */
	return now ? now : GMEM_MAX_GENERATION;
}

/* -ERANGE or -EINVAL with text, `who` in front. Alignment to pages, len > 0. */
int gmem_file_check_range(const struct gmem_file *file, const char *who, uint64_t off, uint64_t len);

/*
 * The page's bytes are lost: what is in memory is dropped and the state says so. 1: it said so before. -EEXIST: the
 * page is in place; -EBUSY. Invalidate lock held, shared or exclusive.
 */
int gmem_file_poison_page(struct gmem_file *file, uint64_t off);

/* Allocates zeroed memory under pages that are in place but have none. Invalidate lock held, shared or exclusive. */
int gmem_file_back(struct gmem_file *file, uint64_t off, uint64_t len);

struct gmem_view {
	void *addr;
	uint64_t off, len;
	struct gmem_file *file;
	int prot;
	int uffd; /* that it was attached with, or -1: held as long as the view, or its untouched pages would be zero */
};

#endif
