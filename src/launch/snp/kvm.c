/* SPDX-License-Identifier: MIT */
/*
 * KVM_SEV_SNP_LAUNCH_START, _UPDATE and _FINISH. Of kernels, which differ, the newest is meant: the source of a page
 * has to be aligned, and vCPUs that have been measured are not measured again.
 */
#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "launch/snp/kvm.h"
#include "launch/snp/vmsa.h"
#include "sys/call.h"

_Static_assert((int)GMEM_LAUNCH_NORMAL == (int)GMEM_SNP_TYPE_NORMAL &&
		       (int)GMEM_LAUNCH_ZERO == (int)GMEM_SNP_TYPE_ZERO &&
		       (int)GMEM_LAUNCH_UNMEASURED == (int)GMEM_SNP_TYPE_UNMEASURED &&
		       (int)GMEM_LAUNCH_SECRETS == (int)GMEM_SNP_TYPE_SECRETS &&
		       (int)GMEM_LAUNCH_CPUID == (int)GMEM_SNP_TYPE_CPUID,
	       "KVM's page types are the firmware's");
_Static_assert(sizeof(struct gmem_snp_launch_start) == 0x40, "struct kvm_sev_snp_launch_start");
_Static_assert(sizeof(struct gmem_snp_launch_update) == 0x40, "struct kvm_sev_snp_launch_update");
_Static_assert(sizeof(struct gmem_snp_launch_finish) == 0x58, "struct kvm_sev_snp_launch_finish");

/* What KVM lets pass of a policy. */
#define POLICY_VALID                                                                                         \
	(GMEM_SNP_POLICY_MINOR | GMEM_SNP_POLICY_MAJOR | GMEM_SNP_POLICY_SMT | GMEM_SNP_POLICY_MUST_BE_ONE | \
	 GMEM_SNP_POLICY_DEBUG | GMEM_SNP_POLICY_SINGLE_SOCKET)

static uint64_t paddr_of(const void *page)
{
	return gmem_snp_pfn(page) << GMEM_PAGE_SHIFT;
}

/* What the firmware answered, as the driver of the secure processor passes it on. */
static int firmware(uint32_t status, struct gmem_launch_answer *answer)
{
	answer->status = status;
	return status ? gmem_err(-EIO, "the firmware refused: %s (0x%x)", gmem_snp_status_text(status), status) : 0;
}

/* RMPUPDATE, as the kernel passes it on. */
static int rmp(int result)
{
	return result > 0 ? gmem_err(-EFAULT, "RMPUPDATE: %d", result) : result;
}

static int copy_from_caller(void *to, const void *from, size_t len)
{
	ssize_t n;

	gmem_might_fault();
	n = gmem_sys_peek(to, from, len);
	return n == (ssize_t)len ? 0 : gmem_err(-EFAULT, "%zu bytes at %p cannot be read", len, from);
}

static int copy_to_caller(void *to, const void *from, size_t len)
{
	ssize_t n;

	gmem_might_fault();
	n = gmem_sys_poke(to, from, len);
	return n == (ssize_t)len ? 0 : gmem_err(-EFAULT, "%zu bytes at %p cannot be written", len, to);
}

/* ---- LAUNCH_START */

/* The page of a context that failed is the host's again. */
static void give_up_context(struct gmem_snp_guest *guest)
{
	const struct gmem_snp_cmd_addr ctx = { .gctx_paddr = paddr_of(guest->context) };
	const struct gmem_snp_cmd_page_reclaim page = { .paddr = paddr_of(guest->context) };

	(void)gmem_snp_decommission(&guest->asp, &ctx);
	(void)gmem_snp_page_reclaim(&guest->asp, &page);
	(void)gmem_rmp_make_shared(&guest->rmp, gmem_snp_pfn(guest->context));
}

static int create_context(struct gmem_snp_guest *guest, struct gmem_launch_answer *answer)
{
	const struct gmem_rmp_entry firmware_page = { .assigned = 1, .immutable = 1 };
	const struct gmem_snp_cmd_addr ctx = { .gctx_paddr = paddr_of(guest->context) };
	int err = rmp(gmem_rmp_update(&guest->rmp, gmem_snp_pfn(guest->context), &firmware_page));

	return err ? err : firmware(gmem_snp_gctx_create(&guest->asp, &ctx), answer);
}

int gmem_snp_kvm_start(struct gmem_snp_guest *guest, const struct gmem_snp_launch_start *p,
		       struct gmem_launch_answer *answer)
{
	struct gmem_snp_cmd_launch_start start = { .gctx_paddr = paddr_of(guest->context), .policy = p->policy };
	const struct gmem_snp_cmd_activate activate = { .gctx_paddr = start.gctx_paddr, .asid = guest->asid };
	int err;

	if (guest->started)
		return gmem_err(-EINVAL, "the launch has been started");
	if (p->flags)
		return gmem_err(-EINVAL, "flags 0x%x", p->flags);
	if (p->policy & ~POLICY_VALID)
		return gmem_err(-EINVAL, "policy 0x%llx: KVM does not know 0x%llx", (unsigned long long)p->policy,
				(unsigned long long)(p->policy & ~POLICY_VALID));
	if (!(p->policy & GMEM_SNP_POLICY_MUST_BE_ONE))
		return gmem_err(-EINVAL, "policy 0x%llx: bit 17 must be set", (unsigned long long)p->policy);
	memcpy(start.gosvw, p->gosvw, sizeof(start.gosvw));
	err = create_context(guest, answer);
	if (err)
		return err;
	err = firmware(gmem_snp_launch_start(&guest->asp, &start), answer);
	if (!err)
		err = firmware(gmem_snp_activate(&guest->asp, &activate), answer);
	if (err)
		give_up_context(guest);
	else
		guest->started = true;
	return err;
}

/* ---- LAUNCH_UPDATE */

struct update {
	struct gmem_snp_guest *guest;
	uint32_t type;
	struct gmem_launch_answer *answer;
};

static void reclaim(struct gmem_snp_guest *guest, uint64_t pfn)
{
	const struct gmem_snp_cmd_page_reclaim page = { .paddr = pfn << GMEM_PAGE_SHIFT };

	(void)gmem_snp_page_reclaim(&guest->asp, &page);
	(void)gmem_rmp_make_shared(&guest->rmp, pfn);
}

/* One page, whose bytes are in its frame. */
static int update_page(struct gmem_vm *vm, uint64_t gfn, uint64_t pfn, void *src, void *opaque)
{
	const struct update *u = opaque;
	const struct gmem_snp_cmd_launch_update cmd = {
		.gctx_paddr = paddr_of(u->guest->context),
		.page_paddr = pfn << GMEM_PAGE_SHIFT,
		.page_type = u->type & 7,
	};
	int err = gmem_snp_guest_claim(u->guest, gfn, pfn);

	(void)vm;
	if (err)
		return err;
	err = rmp(gmem_rmp_make_private(&u->guest->rmp, pfn, gfn, u->guest->asid, true));
	if (err)
		return err;
	err = firmware(gmem_snp_launch_update(&u->guest->asp, &cmd), u->answer);
	if (!err)
		return 0;
	reclaim(u->guest, pfn);
	/* What the firmware would have taken instead; the caller gets it back. */
	if (u->type == GMEM_SNP_TYPE_CPUID && u->answer->status == GMEM_SEV_RET_INVALID_PARAM)
		memcpy(src, gmem_pfn_addr(pfn), GMEM_PAGE_SIZE);
	return err;
}

static int check_update(const struct gmem_snp_launch_update *p)
{
	if (!p->len || !gmem_page_aligned(p->len))
		return gmem_err(-EINVAL, "len 0x%llx: no whole pages", (unsigned long long)p->len);
	if (p->flags)
		return gmem_err(-EINVAL, "flags 0x%x", p->flags);
	switch (p->type) {
	case GMEM_SNP_TYPE_ZERO:
		return 0;
	case GMEM_SNP_TYPE_NORMAL:
	case GMEM_SNP_TYPE_UNMEASURED:
	case GMEM_SNP_TYPE_SECRETS:
	case GMEM_SNP_TYPE_CPUID:
		return p->uaddr && gmem_page_aligned(p->uaddr) ?
			       0 :
			       gmem_err(-EINVAL, "uaddr 0x%llx: none, or not page-aligned",
					(unsigned long long)p->uaddr);
	default:
		return gmem_err(-EINVAL, "page type %u: unknown", p->type);
	}
}

static uint32_t populate_flags(uint8_t type)
{
	return GMEM_POPULATE_UNTOUCHED | (type == GMEM_SNP_TYPE_ZERO ? GMEM_POPULATE_ZERO : 0) |
	       (type == GMEM_SNP_TYPE_CPUID ? GMEM_POPULATE_WRITE_BACK : 0);
}

/* `p` goes on by what was done. */
static int launch_update(struct gmem_snp_guest *guest, struct gmem_snp_launch_update *p,
			 struct gmem_launch_answer *answer)
{
	struct update u = { .guest = guest, .type = p->type, .answer = answer };
	void *src = p->type == GMEM_SNP_TYPE_ZERO ? NULL : (void *)(uintptr_t)p->uaddr;
	const struct gmem_slot *slot = gmem_vm_slot(guest->vm, p->gfn_start);
	int64_t n;
	int why;

	if (!slot || !gmem_slot_has_file(slot))
		return gmem_err(-EINVAL, "guest frame 0x%llx: no slot%s", (unsigned long long)p->gfn_start,
				slot ? " with a file" : "");
	n = gmem_populate_locked(guest->vm, p->gfn_start, src, (int64_t)(p->len >> GMEM_PAGE_SHIFT),
				 populate_flags(p->type), update_page, &u, &why);
	answer->why = n < 0 ? (int)n : why;
	/* Whatever it was. */
	if (n < 0)
		return -EIO;
	p->gfn_start += (uint64_t)n;
	p->len -= (uint64_t)n << GMEM_PAGE_SHIFT;
	if (src)
		p->uaddr += (uint64_t)n << GMEM_PAGE_SHIFT;
	return 0;
}

/* ---- LAUNCH_FINISH */

static int measure_vcpu(struct gmem_snp_guest *guest, uint32_t i, struct gmem_launch_answer *answer)
{
	struct gmem_snp_vmsa *vmsa = &guest->vmsas[i];
	const struct gmem_snp_cmd_launch_update cmd = {
		.gctx_paddr = paddr_of(guest->context),
		.page_paddr = paddr_of(vmsa->page),
		.page_type = GMEM_SNP_TYPE_VMSA,
	};
	int err;

	if (vmsa->measured)
		return gmem_err(-EINVAL, "vCPU %u has been measured", i);
	err = rmp(gmem_rmp_make_private(&guest->rmp, gmem_snp_pfn(vmsa->page), GMEM_SNP_VMSA_GPA >> GMEM_PAGE_SHIFT,
					guest->asid, true));
	if (err)
		return err;
	err = firmware(gmem_snp_launch_update(&guest->asp, &cmd), answer);
	if (err)
		reclaim(guest, gmem_snp_pfn(vmsa->page));
	else
		vmsa->measured = true;
	return err;
}

/* The caller's blob, in a page of ours. */
static int copy_blob(uint64_t uaddr, void *page, size_t len)
{
	return uaddr ? copy_from_caller(page, (const void *)(uintptr_t)uaddr, len) :
		       gmem_err(-EINVAL, "no ID block, or nothing that authenticates it");
}

static int launch_finish(struct gmem_snp_guest *guest, const struct gmem_snp_launch_finish *p,
			 struct gmem_launch_answer *answer)
{
	struct gmem_snp_cmd_launch_finish cmd = {
		.gctx_paddr = paddr_of(guest->context),
		.vcek_dis = p->vcek_disabled & 1,
	};
	uint8_t id_block[GMEM_SNP_ID_BLOCK_LEN], id_auth[GMEM_SNP_ID_AUTH_LEN];
	int err = 0;

	if (p->flags)
		return gmem_err(-EINVAL, "flags 0x%x", p->flags);
	for (uint32_t i = 0; !err && i < guest->nvmsas; i++)
		err = measure_vcpu(guest, i, answer);
	if (!err && p->id_block_en) {
		err = copy_blob(p->id_block_uaddr, id_block, sizeof(id_block));
		if (!err)
			err = copy_blob(p->id_auth_uaddr, id_auth, sizeof(id_auth));
		cmd.id_block_en = 1;
		cmd.id_block_paddr = (uintptr_t)id_block;
		cmd.id_auth_paddr = (uintptr_t)id_auth;
		cmd.auth_key_en = !!p->auth_key_en;
	}
	if (err)
		return err;
	memcpy(cmd.host_data, p->host_data, sizeof(cmd.host_data));
	err = firmware(gmem_snp_launch_finish(&guest->asp, &cmd), answer);
	if (!err)
		atomic_store(&guest->external.building, false);
	return err;
}

/* ---- KVM_MEMORY_ENCRYPT_OP */

static int start_command(struct gmem_snp_guest *guest, void *data, struct gmem_launch_answer *answer)
{
	struct gmem_snp_launch_start p;
	int err = copy_from_caller(&p, data, sizeof(p));

	if (err)
		return err;
	gmem_vm_lock_slots(guest->vm);
	err = gmem_snp_kvm_start(guest, &p, answer);
	gmem_vm_unlock_slots(guest->vm);
	return err;
}

static int not_started(const struct gmem_snp_guest *guest)
{
	return guest->started ? 0 : gmem_err(-EINVAL, "the launch has not been started");
}

static int update_command(struct gmem_snp_guest *guest, void *data, struct gmem_launch_answer *answer)
{
	struct gmem_snp_launch_update p;
	int err;

	gmem_vm_lock_slots(guest->vm);
	err = not_started(guest);
	if (!err)
		err = copy_from_caller(&p, data, sizeof(p));
	if (!err)
		err = check_update(&p);
	if (!err)
		err = launch_update(guest, &p, answer);
	if (!err)
		err = copy_to_caller(data, &p, sizeof(p));
	gmem_vm_unlock_slots(guest->vm);
	return err;
}

static int finish_command(struct gmem_snp_guest *guest, void *data, struct gmem_launch_answer *answer)
{
	struct gmem_snp_launch_finish p;
	int err;

	gmem_vm_lock_slots(guest->vm);
	err = not_started(guest);
	if (!err)
		err = copy_from_caller(&p, data, sizeof(p));
	if (!err)
		err = launch_finish(guest, &p, answer);
	gmem_vm_unlock_slots(guest->vm);
	return err;
}

int gmem_snp_kvm_command(struct gmem_snp_guest *guest, uint32_t id, void *data, struct gmem_launch_answer *answer)
{
	switch (id) {
	case GMEM_SNP_CMD_LAUNCH_START:
		return start_command(guest, data, answer);
	case GMEM_SNP_CMD_LAUNCH_UPDATE:
		return update_command(guest, data, answer);
	case GMEM_SNP_CMD_LAUNCH_FINISH:
		return finish_command(guest, data, answer);
	default:
		return id < GMEM_SNP_CMD_LAUNCH_START ?
			       gmem_err(-EPERM, "a command of SEV's that an SNP guest does not take") :
			       gmem_err(-EINVAL, "unknown");
	}
}
