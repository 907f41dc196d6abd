/* SPDX-License-Identifier: MIT */
/*
 * The guest memory file.
 *
 * Enters: pages, by the backing operations below and by no other way. Leaves: mappings, bytes, page states, and who is
 * to be told that translations are going. The object is counted: its creator has a reference, and so has each view;
 * the memory and the state table belong to whoever holds a descriptor of them. Locks: `invalidate_lock` (shared: look
 * up, bring in, continue, pin; exclusive: populate, convert, punch, and what changes the lists of views, bindings and
 * suppliers), then the page lock, which is a bit of the page's state word. Nothing that can block on a userfault
 * happens under either. Other processes that remove pages of the same memory are kept apart by the state words alone.
 */
#ifndef GMEM_FILE_FILE_H
#define GMEM_FILE_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/range.h"
#include "base/rwlock.h"
#include "file/peer.h"
#include "file/state.h"
#include "gmem.h"

/* A run of pages on its way into a file, or in it. */
struct gmem_folio {
	uint64_t off; /* of its first page */
	uint32_t npages;
	const void *data; /* the bytes to be, NULL for zeroes; borrowed, in memory that never faults */
	bool fresh; /* huge pages: no part of them had memory before, set by insert */
	uint32_t generation; /* of its page locks, set by insert */
	uint32_t at,
		len; /* of a folio of one page: `data` is these bytes of it, the others stay as they are; len 0: all */
};

#define GMEM_FOLIO_MAX_PAGES 512u

/*
 * How pages of one kind of memory are found and brought in: one table a kind. Callers of all but `present` hold the
 * invalidate lock, shared or exclusive. A page goes alloc -> insert -> publish, or is undone by remove.
 */
struct gmem_backing_ops {
	/* May [off, off + len) take userfaults? Not where pages began private. */
	bool (*can_userfault)(const struct gmem_file *file, uint64_t off, uint64_t len);
	/* Is the page in place (or known to be zero)? No lock needed; the answer may be old. */
	bool (*present)(const struct gmem_file *file, uint64_t off);
	/*
	 * The run of pages in place from `off`, at most `max`. Never allocates. -ENOENT: not in place; -EBUSY:
	 * somebody is bringing it in; -EHWPOISON. The invalidate lock keeps the pages.
	 */
	int (*lookup)(struct gmem_file *file, uint64_t off, uint32_t max, struct gmem_folio *ret);
	/*
	 * Looks for memory that is there though nobody brought it in: a mapping put it there. Returns how many pages
	 * from `off`, at most `max`, have none; 0: the first has, and is in place from now on. -EBUSY, -EHWPOISON.
	 */
	int (*adopt)(struct gmem_file *file, uint64_t off, uint32_t max);
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

	/*
	 * The bytes themselves, whatever the table says of the pages; 0 or -errno without text. `buf` is memory that
	 * never faults. The invalidate lock or page locks keep others away, where that matters. -EHWPOISON: a memory
	 * error.
	 */
	int (*read)(struct gmem_file *file, uint64_t off, void *buf, uint64_t len);
	int (*write)(struct gmem_file *file, uint64_t off, const void *buf, uint64_t len);
	/* Whole pages: zeroed memory where there is none; the memory given back. */
	int (*allocate)(struct gmem_file *file, uint64_t off, uint64_t len);
	int (*punch)(struct gmem_file *file, uint64_t off, uint64_t len);
	/* The first byte from `off` on that has memory, or that has none. -ENXIO: no such byte. */
	int64_t (*next_data)(const struct gmem_file *file, uint64_t off);
	int64_t (*next_hole)(const struct gmem_file *file, uint64_t off);
};

/* Sides of a page, as a mask. */
#define GMEM_SIDE_SHARED 1u
#define GMEM_SIDE_PRIVATE 2u
/*
 * With sides, of an invalidation: a guest whose processor follows somebody else's translations (gate.h) must come out
 * at the pages too. Without it, what is true of the memory itself is enough: a punched page is zero.
 */
#define GMEM_SIDE_BAR 4u
/* So too: to make guests come out may fail, and then nothing comes of it. Else a machine ends that cannot be told. */
#define GMEM_SIDE_MAY_FAIL 8u
/* Only translations go: what private pages a guest has been given it keeps. */
#define GMEM_SIDE_KEEP 16u

/*
 * A second stage that maps pages of a file: it must hear of what goes. Embedded in its owner, who is counted.
 */
struct gmem_binding {
	uint64_t off, len; /* in the file; constant while it is bound */
	const struct gmem_binding_ops *ops;
	const void *by; /* whose second stage: its address */
	bool counts_tenures; /* it asks for gmem_tenure_number() */
	struct gmem_file *file;
};

/* All of a file's: guarded by its invalidate lock. None overlaps, so what meets a range is found by halving. */
struct gmem_bindings {
	struct gmem_binding **at; /* by off */
	uint32_t n, room;
};

struct gmem_binding_ops {
	/*
	 * Translations of the pages of [off, off + len) that are on these sides go: no access can use one any more when
	 * it returns, and no fault makes one before the matching end(). Invalidate lock held, exclusive. -ENOMEM, with
	 * text, only if it may fail: begun it has all the same.
	 */
	int (*invalidate_begin)(struct gmem_binding *b, uint64_t off, uint64_t len, uint32_t sides);
	void (*invalidate_end)(struct gmem_binding *b);
	/* Keeps the binding's memory until drop(). Any lock. */
	void (*hold)(struct gmem_binding *b);
	/* The file is being closed: unbinds, if that has not been done, and drops. No lock held. */
	void (*close)(struct gmem_binding *b);
};

/* What somebody waits with: asked now and then whether there is anything to wait for any more. */
struct gmem_wait {
	bool (*over)(struct gmem_wait *wait);
};

/* NULL waits for ever. */
static inline bool gmem_wait_over(struct gmem_wait *wait)
{
	return wait && wait->over(wait);
}

typedef int (*gmem_bring_in_fn)(void *opaque, struct gmem_file *file, uint64_t off, struct gmem_wait *wait);

/*
 * Who brings in what is absent of a part of the file, for those that have no view to touch it through. Guarded by the
 * invalidate lock but for `users`.
 */
struct gmem_supply {
	uint64_t off, len;
	/*
	 * Brings the page at `off` in, or waits until somebody has. 0: look again. No lock held; may take long, and is
	 * told of no error that goes by; -EINTR when `wait` is over. NULL: who served these pages is gone,
	 * and what is absent stays so.
	 */
	gmem_bring_in_fn bring_in;
	void *opaque;
	_Atomic uint32_t users; /* calls of bring_in now */
	struct gmem_supply *next;
};

/* What is this process's alone. */
struct gmem_file_own {
	uint32_t ours; /* 1 */
	char *_Atomic window; /* see gmem_file_window() */
	char *_Atomic window_place; /* where it is, or is about to be */
};

struct gmem_file {
	struct gmem_rwlock invalidate_lock;
	struct gmem_rwlock removals; /* GMEM_FILE_ANON: see anon.h */
	const struct gmem_backing_ops *ops; /* never changes */
	struct gmem_state state;
	uint64_t len;
	uint64_t page_size; /* never changes: what is mapped, marked and converted as one. State words are of 4 KiB */
	uint32_t flags; /* GMEM_FILE_*: what it is, which after a fall-back is not what was asked for */
	enum gmem_engine engine; /* never changes, as what follows */
	bool kernel_converts, kernel_userfaults; /* kernel engine: what it was found to have */
	int kvm_vm; /* kernel engine, and made here: the VM of the guest_memfd; else -1 */
	char *why; /* gmem_file_explain() */
	uint32_t generation; /* of a server behind a keeper, see gmem_file_set_generation(); 0: none */
	int fd;
	struct gmem_file_own *own; /* wiped in children made by fork(2); NULL: `pid` has to tell, `unwiped` is it */
	struct gmem_file_own unwiped;
	pid_t pid; /* of the process that made the object */
	_Atomic uint32_t refs;
	struct gmem_huge_lens *_Atomic lens; /* huge pages, hugetlb.c: what says which of them have memory */
	struct gmem_tenures *_Atomic tenures; /* tenure.h; NULL: nobody asked yet */
	_Atomic uint32_t *_Atomic pins; /* a count a page, NULL before the first pin */
	struct gmem_view *views;
	struct gmem_gate *gates; /* gate.h */
	int gates_uffd; /* of all their markers; -1: no gate bars yet. Guarded by the invalidate lock */
	pthread_mutex_t gates_m; /* a leaf; held while one is, which those with the lock, shared, do too */
	/* Guarded by the invalidate lock: see place.c. */
	int maps_fd; /* the process's mappings; -1: not opened yet, or not to be had */
	bool maps_live; /* it tells of the present, whenever it was opened */
	int empty_fd; /* what is mapped over private pages where there are no markers; -1: not opened yet */
	uint64_t empty_dev, empty_ino;
	bool torn; /* a part of a view that is gone lives on at an address the library was not told */
	struct gmem_bindings bindings;
	struct gmem_supply *supplies;
	bool opened; /* from descriptors: another object made the memory, and converts */
	struct gmem_peer *peer; /* what gmem_file_open() adds, else NULL; never changes */
	struct gmem_round round; /* of who made it: the conversion that runs */
};

/* In file->flags: small pages that may get memory by the large one, see coarse.c. Never the caller's. */
#define GMEM_FILE_COARSE (1u << 31)
/* Another process's memory, see anon.h; with HUGETLB: of huge pages. Never the caller's. */
#define GMEM_FILE_ANON (1u << 30)

extern const struct gmem_backing_ops gmem_memfd_backing; /* user engine */
extern const struct gmem_backing_ops gmem_coarse_memfd_backing; /* user engine, GMEM_FILE_COARSE */
extern const struct gmem_backing_ops gmem_guest_memfd_backing; /* kernel engine */
extern const struct gmem_backing_ops gmem_hugetlb_backing; /* user engine, GMEM_FILE_HUGETLB */
extern const struct gmem_backing_ops gmem_anon_backing; /* GMEM_FILE_ANON */

/* An object with nothing in it but its locks; NULL: no memory. */
struct gmem_file *gmem_file_new(void);

/* Sets the table and the page size that go with a file's engine and flags. */
void gmem_file_set_backing(struct gmem_file *file);

/*
 * Chooses the engine for these options, with `file->len` and `file->flags` set, and makes the memory: sets the fields
 * from `fd` on that say which. `name` is for a memfd. Text is left.
 */
int gmem_engine_make(struct gmem_file *file, const struct gmem_file_opts *opts, const char *name);

/* Kernel engine: conversion by the kernel. Invalidate lock held, exclusive. */
int gmem_guest_memfd_convert(struct gmem_file *file, uint64_t off, uint64_t len, uint64_t attributes,
			     uint64_t *ret_error_off);

/* gmem_file_open() for keepers and their servers, in whose memory nothing becomes private: no peer, no thread. */
int gmem_file_open_kept(int fd, int state_fd, struct gmem_file **ret);

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

/*
 * gmem_file_poison(), of pages of the file, through the object that made it. Invalidate lock held, exclusive. -errno,
 * with text: they are poisoned, and a view could not be marked.
 */
int gmem_file_poison_locked(struct gmem_file *file, uint64_t off, uint64_t len);
/*
 * One object's part of it: marks its views over pages that are about to be poisoned, and over those that are, where
 * they have no mark. All that can be is marked. Invalidate lock held, exclusive. The first error of
 * gmem_view_mark_lost().
 */
int gmem_file_mark_failing(struct gmem_file *file, uint64_t off, uint64_t len);
int gmem_file_mark_lost(struct gmem_file *file, uint64_t off, uint64_t len);
/* Ends it: poisoned pages of the range, whose memory has been dropped, are zero. Invalidate lock held, exclusive. */
void gmem_file_heal_locked(struct gmem_file *file, uint64_t off, uint64_t len);

/* Until nobody is at the page. No lock held. */
void gmem_file_wait_for_page(struct gmem_file *file, uint64_t off);

/* Some of the range has memory that was written to, whatever its state says. Any thread, no lock. */
bool gmem_file_has_memory(const struct gmem_file *file, uint64_t off, uint64_t len);

/* Allocates zeroed memory under pages that are in place but have none. Invalidate lock held, shared or exclusive. */
int gmem_file_back(struct gmem_file *file, uint64_t off, uint64_t len);

/*
 * Is this the object itself? A copy that came with fork(2) knows nothing of the other one's views and second stages.
 */
bool gmem_file_ours(const struct gmem_file *file);

void gmem_file_get(struct gmem_file *file);
void gmem_file_put(struct gmem_file *file);

static inline bool gmem_file_private(const struct gmem_file *file, uint64_t off)
{
	return gmem_state_private(&file->state, off >> GMEM_PAGE_SHIFT);
}

/* ---- hugetlb.c, unit.c: pages of page_size bytes */

/* -EINVAL with text: flags of huge pages, or a length, that do not go together. */
int gmem_hugetlb_check(uint64_t len, uint32_t flags);
/*
 * Makes a memory file of huge pages and reserves them; or, if there are none and file->flags allow it, one of small
 * pages, and changes file->flags. Sets file->fd, and says in `note` what came of it. Text is left.
 */
int gmem_hugetlb_make(struct gmem_file *file, const char *name, char *note, size_t len);
/* What huge pages by advice come to here. */
void gmem_huge_note_advice(char *note, size_t len);
/* Where the library maps all of a file of huge pages but in its window; NULL: nowhere. */
char *gmem_hugetlb_lens_place(const struct gmem_file *file);
/* With the file. */
void gmem_hugetlb_destroy(struct gmem_file *file);
/*
 * Pages of [off, off + len) were punched, and with a huge page the kernel drops its markers: the host is kept out of
 * what is private of them again, and of what it may have put there meanwhile. Invalidate lock held, exclusive.
 */
int gmem_hugetlb_mark_again(struct gmem_file *file, uint64_t off, uint64_t len);

/* What the words of the page around `off`, of page_size bytes, say together. May be old without the page locks. */
enum gmem_unit {
	GMEM_UNIT_IN_PLACE, /* all of it: it may be mapped */
	GMEM_UNIT_PART, /* some of it is in place, or removed, and some absent */
	GMEM_UNIT_ABSENT, /* all of it */
	GMEM_UNIT_BUSY, /* somebody is bringing a part of it in */
	GMEM_UNIT_LOST, /* a part is poisoned: it is never mapped again */
};
enum gmem_unit gmem_file_unit(const struct gmem_file *file, uint64_t off);

/*
 * The absent page has memory, perhaps, for no better reason than that a neighbour was brought in: it says nothing of a
 * mapping's having put bytes there.
 */
bool gmem_file_vague(const struct gmem_file *file, uint64_t off);

static inline uint64_t gmem_file_unit_off(const struct gmem_file *file, uint64_t off)
{
	return off & ~(file->page_size - 1);
}

/* Pages of 4 KiB that are mapped, and fail, together: 512 of a huge page. */
static inline uint64_t gmem_file_unit_pages(const struct gmem_file *file)
{
	return file->page_size >> GMEM_PAGE_SHIFT;
}

/* One of those from `page` on, the first of its unit, is poisoned: views show none of them. */
bool gmem_file_unit_lost(const struct gmem_file *file, uint64_t page);

/* -EINVAL with text: not a multiple of page_size, which is what this call takes. */
int gmem_file_check_units(const struct gmem_file *file, const char *who, uint64_t off, uint64_t len);

/* Advice for a mapping of the file, if it is of huge pages by advice. */
void gmem_file_advise(const struct gmem_file *file, void *addr, uint64_t len);

/* ---- binding.c: second stages */

/* Both with the invalidate lock not held. -EEXIST: the range, or part of it, is bound already. -ENOMEM. */
int gmem_file_bind(struct gmem_file *file, struct gmem_binding *b);
/* False if the binding was not bound any more. */
bool gmem_file_unbind(struct gmem_binding *b);
/*
 * Invalidate lock held, exclusive. Tells every binding that meets the range; the part of it that does. -ENOMEM, with
 * text, only if it may fail (GMEM_SIDE_MAY_FAIL); the end is to be told then too.
 */
int gmem_file_invalidate_begin(struct gmem_file *file, uint64_t off, uint64_t len, uint32_t sides);
void gmem_file_invalidate_end(struct gmem_file *file, uint64_t off, uint64_t len);
/* Closes every binding. No lock held. */
void gmem_file_close_bindings(struct gmem_file *file);

/*
 * The library's own mapping of the whole file, 2 MiB aligned: never registered, never marked, constant once it is
 * there, gone with the last reference. Second stages point into it; not into the one that a child made by fork(2) has
 * of its own. NULL: no address space.
 */
char *gmem_file_window(struct gmem_file *file);
/* Where it is, or is about to be; NULL: nowhere. */
char *gmem_file_window_place(const struct gmem_file *file);
/* Nobody uses it any more. */
void gmem_file_close_window(struct gmem_file *file);

/* ---- supply.c: who brings in what is absent */

/* Supplies from now on, in place of who did. Takes `supply`, from malloc(3), with all but `users` and `next` set. */
void gmem_file_supply(struct gmem_file *file, struct gmem_supply *supply);
/* Ends it, and waits until no call of its function is going on. What is absent then stays absent, and is not zero. */
void gmem_file_end_supply(struct gmem_file *file, struct gmem_supply *supply);
/* Somebody brings the page at `off` in, or was to. Invalidate lock held. */
bool gmem_file_supplied(const struct gmem_file *file, uint64_t off);
/*
 * Has the absent page at `off` brought in. 0: look again. -ENOENT: nobody supplies it, it is zero; -EIO: who did is
 * gone; -EINTR: `wait`, which may be NULL, is over; the supplier's own errors. No lock held; blocks.
 */
int gmem_file_bring_in(struct gmem_file *file, uint64_t off, struct gmem_wait *wait);

/* ---- pin.c */

/* The first pinned page of [off, off + len), UINT64_MAX: none. Invalidate lock held, exclusive. */
uint64_t gmem_file_first_pin(struct gmem_file *file, uint64_t off, uint64_t len);

/* ---- convert.c: one object's part of a conversion to private. Invalidate lock held, exclusive. */

/* -EAGAIN and where: this object's pins hold a page of the range that is shared. */
int gmem_convert_check_pins(struct gmem_file *file, uint64_t off, uint64_t len, uint64_t *ret_error_off);
/* Keeps the host out of what is shared of the range, in all views or in none. */
int gmem_convert_mark(struct gmem_file *file, uint64_t off, uint64_t len);
/*
 * Lets it in where the pages are shared and not poisoned, and marks what is poisoned and has no mark yet. May be called
 * again after an error; -EOPNOTSUPP is of a mark.
 */
int gmem_convert_let_in(struct gmem_file *file, uint64_t off, uint64_t len);

/* ---- view.c, view_remap.c, mark.c; place.c has a header of its own */

enum gmem_view_use {
	GMEM_VIEW_PLAIN, /* nobody serves it; `uffd`, if there is one, is for markers alone */
	GMEM_VIEW_SERVED, /* missing and minor faults go to a pager, a keeper or a gmem_uffd */
	/* So too, and its removals mean something to the pager: its translations may go only when the program asks. */
	GMEM_VIEW_BALLOONED,
};

/* Its list and all fields but the first line are guarded by the file's invalidate lock. */
struct gmem_view {
	void *addr;
	uint64_t off, len;
	struct gmem_file *file; /* has a reference */
	int prot;
	pid_t pid; /* of the process that mapped it: a forked child does not have it */
	int uffd; /* ours; or -1: held as long as the view, or its untouched pages would be zero */
	enum gmem_view_use use;
	bool private_events; /* a private page is left without translation and marker: its touch is an event */
	bool user_mode_only; /* `uffd` was opened here, and serves no access of the kernel's */
	bool let_go; /* its pager has: what is in place is to be registered for markers alone */
	bool by_mapping; /* no markers here: the empty file is mapped over private pages */
	bool foreign; /* a mapping of another process's, of which a gmem_uffd has the descriptor; in no list */
	struct gmem_protection *_Atomic protection; /* protect.c; NULL: no page of it was ever write-protected */
	/* Called by gmem_view_unmap(), first of all, no lock held. Whoever serves the view sets and clears both. */
	void (*unmapping)(void *server, struct gmem_view *view);
	void *server;
	struct gmem_view *next;
};

static inline char *gmem_view_at(const struct gmem_view *view, uint64_t off)
{
	return (char *)view->addr + (off - view->off);
}

/* The part of [off, off + len) that the view shows; false if none. */
static inline bool gmem_view_part(const struct gmem_view *view, uint64_t *off, uint64_t *len)
{
	uint64_t from = *off > view->off ? *off : view->off;
	uint64_t to = *off + *len < view->off + view->len ? *off + *len : view->off + view->len;

	*off = from;
	*len = to - from;
	return from < to;
}

/* It shows more than there is: touching that is SIGBUS. */
static inline bool gmem_view_past_end(const struct gmem_view *view)
{
	return !gmem_range_inside(view->off, view->len, view->file->len);
}

/*
 * Makes every touch of [off, off + len) through the view SIGBUS (or an event). Invalidate lock held, exclusive.
 * -EOPNOTSUPP, -ENOMEM and what opening a userfaultfd answers; then a part may be marked.
 */
int gmem_view_mark(struct gmem_view *view, uint64_t off, uint64_t len);
/* The same of poisoned pages: what is marked already stays so meanwhile, and what is mapped stays. */
int gmem_view_mark_rest(struct gmem_view *view, uint64_t off, uint64_t len);
/* Undoes it. */
int gmem_view_unmark(struct gmem_view *view, uint64_t off, uint64_t len);
/*
 * Makes every touch of pages that are poisoned, or about to be, SIGBUS. `fresh`: they are shared and not marked yet, so
 * that what is mapped goes; else what is there stays. Nothing where the view's server does it when they are touched.
 */
int gmem_view_mark_lost(struct gmem_view *view, uint64_t off, uint64_t len, bool fresh);
/* So too for all poisoned pages of a view that nobody has touched yet. */
int gmem_view_mark_all_lost(struct gmem_view *view);
/*
 * Takes the marks of poisoned pages away, and all that they needed, before somebody serves the view: then touching one
 * is a fault, and its server's to answer. Not where pages are private. Invalidate lock held, exclusive.
 */
void gmem_view_unmark_lost(struct gmem_view *view);
/* Marks what is private of the whole view. */
int gmem_view_mark_private(struct gmem_view *view);
/* What its userfault descriptor is asked for. */
uint64_t gmem_view_uffd_features(const struct gmem_view *view);
/* The view's own userfault descriptor, opened if it has none. Invalidate lock held, exclusive. */
int gmem_view_open_uffd(struct gmem_view *view);

#endif
