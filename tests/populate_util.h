/* SPDX-License-Identifier: MIT */
/* A machine whose memory is one file, and a function for populate that does as it is told. */
#ifndef GMEM_TESTS_POPULATE_UTIL_H
#define GMEM_TESTS_POPULATE_UTIL_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#include "file_util.h"
#include "vm/vm.h"

#define GFN 0x100ull /* of the slot's first page */
#define FIRST 2ull /* page of the file that it is */

struct rig {
	struct gmem_vm *vm;
	struct gmem_file *file; /* FIRST pages longer than the slot */
	struct gmem_vcpu *vcpu;
	uint64_t npages;
};

static inline void set_slot(struct gmem_vm *vm, uint32_t id, uint64_t gfn, uint64_t npages, struct gmem_file *file,
			    uint64_t off)
{
	struct gmem_memslot slot = {
		.size = sizeof(slot), .slot = id, .gpa = gfn * P, .len = npages * P, .file = file, .off = off
	};

	CHECK_OK(gmem_vm_set_slot(vm, &slot));
}

static inline void rig_up(struct rig *r, uint64_t npages, uint32_t file_flags)
{
	struct gmem_file_opts opts = { .size = sizeof(opts), .flags = file_flags };

	r->npages = npages;
	CHECK_OK(gmem_file_create((FIRST + npages) * P, &opts, &r->file));
	CHECK_OK(gmem_vm_create(NULL, &r->vm));
	CHECK_OK(gmem_vcpu_create(r->vm, NULL, &r->vcpu));
	set_slot(r->vm, 0, GFN, npages, r->file, FIRST * P);
}

static inline void rig_down(struct rig *r)
{
	gmem_vcpu_free(r->vcpu);
	gmem_vm_free(r->vm);
	gmem_file_free(r->file);
}

static inline void convert(struct rig *r, uint64_t page, uint64_t npages, bool private)
{
	CHECK_OK(gmem_file_set_attributes(r->file, (FIRST + page) * P, npages * P, private ? GMEM_ATTRIBUTE_PRIVATE : 0,
					  NULL));
}

static inline uint32_t word_of(const struct rig *r, uint64_t page)
{
	return gmem_state_word(&r->file->state, FIRST + page);
}

/* Bytes of page `page` of memory number `id`; none is zero. */
static inline void page_bytes(unsigned int id, uint64_t page, void *buf)
{
	uint64_t *w = buf;

	for (uint64_t i = 0; i < P / 8; i++)
		w[i] = ((uint64_t)(id + 1) << 48 | page << 16 | i) + 1;
}

/* `npages` such pages, to be a source. */
static inline char *source_pages(unsigned int id, uint64_t npages)
{
	char *p = mmap(NULL, npages * P, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(p != MAP_FAILED);
	for (uint64_t i = 0; i < npages; i++)
		page_bytes(id, i, p + i * P);
	return p;
}

/* What the guest reads there is page `from` of memory `id`; id < 0: zero. */
static inline void check_guest(const struct rig *r, uint64_t page, int id, uint64_t from)
{
	static _Thread_local char got[P], want[P];

	memset(want, 0, P);
	if (id >= 0)
		page_bytes((unsigned int)id, from, want);
	CHECK_OK(gmem_vcpu_load(r->vcpu, (GFN + page) * P, got, P));
	if (memcmp(got, want, P))
		FAIL("page %llu is not page %llu of %d: it begins with %llx", (unsigned long long)page,
		     (unsigned long long)from, id, *(unsigned long long *)got);
}

/* Is there a translation? */
static inline bool mapped(struct rig *r, uint64_t page)
{
	uint64_t e;

	gmem_epoch_enter(&r->vm->mmu.epoch, &r->vcpu->reader);
	e = r->vcpu->root ? gmem_mmu_walk(r->vcpu, GFN + page) : 0;
	gmem_epoch_leave(&r->vcpu->reader);
	return e;
}

static inline uint64_t resident(const struct gmem_file *file)
{
	return query(file).resident / P;
}

/* No lock is left: takers would hang, or stop at the lock checker. */
static inline void check_no_lock(struct rig *r)
{
	for (uint64_t i = 0; i < r->npages; i++)
		CHECK(!(word_of(r, i) & GMEM_WORD_LOCKED));
	gmem_vm_lock_slots(r->vm);
	gmem_rwlock_lock(&r->file->invalidate_lock);
	gmem_rwlock_unlock(&r->file->invalidate_lock);
	gmem_vm_unlock_slots(r->vm);
}

/* ---- the function */

struct plan {
	struct rig *r;
	const char *src; /* what each page must be, NULL: not checked */
	bool in_place;
	int fail; /* what it returns ... */
	uint64_t fail_at; /* ... for this page (of the slot) */
	bool map; /* maps the frame first */
	bool scribble; /* writes into the frame and into the source's copy, if it fails */
	uint64_t cancel_at; /* cancels the VM in this page; 0: never */
	long sleep_ns; /* a page */
	_Atomic uint64_t calls;
	_Atomic int inside;
};

static inline int planned(struct gmem_vm *vm, uint64_t gfn, uint64_t pfn, void *src, void *opaque)
{
	struct plan *plan = opaque;
	uint64_t page = gfn - GFN;
	char *frame = gmem_pfn_addr(pfn);
	int err;

	if (atomic_fetch_add(&plan->inside, 1))
		FAIL("two at once");
	atomic_fetch_add(&plan->calls, 1);
	CHECK(vm == plan->r->vm);
	CHECK(page < plan->r->npages);
	/* The frame is the page's own, locked by now, and not up to date if it was absent. */
	CHECK(!gmem_rwlock_trylock_shared(&plan->r->file->invalidate_lock));
	if (gmem_word_absent(word_of(plan->r, page)))
		CHECK(word_of(plan->r, page) & GMEM_WORD_LOCKED);
	if (plan->src) {
		CHECK(src && src != plan->src + page * P);
		CHECK_MEM(src, plan->src + page * P, P);
		CHECK_MEM(frame, plan->src + page * P, P);
	}
	CHECK(!plan->in_place || !src);
	if (plan->sleep_ns)
		nanosleep(&(struct timespec){ .tv_nsec = plan->sleep_ns }, NULL);
	if (plan->map) {
		err = gmem_mmu_map_private_pfn(plan->r->vcpu, gfn, pfn);
		if (err)
			FAIL("mapping page %llu: %s", (unsigned long long)page, gmem_last_error());
	}
	if (plan->cancel_at && plan->cancel_at == page)
		gmem_vm_cancel(vm);
	atomic_fetch_sub(&plan->inside, 1);
	if (!plan->fail || page != plan->fail_at)
		return 0;
	if (plan->scribble) {
		memset(frame, 0xee, P);
		if (src)
			memset(src, 0xcc, P);
	}
	return gmem_set_error(plan->fail, "test function: page %llu", (unsigned long long)page);
}

static inline int64_t run(struct plan *plan, uint64_t page, const void *src, int64_t npages, uint32_t flags)
{
	return gmem_populate(plan->r->vm, GFN + page, src, npages, flags, planned, plan);
}

#endif
