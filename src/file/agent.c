/* SPDX-License-Identifier: MIT */
/* The thread of a peer that does for its views what the owner asks for. */
#include <errno.h>
#include <stdio.h>

#include "base/err.h"
#include "base/range.h"
#include "file/file.h"
#include "sys/futex.h"

/* The smallest range that holds both: who is let in is said by the table, so more than was owed does no harm. */
static void owe(struct gmem_peer *p, uint64_t off, uint64_t len)
{
	uint64_t end = off + len;

	if (p->owed_len) {
		end = gmem_max_u64(end, p->owed_off + p->owed_len);
		off = gmem_min_u64(off, p->owed_off);
	}
	p->owed_off = off;
	p->owed_len = end - off;
}

static void hold(struct gmem_peer *p, uint64_t off, uint64_t len)
{
	gmem_rwlock_lock(&p->file->invalidate_lock);
	p->held = true;
	p->off = off;
	p->len = len;
}

/*
 * The sides of the range are what they will be until the next request is answered: views follow. What cannot be let in
 * (no memory for a mapping) stays out, and is tried again. A view that cannot be marked cannot be marked later either.
 */
static int release(struct gmem_peer *p, uint64_t off, uint64_t len)
{
	int err;

	if (!p->held)
		hold(p, off, len);
	err = gmem_convert_let_in(p->file, off, len);
	if (err && err != -EOPNOTSUPP)
		owe(p, off, len);
	if (p->off != off || p->len != len)
		owe(p, p->off, p->len);
	p->held = false;
	gmem_rwlock_unlock(&p->file->invalidate_lock);
	return err;
}

static void pay(struct gmem_peer *p)
{
	int err;

	gmem_rwlock_lock(&p->file->invalidate_lock);
	err = gmem_convert_let_in(p->file, p->owed_off, p->owed_len);
	if (!err || err == -EOPNOTSUPP)
		p->owed_len = 0;
	gmem_rwlock_unlock(&p->file->invalidate_lock);
}

static int serve(struct gmem_peer *p, uint32_t op, uint64_t off, uint64_t len, uint64_t *error_off)
{
	int err = gmem_file_check_range(p->file, "request", off, len);

	if (err)
		return err;
	/* What was to release it was not read, because the next one was there already. */
	if (op == GMEM_PEER_HOLD && p->held)
		(void)release(p, p->off, p->len);
	switch (op) {
	case GMEM_PEER_HOLD:
		hold(p, off, len);
		return gmem_convert_check_pins(p->file, off, len, error_off);
	case GMEM_PEER_LOOK:
		return p->held ? gmem_foreign_look(p->file, off, len, NULL, error_off) : -EINVAL;
	case GMEM_PEER_MARK:
		return p->held ? gmem_convert_mark(p->file, off, len) : -EINVAL;
	case GMEM_PEER_POISON:
		return p->held ? gmem_file_mark_failing(p->file, off, len) : -EINVAL;
	case GMEM_PEER_RELEASE:
		return release(p, off, len);
	default:
		return gmem_err(-EINVAL, "request %u: unknown", op);
	}
}

static void answer(struct gmem_peer *p, int err, uint64_t error_off)
{
	p->page->error = err;
	p->page->error_off = error_off;
	snprintf(p->page->text, sizeof(p->page->text), "%s", err ? gmem_last_error() : "");
	atomic_store(&p->page->answer, p->seen);
	gmem_futex_wake(&p->page->answer);
}

/* What belongs to a request is read before it is looked at again: while that changes there is no request. */
static void take_request(struct gmem_peer *p, uint32_t request)
{
	uint64_t off = atomic_load(&p->page->off), len = atomic_load(&p->page->len), error_off = off;
	uint32_t op = request & GMEM_PEER_OP_MASK, whom = atomic_load(&p->page->whom);

	if (atomic_load(&p->page->request) != request)
		return;
	p->seen = request & ~GMEM_PEER_STOP;
	/* For who was here before: that one is not waited for, and nobody would release what we held for it. */
	if (op != GMEM_PEER_NONE && whom == p->incarnation) {
		int err = serve(p, op, off, len, &error_off);

		answer(p, err, error_off);
	}
}

void *gmem_peer_agent(void *peer)
{
	struct gmem_peer *p = peer;

	for (;;) {
		uint32_t request = atomic_load(&p->page->request);

		/* After the word was read: see gmem_peer_leave(). No view is left then. */
		if (atomic_load(&p->stop))
			break;
		if ((request & ~GMEM_PEER_STOP) != p->seen) {
			take_request(p, request);
			continue;
		}
		if (p->held && !gmem_peer_owner_lives(p))
			(void)release(p, p->off, p->len);
		if (!p->held && p->owed_len)
			pay(p);
		(void)gmem_futex_wait(&p->page->request, request,
				      p->held || p->owed_len ? GMEM_PEER_LOOK_NS : GMEM_FUTEX_FOR_EVER);
	}
	if (p->held)
		gmem_rwlock_unlock(&p->file->invalidate_lock);
	return NULL;
}
