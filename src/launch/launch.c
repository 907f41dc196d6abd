/* SPDX-License-Identifier: MIT */
#include "launch/launch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/range.h"
#include "launch/populate.h"

int gmem_launch_create(struct gmem_vm *vm, const struct gmem_launch_opts *opts, struct gmem_launch **ret)
{
	struct gmem_launch *launch;
	int err = 0;

	(void)opts;
	if (vm->type != GMEM_VM_SNP && vm->type != GMEM_VM_TDX)
		return gmem_err(-EINVAL, "gmem_launch_create: a VM of type %d is not launched", (int)vm->type);
	launch = calloc(1, sizeof(*launch));
	if (!launch)
		return gmem_err_sys(-ENOMEM, "gmem_launch_create");
	if (vm->type == GMEM_VM_SNP)
		gmem_snp_digest_init(&launch->snp);
	else
		err = gmem_tdx_digest_init(&launch->tdx);
	if (err) {
		free(launch);
		return gmem_err_prefix(err, "gmem_launch_create");
	}
	launch->vm = vm;
	gmem_vm_get(vm);
	gmem_mmu_add_vcpu(&vm->mmu, &launch->vcpu);
	*ret = launch;
	return 0;
}

void gmem_launch_free(struct gmem_launch *launch)
{
	if (!launch)
		return;
	gmem_mmu_del_vcpu(&launch->vcpu);
	gmem_tdx_digest_free(&launch->tdx);
	gmem_vm_put(launch->vm);
	free(launch);
}

static int check(const struct gmem_launch *launch, uint64_t gpa, const void *src, enum gmem_launch_page type)
{
	bool snp = launch->vm->type == GMEM_VM_SNP;

	if (!gmem_page_aligned(gpa))
		return gmem_err(-EINVAL, "gmem_launch_update: gpa 0x%llx: not page-aligned", (unsigned long long)gpa);
	switch (type) {
	case GMEM_LAUNCH_ZERO:
		if (!snp)
			return gmem_err(-EINVAL, "gmem_launch_update: TDX has no zero pages: give a page of zeros");
		return src ? gmem_err(-EINVAL, "gmem_launch_update: a zero page has no source") : 0;
	case GMEM_LAUNCH_NORMAL:
	case GMEM_LAUNCH_UNMEASURED:
	case GMEM_LAUNCH_SECRETS:
	case GMEM_LAUNCH_CPUID:
		return src ? 0 : gmem_err(-EINVAL, "gmem_launch_update: no source");
	}
	return gmem_err(-EINVAL, "gmem_launch_update: type %d: unknown", (int)type);
}

int64_t gmem_launch_update_why(struct gmem_launch *launch, uint64_t gpa, const void *src, int64_t npages,
			       enum gmem_launch_page type, int *ret_why)
{
	struct gmem_vm *vm = launch->vm;
	uint32_t flags = GMEM_POPULATE_UNTOUCHED | (type == GMEM_LAUNCH_ZERO ? GMEM_POPULATE_ZERO : 0);
	gmem_populate_fn fn = vm->type == GMEM_VM_SNP ? gmem_launch_snp_page : gmem_launch_tdx_page;
	int64_t done = check(launch, gpa, src, type);

	*ret_why = 0;
	if (done)
		return done;
	gmem_vm_lock_slots(vm);
	if (launch->broken) {
		done = gmem_err(-EIO, "gmem_launch_update: an earlier page was measured in part");
	} else {
		launch->type = type;
		done = gmem_populate_locked(vm, gpa >> GMEM_PAGE_SHIFT, src, npages, flags, fn, launch, ret_why);
	}
	gmem_vm_unlock_slots(vm);
	return done < 0 ? gmem_err_prefix((int)done, "gmem_launch_update: gpa 0x%llx", (unsigned long long)gpa) : done;
}

int64_t gmem_launch_update(struct gmem_launch *launch, uint64_t gpa, const void *src, int64_t npages,
			   enum gmem_launch_page type)
{
	int why;

	return gmem_launch_update_why(launch, gpa, src, npages, type, &why);
}

int gmem_launch_digest(struct gmem_launch *launch, uint8_t ret[GMEM_LAUNCH_DIGEST_LEN])
{
	struct gmem_vm *vm = launch->vm;
	int err = 0;

	gmem_vm_lock_slots(vm);
	if (launch->broken)
		err = gmem_err(-EIO, "gmem_launch_digest: a page was measured in part");
	else if (vm->type == GMEM_VM_SNP)
		memcpy(ret, launch->snp.ld, GMEM_LAUNCH_DIGEST_LEN);
	else
		err = gmem_tdx_digest_value(&launch->tdx, ret);
	gmem_vm_unlock_slots(vm);
	return err;
}
