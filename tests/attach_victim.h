/* SPDX-License-Identifier: MIT */
/* What the attach preload's victim and its test agree on. */
#ifndef GMEM_TESTS_ATTACH_VICTIM_H
#define GMEM_TESTS_ATTACH_VICTIM_H

#include <stdatomic.h>
#include <stdint.h>

#define VICTIM_PAGES 1024ull

/* In a memory file of its own. */
struct victim_shared {
	_Atomic int said; /* by the victim */
	_Atomic int told; /* to it */
};

/* The bytes of memory number 0, word_at(0, off) of the other tests: every eighth page is zero. */
static inline uint64_t victim_word(uint64_t off)
{
	uint64_t z = off + 0x9e3779b97f4a7c15ull;

	if (off / 4096 % 8 == 7)
		return 0;
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	return z ^ z >> 27;
}

#endif
