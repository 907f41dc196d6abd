/* SPDX-License-Identifier: MIT */
/*
 * A kernel's KVM and gmem's machine asked the same: attributes, pre-faults, slots, punches and a guest's accesses, each
 * answer compared. An offset in the file is the guest-physical address, so that KVM's attributes, which belong to
 * addresses, and gmem's, which belong to the file's pages, are of the same pages. What only one of the two can answer
 * is counted as "without an oracle"; where both are known to differ, by design, both have to give what is written here.
 */
#include "oracle_scene.h"

/* ---- what both are asked */

static void told_attributes(struct scene *s, uint64_t addr, uint64_t len, bool private)
{
	for (uint64_t i = addr / PG; i < (addr + len) / PG; i++) {
		/* KVM has two memories, and the guest now sees the other one. gmem has one. */
		if (s->private[i] != private)
			memset(s->same[i], false, sizeof(s->same[i]));
		s->private[i] = private;
	}
}

static void op_attributes(struct scene *s, uint64_t addr, uint64_t len, uint64_t attributes)
{
	bool known = !(attributes & ~GMEM_ATTRIBUTE_PRIVATE), valid = known && is_range(addr, len);
	int kvm, gmem = gmem_file_set_attributes(s->file, addr, len, attributes, NULL);

	begin(s, ATTRIBUTES, addr, len, attributes);
	/* KVM keeps a word a page, of memory or not: more than a few would be all there is. */
	if (valid && len > 4 * LEN) {
		CHECK_EQ(gmem, -EINVAL);
		s->no_oracle[ATTRIBUTES]++;
		return;
	}
	kvm = gmem_kvm_attributes_set(s->k.vm, addr, len, attributes);
	if (!valid || in_file(addr, len)) {
		compare(s, ATTRIBUTES, addr, len, kvm, gmem);
		if (!kvm)
			told_attributes(s, addr, len, attributes);
		return;
	}
	/* An address has attributes whether or not anything is there; a file ends. */
	differ(s, ATTRIBUTES, addr, kvm, 0, gmem, -EINVAL);
	CHECK_OK(gmem_kvm_attributes_set(s->k.vm, addr, len, 0));
	for (uint64_t off = addr; off < LEN; off += PG)
		if (s->private[off / PG])
			CHECK_OK(gmem_kvm_attributes_set(s->k.vm, off, PG, KVM_MEMORY_ATTRIBUTE_PRIVATE));
}

static void op_pre_fault(struct scene *s, uint64_t addr, uint64_t len)
{
	bool slotless = addr >= LEN || s->slot[addr / PG] < 0, aligned = is_range(addr, len);
	uint64_t kvm_done = 0, gmem_done = 0;
	int kvm, gmem;

	begin(s, PRE_FAULT, addr, len, 0);
	if (!s->k.pre_fault) {
		s->no_oracle[PRE_FAULT]++;
		return;
	}
	kvm = kvm_pre_fault(&s->k, addr, len, &kvm_done);
	gmem = gmem_vcpu_pre_fault(s->vcpu, addr, len, &gmem_done);
	/* A pre-fault ends at an address without a slot, and KVM remembers that. */
	if (aligned && addr + kvm_done < LEN && kvm_done < len)
		s->mmio[(addr + kvm_done) / PG] = true;
	if (aligned && addr + len > GPA_END)
		differ(s, PRE_FAULT, addr, kvm,
		       !slotless			   ? 0 :
		       addr < LEN && s->private[addr / PG] ? -EFAULT :
							     -ENOENT,
		       gmem, -EINVAL);
	else if (aligned && addr < LEN && slotless && s->private[addr / PG])
		/* KVM has a private page there that is in no slot; for gmem there is no page. */
		differ(s, PRE_FAULT, addr, kvm, -EFAULT, gmem, -ENOENT);
	else
		compare(s, PRE_FAULT, addr, len, kvm ? kvm : (long long)kvm_done, gmem ? gmem : (long long)gmem_done);
}

/* len 0 deletes. */
static void op_slot(struct scene *s, uint32_t slot, uint64_t addr, uint64_t len)
{
	int kvm = kvm_slot(&s->k, slot, addr, len), gmem = set_slot(s->vm, slot, addr, len, s->file, addr);

	begin(s, len ? SLOT : DELETE, addr, len, slot);
	if (len && gmem_range_overlaps(addr, len, CODE_GPA, PG)) {
		/* The code's slot is KVM's alone. */
		CHECK(kvm == -EEXIST || kvm == -EINVAL);
		CHECK(gmem == -EEXIST || gmem == -EINVAL);
		s->no_oracle[SLOT]++;
		return;
	}
	compare(s, len ? SLOT : DELETE, addr, len, kvm, gmem);
	for (uint64_t i = 0; !kvm && i < PAGES; i++)
		if (!len && s->slot[i] == (int)slot)
			s->slot[i] = -1;
		else if (len && i * PG >= addr && i * PG - addr < len)
			s->slot[i] = (int)slot;
}

static void op_delete(struct scene *s, uint32_t slot)
{
	op_slot(s, slot, 0, 0);
}

/* Pages of the file that another slot has, at other addresses. */
static void op_slot_bound(struct scene *s, uint32_t slot, uint64_t gpa, uint64_t off)
{
	int kvm = gmem_kvm_slot_set(s->k.vm, slot, gpa, PG, s->k.shared, s->k.memfd, off);
	int gmem = set_slot(s->vm, slot, gpa, PG, s->file, off);

	begin(s, SLOT, gpa, PG, slot);
	/* Before Linux 7.2 KVM says it in another way. */
	if (kvm == -EINVAL)
		differ(s, SLOT, gpa, kvm, -EINVAL, gmem, -EEXIST);
	else
		compare(s, SLOT, gpa, PG, kvm, gmem);
}

static void op_punch(struct scene *s, uint64_t off, uint64_t len)
{
	int kvm, gmem = gmem_file_punch(s->file, off, len);

	begin(s, PUNCH, off, len, 0);
	if (len && !in_file(off, len)) {
		/* A guest_memfd has no end to a punch. */
		CHECK(gmem == -ERANGE || gmem == -EINVAL);
		s->no_oracle[PUNCH]++;
		return;
	}
	kvm = kvm_punch(&s->k, off, len);
	compare(s, PUNCH, off, len, kvm, gmem);
	for (uint64_t i = off / PG; !kvm && i < (off + len) / PG; i++)
		memset(s->same[i], true, sizeof(s->same[i]));
}

static int gmem_access(struct scene *s, bool store, uint64_t gpa, uint32_t *value)
{
	return store ? gmem_vcpu_store(s->vcpu, gpa, value, 4) : gmem_vcpu_load(s->vcpu, gpa, value, 4);
}

/* The same exit, at the same page. Of what is not there gmem does not say on which side it is. */
static void same_exit(struct scene *s, enum op op, uint64_t gpa, struct kvm_ended k, bool flags)
{
	struct gmem_exit e = exit_of(s->vcpu);

	compare(s, op, gpa, 4, KVM_EXIT_MEMORY_FAULT, e.reason);
	compare(s, op, gpa, 4, (long long)k.gpa, (long long)e.gpa);
	compare(s, op, gpa, 4, (long long)k.len, (long long)e.len);
	if (flags)
		compare(s, op, gpa, 4, (long long)k.flags, (long long)e.flags);
	else
		s->no_oracle[op]++;
}

/* A device's register: the same exit, and the same end when it has been answered. */
static void same_mmio(struct scene *s, enum op op, uint64_t gpa, struct kvm_ended k, uint32_t kvm_value,
		      uint32_t gmem_value)
{
	struct gmem_exit e = exit_of(s->vcpu);

	compare(s, op, gpa, 4, KVM_EXIT_MMIO, e.reason);
	compare(s, op, gpa, 4, (long long)k.gpa, (long long)e.gpa);
	compare(s, op, gpa, 4, (long long)k.len, (long long)e.len);
	compare(s, op, gpa, 4, (long long)k.flags, (long long)e.flags);
	for (size_t i = 0; i < sizeof(e.data); i++)
		compare(s, op, gpa, 4, k.data[i], e.data[i]);
	CHECK_OK(gmem_vcpu_answer(s->vcpu, DEVICE_SAYS));
	compare(s, op, gpa, 4, 0, gmem_access(s, op == STORE, gpa, &gmem_value));
	compare(s, op, gpa, 4, kvm_value, gmem_value);
}

/*
 * A guest's access. Where there was no slot KVM remembers that, in the guest's page tables, and looks at attributes
 * only where it remembers nothing (6.12: kvm_mmu_page_fault(), PFERR_RSVD). A page there that is made private later is
 * taken for a shared one: still MMIO without a slot, and with one a memory fault without KVM_MEMORY_EXIT_FLAG_PRIVATE,
 * again and again. A pre-fault of a page in a slot helps.
 */
static struct kvm_ended kvm_access_remembered(struct scene *s, enum op op, uint64_t gpa, uint32_t *value)
{
	uint64_t page = gpa / PG, done;
	struct kvm_ended k = kvm_access(&s->k, op == STORE, gpa, value);

	if (s->slot[page] < 0)
		s->mmio[page] |= k.end == KVM_MMIO;
	else if (k.end == KVM_FAULT && s->mmio[page] && s->private[page] && !k.flags && s->k.pre_fault) {
		CHECK_OK(kvm_pre_fault(&s->k, page * PG, PG, &done));
		s->mmio[page] = false;
		s->no_oracle[op]++;
		return kvm_access(&s->k, op == STORE, gpa, value);
	}
	return k;
}

static void op_access(struct scene *s, bool store, uint64_t page, unsigned int word)
{
	uint32_t kvm_value = (uint32_t)tap_rand(&s->seed), gmem_value = kvm_value;
	uint64_t gpa = page * PG + word * 4;
	enum op op = store ? STORE : LOAD;
	struct kvm_ended k = kvm_access_remembered(s, op, gpa, &kvm_value);
	int gmem = gmem_access(s, store, gpa, &gmem_value);
	bool slot = page < PAGES && s->slot[page] >= 0;

	begin(s, op, gpa, 4, 0);
	if (k.end == KVM_MMIO) {
		CHECK(!slot);
		compare(s, op, gpa, 4, -EFAULT, gmem);
		same_mmio(s, op, gpa, k, kvm_value, gmem_value);
		return;
	}
	if (k.end == KVM_FAULT && !slot) {
		/* KVM has a private page there that is in no slot; for gmem there is no page. */
		CHECK(s->private[page]);
		CHECK_EQ(gmem, -EFAULT);
		differ(s, op, gpa, KVM_EXIT_MEMORY_FAULT, KVM_EXIT_MEMORY_FAULT, exit_of(s->vcpu).reason,
		       GMEM_EXIT_MMIO);
		return;
	}
	compare(s, op, gpa, 4, k.end == KVM_FAULT ? -EFAULT : 0, gmem);
	if (k.end == KVM_FAULT) {
		same_exit(s, op, gpa, k, true);
		return;
	}
	if (store)
		s->same[page][word] = true;
	else if (s->same[page][word])
		compare(s, op, gpa, 4, kvm_value, gmem_value);
	else
		s->no_oracle[op]++;
}

/*
 * KVM does not tell attributes, but the guest does. In a slot: it sees what the host wrote if the page is shared. In
 * none: a private page is a memory fault, a shared one is not.
 */
static void op_side(struct scene *s, uint64_t page)
{
	uint32_t kvm_value = 0, gmem_value = 0, value = (uint32_t)tap_rand(&s->seed) | 1;
	uint64_t gpa = page * PG + SIDE_AT, attributes;
	bool remembered = s->mmio[page];
	struct kvm_ended k;
	int gmem;

	begin(s, SIDE, gpa, 4, 0);
	memcpy(s->k.shared + gpa, &value, 4);
	k = kvm_access_remembered(s, SIDE, gpa, &kvm_value);
	CHECK_OK(gmem_file_attributes(s->file, page * PG, &attributes, NULL));
	if (s->slot[page] < 0) {
		if (k.end == KVM_MMIO && s->private[page] && remembered)
			s->no_oracle[SIDE]++;
		else
			compare(s, SIDE, gpa, 4, k.end == KVM_FAULT ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
				(long long)attributes);
		return;
	}
	compare(s, SIDE, gpa, 4, k.end, KVM_DONE);
	compare(s, SIDE, gpa, 4, kvm_value == value ? 0 : KVM_MEMORY_ATTRIBUTE_PRIVATE, (long long)attributes);
	gmem = gmem_file_write(s->file, gpa, &value, 4);
	compare(s, SIDE, gpa, 4, kvm_value == value ? 0 : -EACCES, gmem);
	CHECK_OK(gmem_vcpu_load(s->vcpu, gpa, &gmem_value, 4));
	compare(s, SIDE, gpa, 4, kvm_value == value, gmem_value == value);
}

/* ---- cases */

static const uint64_t addresses[] = {
	0,	    1,		PG - 1,	    PG,	      PG + 1,	  PG / 2,	8 * PG,
	LEN - PG,   LEN - 1,	LEN,	    LEN + PG, 1ull << 32, GPA_END - PG, GPA_END,
	1ull << 51, 1ull << 63, 0 - 2 * PG, 0 - PG,   0 - PG + 1, UINT64_MAX,
};
static const uint64_t lens[] = {
	0,   1,	       PG - 1,	   PG,	    PG + 1,	2 * PG,	    8 * PG, LEN - PG,
	LEN, LEN + PG, 1ull << 33, GPA_END, 1ull << 63, 0 - 2 * PG, 0 - PG, UINT64_MAX,
};
static const uint64_t attributes[] = { 0,	  GMEM_ATTRIBUTE_PRIVATE,     1,  2,
				       4,	  1 | GMEM_ATTRIBUTE_PRIVATE, 16, 1ull << 63,
				       UINT64_MAX };

#define N(array) (sizeof(array) / sizeof(*(array)))

/* Every range of good and bad numbers, with every attribute. */
TEST_TIMEOUT(arguments, 60)
{
	static struct scene s;

	set_up(&s);
	op_slot(&s, 0, 0, 16 * PG);
	op_slot(&s, 1, LEN - 8 * PG, 8 * PG);
	for (size_t i = 0; i < N(addresses); i++)
		for (size_t j = 0; j < N(lens); j++) {
			for (size_t k = 0; k < N(attributes); k++)
				op_attributes(&s, addresses[i], lens[j], attributes[k]);
			op_pre_fault(&s, addresses[i], lens[j]);
			op_punch(&s, addresses[i], lens[j]);
			if (lens[j])
				op_slot(&s, 0, addresses[i], lens[j]);
			else
				op_slot(&s, 2, 20 * PG, PG);
			op_slot(&s, 2, addresses[i], lens[j]);
			op_delete(&s, 2);
		}
	op_slot_bound(&s, 2, 2 * LEN, 0);
	op_slot_bound(&s, 2, 2 * LEN, LEN - PG);
	op_delete(&s, 2);
	op_delete(&s, 32763);
	op_delete(&s, 32764);
	op_delete(&s, UINT16_MAX);
	for (uint64_t page = 0; page < PAGES; page++)
		op_side(&s, page);
	tear_down(&s);
}

static void random_range(struct scene *s, uint64_t *addr, uint64_t *len)
{
	uint64_t r = tap_rand(&s->seed), first = r % PAGES;

	if (!(r >> 8 & 15)) {
		*addr = addresses[(r >> 16) % N(addresses)];
		*len = lens[(r >> 32) % N(lens)];
		return;
	}
	*addr = first * PG;
	*len = PG * (1 + (r >> 16) % (r >> 12 & 1 ? PAGES - first : 4));
}

static void step(struct scene *s)
{
	uint64_t r = tap_rand(&s->seed), page = (r >> 16) % PAGES, addr, len;

	random_range(s, &addr, &len);
	switch (r % 16) {
	case 0 ... 2:
		op_attributes(s, addr, len, r & 256 ? GMEM_ATTRIBUTE_PRIVATE : 0);
		break;
	case 3 ... 5:
		op_pre_fault(s, addr, len);
		break;
	case 6 ... 7:
		op_slot(s, (uint32_t)(r >> 8) % SLOTS, addr, len);
		break;
	case 8:
		op_delete(s, (uint32_t)(r >> 8) % SLOTS);
		break;
	case 9:
		op_punch(s, addr, len);
		break;
	case 10 ... 13:
		op_access(s, r & 256, page, (unsigned int)(r >> 32) % WORDS);
		break;
	default:
		op_side(s, page);
	}
}

/* Every page, in one slot: what the file says of runs of pages is what the kernel says of each. */
static void sweep(struct scene *s)
{
	uint64_t attribute, len;

	for (uint32_t i = 0; i < SLOTS; i++)
		op_delete(s, i);
	for (int slots = 0; slots < 2; slots++) {
		for (uint64_t off = 0; off < LEN; off += len) {
			CHECK_OK(gmem_file_attributes(s->file, off, &attribute, &len));
			for (uint64_t page = off / PG; page < (off + len) / PG; page++) {
				op_side(s, page);
				compare(s, SIDE, page * PG, PG, s->private[page] ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
					(long long)attribute);
			}
		}
		if (!slots)
			op_slot(s, 0, 0, LEN);
	}
	op_pre_fault(s, 0, LEN);
	op_pre_fault(s, 0, LEN + PG);
	op_delete(s, 0);
}

TEST_TIMEOUT(random_sequences, 60)
{
	static struct scene s;
	uint64_t seed = tap_seed();

	set_up(&s);
	s.seed = seed;
	for (int round = 0; round < 8; round++) {
		for (int i = 0; i < 1000; i++)
			step(&s);
		sweep(&s);
	}
	tear_down(&s);
}

/* The file is closed, the slot is still there: private pages are memory faults, touched before or not. */
TEST(closed_file)
{
	static struct scene s;

	set_up(&s);
	op_slot(&s, 0, 0, LEN);
	op_attributes(&s, 0, LEN / 2, GMEM_ATTRIBUTE_PRIVATE);
	for (uint64_t page = 0; page < PAGES; page += 2) {
		op_access(&s, true, page, 0);
		op_access(&s, false, page, 0);
	}
	gmem_file_free(s.file);
	s.file = NULL;
	close(s.k.memfd);
	s.k.memfd = -1;
	for (uint64_t page = 0; page < PAGES; page++) {
		struct kvm_ended k;
		uint32_t value = 0;
		int gmem;

		k = kvm_access(&s.k, page & 4, page * PG, &value);
		gmem = gmem_access(&s, page & 4, page * PG, &value);
		if (s.private[page]) {
			compare(&s, page & 4 ? STORE : LOAD, page * PG, 4, k.end == KVM_FAULT ? -EFAULT : 0, gmem);
			same_exit(&s, page & 4 ? STORE : LOAD, page * PG, k, false);
			op_pre_fault(&s, page * PG, PG);
		} else {
			/* KVM's shared memory is another than the file's. */
			differ(&s, page & 4 ? STORE : LOAD, page * PG, k.end, KVM_DONE, gmem, -EFAULT);
		}
	}
	tear_down(&s);
}
