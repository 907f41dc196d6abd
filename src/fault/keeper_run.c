/* SPDX-License-Identifier: MIT */
/* The keeper at work: its loop, and what it answers to the program and to servers. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "fault/keeper.h"
#include "sys/process.h"

static void close_all(int *fds)
{
	for (int i = 0; i < GMEM_WIRE_MAX_FDS; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
		fds[i] = -1;
	}
}

static bool hung_up(int sock)
{
	struct pollfd p = { .fd = sock };

	return poll(&p, 1, 0) > 0 && (p.revents & POLLHUP);
}

static void drop_server(struct gmem_keeper *k)
{
	if (k->server >= 0)
		close(k->server);
	k->server = -1;
}

/*
 * A server that does not listen is dropped; its successor is told everything again. One that has hung up may have said
 * BYE before: that is still to be read.
 */
static void tell_server(struct gmem_keeper *k, struct gmem_wire *w, const int *fds, int nfds)
{
	int err = k->server >= 0 ? gmem_wire_send(k->server, w, fds, nfds) : 0;

	if (err && err != -ECONNRESET)
		drop_server(k);
}

static void tell_region(struct gmem_keeper *k, uint32_t i, bool with_uffd)
{
	const struct gmem_keeper_region *r = &k->regions[i];
	const struct gmem_state_header *h = k->files[r->file]->state.header;
	struct gmem_wire w = {
		.type = GMEM_WIRE_REGION,
		.flags = r->user_mode_only ? GMEM_WIRE_USER_MODE_ONLY : 0,
		.dev = h->dev,
		.ino = h->ino,
		.hva = r->hva,
		.off = r->off,
		.len = r->len,
		.index = r->uffd,
	};

	tell_server(k, &w, &k->uffds[r->uffd], with_uffd ? 1 : 0);
}

static bool first_with_uffd(const struct gmem_keeper *k, uint32_t i)
{
	for (uint32_t j = 0; j < i; j++)
		if (k->regions[j].uffd == k->regions[i].uffd)
			return false;
	return true;
}

static void tell_vm(struct gmem_keeper *k)
{
	struct gmem_wire w = { .type = GMEM_WIRE_VM, .pid = k->vm_pid };

	if (k->vm_pid)
		tell_server(k, &w, NULL, 0);
}

/* ---- the program */

/* Until something of its memory is taken the program is whoever offered some last. */
static void know_vm(struct gmem_keeper *k, pid_t pid)
{
	if (pid <= 0 || pid == k->vm_pid || (k->vm_pid && k->nregions))
		return;
	if (k->vm_pidfd >= 0)
		close(k->vm_pidfd);
	k->vm_pidfd = gmem_pidfd_open(pid);
	k->vm_pid = pid;
	tell_vm(k);
}

/* False if that was the program's end; another may still hold its side of the socket pair. */
static bool forget_vm(struct gmem_keeper *k)
{
	if (k->nregions || !k->attach_open)
		return false;
	close(k->vm_pidfd);
	k->vm_pidfd = -1;
	k->vm_pid = 0;
	return true;
}

/* A program that does not read what it has asked for must not keep servers waiting: it is heard no more. */
static void answer_program(struct gmem_keeper *k, struct gmem_wire *w, const int *fds, int nfds)
{
	if (!k->attach_deaf && gmem_wire_send(k->attach[0], w, fds, nfds) == -EAGAIN)
		k->attach_deaf = true;
}

static void greet_program(struct gmem_keeper *k)
{
	struct gmem_wire done = { .type = GMEM_WIRE_DONE };

	for (uint32_t i = 0; i < k->nfiles; i++) {
		const struct gmem_state_header *h = k->files[i]->state.header;
		struct gmem_wire w = { .type = GMEM_WIRE_FILE, .dev = h->dev, .ino = h->ino, .len = k->files[i]->len };
		int fd = k->files[i]->state.fd;

		answer_program(k, &w, &fd, 1);
	}
	answer_program(k, &done, NULL, 0);
}

static void program_speaks(struct gmem_keeper *k)
{
	struct gmem_wire w, answer = { .type = GMEM_WIRE_OK };
	int fds[GMEM_WIRE_MAX_FDS];
	pid_t pid;
	int err = gmem_wire_recv(k->attach[0], &w, fds, &pid);

	/* An empty message looks like the end, but is none while somebody holds the other side. */
	if (err == -EPROTO || (err == -ECONNRESET && !hung_up(k->attach[0])))
		return;
	if (err) {
		k->attach_open = false;
		return;
	}
	/* Who maps is the program: a process that greets may fork before it does (-daemonize). */
	if (w.type == GMEM_WIRE_REGION)
		know_vm(k, pid);
	switch (w.type) {
	case GMEM_WIRE_HELLO:
		close_all(fds);
		greet_program(k);
		return;
	case GMEM_WIRE_REGION:
		err = gmem_keeper_take_region(k, &w, fds[0], &answer.index);
		fds[0] = -1;
		answer.error = err < 0 ? err : 0;
		if (!err)
			tell_region(k, k->nregions - 1, first_with_uffd(k, k->nregions - 1));
		break;
	case GMEM_WIRE_FAILED:
		k->failed = w;
		tell_server(k, &w, NULL, 0);
		break;
	default:
		answer.error = -EPROTO;
		break;
	}
	close_all(fds);
	answer_program(k, &answer, NULL, 0);
}

/* ---- servers */

static bool server_is_dead(const struct gmem_keeper *k, int timeout_ms)
{
	struct pollfd p = { .fd = k->server_pidfd, .events = POLLIN };

	if (k->server_pidfd < 0)
		return true;
	/* A pidfd is readable when its process has ended. */
	return poll(&p, 1, timeout_ms) > 0 && (p.revents & POLLIN);
}

/* Nobody else touches pages from here on: what is locked by an older generation is unfilled. */
static int raise_generation(struct gmem_keeper *k, pid_t server)
{
	uint32_t generation = 0;

	for (uint32_t i = 0; i < k->nfiles; i++)
		generation = (uint32_t)gmem_max_u64(generation, atomic_load(&k->files[i]->state.header->generation));
	if (generation >= GMEM_MAX_GENERATION - 1)
		return -EOVERFLOW;
	generation++;
	for (uint32_t i = 0; i < k->nfiles; i++) {
		struct gmem_state_header *h = k->files[i]->state.header;

		atomic_store(&h->generation, generation);
		atomic_store(&h->server_start, gmem_process_start(server));
		atomic_store(&h->server_pid, server);
	}
	return (int)generation;
}

static void hand_over(struct gmem_keeper *k, uint32_t generation)
{
	struct gmem_wire image = { .type = GMEM_WIRE_IMAGE, .index = generation };
	struct gmem_wire done = { .type = GMEM_WIRE_DONE };

	if (k->nfiles)
		memcpy(image.text, k->files[0]->state.header->image_path, sizeof(image.text));
	tell_server(k, &image, &k->image_fd, k->image_fd >= 0);
	for (uint32_t i = 0; i < k->nfiles; i++) {
		const struct gmem_state_header *h = k->files[i]->state.header;
		struct gmem_wire w = { .type = GMEM_WIRE_FILE,
				       .dev = h->dev,
				       .ino = h->ino,
				       .len = k->files[i]->len,
				       .index = h->image_region };
		int fds[2] = { k->files[i]->state.fd, k->files[i]->fd };

		tell_server(k, &w, fds, 2);
	}
	for (uint32_t i = 0; i < k->nregions; i++)
		tell_region(k, i, first_with_uffd(k, i));
	tell_vm(k);
	if (k->failed.type)
		tell_server(k, &k->failed, NULL, 0);
	tell_server(k, &done, NULL, 0);
}

/* The process at the other end of a connection: its number and a descriptor of it that cannot come to mean another. */
static int peer_of(int sock, pid_t *ret_pid)
{
	struct ucred cred = { 0 };
	socklen_t len = sizeof(cred);

	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &len))
		return -errno;
	if (cred.uid != geteuid() && cred.uid != 0)
		return -EPERM;
	*ret_pid = cred.pid;
	return gmem_pidfd_peer(sock, cred.pid);
}

static int admit(struct gmem_keeper *k, int sock, const struct gmem_wire *w)
{
	struct gmem_wire busy = { .type = GMEM_WIRE_BUSY, .pid = k->server_pid };
	struct gmem_wire no = { .type = GMEM_WIRE_OK };
	pid_t pid = 0;
	int pidfd, generation;

	pidfd = peer_of(sock, &pid);
	if (pidfd < 0) {
		no.error = pidfd;
		gmem_wire_send(sock, &no, NULL, 0);
		return pidfd;
	}
	if (!server_is_dead(k, 0) && (w->flags & GMEM_WIRE_TAKE_OVER))
		gmem_pidfd_kill(k->server_pidfd);
	if (!server_is_dead(k, w->flags & GMEM_WIRE_TAKE_OVER ? 10000 : 0)) {
		gmem_wire_send(sock, &busy, NULL, 0);
		close(pidfd);
		return -EBUSY;
	}
	drop_server(k);
	if (k->server_pidfd >= 0)
		close(k->server_pidfd);
	k->server_pidfd = pidfd;
	k->server_pid = pid;
	generation = raise_generation(k, pid);
	if (generation < 0)
		return generation;
	k->server = sock;
	hand_over(k, (uint32_t)generation);
	return 0;
}

/*
 * Somebody who connects and says nothing must not keep the others waiting: it makes room for the newest when there
 * are too many.
 */
static void new_connection(struct gmem_keeper *k)
{
	const struct timeval patience = { .tv_sec = 5 };
	int sock = accept4(k->listen_fd, NULL, NULL, SOCK_CLOEXEC);
	uint32_t i = 0;

	if (sock < 0)
		return;
	/* One that is stopped must not stop us. */
	setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	while (i < GMEM_KEEPER_MAX_CALLERS && k->callers[i] >= 0)
		i++;
	if (i == GMEM_KEEPER_MAX_CALLERS) {
		close(k->callers[0]);
		memmove(k->callers, k->callers + 1, sizeof(k->callers) - sizeof(k->callers[0]));
		i--;
	}
	k->callers[i] = sock;
}

static void caller_speaks(struct gmem_keeper *k, int sock)
{
	int fds[GMEM_WIRE_MAX_FDS];
	struct gmem_wire w;

	if (gmem_wire_recv(sock, &w, fds, NULL)) {
		close(sock);
		return;
	}
	close_all(fds);
	if (w.type != GMEM_WIRE_SERVE || admit(k, sock, &w))
		close(sock);
}

static void callers_speak(struct gmem_keeper *k, const struct pollfd *p)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < GMEM_KEEPER_MAX_CALLERS; i++) {
		int sock = k->callers[i];

		k->callers[i] = -1;
		if (p[i].revents)
			caller_speaks(k, sock);
		else if (sock >= 0)
			k->callers[kept++] = sock;
	}
}

static void server_speaks(struct gmem_keeper *k)
{
	int fds[GMEM_WIRE_MAX_FDS];
	struct gmem_wire w;
	int err = gmem_wire_recv(k->server, &w, fds, NULL);

	/* It hung up without reading all we told it: the reset comes first, then what it had said. */
	if (err == -ECONNRESET && hung_up(k->server))
		err = gmem_wire_recv(k->server, &w, fds, NULL);
	if (err) {
		drop_server(k);
		return;
	}
	close_all(fds);
	if (w.type != GMEM_WIRE_BYE)
		return;
	drop_server(k);
	if (k->server_pidfd >= 0)
		close(k->server_pidfd);
	k->server_pidfd = -1;
	for (uint32_t i = 0; i < k->nfiles; i++)
		atomic_store(&k->files[i]->state.header->server_pid, 0);
}

/* ---- */

int gmem_keeper_run(struct gmem_keeper *k)
{
	int err = gmem_keeper_lock(k);

	if (err)
		return err;
	/* The program's end must be the program's alone, or its end of file never comes. */
	if (k->attach[1] >= 0)
		close(k->attach[1]);
	k->attach[1] = -1;
	k->running = true;
	while (k->attach_open || k->vm_pidfd >= 0) {
		struct pollfd p[4 + GMEM_KEEPER_MAX_CALLERS] = {
			{ .fd = k->listen_fd, .events = POLLIN },
			{ .fd = k->attach_open ? k->attach[0] : -1, .events = k->attach_deaf ? 0 : POLLIN },
			{ .fd = k->server, .events = POLLIN },
			{ .fd = k->vm_pidfd, .events = POLLIN },
		};

		for (uint32_t i = 0; i < GMEM_KEEPER_MAX_CALLERS; i++)
			p[4 + i] = (struct pollfd){ .fd = k->callers[i], .events = POLLIN };
		if (poll(p, 4 + GMEM_KEEPER_MAX_CALLERS, -1) < 0) {
			if (errno == EINTR)
				continue;
			return gmem_err_sys(-errno, "gmem_keeper_run: poll");
		}
		if (p[3].revents && !forget_vm(k))
			return 0;
		if (p[1].revents && k->attach_deaf)
			k->attach_open = false;
		else if (p[1].revents)
			program_speaks(k);
		if (p[2].revents)
			server_speaks(k);
		callers_speak(k, p + 4);
		if (p[0].revents)
			new_connection(k);
	}
	return 0;
}
