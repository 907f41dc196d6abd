/* SPDX-License-Identifier: MIT */
/* A TD is made, built and measured: what the module does of it until it can run. */
#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/range.h"
#include "gmem.h"
#include "launch/tdx/module.h"

/* Bits of TD_PARAMS that may be set, and those that must be: what the module and a processor with AMX have. */
#define ATTRIBUTES_FIXED0 0x8000000070000001ull
#define ATTRIBUTES_FIXED1 0ull
#define XFAM_FIXED0 0x6dbe7ull
#define XFAM_FIXED1 0x3ull

#define ATTR_DEBUG (1ull << 0)
#define ATTR_MIGRATABLE (1ull << 29)
#define ATTR_PERFMON (1ull << 63)

#define XFAM_AVX (1ull << 2)
#define XFAM_AVX3 (7ull << 5)
#define XFAM_CET (3ull << 11)
#define XFAM_AMX (3ull << 17)

int gmem_tdx_td_create(struct gmem_tdx_td *td)
{
	int err;

	*td = (struct gmem_tdx_td){ .op_state = GMEM_TDX_UNINITIALIZED, .keys = true, .epoch = 1 };
	pthread_mutex_init(&td->m, NULL);
	err = gmem_sept_init(&td->sept);
	if (!err)
		err = gmem_tdx_digest_init(&td->digest);
	if (err)
		gmem_tdx_td_destroy(td);
	return err;
}

void gmem_tdx_td_destroy(struct gmem_tdx_td *td)
{
	gmem_tdx_digest_free(&td->digest);
	gmem_sept_destroy(&td->sept);
	pthread_mutex_destroy(&td->m);
}

void gmem_tdx_mng_key_freeid(struct gmem_tdx_td *td)
{
	gmem_tdx_lock(td);
	td->keys = false;
	gmem_tdx_unlock(td);
}

/* ---- the TD and its vCPUs */

static bool all_or_none(uint64_t value, uint64_t bits)
{
	return !(value & bits) || (value & bits) == bits;
}

static bool attributes_valid(uint64_t a)
{
	if (a & ~ATTRIBUTES_FIXED0 || (a & ATTRIBUTES_FIXED1) != ATTRIBUTES_FIXED1)
		return false;
	return !(a & ATTR_MIGRATABLE) || !(a & (ATTR_DEBUG | ATTR_PERFMON));
}

static bool xfam_valid(uint64_t x)
{
	if (x & ~XFAM_FIXED0 || (x & XFAM_FIXED1) != XFAM_FIXED1)
		return false;
	return all_or_none(x, XFAM_AVX3) && (!(x & XFAM_AVX3) || x & XFAM_AVX) && all_or_none(x, XFAM_CET) &&
	       all_or_none(x, XFAM_AMX);
}

static uint64_t init(struct gmem_tdx_td *td, const struct gmem_tdx_params *params)
{
	uint64_t status = gmem_tdx_check_td(td, GMEM_TDX_MNG_INIT);

	if (status)
		return status;
	if (!attributes_valid(params->attributes))
		return GMEM_TDX_OPERAND_INVALID | GMEM_TDX_ATTRIBUTES;
	if (!xfam_valid(params->xfam))
		return GMEM_TDX_OPERAND_INVALID | GMEM_TDX_XFAM;
	if (!params->max_vcpus || params->max_vcpus > GMEM_TDX_MAX_VCPUS_PER_TD)
		return GMEM_TDX_OPERAND_INVALID | GMEM_TDX_MAX_VCPUS;
	td->params = *params;
	td->op_state = GMEM_TDX_INITIALIZED;
	return GMEM_TDX_SUCCESS;
}

uint64_t gmem_tdx_mng_init(struct gmem_tdx_td *td, const struct gmem_tdx_params *params)
{
	uint64_t status;

	gmem_tdx_lock(td);
	status = init(td, params);
	gmem_tdx_unlock(td);
	return status;
}

/* The page of a vCPU is not what it is taken for. */
static bool vp_is(const struct gmem_tdx_td *td, uint32_t vp, bool made)
{
	return vp <= GMEM_TDX_MAX_VCPUS_PER_TD && made == (td->vps[vp].state != GMEM_TDX_VP_NONE);
}

uint64_t gmem_tdx_vp_create(struct gmem_tdx_td *td, uint32_t vp)
{
	uint64_t status;

	gmem_tdx_lock(td);
	status = gmem_tdx_check_td(td, GMEM_TDX_VP_CREATE);
	if (!status && !vp_is(td, vp, false))
		status = GMEM_TDX_PAGE_METADATA_INCORRECT | GMEM_TDX_RCX;
	if (!status)
		td->vps[vp].state = GMEM_TDX_VP_UNINITIALIZED;
	gmem_tdx_unlock(td);
	return status;
}

static uint64_t init_vp(struct gmem_tdx_td *td, uint32_t vp, uint64_t rcx)
{
	uint64_t status;

	/* The page says whose it is: it comes first. */
	if (!vp_is(td, vp, true))
		return GMEM_TDX_PAGE_METADATA_INCORRECT | GMEM_TDX_RCX;
	status = gmem_tdx_check_td(td, GMEM_TDX_VP_INIT);
	if (status)
		return status;
	if (td->vps[vp].state != GMEM_TDX_VP_UNINITIALIZED)
		return GMEM_TDX_VCPU_STATE_INCORRECT;
	if (td->nvcpus >= td->params.max_vcpus)
		return GMEM_TDX_MAX_VCPUS_EXCEEDED;
	td->nvcpus++;
	td->vps[vp] = (struct gmem_tdx_vp){ .state = GMEM_TDX_VP_READY, .rcx = rcx };
	return GMEM_TDX_SUCCESS;
}

uint64_t gmem_tdx_vp_init(struct gmem_tdx_td *td, uint32_t vp, uint64_t rcx)
{
	uint64_t status;

	gmem_tdx_lock(td);
	status = init_vp(td, vp, rcx);
	gmem_tdx_unlock(td);
	return status;
}

/* ---- pages and their measurement */

/* The hash does not fail in the module. */
static uint64_t hashed(struct gmem_tdx_td *td, int err)
{
	td->fatal = err;
	return err ? GMEM_TDX_TD_FATAL : GMEM_TDX_SUCCESS;
}

static uint64_t add_page(struct gmem_tdx_td *td, uint64_t gpa, uint64_t pfn)
{
	uint64_t status = gmem_tdx_check_td(td, GMEM_TDX_MEM_PAGE_ADD);
	struct gmem_sept_walk w;

	if (!status)
		status = gmem_tdx_check_gpa(gpa, GMEM_SEPT_PT, GMEM_SEPT_PT, GMEM_SEPT_PT);
	if (status)
		return status;
	if (!gmem_sept_walk(&td->sept, gpa, GMEM_SEPT_PT, &w))
		return GMEM_TDX_EPT_WALK_FAILED | GMEM_TDX_RCX;
	if (!gmem_tdx_allows(GMEM_TDX_MEM_PAGE_ADD, gmem_sept_state(*w.entry)))
		return GMEM_TDX_EPT_ENTRY_STATE_INCORRECT | GMEM_TDX_RCX;
	gmem_sept_set(w.entry, GMEM_SEPT_MAPPED, pfn << GMEM_PAGE_SHIFT);
	*w.bepoch = 0;
	return hashed(td, gmem_tdx_digest_add(&td->digest, gpa));
}

uint64_t gmem_tdx_mem_page_add(struct gmem_tdx_td *td, uint64_t gpa, uint64_t pfn)
{
	uint64_t status;

	gmem_tdx_lock(td);
	status = add_page(td, gpa, pfn);
	gmem_tdx_unlock(td);
	return status;
}

static uint64_t extend(struct gmem_tdx_td *td, uint64_t gpa)
{
	uint64_t status = gmem_tdx_check_td(td, GMEM_TDX_MR_EXTEND);
	struct gmem_sept_walk w;
	const char *page;

	if (status)
		return status;
	if (gpa % GMEM_TDX_CHUNK_LEN || gpa >> GMEM_TDX_GPA_BITS)
		return GMEM_TDX_OPERAND_INVALID | GMEM_TDX_RCX;
	if (!gmem_sept_walk(&td->sept, gpa, GMEM_SEPT_PT, &w))
		return GMEM_TDX_EPT_ENTRY_NOT_PRESENT | GMEM_TDX_RCX;
	if (!gmem_tdx_allows(GMEM_TDX_MR_EXTEND, gmem_sept_state(*w.entry)))
		return GMEM_TDX_EPT_ENTRY_NOT_PRESENT;
	page = (const char *)(uintptr_t)gmem_sept_addr(*w.entry);
	return hashed(td, gmem_tdx_digest_extend(&td->digest, gpa, page + gpa % GMEM_PAGE_SIZE));
}

uint64_t gmem_tdx_mr_extend(struct gmem_tdx_td *td, uint64_t gpa)
{
	uint64_t status;

	gmem_tdx_lock(td);
	status = extend(td, gpa);
	gmem_tdx_unlock(td);
	return status;
}

uint64_t gmem_tdx_mr_finalize(struct gmem_tdx_td *td)
{
	uint64_t status;

	gmem_tdx_lock(td);
	status = gmem_tdx_check_td(td, GMEM_TDX_MR_FINALIZE);
	if (!status && !td->nvcpus)
		status = GMEM_TDX_NO_VCPUS;
	if (!status)
		td->op_state = GMEM_TDX_RUNNABLE;
	gmem_tdx_unlock(td);
	return status;
}

int gmem_tdx_mrtd(struct gmem_tdx_td *td, uint8_t ret[GMEM_TDX_DIGEST_LEN])
{
	int err;

	gmem_tdx_lock(td);
	err = td->fatal ? gmem_err(-EIO, "a hash of this TD's measurement has failed") :
			  gmem_tdx_digest_value(&td->digest, ret);
	gmem_tdx_unlock(td);
	return err;
}
