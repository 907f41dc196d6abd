/* SPDX-License-Identifier: MIT */
/* Many pages hashed at once, in lanes and without, against one after another. */
#include "tap.h"

#include "launch/sha384_many.h"

#define PAGE 4096u
#define MAX_PAGES 70u

static void check_hashes(const uint8_t *pages, size_t npages, const uint8_t (*got)[GMEM_SHA384_LEN])
{
	uint8_t want[GMEM_SHA384_LEN];

	for (size_t i = 0; i < npages; i++) {
		CHECK_OK(gmem_sha384(pages + i * PAGE, PAGE, want));
		CHECK_MEM(got[i], want, sizeof(want));
	}
}

/* Any number of pages, of which some are zero but for their last byte and some are zero, at any alignment. */
TEST(any_number_of_pages_as_one_by_one)
{
	uint8_t *raw = malloc(MAX_PAGES * PAGE + 64), hashes[MAX_PAGES][GMEM_SHA384_LEN];
	struct gmem_sha384_many many;
	uint64_t seed = tap_seed();

	CHECK(raw);
	for (int lanes = 0; lanes < 2; lanes++) {
		CHECK_OK(gmem_sha384_many_init(&many, lanes));
		for (size_t npages = 0; npages <= MAX_PAGES; npages += npages < 20 ? 1 : 10) {
			uint8_t *pages = raw + tap_rand(&seed) % 64;

			for (size_t i = 0; i < npages * PAGE; i += 8) {
				uint64_t word = tap_rand(&seed);

				memcpy(pages + i, &word, sizeof(word));
			}
			for (size_t i = 0; i < npages; i++) {
				if (tap_rand(&seed) % 3)
					continue;
				memset(pages + i * PAGE, 0, PAGE);
				pages[i * PAGE + PAGE - 1] = tap_rand(&seed) % 2;
			}
			memset(hashes, 0xee, sizeof(hashes));
			CHECK_OK(gmem_sha384_many(&many, pages, npages, hashes));
			check_hashes(pages, npages, (const void *)hashes);
		}
		gmem_sha384_many_free(&many);
		gmem_sha384_many_free(&many);
	}
	free(raw);
}

/* A chain beside the pages: each link is the hash of the one before. */
TEST(links_beside_pages_are_a_chain)
{
	uint8_t *pages = malloc(MAX_PAGES * PAGE), hashes[MAX_PAGES][GMEM_SHA384_LEN];
	uint8_t link[GMEM_SHA384_LEN], message[112], want[GMEM_SHA384_LEN];
	uint64_t seed = tap_seed();
	struct gmem_sha384_many many;

	CHECK(pages);
	for (size_t i = 0; i < MAX_PAGES * PAGE; i++)
		pages[i] = (uint8_t)tap_rand(&seed);
	for (int lanes = 0; lanes < 2; lanes++) {
		uint32_t left = 0, nlinks = 0;
		size_t put = 0;
		bool linking = false;
		int n = 1;

		CHECK_OK(gmem_sha384_many_init(&many, lanes));
		memset(link, 0, sizeof(link));
		while (n > 0 || put < MAX_PAGES) {
			if (linking && !gmem_sha384_many_linking(&many)) {
				linking = false;
				nlinks++;
			}
			if (!linking && tap_rand(&seed) % 4) {
				memset(message, (int)nlinks, sizeof(message));
				memcpy(message, link, sizeof(link));
				CHECK_OK(gmem_sha384_many_link(&many, message, sizeof(message), tap_rand(&seed) % 4,
							       link));
				linking = true;
			} else if (put < MAX_PAGES) {
				CHECK_OK(gmem_sha384_many_put(&many, pages + put * PAGE, hashes[put], &left));
				put++;
			} else {
				n = gmem_sha384_many_push(&many);
				CHECK(n >= 0);
			}
		}
		CHECK_EQ(left, 0);
		CHECK(!gmem_sha384_many_linking(&many));
		nlinks += linking;
		CHECK(nlinks >= MAX_PAGES / 2);
		check_hashes(pages, MAX_PAGES, (const void *)hashes);
		memset(want, 0, sizeof(want));
		for (uint32_t i = 0; i < nlinks; i++) {
			memset(message, (int)i, sizeof(message));
			memcpy(message, want, sizeof(want));
			CHECK_OK(gmem_sha384(message, sizeof(message), want));
		}
		CHECK_MEM(link, want, sizeof(want));
		gmem_sha384_many_free(&many);
	}
	free(pages);
}

/* What is given up in the middle leaves nothing behind. */
TEST(given_up_in_the_middle)
{
	uint8_t *pages = malloc(5 * PAGE), hashes[5][GMEM_SHA384_LEN];
	struct gmem_sha384_many many;
	uint32_t left = 0;

	CHECK(pages);
	memset(pages, 7, 5 * PAGE);
	CHECK_OK(gmem_sha384_many_init(&many, true));
	for (size_t i = 0; i < 5; i++)
		CHECK_OK(gmem_sha384_many_put(&many, pages + i * PAGE, hashes[i], &left));
	gmem_sha384_many_free(&many);
	free(pages);
}
