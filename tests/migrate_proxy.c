/* SPDX-License-Identifier: MIT */
#include "migrate_util.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#define MAX_WIRES 64u
#define WIRE_BUF 65536u

int listen_any(uint16_t *port)
{
	struct sockaddr_in addr = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(addr);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	CHECK(fd >= 0 && !bind(fd, (struct sockaddr *)&addr, sizeof(addr)) && !listen(fd, 16));
	CHECK(!getsockname(fd, (struct sockaddr *)&addr, &len));
	*port = ntohs(addr.sin_port);
	return fd;
}

int connect_port(uint16_t port)
{
	struct sockaddr_in addr = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	addr.sin_port = htons(port);
	CHECK(fd >= 0);
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

/* One direction of a connection. TLS records are told by their heads: type, version, length. */
struct way {
	uint8_t *buf;
	size_t at, len;
	uint8_t head[5];
	unsigned int head_len;
	size_t record; /* bytes of it still to come */
	bool eof;
};

struct wire {
	int fd[2]; /* who connected, whom to; -1: none */
	struct way way[2]; /* from fd[i] */
	bool bulk;
};

static void wire_close(struct wire *w, bool reset)
{
	const struct linger hard = { .l_onoff = 1 };

	for (int i = 0; i < 2; i++) {
		if (reset)
			setsockopt(w->fd[i], SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
		close(w->fd[i]);
		w->fd[i] = -1;
		free(w->way[i].buf);
		w->way[i] = (struct way){ 0 };
	}
}

static void wire_cut(struct proxy *p, struct wire *w)
{
	atomic_fetch_add(&p->cuts, 1);
	wire_close(w, atomic_load(&p->reset));
}

/* How much of what is there goes before something is to happen, counted down. -1: it happens now. */
static int64_t allowance(struct proxy *p, struct way *way, size_t n)
{
	int64_t bytes = atomic_load(&p->cut_bytes);
	size_t i = 0;

	if (bytes == 0) {
		atomic_store(&p->cut_bytes, -1);
		return -1;
	}
	if (bytes > 0 && (int64_t)n > bytes)
		n = (size_t)bytes;
	while (i < n) {
		size_t step;

		if (!way->record) {
			if (!way->head_len && atomic_load(&p->cut_records) == 0) {
				if (i)
					break;
				atomic_store(&p->cut_records, -1);
				return -1;
			}
			way->head[way->head_len++] = way->buf[way->at + i++];
			if (way->head_len < 5)
				continue;
			way->record = (size_t)way->head[3] << 8 | way->head[4];
			way->head_len = 0;
			atomic_fetch_add(&p->records, 1);
			if (atomic_load(&p->cut_records) > 0)
				atomic_fetch_sub(&p->cut_records, 1);
			continue;
		}
		step = n - i < way->record ? n - i : way->record;
		way->record -= step;
		i += step;
	}
	if (bytes > 0)
		atomic_fetch_sub(&p->cut_bytes, (int64_t)i);
	return (int64_t)i;
}

static bool held(struct proxy *p, const struct wire *w, int from)
{
	return atomic_load(&p->hold) || (from == 1 && w->bulk && atomic_load(&p->hold_bulk));
}

/* Forwards what is there; false: the connection has gone. */
static bool forward(struct proxy *p, struct wire *w, int from)
{
	struct way *way = &w->way[from];
	int64_t n;

	if (!way->len && !way->eof) {
		ssize_t r = recv(w->fd[from], way->buf, WIRE_BUF, MSG_DONTWAIT);

		if (r < 0 && (errno == EAGAIN || errno == EINTR))
			return true;
		way->at = 0;
		way->len = r > 0 ? (size_t)r : 0;
		way->eof = r <= 0;
	}
	while (way->len) {
		ssize_t sent;

		n = allowance(p, way, way->len);
		if (n < 0) {
			wire_cut(p, w);
			return false;
		}
		/* To the end: what was counted has gone, or the connection is no more. */
		for (int64_t done = 0; done<n; done += sent> 0 ? sent : 0) {
			struct pollfd out = { .fd = w->fd[!from], .events = POLLOUT };

			sent = send(w->fd[!from], way->buf + way->at + done, (size_t)(n - done),
				    MSG_NOSIGNAL | MSG_DONTWAIT);
			if (sent < 0 && errno == EAGAIN) {
				if (atomic_load(&p->stop))
					return true;
				poll(&out, 1, 50);
			} else if (sent < 0) {
				wire_close(w, false);
				return false;
			}
		}
		way->at += (size_t)n;
		way->len -= (size_t)n;
		atomic_fetch_add(&p->bytes, (uint64_t)n);
		if (from == 1)
			atomic_fetch_add(&p->down_bytes[w->bulk], (uint64_t)n);
	}
	if (way->eof) {
		wire_close(w, false);
		return false;
	}
	return true;
}

static void take_connection(struct proxy *p, struct wire *wires)
{
	int fd = accept4(p->listen_fd, NULL, NULL, SOCK_CLOEXEC), to;
	struct wire *w = wires;

	if (fd < 0)
		return;
	to = atomic_load(&p->refuse) ? -1 : connect_port(p->to);
	while (w < wires + MAX_WIRES && w->fd[0] >= 0)
		w++;
	if (to < 0 || w == wires + MAX_WIRES) {
		close(fd);
		if (to >= 0)
			close(to);
		return;
	}
	*w = (struct wire){ .fd = { fd, to }, .bulk = atomic_fetch_add(&p->accepted, 1) & 1 };
	for (int i = 0; i < 2; i++) {
		w->way[i].buf = malloc(WIRE_BUF);
		CHECK(w->way[i].buf);
	}
}

static void *proxy_run(void *opaque)
{
	struct proxy *p = opaque;
	struct wire wires[MAX_WIRES];
	struct pollfd polls[2 * MAX_WIRES + 1];

	memset(wires, 0, sizeof(wires));
	for (unsigned int i = 0; i < MAX_WIRES; i++)
		wires[i].fd[0] = wires[i].fd[1] = -1;
	while (!atomic_load(&p->stop)) {
		polls[0] = (struct pollfd){ .fd = p->listen_fd, .events = POLLIN };
		for (unsigned int i = 0; i < 2 * MAX_WIRES; i++)
			polls[i + 1] =
				(struct pollfd){ .fd = held(p, &wires[i / 2], (int)(i % 2)) ? -1 :
											      wires[i / 2].fd[i % 2],
						 .events = POLLIN };
		poll(polls, 2 * MAX_WIRES + 1, 20);
		if (polls[0].revents)
			take_connection(p, wires);
		for (unsigned int i = 0; i < 2 * MAX_WIRES; i++)
			if (polls[i + 1].revents && wires[i / 2].fd[0] >= 0 && !held(p, &wires[i / 2], (int)(i % 2)))
				forward(p, &wires[i / 2], (int)(i % 2));
	}
	for (unsigned int i = 0; i < MAX_WIRES; i++)
		if (wires[i].fd[0] >= 0)
			wire_close(&wires[i], false);
	return NULL;
}

void proxy_start(struct proxy *p, uint16_t to)
{
	memset(p, 0, sizeof(*p));
	p->to = to;
	atomic_store(&p->cut_bytes, -1);
	atomic_store(&p->cut_records, -1);
	p->listen_fd = listen_any(&p->port);
	CHECK(!pthread_create(&p->thread, NULL, proxy_run, p));
}

void proxy_stop(struct proxy *p)
{
	atomic_store(&p->stop, true);
	pthread_join(p->thread, NULL);
	close(p->listen_fd);
}
