/* SPDX-License-Identifier: MIT */
/*
 * Logs of slots of every kind, beside what was written to and touched since they were cleared: by a guest on KVM and by
 * accessors, while pages are converted and punched and slots come, move and go. The log of touches has exactly the
 * pages that were touched. That of writes has those that were written to, and may have some that the guest read: a slot
 * that is KVM's alone, to which the guest does the same, says so too.
 */
#include "kvm_scene.h"
#include "slot_util.h"

#define D GMEM_LOG_DIRTY
#define A GMEM_LOG_ACCESSED
#define NPAGES 64u /* of each slot: a word of a bitmap */
#define NSLOTS 4u
#define STEP (4 * LEN) /* of guest-physical addresses, from slot to slot; each has two places */
#define RAW_SLOT 500u
#define RAW_GPA (GPA + 64 * LEN)

enum kind { OF_FILE, OF_BOTH, OF_HVA_IN_GATE, OF_HVA };

struct slot {
	enum kind kind;
	bool set, moved;
	struct gmem_file *file;
	char *hva;
	uint64_t userfault; /* its bitmap: empty */
	uint32_t logs;
	uint64_t written, read; /* since each was cleared in the log of writes; `read`: by the guest */
	uint64_t accessed;
	uint64_t private; /* pages */
	uint64_t word[NPAGES]; /* the first of each page; not of both memories */
};

struct model {
	struct scene s;
	struct gmem_vcpu *hand;
	uint64_t rand, looks, helped;
	struct slot slot[NSLOTS];
	char *raw;
	uint64_t raw_written, raw_read;
	bool manual; /* KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 */
};

static uint64_t any(struct model *m, uint64_t n)
{
	return tap_rand(&m->rand) % n;
}

static uint32_t id_of(const struct model *m, const struct slot *slot)
{
	return (uint32_t)(slot - m->slot);
}

static uint64_t gpa_of(const struct model *m, const struct slot *slot)
{
	return GPA + id_of(m, slot) * STEP + (slot->moved ? 2 * LEN : 0);
}

static struct slot *any_slot(struct model *m)
{
	struct slot *slot = &m->slot[any(m, NSLOTS)];

	return slot->set ? slot : &m->slot[OF_FILE];
}

static uint64_t mask_of(uint64_t first, uint64_t n)
{
	return n < 64 ? ((1ull << n) - 1) << first : ~0ull;
}

static int set_it(struct model *m, struct slot *slot)
{
	struct gmem_memslot s = {
		.size = sizeof(s),
		.slot = id_of(m, slot),
		.gpa = gpa_of(m, slot),
		.len = LEN,
		.file = slot->file,
		.hva = slot->hva,
	};

	if (slot->kind == OF_HVA_IN_GATE) {
		s.flags = GMEM_SLOT_USERFAULT;
		s.userfault_bitmap = &slot->userfault;
	}
	if (!slot->file && (slot->logs & D))
		s.flags |= GMEM_SLOT_LOG_DIRTY;
	return gmem_vm_set_slot(m->s.vm, &s);
}

/* ---- accesses */

static void note(struct slot *slot, uint64_t pages, bool write, bool guest)
{
	if (slot->logs & D) {
		slot->written |= write ? pages : 0;
		slot->read |= guest ? pages : 0;
	}
	if (slot->logs & A)
		slot->accessed |= pages;
}

/* The guest runs on until its routine ends; a page that it may not touch becomes shared. */
static uint64_t finish(struct model *m, struct slot *slot)
{
	for (;;) {
		int err = go_on(&m->s);
		uint64_t off = exit_of(m->s.vcpu).gpa - gpa_of(m, slot);

		if (!err)
			return guest_result(&m->s.guest);
		CHECK_EQ(err, -EFAULT);
		CHECK(slot->private >> off / PG & 1);
		to_shared(slot->file, off, PG);
		slot->private &= ~(1ull << off / PG);
		m->helped++;
	}
}

static void guest_loads(struct model *m)
{
	struct slot *slot = any_slot(m);
	uint64_t first = any(m, NPAGES), n = any(m, 2) ? 1 : 1 + any(m, NPAGES - first), sum = 0, got;

	for (uint64_t i = first; i < first + n; i++)
		sum += slot->word[i];
	begin(&m->s, GUEST_sum, gpa_of(m, slot) + first * PG, n, PG);
	got = finish(m, slot);
	if (slot->kind != OF_BOTH)
		CHECK_EQ(got, sum);
	note(slot, mask_of(first, n), false, true);
	if (slot->kind == OF_FILE) {
		run(&m->s, GUEST_sum, RAW_GPA + first * PG, n, PG);
		m->raw_read |= mask_of(first, n);
	}
}

static void guest_stores(struct model *m)
{
	struct slot *slot = any_slot(m);
	uint64_t first = any(m, NPAGES), n = any(m, 2) ? 1 : 1 + any(m, NPAGES - first), v = tap_rand(&m->rand);

	begin(&m->s, GUEST_touch, gpa_of(m, slot) + first * PG, n, PG, v);
	finish(m, slot);
	for (uint64_t i = 0; i < n; i++)
		slot->word[first + i] = v + i;
	note(slot, mask_of(first, n), true, true);
	if (slot->kind == OF_FILE) {
		run(&m->s, GUEST_touch, RAW_GPA + first * PG, n, PG, v);
		m->raw_written |= mask_of(first, n);
	}
}

static void guest_copies(struct model *m)
{
	struct slot *slot = &m->slot[OF_FILE];
	uint64_t from = any(m, NPAGES), to = any(m, NPAGES), gpa = gpa_of(m, slot);

	if (from == to)
		return;
	begin(&m->s, GUEST_copy8, gpa + to * PG, gpa + from * PG, 8);
	finish(m, slot);
	slot->word[to] = slot->word[from];
	note(slot, 1ull << from, false, true);
	note(slot, 1ull << to, true, true);
}

static void guest_exchanges(struct model *m)
{
	struct slot *slot = &m->slot[OF_FILE];
	uint64_t page = any(m, NPAGES), old = any(m, 2) ? slot->word[page] : 1, new = tap_rand(&m->rand);

	begin(&m->s, GUEST_cmpxchg8, gpa_of(m, slot) + page * PG, old, new);
	CHECK_EQ(finish(m, slot), slot->word[page]);
	if (slot->word[page] == old)
		slot->word[page] = new;
	note(slot, 1ull << page, true, true);
}

/* Both sides are within its reach where the guest's are. */
static void accessor(struct model *m)
{
	struct slot *slot = any_slot(m);
	uint64_t page = any(m, NPAGES), gpa = gpa_of(m, slot) + page * PG, v = tap_rand(&m->rand);
	bool write = any(m, 2);

	if (slot->private >> page & 1 && m->s.vm->type == GMEM_VM_DEFAULT)
		return;
	if (write)
		store64(m->hand, gpa, v);
	else
		v = load64(m->hand, gpa);
	if (write)
		slot->word[page] = v;
	else if (slot->kind != OF_BOTH)
		CHECK_EQ(v, slot->word[page]);
	note(slot, 1ull << page, write, false);
}

/* Touched, as far as the log knows. */
static void pre_fault(struct model *m)
{
	struct slot *slot = &m->slot[OF_FILE];
	uint64_t page = any(m, NPAGES - 1);

	if (m->s.vm->type == GMEM_VM_DEFAULT && (slot->private >> page & 3))
		return;
	CHECK_OK(gmem_vcpu_pre_fault(any(m, 2) ? m->hand : m->s.vcpu, gpa_of(m, slot) + page * PG, 2 * PG, NULL));
	note(slot, 3ull << page, false, false);
}

/* ---- what is nobody's access */

static void change_pages(struct model *m)
{
	struct slot *slot = &m->slot[any(m, 2) ? OF_FILE : OF_BOTH];
	uint64_t first = any(m, NPAGES), n = 1 + any(m, any(m, 4) ? 4 : NPAGES);

	if (first + n > NPAGES)
		n = NPAGES - first;
	switch (any(m, 3)) {
	case 0:
		if (slot->kind != OF_FILE)
			return;
		CHECK_OK(gmem_file_punch(slot->file, first * PG, n * PG));
		memset(&slot->word[first], 0, n * 8);
		break;
	case 1:
		to_private(slot->file, first * PG, n * PG);
		slot->private |= mask_of(first, n);
		break;
	default:
		to_shared(slot->file, first * PG, n * PG);
		slot->private &= ~mask_of(first, n);
	}
}

static void change_slot(struct model *m)
{
	struct slot *slot = &m->slot[any(m, NSLOTS)];

	if (slot->set && !slot->file && any(m, 2)) {
		/* With its logs. */
		slot->moved = !slot->moved;
		CHECK_OK(set_it(m, slot));
		return;
	}
	if (slot->set)
		CHECK_OK(del_slot(m->s.vm, id_of(m, slot)));
	slot->logs = 0;
	slot->written = slot->read = slot->accessed = 0;
	slot->set = slot->kind == OF_FILE || any(m, 4);
	if (slot->set)
		CHECK_OK(set_it(m, slot));
}

static void change_logs(struct model *m)
{
	struct slot *slot = any_slot(m);
	uint32_t logs = (uint32_t)any(m, 4);

	if (slot->kind == OF_HVA && (logs & A)) {
		CHECK_ERR(gmem_vm_set_log(m->s.vm, id_of(m, slot), logs), -EOPNOTSUPP);
		return;
	}
	CHECK_OK(gmem_vm_set_log(m->s.vm, id_of(m, slot), logs));
	slot->logs = logs;
	if (!(logs & D))
		slot->written = slot->read = 0;
	if (!(logs & A))
		slot->accessed = 0;
}

/* ---- looking */

static void check_raw(struct model *m)
{
	uint64_t bits = 0;

	CHECK_OK(gmem_kvm_dirty_log(gmem_vm_kvm_fd(m->s.vm), RAW_SLOT, &bits));
	if (m->manual)
		CHECK_OK(gmem_kvm_clear_dirty_log(gmem_vm_kvm_fd(m->s.vm), RAW_SLOT, NPAGES, &bits));
	CHECK_EQ(m->raw_written & ~bits, 0);
	CHECK_EQ(bits & ~(m->raw_written | m->raw_read), 0);
	m->raw_written = m->raw_read = 0;
}

static void look(struct model *m)
{
	struct slot *slot = any_slot(m);
	uint64_t first = any(m, 2) ? 0 : any(m, NPAGES), n = NPAGES - first, bits = 0, wanted = tap_rand(&m->rand);
	uint32_t log = any(m, 2) ? D : A, id = id_of(m, slot), op = (uint32_t)any(m, 3);
	uint64_t must = log == D ? slot->written : slot->accessed, may = log == D ? must | slot->read : must, gone;

	if (!(slot->logs & log)) {
		CHECK_ERR(gmem_vm_get_log(m->s.vm, id, log, first, n, &bits, 0), -EINVAL);
		return;
	}
	m->looks++;
	if (op == 2) {
		CHECK_OK(gmem_vm_clear_log(m->s.vm, id, log, first, n, &wanted));
	} else {
		wanted = ~0ull;
		CHECK_EQ(gmem_vm_get_log(m->s.vm, id, log, first, n, &bits, op ? GMEM_LOG_CLEAR : 0),
			 __builtin_popcountll(bits));
		bits <<= first;
		if ((must & mask_of(first, n) & ~bits) || (bits & ~may))
			FAIL("slot %u, log %u: 0x%llx, not 0x%llx (or 0x%llx)", id, log, (unsigned long long)bits,
			     (unsigned long long)(must & mask_of(first, n)), (unsigned long long)may);
	}
	gone = op ? wanted << first : 0;
	if (log == A) {
		slot->accessed &= ~gone;
	} else {
		slot->written &= ~gone;
		slot->read &= ~gone;
	}
	if (id == OF_FILE && log == D)
		check_raw(m);
}

static void step(struct model *m)
{
	static void (*const all[])(struct model *) = {
		guest_loads, guest_loads, guest_stores, guest_stores, guest_copies, guest_exchanges, accessor,
		accessor,    pre_fault,	  look,		look,	      look,	    change_pages,    change_pages,
	};

	all[any(m, sizeof(all) / sizeof(all[0]))](m);
	if (!any(m, 30))
		change_logs(m);
	if (!any(m, 100))
		change_slot(m);
}

static void set_up(struct model *m, const struct scene_opts *o, bool manual)
{
	scene_set_up(&m->s, o);
	if (manual && gmem_kvm_cap_enable(gmem_vm_kvm_fd(m->s.vm), KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 1))
		SKIP("kvm", "no KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2");
	m->manual = manual;
	m->hand = new_vcpu(m->s.vm);
	m->slot[OF_FILE] = (struct slot){ .set = true, .file = m->s.file };
	m->slot[OF_BOTH].file = make_file(LEN, o->flags);
	for (unsigned int i = 0; i < NSLOTS; i++) {
		m->slot[i].kind = (enum kind)i;
		if (i == OF_FILE)
			continue;
		m->slot[i].hva = plain_memory(LEN, RW);
		m->slot[i].set = true;
		CHECK_OK(set_it(m, &m->slot[i]));
	}
	m->raw = plain_memory(LEN, RW);
	CHECK_OK(gmem_kvm_plain_slot_set(gmem_vm_kvm_fd(m->s.vm), RAW_SLOT, KVM_MEM_LOG_DIRTY_PAGES, RAW_GPA, LEN,
					 m->raw));
}

static void tear_down(struct model *m)
{
	struct gmem_file *file = m->slot[OF_BOTH].file;

	gmem_vcpu_free(m->hand);
	scene_tear_down(&m->s);
	gmem_file_free(file);
	for (unsigned int i = 1; i < NSLOTS; i++)
		munmap(m->slot[i].hva, LEN);
	munmap(m->raw, LEN);
}

static void model(bool manual, uint32_t flags)
{
	uint64_t seed = tap_seed();

	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		struct model m = { .rand = seed + i };
		struct scene_opts o = ways[i];

		o.flags = flags;
		set_up(&m, &o, manual);
		for (int steps = tap_slow() ? 500 : 5000; steps; steps--)
			step(&m);
		printf("%llu looks, %llu pages that were private\n", (unsigned long long)m.looks,
		       (unsigned long long)m.helped);
		tear_down(&m);
	}
}

TEST_TIMEOUT(random_operations, 240)
{
	model(false, 0);
}

TEST_TIMEOUT(random_operations_strict, 240)
{
	model(false, GMEM_FILE_STRICT);
}

TEST_TIMEOUT(random_operations_by_hand_protected, 240)
{
	model(true, 0);
}
