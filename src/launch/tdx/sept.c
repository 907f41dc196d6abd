/* SPDX-License-Identifier: MIT */
#include "launch/tdx/sept.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/range.h"

#define INDEX_BITS 9

static const uint8_t encodings[GMEM_SEPT_STATES] = {
	[GMEM_SEPT_FREE] = 0x0e,
	[GMEM_SEPT_REMOVED] = 0x0c,
	[GMEM_SEPT_NL_MAPPED] = 0x00,
	[GMEM_SEPT_NL_BLOCKED] = 0x08,
	[GMEM_SEPT_MAPPED] = 0x60,
	[GMEM_SEPT_BLOCKED] = 0x68,
	[GMEM_SEPT_BLOCKEDW] = 0x64,
	[GMEM_SEPT_EXPORTED_BLOCKEDW] = 0x66,
	[GMEM_SEPT_EXPORTED_DIRTY] = 0x63,
	[GMEM_SEPT_EXPORTED_DIRTY_BLOCKEDW] = 0x67,
	[GMEM_SEPT_PENDING] = 0x70,
	[GMEM_SEPT_PENDING_BLOCKED] = 0x78,
	[GMEM_SEPT_PENDING_BLOCKEDW] = 0x74,
	[GMEM_SEPT_PENDING_EXPORTED_BLOCKEDW] = 0x76,
	[GMEM_SEPT_PENDING_EXPORTED_DIRTY] = 0x73,
	[GMEM_SEPT_PENDING_EXPORTED_DIRTY_BLOCKEDW] = 0x77,
};

#define IS(state, set) ((set) >> (state)&1u)
#define S(x) (1u << GMEM_SEPT_##x)

/* ---- entries */

enum gmem_sept_state gmem_sept_state(uint64_t entry)
{
	unsigned int state = GMEM_SEPT_FREE;

	/* Nothing else is ever stored. */
	while (state < GMEM_SEPT_STATES - 1 && encodings[state] != (entry & GMEM_SEPT_ENCODING))
		state++;
	return (enum gmem_sept_state)state;
}

void gmem_sept_set_state(uint64_t *entry, enum gmem_sept_state state)
{
	*entry = (*entry & ~GMEM_SEPT_ENCODING) | encodings[state];
}

void gmem_sept_set(uint64_t *entry, enum gmem_sept_state state, uint64_t addr)
{
	*entry = (*entry & GMEM_SEPT_LOCK) | (addr & GMEM_SEPT_ADDR) | encodings[state];
}

bool gmem_sept_is_leaf(enum gmem_sept_state state)
{
	return state >= GMEM_SEPT_MAPPED;
}

bool gmem_sept_is_blocked(enum gmem_sept_state state)
{
	return IS(state, S(NL_BLOCKED) | S(BLOCKED) | S(PENDING_BLOCKED));
}

bool gmem_sept_is_accessible(enum gmem_sept_state state)
{
	return IS(state,
		  S(MAPPED) | S(BLOCKEDW) | S(EXPORTED_BLOCKEDW) | S(EXPORTED_DIRTY) | S(EXPORTED_DIRTY_BLOCKEDW));
}

bool gmem_sept_needs_tracking(enum gmem_sept_state state)
{
	return !IS(state, S(FREE) | S(REMOVED) | S(EXPORTED_BLOCKEDW) | S(PENDING_EXPORTED_BLOCKEDW));
}

/* ---- tables */

struct gmem_sept_table *gmem_sept_table_new(void)
{
	/* An entry has its address without the lower bits. */
	struct gmem_sept_table *table = aligned_alloc(GMEM_PAGE_SIZE, sizeof(*table));

	if (!table)
		return NULL;
	memset(table->bepochs, 0, sizeof(table->bepochs));
	for (unsigned int i = 0; i < GMEM_SEPT_ENTRIES; i++)
		table->entries[i] = encodings[GMEM_SEPT_FREE];
	return table;
}

void gmem_sept_table_free(struct gmem_sept_table *table)
{
	free(table);
}

static struct gmem_sept_table *table_of(uint64_t entry)
{
	return (struct gmem_sept_table *)(uintptr_t)gmem_sept_addr(entry);
}

int gmem_sept_init(struct gmem_sept *sept)
{
	sept->root = gmem_sept_table_new();
	return sept->root ? 0 : gmem_err_sys(-ENOMEM, "secure EPT");
}

/* Four levels deep at most. */
static void free_tree(struct gmem_sept_table *table)
{
	for (unsigned int i = 0; i < GMEM_SEPT_ENTRIES; i++) {
		enum gmem_sept_state state = gmem_sept_state(table->entries[i]);

		if (state == GMEM_SEPT_NL_MAPPED || state == GMEM_SEPT_NL_BLOCKED)
			free_tree(table_of(table->entries[i]));
	}
	free(table);
}

void gmem_sept_destroy(struct gmem_sept *sept)
{
	if (sept->root)
		free_tree(sept->root);
	sept->root = NULL;
}

bool gmem_sept_walk(const struct gmem_sept *sept, uint64_t gpa, int level, struct gmem_sept_walk *ret)
{
	struct gmem_sept_table *table = sept->root;

	for (ret->level = GMEM_SEPT_PML4;; ret->level--) {
		unsigned int i = gpa >> (GMEM_PAGE_SHIFT + INDEX_BITS * ret->level) & (GMEM_SEPT_ENTRIES - 1);

		ret->entry = &table->entries[i];
		ret->bepoch = &table->bepochs[i];
		if (ret->level == level)
			return true;
		if (gmem_sept_state(*ret->entry) != GMEM_SEPT_NL_MAPPED)
			return false;
		table = table_of(*ret->entry);
	}
}
