/* SPDX-License-Identifier: MIT */
/*
 * What a page server says of itself, in Prometheus' text format (version 0.0.4). Enters: numbers and names as they are
 * at one moment. Leaves: text. Pure: it asks nobody, and owns nothing. The names are documented in gmem-serve(1).
 */
#ifndef GMEM_LINK_SERVE_METRICS_H
#define GMEM_LINK_SERVE_METRICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "gmem.h"
#include "link/serve/text.h"

/* How far a machine is; the worst that is true. The words are gmem_serve_state_name()'s. */
enum gmem_serve_state {
	GMEM_SERVE_CONNECTED, /* it is known, and its source is being opened: no page has been served yet */
	GMEM_SERVE_SERVING, /* its faults are served; nothing is brought in besides */
	GMEM_SERVE_REPLAYING, /* and its recorded working set is being brought in */
	GMEM_SERVE_FILLING, /* and all the rest is */
	GMEM_SERVE_COMPLETE, /* no page is missing: it needs its source no more */
	GMEM_SERVE_DEGRADED, /* its source fails at present: touchers may wait */
	GMEM_SERVE_LOST, /* it cannot be served: touchers of missing pages wait for ever, or until this is mended */
	GMEM_SERVE_NSTATES,
};

const char *gmem_serve_state_name(enum gmem_serve_state state);

/* Why clients were turned away. */
enum gmem_serve_refusal {
	GMEM_REFUSED_USER, /* not one of the users allowed */
	GMEM_REFUSED_LIMIT, /* too many: machines, memory, connections */
	GMEM_REFUSED_PROTOCOL, /* not what a client says */
	GMEM_REFUSED_TIMEOUT, /* nothing, or not all, in the time there is */
	GMEM_REFUSED_SOURCE, /* no such source, or it is too short */
	GMEM_REFUSED_OTHER, /* this machine lacks something: memory, descriptors */
	GMEM_REFUSED_NREASONS,
};

struct gmem_serve_vm {
	const char *id; /* stable over restarts of the server */
	const char *name, *source, *protocol;
	pid_t pid;
	uid_t uid;
	enum gmem_serve_state state;
	uint64_t total_bytes, present_bytes, lost_bytes; /* of its memory: all; what is in place; what is poisoned */
	uint64_t since_s; /* when it was first known: seconds since 1970 */
	struct gmem_pager_stats stats; /* since this server has served it */
};

struct gmem_serve_view {
	const char *version;
	uint64_t generation; /* servers there were, this one included */
	bool keeper; /* somebody would hold the machines' descriptors if this server died now */
	uint64_t start_s;
	uint64_t accepted, waiting; /* connections; of which a handshake is awaited */
	uint64_t refused[GMEM_REFUSED_NREASONS];
	uint64_t served, ended; /* machines since this server runs; resumed ones are served too */
	const struct gmem_serve_vm *vms;
	size_t nvms;
};

void gmem_serve_metrics(struct gmem_text *text, const struct gmem_serve_view *view);

/* A label's value between its quotes: backslashes, quotes and newlines escaped, control characters and what is no UTF-8
 * replaced. */
void gmem_metrics_label(struct gmem_text *text, const char *value);

#endif
