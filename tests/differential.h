/* SPDX-License-Identifier: MIT */
/*
 * What the parts of the differential test share. Two guest memory files of one geometry, the kernel engine's and the
 * user engine's, are a world. An operation is drawn, run on both sides, and its two answers are compared.
 */
#ifndef GMEM_TESTS_DIFFERENTIAL_H
#define GMEM_TESTS_DIFFERENTIAL_H

#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"

#define P 4096ull

#define NVIEWS 6u
#define NMAPS 4u
#define NDUPS 3u
#define NSLOTS 4u
#define MAP_ROOM (96 * P) /* of address space for one raw mapping */
#define GPA_SHIFT_OF_SLOT 24

enum { KERNEL, USER, SIDES };

/* The differences that are excused: their names and reasons are in differential.c, and in gmem_file(3). */
enum difference {
	SAME,
	DIFF_SIZE,
	DIFF_DESCRIPTOR_IO,
	DIFF_RESIZE,
	DIFF_FALLOCATE_FD,
	DIFF_PRIVATE_MAPPING,
	DIFF_RAW_MAPPING,
	DIFF_EXEC,
	DIFF_SYNC,
	DIFF_COLLAPSE,
	DIFF_MARKERS,
	DIFF_MAPPED_PAGES,
	DIFF_RESIDENT,
	DIFF_BOUND_TWICE,
	DIFF_OUT_OF_REACH,
	DIFF_NEEDS,
	NDIFFERENCES,
};

/* What one side answered. Everything in it is compared. */
struct answer {
	long ret; /* what was returned, or -errno */
	int sig, code; /* the signal an access ended in, and its si_code */
	uint64_t value[4]; /* what was given back; of a signal: where in the mapping, in value[0] */
	uint64_t sum; /* of bytes that were given back */
};

/* One raw mapping of the descriptor, inside its room: what is not mapped there is reserved. */
struct raw_map {
	char *room;
	bool mapped, shared;
	uint64_t off, len; /* what it shows; len is rounded up to pages */
	int prot;
};

struct side {
	int who;
	struct gmem_file *file; /* NULL: freed */
	struct gmem_view *view[NVIEWS];
	struct raw_map map[NMAPS];
	int dup[NDUPS]; /* -1: none */
	char *eye; /* a mapping of the whole file to compare its bytes by; NULL: not to be had */
	int vm; /* KVM side: the machine of the slots */
	struct gmem_vm *gvm; /* user side: what stands against it; both sides, in a world with accessors */
	struct gmem_vcpu *vcpu;
};

struct world {
	uint64_t npages;
	uint32_t flags; /* GMEM_FILE_* */
	bool slots; /* slots are compared with KVM's; else accessors of both files with each other */
	bool converts; /* the kernel converts pages in place */
	bool userfaults; /* the kernel's file takes them */
	bool policy; /* the kernel's file takes a memory policy */
	bool prepared; /* memory was allocated that nobody has written to */
	bool large; /* large pages may come in between: which pages have memory is not compared */
	struct side side[SIDES];
};

/* Drawn from the operation's number alone, so that any operations of a sequence can be run again without the others. */
struct args {
	uint64_t off, len; /* pages of the file mostly; also unaligned, empty, past the end, wrapping */
	uint64_t at, n; /* bytes inside something: reduced to it by who uses it */
	uint32_t which; /* view, mapping, ...: modulo how many there are */
	uint32_t kind; /* a variant of the operation */
	uint32_t byte;
	int prot;
	uint64_t more[4]; /* whatever else it takes */
};

/* After an excused difference the two sides are not equal any more. */
#define HEAL_BYTES (1u << 0) /* punch both files whole */
#define HEAL_STATES (1u << 1) /* the same by the library: no page is up to date then */
#define HEAL_VIEW (1u << 2) /* unmap the view */
#define HEAL_MAP (1u << 3) /* unmap the raw mapping */

struct operation {
	const char *name;
	unsigned int weight;
	/* NULL: whenever there is a file. */
	bool (*ready)(const struct world *w, const struct args *a);
	void (*run)(struct world *w, struct side *s, const struct args *a, struct answer *r);
	/* Why the answers may differ, and what is to be mended then; NULL: they may not. */
	enum difference (*excuse)(const struct world *w, const struct args *a, const struct answer *kernel,
				  const struct answer *user, unsigned int *heal);
	/* The kernel has nothing to compare with; NULL: it has. Run on neither side. */
	bool (*no_oracle)(const struct world *w, const struct args *a);
};

extern const struct operation diff_file_ops[], diff_view_ops[], diff_fd_ops[], diff_map_ops[], diff_slot_ops[];

/* ---- differential_util.c */

struct args diff_draw(uint64_t seed, uint64_t number, uint64_t npages);
bool diff_world_begin(struct world *w, uint64_t seed, uint64_t number);
void diff_world_end(struct world *w);
/* NULL, or what differs between the files in [off, off + len), in a static buffer. */
const char *diff_compare_bytes(struct world *w, uint64_t off, uint64_t len);
uint64_t diff_sum(const void *p, uint64_t len);
/* ret, or -errno. */
long diff_errno(long ret);

/*
 * Reads or writes [p, p + len) byte by byte; a signal ends it. `base` is what addresses are told from. Bytes written
 * are those of diff_pattern().
 */
void diff_read(const char *base, const char *p, uint64_t len, struct answer *r);
void diff_write(const char *base, char *p, uint64_t len, uint32_t byte, struct answer *r);
static inline unsigned char diff_pattern(uint32_t byte, uint64_t i)
{
	return (unsigned char)(byte + i * 7 + i / P);
}

/* The mappings of a raw room go, the room stays. */
void diff_map_reset(struct raw_map *m);

static inline bool diff_private(const struct world *w)
{
	return w->flags & GMEM_FILE_INIT_PRIVATE;
}

static inline bool diff_unmapped(const struct world *w)
{
	return w->flags & GMEM_FILE_NO_MMAP;
}

static inline struct gmem_view *diff_view(const struct side *s, const struct args *a)
{
	return s->view[a->which % NVIEWS];
}

static inline bool diff_have_view(const struct world *w, const struct args *a)
{
	return diff_view(&w->side[KERNEL], a) && diff_view(&w->side[USER], a);
}

#endif
