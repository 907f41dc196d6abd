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

#include "base/err.h"
#include "base/range.h"
#include "launch/populate.h"
#include "sys/call.h"

#define BATCH 64u /* pages brought in at a time */
#define BOTH (GMEM_SIDE_SHARED | GMEM_SIDE_PRIVATE)

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
	uint32_t replaced; /* pages that were in place */
	bool locked; /* the file's lock is held */
	bool refused; /* the function failed: the error is its own, whichever it is */
	bool touched; /* the page is the guest's already: so too */
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
	if (!p->locked)
		atomic_fetch_add_explicit(&p->vm->sources, p->have, memory_order_relaxed);
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

static int call(struct populate *p)
{
	int err = p->fn ? p->fn(p->vm, p->gfn, gmem_slot_pfn(p->slot, p->gfn), source_page(p), p->opaque) : 0;

	if (err > 0)
		err = gmem_err(-EINVAL, "gmem_populate: gfn 0x%llx: its function returned %d",
			       (unsigned long long)p->gfn, err);
	p->refused = err;
	return err;
}

/* An absent page: it is locked then, and not up to date. In place it keeps what views have put there. */
static int insert(const struct populate *p, uint64_t off, struct gmem_folio *folio)
{
	int err = p->file->ops->alloc(p->file, off, 1, folio);

	if (err)
		return err;
	folio->data = source_page(p);
	return p->file->ops->insert(p->file, folio);
}

/* A page that is in place already. */
static int overwrite(const struct populate *p, uint64_t off)
{
	int err;

	if (!p->src)
		return gmem_file_back(p->file, off, GMEM_PAGE_SIZE);
	err = p->file->ops->write(p->file, off, source_page(p), GMEM_PAGE_SIZE);
	return err ? gmem_err_sys(err, "gmem_populate: gfn 0x%llx", (unsigned long long)p->gfn) : 0;
}

/* The page is again what it was. No translation of it is left. */
static void put_back(const struct populate *p, uint64_t off, const char *old)
{
	if (p->file->ops->write(p->file, off, old, GMEM_PAGE_SIZE))
		gmem_state_lose(&p->file->state, off >> GMEM_PAGE_SHIFT);
}

static int read_old(const struct populate *p, uint64_t off, char *old)
{
	int err = p->file->ops->read(p->file, off, old, GMEM_PAGE_SIZE);

	/* The kernel says so first here. */
	if (err == -EHWPOISON)
		(void)gmem_file_poison_locked(p->file, off, GMEM_PAGE_SIZE);
	return err ? gmem_err_sys(err, "gmem_populate: gfn 0x%llx", (unsigned long long)p->gfn) : 0;
}

/* With GMEM_SIDE_KEEP the page stays what the guest was given, with other bytes. */
static void begin(const struct populate *p, uint64_t off, uint32_t sides)
{
	gmem_file_invalidate_begin(p->file, off, GMEM_PAGE_SIZE, sides);
}

static void end(const struct populate *p, uint64_t off)
{
	gmem_file_invalidate_end(p->file, off, GMEM_PAGE_SIZE);
}

/*
 * Nobody has the page mapped: an absent one never is, and who saw it in place before it was punched maps it no more.
 * It may have bytes all the same, which views have put there.
 */
static int populate_absent(struct populate *p, uint64_t off)
{
	const struct gmem_backing_ops *ops = p->file->ops;
	bool had_bytes = gmem_file_has_memory(p->file, off, GMEM_PAGE_SIZE);
	struct gmem_folio folio;
	char old[GMEM_PAGE_SIZE];
	int err = had_bytes ? read_old(p, off, old) : 0;

	if (err)
		return err;
	err = insert(p, off, &folio);
	if (err == -EBUSY || err == -EEXIST)
		return err;
	if (!err) {
		err = call(p);
		if (!err) {
			ops->publish(p->file, &folio);
			return 0;
		}
		/* The function may have mapped the frame before it failed. */
		begin(p, off, BOTH);
		ops->remove(p->file, &folio);
		end(p, off);
	}
	if (had_bytes)
		put_back(p, off, old);
	return err;
}

static int replace(struct populate *p, uint64_t off)
{
	uint64_t page = off >> GMEM_PAGE_SHIFT;
	/* One that was allocated and never written looks like a hole. */
	bool had_memory = gmem_word_content(gmem_state_word(&p->file->state, page)) == GMEM_WORD_UPTODATE ||
			  gmem_file_has_memory(p->file, off, GMEM_PAGE_SIZE);
	char old[GMEM_PAGE_SIZE];
	int err = read_old(p, off, old);

	if (err)
		return err;
	err = overwrite(p, off);
	if (!err)
		err = call(p);
	if (!err) {
		gmem_state_fill(&p->file->state, page);
		return 0;
	}
	/* The function may have mapped the frame before it failed. */
	begin(p, off, BOTH);
	if (had_memory)
		put_back(p, off, old);
	else
		(void)p->file->ops->punch(p->file, off, GMEM_PAGE_SIZE);
	end(p, off);
	return err;
}

/*
 * A page that is in place, and that guests may be using. No translation is made while this lasts; those that there are
 * go before a byte is read or changed, so that nothing stored is lost and nothing refused is seen. Guests wait for the
 * file's lock meanwhile.
 */
static int populate_present(struct populate *p, uint64_t off)
{
	int err;

	begin(p, off, 0);
	err = gmem_mmu_may_populate(&p->vm->mmu, p->gfn, gmem_slot_pfn(p->slot, p->gfn),
				    p->flags & GMEM_POPULATE_UNTOUCHED);
	p->touched = err;
	if (!err) {
		begin(p, off, BOTH | GMEM_SIDE_KEEP);
		err = replace(p, off);
		end(p, off);
	}
	end(p, off);
	p->replaced++;
	return err;
}

/*
 * Invalidate lock held, exclusive. Without `refused`, -EBUSY, -EEXIST: another process is at the page, come again;
 * -ENODATA: in place, and it is somebody's to bring in.
 */
static int populate_under_lock(struct populate *p)
{
	uint64_t off = gmem_slot_off(p->slot, p->gfn);
	bool wanted = !p->src && !(p->flags & GMEM_POPULATE_ZERO);
	struct gmem_folio folio;
	int err;

	if (!gmem_file_private(p->file, off))
		return gmem_err(-EINVAL, "gmem_populate: gfn 0x%llx is not private", (unsigned long long)p->gfn);
	err = p->file->ops->lookup(p->file, off, 1, &folio);
	if (err == -ENOENT)
		return wanted && gmem_file_supplied(p->file, off) ? -ENODATA : populate_absent(p, off);
	return err ? err : populate_present(p, off);
}

static void lock(struct populate *p)
{
	gmem_rwlock_lock(&p->file->invalidate_lock);
	p->locked = true;
}

static void unlock(struct populate *p)
{
	p->locked = false;
	gmem_rwlock_unlock(&p->file->invalidate_lock);
}

static int populate_page(struct populate *p)
{
	int err;

	p->refused = false;
	p->touched = false;
#ifdef GMEM_TEST_SOURCE_UNDER_LOCK
	/* The order that this file exists to avoid, for the test that shows what comes of it. */
	lock(p);
	err = bring_source_in(p);
#else
	err = bring_source_in(p);
	if (err)
		return err;
	lock(p);
#endif
	if (!err)
		err = populate_under_lock(p);
	unlock(p);
	if (p->refused && (p->flags & GMEM_POPULATE_WRITE_BACK))
		write_back(p);
	return err;
}

/* ---- the whole */

static bool cancelled(struct gmem_vm *vm)
{
	return atomic_load_explicit(&vm->cancel, memory_order_relaxed) && atomic_exchange(&vm->cancel, false);
}

struct populate_wait {
	struct gmem_wait wait; /* first */
	struct gmem_vm *vm;
};

static bool populate_is_over(struct gmem_wait *wait)
{
	struct gmem_vm *vm = ((struct populate_wait *)wait)->vm;

	return atomic_load(&vm->cancel) || gmem_mmu_dead(&vm->mmu);
}

/* Waits for what kept the page from being populated. 0: try it again; else it was an error, this one. No lock held. */
static int wait_for(const struct populate *p, int err)
{
	struct populate_wait w = { .wait = { populate_is_over }, .vm = p->vm };
	const struct timespec pause = { .tv_nsec = 20000 };

	/* What the function answers means nothing here. */
	if (p->refused || p->touched)
		return err;
	switch (err) {
	case -EBUSY:
	case -EEXIST:
		nanosleep(&pause, NULL);
		return 0;
	case -ENODATA:
		/* In place, an absent page that somebody supplies is brought in like a source: without the lock. */
		err = gmem_file_bring_in(p->file, gmem_slot_off(p->slot, p->gfn), &w.wait);
		/* Brought in after all, by one who is gone since. */
		if (err == -EIO && p->file->ops->present(p->file, gmem_slot_off(p->slot, p->gfn)))
			return 0;
		/* Supplied no more; or cancelled, or dead, which the next attempt sees. */
		return err == -ENOENT || err == -EINTR ? 0 : err;
	case -EHWPOISON:
		return gmem_err(err, "gmem_populate: gfn 0x%llx: its page is poisoned", (unsigned long long)p->gfn);
	default:
		return err;
	}
}

static int64_t populate(struct populate *p, int *ret_why)
{
	const struct timespec breath = { .tv_nsec = 50000 };
	int64_t done = 0;
	int err = 0;

	while (p->left && !err) {
		if (gmem_mmu_dead(&p->vm->mmu)) {
			err = gmem_err(-EIO, "gmem_populate: this VM is dead");
			break;
		}
		if (cancelled(p->vm)) {
			err = gmem_err(-EINTR, "gmem_populate: cancelled at gfn 0x%llx", (unsigned long long)p->gfn);
			break;
		}
		err = populate_page(p);
		if (err) {
			err = wait_for(p, err);
			continue;
		}
		p->used++;
		p->gfn++;
		p->left--;
		done++;
		if (p->src)
			p->src += GMEM_PAGE_SIZE;
		/* Each page in place was an invalidation, and guests' faults begin anew with each: let them through. */
		if (p->replaced == BATCH) {
			nanosleep(&breath, NULL);
			p->replaced = 0;
		}
	}
	*ret_why = err;
	return done ? done : err;
}

static int check(const void *src, int64_t npages, uint32_t flags)
{
	if (npages <= 0)
		return gmem_err(-EINVAL, "gmem_populate: %lld pages", (long long)npages);
	if (!gmem_page_aligned((uintptr_t)src))
		return gmem_err(-EINVAL, "gmem_populate: source %p is not page-aligned", src);
	if (flags & ~(GMEM_POPULATE_WRITE_BACK | GMEM_POPULATE_INTERNAL))
		return gmem_err(-EINVAL, "gmem_populate: flags 0x%x: unknown", flags);
	if ((flags & GMEM_POPULATE_WRITE_BACK) && !src)
		return gmem_err(-EINVAL, "gmem_populate: GMEM_POPULATE_WRITE_BACK without a source");
	return 0;
}

int64_t gmem_populate_locked(struct gmem_vm *vm, uint64_t gfn, const void *src, int64_t npages, uint32_t flags,
			     gmem_populate_fn fn, void *opaque, int *ret_why)
{
	struct populate p = { .vm = vm, .flags = flags, .fn = fn, .opaque = opaque, .gfn = gfn, .src = src };
	int64_t done;
	int err = check(src, npages, flags);

	gmem_lockcheck_assert_held(GMEM_LOCK_SLOTS, &vm->slots_lock);
	*ret_why = 0;
	if (err)
		return err;
	if (gmem_mmu_dead(&vm->mmu))
		return gmem_err(-EIO, "gmem_populate: this VM is dead");
	p.slot = gmem_vm_slot(vm, gfn);
	if (!p.slot || !gmem_slot_has_file(p.slot))
		return gmem_err(-EINVAL, "gmem_populate: gfn 0x%llx: %s", (unsigned long long)gfn,
				p.slot ? "its slot has no file" : "no slot");
	/* Constant while slots_lock is held: closing a file that is bound needs it. */
	p.file = atomic_load(&p.slot->file);
	if (!p.file)
		return gmem_err(-EFAULT, "gmem_populate: gfn 0x%llx: its file is closed", (unsigned long long)gfn);
	if (!gmem_file_ours(p.file))
		return gmem_err(-EIO, "gmem_populate: the file is a copy that came with fork(2)");
	p.left = gmem_min_u64((uint64_t)npages, p.slot->gfn + p.slot->npages - gfn);
	if (src) {
		p.bounce = malloc((size_t)BATCH * GMEM_PAGE_SIZE);
		if (!p.bounce)
			return gmem_err_sys(-ENOMEM, "gmem_populate");
	}
	done = populate(&p, ret_why);
	if (done > 0)
		atomic_fetch_add_explicit(&vm->populated, (uint64_t)done, memory_order_relaxed);
	free(p.bounce);
	return done;
}

int64_t gmem_populate(struct gmem_vm *vm, uint64_t gfn, const void *src, int64_t npages, uint32_t flags,
		      gmem_populate_fn fn, void *opaque)
{
	int64_t done;
	int why;

	if (flags & GMEM_POPULATE_INTERNAL)
		return gmem_err(-EINVAL, "gmem_populate: flags 0x%x: unknown", flags);
	gmem_vm_lock_slots(vm);
	done = gmem_populate_locked(vm, gfn, src, npages, flags, fn, opaque, &why);
	gmem_vm_unlock_slots(vm);
	return done;
}
