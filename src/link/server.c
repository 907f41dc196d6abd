/* SPDX-License-Identifier: MIT */
/*
 * A page server behind a keeper: what the keeper hands over, made into a pager.
 * Its one thread listens to the keeper for regions that come later; `m` guards what it writes and others read.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/err.h"
#include "base/opts.h"
#include "base/range.h"
#include "fault/keeper.h"
#include "fault/pager.h"
#include "fault/wire.h"
#include "link/procmaps.h"
#include "sys/memfd.h"

struct span {
	uint64_t hva, off, len;
	size_t file;
};

struct gmem_server {
	int sock;
	struct gmem_pager *pager;
	struct gmem_image *image;
	int (*source)(void *opaque, struct gmem_image *image, size_t region, struct gmem_source **ret);
	void *opaque;
	struct gmem_file *files[GMEM_KEEPER_MAX_FILES];
	struct gmem_source *sources[GMEM_KEEPER_MAX_FILES];
	int uffds[GMEM_KEEPER_MAX_UFFDS];
	uint32_t nuffds;
	struct span regions[GMEM_KEEPER_MAX_REGIONS];
	pthread_t listener;
	bool listening;

	pthread_mutex_t m; /* guards status and what arrives: files, uffds, regions */
	struct gmem_server_status status;
};

static int take_image(struct gmem_server *s, const struct gmem_wire *w, int fd)
{
	s->status.generation = w->index;
	return gmem_image_open_fd(fd, w->text, &s->image);
}

static int take_file(struct gmem_server *s, const struct gmem_wire *w, const int *fds)
{
	size_t i = s->status.nfiles;
	int err;

	if (i == GMEM_KEEPER_MAX_FILES)
		return gmem_err(-EPROTO, "server: the keeper has too many files");
	err = gmem_file_open_kept(fds[1], fds[0], &s->files[i]);
	if (err)
		return err;
	gmem_file_set_generation(s->files[i], s->status.generation);
	err = s->source ? s->source(s->opaque, s->image, w->index, &s->sources[i]) :
			  gmem_source_new_image(s->image, w->index, &s->sources[i]);
	if (err) {
		gmem_file_free(s->files[i]);
		s->files[i] = NULL;
		return err;
	}
	s->status.nfiles++;
	return 0;
}

/* Takes fd. */
static int take_uffd(struct gmem_server *s, uint32_t number, int fd)
{
	if (fd < 0)
		return number < s->nuffds && s->uffds[number] >= 0 ? 0 : -EPROTO;
	if (number >= GMEM_KEEPER_MAX_UFFDS || (number < s->nuffds && s->uffds[number] >= 0)) {
		close(fd);
		return -EPROTO;
	}
	while (s->nuffds <= number)
		s->uffds[s->nuffds++] = -1;
	s->uffds[number] = fd;
	return 0;
}

/* Takes fd. */
static int take_region(struct gmem_server *s, const struct gmem_wire *w, int fd)
{
	struct gmem_region region = {
		.size = sizeof(region), .hva = w->hva, .off = w->off, .len = w->len, .source_off = w->off
	};
	int err = take_uffd(s, w->index, fd);

	if (err)
		return gmem_err(err, "server: userfault descriptor %u of the keeper is missing", w->index);
	if (s->status.nregions == GMEM_KEEPER_MAX_REGIONS)
		return gmem_err(-EPROTO, "server: the keeper has too many regions");
	for (size_t i = 0; i < s->status.nfiles; i++) {
		if (s->files[i]->state.header->dev != w->dev || s->files[i]->state.header->ino != w->ino)
			continue;
		region.file = s->files[i];
		region.source = s->sources[i];
		region.uffd = s->uffds[w->index];
		err = gmem_pager_add_region(s->pager, &region);
		if (err < 0)
			return err;
		s->regions[s->status.nregions++] =
			(struct span){ .hva = w->hva, .off = w->off, .len = w->len, .file = i };
		if (w->flags & GMEM_WIRE_USER_MODE_ONLY)
			s->status.user_mode_only = true;
		return 0;
	}
	return gmem_err(-EPROTO, "server: a region of a file the keeper does not have");
}

/* One message of the keeper's. Takes the descriptors. Returns 1 for DONE. */
static int take_message(struct gmem_server *s, const struct gmem_wire *w, int fds[GMEM_WIRE_MAX_FDS])
{
	int err = 0;

	pthread_mutex_lock(&s->m);
	switch (w->type) {
	case GMEM_WIRE_BUSY:
		err = gmem_err(-EBUSY, "another server is alive: pid %d", w->pid);
		break;
	case GMEM_WIRE_OK:
		err = gmem_err_sys(w->error ? w->error : -EPROTO, "the keeper refuses this process");
		break;
	case GMEM_WIRE_IMAGE:
		err = take_image(s, w, fds[0]);
		break;
	case GMEM_WIRE_FILE:
		err = s->image ? take_file(s, w, fds) : gmem_err(-EPROTO, "server: the keeper has no image");
		break;
	case GMEM_WIRE_REGION:
		err = take_region(s, w, fds[0]);
		fds[0] = -1;
		break;
	case GMEM_WIRE_VM:
		s->status.vm_pid = w->pid;
		break;
	case GMEM_WIRE_FAILED:
		s->status.attach_error = w->error ? w->error : -EPROTO;
		snprintf(s->status.attach_text, sizeof(s->status.attach_text), "%.*s",
			 (int)sizeof(s->status.attach_text) - 1, w->text);
		break;
	case GMEM_WIRE_DONE:
		err = 1;
		break;
	default:
		err = gmem_err(-EPROTO, "server: the keeper said %u", w->type);
		break;
	}
	pthread_mutex_unlock(&s->m);
	for (int i = 0; i < GMEM_WIRE_MAX_FDS; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	return err;
}

static void *listen_to_keeper(void *arg)
{
	struct gmem_server *s = arg;
	int fds[GMEM_WIRE_MAX_FDS];
	struct gmem_wire w;

	while (!gmem_wire_recv(s->sock, &w, fds, NULL)) {
		int err = take_message(s, &w, fds);

		if (err < 0)
			gmem_pager_report(s->pager, GMEM_PAGER_ERROR, err, gmem_last_error(), NULL, 0, 0);
	}
	/* It died, or we shut the socket down. All that it held we hold too: serving goes on. */
	pthread_mutex_lock(&s->m);
	s->status.keeper_alive = false;
	pthread_mutex_unlock(&s->m);
	return NULL;
}

static int say_hello(struct gmem_server *s, const char *path, bool take_over)
{
	struct gmem_wire w = { .type = GMEM_WIRE_SERVE, .flags = take_over ? GMEM_WIRE_TAKE_OVER : 0 };
	int fds[GMEM_WIRE_MAX_FDS];
	struct sockaddr_un addr;
	int err;

	err = gmem_keeper_address(path, &addr);
	if (err)
		return err;
	s->sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (s->sock < 0)
		return gmem_err_sys(-errno, "gmem_server_connect: socket");
	if (connect(s->sock, (struct sockaddr *)&addr, sizeof(addr)))
		return gmem_err_sys(-errno, "gmem_server_connect: %s: no keeper there", path);
	err = gmem_wire_send(s->sock, &w, NULL, 0);
	while (!err) {
		err = gmem_wire_recv(s->sock, &w, fds, NULL);
		if (err)
			break;
		err = take_message(s, &w, fds);
		if (err < 0)
			return gmem_err_prefix(err, "gmem_server_connect: %s", path);
		if (err == 1)
			return s->image ? 0 :
					  gmem_err(-EPROTO, "gmem_server_connect: %s: the keeper has no image", path);
	}
	return gmem_err_sys(err, "gmem_server_connect: %s: the keeper refused or went away", path);
}

int gmem_server_connect(const char *path, const struct gmem_server_opts *opts, struct gmem_server **ret)
{
	struct gmem_pager_opts pager_opts = { .size = sizeof(pager_opts) };
	struct gmem_server *s;
	int err;

	if (opts && !gmem_opts_valid(opts, opts->size, sizeof(*opts)))
		return gmem_err(-EINVAL, "gmem_server_connect: opts.size %zu: expected %zu", opts->size, sizeof(*opts));
	s = calloc(1, sizeof(*s));
	if (!s)
		return gmem_err_sys(-ENOMEM, "gmem_server_connect");
	s->sock = -1;
	s->status.keeper_alive = true;
	pthread_mutex_init(&s->m, NULL);
	if (opts) {
		pager_opts.event = opts->event;
		pager_opts.opaque = opts->opaque;
		s->source = opts->source;
		s->opaque = opts->opaque;
	}
	err = gmem_pager_create(&pager_opts, &s->pager);
	if (!err)
		err = say_hello(s, path, opts && opts->take_over);
	if (!err) {
		err = -pthread_create(&s->listener, NULL, listen_to_keeper, s);
		if (err)
			gmem_err_sys(err, "gmem_server_connect: thread");
		else
			s->listening = true;
	}
	if (err) {
		gmem_server_free(s);
		return err;
	}
	*ret = s;
	return 0;
}

/* Said in the table too: the keeper may be dead, and the next one asks the table alone. */
static void forget_server(struct gmem_file *file)
{
	int32_t self = getpid();

	if (atomic_load(&file->state.header->generation) == file->generation)
		atomic_compare_exchange_strong(&file->state.header->server_pid, &self, 0);
}

void gmem_server_free(struct gmem_server *s)
{
	struct gmem_wire bye = { .type = GMEM_WIRE_BYE };

	if (!s)
		return;
	if (s->listening) {
		shutdown(s->sock, SHUT_RD);
		pthread_join(s->listener, NULL);
	}
	/* Serving has stopped before the keeper hears of it: the next server must be alone. */
	gmem_pager_free(s->pager);
	for (size_t i = 0; i < s->status.nfiles; i++)
		forget_server(s->files[i]);
	if (s->sock >= 0)
		gmem_wire_send(s->sock, &bye, NULL, 0);
	for (size_t i = 0; i < s->status.nfiles; i++) {
		gmem_source_unref(s->sources[i]);
		gmem_file_free(s->files[i]);
	}
	for (uint32_t i = 0; i < s->nuffds; i++)
		if (s->uffds[i] >= 0)
			close(s->uffds[i]);
	gmem_image_close(s->image);
	if (s->sock >= 0)
		close(s->sock);
	pthread_mutex_destroy(&s->m);
	free(s);
}

struct gmem_pager *gmem_server_pager(struct gmem_server *s)
{
	return s->pager;
}

int gmem_server_status(struct gmem_server *s, struct gmem_server_status *status)
{
	if (status->size < sizeof(*status))
		return gmem_err(-EINVAL, "gmem_server_status: size %zu: expected %zu", status->size, sizeof(*status));
	pthread_mutex_lock(&s->m);
	*status = s->status;
	status->size = sizeof(*status);
	status->note = s->status.nfiles ? atomic_load(&s->files[0]->state.header->note) : 0;
	for (size_t i = 0; i < s->status.nfiles; i++)
		if (atomic_load(&s->files[i]->state.header->fill_wanted))
			status->fill_wanted = true;
	pthread_mutex_unlock(&s->m);
	return 0;
}

/* The file a mapping is of, or -1. */
static long file_of(const struct gmem_server *s, const struct gmem_procmap *map)
{
	for (size_t i = 0; i < s->status.nfiles; i++)
		if (map->dev == s->files[i]->state.header->dev && map->inode == s->files[i]->state.header->ino)
			return (long)i;
	return -1;
}

/*
 * All of a mapping lies in registered regions that map the same bytes; a kernel merges and splits mappings as it
 * likes.
 */
static bool covered(const struct gmem_server *s, const struct gmem_procmap *map, size_t file)
{
	uint64_t at = map->start;
	bool moved = true;

	while (at < map->end && moved) {
		moved = false;
		for (size_t i = 0; i < s->status.nregions; i++) {
			const struct span *r = &s->regions[i];

			if (r->file != file || at < r->hva || at - r->hva >= r->len ||
			    r->off + (at - r->hva) != map->off + (at - map->start))
				continue;
			at = r->hva + r->len;
			moved = true;
		}
	}
	return at >= map->end;
}

int gmem_server_check_mappings(struct gmem_server *s)
{
	struct gmem_procmaps *maps;
	bool found = false;
	int err;

	pthread_mutex_lock(&s->m);
	err = s->status.vm_pid ? gmem_procmaps_read(s->status.vm_pid, &maps) :
				 gmem_err(-ESRCH, "gmem_server_check_mappings: no process is attached");
	if (err)
		goto out;
	for (size_t i = 0; i < maps->n && !err; i++) {
		const struct gmem_procmap *map = &maps->maps[i];
		long file = file_of(s, map);

		found |= file >= 0;
		if (file >= 0 && !covered(s, map, (size_t)file))
			err = gmem_err(
				-EPERM,
				"process %d maps guest memory at 0x%llx-0x%llx without userfaultfd: pages not yet in "
				"place would read as zero there",
				(int)s->status.vm_pid, (unsigned long long)map->start, (unsigned long long)map->end);
	}
	gmem_procmaps_free(maps);
	/* One that has ended has no mappings: that is no answer. */
	if (!err && !found && s->status.nregions)
		err = gmem_err(
			-ESRCH,
			"gmem_server_check_mappings: process %d maps none of the memory: it has ended, or another does",
			(int)s->status.vm_pid);
out:
	pthread_mutex_unlock(&s->m);
	return err;
}

void gmem_server_set_note(struct gmem_server *s, uint32_t note)
{
	pthread_mutex_lock(&s->m);
	if (s->status.nfiles)
		atomic_store(&s->files[0]->state.header->note, note);
	pthread_mutex_unlock(&s->m);
}

struct gmem_image *gmem_server_image(struct gmem_server *s)
{
	return s->image;
}

struct gmem_file *gmem_server_file(struct gmem_server *s, size_t i)
{
	struct gmem_file *file;

	pthread_mutex_lock(&s->m);
	file = i < s->status.nfiles ? s->files[i] : NULL;
	pthread_mutex_unlock(&s->m);
	return file;
}
