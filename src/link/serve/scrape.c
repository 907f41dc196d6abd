/* SPDX-License-Identifier: MIT */
/*
 * Who asks for metrics: one HTTP request a connection, whatever it asks for. In the service's loop; nobody is waited
 * for. A client that is slow or says nothing is let go of after some seconds.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/err.h"
#include "fault/pager.h"
#include "link/serve/service_parts.h"
#include "link/serve/text.h"

#define MAX_REQUEST 8192u
#define PATIENCE_NS 5000000000u

struct gmem_scrape {
	struct gmem_watch watch;
	struct gmem_scrape *next;
	int fd;
	uint64_t deadline_ns;
	char request[MAX_REQUEST];
	size_t nrequest;
	struct gmem_text answer;
	size_t sent;
};

static void scrape_free(struct gmem_service *sv, struct gmem_scrape *s)
{
	struct gmem_scrape **at = &sv->scrapes;

	while (*at != s)
		at = &(*at)->next;
	*at = s->next;
	gmem_service_unwatch(sv, s->fd);
	close(s->fd);
	gmem_text_free(&s->answer);
	free(s);
}

static void make_answer(struct gmem_service *sv, struct gmem_scrape *s)
{
	bool head = !strncmp(s->request, "HEAD ", 5);
	char *metrics = NULL;

	if (strncmp(s->request, "GET ", 4) && !head) {
		gmem_text_add(&s->answer, "HTTP/1.0 405 Method Not Allowed\r\nAllow: GET, HEAD\r\n"
					  "Content-Length: 0\r\nConnection: close\r\n\r\n");
	} else if (gmem_service_metrics(sv, &metrics)) {
		gmem_text_add(&s->answer, "HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\n"
					  "Connection: close\r\n\r\n");
	} else {
		gmem_text_add(&s->answer,
			      "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
			      "Content-Length: %zu\r\nConnection: close\r\n\r\n%s",
			      strlen(metrics), head ? "" : metrics);
		free(metrics);
	}
}

/* 1: there is an answer to be sent; 0: more of the request is to come. */
static int take_request(struct gmem_service *sv, struct gmem_scrape *s)
{
	ssize_t n = recv(s->fd, s->request + s->nrequest, sizeof(s->request) - 1 - s->nrequest, MSG_DONTWAIT);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	s->nrequest += (size_t)n;
	s->request[s->nrequest] = 0;
	if (!strstr(s->request, "\r\n\r\n") && !strstr(s->request, "\n\n"))
		return n && s->nrequest < sizeof(s->request) - 1 ? 0 : -EPROTO;
	make_answer(sv, s);
	return s->answer.failed ? -ENOMEM : 1;
}

static void scrape_ready(struct gmem_service *sv, struct gmem_watch *watch, uint32_t events)
{
	struct gmem_scrape *s = (struct gmem_scrape *)watch;
	int got = s->answer.len ? 1 : take_request(sv, s);

	while (got > 0 && s->sent < s->answer.len) {
		ssize_t n = send(s->fd, s->answer.s + s->sent, s->answer.len - s->sent, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && errno == EAGAIN) {
			struct epoll_event ev = { .events = EPOLLOUT, .data.ptr = watch };

			if (!epoll_ctl(sv->epoll, EPOLL_CTL_MOD, s->fd, &ev))
				return;
		}
		if (n < 0)
			got = -errno;
		else
			s->sent += (size_t)n;
	}
	if (got)
		scrape_free(sv, s);
}

static size_t count(const struct gmem_service *sv)
{
	size_t n = 0;

	for (const struct gmem_scrape *s = sv->scrapes; s; s = s->next)
		n++;
	return n;
}

void gmem_scrapes_accept(struct gmem_service *sv, struct gmem_watch *watch, uint32_t events)
{
	int fd = accept4(sv->metrics_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct gmem_scrape *s;

	if (fd < 0)
		return;
	s = count(sv) < GMEM_SERVICE_MAX_SCRAPES ? calloc(1, sizeof(*s)) : NULL;
	if (!s) {
		close(fd);
		return;
	}
	s->watch.ready = scrape_ready;
	s->fd = fd;
	s->deadline_ns = gmem_now_ns() + PATIENCE_NS;
	s->next = sv->scrapes;
	sv->scrapes = s;
	if (gmem_service_watch(sv, fd, EPOLLIN, &s->watch))
		scrape_free(sv, s);
}

void gmem_scrapes_tick(struct gmem_service *sv, uint64_t now)
{
	struct gmem_scrape *next;

	for (struct gmem_scrape *s = sv->scrapes; s; s = next) {
		next = s->next;
		if (now >= s->deadline_ns)
			scrape_free(sv, s);
	}
}

void gmem_scrapes_free(struct gmem_service *sv)
{
	while (sv->scrapes)
		scrape_free(sv, sv->scrapes);
}
