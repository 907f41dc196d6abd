/* SPDX-License-Identifier: MIT */
/*
 * An accessor's inside: exits, and what is left open by them. Enters: the exit that a call may end in. Leaves: whether
 * that exit has been answered already. No lock: one thread at a time.
 */
#ifndef GMEM_VM_ACCESSOR_H
#define GMEM_VM_ACCESSOR_H

#include "vm/vm.h"

struct gmem_accessor {
	struct gmem_cpu cpu; /* first */
	bool open; /* the last exit may be answered: no call has come after it */
	bool answered;
	bool exchange; /* the last exit is of a compare-and-exchange */
	uint64_t answer;
	/*
	 * Between guest memory, touched in an epoch, and the caller's, which may be lazily served. As aligned as the
	 * pages that are copied: loads are a tenth faster for it.
	 */
	_Alignas(GMEM_PAGE_SIZE) unsigned char bounce[GMEM_PAGE_SIZE];
};

/* NULL, with text: it is none. */
struct gmem_accessor *gmem_accessor_of(struct gmem_vcpu *vcpu, const char *who);

/*
 * `n` bytes from `at` on of a page of the caller's memory, and what is at `bounce`. Gives the page back. -EFAULT,
 * -EHWPOISON, -ENOMEM.
 */
int gmem_accessor_hva(struct gmem_hva *hva, size_t at, void *bounce, size_t n, bool store);

/* Has such a page brought in at its own address, by whoever serves it. Errors as above. */
int gmem_accessor_touch(const struct gmem_hva *hva);

/* ---- exit.c */

/* The exit of an access to a device. False: none is made of such an access. `gpa` is without its side. */
bool gmem_exit_mmio(struct gmem_exit *ret, uint64_t gpa, enum gmem_want want, size_t len, uint64_t flags);

/* The last exit was such a one, but for its data, of a compare-and-exchange or not, and has been answered. */
bool gmem_accessor_answered(const struct gmem_accessor *a, const struct gmem_exit *exit, bool exchange);
/* What the last call left open no longer is; what it ended with is forgotten. */
void gmem_accessor_begin(struct gmem_accessor *a);
/* As gmem_accessor_begin(), of a call that makes no exit: the last one's is kept. */
void gmem_accessor_close(struct gmem_accessor *a);
void gmem_accessor_exit(struct gmem_accessor *a, const struct gmem_exit *exit);

#endif
