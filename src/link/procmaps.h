/* SPDX-License-Identifier: MIT */
/*
 * The mappings of a process, from /proc/PID/maps, and the files behind them.
 *
 * Enters: a process id. Leaves: mappings in address order, descriptors. Who owns it: the caller. No lock.
 */
#ifndef GMEM_LINK_PROCMAPS_H
#define GMEM_LINK_PROCMAPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct gmem_procmap {
	uint64_t start, end; /* hva */
	uint64_t off; /* in the file */
	dev_t dev;
	ino_t inode; /* 0: anonymous */
	bool shared;
};

struct gmem_procmaps {
	struct gmem_procmap *maps;
	size_t n;
	pid_t pid;
};

/* -ESRCH (no such process), -EACCES (another user's). */
int gmem_procmaps_read(pid_t pid, struct gmem_procmaps **ret);
void gmem_procmaps_free(struct gmem_procmaps *maps); /* NULL is allowed */

/* The mapping that holds `hva`, or NULL. */
const struct gmem_procmap *gmem_procmaps_find(const struct gmem_procmaps *maps, uint64_t hva);

/* Opens the file behind a mapping, read-only. -EACCES, -ENOENT (no way to it is left). */
int gmem_procmaps_open(const struct gmem_procmaps *maps, const struct gmem_procmap *map, int *ret_fd);

#endif
