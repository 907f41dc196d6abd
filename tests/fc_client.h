/* SPDX-License-Identifier: MIT */
/*
 * A stand-in for Firecracker restoring a snapshot, in a process of its own: it maps guest memory as each release does,
 * registers it, sends that release's handshake, and then does what a guest and its balloon do, comparing every byte it
 * sees with what it has to be. Or it lies, in many ways.
 *
 *	struct fc_options o = { .path = sock, .version = FC_1_12, .sizes = { 64 << 20 }, .bytes_fd = snapshot };
 *	struct fc_client *c = fc_start(&o);
 *
 *	CHECK_EQ(fc_read(c, 0, 64 << 20), 0);
 *	fc_balloon(c, 0, 1 << 20);		(zero from now on)
 *	fc_write(c, 1 << 20, 4096, 'x');
 *	CHECK_EQ(fc_read(c, 0, 64 << 20), 0);
 *	fc_end(c);
 *
 * Offsets are those of the snapshot's memory file, which is what the regions lie in one behind the other. Ranges may
 * lie across regions.
 */
#ifndef GMEM_TESTS_FC_CLIENT_H
#define GMEM_TESTS_FC_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define FC_MAX_REGIONS 8u
#define FC_MAX_FDS 60u
#define FC_HUGE (UINT64_C(2) << 20)

/* Which fields there are in the handshake: the first release that sends them. */
enum fc_version {
	FC_1_1, /* base_host_virt_addr, size, offset; the socket is closed behind it */
	FC_1_7, /* and page_size_kib, in bytes; the same */
	FC_1_12, /* and page_size; the socket stays open */
	FC_GUEST_MEMFD, /* and gpa_start and is_guest_memfd; three descriptors */
};

enum fc_lie {
	FC_HONEST,
	/* In the text. What the server can see by itself comes before what only the kernel knows. */
	FC_SIZE_ZERO,
	FC_UNALIGNED, /* an address in the middle of a page */
	FC_SIZE_UNALIGNED,
	FC_OFFSET_UNALIGNED,
	FC_WRAPS, /* an address whose range ends past 2^64 */
	FC_NEGATIVE,
	FC_HUGE_NUMBER, /* a size of 2^80 */
	FC_FRACTION, /* a size of 4096.5 */
	FC_STRING, /* a size of "4096" */
	FC_OVERLAP, /* two regions at one address */
	FC_OFFSETS_OVERLAP,
	FC_NO_SIZE, /* the field is not there */
	FC_TWICE, /* the field is there twice */
	FC_PAGE_SIZES_DISAGREE,
	FC_PAGE_SIZE_ODD, /* 12345 */
	FC_PAGE_SIZES_MIXED, /* of two regions */
	FC_NO_REGIONS,
	FC_MANY_REGIONS, /* 1025 */
	FC_NOT_OBJECTS, /* an array of numbers */
	FC_NESTED, /* an unknown field of 100,000 brackets */
	FC_MANY_VALUES, /* an unknown field of 100,000 numbers */
	FC_GARBAGE, /* no JSON, from the first byte on */
	FC_BAD_JSON, /* no JSON, seen at its end */
	FC_TOO_LONG, /* two MiB of text */
	/* In the descriptors. */
	FC_NO_FD,
	FC_TWO_FDS,
	FC_TEN_FDS,
	FC_SIXTY_FDS,
	FC_DEV_NULL, /* instead of the userfaultfd */
	FC_MEMFD,
	FC_NO_API, /* a userfaultfd on which UFFDIO_API was not done */
	FC_FORK_EVENTS, /* a userfaultfd whose events carry descriptors */
	/* In what it does. */
	FC_SILENT, /* says nothing, and stays */
	FC_HANGS_UP, /* at once */
	FC_HALF, /* hangs up in the middle of its text */
	FC_HALF_SILENT, /* says half of it, and stays */
	/* Seen by the kernel alone: the handshake is good. */
	FC_SIZE_TOO_LARGE, /* twice what is mapped and registered */
	FC_PAST_SOURCE, /* offsets beyond the end of the memory file */
	FC_NOT_MAPPED, /* another region of 1 MiB, where nothing is mapped */
	FC_BLOCKING, /* the userfaultfd is not O_NONBLOCK */
	FC_LIES
};
#define FC_FIRST_FD_LIE FC_NO_FD
#define FC_FIRST_DEED FC_SILENT
#define FC_FIRST_UNSEEN FC_SIZE_TOO_LARGE

struct fc_options {
	const char *path; /* of the server's socket */
	enum fc_version version;
	enum fc_lie lie;
	uint64_t sizes[FC_MAX_REGIONS]; /* of the regions; 0 ends them */
	bool huge; /* in pages of 2 MiB */
	bool no_balloon; /* no EVENT_REMOVE, as early releases without the device */
	int bytes_fd; /* what the memory is to read as, from the server; at least as long as all regions */

	/* How the handshake goes out. */
	size_t piece; /* bytes of each send(2); 0: all in one */
	size_t fds_with; /* with which of them the descriptors go; past the last: with a blank behind it */
	unsigned int late_ms; /* before the one with the descriptors */
	unsigned int pause_us; /* before every other */
	bool again; /* the whole text is sent once more, with the descriptors */
	size_t padding; /* bytes of an unknown field */
};

/* ---- The handshake alone. */

/* The text, of regions that lie at these addresses; the caller frees it. */
char *fc_text(const struct fc_options *o, const uint64_t *hvas, size_t *ret_len);
/* Sends it as the options say. False if the other side has gone. */
bool fc_send(int sock, const struct fc_options *o, const char *text, size_t len, const int *fds, size_t nfds);
/* Bytes with descriptors, as they are. */
ssize_t fc_send_part(int sock, const void *bytes, size_t len, const int *fds, size_t nfds);
/* A userfaultfd as Firecracker makes it, or -errno. */
int fc_uffd(uint64_t features, bool nonblocking);

/* ---- The process. */

struct fc_client;

/*
 * Starts it, and returns when the handshake has been sent (or not, as the lie has it). Skips the case where there are
 * no userfaultfds, or no huge pages; fails it if nobody listens.
 */
struct fc_client *fc_start(const struct fc_options *o);
pid_t fc_pid(const struct fc_client *c);

/*
 * One thread compares every byte of the range with what it must be, of the snapshot, zero or written. Returns 0, or
 * -EILSEQ for a wrong byte: fc_offset() says where.
 */
int fc_read(struct fc_client *c, uint64_t off, uint64_t len);
/* Bytes that depend on the offset and `seed`. */
int fc_write(struct fc_client *c, uint64_t off, uint64_t len, uint32_t seed);
/* A system call's copy out of guest memory, to be compared. -EFAULT: it could not be had. */
int fc_syscall(struct fc_client *c, uint64_t off, uint64_t len);
/* MADV_DONTNEED of whole pages: zero from then on. Returns when the kernel has, which is when it was read of. */
int fc_balloon(struct fc_client *c, uint64_t off, uint64_t len);
/*
 * `nthreads` at once touch, write to and balloon pages at random, each its own pages, `nops` times each, then compare
 * them all. With a balloon where the client has one.
 */
int fc_storm(struct fc_client *c, unsigned int nthreads, unsigned int nops, uint64_t seed);
/* Has the server hung up? 1 or 0; never of those that closed their side. */
int fc_hung_up(struct fc_client *c);

/* Any of these in two halves, for servers that die in between: what it was begun with, and its answer. */
enum fc_op { FC_READ, FC_WRITE, FC_SYSCALL, FC_BALLOON, FC_STORM, FC_HUNG_UP, FC_END };
void fc_begin(struct fc_client *c, enum fc_op op, uint64_t off, uint64_t len, uint64_t seed);
/* 1: the answer is there within that time, and in *ret; 0: not yet. */
int fc_wait(struct fc_client *c, int timeout_ms, int *ret);
/* Where the last comparison found a wrong byte. */
uint64_t fc_offset(const struct fc_client *c);

/* It exits, and its memory and descriptors go. */
void fc_end(struct fc_client *c);
/* Killed at whatever it does. */
void fc_kill(struct fc_client *c);

#endif
