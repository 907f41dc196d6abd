/* SPDX-License-Identifier: MIT */
/*
 * What is mapped in a process. Enters: a descriptor of /proc/PID/maps. Leaves: mappings, in the order of their
 * addresses. A walk owns nothing, and asks for no memory; two at a time need two descriptors. What changes during a
 * walk behind the place it has come to is not told again.
 */
#ifndef GMEM_SYS_MAPS_H
#define GMEM_SYS_MAPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct gmem_sys_mapping {
	uint64_t hva, end; /* half-open */
	uint64_t off, dev, ino; /* of the file, 0 if there is none */
	int prot; /* PROT_* */
	bool shared; /* MAP_SHARED */
};

struct gmem_sys_maps {
	int fd;
	bool text; /* no PROCMAP_QUERY here: the lines are read */
	bool files; /* only mappings of files are told */
	bool skip; /* the rest of a line that was told already */
	uint64_t at; /* whatever ends here or before was told */
	size_t pos, filled;
	char buf[8192];
};

/*
 * A descriptor to walk with; 0: this process alone, and not a child of it. -ENOENT (no such process, or no /proc),
 * -EACCES, -EMFILE.
 */
int gmem_sys_maps_open(pid_t pid);

/*
 * Does the descriptor tell of what is mapped when it is asked? By PROCMAP_QUERY it does. Where there is none it may be
 * an emulator's copy of the time it was opened.
 */
bool gmem_sys_maps_live(int fd);

/* Begins a walk at the first mapping that ends after `hva`. */
void gmem_sys_maps_begin(struct gmem_sys_maps *maps, int fd, uint64_t hva);
/* The next mapping. -ENOENT: there is none; other errors of ioctl(2) and read(2). */
int gmem_sys_maps_next(struct gmem_sys_maps *maps, struct gmem_sys_mapping *ret);

/*
 * Calls `fn` for each mapping of a file in a process until it returns something other than 0: that is returned. Errors
 * as those of gmem_sys_maps_open() and gmem_sys_maps_next().
 */
int gmem_sys_maps_each(pid_t pid, int (*fn)(void *opaque, const struct gmem_sys_mapping *map), void *opaque);

/* Calls `fn` for each process of /proc but this one, in the same way. */
int gmem_sys_processes_each(int (*fn)(void *opaque, pid_t pid), void *opaque);

#endif
