/* SPDX-License-Identifier: MIT */
/* A peer's life, and what it tells of its views. */
#include "file/peer.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "file/file.h"
#include "sys/futex.h"
#include "sys/life.h"

/* A conversion that goes on for longer belongs to an owner that is stopped. */
#define JOIN_LIMIT_NS 10000000000ull

static uint32_t bit_of(const struct gmem_peer *p)
{
	return 1u << p->number;
}

bool gmem_peer_owner_lives(const struct gmem_peer *p)
{
	const struct gmem_state_header *h = p->file->state.header;

	return gmem_life_taken(p->life, GMEM_PEER_OWNER) &&
	       !gmem_pid_gone(atomic_load(&h->owner_pid), atomic_load(&h->owner_pid_space));
}

/* The lock is the place: who has it is alone there, and one that died has left it. */
static int take_place(struct gmem_peer *p)
{
	for (p->number = 0; p->number < GMEM_STATE_MAX_PEERS; p->number++) {
		int err = gmem_life_take(p->life, p->number);

		if (!err)
			return 0;
		if (err != -EAGAIN)
			return gmem_err_sys(err, "gmem_file_open: a lock on the state table");
	}
	return gmem_err(-ENOSPC, "gmem_file_open: this memory is open in %u other objects, which are the most",
			GMEM_STATE_MAX_PEERS);
}

/*
 * A mapping that says whose process this is, so a child made by fork(2) must not have it. The owner may still be asking
 * the one who died here: the bit goes first, then the incarnation changes, see meet() in round.c.
 */
static int map_place(struct gmem_peer *p)
{
	const struct gmem_state *s = &p->file->state;
	off_t at = (char *)gmem_peer_page(s, p->number) - (char *)s->header;
	struct gmem_peer_page *page;

	page = mmap(NULL, GMEM_STATE_PEER_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, at);
	if (page == MAP_FAILED)
		return gmem_err_sys(-errno, "gmem_file_open: a place in the state table");
	p->page = page;
	if (madvise(page, GMEM_STATE_PEER_LEN, MADV_DONTFORK))
		return gmem_err_sys(-errno, "gmem_file_open: MADV_DONTFORK");
	atomic_fetch_and(&s->header->peers, ~bit_of(p));
	p->incarnation = atomic_fetch_add(&page->incarnation, 1) + 1;
	for (unsigned int i = 0; i < GMEM_PEER_MAX_VIEWS; i++)
		if (atomic_load(&page->views[i].len))
			atomic_store(&page->views[i].len, 0);
	atomic_store(&page->pid, getpid());
	atomic_store(&page->pid_space, gmem_pid_space());
	atomic_store(&page->answer, 0);
	p->seen = atomic_load(&page->request) & ~GMEM_PEER_STOP;
	return 0;
}

static int start_agent(struct gmem_peer *p)
{
	sigset_t all, old;
	int err;

	/* The caller's signals are for the caller's threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = -pthread_create(&p->thread, NULL, gmem_peer_agent, p);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return err ? gmem_err_sys(err, "gmem_file_open: a thread") : 0;
}

/*
 * Pairs with gmem_round_enter(): either that conversion sees our bit and asks our agent, or we see that it runs. Views
 * that are mapped after its end are marked by what the table says then.
 */
static int wait_for_conversion(struct gmem_peer *p)
{
	struct gmem_state_header *h = p->file->state.header;
	uint32_t turn = atomic_load(&h->converting);
	uint64_t end = gmem_futex_now() + JOIN_LIMIT_NS;

	if (atomic_load(&h->owner_hidden))
		return gmem_err(-EBUSY, "gmem_file_open: this memory has private pages, or lost ones, and the process "
					"that made it has no /proc: it could not be told from a dead one");
	while (turn & 1 && atomic_load(&h->converting) == turn && gmem_peer_owner_lives(p)) {
		if (gmem_futex_now() > end)
			return gmem_err(-EBUSY,
					"gmem_file_open: process %d is converting pages of this memory, and "
					"does not end",
					(int)atomic_load(&h->owner_pid));
		nanosleep(&(struct timespec){ .tv_nsec = 100000 }, NULL);
	}
	return 0;
}

/* In a forked child something else may be where the place was. */
static void free_peer(struct gmem_peer *p, bool ours)
{
	/* First: while it is mapped, the place must be nobody else's. */
	if (p->page && ours)
		munmap(p->page, GMEM_STATE_PEER_LEN);
	/* By closing alone, a forked child that has the descriptor too would keep the place. */
	if (p->life >= 0 && ours && p->number < GMEM_STATE_MAX_PEERS)
		gmem_life_drop(p->life, p->number);
	if (p->life >= 0)
		close(p->life);
	free(p);
}

int gmem_peer_join(struct gmem_file *file)
{
	struct gmem_peer *p = calloc(1, sizeof(*p));
	int err;

	if (!p)
		return gmem_err_sys(-ENOMEM, "gmem_file_open");
	p->file = file;
	p->number = GMEM_STATE_MAX_PEERS;
	p->life = gmem_life_open(file->state.fd);
	if (p->life < 0) {
		err = gmem_err_sys(p->life, "gmem_file_open: the state table by way of /proc");
		goto out_free;
	}
	err = take_place(p);
	if (!err)
		err = map_place(p);
	if (!err)
		err = start_agent(p);
	if (err)
		goto out_free;
	file->peer = p;
	atomic_fetch_or(&file->state.header->peers, bit_of(p));
	/* On failure the object is freed, and the peer leaves. */
	return wait_for_conversion(p);

out_free:
	free_peer(p, true);
	return err;
}

static void end_agent(struct gmem_peer *p)
{
	atomic_store(&p->stop, true);
	/* Whoever writes the word last, the agent does not go to sleep at it without having seen `stop`. */
	atomic_fetch_xor(&p->page->request, GMEM_PEER_STOP);
	gmem_futex_wake(&p->page->request);
	pthread_join(p->thread, NULL);
}

void gmem_peer_leave(struct gmem_file *file)
{
	struct gmem_peer *p = file->peer;
	bool ours = gmem_file_ours(file);

	if (!p)
		return;
	if (ours) {
		end_agent(p);
		atomic_fetch_and(&file->state.header->peers, ~bit_of(p));
		atomic_store(&p->page->answer, GMEM_PEER_LEFT);
		gmem_futex_wake(&p->page->answer);
	}
	free_peer(p, ours);
	file->peer = NULL;
}

/* ---- views */

int gmem_peer_publish(const struct gmem_view *view)
{
	struct gmem_peer *p = view->file->peer;

	if (!p || !gmem_file_ours(view->file))
		return 0;
	for (unsigned int i = 0; i < GMEM_PEER_MAX_VIEWS; i++) {
		struct gmem_peer_view *v = &p->page->views[i];

		if (atomic_load(&v->len))
			continue;
		atomic_store(&v->hva, (uint64_t)(uintptr_t)view->addr);
		atomic_store(&v->off, view->off);
		atomic_store(&v->len, view->len);
		return 0;
	}
	return gmem_err(-ENOSPC, "an object that gmem_file_open() made has at most %u views", GMEM_PEER_MAX_VIEWS);
}

static struct gmem_peer_view *published(const struct gmem_view *view, uint64_t hva)
{
	struct gmem_peer *p = view->file->peer;

	if (!p || !gmem_file_ours(view->file))
		return NULL;
	for (unsigned int i = 0; i < GMEM_PEER_MAX_VIEWS; i++) {
		struct gmem_peer_view *v = &p->page->views[i];

		if (atomic_load(&v->hva) == hva && atomic_load(&v->len))
			return v;
	}
	return NULL;
}

void gmem_peer_withdraw(const struct gmem_view *view)
{
	struct gmem_peer_view *v = published(view, (uint64_t)(uintptr_t)view->addr);

	if (v)
		atomic_store(&v->len, 0);
}

void gmem_peer_moved(const struct gmem_view *view, const void *from)
{
	struct gmem_peer_view *v = published(view, (uint64_t)(uintptr_t)from);

	if (!v)
		return;
	atomic_store(&v->hva, (uint64_t)(uintptr_t)view->addr);
	atomic_store(&v->len, view->len);
}
