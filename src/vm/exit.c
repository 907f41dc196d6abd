/* SPDX-License-Identifier: MIT */
/*
 * An accessor's exits. A call that has ended in one that is to be answered, and is made again, finds its answer here,
 * by what the exit said of it.
 */
#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/range.h"
#include "vm/accessor.h"

bool gmem_exit_mmio(struct gmem_exit *ret, uint64_t gpa, enum gmem_want want, size_t len, uint64_t flags)
{
	/* KVM's rule: memory that is private and nowhere is a memory fault. */
	if (want == GMEM_WANT_PRIVATE || !len || len > sizeof(ret->data) ||
	    (gpa & (GMEM_PAGE_SIZE - 1)) + len > GMEM_PAGE_SIZE)
		return false;
	*ret = (struct gmem_exit){ .reason = GMEM_EXIT_MMIO, .flags = flags, .gpa = gpa, .len = len };
	return true;
}

bool gmem_accessor_answered(const struct gmem_accessor *a, const struct gmem_exit *exit, bool exchange)
{
	const struct gmem_exit *last = &a->cpu.exit;

	return a->answered && a->exchange == exchange && !gmem_mmu_dead(&a->cpu.vm->mmu) &&
	       last->reason == exit->reason && last->flags == exit->flags && last->gpa == exit->gpa &&
	       last->len == exit->len && last->nr == exit->nr && !memcmp(last->args, exit->args, sizeof(last->args));
}

void gmem_accessor_close(struct gmem_accessor *a)
{
	a->open = a->answered = a->exchange = false;
}

void gmem_accessor_begin(struct gmem_accessor *a)
{
	gmem_accessor_close(a);
	a->cpu.exit = (struct gmem_exit){ .size = sizeof(a->cpu.exit) };
}

void gmem_accessor_exit(struct gmem_accessor *a, const struct gmem_exit *exit)
{
	a->cpu.exit = *exit;
	a->cpu.exit.size = sizeof(a->cpu.exit);
	a->open = exit->reason == GMEM_EXIT_MMIO || exit->reason == GMEM_EXIT_HYPERCALL;
}

int gmem_accessor_answer(struct gmem_cpu *cpu, uint64_t value)
{
	struct gmem_accessor *a = (struct gmem_accessor *)cpu;

	if (!a->open)
		return gmem_err(-EINVAL, "gmem_vcpu_answer: the last call left nothing open");
	a->answered = true;
	a->answer = value;
	return 0;
}

int gmem_vcpu_hypercall(struct gmem_vcpu *vcpu, uint64_t nr, const uint64_t args[6], uint64_t *ret)
{
	struct gmem_accessor *a = gmem_accessor_of(vcpu, "gmem_vcpu_hypercall");
	struct gmem_exit exit = { .reason = GMEM_EXIT_HYPERCALL, .nr = nr };
	bool answered;

	if (!a)
		return -EINVAL;
	gmem_might_fault();
	memcpy(exit.args, args, sizeof(exit.args));
	answered = gmem_accessor_answered(a, &exit, false);
	gmem_accessor_begin(a);
	if (gmem_mmu_dead(&a->cpu.vm->mmu))
		return gmem_err(-EIO, "gmem_vcpu_hypercall: this VM is dead");
	if (!answered) {
		gmem_accessor_exit(a, &exit);
		return 1;
	}
	*ret = a->answer;
	return 0;
}
