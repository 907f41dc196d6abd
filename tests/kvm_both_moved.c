/* SPDX-License-Identifier: MIT */
/* Slots of the program's memory that move with their bitmaps, and memory that two machines are given at once. */
#include "kvm_both.h"

#include "sys/uffd.h"

static _Atomic bool slowly;

int __real_gmem_sys_uffd_open(uint64_t features, bool *user_mode_only);
int __wrap_gmem_sys_uffd_open(uint64_t features, bool *user_mode_only);

/* Before memory that was looked at is kept from others. */
int __wrap_gmem_sys_uffd_open(uint64_t features, bool *user_mode_only)
{
	if (atomic_load(&slowly))
		usleep((useconds_t)((uintptr_t)pthread_self() >> 12 & 7) * 200);
	return __real_gmem_sys_uffd_open(features, user_mode_only);
}

static int set_at(struct scene *s, uint64_t gpa, char *hva, uint32_t flags, const uint64_t *bitmap)
{
	struct gmem_memslot m = { .size = sizeof(m), .flags = flags, .gpa = gpa, .len = s->len, .hva = hva };

	m.userfault_bitmap = bitmap;
	return gmem_vm_set_slot(s->vm, &m);
}

static const uint64_t none[LEN / PG / 64 + 1];
static uint64_t all[LEN / PG / 64 + 1];

static void set_up_moving(struct both *b, const struct scene_opts *o)
{
	memset(all, 0xff, sizeof(all));
	scene_set_up(&b->s, o);
	CHECK_OK(del_slot(b->s.vm, 0));
	b->hva = map_memory(LEN, MAP_SHARED);
	for (uint64_t off = 0; off < LEN; off += PG)
		set_hva_word(b, off, off + 1);
}

/* To where KVM has a slot that the library does not know: nothing has changed, and the bits count on. */
TEST(refused)
{
	static struct both b;

	for (size_t way = 0; way < sizeof(ways) / sizeof(ways[0]); way++) {
		set_up_moving(&b, &ways[way]);
		CHECK_OK(set_at(&b.s, GPA, b.hva, GMEM_SLOT_USERFAULT, all));
		for (int bits = 0; bits < 2; bits++) {
			run_err(&b.s, -EFAULT, GUEST_load8, GPA + 3 * PG);
			check_fault(&b.s, GPA + 3 * PG, GMEM_EXIT_FLAG_USERFAULT);
			/* Without a bitmap, and with one that lets everything through. */
			CHECK_ERR(set_at(&b.s, BOOT_GPA, b.hva, bits ? GMEM_SLOT_USERFAULT : 0, none), -EEXIST);
			CHECK_ERR(go_on(&b.s), -EFAULT);
			check_fault(&b.s, GPA + 3 * PG, GMEM_EXIT_FLAG_USERFAULT);
			CHECK_OK(set_at(&b.s, GPA, b.hva, GMEM_SLOT_USERFAULT, none));
			CHECK_OK(go_on(&b.s));
			CHECK_EQ(guest_result(&b.s.guest), 3 * PG + 1);
			CHECK_OK(set_at(&b.s, GPA, b.hva, GMEM_SLOT_USERFAULT, all));
		}
		tear_down_both(&b);
	}
}

static struct mover {
	struct both b;
	struct scene looks; /* another vCPU of the same machine */
	_Atomic bool over;
	_Atomic uint64_t turns;
} mover;

/* At the old place, at the new one: it comes out, or reads. */
static void *read_all(void *arg)
{
	(void)arg;
	while (!atomic_load(&mover.over)) {
		begin(&mover.b.s, GUEST_sum, GPA, LEN / PG, PG);
		(void)gmem_vcpu_run(mover.b.s.vcpu);
		guest_settle(&mover.b.s.guest);
		atomic_fetch_add(&mover.turns, 1);
	}
	return NULL;
}

static void stop_reader(pthread_t t)
{
	atomic_store(&mover.over, true);
	gmem_vcpu_cancel(mover.b.s.vcpu);
	join(t);
}

/* A bit that is set when the call returns keeps its page, though a guest was at all of them meanwhile. */
TEST_TIMEOUT(with_other_bits_under_a_guest, 120)
{
	int rounds = tap_slow() ? 20 : 200;

	set_up_moving(&mover.b, &ways[0]);
	mover.looks = (struct scene){ .vm = mover.b.s.vm, .vcpu = new_kvm_vcpu(mover.b.s.vm, 1) };
	mover.looks.boot = boot_range(mover.b.s.vm, 1);
	guest_init(&mover.looks.guest, gmem_vcpu_kvm_fd(mover.looks.vcpu), gmem_vcpu_kvm_run(mover.looks.vcpu),
		   mover.looks.boot, BOOT_GPA + GUEST_BOOT_LEN, GUEST_USER, false);
	for (int i = 0; i < rounds; i++) {
		uint64_t turns = atomic_load(&mover.turns);
		pthread_t t;

		CHECK_OK(set_at(&mover.b.s, GPA, mover.b.hva, GMEM_SLOT_USERFAULT, none));
		atomic_store(&mover.over, false);
		t = start(read_all, NULL);
		while (atomic_load(&mover.turns) < turns + 1)
			sched_yield();
		CHECK_OK(set_at(&mover.b.s, GPA + LEN, mover.b.hva, GMEM_SLOT_USERFAULT, all));
		stop_reader(t);
		for (uint64_t off = 0; off < LEN; off += PG) {
			run_err(&mover.looks, -EFAULT, GUEST_load8, GPA + LEN + off);
			check_fault(&mover.looks, GPA + LEN + off, GMEM_EXIT_FLAG_USERFAULT);
		}
		CHECK_OK(del_slot(mover.b.s.vm, 0));
	}
	gmem_vcpu_free(mover.looks.vcpu);
	munmap(mover.looks.boot, GUEST_BOOT_LEN);
	tear_down_both(&mover.b);
}

/* ---- one memory, two machines */

struct setter {
	struct gmem_vm *vm;
	struct gmem_file *file;
	char *hva;
	_Atomic bool *go;
};

static void *set_slot_of(void *arg)
{
	struct setter *a = arg;

	while (!atomic_load(a->go))
		sched_yield();
	CHECK_OK(set_both(a->vm, 0, GPA, LEN, a->file, 0, a->hva));
	return NULL;
}

/* Private memory that both adopt is the same to both, and to the program. */
TEST_TIMEOUT(adopted_by_two, 120)
{
	int rounds = tap_slow() ? 30 : 300;
	static struct scene s[2];

	for (int i = 0; i < 2; i++) {
		scene_set_up(&s[i], &ways[0]);
		CHECK_OK(del_slot(s[i].vm, 0));
	}
	atomic_store(&slowly, true);
	for (int i = 0; i < rounds; i++) {
		uint64_t *hva = (uint64_t *)map_memory(LEN, MAP_PRIVATE);
		_Atomic bool go = false;
		struct setter a[2];
		pthread_t t[2];

		*hva = 1;
		for (int k = 0; k < 2; k++) {
			a[k] = (struct setter){ s[k].vm, s[k].file, (char *)hva, &go };
			t[k] = start(set_slot_of, &a[k]);
		}
		atomic_store(&go, true);
		join(t[0]);
		join(t[1]);
		__atomic_store_n(hva, 77, __ATOMIC_RELEASE);
		for (int k = 0; k < 2; k++) {
			CHECK_EQ(run(&s[k], GUEST_load8, GPA), 77);
			CHECK_OK(del_slot(s[k].vm, 0));
		}
		munmap(hva, LEN);
	}
	atomic_store(&slowly, false);
	for (int i = 0; i < 2; i++)
		scene_tear_down(&s[i]);
}

#include "tap_main.h"
