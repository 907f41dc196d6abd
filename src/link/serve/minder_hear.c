/* SPDX-License-Identifier: MIT */
/* What the server says (sd_notify(3)), and what is kept for it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"
#include "link/serve/minder_impl.h"
#include "link/serve/name.h"
#include "link/serve/socket.h"
#include "sys/process.h"

#define MAX_FDS 16

/* ---- what is kept */

bool gmem_minder_room(const struct gmem_minder *m)
{
	return m->nstored < m->limit && m->names + GMEM_STORE_MAX_NAME + GMEM_MINDER_PER_NAME <= GMEM_MINDER_MAX_NAMES;
}

static bool is_kept(const struct gmem_minder *m, const char *name, int fd)
{
	for (uint32_t i = 0; i < m->nstored; i++)
		if (!strcmp(m->stored[i].name, name) && gmem_same_file(m->stored[i].fd, fd))
			return true;
	return false;
}

int gmem_minder_keep(struct gmem_minder *m, const char *name, int fd, bool untold)
{
	struct gmem_minder_stored *s = m->stored;
	int err = 0;

	if (is_kept(m, name, fd)) {
		close(fd);
		return 0;
	}
	if (!gmem_minder_room(m))
		err = -ENOSPC;
	if (!err && m->nstored == m->room) {
		uint32_t room = m->room ? 2 * m->room : 64;

		s = reallocarray(m->stored, room, sizeof(*s));
		if (s) {
			m->stored = s;
			m->room = room;
		} else {
			err = -ENOMEM;
		}
	}
	if (err) {
		close(fd);
		return err;
	}
	s = &m->stored[m->nstored++];
	snprintf(s->name, sizeof(s->name), "%s", name);
	s->fd = fd;
	s->untold = untold;
	m->nuntold += untold;
	m->names += strlen(name) + GMEM_MINDER_PER_NAME;
	return 0;
}

static void let_go(struct gmem_minder *m, const char *name)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < m->nstored; i++) {
		if (strcmp(m->stored[i].name, name)) {
			m->stored[kept++] = m->stored[i];
			continue;
		}
		close(m->stored[i].fd);
		m->nuntold -= m->stored[i].untold;
		m->names -= strlen(name) + GMEM_MINDER_PER_NAME;
	}
	m->nstored = kept;
	m->accept_at = 0;
}

int gmem_minder_listen(struct gmem_minder *m, const char *name, int fd)
{
	struct gmem_minder_listening *l = &m->listening[m->nlistening];

	for (uint32_t i = 0; i < m->nlistening; i++) {
		if (!gmem_same_file(m->listening[i].fd, fd))
			continue;
		close(fd);
		return 0;
	}
	if (m->nlistening == GMEM_MINDER_MAX_LISTENING || !gmem_name_ok(name)) {
		close(fd);
		return gmem_err(-ENOSPC, "%s: more than %u listening sockets, or a name that cannot be", name,
				GMEM_MINDER_MAX_LISTENING);
	}
	snprintf(l->name, sizeof(l->name), "%s", name);
	l->fd = fd;
	l->clients = !strncmp(name, GMEM_STORE_CLIENTS, strlen(GMEM_STORE_CLIENTS));
	m->nlistening++;
	m->names += strlen(name) + GMEM_MINDER_PER_NAME;
	return 0;
}

/* ---- messages */

struct said {
	bool store, remove, ready, stopping, watchdog, trigger;
	const char *name, *status;
};

static void read_lines(char *text, struct said *ret)
{
	*ret = (struct said){ 0 };
	for (char *line = strtok_r(text, "\n", &text); line; line = strtok_r(NULL, "\n", &text)) {
		char *eq = strchr(line, '=');
		const char *value = eq ? eq + 1 : "";
		bool one = !strcmp(value, "1");

		if (!eq)
			continue;
		*eq = '\0';
		ret->store |= !strcmp(line, "FDSTORE") && one;
		ret->remove |= !strcmp(line, "FDSTOREREMOVE") && one;
		ret->ready |= !strcmp(line, "READY") && one;
		ret->stopping |= !strcmp(line, "STOPPING") && one;
		ret->watchdog |= !strcmp(line, "WATCHDOG") && one;
		ret->trigger |= !strcmp(line, "WATCHDOG") && !strcmp(value, "trigger");
		if (!strcmp(line, "FDNAME"))
			ret->name = value;
		if (!strcmp(line, "STATUS"))
			ret->status = value;
	}
}

static void store(struct gmem_minder *m, const char *name, int *fds, size_t n)
{
	int err = 0;

	if (!name || !gmem_name_ok(name))
		name = "stored"; /* what systemd calls it */
	for (size_t i = 0; i < n; i++) {
		int kept = gmem_socket_listens(fds[i]) ? gmem_minder_listen(m, name, fds[i]) :
							 gmem_minder_keep(m, name, fds[i], false);

		err = err ? err : kept;
		fds[i] = -1;
	}
	if (err)
		gmem_minder_say(m, "%s is not kept: %s; it goes with the server", name,
				err == -ENOSPC ? "there is no room for more" : strerror(-err));
}

static void tell_above(const struct gmem_minder *m, const struct said *s)
{
	char text[600];

	if (s->ready || s->stopping || s->status) {
		snprintf(text, sizeof(text), "%s%s%s%.500s", s->ready ? "READY=1\n" : "",
			 s->stopping ? "STOPPING=1\n" : "", s->status ? "STATUS=" : "", s->status ? s->status : "");
		(void)gmem_notify_send(&m->above, text, -1, false);
	}
}

static void act(struct gmem_minder *m, char *text, int *fds, size_t n)
{
	struct said s;

	m->heard = gmem_now_ms();
	/* A barrier's descriptor is closed by whoever called us: all before it has been acted on. */
	if (!strcmp(text, "BARRIER=1"))
		return;
	read_lines(text, &s);
	if (s.store)
		store(m, s.name, fds, n);
	if (s.remove && s.name)
		let_go(m, s.name);
	if (s.ready && !m->ready) {
		m->ready = m->ever_ready = true;
		m->become = m->upgrade && !m->own_program;
		if (m->upgrade && m->own_program)
			gmem_minder_say(m, "the new program did not get ready; the old one goes on");
		m->upgrade = false;
	}
	m->stopping |= s.stopping;
	if (s.trigger)
		m->heard = 0;
	tell_above(m, &s);
}

/* One message; false: there was none. */
static bool hear_one(struct gmem_minder *m)
{
	char control[CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(MAX_FDS * sizeof(int))]
		__attribute__((aligned(__alignof__(struct cmsghdr))));
	char text[4096];
	struct iovec iov = { .iov_base = text, .iov_len = sizeof(text) - 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)
	};
	struct ucred cred = { 0 };
	int fds[MAX_FDS];
	size_t nfds = 0;
	ssize_t n;

	do {
		n = recvmsg(m->notify, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return false;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
		if (c->cmsg_level != SOL_SOCKET)
			continue;
		if (c->cmsg_type == SCM_CREDENTIALS && c->cmsg_len == CMSG_LEN(sizeof(cred)))
			memcpy(&cred, CMSG_DATA(c), sizeof(cred));
		if (c->cmsg_type == SCM_RIGHTS) {
			nfds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
			memcpy(fds, CMSG_DATA(c), nfds * sizeof(int));
		}
	}
	text[n] = '\0';
	/* Nobody else speaks for the server, least of all one that was given up. */
	if (cred.pid == m->pid && m->pid) {
		if (msg.msg_flags & MSG_CTRUNC)
			gmem_minder_say(m, "a descriptor is not kept: this process has no room for more");
		act(m, text, fds, nfds);
	}
	for (size_t i = 0; i < nfds; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	return true;
}

void gmem_minder_hear(struct gmem_minder *m)
{
	while (hear_one(m))
		;
}
