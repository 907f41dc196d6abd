/* SPDX-License-Identifier: MIT */
/* A TDX launch, emulated: KVM_MEMORY_ENCRYPT_OP of a TDX VM, down to the module's calls. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/range.h"
#include "launch/launch.h"
#include "launch/populate.h"
#include "launch/tdx/launch.h"
#include "launch/tdx/tables.h"
#include "sys/call.h"

/* What KVM lets be set, of what the module does: SEPT_VE_DISABLE; what KVM knows of XCR0 and IA32_XSS. */
#define KVM_ATTRIBUTES (1ull << 28)
#define KVM_XFAM 0x61ae7ull
#define XFAM_FIXED1 0x3ull

struct tdx_launch {
	struct gmem_launch launch; /* first */
	struct gmem_vcpu vcpu; /* whose faults the pages of INIT_MEM_REGION are */
	struct gmem_tdx_tables *tables; /* the VM's */
	uint32_t nvcpus;
	bool measured; /* INIT_MEM_REGION that is running: pages' bytes are */
	bool broken; /* a range was measured in part */
};

static struct tdx_launch *launch_of(struct gmem_launch *launch)
{
	return (struct tdx_launch *)launch;
}

/* slots_lock held. */
static int check_alive(const struct tdx_launch *l)
{
	if (gmem_mmu_dead(&l->launch.vm->mmu))
		return gmem_err(-EIO, "this VM is dead");
	if (l->broken)
		return gmem_err(-EIO, "a range was measured in part: this launch is of no more use");
	return 0;
}

/* A command begins: slots_lock is held from then on, also after an error. */
static int begin(struct tdx_launch *l)
{
	gmem_vm_lock_slots(l->launch.vm);
	atomic_store(&l->tables->status, GMEM_TDX_SUCCESS);
	return check_alive(l);
}

static void end(struct tdx_launch *l, int err, struct gmem_launch_answer *answer)
{
	answer->why = err;
	answer->status = err ? atomic_load(&l->tables->status) : GMEM_TDX_SUCCESS;
	gmem_vm_unlock_slots(l->launch.vm);
}

/* ---- KVM_TDX_INIT_MEM_REGION */

static int extend_page(struct tdx_launch *l, uint64_t gpa)
{
	for (uint64_t at = 0; at < GMEM_PAGE_SIZE; at += GMEM_TDX_CHUNK_LEN) {
		uint64_t status = gmem_tdx_mr_extend(&l->tables->td, gpa + at);

		if (status) {
			/* One running hash: what went into it does not come out again. */
			l->broken = true;
			return gmem_tdx_bug(l->tables, "TDH.MR.EXTEND", status);
		}
	}
	return 0;
}

/* The frame holds the bytes; mapping it adds it. */
static int add_page(struct gmem_vm *vm, uint64_t gfn, uint64_t pfn, void *src, void *opaque)
{
	struct tdx_launch *l = opaque;
	int err = gmem_mmu_map_private_pfn(&l->vcpu, gfn, pfn);

	(void)vm;
	(void)src;
	return err || !l->measured ? err : extend_page(l, gfn << GMEM_PAGE_SHIFT);
}

static bool private(const struct gmem_vm *vm, uint64_t gpa)
{
	return !(gpa & vm->alias_bit);
}

static int check_region(const struct gmem_vm *vm, const struct gmem_tdx_init_mem_region *r)
{
	uint64_t len = r->nr_pages << GMEM_PAGE_SHIFT;

	if (!gmem_page_aligned(r->source_addr) || !r->source_addr)
		return gmem_err(-EINVAL, "source 0x%llx: not page-aligned, or none",
				(unsigned long long)r->source_addr);
	if (!gmem_page_aligned(r->gpa))
		return gmem_err(-EINVAL, "gpa 0x%llx: not page-aligned", (unsigned long long)r->gpa);
	if (!r->nr_pages || r->gpa + len <= r->gpa)
		return gmem_err(-EINVAL, "gpa 0x%llx, %llu pages: empty, or wraps", (unsigned long long)r->gpa,
				(unsigned long long)r->nr_pages);
	if (!private(vm, r->gpa) || !private(vm, r->gpa + len - 1))
		return gmem_err(-EINVAL, "gpa 0x%llx, %llu pages: shared addresses", (unsigned long long)r->gpa,
				(unsigned long long)r->nr_pages);
	return 0;
}

/* Page by page, *r always says what is left. */
static int add_region(struct tdx_launch *l, struct gmem_tdx_init_mem_region *r)
{
	while (r->nr_pages) {
		int why;
		int64_t n = gmem_populate_locked(l->launch.vm, r->gpa >> GMEM_PAGE_SHIFT,
						 (const void *)(uintptr_t)r->source_addr,
						 (int64_t)gmem_min_u64(r->nr_pages, INT64_MAX >> GMEM_PAGE_SHIFT),
						 GMEM_POPULATE_UNTOUCHED, add_page, l, &why);

		if (n < 0)
			return (int)n;
		r->source_addr += (uint64_t)n << GMEM_PAGE_SHIFT;
		r->gpa += (uint64_t)n << GMEM_PAGE_SHIFT;
		r->nr_pages -= (uint64_t)n;
		if (why)
			return why;
	}
	return 0;
}

static int check_vcpu(const struct tdx_launch *l, int vcpu, uint32_t flags)
{
	if (vcpu != GMEM_LAUNCH_NO_VCPU && (vcpu < 0 || (uint32_t)vcpu >= l->nvcpus))
		return gmem_err(-EINVAL, "INIT_MEM_REGION is a vCPU's, and there is no vCPU %d that is initialized",
				vcpu);
	if (!atomic_load(&l->tables->external.building))
		return gmem_err(-EINVAL, "the TD is finalized: nothing more is launched");
	if (flags & ~GMEM_TDX_MEASURE_MEMORY_REGION)
		return gmem_err(-EINVAL, "flags 0x%x: unknown", flags);
	return 0;
}

static int init_mem_region(struct tdx_launch *l, int vcpu, uint32_t flags, void *data,
			   struct gmem_launch_answer *answer)
{
	struct gmem_tdx_init_mem_region r;
	struct gmem_vm *vm = l->launch.vm;
	bool there, begun = false;
	int err;

	/* Once, and with no lock held: the caller's memory may be lazily served, or change. */
	gmem_might_fault();
	there = gmem_sys_peek(&r, data, sizeof(r)) == sizeof(r);
	err = begin(l);
	if (!err)
		err = check_vcpu(l, vcpu, flags);
	if (!err && !there)
		err = gmem_err(-EFAULT, "INIT_MEM_REGION's structure cannot be read");
	if (!err)
		err = check_region(vm, &r);
	if (!err) {
		begun = true;
		l->measured = flags & GMEM_TDX_MEASURE_MEMORY_REGION;
		err = add_region(l, &r);
	}
	end(l, err, answer);
	/* After errors too: whoever calls again goes on where this one ended. */
	if (begun && gmem_sys_poke(data, &r, sizeof(r)) != sizeof(r))
		answer->why = err = gmem_err(-EFAULT, "INIT_MEM_REGION's structure cannot be written to");
	return err;
}

/* ---- KVM_TDX_FINALIZE_VM */

static int finalize(struct tdx_launch *l)
{
	uint64_t status;

	if (!atomic_load(&l->tables->external.building))
		return gmem_err(-EINVAL, "the TD is finalized already");
	status = gmem_tdx_mr_finalize(&l->tables->td);
	if (gmem_tdx_busy(status))
		return gmem_tdx_refused(l->tables, -EBUSY, "TDH.MR.FINALIZE", status);
	if (status)
		return gmem_tdx_bug(l->tables, "TDH.MR.FINALIZE", status);
	atomic_store(&l->tables->external.building, false);
	return 0;
}

static int finalize_vm(struct tdx_launch *l, int vcpu, struct gmem_launch_answer *answer)
{
	int err = begin(l);

	if (!err)
		err = vcpu == -1 ? finalize(l) : gmem_err(-EINVAL, "FINALIZE_VM is the VM's, not a vCPU's");
	end(l, err, answer);
	return err;
}

/* ---- the launch */

static int unknown(struct tdx_launch *l, struct gmem_launch_answer *answer)
{
	int err = begin(l);

	if (!err)
		err = gmem_err(-EINVAL, "no command of a TD that is initialized");
	end(l, err, answer);
	return err;
}

static int command(struct gmem_launch *launch, int vcpu, uint32_t id, uint32_t flags, void *data,
		   struct gmem_launch_answer *answer)
{
	struct tdx_launch *l = launch_of(launch);

	switch (id) {
	case GMEM_TDX_CMD_INIT_MEM_REGION:
		return init_mem_region(l, vcpu, flags, data, answer);
	case GMEM_TDX_CMD_FINALIZE_VM:
		return finalize_vm(l, vcpu, answer);
	default:
		return unknown(l, answer);
	}
}

static int add_vcpu_locked(struct tdx_launch *l, uint64_t rcx)
{
	struct gmem_tdx_td *td = &l->tables->td;
	uint64_t status;

	if (!atomic_load(&l->tables->external.building))
		return gmem_err(-EBUSY, "the TD is finalized");
	/* KVM makes no more: its module is not asked. */
	if (l->nvcpus == GMEM_TDX_MAX_VCPUS_PER_TD)
		return gmem_err(-EINVAL, "a TD has %u vCPUs at most", GMEM_TDX_MAX_VCPUS_PER_TD);
	status = gmem_tdx_vp_create(td, l->nvcpus);
	if (status)
		return gmem_tdx_bug(l->tables, "TDH.VP.CREATE", status);
	status = gmem_tdx_vp_init(td, l->nvcpus, rcx);
	if (status)
		return gmem_tdx_bug(l->tables, "TDH.VP.INIT", status);
	l->nvcpus++;
	return 0;
}

static int add_vcpu(struct gmem_launch *launch, const struct gmem_launch_vcpu *vcpu)
{
	struct tdx_launch *l = launch_of(launch);
	struct gmem_launch_answer answer;
	int err;

	if (vcpu->snp || vcpu->kvm_vcpu)
		return gmem_err(-EINVAL, "`snp` or `kvm_vcpu`: not for a TD by emulation");
	err = begin(l);
	if (!err)
		err = add_vcpu_locked(l, vcpu->rcx);
	end(l, err, &answer);
	if (answer.status)
		atomic_store(&launch->status, answer.status);
	return err;
}

uint32_t gmem_tdx_launch_nvcpus(struct gmem_launch *launch)
{
	uint32_t n;

	gmem_vm_lock_slots(launch->vm);
	n = launch_of(launch)->nvcpus;
	gmem_vm_unlock_slots(launch->vm);
	return n;
}

static int extend_range(struct tdx_launch *l, uint64_t gpa, uint64_t len)
{
	for (uint64_t at = 0; at < len; at += GMEM_TDX_CHUNK_LEN) {
		uint64_t status = gmem_tdx_mr_extend(&l->tables->td, gpa + at);
		int err;

		if (!status)
			continue;
		l->broken = at;
		err = gmem_tdx_refused(l->tables, -EIO, "TDH.MR.EXTEND", status);
		return gmem_err_prefix(err, "gpa 0x%llx%s", (unsigned long long)(gpa + at),
				       at ? ", in the middle of the range: this launch is of no more use" : "");
	}
	return 0;
}

/* TDH.MR.EXTEND, as hosts called it for themselves. */
static int extend(struct gmem_launch *launch, uint64_t gpa, uint64_t len, struct gmem_launch_answer *answer)
{
	struct tdx_launch *l = launch_of(launch);
	int err = begin(l);

	if (!err)
		err = extend_range(l, gpa, len);
	end(l, err, answer);
	return err;
}

static int digest(struct gmem_launch *launch, uint8_t *ret)
{
	struct tdx_launch *l = launch_of(launch);
	int err = 0;

	gmem_vm_lock_slots(launch->vm);
	if (l->broken)
		err = gmem_err(-EIO, "a range was measured in part");
	gmem_vm_unlock_slots(launch->vm);
	return err ? err : gmem_tdx_mrtd(&l->tables->td, ret);
}

static void free_launch(struct gmem_launch *launch)
{
	struct tdx_launch *l = launch_of(launch);

	atomic_store(&l->tables->adder, NULL);
	gmem_mmu_del_vcpu(&l->vcpu);
	gmem_vm_put(launch->vm);
	free(l);
}

static const struct gmem_launch_ops ops = {
	.command = command,
	.add_vcpu = add_vcpu,
	.extend = extend,
	.digest = digest,
	.free = free_launch,
};

/* ---- KVM_TDX_INIT_VM */

static int init_vm(struct gmem_tdx_tables *tables, const struct gmem_launch_opts *opts, _Atomic uint64_t *ret_status)
{
	struct gmem_tdx_params params = {
		.attributes = opts->attributes,
		.xfam = opts->xfam | XFAM_FIXED1,
		.max_vcpus = GMEM_TDX_MAX_VCPUS_PER_TD,
	};
	uint64_t status;

	if (opts->attributes & ~KVM_ATTRIBUTES)
		return gmem_err(-EINVAL, "attributes 0x%llx: KVM allows 0x%llx", (unsigned long long)opts->attributes,
				KVM_ATTRIBUTES);
	if (opts->xfam & ~KVM_XFAM)
		return gmem_err(-EINVAL, "xfam 0x%llx: KVM allows 0x%llx", (unsigned long long)opts->xfam, KVM_XFAM);
	memcpy(params.mrconfigid, opts->mrconfigid, sizeof(params.mrconfigid));
	memcpy(params.mrowner, opts->mrowner, sizeof(params.mrowner));
	memcpy(params.mrownerconfig, opts->mrownerconfig, sizeof(params.mrownerconfig));
	status = gmem_tdx_mng_init(&tables->td, &params);
	atomic_store(ret_status, status);
	if (!status)
		return 0;
	return gmem_tdx_status_err(gmem_tdx_status_class(status) == GMEM_TDX_OPERAND_INVALID ? -EINVAL : -EIO,
				   "TDH.MNG.INIT", status);
}

static int create(struct gmem_vm *vm, const struct gmem_launch_opts *opts, struct tdx_launch *l)
{
	int err = gmem_tdx_tables_create(&vm->mmu, &l->tables);

	if (err)
		return err;
	atomic_store(&l->tables->adder, &l->vcpu);
	err = init_vm(l->tables, opts, &l->launch.status);
	if (!err) {
		gmem_vm_lock_slots(vm);
		err = gmem_mmu_set_external(&vm->mmu, &l->tables->external);
		gmem_vm_unlock_slots(vm);
	}
	if (err)
		gmem_tdx_tables_free(l->tables);
	return err;
}

int gmem_tdx_launch_create(struct gmem_vm *vm, const struct gmem_launch_opts *opts, struct gmem_launch **ret)
{
	struct tdx_launch *l;
	int err;

	if (opts->flags)
		return gmem_err(-EINVAL, "flags 0x%x: not TDX's", opts->flags);
	if (vm->kvm >= 0)
		return gmem_err(-EOPNOTSUPP, "a VM with GMEM_VM_KVM is not launched by emulation");
	l = calloc(1, sizeof(*l));
	if (!l)
		return gmem_err_sys(-ENOMEM, "a launch");
	err = create(vm, opts, l);
	if (err) {
		free(l);
		return err;
	}
	l->launch.ops = &ops;
	l->launch.type = GMEM_VM_TDX;
	l->launch.vm = vm;
	gmem_vm_get(vm);
	gmem_mmu_add_vcpu(&vm->mmu, &l->vcpu);
	*ret = &l->launch;
	return 0;
}
