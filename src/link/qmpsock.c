/* SPDX-License-Identifier: MIT */
/* The way to a QEMU's monitor: a UNIX socket, and what it means when nobody answers there. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/err.h"
#include "link/qmp.h"

/* A full backlog answers EAGAIN at once on a UNIX socket, so that connecting never blocks for ever. */
static int connect_path(const char *path, int *ret)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd, r;

	if (strlen(path) >= sizeof(sa.sun_path))
		return gmem_err(-ENAMETOOLONG, "%s: a socket's path has at most %zu bytes", path,
				sizeof(sa.sun_path) - 1);
	strcpy(sa.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return gmem_err_sys(-errno, "%s: socket", path);
	if (!connect(fd, (struct sockaddr *)&sa, sizeof(sa))) {
		*ret = fd;
		return 0;
	}
	r = -errno;
	close(fd);
	switch (r) {
	case -ENOENT:
		return gmem_err(r, "%s: no such socket: start QEMU with -qmp unix:%s,server=on,wait=off", path, path);
	case -ECONNREFUSED:
		return gmem_err(r, "%s: nobody listens there: the QEMU of this socket has ended", path);
	case -EAGAIN:
		return gmem_err(-ETIMEDOUT,
				"%s: other clients hold this monitor; give QEMU a second -qmp socket, or close them",
				path);
	case -EPROTOTYPE:
	case -ENOTSOCK:
		return gmem_err(r, "%s: not a stream socket", path);
	default:
		return gmem_err_sys(r, "%s: connect", path);
	}
}

int gmem_qmp_connect(const char *path, struct gmem_qmp **ret)
{
	int fd = -1, r;

	r = connect_path(path, &fd);
	return r ? r : gmem_qmp_attach(fd, path, ret);
}
