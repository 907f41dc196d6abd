/* SPDX-License-Identifier: MIT */
/*
 * Populate: bytes into private memory, page by page.
 *
 * Enters: source pages of the caller's. Leaves: private pages that are up to date, and a call for each while its frame
 * is held. Locks: the VM's slots_lock throughout; the file's invalidate lock, exclusive, a page at a time.
 *
 * The order is the point: a source's bytes are brought in *before* the file's lock is taken. Reading the source may
 * fault, the fault may be served by a pager, and the pager may need this very lock. User space has no pin that keeps a
 * page from being unmapped, so bringing in means copying, by a system call that answers EFAULT where the processor
 * would raise a signal, a batch of pages at a time.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "launch/populate.h"
#include "sys/call.h"
#include "sys/memfd.h"

#define BATCH 64u /* pages brought in at a time */

struct populate {
	struct gmem_vm *vm;
	struct gmem_slot *slot;
	struct gmem_file *file;
	uint32_t flags;
	gmem_populate_fn fn;
	void *opaque;
	uint64_t gfn; /* the page that is next */
	const char *src; /* its source, NULL: in place */
	uint64_t left; /* pages, that one included */
	char *bounce; /* BATCH pages; NULL: in place */
	uint32_t have, used; /* pages in it, and of them how many are done */
};

void *gmem_pfn_addr(uint64_t pfn)
{
	return (void *)(uintptr_t)(pfn << GMEM_PAGE_SHIFT);
}

/* ---- the source */

/*
 * Pages whose bytes are in the bounce pages now. What a call across a page that is not there copies is up to who
 * answers it, so after a refusal the first page is asked for alone.
 */
static int peek(const struct populate *p, uint64_t npages)
{
	ssize_t n = gmem_sys_peek(p->bounce, p->src, npages << GMEM_PAGE_SHIFT);

	if ((n == -EFAULT || (n >= 0 && n < (ssize_t)GMEM_PAGE_SIZE)) && npages > 1)
		n = gmem_sys_peek(p->bounce, p->src, GMEM_PAGE_SIZE);
	if (n >= 0 && n < (ssize_t)GMEM_PAGE_SIZE)
		n = -EFAULT;
	return n < 0 ? (int)n : (int)(n >> GMEM_PAGE_SHIFT);
}

/*
 * Brings the next pages' bytes in. -EFAULT: not even the first can be read. With write-back one page at a time: what
 * the caller's memory holds may depend on the page before.
 */
static int bring_source_in(struct populate *p)
{
	bool write_back = p->flags & GMEM_POPULATE_WRITE_BACK;
	int n;

	if (!p->src || p->used < p->have)
		return 0;
	gmem_might_fault();
	n = peek(p, write_back ? 1 : gmem_min_u64(p->left, BATCH));
	if (n < 0)
		return gmem_err_sys(n, "gmem_populate: source of gfn 0x%llx cannot be read",
				    (unsigned long long)p->gfn);
	if (write_back && gmem_sys_self_writable((void *)(uintptr_t)p->src, GMEM_PAGE_SIZE))
		return gmem_err(-EFAULT, "gmem_populate: source of gfn 0x%llx cannot be written back to",
				(unsigned long long)p->gfn);
	p->have = (uint32_t)n;
	p->used = 0;
	atomic_fetch_add_explicit(&p->vm->sources, p->have, memory_order_relaxed);
	return 0;
}

/* In place, an absent page that somebody supplies is brought in like a source: before the lock. */
static int bring_target_in(struct populate *p)
{
	uint64_t off = gmem_slot_off(p->slot, p->gfn);
	int err;

	while (!p->src && !p->file->ops->present(p->file, off)) {
		err = gmem_file_bring_in(p->file, off, &p->vm->cancel);
		if (err == -ENOENT)
			return 0;
		if (err)
			return err;
	}
	return 0;
}

static void *source_page(const struct populate *p)
{
	return p->src ? p->bounce + (size_t)p->used * GMEM_PAGE_SIZE : NULL;
}

/* What the function left of a page it refused. */
static void write_back(const struct populate *p)
{
	gmem_might_fault();
	(void)gmem_sys_poke((void *)(uintptr_t)p->src, source_page(p), GMEM_PAGE_SIZE);
}

/* ---- one page, under the file's lock */

static int call(const struct populate *p, void *src)
{
	return p->fn ? p->fn(p->vm, p->gfn, gmem_slot_pfn(p->slot, p->gfn), src, p->opaque) : 0;
}

/* The function may have mapped the frame before it failed. */
static void unmap(const struct populate *p, uint64_t off)
{
	gmem_file_invalidate_begin(p->file, off, GMEM_PAGE_SIZE, GMEM_SIDE_SHARED | GMEM_SIDE_PRIVATE);
	gmem_file_invalidate_end(p->file, off, GMEM_PAGE_SIZE);
}

/* A page that was in place already: it gets the new bytes, and the old ones again if the function refuses them. */
static int populate_present(const struct populate *p, uint64_t off, void *src)
{
	char old[GMEM_PAGE_SIZE];
	int err;

	if (!src) {
		err = gmem_file_back(p->file, off, GMEM_PAGE_SIZE);
		return err ? err : call(p, NULL);
	}
	err = gmem_pread_all(p->file->fd, old, sizeof(old), off);
	if (!err)
		err = gmem_pwrite_all(p->file->fd, src, GMEM_PAGE_SIZE, off);
	if (err)
		return gmem_err_sys(err, "gmem_populate: gfn 0x%llx", (unsigned long long)p->gfn);
	err = call(p, src);
	if (err)
		(void)gmem_pwrite_all(p->file->fd, old, sizeof(old), off);
	return err;
}

static int populate_absent(const struct populate *p, uint64_t off, void *src)
{
	struct gmem_folio folio;
	int err = p->file->ops->alloc(p->file, off, 1, &folio);

	if (err)
		return err;
	folio.data = src;
	err = p->file->ops->insert(p->file, &folio);
	if (err)
		return err;
	/* In place the page is what it is, whatever the function says of it. */
	if (!src) {
		p->file->ops->publish(p->file, &folio);
		return call(p, NULL);
	}
	err = call(p, src);
	if (err) {
		unmap(p, off);
		p->file->ops->remove(p->file, &folio);
	} else {
		p->file->ops->publish(p->file, &folio);
	}
	return err;
}

/* Invalidate lock held, exclusive. -EBUSY, -EEXIST: another process is at the page, come again. */
static int populate_under_lock(const struct populate *p)
{
	uint64_t off = gmem_slot_off(p->slot, p->gfn);
	struct gmem_folio folio;
	int err;

	if (!gmem_file_private(p->file, off))
		return gmem_err(-EINVAL, "gmem_populate: gfn 0x%llx is not private", (unsigned long long)p->gfn);
	err = p->file->ops->lookup(p->file, off, 1, &folio);
	if (!err)
		return populate_present(p, off, source_page(p));
	if (err == -ENOENT)
		return populate_absent(p, off, source_page(p));
	if (err == -EHWPOISON)
		gmem_err(err, "gmem_populate: gfn 0x%llx: its page is poisoned", (unsigned long long)p->gfn);
	return err;
}

static int populate_page(struct populate *p)
{
	int err;

#ifdef GMEM_TEST_SOURCE_UNDER_LOCK
	/* The order that this file exists to avoid, for the test that shows what comes of it. */
	gmem_rwlock_lock(&p->file->invalidate_lock);
	err = bring_source_in(p);
#else
	err = bring_target_in(p);
	if (!err)
		err = bring_source_in(p);
	if (err)
		return err;
	gmem_rwlock_lock(&p->file->invalidate_lock);
#endif
	if (!err)
		err = populate_under_lock(p);
	gmem_rwlock_unlock(&p->file->invalidate_lock);
	if (err && (p->flags & GMEM_POPULATE_WRITE_BACK) && err != -EFAULT)
		write_back(p);
	return err;
}

/* ---- the whole */

static bool cancelled(struct gmem_vm *vm)
{
	return atomic_load_explicit(&vm->cancel, memory_order_relaxed) && atomic_exchange(&vm->cancel, false);
}

static int64_t populate(struct populate *p)
{
	const struct timespec pause = { .tv_nsec = 20000 };
	int64_t done = 0;
	int err = 0;

	while (p->left) {
		if (atomic_load(&p->vm->mmu.dead))
			err = gmem_err(-EIO, "gmem_populate: this VM is dead");
		else if (cancelled(p->vm))
			err = gmem_err(-EINTR, "gmem_populate: cancelled at gfn 0x%llx", (unsigned long long)p->gfn);
		else
			err = populate_page(p);
		if (err == -EBUSY || err == -EEXIST) {
			nanosleep(&pause, NULL);
			continue;
		}
		if (err)
			break;
		p->used++;
		p->gfn++;
		p->left--;
		done++;
		if (p->src)
			p->src += GMEM_PAGE_SIZE;
	}
	return done ? done : err;
}

static int check(const void *src, int64_t npages, uint32_t flags)
{
	if (npages <= 0)
		return gmem_err(-EINVAL, "gmem_populate: %lld pages", (long long)npages);
	if (!gmem_page_aligned((uintptr_t)src))
		return gmem_err(-EINVAL, "gmem_populate: source %p is not page-aligned", src);
	if (flags & ~GMEM_POPULATE_WRITE_BACK)
		return gmem_err(-EINVAL, "gmem_populate: flags 0x%x: unknown", flags);
	if (flags && !src)
		return gmem_err(-EINVAL, "gmem_populate: GMEM_POPULATE_WRITE_BACK without a source");
	return 0;
}

int64_t gmem_populate_locked(struct gmem_vm *vm, uint64_t gfn, const void *src, int64_t npages, uint32_t flags,
			     gmem_populate_fn fn, void *opaque)
{
	struct populate p = { .vm = vm, .flags = flags, .fn = fn, .opaque = opaque, .gfn = gfn, .src = src };
	int64_t done;
	int err = check(src, npages, flags);

	gmem_lockcheck_assert_held(GMEM_LOCK_SLOTS, &vm->slots_lock);
	if (err)
		return err;
	p.slot = gmem_vm_slot(vm, gfn);
	if (!p.slot)
		return gmem_err(-EINVAL, "gmem_populate: gfn 0x%llx: no slot", (unsigned long long)gfn);
	/* Constant while slots_lock is held: closing a file that is bound needs it. */
	p.file = atomic_load(&p.slot->file);
	if (!p.file)
		return gmem_err(-EFAULT, "gmem_populate: gfn 0x%llx: its file is closed", (unsigned long long)gfn);
	if (p.file->pid != getpid())
		return gmem_err(-EIO, "gmem_populate: the file is a copy that came with fork(2)");
	p.left = gmem_min_u64((uint64_t)npages, p.slot->gfn + p.slot->npages - gfn);
	if (src) {
		p.bounce = malloc((size_t)BATCH * GMEM_PAGE_SIZE);
		if (!p.bounce)
			return gmem_err_sys(-ENOMEM, "gmem_populate");
	}
	done = populate(&p);
	if (done > 0)
		atomic_fetch_add_explicit(&vm->populated, (uint64_t)done, memory_order_relaxed);
	free(p.bounce);
	return done;
}

int64_t gmem_populate(struct gmem_vm *vm, uint64_t gfn, const void *src, int64_t npages, uint32_t flags,
		      gmem_populate_fn fn, void *opaque)
{
	int64_t done;

	gmem_vm_lock_slots(vm);
	done = gmem_populate_locked(vm, gfn, src, npages, flags, fn, opaque);
	gmem_vm_unlock_slots(vm);
	return done;
}
