/* SPDX-License-Identifier: MIT */
/*
 * A guest's access finds no translation. A page that is in place is looked up and mapped in one section, without a lock
 * or a reference, so that vCPUs do not meet. Any other is looked up under the lock of the slot's file, brought in if it
 * is absent, and mapped if no invalidation came in between.
 */
#include <errno.h>
#include <time.h>

#include "base/err.h"
#include "base/range.h"
#include "mmu/log.h"
#include "mmu/mmu.h"

/* What was found out of a page. */
struct found {
	struct gmem_slot *slot; /* inside a section alone */
	struct gmem_file *file; /* referenced, but inside a section */
	uint64_t off; /* of the page in it */
	bool tracked;
	bool userfault; /* the page is the caller's to fill */
	bool hva; /* the shared side is the caller's memory */
	struct gmem_hva *in_use; /* that memory's page; set up by who is asked for it */
	struct gmem_mapping m;
};

/* For an invalidation to end, or for another process's server to bring a page in. */
static void pause_a_little(void)
{
	const struct timespec pause = { .tv_nsec = 20000 };

	nanosleep(&pause, NULL);
}

/*
 * The slot of a guest frame, most often that of the last fault. Inside a section. What says that the last one is still
 * there is a number and no address, which a table that is freed may leave to the next: it is raised when the table
 * that has the slot no more is published, and before the wait for us, after which the slot may go. So whoever reads the
 * old number is waited for. It is read before the table: one that is newer than its number is looked at once too often.
 */
static struct gmem_slot *find_slot(struct gmem_vcpu *vcpu, uint64_t gfn)
{
	struct gmem_mmu *mmu = vcpu->mmu;
	uint64_t seq = atomic_load(&mmu->slots_seq);
	struct gmem_slot *slot = seq == vcpu->last_slots_seq ? vcpu->last_slot : NULL;

	if (slot && gfn >= slot->gfn && gfn - slot->gfn < slot->npages)
		return slot;
	slot = gmem_slots_find(atomic_load(&mmu->slots), gfn);
	vcpu->last_slot = slot;
	vcpu->last_slots_seq = seq;
	return slot;
}

/* The slot and its file, as of now. Inside a section: both stay. -ENOENT: no slot; -EBADF: no file, or a closed one. */
static int find(struct gmem_vcpu *vcpu, uint64_t gfn, struct found *f)
{
	struct gmem_slot *slot = find_slot(vcpu, gfn);
	int err = 0;

	/* Nothing that an earlier attempt found out holds any more. */
	*f = (struct found){ .slot = slot, .file = slot ? atomic_load(&slot->file) : NULL, .in_use = f->in_use };
	if (!slot) {
		err = -ENOENT;
	} else if (!f->file) {
		err = -EBADF;
	} else {
		uint64_t first = gfn & ~(gmem_level_pages(GMEM_LEVEL_2M) - 1);
		uint64_t pfn = gmem_slot_pfn(slot, gfn);
		uint32_t logs = gmem_slot_logs(slot);
		bool large = !logs && first >= slot->gfn &&
			     first + gmem_level_pages(GMEM_LEVEL_2M) <= slot->gfn + slot->npages &&
			     (pfn - gfn) % gmem_level_pages(GMEM_LEVEL_2M) == 0 && !atomic_load(&slot->tracked) &&
			     !gmem_slot_userfault(slot, first, gmem_level_pages(GMEM_LEVEL_2M));

		f->off = gmem_slot_off(slot, gfn);
		f->tracked = gmem_slot_tracked(slot, gfn);
		f->userfault = !large && gmem_slot_userfault(slot, gfn, 1);
		f->hva = slot->hva;
		f->m = (struct gmem_mapping){
			.gfn = gfn,
			.pfn = pfn,
			.slot = slot,
			.gate = slot->gate,
			.alone = atomic_load(&slot->userfault) || (logs & GMEM_LOG_ACCESSED),
			.logs = logs,
			.off = f->off,
			.writable = !f->tracked,
			.level = large ? GMEM_LEVEL_2M : GMEM_LEVEL_4K,
		};
	}
	return err;
}

/*
 * A slot without a file has shared pages only. One whose file is closed too, for an access that names the shared side;
 * for another it is not known any more which pages those were.
 */
static int find_no_file(uint64_t gfn, uint32_t access, enum gmem_want want, struct found *f)
{
	struct gmem_slot *slot = f->slot;
	int err;

	if (gmem_slot_has_file(slot) && (!slot->hva || want != GMEM_WANT_SHARED))
		return -EBADF;
	if (want == GMEM_WANT_PRIVATE)
		return -EREMOTE;
	err = gmem_hva_get(slot, gfn, access, f->in_use);
	return err ? err : GMEM_FAULT_HVA;
}

/*
 * So too, outside: the file is referenced, and memory of the caller's in use, because what follows may wait. -ENOENT,
 * or what find_no_file() says.
 */
static int find_and_get(struct gmem_vcpu *vcpu, uint64_t gfn, uint32_t access, enum gmem_want want, struct found *f)
{
	int err;

	gmem_mmu_begin_look(vcpu);
	err = find(vcpu, gfn, f);
	if (!err)
		gmem_file_get(f->file);
	else if (err == -EBADF)
		err = find_no_file(gfn, access, want, f);
	gmem_mmu_end_look(vcpu);
	return err;
}

/* The page is shared, and its slot has the caller's memory for that. -EAGAIN: the slot is not what it was. */
static int find_hva(struct gmem_vcpu *vcpu, uint32_t access, const struct found *f)
{
	struct gmem_slot *slot;
	int err = -EAGAIN;

	gmem_mmu_begin_look(vcpu);
	slot = find_slot(vcpu, f->m.gfn);
	if (slot && slot->hva && atomic_load(&slot->file) == f->file && gmem_slot_off(slot, f->m.gfn) == f->off)
		err = gmem_hva_get(slot, f->m.gfn, access, f->in_use);
	gmem_mmu_end_look(vcpu);
	return err ? err : GMEM_FAULT_HVA;
}

/* The large leaf around the page would show nothing that is not in place, and one side only. */
static bool uniform(const struct gmem_file *file, uint64_t off)
{
	uint64_t n = gmem_level_pages(GMEM_LEVEL_2M), first = off >> GMEM_PAGE_SHIFT & ~(n - 1);

	/* The ends first: memory that is being touched in order is settled there. */
	if (gmem_word_content(gmem_state_word(&file->state, first + n - 1)) != GMEM_WORD_UPTODATE ||
	    gmem_state_side_end(&file->state, first, first + n) != first + n)
		return false;
	for (uint64_t page = first; page < first + n; page++)
		if (gmem_word_content(gmem_state_word(&file->state, page)) != GMEM_WORD_UPTODATE)
			return false;
	return true;
}

/* Nobody supplies the page: it is zero, or has the bytes that views have put there. */
static int add_zero(struct gmem_file *file, uint64_t off)
{
	struct gmem_folio folio;
	int err = file->ops->alloc(file, off, 1, &folio);

	if (!err)
		err = file->ops->insert(file, &folio);
	if (!err)
		file->ops->publish(file, &folio);
	return err;
}

/*
 * Under the invalidate lock, shared: the page's side, and that it is in place. -ENODATA: absent, and somebody supplies
 * it; -EREMOTE: on the side that was not wanted; -EREMOTEIO: the caller's to fill; -EXDEV: on the side that is not the
 * file's; -EBUSY, -EEXIST: look again.
 */
static int look(struct found *f, enum gmem_want want)
{
	struct gmem_folio folio;
	int err;

	f->m.private = gmem_file_private(f->file, f->off);
	if (want != GMEM_WANT_ANY && (want == GMEM_WANT_PRIVATE) != f->m.private)
		return -EREMOTE;
	if (f->userfault)
		return -EREMOTEIO;
	if (f->hva && !f->m.private)
		return -EXDEV;
	err = f->file->ops->lookup(f->file, f->off, 1, &folio);
	if (err == -ENOENT)
		err = gmem_file_supplied(f->file, f->off) ? -ENODATA : add_zero(f->file, f->off);
	else if (!err &&
		 gmem_word_content(gmem_state_word(&f->file->state, f->off >> GMEM_PAGE_SHIFT)) == GMEM_WORD_REMOVED)
		err = gmem_file_back(f->file, f->off, GMEM_PAGE_SIZE);
	if (!err && f->m.level > GMEM_LEVEL_4K && !uniform(f->file, f->off))
		f->m.level = GMEM_LEVEL_4K;
	return err;
}

/* A fault that waits for its page. */
struct fault_wait {
	struct gmem_wait wait; /* first */
	struct gmem_vcpu *vcpu;
	const struct found *f;
	uint64_t seq; /* what is known of the page was true then */
};

/*
 * Cancelled, or what is waited for is not what the guest wants any more: the VM has died, the slot or its file has
 * gone, the page was converted. All of these but the first two end an invalidation.
 */
static bool fault_is_over(struct gmem_wait *wait)
{
	struct fault_wait *w = (struct fault_wait *)wait;
	struct gmem_mmu *mmu = w->vcpu->mmu;
	const struct found *f = w->f;
	uint64_t seq = atomic_load(&mmu->invalidate_seq);
	const struct gmem_slot *slot;
	bool same;

	if (atomic_load(&w->vcpu->cancel) || gmem_mmu_dead(mmu))
		return true;
	if (seq == w->seq)
		return false;
	gmem_mmu_begin_look(w->vcpu);
	slot = find_slot(w->vcpu, f->m.gfn);
	same = slot && atomic_load(&slot->file) == f->file && gmem_slot_off(slot, f->m.gfn) == f->off &&
	       gmem_file_private(f->file, f->off) == f->m.private;
	gmem_mmu_end_look(w->vcpu);
	w->seq = seq;
	return !same;
}

/* Has the page brought in. 0: look at it again. -EAGAIN: begin anew. */
static int bring_in(struct gmem_vcpu *vcpu, const struct found *f, uint64_t seq)
{
	struct fault_wait w = { .wait = { fault_is_over }, .vcpu = vcpu, .f = f, .seq = seq };
	int err = gmem_file_bring_in(f->file, f->off, &w.wait);

	switch (err) {
	case -EINTR:
		/* The flag has only been looked at. */
		return gmem_vcpu_cancelled(vcpu) ? -EINTR : -EAGAIN;
	case -EIO:
		/* Brought in after all, by one who is gone since; or converted before the wait began. */
		if (f->file->ops->present(f->file, f->off))
			return 0;
		return gmem_file_private(f->file, f->off) == f->m.private ? -EIO : -EAGAIN;
	case -ENOENT:
		return 0;
	default:
		return err;
	}
}

/* Looks the page up and waits until it is in place. */
static int get_page(struct gmem_vcpu *vcpu, struct found *f, enum gmem_want want, uint64_t seq)
{
	for (;;) {
		int err;

		if (gmem_vcpu_cancelled(vcpu))
			return -EINTR;
		gmem_mmu_count(vcpu, GMEM_MMU_LOOKUPS);
		gmem_rwlock_lock_shared(&f->file->invalidate_lock);
		err = look(f, want);
		gmem_rwlock_unlock_shared(&f->file->invalidate_lock);
		if (err == -ENODATA) {
			err = bring_in(vcpu, f, seq);
			if (err)
				return err;
		} else if (err == -EBUSY) {
			pause_a_little();
		} else if (err != -EEXIST) {
			return err;
		}
	}
}

/* How the access wants it mapped. */
static void want_access(const struct gmem_mmu *mmu, struct gmem_mapping *m, uint32_t access)
{
	m->access = access;
	/* The first write is to be seen. */
	if ((m->logs & GMEM_LOG_DIRTY) && !(access & GMEM_ACCESS_WRITE))
		m->writable = false;
	m->nx_huge_pages = atomic_load(&mmu->nx_huge_pages);
	if ((access & GMEM_ACCESS_EXEC) && m->nx_huge_pages)
		m->level = GMEM_LEVEL_4K;
}

/* Before it is mapped, so that what is mapped was noted. As to map it: the slot is there, and so is its log. */
static void note(const struct gmem_mapping *m)
{
	gmem_slot_note(m->slot, m->gfn, m->access & GMEM_ACCESS_WRITE);
}

/*
 * For a vCPU that follows other tables, by system calls, which are nothing for a section: under the lock, shared, which
 * an invalidation takes after it has said that it runs.
 */
static enum gmem_map_result map_elsewhere(struct gmem_vcpu *vcpu, const struct gmem_mapping *m, uint64_t seq)
{
	struct gmem_mmu *mmu = vcpu->mmu;
	enum gmem_map_result r = GMEM_MAP_RETRY;

	gmem_rwlock_lock_shared(&mmu->lock);
	if (!atomic_load(&mmu->invalidating) && atomic_load(&mmu->invalidate_seq) == seq) {
		note(m);
		r = vcpu->map(vcpu, m);
	}
	gmem_rwlock_unlock_shared(&mmu->lock);
	return r;
}

/*
 * Unless what was found out since `seq` may be out of date. The sequence is looked at inside the section: one that ends
 * no more until then has been waited for, or waits for us.
 */
static enum gmem_map_result map(struct gmem_vcpu *vcpu, const struct gmem_mapping *m, uint64_t seq)
{
	enum gmem_map_result r = GMEM_MAP_RETRY;

	if (vcpu->map)
		return map_elsewhere(vcpu, m, seq);
	if (!gmem_mmu_begin_map(vcpu))
		return r;
	if (atomic_load(&vcpu->mmu->invalidate_seq) == seq) {
		note(m);
		r = gmem_mmu_map(vcpu, m);
	}
	gmem_mmu_end_map(vcpu);
	return r;
}

/*
 * What look() would find of a page in place. The file's lock is not needed for it: whatever makes a page absent, or
 * moves it to the other side, or fails it, does so in an invalidation of it, and inside a section there is none.
 */
static bool in_place(struct found *f, uint32_t access, enum gmem_want want)
{
	uint32_t word = gmem_state_word(&f->file->state, f->off >> GMEM_PAGE_SHIFT);

	f->m.private = gmem_file_private(f->file, f->off);
	if (gmem_word_content(word) != GMEM_WORD_UPTODATE || (word & GMEM_WORD_POISONED) ||
	    (want != GMEM_WANT_ANY && (want == GMEM_WANT_PRIVATE) != f->m.private) ||
	    (f->tracked && (access & GMEM_ACCESS_WRITE)) || f->userfault || (f->hva && !f->m.private))
		return false;
	if (f->m.level > GMEM_LEVEL_4K && !uniform(f->file, f->off))
		f->m.level = GMEM_LEVEL_4K;
	return true;
}

/* The short way. False: there is more to it, or there may be. */
static bool map_in_place(struct gmem_vcpu *vcpu, uint64_t gfn, uint32_t access, enum gmem_want want)
{
	enum gmem_map_result r = GMEM_MAP_RETRY;
	struct found f = { .in_use = NULL };

	if (vcpu->map || gmem_table_topup(&vcpu->mmu->pool, &vcpu->cache) || !gmem_mmu_begin_map(vcpu))
		return false;
	if (!find(vcpu, gfn, &f) && in_place(&f, access, want)) {
		gmem_mmu_count(vcpu, GMEM_MMU_LOOKUPS);
		want_access(vcpu->mmu, &f.m, access);
		note(&f.m);
		r = gmem_mmu_map(vcpu, &f.m);
	}
	gmem_mmu_end_map(vcpu);
	return r == GMEM_MAP_FIXED || r == GMEM_MAP_SPURIOUS;
}

/* One attempt, the long way. -EAGAIN: an invalidation, or another thread, came in between. */
static int try_fault(struct gmem_vcpu *vcpu, struct found *f, uint64_t gfn, uint32_t access, enum gmem_want want)
{
	struct gmem_mmu *mmu = vcpu->mmu;
	uint64_t seq = atomic_load(&mmu->invalidate_seq);
	enum gmem_map_result r;
	int err = find_and_get(vcpu, gfn, access, want, f);

	if (err)
		return err;
	err = get_page(vcpu, f, want, seq);
	if (err == -EXDEV)
		err = find_hva(vcpu, access, f);
	if (!err && f->tracked && (access & GMEM_ACCESS_WRITE))
		err = gmem_err(-EPERM, "guest frame 0x%llx: its writes are watched", (unsigned long long)gfn);
	if (!err)
		err = gmem_table_topup(&mmu->pool, &vcpu->cache);
	gmem_file_put(f->file);
	if (err)
		return err;
	want_access(mmu, &f->m, access);
	r = map(vcpu, &f->m, seq);
	if (r == GMEM_MAP_FIXED || r == GMEM_MAP_SPURIOUS)
		return 0;
	if (r == GMEM_MAP_FAILED)
		return vcpu->map_err;
	/* A leaf that allows too little: it goes, and the page is mapped anew. */
	if (r == GMEM_MAP_CONFLICT)
		gmem_mmu_zap(mmu, gfn, 1, GMEM_SIDE_SHARED | GMEM_SIDE_PRIVATE);
	gmem_mmu_count(vcpu, GMEM_MMU_RETRIES);
	if (atomic_load(&mmu->invalidating))
		pause_a_little();
	return -EAGAIN;
}

static int fault(struct gmem_vcpu *vcpu, struct found *f, uint64_t gfn, uint32_t access, enum gmem_want want)
{
	int err = gmem_mmu_reload(vcpu);

	gmem_mmu_count(vcpu, GMEM_MMU_FAULTS);
	while (!err || err == -EAGAIN) {
		if (gmem_mmu_dead(vcpu->mmu))
			return gmem_err(-EIO, "this VM is dead");
		if (gmem_vcpu_cancelled(vcpu))
			return -EINTR;
		if (!err && map_in_place(vcpu, gfn, access, want))
			break;
		err = try_fault(vcpu, f, gfn, access, want);
		if (!err)
			break;
	}
	return err;
}

int gmem_mmu_fault(struct gmem_vcpu *vcpu, uint64_t gfn, uint32_t access, enum gmem_want want,
		   struct gmem_mmu_exit *exit, struct gmem_hva *hva)
{
	struct found f = { .in_use = hva };
	int err = fault(vcpu, &f, gfn, access, want);

	*exit = (struct gmem_mmu_exit){ .private = want == GMEM_WANT_ANY ? f.m.private : want == GMEM_WANT_PRIVATE };
	switch (err) {
	case -ENOENT:
	case -EBADF:
	case -EREMOTE:
		exit->memory_fault = true;
		exit->no_slot = err == -ENOENT;
		return gmem_err(-EFAULT, "guest frame 0x%llx: %s", (unsigned long long)gfn,
				err == -ENOENT ? "no slot" :
				err == -EBADF  ? "its file is closed" :
				exit->private  ? "the page is shared, the access private" :
						 "the page is private, the access shared");
	case -EREMOTEIO:
		exit->memory_fault = exit->userfault = true;
		return gmem_err(-EFAULT, "guest frame 0x%llx: its bit in the userfault bitmap is set",
				(unsigned long long)gfn);
	case -EROFS:
		exit->mmio = true;
		return gmem_err(-EFAULT, "guest frame 0x%llx: its slot is read-only", (unsigned long long)gfn);
	case -EHWPOISON:
		exit->memory_fault = true;
		return gmem_err(err, "guest frame 0x%llx: its page is poisoned", (unsigned long long)gfn);
	case -EINTR:
		return gmem_err(err, "guest frame 0x%llx: cancelled", (unsigned long long)gfn);
	default:
		return err;
	}
}

int gmem_mmu_pre_fault(struct gmem_vcpu *vcpu, uint64_t gfn, enum gmem_want want, struct gmem_hva *hva)
{
	struct found f = { .in_use = hva };
	int err = fault(vcpu, &f, gfn, GMEM_ACCESS_READ, want);

	if (err == -ENOENT)
		return gmem_err(err, "guest frame 0x%llx: no slot", (unsigned long long)gfn);
	if (err == -EBADF || err == -EREMOTE || err == -EREMOTEIO)
		return gmem_err(-EFAULT, "guest frame 0x%llx: %s", (unsigned long long)gfn,
				err == -EBADF	? "its file is closed" :
				err == -EREMOTE ? "the page is on the other side" :
						  "its bit in the userfault bitmap is set");
	if (err == -EHWPOISON || err == -EINTR)
		return gmem_err_sys(err, "guest frame 0x%llx", (unsigned long long)gfn);
	return err;
}
