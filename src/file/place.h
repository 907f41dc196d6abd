/* SPDX-License-Identifier: MIT */
/*
 * What is mapped where a view was mapped: the program may unmap a part, map something of its own over it, protect it or
 * move it away, and the library keeps its hands off whatever is not the view's.
 *
 * Enters: a view and a range of it. Leaves: pieces, each the view's or not. Guarded by the file's invalidate lock,
 * exclusive; a walk owns a descriptor of /proc/self/maps until its end.
 */
#ifndef GMEM_FILE_PLACE_H
#define GMEM_FILE_PLACE_H

#include "file/file.h"
#include "sys/maps.h"

enum gmem_piece_kind {
	GMEM_PIECE_FILE, /* this part of the file */
	GMEM_PIECE_EMPTY, /* the empty file, which the library has mapped over it */
	GMEM_PIECE_OTHER, /* nothing, or the program's own */
};

struct gmem_piece {
	enum gmem_piece_kind kind;
	uint64_t off, len;
	int prot;
};

struct gmem_pieces {
	const struct gmem_view *view;
	uint64_t off, end;
	int fd; /* -1: nobody can look, and all is taken for the view's */
	bool ahead; /* `next` is a mapping that was read and not told */
	struct gmem_sys_mapping next;
	struct gmem_sys_maps maps;
};

/* Walks [off, off + len) of the view. Invalidate lock held, exclusive. -EMFILE, -ENFILE: end it all the same. */
int gmem_pieces_begin(struct gmem_pieces *pieces, const struct gmem_view *view, uint64_t off, uint64_t len);
/* The next piece; 1: there is one, 0: none, or the errors of looking. It may be changed before the next call. */
int gmem_pieces_next(struct gmem_pieces *pieces, struct gmem_piece *ret);
void gmem_pieces_end(struct gmem_pieces *pieces);

/* Opens what looking takes, as long as there is somebody to tell that it cannot be had. As gmem_pieces_begin(). */
int gmem_file_open_maps(struct gmem_file *file);
/* Nothing of the view is missing. 0, -EFAULT (no text), or the errors of looking. */
int gmem_view_check_whole(const struct gmem_view *view);
/*
 * Is a page of [off, off + len) mapped at an address where neither a view of the list nor `view`, which may be NULL,
 * nor the window is? 1, 0, or the errors of looking. Invalidate lock held, exclusive.
 */
int gmem_file_strayed(struct gmem_file *file, const struct gmem_view *view, uint64_t off, uint64_t len);
/*
 * Calls `fn` for each mapping of this process in [hva, hva + len), with the part that lies there, until it returns
 * something other than 0: that is returned. What changes behind it is not told again. Errors of looking, with text.
 */
int gmem_mappings_each(const void *hva, uint64_t len, int (*fn)(void *opaque, const struct gmem_sys_mapping *m),
		       void *opaque);
/* Unmaps what is the view's of [off, off + len). Remembers if some of it lives on elsewhere. */
void gmem_view_unmap_pieces(const struct gmem_view *view, uint64_t off, uint64_t len);

#endif
