/* SPDX-License-Identifier: MIT */
/*
 * What is where a view was mapped. A view's addresses are the program's too: it may munmap(2) a part, mmap(2) something
 * over it, mprotect(2) it, and mremap(2) it away. /proc/self/maps tells: PROCMAP_QUERY one mapping (Linux 6.11), before
 * that the lines. Where there is no /proc nobody can look, and the place is taken for the view's as a whole.
 */
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "file/gate.h"
#include "file/place.h"

static bool not_to_be_had(int err)
{
	return err == -ENOENT || err == -EACCES || err == -EPERM || err == -ENOTDIR;
}

int gmem_file_open_maps(struct gmem_file *file)
{
	int fd;

	/* A forked child's copy of the descriptor tells of its parent. */
	if (file->maps_fd >= 0 || !gmem_file_ours(file))
		return 0;
	fd = gmem_sys_maps_open(0);
	if (fd < 0)
		return not_to_be_had(fd) ? 0 : fd;
	file->maps_fd = fd;
	file->maps_live = gmem_sys_maps_live(fd);
	return 0;
}

static int begin(const struct gmem_file *file, int *ret_fd)
{
	bool have = gmem_file_ours(file) && file->maps_fd >= 0;
	int fd = have && file->maps_live ? file->maps_fd : gmem_sys_maps_open(0);

	/* Without descriptors the old one will do: a kernel's is read anew. */
	if (have && fd < 0)
		fd = file->maps_fd;
	*ret_fd = fd < 0 ? -1 : fd;
	return fd >= 0 || not_to_be_had(fd) ? 0 : fd;
}

static void end(const struct gmem_file *file, int fd)
{
	if (fd >= 0 && !(gmem_file_ours(file) && fd == file->maps_fd))
		close(fd);
}

int gmem_pieces_begin(struct gmem_pieces *pieces, const struct gmem_view *view, uint64_t off, uint64_t len)
{
	int err = begin(view->file, &pieces->fd);

	pieces->view = view;
	pieces->off = off;
	pieces->end = off + len;
	pieces->ahead = false;
	if (pieces->fd >= 0)
		gmem_sys_maps_begin(&pieces->maps, pieces->fd, (uint64_t)(uintptr_t)gmem_view_at(view, off));
	return err;
}

void gmem_pieces_end(struct gmem_pieces *pieces)
{
	end(pieces->view->file, pieces->fd);
}

static bool shows(const struct gmem_sys_mapping *m, uint64_t dev, uint64_t ino, uint64_t hva, uint64_t off)
{
	return m->ino == ino && m->dev == dev && m->off + (hva - m->hva) == off;
}

static enum gmem_piece_kind kind_of(const struct gmem_view *view, const struct gmem_sys_mapping *m, uint64_t off)
{
	const struct gmem_file *file = view->file;
	uint64_t hva = (uint64_t)(uintptr_t)gmem_view_at(view, off);

	if (shows(m, file->state.header->dev, file->state.header->ino, hva, off))
		return GMEM_PIECE_FILE;
	if (file->empty_fd >= 0 && shows(m, file->empty_dev, file->empty_ino, hva, off))
		return GMEM_PIECE_EMPTY;
	return GMEM_PIECE_OTHER;
}

/*
 * What the program has unmapped of a view may be a later one's by now, of the same pages even: one before it in the
 * list. Is `off` of such a one? *to is brought to where that ends. One that is not in the list was mapped just now.
 */
static bool newer_at(const struct gmem_view *view, uint64_t off, uint64_t *to)
{
	const struct gmem_view *v = view->file->views;
	uint64_t at = (uintptr_t)view->addr - view->off;

	while (v && v != view)
		v = v->next;
	if (!v)
		return false;
	for (v = view->file->views; v != view; v = v->next) {
		if ((uintptr_t)v->addr - v->off != at || v->off + v->len <= off || v->off >= *to)
			continue;
		if (v->off > off) {
			*to = v->off;
			continue;
		}
		*to = gmem_min_u64(*to, v->off + v->len);
		return true;
	}
	return false;
}

int gmem_pieces_next(struct gmem_pieces *pieces, struct gmem_piece *ret)
{
	uint64_t hva = (uint64_t)(uintptr_t)gmem_view_at(pieces->view, pieces->off), to = pieces->end;
	struct gmem_sys_mapping *m = &pieces->next;
	int err;

	if (pieces->off >= pieces->end)
		return 0;
	*ret = (struct gmem_piece){ .kind = GMEM_PIECE_OTHER, .off = pieces->off };
	if (pieces->fd < 0) {
		ret->kind = GMEM_PIECE_FILE;
		ret->prot = pieces->view->prot;
	} else {
		err = pieces->ahead ? 0 : gmem_sys_maps_next(&pieces->maps, m);
		if (err && err != -ENOENT)
			return err;
		pieces->ahead = !err && m->hva > hva;
		if (!err) {
			to = gmem_min_u64(to, pieces->off + ((pieces->ahead ? m->hva : m->end) - hva));
			if (!pieces->ahead) {
				ret->kind = kind_of(pieces->view, m, pieces->off);
				ret->prot = m->prot;
			}
		}
	}
	if (ret->kind != GMEM_PIECE_OTHER) {
		uint64_t mapped_to = to;

		if (newer_at(pieces->view, pieces->off, &to))
			ret->kind = GMEM_PIECE_OTHER;
		/* The rest of this mapping is the next piece. */
		pieces->ahead = pieces->fd >= 0 && to < mapped_to;
	}
	ret->len = to - pieces->off;
	pieces->off = to;
	return 1;
}

int gmem_view_check_whole(const struct gmem_view *view)
{
	struct gmem_pieces pieces;
	struct gmem_piece piece;
	int err = gmem_pieces_begin(&pieces, view, view->off, view->len), got = 0;

	while (!err && (got = gmem_pieces_next(&pieces, &piece)) > 0)
		if (piece.kind == GMEM_PIECE_OTHER)
			err = -EFAULT;
	gmem_pieces_end(&pieces);
	return err ? err : got;
}

static bool shows_at(const struct gmem_view *view, uint64_t hva, uint64_t off)
{
	return view && off >= view->off && off < view->off + view->len &&
	       hva == (uint64_t)(uintptr_t)gmem_view_at(view, off);
}

/* Where what the library knows of a mapping of the file at `off` to be at `hva` ends, in the file; `off`: nothing. */
static uint64_t known_to(const struct gmem_file *file, const struct gmem_view *also, uint64_t hva, uint64_t off)
{
	uint64_t window = (uint64_t)(uintptr_t)gmem_file_window_place(file);
	uint64_t lens = (uint64_t)(uintptr_t)gmem_hugetlb_lens_place(file);

	if ((window && hva == window + off) || (lens && hva == lens + off))
		return file->len;
	if (gmem_gates_known_to(file, hva, off) > off)
		return gmem_gates_known_to(file, hva, off);
	if (shows_at(also, hva, off))
		return also->off + also->len;
	for (const struct gmem_view *view = file->views; view; view = view->next)
		if (shows_at(view, hva, off))
			return view->off + view->len;
	return off;
}

/*
 * Mappings that the program has made of the descriptor are found too, for nothing tells them from a view's part that
 * was moved.
 */
int gmem_file_strayed(struct gmem_file *file, const struct gmem_view *view, uint64_t off, uint64_t len)
{
	struct gmem_sys_mapping m;
	struct gmem_sys_maps maps;
	uint64_t end_off = gmem_min_u64(off + len, file->len);
	int fd, err = begin(file, &fd);
	bool strayed = false;

	if (fd >= 0)
		gmem_sys_maps_begin(&maps, fd, 0);
	while (fd >= 0 && !err && !strayed) {
		uint64_t at, to, known;

		err = gmem_sys_maps_next(&maps, &m);
		if (err || m.ino != file->state.header->ino || m.dev != file->state.header->dev)
			continue;
		at = gmem_max_u64(off, m.off);
		to = gmem_min_u64(end_off, m.off + (m.end - m.hva));
		for (; at < to && !strayed; at = known) {
			known = known_to(file, view, m.hva + (at - m.off), at);
			strayed = known == at;
		}
	}
	end(file, fd);
	/* Or it is a view of another object of this process, of which its place tells. */
	if (strayed && atomic_load(&file->state.header->peers) && !gmem_foreign_here(file, off, end_off - off))
		strayed = false;
	return strayed ? 1 : err == -ENOENT ? 0 : err;
}

/*
 * To take a part out of the middle of a mapping is to have one more, of which there may be too many (-ENOMEM): then it
 * stays, and is no view's.
 */
static void unmap(const struct gmem_view *view, uint64_t off, uint64_t len)
{
	if (munmap(gmem_view_at(view, off), len))
		view->file->torn = true;
}

void gmem_view_unmap_pieces(const struct gmem_view *view, uint64_t off, uint64_t len)
{
	uint64_t gap = UINT64_MAX, gap_end = 0;
	struct gmem_pieces pieces;
	struct gmem_piece piece;
	int err = gmem_pieces_begin(&pieces, view, off, len), got = 0;

	while (!err && (got = gmem_pieces_next(&pieces, &piece)) > 0) {
		if (piece.kind != GMEM_PIECE_OTHER) {
			unmap(view, piece.off, piece.len);
			continue;
		}
		gap = gmem_min_u64(gap, piece.off);
		gap_end = piece.off + piece.len;
	}
	/* Nobody can look now, and what stays mapped would show what becomes private. */
	if (err || got < 0)
		unmap(view, pieces.off, pieces.end - pieces.off);
	gmem_pieces_end(&pieces);
	/* The view will not be there to miss it. What cannot be looked for may well be so. */
	if (gap < gap_end && gmem_file_strayed(view->file, NULL, gap, gap_end - gap))
		view->file->torn = true;
}

int gmem_mappings_each(const void *hva, uint64_t len, int (*fn)(void *opaque, const struct gmem_sys_mapping *m),
		       void *opaque)
{
	uint64_t from = (uintptr_t)hva, to = from + len;
	int fd = gmem_sys_maps_open(0), err = 0;
	struct gmem_sys_mapping m;
	struct gmem_sys_maps maps;

	if (fd < 0)
		return gmem_err_sys(fd, "/proc/self/maps");
	gmem_sys_maps_begin(&maps, fd, from);
	while (!err && !(err = gmem_sys_maps_next(&maps, &m)) && m.hva < to) {
		if (m.hva < from) {
			m.off += from - m.hva;
			m.hva = from;
		}
		m.end = gmem_min_u64(m.end, to);
		err = fn(opaque, &m);
	}
	close(fd);
	return err == -ENOENT ? 0 : err;
}
