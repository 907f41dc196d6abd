/* SPDX-License-Identifier: MIT */
/*
 * How a stream is peeked at: SO_PEEK_OFF says where the next MSG_PEEK begins, and moves with it. A peek ends behind a
 * part of the stream that came with descriptors, and gives copies of those; one that ends inside such a part would
 * give them once more with the rest. So there is always room for the longest part the kernel makes.
 */
#include "link/serve/hello.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/err.h"
#include "link/serve/hello_parts.h"
#include "sys/process.h"

#define PEEK_LEN (128u << 10) /* more than a part can have: that is less than 64 KiB */
#define TAKE_LEN (32u << 10) /* peeked and not taken, of which a sender's buffer may be full */
#define TAIL_LEN 256u /* bytes that may come between a text and its descriptors */
#define KERNEL_MAX_FDS 253 /* SCM_MAX_FD: of one sendmsg(2) */

#ifndef SCM_PIDFD
#define SCM_PIDFD 4
#endif

struct gmem_hello {
	int sock; /* borrowed */
	int failed; /* what gmem_hello_feed() answers for good */
	char failure[256];
	char *buf; /* all that has come, taken off the socket or not */
	size_t len, room;
	size_t taken;
	size_t scanned;
	size_t text_at, text_end; /* text_end 0: not known yet */
	size_t tail; /* bytes behind the text that belong to nothing */
	size_t end; /* of the message, with what the descriptors came with */
	struct gmem_hello_scan scan;
	int fds[GMEM_HELLO_MAX_FDS];
	size_t nfds;
	size_t fds_end; /* of the part that came with them; no byte behind it can have been seen with it */
	struct gmem_hello_message *message; /* from the text's end on; with descriptors once it is complete */
	bool complete;
};

static int set_peek_off(int sock, int off)
{
	return setsockopt(sock, SOL_SOCKET, SO_PEEK_OFF, &off, sizeof(off)) ? -errno : 0;
}

int gmem_hello_new(int sock, struct gmem_hello **ret)
{
	socklen_t len = sizeof(int);
	struct gmem_hello *h;
	int type, domain, err;

	if (getsockopt(sock, SOL_SOCKET, SO_TYPE, &type, &len) ||
	    getsockopt(sock, SOL_SOCKET, SO_DOMAIN, &domain, &len))
		return gmem_err_sys(-errno, "descriptor %d", sock);
	if (type != SOCK_STREAM || domain != AF_UNIX)
		return gmem_err(-EINVAL, "descriptor %d is no UNIX stream socket", sock);
	err = set_peek_off(sock, 0);
	if (err)
		return gmem_err_sys(err, "SO_PEEK_OFF");
	h = calloc(1, sizeof(*h));
	if (!h)
		return gmem_err_sys(-ENOMEM, "a new client");
	h->sock = sock;
	*ret = h;
	return 0;
}

static void close_fds(int *fds, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

void gmem_hello_message_free(struct gmem_hello_message *m)
{
	if (!m)
		return;
	close_fds(m->uffds, m->nuffds);
	close_fds((int[]){ m->memory_fd, m->state_fd, m->bitmap_fd, m->pidfd }, 4);
	free(m->regions);
	free(m->text);
	free(m);
}

void gmem_hello_free(struct gmem_hello *h)
{
	if (!h)
		return;
	if (!h->complete)
		close_fds(h->fds, h->nfds);
	gmem_hello_message_free(h->message);
	free(h->buf);
	free(h);
}

/* Every descriptor of the control messages: ours or closed, none forgotten. -E2BIG: more than anybody sends. */
static int keep_fds(struct gmem_hello *h, struct msghdr *msg)
{
	int err = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || (c->cmsg_type != SCM_RIGHTS && c->cmsg_type != SCM_PIDFD))
			continue;
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (c->cmsg_type == SCM_RIGHTS && h->nfds < GMEM_HELLO_MAX_FDS) {
				h->fds[h->nfds++] = fd;
				continue;
			}
			if (c->cmsg_type == SCM_RIGHTS)
				err = -E2BIG;
			if (fd >= 0)
				close(fd);
		}
	}
	if (err)
		return gmem_err(err, "more than %u descriptors", (unsigned int)GMEM_HELLO_MAX_FDS);
	/* There was room for all that one message can have, so it is our own table that is full. */
	if (msg->msg_flags & MSG_CTRUNC)
		return gmem_err_sys(-EMFILE, "taking its descriptors");
	return 0;
}

static int make_room(struct gmem_hello *h)
{
	size_t room = h->room ? h->room * 2 : PEEK_LEN;
	char *buf;

	if (h->room - h->len >= PEEK_LEN)
		return 0;
	buf = realloc(h->buf, room);
	if (!buf)
		return gmem_err_sys(-ENOMEM, "%zu bytes for its message", room);
	h->buf = buf;
	h->room = room;
	return 0;
}

/* How many bytes came, 0 if none have. -ECONNRESET: none will. */
static int peek(struct gmem_hello *h, size_t *ret)
{
	union {
		struct cmsghdr align;
		/* And what the socket may have been told to say of its sender. */
		char buf[CMSG_SPACE(sizeof(int) * KERNEL_MAX_FDS) + CMSG_SPACE(sizeof(struct ucred)) +
			 CMSG_SPACE(sizeof(int)) + CMSG_SPACE(4096)];
	} control;
	struct iovec iov;
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};
	size_t had = h->nfds;
	ssize_t n;
	int err = make_room(h);

	*ret = 0;
	if (err)
		return err;
	iov = (struct iovec){ .iov_base = h->buf + h->len, .iov_len = h->room - h->len };
	do {
		n = recvmsg(h->sock, &msg, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : gmem_err_sys(-errno, "its message");
	err = keep_fds(h, &msg);
	if (err)
		return err;
	if (!n)
		return gmem_err(-ECONNRESET, "closed after %zu bytes: %s", h->len, gmem_hello_missing(h));
	h->len += (size_t)n;
	if (h->nfds > had)
		h->fds_end = h->len;
	*ret = (size_t)n;
	return 0;
}

/* Takes bytes off the socket that were peeked. The copies of descriptors are ours; the queue's go, without new ones. */
static int take(struct gmem_hello *h, size_t upto)
{
	char scrap[4096];

	while (h->taken < upto) {
		size_t want = upto - h->taken < sizeof(scrap) ? upto - h->taken : sizeof(scrap);
		ssize_t n = recv(h->sock, scrap, want, MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK)
			return gmem_err_sys(-errno, "its message");
		if (n <= 0 || memcmp(scrap, h->buf + h->taken, (size_t)n) != 0)
			return gmem_err(-EPROTO, "somebody else has read from its socket");
		h->taken += (size_t)n;
	}
	return 0;
}

/*
 * Between a text and its descriptors: a text that is told again must be the same, and other bytes are there for the
 * descriptors to come with.
 */
static int look_at_tail(struct gmem_hello *h)
{
	if (h->len - h->text_end > GMEM_HELLO_MAX_BYTES + PEEK_LEN)
		return gmem_err(-E2BIG, "a text that is told again and again, and no descriptor");
	while (h->scanned < h->len && h->buf[h->scanned] != h->buf[h->text_at]) {
		h->scanned++;
		if (++h->tail > TAIL_LEN)
			return gmem_err(-EPROTO, "%u bytes behind its text, and no descriptor", TAIL_LEN);
	}
	if (h->scanned < h->len) {
		size_t len = h->text_end - h->text_at;
		size_t have = h->len - h->scanned < len ? h->len - h->scanned : len;

		if (memcmp(h->buf + h->scanned, h->buf + h->text_at, have) != 0)
			return gmem_err(-EPROTO, "two texts that differ");
		if (have == len)
			h->scanned += len;
	}
	return 0;
}

static int look_at_text(struct gmem_hello *h)
{
	size_t used;
	int r = gmem_hello_scan(&h->scan, h->buf + h->scanned, h->len - h->scanned, &used);

	h->scanned += used;
	if (r >= 0 && h->scanned > GMEM_HELLO_MAX_BYTES)
		return gmem_err(-E2BIG, "a message of more than %u bytes", GMEM_HELLO_MAX_BYTES);
	if (r <= 0)
		return r;
	h->text_end = h->scanned;
	while (h->buf[h->text_at] != '[' && h->buf[h->text_at] != '{')
		h->text_at++;
	return gmem_hello_parse_text(h->buf + h->text_at, h->text_end - h->text_at, &h->message);
}

static void ask_peer(struct gmem_hello *h)
{
	struct gmem_hello_message *m = h->message;
	struct ucred cred;
	socklen_t len = sizeof(cred);

	m->uid = (uid_t)-1;
	m->gid = (gid_t)-1;
	if (getsockopt(h->sock, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0) {
		m->pid = cred.pid;
		m->uid = cred.uid;
		m->gid = cred.gid;
	}
	m->pidfd = gmem_pidfd_peer(h->sock, m->pid);
	if (m->pidfd < 0)
		m->pidfd = -1;
}

/* At what has come since. 1: complete. */
static int look(struct gmem_hello *h)
{
	bool in_tail = h->message;
	size_t min, max;
	int err = in_tail ? look_at_tail(h) : look_at_text(h);

	if (err || !h->message)
		return err;
	gmem_hello_fds_wanted(h->message, &min, &max);
	/* The text has just ended. What is behind it, of the part with the descriptors or before that, is its tail. */
	if (!in_tail && (h->nfds < min || h->fds_end > h->text_end)) {
		in_tail = true;
		err = look_at_tail(h);
		if (err)
			return err;
	}
	/* The rest of a text that is told again is to come. */
	if (h->nfds < min || (in_tail && h->scanned < h->len))
		return 0;
	err = gmem_hello_give_fds(h->message, h->fds, h->nfds);
	if (err)
		return err;
	h->end = h->scanned;
	h->complete = true;
	ask_peer(h);
	return 1;
}

/* What has been peeked and is not the whole text. */
static int take_beginning(struct gmem_hello *h)
{
	return h->message ? 0 : take(h, h->len);
}

static int feed(struct gmem_hello *h)
{
	size_t n;
	int r;

	do {
		r = peek(h, &n);
		if (!r && n)
			r = look(h);
		if (!r && h->len - h->taken >= TAKE_LEN)
			r = take_beginning(h);
	} while (!r && n);
	return r;
}

static int answer_for(struct gmem_hello *h, int r)
{
	if (r < 0) {
		h->failed = r;
		strncpy(h->failure, gmem_last_error(), sizeof(h->failure) - 1);
	}
	return r;
}

int gmem_hello_feed(struct gmem_hello *h)
{
	if (h->failed)
		return gmem_err(h->failed, "%s", h->failure);
	return h->complete ? 1 : answer_for(h, feed(h));
}

int gmem_hello_tick(struct gmem_hello *h)
{
	int r = h->failed || h->complete ? 0 : answer_for(h, take_beginning(h));

	return r ? r : gmem_hello_feed(h);
}

const char *gmem_hello_missing(const struct gmem_hello *h)
{
	if (h->complete)
		return "nothing is missing";
	if (!h->len)
		return "it has said nothing";
	if (!h->message)
		return "its text has no end";
	return h->nfds ? "not all of its descriptors have come" : "no descriptor has come";
}

const struct gmem_hello_message *gmem_hello_message(const struct gmem_hello *h)
{
	return h->complete ? h->message : NULL;
}

int gmem_hello_consume(struct gmem_hello *h)
{
	int err;

	if (!h->complete)
		return gmem_err(-EPROTO, "%s", gmem_hello_missing(h));
	err = take(h, h->end);
	if (!err)
		(void)set_peek_off(h->sock, -1);
	return err;
}

struct gmem_hello_message *gmem_hello_take(struct gmem_hello *h)
{
	struct gmem_hello_message *m = h->complete ? h->message : NULL;

	if (m)
		h->message = NULL;
	return m;
}

int gmem_hello_answer(const struct gmem_hello *h, int error, const char *text)
{
	size_t i = 0;

	while (i < h->len && h->buf[i] != '{' && h->buf[i] != '[')
		i++;
	if (i == h->len || h->buf[i] != '{')
		return 0;
	return gmem_hello_answer_to(h->sock, error, text);
}
