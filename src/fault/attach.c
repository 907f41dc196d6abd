/* SPDX-License-Identifier: MIT */
#include "fault/attach.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "fault/serve_view.h"
#include "file/file.h"
#include "gmem.h"
#include "sys/uffd.h"

int gmem_attach_open(int sock, struct gmem_attach *a)
{
	struct gmem_wire w = { .type = GMEM_WIRE_HELLO };
	int fds[GMEM_WIRE_MAX_FDS];
	int err = gmem_wire_send(sock, &w, NULL, 0);

	*a = (struct gmem_attach){ .sock = sock, .uffd = -1 };
	while (!err) {
		struct gmem_attach_file *f = &a->files[a->nfiles];

		err = gmem_wire_recv(sock, &w, fds, NULL);
		if (err || w.type == GMEM_WIRE_DONE)
			break;
		if (w.type != GMEM_WIRE_FILE || a->nfiles == GMEM_ATTACH_MAX_FILES) {
			err = -EPROTO;
		} else {
			*f = (struct gmem_attach_file){ .dev = w.dev, .ino = w.ino, .len = w.len };
			err = gmem_state_open(&f->state, fds[0]);
			if (!err)
				a->nfiles++;
		}
		for (int i = 0; i < GMEM_WIRE_MAX_FDS; i++)
			if (fds[i] >= 0)
				close(fds[i]);
	}
	if (err) {
		gmem_attach_close(a);
		return gmem_err_sys(err, "attach: the keeper does not answer");
	}
	return 0;
}

void gmem_attach_close(struct gmem_attach *a)
{
	for (uint32_t i = 0; i < a->nfiles; i++)
		gmem_state_close(&a->files[i].state);
	a->nfiles = 0;
}

struct gmem_attach_file *gmem_attach_find(struct gmem_attach *a, uint64_t dev, uint64_t ino)
{
	for (uint32_t i = 0; i < a->nfiles; i++)
		if (a->files[i].dev == dev && a->files[i].ino == ino)
			return &a->files[i];
	return NULL;
}

/*
 * Where in the header a mapping is noted: where it stood before, in the place of one that has gone, or behind the
 * others. NULL: no room.
 */
static struct gmem_state_region *place_for(const struct gmem_attach *a, struct gmem_state_header *h, uint64_t hva,
					   uint64_t off, uint64_t len)
{
	uint32_t n = (uint32_t)gmem_min_u64(atomic_load(&h->nregions), GMEM_STATE_MAX_REGIONS);
	struct gmem_state_region *free_one = n < GMEM_STATE_MAX_REGIONS ? &h->regions[n] : NULL;

	for (uint32_t i = 0; i < n; i++) {
		struct gmem_state_region *r = &h->regions[i];

		if (r->len == len && r->hva == hva && r->off == off && r->uffd == a->uffd)
			return r;
		if (!r->len)
			free_one = r;
	}
	return free_one;
}

/* So that a new keeper finds everything in this process alone. The length, and the number, are published last. */
static void note_region(struct gmem_attach *a, struct gmem_state_header *h, struct gmem_state_region *r, int fd,
			uint64_t hva, uint64_t off, uint64_t len)
{
	uint32_t number = (uint32_t)(r - h->regions);

	if (number < atomic_load(&h->nregions) && r->len)
		return;
	r->hva = hva;
	r->off = off;
	r->uffd = a->uffd;
	r->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	__atomic_store_n(&r->len, len, __ATOMIC_RELEASE);
	if (number == atomic_load(&h->nregions))
		atomic_store_explicit(&h->nregions, number + 1, memory_order_release);
}

static int hand_over(struct gmem_attach *a, struct gmem_attach_file *file, bool new_uffd, uint64_t hva, uint64_t off,
		     uint64_t len)
{
	struct gmem_wire w = {
		.type = GMEM_WIRE_REGION,
		.flags = a->user_mode_only ? GMEM_WIRE_USER_MODE_ONLY : 0,
		.index = new_uffd ? GMEM_WIRE_NEW_UFFD : a->uffd_index,
		.dev = file->dev,
		.ino = file->ino,
		.hva = hva,
		.off = off,
		.len = len,
	};
	int fds[GMEM_WIRE_MAX_FDS];
	int err = gmem_wire_send(a->sock, &w, &a->uffd, new_uffd ? 1 : 0);

	if (!err)
		err = gmem_wire_recv(a->sock, &w, fds, NULL);
	if (err)
		return gmem_err_sys(err, "attach: the keeper is gone");
	if (w.type != GMEM_WIRE_OK)
		return gmem_err(-EPROTO, "attach: the keeper said %u", w.type);
	if (w.error)
		return gmem_err_sys(w.error, "attach: the keeper does not take hva 0x%llx", (unsigned long long)hva);
	a->uffd_index = w.index;
	return 0;
}

int gmem_attach_region(struct gmem_attach *a, struct gmem_attach_file *file, int fd, uint64_t hva, uint64_t off,
		       uint64_t len)
{
	struct gmem_state_region *place;
	bool new_uffd = a->uffd < 0;
	int err;

	if (!gmem_range_inside(off, len, file->len))
		return gmem_err(-ERANGE, "attach: a mapping past the end of the memory (off 0x%llx, len 0x%llx)",
				(unsigned long long)off, (unsigned long long)len);
	if (new_uffd) {
		int uffd =
			gmem_sys_uffd_open(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM, &a->user_mode_only);

		if (uffd < 0)
			return gmem_err_sys(uffd, "attach: userfaultfd (see gmem info)");
		a->uffd = uffd;
	}
	place = place_for(a, file->state.header, hva, off, len);
	if (!place)
		return gmem_err(-ENOSPC, "attach: %u mappings of one memory file are the most", GMEM_STATE_MAX_REGIONS);
	err = gmem_sys_uffd_register(a->uffd, hva, len, GMEM_SYS_UFFD_MISSING | GMEM_SYS_UFFD_MINOR);
	if (err)
		return gmem_err_sys(err, "attach: registering %llu bytes at 0x%llx", (unsigned long long)len,
				    (unsigned long long)hva);
	err = hand_over(a, file, new_uffd, hva, off, len);
	if (!err)
		note_region(a, file->state.header, place, fd, hva, off, len);
	return err;
}

void gmem_attach_failed(struct gmem_attach *a, int error)
{
	struct gmem_wire w = { .type = GMEM_WIRE_FAILED, .error = error };
	int fds[GMEM_WIRE_MAX_FDS];

	snprintf(w.text, sizeof(w.text), "%s", gmem_last_error());
	if (gmem_wire_send(a->sock, &w, NULL, 0) == 0)
		(void)gmem_wire_recv(a->sock, &w, fds, NULL);
}

/* Who serves the view answers for lost pages. -EBUSY: it has marks of other kinds. */
static int take_marks(struct gmem_view *view)
{
	int err = 0;

	gmem_rwlock_lock(&view->file->invalidate_lock);
	gmem_view_unmark_lost(view);
	if (view->uffd >= 0 || view->by_mapping) {
		(void)gmem_view_mark_all_lost(view);
		err = gmem_err(-EBUSY, "gmem_attach_view: this view is marked, and cannot be handed over");
	}
	gmem_rwlock_unlock(&view->file->invalidate_lock);
	return err;
}

static void give_marks(struct gmem_view *view)
{
	gmem_rwlock_lock(&view->file->invalidate_lock);
	(void)gmem_view_mark_all_lost(view);
	gmem_rwlock_unlock(&view->file->invalidate_lock);
}

int gmem_attach_view(int attach_fd, struct gmem_view *view)
{
	struct gmem_attach *a;
	struct gmem_attach_file *file;
	int err;

	if (view->use != GMEM_VIEW_PLAIN)
		return gmem_err(-EBUSY, "gmem_attach_view: this view is registered already");
	if (view->file->flags & GMEM_FILE_HUGETLB)
		return gmem_err(-EOPNOTSUPP, "gmem_attach_view: keepers do not take files of huge pages");
	gmem_rwlock_lock(&view->file->invalidate_lock);
	err = gmem_check_servable(view, "gmem_attach_view");
	gmem_rwlock_unlock(&view->file->invalidate_lock);
	if (err)
		return err;
	/* The keeper opens the memory too; a conversion before that would wait for it to read of removals. */
	if (gmem_state_claim(&view->file->state, GMEM_USE_KEEPER))
		return gmem_err(-EBUSY, "gmem_attach_view: this memory has, or had, private pages");
	a = malloc(sizeof(*a));
	if (!a)
		return gmem_err_sys(-ENOMEM, "gmem_attach_view");
	err = take_marks(view);
	if (err)
		goto out_free;
	err = gmem_attach_open(attach_fd, a);
	if (err) {
		give_marks(view);
		goto out_free;
	}
	file = gmem_attach_find(a, view->file->state.header->dev, view->file->state.header->ino);
	if (file)
		err = gmem_attach_region(a, file, view->file->fd, (uint64_t)(uintptr_t)view->addr, view->off,
					 view->len);
	else
		err = gmem_err(-ENOENT, "the keeper does not have this view's file");
	/*
	 * Kept on failure too: a view that is registered and let go of would read as zero where it has not been
	 * touched.
	 */
	view->uffd = a->uffd;
	/* The server reads of removals. */
	view->use = GMEM_VIEW_BALLOONED;
	gmem_attach_close(a);
out_free:
	free(a);
	return err ? gmem_err_prefix(err, "gmem_attach_view") : 0;
}
