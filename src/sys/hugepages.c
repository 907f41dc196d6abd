/* SPDX-License-Identifier: MIT */
#include "sys/hugepages.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sys/probe.h"

static uint64_t number(const char *path)
{
	char text[32];

	return gmem_probe_read(path, text, sizeof(text)) ? 0 : strtoull(text, NULL, 10);
}

void gmem_huge_pool(struct gmem_huge_pool *pool)
{
	uint64_t free = number(GMEM_HUGE_DIR "/free_hugepages"), reserved = number(GMEM_HUGE_DIR "/resv_hugepages");

	pool->total = number(GMEM_HUGE_DIR "/nr_hugepages");
	pool->free = free > reserved ? free - reserved : 0;
}

void gmem_huge_shmem(char *word, size_t len)
{
	char text[128], *from, *to;

	snprintf(word, len, "unknown");
	if (gmem_probe_read("/sys/kernel/mm/transparent_hugepage/shmem_enabled", text, sizeof(text)))
		return;
	from = strchr(text, '[');
	to = from ? strchr(from, ']') : NULL;
	if (to)
		snprintf(word, len, "%.*s", (int)(to - from - 1), from + 1);
}
