/* SPDX-License-Identifier: MIT */
/* A secure processor, and some pages of its machine. */
#ifndef GMEM_TESTS_SNP_ASP_UTIL_H
#define GMEM_TESTS_SNP_ASP_UTIL_H

#include "tap.h"

#include <sys/mman.h>

#include "launch/snp/asp.h"

#define PAGE 4096u
#define ASID 1u
#define GFN 1ull
#define POLICY 0x30000ull
#define LARGE 512u

/* A machine, whose memory is one range of pages. */
static struct gmem_rmp rmp;
static struct gmem_snp_asp asp;
static char *memory; /* aligned to 2 MiB: LARGE pages, then some */
static char *ctx_page, *page; /* in what follows the first 2 MiB */

static inline uint64_t paddr(const void *at)
{
	return (uintptr_t)at;
}

static inline uint64_t pfn(const void *at)
{
	return paddr(at) / PAGE;
}

static inline struct gmem_snp_context *context(void)
{
	return (struct gmem_snp_context *)ctx_page;
}

#define CHECK_STATUS(call, st) CHECK_STR(gmem_snp_status_text(call), gmem_snp_status_text(GMEM_SEV_RET_##st))

static inline void set(const void *at, struct gmem_rmp_entry e)
{
	CHECK_OK(gmem_rmp_write(&rmp, pfn(at), &e));
}

static inline enum gmem_rmp_state state(const void *at)
{
	struct gmem_rmp_entry e = gmem_rmp_read(&rmp, pfn(at));

	return gmem_rmp_entry_state(&e);
}

static inline void power_on(void)
{
	char *at = mmap(NULL, 6u << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(at != MAP_FAILED);
	memory = at + (-(uintptr_t)at & ((2u << 20) - 1));
	ctx_page = memory + (2u << 20);
	page = ctx_page + PAGE;
	gmem_rmp_init(&rmp);
	gmem_snp_asp_setup(&asp, &rmp);
}

static inline void prepare(const void *at)
{
	set(at, (struct gmem_rmp_entry){ .assigned = 1, .immutable = 1, .asid = ASID, .gpa = GFN });
}

static inline struct gmem_snp_cmd_launch_start start_cmd(void)
{
	return (struct gmem_snp_cmd_launch_start){ .gctx_paddr = paddr(ctx_page), .policy = POLICY };
}

static inline void create(void)
{
	struct gmem_snp_cmd_addr ctx;

	power_on();
	ctx.gctx_paddr = paddr(ctx_page);
	CHECK_STATUS(gmem_snp_init(&asp), SUCCESS);
	set(ctx_page, (struct gmem_rmp_entry){ .assigned = 1, .immutable = 1 });
	CHECK_STATUS(gmem_snp_gctx_create(&asp, &ctx), SUCCESS);
}

/* A guest that is being launched, and a page for it. */
static inline void launch(void)
{
	struct gmem_snp_cmd_activate activate = { .asid = ASID };
	struct gmem_snp_cmd_launch_start start;

	create();
	start = start_cmd();
	activate.gctx_paddr = paddr(ctx_page);
	CHECK_STATUS(gmem_snp_launch_start(&asp, &start), SUCCESS);
	CHECK_STATUS(gmem_snp_activate(&asp, &activate), SUCCESS);
	prepare(page);
}

static inline void power_off(void)
{
	gmem_rmp_destroy(&rmp);
}

static inline bool ld_is_empty(void)
{
	static const uint8_t none[GMEM_SNP_LD_LEN];

	return !memcmp(context()->ld, none, sizeof(none));
}

#endif
