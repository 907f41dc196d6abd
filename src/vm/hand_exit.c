/* SPDX-License-Identifier: MIT */
/*
 * An exit that is handed to somebody's loop: a gmem_uffd, of which this room knows no more than that it answers
 * (file/answer.h). The vCPU's thread waits there.
 */
#include <errno.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "file/answer.h"
#include "vm/vm.h"

struct exit_wait {
	struct gmem_wait wait; /* first */
	struct gmem_vcpu *vcpu;
	uint64_t gfn;
	struct gmem_mmu_page page; /* what the guest came out at */
	bool userfault; /* because it is to be filled */
};

/*
 * Cancelled, or the guest would not come out there any more. That a page is on the side it wants is no end: it may be
 * filled yet, before whoever answers says that it is done.
 */
static bool exit_is_over(struct gmem_wait *wait)
{
	struct exit_wait *w = (struct exit_wait *)wait;

	if (atomic_load(&w->vcpu->cancel) || gmem_mmu_dead(&gmem_cpu_of(w->vcpu)->vm->mmu))
		return true;
	if (!gmem_mmu_is_still(w->vcpu, w->gfn, &w->page))
		return true;
	return w->userfault && !w->page.userfault;
}

/* 1: nobody need be asked. */
static int check(const struct exit_wait *w, const struct gmem_exit *exit)
{
	bool private = exit->flags & GMEM_EXIT_FLAG_PRIVATE;

	if (w->userfault)
		return !w->page.userfault;
	if (w->page.private != private)
		return 0;
	if (!gmem_state_poisoned(&w->page.file->state, w->page.off >> GMEM_PAGE_SHIFT))
		return 1;
	return gmem_err(-EHWPOISON, "gmem_vcpu_hand_exit: gpa 0x%llx: its page is poisoned",
			(unsigned long long)exit->gpa);
}

static int hand(struct exit_wait *w, struct gmem_uffd *uffd, const struct gmem_exit *exit)
{
	struct gmem_answerer *answerer = gmem_answerer_of(uffd);
	struct gmem_guest_exit e = {
		.file = w->page.file,
		.off = w->page.off,
		.len = exit->len,
		.gpa = exit->gpa,
		.flags = exit->flags,
	};
	int err = answerer->answer(answerer, &e, &w->wait);

	if (err != -EINTR)
		return err ? gmem_err_prefix(err, "gmem_vcpu_hand_exit") : 0;
	if (gmem_mmu_dead(&gmem_cpu_of(w->vcpu)->vm->mmu))
		return gmem_err(-EIO, "gmem_vcpu_hand_exit: this VM is dead");
	/* The flag has only been looked at. */
	return gmem_vcpu_cancelled(w->vcpu) ? gmem_err(-EINTR, "gmem_vcpu_hand_exit: cancelled") : 0;
}

int gmem_vcpu_hand_exit(struct gmem_vcpu *vcpu, struct gmem_uffd *uffd)
{
	const struct gmem_cpu *cpu = gmem_cpu_of(vcpu);
	/* The exit stays what it was, whatever is done meanwhile. */
	const struct gmem_exit exit = cpu->exit;
	struct exit_wait w = {
		.wait = { exit_is_over },
		.vcpu = vcpu,
		.gfn = exit.gpa >> GMEM_PAGE_SHIFT,
		.userfault = exit.flags & GMEM_EXIT_FLAG_USERFAULT,
	};
	int err;

	if (cpu->vm->pid != getpid())
		return gmem_err(-EIO, "gmem_vcpu_hand_exit: this VM is a copy that came with fork(2)");
	if (exit.reason != GMEM_EXIT_MEMORY_FAULT)
		return gmem_err(-EINVAL, "gmem_vcpu_hand_exit: the last exit was no memory fault");
	if (gmem_mmu_dead(&cpu->vm->mmu))
		return gmem_err(-EIO, "gmem_vcpu_hand_exit: this VM is dead");
	err = gmem_mmu_page_of(vcpu, w.gfn, &w.page);
	if (err)
		return gmem_err(-ENOENT, "gmem_vcpu_hand_exit: gpa 0x%llx: %s", (unsigned long long)exit.gpa,
				err == -EBADF ? "its slot has no file" : "no slot");
	err = check(&w, &exit);
	if (!err)
		err = hand(&w, uffd, &exit);
	gmem_file_put(w.page.file);
	return err;
}
