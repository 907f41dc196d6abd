/* SPDX-License-Identifier: MIT */
/*
 * Guest frame -> page frame: second-stage tables, faults, mapping a private frame, zaps.
 *
 * Enters: guest frame numbers, from vCPUs; invalidations, from files by way of bindings. Leaves: translations, which an
 * accessor follows inside an epoch. A gmem_mmu is part of its VM. Locks: the caller may hold slots_lock and a file's
 * invalidate lock; `lock` (read: look at tables, or map for a vCPU that follows others; write: clear entries, or map a
 * private frame) is below both. A zap returns when no access can still use what it took away.
 *
 * Faults take no lock to map, and write to nothing that two vCPUs share but the tables: each maps in an epoch of its
 * own kind, `maps`. An invalidation says that it runs, waits for that epoch, and only then takes anything away. So in a
 * mapping section (gmem_mmu_begin_map()), which there is only while no invalidation runs, none takes anything away, and
 * what the file says of a page meanwhile stays true until the section ends.
 *
 * A fault whose page is not in place waits for it outside, where an invalidation may come in between: it reads the
 * sequence number first, and maps only if no invalidation runs or has ended since.
 */
#ifndef GMEM_MMU_MMU_H
#define GMEM_MMU_MMU_H

#include "base/epoch.h"
#include "base/rwlock.h"
#include "mmu/external.h"
#include "mmu/slot.h"
#include "mmu/table.h"

/* What is counted: see gmem_vm_stats. */
enum gmem_mmu_counter { GMEM_MMU_FAULTS, GMEM_MMU_LOOKUPS, GMEM_MMU_RETRIES, GMEM_MMU_PRIVATE_MAPS, GMEM_MMU_COUNTERS };

struct gmem_mmu {
	struct gmem_rwlock lock;
	struct gmem_table_pool pool;
	gmem_pte *_Atomic root; /* NULL before the first vCPU needs it; then constant */
	_Atomic uint64_t invalidate_seq; /* invalidations that have ended */
	_Atomic uint32_t invalidating; /* that are running */
	struct gmem_epoch epoch; /* of accesses: who follows translations */
	struct gmem_epoch maps; /* of faults: who looks at slots, and maps */
	struct gmem_slots *_Atomic slots; /* changed under the VM's slots_lock */
	_Atomic uint64_t slots_seq; /* tables of slots that were published; changed before `slots` and after */
	_Atomic bool dead; /* the VM is of no more use */
	_Atomic bool nx_huge_pages; /* a large leaf is never executable; read at each fault, never remembered */
	bool no_tables; /* somebody else translates for this VM */
	struct gmem_mmu_external *_Atomic external; /* set once, while no fault can map; NULL: none */
	pthread_mutex_t clearing; /* external pages are taken away by one thread at a time; taken before `lock` */
	pthread_mutex_t m; /* a leaf; guards the list of vCPUs and `gone` */
	struct gmem_vcpu *vcpus;
	uint64_t gone[GMEM_MMU_COUNTERS]; /* what vCPUs have counted that are no more */
};

struct gmem_mapping;

/* What came of mapping a page. */
enum gmem_map_result {
	GMEM_MAP_FIXED, /* mapped now */
	GMEM_MAP_SPURIOUS, /* was mapped like this already */
	GMEM_MAP_RETRY, /* another thread was at the same entry */
	GMEM_MAP_CONFLICT, /* something else is mapped there */
	GMEM_MAP_FAILED, /* it cannot be: vcpu->map_err, with text */
};

/* A vCPU as the MMU sees it. One thread at a time, but for `cancel` and looking at the counts. */
struct gmem_vcpu {
	struct gmem_mmu *mmu;
	struct gmem_epoch_reader reader; /* of mmu->epoch */
	struct gmem_epoch_reader mapper; /* of mmu->maps */
	struct gmem_table_cache cache;
	gmem_pte *root; /* NULL until the first gmem_mmu_reload() */
	/*
	 * How a page is mapped for a vCPU that follows other tables than these; NULL: gmem_mmu_map(). Called, like
	 * that, while no invalidation runs, but under `lock`, shared, and in no section. `map_err` is why it answered
	 * GMEM_MAP_FAILED.
	 */
	enum gmem_map_result (*map)(struct gmem_vcpu *vcpu, const struct gmem_mapping *m);
	int map_err;
	struct gmem_slot *last_slot; /* of the last fault; good as long as mmu->slots_seq is last_slots_seq */
	uint64_t last_slots_seq;
	_Atomic uint64_t counts[GMEM_MMU_COUNTERS]; /* its own, so that counting is no cache line of another's */
	_Atomic bool cancel;
	struct gmem_vcpu *next; /* of mmu->vcpus */
};

#define GMEM_ACCESS_READ 0u
#define GMEM_ACCESS_WRITE 1u
#define GMEM_ACCESS_EXEC 2u

/* What a guest's access says of the page it wants. */
enum gmem_want {
	GMEM_WANT_ANY, /* nothing: the page's side decides */
	GMEM_WANT_SHARED,
	GMEM_WANT_PRIVATE,
};

void gmem_mmu_init(struct gmem_mmu *mmu);
void gmem_mmu_destroy(struct gmem_mmu *mmu); /* no vCPU and no slot is left */
void gmem_mmu_add_vcpu(struct gmem_mmu *mmu, struct gmem_vcpu *vcpu);
void gmem_mmu_del_vcpu(struct gmem_vcpu *vcpu);

/*
 * From now on private pages are mapped as external tables agree; those that are mapped are forgotten. The tables belong
 * to the MMU then, and end with it. -EEXIST: it has some. slots_lock held.
 */
int gmem_mmu_set_external(struct gmem_mmu *mmu, struct gmem_mmu_external *external);

/* Nobody else writes the vCPU's counts. */
static inline void gmem_mmu_count(struct gmem_vcpu *vcpu, enum gmem_mmu_counter c)
{
	atomic_store_explicit(&vcpu->counts[c], atomic_load_explicit(&vcpu->counts[c], memory_order_relaxed) + 1,
			      memory_order_relaxed);
}

/* Bytes of tables, those in the caches of vCPUs included. */
uint64_t gmem_mmu_table_bytes(struct gmem_mmu *mmu);

/* Has root tables from then on. -ENOMEM. */
int gmem_mmu_reload(struct gmem_vcpu *vcpu);
/* True once for each gmem_vcpu_cancel(). */
bool gmem_vcpu_cancelled(struct gmem_vcpu *vcpu);

/* ---- access.c: what other rooms use; all else is the MMU's own, and a test of the tree's style says so */

/*
 * The page of a guest frame, if a translation allows such an access: from then on the caller is in an epoch, in which
 * it may use the page and must not block, until gmem_mmu_leave(). NULL: there is none, and no epoch either.
 */
char *gmem_mmu_enter(struct gmem_vcpu *vcpu, uint64_t gfn, uint32_t access, enum gmem_want want);
void gmem_mmu_leave(struct gmem_vcpu *vcpu);

/* A slot has the frame, with or without a file. */
bool gmem_mmu_has_slot(struct gmem_vcpu *vcpu, uint64_t gfn);
/* So it has, and one with a gate. */
bool gmem_mmu_has_gate(struct gmem_vcpu *vcpu, uint64_t gfn);
/* The guest-physical address of one in a slot's gate; false: it is in none. */
bool gmem_mmu_behind_gate(struct gmem_vcpu *vcpu, const void *hva, uint64_t *ret_gpa);

/* What is at a guest frame. */
struct gmem_mmu_page {
	struct gmem_file *file;
	uint64_t off;
	bool private;
	bool userfault; /* the slot's bitmap says that it is the caller's to fill */
};

/* As of now; the file is referenced. -ENOENT: no slot; -EBADF: no file, or a closed one. */
int gmem_mmu_page_of(struct gmem_vcpu *vcpu, uint64_t gfn, struct gmem_mmu_page *ret);
/* It is that page still; then its other fields are as of now. Any lock. */
bool gmem_mmu_is_still(struct gmem_vcpu *vcpu, uint64_t gfn, struct gmem_mmu_page *page);

/* The frame has a translation, or is a private page that the guest was given. */
bool gmem_mmu_mapped(struct gmem_mmu *mmu, uint64_t gfn);

/* Nobody can see the table of slots any more that is returned. slots_lock held. */
struct gmem_slots *gmem_mmu_publish_slots(struct gmem_mmu *mmu, struct gmem_slots *new);
/* Returns when nobody is in an epoch that began before. */
void gmem_mmu_wait_readers(struct gmem_mmu *mmu);

/* What a vCPU found in its machine's memory. */
struct gmem_mmu_seen {
	uint64_t slots_seq, invalidate_seq;
};

static inline struct gmem_mmu_seen gmem_mmu_see(struct gmem_mmu *mmu)
{
	return (struct gmem_mmu_seen){ atomic_load(&mmu->slots_seq), atomic_load(&mmu->invalidate_seq) };
}

/* A slot may have come or gone since. */
static inline bool gmem_mmu_slots_changed(struct gmem_mmu *mmu, const struct gmem_mmu_seen *seen)
{
	return atomic_load(&mmu->slots_seq) != seen->slots_seq;
}

/* A page may have been taken away since. The count first: see gmem_mmu_invalidate_end(). */
static inline bool gmem_mmu_pages_changed(struct gmem_mmu *mmu, const struct gmem_mmu_seen *seen)
{
	return atomic_load(&mmu->invalidating) || atomic_load(&mmu->invalidate_seq) != seen->invalidate_seq;
}

/* slots_lock held, or in a mapping section. */
static inline struct gmem_slots *gmem_mmu_slots(struct gmem_mmu *mmu)
{
	return atomic_load(&mmu->slots);
}

static inline void gmem_mmu_kill(struct gmem_mmu *mmu)
{
	atomic_store(&mmu->dead, true);
}

static inline bool gmem_mmu_dead(const struct gmem_mmu *mmu)
{
	return atomic_load(&mmu->dead);
}

/* Fills in what the MMU counts. */
void gmem_mmu_stats(struct gmem_mmu *mmu, struct gmem_vm_stats *stats);

/* ---- walk */

/*
 * The entry of a guest frame, as a leaf of 4 KiB; 0: none. It may be one that is not PRESENT. Inside an epoch, where
 * the frame it names may be used; after gmem_mmu_reload().
 */
static inline uint64_t gmem_mmu_entry(const struct gmem_vcpu *vcpu, uint64_t gfn)
{
	const gmem_pte *table = vcpu->root;

	for (int level = GMEM_PT_LEVELS;; level--) {
		uint64_t e = atomic_load(&table[gmem_pt_index(gfn, level)]);

		if (e & GMEM_PTE_LEAF)
			return e + ((gfn & (gmem_level_pages(level) - 1)) << GMEM_PAGE_SHIFT);
		if (!(e & GMEM_PTE_PRESENT))
			return 0;
		table = gmem_pte_table(e);
	}
}

/* So too, of what may be followed. */
static inline uint64_t gmem_mmu_walk(const struct gmem_vcpu *vcpu, uint64_t gfn)
{
	uint64_t e = gmem_mmu_entry(vcpu, gfn);

	return e & GMEM_PTE_PRESENT ? e : 0;
}

/* ---- map.c: the core that the fault and the private entry share */

struct gmem_mapping {
	uint64_t gfn, pfn; /* of the 4 KiB page that is wanted */
	struct gmem_slot *slot; /* inside a section alone */
	struct gmem_gate *gate; /* of its slot */
	uint64_t off; /* in the file */
	bool alone; /* of the slot's other pages nothing follows from it */
	bool hva; /* the page is the caller's memory, not the file's */
	uint32_t logs; /* that the slot keeps */
	uint32_t access;
	bool private;
	bool writable;
	bool nx_huge_pages;
	int level; /* the largest leaf that may be used; its frames are contiguous and aligned */
};

/* In a mapping section, or with the lock held, exclusive; caches topped up. */
enum gmem_map_result gmem_mmu_map(struct gmem_vcpu *vcpu, const struct gmem_mapping *m);

/*
 * In between, no slot, and no file of a slot, that is found goes away. Whatever locks are held: it never blocks, and
 * takes none.
 */
static inline void gmem_mmu_begin_look(struct gmem_vcpu *vcpu)
{
	gmem_epoch_enter(&vcpu->mmu->maps, &vcpu->mapper);
}

static inline void gmem_mmu_end_look(struct gmem_vcpu *vcpu)
{
	gmem_epoch_leave(&vcpu->mapper);
}

/*
 * So too; and there a leaf may be put in for what is found. False: an invalidation runs, and there is no section. To
 * the lock checker a section is the MMU lock: nothing is taken in it, and nothing taken away, which would wait for it.
 *
 * Sequentially consistent, as all of base/epoch.h: the vCPU tells that it is inside and then looks whether an
 * invalidation runs; the invalidation tells that it runs and then looks who is inside. One of the two sees the other.
 * What an invalidation that has ended changed is seen from here on, because its end is what was read.
 */
static inline bool gmem_mmu_begin_map(struct gmem_vcpu *vcpu)
{
	gmem_lockcheck_acquire(GMEM_LOCK_MMU, &vcpu->mmu->maps);
	gmem_epoch_enter(&vcpu->mmu->maps, &vcpu->mapper);
	if (!atomic_load(&vcpu->mmu->invalidating))
		return true;
	gmem_epoch_leave(&vcpu->mapper);
	gmem_lockcheck_release(GMEM_LOCK_MMU, &vcpu->mmu->maps);
	return false;
}

static inline void gmem_mmu_end_map(struct gmem_vcpu *vcpu)
{
	gmem_epoch_leave(&vcpu->mapper);
	gmem_lockcheck_release(GMEM_LOCK_MMU, &vcpu->mmu->maps);
}

/* ---- fault.c */

/* A page of the caller's memory, in use until gmem_hva_put(). */
struct gmem_hva {
	char *page;
	struct gmem_slot *slot; /* which is not deleted, moved or changed meanwhile */
	uint32_t phase;
};

/* Why a guest's access cannot be done, for the exit that tells of it. */
struct gmem_mmu_exit {
	bool memory_fault; /* else the error is no matter of the guest's */
	bool no_slot; /* nothing is there */
	bool private; /* the access was to private memory */
	bool userfault; /* a memory fault: the page is the caller's to fill */
	bool mmio; /* a write to a slot that is read-only; with -EFAULT, and instead of memory_fault */
};

/* The page is the caller's memory, which is not translated: *hva has it. */
#define GMEM_FAULT_HVA 1

/*
 * Maps the page of an access. 0: look again. GMEM_FAULT_HVA: see there. -EFAULT: no slot, no file, the page is on the
 * other side, or is the caller's to fill; -EHWPOISON; all of these with exit->memory_fault. -EPERM: a write to a page
 * whose writes are watched. -EINTR: cancelled. -EIO: the VM is dead, or the page's server is. -ENOMEM. No lock held;
 * may wait for a page.
 */
int gmem_mmu_fault(struct gmem_vcpu *vcpu, uint64_t gfn, uint32_t access, enum gmem_want want,
		   struct gmem_mmu_exit *exit, struct gmem_hva *hva);

/*
 * A vCPU that follows other tables is let to a page of the caller's memory, which is in use. -EAGAIN: it is not meant
 * any more, or an invalidation runs. Else as its `map` failed. No lock held.
 */
int gmem_mmu_map_hva(struct gmem_vcpu *vcpu, uint64_t gfn, const struct gmem_hva *hva);

/* For an invalidation to end, for somebody else at a page, or for another process's server to bring one in. */
void gmem_mmu_pause(void);

/* As an access that reads and touches nothing: -ENOENT without a slot, else as gmem_mmu_fault(), but for the exit. */
int gmem_mmu_pre_fault(struct gmem_vcpu *vcpu, uint64_t gfn, enum gmem_want want, struct gmem_hva *hva);

/* ---- hva.c: memory of the caller's */

/*
 * The page of a guest frame, if it can be accessed so. 0, -EREMOTEIO (the caller's to fill), -EROFS, -EPERM (watched).
 * In a section, in which the slot was found.
 */
int gmem_hva_get(struct gmem_slot *slot, uint64_t gfn, uint32_t access, struct gmem_hva *ret);
void gmem_hva_put(struct gmem_hva *hva);
/*
 * Returns when no access through the slot that found it as it was goes on. Waits as long as the slowest of them: as
 * long as its memory is not served. slots_lock held.
 */
void gmem_hva_drain(struct gmem_mmu *mmu, struct gmem_slot *slot);

/* ---- zap.c */

/*
 * Translations of those sides in [gfn, gfn + npages) go, and no fault makes one before the matching end. Private pages
 * are taken from the guest, but for GMEM_SIDE_KEEP, as far as external tables say whose they are. No mmu lock held, and
 * in no section.
 */
void gmem_mmu_invalidate_begin(struct gmem_mmu *mmu, uint64_t gfn, uint64_t npages, uint32_t sides);
void gmem_mmu_invalidate_end(struct gmem_mmu *mmu);
/* Both in one. */
void gmem_mmu_zap(struct gmem_mmu *mmu, uint64_t gfn, uint64_t npages, uint32_t sides);

/* ---- external.c: what external tables have to agree to. Without any, nothing */

/* A private leaf of 4 KiB goes into an entry that has none PRESENT, if they agree. As gmem_mmu_map(). */
enum gmem_map_result gmem_external_set_page(struct gmem_vcpu *vcpu, const struct gmem_mapping *m, gmem_pte *pte,
					    uint64_t leaf);
/* They have a table too beside the one of `level` that *e is the entry of; *e is what is there then. As above. */
enum gmem_map_result gmem_external_add_table(struct gmem_vcpu *vcpu, uint64_t gfn, int level, gmem_pte *pte,
					     uint64_t *e);
/* They are to be asked about private pages. */
static inline bool gmem_mmu_asks(const struct gmem_mmu *mmu, bool private)
{
	return private && atomic_load(&mmu->external);
}

/* Private pages stop being such. Nothing of them is mapped, and no fault maps anything. */
void gmem_mmu_release(struct gmem_mmu *mmu, uint64_t gfn, uint64_t pfn, uint64_t npages);
/*
 * A page that is in place may be given other bytes: the tables do not say that it is the guest's; if they say nothing,
 * and it is to be untouched, it has no translation. Else -EEXIST, with text. Its file's lock is held, exclusive.
 */
int gmem_mmu_may_populate(struct gmem_mmu *mmu, uint64_t gfn, uint64_t pfn, bool untouched);
/*
 * The guest accepts a private page that it was given, or takes that back: 0; 1: nothing was to be changed. -ENOENT: it
 * was not given any, or not yet: see gmem_mmu_fault(). -EREMOTE: it is shared. -EOPNOTSUPP: guests are not asked. Else
 * what the tables answer. No lock held.
 */
int gmem_mmu_accept(struct gmem_vcpu *vcpu, uint64_t gfn, bool accept);

/* ---- track.c: pages whose writes are watched: mapped read-only, a write is refused */

/* -EINVAL: no slot. -ENOMEM. slots_lock held. */
int gmem_mmu_track_write(struct gmem_mmu *mmu, uint64_t gfn, bool on);

static inline bool gmem_slot_tracked(const struct gmem_slot *s, uint64_t gfn)
{
	const uint8_t *tracked = atomic_load(&s->tracked);

	return tracked && __atomic_load_n(&tracked[gfn - s->gfn], __ATOMIC_SEQ_CST);
}

#endif
