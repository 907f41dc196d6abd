/* SPDX-License-Identifier: MIT */
#include "fault/wire.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int gmem_wire_send(int sock, struct gmem_wire *w, const int *fds, int nfds)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int) * GMEM_WIRE_MAX_FDS)];
	} control = { 0 };
	struct iovec iov = { .iov_base = w, .iov_len = sizeof(*w) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;

	w->magic = GMEM_WIRE_MAGIC;
	if (nfds) {
		struct cmsghdr *c;

		msg.msg_control = control.buf;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)nfds);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)nfds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * (size_t)nfds);
	}
	do {
		n = sendmsg(sock, &msg, MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EPIPE ? -ECONNRESET : -errno;
	return 0;
}

/* Descriptors beyond what a message may carry are closed, not leaked. */
static void take_fds(struct cmsghdr *c, int fds[GMEM_WIRE_MAX_FDS])
{
	size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

	for (size_t i = 0; i < n; i++) {
		int fd;

		memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
		if (i < GMEM_WIRE_MAX_FDS && fds[i] < 0)
			fds[i] = fd;
		else
			close(fd);
	}
}

int gmem_wire_recv(int sock, struct gmem_wire *w, int fds[GMEM_WIRE_MAX_FDS], pid_t *ret_sender)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int) * 8) + CMSG_SPACE(sizeof(struct ucred))];
	} control;
	struct iovec iov = { .iov_base = w, .iov_len = sizeof(*w) };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};
	pid_t sender = 0;
	ssize_t n;

	for (int i = 0; i < GMEM_WIRE_MAX_FDS; i++)
		fds[i] = -1;
	do {
		n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
		if (c->cmsg_level != SOL_SOCKET)
			continue;
		if (c->cmsg_type == SCM_RIGHTS) {
			take_fds(c, fds);
		} else if (c->cmsg_type == SCM_CREDENTIALS) {
			struct ucred cred;

			memcpy(&cred, CMSG_DATA(c), sizeof(cred));
			sender = cred.pid;
		}
	}
	if (n == sizeof(*w) && w->magic == GMEM_WIRE_MAGIC && !(msg.msg_flags & MSG_TRUNC)) {
		w->text[sizeof(w->text) - 1] = '\0';
		if (ret_sender)
			*ret_sender = sender;
		return 0;
	}
	for (int i = 0; i < GMEM_WIRE_MAX_FDS; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
		fds[i] = -1;
	}
	return n == 0 ? -ECONNRESET : -EPROTO;
}
