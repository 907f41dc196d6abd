/* SPDX-License-Identifier: MIT */
/*
 * gmem-bench-mmu [-f] [-r ROUNDS] [-m MIB] FOLDER: what do second-stage tables cost?
 *
 * Mapping, walking and zapping in leaves of 4 KiB, beside a four-level table in plain code that knows no other thread;
 * zaps beside the kernel's own of as much mapped memory; table memory in leaves of 2 MiB; faults by one vCPU and two,
 * and among many slots; and a guest's loads beside memcpy() out of a view of the same pages. What is mapped is checked
 * after each round.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench.h"
#include "vm/vm.h"

#define BOTH (GMEM_SIDE_SHARED | GMEM_SIDE_PRIVATE)
#define COPY_MIB 256u
#define SLOTS 4096u
#define STEPS 3

static const uint32_t steps[STEPS] = { 64u << 10, 256u << 10, 1u << 20 };

static uint64_t npages; /* of the guest */

/* ---- the plain table */

struct plain {
	uint64_t *root, *unused;
	size_t used, room;
};

static void plain_init(struct plain *p)
{
	p->room = npages / 512 * 2 + 16;
	p->root = mmap(NULL, p->room * BENCH_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE,
		       -1, 0);
	if (p->root == MAP_FAILED)
		bench_die("mmap");
}

static void plain_clear(struct plain *p)
{
	memset(p->root, 0, p->room * BENCH_PAGE);
	p->used = 1;
}

static void plain_map(struct plain *p, uint64_t gfn, uint64_t pfn)
{
	uint64_t *table = p->root;

	for (int level = GMEM_PT_LEVELS; level > 1; level--) {
		uint64_t *e = &table[gmem_pt_index(gfn, level)];

		if (!*e)
			*e = (uintptr_t)(p->root + 512 * p->used++) | GMEM_PTE_PRESENT;
		table = (uint64_t *)(uintptr_t)(*e & ~GMEM_PTE_FLAGS);
	}
	table[gmem_pt_index(gfn, 1)] = pfn << GMEM_PAGE_SHIFT | GMEM_PTE_PRESENT | GMEM_PTE_LEAF;
}

static uint64_t plain_walk(const struct plain *p, uint64_t gfn)
{
	const uint64_t *table = p->root;

	for (int level = GMEM_PT_LEVELS;; level--) {
		uint64_t e = table[gmem_pt_index(gfn, level)];

		if (!(e & GMEM_PTE_PRESENT) || (e & GMEM_PTE_LEAF))
			return e;
		table = (const uint64_t *)(uintptr_t)(e & ~GMEM_PTE_FLAGS);
	}
}

/* ---- the guest */

struct guest {
	struct gmem_vm *vm;
	struct gmem_file *file;
	struct gmem_vcpu *vcpu[2];
};

/* With the file's pages one after the other, in so many slots. */
static struct guest make_guest(uint64_t gpa, uint64_t len, uint32_t flags, uint32_t slots)
{
	struct gmem_file_opts o = { .size = sizeof(o), .flags = flags };
	struct gmem_memslot slot = { .size = sizeof(slot), .len = len / slots };
	struct guest g;

	if (gmem_vm_create(NULL, &g.vm) || gmem_file_create(len, &o, &g.file))
		bench_die("guest");
	slot.file = g.file;
	for (; slot.slot < slots; slot.slot++) {
		slot.off = slot.slot * slot.len;
		slot.gpa = gpa + slot.off;
		if (gmem_vm_set_slot(g.vm, &slot))
			bench_die("slot");
	}
	if (gmem_vcpu_create(g.vm, NULL, &g.vcpu[0]) || gmem_vcpu_create(g.vm, NULL, &g.vcpu[1]) ||
	    gmem_mmu_reload(g.vcpu[0]) || gmem_mmu_reload(g.vcpu[1]))
		bench_die("guest");
	return g;
}

static void free_guest(struct guest *g)
{
	gmem_vcpu_free(g->vcpu[0]);
	gmem_vcpu_free(g->vcpu[1]);
	gmem_vm_free(g->vm);
	gmem_file_free(g->file);
}

static void unmap_all(struct guest *g)
{
	gmem_mmu_zap(&g->vm->mmu, 0, 1ull << GMEM_GFN_BITS, BOTH);
}

static double since(double begun, uint64_t n)
{
	return (bench_now() - begun) * 1e9 / (double)n;
}

/* Every page, in an order that jumps about. */
static uint64_t shuffled(uint64_t i)
{
	return i * 0x9e3779b1u & (npages - 1);
}

static void check_mapped(const struct guest *g, uint64_t want)
{
	uint64_t found = 0;

	for (uint64_t gfn = 0; gfn < npages; gfn++)
		found += gmem_mmu_walk(g->vcpu[0], gfn) != 0;
	if (found != want)
		bench_die("%llu pages are mapped, not %llu", (unsigned long long)found, (unsigned long long)want);
}

/* ---- mapping and walking; nanoseconds a page */

static double measure_plain_map(struct plain *p)
{
	double begun;

	plain_clear(p);
	begun = bench_now();
	for (uint64_t gfn = 0; gfn < npages; gfn++)
		plain_map(p, gfn, gfn + 1);
	return since(begun, npages);
}

/* As in a populate: the frame is known, slots_lock and the file's lock are held. */
static double measure_map_private(struct guest *g)
{
	uint64_t pfn = gmem_slot_pfn(gmem_vm_slot(g->vm, 0), 0);
	double begun;

	gmem_vm_lock_slots(g->vm);
	gmem_rwlock_lock(&g->file->invalidate_lock);
	begun = bench_now();
	for (uint64_t gfn = 0; gfn < npages; gfn++)
		if (gmem_mmu_map_private_pfn(g->vcpu[0], gfn, pfn + gfn))
			bench_die("mapping");
	begun = since(begun, npages);
	gmem_rwlock_unlock(&g->file->invalidate_lock);
	gmem_vm_unlock_slots(g->vm);
	return begun;
}

static double measure_plain_walk(const struct plain *p, bool random)
{
	uint64_t sum = 0;
	double begun = bench_now();

	for (uint64_t i = 0; i < npages; i++)
		sum += plain_walk(p, random ? shuffled(i) : i) >> GMEM_PAGE_SHIFT;
	begun = since(begun, npages);
	if (sum != npages * (npages + 1) / 2)
		bench_die("wrong frames");
	return begun;
}

static double measure_walk(const struct guest *g, bool random)
{
	uint64_t sum = 0, pfn = gmem_slot_pfn(gmem_vm_slot(g->vm, 0), 0);
	double begun = bench_now();

	for (uint64_t i = 0; i < npages; i++)
		sum += gmem_pte_pfn(gmem_mmu_walk(g->vcpu[0], random ? shuffled(i) : i)) - pfn;
	begun = since(begun, npages);
	if (sum != npages * (npages - 1) / 2)
		bench_die("wrong frames");
	return begun;
}

/* In and out of the epoch for each, as an access does. */
static double measure_walk_in_epochs(const struct guest *g)
{
	struct gmem_vcpu *vcpu = g->vcpu[0];
	uint64_t sum = 0;
	double begun = bench_now();

	for (uint64_t i = 0; i < npages; i++) {
		gmem_epoch_enter(&g->vm->mmu.epoch, &vcpu->reader);
		sum += gmem_mmu_walk(vcpu, shuffled(i)) != 0;
		gmem_epoch_leave(&vcpu->reader);
	}
	begun = since(begun, npages);
	if (sum != npages)
		bench_die("wrong frames");
	return begun;
}

/* ---- by one thread and by two */

struct mapper {
	struct gmem_vcpu *vcpu;
	uint64_t from, to;
	bool fault;
	_Atomic int *ready; /* threads that are; NULL: there is one */
};

static void map_core(struct gmem_vcpu *vcpu, uint64_t gfn)
{
	struct gmem_mapping m = { .gfn = gfn, .pfn = gfn + 1, .writable = true, .level = GMEM_LEVEL_4K };

	if (gmem_table_topup(&vcpu->mmu->pool, &vcpu->cache))
		bench_die("tables");
	if (!gmem_mmu_begin_map(vcpu) || gmem_mmu_map(vcpu, &m) != GMEM_MAP_FIXED)
		bench_die("mapping");
	gmem_mmu_end_map(vcpu);
}

static void *map_part(void *arg)
{
	struct mapper *m = arg;

	/* Both begin at once: to be woken takes as long as a part of the work. */
	if (m->ready) {
		atomic_fetch_add(m->ready, 1);
		while (atomic_load(m->ready) < 2)
			;
	}
	for (uint64_t gfn = m->from; gfn < m->to; gfn++) {
		if (!m->fault)
			map_core(m->vcpu, gfn);
		else if (gmem_mmu_pre_fault(m->vcpu, gfn, GMEM_WANT_ANY, &(struct gmem_hva){ 0 }))
			bench_die("fault");
	}
	return NULL;
}

/* Nanoseconds a page, of all pages in [from, to), by so many threads. */
static double measure_threads(struct guest *g, uint64_t from, uint64_t to, bool fault, bool two)
{
	uint64_t middle = two ? from + (to - from) / 2 : to;
	struct mapper m[2] = { { g->vcpu[0], from, middle, fault, NULL }, { g->vcpu[1], middle, to, fault, NULL } };
	_Atomic int ready = 0;
	pthread_t other;
	double begun;

	if (!two) {
		begun = bench_now();
		map_part(&m[0]);
		begun = since(begun, to - from);
	} else {
		m[0].ready = m[1].ready = &ready;
		if (pthread_create(&other, NULL, map_part, &m[1]))
			bench_die("thread");
		while (!atomic_load(&ready))
			;
		begun = bench_now();
		map_part(&m[0]);
		pthread_join(other, NULL);
		begun = since(begun, to - from);
	}
	unmap_all(g);
	return begun;
}

/* Of faults there are fewer pages, so they are gone over four times: a millisecond is soon disturbed. */
static double measure_faults(struct guest *g, uint64_t len, bool two)
{
	double sum = 0;

	for (int i = 0; i < 4; i++)
		sum += measure_threads(g, 1, len / BENCH_PAGE + 1, true, two);
	return sum / 4;
}

/* ---- zaps, in milliseconds */

static double measure_madvise(void)
{
	size_t len = npages * BENCH_PAGE;
	int fd = bench_memfd(len);
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	double begun;

	if (p == MAP_FAILED)
		bench_die("mmap");
	begun = bench_now();
	if (madvise(p, len, MADV_DONTNEED))
		bench_die("madvise");
	begun = (bench_now() - begun) * 1e3;
	munmap(p, len);
	close(fd);
	return begun;
}

/* `mixed`: every other page is on the other side, and stays. */
static double measure_zap(struct guest *g, uint32_t sides, bool mixed)
{
	struct gmem_mapping m = { .writable = true, .level = GMEM_LEVEL_4K };
	double begun;

	for (m.gfn = 0; m.gfn < npages; m.gfn++) {
		m.pfn = m.gfn + 1;
		m.private = !mixed || (m.gfn & 1);
		if (gmem_table_topup(&g->vm->mmu.pool, &g->vcpu[0]->cache) ||
		    gmem_mmu_map(g->vcpu[0], &m) != GMEM_MAP_FIXED)
			bench_die("mapping");
	}
	begun = bench_now();
	gmem_mmu_zap(&g->vm->mmu, 0, npages, sides);
	begun = (bench_now() - begun) * 1e3;
	check_mapped(g, mixed ? npages / 2 : 0);
	gmem_mmu_zap(&g->vm->mmu, 0, npages, BOTH);
	return begun;
}

/* MiB of tables for 1 TiB. */
static double measure_tables(void)
{
	struct guest g = make_guest(0, BENCH_PAGE, 0, 1);
	struct gmem_mapping m = { .writable = true, .level = GMEM_LEVEL_2M };
	double mib;

	for (m.gfn = 0; m.gfn < 1ull << 28; m.gfn += 512) {
		m.pfn = m.gfn + 512;
		if (gmem_table_topup(&g.vm->mmu.pool, &g.vcpu[0]->cache) || gmem_mmu_map(g.vcpu[0], &m))
			bench_die("mapping");
	}
	mib = (double)gmem_mmu_table_bytes(&g.vm->mmu) / (1 << 20);
	free_guest(&g);
	return mib;
}

/* ---- loads, GB/s */

static double measure_copy(struct guest *g, const char *view, uint64_t gpa, uint64_t len, char *buf, uint32_t step)
{
	uint64_t wrong = 0;
	double begun = bench_now();

	for (uint64_t at = 0; at < len; at += step) {
		if (view)
			memcpy(buf, view + at, step);
		else if (gmem_vcpu_load(g->vcpu[0], gpa + at, buf, step))
			bench_die("load");
		wrong += *(uint64_t *)buf != bench_first_word(at / BENCH_PAGE);
	}
	begun = (double)len / 1e9 / (bench_now() - begun);
	if (wrong)
		bench_die("wrong bytes");
	return begun;
}

static void write_pages(struct guest *g, uint64_t len, char *buf)
{
	for (uint64_t page = 0; page < len / BENCH_PAGE; page++) {
		bench_page(page, false, buf);
		if (gmem_file_write(g->file, page * BENCH_PAGE, buf, BENCH_PAGE))
			bench_die("write");
	}
}

int main(int argc, char **argv)
{
	struct bench_row *pmap, *map, *pseq, *seq, *prnd, *rnd, *epochs, *one, *two, *gain, *fault1, *fault2,
		*gain_fault;
	struct bench_row *madv, *whole, *side, *mixed, *mem, *copy[STEPS], *load[STEPS], *first, *among;
	struct guest priv, pages, many;
	struct gmem_view *view;
	static struct bench b;
	struct plain plain;
	uint64_t copy_len;
	char *buf;

	bench_begin(&b, "mmu", 1024, argc, argv);
	if (b.mib & (b.mib - 1) || b.mib < 4)
		bench_die("-m %u: not a power of two above 2", b.mib);
	npages = (uint64_t)b.mib << 8;
	copy_len = (uint64_t)(b.mib < COPY_MIB ? b.mib : COPY_MIB) << 20;
	plain_init(&plain);
	priv = make_guest(0, npages * BENCH_PAGE, GMEM_FILE_INIT_PRIVATE, 1);
	/* A page off, so that no large leaf fits. */
	pages = make_guest(BENCH_PAGE, copy_len, 0, 1);
	many = make_guest(BENCH_PAGE, copy_len, 0, gmem_min_u64(SLOTS, copy_len / BENCH_PAGE));
	buf = malloc(steps[STEPS - 1]);
	if (!buf || gmem_view_map(pages.file, 0, copy_len, PROT_READ, &view))
		bench_die("view");
	write_pages(&pages, copy_len, buf);
	write_pages(&many, copy_len, buf);

	pmap = bench_row(&b, "ns/page", NULL, "map, 4 KiB: plain table, one thread, no lock");
	map = bench_row(&b, "ns/page", pmap, "map, 4 KiB: gmem_mmu_map_private_pfn");
	one = bench_row(&b, "ns/page", pmap, "map, 4 KiB: mapping core, one thread");
	two = bench_row(&b, "ns/page", one, "map, 4 KiB: mapping core, two threads");
	gain = bench_row(&b, "times", NULL, "map, 4 KiB: mapping core, two threads against one");
	fault1 = bench_row(&b, "ns/page", pmap, "map, 4 KiB: fault of a page in place, one thread");
	fault2 = bench_row(&b, "ns/page", fault1, "map, 4 KiB: fault of a page in place, two threads");
	gain_fault = bench_row(&b, "times", NULL, "map, 4 KiB: fault, two threads against one");
	among = bench_row(&b, "ns/page", fault1, "map, 4 KiB: fault among %u slots, one thread", SLOTS);
	pseq = bench_row(&b, "ns", NULL, "walk: plain table, sequential");
	seq = bench_row(&b, "ns", pseq, "walk: sequential");
	prnd = bench_row(&b, "ns", NULL, "walk: plain table, random");
	rnd = bench_row(&b, "ns", prnd, "walk: random");
	epochs = bench_row(&b, "ns", prnd, "walk: random, in an epoch each");
	madv = bench_row(&b, "ms", NULL, "zap: madvise(MADV_DONTNEED), shared memory");
	whole = bench_row(&b, "ms", madv, "zap: both sides");
	side = bench_row(&b, "ms", madv, "zap: one side, all pages on it");
	mixed = bench_row(&b, "ms", madv, "zap: one side, every other page on it");
	mem = bench_row(&b, "MiB", NULL, "tables for 1 TiB in leaves of 2 MiB");
	for (int i = 0; i < STEPS; i++) {
		copy[i] = bench_row(&b, "GB/s", NULL, "load: memcpy out of a view, %u KiB each", steps[i] >> 10);
		load[i] = bench_row(&b, "GB/s", copy[i], "load: gmem_vcpu_load, %u KiB each", steps[i] >> 10);
	}
	first = bench_row(&b, "GB/s", copy[STEPS - 1], "load: gmem_vcpu_load, %u KiB each, faults too",
			  steps[STEPS - 1] >> 10);

	measure_map_private(&priv);
	gmem_mmu_zap(&priv.vm->mmu, 0, npages, BOTH);
	measure_copy(&pages, gmem_view_addr(view), 0, copy_len, buf, steps[0]);
	measure_copy(&pages, NULL, BENCH_PAGE, copy_len, buf, steps[0]);
	measure_faults(&many, copy_len, false);
	for (unsigned int i = 0; i < b.rounds; i++) {
		bench_add(pmap, measure_plain_map(&plain));
		bench_add(map, measure_map_private(&priv));
		check_mapped(&priv, npages);
		bench_add(pseq, measure_plain_walk(&plain, false));
		bench_add(seq, measure_walk(&priv, false));
		bench_add(prnd, measure_plain_walk(&plain, true));
		bench_add(rnd, measure_walk(&priv, true));
		bench_add(epochs, measure_walk_in_epochs(&priv));
		gmem_mmu_zap(&priv.vm->mmu, 0, npages, BOTH);
		bench_add(one, measure_threads(&priv, 0, npages, false, false));
		bench_add(two, measure_threads(&priv, 0, npages, false, true));
		bench_add(gain, one->v[i] / two->v[i]);
		bench_add(madv, measure_madvise());
		bench_add(whole, measure_zap(&priv, BOTH, false));
		bench_add(side, measure_zap(&priv, GMEM_SIDE_PRIVATE, false));
		bench_add(mixed, measure_zap(&priv, GMEM_SIDE_PRIVATE, true));
		bench_add(mem, measure_tables());
		for (int s = 0; s < STEPS; s++) {
			bench_add(copy[s], measure_copy(&pages, gmem_view_addr(view), 0, copy_len, buf, steps[s]));
			bench_add(load[s], measure_copy(&pages, NULL, BENCH_PAGE, copy_len, buf, steps[s]));
		}
		unmap_all(&pages);
		bench_add(first, measure_copy(&pages, NULL, BENCH_PAGE, copy_len, buf, steps[STEPS - 1]));
		unmap_all(&pages);
		bench_add(fault1, measure_faults(&pages, copy_len, false));
		bench_add(fault2, measure_faults(&pages, copy_len, true));
		bench_add(gain_fault, fault1->v[i] / fault2->v[i]);
		bench_add(among, measure_faults(&many, copy_len, false));
		gmem_vcpu_pre_fault(pages.vcpu[0], BENCH_PAGE, copy_len, NULL);
	}
	bench_target_absolute(&b, map, false, 150, "map a private page");
	bench_target_absolute(&b, seq, false, 30, "walk, sequential");
	bench_target_absolute(&b, rnd, false, 30, "walk, random over %u MiB", b.mib);
	bench_target_absolute(&b, whole, false, 5, "zap of %u MiB of 4 KiB leaves", b.mib);
	bench_target_absolute(&b, side, false, 5, "zap of one side of %u MiB of 4 KiB leaves", b.mib);
	bench_target_absolute(&b, mem, false, 4.2, "tables for 1 TiB in leaves of 2 MiB");
	bench_target_absolute(&b, gain, true, 1.6, "mapping core, two threads against one");
	bench_target_absolute(&b, gain_fault, true, 1.6, "faults of pages in place, two threads against one");
	for (int i = 0; i < STEPS; i++)
		bench_target_absolute(&b, load[i], true, 2, "gmem_vcpu_load, %u KiB each", steps[i] >> 10);
	gmem_view_unmap(view);
	free(buf);
	free_guest(&priv);
	free_guest(&pages);
	free_guest(&many);
	munmap(plain.root, plain.room * BENCH_PAGE);
	return bench_end(&b);
}
