/* SPDX-License-Identifier: MIT */
/*
 * What comes at the worst moment: between two steps of a guest's coming out, of its going in, and of the barring of its
 * pages. Functions of the library call back here, once, and the case does there what another thread might.
 */
#include <sys/syscall.h>

#include "kvm_reach.h"

/* ---- callbacks */

/* Called at the next call of a function but `skip`, and then no more. One thread only. */
struct hook {
	void (*fn)(struct scene *s);
	struct scene *s;
	int skip;
};

static struct hook after_zap, at_fault, at_check, at_topup, before_run, after_run;

static void call(struct hook *h)
{
	struct hook now = *h;

	if (!h->fn || h->skip-- > 0)
		return;
	*h = (struct hook){ .fn = NULL };
	now.fn(now.s);
}

int __real_gmem_sys_zap(void *addr, size_t len);
int __wrap_gmem_sys_zap(void *addr, size_t len);
int __real_gmem_mmu_fault(struct gmem_vcpu *vcpu, uint64_t gfn, uint32_t access, enum gmem_want want,
			  struct gmem_mmu_exit *exit, struct gmem_hva *hva);
int __wrap_gmem_mmu_fault(struct gmem_vcpu *vcpu, uint64_t gfn, uint32_t access, enum gmem_want want,
			  struct gmem_mmu_exit *exit, struct gmem_hva *hva);
bool __real_gmem_vcpu_cancelled(struct gmem_vcpu *vcpu);
bool __wrap_gmem_vcpu_cancelled(struct gmem_vcpu *vcpu);
int __real_gmem_table_topup(struct gmem_table_pool *pool, struct gmem_table_cache *cache);
int __wrap_gmem_table_topup(struct gmem_table_pool *pool, struct gmem_table_cache *cache);
int __real_gmem_kvm_run(int vcpu);
int __wrap_gmem_kvm_run(int vcpu);

int __wrap_gmem_sys_zap(void *addr, size_t len)
{
	int err = __real_gmem_sys_zap(addr, len);

	call(&after_zap);
	return err;
}

int __wrap_gmem_mmu_fault(struct gmem_vcpu *vcpu, uint64_t gfn, uint32_t access, enum gmem_want want,
			  struct gmem_mmu_exit *exit, struct gmem_hva *hva)
{
	call(&at_fault);
	return __real_gmem_mmu_fault(vcpu, gfn, access, want, exit, hva);
}

bool __wrap_gmem_vcpu_cancelled(struct gmem_vcpu *vcpu)
{
	call(&at_check);
	return __real_gmem_vcpu_cancelled(vcpu);
}

/* Between a page's being looked up and its being let through. */
int __wrap_gmem_table_topup(struct gmem_table_pool *pool, struct gmem_table_cache *cache)
{
	call(&at_topup);
	return __real_gmem_table_topup(pool, cache);
}

/* Between the last look at what it was told and the guest, and the other way. */
int __wrap_gmem_kvm_run(int vcpu)
{
	int err;

	call(&before_run);
	err = __real_gmem_kvm_run(vcpu);
	call(&after_run);
	return err;
}

static void nothing_armed(void)
{
	CHECK(!after_zap.fn && !at_fault.fn && !at_check.fn && !at_topup.fn && !before_run.fn && !after_run.fn);
}

/* ---- pages that are barred */

static struct gmem_gate *looked_at;

static void look_at_barred(struct scene *s)
{
	(void)s;
	for (uint64_t page = 2; page < 5; page++)
		if (within_reach(looked_at, page * PG))
			FAIL("page %llu can be touched while others are being barred", (unsigned long long)page);
}

/*
 * A page that is barred already stays so while its neighbours are: a private one, one that is lost, one that is absent
 * and would be zero for ever.
 */
TEST_TIMEOUT(what_is_barred_stays_so, 120)
{
	struct scene s;

	EACH_WAY(&s)
	{
		struct supplier sup = { .calls = 0 };
		struct gmem_supply *supply = new_supply(s.file, 3 * PG, PG, bring_in, &sup);
		bool out_of_reach = ways[way_].type == GMEM_VM_DEFAULT;

		looked_at = gate_of(&s);
		set_file_word(s.file, 2 * PG, 5);
		CHECK_OK(gmem_file_poison(s.file, 4 * PG, PG));
		if (out_of_reach)
			to_private(s.file, 2 * PG, PG);
		else
			CHECK_OK(gmem_file_poison(s.file, 2 * PG, PG));
		for (uint64_t page = 0; page < 8; page += 1 + 4 * (page == 1))
			run(&s, GUEST_store8, GPA + page * PG, 7);
		look_at_barred(&s);
		after_zap = (struct hook){ look_at_barred, &s, 0 };
		if (out_of_reach)
			to_private(s.file, 0, 8 * PG);
		else
			CHECK_OK(gmem_file_poison(s.file, 0, 8 * PG));
		nothing_armed();
		look_at_barred(&s);
		for (uint64_t page = 0; page < 8; page++)
			CHECK(!within_reach(looked_at, page * PG));
		end_supply(s.file, supply);
	}
}

/* ---- slots that go */

static void delete_slot(struct scene *s)
{
	CHECK_OK(del_slot(s->vm, 0));
}

/* The guest is at a barred page, and the page's slot goes before anybody has looked which page it is. */
TEST_TIMEOUT(slot_deleted_at_its_signal, 120)
{
	struct scene s;

	watch_bus();
	EACH_DEFAULT_WAY(&s)
	{
		to_private(s.file, 0, PG);
		begin(&s, GUEST_load8, GPA);
		after_run = (struct hook){ delete_slot, &s, 0 };
		CHECK_OK(gmem_vcpu_run(s.vcpu));
		nothing_armed();
		CHECK_EQ(exit_of(s.vcpu).reason, KVM_EXIT_MMIO);
		CHECK_EQ(s.guest.run->mmio.phys_addr, GPA);
		check_signals();
	}
}

/* The same a little later, when the page is looked for. */
TEST_TIMEOUT(slot_deleted_at_its_fault, 120)
{
	struct scene s;

	watch_bus();
	EACH_DEFAULT_WAY(&s)
	{
		to_private(s.file, 0, PG);
		begin(&s, GUEST_load8, GPA);
		at_fault = (struct hook){ delete_slot, &s, 0 };
		CHECK_OK(gmem_vcpu_run(s.vcpu));
		nothing_armed();
		CHECK_EQ(exit_of(s.vcpu).reason, KVM_EXIT_MMIO);
		check_signals();
	}
}

static void free_vm(struct scene *s)
{
	gmem_vm_free(s->vm);
	s->vm = NULL;
}

static void free_vm_at_check(struct scene *s)
{
	at_check = (struct hook){ free_vm, s, 0 };
}

TEST_TIMEOUT(vm_freed_at_a_fault, 120)
{
	struct scene s;

	watch_bus();
	for (int late = 0; late < 2; late++) {
		EACH_DEFAULT_WAY(&s)
		{
			to_private(s.file, 0, PG);
			begin(&s, GUEST_load8, GPA);
			at_fault = (struct hook){ late ? free_vm_at_check : free_vm, &s, 0 };
			CHECK_ERR(gmem_vcpu_run(s.vcpu), -EIO);
			nothing_armed();
			check_signals();
		}
	}
}

TEST_TIMEOUT(vm_freed_at_a_signal, 120)
{
	struct scene s;

	watch_bus();
	EACH_DEFAULT_WAY(&s)
	{
		to_private(s.file, 0, PG);
		begin(&s, GUEST_load8, GPA);
		after_run = (struct hook){ free_vm, &s, 0 };
		CHECK_ERR(gmem_vcpu_run(s.vcpu), -EIO);
		nothing_armed();
		check_signals();
	}
}

/* ---- pages that change */

static void make_private(struct scene *s)
{
	to_private(s->file, 0, PG);
}

static void punch_and_write(struct scene *s)
{
	CHECK_OK(gmem_file_punch(s->file, 0, PG));
	set_file_word(s->file, 0, 99);
}

static void bar(struct scene *s, uint64_t word)
{
	to_shared(s->file, 0, PG);
	set_file_word(s->file, 0, word);
	to_private(s->file, 0, PG);
	to_shared(s->file, 0, PG);
}

/* Looked up and not let through yet. */
TEST_TIMEOUT(page_changes_when_found, 120)
{
	struct scene s;

	EACH_DEFAULT_WAY(&s)
	{
		bar(&s, 5);
		at_topup = (struct hook){ make_private, &s, 0 };
		run_err(&s, -EFAULT, GUEST_load8, GPA);
		nothing_armed();
		check_fault(&s, GPA, 0);
		CHECK(!within_reach(gate_of(&s), 0));
		bar(&s, 6);
		at_topup = (struct hook){ punch_and_write, &s, 0 };
		CHECK_OK(go_on(&s));
		nothing_armed();
		CHECK_EQ(guest_result(&s.guest), 99);
	}
}

/*
 * Let through, and barred again before the guest goes on: a plain load may have been made already, one that changes
 * what it loads begins again.
 */
TEST_TIMEOUT(page_barred_again, 120)
{
	struct scene s;

	EACH_DEFAULT_WAY(&s)
	{
		bar(&s, 5);
		before_run = (struct hook){ make_private, &s, 1 };
		run_err(&s, -EFAULT, GUEST_cmpxchg8, GPA, 5, 7);
		nothing_armed();
		check_fault(&s, GPA, 0);
		bar(&s, 8);
		CHECK_OK(go_on(&s));
		CHECK_EQ(guest_result(&s.guest), 8);
		bar(&s, 5);
		before_run = (struct hook){ make_private, &s, 1 };
		run_err(&s, -EFAULT, GUEST_hammer, GPA, 3);
		to_shared(s.file, 0, PG);
		CHECK_OK(go_on(&s));
		CHECK_EQ(file_word(s.file, 0), 8);
	}
}

/* ---- cancellations */

static void cancel(struct scene *s)
{
	gmem_vcpu_cancel(s->vcpu);
}

/* Once, though it may have been at its end before, which is told first: it is there for ever. */
static void comes_out(struct scene *s, struct hook *h, int skip)
{
	int err;

	*h = (struct hook){ cancel, s, skip };
	err = gmem_vcpu_run(s->vcpu);
	if (h == &after_run && !err) {
		CHECK(guest_finished(&s->guest));
		err = gmem_vcpu_run(s->vcpu);
	}
	CHECK_EQ(err, -EINTR);
	nothing_armed();
	check_signals();
	CHECK_OK(go_on(s));
}

/* However it comes, what the guest was at is done afterwards. */
static void cancelled_at(struct scene *s, struct hook *h, int skip)
{
	for (int write = 0; write < 2; write++) {
		bar(s, 5);
		begin(s, write ? GUEST_store8 : GUEST_load8, GPA, 7);
		comes_out(s, h, skip);
		CHECK_EQ(write ? file_word(s->file, 0) : guest_result(&s->guest), write ? 7 : 5);
	}
	bar(s, 5);
	begin(s, GUEST_hammer, GPA, 2);
	comes_out(s, h, skip);
	CHECK_EQ(file_word(s->file, 0), 7);
}

TEST_TIMEOUT(cancelled_anywhere, 240)
{
	struct scene s;

	watch_bus();
	EACH_WAY(&s)
	{
		struct hook *const everywhere[] = { &before_run, &after_run };
		/* Where nothing is barred, these are not passed. */
		struct hook *const at_barred[] = { &at_fault, &at_topup };

		for (size_t i = 0; i < sizeof(everywhere) / sizeof(everywhere[0]); i++)
			cancelled_at(&s, everywhere[i], 0);
		if (ways[way_].type != GMEM_VM_DEFAULT)
			continue;
		for (size_t i = 0; i < sizeof(at_barred) / sizeof(at_barred[0]); i++)
			cancelled_at(&s, at_barred[i], 0);
		for (int skip = 0; skip < 3; skip++)
			cancelled_at(&s, &at_check, skip);
	}
}

/* What has come out for a cancellation may be told to do something else: no half of an instruction is left. */
TEST_TIMEOUT(cancelled_and_sent_elsewhere, 120)
{
	struct scene s;

	EACH_DEFAULT_WAY(&s)
	{
		struct hook *const at[] = { &at_topup, &before_run };

		for (size_t i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
			bar(&s, 5);
			set_file_word(s.file, 8 * PG, 77);
			begin(&s, GUEST_load8, GPA);
			*at[i] = (struct hook){ cancel, &s, at[i] == &before_run };
			CHECK_ERR(gmem_vcpu_run(s.vcpu), -EINTR);
			nothing_armed();
			CHECK_EQ(run(&s, GUEST_load8, GPA + 8 * PG), 77);
		}
	}
}

/* A gate's signal beside an exit: the exit is told, the page is met again. */
static void raise_bus(struct scene *s)
{
	siginfo_t info = { .si_signo = SIGBUS, .si_code = BUS_ADRERR };

	info.si_addr = gate_of(s)->addr;
	CHECK_EQ(syscall(SYS_rt_tgsigqueueinfo, getpid(), (pid_t)syscall(SYS_gettid), SIGBUS, &info), 0);
}

TEST_TIMEOUT(signal_beside_an_exit, 120)
{
	struct scene s;

	watch_bus();
	EACH_WAY(&s)
	{
		begin(&s, GUEST_load4, GPA + LEN);
		after_run = (struct hook){ raise_bus, &s, 0 };
		CHECK_OK(gmem_vcpu_run(s.vcpu));
		nothing_armed();
		CHECK_EQ(exit_of(s.vcpu).reason, KVM_EXIT_MMIO);
		memcpy(s.guest.run->mmio.data, &(uint32_t){ 0xabcdef }, 4);
		CHECK_OK(go_on(&s));
		CHECK_EQ(guest_result(&s.guest), 0xabcdef);
		check_signals();
	}
}

#include "tap_main.h"
