/* SPDX-License-Identifier: MIT */
/*
 * Where a migration is: the table of channel.h as code, and waiting for a phase. Both sides have one.
 *
 * Enters: what this side does, what the other side says. Leaves: a phase, or why there will be none. Lock `m`, taken
 * before the link's; nothing waits under it but by `changed`.
 */
#ifndef GMEM_LINK_MIGRATE_PHASES_H
#define GMEM_LINK_MIGRATE_PHASES_H

#include <pthread.h>

#include "link/migrate/link.h"

struct gmem_phases {
	enum gmem_wire_role role;
	struct gmem_link *link;
	pthread_mutex_t m; /* guards what follows, and more of who owns this */
	pthread_cond_t changed;
	enum gmem_migrate_phase phase;
	int error; /* of ABORTED: negative errno */
	char reason[GMEM_WIRE_MAX_TEXT + 1];
	bool ended;
	int end_error;
	char end_text[512];

	pthread_mutex_t event_m; /* one call of opts.event at a time; taken with no other lock held */
	void (*event)(void *opaque, const struct gmem_channel_event *event);
	void *opaque;
};

void gmem_phases_init(struct gmem_phases *p, enum gmem_wire_role role, const struct gmem_channel_opts *opts);
void gmem_phases_destroy(struct gmem_phases *p);

/* May `role` say `next` when it is at `now`? The whole state machine; ABORTED is a phase here. */
bool gmem_phase_may_say(enum gmem_wire_role role, enum gmem_migrate_phase now, enum gmem_migrate_phase next);
/* May `role`, at `now`, be told `next`? */
bool gmem_phase_may_hear(enum gmem_wire_role role, enum gmem_migrate_phase now, enum gmem_migrate_phase next);

/* Moves this side on and tells the other. -EBUSY, -ECANCELED, -ENOLINK, -ENOMEM: nothing has changed. */
int gmem_phases_say(struct gmem_phases *p, enum gmem_migrate_phase next);
/* 0 also if it is ABORTED already. -EBUSY. */
int gmem_phases_abort(struct gmem_phases *p, const char *reason);
/* The other side's PHASE or ABORT. -EPROTO. */
int gmem_phases_hear(struct gmem_phases *p, const struct gmem_wire_msg *msg);
void gmem_phases_set(struct gmem_phases *p, enum gmem_migrate_phase next); /* OPEN */
void gmem_phases_end(struct gmem_phases *p, int error, const char *text);
void gmem_phases_tell(struct gmem_phases *p, const struct gmem_channel_event *event);

enum gmem_migrate_phase gmem_phases_now(struct gmem_phases *p);
int gmem_phases_wait(struct gmem_phases *p, enum gmem_migrate_phase phase, int timeout_ms);
/*
 * Waits until something changes, with `m` held. 0; -ETIMEDOUT (it is `until_ms`, UINT64_MAX: never), -ECANCELED,
 * -ENOLINK and what else gmem_phases_wait() says.
 */
int gmem_phases_wait_locked(struct gmem_phases *p, uint64_t until_ms);
uint64_t gmem_phases_until(int timeout_ms);

#endif
