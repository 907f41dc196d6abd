/* SPDX-License-Identifier: MIT */
/*
 * The program's side: registering its mappings before the first touch and handing them to the keeper.
 * Enters: mappings of guest memory files. Leaves: regions at the keeper, and a note of them in the state table. Used by
 * gmem_attach_view() and by the attach preload; the caller keeps calls apart.
 */
#ifndef GMEM_FAULT_ATTACH_H
#define GMEM_FAULT_ATTACH_H

#include <stdbool.h>
#include <stdint.h>

#include "fault/wire.h"
#include "file/state.h"

#define GMEM_ATTACH_MAX_FILES 32

struct gmem_attach_file {
	uint64_t dev, ino, len;
	struct gmem_state state;
};

struct gmem_attach {
	int sock; /* borrowed */
	int uffd; /* -1 until the first mapping; never closed: the program must hold it */
	uint32_t uffd_index;
	bool user_mode_only;
	uint32_t nfiles;
	struct gmem_attach_file files[GMEM_ATTACH_MAX_FILES];
};

/* Greets the keeper and maps the state tables it sends. -ECONNRESET, -EPROTO. */
int gmem_attach_open(int sock, struct gmem_attach *a);
void gmem_attach_close(struct gmem_attach *a);

/* The file a mapping of (dev, ino) belongs to, NULL if it is none of the keeper's. */
struct gmem_attach_file *gmem_attach_find(struct gmem_attach *a, uint64_t dev, uint64_t ino);

/* Registers [hva, hva + len), a mapping of `file` at `off` through descriptor fd, and hands it over. */
int gmem_attach_region(struct gmem_attach *a, struct gmem_attach_file *file, int fd, uint64_t hva, uint64_t off,
		       uint64_t len);

/* Tells the keeper that some memory could not be attached, and why; text from gmem_last_error(). */
void gmem_attach_failed(struct gmem_attach *a, int error);

#endif
