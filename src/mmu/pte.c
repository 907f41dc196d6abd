/* SPDX-License-Identifier: MIT */
/* By itself, because a linker replaces only what another file defines. */
#include "mmu/pte.h"

bool gmem_pte_cas(gmem_pte *pte, uint64_t *old, uint64_t new)
{
	return atomic_compare_exchange_strong(pte, old, new);
}
