/* SPDX-License-Identifier: MIT */
/*
 * AMD's secure processor, as far as a launch goes: the commands by which a guest comes to be ("SEV-SNP Firmware ABI";
 * the order of the checks, and so which of two errors is told, is that of the firmware AMD publishes).
 *
 * Enters: commands, laid out as the host's kernel gives them. Leaves: a status (status.h), and what became of the
 * guest's context, its pages and their entries in the reverse map table. Addresses are those of frames
 * (gmem_pfn_addr()), whose memory must be there. Nothing is encrypted. No lock: one command at a time; the table has a
 * lock of its own.
 */
#ifndef GMEM_LAUNCH_SNP_ASP_H
#define GMEM_LAUNCH_SNP_ASP_H

#include "launch/snp/cpuid.h"
#include "launch/snp/id_block.h"
#include "launch/snp/rmp.h"
#include "launch/snp/secrets.h"
#include "launch/snp/status.h"

/* Of the firmware interface that is emulated. */
#define GMEM_SNP_API_MAJOR 1u
#define GMEM_SNP_API_MINOR 55u

#define GMEM_SNP_POLICY_MINOR 0xffull
#define GMEM_SNP_POLICY_MAJOR 0xff00ull
#define GMEM_SNP_POLICY_SMT (1ull << 16)
#define GMEM_SNP_POLICY_MUST_BE_ONE (1ull << 17)
#define GMEM_SNP_POLICY_MIGRATE_MA (1ull << 18)
#define GMEM_SNP_POLICY_DEBUG (1ull << 19)
#define GMEM_SNP_POLICY_SINGLE_SOCKET (1ull << 20)
#define GMEM_SNP_POLICY_RESERVED (~0ull << 21)

#define GMEM_SNP_LD_LEN 48u

/* PAGE_TYPE of SNP_LAUNCH_UPDATE. */
enum gmem_snp_page_type {
	GMEM_SNP_TYPE_NORMAL = 1,
	GMEM_SNP_TYPE_VMSA = 2,
	GMEM_SNP_TYPE_ZERO = 3,
	GMEM_SNP_TYPE_UNMEASURED = 4,
	GMEM_SNP_TYPE_SECRETS = 5,
	GMEM_SNP_TYPE_CPUID = 6,
};

enum gmem_snp_guest_state { GMEM_SNP_GUEST_INIT, GMEM_SNP_GUEST_LAUNCH, GMEM_SNP_GUEST_RUNNING };

/* What a page in the state CONTEXT holds, which the host cannot read. */
struct gmem_snp_context {
	enum gmem_snp_guest_state state;
	uint32_t asid; /* 0: not activated */
	uint64_t policy;
	uint64_t migration_agent; /* its context; UINT64_MAX: none */
	uint8_t ld[GMEM_SNP_LD_LEN], imd[GMEM_SNP_LD_LEN]; /* launch digest; that of the pages of a migration's image */
	bool imi_en;
	uint32_t desired_tsc_freq;
	struct gmem_snp_secrets secrets;
	/* Of LAUNCH_FINISH. */
	uint8_t host_data[32];
	bool id_block_en, author_key_en, vcek_dis;
	struct gmem_snp_id id;
};

/* The processor, its firmware initialised or not, and the machine around it. */
struct gmem_snp_asp {
	struct gmem_rmp *rmp; /* borrowed */
	bool initialised;
	bool smt; /* the machine has it on */
	struct gmem_snp_cpu cpu;
	uint64_t asids[16]; /* a bit each that belongs to a guest */
	uint32_t max_asid;
};

/* ---- commands, as in the kernel's psp-sev.h. All that is called reserved must be zero */

struct gmem_snp_cmd_addr { /* GCTX_CREATE, DECOMMISSION */
	uint64_t gctx_paddr;
};

struct gmem_snp_cmd_activate {
	uint64_t gctx_paddr;
	uint32_t asid, reserved;
};

struct gmem_snp_cmd_launch_start {
	uint64_t gctx_paddr, policy, ma_gctx_paddr;
	uint32_t ma_en : 1, imi_en : 1, reserved : 30;
	uint32_t desired_tsc_freq;
	uint8_t gosvw[16];
};

struct gmem_snp_cmd_launch_update {
	uint64_t gctx_paddr;
	uint32_t page_size : 1, page_type : 3, imi_page : 1, reserved : 27;
	uint32_t reserved2;
	uint64_t page_paddr;
	uint8_t reserved3, vmpl1_perms, vmpl2_perms, vmpl3_perms;
	uint32_t reserved4;
};

struct gmem_snp_cmd_launch_finish {
	uint64_t gctx_paddr, id_block_paddr, id_auth_paddr;
	uint64_t id_block_en : 1, auth_key_en : 1, vcek_dis : 1, reserved : 61;
	uint8_t host_data[32];
};

struct gmem_snp_cmd_page_reclaim {
	uint64_t paddr; /* bit 0: the page is of 2 MiB */
};

_Static_assert(sizeof(struct gmem_snp_cmd_activate) == 0x10, "SNP_ACTIVATE");
_Static_assert(sizeof(struct gmem_snp_cmd_launch_start) == 0x30, "SNP_LAUNCH_START");
_Static_assert(sizeof(struct gmem_snp_cmd_launch_update) == 0x20, "SNP_LAUNCH_UPDATE");
_Static_assert(sizeof(struct gmem_snp_cmd_launch_finish) == 0x40, "SNP_LAUNCH_FINISH");

/* A machine that has not been initialised: an EPYC 9004 with SMT. */
void gmem_snp_asp_setup(struct gmem_snp_asp *asp, struct gmem_rmp *rmp);

/* All answer a status. */
uint32_t gmem_snp_init(struct gmem_snp_asp *asp);
uint32_t gmem_snp_gctx_create(struct gmem_snp_asp *asp, const struct gmem_snp_cmd_addr *cmd);
uint32_t gmem_snp_decommission(struct gmem_snp_asp *asp, const struct gmem_snp_cmd_addr *cmd);
uint32_t gmem_snp_activate(struct gmem_snp_asp *asp, const struct gmem_snp_cmd_activate *cmd);
uint32_t gmem_snp_launch_start(struct gmem_snp_asp *asp, const struct gmem_snp_cmd_launch_start *cmd);
uint32_t gmem_snp_launch_update(struct gmem_snp_asp *asp, const struct gmem_snp_cmd_launch_update *cmd);
uint32_t gmem_snp_launch_finish(struct gmem_snp_asp *asp, const struct gmem_snp_cmd_launch_finish *cmd);
uint32_t gmem_snp_page_reclaim(struct gmem_snp_asp *asp, const struct gmem_snp_cmd_page_reclaim *cmd);

/* ---- what asp.c and update.c share */

#define GMEM_SNP_ADDR_RESERVED (GMEM_PAGE_SIZE - 1)

/* The context at an address, that must be one, of a processor that must be initialised. */
uint32_t gmem_snp_find_context(const struct gmem_snp_asp *asp, uint64_t paddr, struct gmem_snp_context **ret);

#endif
