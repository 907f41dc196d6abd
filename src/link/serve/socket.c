/* SPDX-License-Identifier: MIT */
#include "link/serve/socket.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"

int gmem_socket_address(const char *text, struct sockaddr_un *ret, socklen_t *ret_len)
{
	size_t len = strlen(text);

	*ret = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if ((text[0] != '/' && text[0] != '@') || len < 2)
		return gmem_err(-EAFNOSUPPORT, "%s: neither a path nor an abstract name", text);
	/* An abstract name has a zero byte at its beginning and none at its end. */
	if (len > sizeof(ret->sun_path) - (text[0] == '/'))
		return gmem_err(-ENAMETOOLONG, "%s: a socket's address has at most %zu bytes", text,
				sizeof(ret->sun_path) - 1);
	memcpy(ret->sun_path, text, len);
	if (text[0] == '@')
		ret->sun_path[0] = '\0';
	*ret_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len + (text[0] == '/'));
	return 0;
}

/* What a killed server leaves behind is a socket that refuses connections. */
static int remove_abandoned(const char *path, const struct sockaddr_un *addr, socklen_t len)
{
	struct stat st;
	int fd, err;

	if (lstat(path, &st))
		return errno == ENOENT ? 0 : gmem_err_sys(-errno, "%s", path);
	if (!S_ISSOCK(st.st_mode))
		return gmem_err(-EADDRINUSE, "%s: there is a file of this name", path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return gmem_err_sys(-errno, "%s: socket", path);
	err = connect(fd, (const struct sockaddr *)addr, len) ? errno : 0;
	close(fd);
	if (err != ECONNREFUSED && err != ENOENT)
		return gmem_err(-EADDRINUSE, "%s: somebody listens there", path);
	return unlink(path) && errno != ENOENT ? gmem_err_sys(-errno, "%s: removing the old socket", path) : 0;
}

int gmem_socket_listen(const char *path)
{
	struct sockaddr_un addr;
	socklen_t len;
	int fd, err;

	if (path[0] == '@')
		return gmem_err(-EAFNOSUPPORT, "%s: an abstract name is everybody's", path);
	if (strlen(path) >= sizeof(addr.sun_path))
		return gmem_err(-ENAMETOOLONG, "%s: a socket's path has at most %zu bytes", path,
				sizeof(addr.sun_path) - 1);
	addr = (struct sockaddr_un){ .sun_family = AF_UNIX };
	strcpy(addr.sun_path, path);
	len = sizeof(addr);
	err = remove_abandoned(path, &addr, len);
	if (err)
		return err;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return gmem_err_sys(-errno, "%s: socket", path);
	/* A socket's own mode is what bind(2) gives its name. */
	err = fchmod(fd, 0600) || bind(fd, (struct sockaddr *)&addr, len) || listen(fd, SOMAXCONN) ? -errno : 0;
	if (err) {
		close(fd);
		return gmem_err_sys(err, "%s: listening", path);
	}
	return fd;
}

bool gmem_socket_listens(int fd)
{
	socklen_t len = sizeof(int);
	int on = 0;

	return !getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &on, &len) && on;
}

int gmem_socket_send(int fd, const void *buf, size_t len, int passed, int flags)
{
	char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(__alignof__(struct cmsghdr)))) = { 0 };
	struct iovec iov = { .iov_base = (void *)(uintptr_t)buf, .iov_len = len };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
	struct cmsghdr *c;

	if (passed >= 0) {
		m.msg_control = control;
		m.msg_controllen = sizeof(control);
		c = CMSG_FIRSTHDR(&m);
		*c = (struct cmsghdr){ .cmsg_level = SOL_SOCKET,
				       .cmsg_type = SCM_RIGHTS,
				       .cmsg_len = CMSG_LEN(sizeof(int)) };
		memcpy(CMSG_DATA(c), &passed, sizeof(int));
	}
	while (sendmsg(fd, &m, flags | MSG_NOSIGNAL) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

int gmem_socket_recv(int fd, void *buf, size_t len, int *ret_fd)
{
	char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(__alignof__(struct cmsghdr))));
	struct iovec iov = { .iov_base = buf, .iov_len = len };
	struct msghdr m = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)
	};
	struct cmsghdr *c;
	ssize_t n;

	*ret_fd = -1;
	do {
		n = recvmsg(fd, &m, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	for (c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c))
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(int)))
			memcpy(ret_fd, CMSG_DATA(c), sizeof(int));
	if (*ret_fd < 0 && m.msg_flags & MSG_CTRUNC)
		return -EMFILE;
	/* We have the descriptor that the message had: its own may go. */
	if (n)
		(void)!recv(fd, buf, len, MSG_DONTWAIT);
	return (int)n;
}
