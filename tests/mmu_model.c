/* SPDX-License-Identifier: MIT */
/* Everything that changes what a guest sees, at random, beside an array that says what it must see. */
#include "mmu_util.h"

#define PAGES 1536ull /* 6 MiB: large leaves are in it */
#define SLOTS 6u
#define GUEST (2 * PAGES) /* guest frames in use */
#define WORDS 4u /* that are watched of a page */

struct page {
	uint64_t word[WORDS];
	bool private, watched;
};

struct slot {
	bool set;
	uint64_t gfn, first, n;
};

struct model {
	struct gmem_vm *vm;
	struct gmem_vcpu *vcpu[2];
	struct gmem_file *file;
	enum gmem_vm_type type;
	uint64_t bit, seed, large; /* accesses by way of large leaves */
	struct page page[PAGES];
	struct slot slot[SLOTS];
};

static uint64_t rnd(struct model *m, uint64_t below)
{
	return tap_rand(&m->seed) % below;
}

/* The file's page of a guest frame; PAGES: none. */
static uint64_t page_at(const struct model *m, uint64_t gfn, unsigned int *ret_slot)
{
	for (unsigned int i = 0; i < SLOTS; i++) {
		const struct slot *s = &m->slot[i];

		if (s->set && gfn >= s->gfn && gfn < s->gfn + s->n) {
			if (ret_slot)
				*ret_slot = i;
			return s->first + gfn - s->gfn;
		}
	}
	return PAGES;
}

/* What an access that names the side, or not, must answer; and the exit, but for its addresses. */
static int expected(const struct model *m, const struct page *page, bool with_bit, bool write, struct gmem_exit *exit)
{
	bool two_sides = m->type == GMEM_VM_SNP || m->type == GMEM_VM_TDX;
	bool want_private = two_sides && (m->type == GMEM_VM_SNP ? with_bit : !with_bit);

	*exit = (struct gmem_exit){ .reason = GMEM_EXIT_MEMORY_FAULT,
				    .flags = want_private ? GMEM_EXIT_FLAG_PRIVATE : 0 };
	if (!page && !want_private) {
		exit->reason = GMEM_EXIT_MMIO;
		exit->flags = write ? GMEM_EXIT_FLAG_WRITE : 0;
		return -EFAULT;
	}
	if (!page || (two_sides && page->private != want_private) || (m->type == GMEM_VM_DEFAULT && page->private))
		return -EFAULT;
	exit->reason = GMEM_EXIT_NONE;
	return write && page->watched ? -EPERM : 0;
}

static void do_access(struct model *m)
{
	uint64_t gfn = rnd(m, GUEST), at = rnd(m, WORDS), v = tap_rand(&m->seed), p = page_at(m, gfn, NULL);
	struct gmem_vcpu *vcpu = m->vcpu[rnd(m, 2)];
	struct page *page = p < PAGES ? &m->page[p] : NULL;
	bool with_bit = m->bit && rnd(m, 2), write = rnd(m, 2);
	uint64_t gpa = gfn * PG + at * 8;
	struct gmem_exit exit;
	int want = expected(m, page, with_bit, write, &exit), got;

	if (write) {
		got = gmem_vcpu_store(vcpu, gpa | (with_bit ? m->bit : 0), &v, 8);
		if (!want)
			page->word[at] = v;
	} else {
		got = gmem_vcpu_load(vcpu, gpa | (with_bit ? m->bit : 0), &v, 8);
		if (!got && !want)
			CHECK_EQ(v, page->word[at]);
	}
	if (got != want)
		FAIL("frame 0x%llx, page %llu, %s: %d, not %d: %s", (unsigned long long)gfn, (unsigned long long)p,
		     write ? "store" : "load", got, want, gmem_last_error());
	if (!got) {
		int level;

		m->large += leaf_at(&m->vm->mmu, gfn, &level) && level == GMEM_LEVEL_2M;
	}
	CHECK_EQ(exit_of(vcpu).reason, exit.reason);
	if (got == -EFAULT) {
		CHECK_EQ(exit_of(vcpu).gpa, exit.reason == GMEM_EXIT_MMIO ? gpa : gfn * PG);
		CHECK_EQ(exit_of(vcpu).len, exit.reason == GMEM_EXIT_MMIO ? 8 : PG);
		CHECK_EQ(exit_of(vcpu).flags, exit.flags);
	}
}

static void do_pre_fault(struct model *m)
{
	uint64_t gfn = rnd(m, GUEST), n = 1 + rnd(m, 600), done = 0, ok = 0;
	struct gmem_exit exit;
	bool with_bit = m->bit && rnd(m, 2);
	int want = 0, got;

	while (ok < n && !want) {
		uint64_t p = page_at(m, gfn + ok, NULL);

		want = p < PAGES ? expected(m, &m->page[p], with_bit, false, &exit) : -ENOENT;
		ok += !want;
	}
	got = gmem_vcpu_pre_fault(m->vcpu[0], (gfn * PG) | (with_bit ? m->bit : 0), n * PG, &done);
	CHECK_EQ(done, ok * PG);
	CHECK_EQ(got, ok ? 0 : want);
}

static void range(struct model *m, uint64_t *first, uint64_t *n)
{
	*first = rnd(m, PAGES);
	*n = 1 + rnd(m, rnd(m, 3) ? 8 : PAGES);
	if (rnd(m, 8) == 0) {
		*first &= ~511ull;
		*n = 512;
	}
	if (*n > PAGES - *first)
		*n = PAGES - *first;
}

static void do_convert(struct model *m)
{
	uint64_t first, n;
	bool private = rnd(m, 2);

	range(m, &first, &n);
	CHECK_OK(gmem_file_set_attributes(m->file, first * PG, n * PG, private ? GMEM_ATTRIBUTE_PRIVATE : 0, NULL));
	for (uint64_t i = first; i < first + n; i++)
		m->page[i].private = private;
}

static void do_punch(struct model *m)
{
	uint64_t first, n;

	range(m, &first, &n);
	/* A page that was ever punched is in no large leaf: the first block has none. */
	if (first < 512)
		first += 512;
	if (n > PAGES - first)
		n = PAGES - first;
	CHECK_OK(gmem_file_punch(m->file, first * PG, n * PG));
	for (uint64_t i = first; i < first + n; i++)
		memset(m->page[i].word, 0, sizeof(m->page[i].word));
}

/* The host writes, so that runs of pages are in place and large leaves come. */
static void do_write(struct model *m)
{
	uint64_t first, n, word[WORDS];

	range(m, &first, &n);
	for (uint64_t i = first; i < first + n; i++) {
		int want = m->page[i].private ? -EACCES : 0;

		for (unsigned int w = 0; w < WORDS; w++)
			word[w] = tap_rand(&m->seed);
		CHECK_EQ(gmem_file_write(m->file, i * PG, word, sizeof(word)), want);
		if (!want)
			memcpy(m->page[i].word, word, sizeof(word));
	}
}

/* A block all in place and on one side, with nothing mapped: the next touch may map it by a large leaf. */
static void do_block(struct model *m)
{
	uint64_t first = rnd(m, PAGES / 512) * 512, v;
	bool private = rnd(m, 2);

	CHECK_OK(gmem_file_set_attributes(m->file, first * PG, 512 * PG, GMEM_ATTRIBUTE_PRIVATE, NULL));
	CHECK_OK(gmem_file_set_attributes(m->file, first * PG, 512 * PG, 0, NULL));
	for (uint64_t i = first; i < first + 512; i++) {
		v = m->page[i].word[0] = tap_rand(&m->seed);
		CHECK_OK(gmem_file_write(m->file, i * PG, &v, 8));
	}
	if (private)
		CHECK_OK(gmem_file_set_attributes(m->file, first * PG, 512 * PG, GMEM_ATTRIBUTE_PRIVATE, NULL));
	for (uint64_t i = first; i < first + 512; i++)
		m->page[i].private = private;
}

static bool overlap(uint64_t a, uint64_t an, uint64_t b, uint64_t bn)
{
	return a < b + bn && b < a + an;
}

static void unwatch(struct model *m, uint64_t first, uint64_t n)
{
	/* What is watched is the slot's matter. */
	for (uint64_t i = first; i < first + n; i++)
		m->page[i].watched = false;
}

static void do_slot(struct model *m)
{
	unsigned int id = (unsigned int)rnd(m, SLOTS);
	struct slot *s = &m->slot[id];
	struct slot new = { .set = true, .gfn = rnd(m, GUEST - 1) };
	int want = 0;

	if (s->set) {
		CHECK_ERR(set_slot(m->vm, id, (GUEST + 5) * PG, PG, m->file, 0), -EINVAL);
		if (rnd(m, 4))
			return;
		CHECK_OK(del_slot(m->vm, id));
		unwatch(m, s->first, s->n);
		s->set = false;
		return;
	}
	new.first = rnd(m, PAGES);
	/* Half of them where large leaves fit. */
	if (rnd(m, 2)) {
		new.first &= ~511ull;
		new.gfn &= ~511ull;
	}
	new.n = 1 + rnd(m, PAGES - new.first);
	if (new.n > GUEST - new.gfn)
		new.n = GUEST - new.gfn;
	for (unsigned int i = 0; i < SLOTS; i++) {
		const struct slot *o = &m->slot[i];

		if (o->set && (overlap(new.gfn, new.n, o->gfn, o->n) || overlap(new.first, new.n, o->first, o->n)))
			want = -EEXIST;
	}
	CHECK_EQ(set_slot(m->vm, id, new.gfn *PG, new.n *PG, m->file, new.first *PG), want);
	if (!want)
		*s = new;
}

static void do_watch(struct model *m)
{
	uint64_t gfn = rnd(m, GUEST), p = page_at(m, gfn, NULL);
	bool on = rnd(m, 2);

	gmem_vm_lock_slots(m->vm);
	CHECK_EQ(gmem_mmu_track_write(&m->vm->mmu, gfn, on), p < PAGES ? 0 : -EINVAL);
	gmem_vm_unlock_slots(m->vm);
	if (p < PAGES)
		m->page[p].watched = on;
}

/* Nothing is mapped that may not be, whatever was asked for. */
static void check_tables(struct model *m)
{
	for (uint64_t gfn = 0; gfn < GUEST; gfn++) {
		uint64_t p, e;
		int level;

		e = leaf_at(&m->vm->mmu, gfn, &level);
		if (!e)
			continue;
		p = page_at(m, gfn, NULL);
		if (p == PAGES)
			FAIL("frame 0x%llx is mapped and has no slot", (unsigned long long)gfn);
		CHECK_EQ(!!(e & GMEM_PTE_PRIVATE), m->page[p].private);
		if (level > 1)
			e += (gfn & 511) << GMEM_PAGE_SHIFT;
		CHECK_EQ(gmem_pte_pfn(e), (uintptr_t)gmem_file_window(m->file) / PG + p);
		CHECK(!m->page[p].watched || !(e & GMEM_PTE_WRITE));
	}
}

static void run(enum gmem_vm_type type)
{
	static const struct {
		void (*fn)(struct model *m);
		unsigned int weight;
	} ops[] = { { do_access, 200 }, { do_pre_fault, 6 }, { do_convert, 6 }, { do_punch, 2 },
		    { do_write, 2 },	{ do_slot, 10 },     { do_block, 3 },	{ do_watch, 1 } };
	unsigned int rounds = tap_slow() ? 4000 : 40000, total = 0;
	struct model *m = calloc(1, sizeof(*m));

	m->seed = tap_seed();
	m->type = type;
	m->vm = new_vm(type);
	m->bit = gmem_vm_alias_bit(m->vm);
	/* A machine without private memory would find too little of its own in a file of private pages. */
	m->file = make_file(PAGES * PG, rnd(m, 2) && type != GMEM_VM_DEFAULT ? GMEM_FILE_INIT_PRIVATE : 0);
	for (uint64_t i = 0; i < PAGES; i++)
		m->page[i].private = gmem_file_private(m->file, i * PG);
	m->vcpu[0] = new_vcpu(m->vm);
	m->vcpu[1] = new_vcpu(m->vm);
	for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++)
		total += ops[i].weight;
	for (unsigned int i = 0; i < rounds; i++) {
		uint64_t at = rnd(m, total);
		size_t op = 0;

		while (at >= ops[op].weight)
			at -= ops[op++].weight;
		ops[op].fn(m);
		if (i % 200 == 0)
			check_tables(m);
	}
	check_tables(m);
	printf("%llu accesses through large leaves\n", (unsigned long long)m->large);
	CHECK(m->large || tap_slow());
	for (unsigned int i = 0; i < SLOTS; i++)
		if (m->slot[i].set)
			CHECK_OK(del_slot(m->vm, i));
	check_tables(m);
	/* Root, and what the caches hold. */
	CHECK_EQ(gmem_mmu_table_bytes(&m->vm->mmu), (1 + m->vcpu[0]->cache.n + m->vcpu[1]->cache.n) * PG);
	gmem_vcpu_free(m->vcpu[0]);
	gmem_vcpu_free(m->vcpu[1]);
	gmem_vm_free(m->vm);
	gmem_file_free(m->file);
	free(m);
}

TEST(model_default)
{
	run(GMEM_VM_DEFAULT);
}

TEST(model_sw_protected)
{
	run(GMEM_VM_SW_PROTECTED);
}

TEST(model_snp)
{
	run(GMEM_VM_SNP);
}

TEST(model_tdx)
{
	run(GMEM_VM_TDX);
}
