/* SPDX-License-Identifier: MIT */
/* How much the work behind the faults does at once, and that it waits for them, but not for ever. */
#include "tap.h"

#include <pthread.h>

#include "fault/pace.h"

#define P 4096ull
#define MS 1000000ull

static struct gmem_pager *bare_pager(void)
{
	struct gmem_pager *pager = calloc(1, sizeof(*pager));

	CHECK(pager);
	return pager;
}

/* What takes long is done in smaller steps, down to some. */
TEST(long_steps_are_halved)
{
	struct gmem_pager *pager = bare_pager();
	struct gmem_pace pace;

	gmem_pace_init(&pace, pager, 512, false);
	pace.pages = 512;
	for (uint32_t want = 256; want >= 64; want /= 2) {
		CHECK_EQ(gmem_pace_step(&pace), 2 * want * P);
		pace.step_ns -= 20 * MS;
		gmem_pace_step_done(&pace, 2 * want);
		CHECK_EQ(pace.pages, want);
	}
	gmem_pace_step(&pace);
	pace.step_ns -= 20 * MS;
	gmem_pace_step_done(&pace, 64);
	CHECK_EQ(pace.pages, 64);
	free(pager);
}

/* Slices are short while there are faults, and as short as they have to be for what a page takes. */
TEST(slices_by_faults_and_speed)
{
	struct gmem_pager *pager = bare_pager();
	struct gmem_pace pace;
	uint64_t quiet, busy;

	gmem_pace_init(&pace, pager, 512, false);
	pace.page_ns = 1000;
	quiet = gmem_pace_slice(&pace);
	atomic_store(&pager->c.missing, 1);
	busy = gmem_pace_slice(&pace);
	CHECK(busy < quiet);
	CHECK_EQ(busy, 12 * P);
	/* A minor fault is one too. */
	pace.fault_ns -= 1000 * MS;
	CHECK_EQ(gmem_pace_slice(&pace), quiet);
	atomic_store(&pager->c.minor, 1);
	CHECK_EQ(gmem_pace_slice(&pace), busy);
	/* Ten times as slow: fewer pages, and never fewer than four. */
	pace.page_ns = 10000;
	atomic_store(&pager->c.minor, 2);
	CHECK_EQ(gmem_pace_slice(&pace), 4 * P);
	for (int i = 0; i < 100; i++) {
		gmem_pace_slice(&pace);
		pace.slice_ns -= 1000 * MS;
		gmem_pace_slice_done(&pace, 4);
	}
	CHECK(pace.page_ns > 1 * MS);
	atomic_store(&pager->c.minor, 3);
	CHECK_EQ(gmem_pace_slice(&pace), 4 * P);
	pace.page_ns = 0;
	atomic_store(&pager->c.minor, 4);
	CHECK(gmem_pace_slice(&pace) > busy);
	free(pager);
}

/* A source that is at hand is read in short steps while there are faults; one that is not, in long ones. */
TEST(steps_of_what_is_at_hand)
{
	struct gmem_pager *pager = bare_pager();
	struct gmem_pace pace;

	gmem_pace_init(&pace, pager, 256, false);
	pace.pages = 256;
	CHECK_EQ(gmem_pace_step(&pace), 256 * P);
	/* 10 us a page, but for the slices. */
	gmem_pace_slice(&pace);
	gmem_pace_slice_done(&pace, 256);
	pace.step_ns -= 256 * 10000;
	gmem_pace_step_done(&pace, 256);
	CHECK(!pace.at_hand);
	pace.pages = 256;
	pace.at_hand = true;
	CHECK_EQ(gmem_pace_step(&pace), 256 * P);
	atomic_store(&pager->c.missing, 1);
	CHECK_EQ(gmem_pace_step(&pace), 16 * P);
	pace.at_hand = false;
	CHECK_EQ(gmem_pace_step(&pace), 256 * P);
	/* Nothing was read: nothing is learned. */
	pace.at_hand = true;
	pace.step_ns -= 1000 * MS;
	gmem_pace_step_done(&pace, 256);
	CHECK(pace.at_hand);
	free(pager);
}

/* A fault that nobody can serve holds the work up for a while, each time, and no longer. */
TEST(one_that_cannot_be_served)
{
	struct gmem_pager *pager = bare_pager();
	struct gmem_pace pace;

	atomic_store(&pager->pending, 1);
	for (int replay = 0; replay < 2; replay++) {
		gmem_pace_init(&pace, pager, 256, replay);
		for (int i = 0; i < 3; i++) {
			CHECK(gmem_pace_step(&pace) > 0);
			CHECK(gmem_pace_slice(&pace) > 0);
		}
	}
	free(pager);
}
