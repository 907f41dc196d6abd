/* SPDX-License-Identifier: MIT */
/*
 * SNP_LAUNCH_UPDATE: a page that the host has prepared (PRE-GUEST) becomes the guest's, and one more link of the chain
 * of hashes over PAGE_INFO structures that is the launch digest. A page of 2 MiB is 512 links.
 */
#include <string.h>

#include "base/le.h"
#include "launch/sha384.h"
#include "launch/snp/asp.h"

/* PAGE_INFO */
#define INFO_DIGEST_CUR 0x00
#define INFO_CONTENTS 0x30
#define INFO_LENGTH 0x60
#define INFO_PAGE_TYPE 0x62
#define INFO_IMI_PAGE 0x63
#define INFO_VMPL1_PERMS 0x65
#define INFO_VMPL2_PERMS 0x66
#define INFO_VMPL3_PERMS 0x67
#define INFO_GPA 0x68
#define INFO_LEN 0x70

/* In a VMSA: what the processor itself sets for the guest, and is measured as zero. */
#define VMSA_TSC_OFF 0x2f0
#define VMSA_TSC_LEN 16

/* libcrypto had no memory. */
#define NO_HASH GMEM_SEV_RET_RESOURCE_LIMIT

/* ---- checks, in their order */

static uint32_t check_page(const struct gmem_snp_asp *asp, const struct gmem_snp_cmd_launch_update *cmd,
			   struct gmem_rmp_entry *e)
{
	uint64_t pfn = cmd->page_paddr >> GMEM_PAGE_SHIFT;

	*e = gmem_rmp_read(asp->rmp, pfn);
	if (gmem_rmp_entry_state(e) != GMEM_RMP_PRE_GUEST)
		return GMEM_SEV_RET_INVALID_PAGE_STATE;
	if (e->large != cmd->page_size)
		return GMEM_SEV_RET_INVALID_PAGE_SIZE;
	if (e->large && pfn % GMEM_RMP_LARGE_PAGES)
		return GMEM_SEV_RET_INVALID_ADDRESS;
	switch (cmd->page_type) {
	case GMEM_SNP_TYPE_NORMAL:
	case GMEM_SNP_TYPE_ZERO:
	case GMEM_SNP_TYPE_UNMEASURED:
		return GMEM_SEV_RET_SUCCESS;
	case GMEM_SNP_TYPE_VMSA:
	case GMEM_SNP_TYPE_SECRETS:
	case GMEM_SNP_TYPE_CPUID:
		return e->large ? GMEM_SEV_RET_INVALID_PAGE_SIZE : GMEM_SEV_RET_SUCCESS;
	default:
		return GMEM_SEV_RET_INVALID_PARAM;
	}
}

static uint32_t check_guest(const struct gmem_snp_context *ctx, const struct gmem_snp_cmd_launch_update *cmd,
			    const struct gmem_rmp_entry *e)
{
	if (ctx->state != GMEM_SNP_GUEST_LAUNCH)
		return GMEM_SEV_RET_INVALID_GUEST_STATE;
	if (!ctx->asid)
		return GMEM_SEV_RET_INACTIVE;
	if (e->asid != ctx->asid)
		return GMEM_SEV_RET_INVALID_PAGE_OWNER;
	if (ctx->imi_en && !cmd->imi_page)
		return GMEM_SEV_RET_INVALID_PARAM;
	return GMEM_SEV_RET_SUCCESS;
}

/* ---- 4 KiB of it */

/* What PAGE_INFO says of the bytes that are to be measured: their hash. */
static uint32_t hash_contents(uint32_t type, const uint8_t *bytes, uint8_t *contents)
{
	uint8_t vmsa[GMEM_PAGE_SIZE];

	if (type == GMEM_SNP_TYPE_VMSA) {
		memcpy(vmsa, bytes, sizeof(vmsa));
		memset(vmsa + VMSA_TSC_OFF, 0, VMSA_TSC_LEN);
		bytes = vmsa;
	} else if (type != GMEM_SNP_TYPE_NORMAL) {
		return GMEM_SEV_RET_SUCCESS;
	}
	return gmem_sha384(bytes, GMEM_PAGE_SIZE, contents) ? NO_HASH : GMEM_SEV_RET_SUCCESS;
}

/* The bytes that the guest will find. `page` is what the host reads meanwhile. */
static uint32_t make_contents(const struct gmem_snp_asp *asp, const struct gmem_snp_context *ctx, uint32_t type,
			      uint8_t *bytes, void *page)
{
	bool correctable;
	uint32_t status;

	switch (type) {
	case GMEM_SNP_TYPE_ZERO:
		memset(bytes, 0, GMEM_PAGE_SIZE);
		return GMEM_SEV_RET_SUCCESS;
	case GMEM_SNP_TYPE_SECRETS:
		gmem_snp_secrets_build(&ctx->secrets, bytes);
		return GMEM_SEV_RET_SUCCESS;
	case GMEM_SNP_TYPE_CPUID:
		status = gmem_snp_cpuid_check(bytes, &asp->cpu, &correctable);
		if (status && correctable)
			memcpy(page, bytes, GMEM_PAGE_SIZE);
		return status;
	default:
		return GMEM_SEV_RET_SUCCESS;
	}
}

static uint32_t extend(uint8_t *digest, uint8_t *info)
{
	uint8_t next[GMEM_SNP_LD_LEN];

	memcpy(info + INFO_DIGEST_CUR, digest, GMEM_SNP_LD_LEN);
	if (gmem_sha384(info, INFO_LEN, next))
		return NO_HASH;
	memcpy(digest, next, sizeof(next));
	return GMEM_SEV_RET_SUCCESS;
}

/* What is measured is what the guest finds, whoever else writes to the page meanwhile. */
static uint32_t update_page(const struct gmem_snp_asp *asp, struct gmem_snp_context *ctx,
			    const struct gmem_snp_cmd_launch_update *cmd, uint64_t pfn, uint64_t gfn)
{
	uint8_t bytes[GMEM_PAGE_SIZE], info[INFO_LEN] = { 0 };
	void *page = gmem_pfn_addr(pfn);
	uint32_t status;

	memcpy(bytes, page, sizeof(bytes));
	status = hash_contents(cmd->page_type, bytes, info + INFO_CONTENTS);
	if (!status)
		status = make_contents(asp, ctx, cmd->page_type, bytes, page);
	if (status)
		return status;
	gmem_put_le16(info + INFO_LENGTH, INFO_LEN);
	info[INFO_PAGE_TYPE] = cmd->page_type;
	info[INFO_IMI_PAGE] = cmd->imi_page;
	info[INFO_VMPL1_PERMS] = cmd->vmpl1_perms;
	info[INFO_VMPL2_PERMS] = cmd->vmpl2_perms;
	info[INFO_VMPL3_PERMS] = cmd->vmpl3_perms;
	gmem_put_le64(info + INFO_GPA, gfn << GMEM_PAGE_SHIFT);
	status = extend(ctx->ld, info);
	if (!status && cmd->imi_page)
		status = extend(ctx->imd, info);
	if (!status)
		memcpy(page, bytes, sizeof(bytes));
	return status;
}

uint32_t gmem_snp_launch_update(struct gmem_snp_asp *asp, const struct gmem_snp_cmd_launch_update *cmd)
{
	uint64_t pfn = cmd->page_paddr >> GMEM_PAGE_SHIFT;
	struct gmem_snp_context *ctx;
	struct gmem_rmp_entry e;
	uint32_t status;

	if ((cmd->gctx_paddr & GMEM_SNP_ADDR_RESERVED) || (cmd->page_paddr & GMEM_SNP_ADDR_RESERVED) || cmd->reserved ||
	    cmd->reserved2 || cmd->reserved3 || cmd->reserved4)
		return GMEM_SEV_RET_INVALID_PARAM;
	status = gmem_snp_find_context(asp, cmd->gctx_paddr, &ctx);
	if (!status)
		status = check_page(asp, cmd, &e);
	if (!status)
		status = check_guest(ctx, cmd, &e);
	for (uint32_t i = 0; !status && i < (e.large ? GMEM_RMP_LARGE_PAGES : 1); i++)
		status = update_page(asp, ctx, cmd, pfn + i, e.gpa + i);
	if (status)
		return status;
	e.perms[1] = cmd->vmpl1_perms;
	e.perms[2] = cmd->vmpl2_perms;
	e.perms[3] = cmd->vmpl3_perms;
	if (cmd->page_type == GMEM_SNP_TYPE_VMSA)
		e.vmsa = 1;
	e.validated = 1;
	e.immutable = 0;
	e.lock = 0;
	return gmem_rmp_write(asp->rmp, pfn, &e) ? NO_HASH : GMEM_SEV_RET_SUCCESS;
}
