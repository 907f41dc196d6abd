/* SPDX-License-Identifier: MIT */
/*
 * A keeper made anew from the attached program alone: the program holds every descriptor, and its state tables say
 * which is which. What the tables say is checked like anything else that another process could have written.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "fault/keeper.h"
#include "sys/process.h"

struct adoption {
	struct gmem_keeper *keeper;
	int pidfd;
	pid_t pid;
	struct {
		int number; /* in the program */
		uint32_t index; /* in the keeper */
	} uffds[GMEM_KEEPER_MAX_UFFDS];
	uint32_t nuffds;
};

static bool is_userfaultfd(int fd)
{
	static const char name[] = "anon_inode:[userfaultfd]";
	char path[32], link[sizeof(name)];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return readlink(path, link, sizeof(link)) == sizeof(name) - 1 && !memcmp(link, name, sizeof(name) - 1);
}

/* The keeper's number for a userfault descriptor of the program's, fetched the first time. */
static int uffd_index(struct adoption *a, int number, int *ret_fd, uint32_t *ret_index)
{
	*ret_fd = -1;
	for (uint32_t i = 0; i < a->nuffds; i++) {
		if (a->uffds[i].number == number) {
			*ret_index = a->uffds[i].index;
			return 0;
		}
	}
	if (a->nuffds == GMEM_KEEPER_MAX_UFFDS)
		return -ENOSPC;
	*ret_fd = gmem_pidfd_getfd(a->pidfd, number);
	*ret_index = GMEM_WIRE_NEW_UFFD;
	if (*ret_fd < 0)
		return *ret_fd;
	/* If the program has closed it, its number may be anything's by now; the server would read it empty. */
	if (!is_userfaultfd(*ret_fd)) {
		close(*ret_fd);
		return gmem_err(-EBADF, "descriptor %d of the program is no userfaultfd any more", number);
	}
	return 0;
}

static int adopt_region(struct adoption *a, const struct gmem_state_header *h, const struct gmem_state_region *r)
{
	struct gmem_wire w = { .dev = h->dev, .ino = h->ino, .hva = r->hva, .off = r->off, .len = r->len };
	uint32_t index;
	bool fetched;
	int fd, err;

	err = uffd_index(a, r->uffd, &fd, &w.index);
	if (err)
		return err;
	fetched = fd >= 0;
	err = gmem_keeper_take_region(a->keeper, &w, fd, &index);
	if (err > 0)
		return 0;
	if (!err && fetched) {
		a->uffds[a->nuffds].number = r->uffd;
		a->uffds[a->nuffds++].index = index;
	}
	return err;
}

/* A copy, because the program could change it while we look; without what the program has unmapped since. */
static int copy_header(const struct gmem_state *state, struct gmem_state_header *ret)
{
	uint32_t n = 0;

	memcpy(ret, state->header, sizeof(*ret));
	ret->image_path[sizeof(ret->image_path) - 1] = '\0';
	if (ret->nregions > GMEM_STATE_MAX_REGIONS)
		return gmem_err(-EINVAL, "a state table with %u regions", (unsigned int)ret->nregions);
	for (uint32_t i = 0; i < ret->nregions; i++)
		if (ret->regions[i].len)
			ret->regions[n++] = ret->regions[i];
	ret->nregions = n;
	return 0;
}

/* Under its path there must still be the file that the memory is being filled from. */
static int open_image(struct gmem_keeper *keeper, const struct gmem_state_header *h)
{
	struct stat st;
	int err;

	if (keeper->image_fd >= 0)
		return 0;
	keeper->image_fd = open(h->image_path, O_RDONLY | O_CLOEXEC);
	if (keeper->image_fd < 0 || fstat(keeper->image_fd, &st))
		return gmem_err_sys(-errno, "the image %s", h->image_path);
	if (h->image_dev == st.st_dev && h->image_ino == st.st_ino && h->image_size == (uint64_t)st.st_size &&
	    h->image_mtime_ns == st.st_mtim.tv_sec * INT64_C(1000000000) + st.st_mtim.tv_nsec)
		return 0;
	err = gmem_err(-ESTALE, "the image %s is not the file any more that this memory was being filled from",
		       h->image_path);
	close(keeper->image_fd);
	keeper->image_fd = -1;
	return err;
}

static int adopt_file(struct adoption *a, int state_fd)
{
	struct gmem_state_header *h;
	struct gmem_state state;
	struct gmem_file *file = NULL;
	int memory, err;

	err = gmem_state_open(&state, state_fd);
	if (err)
		return err;
	h = malloc(sizeof(*h));
	err = h ? copy_header(&state, h) : gmem_err_sys(-ENOMEM, "state table");
	/* Not attached, or met before under another number: nothing to do. */
	if (err || !h->nregions || gmem_keeper_find_file(a->keeper, h->dev, h->ino) >= 0)
		goto out_state;
	err = -EBUSY;
	if (gmem_state_server_alive(&state)) {
		gmem_err(err, "a server is alive: pid %d", (int)atomic_load(&state.header->server_pid));
		goto out_state;
	}
	memory = gmem_pidfd_getfd(a->pidfd, h->regions[0].fd);
	if (memory < 0) {
		err = gmem_err_sys(memory, "the memory's descriptor %d", h->regions[0].fd);
		goto out_state;
	}
	err = gmem_file_open_kept(memory, state_fd, &file);
	close(memory);
	if (err)
		goto out_state;
	err = open_image(a->keeper, h);
	if (!err)
		err = gmem_keeper_add_file(a->keeper, file, h->image_region);
	for (uint32_t i = 0; i < h->nregions && !err; i++) {
		err = adopt_region(a, h, &h->regions[i]);
		if (err)
			gmem_err_sys(err, "region %u", i);
	}
	gmem_file_free(file);
out_state:
	free(h);
	gmem_state_close(&state);
	return err;
}

static int take_table(void *opaque, int number)
{
	struct adoption *a = opaque;
	int state_fd = gmem_pidfd_getfd(a->pidfd, number);
	int err;

	if (state_fd < 0)
		return gmem_err_sys(state_fd, "taking descriptors of process %d", (int)a->pid);
	err = adopt_file(a, state_fd);
	close(state_fd);
	return err;
}

static int adopt_files(struct adoption *a)
{
	int err = gmem_state_find(a->pid, take_table, a);

	if (!err && !a->keeper->nfiles)
		err = gmem_err(-ENOENT, "process %d has no memory that gmem restores", (int)a->pid);
	return err;
}

int gmem_keeper_adopt(const char *path, pid_t pid, struct gmem_keeper **ret)
{
	struct adoption a = { .pidfd = gmem_pidfd_open(pid), .pid = pid };
	int err;

	if (a.pidfd < 0)
		return gmem_err_sys(a.pidfd, "gmem_keeper_adopt: process %d", (int)pid);
	err = gmem_keeper_create(path, &a.keeper);
	if (err)
		goto out_close;
	err = adopt_files(&a);
	/* Told now; gmem_keeper_run() takes it for good. */
	if (!err)
		err = gmem_keeper_lock(a.keeper);
	for (uint32_t i = 0; i < a.keeper->nfiles; i++) {
		if (a.keeper->locks[i] >= 0)
			close(a.keeper->locks[i]);
		a.keeper->locks[i] = -1;
	}
	if (err) {
		gmem_err_prefix(err, "gmem_keeper_adopt");
		gmem_keeper_free(a.keeper);
		unlink(path);
		goto out_close;
	}
	/* The program's end of its old socket pair is dead; its own end tells us when it is gone. */
	a.keeper->attach_open = false;
	a.keeper->vm_pid = pid;
	a.keeper->vm_pidfd = a.pidfd;
	*ret = a.keeper;
	return 0;

out_close:
	close(a.pidfd);
	return err;
}

static int end_server(void *opaque, int number)
{
	const struct adoption *a = opaque;
	int state_fd = gmem_pidfd_getfd(a->pidfd, number);
	struct gmem_state state;
	int err;

	if (state_fd < 0)
		return gmem_err_sys(state_fd, "taking descriptors of process %d", (int)a->pid);
	err = gmem_state_open(&state, state_fd);
	close(state_fd);
	if (err)
		return err;
	err = gmem_state_end_server(&state);
	gmem_state_close(&state);
	return err;
}

int gmem_server_end(pid_t pid)
{
	struct adoption a = { .pidfd = gmem_pidfd_open(pid), .pid = pid };
	int err;

	if (a.pidfd < 0)
		return gmem_err_sys(a.pidfd, "gmem_server_end: process %d", (int)pid);
	err = gmem_state_find(pid, end_server, &a);
	close(a.pidfd);
	return err ? gmem_err_prefix(err, "gmem_server_end") : 0;
}
