/* SPDX-License-Identifier: MIT */
/* The TDX module in small: what its calls answer by their operands, epochs, and what becomes of pages. */
#include "tap.h"

#include "tdx_td.h"

/* ---- operands */

TEST(addresses)
{
	const uint64_t bad = 0xc000010000000000 | RCX, none = 0xc0000b0000000000 | RCX;

	init();
	/* Beyond what is private; not of a page; tables on the way are not there. */
	CHECK_EQ(gmem_tdx_mem_page_add(&td, 1ull << 47, 1), bad);
	CHECK_EQ(gmem_tdx_mem_page_add(&td, GPA + 1, 1), bad);
	CHECK_EQ(gmem_tdx_mem_page_add(&td, GPA, 1), none);
	CHECK_EQ(gmem_tdx_mem_page_aug(&td, GPA + P, GMEM_SEPT_PD, 1), bad);
	CHECK_EQ(gmem_tdx_mem_page_aug(&td, 0, GMEM_SEPT_PDPT, 1), bad);
	CHECK_EQ(gmem_tdx_mem_page_aug(&td, GPA, GMEM_SEPT_PT, 1), none);
	CHECK_EQ(gmem_tdx_mem_sept_add(&td, GPA, GMEM_SEPT_PT, NULL), bad);
	CHECK_EQ(gmem_tdx_mem_sept_add(&td, GPA, GMEM_SEPT_PML4, NULL), bad);
	CHECK_EQ(gmem_tdx_mem_sept_add(&td, 0, 4, NULL), bad);
	CHECK_EQ(gmem_tdx_mem_sept_add(&td, GPA, GMEM_SEPT_PD, NULL), none);
	/* R8. */
	CHECK_EQ(gmem_tdx_mem_sept_add(&td, 0, GMEM_SEPT_PML4, NULL), 0xc000010000000008);
	CHECK_EQ(gmem_tdx_mem_range_block(&td, 0, 4), bad);
	CHECK_EQ(gmem_tdx_mem_range_block(&td, GPA, GMEM_SEPT_PT), none);
	CHECK_EQ(gmem_tdx_mem_range_unblock(&td, GPA, GMEM_SEPT_PT), none);
	CHECK_EQ(gmem_tdx_mem_page_remove(&td, 0, GMEM_SEPT_PML4), bad);
	CHECK_EQ(gmem_tdx_mem_page_remove(&td, GPA, GMEM_SEPT_PT), none);
	CHECK_EQ(gmem_tdx_mr_extend(&td, GPA + 128), bad);
	CHECK_EQ(gmem_tdx_mr_extend(&td, 1ull << 47), bad);
	/* The walk says which operand, the entry does not. */
	CHECK_EQ(gmem_tdx_mr_extend(&td, GPA), NP | RCX);
	add_tables(GPA);
	CHECK_EQ(gmem_tdx_mr_extend(&td, GPA), NP);
	/* A table that is blocked ends the walk. */
	CHECK_EQ(gmem_tdx_mem_range_block(&td, GPA, GMEM_SEPT_PD), 0);
	CHECK_EQ(gmem_tdx_mem_page_add(&td, GPA, 1), none);
	CHECK_EQ(gmem_tdx_mem_range_unblock(&td, GPA, GMEM_SEPT_PD), 0);
	CHECK_EQ(gmem_tdx_mem_page_add(&td, GPA, 1), 0);
	add_vp(0);
	CHECK_EQ(gmem_tdx_mr_finalize(&td), 0);
	CHECK_EQ(gmem_tdx_page_accept(&td, 0, GMEM_SEPT_PDPT), bad);
	CHECK_EQ(gmem_tdx_page_accept(&td, GPA + 1, GMEM_SEPT_PT), bad);
	CHECK_EQ(gmem_tdx_page_accept(&td, 0, GMEM_SEPT_PT), VI);
	CHECK_EQ(gmem_tdx_page_accept(&td, GPA, GMEM_SEPT_PD), SM | 1);
	tear_down();
}

TEST(params)
{
	static const struct {
		uint64_t attributes, xfam, status;
		uint32_t max_vcpus;
	} of[] = {
		{ 0, 3, 0, 1 },
		{ 1ull << 28, 0x61ae7, 0, 576 },
		{ 1, 3, 0, 1 },
		{ 1ull << 1, 3, 0xc000010000000040, 1 }, /* ATTRIBUTES */
		{ 1ull << 29 | 1, 3, 0xc000010000000040, 1 }, /* MIGRATABLE and DEBUG */
		{ 1ull << 29 | 1ull << 63, 3, 0xc000010000000040, 1 },
		{ 0, 1, 0xc000010000000041, 1 }, /* XFAM */
		{ 0, 0x8 | 3, 0xc000010000000041, 1 }, /* MPX */
		{ 0, 0xe3, 0xc000010000000041, 1 }, /* AVX-512 without AVX */
		{ 0, 0x27, 0xc000010000000041, 1 }, /* or a part of it */
		{ 0, 0x803, 0xc000010000000041, 1 }, /* CET, */
		{ 0, 0x20003, 0xc000010000000041, 1 }, /* AMX in part */
		{ 0, 3, 0xc000010000000044, 0 }, /* MAX_VCPUS */
		{ 0, 3, 0xc000010000000044, 577 },
	};

	for (size_t i = 0; i < sizeof(of) / sizeof(*of); i++) {
		const struct gmem_tdx_params p = { .attributes = of[i].attributes,
						   .xfam = of[i].xfam,
						   .max_vcpus = of[i].max_vcpus };

		CHECK_OK(gmem_tdx_td_create(&td));
		CHECK_EQ(gmem_tdx_mng_init(&td, &p), of[i].status);
		CHECK_EQ(td.op_state, of[i].status ? GMEM_TDX_UNINITIALIZED : GMEM_TDX_INITIALIZED);
		tear_down();
	}
}

TEST(vcpus)
{
	init();
	CHECK_EQ(gmem_tdx_mr_finalize(&td), 0xc000060900000000);
	CHECK_EQ(gmem_tdx_vp_init(&td, 0, 0), 0xc000030000000000 | RCX);
	CHECK_EQ(gmem_tdx_vp_create(&td, 0), 0);
	CHECK_EQ(gmem_tdx_vp_create(&td, 0), 0xc000030000000000 | RCX);
	CHECK_EQ(gmem_tdx_vp_create(&td, GMEM_TDX_MAX_VCPUS_PER_TD + 1), 0xc000030000000000 | RCX);
	/* It is there, but does not count. */
	CHECK_EQ(gmem_tdx_mr_finalize(&td), 0xc000060900000000);
	CHECK_EQ(gmem_tdx_vp_init(&td, 0, 7), 0);
	CHECK_EQ(td.vps[0].rcx, 7);
	CHECK_EQ(gmem_tdx_vp_init(&td, 0, 0), 0xc000070000000000);
	add_vp(1);
	CHECK_EQ(gmem_tdx_vp_create(&td, 2), 0);
	CHECK_EQ(gmem_tdx_vp_init(&td, 2, 0), 0xc000070500000000);
	CHECK_EQ(gmem_tdx_mr_finalize(&td), 0);
	CHECK_EQ(gmem_tdx_vp_enter(&td, 2), 0xc000070000000000);
	CHECK_EQ(gmem_tdx_vp_enter(&td, 3), 0xc000030000000000 | RCX);
	CHECK_EQ(gmem_tdx_vp_enter(&td, 0), 0);
	CHECK_EQ(gmem_tdx_vp_enter(&td, 0), 0x8000020000000000 | RCX);
	gmem_tdx_vp_exit(&td, 0);
	CHECK_EQ(gmem_tdx_vp_enter(&td, 0), 0);
	tear_down();
}

TEST(texts)
{
	CHECK_STR(gmem_tdx_status_text(0), "SUCCESS");
	CHECK_STR(gmem_tdx_status_text(SI), "EPT_ENTRY_STATE_INCORRECT");
	CHECK_STR(gmem_tdx_status_text(0xc000060900000000), "NO_VCPUS");
	CHECK_STR(gmem_tdx_status_text(VI), "EPT violation");
	CHECK_STR(gmem_tdx_status_text(0x1234567800000000), "unknown status");
	CHECK_EQ(gmem_tdx_status_err(-EIO, "TDH.X", TR), -EIO);
	CHECK_STR(gmem_last_error(), "TDH.X: TLB_TRACKING_NOT_DONE (0xc0000b0800000001)");
}

/* ---- epochs */

static void block_page(void)
{
	make(GMEM_SEPT_MAPPED);
	CHECK_EQ(gmem_tdx_mem_range_block(&td, GPA, GMEM_SEPT_PT), 0);
}

static uint64_t remove_page(void)
{
	return gmem_tdx_mem_page_remove(&td, GPA, GMEM_SEPT_PT);
}

TEST(tracking)
{
	set_up();
	add_vp(1);
	CHECK_EQ(gmem_tdx_mr_finalize(&td), 0);
	/* Without vCPUs in the guest the next epoch is enough. */
	block_page();
	CHECK_EQ(remove_page(), TR);
	CHECK_EQ(gmem_tdx_mem_track(&td), 0);
	CHECK_EQ(remove_page(), 0);
	/* One that entered before is in the way until it is out. */
	CHECK_EQ(gmem_tdx_vp_enter(&td, 0), 0);
	block_page();
	CHECK_EQ(gmem_tdx_mem_track(&td), 0);
	CHECK_EQ(remove_page(), TR);
	/* Nor is there another epoch; another vCPU, which enters now, is in nobody's way. */
	CHECK_EQ(gmem_tdx_mem_track(&td), 0x8000020100000000);
	CHECK_EQ(gmem_tdx_vp_enter(&td, 1), 0);
	CHECK_EQ(remove_page(), TR);
	gmem_tdx_vp_exit(&td, 0);
	CHECK_EQ(remove_page(), 0);
	CHECK_EQ(gmem_tdx_mem_track(&td), 0);
	/* Back in before the block, out after it and in again: it has flushed. */
	CHECK_EQ(gmem_tdx_vp_enter(&td, 0), 0);
	block_page();
	CHECK_EQ(gmem_tdx_mem_track(&td), 0x8000020100000000);
	gmem_tdx_vp_exit(&td, 1);
	CHECK_EQ(gmem_tdx_mem_track(&td), 0);
	gmem_tdx_vp_exit(&td, 0);
	CHECK_EQ(gmem_tdx_vp_enter(&td, 0), 0);
	CHECK_EQ(remove_page(), 0);
	/* Blocked long ago. */
	gmem_tdx_vp_exit(&td, 0);
	block_page();
	for (int i = 0; i < 3; i++)
		CHECK_EQ(gmem_tdx_mem_track(&td), 0);
	CHECK_EQ(gmem_tdx_vp_enter(&td, 0), 0);
	CHECK_EQ(remove_page(), 0);
	tear_down();
}

/* Unblocked, it is what it was, once tracked. */
TEST(unblocking)
{
	set_up();
	CHECK_EQ(gmem_tdx_mr_finalize(&td), 0);
	block_page();
	CHECK_EQ(gmem_tdx_mem_range_unblock(&td, GPA, GMEM_SEPT_PT), TR);
	CHECK_EQ(gmem_tdx_mem_track(&td), 0);
	CHECK_EQ(gmem_tdx_mem_range_unblock(&td, GPA, GMEM_SEPT_PT), 0);
	CHECK_EQ(state_of(GPA), GMEM_SEPT_MAPPED);
	CHECK_EQ(gmem_sept_addr(*entry_at(GPA, GMEM_SEPT_PT)), (uintptr_t)page);
	tear_down();
}

/* ---- pages */

TEST(accepting_zeroes)
{
	unsigned char *large = aligned_alloc(P, 512 * P);

	CHECK(large);
	memset(large, 'x', 512 * P);
	memset(page, 'x', P);
	set_up();
	CHECK_EQ(gmem_tdx_mr_finalize(&td), 0);
	CHECK_EQ(gmem_tdx_mem_page_aug(&td, GPA, GMEM_SEPT_PT, pfn_of(page)), 0);
	CHECK_EQ(page[5], 'x');
	CHECK_EQ(gmem_tdx_page_accept(&td, GPA, GMEM_SEPT_PT), 0);
	for (size_t i = 0; i < P; i++)
		CHECK_EQ(page[i], 0);
	CHECK_EQ(gmem_tdx_page_accept(&td, GPA, GMEM_SEPT_PT), AA);
	/* 2 MiB at a time. */
	CHECK_EQ(gmem_tdx_mem_page_aug(&td, GPA + 512 * P, GMEM_SEPT_PD, pfn_of(large)), 0);
	CHECK_EQ(gmem_tdx_page_accept(&td, GPA + 512 * P, GMEM_SEPT_PT), VI);
	CHECK_EQ(gmem_tdx_page_accept(&td, GPA + 512 * P, GMEM_SEPT_PD), 0);
	for (size_t i = 0; i < 512 * P; i++)
		CHECK_EQ(large[i], 0);
	/* A part of it is accepted, at the level of the whole. */
	CHECK_EQ(gmem_tdx_page_accept(&td, GPA + 513 * P, GMEM_SEPT_PT), AA | 1);
	tear_down();
	free(large);
}

static void check_mrtd(const char *expected)
{
	uint8_t mrtd[GMEM_TDX_DIGEST_LEN];
	char hex[2 * sizeof(mrtd) + 1];

	CHECK_OK(gmem_tdx_mrtd(&td, mrtd));
	for (size_t i = 0; i < sizeof(mrtd); i++)
		snprintf(hex + 2 * i, 3, "%02x", mrtd[i]);
	CHECK_STR(hex, expected);
}

/* One page at 0x1000. */
TEST(unit_values)
{
	for (size_t i = 0; i < P; i++)
		page[i] = (unsigned char)(7 * i + 3);
	init();
	add_tables(0);
	check_mrtd("38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da274edebfe76f65fbd51ad2f14898b95b");
	CHECK_EQ(gmem_tdx_mr_extend(&td, 0x1000), NP);
	CHECK_EQ(gmem_tdx_mem_page_add(&td, 0x1000, pfn_of(page)), 0);
	check_mrtd("fcdabf6fdf38b87d2e3a89b1ab68c242abb261dffa70ef6f1dc2220c2752d2729cdf1be92afc2e0e4297f04e2b629552");
	for (uint64_t at = 0; at < P; at += 256)
		CHECK_EQ(gmem_tdx_mr_extend(&td, 0x1000 + at), 0);
	check_mrtd("1d6a39508485f397068c05784a4b63a370570e76aece69da8d9803c7ec110b31872fb82a115e9bb2ba454fad78293be6");
	/* A refused call is not measured, and finalizing it neither. */
	CHECK_EQ(gmem_tdx_mem_page_add(&td, 0x1000, pfn_of(page)), SI);
	add_vp(0);
	CHECK_EQ(gmem_tdx_mr_finalize(&td), 0);
	check_mrtd("1d6a39508485f397068c05784a4b63a370570e76aece69da8d9803c7ec110b31872fb82a115e9bb2ba454fad78293be6");
	tear_down();
}
