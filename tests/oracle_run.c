/* SPDX-License-Identifier: MIT */
/*
 * A guest on KVM in a machine of gmem's, and the same guest in a software-protected machine of the kernel's: what it
 * reads, and what brings it out. Skips with the tag "oracle" where this kernel makes no such machine.
 */
#include "oracle_pair.h"

/* ---- what guests do */

static uint64_t draw(struct pair *p, uint64_t n)
{
	return tap_rand(&p->seed) % n;
}

static bool all(const bool *what, uint64_t addr, uint64_t len)
{
	for (uint64_t page = (addr - GPA) / PG; page <= (addr + len - 1 - GPA) / PG; page++)
		if (!what[page])
			return false;
	return true;
}

struct access {
	enum guest_routine routine;
	uint64_t args[5];
	uint64_t from, from_len, to, to_len; /* what it reads and writes; 0: nothing */
};

/* `at` is where `len` bytes may be, and `other` too. */
static struct access draw_access(struct pair *p, uint64_t at, uint64_t other, uint64_t len)
{
	static const enum guest_routine loads[] = { GUEST_load1, GUEST_load2, GUEST_load4, GUEST_load8 };
	static const enum guest_routine stores[] = { GUEST_store1, GUEST_store2, GUEST_store4, GUEST_store8 };
	uint64_t size = draw(p, 4), value = tap_rand(&p->seed), words = len / 8;

	switch (draw(p, 12)) {
	case 0 ... 1:
		return (struct access){ loads[size], { at }, at, 1ull << size, 0, 0 };
	case 2 ... 3:
		return (struct access){ stores[size], { at, value }, 0, 0, at, 1ull << size };
	case 4:
		return (struct access){ GUEST_load16, { at, other }, at, 16, other, 16 };
	case 5:
		return (struct access){ GUEST_store16, { at, other }, other, 16, at, 16 };
	case 6:
		at &= -8ull;
		return (struct access){ GUEST_cmpxchg8, { at, draw(p, 2) ? 0 : value, value + 1 }, at, 8, at, 8 };
	case 7:
		return (struct access){ GUEST_copy, { at, other, len }, other, len, at, len };
	case 8:
		return (struct access){ GUEST_copy8, { at, other, words * 8 }, other, words * 8, at, words * 8 };
	case 9:
		return (struct access){ GUEST_sum, { at, words, 8 }, at, words * 8, 0, 0 };
	case 10:
		at &= -8ull;
		return (struct access){ GUEST_hammer, { at, 1 + value % 20 }, at, 8, at, 8 };
	default:
		return (struct access){ GUEST_touch, { at, words, 8, value }, 0, 0, at, words * 8 };
	}
}

static struct access draw_any(struct pair *p)
{
	uint64_t len = 16 + draw(p, 2 * PG), room = LEN - len;

	/* Often where pages meet. */
	if (draw(p, 2))
		return draw_access(p, GPA + PG - 7 + draw(p, PAGES - 4) * PG, GPA + PG - draw(p, 9), len);
	return draw_access(p, GPA + draw(p, room), GPA + draw(p, room), len);
}

static void fill(struct pair *p, uint64_t page)
{
	both_do(p, true, GUEST_fill, GPA + page * PG, WORDS, p->seed);
	p->known[page] = true;
}

static void fill_unknown(struct pair *p, uint64_t addr, uint64_t len)
{
	for (uint64_t page = (addr - GPA) / PG; len && page <= (addr + len - 1 - GPA) / PG; page++)
		if (!p->known[page])
			fill(p, page);
}

static void op_access(struct pair *p)
{
	struct access a = draw_any(p);
	bool known;

	if ((a.from_len && !all(p->slot, a.from, a.from_len)) || (a.to_len && !all(p->slot, a.to, a.to_len)))
		return;
	if (draw(p, 4)) {
		fill_unknown(p, a.from, a.from_len);
		fill_unknown(p, a.to, a.to_len);
	}
	known = !a.from_len || all(p->known, a.from, a.from_len);
	both_do_args(p, known, a.routine, a.args);
	for (uint64_t page = (a.to - GPA) / PG; !known && a.to_len && page <= (a.to + a.to_len - 1 - GPA) / PG; page++)
		p->known[page] = false;
}

/* A device's register: the exit, and what comes of the answer. */
static void op_device(struct pair *p)
{
	static const enum guest_routine routines[] = { GUEST_load1,  GUEST_load4,  GUEST_load8,
						       GUEST_store1, GUEST_store4, GUEST_store8 };
	uint64_t says = tap_rand(&p->seed);

	both_begin(p, routines[draw(p, 6)], DEVICE + draw(p, 64) * 8, says);
	CHECK_EQ(both_go(p, true, 0).reason, KVM_EXIT_MMIO);
	if (!p->k.run->mmio.is_write)
		memcpy(p->k.run->mmio.data, &says, 8);
	CHECK_OK(gmem_vcpu_answer(p->g.vcpu, says));
	CHECK_EQ(both_go(p, true, 0).reason, 0);
}

/* ---- what hosts do */

static void convert(struct pair *p, uint64_t page, uint64_t npages, bool private)
{
	uint64_t attribute = private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0;

	CHECK_OK(gmem_kvm_attributes_set(p->k.vm, GPA + page * PG, npages * PG, attribute));
	CHECK_OK(gmem_file_set_attributes(p->g.file, page * PG, npages * PG, attribute, NULL));
	memset(p->private + page, private, npages);
}

static void op_convert(struct pair *p, uint64_t page, uint64_t npages)
{
	bool private = draw(p, 2);

	for (uint64_t i = page; i < page + npages; i++)
		p->known[i] &= p->hva || p->private[i] == private;
	convert(p, page, npages, private);
}

static void op_punch(struct pair *p, uint64_t page, uint64_t npages)
{
	CHECK_OK(kvm_punch(&p->k, page * PG, npages * PG));
	CHECK_OK(gmem_file_punch(p->g.file, page * PG, npages * PG));
	/* A guest that was shown a page of the caller's keeps it. */
	if (p->hva)
		memset(p->hva + page * PG, 0, npages * PG);
	memset(p->known + page, true, npages);
}

static int host_copies(struct pair *p, uint64_t page, uint64_t *words, bool write)
{
	return write ? gmem_file_write(p->g.file, page * PG, words, PG) :
		       gmem_file_read(p->g.file, page * PG, words, PG);
}

/* The host's view of one is the host's view of the other. */
static void op_host(struct pair *p, uint64_t page)
{
	uint64_t words[WORDS];
	bool write = draw(p, 2);

	for (uint64_t i = 0; i < WORDS; i++)
		words[i] = tap_rand(&p->seed);
	if (p->hva) {
		/* The host has its memory, whichever the guest has. */
		CHECK_MEM(p->hva + page * PG, p->k.shared + page * PG, PG);
		if (write) {
			memcpy(p->hva + page * PG, words, PG);
			memcpy(p->k.shared + page * PG, words, PG);
		}
		return;
	}
	if (p->private[page]) {
		CHECK_ERR(host_copies(p, page, words, write), -EACCES);
		return;
	}
	CHECK_OK(host_copies(p, page, words, write));
	if (write)
		memcpy(p->k.shared + page * PG, words, PG);
	else if (p->known[page])
		CHECK_MEM(p->k.shared + page * PG, words, PG);
	p->known[page] |= write;
}

/* One slot, or two and a hole between them. */
static void op_slots(struct pair *p)
{
	uint64_t first = 1 + draw(p, PAGES - 2), hole = draw(p, PAGES - first);

	for (uint32_t slot = 0; slot < 2; slot++) {
		int kvm = gmem_kvm_slot_set(p->k.vm, slot, 0, 0, NULL, -1, 0);

		CHECK_EQ(del_slot(p->g.vm, slot), kvm);
	}
	memset(p->slot, false, sizeof(p->slot));
	if (draw(p, 2))
		first = PAGES;
	set_both(p, 0, 0, first, p->k.memfd);
	if (first < PAGES)
		set_both(p, 1, first + hole, PAGES - first - hole, p->k.memfd);
}

static void op_pre_fault(struct pair *p, uint64_t page, uint64_t npages)
{
	uint64_t kvm_done = 0, gmem_done = 0;

	/* An address that is in no slot KVM remembers, and what becomes of that is in oracle.c. */
	if (!p->k.pre_fault || !all(p->slot, GPA + page * PG, npages * PG))
		return;
	CHECK_OK(kvm_pre_fault(&p->k, GPA + page * PG, npages * PG, &kvm_done));
	CHECK_OK(gmem_vcpu_pre_fault(p->g.vcpu, GPA + page * PG, npages * PG, &gmem_done));
	CHECK_EQ(kvm_done, gmem_done);
}

static void step(struct pair *p)
{
	uint64_t page = draw(p, PAGES), npages = 1 + draw(p, draw(p, 4) ? 4 : PAGES);

	if (npages > PAGES - page)
		npages = PAGES - page;
	switch (draw(p, 24)) {
	case 0 ... 3:
		op_convert(p, page, npages);
		break;
	case 4:
		op_punch(p, page, npages);
		break;
	case 5 ... 6:
		op_host(p, page);
		break;
	case 7:
		op_slots(p);
		break;
	case 8:
		op_pre_fault(p, page, npages);
		break;
	case 9:
		op_device(p);
		break;
	default:
		op_access(p);
	}
}

static void sweep(struct pair *p)
{
	for (uint64_t page = 0; page < PAGES; page++)
		if (p->slot[page] && p->known[page])
			both_do(p, true, GUEST_sum, GPA + page * PG, WORDS, 8);
}

TEST_TIMEOUT(random_programs, 60)
{
	static const struct variant variants[] = {
		{ GMEM_VM_SW_PROTECTED, GUEST_USER, 0, false, ONE },
		{ GMEM_VM_SW_PROTECTED, GUEST_KERNEL, 0, true, ONE },
		{ GMEM_VM_SW_PROTECTED, GUEST_USER, GMEM_FILE_STRICT, false, ONE },
		{ GMEM_VM_SW_PROTECTED, GUEST_KERNEL, GMEM_FILE_STRICT, true, ONE },
		{ GMEM_VM_SW_PROTECTED, GUEST_USER, 0, false, TWO },
		{ GMEM_VM_SW_PROTECTED, GUEST_KERNEL, 0, true, TWO_ADOPTED },
		{ GMEM_VM_SW_PROTECTED, GUEST_USER, GMEM_FILE_STRICT, true, TWO },
	};

	for (size_t i = 0; i < sizeof(variants) / sizeof(variants[0]); i++) {
		static struct pair p;

		set_up(&p, &variants[i], true);
		for (int n = 0; n < 1000; n++) {
			step(&p);
			if (n % 250 == 249)
				sweep(&p);
		}
		tear_down(&p);
	}
}

/* ---- where a guest comes out */

/*
 * A private page of a machine whose slot has shared memory only: KVM's is software-protected, gmem's of the default
 * type. Which page, in which order, and that the instruction is made again when the page is shared.
 */
TEST_TIMEOUT(no_private_memory, 60)
{
	for (int i = 0; i < 6; i++) {
		struct variant v = {
			.type = GMEM_VM_DEFAULT,
			.mode = i & 1 ? GUEST_KERNEL : GUEST_USER,
			.supplied = i & 2,
			.memories = i & 4 ? TWO : ONE,
		};
		static struct pair p;

		set_up(&p, &v, false);
		for (int n = 0; n < 300; n++) {
			uint64_t page = draw(&p, PAGES - 8);
			struct access a = draw_any(&p);
			struct ended e;

			convert(&p, page, 1 + draw(&p, 8), true);
			if (draw(&p, 2))
				convert(&p, (a.args[0] - GPA) / PG, 1, true);
			both_begin_args(&p, a.routine, a.args);
			while ((e = both_go(&p, true, KVM_MEMORY_EXIT_FLAG_PRIVATE)).reason) {
				CHECK_EQ(e.reason, KVM_EXIT_MEMORY_FAULT);
				CHECK(p.private[(e.gpa - GPA) / PG]);
				/* Nobody has done anything. */
				if (!draw(&p, 4))
					CHECK_EQ(both_go(&p, true, KVM_MEMORY_EXIT_FLAG_PRIVATE).gpa, e.gpa);
				convert(&p, (e.gpa - GPA) / PG, 1, false);
			}
		}
		convert(&p, 0, PAGES, false);
		sweep(&p);
		tear_down(&p);
	}
}

/* KVM has a private page there that is in no slot; for gmem attributes are a file's, and there is nothing. */
TEST(no_slot)
{
	for (enum guest_mode mode = GUEST_USER; mode <= GUEST_KERNEL; mode++) {
		struct variant v = { .type = GMEM_VM_SW_PROTECTED, .mode = mode };
		static struct pair p;

		set_up(&p, &v, true);
		fill(&p, 0);
		convert(&p, 0, 2, true);
		CHECK_OK(gmem_kvm_slot_set(p.k.vm, 0, 0, 0, NULL, -1, 0));
		CHECK_OK(del_slot(p.g.vm, 0));
		for (uint64_t page = 0; page < 4; page++) {
			both_begin(&p, page & 1 ? GUEST_store8 : GUEST_load8, GPA + page * PG + 24, page);
			if (p.private[page]) {
				struct ended k = run_kvm(&p), g = run_gmem(&p);

				CHECK_EQ(k.reason, KVM_EXIT_MEMORY_FAULT);
				CHECK_EQ(k.flags, KVM_MEMORY_EXIT_FLAG_PRIVATE);
				CHECK_EQ(k.gpa, GPA + page * PG);
				CHECK_EQ(g.reason, GMEM_EXIT_MMIO);
				CHECK_EQ(g.gpa, GPA + page * PG + 24);
				CHECK_OK(gmem_vcpu_answer(p.g.vcpu, 0));
				CHECK_EQ(run_gmem(&p).reason, 0);
			} else {
				CHECK_EQ(both_go(&p, true, 0).reason, KVM_EXIT_MMIO);
				memcpy(p.k.run->mmio.data, &(uint64_t){ 5 }, 8);
				CHECK_OK(gmem_vcpu_answer(p.g.vcpu, 5));
				CHECK_EQ(both_go(&p, true, 0).reason, 0);
			}
		}
		tear_down(&p);
	}
}

/* The file is closed, and the slot is still there. */
TEST(closed_file)
{
	for (enum guest_mode mode = GUEST_USER; mode <= GUEST_KERNEL; mode++) {
		struct variant v = { .type = GMEM_VM_SW_PROTECTED, .mode = mode };
		static struct pair p;

		set_up(&p, &v, true);
		convert(&p, 0, PAGES / 2, true);
		for (uint64_t page = 0; page < PAGES; page += 2)
			fill(&p, page);
		gmem_file_free(p.g.file);
		p.g.file = NULL;
		close(p.k.memfd);
		p.k.memfd = -1;
		for (uint64_t page = 0; page < PAGES; page++) {
			struct ended e;

			both_begin(&p, page & 4 ? GUEST_store8 : GUEST_load8, GPA + page * PG + 8, page);
			if (p.private[page]) {
				e = both_go(&p, true, KVM_MEMORY_EXIT_FLAG_PRIVATE);
				CHECK_EQ(e.reason, KVM_EXIT_MEMORY_FAULT);
				CHECK_EQ(e.gpa, GPA + page * PG);
			} else {
				/* KVM's shared memory is another than the file's. */
				CHECK_EQ(run_kvm(&p).reason, 0);
				e = run_gmem(&p);
				CHECK_EQ(e.err, -EFAULT);
				CHECK_EQ(e.reason, GMEM_EXIT_MEMORY_FAULT);
				CHECK_EQ(e.gpa, GPA + page * PG);
			}
		}
		tear_down(&p);
	}
}

#include "tap_main.h"
