/* SPDX-License-Identifier: MIT */
#include "launch/tdx/tables.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "sys/call.h"

static struct gmem_tdx_tables *tables_of(struct gmem_mmu_external *x)
{
	return (struct gmem_tdx_tables *)x;
}

static uint64_t gpa_of(uint64_t gfn)
{
	return gfn << GMEM_PAGE_SHIFT;
}

int gmem_tdx_refused(struct gmem_tdx_tables *tables, int err, const char *call, uint64_t status)
{
	atomic_store(&tables->status, status);
	return gmem_tdx_status_err(err, call, status);
}

int gmem_tdx_bug(struct gmem_tdx_tables *tables, const char *call, uint64_t status)
{
	(void)gmem_tdx_refused(tables, -EIO, call, status);
	gmem_mmu_kill(tables->mmu);
	return gmem_err_prefix(-EIO, "this VM is dead from now on");
}

/* ---- given */

static int add_table(struct gmem_mmu_external *x, uint64_t gfn, int level)
{
	struct gmem_tdx_tables *t = tables_of(x);
	struct gmem_sept_table *table = gmem_sept_table_new();
	uint64_t status;

	if (!table)
		return gmem_err_sys(-ENOMEM, "secure EPT");
	/* The MMU's level 1 is a table of pages, which an entry of the module's level 1 has. */
	status = gmem_tdx_mem_sept_add(&t->td, gpa_of(gfn & ~((1ull << 9 * level) - 1)), level, table);
	if (!status)
		return 0;
	gmem_sept_table_free(table);
	return gmem_tdx_busy(status) ? -EAGAIN : gmem_tdx_bug(t, "TDH.MEM.SEPT.ADD", status);
}

static int add_page(struct gmem_tdx_tables *t, uint64_t gfn, uint64_t pfn)
{
	uint64_t status = gmem_tdx_mem_page_add(&t->td, gpa_of(gfn), pfn);

	if (gmem_tdx_busy(status))
		return gmem_tdx_refused(t, -EBUSY, "TDH.MEM.PAGE.ADD", status);
	return status ? gmem_tdx_bug(t, "TDH.MEM.PAGE.ADD", status) : 0;
}

static int set_page(struct gmem_mmu_external *x, struct gmem_vcpu *vcpu, uint64_t gfn, uint64_t pfn)
{
	struct gmem_tdx_tables *t = tables_of(x);
	uint64_t status;

	if (vcpu == atomic_load(&t->adder))
		return add_page(t, gfn, pfn);
	/* On KVM no vCPU runs before. */
	if (atomic_load(&t->external.building))
		return gmem_err(-EINVAL, "guest frame 0x%llx: the TD is not finalized, its guest cannot run",
				(unsigned long long)gfn);
	status = gmem_tdx_mem_page_aug(&t->td, gpa_of(gfn), GMEM_SEPT_PT, pfn);
	if (gmem_tdx_busy(status))
		return -EAGAIN;
	return status ? gmem_tdx_bug(t, "TDH.MEM.PAGE.AUG", status) : GMEM_EXTERNAL_PENDING;
}

static int accept_page(struct gmem_mmu_external *x, uint64_t gfn, uint64_t pfn, bool accept)
{
	uint64_t status;

	(void)pfn;
	if (!accept)
		return gmem_err(-EINVAL, "guest frame 0x%llx: a TDX guest takes back nothing that it has accepted",
				(unsigned long long)gfn);
	status = gmem_tdx_page_accept(&tables_of(x)->td, gpa_of(gfn), GMEM_SEPT_PT);
	if (gmem_tdx_busy(status))
		return -EAGAIN;
	if (gmem_tdx_status_class(status) == GMEM_TDX_PAGE_ALREADY_ACCEPTED)
		return 1;
	/* Before the TD is finalized; or the entry is not what the MMU's says. */
	return status ? gmem_tdx_status_err(-EIO, "TDG.MEM.PAGE.ACCEPT", status) : 0;
}

/* ---- taken away */

typedef uint64_t (*entry_call)(struct gmem_tdx_td *td, uint64_t gpa, int level);

/* Busy once, KVM sends all vCPUs out of the guest and tries again; then it is a bug. */
static int take(struct gmem_tdx_tables *t, entry_call call, const char *name, uint64_t gfn)
{
	uint64_t status = call(&t->td, gpa_of(gfn), GMEM_SEPT_PT);

	if (gmem_tdx_busy(status))
		status = call(&t->td, gpa_of(gfn), GMEM_SEPT_PT);
	return status ? gmem_tdx_bug(t, name, status) : 0;
}

static int block(struct gmem_mmu_external *x, uint64_t gfn, uint64_t pfn)
{
	(void)pfn;
	return take(tables_of(x), gmem_tdx_mem_range_block, "TDH.MEM.RANGE.BLOCK", gfn);
}

/* Also of a TD that is being built, where KVM has no need to: it may be finalized before the page is removed. */
static int track(struct gmem_mmu_external *x)
{
	struct gmem_tdx_tables *t = tables_of(x);
	uint64_t status = gmem_tdx_mem_track(&t->td);

	if (gmem_tdx_busy(status))
		status = gmem_tdx_mem_track(&t->td);
	return status ? gmem_tdx_bug(t, "TDH.MEM.TRACK", status) : 0;
}

/*
 * What it had is lost, whatever the module says: it would be encrypted. By a system call: the memory may be poisoned,
 * and go for that.
 */
static int clear_page(struct gmem_mmu_external *x, uint64_t gfn, uint64_t pfn)
{
	static const char zeroes[GMEM_PAGE_SIZE];
	struct gmem_tdx_tables *t = tables_of(x);
	int err = take(t, gmem_tdx_mem_page_remove, "TDH.MEM.PAGE.REMOVE", gfn);

	if (t->pid == getpid())
		(void)gmem_sys_poke(gmem_pfn_addr(pfn), zeroes, sizeof(zeroes));
	return err;
}

/* What was measured, and what the guest has, is changed by nobody else: on a host with TDX it would be encrypted. */
static int may_populate(struct gmem_mmu_external *x, uint64_t gfn, uint64_t pfn)
{
	(void)pfn;
	return gmem_mmu_mapped(tables_of(x)->mmu, gfn) ?
		       gmem_err(-EEXIST, "guest frame 0x%llx: launched before, or touched by the guest",
				(unsigned long long)gfn) :
		       0;
}

/* ---- the whole */

void gmem_tdx_tables_free(struct gmem_tdx_tables *tables)
{
	if (!tables)
		return;
	gmem_tdx_td_destroy(&tables->td);
	free(tables);
}

/* With the VM: no vCPU is left. */
static void free_tables(struct gmem_mmu_external *x)
{
	struct gmem_tdx_tables *t = tables_of(x);

	gmem_tdx_mng_key_freeid(&t->td);
	gmem_tdx_tables_free(t);
}

static const struct gmem_mmu_external_ops ops = {
	.add_table = add_table,
	.set_page = set_page,
	.accept = accept_page,
	.accept_zeroes = true,
	.block = block,
	.track = track,
	.clear_page = clear_page,
	.may_populate = may_populate,
	.free = free_tables,
};

int gmem_tdx_tables_create(struct gmem_mmu *mmu, struct gmem_tdx_tables **ret)
{
	struct gmem_tdx_tables *t = calloc(1, sizeof(*t));
	int err;

	if (!t)
		return gmem_err_sys(-ENOMEM, "a TD");
	err = gmem_tdx_td_create(&t->td);
	if (err) {
		free(t);
		return err;
	}
	t->external.ops = &ops;
	atomic_store(&t->external.building, true);
	t->mmu = mmu;
	t->pid = getpid();
	*ret = t;
	return 0;
}
