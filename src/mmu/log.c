/* SPDX-License-Identifier: MIT */
#include "mmu/log.h"

#include <stdlib.h>

static uint64_t take(_Atomic uint64_t *word, uint64_t mask, bool clear)
{
	return mask & (clear ? atomic_fetch_and(word, ~mask) : atomic_load(word));
}

uint64_t gmem_log_take(_Atomic uint64_t *bits, uint64_t page, uint64_t wanted, bool clear)
{
	uint64_t low = wanted << page % 64, high = page % 64 ? wanted >> (64 - page % 64) : 0, got = 0;

	if (low)
		got = take(&bits[page / 64], low, clear) >> page % 64;
	if (high)
		got |= take(&bits[page / 64 + 1], high, clear) << (64 - page % 64);
	return got;
}

struct gmem_log *gmem_log_new(const struct gmem_log *old, uint32_t logs, uint64_t npages)
{
	struct gmem_log *log = calloc(1, sizeof(*log));

	if (!log)
		return NULL;
	log->logs = logs;
	for (uint32_t i = 0; i < GMEM_LOG_COUNT; i++) {
		if (!(logs & 1u << i))
			continue;
		log->bits[i] = old && old->bits[i] ? old->bits[i] : calloc(gmem_log_words(npages), sizeof(uint64_t));
		if (!log->bits[i]) {
			gmem_log_free(log, old);
			return NULL;
		}
	}
	return log;
}

void gmem_log_free(struct gmem_log *log, const struct gmem_log *but)
{
	for (uint32_t i = 0; log && i < GMEM_LOG_COUNT; i++)
		if (!but || log->bits[i] != but->bits[i])
			free((void *)log->bits[i]);
	free(log);
}
