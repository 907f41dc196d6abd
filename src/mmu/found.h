/* SPDX-License-Identifier: MIT */
/*
 * What is found out of the page of a guest frame before it is mapped: its slot, file and side, and if it is in place.
 *
 * Enters: a guest frame number, of a vCPU's access. Leaves: a mapping to be made, or why there is none. Owned by the
 * thread that faults. No lock of its own: each function says in which section, or under which lock of the file, it is.
 */
#ifndef GMEM_MMU_FOUND_H
#define GMEM_MMU_FOUND_H

#include "mmu/mmu.h"

struct gmem_found {
	struct gmem_slot *slot; /* inside a section alone */
	struct gmem_file *file; /* referenced, but inside a section */
	uint64_t off; /* of the page in it */
	bool whole; /* all of its huge page is to be in place: it passes a gate as one */
	uint64_t absent; /* of the page of 4 KiB that is to be brought in */
	bool tracked;
	bool userfault; /* the page is the caller's to fill */
	bool hva; /* the shared side is the caller's memory */
	struct gmem_hva *in_use; /* that memory's page; set up by who is asked for it */
	struct gmem_mapping m;
};

/* The slot of a guest frame, most often that of the last fault. NULL: none. Inside a section. */
struct gmem_slot *gmem_found_slot(struct gmem_vcpu *vcpu, uint64_t gfn);

/* The slot and its file, as of now. Inside a section: both stay. -ENOENT: no slot; -EBADF: no file, or a closed one. */
int gmem_find(struct gmem_vcpu *vcpu, uint64_t gfn, struct gmem_found *f);
/*
 * So too, outside: the file is referenced, because what follows may wait. Of a slot without one, the caller's memory is
 * in use: GMEM_FAULT_HVA, or -EBADF, -EREMOTE (that memory is shared), and the errors of gmem_hva_get().
 */
int gmem_found_get(struct gmem_vcpu *vcpu, uint64_t gfn, uint32_t access, enum gmem_want want, struct gmem_found *f);
/*
 * The page is shared, and its slot has the caller's memory for that: GMEM_FAULT_HVA, or the errors of gmem_hva_get().
 * -EAGAIN: the slot is not what it was. Outside of a section.
 */
int gmem_found_hva(struct gmem_vcpu *vcpu, uint32_t access, const struct gmem_found *f);

/*
 * Under the invalidate lock, shared: the page's side, and that it is in place. -ENODATA: `absent` is not, and somebody
 * supplies it; -EREMOTE: on the side that was not wanted; -EREMOTEIO: the caller's to fill; -EXDEV: on the side that is
 * not the file's; -EBUSY, -EEXIST: look again.
 */
int gmem_found_look(struct gmem_found *f, enum gmem_want want);
/*
 * The same of a page that is in place; false: it is not, or may not be had like this. In a mapping section. The file's
 * lock is not needed for it: whatever makes a page absent, or moves it to the other side, or fails it, does so in an
 * invalidation of it, and inside such a section there is none.
 */
bool gmem_found_in_place(struct gmem_found *f, uint32_t access, enum gmem_want want);

#endif
