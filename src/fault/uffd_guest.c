/* SPDX-License-Identifier: MIT */
/*
 * Guests' faults on a gmem_uffd: a guest touches the file through a second stage, no view of it faults, and still the
 * page must not read as zero. Its thread waits here; the caller's loop is told an event like any other, and resolves it
 * like any other.
 */
#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/cond.h"
#include "base/err.h"
#include "base/range.h"
#include "fault/uffd.h"

#define LOOK_NS 20000000 /* how often a wait looks whether it was cancelled */

/* Caller holds uffd->m. */
static void ring(struct gmem_uffd *uffd)
{
	uint64_t one = 1;

	(void)!write(uffd->guest_event, &one, sizeof(one));
}

/* Caller holds uffd->m. -EAGAIN: neither yet. */
static int state_of(const struct gmem_uffd_guest *guest, struct gmem_wait *wait)
{
	const struct gmem_file *file = guest->member->view->file;

	/* There, lost, or converted meanwhile: the guest is to look again. */
	if (file->ops->present(file, guest->off) ||
	    !gmem_word_absent(gmem_state_word(&file->state, guest->off >> GMEM_PAGE_SHIFT)) ||
	    gmem_file_private(file, guest->off) != guest->private)
		return 0;
	if (guest->member->ending)
		return gmem_err(-EIO, "page at 0x%llx was never brought in, and nobody serves its view any more",
				(unsigned long long)guest->off);
	/* No answer may put a private page in place. */
	if (guest->private)
		return gmem_err(-EIO, "page at 0x%llx is private and was never brought in",
				(unsigned long long)guest->off);
	return gmem_wait_over(wait) ? -EINTR : -EAGAIN;
}

/* Caller holds uffd->m. */
static void delist(struct gmem_uffd *uffd, struct gmem_uffd_guest *guest)
{
	struct gmem_uffd_guest **at = &uffd->guests;

	while (*at != guest)
		at = &(*at)->next;
	*at = guest->next;
}

int gmem_uffd_bring_in(void *opaque, struct gmem_file *file, uint64_t off, struct gmem_wait *wait)
{
	struct gmem_uffd_member *member = opaque;
	struct gmem_uffd *uffd = member->uffd;
	struct gmem_uffd_guest guest = { .member = member, .off = off, .private = gmem_file_private(file, off) };
	int err;

	gmem_uffd_lock(uffd);
	guest.next = uffd->guests;
	uffd->guests = &guest;
	if (state_of(&guest, wait) == -EAGAIN)
		ring(uffd);
	while ((err = state_of(&guest, wait)) == -EAGAIN)
		gmem_cond_wait_for(&uffd->resolved, &uffd->m, LOOK_NS);
	delist(uffd, &guest);
	gmem_uffd_unlock(uffd);
	return err;
}

int gmem_uffd_tell_guests(struct gmem_uffd *uffd, struct gmem_uffd_event *events, int n)
{
	uint64_t rung;
	int told = 0;

	(void)!read(uffd->guest_event, &rung, sizeof(rung));
	for (struct gmem_uffd_guest *g = uffd->guests; g; g = g->next) {
		if (g->told)
			continue;
		if (told == n) {
			ring(uffd);
			break;
		}
		g->told = true;
		events[told++] = (struct gmem_uffd_event){
			.kind = GMEM_UFFD_EVENT_FAULT,
			.flags = GMEM_UFFD_FAULT_GUEST,
			.view = g->member->view,
			.off = gmem_file_unit_off(g->member->view->file, g->off),
		};
	}
	return told;
}

void gmem_uffd_resolved(struct gmem_uffd *uffd, const struct gmem_view *view, uint64_t off, uint64_t len, bool again)
{
	gmem_uffd_lock(uffd);
	for (struct gmem_uffd_guest *g = uffd->guests; g && again; g = g->next) {
		if (g->member->view != view || g->off < off || g->off - off >= len || !g->told)
			continue;
		g->told = false;
		ring(uffd);
	}
	if (uffd->guests)
		pthread_cond_broadcast(&uffd->resolved);
	gmem_uffd_unlock(uffd);
}

void gmem_uffd_end_supply(struct gmem_uffd_member *member)
{
	gmem_uffd_lock(member->uffd);
	member->ending = true;
	pthread_cond_broadcast(&member->uffd->resolved);
	gmem_uffd_unlock(member->uffd);
	gmem_file_end_supply(member->view->file, member->supply);
}
