/* SPDX-License-Identifier: MIT */
/* Everything that changes what a guest on KVM sees, at random, beside an array that says what it must see. */
#include "kvm_model.h"

/* ---- the guest */

struct span {
	uint64_t gpa, len;
};

/* Something is done about the page that the guest came out at. */
static void help(struct model *m, uint64_t gpa)
{
	struct slot *slot = slot_at(m, gpa);
	struct page *p = page_at(m, gpa);
	uint64_t off = p ? (uint64_t)(p - m->page) * PG : 0;

	if (!p) {
		CHECK_OK(del_slot(m->s.vm, (uint32_t)(slot - m->slot)));
		slot->set = false;
	} else if (p->private && m->s.vm->type == GMEM_VM_DEFAULT) {
		to_shared(m->s.file, off, PG);
		p->private = false;
	} else {
		CHECK_OK(gmem_file_punch(m->s.file, off, PG));
		zero(p);
	}
}

static bool inside(const struct span *spans, unsigned int n, uint64_t gpa, uint64_t len)
{
	for (unsigned int i = 0; i < n; i++)
		if (gpa < spans[i].gpa + spans[i].len && gpa + len > spans[i].gpa)
			return true;
	return false;
}

/* Which page of the routine's own is not there without an exit that says so: the supplier of one is gone. */
static uint64_t orphan_in(struct model *m, const struct span *spans, unsigned int n)
{
	uint64_t flags;

	for (unsigned int i = 0; i < n; i++)
		for (uint64_t at = spans[i].gpa & -PG; at < spans[i].gpa + spans[i].len; at += PG)
			if (slot_at(m, at) && answer(m, at, &flags) == -EIO)
				return at;
	FAIL("-EIO of no page: %s", gmem_last_error());
}

/*
 * The routine is run to its end. Each time that it comes out is one that the model knows of, and is seen to; so when it
 * has ended, it has done what it does on memory that was there from the beginning.
 */
static uint64_t run_routine(struct model *m, enum guest_routine routine, const uint64_t args[5],
			    const struct span *spans, unsigned int n)
{
	struct guest *g = &m->s.guest;

	guest_call_args(g, routine, args);
	for (;;) {
		int err = gmem_vcpu_run(m->s.vcpu), want;
		struct gmem_exit e = exit_of(m->s.vcpu);
		uint64_t flags;

		m->exits++;
		if (!err && guest_finished(g))
			return guest_result(g);
		if (!err) {
			uint64_t gpa = g->run->mmio.phys_addr;

			if ((int)e.reason != KVM_EXIT_MMIO || slot_at(m, gpa) ||
			    !inside(spans, n, gpa, g->run->mmio.len))
				FAIL("the guest came out: exit %d, %s", (int)e.reason, guest_what(g));
			memset(g->run->mmio.data, 0xff, 8);
			m->mmio++;
			continue;
		}
		if (err == -EIO) {
			CHECK_EQ(e.reason, GMEM_EXIT_NONE);
			help(m, orphan_in(m, spans, n));
			continue;
		}
		want = slot_at(m, e.gpa) ? answer(m, e.gpa, &flags) : 0;
		if (err != want || e.reason != GMEM_EXIT_MEMORY_FAULT || e.len != PG || e.flags != flags ||
		    !inside(spans, n, e.gpa, PG))
			FAIL("%s: %d, not %d, at 0x%llx, flags 0x%llx: %s; %s", strerror(-err), err, want,
			     (unsigned long long)e.gpa, (unsigned long long)e.flags, gmem_last_error(), guest_what(g));
		help(m, e.gpa);
	}
}

/* Anywhere, across pages too. */
static uint64_t somewhere(struct model *m, uint64_t len)
{
	uint64_t gpa = GPA + rnd(m, FRAMES) * PG;

	switch (rnd(m, 3)) {
	case 0:
		gpa += rnd(m, PG);
		break;
	case 1:
		gpa += PG - rnd(m, len < 16 ? len + 1 : 16);
		break;
	}
	return gpa + len <= GPA + FRAMES * PG ? gpa : GPA + FRAMES * PG - len;
}

static void guest_load_store(struct model *m)
{
	static const enum guest_routine loads[] = { GUEST_load1, GUEST_load2, GUEST_load4, GUEST_load8 },
					stores[] = { GUEST_store1, GUEST_store2, GUEST_store4, GUEST_store8 };
	unsigned int log = (unsigned int)rnd(m, 4), n = 1u << log;
	struct span at = { somewhere(m, n), n };
	uint64_t v = tap_rand(&m->seed), got;

	if (rnd(m, 2)) {
		run_routine(m, stores[log], (const uint64_t[5]){ at.gpa, v }, &at, 1);
		store(m, at.gpa, v, n);
	} else {
		got = run_routine(m, loads[log], (const uint64_t[5]){ at.gpa }, &at, 1);
		CHECK_EQ(got, load(m, at.gpa, n));
	}
}

static void guest_cmpxchg(struct model *m)
{
	struct span at = { somewhere(m, 8) & ~7ull, 8 };
	struct page *p = page_at(m, at.gpa);
	uint64_t old = 0, new = tap_rand(&m->seed), was, got;

	/* Mostly what is there. */
	if (rnd(m, 4) && p && !p->supplied)
		memcpy(&old, &p->byte[at.gpa % PG], 8);
	got = run_routine(m, GUEST_cmpxchg8, (const uint64_t[5]){ at.gpa, old, new }, &at, 1);
	was = load(m, at.gpa, 8);
	CHECK_EQ(got, was);
	if (was == old)
		store(m, at.gpa, new, 8);
}

static void guest_copy(struct model *m)
{
	bool words = rnd(m, 2);
	uint64_t n = words ? 8 * (1 + rnd(m, 80)) : 1 + rnd(m, 300);
	struct span spans[2] = { { somewhere(m, n), n }, { somewhere(m, n), n } };

	run_routine(m, words ? GUEST_copy8 : GUEST_copy, (const uint64_t[5]){ spans[0].gpa, spans[1].gpa, n }, spans,
		    2);
	for (uint64_t i = 0; i < n; i += words ? 8 : 1)
		store(m, spans[0].gpa + i, load(m, spans[1].gpa + i, words ? 8 : 1), words ? 8 : 1);
}

static void guest_fill_sum(struct model *m)
{
	uint64_t stride = 8ull << rnd(m, 8), n = 1 + rnd(m, 20), seed = tap_rand(&m->seed), sum = 0;
	struct span at = { somewhere(m, n * stride) & ~7ull, (n - 1) * stride + 8 };

	if (rnd(m, 2)) {
		at.len = n * 8;
		CHECK_EQ(run_routine(m, GUEST_fill, (const uint64_t[5]){ at.gpa, n, seed }, &at, 1), n);
		for (uint64_t i = 0; i < n; i++)
			store(m, at.gpa + i * 8, guest_pattern(seed, i), 8);
		return;
	}
	seed = run_routine(m, GUEST_sum, (const uint64_t[5]){ at.gpa, n, stride }, &at, 1);
	for (uint64_t i = 0; i < n; i++)
		sum += load(m, at.gpa + i * stride, 8);
	CHECK_EQ(seed, sum);
}

/* ---- others */

static void accessor(struct model *m)
{
	unsigned char buf[2 * PG], *b = buf;
	uint64_t n = 1 + rnd(m, rnd(m, 2) ? 8 : sizeof(buf)), gpa = somewhere(m, n), flags = 0;
	const uint64_t start = gpa, len = n;
	bool write = rnd(m, 2);
	struct gmem_exit e;
	int err, want = 0;

	for (uint64_t i = 0; i < n; i++)
		buf[i] = (unsigned char)tap_rand(&m->seed);
	err = write ? gmem_vcpu_store(m->hand, gpa, buf, n) : gmem_vcpu_load(m->hand, gpa, buf, n);
	for (; n; gpa++, b++, n--) {
		want = answer(m, gpa, &flags);
		if (want)
			break;
		if (write)
			store(m, gpa, *b, 1);
		else
			CHECK_EQ(*b, load(m, gpa, 1));
	}
	CHECK_EQ(err, want);
	e = exit_of(m->hand);
	if (want == -EFAULT && !slot_at(m, gpa) && len <= 8 && gpa == start && gpa % PG + len <= PG) {
		CHECK_EQ(e.reason, GMEM_EXIT_MMIO);
		CHECK_EQ(e.gpa, gpa);
		CHECK_EQ(e.flags, write ? GMEM_EXIT_FLAG_WRITE : 0);
	} else if (want == -EFAULT || want == -EHWPOISON) {
		CHECK_EQ(e.reason, GMEM_EXIT_MEMORY_FAULT);
		CHECK_EQ(e.gpa, gpa & -PG);
		CHECK_EQ(e.flags, flags);
	} else {
		CHECK_EQ(e.reason, GMEM_EXIT_NONE);
	}
}

static void pre_fault(struct model *m)
{
	struct gmem_vcpu *vcpu = rnd(m, 2) ? m->hand : m->s.vcpu;
	uint64_t frame = rnd(m, FRAMES), n = 1 + rnd(m, FRAMES - frame), done = 0, ok = 0, flags;
	int err = gmem_vcpu_pre_fault(vcpu, GPA + frame * PG, n * PG, &done), want = 0;

	for (; ok < n; ok++) {
		uint64_t gpa = GPA + (frame + ok) * PG;

		want = slot_at(m, gpa) ? answer(m, gpa, &flags) : -ENOENT;
		if (want)
			break;
		touch(m, page_at(m, gpa));
	}
	CHECK_EQ(done, ok * PG);
	CHECK_EQ(err, ok ? 0 : want);
}

static void file_io(struct model *m)
{
	uint64_t n = rnd(m, PAGES), at = rnd(m, PG), len = 1 + rnd(m, PG - at);
	struct page *p = &m->page[n];
	unsigned char buf[PG], none[PG] = { 0 };
	bool write = rnd(m, 2);
	int err, want = p->private ? -EACCES : p->poisoned ? -EHWPOISON : 0;

	for (uint64_t i = 0; i < len; i++)
		buf[i] = (unsigned char)tap_rand(&m->seed);
	err = write ? gmem_file_write(m->s.file, n * PG + at, buf, len) :
		      gmem_file_read(m->s.file, n * PG + at, buf, len);
	CHECK_EQ(err, want);
	if (want)
		return;
	if (!write) {
		CHECK_MEM(buf, p->supplied || p->orphan ? none + at : p->byte + at, len);
		return;
	}
	/* Written to without being brought in: the rest is zero. */
	if (p->supplied || p->orphan)
		zero(p);
	p->touched = true;
	memcpy(p->byte + at, buf, len);
}

static void random_range(struct model *m, uint64_t *first, uint64_t *n)
{
	*first = rnd(m, PAGES);
	*n = 1 + rnd(m, rnd(m, 3) ? 4 : PAGES);
	if (*first + *n > PAGES)
		*n = PAGES - *first;
}

static void convert(struct model *m)
{
	bool private = rnd(m, 2);
	uint64_t first, n;

	random_range(m, &first, &n);
	CHECK_OK(gmem_file_set_attributes(m->s.file, first * PG, n * PG, private ? GMEM_ATTRIBUTE_PRIVATE : 0, NULL));
	for (uint64_t i = first; i < first + n; i++)
		m->page[i].private = private;
}

static void punch(struct model *m)
{
	uint64_t first, n;

	random_range(m, &first, &n);
	CHECK_OK(gmem_file_punch(m->s.file, first * PG, n * PG));
	for (uint64_t i = first; i < first + n; i++)
		zero(&m->page[i]);
}

static void poison(struct model *m)
{
	uint64_t first = rnd(m, PAGES), n = 1 + rnd(m, PAGES - first > 3 ? 3 : PAGES - first);

	CHECK_OK(gmem_file_poison(m->s.file, first * PG, n * PG));
	for (uint64_t i = first; i < first + n; i++) {
		zero(&m->page[i]);
		m->page[i].poisoned = true;
	}
}

/* Of pages that nobody has touched. */
static void supply(struct model *m)
{
	uint64_t first = rnd(m, PAGES), n = 0;
	unsigned int i = 0;

	while (i < SUPPLIES && m->supply[i])
		i++;
	while (first + n < PAGES && n < 10 && !m->page[first + n].touched && !m->page[first + n].supplied &&
	       !m->page[first + n].orphan)
		m->page[first + n++].supplied = true;
	if (i == SUPPLIES || !n) {
		while (n)
			m->page[first + --n].supplied = false;
		return;
	}
	m->supply[i] = new_supply(m->s.file, first * PG, n * PG, bring_in, &m->supplier);
}

static void end_a_supply(struct model *m, unsigned int i)
{
	struct gmem_supply *s = m->supply[i];

	if (!s || !s->bring_in)
		return;
	end_supply(m->s.file, s);
	for (uint64_t n = s->off / PG; n < (s->off + s->len) / PG; n++) {
		m->page[n].orphan |= m->page[n].supplied;
		m->page[n].supplied = false;
	}
}

static void change_slot(struct model *m)
{
	unsigned int i = (unsigned int)rnd(m, SLOTS);
	struct slot *s = &m->slot[i], new = { .set = true };
	bool taken = false;

	if (s->set) {
		CHECK_OK(del_slot(m->s.vm, i));
		s->set = false;
	}
	new.first = rnd(m, 2) ? 0 : rnd(m, PAGES);
	new.n = PAGES - new.first - (rnd(m, 2) ? 0 : rnd(m, PAGES - new.first));
	new.frame = rnd(m, FRAMES - new.n + 1);
	for (struct slot *o = m->slot; o < m->slot + SLOTS; o++)
		taken |= o->set && ((new.frame < o->frame + o->n && o->frame < new.frame + new.n) ||
				    (!o->closed && new.first < o->first + o->n && o->first < new.first + new.n));
	CHECK_EQ(set_slot(m->s.vm, i, GPA + new.frame *PG, new.n *PG, m->s.file, new.first *PG), taken ? -EEXIST : 0);
	if (!taken)
		*s = new;
}

static void new_file(struct model *m)
{
	for (unsigned int i = 0; i < SUPPLIES; i++) {
		end_a_supply(m, i);
		m->supply[i] = NULL;
	}
	gmem_file_free(m->s.file);
	m->s.file = make_file(PAGES * PG, m->flags);
	memset(m->page, 0, sizeof(m->page));
	for (unsigned int i = 0; i < SLOTS; i++)
		m->slot[i].closed = true;
	for (unsigned int i = 0; i < 3; i++) {
		supply(m);
		change_slot(m);
	}
}

static void check_file(struct model *m)
{
	unsigned char buf[PG];

	for (uint64_t i = 0; i < PAGES; i++) {
		struct page *p = &m->page[i];

		if (p->private || p->poisoned || p->supplied || p->orphan)
			continue;
		CHECK_OK(gmem_file_read(m->s.file, i * PG, buf, PG));
		CHECK_MEM(buf, p->byte, PG);
	}
	CHECK_EQ(atomic_load(&m->supplier.calls), m->brought_in);
}

static void step(struct model *m)
{
	static void (*const often[])(struct model *) = {
		guest_load_store, guest_load_store, guest_load_store, guest_load_store, guest_cmpxchg, guest_copy,
		guest_fill_sum,	  guest_fill_sum,   accessor,	      file_io,		convert,       convert,
	};
	static void (*const seldom[])(struct model *) = { punch,  punch,  poison,      pre_fault,
							  supply, supply, change_slot, change_slot };

	if (rnd(m, 6))
		often[rnd(m, sizeof(often) / sizeof(often[0]))](m);
	else
		seldom[rnd(m, sizeof(seldom) / sizeof(seldom[0]))](m);
	if (rnd(m, 100) == 0)
		end_a_supply(m, (unsigned int)rnd(m, SUPPLIES));
	if (rnd(m, 200) == 0)
		new_file(m);
	if (rnd(m, 20) == 0)
		check_file(m);
}

static void run_model(const struct scene_opts *o, uint64_t seed, unsigned int steps)
{
	static struct model m;

	m = (struct model){ .flags = o->flags, .seed = seed };
	scene_set_up(&m.s, o);
	m.hand = new_vcpu(m.s.vm);
	m.slot[0] = (struct slot){ .set = true, .n = PAGES };
	while (steps--)
		step(&m);
	check_file(&m);
	printf("%llu exits, %llu of no slot, %llu pages brought in\n", (unsigned long long)m.exits,
	       (unsigned long long)m.mmio, (unsigned long long)m.brought_in);
	for (unsigned int i = 0; i < SUPPLIES; i++)
		end_a_supply(&m, i);
	gmem_vcpu_free(m.hand);
	scene_tear_down(&m.s);
}

static void each_way(uint32_t flags)
{
	uint64_t seed = tap_seed();

	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		struct scene_opts o = ways[i];

		o.flags = flags;
		o.len = PAGES * PG;
		run_model(&o, seed + i, tap_slow() ? 400 : 4000);
	}
}

TEST_TIMEOUT(random_operations, 240)
{
	each_way(0);
}

TEST_TIMEOUT(random_operations_strict, 240)
{
	each_way(GMEM_FILE_STRICT);
}

#include "tap_main.h"
