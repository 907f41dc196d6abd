/* SPDX-License-Identifier: MIT */
/*
 * While a page of the program's is being barred it is out of reach for a moment, without a marker: a guest that meets
 * it then begins again, and neither it nor who runs it is told.
 */
#include "kvm_both.h"

#include "sys/uffd.h"

/* The thread that bars stays in that moment until a guest has met it; it goes on when KVM_RUN has returned. */
static struct {
	_Atomic bool armed, inside, met;
	pthread_t thread;
	_Atomic bool joined;
} window;

int __real_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done);
int __wrap_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done);
int __real_gmem_kvm_run(int vcpu);
int __wrap_gmem_kvm_run(int vcpu);

int __wrap_gmem_sys_uffd_poison(int uffd, uint64_t hva, uint64_t len, bool wake, uint64_t *done)
{
	if (atomic_exchange(&window.armed, false)) {
		atomic_store(&window.inside, true);
		while (!atomic_load(&window.met))
			usleep(100);
	}
	return __real_gmem_sys_uffd_poison(uffd, hva, len, wake, done);
}

static bool late; /* all is over when it is looked at what KVM_RUN said */

int __wrap_gmem_kvm_run(int vcpu)
{
	int err = __real_gmem_kvm_run(vcpu);

	if (atomic_load(&window.inside) && !atomic_exchange(&window.met, true) && late) {
		join(window.thread);
		atomic_store(&window.joined, true);
	}
	return err;
}

struct conversion {
	struct gmem_file *file;
	uint64_t off;
};

static void *convert(void *arg)
{
	const struct conversion *c = arg;

	to_private(c->file, c->off, PG);
	return NULL;
}

/* The page at `off` is in that moment when the guest goes in. */
static void meet(struct both *b, uint64_t off)
{
	struct conversion c = { b->s.file, off };
	int err;

	atomic_store(&window.met, false);
	atomic_store(&window.joined, false);
	atomic_store(&window.inside, false);
	atomic_store(&window.armed, true);
	window.thread = start(convert, &c);
	while (!atomic_load(&window.inside))
		usleep(100);
	err = gmem_vcpu_run(b->s.vcpu);
	CHECK(atomic_load(&window.met));
	if (!atomic_load(&window.joined))
		join(window.thread);
	if (b->s.vm->type == GMEM_VM_DEFAULT) {
		CHECK_EQ(err, -EFAULT);
		check_fault(&b->s, GPA + off, 0);
		to_shared(b->s.file, off, PG);
		CHECK_OK(go_on(&b->s));
	} else {
		CHECK_OK(err);
		CHECK(guest_finished(&b->s.guest));
	}
}

static void each_way(void (*fn)(struct both *b))
{
	static struct both b;

	for (int i = 0; i < 2; i++) {
		late = i;
		EACH_WAY_OF_BOTH(&b, MAP_SHARED)
		{
			memcpy(b.hva + 2 * PG, b.s.boot, PG);
			CHECK_OK(gmem_file_write(b.s.file, 2 * PG, b.s.boot, PG));
			fn(&b);
		}
	}
}

static void load(struct both *b)
{
	bool protected = b->s.vm->type == GMEM_VM_SW_PROTECTED;

	set_hva_word(b, PG, 5);
	CHECK_EQ(run(&b->s, GUEST_load8, GPA + PG), 5);
	begin(&b->s, GUEST_load8, GPA + PG);
	meet(b, PG);
	CHECK_EQ(guest_result(&b->s.guest), protected ? 0 : 5);
}

TEST_TIMEOUT(a_load, 120)
{
	each_way(load);
}

static void store(struct both *b)
{
	bool protected = b->s.vm->type == GMEM_VM_SW_PROTECTED;

	begin(&b->s, GUEST_store8, GPA + PG, 7);
	meet(b, PG);
	CHECK_EQ(hva_word(b, PG), protected ? 0 : 7);
	to_shared(b->s.file, PG, PG);
	CHECK_EQ(private_word(b, PG), protected ? 7 : 0);
}

TEST_TIMEOUT(a_store, 120)
{
	each_way(store);
}

static void increment(struct both *b)
{
	set_hva_word(b, PG, 5);
	begin(&b->s, GUEST_hammer, GPA + PG, 3);
	meet(b, PG);
	CHECK_EQ(hva_word(b, PG) + private_word(b, PG), 8);
}

TEST_TIMEOUT(a_locked_increment, 120)
{
	each_way(increment);
}

/* The code itself. */
static void fetch(struct both *b)
{
	b->s.guest.code_gpa = GPA + 2 * PG;
	set_hva_word(b, 8 * PG, 5);
	CHECK_EQ(run(&b->s, GUEST_load8, GPA + 8 * PG), 5);
	begin(&b->s, GUEST_load8, GPA + 8 * PG);
	meet(b, 2 * PG);
	CHECK_EQ(guest_result(&b->s.guest), 5);
}

TEST_TIMEOUT(a_fetch, 120)
{
	each_way(fetch);
}

#include "tap_main.h"
