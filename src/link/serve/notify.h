/* SPDX-License-Identifier: MIT */
/*
 * What a service says to whoever minds it: sd_notify(3)'s datagrams, without its library. Enters: assignments, a line
 * each, and a descriptor. Leaves: negative errno with a text. No lock; any thread, a message is sent as one.
 */
#ifndef GMEM_LINK_SERVE_NOTIFY_H
#define GMEM_LINK_SERVE_NOTIFY_H

#include <stdbool.h>
#include <sys/socket.h>
#include <sys/un.h>

struct gmem_notify {
	int fd; /* -1: nobody is told */
	struct sockaddr_un addr;
	socklen_t addrlen;
};

/* `address` as in $NOTIFY_SOCKET; NULL: nobody. -EAFNOSUPPORT, -ENAMETOOLONG, -EMFILE. */
int gmem_notify_open(struct gmem_notify *notify, const char *address);
void gmem_notify_close(struct gmem_notify *notify);

/*
 * Sends; `fd` is -1 or passed. `wait`: up to five seconds, if whoever is told does not read. -ETIMEDOUT, -EAGAIN
 * (without `wait`), -ECONNREFUSED (it is dead), -EBADF, -ETOOMANYREFS. 0 if nobody is told.
 */
int gmem_notify_send(const struct gmem_notify *notify, const char *text, int fd, bool wait);

/* BARRIER=1: all that was said before has been read. -ETIMEDOUT, -ECONNREFUSED. */
int gmem_notify_barrier(const struct gmem_notify *notify, unsigned int timeout_ms);

#endif
