/* SPDX-License-Identifier: MIT */
/*
 * Another process that has the same memory open: forked before there is any object of the library, it does what it is
 * told over a socket. Included after tap.h.
 */
#ifndef GMEM_TESTS_PEER_UTIL_H
#define GMEM_TESTS_PEER_UTIL_H

#include "convert_util.h"

enum peer_op {
	OP_CREATE = 1, /* len; descriptors come back */
	OP_OPEN, /* with descriptors */
	OP_FREE,
	OP_MAP, /* off, len: a view; index comes back */
	OP_UNMAP, /* index */
	OP_PEEK, /* off, in the first view */
	OP_POKE, /* off, index */
	OP_READ, /* off: by gmem_file_read() */
	OP_PIN, /* off, len */
	OP_UNPIN,
	OP_CONVERT, /* off, len, index: attributes; off comes back */
	OP_RAW, /* off, len: a mapping that is no view */
	OP_UNRAW,
	OP_TOUCH, /* a thread that reads the whole first view again and again, until OP_REST, and counts its SIGBUS */
	OP_REST,
	OP_SPOIL, /* the first view cannot be marked from now on */
	OP_SERVE, /* the first view takes userfaults */
	OP_COPY, /* off: a page for a userfault */
	OP_FORK, /* a child that stays; its pid comes back */
	OP_END,
};

struct other {
	pid_t pid;
	int sock;
	char text[256]; /* of what failed last */
	uint64_t off;
};

/* What the other process has. */
static struct {
	struct gmem_file *file;
	struct gmem_view *views[4];
	struct gmem_uffd *uffd;
	int raw_uffd, memory;
	char *raw;
	uint64_t raw_len;
	pthread_t toucher;
	bool touching;
	pid_t child;
} has;

static _Atomic bool has_rest;
static _Atomic uint64_t has_sigbus;

static inline void *touch_all(void *arg)
{
	const struct gmem_view *view = has.views[0];

	while (!atomic_load(&has_rest))
		for (uint64_t page = view->off / P; page < (view->off + view->len) / P; page++)
			if (peek(page_of(view, page)) < 0)
				atomic_fetch_add(&has_sigbus, 1);
	return arg;
}

static inline int op_map(struct gmem_wire *w)
{
	for (w->index = 0; has.views[w->index]; w->index++)
		CHECK(w->index < 3);
	return gmem_view_map(has.file, w->off, w->len, PROT_READ | PROT_WRITE, &has.views[w->index]);
}

static inline int op_raw(const struct gmem_wire *w)
{
	has.raw_len = w->len;
	has.raw = mmap(NULL, w->len, PROT_READ, MAP_SHARED, has.memory, (off_t)w->off);
	return has.raw == MAP_FAILED ? -errno : 0;
}

static inline int op_spoil(void)
{
	const struct gmem_view *view = has.views[0];

	has.raw_uffd = gmem_sys_uffd_open(UFFD_FEATURE_MISSING_SHMEM, &(bool){ false });
	if (has.raw_uffd < 0)
		return has.raw_uffd;
	return gmem_sys_uffd_register(has.raw_uffd, (uint64_t)(uintptr_t)view->addr, view->len, GMEM_SYS_UFFD_MISSING);
}

static inline int op_serve(void)
{
	struct gmem_uffd_opts o = { .size = sizeof(o) };
	int err = gmem_uffd_create(&o, &has.uffd);

	return err ? err : gmem_uffd_add_view(has.uffd, has.views[0]);
}

static inline int op_copy(const struct gmem_wire *w)
{
	static char page[4096];

	memset(page, 'c', sizeof(page));
	return (int)gmem_uffd_copy(has.uffd, has.views[0], w->off, page, P);
}

static inline int op_fork(struct gmem_wire *w)
{
	has.child = fork();
	if (!has.child)
		for (;;)
			pause();
	w->pid = has.child;
	return 0;
}

static inline int do_op(struct gmem_wire *w, const int *fds)
{
	char byte;
	int err;

	switch (w->type) {
	case OP_CREATE:
		return gmem_file_create(w->len, NULL, &has.file);
	case OP_OPEN:
		has.memory = fds[0];
		err = gmem_file_open(fds[0], fds[1], &has.file);
		close(fds[1]);
		return err;
	case OP_FREE:
		gmem_file_free(has.file);
		has.file = NULL;
		return 0;
	case OP_MAP:
		return op_map(w);
	case OP_UNMAP:
		gmem_view_unmap(has.views[w->index]);
		has.views[w->index] = NULL;
		return 0;
	case OP_PEEK:
		return peek(gmem_view_at(has.views[0], w->off));
	case OP_POKE:
		return poke(gmem_view_at(has.views[0], w->off), (int)w->index);
	case OP_READ:
		err = gmem_file_read(has.file, w->off, &byte, 1);
		return err ? err : byte;
	case OP_PIN:
		return gmem_file_pin(has.file, w->off, w->len);
	case OP_UNPIN:
		return gmem_file_unpin(has.file, w->off, w->len);
	case OP_CONVERT:
		return gmem_file_set_attributes(has.file, w->off, w->len, w->index, &w->off);
	case OP_RAW:
		return op_raw(w);
	case OP_UNRAW:
		return munmap(has.raw, has.raw_len);
	case OP_TOUCH:
		has.touching = true;
		atomic_store(&has_rest, false);
		atomic_store(&has_sigbus, 0);
		return pthread_create(&has.toucher, NULL, touch_all, NULL);
	case OP_REST:
		atomic_store(&has_rest, true);
		has.touching = false;
		pthread_join(has.toucher, NULL);
		return (int)atomic_load(&has_sigbus);
	case OP_SPOIL:
		return op_spoil();
	case OP_SERVE:
		return op_serve();
	case OP_COPY:
		return op_copy(w);
	case OP_FORK:
		return op_fork(w);
	default:
		return -EINVAL;
	}
}

static inline void be_told(int sock)
{
	struct gmem_wire w;
	int fds[GMEM_WIRE_MAX_FDS];

	has.memory = -1;
	while (gmem_wire_recv(sock, &w, fds, NULL) == 0 && w.type != OP_END) {
		int own[2], nfds = 0;

		w.error = do_op(&w, fds);
		snprintf(w.text, sizeof(w.text), "%s", gmem_last_error());
		if (w.type == OP_CREATE && !w.error) {
			own[nfds++] = gmem_file_fd(has.file);
			own[nfds++] = gmem_file_state_fd(has.file);
		}
		if (gmem_wire_send(sock, &w, own, nfds))
			break;
	}
	for (int i = 0; i < 4; i++)
		gmem_view_unmap(has.views[i]);
	gmem_uffd_free(has.uffd);
	gmem_file_free(has.file);
}

/* Before the caller has any object. */
static inline struct other other_process(void)
{
	struct other o = { .sock = -1 };
	int s[2];

	catch_bus();
	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s), 0);
	fflush(NULL);
	o.pid = fork();
	CHECK(o.pid >= 0);
	if (!o.pid) {
		close(s[0]);
		be_told(s[1]);
		_exit(0);
	}
	close(s[1]);
	o.sock = s[0];
	return o;
}

static inline void ask_only(struct other *o, enum peer_op op, uint64_t off, uint64_t len, uint32_t index)
{
	struct gmem_wire w = { .type = (uint16_t)op, .off = off, .len = len, .index = index };

	CHECK_EQ(gmem_wire_send(o->sock, &w, NULL, 0), 0);
}

/* What the operation returned. */
static inline int answer_of(struct other *o, struct gmem_wire *w, int fds[2])
{
	int err = gmem_wire_recv(o->sock, w, fds, NULL);

	if (err)
		FAIL("the other process does not answer: %s", strerror(-err));
	snprintf(o->text, sizeof(o->text), "%.255s", w->text);
	o->off = w->off;
	return w->error;
}

static inline int tell(struct other *o, enum peer_op op, uint64_t off, uint64_t len, uint32_t index)
{
	struct gmem_wire w;
	int fds[2];

	ask_only(o, op, off, len, index);
	return answer_of(o, &w, fds);
}

static inline void tell_ok(struct other *o, enum peer_op op, uint64_t off, uint64_t len)
{
	int err = tell(o, op, off, len, 0);

	if (err)
		FAIL("operation %d of the other process: %s (%s)", (int)op, strerror(-err), o->text);
}

static inline int give(struct other *o, int memory, int state)
{
	struct gmem_wire w = { .type = OP_OPEN };
	int fds[2] = { memory, state };

	CHECK_EQ(gmem_wire_send(o->sock, &w, fds, 2), 0);
	return answer_of(o, &w, fds);
}

/* The other process is a peer, with a view of the whole file. */
static inline void join_in(struct other *o, struct gmem_file *file)
{
	CHECK_EQ(give(o, gmem_file_fd(file), gmem_file_state_fd(file)), 0);
	tell_ok(o, OP_MAP, 0, gmem_file_size(file));
}

static inline int its(struct other *o, uint64_t page)
{
	return tell(o, OP_PEEK, page * P, 0, 0);
}

/* All of its threads, when it returns: the signal alone takes a while to do that. */
static inline void stop_other(struct other *o)
{
	int status;

	CHECK_EQ(kill(o->pid, SIGSTOP), 0);
	CHECK_EQ(waitpid(o->pid, &status, WUNTRACED), o->pid);
	CHECK(WIFSTOPPED(status));
}

static inline void end_other(struct other *o)
{
	/* Processes that were forked later have the socket too. */
	ask_only(o, OP_END, 0, 0, 0);
	close(o->sock);
	wait_ok(o->pid);
}

#endif
