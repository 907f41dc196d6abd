/* SPDX-License-Identifier: MIT */
/* A guest's compare-and-exchange: its answers, and that nobody's is lost while pages go and come back. */
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "pager_util.h"
#include "supply_util.h"
#include "vcpu_scene.h"

#define LEN (16 * PG)

static void set_up(struct scene *s, enum gmem_vm_type type)
{
	set_up_scene(s, type, LEN);
}

static int cmpxchg64(struct gmem_vcpu *vcpu, uint64_t gpa, uint64_t expected, uint64_t desired, uint64_t *there)
{
	int got = gmem_vcpu_cmpxchg(vcpu, gpa, &expected, &desired, 8);

	if (there)
		*there = expected;
	return got;
}

TEST(arguments)
{
	static const size_t bad[] = { 0, 3, 5, 6, 7, 9, 12, 16, 32, SIZE_MAX };
	unsigned char a[16] = { 0 }, b[16] = { 1 };
	struct scene s;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		CHECK_ERR(gmem_vcpu_cmpxchg(s.vcpu, 0, a, b, bad[i]), -EINVAL);
	for (uint64_t at = 1; at < 8; at++)
		for (size_t len = 1; len <= 8; len *= 2)
			if (at % len)
				CHECK_ERR(gmem_vcpu_cmpxchg(s.vcpu, at, a, b, len), -EINVAL);
	CHECK_ERR(gmem_vcpu_cmpxchg(s.vcpu, 1ull << 48, a, b, 8), -EINVAL);
	CHECK_HAS(gmem_last_error(), "gmem_vcpu_cmpxchg");
	CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_NONE);
	CHECK_EQ(gmem_file_page_state(s.file, 0), GMEM_PAGE_ABSENT);
	tear_down(&s);
}

/* Every length at every place of a word, as an array does it. */
TEST(as_an_array)
{
	unsigned char model[PG] = { 0 }, got[PG];
	uint64_t seed = tap_seed();
	unsigned int exchanged = 0;
	struct scene s;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	for (unsigned int i = 0; i < 4000; i++) {
		size_t len = 1u << tap_rand(&seed) % 4, at = tap_rand(&seed) % 64 / len * len;
		/* Of any alignment. */
		unsigned char e[16], d[16], *expected = e + tap_rand(&seed) % 8, *desired = d + tap_rand(&seed) % 8;
		uint64_t r = tap_rand(&seed);
		bool same;

		memcpy(expected, model + at, len);
		memcpy(desired, &r, len);
		if (tap_rand(&seed) & 1)
			expected[tap_rand(&seed) % len] ^= 1u << tap_rand(&seed) % 8;
		same = !memcmp(expected, model + at, len);
		CHECK_EQ(gmem_vcpu_cmpxchg(s.vcpu, 5 * PG + at, expected, desired, len), same);
		CHECK_MEM(expected, model + at, len);
		if (same)
			memcpy(model + at, desired, len);
		exchanged += same;
	}
	CHECK(exchanged > 1000 && exchanged < 3000);
	CHECK_OK(gmem_vcpu_load(s.vcpu, 5 * PG, got, PG));
	CHECK_MEM(got, model, PG);
	tear_down(&s);
}

TEST(exits)
{
	struct scene s;
	uint64_t there;

	set_up(&s, GMEM_VM_SNP);
	to_private(s.file, 4 * PG, 4 * PG);
	CHECK_EQ(cmpxchg64(s.vcpu, s.bit | 4 * PG, 0, 7, NULL), 1);
	CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_NONE);
	CHECK_EQ(cmpxchg64(s.vcpu, s.bit | 4 * PG, 0, 8, &there), 0);
	CHECK_EQ(there, 7);
	CHECK_ERR(cmpxchg64(s.vcpu, 4 * PG + 8, 0, 7, &there), -EFAULT);
	CHECK_EQ(there, 0);
	CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_MEMORY_FAULT);
	CHECK_EQ(exit_of(s.vcpu).gpa, 4 * PG);
	CHECK_EQ(exit_of(s.vcpu).len, PG);
	CHECK_EQ(exit_of(s.vcpu).flags, 0);
	CHECK_ERR(cmpxchg64(s.vcpu, s.bit | PG, 0, 7, NULL), -EFAULT);
	CHECK_EQ(exit_of(s.vcpu).flags, GMEM_EXIT_FLAG_PRIVATE);
	CHECK_ERR(cmpxchg64(s.vcpu, s.bit | LEN, 0, 7, NULL), -EFAULT);
	CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_MEMORY_FAULT);
	CHECK_ERR(gmem_vcpu_answer(s.vcpu, 0), -EINVAL);
	CHECK_OK(gmem_file_poison(s.file, 2 * PG, PG));
	CHECK_ERR(cmpxchg64(s.vcpu, 2 * PG, 0, 7, NULL), -EHWPOISON);
	CHECK_EQ(exit_of(s.vcpu).gpa, 2 * PG);
	/* It is a store, whether or not it would change anything. */
	gmem_vm_lock_slots(s.vm);
	CHECK_OK(gmem_mmu_track_write(&s.vm->mmu, 3, true));
	gmem_vm_unlock_slots(s.vm);
	CHECK_ERR(cmpxchg64(s.vcpu, 3 * PG, 1, 7, NULL), -EPERM);
	gmem_vm_free(s.vm);
	CHECK_ERR(cmpxchg64(s.vcpu, s.bit | 4 * PG, 7, 8, NULL), -EIO);
	s.vm = NULL;
	tear_down(&s);
}

/* A device is read; then, if it said what was expected, written. */
TEST(of_a_device)
{
	uint32_t expected = 0x44332211, desired = 0xddccbbaa;
	struct gmem_exit e;
	struct scene s;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	CHECK_ERR(gmem_vcpu_cmpxchg(s.vcpu, LEN + 8, &expected, &desired, 4), -EFAULT);
	e = exit_of(s.vcpu);
	CHECK_EQ(e.reason, GMEM_EXIT_MMIO);
	CHECK_EQ(e.gpa, LEN + 8);
	CHECK_EQ(e.len, 4);
	CHECK_EQ(e.flags, 0);
	CHECK_OK(gmem_vcpu_answer(s.vcpu, 0x99));
	CHECK_EQ(gmem_vcpu_cmpxchg(s.vcpu, LEN + 8, &expected, &desired, 4), 0);
	CHECK_EQ(expected, 0x99);
	CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_NONE);
	CHECK_ERR(gmem_vcpu_cmpxchg(s.vcpu, LEN + 8, &expected, &desired, 4), -EFAULT);
	CHECK_OK(gmem_vcpu_answer(s.vcpu, 0xffffffff00000099));
	CHECK_ERR(gmem_vcpu_cmpxchg(s.vcpu, LEN + 8, &expected, &desired, 4), -EFAULT);
	e = exit_of(s.vcpu);
	CHECK_EQ(e.reason, GMEM_EXIT_MMIO);
	CHECK_EQ(e.flags, GMEM_EXIT_FLAG_WRITE);
	CHECK_MEM(e.data, &desired, 4);
	CHECK_OK(gmem_vcpu_answer(s.vcpu, 0));
	CHECK_EQ(gmem_vcpu_cmpxchg(s.vcpu, LEN + 8, &expected, &desired, 4), 1);
	CHECK_EQ(expected, 0x99);
	/* From its beginning; and what a plain load or store has left open is another's. */
	CHECK_ERR(gmem_vcpu_store(s.vcpu, LEN + 8, &desired, 4), -EFAULT);
	CHECK_OK(gmem_vcpu_answer(s.vcpu, 0));
	CHECK_ERR(gmem_vcpu_cmpxchg(s.vcpu, LEN + 8, &expected, &desired, 4), -EFAULT);
	CHECK_EQ(exit_of(s.vcpu).flags, 0);
	CHECK_OK(gmem_vcpu_answer(s.vcpu, 0));
	CHECK_ERR(gmem_vcpu_load(s.vcpu, LEN + 8, &desired, 4), -EFAULT);
	CHECK_OK(gmem_vcpu_answer(s.vcpu, 0));
	CHECK_ERR(gmem_vcpu_cmpxchg(s.vcpu, LEN + 8, &expected, &desired, 4), -EFAULT);
	CHECK_EQ(exit_of(s.vcpu).flags, 0);
	tear_down(&s);
}

/* ---- nothing is lost */

#define GUESTS 3
#define WORD (3 * PG + 40)

static struct crowd {
	struct scene s;
	struct gmem_view *view;
	uint64_t *word; /* in the view */
	_Atomic bool stop;
	_Atomic uint64_t added; /* by all, each addition told after it was made */
	_Atomic uint64_t zaps;
	bool converts;
} crowd;

static void *add_as_a_guest(void *arg)
{
	struct gmem_vcpu *vcpu = arg;
	uint64_t there = 0;

	while (!atomic_load(&crowd.stop)) {
		uint64_t want = there + 1;

		if (CHECK_OK(gmem_vcpu_cmpxchg(vcpu, WORD, &there, &want, 8))) {
			there = want;
			atomic_fetch_add(&crowd.added, 1);
		}
	}
	return NULL;
}

/* The word beside it, by plain stores: no exchange may take it along. */
static void *store_beside(void *arg)
{
	uint64_t n = 0;

	while (!atomic_load(&crowd.stop)) {
		n++;
		CHECK_OK(gmem_vcpu_store(arg, WORD + 8, &n, 8));
		CHECK_EQ(load64(arg, WORD + 8), n);
	}
	return NULL;
}

/* Relaxed: of another order the thread sanitizer would have a lock of its own, which a signal would leave taken. */
static bool add_one(uint64_t *word)
{
	if (sigsetjmp(bus_jmp, 1))
		return false;
	__atomic_fetch_add(word, 1, __ATOMIC_RELAXED);
	return true;
}

/* A view, in this process: where the page is private, it is SIGBUS, and tried again. */
static void *add_as_the_host(void *arg)
{
	(void)arg;
	while (!atomic_load(&crowd.stop))
		if (add_one(crowd.word))
			atomic_fetch_add(&crowd.added, 1);
		else
			sched_yield();
	return NULL;
}

/* What takes the page's translation away again and again. */
static void *zap_it(void *arg)
{
	(void)arg;
	while (!atomic_load(&crowd.stop)) {
		if (crowd.converts) {
			to_private(crowd.s.file, 2 * PG, 3 * PG);
			to_shared(crowd.s.file, 2 * PG, 3 * PG);
		}
		/* The pages beside it; a large leaf, or a shared table, would be taken along. */
		CHECK_OK(gmem_file_punch(crowd.s.file, 2 * PG, PG));
		CHECK_OK(gmem_file_punch(crowd.s.file, 4 * PG, PG));
		gmem_mmu_zap(&crowd.s.vm->mmu, 3, 1, BOTH_SIDES);
		atomic_fetch_add(&crowd.zaps, 1);
		sched_yield();
	}
	return NULL;
}

static void run_crowd(bool converts)
{
	struct gmem_vcpu *vcpu[GUESTS + 1];
	pthread_t t[GUESTS + 1], beside, zapper;
	const uint64_t rounds = (tap_slow() ? 20 : 200) / (converts ? 2 : 1);

	catch_bus();
	if (converts)
		need_markers();
	set_up(&crowd.s, GMEM_VM_SW_PROTECTED);
	CHECK_OK(gmem_view_map(crowd.s.file, 0, LEN, PROT_READ | PROT_WRITE, &crowd.view));
	crowd.word = (uint64_t *)((char *)gmem_view_addr(crowd.view) + WORD);
	crowd.converts = converts;
	for (unsigned int i = 0; i <= GUESTS; i++)
		vcpu[i] = new_vcpu(crowd.s.vm);
	zapper = start(zap_it, NULL);
	beside = start(store_beside, vcpu[GUESTS]);
	for (unsigned int i = 0; i < GUESTS; i++)
		t[i] = start(add_as_a_guest, vcpu[i]);
	t[GUESTS] = start(add_as_the_host, NULL);
	while (atomic_load(&crowd.zaps) < rounds || atomic_load(&crowd.added) < 20 * rounds)
		usleep(1000);
	atomic_store(&crowd.stop, true);
	for (unsigned int i = 0; i <= GUESTS; i++)
		join(t[i]);
	join(beside);
	join(zapper);
	printf("%llu zaps, %llu additions\n", (unsigned long long)atomic_load(&crowd.zaps),
	       (unsigned long long)atomic_load(&crowd.added));
	CHECK_EQ(load64(crowd.s.vcpu, WORD), atomic_load(&crowd.added));
	CHECK_EQ(*crowd.word, atomic_load(&crowd.added));
	for (unsigned int i = 0; i <= GUESTS; i++)
		gmem_vcpu_free(vcpu[i]);
	gmem_view_unmap(crowd.view);
	tear_down(&crowd.s);
}

TEST_TIMEOUT(sum_is_exact_against_zaps, 60)
{
	run_crowd(false);
}

TEST_TIMEOUT(sum_is_exact_against_conversions, 60)
{
	run_crowd(true);
}

/* Another process has the memory, by its descriptor. */
TEST_TIMEOUT(sum_is_exact_between_processes, 60)
{
	const uint64_t rounds = 20000;
	struct scene s;
	uint64_t *word;
	uint64_t there = 0, want;
	int status;
	pid_t pid;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	word = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, gmem_file_fd(s.file), 0);
	CHECK(word != MAP_FAILED);
	CHECK_EQ(load64(s.vcpu, WORD), 0);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		for (uint64_t i = 0; i < rounds; i++)
			__atomic_fetch_add(word + WORD / 8, 1, __ATOMIC_SEQ_CST);
		_exit(0);
	}
	for (uint64_t done = 0; done < rounds;) {
		want = there + 1;
		done += CHECK_OK(gmem_vcpu_cmpxchg(s.vcpu, WORD, &there, &want, 8));
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	CHECK_EQ(word[WORD / 8], 2 * rounds);
	munmap(word, LEN);
	tear_down(&s);
}

/* ---- an absent page */

static int bring_in_77(void *opaque, struct gmem_file *file, uint64_t off, struct gmem_wait *wait)
{
	uint64_t v[2] = { 77, 78 };

	(void)wait;
	atomic_fetch_add((_Atomic unsigned int *)opaque, 1);
	return gmem_file_write(file, gmem_page_round_down(off), v, sizeof(v));
}

TEST(absent_page_is_brought_in)
{
	_Atomic unsigned int calls = 0;
	struct gmem_supply *supply;
	struct scene s;
	uint64_t there;

	set_up(&s, GMEM_VM_SW_PROTECTED);
	supply = new_supply(s.file, 0, 8 * PG, bring_in_77, &calls);
	CHECK_EQ(cmpxchg64(s.vcpu, PG, 0, 5, &there), 0);
	CHECK_EQ(there, 77);
	CHECK_EQ(cmpxchg64(s.vcpu, PG, 77, 5, NULL), 1);
	CHECK_EQ(cmpxchg64(s.vcpu, 2 * PG + 8, 78, 6, NULL), 1);
	CHECK_EQ(load64(s.vcpu, 2 * PG), 77);
	CHECK_EQ(atomic_load(&calls), 2);
	gmem_vcpu_cancel(s.vcpu);
	CHECK_ERR(cmpxchg64(s.vcpu, 3 * PG, 77, 6, NULL), -EINTR);
	CHECK_EQ(exit_of(s.vcpu).reason, GMEM_EXIT_NONE);
	CHECK_EQ(cmpxchg64(s.vcpu, 3 * PG, 77, 6, NULL), 1);
	gmem_file_end_supply(s.file, supply);
	CHECK_ERR(cmpxchg64(s.vcpu, 4 * PG, 77, 6, NULL), -EIO);
	tear_down(&s);
}
