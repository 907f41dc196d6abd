/* SPDX-License-Identifier: MIT */
/* Logs of what guests write to and touch, by accessors: errors, the rules one by one, and a model. */
#include <sys/wait.h>

#include "slot_util.h"

#define NPAGES 200u
#define LEN (NPAGES * PG)
#define GPA (1ull << 30)
#define D GMEM_LOG_DIRTY
#define A GMEM_LOG_ACCESSED
#define WORDS ((NPAGES + 63) / 64)

static bool bit(const uint64_t *bits, uint64_t i)
{
	return bits[i / 64] >> i % 64 & 1;
}

/* The log is these pages, and is empty afterwards if told so. */
static void check_log(struct gmem_vm *vm, uint32_t log, uint32_t flags, const uint64_t *expected)
{
	uint64_t bits[WORDS];
	int64_t n = 0;

	memset(bits, 0xee, sizeof(bits));
	for (uint64_t i = 0; i < NPAGES; i++)
		n += bit(expected, i);
	CHECK_EQ(CHECK_OK(gmem_vm_get_log(vm, 0, log, 0, NPAGES, bits, flags)), n);
	for (uint64_t i = 0; i < WORDS * 64; i++)
		if (bit(bits, i) != (i < NPAGES && bit(expected, i)))
			FAIL("log %u, page %llu: %d", log, (unsigned long long)i, bit(bits, i));
}

/* The log is the pages that follow. */
#define check_pages(vm, log, flags, ...)                                                                  \
	do {                                                                                              \
		const int pages_[] = { __VA_ARGS__ };                                                     \
		uint64_t expected_[WORDS] = { 0 };                                                        \
                                                                                                          \
		for (const int *p_ = pages_, *end_ = p_ + sizeof(pages_) / sizeof(int); p_ != end_; p_++) \
			expected_[*p_ / 64] |= 1ull << *p_ % 64;                                          \
		check_log(vm, log, flags, expected_);                                                     \
	} while (0)

TEST(arguments)
{
	struct gmem_vm *vm = new_vm(GMEM_VM_SW_PROTECTED);
	struct gmem_file *file = make_file(LEN, 0);
	uint64_t bits[WORDS] = { 0 };

	CHECK_OK(set_slot(vm, 0, GPA, LEN, file, 0));
	CHECK_ERR(gmem_vm_set_log(vm, 1, D), -EINVAL);
	CHECK_ERR(gmem_vm_set_log(vm, 1 << 20, D), -EINVAL);
	CHECK_ERR(gmem_vm_set_log(vm, 0, 4), -EINVAL);
	CHECK_ERR(gmem_vm_get_log(vm, 0, D, 0, NPAGES, bits, 0), -EINVAL);
	CHECK_OK(gmem_vm_set_log(vm, 0, D));
	CHECK_ERR(gmem_vm_get_log(vm, 0, A, 0, NPAGES, bits, 0), -EINVAL);
	CHECK_ERR(gmem_vm_clear_log(vm, 0, A, 0, NPAGES, bits), -EINVAL);
	CHECK_ERR(gmem_vm_get_log(vm, 0, 0, 0, NPAGES, bits, 0), -EINVAL);
	CHECK_ERR(gmem_vm_get_log(vm, 0, D | A, 0, NPAGES, bits, 0), -EINVAL);
	CHECK_ERR(gmem_vm_get_log(vm, 0, 4, 0, NPAGES, bits, 0), -EINVAL);
	CHECK_ERR(gmem_vm_get_log(vm, 0, D, 0, NPAGES, bits, 2), -EINVAL);
	CHECK_ERR(gmem_vm_get_log(vm, 1, D, 0, NPAGES, bits, 0), -EINVAL);
	CHECK_ERR(gmem_vm_get_log(vm, 0, D, 0, NPAGES, NULL, 0), -EINVAL);
	CHECK_ERR(gmem_vm_get_log(vm, 0, D, 0, NPAGES + 1, bits, 0), -EINVAL);
	CHECK_ERR(gmem_vm_get_log(vm, 0, D, NPAGES, 1, bits, 0), -EINVAL);
	CHECK_ERR(gmem_vm_get_log(vm, 0, D, UINT64_MAX, 2, bits, 0), -EINVAL);
	CHECK_ERR(gmem_vm_get_log(vm, 0, D, 1, UINT64_MAX, bits, 0), -EINVAL);
	CHECK_ERR(gmem_vm_clear_log(vm, 0, D, 1, UINT64_MAX, bits), -EINVAL);
	CHECK_ERR(gmem_vm_clear_log(vm, 0, D, 1, NPAGES, bits), -EINVAL);
	CHECK_ERR(gmem_vm_clear_log(vm, 1, D, 0, 1, bits), -EINVAL);
	CHECK_ERR(gmem_vm_clear_log(vm, 0, D, 0, 1, NULL), -EINVAL);
	CHECK_EQ(gmem_vm_get_log(vm, 0, D, NPAGES, 0, NULL, 0), 0);
	CHECK_OK(gmem_vm_clear_log(vm, 0, D, 0, 0, NULL));
	CHECK_OK(del_slot(vm, 0));
	CHECK_ERR(gmem_vm_get_log(vm, 0, D, 0, NPAGES, bits, 0), -EINVAL);
	gmem_vm_free(vm);
	gmem_file_free(file);
}

TEST(after_fork_and_after_death)
{
	struct gmem_vm *vm = new_vm(GMEM_VM_SW_PROTECTED);
	struct gmem_file *file = make_file(LEN, 0);
	uint64_t bits[WORDS] = { 0 };
	int status;
	pid_t pid;

	CHECK_OK(set_slot(vm, 0, GPA, LEN, file, 0));
	CHECK_OK(gmem_vm_set_log(vm, 0, D));
	pid = fork();
	if (!pid) {
		CHECK_ERR(gmem_vm_set_log(vm, 0, 0), -EIO);
		CHECK_ERR(gmem_vm_get_log(vm, 0, D, 0, 1, bits, 0), -EIO);
		CHECK_ERR(gmem_vm_clear_log(vm, 0, D, 0, 1, bits), -EIO);
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	gmem_mmu_kill(&vm->mmu);
	CHECK_ERR(gmem_vm_set_log(vm, 0, 0), -EIO);
	CHECK_ERR(gmem_vm_get_log(vm, 0, D, 0, 1, bits, 0), -EIO);
	CHECK_ERR(gmem_vm_clear_log(vm, 0, D, 0, 1, bits), -EIO);
	gmem_vm_free(vm);
	gmem_file_free(file);
}

TEST(a_write_is_seen_once_each_time)
{
	struct gmem_vm *vm = new_vm(GMEM_VM_SW_PROTECTED);
	struct gmem_file *file = make_file(LEN, 0);
	struct gmem_vcpu *vcpu = new_vcpu(vm);
	uint64_t bits[2] = { 0 }, old = 1, new = 2;

	CHECK_OK(set_slot(vm, 0, GPA, LEN, file, 0));
	/* Mapped before the log, writable: it must not go unseen. */
	store64(vcpu, GPA + 3 * PG, 1);
	CHECK_OK(gmem_vm_set_log(vm, 0, D | A));
	check_pages(vm, D, 0);
	check_pages(vm, A, 0);
	CHECK_EQ(load64(vcpu, GPA + 3 * PG), 1);
	check_pages(vm, D, 0);
	check_pages(vm, A, 0, 3);
	store64(vcpu, GPA + 3 * PG, 1);
	CHECK_EQ(gmem_vcpu_cmpxchg(vcpu, GPA + 64 * PG, &old, &new, 8), 0);
	check_pages(vm, D, 0, 3, 64);
	/* A part that does not begin with a word. */
	CHECK_EQ(gmem_vm_get_log(vm, 0, D, 3, 62, bits, 0), 2);
	CHECK_EQ(bits[0], 1ull | 1ull << 61);
	CHECK_EQ(gmem_vm_get_log(vm, 0, D, 4, 70, bits, GMEM_LOG_CLEAR), 1);
	CHECK_EQ(bits[0], 1ull << 60);
	CHECK_EQ(bits[1], 0);
	check_pages(vm, D, GMEM_LOG_CLEAR, 3);
	check_pages(vm, D, 0);
	check_pages(vm, A, 0, 3, 64);
	store64(vcpu, GPA + 3 * PG, 5);
	check_pages(vm, D, 0, 3);
	/* One of the two goes on, and what it has stays. */
	CHECK_OK(gmem_vm_set_log(vm, 0, D));
	check_pages(vm, D, 0, 3);
	CHECK_OK(gmem_vm_set_log(vm, 0, D | A));
	check_pages(vm, D, 0, 3);
	check_pages(vm, A, 0);
	CHECK_OK(gmem_vm_set_log(vm, 0, 0));
	CHECK_OK(gmem_vm_set_log(vm, 0, D));
	check_pages(vm, D, 0);
	gmem_vcpu_free(vcpu);
	gmem_vm_free(vm);
	gmem_file_free(file);
}

TEST(what_is_not_asked_for_is_not_cleared)
{
	struct gmem_vm *vm = new_vm(GMEM_VM_SW_PROTECTED);
	struct gmem_file *file = make_file(LEN, 0);
	struct gmem_vcpu *vcpu = new_vcpu(vm);
	uint64_t bits[WORDS] = { 0 };

	CHECK_OK(set_slot(vm, 0, GPA, LEN, file, 0));
	CHECK_OK(gmem_vm_set_log(vm, 0, D));
	for (uint64_t i = 0; i < NPAGES; i += 2)
		store64(vcpu, GPA + i * PG, i);
	/* Bits past the range are not looked at, nor are pages that are clear. */
	bits[0] = 1ull << 10 | 1ull << 11 | 1ull << 40;
	CHECK_OK(gmem_vm_clear_log(vm, 0, D, 2, 40, bits));
	memset(bits, 0x55, sizeof(bits));
	bits[0] &= ~(1ull << 12);
	bits[WORDS - 1] &= (1ull << NPAGES % 64) - 1;
	check_log(vm, D, 0, bits);
	/* Many runs at once, and each of them is mapped no more. */
	check_log(vm, D, GMEM_LOG_CLEAR, bits);
	for (uint64_t i = 0; i < NPAGES; i++)
		CHECK_EQ(load64(vcpu, GPA + i * PG), i % 2 ? 0 : i);
	check_pages(vm, D, 0);
	store64(vcpu, GPA + 12 * PG, 1);
	store64(vcpu, GPA + 198 * PG, 1);
	check_pages(vm, D, 0, 12, 198);
	gmem_vcpu_free(vcpu);
	gmem_vm_free(vm);
	gmem_file_free(file);
}

/* A large leaf would hide which of its pages is written to; it may be had again when nothing is logged. */
TEST(small_leaves_while_a_log_is_kept)
{
	const uint64_t len = 4ull << 20;
	struct gmem_vm *vm = new_vm(GMEM_VM_SW_PROTECTED);
	struct gmem_file *file = make_file(len, 0);
	struct gmem_vcpu *vcpu = new_vcpu(vm);
	uint64_t bits[16] = { 0 };
	char *zero = calloc(1, len);
	int level;

	CHECK(zero);
	CHECK_OK(gmem_file_write(file, 0, zero, len));
	CHECK_OK(set_slot(vm, 0, GPA, len, file, 0));
	store64(vcpu, GPA, 1);
	CHECK(leaf_at(&vm->mmu, GPA / PG + 1, &level));
	CHECK_EQ(level, GMEM_LEVEL_2M);
	CHECK_OK(gmem_vm_set_log(vm, 0, D));
	CHECK(!leaf_at(&vm->mmu, GPA / PG + 1, &level));
	store64(vcpu, GPA + 7 * PG, 1);
	CHECK(!leaf_at(&vm->mmu, GPA / PG + 1, &level));
	CHECK_EQ(gmem_vm_get_log(vm, 0, D, 0, 1024, bits, 0), 1);
	CHECK_EQ(bits[0], 1ull << 7);
	CHECK_OK(gmem_vm_set_log(vm, 0, 0));
	store64(vcpu, GPA, 1);
	CHECK(leaf_at(&vm->mmu, GPA / PG + 1, &level));
	CHECK_EQ(level, GMEM_LEVEL_2M);
	free(zero);
	gmem_vcpu_free(vcpu);
	gmem_vm_free(vm);
	gmem_file_free(file);
}

/* The flag of KVM's and the log are one; a slot that moves takes its logs along. */
TEST(memory_of_the_callers)
{
	struct gmem_vm *vm = new_vm(GMEM_VM_DEFAULT);
	struct gmem_vcpu *vcpu = new_vcpu(vm);
	char *hva = plain_memory(LEN, RW);
	uint64_t bits[WORDS];

	CHECK_OK(set_hva_slot(vm, 0, GMEM_SLOT_LOG_DIRTY, GPA, LEN, hva));
	store64(vcpu, GPA + 5 * PG, 1);
	CHECK_EQ(load64(vcpu, GPA + 6 * PG), 0);
	check_pages(vm, D, 0, 5);
	CHECK_OK(set_hva_slot(vm, 0, GMEM_SLOT_LOG_DIRTY, GPA + LEN, LEN, hva));
	store64(vcpu, GPA + LEN + 7 * PG, 1);
	check_pages(vm, D, GMEM_LOG_CLEAR, 5, 7);
	CHECK_OK(gmem_vm_set_log(vm, 0, D | A));
	CHECK_EQ(load64(vcpu, GPA + LEN + 7 * PG), 1);
	store64(vcpu, GPA + LEN + 8 * PG, 1);
	check_pages(vm, D, 0, 8);
	check_pages(vm, A, GMEM_LOG_CLEAR, 7, 8);
	/* Off by the flag, the other log stays; and on by a move. */
	CHECK_OK(set_hva_slot(vm, 0, 0, GPA + LEN, LEN, hva));
	CHECK_ERR(gmem_vm_get_log(vm, 0, D, 0, NPAGES, bits, 0), -EINVAL);
	store64(vcpu, GPA + LEN + 9 * PG, 1);
	check_pages(vm, A, 0, 9);
	CHECK_OK(set_hva_slot(vm, 0, GMEM_SLOT_LOG_DIRTY, GPA, LEN, hva));
	check_pages(vm, A, 0, 9);
	check_pages(vm, D, 0);
	store64(vcpu, GPA + 10 * PG, 1);
	check_pages(vm, D, 0, 10);
	CHECK_OK(set_hva_slot(vm, 0, 0, GPA + LEN, LEN, hva));
	CHECK_ERR(gmem_vm_get_log(vm, 0, D, 0, NPAGES, bits, 0), -EINVAL);
	CHECK_OK(gmem_vm_set_log(vm, 0, 0));
	/* What is not written is not in it. */
	CHECK_OK(gmem_vm_set_log(vm, 0, D | A));
	CHECK_EQ(mprotect(hva, PG, PROT_READ), 0);
	CHECK_ERR(gmem_vcpu_store(vcpu, GPA + LEN, bits, 8), -EFAULT);
	check_pages(vm, D, 0);
	check_pages(vm, A, 0);
	gmem_vcpu_free(vcpu);
	gmem_vm_free(vm);
	munmap(hva, LEN);
}

TEST(beside_a_file_and_after_it)
{
	struct gmem_vm *vm = new_vm(GMEM_VM_SW_PROTECTED);
	struct gmem_file *file = make_file(LEN, 0);
	struct gmem_vcpu *vcpu = new_vcpu(vm);
	char *hva = plain_memory(LEN, RW);
	uint64_t v = 1;

	CHECK_OK(set_both(vm, 0, GPA, LEN, file, 0, hva));
	to_private(file, PG, PG);
	CHECK_OK(gmem_vm_set_log(vm, 0, D | A));
	store64(vcpu, GPA, 1);
	store64(vcpu, GPA + PG, 1);
	CHECK_EQ(load64(vcpu, GPA + 2 * PG), 0);
	check_pages(vm, D, GMEM_LOG_CLEAR, 0, 1);
	check_pages(vm, A, GMEM_LOG_CLEAR, 0, 1, 2);
	store64(vcpu, GPA, 1);
	store64(vcpu, GPA + PG, 1);
	check_pages(vm, D, 0, 0, 1);
	gmem_file_free(file);
	CHECK_ERR(gmem_vcpu_store(vcpu, GPA + 3 * PG, &v, 8), -EFAULT);
	check_pages(vm, D, GMEM_LOG_CLEAR, 0, 1);
	CHECK_OK(gmem_vm_set_log(vm, 0, A));
	check_pages(vm, A, 0, 0, 1);
	gmem_vcpu_free(vcpu);
	gmem_vm_free(vm);
	munmap(hva, LEN);
}

/* What is mapped without being touched counts as touched: the touch would not be seen. */
TEST(pre_fault_counts_as_a_touch)
{
	struct gmem_vm *vm = new_vm(GMEM_VM_SW_PROTECTED);
	struct gmem_file *file = make_file(LEN, 0);
	struct gmem_vcpu *vcpu = new_vcpu(vm);

	CHECK_OK(set_slot(vm, 0, GPA, LEN, file, 0));
	CHECK_OK(gmem_vm_set_log(vm, 0, D | A));
	CHECK_OK(gmem_vcpu_pre_fault(vcpu, GPA + 2 * PG, 2 * PG, NULL));
	check_pages(vm, A, 0, 2, 3);
	check_pages(vm, D, 0);
	store64(vcpu, GPA + 2 * PG, 1);
	check_pages(vm, D, 0, 2);
	gmem_vcpu_free(vcpu);
	gmem_vm_free(vm);
	gmem_file_free(file);
}

TEST(frame_that_populate_maps)
{
	struct gmem_vm *vm = new_vm(GMEM_VM_SW_PROTECTED);
	struct gmem_file *file = make_file(LEN, 0);
	struct gmem_vcpu *vcpu = new_vcpu(vm);
	uint64_t gfn = GPA / PG + 2;

	CHECK_OK(set_slot(vm, 0, GPA, LEN, file, 0));
	CHECK_OK(gmem_vm_set_log(vm, 0, D | A));
	to_private(file, 2 * PG, PG);
	gmem_vm_lock_slots(vm);
	gmem_rwlock_lock(&file->invalidate_lock);
	CHECK_OK(gmem_mmu_map_private_pfn(vcpu, gfn, gmem_slot_pfn(gmem_vm_slot(vm, gfn), gfn)));
	gmem_rwlock_unlock(&file->invalidate_lock);
	gmem_vm_unlock_slots(vm);
	check_pages(vm, A, 0, 2);
	CHECK_EQ(load64(vcpu, GPA + 2 * PG), 0);
	check_pages(vm, D, 0);
	store64(vcpu, GPA + 2 * PG, 1);
	check_pages(vm, D, 0, 2);
	gmem_vcpu_free(vcpu);
	gmem_vm_free(vm);
	gmem_file_free(file);
}

/* ---- a model */

struct model {
	struct gmem_vm *vm;
	struct gmem_file *file;
	struct gmem_vcpu *vcpu[2];
	uint64_t rand;
	uint32_t logs;
	uint64_t log[2][WORDS]; /* dirty, accessed */
	uint64_t word[NPAGES]; /* the first of each page */
};

static uint64_t any(struct model *m, uint64_t n)
{
	return tap_rand(&m->rand) % n;
}

static void touch(struct model *m, uint64_t page, bool write)
{
	if (write && (m->logs & D))
		m->log[0][page / 64] |= 1ull << page % 64;
	if (m->logs & A)
		m->log[1][page / 64] |= 1ull << page % 64;
}

static void access_page(struct model *m)
{
	struct gmem_vcpu *vcpu = m->vcpu[any(m, 2)];
	uint64_t page = any(m, NPAGES), gpa = GPA + page * PG, v = tap_rand(&m->rand);

	switch (any(m, 3)) {
	case 0:
		CHECK_EQ(load64(vcpu, gpa), m->word[page]);
		touch(m, page, false);
		return;
	case 1:
		store64(vcpu, gpa, v);
		break;
	default: {
		uint64_t old = m->word[page];

		CHECK_EQ(gmem_vcpu_cmpxchg(vcpu, gpa, &old, &v, 8), 1);
	}
	}
	m->word[page] = v;
	touch(m, page, true);
}

static void copy_pages(struct model *m)
{
	uint64_t n = 1 + any(m, 3), from = any(m, NPAGES / 2 - n), to = NPAGES / 2 + any(m, NPAGES / 2 - n);

	CHECK_OK(gmem_vcpu_copy(m->vcpu[0], GPA + to * PG, GPA + from * PG, n * PG, NULL));
	for (uint64_t i = 0; i < n; i++) {
		m->word[to + i] = m->word[from + i];
		touch(m, from + i, false);
		touch(m, to + i, true);
	}
}

/* None of it is a guest's. */
static void host_does(struct model *m)
{
	uint64_t page = any(m, NPAGES), n = 1 + any(m, NPAGES - page);

	if (n > 8)
		n = 8;
	switch (any(m, 3)) {
	case 0:
		CHECK_OK(gmem_file_punch(m->file, page * PG, n * PG));
		for (uint64_t i = 0; i < n; i++)
			m->word[page + i] = 0;
		break;
	case 1:
		to_private(m->file, page * PG, n * PG);
		break;
	default:
		to_shared(m->file, page * PG, n * PG);
	}
}

static void look(struct model *m)
{
	uint64_t first = any(m, NPAGES), n = any(m, NPAGES - first + 1), bits[WORDS] = { 0 }, wanted[WORDS];
	uint32_t log = any(m, 2) ? D : A, op = (uint32_t)any(m, 3);
	uint64_t *model = m->log[log == A];
	int64_t set = 0;

	if (!(m->logs & log)) {
		CHECK_ERR(gmem_vm_get_log(m->vm, 0, log, first, n, bits, 0), -EINVAL);
		return;
	}
	for (uint32_t i = 0; i < WORDS; i++)
		wanted[i] = tap_rand(&m->rand);
	if (op == 2)
		CHECK_OK(gmem_vm_clear_log(m->vm, 0, log, first, n, wanted));
	else
		set = CHECK_OK(gmem_vm_get_log(m->vm, 0, log, first, n, bits, op ? GMEM_LOG_CLEAR : 0));
	for (uint64_t i = 0; i < n; i++) {
		uint64_t page = first + i;

		if (op < 2 && bit(bits, i) != bit(model, page))
			FAIL("log %u, page %llu: %d", log, (unsigned long long)page, bit(bits, i));
		set -= op < 2 && bit(bits, i);
		if (op == 1 || (op == 2 && bit(wanted, i)))
			model[page / 64] &= ~(1ull << page % 64);
	}
	CHECK_EQ(set, 0);
}

static void change_logs(struct model *m)
{
	uint32_t logs = (uint32_t)any(m, 4);

	CHECK_OK(gmem_vm_set_log(m->vm, 0, logs));
	for (uint32_t i = 0; i < 2; i++)
		if (!(logs & 1u << i))
			memset(m->log[i], 0, sizeof(m->log[i]));
	m->logs = logs;
}

TEST_TIMEOUT(model, 60)
{
	struct model m = { .rand = tap_seed() };
	int rounds = tap_slow() ? 5000 : 50000;

	m.vm = new_vm(GMEM_VM_SW_PROTECTED);
	m.file = make_file(LEN, 0);
	CHECK_OK(set_slot(m.vm, 0, GPA, LEN, m.file, 0));
	m.vcpu[0] = new_vcpu(m.vm);
	m.vcpu[1] = new_vcpu(m.vm);
	for (int i = 0; i < rounds; i++) {
		uint64_t what = any(&m, 100);

		if (what < 80)
			access_page(&m);
		else if (what < 85)
			copy_pages(&m);
		else if (what < 90)
			host_does(&m);
		else if (what < 98)
			look(&m);
		else
			change_logs(&m);
	}
	for (uint32_t i = 0; i < 2; i++)
		if (m.logs & 1u << i)
			check_log(m.vm, 1u << i, 0, m.log[i]);
	gmem_vcpu_free(m.vcpu[0]);
	gmem_vcpu_free(m.vcpu[1]);
	gmem_vm_free(m.vm);
	gmem_file_free(m.file);
}
