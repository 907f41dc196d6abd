/* SPDX-License-Identifier: MIT */
/*
 * Which memory files hold the RAM of a running QEMU.
 *
 * Enters: a monitor and the process id. Leaves: for each memory backend its id, size, place in guest memory and an open
 * descriptor of the file behind it; or a refusal that names the backend and says how to start it instead. QEMU tells
 * each block's host address, /proc/PID/maps the file mapped there: two files of equal size cannot be confused. Who owns
 * it: the caller. No lock.
 */
#ifndef GMEM_LINK_RAM_H
#define GMEM_LINK_RAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct gmem_qmp;

struct gmem_ram_backend {
	char *id;
	char *type; /* "memory-backend-memfd" */
	uint64_t size;
	uint64_t gpa; /* of its first byte; UINT64_MAX if that byte is not visible to the guest */
	uint64_t hva; /* in QEMU */
	uint64_t off; /* in the file */
	int fd; /* read-only, close-on-exec; closed by gmem_ram_free() */
	bool canonical; /* its RAM block is called /objects/ID */
};

struct gmem_ram {
	struct gmem_ram_backend *backends;
	size_t n;
};

/*
 * -EOPNOTSUPP: a backend that is private, on huge pages, or whose pages QEMU would put into the stream; -EACCES:
 * /proc/PID is closed to this user; -ESRCH: `pid` is not this QEMU.
 */
int gmem_ram_find(struct gmem_qmp *qmp, pid_t pid, struct gmem_ram **ret);
void gmem_ram_free(struct gmem_ram *ram); /* NULL is allowed */

#endif
