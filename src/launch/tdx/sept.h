/* SPDX-License-Identifier: MIT */
/*
 * The secure EPT of a TD: tables of four levels whose entries say what the guest has at an address.
 *
 * Enters: guest-physical addresses. Leaves: entries, in a state each, and where a walk got to. The tables belong to
 * the tree once they are in it, and live as long as it does. No lock of its own: the TD's, of module.h, is held.
 */
#ifndef GMEM_LAUNCH_TDX_SEPT_H
#define GMEM_LAUNCH_TDX_SEPT_H

#include <stdbool.h>
#include <stdint.h>

/* Levels of entries: of a page of 4 KiB, ... */
#define GMEM_SEPT_PT 0
#define GMEM_SEPT_PD 1
#define GMEM_SEPT_PDPT 2
#define GMEM_SEPT_PML4 3

/* In the module's order. The exported ones are met by a migration alone. */
enum gmem_sept_state {
	GMEM_SEPT_FREE,
	GMEM_SEPT_REMOVED,
	GMEM_SEPT_NL_MAPPED, /* not a leaf: a table */
	GMEM_SEPT_NL_BLOCKED,
	GMEM_SEPT_MAPPED,
	GMEM_SEPT_BLOCKED,
	GMEM_SEPT_BLOCKEDW,
	GMEM_SEPT_EXPORTED_BLOCKEDW,
	GMEM_SEPT_EXPORTED_DIRTY,
	GMEM_SEPT_EXPORTED_DIRTY_BLOCKEDW,
	GMEM_SEPT_PENDING, /* the guest has not accepted it */
	GMEM_SEPT_PENDING_BLOCKED,
	GMEM_SEPT_PENDING_BLOCKEDW,
	GMEM_SEPT_PENDING_EXPORTED_BLOCKEDW,
	GMEM_SEPT_PENDING_EXPORTED_DIRTY,
	GMEM_SEPT_PENDING_EXPORTED_DIRTY_BLOCKEDW,
	GMEM_SEPT_STATES,
};

/*
 * Bits 0-6 are the state as the module encodes it (D, TDEX, TDBW, TDB, TDP, IPAT, PS, put side by side), bit 11 says
 * that a call is at the entry, bits 12 and up are the address of the page or the table.
 */
#define GMEM_SEPT_ENCODING 0x7full
#define GMEM_SEPT_LOCK (1ull << 11)
#define GMEM_SEPT_ADDR (~0xfffull)

#define GMEM_SEPT_ENTRIES 512u

struct gmem_sept_table {
	uint64_t entries[GMEM_SEPT_ENTRIES];
	uint64_t bepochs[GMEM_SEPT_ENTRIES]; /* the TD's epoch when what the entry has was blocked */
};

struct gmem_sept {
	struct gmem_sept_table *root;
};

/* An entry, and its level. */
struct gmem_sept_walk {
	uint64_t *entry, *bepoch;
	int level;
};

int gmem_sept_init(struct gmem_sept *sept); /* -ENOMEM */
/* With all tables; no page is touched. Takes one that was never made, all zero bytes. */
void gmem_sept_destroy(struct gmem_sept *sept);

/* Free entries. NULL: no memory. */
struct gmem_sept_table *gmem_sept_table_new(void);
void gmem_sept_table_free(struct gmem_sept_table *table); /* one that is in no tree; NULL is allowed */

/* False: it ended at a higher level, at *ret, where there is no table. */
bool gmem_sept_walk(const struct gmem_sept *sept, uint64_t gpa, int level, struct gmem_sept_walk *ret);

/* ---- entries */

enum gmem_sept_state gmem_sept_state(uint64_t entry);
/* The address and the lock stay. */
void gmem_sept_set_state(uint64_t *entry, enum gmem_sept_state state);
/* Whatever it was, it is that then; the lock stays. */
void gmem_sept_set(uint64_t *entry, enum gmem_sept_state state, uint64_t addr);

static inline uint64_t gmem_sept_addr(uint64_t entry)
{
	return entry & GMEM_SEPT_ADDR;
}

bool gmem_sept_is_leaf(enum gmem_sept_state state);
bool gmem_sept_is_blocked(enum gmem_sept_state state); /* against all access */
bool gmem_sept_is_accessible(enum gmem_sept_state state); /* by the guest, if only to read */
bool gmem_sept_needs_tracking(enum gmem_sept_state state); /* a processor may have a translation of it */

#endif
