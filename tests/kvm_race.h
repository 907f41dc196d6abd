/* SPDX-License-Identifier: MIT */
/*
 * Two guests of one machine, in two threads, and what changes under them: for tests of races. Yields are put where the
 * windows are; who includes this lists the functions below in tests/meson.build. With GMEM_TEST_HUGE the file is one of
 * huge pages.
 */
#ifndef GMEM_TESTS_KVM_RACE_H
#define GMEM_TESTS_KVM_RACE_H

#include <sched.h>

#include "kvm_reach.h"

#include "sys/uffd.h"

#define GUESTS 2u
#ifdef GMEM_TEST_HUGE
#define PAGES 4u
#define PAGE H /* what is mapped, barred and converted as one */
#define FLAGS GMEM_FILE_HUGETLB
#define STRICT_TOO 1u /* a huge page cannot be moved */
#else
#define PAGES 16u
#define PAGE PG
#define FLAGS 0u
#define STRICT_TOO 2u
#endif
#define RAM_LEN (PAGES * PAGE)
#define NO_MEMORY (~0ull) /* what a load of an address in no slot is answered */

static _Atomic unsigned int calls;

static bool unhindered; /* no yields: as many changes as can be */

static inline void now_and_then(void)
{
	unsigned int n = atomic_fetch_add(&calls, 1);

	if (unhindered)
		return;
	if (n % 17 == 0)
		usleep(50);
	else if (n % 3 == 0)
		sched_yield();
}

int __real_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done);
int __wrap_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done);
int __real_gmem_sys_uffd_continue(int uffd, uint64_t hva, uint64_t len, uint64_t *done);
int __wrap_gmem_sys_uffd_continue(int uffd, uint64_t hva, uint64_t len, uint64_t *done);
int __real_gmem_sys_zap(void *addr, size_t len);
int __wrap_gmem_sys_zap(void *addr, size_t len);
int __real_gmem_gate_pass(struct gmem_gate *gate, uint64_t off, bool alone);
int __wrap_gmem_gate_pass(struct gmem_gate *gate, uint64_t off, bool alone);
int __real_gmem_kvm_run(int vcpu);
int __wrap_gmem_kvm_run(int vcpu);

int __wrap_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done)
{
	now_and_then();
	return __real_gmem_sys_uffd_poison(uffd, hva, len, wake, done);
}

int __wrap_gmem_sys_uffd_continue(int uffd, uint64_t hva, uint64_t len, uint64_t *done)
{
	now_and_then();
	return __real_gmem_sys_uffd_continue(uffd, hva, len, done);
}

int __wrap_gmem_sys_zap(void *addr, size_t len)
{
	int err = __real_gmem_sys_zap(addr, len);

	now_and_then();
	return err;
}

int __wrap_gmem_gate_pass(struct gmem_gate *gate, uint64_t off, bool alone)
{
	now_and_then();
	return __real_gmem_gate_pass(gate, off, alone);
}

int __wrap_gmem_kvm_run(int vcpu)
{
	int err;

	now_and_then();
	err = __real_gmem_kvm_run(vcpu);
	now_and_then();
	return err;
}

/* ---- the scene */

struct race;

struct one {
	struct race *r;
	struct scene s; /* `vm` and `file` are the race's */
	unsigned int number;
	uint64_t seed, amount;
	pthread_t thread;
	_Atomic uint64_t turns; /* loads, runs: what it has done */
	_Atomic bool done;
};

/* Of a page; written by one thread, the changer. A number grows when something begins or ends, and is odd meanwhile. */
struct page {
	_Atomic uint64_t floor; /* a load that begins now finds no generation before this one */
	_Atomic uint64_t zero; /* odd: it may find none */
	_Atomic uint64_t away; /* odd: no guest reaches it */
};

struct race {
	struct gmem_vm *vm;
	struct gmem_vcpu *hand;
	struct gmem_file *file;
	const struct scene_opts *o;
	uint64_t seed, generation;
	struct page page[PAGES];
	_Atomic uint64_t going, gone; /* odd: the slot may not be there; it is not */
	_Atomic bool over;
	bool always_there; /* all the memory is, for guests */
	struct one one[GUESTS];
};

static inline uint64_t rnd(uint64_t *seed, uint64_t below)
{
	return tap_rand(seed) % below;
}

static inline unsigned int rounds(unsigned int n)
{
	return tap_slow() ? n / 6 : n;
}

static inline void nothing(int sig)
{
	(void)sig;
}

static inline struct gmem_file *race_file(uint32_t flags)
{
	return FLAGS ? huge_file(PAGES, flags) : make_file(RAM_LEN, flags);
}

static inline void set_up(struct race *r, const struct scene_opts *o)
{
	static uint64_t seed;

	if (!seed)
		seed = tap_seed();
	*r = (struct race){ .o = o, .seed = tap_rand(&seed) };
	r->vm = new_kvm_vm(o->type);
	if (o->irqchip && ioctl(gmem_vm_kvm_fd(r->vm), KVM_CREATE_IRQCHIP, 0))
		SKIP("kvm", "interrupt controllers in the kernel: %s", strerror(errno));
	r->hand = new_vcpu(r->vm);
	r->file = race_file(o->flags);
	CHECK_OK(set_slot(r->vm, 0, GPA, RAM_LEN, r->file, 0));
	for (unsigned int i = 0; i < GUESTS; i++) {
		struct one *one = &r->one[i];
		struct scene *s = &one->s;

		one->r = r;
		one->number = i;
		one->seed = r->seed + 1 + i;
		*s = (struct scene){ .vm = r->vm, .file = r->file, .len = RAM_LEN };
		s->vcpu = new_kvm_vcpu(r->vm, i);
		s->boot = boot_range(r->vm, i);
		guest_init(&s->guest, gmem_vcpu_kvm_fd(s->vcpu), gmem_vcpu_kvm_run(s->vcpu), s->boot,
			   BOOT_GPA + i * GUEST_BOOT_LEN, o->mode, o->interrupts);
	}
	watch_bus();
	CHECK(signal(SIGUSR1, nothing) != SIG_ERR);
}

static inline void tear_down(struct race *r)
{
	for (unsigned int i = 0; i < GUESTS; i++) {
		gmem_vcpu_free(r->one[i].s.vcpu);
		munmap(r->one[i].s.boot, GUEST_BOOT_LEN);
	}
	gmem_vcpu_free(r->hand);
	gmem_vm_free(r->vm);
	gmem_file_free(r->file);
	check_signals();
}

static inline void start_guests(struct race *r, void *(*fn)(void *))
{
	for (unsigned int i = 0; i < GUESTS; i++)
		r->one[i].thread = start(fn, &r->one[i]);
}

static inline void *end_of_thread(struct one *one)
{
	check_signals();
	atomic_store(&one->done, true);
	return NULL;
}

static inline void join_guests(struct race *r)
{
	for (unsigned int i = 0; i < GUESTS; i++)
		join(r->one[i].thread);
}

/* Until each guest has got on: everything is within its reach. */
static inline void wait_for_turns(struct race *r)
{
	for (unsigned int i = 0; i < GUESTS; i++) {
		struct one *one = &r->one[i];

		for (uint64_t turns = atomic_load(&one->turns);
		     !atomic_load(&one->done) && atomic_load(&one->turns) == turns;)
			usleep(10);
	}
}

static inline void random_range(struct race *r, uint64_t *first, uint64_t *n)
{
	*first = rnd(&r->seed, PAGES);
	*n = 1 + rnd(&r->seed, PAGES - *first);
}

/* Now and then a guest is told to come out, one way or the other. */
static inline void disturb(struct race *r)
{
	struct one *one = &r->one[rnd(&r->seed, GUESTS)];

	switch (rnd(&r->seed, 6)) {
	case 0:
		gmem_vcpu_cancel(one->s.vcpu);
		break;
	case 1:
		CHECK_EQ(pthread_kill(one->thread, SIGUSR1), 0);
		break;
	}
}

/* Runs the guest until the routine ends; comes back to a page that it may not touch as often as it takes. */
static inline void finish(struct one *one)
{
	struct scene *s = &one->s;

	for (;;) {
		int err = gmem_vcpu_run(s->vcpu);
		struct gmem_exit e = exit_of(s->vcpu);

		if (err == -EINTR)
			continue;
		if (err == -EFAULT || err == -EHWPOISON) {
			CHECK_EQ(e.reason, GMEM_EXIT_MEMORY_FAULT);
			CHECK(e.gpa >= GPA && e.gpa < GPA + RAM_LEN && e.len == PG && !e.flags);
			CHECK(!one->r->always_there);
			sched_yield();
			continue;
		}
		CHECK_OK(err);
		if (guest_finished(&s->guest))
			return;
		if ((int)e.reason != KVM_EXIT_MMIO || s->guest.run->mmio.phys_addr - GPA >= RAM_LEN)
			FAIL("the guest came out: exit %d, %s", (int)e.reason, guest_what(&s->guest));
		memset(s->guest.run->mmio.data, 0xff, 8);
	}
}

#define finish_routine(one, routine, ...)                          \
	({                                                         \
		guest_call(&(one)->s.guest, routine, __VA_ARGS__); \
		finish(one);                                       \
		guest_result(&(one)->s.guest);                     \
	})

/* `o` is one of the ways after the other. */
#define EACH_OF_THE(o)                                              \
	for (struct scene_opts o, *at_ = (struct scene_opts *)ways; \
	     at_ < ways + sizeof(ways) / sizeof(ways[0]) && (o = *at_, true); at_++)

#endif
