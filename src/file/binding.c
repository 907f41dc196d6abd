/* SPDX-License-Identifier: MIT */
/* Second stages that map pages of a file, and the window they map. */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/err.h"
#include "base/range.h"
#include "file/anon.h"
#include "file/tenure.h"

#define WINDOW_ALIGN (2ull << 20) /* of a large leaf */

static bool has_private(const struct gmem_file *file)
{
	return gmem_state_private(&file->state, 0) ||
	       gmem_state_side_end(&file->state, 0, file->state.npages) != file->state.npages;
}

/* The first binding that ends behind `off`, or how many there are. Invalidate lock held. */
static uint32_t first_behind(const struct gmem_bindings *all, uint64_t off)
{
	uint32_t from = 0, to = all->n;

	while (from < to) {
		uint32_t mid = from + (to - from) / 2;

		if (all->at[mid]->off + all->at[mid]->len > off)
			to = mid;
		else
			from = mid + 1;
	}
	return from;
}

/* Invalidate lock held, exclusive. */
static int add(struct gmem_bindings *all, struct gmem_binding *b)
{
	uint32_t i = first_behind(all, b->off), room = all->room ? all->room * 2 : 4;

	if (i < all->n && gmem_range_overlaps(b->off, b->len, all->at[i]->off, all->at[i]->len))
		return gmem_err(-EEXIST, "off 0x%llx, len 0x%llx of the file: bound already",
				(unsigned long long)b->off, (unsigned long long)b->len);
	if (all->n == all->room) {
		struct gmem_binding **at = realloc(all->at, room * sizeof(*at));

		if (!at)
			return gmem_err_sys(-ENOMEM, "one more binding of the file");
		all->at = at;
		all->room = room;
	}
	memmove(&all->at[i + 1], &all->at[i], (all->n++ - i) * sizeof(*all->at));
	all->at[i] = b;
	return 0;
}

/* Invalidate lock held, exclusive. */
static bool take_out(struct gmem_bindings *all, const struct gmem_binding *b)
{
	uint32_t i = first_behind(all, b->off);
	bool found = i < all->n && all->at[i] == b;

	if (found)
		memmove(&all->at[i], &all->at[i + 1], (--all->n - i) * sizeof(*all->at));
	return found;
}

int gmem_file_bind(struct gmem_file *file, struct gmem_binding *b)
{
	int err = gmem_file_check_bytes(file, "memslot");

	if (err)
		return err;
	gmem_rwlock_lock(&file->invalidate_lock);
	if (file->engine == GMEM_ENGINE_KERNEL && has_private(file))
		err = gmem_err(-EOPNOTSUPP,
			       "a guest_memfd with private pages: a vCPU of this library would not reach them");
	b->file = file;
	if (!err)
		err = add(&file->bindings, b);
	if (!err) {
		err = gmem_tenure_bind(file, b);
		if (err)
			(void)take_out(&file->bindings, b);
	}
	gmem_rwlock_unlock(&file->invalidate_lock);
	return err;
}

bool gmem_file_unbind(struct gmem_binding *b)
{
	bool found;

	gmem_rwlock_lock(&b->file->invalidate_lock);
	found = take_out(&b->file->bindings, b);
	gmem_rwlock_unlock(&b->file->invalidate_lock);
	return found;
}

int gmem_file_invalidate_begin(struct gmem_file *file, uint64_t off, uint64_t len, uint32_t sides)
{
	const struct gmem_bindings *all = &file->bindings;
	int err = 0;

	for (uint32_t i = first_behind(all, off); i < all->n && all->at[i]->off < off + len; i++) {
		struct gmem_binding *b = all->at[i];
		uint64_t from = gmem_max_u64(off, b->off), to = gmem_min_u64(off + len, b->off + b->len);

		int one = b->ops->invalidate_begin(b, from, to - from, sides);

		err = err ? err : one;
	}
	if ((sides & GMEM_SIDE_PRIVATE) && !(sides & GMEM_SIDE_KEEP))
		gmem_tenure_end(file, off, len);
	return err;
}

void gmem_file_invalidate_end(struct gmem_file *file, uint64_t off, uint64_t len)
{
	const struct gmem_bindings *all = &file->bindings;

	for (uint32_t i = first_behind(all, off); i < all->n && all->at[i]->off < off + len; i++)
		all->at[i]->ops->invalidate_end(all->at[i]);
}

void gmem_file_close_bindings(struct gmem_file *file)
{
	struct gmem_binding *b;

	do {
		gmem_rwlock_lock_shared(&file->invalidate_lock);
		b = file->bindings.n ? file->bindings.at[file->bindings.n - 1] : NULL;
		if (b)
			b->ops->hold(b);
		gmem_rwlock_unlock_shared(&file->invalidate_lock);
		if (b)
			b->ops->close(b);
	} while (b);
}

/* Where its address is kept. NULL: in a child that cannot tell its own from its parent's, which it has not got. */
static struct gmem_file_own *own_of(const struct gmem_file *file)
{
	if (file->own)
		return file->own;
	return gmem_file_ours(file) ? (struct gmem_file_own *)&file->unwiped : NULL;
}

/* One thread makes it; *ret_busy: that is another one. Its place is told before it shows anything: see foreign.c. */
static char *map_window(struct gmem_file *file, struct gmem_file_own *own, bool *ret_busy)
{
	char *none = NULL;
	uint64_t room = file->len + WINDOW_ALIGN;
	char *p = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0), *at;

	if (p == MAP_FAILED)
		return NULL;
	at = (char *)(((uintptr_t)p + WINDOW_ALIGN - 1) & ~(uintptr_t)(WINDOW_ALIGN - 1));
	if (!atomic_compare_exchange_strong(&own->window_place, &none, at)) {
		munmap(p, room);
		*ret_busy = true;
		return NULL;
	}
	if (mmap(at, file->len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, file->fd, 0) ==
		    MAP_FAILED ||
	    madvise(at, file->len, MADV_DONTFORK)) {
		munmap(p, room);
		atomic_store(&own->window_place, NULL);
		return NULL;
	}
	if (at > p)
		munmap(p, (size_t)(at - p));
	munmap(at + file->len, (size_t)(p + room - at - file->len));
	gmem_file_advise(file, at, file->len);
	atomic_store(&own->window, at);
	return at;
}

char *gmem_file_window(struct gmem_file *file)
{
	struct gmem_file_own *own = own_of(file);
	char *window = own ? atomic_load(&own->window) : NULL;
	bool busy;

	/* Wiped in a child made by fork(2) with what is half done: nobody there would finish it. */
	while (own && !window) {
		busy = false;
		window = map_window(file, own, &busy);
		if (!busy)
			break;
		sched_yield();
		window = atomic_load(&own->window);
	}
	return window;
}

char *gmem_file_window_place(const struct gmem_file *file)
{
	struct gmem_file_own *own = own_of(file);

	return own ? atomic_load(&own->window_place) : NULL;
}

void gmem_file_close_window(struct gmem_file *file)
{
	struct gmem_file_own *own = own_of(file);

	if (own && atomic_load(&own->window))
		munmap(atomic_load(&own->window), file->len);
}
