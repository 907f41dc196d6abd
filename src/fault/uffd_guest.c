/* SPDX-License-Identifier: MIT */
/*
 * Guests on a gmem_uffd: a guest touches the file through a second stage, no view of it faults, and still the page must
 * not read as zero; or its vCPU has come out, and something is to be done about the page. Its thread waits here; the
 * caller's loop is told an event like any other, and resolves it like any other.
 */
#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/cond.h"
#include "base/err.h"
#include "base/opts.h"
#include "base/range.h"
#include "fault/uffd.h"

#define LOOK_NS 20000000 /* how often a wait looks whether it was cancelled */

/* Caller holds uffd->m. */
void gmem_uffd_ring(struct gmem_uffd *uffd)
{
	uint64_t one = 1;

	(void)!write(uffd->guest_event, &one, sizeof(one));
}

/* Caller holds uffd->m. -EAGAIN: neither yet. */
static int page_state(const struct gmem_uffd_guest *guest, struct gmem_wait *wait)
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

/* So too. An exit is over when somebody says so: what there is to be done may take several steps. */
static int exit_state(const struct gmem_uffd_guest *guest, struct gmem_wait *wait)
{
	if (guest->answered)
		return 0;
	if (guest->member->ending)
		return gmem_err(-EIO, "exit at gpa 0x%llx: nobody serves the page at 0x%llx any more",
				(unsigned long long)guest->exit->gpa, (unsigned long long)guest->off);
	return gmem_wait_over(wait) ?
		       gmem_err(-EINTR, "exit at gpa 0x%llx: cancelled", (unsigned long long)guest->exit->gpa) :
		       -EAGAIN;
}

static int state_of(const struct gmem_uffd_guest *guest, struct gmem_wait *wait)
{
	return guest->exit ? exit_state(guest, wait) : page_state(guest, wait);
}

/* Caller holds uffd->m. */
static void delist(struct gmem_uffd *uffd, struct gmem_uffd_guest *guest)
{
	struct gmem_uffd_guest **at = &uffd->guests;

	while (*at != guest)
		at = &(*at)->next;
	*at = guest->next;
}

/* Until it is over. Caller holds uffd->m. */
static int wait_in_line(struct gmem_uffd *uffd, struct gmem_uffd_guest *guest, struct gmem_wait *wait)
{
	int err;

	guest->next = uffd->guests;
	uffd->guests = guest;
	if (state_of(guest, wait) == -EAGAIN)
		gmem_uffd_ring(uffd);
	while ((err = state_of(guest, wait)) == -EAGAIN)
		gmem_cond_wait_for(&uffd->resolved, &uffd->m, LOOK_NS);
	delist(uffd, guest);
	return err;
}

int gmem_uffd_bring_in(void *opaque, struct gmem_file *file, uint64_t off, struct gmem_wait *wait)
{
	struct gmem_uffd_member *member = opaque;
	struct gmem_uffd_guest guest = {
		.member = member,
		.off = off,
		.len = GMEM_PAGE_SIZE,
		.private = gmem_file_private(file, off),
	};
	int err;

	gmem_uffd_lock(member->uffd);
	err = wait_in_line(member->uffd, &guest, wait);
	gmem_uffd_unlock(member->uffd);
	return err;
}

/* ---- exits */

/* Caller holds uffd->m. NULL: none shows all of it. */
static struct gmem_uffd_member *member_of(const struct gmem_uffd *uffd, const struct gmem_guest_exit *exit)
{
	for (struct gmem_uffd_member *m = uffd->members; m; m = m->next)
		if (m->view->file == exit->file && exit->off >= m->view->off &&
		    gmem_range_inside(exit->off - m->view->off, exit->len, m->view->len) && !m->ending)
			return m;
	return NULL;
}

int gmem_uffd_answer(struct gmem_answerer *a, const struct gmem_guest_exit *exit, struct gmem_wait *wait)
{
	struct gmem_uffd *uffd = (struct gmem_uffd *)a;
	struct gmem_uffd_guest guest = { .off = exit->off, .len = exit->len, .exit = exit };
	int err = gmem_uffd_check_process(uffd, "exit");

	if (err)
		return err;
	gmem_uffd_lock(uffd);
	guest.member = member_of(uffd, exit);
	if (guest.member)
		guest.member->exits++;
	err = guest.member ? wait_in_line(uffd, &guest, wait) :
			     gmem_err(-ENOENT, "exit at gpa 0x%llx: no view with the page at 0x%llx is registered here",
				      (unsigned long long)exit->gpa, (unsigned long long)exit->off);
	if (guest.member && !--guest.member->exits && guest.member->ending)
		pthread_cond_broadcast(&uffd->left);
	gmem_uffd_unlock(uffd);
	return err;
}

/* What the caller of gmem_uffd_exit() waits with. */
struct caller_wait {
	struct gmem_wait wait; /* first */
	const struct gmem_uffd_exit *exit;
};

static bool caller_is_over(struct gmem_wait *wait)
{
	const struct gmem_uffd_exit *exit = ((const struct caller_wait *)wait)->exit;

	return exit->cancelled && exit->cancelled(exit->opaque);
}

int gmem_uffd_exit(struct gmem_uffd *uffd, const struct gmem_uffd_exit *exit)
{
	struct caller_wait w = { .wait = { caller_is_over }, .exit = exit };
	struct gmem_guest_exit e;
	int err;

	if (!gmem_opts_valid(exit, exit->size, sizeof(*exit)) || !exit->file)
		return gmem_err(-EINVAL, "gmem_uffd_exit: size %zu: expected %zu; a file is needed", exit->size,
				sizeof(*exit));
	err = gmem_file_check_range(exit->file, "gmem_uffd_exit", exit->off, exit->len);
	if (err)
		return err;
	e = (struct gmem_guest_exit){
		.file = exit->file, .off = exit->off, .len = exit->len, .gpa = exit->gpa, .flags = exit->flags
	};
	err = gmem_uffd_answer(&uffd->answerer, &e, &w.wait);
	return err ? gmem_err_prefix(err, "gmem_uffd_exit") : 0;
}

/* ---- events */

static struct gmem_uffd_event event_of(const struct gmem_uffd_guest *g)
{
	struct gmem_view *view = g->member->view;
	struct gmem_uffd_event e = {
		.kind = GMEM_UFFD_EVENT_FAULT,
		.flags = GMEM_UFFD_FAULT_GUEST,
		.view = view,
		.off = gmem_file_unit_off(view->file, g->off),
		.len = view->file->page_size,
	};

	if (!g->exit)
		return e;
	e.kind = GMEM_UFFD_EVENT_EXIT;
	e.flags = 0;
	e.off = g->off;
	e.len = g->len;
	e.u.exit.gpa = g->exit->gpa;
	e.u.exit.flags = g->exit->flags;
	return e;
}

/* Processes that have ended, each of its mappings once. */
static int tell_gone(struct gmem_uffd *uffd, struct gmem_uffd_event *events, int n)
{
	int told = 0;

	for (struct gmem_uffd_member *m = uffd->members; m; m = m->next) {
		if (!m->gone || m->gone_told)
			continue;
		if (told == n) {
			gmem_uffd_ring(uffd);
			break;
		}
		m->gone_told = true;
		events[told++] = (struct gmem_uffd_event){
			.kind = GMEM_UFFD_EVENT_GONE, .view = m->view, .off = m->view->off, .len = m->view->len
		};
	}
	return told;
}

int gmem_uffd_tell_guests(struct gmem_uffd *uffd, struct gmem_uffd_event *events, int n)
{
	int told = tell_gone(uffd, events, n);

	for (struct gmem_uffd_guest *g = uffd->guests; g; g = g->next) {
		if (g->told)
			continue;
		if (told == n) {
			gmem_uffd_ring(uffd);
			break;
		}
		g->told = true;
		events[told++] = event_of(g);
	}
	return told;
}

/* Some of what the guest waits for is there. */
static bool waits_at(const struct gmem_uffd_guest *g, const struct gmem_view *view, uint64_t off, uint64_t len)
{
	return g->member->view == view && gmem_range_overlaps(g->off, g->len, off, len);
}

void gmem_uffd_resolved(struct gmem_uffd *uffd, const struct gmem_view *view, uint64_t off, uint64_t len, bool again)
{
	gmem_uffd_lock(uffd);
	for (struct gmem_uffd_guest *g = uffd->guests; g && again; g = g->next) {
		if (!waits_at(g, view, off, len))
			continue;
		if (g->exit) {
			g->answered = true;
		} else if (g->told) {
			g->told = false;
			gmem_uffd_ring(uffd);
		}
	}
	if (uffd->guests)
		pthread_cond_broadcast(&uffd->resolved);
	gmem_uffd_unlock(uffd);
}

/* It is in the list no more, so no exit comes. */
void gmem_uffd_end_supply(struct gmem_uffd_member *member)
{
	struct gmem_uffd *uffd = member->uffd;

	gmem_uffd_lock(uffd);
	member->ending = true;
	pthread_cond_broadcast(&uffd->resolved);
	while (member->exits)
		pthread_cond_wait(&uffd->left, &uffd->m);
	gmem_uffd_unlock(uffd);
	if (member->supply)
		gmem_file_end_supply(member->view->file, member->supply);
}
