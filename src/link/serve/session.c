/* SPDX-License-Identifier: MIT */
/* A session from outside: its beginning and end, and what is seen of it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cond.h"
#include "base/err.h"
#include "fault/pager.h"
#include "link/serve/session_parts.h"
#include "sys/uffd.h"

/* So long after a source has failed the machine is called degraded. Lasting errors are told once a second. */
#define DEGRADED_NS 3000000000u
/* Counting pages reads all of their words: not for each of many readers. */
#define COUNT_EVERY_NS 200000000u

static void free_strings(struct gmem_session *s)
{
	for (size_t i = 0; i < sizeof(s->strings) / sizeof(s->strings[0]); i++)
		free(s->strings[i]);
}

static bool copy_strings(struct gmem_session *s)
{
	const char **theirs[] = { &s->how.id, &s->how.source.name, &s->how.source.spec, &s->how.source.identity };

	for (size_t i = 0; i < sizeof(theirs) / sizeof(theirs[0]); i++) {
		s->strings[i] = strdup(*theirs[i]);
		if (!s->strings[i])
			return false;
		*theirs[i] = s->strings[i];
	}
	return true;
}

int gmem_session_begin(const struct gmem_session_how *how, struct gmem_session **ret)
{
	struct gmem_session *s = calloc(1, sizeof(*s));
	int err;

	if (!s)
		return gmem_err_sys(-ENOMEM, "session");
	s->how = *how;
	s->total_len = how->message->total_len;
	s->last.size = sizeof(s->last);
	s->counts.size = sizeof(s->counts);
	pthread_mutex_init(&s->m, NULL);
	gmem_cond_init(&s->changed);
	atomic_store(&s->phase, GMEM_SERVE_CONNECTED);
	err = copy_strings(s) ? -pthread_create(&s->thread, NULL, gmem_session_run, s) : -ENOMEM;
	if (!err) {
		*ret = s;
		return 0;
	}
	pthread_cond_destroy(&s->changed);
	pthread_mutex_destroy(&s->m);
	free_strings(s);
	free(s);
	return gmem_err_sys(err, "session");
}

void gmem_session_end(struct gmem_session *s)
{
	pthread_mutex_lock(&s->m);
	atomic_store(&s->stopping, true);
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->m);
}

void gmem_session_free(struct gmem_session *s)
{
	if (!s)
		return;
	gmem_session_end(s);
	pthread_join(s->thread, NULL);
	pthread_cond_destroy(&s->changed);
	pthread_mutex_destroy(&s->m);
	gmem_hello_message_free(s->how.message);
	if (s->how.state_fd >= 0)
		close(s->how.state_fd);
	if (s->how.sock >= 0)
		close(s->how.sock);
	free_strings(s);
	free(s);
}

bool gmem_session_over(const struct gmem_session *s)
{
	return atomic_load(&s->over);
}

bool gmem_session_refused(const struct gmem_session *s)
{
	return atomic_load(&s->refused);
}

bool gmem_session_wait(struct gmem_session *s, uint64_t ns)
{
	uint64_t until = gmem_now_ns() + ns, now;
	bool ends;

	pthread_mutex_lock(&s->m);
	while (!(ends = atomic_load(&s->stopping) || atomic_load(&s->gone)) && (now = gmem_now_ns()) < until)
		gmem_cond_wait_for(&s->changed, &s->m, until - now);
	pthread_mutex_unlock(&s->m);
	return ends;
}

void gmem_session_tell(struct gmem_session *s, enum gmem_service_event_kind kind, int error, const char *text)
{
	if (s->how.event)
		s->how.event(s->how.opaque, s, kind, error, text);
}

/*
 * The process that connected may have ended while another has its memory (vfork, CLONE_VM), and may live on without it
 * (execve). Taking write protection away from where there is none changes nothing, and is refused in another way when
 * the address space is no more.
 */
bool gmem_session_alive(const struct gmem_session *s)
{
	const struct gmem_hello_message *m = s->how.message;

	for (uint32_t i = 0; i < m->nregions; i++)
		if (gmem_sys_uffd_unprotect(m->uffds[m->regions[i].uffd], m->regions[i].hva, m->page_size) != -ESRCH)
			return true;
	return false;
}

const char *gmem_session_id(const struct gmem_session *s)
{
	return s->how.id;
}

const struct gmem_hello_message *gmem_session_message(const struct gmem_session *s)
{
	return s->how.message;
}

const char *gmem_session_protocol(const struct gmem_hello_message *message)
{
	switch (message->kind) {
	case GMEM_HELLO_ATTACH:
		return "gmem";
	case GMEM_HELLO_GUEST_MEMFD:
		return "firecracker-guest_memfd";
	default:
		break;
	}
	switch (message->generation) {
	case GMEM_HELLO_NO_PAGE_SIZE:
		return "firecracker-1.1";
	case GMEM_HELLO_PAGE_SIZE_KIB:
		return "firecracker-1.7";
	default:
		return "firecracker-1.12";
	}
}

/* ---- what is seen */

static enum gmem_serve_state state_of(const struct gmem_session *s)
{
	enum gmem_serve_state phase = (enum gmem_serve_state)atomic_load(&s->phase);
	uint64_t failing = atomic_load(&s->failing_ns);

	if (phase == GMEM_SERVE_COMPLETE || phase == GMEM_SERVE_LOST)
		return phase;
	return failing && gmem_now_ns() - failing < DEGRADED_NS ? GMEM_SERVE_DEGRADED : phase;
}

/* m is held. */
static void look(struct gmem_session *s)
{
	uint64_t now = gmem_now_ns();

	if (s->pager)
		gmem_pager_stats(s->pager, &s->last);
	if (!s->file || now - s->counted_ns < COUNT_EVERY_NS)
		return;
	gmem_file_query(s->file, &s->counts);
	s->counted_ns = now;
}

void gmem_session_view(struct gmem_session *s, struct gmem_serve_vm *ret)
{
	const struct gmem_hello_message *m = s->how.message;

	*ret = (struct gmem_serve_vm){
		.id = s->how.id,
		.name = m->name,
		.source = s->how.source.name,
		.protocol = gmem_session_protocol(m),
		.pid = m->pid,
		.uid = m->uid,
		.total_bytes = s->total_len,
		.since_s = s->how.since_s,
	};
	pthread_mutex_lock(&s->m);
	look(s);
	ret->state = state_of(s);
	ret->stats = s->last;
	ret->present_bytes = (s->counts.uptodate + s->counts.removed) * GMEM_PAGE_SIZE;
	ret->lost_bytes = s->counts.poisoned * GMEM_PAGE_SIZE;
	pthread_mutex_unlock(&s->m);
}
