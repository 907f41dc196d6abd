/* SPDX-License-Identifier: MIT */
/*
 * What the kernel refuses a slot of two memories: each call in turn, once, twice, or from then on until somebody gives
 * up. No byte of the program's is ever lost, no guest reaches what it must not, and what is not at its end works again
 * when the kernel does.
 */
#include <limits.h>

#include "kvm_both.h"
#include "kvm_reach.h"

#include "sys/memfd.h"
#include "sys/uffd.h"

#define FEW (24 * PG)

/* Calls since the count began, and which of them fail. */
static int counted, fail_from, fail_to, fail_with;

/* Nothing is moved, or mapped twice, any more: as where memory is locked, and no more may be. */
static bool locked;

static bool fails(void)
{
	counted++;
	return counted >= fail_from && counted <= fail_to;
}

#define WRAP(type, name, params, args)                           \
	type __real_##name params;                               \
	type __wrap_##name params;                               \
	type __wrap_##name params                                \
	{                                                        \
		return fails() ? fail_with : __real_##name args; \
	}

#define WRAP_LIBC(type, bad, name, params, args) \
	type __real_##name params;               \
	type __wrap_##name params;               \
	type __wrap_##name params                \
	{                                        \
		if (fails()) {                   \
			errno = -fail_with;      \
			return bad;              \
		}                                \
		return __real_##name args;       \
	}

WRAP(int, gmem_sys_uffd_open, (uint64_t features, bool *user_mode_only), (features, user_mode_only))
WRAP(int, gmem_sys_uffd_register, (int uffd, uint64_t hva, uint64_t len, unsigned int mode), (uffd, hva, len, mode))
WRAP(int, gmem_memfd_create, (const char *name, uint64_t len), (name, len))
WRAP(int, gmem_pwrite_all, (int fd, const void *buf, size_t len, uint64_t off), (fd, buf, len, off))
WRAP(int, gmem_sys_maps_open, (pid_t pid), (pid))
WRAP_LIBC(int, -1, madvise, (void *addr, size_t len, int advice), (addr, len, advice))

int __real_mprotect(void *addr, size_t len, int prot);
int __wrap_mprotect(void *addr, size_t len, int prot);

/* To take all rights from a whole mapping the kernel needs nothing: that is left of a machine's end. */
int __wrap_mprotect(void *addr, size_t len, int prot)
{
	if (prot != PROT_NONE && fails()) {
		errno = -fail_with;
		return -1;
	}
	return __real_mprotect(addr, len, prot);
}

void *__real_mremap(void *old, size_t old_len, size_t len, int flags, void *to);
void *__wrap_mremap(void *old, size_t old_len, size_t len, int flags, void *to);

void *__wrap_mremap(void *old, size_t old_len, size_t len, int flags, void *to)
{
	if (locked || fails()) {
		errno = locked ? EAGAIN : -fail_with;
		return MAP_FAILED;
	}
	return __real_mremap(old, old_len, len, flags, to);
}

/* By this name, with offsets of 64 bits: see _FILE_OFFSET_BITS. */
WRAP_LIBC(void *, MAP_FAILED, mmap64, (void *addr, size_t len, int prot, int flags, int fd, off_t off),
	  (addr, len, prot, flags, fd, off))

int __real_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done);
int __wrap_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done);

int __wrap_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done)
{
	*done = 0;
	return fails() ? fail_with : __real_gmem_sys_uffd_poison(uffd, hva, len, wake, done);
}

/* ---- what is done */

static void check_bytes(const struct both *b, uint64_t extra)
{
	for (uint64_t off = 0; off < FEW; off += PG)
		CHECK_EQ(hva_word(b, off + 8), 1 + off + extra);
}

static bool dead(struct both *b)
{
	return gmem_mmu_dead(&b->s.vm->mmu);
}

/* The guest adds nothing, and stores what it finds on the shared side again, with 1 more. */
static bool guest_gets_on(struct both *b, uint64_t extra)
{
	for (uint64_t off = 0; off < FEW; off += PG) {
		int err, tries = 0;

		begin(&b->s, GUEST_hammer, GPA + off + 8, 1);
		while ((err = gmem_vcpu_run(b->s.vcpu))) {
			if (err == -EIO)
				return false;
			/* It fails as long as the kernel does. */
			CHECK(counted >= fail_from);
			if (++tries == 3)
				fail_to = 0;
			CHECK(tries < 10);
		}
		CHECK(guest_finished(&b->s.guest));
		CHECK_EQ(hva_word(b, off + 8), 1 + off + extra + 1);
	}
	return true;
}

static int set_with_bitmap(struct both *b, const uint64_t *bitmap)
{
	struct gmem_memslot m = { .size = sizeof(m), .gpa = GPA, .len = b->s.len, .file = b->s.file, .hva = b->hva };

	m.flags = bitmap ? GMEM_SLOT_USERFAULT : 0;
	m.userfault_bitmap = bitmap;
	return gmem_vm_set_slot(b->s.vm, &m);
}

static bool set_slot_at_last(struct both *b, const uint64_t *bitmap, uint64_t extra)
{
	int err, tries = 0;

	while ((err = set_with_bitmap(b, bitmap))) {
		check_bytes(b, extra);
		if (dead(b)) {
			/* Not for a slot that no guest has had. */
			CHECK(extra);
			return false;
		}
		CHECK(counted >= fail_from);
		if (++tries == 3)
			fail_to = 0;
		CHECK(tries < 10);
	}
	check_bytes(b, extra);
	return true;
}

static bool logged;

/* Of touches, which has more to do when something else is mapped. */
static void keep_log(struct both *b)
{
	int from = fail_from;

	fail_from = INT_MAX;
	CHECK_OK(gmem_vm_set_log(b->s.vm, 0, GMEM_LOG_ACCESSED));
	fail_from = from;
}

/* False: the VM is dead. */
static bool all_of_it(struct both *b)
{
	static const uint64_t none[1];

	if (!set_slot_at_last(b, NULL, 0))
		return false;
	if (logged)
		keep_log(b);
	if (!guest_gets_on(b, 0))
		return false;
	for (uint64_t off = 0; off < FEW; off += 5 * PG) {
		CHECK_OK(gmem_file_set_attributes(b->s.file, off, 2 * PG, GMEM_ATTRIBUTE_PRIVATE, NULL));
		if (dead(b))
			return false;
		check_bytes(b, 1);
	}
	CHECK_OK(gmem_file_set_attributes(b->s.file, 0, FEW, 0, NULL));
	if (dead(b) || !guest_gets_on(b, 1) || !set_slot_at_last(b, none, 2) || !guest_gets_on(b, 2) ||
	    !set_slot_at_last(b, NULL, 3) || !guest_gets_on(b, 3))
		return false;
	check_bytes(b, 4);
	return true;
}

/* At its end no guest of the VM's reaches anything. */
static void check_end(struct both *b)
{
	begin(&b->s, GUEST_load8, GPA);
	CHECK_ERR(gmem_vcpu_run(b->s.vcpu), -EIO);
	gmem_vm_lock_slots(b->s.vm);
	if (gmem_vm_slot(b->s.vm, GPA >> GMEM_PAGE_SHIFT)) {
		gmem_vm_unlock_slots(b->s.vm);
		for (uint64_t off = 0; off < FEW; off += PG)
			CHECK(!within_reach(gate_of(&b->s), off));
		return;
	}
	gmem_vm_unlock_slots(b->s.vm);
}

static void refuse_each(int flags, int err, int times)
{
	struct scene_opts o = ways[4];
	static struct both b;
	int n = 0, ends = 0;

	o.len = FEW;
	for (bool met = true; met; n++) {
		scene_set_up(&b.s, &o);
		CHECK_OK(del_slot(b.s.vm, 0));
		b.hva = map_memory(FEW, flags);
		for (uint64_t off = 0; off < FEW; off += PG)
			set_hva_word(&b, off + 8, 1 + off);
		/* Pages are private at first, some. */
		to_private(b.s.file, 3 * PG, PG);
		to_shared(b.s.file, 3 * PG, PG);
		counted = 0;
		fail_with = err;
		fail_from = n + 1;
		fail_to = n + times;
		if (!all_of_it(&b)) {
			fail_to = 0;
			ends++;
			check_end(&b);
		}
		met = counted >= fail_from;
		fail_from = fail_to = 0;
		scene_tear_down(&b.s);
		munmap(b.hva, FEW);
	}
	printf("%d calls, %d ends\n", n - 1, ends);
	CHECK(n > 30);
}

TEST_TIMEOUT(shared_memory, 240)
{
	refuse_each(MAP_SHARED, -ENOMEM, 1);
}

TEST_TIMEOUT(shared_memory_twice, 240)
{
	refuse_each(MAP_SHARED, -ENOMEM, 2);
}

TEST_TIMEOUT(shared_memory_for_long, 240)
{
	refuse_each(MAP_SHARED, -ENOMEM, 1000);
}

TEST_TIMEOUT(shared_memory_again, 240)
{
	refuse_each(MAP_SHARED, -EAGAIN, 1);
	refuse_each(MAP_SHARED, -EAGAIN, 1000);
}

TEST_TIMEOUT(shared_memory_with_a_log, 240)
{
	logged = true;
	for (int times = 1; times < 4; times++)
		refuse_each(MAP_SHARED, -ENOMEM, times);
}

/* It is not tried for ever. */
TEST(locked_memory)
{
	static struct both b;

	EACH_WAY_OF_BOTH(&b, MAP_SHARED)
	{
		set_hva_word(&b, PG, 5);
		to_private(b.s.file, PG, PG);
		to_shared(b.s.file, PG, PG);
		locked = true;
		begin(&b.s, GUEST_load8, GPA + PG);
		/* KVM's emulation reads it at the program's own address. */
		CHECK_EQ(gmem_vcpu_run(b.s.vcpu), ways[way_].mode == GUEST_USER ? -ENOMEM : 0);
		locked = false;
		if (ways[way_].mode == GUEST_USER)
			CHECK_OK(go_on(&b.s));
		CHECK_EQ(guest_result(&b.s.guest), 5);
	}
}

TEST_TIMEOUT(private_memory, 240)
{
	refuse_each(MAP_PRIVATE, -ENOMEM, 1);
}

TEST_TIMEOUT(private_memory_twice, 240)
{
	refuse_each(MAP_PRIVATE, -ENOMEM, 2);
}

TEST_TIMEOUT(private_memory_for_long, 240)
{
	refuse_each(MAP_PRIVATE, -EMFILE, 1000);
}

#include "tap_main.h"
