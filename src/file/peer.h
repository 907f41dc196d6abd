/* SPDX-License-Identifier: MIT */
/*
 * Peers: objects that gmem_file_open() made of a memory, in other processes or in the same one. The object that made
 * the memory is its owner, and alone converts pages; a peer has a thread, its *agent*, that does for the peer's views
 * and pins what the owner asks for.
 *
 * Enters: what a conversion is about to do. Leaves: a page that no view of any peer shows, or why not. The owner writes
 * a request into the peer's place in the state table's file, the agent its answer; both sleep in futex(2) on it.
 *
 * To private, the owner holding its invalidate lock throughout:
 *
 *	HOLD	the agent takes its own object's invalidate lock, exclusive, and keeps it; -EAGAIN: a pin is there
 *	LOOK	only of a peer whose process the owner may not look at: it looks itself for mappings that are no views
 *	MARK	it marks its views, all or none
 *	RELEASE	once the sides are stored, or will not be: it brings its views to what the table says, and unlocks
 *
 * Until all hold nothing is marked, so a refused conversion disturbs nobody. To shared there are HOLD and RELEASE
 * alone: views follow after the sides are stored, so a peer that is late keeps its host out of too much, and never
 * lets it in to too much; one that does not answer, or cannot let it in, is not waited for and tries again by itself.
 *
 * Where memory fails (gmem_file_poison()) it is HOLD, POISON, which marks all views that can be, and RELEASE, once
 * the words say so and the memory is gone; nothing stops it. Who did not answer marks with RELEASE, too late to keep a
 * zero from being seen. When pages were healed there is RELEASE alone.
 *
 * Who died is not waited for: each has a lock on a byte of the table's file (sys/life.h). An agent whose owner dies
 * does as with RELEASE. A peer that lives and does not answer makes a conversion to private fail.
 *
 * Locks: the owner's members (struct gmem_round) are guarded by its invalidate lock, exclusive; the agent's are its
 * thread's own; `views` in the place by the peer's invalidate lock, exclusive. No thread has the invalidate locks of
 * two objects; an owner that has its own waits for agents that take theirs, and no holder of a peer's lock waits for
 * an owner.
 */
#ifndef GMEM_FILE_PEER_H
#define GMEM_FILE_PEER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "file/state.h"

struct gmem_file;
struct gmem_peer;
struct gmem_view;

#define GMEM_PEER_MAX_VIEWS 660u
#define GMEM_PEER_OWNER GMEM_STATE_MAX_PEERS /* the owner's byte; the peers have those before */
#define GMEM_PEER_LOOK_NS 50000000ull /* so often those who wait look whether the other one lives */

enum gmem_peer_op {
	GMEM_PEER_NONE,
	GMEM_PEER_HOLD,
	GMEM_PEER_LOOK,
	GMEM_PEER_MARK,
	GMEM_PEER_RELEASE,
	GMEM_PEER_POISON
};

#define GMEM_PEER_OP_BITS 3
#define GMEM_PEER_OP_MASK ((1u << GMEM_PEER_OP_BITS) - 1)
#define GMEM_PEER_STOP (1u << 31) /* toggled in a request, to wake the agent: no request */
#define GMEM_PEER_LEFT UINT32_MAX /* as an answer: there is no agent any more, and no view */

/* A mapping that is a view of the peer's. */
struct gmem_peer_view {
	_Atomic uint64_t hva, off, len; /* len 0: none */
};

/* A peer's place. What is not atomic belongs to who is to write next: the agent, until it has stored `answer`. */
struct gmem_peer_page {
	_Atomic uint32_t incarnation; /* of the place: who was there before is dead */
	_Atomic uint32_t request; /* a number that grows, and the operation */
	_Atomic uint64_t off, len; /* of the request; it is NONE while they change */
	_Atomic uint32_t whom; /* it is for, by incarnation: who comes meanwhile is not asked */
	_Atomic uint32_t answer; /* the request that is done */
	int32_t error;
	uint64_t error_off;
	char text[256];
	_Atomic int32_t pid; /* in its own namespace */
	_Atomic uint64_t pid_space;
	struct gmem_peer_view views[GMEM_PEER_MAX_VIEWS];
};

_Static_assert(sizeof(struct gmem_peer_page) <= GMEM_STATE_PEER_LEN, "a peer's place");

/* The owner's part. */
struct gmem_round {
	const char *who; /* began it, for texts */
	int life; /* its sign of life, or -1 before the first round */
	uint32_t seq; /* of the last request */
	uint32_t peers; /* a bit each: those who are asked */
	uint32_t stuck; /* those of them who did not answer */
	uint32_t incarnation[GMEM_STATE_MAX_PEERS];
};

static inline struct gmem_peer_page *gmem_peer_page(const struct gmem_state *s, unsigned int n)
{
	return (struct gmem_peer_page *)(void *)(s->peers + (uint64_t)n * GMEM_STATE_PEER_LEN);
}

/* ---- peer.c: a peer's life */

/*
 * Makes an object that was just opened a peer, and starts its agent. Waits while a conversion runs that does not know
 * it. With text: -ENOSPC, -EBUSY, -ENOMEM, -EMFILE, -EAGAIN.
 */
int gmem_peer_join(struct gmem_file *file);
/* Ends it; no reference to the object is left. Nothing to do for an object that is no peer. */
void gmem_peer_leave(struct gmem_file *file);

/* Tells of a view, of its new place or length, that it is going. Invalidate lock held, exclusive. -ENOSPC with text. */
int gmem_peer_publish(const struct gmem_view *view);
void gmem_peer_moved(const struct gmem_view *view, const void *from);
void gmem_peer_withdraw(const struct gmem_view *view);

/* ---- agent.c */

struct gmem_peer {
	struct gmem_file *file; /* whose it is */
	struct gmem_peer_page *page; /* a mapping of its own, by which the process is known: see foreign.c */
	int life;
	unsigned int number;
	uint32_t incarnation;
	pthread_t thread;
	_Atomic bool stop;
	/* The agent's own. */
	uint32_t seen; /* request */
	bool held;
	uint64_t off, len; /* of what it holds */
	uint64_t owed_off, owed_len; /* could not be let in yet; len 0: nothing */
};

void *gmem_peer_agent(void *peer);
bool gmem_peer_owner_lives(const struct gmem_peer *peer);

/* ---- round.c: the owner. Invalidate lock held, exclusive. */

/* Around each of these; `who` is for texts. -EMFILE and the like, with text. */
int gmem_round_enter(struct gmem_file *file, const char *who);
void gmem_round_leave(struct gmem_file *file);

/*
 * The steps of a conversion to private. On failure *ret_error_off is set where there is a place. Whatever hold says,
 * RELEASE is due. With text: the peers' own errors, -EBUSY for one that does not answer, and for a mapping that is no
 * view.
 */
int gmem_round_hold(struct gmem_file *file, uint64_t off, uint64_t len, uint64_t *ret_error_off);
int gmem_round_mark(struct gmem_file *file, uint64_t off, uint64_t len, uint64_t *ret_error_off);
/* To shared: nobody's pins are in the way, and who does not answer is not waited for. */
void gmem_round_hold_shared(struct gmem_file *file, uint64_t off, uint64_t len);
/* Both steps before memory that fails is dropped; the first error, when all has been done that can be. With text. */
int gmem_round_poison(struct gmem_file *file, uint64_t off, uint64_t len);
/* `wait`: until who can answer has done it. */
void gmem_round_release(struct gmem_file *file, uint64_t off, uint64_t len, bool wait);

/* ---- foreign.c */

/*
 * Looks for a mapping of [off, off + len) that is no view of this object or of a peer: in this process, and with
 * `ret_seen`, which is not NULL for the owner, in all others that it may look at; the peers among them are told there.
 * The views looked for must not change: the invalidate locks of this object and the peers are held. -EBUSY with text
 * and place.
 */
int gmem_foreign_look(struct gmem_file *file, uint64_t off, uint64_t len, uint32_t *ret_seen, uint64_t *ret_error_off);
/* The same of this process alone: 1, 0, or why nobody can look. */
int gmem_foreign_here(struct gmem_file *file, uint64_t off, uint64_t len);

#endif
