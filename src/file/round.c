/* SPDX-License-Identifier: MIT */
/* What the owner of a memory asks of its peers when pages are converted, fail, or are healed. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "file/file.h"
#include "sys/futex.h"
#include "sys/life.h"

/*
 * How long a peer that lives may take to answer. It waits for its own threads, which hold their lock for the time of a
 * copy, and marks its views: 1 s for 4 GiB is ten times what markers take. One that is stopped, or traced, is not
 * waited for: what a guest is converting is what it waits for.
 */
#define LIMIT_NS 2000000000ull
#define LIMIT_SHIFT 2 /* of the range's bytes, in nanoseconds */

#define SEQ_MASK ((1u << (31 - GMEM_PEER_OP_BITS)) - 1)

/* Before the first conversion: from now on peers may need to know whether we live. */
static int show_life(struct gmem_file *file)
{
	struct gmem_state_header *h = file->state.header;
	int life = gmem_life_open(file->state.fd), err;

	/* No /proc: then there are no peers, and none can come. */
	if (life == -ENOENT || life == -EACCES) {
		atomic_store(&h->owner_hidden, 1);
		return 0;
	}
	if (life < 0)
		return gmem_err_sys(life, "%s: a sign of life", file->round.who);
	err = gmem_life_take(life, GMEM_PEER_OWNER);
	if (err) {
		close(life);
		return gmem_err_sys(err, "%s: a lock on the state table", file->round.who);
	}
	atomic_store(&h->owner_pid, getpid());
	atomic_store(&h->owner_pid_space, gmem_pid_space());
	atomic_store(&h->owner_hidden, 0);
	file->round.life = life;
	return 0;
}

static bool lives(const struct gmem_file *file, unsigned int n)
{
	const struct gmem_peer_page *page = gmem_peer_page(&file->state, n);

	return gmem_life_taken(file->round.life, n) &&
	       !gmem_pid_gone(atomic_load(&page->pid), atomic_load(&page->pid_space));
}

/* Nobody joins in a place whose lock we have. One that a dead peer's child keeps is looked at again next time. */
static void bury(struct gmem_file *file, unsigned int n)
{
	if (gmem_life_take(file->round.life, n))
		return;
	atomic_fetch_and(&file->state.header->peers, ~(1u << n));
	gmem_life_drop(file->round.life, n);
}

/*
 * Who is to be asked. A place may change hands meanwhile: whoever comes clears the bit, changes the incarnation, starts
 * an agent and sets the bit. If the bit is there after the incarnation was read, the agent of that one is; if it is set
 * later, that one waits in gmem_peer_join() until we are done.
 */
static void meet(struct gmem_file *file)
{
	struct gmem_round *r = &file->round;

	for (unsigned int n = 0; n < GMEM_STATE_MAX_PEERS; n++) {
		if (!(r->peers & 1u << n))
			continue;
		r->incarnation[n] = atomic_load(&gmem_peer_page(&file->state, n)->incarnation);
		if (!lives(file, n))
			bury(file, n);
		else if (atomic_load(&file->state.header->peers) & 1u << n)
			continue;
		r->peers &= ~(1u << n);
	}
}

int gmem_round_enter(struct gmem_file *file, const char *who)
{
	struct gmem_state_header *h = file->state.header;
	struct gmem_round *r = &file->round;
	int err;

	r->who = who;
	err = r->life < 0 ? show_life(file) : 0;
	if (err)
		return err;
	/* Pairs with gmem_peer_join(), where the bit is set and this is looked at. */
	atomic_fetch_add(&h->converting, 1);
	r->stuck = 0;
	r->peers = atomic_load(&h->peers);
	if (r->peers && r->life < 0) {
		gmem_round_leave(file);
		return gmem_err(-EBUSY,
				"%s: this memory is open in another object too, which could not tell this process from "
				"a dead one: it has no /proc",
				who);
	}
	if (r->peers)
		meet(file);
	return 0;
}

void gmem_round_leave(struct gmem_file *file)
{
	_Atomic uint32_t *converting = &file->state.header->converting;

	/* Release: pairs with the load of a peer that waits for it. Nobody else changes it. */
	atomic_store_explicit(converting, atomic_load_explicit(converting, memory_order_relaxed) + 1,
			      memory_order_release);
}

static uint32_t next_request(struct gmem_round *r, enum gmem_peer_op op)
{
	r->seq = (r->seq + 1) & SEQ_MASK;
	return r->seq << GMEM_PEER_OP_BITS | op;
}

static uint32_t post(struct gmem_file *file, unsigned int n, enum gmem_peer_op op, uint64_t off, uint64_t len)
{
	struct gmem_peer_page *page = gmem_peer_page(&file->state, n);
	uint32_t request;

	/* One that did not answer may be reading the last one yet. */
	atomic_store(&page->request, next_request(&file->round, GMEM_PEER_NONE));
	atomic_store(&page->off, off);
	atomic_store(&page->len, len);
	atomic_store(&page->whom, file->round.incarnation[n]);
	request = next_request(&file->round, op);
	atomic_store(&page->request, request);
	gmem_futex_wake(&page->request);
	return request;
}

/* What a peer says is not trusted further than it has to be. */
static int its_error(const struct gmem_file *file, unsigned int n, uint64_t off, uint64_t len, uint64_t *ret_error_off)
{
	const struct gmem_peer_page *page = gmem_peer_page(&file->state, n);
	int err = page->error < 0 && page->error > -4096 ? page->error : page->error ? -EIO : 0;
	char text[sizeof(page->text)];

	if (!err)
		return 0;
	if (page->error_off >= off && page->error_off - off < len && gmem_page_aligned(page->error_off))
		*ret_error_off = page->error_off;
	memcpy(text, page->text, sizeof(text));
	text[sizeof(text) - 1] = '\0';
	return gmem_err(err, "%s: process %d: %s", file->round.who, (int)atomic_load(&page->pid), text);
}

static int no_answer(const struct gmem_file *file, unsigned int n)
{
	return gmem_err(-EBUSY, "%s: process %d has this memory open and does not answer: is it stopped?",
			file->round.who, (int)atomic_load(&gmem_peer_page(&file->state, n)->pid));
}

/* 0 also for one that has gone: it shows nothing any more. */
static int await(struct gmem_file *file, unsigned int n, uint32_t request, uint64_t end)
{
	struct gmem_peer_page *page = gmem_peer_page(&file->state, n);
	struct gmem_round *r = &file->round;

	for (;;) {
		uint32_t answer = atomic_load(&page->answer);
		uint64_t now = gmem_futex_now();

		if (atomic_load(&page->incarnation) != r->incarnation[n] || answer == GMEM_PEER_LEFT)
			break;
		if (answer == request)
			return 0;
		if (now >= end) {
			r->stuck |= 1u << n;
			return no_answer(file, n);
		}
		if (gmem_futex_wait(&page->answer, answer, gmem_min_u64(GMEM_PEER_LOOK_NS, end - now)) != -ETIMEDOUT ||
		    lives(file, n))
			continue;
		bury(file, n);
		break;
	}
	r->peers &= ~(1u << n);
	return 0;
}

/* Asks all of them at once. The first error, when all have answered. */
static int ask(struct gmem_file *file, uint32_t whom, enum gmem_peer_op op, uint64_t off, uint64_t len,
	       uint64_t *ret_error_off)
{
	uint64_t end = gmem_futex_now() + LIMIT_NS + (len >> LIMIT_SHIFT);
	uint32_t request[GMEM_STATE_MAX_PEERS];
	int err = 0;

	for (unsigned int n = 0; n < GMEM_STATE_MAX_PEERS; n++)
		if (whom & 1u << n)
			request[n] = post(file, n, op, off, len);
	for (unsigned int n = 0; n < GMEM_STATE_MAX_PEERS; n++) {
		uint64_t error_off = off;
		int one;

		if (!(whom & 1u << n))
			continue;
		one = await(file, n, request[n], end);
		if (!one && file->round.peers & 1u << n)
			one = its_error(file, n, off, len, &error_off);
		if (err || !one)
			continue;
		err = one;
		*ret_error_off = error_off;
	}
	return err;
}

int gmem_round_hold(struct gmem_file *file, uint64_t off, uint64_t len, uint64_t *ret_error_off)
{
	struct gmem_round *r = &file->round;
	uint32_t seen = 0;
	int err = r->peers ? ask(file, r->peers, GMEM_PEER_HOLD, off, len, ret_error_off) : 0;

	/* The kernel keeps every mapping of its own memory out. */
	if (err || file->engine == GMEM_ENGINE_KERNEL || !atomic_load(&file->state.header->exported))
		return err;
	err = gmem_foreign_look(file, off, len, &seen, ret_error_off);
	if (!err && r->peers & ~seen)
		err = ask(file, r->peers & ~seen, GMEM_PEER_LOOK, off, len, ret_error_off);
	return err;
}

void gmem_round_hold_shared(struct gmem_file *file, uint64_t off, uint64_t len)
{
	uint64_t where;

	/* What is shared already may be pinned. */
	if (file->round.peers)
		(void)ask(file, file->round.peers, GMEM_PEER_HOLD, off, len, &where);
}

int gmem_round_mark(struct gmem_file *file, uint64_t off, uint64_t len, uint64_t *ret_error_off)
{
	return file->round.peers ? ask(file, file->round.peers, GMEM_PEER_MARK, off, len, ret_error_off) : 0;
}

int gmem_round_poison(struct gmem_file *file, uint64_t off, uint64_t len)
{
	struct gmem_round *r = &file->round;
	uint64_t where;
	int err = 0;

	/* A pin is no reason to go on showing memory that has failed. */
	gmem_round_hold_shared(file, off, len);
	if (r->peers & ~r->stuck)
		err = ask(file, r->peers & ~r->stuck, GMEM_PEER_POISON, off, len, &where);
	if (!err && r->stuck)
		err = no_answer(file, (unsigned int)__builtin_ctz(r->stuck));
	return err;
}

void gmem_round_release(struct gmem_file *file, uint64_t off, uint64_t len, bool wait)
{
	struct gmem_round *r = &file->round;
	uint32_t late = wait ? r->stuck : r->peers;
	char text[512];
	uint64_t where;

	for (unsigned int n = 0; n < GMEM_STATE_MAX_PEERS; n++)
		if (late & 1u << n)
			(void)post(file, n, GMEM_PEER_RELEASE, off, len);
	if (!(r->peers & ~late))
		return;
	/* The text is of what happened before. */
	snprintf(text, sizeof(text), "%s", gmem_last_error());
	(void)ask(file, r->peers & ~late, GMEM_PEER_RELEASE, off, len, &where);
	gmem_err(0, "%s", text);
}
