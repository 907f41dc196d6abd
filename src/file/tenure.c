/* SPDX-License-Identifier: MIT */
/* Two counts make a page's number: its own, and its unit's, so that a file that is given up as a whole costs little. */
#include "file/tenure.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/err.h"

#define UNIT 512u /* pages */

struct unit {
	const void *by; /* whose slot showed some of it last */
	_Atomic uint32_t n;
};

struct gmem_tenures {
	struct unit *units;
	_Atomic uint32_t *pages;
	uint64_t len; /* bytes of both: memory that is not touched is not there */
};

static struct gmem_tenures *new_tenures(uint64_t npages)
{
	uint64_t nunits = (npages + UNIT - 1) / UNIT;
	struct gmem_tenures *t = malloc(sizeof(*t));
	void *p;

	if (!t)
		return NULL;
	t->len = nunits * sizeof(*t->units) + npages * sizeof(*t->pages);
	p = mmap(NULL, t->len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED) {
		free(t);
		return NULL;
	}
	t->units = p;
	t->pages = (_Atomic uint32_t *)(t->units + nunits);
	return t;
}

static void count(_Atomic uint32_t *n)
{
	/* Whoever reads it meanwhile is told by the invalidation. */
	atomic_fetch_add_explicit(n, 1, memory_order_relaxed);
}

int gmem_tenure_bind(struct gmem_file *file, const struct gmem_binding *b)
{
	struct gmem_tenures *t = atomic_load(&file->tenures);
	uint64_t end = (b->off + b->len + UNIT * GMEM_PAGE_SIZE - 1) / (UNIT * GMEM_PAGE_SIZE);

	if (!t && !b->counts_tenures)
		return 0;
	if (!t) {
		t = new_tenures(file->state.npages);
		if (!t)
			return gmem_err_sys(-ENOMEM, "tenures of the file's pages");
		atomic_store(&file->tenures, t);
	}
	for (uint64_t i = b->off / (UNIT * GMEM_PAGE_SIZE); i < end; i++) {
		if (t->units[i].by && t->units[i].by != b->by)
			count(&t->units[i].n);
		t->units[i].by = b->by;
	}
	return 0;
}

void gmem_tenure_end(struct gmem_file *file, uint64_t off, uint64_t len)
{
	struct gmem_tenures *t = atomic_load(&file->tenures);
	uint64_t page = off >> GMEM_PAGE_SHIFT, end = (off + len) >> GMEM_PAGE_SHIFT;

	while (t && page < end) {
		if (page % UNIT || end - page < UNIT) {
			count(&t->pages[page++]);
		} else {
			count(&t->units[page / UNIT].n);
			page += UNIT;
		}
	}
}

uint64_t gmem_tenure_number(const struct gmem_file *file, uint64_t off)
{
	const struct gmem_tenures *t = atomic_load(&file->tenures);
	uint64_t page = off >> GMEM_PAGE_SHIFT;

	if (!t)
		return 0;
	return (uint64_t)atomic_load_explicit(&t->units[page / UNIT].n, memory_order_relaxed) << 32 |
	       atomic_load_explicit(&t->pages[page], memory_order_relaxed);
}

void gmem_tenure_destroy(struct gmem_file *file)
{
	struct gmem_tenures *t = atomic_load(&file->tenures);

	if (!t)
		return;
	munmap(t->units, t->len);
	free(t);
}
