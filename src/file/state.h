/* SPDX-License-Identifier: MIT */
/*
 * The page-state table: one 32-bit word a page, in shared memory.
 *
 * Enters: page numbers. Leaves: what is known of them. The table is the crash-safe fill map: it lives in a memory
 * file of its own that the program, the keeper and the server all hold, so it says the truth whichever of them dies.
 * Words are read and changed with atomics and no lock; the LOCKED bit of a word *is* the page lock. A memory file has
 * holes, so a table for 1 TiB costs nothing until used.
 *
 *	ABSENT --lock--> ABSENT|LOCKED(generation) --bytes in the memory, then publish--> UPTODATE --continue--> mapped
 *	   |                    `--undo--> ABSENT
 *	   `--remove--> REMOVED <--remove-- UPTODATE
 *
 * A page lock of another generation belongs to a server that is dead (it was fenced before the generation was
 * raised): the page is unfilled, and nobody has seen its bytes, because it was never continued. A page that is
 * removed while it is locked is marked DOOMED; the holder of the lock drops it instead of publishing it. So does the
 * holder of one that is poisoned meanwhile. Removing a poisoned page heals it.
 *
 * Behind the words is a bitmap with a bit a page: set, the page is not on the side (shared or private) that the file's
 * pages began on. Bits are changed under the file's invalidate lock, exclusive, and read without a lock. Behind that is
 * a place for each peer, see peer.h; a hole in the file until there is one.
 */
#ifndef GMEM_FILE_STATE_H
#define GMEM_FILE_STATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "gmem.h"

#define GMEM_STATE_MAGIC 0x45544154534d4547ull /* "GEMSTATE" */
#define GMEM_STATE_VERSION 6u
#define GMEM_STATE_MAX_REGIONS 32u
#define GMEM_STATE_MAX_PEERS 32u
#define GMEM_STATE_JOURNAL_LEN 1024u /* bytes: 32 messages of a userfault descriptor */
#define GMEM_STATE_PEER_LEN 16384u /* bytes of the table's file for each: struct gmem_peer_page */

#define GMEM_WORD_CONTENT 0x3u /* mask */
#define GMEM_WORD_ABSENT 0x0u
#define GMEM_WORD_UPTODATE 0x1u
#define GMEM_WORD_REMOVED 0x2u
#define GMEM_WORD_POISONED (1u << 2) /* with ABSENT; with LOCKED too: it was filled when its memory failed */
#define GMEM_WORD_LOCKED (1u << 3)
#define GMEM_WORD_DOOMED (1u << 4) /* with LOCKED */
#define GMEM_WORD_GEN_SHIFT 8
#define GMEM_MAX_GENERATION ((1u << 24) - 1)

/*
 * A mapping of the file in the attached program, recorded there so that a new keeper can find everything in that
 * program alone.
 */
struct gmem_state_region {
	uint64_t hva, off, len; /* len 0: unmapped since */
	int32_t uffd; /* descriptor numbers in the program */
	int32_t fd;
};

/*
 * First page of the table's file. All but the atomics is written before the table is shared, or by the attached
 * program only.
 */
struct gmem_state_header {
	uint64_t magic;
	uint32_t version;
	uint32_t page_shift;
	uint64_t npages;
	uint64_t cookie; /* random: says that two descriptors belong together, see gmem_file_open() */
	uint64_t dev, ino; /* of the memory */
	_Atomic uint32_t generation; /* of the present server; 0 before the first */
	_Atomic uint32_t fill_wanted; /* somebody waits for the file to be complete */
	_Atomic int32_t server_pid;
	uint32_t image_region;
	_Atomic uint64_t server_start; /* its start time, clock ticks after boot: pid numbers are used again */
	_Atomic uint32_t nregions;
	_Atomic uint32_t note; /* gmem_server_set_note() */
	uint32_t init_private; /* pages begin private */
	uint32_t engine, flags; /* of the file: enum gmem_engine, GMEM_FILE_* */
	_Atomic uint32_t uses; /* GMEM_USE_*, see gmem_state_claim() */
	_Atomic uint32_t lost; /* some page is POISONED, or was: whoever maps or converts has to look for those */
	_Atomic uint32_t exported; /* gmem_file_fd() was: there may be mappings that are no views */
	_Atomic uint32_t peers; /* a bit each; see peer.h, as for what follows */
	_Atomic uint32_t converting; /* odd: a conversion runs */
	_Atomic int32_t owner_pid;
	_Atomic uint32_t owner_hidden; /* it converts, and cannot show that it lives */
	_Atomic uint64_t owner_pid_space;
	struct gmem_state_region regions[GMEM_STATE_MAX_REGIONS];
	uint64_t image_dev, image_ino,
		image_size; /* of the image, so that another file under its name is not taken for it */
	int64_t image_mtime_ns;
	char image_path[1024];
	/* GMEM_FILE_ANON: messages that a server has read and may not have applied yet, see anon.h. */
	_Alignas(8) char journal[GMEM_STATE_JOURNAL_LEN];
};

#define GMEM_STATE_HEADER_LEN 4096u
_Static_assert(sizeof(struct gmem_state_header) <= GMEM_STATE_HEADER_LEN, "state header");

struct gmem_state {
	struct gmem_state_header *header;
	_Atomic uint32_t *words;
	_Atomic uint64_t *flips; /* the bitmap of sides */
	_Atomic uint64_t *given; /* the bitmap of absent pages with memory given ahead */
	char *peers; /* the places of the peers */
	uint64_t npages;
	uint64_t map_len;
	bool init_private; /* what the header says, so that nobody can change it under us */
	int fd;
};

/* Makes a table for `npages` pages, all ABSENT. */
int gmem_state_create(struct gmem_state *s, uint64_t npages, bool init_private);
/* Maps an existing one; borrows and duplicates fd. -EPROTONOSUPPORT, -EINVAL. */
int gmem_state_open(struct gmem_state *s, int fd);
/*
 * The same in a file that the caller has, empty or not, and that nobody but servers can write to: no seal keeps it
 * whole. Both take fd on success.
 */
int gmem_state_create_in(struct gmem_state *s, int fd, uint64_t npages);
int gmem_state_open_in(struct gmem_state *s, int fd);
void gmem_state_close(struct gmem_state *s);

/* True if the server that a table names is alive. */
bool gmem_state_server_alive(const struct gmem_state *state);
/* Ends it, and waits for its end. 0 if none lives; -EPERM, -EBUSY (it does not end). */
int gmem_state_end_server(const struct gmem_state *state);
/*
 * Calls `found` for each descriptor of process `pid` that is a page-state table, by its number there, until it returns
 * something other than 0: that is returned. -ESRCH, -EACCES.
 */
int gmem_state_find(pid_t pid, int (*found)(void *opaque, int fd), void *opaque);

/* In the attached program: takes the note of a mapping that has gone out of the header. */
void gmem_state_forget_region(struct gmem_state *s, uint64_t hva, int uffd);

static inline uint32_t gmem_state_word(const struct gmem_state *s, uint64_t page)
{
	/* Pairs with the release in gmem_state_publish(): who sees UPTODATE sees the bytes. */
	return atomic_load_explicit(&s->words[page], memory_order_acquire);
}

static inline uint32_t gmem_word_content(uint32_t word)
{
	return word & GMEM_WORD_CONTENT;
}

/* A lock that a live holder of this generation has. */
static inline bool gmem_word_locked(uint32_t word, uint32_t generation)
{
	return (word & GMEM_WORD_LOCKED) && word >> GMEM_WORD_GEN_SHIFT == generation;
}

static inline bool gmem_state_poisoned(const struct gmem_state *s, uint64_t page)
{
	return gmem_state_word(s, page) & GMEM_WORD_POISONED;
}

/* Neither filled nor removed nor poisoned, whether or not somebody is at it. */
static inline bool gmem_word_absent(uint32_t word)
{
	return gmem_word_content(word) == GMEM_WORD_ABSENT && !(word & GMEM_WORD_POISONED);
}

/*
 * An absent page is given memory ahead (fallocate.c). False: it has been before. Shared memory that is asked for a
 * second time takes the page for written, and the library would take it for one that a mapping has filled.
 */
static inline bool gmem_state_give(struct gmem_state *s, uint64_t page)
{
	uint64_t bit = 1ull << page % 64;

	return !(atomic_fetch_or(&s->given[page / 64], bit) & bit);
}

/* The memory that was given is gone. Of pages nobody was given any the bitmap stays without memory. */
static inline void gmem_state_take_back(struct gmem_state *s, uint64_t page)
{
	uint64_t bit = 1ull << page % 64;

	if (atomic_load(&s->given[page / 64]) & bit)
		atomic_fetch_and(&s->given[page / 64], ~bit);
}

/* ---- attributes.c: shared and private */

static inline bool gmem_state_private(const struct gmem_state *s, uint64_t page)
{
	uint64_t word = atomic_load_explicit(&s->flips[page / 64], memory_order_acquire);

	return (bool)(word >> page % 64 & 1) != s->init_private;
}

/* Where the run of pages on the side of `page` ends, at most at `end`. */
uint64_t gmem_state_side_end(const struct gmem_state *s, uint64_t page, uint64_t end);
/* Invalidate lock held, exclusive. */
void gmem_state_set_side(struct gmem_state *s, uint64_t first, uint64_t end, bool private);

/*
 * What a memory is used for. A use that has begun stays for ever, because the memory may be anywhere by then, and keeps
 * out those that do not go with it:
 *
 *	             PEER  PRIVATE  GUEST  KEEPER  CHILD
 *	PEER          +       +       -       +      +	an object that gmem_file_open() made
 *	PRIVATE       +       +       +       -      -	pages that are, or were, private
 *	GUEST         -       +       +       -      -	a slot of a machine
 *	KEEPER        +       -       -       +      +	a keeper and its servers, or a program attached to one
 *	CHILD         +       -       -       +      +	a view in a forked child
 *
 * Who converts a page has to reach every view and pin of it. Peers answer (peer.h). A keeper has the program's raw
 * userfault descriptors, with which a page is mapped over its marker; a forked child has no thread that could answer.
 * A guest that meets an absent page asks this object who is to bring it in, and another one may have a pager too.
 */
#define GMEM_USE_PEER (1u << 0)
#define GMEM_USE_PRIVATE (1u << 1)
#define GMEM_USE_GUEST (1u << 2)
#define GMEM_USE_KEEPER (1u << 3)
#define GMEM_USE_CHILD (1u << 4)

static inline uint32_t gmem_use_excludes(uint32_t use)
{
	switch (use) {
	case GMEM_USE_PEER:
		return GMEM_USE_GUEST;
	case GMEM_USE_PRIVATE:
		return GMEM_USE_KEEPER | GMEM_USE_CHILD;
	case GMEM_USE_GUEST:
		return GMEM_USE_PEER | GMEM_USE_KEEPER | GMEM_USE_CHILD;
	default:
		return GMEM_USE_PRIVATE | GMEM_USE_GUEST;
	}
}

/* Begins one use. -EBUSY: one that does not go with it came first. */
int gmem_state_claim(struct gmem_state *s, uint32_t use);

static inline bool gmem_state_used(const struct gmem_state *s, uint32_t uses)
{
	return atomic_load(&s->header->uses) & uses;
}

/* ---- page locks */

enum gmem_state_lock {
	GMEM_STATE_LOCKED = 0, /* the caller holds the page lock; the page is ABSENT */
	GMEM_STATE_STALE = 1, /* so too, and a dead server may have left bytes in the page */
	GMEM_STATE_IN_PLACE = 2, /* UPTODATE or REMOVED */
	GMEM_STATE_BUSY = 3, /* locked by this generation */
	GMEM_STATE_BAD = 4, /* poisoned */
	GMEM_STATE_ABANDONED =
		5, /* the caller holds the lock of a page that is DOOMED: drop it and call gmem_state_unlock() */
};

/* Never waits. */
enum gmem_state_lock gmem_state_trylock(struct gmem_state *s, uint64_t page, uint32_t generation);
/*
 * Unlocks a page whose bytes are in place. False if it was doomed meanwhile: the lock is still held, drop the bytes
 * and unlock.
 */
bool gmem_state_publish(struct gmem_state *s, uint64_t page, uint32_t generation);
/* True if the caller's lock is still its own: a later generation may have taken it for a dead one's. */
bool gmem_state_owns(const struct gmem_state *s, uint64_t page, uint32_t generation);
/* Unlocks without publishing: ABSENT again, or REMOVED if it was doomed. A lock that is another's by now stays. */
void gmem_state_unlock(struct gmem_state *s, uint64_t page, uint32_t generation);
/* Unlocks a page whose bytes are lost. False as gmem_state_publish(). */
bool gmem_state_poison(struct gmem_state *s, uint64_t page, uint32_t generation);
/* The page's bytes are unwanted. False if it is locked and was doomed: its holder will drop it. */
bool gmem_state_remove(struct gmem_state *s, uint64_t page);
/* A page in place has got bytes: UPTODATE, where it was REMOVED. Invalidate lock held. */
void gmem_state_fill(struct gmem_state *s, uint64_t page);
/* The bytes of a page are gone for good, whatever it was; nobody else may be at it. */
void gmem_state_lose(struct gmem_state *s, uint64_t page);
/* So too, but somebody may be at it: who holds its lock will drop it, and it stays poisoned. */
void gmem_state_fail(struct gmem_state *s, uint64_t page);
/* The first page from `page` on whose word has memory: the others are ABSENT, and to read them would give them some. */
uint64_t gmem_state_next_used(const struct gmem_state *s, uint64_t page);
/* The first poisoned page of [page, end); `end`: none. */
uint64_t gmem_state_next_poisoned(const struct gmem_state *s, uint64_t page, uint64_t end);
/* An ABSENT, never locked page known to be zero needs no bytes: REMOVED. False if it is anything else by now. */
bool gmem_state_zero(struct gmem_state *s, uint64_t page);

#endif
