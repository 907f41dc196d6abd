/* SPDX-License-Identifier: MIT */
/*
 * One machine that is served: its source, its page states, its pager, and a thread of its own, which opens the source
 * (and waits for it, and may wait for ever), fills, and cleans up. Nothing of one session waits for another's.
 *
 * Enters: a checked handshake with its descriptors. Leaves: served faults, events, numbers. Locks: `m` guards what
 * others look at while the thread makes and frees it; a leaf but for the file's and the pager's own.
 */
#ifndef GMEM_LINK_SERVE_SESSION_H
#define GMEM_LINK_SERVE_SESSION_H

#include <stdbool.h>
#include <stdint.h>

#include "gmem.h"
#include "link/serve/hello.h"
#include "link/serve/metrics.h"

struct gmem_session;

/* Where a machine's pages come from. The first three texts are borrowed until the session has begun. */
struct gmem_session_source {
	const char *name, *spec;
	const char *identity; /* gmem_identity(), when the machine was first served; "": it was not yet */
	const char *workset; /* the file of its working set; NULL: none is wanted. Borrowed for the session's life */
	_Atomic bool *recording; /* some machine is recorded into it; borrowed likewise */
};

struct gmem_session_how {
	const char *id;
	struct gmem_hello_message *message; /* taken, unless it is an error to begin */
	struct gmem_session_source source;
	int state_fd; /* the table of page states, or -1; taken likewise */
	int sock; /* the client's connection, or -1; taken likewise */
	bool resumed; /* somebody has served it before */
	uint64_t since_s; /* when it was first known */
	const struct gmem_service_opts *opts; /* borrowed */
	/* From any thread of the session's. `error` is negative errno or 0. */
	void (*event)(void *opaque, const struct gmem_session *session, enum gmem_service_event_kind kind, int error,
		      const char *text);
	/*
	 * From its thread, before the first page is served: the source is open, and has these bytes. An error: not now,
	 * it is tried again. May be NULL.
	 */
	int (*opened)(void *opaque, const struct gmem_session *session, const char *identity);
	void *opaque;
	const _Atomic bool *crowded; /* there are more machines than processors; borrowed for the session's life */
	int wake_fd; /* an eventfd that is written to when gmem_session_over() changes; borrowed */
};

/* Begins a thread. -ENOMEM, -EAGAIN. */
int gmem_session_begin(const struct gmem_session_how *how, struct gmem_session **ret);

/* Asks it to end, without waiting: the source may hold its threads for long. Nothing is served after that. */
void gmem_session_end(struct gmem_session *session);

/* Waits for its end, and frees. NULL is allowed. */
void gmem_session_free(struct gmem_session *session);

/* Its thread has ended, or is about to: gmem_session_free() will not wait. */
bool gmem_session_over(const struct gmem_session *session);
/* With that: the client could not be served from the beginning on, and is not to be taken up again. */
bool gmem_session_refused(const struct gmem_session *session);

/* Does the memory still exist? Its process may have been replaced, or have ended. Asks the kernel. */
bool gmem_session_alive(const struct gmem_session *session);

const char *gmem_session_id(const struct gmem_session *session);
/* Borrowed; descriptors are the session's. */
const struct gmem_hello_message *gmem_session_message(const struct gmem_session *session);

/* What the metrics say; strings are borrowed from the session. */
void gmem_session_view(struct gmem_session *session, struct gmem_serve_vm *ret);

/* "firecracker", ...; for people and metrics. */
const char *gmem_session_protocol(const struct gmem_hello_message *message);

#endif
