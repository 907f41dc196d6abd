/* SPDX-License-Identifier: MIT */
/* Which pages are private: a bit a page, read without a lock. */
#include <errno.h>
#include <unistd.h>

#include "base/range.h"
#include "file/state.h"

/* The bits of one word that belong to pages [first, end). */
static uint64_t mask_of(uint64_t word, uint64_t first, uint64_t end)
{
	uint64_t from = first > word * 64 ? first - word * 64 : 0;
	uint64_t to = end < (word + 1) * 64 ? end - word * 64 : 64;

	return (to == 64 ? ~0ull : (1ull << to) - 1) & ~((1ull << from) - 1);
}

#define WORDS_A_STEP (GMEM_PAGE_SIZE / sizeof(uint64_t))

/*
 * The first word from `word` on whose page of the bitmap has memory; the ones before are 0. To read them would give
 * them memory: 32 MiB for a file of 1 TiB.
 */
static uint64_t next_used(const struct gmem_state *s, uint64_t word)
{
	off_t base = (off_t)((const char *)s->flips - (const char *)s->header);
	off_t at = base + (off_t)(word * sizeof(uint64_t)), data = lseek(s->fd, at, SEEK_DATA);

	if (data < 0)
		return errno == ENXIO ? UINT64_MAX / 64 : word;
	return data <= at ? word : (uint64_t)(data - base) / sizeof(uint64_t);
}

uint64_t gmem_state_side_end(const struct gmem_state *s, uint64_t page, uint64_t end)
{
	uint64_t first = atomic_load_explicit(&s->flips[page / 64], memory_order_acquire) >> page % 64 & 1;

	for (uint64_t word = page / 64; word * 64 < end; word++) {
		uint64_t bits, other;

		/* The first one has been read. */
		if (!first && word % WORDS_A_STEP == 0 && word != page / 64)
			word = next_used(s, word);
		if (word * 64 >= end)
			break;
		bits = atomic_load_explicit(&s->flips[word], memory_order_acquire);
		other = (first ? ~bits : bits) & mask_of(word, page, end);

		if (other)
			return word * 64 + (uint64_t)__builtin_ctzll(other);
	}
	return end;
}

void gmem_state_set_side(struct gmem_state *s, uint64_t first, uint64_t end, bool private)
{
	bool flip = private != s->init_private;

	for (uint64_t word = first / 64; word * 64 < end; word++) {
		uint64_t mask = mask_of(word, first, end);

		/* Release: pairs with gmem_state_private(). Who sees the new side sees what was done before. */
		if (flip)
			atomic_fetch_or_explicit(&s->flips[word], mask, memory_order_release);
		else
			atomic_fetch_and_explicit(&s->flips[word], ~mask, memory_order_release);
	}
}

int gmem_state_claim(struct gmem_state *s, uint32_t use)
{
	uint32_t uses = atomic_load(&s->header->uses);

	do {
		if (uses & gmem_use_excludes(use))
			return -EBUSY;
		if (uses & use)
			return 0;
	} while (!atomic_compare_exchange_weak(&s->header->uses, &uses, uses | use));
	return 0;
}
