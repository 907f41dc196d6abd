/* SPDX-License-Identifier: MIT */
/*
 * Events of a gmem_uffd. No lock of a file is taken here: a thread that zaps memory may hold it until somebody reads.
 * So whether a page is private, and whether it is in place, is looked up without one and may be old when it is told.
 *
 * Messages are read many at a time into the channel's backlog and told from there: one of them may be of several
 * mappings. The kernel hands out faults before what was done to mappings, whichever came first; it is told the other
 * way round, because a fault may be of a page that has just been removed.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "fault/uffd.h"
#include "sys/uffd.h"

#define BATCH 32

/* Events of one turn. */
struct batch {
	struct gmem_uffd_event *events;
	int n, room;
};

static void tell(struct batch *b, const struct gmem_uffd_event *event)
{
	b->events[b->n++] = *event;
}

/* ---- faults */

/*
 * The page needs no bytes: it is in place or known to be zero, though the kernel may have no memory there, or was put
 * there by another mapping. The kernel also calls a fault minor where memory was merely allocated ahead, or a neighbour
 * was brought in and has given the page its memory, and the bytes are still to come.
 */
static bool in_place(const struct gmem_file *file, uint64_t off, bool minor)
{
	if (gmem_file_unit(file, off) == GMEM_UNIT_IN_PLACE)
		return true;
	/* Nothing allocates huge pages ahead. */
	return minor && !gmem_file_vague(file, off) &&
	       ((file->flags & GMEM_FILE_HUGETLB) || gmem_file_has_memory(file, off, GMEM_PAGE_SIZE));
}

static uint64_t base_of(const struct gmem_view *view)
{
	return (uint64_t)(uintptr_t)view->addr;
}

static bool has(const struct gmem_view *view, uint64_t hva)
{
	return hva >= base_of(view) && hva - base_of(view) < view->len;
}

/*
 * Nobody is to be told of a page that is private where that is no event: whoever touched it did so before it was
 * marked, wakes, and meets the mark.
 */
static void tell_fault(const struct gmem_uffd_member *m, const struct uffd_msg *msg, struct batch *b)
{
	struct gmem_view *view = m->view;
	uint64_t at = gmem_file_unit_off(view->file, msg->arg.pagefault.address), flags = msg->arg.pagefault.flags;
	struct gmem_uffd_event e = {
		.kind = flags & UFFD_PAGEFAULT_FLAG_WP ? GMEM_UFFD_EVENT_WP : GMEM_UFFD_EVENT_FAULT,
		.view = view,
		.off = view->off + (at - base_of(view)),
		.len = view->file->page_size,
	};

	if (flags & UFFD_PAGEFAULT_FLAG_WRITE)
		e.flags |= GMEM_UFFD_FAULT_WRITE;
	if (e.kind == GMEM_UFFD_EVENT_FAULT && in_place(view->file, e.off, flags & UFFD_PAGEFAULT_FLAG_MINOR))
		e.flags |= GMEM_UFFD_FAULT_MINOR;
	if (gmem_file_private(view->file, e.off)) {
		if (!m->tells_private) {
			gmem_sys_uffd_wake(view->uffd, at, view->file->page_size);
			return;
		}
		e.flags |= GMEM_UFFD_FAULT_PRIVATE;
	}
	tell(b, &e);
}

/* ---- what is done to mappings */

/* The part of the view that a message is about. */
static bool part_of(const struct gmem_view *view, uint64_t start, uint64_t end, struct gmem_uffd_event *e)
{
	uint64_t from = gmem_max_u64(start, base_of(view)), to = gmem_min_u64(end, base_of(view) + view->len);

	if (from >= to)
		return false;
	e->view = (struct gmem_view *)view;
	e->off = view->off + (from - base_of(view));
	e->len = to - from;
	return true;
}

static void tell_range(const struct gmem_uffd_member *m, const struct uffd_msg *msg, struct batch *b)
{
	uint64_t start = msg->arg.remove.start, end = msg->arg.remove.end;
	struct gmem_uffd_event e = {
		.kind = msg->event == UFFD_EVENT_REMOVE ? GMEM_UFFD_EVENT_REMOVE : GMEM_UFFD_EVENT_UNMAP,
	};

	if (msg->event == UFFD_EVENT_REMAP) {
		start = msg->arg.remap.from;
		end = start + msg->arg.remap.len;
		e.kind = GMEM_UFFD_EVENT_REMAP;
	}
	if (!part_of(m->view, start, end, &e))
		return;
	if (msg->event == UFFD_EVENT_REMAP)
		e.u.remap.hva = msg->arg.remap.to + (gmem_max_u64(start, base_of(m->view)) - start);
	tell(b, &e);
}

static void tell_fork(const struct gmem_uffd_member *m, const struct uffd_msg *msg, struct batch *b)
{
	struct gmem_uffd_event e = { .kind = GMEM_UFFD_EVENT_FORK,
				     .view = m->view,
				     .u.fork.fd = (int)msg->arg.fork.ufd };

	tell(b, &e);
}

/* ---- channels. Caller holds m */

/* True if the message is no other member's. */
static bool tell_member(const struct gmem_uffd_member *m, const struct uffd_msg *msg, struct batch *b)
{
	switch (msg->event) {
	case UFFD_EVENT_PAGEFAULT:
		if (!has(m->view, msg->arg.pagefault.address))
			return false;
		tell_fault(m, msg, b);
		return true;
	case UFFD_EVENT_FORK:
		tell_fork(m, msg, b);
		return true;
	case UFFD_EVENT_REMOVE:
	case UFFD_EVENT_UNMAP:
	case UFFD_EVENT_REMAP:
		tell_range(m, msg, b);
		return false;
	default:
		return true;
	}
}

/* Of its members, from the first that has not been told. False: there is no room for the rest. */
static bool tell_message(const struct gmem_uffd *uffd, struct gmem_uffd_channel *c, const struct uffd_msg *msg,
			 struct batch *b)
{
	uint32_t i = 0;

	for (const struct gmem_uffd_member *m = uffd->members; m; m = m->next) {
		if (m->channel != c || i++ < c->told)
			continue;
		if (b->n == b->room)
			return false;
		c->told = i;
		if (tell_member(m, msg, b))
			break;
	}
	return true;
}

/* What is told first: what was done to mappings. In the order it came. */
static void sort(struct gmem_uffd_channel *c)
{
	struct uffd_msg faults[GMEM_UFFD_BACKLOG];
	int n = 0, first = 0;

	for (int i = 0; i < c->n; i++)
		if (c->backlog[i].event == UFFD_EVENT_PAGEFAULT)
			faults[n++] = c->backlog[i];
		else
			c->backlog[first++] = c->backlog[i];
	memcpy(&c->backlog[first], faults, (size_t)n * sizeof(faults[0]));
}

/* 1: something was read. */
static int refill(struct gmem_uffd_channel *c)
{
	int n = gmem_sys_uffd_read(c->fd, c->backlog, GMEM_UFFD_BACKLOG);

	if (n <= 0)
		return n;
	c->n = n;
	c->next = 0;
	sort(c);
	return 1;
}

static void tell_backlog(struct gmem_uffd *uffd, struct gmem_uffd_channel *c, struct batch *b)
{
	while (c->next < c->n) {
		if (!tell_message(uffd, c, &c->backlog[c->next], b)) {
			/* Its descriptor may have nothing more to say. */
			gmem_uffd_ring(uffd);
			return;
		}
		c->told = 0;
		c->next++;
	}
}

/* The process is gone, and will be all the time. */
static void note_death(struct gmem_uffd *uffd, struct gmem_uffd_channel *c)
{
	epoll_ctl(uffd->epoll, EPOLL_CTL_DEL, c->fd, NULL);
	for (struct gmem_uffd_member *m = uffd->members; m; m = m->next)
		m->gone |= m->process == c;
	gmem_uffd_ring(uffd);
}

/* 1: something was read, which may be nothing to tell. */
static int read_channel(struct gmem_uffd *uffd, struct gmem_uffd_channel *c, struct batch *b)
{
	int got;

	if (c->process) {
		note_death(uffd, c);
		return 1;
	}
	/* What is left from the last time has been rung for. */
	if (c->next < c->n)
		return 0;
	got = refill(c);
	if (got < 0)
		return gmem_err_sys(got, "gmem_uffd_read: descriptor of a view");
	tell_backlog(uffd, c, b);
	return got;
}

/* Somebody has rung: whose, is not known. 1: as read_channel(). */
static int read_others(struct gmem_uffd *uffd, struct batch *b)
{
	uint64_t rung;
	int before = b->n;

	(void)!read(uffd->guest_event, &rung, sizeof(rung));
	for (struct gmem_uffd_channel *c = uffd->channels; c; c = c->link)
		tell_backlog(uffd, c, b);
	b->n += gmem_uffd_tell_guests(uffd, &b->events[b->n], b->room - b->n);
	return b->n > before;
}

/* One turn through the channels that have something to say. True: there may be more. */
static int read_some(struct gmem_uffd *uffd, struct batch *b)
{
	struct epoll_event ready[BATCH];
	int nready, more = 0, err = 0;

	gmem_uffd_lock(uffd);
	/* They take turns: the kernel puts those it has told of behind the others. */
	nready = epoll_wait(uffd->epoll, ready, b->room < BATCH ? b->room : BATCH, 0);
	if (nready < 0 && errno != EINTR)
		err = gmem_err_sys(-errno, "gmem_uffd_read");
	for (int i = 0; i < nready && b->n < b->room && !err; i++) {
		struct gmem_uffd_channel *c = ready[i].data.ptr;
		int got = c ? read_channel(uffd, c, b) : read_others(uffd, b);

		if (got < 0)
			err = got;
		else
			more |= got;
	}
	gmem_uffd_unlock(uffd);
	return err && !b->n ? err : more;
}

int gmem_uffd_read(struct gmem_uffd *uffd, struct gmem_uffd_event *events, unsigned int n)
{
	int err = gmem_uffd_check_process(uffd, "gmem_uffd_read"), more = 1;
	unsigned int done = 0;

	if (err)
		return err;
	if (n > INT_MAX)
		n = INT_MAX;
	while (done < n && more > 0) {
		struct gmem_uffd_event some[BATCH];
		struct batch b = { .events = some, .room = (int)gmem_min_u64(n - done, BATCH) };

		more = read_some(uffd, &b);
		gmem_might_fault();
		memcpy(&events[done], some, (size_t)b.n * sizeof(some[0]));
		done += (unsigned int)b.n;
	}
	return done || more >= 0 ? (int)done : more;
}
