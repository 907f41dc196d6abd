/* SPDX-License-Identifier: MIT */
/*
 * What the measuring programs share: rounds, statistics, the environment, a table and a JSON file.
 *
 * Every program measures a baseline and ours by turns in the same run. A ratio is taken round by round and
 * its median told, so that a machine that changes its speed meanwhile changes both. Nothing here passes or
 * fails on time; wrong bytes end the program.
 */
#ifndef GMEM_BENCH_H
#define GMEM_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define BENCH_PAGE 4096u
#define BENCH_MAX_ROUNDS 64
#define BENCH_MAX_ROWS 128
#define BENCH_MAX_TARGETS 16

/* One measured quantity: a value a round. Its name is "GROUP: WHAT" or "WHAT". */
struct bench_row {
	char name[96];
	const char *unit;
	const struct bench_row *baseline; /* NULL: is one, or has none */
	double v[BENCH_MAX_ROUNDS];
	unsigned int n;
};

struct bench_target {
	char what[160];
	const struct bench_row *row;
	double limit; /* of the ratio to the row's baseline */
	bool at_least; /* else at most */
	bool absolute; /* `limit` is of the row itself, in its unit */
};

struct bench {
	const char *name;
	const char *dir; /* of scratch files and of NAME.json */
	unsigned int rounds, mib;
	struct bench_row rows[BENCH_MAX_ROWS];
	struct bench_target targets[BENCH_MAX_TARGETS];
	unsigned int nrows, ntargets;
};

/* "[-f] [-r ROUNDS] [-m MIB] FOLDER"; -f takes real-time priority, for machines that have other work to do. Prints the
 * environment. Ends the program on a wrong argument. */
void bench_begin(struct bench *b, const char *name, unsigned int mib, int argc, char **argv);
struct bench_row *bench_row(struct bench *b, const char *unit, const struct bench_row *baseline, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
void bench_add(struct bench_row *row, double v);
void bench_target(struct bench *b, const struct bench_row *row, bool at_least, double limit, const char *fmt, ...)
	__attribute__((format(printf, 5, 6)));
/* A limit of the row's median itself, for what has no baseline that says how good it could be. */
void bench_target_absolute(struct bench *b, const struct bench_row *row, bool at_least, double limit, const char *fmt,
			   ...) __attribute__((format(printf, 5, 6)));
/* Prints the table and the targets and writes FOLDER/NAME.json. Returns the exit status. */
int bench_end(struct bench *b);

double bench_now(void); /* seconds */
_Noreturn void bench_die(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Data that can be checked. No page of it is zero, no two are alike. `half`: compresses to about a half; else not. */
void bench_page(uint64_t page, bool half, void *buf);
uint64_t bench_first_word(uint64_t page);
/* A file of such pages in FOLDER, on disk and in the page cache. Returns its descriptor. */
int bench_raw_file(const struct bench *b, const char *name, bool half, char *path, size_t path_len);
/* Reads all of it: from then on it is in the page cache. */
void bench_warm(int fd);
const char *bench_map_file(int fd, size_t len); /* mapped and populated */

int bench_memfd(size_t len);
int bench_uffd_open(bool blocking);
void bench_uffd_register(int uffd, void *addr, size_t len);

/* Another process that maps a memory file, registers it and hands its descriptor over. `run` is called there when
 * bench_peer_go() is. */
struct bench_peer {
	pid_t pid;
	int sock, uffd;
	uint64_t hva;
	double seconds; /* what `run` returned */
};
void bench_peer_start(struct bench_peer *peer, int memfd, size_t len, bool blocking,
		      double (*run)(void *addr, void *arg), void *arg);
void bench_peer_go(struct bench_peer *peer); /* waits for the end */

#endif
