/* SPDX-License-Identifier: MIT */
/* What session.c and session_run.c share. */
#ifndef GMEM_LINK_SERVE_SESSION_PARTS_H
#define GMEM_LINK_SERVE_SESSION_PARTS_H

#include <pthread.h>
#include <stdatomic.h>

#include "link/serve/late.h"
#include "link/serve/session.h"

struct gmem_session {
	struct gmem_session_how how; /* its strings are the session's own */
	char *strings[4];
	pthread_t thread;
	uint64_t total_len;

	_Atomic int phase; /* enum gmem_serve_state, but for GMEM_SERVE_DEGRADED */
	_Atomic uint64_t failing_ns; /* CLOCK_MONOTONIC: when the source failed last; 0: never */
	_Atomic bool stopping, over, refused;
	_Atomic bool gone; /* the pager has met the end of the process */

	pthread_mutex_t m; /* guards what follows, from its being made to its being freed */
	pthread_cond_t changed; /* stopping, gone */
	struct gmem_file *file;
	struct gmem_pager *pager;
	struct gmem_late *late; /* of all regions; NULL while there is no pager */
	struct gmem_pager_stats last; /* of the pager that was */
	struct gmem_file_counts counts; /* of the file that was, or that is, a moment ago */
	uint64_t counted_ns; /* when */
};

/* session_run.c: all that the session's thread does. */
void *gmem_session_run(void *session);

/* Waits until the session is to end, at most so long; true if it is. */
bool gmem_session_wait(struct gmem_session *s, uint64_t ns);
void gmem_session_tell(struct gmem_session *s, enum gmem_service_event_kind kind, int error, const char *text);

#endif
