/* SPDX-License-Identifier: MIT */
/*
 * What is mapped in this process. Enters: a descriptor of /proc/self/maps. Leaves: mappings, in the order of their
 * addresses. A walk owns nothing; two at a time need two descriptors. What changes during a walk behind the place it
 * has come to is not told again.
 */
#ifndef GMEM_SYS_MAPS_H
#define GMEM_SYS_MAPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct gmem_sys_mapping {
	uint64_t hva, end; /* half-open */
	uint64_t off, dev, ino; /* of the file, 0 if there is none */
	int prot; /* PROT_* */
};

struct gmem_sys_maps {
	int fd;
	bool text; /* no PROCMAP_QUERY here: the lines are read */
	bool skip; /* the rest of a line that was told already */
	uint64_t at; /* whatever ends here or before was told */
	size_t pos, filled;
	char buf[8192];
};

/* A descriptor to walk with; of this process alone, and not of a child's. -ENOENT, -EACCES (no /proc), -EMFILE. */
int gmem_sys_maps_open(void);

/* Begins a walk at the first mapping that ends after `hva`. */
void gmem_sys_maps_begin(struct gmem_sys_maps *maps, int fd, uint64_t hva);
/* The next mapping. -ENOENT: there is none; other errors of ioctl(2) and read(2). */
int gmem_sys_maps_next(struct gmem_sys_maps *maps, struct gmem_sys_mapping *ret);

#endif
