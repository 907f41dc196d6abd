/* SPDX-License-Identifier: MIT */
/*
 * Gates: mappings of a part of the file for the accesses of a guest that the processor makes by itself, where pages can
 * be barred.
 *
 * Enters: what somebody else's second stage (KVM's) is to reach. Leaves: an address for it. A barred page has a marker
 * (UFFDIO_POISON): KVM cannot map it, raises SIGBUS at its address and comes back, and the instruction begins again
 * when the page may be had. A page that is not barred costs nothing: a guest's first touch of it is the kernel's own
 * business, as of any shared memory. So what has to come out of the guest is barred before it has to, and what need not
 * any more stays barred until it is met.
 *
 * Pages here are the file's, of 4 KiB or 2 MiB, and a gate is whole ones, though who reaches it may reach a part alone.
 * When a huge page is punched its marker goes with it, and is put back. Meanwhile the gate is *held*: a touch of what
 * is not mapped there is an error that names no page (KVM_RUN is EFAULT), and is made again.
 *
 * A plain gate bars nothing: where KVM has the pages from a guest_memfd, it is the address of KVM's own accesses.
 *
 * Gates are no views: no conversion marks them, and no userfault is raised in one. The list of a file's gates is
 * guarded by its invalidate lock; who looks for mappings that are no views (foreign.c, place.c) knows them by it.
 */
#ifndef GMEM_FILE_GATE_H
#define GMEM_FILE_GATE_H

#include <pthread.h>

#include "file/file.h"

/* Whose gates are held: those who touch what is there look at it. Outlives the gates. */
struct gmem_gate_holds {
	_Atomic uint32_t now;
	_Atomic uint64_t ended;
	/* A marker could not be put back: nobody may touch anything there again. Any lock of a file's is held. */
	void (*failed)(struct gmem_gate_holds *holds);
};

struct gmem_gate {
	struct gmem_file *file; /* referenced: its memory stays until the gate leaves it; NULL: it has */
	struct gmem_gate_holds *holds;
	char *addr; /* of `off`; constant, as off and len are: whole pages of the file's */
	uint64_t off, len;
	int uffd; /* the file's, see gates_uffd; constant, as the next is; -1: it bars nothing */
	_Atomic uint64_t *barred; /* a bit a page, which has a marker; NULL: it bars nothing */
	_Atomic bool registered; /* it may have markers; set with the invalidate lock, exclusive */
	uint64_t held_off, held_end; /* what is punched while it is held; equal: it is not; under gates_m */
	bool is_shut; /* guarded by the invalidate lock, or file->gates_m */
	_Atomic uint64_t *_Atomic touched; /* see touched.c; NULL: nobody wants to know; never of huge pages */
	bool small; /* no large pages are mapped; guarded by `m` */
	bool keeps_place; /* its addresses are nobody else's, ever */
	/* See alias.c. */
	char *caller; /* the caller's memory, which is meant by pages that are shared; NULL: the file's is */
	uint64_t *aliased; /* a bit a page, which shows that */
	bool served; /* somebody's userfaults are raised in it */
	_Atomic bool in_use; /* guests have it */
	bool lost; /* something of it could be neither barred nor shown: some of it is out of reach, or nothing */
	char *ballast; /* mappings that can be done without, when there are no more; NULL: they have been */
	pthread_mutex_t m; /* a leaf: guards `aliased`, and what is mapped */
	struct gmem_gate *next, **link; /* in the file's list: there may be tens of thousands */
};

/*
 * Maps the pages around [off, off + len), inside the file, readable and writable, not inherited by forked children.
 * Barring needs nothing more afterwards but the kernel's memory for it. -ENOMEM, -EMFILE, -EOPNOTSUPP (a kernel without
 * page markers, before 6.6, or a process without userfaultfd). No lock held.
 */
int gmem_gate_open(struct gmem_file *file, uint64_t off, uint64_t len, struct gmem_gate_holds *holds,
		   struct gmem_gate **ret);
/* One that bars nothing, of a guest_memfd: whoever has its address never reaches anything else there. -ENOMEM. */
int gmem_gate_open_plain(struct gmem_file *file, uint64_t off, uint64_t len, struct gmem_gate **ret);
/* It shows nothing from then on, keeps the file no more, and may only be closed. No lock held. */
void gmem_gate_leave_file(struct gmem_gate *gate);
/* Nobody uses its address any more. NULL is allowed. No lock held. */
void gmem_gate_close(struct gmem_gate *gate);

static inline char *gmem_gate_at(const struct gmem_gate *gate, uint64_t off)
{
	return gate->addr + (off - gate->off);
}

/*
 * Bars the pages around [off, off + len) of the file, inside the gate: an access that begins after the return comes
 * out, and none that began before is going on. What was barred before is so all the time. -ENOMEM: a part may be
 * barred. Invalidate lock held, exclusive, and nobody lets a page pass meanwhile.
 */
int gmem_gate_bar(struct gmem_gate *gate, uint64_t off, uint64_t len);
/* Unmaps everything: for what should be barred and cannot be. An access is -EFAULT then. As gmem_gate_bar(). */
void gmem_gate_shut(struct gmem_gate *gate);
/* For one that KVM may go on using: closing it leaves nothing at its addresses, and nobody else gets them. */
void gmem_gate_keep_place(struct gmem_gate *gate);

/*
 * The page around `off`, which is in place and has memory, may be accessed again, and so may, unless `alone`, some that
 * follow it, are in place too and on the same side. Whoever calls knows that nobody bars any of the gate's meanwhile.
 * 0; -EEXIST: it was not barred; -EAGAIN: not all of it is in place; -EHWPOISON: its memory has failed.
 */
int gmem_gate_pass(struct gmem_gate *gate, uint64_t off, bool alone);

/* So many bytes at most pass at once, from the file's page on. The gate is its file's. */
uint64_t gmem_gate_around(const struct gmem_gate *gate);

/* ---- alias.c: a gate that shows the caller's memory too */

/*
 * `hva`, page-aligned, is memory of the caller's as long as the gate, for its pages that are shared. Nothing shows it
 * yet. -ENOMEM, -EMFILE, -EOPNOTSUPP (huge pages). Nobody uses the gate yet.
 */
int gmem_gate_add_caller(struct gmem_gate *gate, char *hva);
/* Nobody uses the gate, or will. It may have none. */
void gmem_gate_drop_caller(struct gmem_gate *gate);
/*
 * Shows it wherever a page is shared and barred by nothing else; what cannot be shown, or may have to be served first,
 * is barred. -ENOMEM, -EMFILE. As gmem_gate_bar().
 */
int gmem_gate_show_caller(struct gmem_gate *gate);
/*
 * As gmem_gate_pass(), of a page that is shared: it shows the caller's memory then. The page has been touched at the
 * caller's address, where one that is lazily served is brought in. -EFAULT: nothing is there; -EOPNOTSUPP: it is not
 * shared memory; -ENOMEM.
 */
int gmem_gate_pass_caller(struct gmem_gate *gate, uint64_t off, bool alone);
/* Bars pages that show it. `m` held; else as gmem_gate_bar(). */
int gmem_gate_cover(struct gmem_gate *gate, uint64_t off, uint64_t end);

static inline bool gmem_gate_aliased(const struct gmem_gate *gate, uint64_t off)
{
	uint64_t page = (off - gate->off) >> GMEM_PAGE_SHIFT;

	return gate->caller && gate->aliased[page / 64] >> page % 64 & 1;
}

/* ---- touched.c: which pages are touched */

/*
 * Touches are noted from then on, in `bits`: a bit a page, all clear; NULL: no more, and nobody sets one after the next
 * invalidation. -ENOMEM, -EMFILE; -EOPNOTSUPP: nobody tells (no /proc/self/pagemap); then all is as before. As
 * gmem_gate_bar().
 */
int gmem_gate_keep_touched(struct gmem_gate *gate, _Atomic uint64_t *bits);
/* Pages of [off, off + len) that were touched since they were cleared have their bits. -EMFILE. */
int gmem_gate_note_touched(struct gmem_gate *gate, uint64_t off, uint64_t len);
/* The bits have been taken: a touch that comes after the return is noted anew. */
int gmem_gate_clear_touched(struct gmem_gate *gate, uint64_t off, uint64_t len);
/* As gmem_gate_note_touched(), before somebody else takes pages away. What cannot be told has been touched. */
void gmem_gate_keep_in_mind(struct gmem_gate *gate, uint64_t off, uint64_t len);
/*
 * What is mapped in [off, end) goes, and with it markers, but no touch is forgotten. `m` held; a single page, which has
 * just been met, without.
 */
int gmem_gate_drop(struct gmem_gate *gate, uint64_t off, uint64_t end);
/* Something else is about to be mapped over [off, end), where nobody touches anything from then on. `m` held. */
void gmem_gate_leave(struct gmem_gate *gate, uint64_t off, uint64_t end);
/* What is mapped there now is touched page by page, if it matters, and like what is beside it. `m` held. */
void gmem_gate_make_exact(struct gmem_gate *gate, uint64_t off, uint64_t end);

/* ---- what all have */

/* It can have markers from then on. -ENOMEM. As gmem_gate_bar(), or before anybody uses it. */
int gmem_gate_make_markable(struct gmem_gate *gate);
/* The page has a marker, or has none. */
void gmem_gate_note_barred(struct gmem_gate *gate, uint64_t off, bool barred);

/* ---- punching huge pages */

/*
 * Around the punching of [off, off + len), which is whole huge pages: what was barred is so all the time. Invalidate
 * lock held, shared or exclusive; shared, the pages are absent and locked. Errors, with text, of the first alone: then
 * nothing is held.
 */
int gmem_gates_hold(struct gmem_file *file, uint64_t off, uint64_t len);
void gmem_gates_let_go(struct gmem_file *file, bool punched); /* or it was not: markers are there */

/* Some gate is held, or was since `ended` was looked at. */
static inline bool gmem_gates_were_held(const struct gmem_gate_holds *holds, uint64_t ended)
{
	return atomic_load(&holds->now) || atomic_load(&holds->ended) != ended;
}

/* Where what a gate shows of the file at `hva`, `off` there, ends in the file; `off`: no gate shows it. */
uint64_t gmem_gates_known_to(const struct gmem_file *file, uint64_t hva, uint64_t off);

#endif
