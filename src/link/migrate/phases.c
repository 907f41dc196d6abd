/* SPDX-License-Identifier: MIT */
#include "link/migrate/phases.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/cond.h"
#include "base/err.h"

static const char *const names[] = { "new", "open",    "prepared", "stopped", "ready",
				     "go",  "resumed", "complete", "closed",  "aborted" };

const char *gmem_migrate_phase_name(enum gmem_migrate_phase phase)
{
	return phase <= GMEM_MIGRATE_ABORTED ? names[phase] : "?";
}

/* Who leads to a phase. */
static bool is_said_by(enum gmem_wire_role role, enum gmem_migrate_phase next)
{
	static const enum gmem_wire_role by[] = {
		[GMEM_MIGRATE_PREPARED] = GMEM_WIRE_DESTINATION, [GMEM_MIGRATE_STOPPED] = GMEM_WIRE_SOURCE,
		[GMEM_MIGRATE_READY] = GMEM_WIRE_DESTINATION,	 [GMEM_MIGRATE_GO] = GMEM_WIRE_SOURCE,
		[GMEM_MIGRATE_RESUMED] = GMEM_WIRE_DESTINATION,	 [GMEM_MIGRATE_COMPLETE] = GMEM_WIRE_DESTINATION,
		[GMEM_MIGRATE_CLOSED] = GMEM_WIRE_SOURCE,
	};

	return next >= GMEM_MIGRATE_PREPARED && next <= GMEM_MIGRATE_CLOSED && by[next] == role;
}

bool gmem_phase_may_say(enum gmem_wire_role role, enum gmem_migrate_phase now, enum gmem_migrate_phase next)
{
	if (next == GMEM_MIGRATE_ABORTED)
		return now < (role == GMEM_WIRE_SOURCE ? GMEM_MIGRATE_GO : GMEM_MIGRATE_RESUMED);
	return is_said_by(role, next) && next == now + 1;
}

bool gmem_phase_may_hear(enum gmem_wire_role role, enum gmem_migrate_phase now, enum gmem_migrate_phase next)
{
	if (now == GMEM_MIGRATE_ABORTED)
		return true; /* it crossed our ABORT, or theirs */
	/* The source may be at GO when the destination, which has not heard of it or has not resumed, gives up. */
	if (next == GMEM_MIGRATE_ABORTED)
		return now < (role == GMEM_WIRE_SOURCE ? GMEM_MIGRATE_RESUMED : GMEM_MIGRATE_GO);
	return !is_said_by(role, next) && next == now + 1;
}

void gmem_phases_init(struct gmem_phases *p, enum gmem_wire_role role, const struct gmem_channel_opts *opts)
{
	p->role = role;
	p->event = opts->event;
	p->opaque = opts->opaque;
	pthread_mutex_init(&p->m, NULL);
	pthread_mutex_init(&p->event_m, NULL);
	gmem_cond_init(&p->changed);
}

void gmem_phases_destroy(struct gmem_phases *p)
{
	pthread_cond_destroy(&p->changed);
	pthread_mutex_destroy(&p->event_m);
	pthread_mutex_destroy(&p->m);
}

void gmem_phases_tell(struct gmem_phases *p, const struct gmem_channel_event *event)
{
	if (!p->event)
		return;
	pthread_mutex_lock(&p->event_m);
	p->event(p->opaque, event);
	pthread_mutex_unlock(&p->event_m);
}

static void tell_phase(struct gmem_phases *p, enum gmem_migrate_phase phase, int error, const char *text)
{
	const struct gmem_channel_event event = {
		.kind = GMEM_CHANNEL_PHASE, .phase = phase, .error = error, .text = text
	};

	gmem_phases_tell(p, &event);
}

static void set_locked(struct gmem_phases *p, enum gmem_migrate_phase next)
{
	p->phase = next;
	pthread_cond_broadcast(&p->changed);
}

void gmem_phases_set(struct gmem_phases *p, enum gmem_migrate_phase next)
{
	pthread_mutex_lock(&p->m);
	set_locked(p, next);
	pthread_mutex_unlock(&p->m);
	tell_phase(p, next, 0, "");
}

static int aborted_locked(struct gmem_phases *p)
{
	return gmem_err(-ECANCELED, "migration: aborted: %s", p->reason);
}

int gmem_phases_say(struct gmem_phases *p, enum gmem_migrate_phase next)
{
	struct gmem_wire_msg msg = { .type = GMEM_WIRE_PHASE, .phase = next };
	int err = 0;

	pthread_mutex_lock(&p->m);
	if (p->phase == GMEM_MIGRATE_ABORTED)
		err = aborted_locked(p);
	else if (!gmem_phase_may_say(p->role, p->phase, next))
		err = gmem_err(-EBUSY, "migration: cannot go from phase \"%s\" to \"%s\"",
			       gmem_migrate_phase_name(p->phase), gmem_migrate_phase_name(next));
	else if (p->ended)
		err = gmem_err(-ENOLINK, "migration: %s", p->end_text);
	else
		err = gmem_link_post(p->link, &msg, SIZE_MAX);
	if (!err)
		set_locked(p, next);
	pthread_mutex_unlock(&p->m);
	return err;
}

int gmem_phases_abort(struct gmem_phases *p, const char *reason)
{
	struct gmem_wire_msg msg = { .type = GMEM_WIRE_ABORT, .error = ECANCELED };
	char *text = p->reason;
	int err = 0;

	pthread_mutex_lock(&p->m);
	if (p->phase == GMEM_MIGRATE_ABORTED) {
		pthread_mutex_unlock(&p->m);
		return 0;
	}
	if (!gmem_phase_may_say(p->role, p->phase, GMEM_MIGRATE_ABORTED)) {
		err = gmem_err(-EBUSY, "migration: too late to abort: phase \"%s\"", gmem_migrate_phase_name(p->phase));
	} else {
		snprintf(text, sizeof(p->reason), "%s", reason ? reason : "");
		for (char *c = text; *c; c++)
			if ((unsigned char)*c < 0x20 || *c == 0x7f)
				*c = ' ';
		msg.text = text;
		msg.text_len = (uint8_t)strlen(text);
		p->error = -ECANCELED;
		set_locked(p, GMEM_MIGRATE_ABORTED);
		/*
		 * If there is no memory to say it, it is so all the same: the other side will not be told GO, or
		 * RESUMED.
		 */
		gmem_link_post(p->link, &msg, SIZE_MAX);
	}
	pthread_mutex_unlock(&p->m);
	return err;
}

int gmem_phases_hear(struct gmem_phases *p, const struct gmem_wire_msg *msg)
{
	enum gmem_migrate_phase next = msg->type == GMEM_WIRE_ABORT ? GMEM_MIGRATE_ABORTED : msg->phase, was;
	char text[GMEM_WIRE_MAX_TEXT + 1] = "";

	pthread_mutex_lock(&p->m);
	was = p->phase;
	if (!gmem_phase_may_hear(p->role, was, next)) {
		pthread_mutex_unlock(&p->m);
		return gmem_err(-EPROTO, "migration: the other side says \"%s\" in phase \"%s\"",
				gmem_migrate_phase_name(next), gmem_migrate_phase_name(was));
	}
	if (was != GMEM_MIGRATE_ABORTED) {
		if (next == GMEM_MIGRATE_ABORTED) {
			p->error = msg->error ? -(int)msg->error : -ECANCELED;
			snprintf(p->reason, sizeof(p->reason), "%.*s", msg->text_len, msg->text);
			memcpy(text, p->reason, sizeof(text));
		}
		set_locked(p, next);
	}
	pthread_mutex_unlock(&p->m);
	if (was != GMEM_MIGRATE_ABORTED)
		tell_phase(p, next, next == GMEM_MIGRATE_ABORTED ? -ECANCELED : 0, text);
	return 0;
}

void gmem_phases_end(struct gmem_phases *p, int error, const char *text)
{
	struct gmem_channel_event event = { .kind = GMEM_CHANNEL_ENDED, .error = error, .text = text };

	pthread_mutex_lock(&p->m);
	p->ended = true;
	p->end_error = error;
	event.phase = p->phase;
	snprintf(p->end_text, sizeof(p->end_text), "%s", error ? text : "the channel was closed in order");
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->m);
	gmem_phases_tell(p, &event);
}

enum gmem_migrate_phase gmem_phases_now(struct gmem_phases *p)
{
	enum gmem_migrate_phase phase;

	pthread_mutex_lock(&p->m);
	phase = p->phase;
	pthread_mutex_unlock(&p->m);
	return phase;
}

uint64_t gmem_phases_until(int timeout_ms)
{
	return timeout_ms < 0 ? UINT64_MAX : gmem_now_ms() + (uint64_t)timeout_ms;
}

static int end_error(const struct gmem_phases *p)
{
	switch (p->end_error) {
	case -EKEYREJECTED:
	case -EKEYEXPIRED:
	case -EACCES:
	case -EPROTO:
	case -EBUSY:
		return p->end_error;
	default:
		return -ENOLINK;
	}
}

int gmem_phases_wait_locked(struct gmem_phases *p, uint64_t until_ms)
{
	uint64_t now;

	if (p->phase == GMEM_MIGRATE_ABORTED)
		return aborted_locked(p);
	if (p->ended)
		return gmem_err(end_error(p), "%s", p->end_text);
	if (until_ms == UINT64_MAX) {
		pthread_cond_wait(&p->changed, &p->m);
		return 0;
	}
	now = gmem_now_ms();
	if (now >= until_ms)
		return gmem_err(-ETIMEDOUT, "migration: nothing came in time; phase \"%s\"",
				gmem_migrate_phase_name(p->phase));
	gmem_cond_wait_for(&p->changed, &p->m, (until_ms - now) * 1000000u);
	return 0;
}

int gmem_phases_wait(struct gmem_phases *p, enum gmem_migrate_phase phase, int timeout_ms)
{
	uint64_t until = gmem_phases_until(timeout_ms);
	int err = 0;

	pthread_mutex_lock(&p->m);
	while (!err && (p->phase < phase || (p->phase == GMEM_MIGRATE_ABORTED && phase != GMEM_MIGRATE_ABORTED)))
		err = gmem_phases_wait_locked(p, until);
	pthread_mutex_unlock(&p->m);
	return err;
}
