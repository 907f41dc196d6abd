/* SPDX-License-Identifier: MIT */
/* Many slots of one file on KVM: what they take, and what they share. */
#include <sys/resource.h>

#include "kvm_reach.h"

#include "sys/uffd.h"

#define SLOTS_GPA (4ull << 30)
#define MANY 3000

static void limit_descriptors(rlim_t n)
{
	struct rlimit rl;

	CHECK_EQ(getrlimit(RLIMIT_NOFILE, &rl), 0);
	rl.rlim_cur = n;
	CHECK_EQ(setrlimit(RLIMIT_NOFILE, &rl), 0);
}

static int use_up_descriptors(int *fds, int n)
{
	int used = 0;

	while (used < n && (fds[used] = dup(0)) >= 0)
		used++;
	CHECK(used < n);
	return used;
}

/* A page each, with a hole behind it. */
static void set_many(struct gmem_vm *vm, struct gmem_file *file, uint32_t i, uint32_t end)
{
	for (; i < end; i++)
		CHECK_OK(set_slot(vm, 1000 + i, SLOTS_GPA + 2 * i * PG, PG, file, i * PG));
}

/* Each of them bars a page, with the descriptors that a process has left beside one slot. */
TEST_TIMEOUT(one_descriptor_for_all, 240)
{
	const uint32_t n = tap_slow() ? MANY / 10 : MANY;
	struct scene_opts o = { .type = GMEM_VM_DEFAULT };
	struct gmem_file *file;
	struct scene s;
	int fds[256], used;

	limit_descriptors(256);
	scene_set_up(&s, &o);
	file = make_file(n * PG, 0);
	set_many(s.vm, file, 0, 1);
	/* A file's first conversion takes one for itself. */
	to_private(file, 0, PG);
	used = use_up_descriptors(fds, 256);
	set_many(s.vm, file, 1, n);
	to_shared(file, 0, PG);
	CHECK_EQ(run(&s, GUEST_touch, SLOTS_GPA, n, 2 * PG, 1), n);
	to_private(file, 0, n * PG);
	run_err(&s, -EFAULT, GUEST_load8, SLOTS_GPA + (n - 1) * 2 * PG);
	check_fault(&s, SLOTS_GPA + (n - 1) * 2 * PG, 0);
	to_shared(file, 0, n * PG);
	CHECK_OK(go_on(&s));
	CHECK_EQ(guest_result(&s.guest), n);
	CHECK_EQ(run(&s, GUEST_sum, SLOTS_GPA, n, 2 * PG), (uint64_t)n * (n + 1) / 2);
	while (used)
		close(fds[--used]);
	for (uint32_t i = 0; i < n; i += 2)
		CHECK_OK(del_slot(s.vm, 1000 + i));
	to_private(file, 0, n * PG);
	to_shared(file, 0, n * PG);
	CHECK_EQ(run(&s, GUEST_sum, SLOTS_GPA + 2 * PG, n / 2, 4 * PG), (uint64_t)(n / 2) * (n / 2 + 1));
	scene_tear_down(&s);
	gmem_file_free(file);
}

/* Whoever has none left is told so when the slot is set, and not when a page becomes private. */
TEST(no_descriptor_left)
{
	struct scene_opts o = { .type = GMEM_VM_DEFAULT, .len = 2 * LEN };
	struct gmem_file *file;
	struct scene s;
	int fds[256], used;

	limit_descriptors(256);
	scene_set_up(&s, &o);
	CHECK_OK(del_slot(s.vm, 0));
	CHECK_OK(set_slot(s.vm, 0, GPA, LEN, s.file, 0));
	run(&s, GUEST_store8, GPA + PG, 7);
	to_private(s.file, 3 * PG, PG);
	file = make_file(LEN, 0);
	used = use_up_descriptors(fds, 256);
	CHECK_ERR(set_slot(s.vm, 1, GPA + LEN, LEN, file, 0), -EMFILE);
	CHECK_OK(set_slot(s.vm, 2, GPA + 2 * LEN, LEN, s.file, LEN));
	run(&s, GUEST_store8, GPA + 2 * LEN, 9);
	to_private(s.file, 0, 2 * LEN);
	run_err(&s, -EFAULT, GUEST_load8, GPA + 2 * LEN);
	to_shared(s.file, PG, 2 * LEN - PG);
	CHECK_OK(go_on(&s));
	CHECK_EQ(guest_result(&s.guest), 9);
	CHECK_EQ(run(&s, GUEST_load8, GPA + PG), 7);
	run_err(&s, -EFAULT, GUEST_load8, GPA);
	to_shared(s.file, 0, PG);
	CHECK_OK(go_on(&s));
	while (used)
		close(fds[--used]);
	CHECK_OK(set_slot(s.vm, 1, GPA + LEN, LEN, file, 0));
	run(&s, GUEST_store8, GPA + LEN, 8);
	CHECK_EQ(file_word(file, 0), 8);
	scene_tear_down(&s);
	gmem_file_free(file);
}

/* The descriptor outlives the slot; what it was registered on goes with the slot. */
TEST(registration_goes_with_the_slot)
{
	struct scene_opts o = { .type = GMEM_VM_DEFAULT };
	bool user_mode_only;
	struct scene s;
	char *addr;
	int uffd;
	void *p;

	scene_set_up(&s, &o);
	to_private(s.file, 0, PG);
	addr = gate_of(&s)->addr;
	CHECK_OK(del_slot(s.vm, 0));
	p = mmap(addr, LEN, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	CHECK(p == addr);
	/* Would be -EBUSY. */
	uffd = gmem_sys_uffd_open(0, &user_mode_only);
	CHECK(uffd >= 0);
	CHECK_OK(gmem_sys_uffd_register(uffd, (uintptr_t)addr, LEN, GMEM_SYS_UFFD_MISSING));
	close(uffd);
	memset(addr, 1, LEN);
	munmap(addr, LEN);
	CHECK_OK(set_slot(s.vm, 0, GPA, LEN, s.file, 0));
	run_err(&s, -EFAULT, GUEST_load8, GPA);
	to_shared(s.file, 0, PG);
	CHECK_OK(go_on(&s));
	scene_tear_down(&s);
}

/* ---- at once */

#define PARTS 8
#define PART (LEN / PARTS)

struct race {
	struct gmem_vm *vm;
	struct gmem_file *file;
	_Atomic bool stop;
	int rounds;
};

static void *set_and_delete(void *arg)
{
	struct race *r = arg;

	for (int i = 0; i < r->rounds; i++) {
		uint32_t slot = 1 + (uint32_t)i % (PARTS - 1);

		/* Each has been set by whoever began. */
		CHECK_OK(del_slot(r->vm, slot));
		CHECK_OK(set_slot(r->vm, slot, GPA + slot * PART, PART, r->file, slot * PART));
	}
	atomic_store(&r->stop, true);
	return NULL;
}

static void *convert_all(void *arg)
{
	struct race *r = arg;

	for (uint64_t i = 0; !atomic_load(&r->stop); i++) {
		uint64_t off = i * 7 % (LEN / PG) * PG;

		/* Of the first part the last page alone: the guest works in the others. */
		if (off < PART)
			off = PART - PG;
		to_private(r->file, off, PG);
		to_shared(r->file, off, PG);
	}
	return NULL;
}

/* Gates come and go, and bar, through one descriptor; a guest works in one of them. */
TEST_TIMEOUT(slots_and_conversions_at_once, 240)
{
	for (size_t way = 0; way < sizeof(ways) / sizeof(ways[0]); way++) {
		struct race r = { .rounds = tap_slow() ? 60 : 300 };
		uint64_t words = (PART - PG) / 8, seed = 0;
		pthread_t t[2];
		struct scene s;

		scene_set_up(&s, &ways[way]);
		CHECK_OK(del_slot(s.vm, 0));
		for (uint32_t slot = 0; slot < PARTS; slot++)
			CHECK_OK(set_slot(s.vm, slot, GPA + slot * PART, PART, s.file, slot * PART));
		r.vm = s.vm;
		r.file = s.file;
		t[0] = start(set_and_delete, &r);
		t[1] = start(convert_all, &r);
		while (!atomic_load(&r.stop)) {
			CHECK_EQ(run(&s, GUEST_fill, GPA, words, ++seed), words);
			CHECK_EQ(run(&s, GUEST_verify, GPA, words, seed), words);
		}
		join(t[0]);
		join(t[1]);
		CHECK_EQ(run(&s, GUEST_touch, GPA, LEN / PG, PG, 1), LEN / PG);
		for (uint64_t page = 0; page < LEN / PG; page++)
			CHECK_EQ(file_word(s.file, page * PG), page + 1);
		scene_tear_down(&s);
	}
}

#include "tap_main.h"
