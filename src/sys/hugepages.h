/* SPDX-License-Identifier: MIT */
/* The kernel's pool of reserved huge pages of 2 MiB, and what it says of transparent ones. No state, no lock. */
#ifndef GMEM_SYS_HUGEPAGES_H
#define GMEM_SYS_HUGEPAGES_H

#include <stddef.h>
#include <stdint.h>

#define GMEM_HUGE_SHIFT 21
#define GMEM_HUGE_SIZE (UINT64_C(1) << GMEM_HUGE_SHIFT)
#define GMEM_HUGE_DIR "/sys/kernel/mm/hugepages/hugepages-2048kB"

struct gmem_huge_pool {
	uint64_t total, free; /* pages; `free` is what nobody has, nor has reserved */
};

/* All 0 where there is no such pool. */
void gmem_huge_pool(struct gmem_huge_pool *pool);

/* The word that shmem_enabled has chosen ("never", "advise", ...), "unknown" if it cannot be read. */
void gmem_huge_shmem(char *word, size_t len);

#endif
