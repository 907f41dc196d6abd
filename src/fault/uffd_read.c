/* SPDX-License-Identifier: MIT */
/*
 * Events of a gmem_uffd. No lock of a file is taken here: a thread that zaps memory may hold it until somebody reads.
 * So whether a page is private, and whether it is in place, is looked up without one and may be old when it is told.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/err.h"
#include "base/range.h"
#include "fault/uffd.h"
#include "sys/uffd.h"

#define BATCH 32

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

/*
 * False if nobody is to be told. A page that is private where that is no event: whoever touched it did so before it was
 * marked, wakes, and meets the mark.
 */
static bool to_event(const struct gmem_uffd *uffd, struct gmem_view *view, const struct uffd_msg *msg,
		     struct gmem_uffd_event *ret)
{
	uint64_t at = gmem_file_unit_off(view->file, msg->arg.pagefault.address);
	uint64_t base = (uint64_t)(uintptr_t)view->addr, off;

	if (msg->event != UFFD_EVENT_PAGEFAULT || at < base || at - base >= view->len)
		return false;
	off = view->off + (at - base);
	*ret = (struct gmem_uffd_event){ .kind = GMEM_UFFD_EVENT_FAULT, .view = view, .off = off };
	if (msg->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE)
		ret->flags |= GMEM_UFFD_FAULT_WRITE;
	if (in_place(view->file, off, msg->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR))
		ret->flags |= GMEM_UFFD_FAULT_MINOR;
	if (!gmem_file_private(view->file, off))
		return true;
	if (!(uffd->flags & GMEM_UFFD_PRIVATE_EVENTS)) {
		gmem_sys_uffd_wake(view->uffd, at, view->file->page_size);
		return false;
	}
	ret->flags |= GMEM_UFFD_FAULT_PRIVATE;
	return true;
}

/* Reads at most `n` messages of one view. Returns how many, and adds what is to be told of them. */
static int read_view(const struct gmem_uffd *uffd, struct gmem_view *view, struct gmem_uffd_event *events, int n,
		     int *told)
{
	struct uffd_msg msgs[BATCH];
	int got = gmem_sys_uffd_read(view->uffd, msgs, n);

	for (int i = 0; i < got; i++)
		*told += to_event(uffd, view, &msgs[i], &events[*told]);
	return got;
}

/*
 * One turn through the views that have something to say, at most `n` events. Returns how many messages were read, which
 * may be more than there are events to tell.
 */
static int read_some(struct gmem_uffd *uffd, struct gmem_uffd_event *events, int n, int *told)
{
	struct epoll_event ready[BATCH];
	int nready, messages = 0, err = 0;

	gmem_uffd_lock(uffd);
	/* The views take turns: the kernel puts those it has told of behind the others. */
	nready = epoll_wait(uffd->epoll, ready, n < BATCH ? n : BATCH, 0);
	if (nready < 0 && errno != EINTR)
		err = gmem_err_sys(-errno, "gmem_uffd_read");
	for (int i = 0; i < nready && messages < n && !err; i++) {
		const struct gmem_uffd_member *m = ready[i].data.ptr;
		int got;

		if (!m) {
			got = gmem_uffd_tell_guests(uffd, &events[*told], n - messages);
			*told += got;
			messages += got;
			continue;
		}
		got = read_view(uffd, m->view, events, n - messages, told);
		if (got < 0)
			err = gmem_err_sys(got, "gmem_uffd_read: view at %p", m->view->addr);
		else
			messages += got;
	}
	gmem_uffd_unlock(uffd);
	return err && !messages ? err : messages;
}

int gmem_uffd_read(struct gmem_uffd *uffd, struct gmem_uffd_event *events, unsigned int n)
{
	int err = gmem_uffd_check_process(uffd, "gmem_uffd_read");
	unsigned int done = 0;

	if (err)
		return err;
	if (n > INT_MAX)
		n = INT_MAX;
	while (done < n) {
		struct gmem_uffd_event some[BATCH];
		int told = 0, got = read_some(uffd, some, (int)gmem_min_u64(n - done, BATCH), &told);

		if (got < 0)
			err = got;
		if (got <= 0)
			break;
		gmem_might_fault();
		memcpy(&events[done], some, (size_t)told * sizeof(some[0]));
		done += (unsigned int)told;
	}
	return done ? (int)done : err;
}
