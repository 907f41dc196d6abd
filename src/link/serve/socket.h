/* SPDX-License-Identifier: MIT */
/* UNIX sockets of the page server and its minder. Negative errno with a text. No state, no lock. */
#ifndef GMEM_LINK_SERVE_SOCKET_H
#define GMEM_LINK_SERVE_SOCKET_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

/* An address as in $NOTIFY_SOCKET: a path, or "@name" in the abstract namespace. -EAFNOSUPPORT, -ENAMETOOLONG. */
int gmem_socket_address(const char *text, struct sockaddr_un *ret, socklen_t *ret_len);

/*
 * A stream socket (non-blocking, close-on-exec) that listens at a path, mode 0600 from the first instant on. One that
 * nobody listens at is replaced. -EADDRINUSE: somebody does, or it is no socket.
 */
int gmem_socket_listen(const char *path);

bool gmem_socket_listens(int fd);

/* One message with at most one descriptor (-1: none). -EAGAIN: it would wait, or has waited for SO_SNDTIMEO. */
int gmem_socket_send(int fd, const void *buf, size_t len, int passed, int flags);

/*
 * The next message, without waiting: its length, `*ret_fd` -1 if it has no descriptor. It is looked at before it is
 * taken: -EMFILE leaves it where it is. -EAGAIN: none; 0: the other end is closed.
 */
int gmem_socket_recv(int fd, void *buf, size_t len, int *ret_fd);

#endif
