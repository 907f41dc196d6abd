/* SPDX-License-Identifier: MIT */
/*
 * A guest's access finds no translation. A page that is in place is looked up and mapped in one section, without a lock
 * or a reference, so that vCPUs do not meet. Any other is looked up under the lock of the slot's file, brought in if it
 * is absent, and mapped if no invalidation came in between.
 */
#include <errno.h>
#include <time.h>

#include "base/err.h"
#include "mmu/found.h"
#include "mmu/log.h"

void gmem_mmu_pause(void)
{
	const struct timespec pause = { .tv_nsec = 20000 };

	nanosleep(&pause, NULL);
}

/* A fault that waits for its page. */
struct fault_wait {
	struct gmem_wait wait; /* first */
	struct gmem_vcpu *vcpu;
	const struct gmem_found *f;
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
	const struct gmem_found *f = w->f;
	uint64_t seq = atomic_load(&mmu->invalidate_seq);
	const struct gmem_slot *slot;
	bool same;

	if (atomic_load(&w->vcpu->cancel) || gmem_mmu_dead(mmu))
		return true;
	if (seq == w->seq)
		return false;
	gmem_mmu_begin_look(w->vcpu);
	slot = gmem_found_slot(w->vcpu, f->m.gfn);
	same = slot && atomic_load(&slot->file) == f->file && gmem_slot_off(slot, f->m.gfn) == f->off &&
	       gmem_file_private(f->file, f->off) == f->m.private;
	gmem_mmu_end_look(w->vcpu);
	w->seq = seq;
	return !same;
}

/* Has the page brought in. 0: look at it again. -EAGAIN: begin anew. */
static int bring_in(struct gmem_vcpu *vcpu, const struct gmem_found *f, uint64_t seq)
{
	struct fault_wait w = { .wait = { fault_is_over }, .vcpu = vcpu, .f = f, .seq = seq };
	int err = gmem_file_bring_in(f->file, f->absent, &w.wait);

	switch (err) {
	case -EINTR:
		/* The flag has only been looked at. */
		return gmem_vcpu_cancelled(vcpu) ? -EINTR : -EAGAIN;
	case -EIO:
		/* Brought in after all, by one who is gone since; or converted before the wait began. */
		if (f->file->ops->present(f->file, f->absent))
			return 0;
		return gmem_file_private(f->file, f->off) == f->m.private ? -EIO : -EAGAIN;
	case -ENOENT:
		return 0;
	default:
		return err;
	}
}

/* Looks the page up and waits until it is in place. */
static int get_page(struct gmem_vcpu *vcpu, struct gmem_found *f, enum gmem_want want, uint64_t seq)
{
	for (;;) {
		int err;

		if (gmem_vcpu_cancelled(vcpu))
			return -EINTR;
		gmem_mmu_count(vcpu, GMEM_MMU_LOOKUPS);
		gmem_rwlock_lock_shared(&f->file->invalidate_lock);
		err = gmem_found_look(f, want);
		gmem_rwlock_unlock_shared(&f->file->invalidate_lock);
		if (err == -ENODATA) {
			err = bring_in(vcpu, f, seq);
			if (err)
				return err;
		} else if (err == -EBUSY) {
			gmem_mmu_pause();
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

/* The short way. False: there is more to it, or there may be. */
static bool map_in_place(struct gmem_vcpu *vcpu, uint64_t gfn, uint32_t access, enum gmem_want want)
{
	enum gmem_map_result r = GMEM_MAP_RETRY;
	struct gmem_found f = { .in_use = NULL };

	if (vcpu->map || gmem_table_topup(&vcpu->mmu->pool, &vcpu->cache) || !gmem_mmu_begin_map(vcpu))
		return false;
	if (!gmem_find(vcpu, gfn, &f) && gmem_found_in_place(&f, access, want)) {
		gmem_mmu_count(vcpu, GMEM_MMU_LOOKUPS);
		want_access(vcpu->mmu, &f.m, access);
		note(&f.m);
		r = gmem_mmu_map(vcpu, &f.m);
	}
	gmem_mmu_end_map(vcpu);
	return r == GMEM_MAP_FIXED || r == GMEM_MAP_SPURIOUS;
}

/* Maps what was found since `seq`. -EAGAIN: an invalidation, or another thread, came in between. */
static int map_found(struct gmem_vcpu *vcpu, struct gmem_found *f, uint32_t access, uint64_t seq)
{
	want_access(vcpu->mmu, &f->m, access);
	switch (map(vcpu, &f->m, seq)) {
	case GMEM_MAP_FIXED:
	case GMEM_MAP_SPURIOUS:
		return 0;
	case GMEM_MAP_FAILED:
		return vcpu->map_err;
	case GMEM_MAP_CONFLICT:
		return -EADDRINUSE;
	default:
		return -EAGAIN;
	}
}

/* One attempt, the long way. -EAGAIN: see map_found(); -EADDRINUSE: a leaf is there that allows too little. */
static int try_fault(struct gmem_vcpu *vcpu, struct gmem_found *f, uint64_t gfn, uint32_t access, enum gmem_want want)
{
	struct gmem_mmu *mmu = vcpu->mmu;
	uint64_t seq = atomic_load(&mmu->invalidate_seq);
	int err = gmem_found_get(vcpu, gfn, access, want, f);

	if (err)
		return err;
	err = get_page(vcpu, f, want, seq);
	if (err == -EXDEV)
		err = gmem_found_hva(vcpu, access, f);
	if (!err && f->tracked && (access & GMEM_ACCESS_WRITE))
		err = gmem_err(-EPERM, "guest frame 0x%llx: its writes are watched", (unsigned long long)gfn);
	if (!err)
		err = gmem_table_topup(&mmu->pool, &vcpu->cache);
	gmem_file_put(f->file);
	return err ? err : map_found(vcpu, f, access, seq);
}

/*
 * An attempt that no invalidation of the file's comes in between: they wait for its lock, which is held throughout. A
 * storm of conversions would keep the others from ever getting through. -EAGAIN: also, that there is more to it.
 */
static int try_fault_locked(struct gmem_vcpu *vcpu, struct gmem_found *f, uint64_t gfn, uint32_t access,
			    enum gmem_want want)
{
	struct gmem_mmu *mmu = vcpu->mmu;
	int err = gmem_found_get(vcpu, gfn, access, want, f);
	struct gmem_file *file = f->file;
	uint64_t seq;

	if (err)
		return err;
	err = gmem_table_topup(&mmu->pool, &vcpu->cache);
	gmem_rwlock_lock_shared(&file->invalidate_lock);
	seq = atomic_load(&mmu->invalidate_seq);
	gmem_mmu_begin_look(vcpu);
	if (!err && (gmem_find(vcpu, gfn, f) || f->file != file || (f->tracked && (access & GMEM_ACCESS_WRITE))))
		err = -EAGAIN;
	gmem_mmu_end_look(vcpu);
	if (!err)
		err = gmem_found_look(f, want) ? -EAGAIN : map_found(vcpu, f, access, seq);
	gmem_rwlock_unlock_shared(&file->invalidate_lock);
	gmem_file_put(file);
	return err;
}

static int fault(struct gmem_vcpu *vcpu, struct gmem_found *f, uint64_t gfn, uint32_t access, enum gmem_want want)
{
	struct gmem_mmu *mmu = vcpu->mmu;
	int err = gmem_mmu_reload(vcpu);

	gmem_mmu_count(vcpu, GMEM_MMU_FAULTS);
	if (err)
		return err;
	for (bool locked = false;; locked = !locked) {
		if (gmem_mmu_dead(mmu))
			return gmem_err(-EIO, "this VM is dead");
		if (gmem_vcpu_cancelled(vcpu))
			return -EINTR;
		if (map_in_place(vcpu, gfn, access, want))
			return 0;
		err = locked ? try_fault_locked(vcpu, f, gfn, access, want) : try_fault(vcpu, f, gfn, access, want);
		if (err != -EAGAIN && err != -EADDRINUSE)
			return err;
		/* The leaf goes, and the page is mapped anew. */
		if (err == -EADDRINUSE)
			gmem_mmu_zap(mmu, gfn, 1, GMEM_SIDE_SHARED | GMEM_SIDE_PRIVATE | GMEM_SIDE_KEEP);
		gmem_mmu_count(vcpu, GMEM_MMU_RETRIES);
		/* One that is no file's, or another file's; or external tables are busy. */
		if (locked && (atomic_load(&mmu->invalidating) || atomic_load(&mmu->external)))
			gmem_mmu_pause();
	}
}

int gmem_mmu_fault(struct gmem_vcpu *vcpu, uint64_t gfn, uint32_t access, enum gmem_want want,
		   struct gmem_mmu_exit *exit, struct gmem_hva *hva)
{
	struct gmem_found f = { .in_use = hva };
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

/* What gmem_mmu_fault() found holds still. Inside a section, in which no invalidation runs. */
static bool means_hva(const struct gmem_slot *slot, const struct gmem_file *file, uint64_t gfn)
{
	return atomic_load(&slot->file) == file && !(file && gmem_file_private(file, gmem_slot_off(slot, gfn))) &&
	       !gmem_slot_userfault(slot, gfn, 1);
}

int gmem_mmu_map_hva(struct gmem_vcpu *vcpu, uint64_t gfn, const struct gmem_hva *hva)
{
	struct gmem_mmu *mmu = vcpu->mmu;
	struct gmem_slot *slot = hva->slot;
	struct gmem_mapping m = { .gfn = gfn, .slot = slot, .gate = slot->gate, .hva = true };
	enum gmem_map_result r = GMEM_MAP_RETRY;
	struct gmem_file *file;

	gmem_mmu_begin_look(vcpu);
	file = atomic_load(&slot->file);
	if (file)
		gmem_file_get(file);
	gmem_mmu_end_look(vcpu);
	/* See try_fault_locked(). */
	if (file)
		gmem_rwlock_lock_shared(&file->invalidate_lock);
	gmem_rwlock_lock_shared(&mmu->lock);
	gmem_mmu_begin_look(vcpu);
	m.off = gmem_slot_off(slot, gfn);
	m.alone = atomic_load(&slot->userfault);
	if (!atomic_load(&mmu->invalidating) && means_hva(slot, file, gfn)) {
		gmem_slot_note(slot, gfn, false);
		r = GMEM_MAP_FIXED;
	}
	gmem_mmu_end_look(vcpu);
	if (r == GMEM_MAP_FIXED)
		r = vcpu->map(vcpu, &m);
	gmem_rwlock_unlock_shared(&mmu->lock);
	if (file) {
		gmem_rwlock_unlock_shared(&file->invalidate_lock);
		gmem_file_put(file);
	}
	if (r == GMEM_MAP_FAILED)
		return vcpu->map_err;
	if (r == GMEM_MAP_RETRY)
		gmem_mmu_pause();
	return r == GMEM_MAP_RETRY ? -EAGAIN : 0;
}

int gmem_mmu_pre_fault(struct gmem_vcpu *vcpu, uint64_t gfn, enum gmem_want want, struct gmem_hva *hva)
{
	struct gmem_found f = { .in_use = hva };
	int err = fault(vcpu, &f, gfn, GMEM_ACCESS_READ, want);

	if (err == -ENOENT)
		return gmem_err(err, "guest frame 0x%llx: no slot", (unsigned long long)gfn);
	if (err == -EBADF || err == -EREMOTE || err == -EREMOTEIO)
		return gmem_err(-EFAULT, "guest frame 0x%llx: %s", (unsigned long long)gfn,
				err == -EBADF	? "its file is closed" :
				err == -EREMOTE ? "the page is on the other side" :
						  "its bit in the userfault bitmap is set");
	/* The guest has been given the page; to accept it is its own matter. */
	if (err == -EACCES)
		return 0;
	if (err == -EHWPOISON || err == -EINTR)
		return gmem_err_sys(err, "guest frame 0x%llx", (unsigned long long)gfn);
	return err;
}
