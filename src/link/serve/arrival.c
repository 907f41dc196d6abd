/* SPDX-License-Identifier: MIT */
/*
 * Clients that have connected and have not said all yet. Nothing is taken off their sockets before it is written down
 * (hello.h): a server that is killed meanwhile leaves them to the next, who is told the same again.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/err.h"
#include "fault/pager.h"
#include "link/serve/service_parts.h"

static void unlink_arrival(struct gmem_arrival *a)
{
	struct gmem_service *sv = a->service;
	struct gmem_arrival **at = &sv->arrivals;

	while (*at != a)
		at = &(*at)->next;
	*at = a->next;
	pthread_mutex_lock(&sv->m);
	sv->nwaiting--;
	pthread_mutex_unlock(&sv->m);
}

/* `keep`: the connection lives on, with the machine's session or for the next server. */
static void arrival_free(struct gmem_arrival *a, bool keep)
{
	char name[GMEM_STORE_MAX_NAME + 1];

	unlink_arrival(a);
	gmem_hello_free(a->hello);
	if (a->fd >= 0) {
		gmem_service_unwatch(a->service, a->fd);
		close(a->fd);
	}
	if (!keep) {
		snprintf(name, sizeof(name), "%s" GMEM_STORE_CONNECTION, a->id);
		gmem_store_drop(a->service->store, name);
	}
	free(a);
}

void gmem_service_count_refusal(struct gmem_service *sv, enum gmem_serve_refusal why)
{
	pthread_mutex_lock(&sv->m);
	sv->refused[why]++;
	pthread_mutex_unlock(&sv->m);
}

static void tell_refusal(struct gmem_arrival *a, enum gmem_serve_refusal why, int error, const char *text)
{
	const struct gmem_hello_message *m = a->hello ? gmem_hello_message(a->hello) : NULL;

	gmem_service_count_refusal(a->service, why);
	gmem_service_tell(a->service, &(struct gmem_service_event){
					      .kind = GMEM_SERVICE_REFUSED,
					      .error = error,
					      .text = text,
					      .vm = "",
					      .name = m ? m->name : "",
					      .pid = a->pid,
					      .uid = a->uid,
				      });
}

static void refuse(struct gmem_arrival *a, enum gmem_serve_refusal why, int error)
{
	tell_refusal(a, why, error, gmem_last_error());
	if (a->hello)
		gmem_hello_answer(a->hello, error, gmem_last_error());
	arrival_free(a, false);
}

static enum gmem_serve_refusal reason(int err)
{
	return err == -EMFILE || err == -ENOMEM || err == -ENFILE ? GMEM_REFUSED_OTHER : GMEM_REFUSED_PROTOCOL;
}

/* What the handshake has come to: 0: not all of it; else the arrival is no more. */
static void go_on(struct gmem_arrival *a, int got)
{
	enum gmem_serve_refusal why = GMEM_REFUSED_OTHER;
	int err;

	if (got == -EMFILE) {
		/* Its receiver has had to close what came; a new one will be told again, when there is room. */
		gmem_hello_free(a->hello);
		a->hello = NULL;
		return;
	}
	if (got < 0) {
		refuse(a, reason(got), got);
		return;
	}
	if (!got)
		return;
	err = gmem_service_admit(a->service, a, &why);
	if (err)
		refuse(a, why, err);
	else
		arrival_free(a, true);
}

static void arrival_ready(struct gmem_service *sv, struct gmem_watch *watch, uint32_t events)
{
	struct gmem_arrival *a = (struct gmem_arrival *)watch;

	if (a->hello)
		go_on(a, gmem_hello_feed(a->hello));
}

static bool allowed(const struct gmem_service *sv, uid_t uid)
{
	if (!uid || uid == geteuid())
		return true;
	for (size_t i = 0; i < sv->opts.nusers; i++)
		if (sv->users[i] == uid)
			return true;
	return false;
}

/* By which socket it came: an accepted socket has the address of the one it was accepted from. */
static int source_by_socket(const struct gmem_service *sv, int fd)
{
	struct sockaddr_un sa = { .sun_family = AF_UNSPEC };
	socklen_t len = sizeof(sa);

	if (getsockname(fd, (struct sockaddr *)&sa, &len) || sa.sun_family != AF_UNIX)
		return sv->default_source;
	for (size_t i = 0; i < sv->nlisteners; i++)
		if (!strncmp(sv->listeners[i].path, sa.sun_path, sizeof(sa.sun_path)) && sv->listeners[i].source >= 0)
			return sv->listeners[i].source;
	return sv->default_source;
}

static int check_limits(const struct gmem_service *sv, const struct gmem_arrival *a)
{
	uint32_t users = 0, all = 0;

	for (const struct gmem_arrival *o = sv->arrivals; o; o = o->next) {
		all++;
		users += o->uid == a->uid;
	}
	if (all > GMEM_SERVICE_MAX_WAITING || users > GMEM_SERVICE_MAX_WAITING_PER_USER)
		return gmem_err(-EUSERS, "%u connections of this user, %u in all, have not said what they want",
				users - 1, all - 1);
	return 0;
}

static void begin(struct gmem_arrival *a)
{
	struct gmem_service *sv = a->service;
	struct ucred cred = { .uid = (uid_t)-1 };
	socklen_t len = sizeof(cred);
	int err;

	if (getsockopt(a->fd, SOL_SOCKET, SO_PEERCRED, &cred, &len)) {
		refuse(a, GMEM_REFUSED_PROTOCOL, gmem_err_sys(-errno, "a connection without a peer"));
		return;
	}
	a->pid = cred.pid;
	a->uid = cred.uid;
	a->source = source_by_socket(sv, a->fd);
	if (!allowed(sv, cred.uid)) {
		refuse(a, GMEM_REFUSED_USER,
		       gmem_err(-EPERM, "user %u is not one of those who may be served", (unsigned int)cred.uid));
		return;
	}
	err = check_limits(sv, a);
	if (err) {
		refuse(a, GMEM_REFUSED_LIMIT, err);
		return;
	}
	err = gmem_hello_new(a->fd, &a->hello);
	if (!err)
		err = gmem_service_watch(sv, a->fd, EPOLLIN | EPOLLRDHUP | EPOLLET, &a->watch);
	if (err) {
		refuse(a, GMEM_REFUSED_OTHER, err);
		return;
	}
	go_on(a, gmem_hello_feed(a->hello));
}

void gmem_arrival_resume(struct gmem_service *sv, const char *id, int fd)
{
	struct gmem_arrival *a = calloc(1, sizeof(*a));

	if (!a) {
		close(fd);
		gmem_service_trouble(sv, gmem_err_sys(-ENOMEM, "a client"), "a client is not served");
		return;
	}
	a->watch.ready = arrival_ready;
	a->service = sv;
	snprintf(a->id, sizeof(a->id), "%s", id);
	a->fd = fd;
	a->deadline_ns = gmem_now_ns() + sv->opts.handshake_ms * UINT64_C(1000000);
	a->next = sv->arrivals;
	sv->arrivals = a;
	pthread_mutex_lock(&sv->m);
	sv->nwaiting++;
	sv->accepted++;
	pthread_mutex_unlock(&sv->m);
	begin(a);
}

void gmem_arrivals_accept(struct gmem_service *sv)
{
	struct gmem_store_client client;
	int got;

	/* Not for ever: there are others in the loop. */
	for (int i = 0; i < 16; i++) {
		got = gmem_store_accept(sv->store, &client);
		if (got < 0)
			gmem_service_trouble(sv, got, "clients cannot be accepted");
		if (got <= 0)
			return;
		gmem_arrival_resume(sv, client.id, client.fd);
	}
}

static void tick(struct gmem_arrival *a, uint64_t now)
{
	if (now >= a->deadline_ns) {
		refuse(a, GMEM_REFUSED_TIMEOUT,
		       gmem_err(-ETIMEDOUT, "nothing is served: %s after %u ms",
				a->hello ? gmem_hello_missing(a->hello) : "no room for its descriptors",
				a->service->opts.handshake_ms));
	} else if (a->hello) {
		go_on(a, gmem_hello_tick(a->hello));
	} else {
		int err = gmem_hello_new(a->fd, &a->hello);

		if (err)
			refuse(a, GMEM_REFUSED_OTHER, err);
		else
			go_on(a, gmem_hello_feed(a->hello));
	}
}

void gmem_arrivals_tick(struct gmem_service *sv, uint64_t now)
{
	struct gmem_arrival *next;

	for (struct gmem_arrival *a = sv->arrivals; a; a = next) {
		next = a->next;
		tick(a, now);
	}
}

/* They are left to the next server: nothing was taken off their sockets. */
void gmem_arrivals_free(struct gmem_service *sv)
{
	while (sv->arrivals)
		arrival_free(sv->arrivals, true);
}
