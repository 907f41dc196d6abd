/* SPDX-License-Identifier: MIT */
/* The table is kept by regions of 2 MiB, the largest page there is; what was never asked for has none. */
#include "launch/snp/rmp.h"

#include <errno.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/lockcheck.h"

struct gmem_rmp_region {
	struct gmem_rmp_region *next;
	uint64_t first; /* frame */
	uint32_t small; /* entries that are assigned, and of 4 KiB */
	struct gmem_rmp_entry entries[GMEM_RMP_LARGE_PAGES];
	uint64_t owners[GMEM_RMP_LARGE_PAGES];
};

static void lock(struct gmem_rmp *rmp)
{
	gmem_lockcheck_acquire(GMEM_LOCK_VENDOR, &rmp->m);
	pthread_mutex_lock(&rmp->m);
}

static void unlock(struct gmem_rmp *rmp)
{
	pthread_mutex_unlock(&rmp->m);
	gmem_lockcheck_release(GMEM_LOCK_VENDOR, &rmp->m);
}

void gmem_rmp_init(struct gmem_rmp *rmp)
{
	*rmp = (struct gmem_rmp){ .nbuckets = 0 };
	pthread_mutex_init(&rmp->m, NULL);
}

void gmem_rmp_destroy(struct gmem_rmp *rmp)
{
	for (uint32_t i = 0; i < rmp->nbuckets; i++) {
		struct gmem_rmp_region *r = rmp->buckets[i];

		while (r) {
			struct gmem_rmp_region *next = r->next;

			free(r);
			r = next;
		}
	}
	free(rmp->buckets);
	pthread_mutex_destroy(&rmp->m);
}

/* ---- regions. The lock is held */

static uint32_t index_of(uint64_t pfn)
{
	return (uint32_t)(pfn % GMEM_RMP_LARGE_PAGES);
}

/* Fibonacci hashing; `n` is a power of two, at least 2. */
static uint32_t bucket_of(uint64_t first, uint32_t n)
{
	return (uint32_t)(((first / GMEM_RMP_LARGE_PAGES) * 0x9e3779b97f4a7c15ull) >> (64 - __builtin_ctz(n)));
}

static struct gmem_rmp_region *find(const struct gmem_rmp *rmp, uint64_t pfn)
{
	uint64_t first = pfn - index_of(pfn);
	struct gmem_rmp_region *r = rmp->nbuckets ? rmp->buckets[bucket_of(first, rmp->nbuckets)] : NULL;

	while (r && r->first != first)
		r = r->next;
	return r;
}

static void put(struct gmem_rmp_region **buckets, uint32_t n, struct gmem_rmp_region *r)
{
	struct gmem_rmp_region **at = &buckets[bucket_of(r->first, n)];

	r->next = *at;
	*at = r;
}

static bool grow(struct gmem_rmp *rmp)
{
	uint32_t n = rmp->nbuckets ? rmp->nbuckets * 2 : 64;
	struct gmem_rmp_region **buckets = calloc(n, sizeof(struct gmem_rmp_region *));

	if (!buckets)
		return false;
	for (uint32_t i = 0; i < rmp->nbuckets; i++) {
		struct gmem_rmp_region *r = rmp->buckets[i];

		while (r) {
			struct gmem_rmp_region *next = r->next;

			put(buckets, n, r);
			r = next;
		}
	}
	free(rmp->buckets);
	rmp->buckets = buckets;
	rmp->nbuckets = n;
	return true;
}

/* NULL: no memory. */
static struct gmem_rmp_region *get(struct gmem_rmp *rmp, uint64_t pfn)
{
	struct gmem_rmp_region *r = find(rmp, pfn);

	if (r)
		return r;
	if (rmp->nregions >= rmp->nbuckets && !grow(rmp))
		return NULL;
	r = calloc(1, sizeof(*r));
	if (!r)
		return NULL;
	r->first = pfn - index_of(pfn);
	put(rmp->buckets, rmp->nbuckets, r);
	rmp->nregions++;
	return r;
}

static int no_memory(void)
{
	return gmem_err_sys(-ENOMEM, "reverse map table");
}

static bool is_small(const struct gmem_rmp_entry *e)
{
	return e->assigned && !e->large;
}

static void set(struct gmem_rmp_region *r, uint32_t i, const struct gmem_rmp_entry *e)
{
	r->small += is_small(e);
	r->small -= is_small(&r->entries[i]);
	r->entries[i] = *e;
}

/* Index of the entry that counts for one of its pages. */
static uint32_t head_of(const struct gmem_rmp_region *r, uint32_t i)
{
	return r->entries[0].assigned && r->entries[0].large ? 0 : i;
}

static struct gmem_rmp_entry entry_of(const struct gmem_rmp *rmp, uint64_t pfn)
{
	const struct gmem_rmp_region *r = find(rmp, pfn);

	return r ? r->entries[head_of(r, index_of(pfn))] : (struct gmem_rmp_entry){ .assigned = 0 };
}

/* ---- entries */

enum gmem_rmp_state gmem_rmp_entry_state(const struct gmem_rmp_entry *e)
{
	if (!e->assigned) {
		if (e->validated || e->asid)
			return GMEM_RMP_INVALID;
		return e->immutable ? GMEM_RMP_HV_FIXED : GMEM_RMP_HYPERVISOR;
	}
	if (e->asid) {
		if (e->immutable)
			return e->validated ? GMEM_RMP_PRE_SWAP : GMEM_RMP_PRE_GUEST;
		return e->validated ? GMEM_RMP_GUEST_VALID : GMEM_RMP_GUEST_INVALID;
	}
	if (e->validated)
		return GMEM_RMP_INVALID;
	if (!e->immutable)
		return e->lock ? GMEM_RMP_INVALID : GMEM_RMP_RECLAIM;
	if (e->gpa)
		return GMEM_RMP_METADATA;
	return e->vmsa ? GMEM_RMP_CONTEXT : GMEM_RMP_FIRMWARE;
}

const char *gmem_rmp_state_text(enum gmem_rmp_state state)
{
	static const char *const text[] = {
		[GMEM_RMP_HYPERVISOR] = "HYPERVISOR",
		[GMEM_RMP_HV_FIXED] = "HV-FIXED",
		[GMEM_RMP_FIRMWARE] = "FIRMWARE",
		[GMEM_RMP_RECLAIM] = "RECLAIM",
		[GMEM_RMP_CONTEXT] = "CONTEXT",
		[GMEM_RMP_METADATA] = "METADATA",
		[GMEM_RMP_PRE_GUEST] = "PRE-GUEST",
		[GMEM_RMP_PRE_SWAP] = "PRE-SWAP",
		[GMEM_RMP_GUEST_INVALID] = "GUEST-INVALID",
		[GMEM_RMP_GUEST_VALID] = "GUEST-VALID",
		[GMEM_RMP_INVALID] = "INVALID",
	};

	return text[state];
}

int gmem_rmp_claim(struct gmem_rmp *rmp, uint64_t pfn, uint64_t owner)
{
	const struct gmem_rmp_entry none = { .assigned = 0 };
	uint32_t i = index_of(pfn);
	struct gmem_rmp_region *r;

	lock(rmp);
	r = get(rmp, pfn);
	if (r && r->owners[i] != owner) {
		/* A page of 2 MiB was one file's as a whole, and no more of it is there than of this frame. */
		set(r, head_of(r, i), &none);
		set(r, i, &none);
		r->owners[i] = owner;
	}
	unlock(rmp);
	return r ? 0 : no_memory();
}

struct gmem_rmp_entry gmem_rmp_lookup(struct gmem_rmp *rmp, uint64_t pfn)
{
	struct gmem_rmp_entry e;

	lock(rmp);
	e = entry_of(rmp, pfn);
	unlock(rmp);
	return e;
}

struct gmem_rmp_entry gmem_rmp_read(struct gmem_rmp *rmp, uint64_t pfn)
{
	struct gmem_rmp_entry e = { .assigned = 0 };
	const struct gmem_rmp_region *r;

	lock(rmp);
	r = find(rmp, pfn);
	if (r)
		e = r->entries[index_of(pfn)];
	unlock(rmp);
	return e;
}

int gmem_rmp_write(struct gmem_rmp *rmp, uint64_t pfn, const struct gmem_rmp_entry *e)
{
	struct gmem_rmp_region *r;

	lock(rmp);
	r = get(rmp, pfn);
	if (r)
		set(r, index_of(pfn), e);
	unlock(rmp);
	return r ? 0 : no_memory();
}

uint64_t gmem_rmp_count_asid(struct gmem_rmp *rmp, uint32_t asid)
{
	uint64_t n = 0;

	lock(rmp);
	for (uint32_t b = 0; b < rmp->nbuckets; b++)
		for (const struct gmem_rmp_region *r = rmp->buckets[b]; r; r = r->next)
			for (uint32_t i = 0; i < GMEM_RMP_LARGE_PAGES; i++)
				n += r->entries[i].assigned && r->entries[i].asid == asid;
	unlock(rmp);
	return n;
}

/* ---- RMPUPDATE, PSMASH */

static bool is_wrong(uint64_t pfn, const struct gmem_rmp_entry *to)
{
	return (to->large && index_of(pfn)) || to->asid > GMEM_RMP_MAX_ASID || (!to->assigned && to->asid);
}

/* What may be said of a page at all is known to be right. */
static int update(struct gmem_rmp_region *r, uint32_t i, const struct gmem_rmp_entry *to)
{
	struct gmem_rmp_entry e = {
		.assigned = to->assigned,
		.large = to->large,
		.immutable = to->immutable,
		.gpa = to->gpa,
		.asid = to->asid,
	};

	if (to->assigned && to->asid)
		e.perms[0] = GMEM_RMP_PERMS_ALL;
	if (r->entries[i].immutable || r->entries[i].lock)
		return GMEM_RMP_FAIL_PERMISSION;
	/* One of 4 KiB in one of 2 MiB that is assigned; one of 2 MiB over some of 4 KiB that are. */
	if (head_of(r, i) == 0 && r->entries[0].large && r->entries[0].assigned && (i || !to->large))
		return GMEM_RMP_FAIL_OVERLAP;
	if (to->large && r->small > is_small(&r->entries[0]))
		return GMEM_RMP_FAIL_OVERLAP;
	set(r, i, &e);
	return GMEM_RMP_OK;
}

int gmem_rmp_update(struct gmem_rmp *rmp, uint64_t pfn, const struct gmem_rmp_entry *to)
{
	struct gmem_rmp_region *r;
	int result;

	if (is_wrong(pfn, to))
		return GMEM_RMP_FAIL_INPUT;
	lock(rmp);
	/* What is the host's already, and not known, need not be known after this. */
	r = to->assigned || to->immutable ? get(rmp, pfn) : find(rmp, pfn);
	if (r)
		result = update(r, index_of(pfn), to);
	else
		result = to->assigned || to->immutable ? no_memory() : GMEM_RMP_OK;
	unlock(rmp);
	return result;
}

int gmem_rmp_make_private(struct gmem_rmp *rmp, uint64_t pfn, uint64_t gfn, uint32_t asid, bool immutable)
{
	const struct gmem_rmp_entry e = {
		.assigned = 1, .immutable = immutable, .gpa = gfn & GMEM_RMP_GPA_MASK, .asid = asid & 0x3ff
	};

	return gmem_rmp_update(rmp, pfn, &e);
}

int gmem_rmp_make_shared(struct gmem_rmp *rmp, uint64_t pfn)
{
	const struct gmem_rmp_entry e = { .assigned = 0 };

	return gmem_rmp_update(rmp, pfn, &e);
}

static void release(struct gmem_rmp_region *r, uint64_t pfn, uint64_t end)
{
	const struct gmem_rmp_entry none = { .assigned = 0 };

	for (uint32_t i = 0; i < GMEM_RMP_LARGE_PAGES; i++)
		if (r->first + i >= pfn && r->first + i < end)
			(void)update(r, i, &none);
}

void gmem_rmp_release(struct gmem_rmp *rmp, uint64_t pfn, uint64_t npages)
{
	uint64_t first = pfn - index_of(pfn), end = pfn + npages;

	lock(rmp);
	if (npages / GMEM_RMP_LARGE_PAGES > rmp->nregions) {
		for (uint32_t i = 0; i < rmp->nbuckets; i++)
			for (struct gmem_rmp_region *r = rmp->buckets[i]; r; r = r->next)
				release(r, pfn, end);
	} else {
		for (; first < end; first += GMEM_RMP_LARGE_PAGES) {
			struct gmem_rmp_region *r = find(rmp, first);

			if (r)
				release(r, pfn, end);
		}
	}
	unlock(rmp);
}

int gmem_rmp_smash(struct gmem_rmp *rmp, uint64_t pfn)
{
	int result = GMEM_RMP_OK;
	struct gmem_rmp_region *r;

	lock(rmp);
	r = find(rmp, pfn);
	if (index_of(pfn) || !r || !r->entries[0].assigned || !r->entries[0].large) {
		result = GMEM_RMP_FAIL_INPUT;
	} else if (r->entries[0].immutable || r->entries[0].lock) {
		result = GMEM_RMP_FAIL_PERMISSION;
	} else {
		struct gmem_rmp_entry e = r->entries[0];

		e.large = 0;
		for (uint32_t i = 0; i < GMEM_RMP_LARGE_PAGES; i++, e.gpa++) {
			set(r, i, &e);
			r->owners[i] = r->owners[0];
		}
	}
	unlock(rmp);
	return result;
}

int gmem_rmp_check_host_write(struct gmem_rmp *rmp, uint64_t pfn)
{
	struct gmem_rmp_entry e = gmem_rmp_lookup(rmp, pfn);

	return e.assigned ? -EFAULT : 0;
}

/* ---- a guest's */

/* The frame is this guest's at that address. */
static bool belongs(const struct gmem_rmp_entry *e, uint64_t pfn, uint64_t gfn, uint32_t asid)
{
	uint64_t at = e->gpa + (e->large ? index_of(pfn) : 0);

	return e->assigned && asid && e->asid == asid && !e->immutable && !e->vmsa && at == (gfn & GMEM_RMP_GPA_MASK);
}

int gmem_rmp_validate(struct gmem_rmp *rmp, uint64_t pfn, uint64_t gfn, uint32_t asid, bool large, bool validated,
		      bool *ret_unchanged)
{
	int result = GMEM_RMP_OK;
	struct gmem_rmp_region *r;

	*ret_unchanged = false;
	lock(rmp);
	r = find(rmp, pfn);
	if (large && (pfn % GMEM_RMP_LARGE_PAGES || gfn % GMEM_RMP_LARGE_PAGES)) {
		result = GMEM_RMP_FAIL_INPUT;
	} else if (!r || !belongs(&r->entries[head_of(r, index_of(pfn))], pfn, gfn, asid)) {
		result = -EFAULT;
	} else {
		struct gmem_rmp_entry *e = &r->entries[head_of(r, index_of(pfn))];

		if (e->large != large)
			result = GMEM_RMP_FAIL_SIZEMISMATCH;
		else if (e->validated == validated)
			*ret_unchanged = true;
		else
			e->validated = validated;
	}
	unlock(rmp);
	return result;
}

int gmem_rmp_check_guest(struct gmem_rmp *rmp, uint64_t pfn, uint64_t gfn, uint32_t asid)
{
	struct gmem_rmp_entry e = gmem_rmp_lookup(rmp, pfn);

	if (!belongs(&e, pfn, gfn, asid))
		return -EFAULT;
	return e.validated ? 0 : -EACCES;
}
