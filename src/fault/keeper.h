/* SPDX-License-Identifier: MIT */
/*
 * The keeper: a process that holds what must outlive a page server, and gives it to one server at a time.
 *
 * Enters: files and an image before it runs, regions and userfault descriptors from the attached program, servers.
 * Leaves: all of that to the server it admits. Fence: a server is admitted when the one before it is dead by its
 * pidfd, or has said that it stopped; then the generation in every state table is raised. Single-threaded; no lock.
 */
#ifndef GMEM_FAULT_KEEPER_H
#define GMEM_FAULT_KEEPER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/un.h>

#include "fault/wire.h"
#include "file/file.h"
#include "gmem.h"

#define GMEM_KEEPER_MAX_FILES 32u
#define GMEM_KEEPER_MAX_UFFDS 32u
#define GMEM_KEEPER_MAX_REGIONS 256u
#define GMEM_KEEPER_MAX_CALLERS 8u

struct gmem_keeper_region {
	uint64_t hva, off, len;
	uint32_t file, uffd;
	bool user_mode_only;
};

struct gmem_keeper {
	char path[108];
	bool running; /* in this process: the socket at `path` is ours to remove */
	int listen_fd;
	int attach[2]; /* ours, the program's */
	struct gmem_file *files[GMEM_KEEPER_MAX_FILES];
	int locks[GMEM_KEEPER_MAX_FILES]; /* of the process that runs it, see gmem_keeper_lock() */
	uint32_t nfiles;
	int image_fd;
	int uffds[GMEM_KEEPER_MAX_UFFDS];
	uint32_t nuffds;
	struct gmem_keeper_region regions[GMEM_KEEPER_MAX_REGIONS];
	uint32_t nregions;
	int vm_pidfd, server, server_pidfd; /* -1: none */
	pid_t vm_pid, server_pid;
	bool attach_open, attach_deaf; /* deaf: the program does not read its answers and is not listened to */
	struct gmem_wire failed; /* type 0: the program has not failed */
	/* Connections that have not said yet what they want, -1: free; the oldest first. */
	int callers[GMEM_KEEPER_MAX_CALLERS];
};

/* The address of a keeper's socket; -ENAMETOOLONG. */
int gmem_keeper_address(const char *path, struct sockaddr_un *ret);

/* The keeper's number of the file whose memory is (dev, ino), or -ENOENT. */
int gmem_keeper_find_file(const struct gmem_keeper *keeper, uint64_t dev, uint64_t ino);

/*
 * One keeper a memory: two would each admit a server. An exclusive flock(2) of each state table, through a descriptor
 * of the running process's own, so that it goes with the process however that ends. -EBUSY.
 */
int gmem_keeper_lock(struct gmem_keeper *keeper);

/*
 * Takes a region into the keeper's books: checks it against the file. fd may be -1 if uffd names one it has. Takes
 * fd. 1: it has exactly this one. -EEXIST: one of the same descriptor that overlaps.
 */
int gmem_keeper_take_region(struct gmem_keeper *keeper, const struct gmem_wire *w, int fd, uint32_t *ret_uffd);

#endif
