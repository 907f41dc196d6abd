/* SPDX-License-Identifier: MIT */
#include "tap.h"

#include "base/range.h"

TEST(rounding)
{
	CHECK(gmem_page_aligned(0));
	CHECK(gmem_page_aligned(4096));
	CHECK(!gmem_page_aligned(4095));
	CHECK(!gmem_page_aligned(UINT64_MAX));
	CHECK_EQ(gmem_page_round_down(4095), 0);
	CHECK_EQ(gmem_page_round_down(8191), 4096);
	CHECK(gmem_page_round_down(UINT64_MAX) == UINT64_MAX - 4095);
}

TEST(inside)
{
	CHECK(gmem_range_inside(0, 10, 10));
	CHECK(gmem_range_inside(10, 0, 10));
	CHECK(!gmem_range_inside(11, 0, 10));
	CHECK(!gmem_range_inside(1, 10, 10));
	/* Sums that wrap. */
	CHECK(!gmem_range_inside(5, UINT64_MAX, 10));
	CHECK(!gmem_range_inside(UINT64_MAX, 2, UINT64_MAX));
	CHECK(gmem_range_inside(UINT64_MAX - 1, 1, UINT64_MAX));
}

/* Against the definition: is there a byte in both? */
TEST(overlaps)
{
	for (uint64_t a = 0; a < 6; a++)
		for (uint64_t alen = 0; alen < 6; alen++)
			for (uint64_t b = 0; b < 6; b++)
				for (uint64_t blen = 0; blen < 6; blen++) {
					bool common = false;

					for (uint64_t x = 0; x < 12; x++)
						common |= x >= a && x < a + alen && x >= b && x < b + blen;
					if (gmem_range_overlaps(a, alen, b, blen) != common)
						FAIL("[%d, +%d) and [%d, +%d)", (int)a, (int)alen, (int)b, (int)blen);
				}
}

TEST(min_max)
{
	CHECK(gmem_min_u64(0, UINT64_MAX) == 0);
	CHECK(gmem_max_u64(0, UINT64_MAX) == UINT64_MAX);
	CHECK(gmem_min_u64(7, 7) == 7);
}
