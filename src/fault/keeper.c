/* SPDX-License-Identifier: MIT */
#include "fault/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "sys/memfd.h"

int gmem_keeper_address(const char *path, struct sockaddr_un *ret)
{
	*ret = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof(ret->sun_path))
		return gmem_err(-ENAMETOOLONG, "keeper: socket path of %zu bytes: at most %zu", strlen(path),
				sizeof(ret->sun_path) - 1);
	memcpy(ret->sun_path, path, strlen(path) + 1);
	return 0;
}

/* A socket nobody listens on is what a killed keeper leaves behind. */
static int remove_abandoned(const struct sockaddr_un *addr)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	struct stat st;
	int err = 0;

	if (fd < 0)
		return gmem_err_sys(-errno, "keeper: socket");
	if (lstat(addr->sun_path, &st) == 0) {
		if (!S_ISSOCK(st.st_mode))
			err = gmem_err(-EADDRINUSE, "keeper: %s: there is a file of this name", addr->sun_path);
		else if (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0)
			err = gmem_err(-EADDRINUSE, "keeper: %s: a keeper is running there", addr->sun_path);
		else if (errno != ECONNREFUSED)
			err = gmem_err_sys(-EADDRINUSE, "keeper: %s: a socket of somebody else", addr->sun_path);
		else if (unlink(addr->sun_path))
			err = gmem_err_sys(-errno, "keeper: %s: removing the old socket", addr->sun_path);
	}
	close(fd);
	return err;
}

static int bind_socket(struct gmem_keeper *keeper, const char *path)
{
	struct sockaddr_un addr;
	int err = gmem_keeper_address(path, &addr);

	if (!err)
		err = remove_abandoned(&addr);
	if (err)
		return err;
	keeper->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (keeper->listen_fd < 0)
		return gmem_err_sys(-errno, "keeper: socket");
	/* A socket's own mode is what bind() gives its name: right from the first instant on. */
	if (fchmod(keeper->listen_fd, 0600))
		return gmem_err_sys(-errno, "keeper: %s: mode", path);
	err = bind(keeper->listen_fd, (struct sockaddr *)&addr, sizeof(addr)) ? -errno : 0;
	if (err)
		return gmem_err_sys(err, "keeper: %s", path);
	memcpy(keeper->path, addr.sun_path, sizeof(keeper->path));
	if (listen(keeper->listen_fd, 8)) {
		err = gmem_err_sys(-errno, "keeper: %s: listen", path);
		unlink(path);
		return err;
	}
	return 0;
}

int gmem_keeper_create(const char *path, struct gmem_keeper **ret)
{
	struct gmem_keeper *keeper = calloc(1, sizeof(*keeper));
	const struct timeval patience = { .tv_sec = 5 };
	int yes = 1, err;

	if (!keeper)
		return gmem_err_sys(-ENOMEM, "gmem_keeper_create");
	keeper->listen_fd = keeper->image_fd = keeper->vm_pidfd = keeper->server = keeper->server_pidfd = -1;
	keeper->attach[0] = keeper->attach[1] = -1;
	for (uint32_t i = 0; i < GMEM_KEEPER_MAX_CALLERS; i++)
		keeper->callers[i] = -1;
	err = bind_socket(keeper, path);
	if (err)
		goto out_free;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, keeper->attach) ||
	    setsockopt(keeper->attach[0], SOL_SOCKET, SO_PASSCRED, &yes, sizeof(yes)) ||
	    setsockopt(keeper->attach[0], SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) ||
	    fcntl(keeper->attach[1], F_SETFD, 0)) {
		err = gmem_err_sys(-errno, "gmem_keeper_create: socketpair");
		unlink(path);
		goto out_free;
	}
	keeper->attach_open = true;
	*ret = keeper;
	return 0;

out_free:
	gmem_keeper_free(keeper);
	return err;
}

static void close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

void gmem_keeper_free(struct gmem_keeper *keeper)
{
	if (!keeper)
		return;
	/* The process that made it and forked must not take it from the one that runs it. */
	if (keeper->running)
		unlink(keeper->path);
	for (uint32_t i = 0; i < keeper->nfiles; i++) {
		gmem_file_free(keeper->files[i]);
		close_fd(keeper->locks[i]);
	}
	for (uint32_t i = 0; i < keeper->nuffds; i++)
		close_fd(keeper->uffds[i]);
	close_fd(keeper->listen_fd);
	close_fd(keeper->attach[0]);
	close_fd(keeper->attach[1]);
	close_fd(keeper->image_fd);
	close_fd(keeper->vm_pidfd);
	close_fd(keeper->server);
	close_fd(keeper->server_pidfd);
	for (uint32_t i = 0; i < GMEM_KEEPER_MAX_CALLERS; i++)
		close_fd(keeper->callers[i]);
	free(keeper);
}

int gmem_keeper_add_file(struct gmem_keeper *keeper, struct gmem_file *file, size_t image_region)
{
	struct gmem_file *own;
	int err;

	if (keeper->nfiles == GMEM_KEEPER_MAX_FILES)
		return gmem_err(-ENOSPC, "gmem_keeper_add_file: %u files are the most", GMEM_KEEPER_MAX_FILES);
	if (file->flags & GMEM_FILE_HUGETLB)
		return gmem_err(-EOPNOTSUPP, "gmem_keeper_add_file: keepers do not take files of huge pages");
	err = gmem_file_open_kept(file->fd, file->state.fd, &own);
	if (err)
		return gmem_err_prefix(err, "gmem_keeper_add_file");
	own->state.header->image_region = (uint32_t)image_region;
	keeper->locks[keeper->nfiles] = -1;
	keeper->files[keeper->nfiles++] = own;
	return 0;
}

int gmem_keeper_set_image(struct gmem_keeper *keeper, int image_fd, const char *path)
{
	char *full;
	struct stat st;
	int fd;

	if (fstat(image_fd, &st))
		return gmem_err_sys(-errno, "gmem_keeper_set_image: descriptor %d", image_fd);
	full = realpath(path, NULL);
	if (!full)
		return gmem_err_sys(-errno, "gmem_keeper_set_image: %s", path);
	if (strlen(full) >= sizeof(keeper->files[0]->state.header->image_path)) {
		free(full);
		return gmem_err(-ENAMETOOLONG, "gmem_keeper_set_image: %s", path);
	}
	fd = fcntl(image_fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0) {
		free(full);
		return gmem_err_sys(-errno, "gmem_keeper_set_image");
	}
	close_fd(keeper->image_fd);
	keeper->image_fd = fd;
	for (uint32_t i = 0; i < keeper->nfiles; i++) {
		struct gmem_state_header *h = keeper->files[i]->state.header;

		strcpy(h->image_path, full);
		h->image_dev = st.st_dev;
		h->image_ino = st.st_ino;
		h->image_size = (uint64_t)st.st_size;
		h->image_mtime_ns = st.st_mtim.tv_sec * INT64_C(1000000000) + st.st_mtim.tv_nsec;
	}
	free(full);
	return 0;
}

int gmem_keeper_attach_fd(struct gmem_keeper *keeper)
{
	return keeper->attach[1];
}

int gmem_keeper_lock(struct gmem_keeper *keeper)
{
	for (uint32_t i = 0; i < keeper->nfiles; i++) {
		char path[32];
		int fd;

		/* Opened anew: descriptors of one open(2) share its lock, and everybody has a copy of ours. */
		snprintf(path, sizeof(path), "/proc/self/fd/%d", keeper->files[i]->state.fd);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			return gmem_err_sys(-errno, "keeper: %s", path);
		close_fd(keeper->locks[i]);
		keeper->locks[i] = fd;
		if (flock(fd, LOCK_EX | LOCK_NB))
			return errno == EWOULDBLOCK ? gmem_err(-EBUSY, "keeper: the memory has a keeper that lives") :
						      gmem_err_sys(-errno, "keeper: locking the state table");
	}
	return 0;
}

int gmem_keeper_find_file(const struct gmem_keeper *keeper, uint64_t dev, uint64_t ino)
{
	for (uint32_t i = 0; i < keeper->nfiles; i++)
		if (keeper->files[i]->state.header->dev == dev && keeper->files[i]->state.header->ino == ino)
			return (int)i;
	return -ENOENT;
}

/*
 * A program that unmaps memory and maps it again gets the same address again. 1: the very region it had; -EEXIST: the
 * keeper's books would not tell which of two it is.
 */
static int known_region(const struct gmem_keeper *keeper, const struct gmem_wire *w, uint32_t file)
{
	for (uint32_t i = 0; i < keeper->nregions; i++) {
		const struct gmem_keeper_region *r = &keeper->regions[i];

		if (r->uffd != w->index || w->hva >= r->hva + r->len || r->hva >= w->hva + w->len)
			continue;
		return r->file == file && r->hva == w->hva && r->off == w->off && r->len == w->len ? 1 : -EEXIST;
	}
	return 0;
}

int gmem_keeper_take_region(struct gmem_keeper *keeper, const struct gmem_wire *w, int fd, uint32_t *ret_uffd)
{
	int file = gmem_keeper_find_file(keeper, w->dev, w->ino);
	uint32_t uffd = w->index;
	int err = -EINVAL;

	if (file < 0 || !w->len || !gmem_page_aligned(w->off) || !gmem_page_aligned(w->len) ||
	    !gmem_page_aligned(w->hva) || w->hva + w->len < w->hva ||
	    !gmem_range_inside(w->off, w->len, keeper->files[file]->len))
		goto out_close;
	err = known_region(keeper, w, (uint32_t)file);
	if (err) {
		*ret_uffd = uffd;
		goto out_close;
	}
	err = -ENOSPC;
	if (keeper->nregions == GMEM_KEEPER_MAX_REGIONS)
		goto out_close;
	if (uffd == GMEM_WIRE_NEW_UFFD) {
		if (keeper->nuffds == GMEM_KEEPER_MAX_UFFDS)
			goto out_close;
		err = -EBADF;
		if (fd < 0)
			goto out_close;
		uffd = keeper->nuffds;
		keeper->uffds[keeper->nuffds++] = fd;
	} else {
		err = -EINVAL;
		if (uffd >= keeper->nuffds)
			goto out_close;
		close_fd(fd);
	}
	keeper->regions[keeper->nregions++] = (struct gmem_keeper_region){
		.hva = w->hva,
		.off = w->off,
		.len = w->len,
		.file = (uint32_t)file,
		.uffd = uffd,
		.user_mode_only = w->flags & GMEM_WIRE_USER_MODE_ONLY,
	};
	*ret_uffd = uffd;
	return 0;

out_close:
	close_fd(fd);
	return err;
}
