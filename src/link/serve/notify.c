/* SPDX-License-Identifier: MIT */
#include "link/serve/notify.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/err.h"
#include "link/serve/socket.h"

int gmem_notify_open(struct gmem_notify *notify, const char *address)
{
	const struct timeval patience = { .tv_sec = 5 };
	int err;

	notify->fd = -1;
	if (!address)
		return 0;
	err = gmem_socket_address(address, &notify->addr, &notify->addrlen);
	if (err)
		return gmem_err_prefix(err, "$NOTIFY_SOCKET");
	notify->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (notify->fd < 0)
		return gmem_err_sys(-errno, "$NOTIFY_SOCKET: socket");
	/* One that is stopped must not stop us for good. */
	setsockopt(notify->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	return 0;
}

void gmem_notify_close(struct gmem_notify *notify)
{
	if (notify->fd >= 0)
		close(notify->fd);
	notify->fd = -1;
}

int gmem_notify_send(const struct gmem_notify *notify, const char *text, int fd, bool wait)
{
	char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(__alignof__(struct cmsghdr)))) = { 0 };
	struct iovec iov = { .iov_base = (void *)(uintptr_t)text, .iov_len = strlen(text) };
	struct msghdr m = { .msg_name = (void *)(uintptr_t)&notify->addr,
			    .msg_namelen = notify->addrlen,
			    .msg_iov = &iov,
			    .msg_iovlen = 1 };
	struct cmsghdr *c;
	int err = 0;

	if (notify->fd < 0)
		return 0;
	if (fd >= 0) {
		m.msg_control = control;
		m.msg_controllen = sizeof(control);
		c = CMSG_FIRSTHDR(&m);
		*c = (struct cmsghdr){ .cmsg_level = SOL_SOCKET,
				       .cmsg_type = SCM_RIGHTS,
				       .cmsg_len = CMSG_LEN(sizeof(int)) };
		memcpy(CMSG_DATA(c), &fd, sizeof(int));
	}
	while (sendmsg(notify->fd, &m, MSG_NOSIGNAL | (wait ? 0 : MSG_DONTWAIT)) < 0) {
		if (errno == EINTR)
			continue;
		/* Its socket may be gone with it. */
		err = errno == ENOENT ? -ECONNREFUSED : -errno;
		break;
	}
	if (err == -EAGAIN && wait)
		err = -ETIMEDOUT;
	return err ? gmem_err_sys(err, "telling who minds this process") : 0;
}

int gmem_notify_barrier(const struct gmem_notify *notify, unsigned int timeout_ms)
{
	struct pollfd p = { .events = 0 };
	int fds[2], err, n;

	if (notify->fd < 0)
		return 0;
	if (pipe2(fds, O_CLOEXEC))
		return gmem_err_sys(-errno, "barrier: pipe");
	err = gmem_notify_send(notify, "BARRIER=1", fds[1], true);
	close(fds[1]);
	p.fd = fds[0];
	/* It closes the writing end when it comes to it, which is a hang-up; it also does when it dies. */
	do {
		n = err ? 1 : poll(&p, 1, (int)timeout_ms);
	} while (n < 0 && errno == EINTR);
	close(fds[0]);
	if (!n)
		err = gmem_err(-ETIMEDOUT, "who minds this process has not answered for %u ms", timeout_ms);
	return err;
}
