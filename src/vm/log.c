/* SPDX-License-Identifier: MIT */
/*
 * Which pages of a slot guests wrote to, or touched.
 *
 * To clear a page: its bit is taken first, then its translations go, and with the log of touches what the gate maps. An
 * access in between is over when that returns; one that comes after it faults, and sets the bit again. What guests on
 * KVM write to a slot is in KVM's own log, what they touch in the page tables of the gate: both are added to ours
 * before that is looked at.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/lockcheck.h"
#include "base/range.h"
#include "file/gate.h"
#include "mmu/log.h"
#include "vm/vm.h"

#define BOTH (GMEM_SIDE_SHARED | GMEM_SIDE_PRIVATE)
/* Each is an invalidation, which waits for every vCPU; in one that goes over all of them, more faults again. */
#define MAX_RUNS 32u

/* ---- which are kept */

static void zap(struct gmem_slot *slot, uint64_t page, uint64_t npages)
{
	/* The caller's memory is not mapped. */
	if (gmem_slot_has_file(slot))
		gmem_mmu_zap(&slot->vm->mmu, slot->gfn + page, npages, BOTH | GMEM_SIDE_KEEP);
}

/* Guests on KVM. Neither, or both. */
static int change_kvm(struct gmem_slot *slot, const struct gmem_log *log, uint32_t logs, uint32_t had)
{
	int err = (logs ^ had) & GMEM_LOG_DIRTY ? gmem_kvm_slot_log(slot, logs & GMEM_LOG_DIRTY) : 0;

	if (err || !((logs ^ had) & GMEM_LOG_ACCESSED))
		return err;
	err = gmem_kvm_slot_keep_touched(slot, gmem_log_bits(log, GMEM_LOG_ACCESSED));
	if (err && ((logs ^ had) & GMEM_LOG_DIRTY))
		(void)gmem_kvm_slot_log(slot, had & GMEM_LOG_DIRTY);
	return err;
}

int gmem_vm_change_logs(struct gmem_slot *slot, uint32_t logs)
{
	struct gmem_mmu *mmu = &slot->vm->mmu;
	struct gmem_log *old = atomic_load(&slot->log), *new = NULL;
	uint32_t had = old ? old->logs : 0;
	int err;

	if (logs == had)
		return 0;
	if (logs) {
		new = gmem_log_new(old, logs, slot->npages);
		if (!new)
			return gmem_err_sys(-ENOMEM, "slot %u: a log of %llu pages", slot->id,
					    (unsigned long long)slot->npages);
	}
	err = change_kvm(slot, new, logs, had);
	if (err) {
		gmem_log_free(new, old);
		return err;
	}
	atomic_store(&slot->log, new);
	/* What is mapped is in no new log yet; of what was kept, large leaves may be had again. */
	zap(slot, 0, slot->npages);
	/* A vCPU of KVM's, which maps in no section, has been waited for by the zap. */
	gmem_mmu_wait_readers(mmu);
	gmem_hva_drain(mmu, slot);
	gmem_log_free(old, new);
	return 0;
}

/* 0: the slot, with slots_lock held. */
static int lock(struct gmem_vm *vm, const char *who, uint32_t id, struct gmem_slot **ret)
{
	int err = 0;

	if (vm->pid != getpid())
		return gmem_err(-EIO, "%s: this VM is a copy that came with fork(2)", who);
	gmem_vm_lock_slots(vm);
	*ret = gmem_vm_slot_by_id(vm, id);
	if (gmem_mmu_dead(&vm->mmu))
		err = gmem_err(-EIO, "%s: this VM is dead", who);
	else if (!*ret)
		err = gmem_err(-EINVAL, "%s: slot %u: there is none", who, id);
	if (err)
		gmem_vm_unlock_slots(vm);
	return err;
}

static int check_kvm(const struct gmem_slot *slot, uint32_t logs)
{
	if (slot->gate && (logs & GMEM_LOG_ACCESSED) && slot->gate->file->page_size > GMEM_PAGE_SIZE)
		return gmem_err(
			-EOPNOTSUPP,
			"gmem_vm_set_log: slot %u: of huge pages, what guests on KVM touch is not seen by 4 KiB",
			slot->id);
	if (slot->vm->kvm < 0 || !logs)
		return 0;
	if (!slot->gate && gmem_slot_has_file(slot))
		return gmem_err(-EOPNOTSUPP, "gmem_vm_set_log: slot %u: KVM keeps no logs of a guest_memfd", slot->id);
	if (!slot->gate && (logs & GMEM_LOG_ACCESSED))
		return gmem_err(-EOPNOTSUPP,
				"gmem_vm_set_log: slot %u: what guests on KVM touch of the caller's memory is not seen",
				slot->id);
	if ((logs & GMEM_LOG_DIRTY) && gmem_kvm_has_dirty_ring(slot->vm))
		return gmem_err(-EOPNOTSUPP, "gmem_vm_set_log: slot %u: KVM's VM has a dirty ring, and no logs",
				slot->id);
	return 0;
}

int gmem_vm_set_log(struct gmem_vm *vm, uint32_t id, uint32_t logs)
{
	struct gmem_slot *slot = NULL;
	int err;

	if (logs & ~GMEM_LOG_ALL)
		return gmem_err(-EINVAL, "gmem_vm_set_log: slot %u: logs 0x%x: unknown", id, logs);
	err = lock(vm, "gmem_vm_set_log", id, &slot);
	if (err)
		return err;
	err = check_kvm(slot, logs);
	if (!err)
		err = gmem_vm_change_logs(slot, logs);
	if (!err && !gmem_slot_has_file(slot)) {
		uint32_t flags = atomic_load(&slot->flags) & ~GMEM_SLOT_LOG_DIRTY;

		atomic_store(&slot->flags, flags | (logs & GMEM_LOG_DIRTY ? GMEM_SLOT_LOG_DIRTY : 0));
	}
	gmem_vm_unlock_slots(vm);
	return err ? gmem_err_prefix(err, "gmem_vm_set_log") : 0;
}

/* ---- what is in them */

/* Pages of a slot, as a bitmap of our own: the caller's may be lazily served, and is not touched under a lock. */
struct pages {
	uint64_t first, n;
	uint64_t *bits;
};

static uint64_t mask_of(const struct pages *p, uint64_t word)
{
	return p->n - word * 64 < 64 ? (1ull << (p->n - word * 64)) - 1 : ~0ull;
}

/* The first page of `p` from there on that is set, or is not; `n`: no such. */
static uint64_t next(const struct pages *p, uint64_t at, bool set)
{
	while (at < p->n) {
		uint64_t word = (set ? p->bits[at / 64] : ~p->bits[at / 64]) >> at % 64;

		if (word)
			return gmem_min_u64(at + (uint64_t)__builtin_ctzll(word), p->n);
		at = (at | 63) + 1;
	}
	return p->n;
}

static uint64_t gate_off(const struct gmem_slot *slot, uint64_t page)
{
	return slot->off + (page << GMEM_PAGE_SHIFT);
}

/* An access to one of them is over, or sets its bit again. In the gate no other goes: its touch would be forgotten. */
static int retire(struct gmem_slot *slot, uint32_t log, const struct pages *p)
{
	bool in_gate = slot->gate && log == GMEM_LOG_ACCESSED;
	uint64_t at = next(p, 0, true), to, last = 0;
	uint32_t runs = 0;
	int err = 0;

	for (uint64_t i = at; i < p->n && runs <= MAX_RUNS; i = next(p, last, true), runs++)
		last = next(p, i, false);
	if (runs > MAX_RUNS)
		zap(slot, p->first + at, p->n - at);
	for (; at < p->n && !err && (runs <= MAX_RUNS || in_gate); at = next(p, to, true)) {
		to = next(p, at, false);
		if (runs <= MAX_RUNS)
			zap(slot, p->first + at, to - at);
		if (in_gate)
			err = gmem_gate_clear_touched(slot->gate, gate_off(slot, p->first + at),
						      (to - at) << GMEM_PAGE_SHIFT);
	}
	return err;
}

static void note(_Atomic uint64_t *bits, const struct pages *p)
{
	for (uint64_t i = 0; i < p->n; i++)
		if (p->bits[i / 64] >> i % 64 & 1)
			atomic_fetch_or(&bits[(p->first + i) / 64], 1ull << (p->first + i) % 64);
}

/* Bits of KVM's log become ours: KVM forgets them. */
static int fetch(struct gmem_slot *slot, _Atomic uint64_t *bits)
{
	uint64_t nwords = gmem_log_words(slot->npages);
	uint64_t *kvm;
	int err;

	if (!slot->in_kvm)
		return 0;
	kvm = calloc(nwords, sizeof(*kvm));
	if (!kvm)
		return gmem_err_sys(-ENOMEM, "slot %u: its log", slot->id);
	err = gmem_kvm_slot_get_log(slot, kvm);
	/* Also when it failed in the middle. */
	for (uint64_t i = 0; i < nwords; i++)
		if (kvm[i])
			atomic_fetch_or(&bits[i], kvm[i]);
	free(kvm);
	return err;
}

/* `p->bits`: in, which of the pages are wanted; out, which of those are set. */
static int look(struct gmem_slot *slot, uint32_t log, struct pages *p, bool clear)
{
	_Atomic uint64_t *bits = gmem_log_bits(atomic_load(&slot->log), log);
	int err = 0;

	if (!bits)
		return gmem_err(-EINVAL, "slot %u: it keeps no such log", slot->id);
	if (!gmem_range_inside(p->first, p->n, slot->npages))
		return gmem_err(-EINVAL, "slot %u: page 0x%llx, 0x%llx pages: past its end", slot->id,
				(unsigned long long)p->first, (unsigned long long)p->n);
	if (log == GMEM_LOG_DIRTY)
		err = fetch(slot, bits);
	else if (slot->gate)
		err = gmem_gate_note_touched(slot->gate, gate_off(slot, p->first), p->n << GMEM_PAGE_SHIFT);
	if (err)
		return err;
	for (uint64_t i = 0; i * 64 < p->n; i++)
		p->bits[i] = gmem_log_take(bits, p->first + i * 64, p->bits[i] & mask_of(p, i), clear);
	if (clear)
		err = retire(slot, log, p);
	/* Some of them may be mapped still. */
	if (err)
		note(bits, p);
	return err;
}

static int get(struct gmem_vm *vm, const char *who, uint32_t id, uint32_t log, struct pages *p, bool clear)
{
	struct gmem_slot *slot = NULL;
	int err;

	if (log != GMEM_LOG_DIRTY && log != GMEM_LOG_ACCESSED)
		return gmem_err(-EINVAL, "%s: slot %u: log 0x%x: none, or not one", who, id, log);
	err = lock(vm, who, id, &slot);
	if (err)
		return err;
	err = look(slot, log, p, clear);
	gmem_vm_unlock_slots(vm);
	return err ? gmem_err_prefix(err, "%s", who) : 0;
}

/* 1: there is nothing to do. Room for bits of that many pages, whatever slot they are of. */
static int check(const char *who, uint64_t npages, const uint64_t *bitmap, struct pages *p)
{
	if (npages > UINT32_MAX || (npages && !bitmap))
		return gmem_err(-EINVAL, "%s: 0x%llx pages%s", who, (unsigned long long)npages,
				bitmap ? ": no slot has so many" : ", and no bitmap");
	p->bits = calloc(gmem_log_words(npages) + 1, sizeof(*p->bits));
	return p->bits ? 0 : gmem_err_sys(-ENOMEM, "%s", who);
}

int64_t gmem_vm_get_log(struct gmem_vm *vm, uint32_t slot, uint32_t log, uint64_t first, uint64_t npages,
			uint64_t *bitmap, uint32_t flags)
{
	struct pages p = { .first = first, .n = npages };
	int64_t n = 0;
	int err;

	if (flags & ~GMEM_LOG_CLEAR)
		return gmem_err(-EINVAL, "gmem_vm_get_log: flags 0x%x: unknown", flags);
	err = check("gmem_vm_get_log", npages, bitmap, &p);
	if (err)
		return err;
	memset(p.bits, 0xff, gmem_log_words(npages) * sizeof(*p.bits));
	err = get(vm, "gmem_vm_get_log", slot, log, &p, flags & GMEM_LOG_CLEAR);
	if (!err && npages) {
		gmem_might_fault();
		memcpy(bitmap, p.bits, gmem_log_words(npages) * sizeof(*p.bits));
		for (uint64_t i = 0; i < gmem_log_words(npages); i++)
			n += __builtin_popcountll(p.bits[i]);
	}
	free(p.bits);
	return err ? err : n;
}

int gmem_vm_clear_log(struct gmem_vm *vm, uint32_t slot, uint32_t log, uint64_t first, uint64_t npages,
		      const uint64_t *bitmap)
{
	struct pages p = { .first = first, .n = npages };
	int err = check("gmem_vm_clear_log", npages, bitmap, &p);

	if (err)
		return err;
	if (npages) {
		gmem_might_fault();
		memcpy(p.bits, bitmap, gmem_log_words(npages) * sizeof(*p.bits));
	}
	err = get(vm, "gmem_vm_clear_log", slot, log, &p, true);
	free(p.bits);
	return err;
}
