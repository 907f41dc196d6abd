/* SPDX-License-Identifier: MIT */
/*
 * Two guests and an accessor store while their memory is copied by a log and its pages are converted there and back. At
 * each look, what differs from the copy is in the log; so a page that is not in a log is as it was copied before. But a
 * store is in the log when it is over, and maybe not before: one that the library makes to the caller's memory, and one
 * by one vCPU to a page that KVM has just made writable for another.
 */
#include "kvm_race.h"
#include "slot_util.h"

#define D GMEM_LOG_DIRTY
#define A GMEM_LOG_ACCESSED

struct copier {
	struct race r;
	char *hva; /* NULL: the file is all there is */
	struct gmem_vcpu *hand;
	pthread_t accessor, converter;
	uint64_t accessor_seed, converter_seed;
	_Atomic uint64_t stored, accessed; /* by all; by the accessor */
	struct late {
		bool is;
		uint64_t turns[GUESTS + 1]; /* when it was seen */
	} late[PAGES];
	char copy[2][RAM_LEN], memory[2][RAM_LEN]; /* of the file and of `hva` */
};

static struct copier c;

/* Each its own words of pages in any order; a page that is read first is mapped for reading at times. */
static void *guest_stores(void *arg)
{
	struct one *one = arg;

	for (uint64_t generation = 1; !atomic_load(&one->r->over); generation++) {
		uint64_t first = rnd(&one->seed, PAGES), n = 1 + rnd(&one->seed, PAGES - first);
		uint64_t gpa = GPA + first * PG + 8 * one->number;

		if (rnd(&one->seed, 3) == 0)
			finish_routine(one, GUEST_sum, gpa, n, PG);
		finish_routine(one, GUEST_touch, gpa, n, PG, generation << 8);
		atomic_fetch_add(&one->turns, 1);
		atomic_fetch_add(&c.stored, 1);
	}
	return end_of_thread(one);
}

static void *accessor_stores(void *arg)
{
	for (uint64_t generation = 1; !atomic_load(&c.r.over); generation++) {
		int err = gmem_vcpu_store(c.hand, GPA + rnd(&c.accessor_seed, PAGES) * PG + 16, &generation, 8);

		CHECK(!err || err == -EFAULT);
		atomic_fetch_add(&c.accessed, 1);
		atomic_fetch_add(&c.stored, 1);
	}
	return NULL;
}

static void *convert(void *arg)
{
	while (!atomic_load(&c.r.over)) {
		uint64_t first = rnd(&c.converter_seed, PAGES), n = 1 + rnd(&c.converter_seed, PAGES - first);

		to_private(c.r.file, first * PG, n * PG);
		now_and_then();
		to_shared(c.r.file, first * PG, n * PG);
		usleep(200);
	}
	return NULL;
}

/* Whichever side a page is on: what a conversion does to it is no guest's doing, and nothing here. */
static void read_memory(char to[2][RAM_LEN])
{
	CHECK_EQ(pread(c.r.file->fd, to[0], RAM_LEN, 0), RAM_LEN);
	if (c.hva)
		memcpy(to[1], c.hva, RAM_LEN);
}

static bool differs(uint64_t page, int side)
{
	return memcmp(c.memory[side] + page * PG, c.copy[side] + page * PG, PG);
}

static void look_at_turns(uint64_t turns[GUESTS + 1])
{
	for (unsigned int i = 0; i < GUESTS; i++)
		turns[i] = atomic_load(&c.r.one[i].done) ? UINT64_MAX : atomic_load(&c.r.one[i].turns);
	turns[GUESTS] = atomic_load(&c.r.over) ? UINT64_MAX : atomic_load(&c.accessed);
}

/* The page differs, and is not in the log. `now` is from before the look. */
static void is_late(uint64_t page, const uint64_t now[GUESTS + 1])
{
	struct late *late = &c.late[page];
	bool over = late->is;

	for (unsigned int i = 0; i <= GUESTS; i++)
		over &= now[i] == UINT64_MAX || now[i] > late->turns[i];
	if (over)
		FAIL("page %llu: not as it was copied, and never in the log", (unsigned long long)page);
	if (!late->is)
		look_at_turns(late->turns);
	late->is = true;
}

static void copy_round(uint32_t log)
{
	uint64_t bits, turns[GUESTS + 1];

	look_at_turns(turns);
	read_memory(c.memory);
	CHECK(gmem_vm_get_log(c.r.vm, 0, log, 0, PAGES, &bits, GMEM_LOG_CLEAR) >= 0);
	for (uint64_t i = 0; i < PAGES; i++) {
		if (bits >> i & 1)
			c.late[i].is = false;
		else if (differs(i, 0) && log == A)
			FAIL("page %llu: not as it was copied, and not in the log", (unsigned long long)i);
		else if (differs(i, 0) || differs(i, 1))
			is_late(i, turns);
	}
	read_memory(c.memory);
	for (uint64_t i = 0; i < PAGES; i++)
		for (int side = 0; side < 2; side++)
			if (bits >> i & 1)
				memcpy(c.copy[side] + i * PG, c.memory[side] + i * PG, PG);
}

static void race(const struct scene_opts *o, uint32_t log, bool both, bool manual)
{
	memset(&c, 0, sizeof(c));
	set_up(&c.r, o);
	if (manual && gmem_kvm_cap_enable(gmem_vm_kvm_fd(c.r.vm), KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 1))
		SKIP("kvm", "no KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2");
	if (both) {
		c.hva = plain_memory(RAM_LEN, RW);
		CHECK_OK(del_slot(c.r.vm, 0));
		CHECK_OK(set_both(c.r.vm, 0, GPA, RAM_LEN, c.r.file, 0, c.hva));
	}
	c.hand = c.r.hand;
	c.accessor_seed = c.r.seed + 100;
	c.converter_seed = c.r.seed + 200;
	CHECK_OK(gmem_vm_set_log(c.r.vm, 0, log));
	start_guests(&c.r, guest_stores);
	c.accessor = start(accessor_stores, NULL);
	c.converter = start(convert, NULL);
	for (unsigned int i = rounds(150); i; i--) {
		uint64_t stored = atomic_load(&c.stored);

		while (i % 2 && atomic_load(&c.stored) == stored)
			usleep(10);
		copy_round(log);
		/* The other one comes and goes. */
		if (i % 7 == 0)
			CHECK_OK(gmem_vm_set_log(c.r.vm, 0, i % 2 ? D | A : log));
		disturb(&c.r);
	}
	atomic_store(&c.r.over, true);
	join(c.converter);
	join(c.accessor);
	join_guests(&c.r);
	copy_round(log);
	copy_round(log);
	read_memory(c.memory);
	CHECK_MEM(c.memory[0], c.copy[0], RAM_LEN);
	CHECK_MEM(c.memory[1], c.copy[1], RAM_LEN);
	CHECK(atomic_load(&c.stored) > 2);
	tear_down(&c.r);
	if (c.hva)
		munmap(c.hva, RAM_LEN);
}

TEST_TIMEOUT(copy_by_writes, 240)
{
	EACH_OF_THE(o)
	race(&o, D, false, false);
}

TEST_TIMEOUT(copy_by_writes_protected_by_hand, 240)
{
	EACH_OF_THE(o)
	race(&o, D, false, true);
}

TEST_TIMEOUT(copy_by_touches, 240)
{
	EACH_OF_THE(o)
	race(&o, A, false, false);
}

TEST_TIMEOUT(copy_of_two_memories_by_writes, 240)
{
	EACH_OF_THE(o)
	race(&o, D, true, false);
}

TEST_TIMEOUT(copy_of_two_memories_by_touches, 240)
{
	EACH_OF_THE(o)
	race(&o, A, true, false);
}

#include "tap_main.h"
