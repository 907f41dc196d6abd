/* SPDX-License-Identifier: MIT */
/* The store's own fields: store.c (what is kept), store_accept.c (clients). */
#ifndef GMEM_LINK_SERVE_STORE_IMPL_H
#define GMEM_LINK_SERVE_STORE_IMPL_H

#include <pthread.h>

#include "link/serve/notify.h"
#include "link/serve/store.h"

/* A descriptor that was passed or stored. */
struct gmem_store_entry {
	char name[GMEM_STORE_MAX_NAME + 1];
	int fd; /* passed and not taken, else -1 */
};

struct gmem_store_listening {
	char name[GMEM_STORE_MAX_NAME + 1];
	int fd;
	bool clients;
};

struct gmem_store {
	pthread_mutex_t m; /* a leaf; guards all that follows but the descriptors of `notify` and `epoll` */
	struct gmem_notify notify;
	enum gmem_store_minder minder;
	bool minder_lost;
	uint64_t watchdog_usec;
	struct gmem_store_entry *entries;
	size_t nentries, room;
	struct gmem_store_listening listening[64];
	size_t nlistening;
	uint32_t limit;
	uint64_t put, dropped, failed, accepted;
	int channel; /* from a minder: clients it has accepted; -1: we accept ourselves */
	int epoll, timer; /* timer: fires when listening sockets are to be watched again */
	bool deaf; /* they are not being watched: there is no room for a descriptor */
	uint64_t last_id;
};

/* With the mutex. Notes that a name is stored; `fd`: passed to us, or -1. -ENOMEM. */
int gmem_store_note(struct gmem_store *store, const char *name, int fd);
/* With the mutex. Says something; a minder that refuses is dead, and is forgotten. */
int gmem_store_say(struct gmem_store *store, const char *text, int fd, bool wait);
/* With the mutex. The names of the minder's channel and of its listening sockets are not descriptors of the store's. */
int gmem_store_watch(struct gmem_store *store);
/* With the mutex. The minder has died: clients are accepted here from now on. */
void gmem_store_forget_minder(struct gmem_store *store);

#endif
