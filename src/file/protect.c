/* SPDX-License-Identifier: MIT */
/*
 * Write-protected pages of a view: a bit each, beside what the kernel has in its page tables.
 *
 * The kernel's marks alone would not do. UFFDIO_CONTINUE over the mark of a page that is not mapped takes it away
 * unless it is told to protect (UFFDIO_CONTINUE_MODE_WP), so who maps a page has to know; and a marker (UFFDIO_POISON)
 * and such a mark cannot be in the same place, so a page that becomes private loses it, and gets it back from here.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/range.h"
#include "file/protect.h"
#include "sys/uffd.h"

struct gmem_protection {
	pthread_mutex_t m; /* guards the bits, and keeps them and the kernel's marks the same */
	uint64_t bits[]; /* a bit for each page of the file's page size, from the view's first */
};

static struct gmem_protection *protection_of(const struct gmem_view *view)
{
	return atomic_load(&view->protection);
}

static uint64_t hva_of(const struct gmem_view *view, uint64_t off)
{
	return (uint64_t)(uintptr_t)gmem_view_at(view, off);
}

static uint64_t bit_of(const struct gmem_view *view, uint64_t off)
{
	return (off - view->off) / view->file->page_size;
}

static bool test(const struct gmem_protection *p, uint64_t bit)
{
	return p->bits[bit / 64] >> bit % 64 & 1;
}

int gmem_view_make_protectable(struct gmem_view *view)
{
	uint64_t words = (view->len / view->file->page_size + 63) / 64;
	struct gmem_protection *p;

	if (protection_of(view))
		return 0;
	p = calloc(1, sizeof(*p) + words * sizeof(p->bits[0]));
	if (!p)
		return -ENOMEM;
	pthread_mutex_init(&p->m, NULL);
	atomic_store(&view->protection, p);
	return 0;
}

void gmem_view_drop_protection(struct gmem_view *view)
{
	struct gmem_protection *p = protection_of(view);

	if (!p)
		return;
	pthread_mutex_destroy(&p->m);
	free(p);
	atomic_store(&view->protection, NULL);
}

/* Where the run ends that begins at `off`; `*protect`: what it is. `m` held. */
static uint64_t run_end(const struct gmem_view *view, const struct gmem_protection *p, uint64_t off, uint64_t end,
			bool *protect)
{
	uint64_t bit = bit_of(view, off), to = bit_of(view, end);

	*protect = test(p, bit);
	do {
		/* Whole words that are as the first bit is. */
		bit = bit % 64 == 0 && p->bits[bit / 64] == (*protect ? UINT64_MAX : 0) ? bit + 64 : bit + 1;
	} while (bit < to && test(p, bit) == *protect);
	return gmem_min_u64(view->off + bit * view->file->page_size, end);
}

static void set(const struct gmem_view *view, struct gmem_protection *p, uint64_t off, uint64_t len, bool protect)
{
	uint64_t end = bit_of(view, off + len);

	for (uint64_t bit = bit_of(view, off); bit < end; bit++)
		if (protect)
			p->bits[bit / 64] |= 1ull << bit % 64;
		else
			p->bits[bit / 64] &= ~(1ull << bit % 64);
}

int gmem_view_protect(struct gmem_view *view, uint64_t off, uint64_t len, bool protect, bool wake)
{
	struct gmem_protection *p = protection_of(view);
	int err;

	pthread_mutex_lock(&p->m);
	err = gmem_sys_uffd_writeprotect(view->uffd, hva_of(view, off), len, protect, wake);
	/* With an error a part may have been done: too little is told of it, never too much. */
	if (!err)
		set(view, p, off, len, protect);
	pthread_mutex_unlock(&p->m);
	return err;
}

int gmem_view_continue(struct gmem_view *view, uint64_t off, uint64_t end, uint64_t *done)
{
	struct gmem_protection *p = protection_of(view);
	bool protect;
	uint64_t to;
	int err;

	if (!p)
		return gmem_sys_uffd_continue(view->uffd, hva_of(view, off), end - off, done);
	pthread_mutex_lock(&p->m);
	to = run_end(view, p, off, end, &protect);
	err = protect ? gmem_sys_uffd_continue_protected(view->uffd, hva_of(view, off), to - off, done) :
			gmem_sys_uffd_continue(view->uffd, hva_of(view, off), to - off, done);
	pthread_mutex_unlock(&p->m);
	return err;
}

void gmem_view_lift_protection(const struct gmem_view *view, uint64_t off, uint64_t len)
{
	if (protection_of(view))
		(void)gmem_sys_uffd_unprotect(view->uffd, hva_of(view, off), len);
}

void gmem_view_protect_again(struct gmem_view *view, uint64_t off, uint64_t len)
{
	struct gmem_protection *p = protection_of(view);
	uint64_t end = off + len;

	if (!p)
		return;
	pthread_mutex_lock(&p->m);
	while (off < end) {
		bool protect;
		uint64_t to = run_end(view, p, off, end, &protect);

		/* Where the program has put something else there is nothing to be told. */
		if (protect)
			(void)gmem_sys_uffd_writeprotect(view->uffd, hva_of(view, off), to - off, true, false);
		off = to;
	}
	pthread_mutex_unlock(&p->m);
}
