/* SPDX-License-Identifier: MIT */
/* The accessor: a guest's loads and stores, and the exits that end them. */
#include <sys/mman.h>

#include "pager_util.h"
#include "supply_util.h"
#include "vcpu_scene.h"

#define LEN (64 * PG)

static void set_up(struct scene *s, enum gmem_vm_type type)
{
	set_up_scene(s, type, LEN);
}

static void check_exit(struct gmem_vcpu *vcpu, uint64_t gpa, uint64_t flags)
{
	struct gmem_exit e = exit_of(vcpu);

	CHECK_EQ(e.size, sizeof(e));
	CHECK_EQ(e.reason, GMEM_EXIT_MEMORY_FAULT);
	CHECK_EQ(e.gpa, gpa);
	CHECK_EQ(e.len, PG);
	CHECK_EQ(e.flags, flags);
}

static void no_exit(struct gmem_vcpu *vcpu)
{
	struct gmem_exit e = exit_of(vcpu);

	CHECK_EQ(e.reason, GMEM_EXIT_NONE);
	CHECK_EQ(e.flags | e.gpa | e.len, 0);
}

TEST(arguments)
{
	struct gmem_vcpu_opts o = { .size = sizeof(o) - 1 };
	struct gmem_exit e = { .size = sizeof(e) - 1 };
	struct gmem_vcpu *vcpu;
	struct scene s;
	char c;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	CHECK_ERR(gmem_vcpu_create(s.vm, &o, &vcpu), -EINVAL);
	o = (struct gmem_vcpu_opts){ .size = sizeof(o), .kind = (enum gmem_vcpu_kind)2 };
	CHECK_ERR(gmem_vcpu_create(s.vm, &o, &vcpu), -EINVAL);
	CHECK_ERR(gmem_vcpu_exit(s.vcpu, &e), -EINVAL);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, 1ull << 48, &c, 1), -EINVAL);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, ~0ull, &c, 1), -EINVAL);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, (1ull << 48) - 1, &c, 2), -EINVAL);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, 8, &c, SIZE_MAX), -EINVAL);
	CHECK_ERR(gmem_vcpu_store(s.vcpu, 8, &c, SIZE_MAX), -EINVAL);
	no_exit(s.vcpu);
	CHECK_OK(gmem_vcpu_load(s.vcpu, 8, &c, 0));
	CHECK_EQ(gmem_file_page_state(s.file, 0), GMEM_PAGE_ABSENT);
	gmem_vcpu_free(NULL);
	gmem_vm_free(NULL);
	tear_down(&s);
}

TEST(across_pages)
{
	unsigned char out[3 * PG], in[3 * PG], whole[4 * PG];
	uint64_t seed = tap_seed();
	struct scene s;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	for (unsigned int i = 0; i < 400; i++) {
		uint64_t at = tap_rand(&seed) % (PG + 9), len = 1 + tap_rand(&seed) % (i & 1 ? 16 : 3 * PG - 16);
		uint64_t gpa = 8 * PG + at;

		for (uint64_t j = 0; j < len; j++)
			out[j] = (unsigned char)tap_rand(&seed);
		CHECK_OK(gmem_file_read(s.file, 8 * PG, whole, sizeof(whole)));
		memcpy(whole + at, out, len);
		CHECK_OK(gmem_vcpu_store(s.vcpu, gpa, out, len));
		memset(in, 0, sizeof(in));
		CHECK_OK(gmem_vcpu_load(s.vcpu, gpa, in, len));
		CHECK_MEM(in, out, len);
		CHECK_OK(gmem_vcpu_load(s.vcpu, 8 * PG, in, 3 * PG));
		CHECK_MEM(in, whole, 3 * PG);
		CHECK_OK(gmem_file_read(s.file, 8 * PG, in, 3 * PG));
		CHECK_MEM(in, whole, 3 * PG);
	}
	tear_down(&s);
}

/* ---- exits */

/* A private access is a memory fault, another a device's; see tests/vcpu_exits.c. */
static void check_no_slot(struct gmem_vcpu *vcpu, uint64_t gpa, uint64_t private, bool store)
{
	struct gmem_exit e = exit_of(vcpu);

	if (private) {
		check_exit(vcpu, gmem_page_round_down(gpa), private);
		return;
	}
	CHECK_EQ(e.reason, GMEM_EXIT_MMIO);
	CHECK_EQ(e.gpa, gpa);
	CHECK_EQ(e.len, 1);
	CHECK_EQ(e.flags, store ? GMEM_EXIT_FLAG_WRITE : 0);
}

TEST(no_slot)
{
	static const struct {
		enum gmem_vm_type type;
		uint64_t plain, with_bit; /* flags of an access with and without the bit that names the side */
	} types[] = {
		{ GMEM_VM_DEFAULT, 0, 0 },
		{ GMEM_VM_SW_PROTECTED, 0, 0 },
		{ GMEM_VM_SNP, 0, GMEM_EXIT_FLAG_PRIVATE },
		{ GMEM_VM_TDX, GMEM_EXIT_FLAG_PRIVATE, 0 },
	};

	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
		struct scene s;
		char c = 5;

		set_up(&s, types[i].type);
		CHECK_ERR(gmem_vcpu_load(s.vcpu, LEN + 3 * PG + 7, &c, 1), -EFAULT);
		check_no_slot(s.vcpu, LEN + 3 * PG + 7, types[i].plain, false);
		CHECK_HAS(gmem_last_error(), "gmem_vcpu_load");
		CHECK_HAS(gmem_last_error(), "no slot");
		CHECK_ERR(gmem_vcpu_store(s.vcpu, s.bit | (LEN + 7), &c, 1), -EFAULT);
		check_no_slot(s.vcpu, LEN + 7, types[i].with_bit, true);
		CHECK_HAS(gmem_last_error(), "gmem_vcpu_store");
		/* An access that goes well has no exit. */
		if (types[i].type != GMEM_VM_TDX) {
			CHECK_EQ(load64(s.vcpu, 0), 0);
			no_exit(s.vcpu);
		}
		tear_down(&s);
	}
}

/* The page on each side, for an access of each kind. */
TEST(sides)
{
	static const struct {
		enum gmem_vm_type type;
		int shared[2], private[2]; /* without the bit and with it: 0, or the error */
		uint64_t flags[2];
	} types[] = {
		{ GMEM_VM_DEFAULT, { 0, 0 }, { -EFAULT, -EFAULT }, { 0, 0 } },
		{ GMEM_VM_SW_PROTECTED, { 0, 0 }, { 0, 0 }, { 0, 0 } },
		{ GMEM_VM_SNP, { 0, -EFAULT }, { -EFAULT, 0 }, { 0, GMEM_EXIT_FLAG_PRIVATE } },
		{ GMEM_VM_TDX, { -EFAULT, 0 }, { 0, -EFAULT }, { GMEM_EXIT_FLAG_PRIVATE, 0 } },
	};

	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
		struct scene s;

		set_up(&s, types[i].type);
		to_private(s.file, 4 * PG, 4 * PG);
		/* Once as the first touch, once when it has been mapped, once when it has gone over and come back. */
		for (unsigned int round = 0; round < 3; round++) {
			for (unsigned int bit = 0; bit < 2; bit++) {
				for (unsigned int private = 0; private < 2; private ++) {
					uint64_t page = private * 4 * PG, gpa = page + 8 + bit * 8, v = round;
					int want = private ? types[i].private[bit] : types[i].shared[bit];

					gmem_err(0, "%s", "");
					CHECK_EQ(gmem_vcpu_store(s.vcpu, gpa | (bit ? s.bit : 0), &v, 8), want);
					if (want)
						check_exit(s.vcpu, page, types[i].flags[bit]);
					else
						no_exit(s.vcpu);
					v = 99;
					CHECK_EQ(gmem_vcpu_load(s.vcpu, gpa | (bit ? s.bit : 0), &v, 8), want);
					CHECK_EQ(v, want ? 99 : round);
				}
			}
			if (round) {
				to_shared(s.file, 4 * PG, 4 * PG);
				to_private(s.file, 0, 4 * PG);
				to_private(s.file, 4 * PG, 4 * PG);
				to_shared(s.file, 0, 4 * PG);
			}
		}
		tear_down(&s);
	}
}

/* What comes before the page of an exit has been done, nothing after it. */
TEST(exit_in_the_middle)
{
	unsigned char buf[4 * PG];
	struct scene s;

	set_up(&s, GMEM_VM_SNP);
	to_private(s.file, 2 * PG, PG);
	memset(buf, 7, sizeof(buf));
	CHECK_ERR(gmem_vcpu_store(s.vcpu, 100, buf, sizeof(buf)), -EFAULT);
	check_exit(s.vcpu, 2 * PG, 0);
	CHECK_OK(gmem_file_read(s.file, 0, buf, 2 * PG));
	for (uint64_t i = 0; i < 2 * PG; i++)
		CHECK_EQ(buf[i], i < 100 ? 0 : 7);
	CHECK_EQ(gmem_file_page_state(s.file, 3 * PG), GMEM_PAGE_ABSENT);
	memset(buf, 1, sizeof(buf));
	CHECK_ERR(gmem_vcpu_load(s.vcpu, PG, buf, sizeof(buf)), -EFAULT);
	CHECK(buf[0] == 7 && buf[PG - 1] == 7 && buf[PG] == 1);
	tear_down(&s);
}

TEST(poisoned)
{
	struct scene s;
	char buf[16];

	set_up(&s, GMEM_VM_SNP);
	gmem_rwlock_lock(&s.file->invalidate_lock);
	CHECK_EQ(gmem_file_poison_page(s.file, 3 * PG), 0);
	gmem_rwlock_unlock(&s.file->invalidate_lock);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, 3 * PG - 8, buf, sizeof(buf)), -EHWPOISON);
	check_exit(s.vcpu, 3 * PG, 0);
	CHECK_ERR(gmem_vcpu_store(s.vcpu, 3 * PG + 1, buf, sizeof(buf)), -EHWPOISON);
	CHECK_ERR(gmem_vcpu_pre_fault(s.vcpu, 3 * PG, PG, NULL), -EHWPOISON);
	/* The wrong side comes first. */
	CHECK_ERR(gmem_vcpu_load(s.vcpu, s.bit | 3 * PG, buf, sizeof(buf)), -EFAULT);
	check_exit(s.vcpu, 3 * PG, GMEM_EXIT_FLAG_PRIVATE);
	/* A punch heals it: it is zero. */
	CHECK_OK(gmem_file_punch(s.file, 3 * PG, PG));
	CHECK_EQ(load64(s.vcpu, 3 * PG), 0);
	tear_down(&s);
}

/* ---- what is brought in */

TEST(absent_page_is_zero_or_what_a_view_put_there)
{
	struct gmem_view *view;
	struct scene s;
	char *p;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	CHECK_OK(gmem_view_map(s.file, 0, LEN, PROT_READ | PROT_WRITE, &view));
	p = gmem_view_addr(view);
	p[5 * PG + 10] = 42;
	CHECK_EQ(gmem_file_page_state(s.file, 5 * PG), GMEM_PAGE_ABSENT);
	CHECK_EQ(load64(s.vcpu, 5 * PG + 8), 42 << 16);
	CHECK_EQ(gmem_file_page_state(s.file, 5 * PG), GMEM_PAGE_UPTODATE);
	CHECK_EQ(load64(s.vcpu, 6 * PG), 0);
	CHECK_EQ(gmem_file_page_state(s.file, 6 * PG), GMEM_PAGE_UPTODATE);
	CHECK_EQ(gmem_file_page_state(s.file, 7 * PG), GMEM_PAGE_ABSENT);
	/* Both ways, from then on; a store changes what it covers and nothing else. */
	store64(s.vcpu, 5 * PG + 16, 43);
	CHECK_EQ(p[5 * PG + 16], 43);
	CHECK_EQ(p[5 * PG + 10], 42);
	/* The bytes go along when the page is converted, and go when it is punched. */
	to_private(s.file, 5 * PG, PG);
	CHECK_EQ(load64(s.vcpu, 5 * PG + 16), 43);
	CHECK_OK(gmem_file_punch(s.file, 5 * PG, PG));
	CHECK_EQ(load64(s.vcpu, 5 * PG + 16), 0);
	CHECK_EQ(gmem_file_page_state(s.file, 5 * PG), GMEM_PAGE_REMOVED);
	gmem_view_unmap(view);
	tear_down(&s);
}

TEST(watched_writes)
{
	struct scene s;
	uint64_t v = 9;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	store64(s.vcpu, 3 * PG, 1);
	gmem_vm_lock_slots(s.vm);
	CHECK_ERR(gmem_mmu_track_write(&s.vm->mmu, LEN / PG, true), -EINVAL);
	CHECK_OK(gmem_mmu_track_write(&s.vm->mmu, 3, true));
	gmem_vm_unlock_slots(s.vm);
	CHECK_ERR(gmem_vcpu_store(s.vcpu, 3 * PG, &v, 8), -EPERM);
	no_exit(s.vcpu);
	CHECK_EQ(load64(s.vcpu, 3 * PG), 1);
	/* Mapped now for reading, and still refused. */
	CHECK_ERR(gmem_vcpu_store(s.vcpu, 3 * PG - 4, &v, 8), -EPERM);
	store64(s.vcpu, 2 * PG, 2);
	store64(s.vcpu, 4 * PG, 4);
	gmem_vm_lock_slots(s.vm);
	CHECK_OK(gmem_mmu_track_write(&s.vm->mmu, 3, false));
	gmem_vm_unlock_slots(s.vm);
	store64(s.vcpu, 3 * PG, 3);
	CHECK_EQ(load64(s.vcpu, 3 * PG), 3);
	tear_down(&s);
}

/* ---- cancel */

static int wait_for_cancel(void *opaque, struct gmem_file *file, uint64_t off, struct gmem_wait *wait)
{
	_Atomic bool *waiting = opaque;

	(void)file;
	(void)off;
	atomic_store(waiting, true);
	while (!gmem_wait_over(wait))
		usleep(1000);
	return gmem_err(-EINTR, "cancelled");
}

struct canceller {
	struct gmem_vcpu *vcpu;
	_Atomic bool waiting;
};

static void *cancel_when_it_waits(void *arg)
{
	struct canceller *c = arg;

	while (!atomic_load(&c->waiting))
		usleep(1000);
	gmem_vcpu_cancel(c->vcpu);
	return NULL;
}

TEST(cancel)
{
	struct canceller c = { 0 };
	struct gmem_supply *supply;
	struct scene s;
	pthread_t t;
	uint64_t v, done;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	CHECK_EQ(load64(s.vcpu, 0), 0);
	/* The next call that would map; once for each. */
	gmem_vcpu_cancel(s.vcpu);
	gmem_vcpu_cancel(s.vcpu);
	CHECK_EQ(load64(s.vcpu, 0), 0);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, PG, &v, 8), -EINTR);
	no_exit(s.vcpu);
	CHECK_EQ(load64(s.vcpu, PG), 0);
	gmem_vcpu_cancel(s.vcpu);
	CHECK_ERR(gmem_vcpu_pre_fault(s.vcpu, 2 * PG, PG, &done), -EINTR);
	CHECK_EQ(load64(s.vcpu, 2 * PG), 0);
	/* A call that waits for its page, and that one only. */
	supply = new_supply(s.file, 8 * PG, PG, wait_for_cancel, &c.waiting);
	c.vcpu = s.vcpu;
	t = start(cancel_when_it_waits, &c);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, 8 * PG, &v, 8), -EINTR);
	join(t);
	CHECK_EQ(load64(s.vcpu, 9 * PG), 0);
	gmem_file_end_supply(s.file, supply);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, 8 * PG, &v, 8), -EIO);
	tear_down(&s);
}

static int bring_in_and_go(void *opaque, struct gmem_file *file, uint64_t off, struct gmem_wait *wait)
{
	(void)wait;
	CHECK_OK(gmem_file_write(file, off, opaque, 8));
	return gmem_err(-EIO, "test supply: gone");
}

/* Who was to bring a page in goes, and has done so before. */
TEST(brought_in_by_one_who_went)
{
	struct gmem_supply *ending;
	uint64_t v = 1234;
	struct scene s;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	ending = new_supply(s.file, 0, LEN, bring_in_and_go, &v);
	CHECK_EQ(load64(s.vcpu, PG), 1234);
	gmem_file_end_supply(s.file, ending);
	CHECK_EQ(load64(s.vcpu, PG), 1234);
	CHECK_ERR(gmem_vcpu_load(s.vcpu, 2 * PG, &v, 8), -EIO);
	no_exit(s.vcpu);
	CHECK_EQ(gmem_file_page_state(s.file, 2 * PG), GMEM_PAGE_ABSENT);
	tear_down(&s);
}

/* ---- pre-fault */

TEST(pre_fault)
{
	uint64_t done = 5, begun;
	struct scene s;
	int level;

	set_up(&s, GMEM_VM_SNP);
	CHECK_ERR(gmem_vcpu_pre_fault(s.vcpu, 1, PG, &done), -EINVAL);
	CHECK_ERR(gmem_vcpu_pre_fault(s.vcpu, 0, PG - 1, &done), -EINVAL);
	CHECK_ERR(gmem_vcpu_pre_fault(s.vcpu, 0, 0, &done), -EINVAL);
	CHECK_ERR(gmem_vcpu_pre_fault(s.vcpu, 0 - PG, 2 * PG, &done), -EINVAL);
	CHECK_ERR(gmem_vcpu_pre_fault(s.vcpu, 1ull << 48, PG, &done), -EINVAL);
	CHECK_ERR(gmem_vcpu_pre_fault(s.vcpu, (1ull << 48) - PG, 2 * PG, &done), -EINVAL);
	CHECK_EQ(done, 5);
	CHECK_ERR(gmem_vcpu_pre_fault(s.vcpu, LEN, PG, &done), -ENOENT);
	CHECK_EQ(done, 0);
	no_exit(s.vcpu);
	to_private(s.file, 8 * PG, 8 * PG);
	CHECK_ERR(gmem_vcpu_pre_fault(s.vcpu, 8 * PG, PG, NULL), -EFAULT);
	CHECK_ERR(gmem_vcpu_pre_fault(s.vcpu, s.bit, PG, NULL), -EFAULT);
	no_exit(s.vcpu);
	/* Up to the first that cannot be done. */
	CHECK_EQ(gmem_vcpu_pre_fault(s.vcpu, 4 * PG, 8 * PG, &done), 0);
	CHECK_EQ(done, 4 * PG);
	CHECK_EQ(gmem_vcpu_pre_fault(s.vcpu, s.bit | 8 * PG, 20 * PG, &done), 0);
	CHECK_EQ(done, 8 * PG);
	CHECK_EQ(gmem_vcpu_pre_fault(s.vcpu, LEN - PG, 8 * PG, &done), 0);
	CHECK_EQ(done, PG);
	for (uint64_t i = 0; i < 64; i++)
		CHECK_EQ(!!leaf_at(&s.vm->mmu, i, &level), (i >= 4 && i < 16) || i == 63);
	/* What is mapped is mapped; and nothing is written. */
	begun = gmem_mmu_table_bytes(&s.vm->mmu);
	CHECK_EQ(gmem_vcpu_pre_fault(s.vcpu, 4 * PG, 4 * PG, NULL), 0);
	CHECK_EQ(gmem_mmu_table_bytes(&s.vm->mmu), begun);
	store64(s.vcpu, 4 * PG, 4);
	CHECK_EQ(gmem_vcpu_pre_fault(s.vcpu, 4 * PG, PG, NULL), 0);
	CHECK_EQ(load64(s.vcpu, 4 * PG), 4);
	tear_down(&s);
}

/* ---- the caller's memory */

/* As with memcpy(): SIGSEGV, at the address that is bad; no lock is left behind, nobody is left inside. */
TEST(bad_buffer_is_the_callers_fault)
{
	char *bad = mmap(NULL, 2 * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct sigaction sa = { .sa_sigaction = on_bus, .sa_flags = SA_SIGINFO | SA_NODEFER };
	struct scene s;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	CHECK(bad != MAP_FAILED);
	CHECK_EQ(mprotect(bad + PG, PG, PROT_NONE), 0);
	CHECK_EQ(sigaction(SIGSEGV, &sa, NULL), 0);
	for (int store = 0; store < 2; store++) {
		int sig = sigsetjmp(bus_jmp, 1);

		if (!sig) {
			if (store)
				gmem_vcpu_store(s.vcpu, PG - 8, bad + PG - 8, 16);
			else
				gmem_vcpu_load(s.vcpu, PG - 8, bad + PG - 8, 16);
			FAIL("it was not touched");
		}
		CHECK_EQ(sig, SIGSEGV);
		CHECK((uintptr_t)bus_addr >= (uintptr_t)bad + PG && (uintptr_t)bus_addr < (uintptr_t)bad + 2 * PG);
		CHECK_EQ(s.vcpu->reader.since, 0);
		gmem_mmu_zap(&s.vm->mmu, 0, LEN / PG, BOTH_SIDES);
	}
	CHECK_OK(gmem_file_punch(s.file, 0, LEN));
	munmap(bad, 2 * PG);
	tear_down(&s);
}
