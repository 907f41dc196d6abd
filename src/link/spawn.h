/* SPDX-License-Identifier: MIT */
/*
 * Starting the program whose memory is restored. Enters: an argv, descriptors to inherit, the preload. Leaves: a
 * child of this process. Who owns it: the caller waits for it. No lock.
 */
#ifndef GMEM_LINK_SPAWN_H
#define GMEM_LINK_SPAWN_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct gmem_spawn {
	char *const *argv;
	const char *cwd; /* NULL: stay */
	const char *preload; /* path of libgmem-attach.so, NULL: none */
	int attach_fd; /* with preload: gmem_keeper_attach_fd() */
	const int *keep; /* descriptors that the program inherits under the same numbers */
	size_t nkeep;
};

/* Starts it. The errors of execve(2), with the program's name: -ENOENT, -EACCES; also -EAGAIN, -ENOMEM. */
int gmem_spawn(const struct gmem_spawn *spawn, pid_t *ret);

/* The attach preload: beside the running program (a build folder), else in `libdir`. -ENOENT. */
int gmem_spawn_find_preload(const char *libdir, char *buf, size_t len);

/* True if somebody listens on the UNIX stream socket at `path`. He sees a connection that closes at once. */
bool gmem_spawn_listened(const char *path);

/*
 * A listening UNIX stream socket at `path`, mode 0600; a leftover is replaced. Returns the descriptor
 * (close-on-exec).
 */
int gmem_spawn_listen(const char *path);

#endif
