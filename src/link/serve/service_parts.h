/* SPDX-License-Identifier: MIT */
/*
 * The service's own fields. One thread, gmem_service_run()'s, does everything here but what sessions do in theirs; it
 * waits for nobody's source and for no client. Locks: `m` guards what gmem_service_metrics() reads and the loop writes
 * (machines come and go, counters); `event_m` is held around the caller's callback, a leaf.
 */
#ifndef GMEM_LINK_SERVE_SERVICE_PARTS_H
#define GMEM_LINK_SERVE_SERVICE_PARTS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/un.h>

#include "gmem.h"
#include "link/serve/ledger.h"
#include "link/serve/session.h"
#include "link/serve/store.h"

#define GMEM_SERVICE_MAX_SOURCES 1024u
#define GMEM_SERVICE_MAX_LISTENERS 64u
#define GMEM_SERVICE_MAX_WAITING 256u /* clients whose handshake is awaited */
#define GMEM_SERVICE_MAX_WAITING_PER_USER 32u
#define GMEM_SERVICE_MAX_SCRAPES 16u

struct gmem_service;

/* Something the loop waits for; the first member of what it belongs to. May free itself. */
struct gmem_watch {
	void (*ready)(struct gmem_service *service, struct gmem_watch *watch, uint32_t events);
};

struct gmem_service_source {
	char *name, *spec;
	char *workset; /* a file; NULL: none is wanted */
	_Atomic bool recording; /* some machine is */
};

struct gmem_service_listener {
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	int source; /* -1: the default */
};

/* A client that has not said all yet. */
struct gmem_arrival {
	struct gmem_watch watch;
	struct gmem_service *service;
	struct gmem_arrival *next;
	struct gmem_hello *hello; /* NULL: there was no room for its descriptors; tried again */
	char id[GMEM_STORE_MAX_ID + 1];
	int fd;
	pid_t pid;
	uid_t uid;
	int source;
	uint64_t deadline_ns;
};

/* A machine: one that is served, or is known and cannot be. */
struct gmem_service_vm {
	struct gmem_watch watch; /* its pidfd */
	struct gmem_service *service;
	struct gmem_session *session; /* NULL: it could not be taken up yet */
	/* NULL without a state directory. The session's thread writes to it in `opened`; else the loop's. */
	struct gmem_ledger *ledger;
	char id[GMEM_STORE_MAX_ID + 1];
	char *why; /* it could not be taken up */
	pid_t pid;
	uid_t uid;
	uint64_t len, since_s;
	int pidfd; /* as long as there is no session */
	int watched; /* of the session's or ours, what the loop waits for; -1: none */
	bool ending;
	uint64_t next_ns; /* when it is looked after again */
	struct gmem_service_source *source; /* NULL: not one of today's */
};

struct gmem_scrape;

struct gmem_service {
	struct gmem_service_opts opts;
	uid_t *users;
	struct gmem_store *store;
	struct gmem_ledger_dir *dir; /* NULL: nothing is written down */
	int epoll, stop_event, wake_event;
	struct gmem_watch stop_watch, wake_watch, accept_watch, metrics_watch;
	_Atomic bool stopping;
	_Atomic bool crowded; /* a reader that looks for messages would keep some guest from running */

	struct gmem_service_source *sources[GMEM_SERVICE_MAX_SOURCES];
	int nsources, default_source;
	struct gmem_service_listener listeners[GMEM_SERVICE_MAX_LISTENERS];
	size_t nlisteners;
	int metrics_fd; /* -1: none */
	char metrics_path[sizeof(((struct sockaddr_un *)0)->sun_path)]; /* of a socket that is ours to remove */
	struct gmem_arrival *arrivals;
	struct gmem_scrape *scrapes;
	uint64_t tick_ns, watchdog_ns; /* when those are due */

	pthread_mutex_t event_m;
	pthread_mutex_t m;
	struct gmem_service_vm **vms;
	size_t nvms, room;
	uint32_t nwaiting;
	uint64_t generation, start_s, accepted, served, ended;
	uint64_t refused[GMEM_REFUSED_NREASONS];
};

/* service_run.c */
int gmem_service_watch(struct gmem_service *sv, int fd, uint32_t events, struct gmem_watch *watch);
void gmem_service_unwatch(struct gmem_service *sv, int fd);
void gmem_service_tell(struct gmem_service *sv, const struct gmem_service_event *event);
void gmem_service_trouble(struct gmem_service *sv, int error, const char *what); /* and gmem_last_error() */

/* arrival.c */
void gmem_arrivals_accept(struct gmem_service *sv);
/* One that was stored by a server before. Takes fd. */
void gmem_arrival_resume(struct gmem_service *sv, const char *id, int fd);
void gmem_arrivals_tick(struct gmem_service *sv, uint64_t now);
void gmem_arrivals_free(struct gmem_service *sv);
void gmem_service_count_refusal(struct gmem_service *sv, enum gmem_serve_refusal why);

/* admit.c: a machine's beginning and end */
/*
 * The arrival's handshake is complete: the machine is written down, its handshake taken off the socket, its session
 * begun. On success the arrival's descriptor and message are the session's.
 */
int gmem_service_admit(struct gmem_service *sv, struct gmem_arrival *a, enum gmem_serve_refusal *ret_why);
/* Begins the session of a machine that is in the list. Takes message, state_fd and sock if it succeeds. */
int gmem_service_begin(struct gmem_service_vm *vm, struct gmem_hello_message *message, int state_fd, int sock,
		       bool resumed, const struct gmem_session_source *source);
struct gmem_service_vm *gmem_service_new_vm(struct gmem_service *sv, const char *id);
/* It is no more: the ledger, the stored descriptors, the list. Its session has ended. */
void gmem_service_forget(struct gmem_service_vm *vm);
void gmem_service_vms_tick(struct gmem_service *sv, uint64_t now);

/* resume.c */
int gmem_service_resume(struct gmem_service *sv);
/* One that could not be taken up: again. */
void gmem_service_retry(struct gmem_service_vm *vm);

/* scrape.c: who asks for metrics */
void gmem_scrapes_accept(struct gmem_service *sv, struct gmem_watch *watch, uint32_t events);
void gmem_scrapes_tick(struct gmem_service *sv, uint64_t now);
void gmem_scrapes_free(struct gmem_service *sv);

#endif
