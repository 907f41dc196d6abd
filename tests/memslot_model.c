/* SPDX-License-Identifier: MIT */
/*
 * Random slots of all kinds, set, deleted, moved and given bitmaps, against a flat array that says what each guest
 * page is; and loads, stores, pre-faults and conversions, each of which has to answer and to show what the array says.
 */
#include "slot_util.h"

#define GUEST 40u /* pages the guest has addresses for */
#define FILES 2u
#define PAGES 24u /* of each file, and of the caller's memory */
#define SLOTS 8u

struct slot_model {
	struct gmem_memslot m; /* len 0: none */
	unsigned int file; /* FILES: none */
	bool closed;
};

struct model {
	struct gmem_vm *vm;
	struct gmem_vcpu *vcpu;
	struct gmem_file *file[FILES];
	char *hva;
	uint64_t bitmap[SLOTS][2]; /* the second is what a slot's bits are copied to, to be another bitmap */
	unsigned int which[SLOTS];
	struct slot_model slot[SLOTS];
	/* What is where: a word of each page. */
	uint64_t in_file[FILES][PAGES], at_hva[PAGES];
	bool private[FILES][PAGES];
	uint64_t seed, counts[4];
};

static unsigned int draw(struct model *m, unsigned int n)
{
	return (unsigned int)(tap_rand(&m->seed) % n);
}

static struct slot_model *slot_at(struct model *m, uint64_t page, unsigned int but)
{
	for (unsigned int i = 0; i < SLOTS; i++)
		if (i != but && m->slot[i].m.len && page * PG >= m->slot[i].m.gpa &&
		    page * PG - m->slot[i].m.gpa < m->slot[i].m.len)
			return &m->slot[i];
	return NULL;
}

static bool overlaps(struct model *m, uint64_t gpa, uint64_t len, unsigned int but)
{
	for (uint64_t page = gpa / PG; page < (gpa + len) / PG; page++)
		if (slot_at(m, page, but))
			return true;
	return false;
}

static bool bound(struct model *m, unsigned int file, uint64_t off, uint64_t len)
{
	for (unsigned int i = 0; i < SLOTS; i++)
		if (m->slot[i].m.len && !m->slot[i].closed && m->slot[i].file == file &&
		    off < m->slot[i].m.off + m->slot[i].m.len && m->slot[i].m.off < off + len)
			return true;
	return false;
}

static void set_new(struct model *m, unsigned int i)
{
	struct slot_model s = { .file = FILES };
	unsigned int kind = draw(m, 4), npages = 1 + draw(m, 8);
	int ret = 0;

	s.m = (struct gmem_memslot){ .size = sizeof(s.m), .slot = i, .len = npages * PG };
	s.m.gpa = draw(m, GUEST - npages + 1) * PG;
	if (kind != 0)
		s.m.hva = m->hva + draw(m, PAGES - npages + 1) * PG;
	if (kind != 1) {
		s.file = draw(m, FILES);
		s.m.file = m->file[s.file];
		s.m.off = draw(m, PAGES - npages + 1) * PG;
	} else {
		s.m.flags = draw(m, 4);
	}
	if (draw(m, 4) == 0) {
		s.m.flags |= GMEM_SLOT_USERFAULT;
		s.m.userfault_bitmap = &m->bitmap[i][m->which[i]];
		m->bitmap[i][m->which[i]] = tap_rand(&m->seed) & tap_rand(&m->seed);
	}
	if (overlaps(m, s.m.gpa, s.m.len, SLOTS) || (s.file < FILES && bound(m, s.file, s.m.off, s.m.len)))
		ret = -EEXIST;
	CHECK_EQ(gmem_vm_set_slot(m->vm, &s.m), ret);
	if (!ret)
		m->slot[i] = s;
	m->counts[0] += !ret;
}

/* One that is there: moved, or given other flags, or a bitmap that is another one or the same. */
static void change(struct model *m, unsigned int i)
{
	struct slot_model *s = &m->slot[i];
	struct gmem_memslot to = s->m;
	bool has_file = s->file < FILES;
	int ret = 0;

	if (draw(m, 2))
		to.gpa = draw(m, GUEST - (unsigned int)(to.len / PG) + 1) * PG;
	if (draw(m, 4) == 0)
		to.flags ^= 1u << draw(m, 2);
	if (draw(m, 2)) {
		to.flags ^= GMEM_SLOT_USERFAULT;
		if (to.flags & GMEM_SLOT_USERFAULT) {
			m->which[i] ^= draw(m, 2);
			to.userfault_bitmap = &m->bitmap[i][m->which[i]];
			m->bitmap[i][m->which[i]] = tap_rand(&m->seed) & tap_rand(&m->seed);
		}
	} else if ((to.flags & GMEM_SLOT_USERFAULT) && draw(m, 2)) {
		m->which[i] ^= 1;
		to.userfault_bitmap = &m->bitmap[i][m->which[i]];
		m->bitmap[i][m->which[i]] = tap_rand(&m->seed) & tap_rand(&m->seed);
	}
	if (has_file) {
		if (s->closed)
			to.file = m->file[s->file];
		if (s->closed || to.gpa != s->m.gpa || (to.flags & 3) ||
		    !((to.flags | s->m.flags) & GMEM_SLOT_USERFAULT))
			ret = -EINVAL;
	} else if ((to.flags ^ s->m.flags) & GMEM_SLOT_READONLY) {
		ret = -EINVAL;
	} else if (overlaps(m, to.gpa, to.len, i)) {
		ret = -EEXIST;
	}
	CHECK_EQ(gmem_vm_set_slot(m->vm, &to), ret);
	if (!ret) {
		s->m = to;
		m->counts[1]++;
	} else {
		/* The bitmap that is in use is the one it has. */
		m->which[i] = s->m.userfault_bitmap == &m->bitmap[i][1];
	}
}

static void set_or_change(struct model *m)
{
	unsigned int i = draw(m, SLOTS);

	if (!m->slot[i].m.len)
		set_new(m, i);
	else if (draw(m, 4))
		change(m, i);
	else {
		CHECK_OK(del_slot(m->vm, i));
		m->slot[i].m.len = 0;
		CHECK_ERR(del_slot(m->vm, i), -EINVAL);
	}
}

/* ---- accesses */

struct want {
	int ret;
	enum gmem_exit_reason reason;
	uint64_t flags;
	uint64_t *word; /* what is loaded or stored */
};

static struct want want_of(struct model *m, uint64_t page, bool store)
{
	const struct slot_model *s = slot_at(m, page, SLOTS);
	struct want fault = { -EFAULT, GMEM_EXIT_MEMORY_FAULT, 0, NULL };
	uint64_t i = s ? page - s->m.gpa / PG : 0, of_file = s ? s->m.off / PG + i : 0;
	bool private = s && s->file < FILES && !s->closed && m->private[s->file][of_file];

	if (!s)
		return (struct want){ -EFAULT, GMEM_EXIT_MMIO, store ? GMEM_EXIT_FLAG_WRITE : 0, NULL };
	if (s->closed)
		return fault;
	if ((s->m.flags & GMEM_SLOT_USERFAULT) && *s->m.userfault_bitmap >> i & 1) {
		fault.flags = GMEM_EXIT_FLAG_USERFAULT | (private ? GMEM_EXIT_FLAG_PRIVATE : 0);
		return fault;
	}
	if (store && (s->m.flags & GMEM_SLOT_READONLY))
		return (struct want){ -EFAULT, GMEM_EXIT_MMIO, GMEM_EXIT_FLAG_WRITE, NULL };
	if (s->m.hva && !private)
		return (struct want){ .word = &m->at_hva[((char *)s->m.hva - m->hva) / PG + i] };
	return (struct want){ .word = &m->in_file[s->file][of_file] };
}

static void access_word(struct model *m, uint64_t page, bool store)
{
	struct want want = want_of(m, page, store);
	uint64_t v = store ? tap_rand(&m->seed) : 0;
	struct gmem_exit e;
	int ret =
		store ? gmem_vcpu_store(m->vcpu, page * PG + 8, &v, 8) : gmem_vcpu_load(m->vcpu, page * PG + 8, &v, 8);

	if (ret != want.ret)
		FAIL("page %llu: %d, not %d: %s", (unsigned long long)page, ret, want.ret, gmem_last_error());
	e = exit_of(m->vcpu);
	CHECK_EQ(e.reason, want.reason);
	CHECK_EQ(e.flags, want.flags);
	m->counts[ret ? 3 : 2]++;
	if (ret)
		return;
	if (store)
		*want.word = v;
	else if (v != *want.word)
		FAIL("page %llu: 0x%llx, not 0x%llx", (unsigned long long)page, (unsigned long long)v,
		     (unsigned long long)*want.word);
}

static void convert(struct model *m)
{
	unsigned int file = draw(m, FILES), first = draw(m, PAGES), n = 1 + draw(m, PAGES - first);
	bool private = draw(m, 2);

	CHECK_OK(gmem_file_set_attributes(m->file[file], first * PG, n * PG, private ? GMEM_ATTRIBUTE_PRIVATE : 0,
					  NULL));
	for (unsigned int i = first; i < first + n; i++)
		m->private[file][i] = private;
}

/* Closed under the slots that have it. */
static void new_file(struct model *m)
{
	unsigned int file = draw(m, FILES);

	gmem_file_free(m->file[file]);
	m->file[file] = make_file(PAGES * PG, 0);
	memset(m->in_file[file], 0, sizeof(m->in_file[file]));
	memset(m->private[file], 0, sizeof(m->private[file]));
	for (unsigned int i = 0; i < SLOTS; i++)
		if (m->slot[i].file == file)
			m->slot[i].closed = true;
}

/* The caller fills a page. */
static void clear_bits(struct model *m)
{
	unsigned int i = draw(m, SLOTS);

	__atomic_fetch_and(&m->bitmap[i][m->which[i]], tap_rand(&m->seed), __ATOMIC_RELEASE);
}

static void host_writes(struct model *m)
{
	unsigned int i = draw(m, PAGES);

	m->at_hva[i] = tap_rand(&m->seed);
	memcpy(m->hva + i * PG + 8, &m->at_hva[i], 8);
}

static void step(struct model *m)
{
	unsigned int r = draw(m, 64);

	if (r < 8)
		set_or_change(m);
	else if (r < 11)
		convert(m);
	else if (r < 13)
		clear_bits(m);
	else if (r < 16)
		host_writes(m);
	else if (r == 16 && draw(m, 4) == 0)
		new_file(m);
	else if (r < 20)
		(void)gmem_vcpu_pre_fault(m->vcpu, draw(m, GUEST) * PG, (1 + draw(m, 8)) * PG, NULL);
	else
		access_word(m, draw(m, GUEST), draw(m, 2));
}

TEST_TIMEOUT(random_slots, 120)
{
	static struct model m;

	m.seed = tap_seed();
	m.vm = new_vm(GMEM_VM_SW_PROTECTED);
	m.vcpu = new_vcpu(m.vm);
	m.hva = plain_memory(PAGES * PG, RW);
	for (unsigned int i = 0; i < FILES; i++)
		m.file[i] = make_file(PAGES * PG, 0);
	for (int i = 0; i < (tap_slow() ? 5000 : 60000); i++) {
		step(&m);
		if (i % 512 == 0)
			for (unsigned int page = 0; page < GUEST; page++)
				access_word(&m, page, false);
	}
	printf("%llu slots set, %llu changed, %llu accesses done, %llu exits\n", (unsigned long long)m.counts[0],
	       (unsigned long long)m.counts[1], (unsigned long long)m.counts[2], (unsigned long long)m.counts[3]);
	CHECK(m.counts[0] && m.counts[1] && m.counts[2] && m.counts[3]);
	/* What accesses did to the caller's memory is all that was done to it. */
	for (unsigned int i = 0; i < PAGES; i++)
		CHECK_EQ(memcmp(m.hva + i * PG + 8, &m.at_hva[i], 8), 0);
	gmem_vcpu_free(m.vcpu);
	gmem_vm_free(m.vm);
	for (unsigned int i = 0; i < FILES; i++)
		gmem_file_free(m.file[i]);
	munmap(m.hva, PAGES * PG);
}
