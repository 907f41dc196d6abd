/* SPDX-License-Identifier: MIT */
#include "launch/launch.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/opts.h"
#include "base/range.h"

/* What SNP asks of a policy: the bit that must be one, and here SMT is allowed. */
#define DEFAULT_POLICY 0x30000u
#define DEFAULT_XFAM 0x3u

/* A child has a copy of what its parent's threads were at, locked for ever. KVM itself refuses it its machine. */
static int check_process(const struct gmem_vm *vm)
{
	return vm && vm->pid != getpid() ? gmem_err(-EIO, "this VM is a copy that came with fork(2)") : 0;
}

/* ---- its making */

static int check_opts(const char *who, const struct gmem_launch_opts *opts, struct gmem_launch_opts *ret)
{
	*ret = (struct gmem_launch_opts){ .size = sizeof(*ret) };
	if (opts && opts->size != sizeof(*opts))
		return gmem_err(-EINVAL, "%s: opts->size is %zu, not %zu", who, opts->size, sizeof(*opts));
	if (opts)
		*ret = *opts;
	if (ret->flags & ~GMEM_LAUNCH_NOT_STARTED)
		return gmem_err(-EINVAL, "%s: flags 0x%x: unknown", who, ret->flags);
	if (!ret->policy)
		ret->policy = DEFAULT_POLICY;
	if (!ret->xfam)
		ret->xfam = DEFAULT_XFAM;
	return 0;
}

int gmem_launch_create(struct gmem_vm *vm, const struct gmem_launch_opts *opts, struct gmem_launch **ret)
{
	struct gmem_launch_opts o;
	int err = check_opts("gmem_launch_create", opts, &o);

	if (err)
		return err;
	if (vm->type != GMEM_VM_SNP && vm->type != GMEM_VM_TDX)
		return gmem_err(-EINVAL, "gmem_launch_create: a VM of type %d is not launched", (int)vm->type);
	err = check_process(vm);
	if (!err)
		err = vm->type == GMEM_VM_SNP ? gmem_snp_launch_create(vm, &o, ret) :
						gmem_tdx_launch_create(vm, &o, ret);
	return err ? gmem_err_prefix(err, "gmem_launch_create") : 0;
}

int gmem_launch_create_kvm(int kvm_vm, enum gmem_vm_type type, const struct gmem_launch_opts *opts,
			   struct gmem_launch **ret)
{
	struct gmem_launch_opts o;
	int err = check_opts("gmem_launch_create_kvm", opts, &o);

	if (err)
		return err;
	if (type != GMEM_VM_SNP && type != GMEM_VM_TDX)
		return gmem_err(-EINVAL, "gmem_launch_create_kvm: a VM of type %d is not launched", (int)type);
	err = gmem_kvm_launch_create(kvm_vm, type, &o, ret);
	return err ? gmem_err_prefix(err, "gmem_launch_create_kvm") : 0;
}

void gmem_launch_free(struct gmem_launch *launch)
{
	if (launch)
		launch->ops->free(launch);
}

/* ---- commands */

int gmem_launch_do(struct gmem_launch *launch, int vcpu, uint32_t id, uint32_t flags, void *data,
		   struct gmem_launch_answer *answer)
{
	int err;

	*answer = (struct gmem_launch_answer){ 0 };
	err = check_process(launch->vm);
	if (err)
		return answer->why = err;
	err = launch->ops->command(launch, vcpu, id, flags, data, answer);
	if (err || answer->why)
		atomic_store(&launch->status, answer->status);
	return err;
}

int gmem_launch_command(struct gmem_launch *launch, int vcpu, uint32_t id, uint32_t flags, void *data,
			uint64_t *ret_status)
{
	struct gmem_launch_answer answer = { 0 };
	int err =
		vcpu < -1 ? gmem_err(-EINVAL, "vCPU %d", vcpu) : gmem_launch_do(launch, vcpu, id, flags, data, &answer);

	/* After progress KVM does not tell. */
	if (ret_status)
		*ret_status = err ? answer.status : 0;
	return err ? gmem_err_prefix(err, "gmem_launch_command: %u", id) : 0;
}

uint64_t gmem_launch_status(const struct gmem_launch *launch)
{
	return atomic_load(&launch->status);
}

int gmem_launch_add_vcpu(struct gmem_launch *launch, const struct gmem_launch_vcpu *vcpu)
{
	int err;

	if (!vcpu || vcpu->size != sizeof(*vcpu))
		return gmem_err(-EINVAL, "gmem_launch_add_vcpu: vcpu->size is %zu, not %zu", vcpu ? vcpu->size : 0,
				sizeof(*vcpu));
	err = check_process(launch->vm);
	if (!err)
		err = launch->ops->add_vcpu(launch, vcpu);
	return err ? gmem_err_prefix(err, "gmem_launch_add_vcpu") : 0;
}

/* ---- pages */

static int check_update(const struct gmem_launch *launch, uint64_t gpa, const void *src, int64_t npages,
			enum gmem_launch_page type)
{
	bool snp = launch->type == GMEM_VM_SNP;

	if (!gmem_page_aligned(gpa))
		return gmem_err(-EINVAL, "not page-aligned");
	if (npages <= 0 || !gmem_range_inside(gpa, (uint64_t)npages << GMEM_PAGE_SHIFT, UINT64_MAX & GMEM_PAGE_MASK) ||
	    npages > INT64_MAX >> GMEM_PAGE_SHIFT)
		return gmem_err(-EINVAL, "%lld pages", (long long)npages);
	if (!gmem_page_aligned((uintptr_t)src))
		return gmem_err(-EINVAL, "source %p: not page-aligned", src);
	switch (type) {
	case GMEM_LAUNCH_ZERO:
		if (!snp)
			return gmem_err(-EINVAL, "TDX has no zero pages: give a page of zeros");
		return src ? gmem_err(-EINVAL, "a zero page has no source") : 0;
	case GMEM_LAUNCH_SECRETS:
	case GMEM_LAUNCH_CPUID:
		if (!snp)
			return gmem_err(-EINVAL, "type %d: TDX has none such", (int)type);
		return src ? 0 : gmem_err(-EINVAL, "no source");
	case GMEM_LAUNCH_NORMAL:
	case GMEM_LAUNCH_UNMEASURED:
		return src ? 0 : gmem_err(-EINVAL, "no source");
	}
	return gmem_err(-EINVAL, "type %d: unknown", (int)type);
}

/*
 * A caller of KVM's gives a command again until nothing is left or nothing goes on. A signal is for nobody's launch;
 * in an emulated one -EINTR is gmem_vm_cancel()'s. `before` and `left` are pages; *tries: without progress so far.
 */
static bool goes_on(const struct gmem_launch *launch, int *err, uint64_t before, uint64_t left, int *tries)
{
	if (!left)
		return false;
	if (left < before)
		*tries = 0;
	else if (!*err)
		*err = gmem_err(-EIO, "KVM says that it went on, and has done nothing");
	else
		++*tries;
	return !*err || ((*err == -EAGAIN || (*err == -EINTR && !launch->vm)) && *tries < GMEM_LAUNCH_MOST_TRIES);
}

static int bad_progress(void)
{
	return gmem_err(-EIO, "KVM answers progress that cannot be");
}

/* Returns the pages that are left. */
static uint64_t update_snp(struct gmem_launch *launch, uint64_t gpa, const void *src, uint64_t npages,
			   enum gmem_launch_page type, int *ret_why)
{
	struct gmem_snp_launch_update u = {
		.gfn_start = gpa >> GMEM_PAGE_SHIFT,
		.uaddr = (uintptr_t)src,
		.len = npages << GMEM_PAGE_SHIFT,
		.type = (uint8_t)type,
	};
	const struct gmem_snp_launch_update all = u;
	struct gmem_launch_answer answer;
	uint64_t before, left = npages;
	int err, tries = 0;

	do {
		before = left;
		err = gmem_launch_do(launch, -1, GMEM_SNP_CMD_LAUNCH_UPDATE, 0, &u, &answer);
		if (answer.why)
			err = answer.why;
		left = u.len >> GMEM_PAGE_SHIFT;
		if (left > before || !gmem_page_aligned(u.len) || u.gfn_start + left != all.gfn_start + npages ||
		    (src && u.uaddr + u.len != all.uaddr + all.len)) {
			err = bad_progress();
			left = before;
			break;
		}
	} while (goes_on(launch, &err, before, left, &tries));
	*ret_why = left ? err : 0;
	return left;
}

static uint64_t update_tdx(struct gmem_launch *launch, uint64_t gpa, const void *src, uint64_t npages,
			   enum gmem_launch_page type, int *ret_why)
{
	struct gmem_tdx_init_mem_region r = { .source_addr = (uintptr_t)src, .gpa = gpa, .nr_pages = npages };
	uint32_t flags = type == GMEM_LAUNCH_NORMAL ? GMEM_TDX_MEASURE_MEMORY_REGION : 0;
	struct gmem_launch_answer answer;
	int vcpu = launch->vm ? GMEM_LAUNCH_NO_VCPU : 0;
	uint64_t before, left = npages;
	int err, tries = 0;

	do {
		before = left;
		err = gmem_launch_do(launch, vcpu, GMEM_TDX_CMD_INIT_MEM_REGION, flags, &r, &answer);
		left = r.nr_pages;
		if (left > before || r.gpa != gpa + ((npages - left) << GMEM_PAGE_SHIFT) ||
		    r.source_addr != (uintptr_t)src + ((npages - left) << GMEM_PAGE_SHIFT)) {
			err = bad_progress();
			left = before;
			break;
		}
	} while (goes_on(launch, &err, before, left, &tries));
	*ret_why = left ? err : 0;
	return left;
}

int64_t gmem_launch_update_why(struct gmem_launch *launch, uint64_t gpa, const void *src, int64_t npages,
			       enum gmem_launch_page type, int *ret_why)
{
	int64_t done = check_update(launch, gpa, src, npages, type);

	*ret_why = 0;
	if (!done) {
		done = npages - (int64_t)(launch->type == GMEM_VM_SNP ?
						  update_snp(launch, gpa, src, (uint64_t)npages, type, ret_why) :
						  update_tdx(launch, gpa, src, (uint64_t)npages, type, ret_why));
		if (!done)
			done = *ret_why;
	}
	return done < 0 ? gmem_err_prefix((int)done, "gmem_launch_update: gpa 0x%llx", (unsigned long long)gpa) : done;
}

int64_t gmem_launch_update(struct gmem_launch *launch, uint64_t gpa, const void *src, int64_t npages,
			   enum gmem_launch_page type)
{
	int why;

	return gmem_launch_update_why(launch, gpa, src, npages, type, &why);
}

int gmem_launch_extend(struct gmem_launch *launch, uint64_t gpa, uint64_t len)
{
	struct gmem_launch_answer answer = { 0 };
	int err;

	if (!launch->ops->extend)
		return gmem_err(-EOPNOTSUPP, "gmem_launch_extend: not a TDX launch of the library's own");
	if (gpa % 256 || len % 256 || !len || gpa + len < gpa)
		return gmem_err(-EINVAL, "gmem_launch_extend: gpa 0x%llx, 0x%llx bytes: not whole chunks of 256 bytes",
				(unsigned long long)gpa, (unsigned long long)len);
	err = check_process(launch->vm);
	if (!err)
		err = launch->ops->extend(launch, gpa, len, &answer);
	if (err)
		atomic_store(&launch->status, answer.status);
	return err ? gmem_err_prefix(err, "gmem_launch_extend") : 0;
}

/* ---- its end */

static int finish_snp(struct gmem_launch *launch, const struct gmem_launch_finish *opts,
		      struct gmem_launch_answer *answer)
{
	struct gmem_snp_launch_finish f = {
		.id_block_uaddr = (uintptr_t)opts->id_block,
		.id_auth_uaddr = (uintptr_t)opts->id_auth,
		.id_block_en = !!opts->id_block,
		.auth_key_en = opts->auth_key_en,
		.vcek_disabled = opts->vcek_disabled,
	};

	if (!opts->id_block != !opts->id_auth || (opts->auth_key_en && !opts->id_auth))
		return gmem_err(-EINVAL, "an ID block and its authentication go together");
	memcpy(f.host_data, opts->host_data, sizeof(f.host_data));
	return gmem_launch_do(launch, -1, GMEM_SNP_CMD_LAUNCH_FINISH, 0, &f, answer);
}

int gmem_launch_finish(struct gmem_launch *launch, const struct gmem_launch_finish *opts)
{
	const struct gmem_launch_finish none = { .size = sizeof(none) };
	struct gmem_launch_answer answer;
	int err;

	if (!opts)
		opts = &none;
	if (opts->size != sizeof(*opts))
		return gmem_err(-EINVAL, "gmem_launch_finish: opts->size is %zu, not %zu", opts->size, sizeof(*opts));
	if (launch->type == GMEM_VM_SNP)
		err = finish_snp(launch, opts, &answer);
	else
		err = gmem_launch_do(launch, -1, GMEM_TDX_CMD_FINALIZE_VM, 0, NULL, &answer);
	return err ? gmem_err_prefix(err, "gmem_launch_finish") : 0;
}

int gmem_launch_digest(struct gmem_launch *launch, uint8_t ret[GMEM_LAUNCH_DIGEST_LEN])
{
	int err;

	if (!launch->ops->digest)
		return gmem_err(-EOPNOTSUPP, "gmem_launch_digest: the digest is in the guest's attestation report");
	err = check_process(launch->vm);
	if (!err)
		err = launch->ops->digest(launch, ret);
	return err ? gmem_err_prefix(err, "gmem_launch_digest") : 0;
}
