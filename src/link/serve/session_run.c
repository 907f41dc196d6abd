/* SPDX-License-Identifier: MIT */
/*
 * A session from inside: what its thread does, in order. The pager is there before the source is (late.h), so that
 * nobody who gives memory back waits for a source.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/err.h"
#include "base/range.h"
#include "fault/pager.h"
#include "link/serve/identity.h"
#include "link/serve/session_parts.h"

#define FIRST_PAUSE_NS 50000000u
#define LAST_PAUSE_NS 2000000000u
/* How much the fill gives way to everybody else's threads; nice(2). */
#define FILL_NICE 10
/* How long the first machine of a source is watched, at most. */
#define RECORD_NS 60000000000u

/* A pager's thread. */
static void pager_event(void *opaque, const struct gmem_pager_event *event)
{
	struct gmem_session *s = opaque;
	char text[512];

	snprintf(text, sizeof(text), "page at 0x%llx: %s", (unsigned long long)event->off, event->text);
	switch (event->kind) {
	case GMEM_PAGER_ERROR:
		/* A first touch while the source is being opened is no failure of it. */
		if (atomic_load(&s->phase) == GMEM_SERVE_CONNECTED && !atomic_load(&s->failing_ns))
			break;
		atomic_store(&s->failing_ns, gmem_now_ns());
		gmem_session_tell(s, GMEM_SERVICE_DEGRADED, event->error, text);
		break;
	case GMEM_PAGER_POISONED:
		gmem_session_tell(s, GMEM_SERVICE_POISONED, event->error, text);
		break;
	case GMEM_PAGER_GAVE_UP:
		atomic_store(&s->failing_ns, gmem_now_ns());
		gmem_session_tell(s, GMEM_SERVICE_GAVE_UP, event->error, text);
		break;
	case GMEM_PAGER_GONE:
		pthread_mutex_lock(&s->m);
		atomic_store(&s->gone, true);
		pthread_cond_broadcast(&s->changed);
		pthread_mutex_unlock(&s->m);
		break;
	default: /* of COMPLETE we know better when to tell */
		break;
	}
}

/* ---- memory and pager */

/*
 * A client's own memory file, with the table it made: all that dies with a server is the server's locks, which a new
 * generation makes the locks of the dead.
 */
static int open_memory(const struct gmem_hello_message *m, struct gmem_file **ret)
{
	struct gmem_file *file;
	uint32_t generation;
	int err = gmem_file_open_kept(m->memory_fd, m->state_fd, &file);

	if (err)
		return err;
	generation = atomic_load(&file->state.header->generation);
	if (generation >= GMEM_MAX_GENERATION - 1) {
		gmem_file_free(file);
		return gmem_err(-EOVERFLOW, "session: too many servers have served this memory");
	}
	atomic_store(&file->state.header->generation, generation + 1);
	gmem_file_set_generation(file, generation + 1);
	*ret = file;
	return 0;
}

static int make_file(struct gmem_session *s, struct gmem_file **ret)
{
	const struct gmem_hello_message *m = s->how.message;

	switch (m->kind) {
	case GMEM_HELLO_ATTACH:
		return open_memory(m, ret);
	case GMEM_HELLO_FIRECRACKER:
		return gmem_file_create_anon(m->source_end, m->page_size, s->how.state_fd, ret);
	default:
		return gmem_err(-EOPNOTSUPP,
				"session: memory of a guest_memfd: no released kernel serves its faults to another "
				"process");
	}
}

/*
 * All of one descriptor at once: what was removed in a range that the pager does not know yet would be read, and never
 * known.
 */
static int add_regions(struct gmem_session *s, struct gmem_pager *pager, struct gmem_file *file,
		       struct gmem_source *source)
{
	const struct gmem_hello_message *m = s->how.message;
	struct gmem_region *regions = calloc(m->nregions + 1, sizeof(*regions));
	int err = 0;

	if (!regions)
		return gmem_err_sys(-ENOMEM, "session");
	for (uint32_t uffd = 0; uffd < m->nuffds && err >= 0; uffd++) {
		unsigned int n = 0;

		for (uint32_t i = 0; i < m->nregions; i++) {
			const struct gmem_hello_region *r = &m->regions[i];

			if (r->uffd != uffd)
				continue;
			regions[n++] = (struct gmem_region){
				.size = sizeof(regions[0]),
				.file = file,
				.uffd = m->uffds[uffd],
				.hva = r->hva,
				.off = m->kind == GMEM_HELLO_ATTACH ? r->file_off : r->source_off,
				.len = r->len,
				.source = source,
				.source_off = r->source_off,
				.pidfd = m->pidfd,
			};
		}
		if (n)
			err = gmem_pager_add_regions(pager, regions, n);
	}
	free(regions);
	return err < 0 ? err : 0;
}

static void take_down(struct gmem_session *s)
{
	struct gmem_pager *pager;
	struct gmem_file *file;

	pthread_mutex_lock(&s->m);
	pager = s->pager;
	file = s->file;
	if (pager)
		gmem_pager_stats(pager, &s->last);
	if (file)
		gmem_file_query(file, &s->counts);
	s->pager = NULL;
	s->file = NULL;
	s->late = NULL;
	s->last.pending = 0;
	pthread_mutex_unlock(&s->m);
	gmem_pager_free(pager);
	gmem_file_free(file);
}

static int set_up(struct gmem_session *s)
{
	struct gmem_pager_opts opts = {
		.size = sizeof(opts),
		.resolvers = s->how.opts->resolvers ? s->how.opts->resolvers : 2,
		.event = pager_event,
		.opaque = s,
		.patience_ms = s->how.opts->patience_ms,
		.policy = s->how.opts->policy,
	};
	struct gmem_source *source;
	struct gmem_pager *pager;
	struct gmem_file *file;
	struct gmem_late *late;
	int err;

	err = make_file(s, &file);
	if (err)
		return err;
	err = gmem_late_new(&source, &late);
	if (err)
		goto out_file;
	err = gmem_pager_create(&opts, &pager);
	if (err)
		goto out_source;
	atomic_store(&pager->crowded, s->how.crowded);
	pthread_mutex_lock(&s->m);
	s->file = file;
	s->pager = pager;
	s->late = late;
	pthread_mutex_unlock(&s->m);
	err = add_regions(s, pager, file, source);
	gmem_source_unref(source);
	if (err)
		take_down(s);
	return err;

out_source:
	gmem_source_unref(source);
out_file:
	gmem_file_free(file);
	return err;
}

/* ---- the source */

/* The files must be those that the machine began with: others have other bytes. */
static int check_identity(struct gmem_session *s, struct gmem_text *now)
{
	int err = gmem_identity(s->how.source.spec, now);

	if (err)
		return err;
	if (now->failed)
		return gmem_err_sys(-ENOMEM, "source");
	if (*s->how.source.identity && strcmp(s->how.source.identity, now->s ? now->s : ""))
		return gmem_err(-ESTALE, "%s: the files are not those this machine began with: put them back",
				s->how.source.spec);
	return 0;
}

static int open_source(struct gmem_session *s, struct gmem_source **ret)
{
	struct gmem_text before = { 0 }, after = { 0 };
	struct gmem_source *source = NULL;
	int err = check_identity(s, &before);

	if (!err)
		err = gmem_source_open(s->how.source.spec, NULL, &source);
	if (!err && gmem_source_len(source) < s->how.message->source_end)
		err = gmem_err(-ERANGE, "the machine's memory ends at 0x%llx, its source at 0x%llx",
			       (unsigned long long)s->how.message->source_end,
			       (unsigned long long)gmem_source_len(source));
	/* What was looked at is what was opened. */
	if (!err)
		err = check_identity(s, &after);
	if (!err && before.s && strcmp(before.s, after.s))
		err = gmem_err(-ESTALE, "%s: changed while it was opened", s->how.source.spec);
	if (!err && s->how.opened)
		err = s->how.opened(s->how.opaque, s, before.s ? before.s : "");
	gmem_text_free(&before);
	gmem_text_free(&after);
	if (err) {
		gmem_source_unref(source);
		return err;
	}
	*ret = source;
	return 0;
}

/* ---- trying until it works */

/* What will not be otherwise the next time. */
static bool final(int err)
{
	return err == -EINVAL || err == -ERANGE || err == -EEXIST || err == -EPROTO || err == -EPROTONOSUPPORT ||
	       err == -EBADF || err == -EOPNOTSUPP || err == -ENOSPC || err == -EPERM;
}

static int set_up_step(struct gmem_session *s)
{
	return s->pager ? 0 : set_up(s);
}

static int source_step(struct gmem_session *s)
{
	struct gmem_source *source;
	int err = open_source(s, &source);

	if (err)
		return gmem_err_prefix(err, "source '%s'", s->how.source.name);
	gmem_late_set(s->late, source);
	gmem_source_unref(source);
	return 0;
}

/*
 * Tries again, later and later, while the machine's touchers wait; what cannot be mended ends a session that has just
 * begun, and never one that was taken up again: its guest runs, and somebody may put things right.
 */
static int insist(struct gmem_session *s, int (*step)(struct gmem_session *), bool (*gives_up)(int),
		  enum gmem_serve_state meanwhile)
{
	uint64_t pause = FIRST_PAUSE_NS, told = 0;
	enum gmem_serve_state was = (enum gmem_serve_state)atomic_load(&s->phase);
	int err;

	while ((err = step(s))) {
		if (gives_up(err) && !s->how.resumed)
			return err;
		atomic_store(&s->failing_ns, gmem_now_ns());
		if (err == -ESTALE || meanwhile == GMEM_SERVE_LOST)
			atomic_store(&s->phase, GMEM_SERVE_LOST);
		if (!told || gmem_now_ns() - told > 10000000000u) {
			gmem_session_tell(s,
					  atomic_load(&s->phase) == GMEM_SERVE_LOST ? GMEM_SERVICE_LOST :
										      GMEM_SERVICE_DEGRADED,
					  err, gmem_last_error());
			told = gmem_now_ns();
		}
		if (gmem_session_wait(s, pause))
			return -ECANCELED;
		pause = gmem_min_u64(2 * pause, LAST_PAUSE_NS);
	}
	atomic_store(&s->failing_ns, 0);
	atomic_store(&s->phase, was);
	return 0;
}

static bool too_short(int err)
{
	return err == -ERANGE;
}

/* ---- serving */

static int on_progress(void *opaque, uint64_t done, uint64_t total)
{
	struct gmem_session *s = opaque;

	return atomic_load(&s->stopping) || atomic_load(&s->gone) ? -ECANCELED : 0;
}

/*
 * Nothing is missing: what is complete needs nobody any more. The pager stays and reads: who was about to give memory
 * back when it was let go of sleeps until the message is read.
 */
static void let_go(struct gmem_session *s)
{
	int64_t kept;

	atomic_store(&s->failing_ns, 0);
	atomic_store(&s->phase, GMEM_SERVE_COMPLETE);
	kept = gmem_pager_unregister(s->pager);
	if (kept < 0)
		gmem_session_tell(s, GMEM_SERVICE_TROUBLE, (int)kept, gmem_last_error());
	gmem_session_tell(s, GMEM_SERVICE_COMPLETE, 0,
			  kept > 0 ? "every page is in place but those that are lost" : "every page is in place");
}

static void fill(struct gmem_session *s)
{
	int64_t n;

	/* The rest of this thread's life may be slow: nobody waits for it. */
	setpriority(PRIO_PROCESS, 0, FILL_NICE);
	atomic_store(&s->phase, GMEM_SERVE_FILLING);
	while ((n = gmem_pager_fill(s->pager, on_progress, s)) == -ENOMEM)
		if (gmem_session_wait(s, LAST_PAUSE_NS))
			return;
	if (n >= 0 && !atomic_load(&s->stopping))
		let_go(s);
	else if (n != -ECANCELED && n != -ESRCH)
		gmem_session_tell(s, GMEM_SERVICE_TROUBLE, (int)n, gmem_last_error());
}

/* ---- the working set (gmem_workset): what was touched first the last time */

static void workset_trouble(struct gmem_session *s, int err)
{
	if (err == -ECANCELED || err == -ESRCH)
		return;
	gmem_err_prefix(err, "working set %s", s->how.source.workset);
	gmem_session_tell(s, GMEM_SERVICE_TROUBLE, err, gmem_last_error());
}

static void replay(struct gmem_session *s)
{
	struct gmem_workset *ws;
	int64_t n = gmem_workset_open(s->how.source.workset, &ws);

	if (!n) {
		atomic_store(&s->phase, GMEM_SERVE_REPLAYING);
		n = gmem_pager_replay(s->pager, ws, NULL, on_progress, s);
		gmem_workset_close(ws);
		atomic_store(&s->phase, GMEM_SERVE_SERVING);
	}
	if (n < 0)
		workset_trouble(s, (int)n);
}

/* Nothing is brought in but what is touched meanwhile: what is there already is not seen to be touched. */
static void record(struct gmem_session *s)
{
	struct gmem_workset *ws;
	int err = gmem_workset_create(NULL, NULL, &ws);

	if (err) {
		workset_trouble(s, err);
		return;
	}
	err = gmem_pager_record(s->pager, ws, NULL, 0);
	if (!err) {
		gmem_session_wait(s, RECORD_NS);
		err = gmem_workset_stop(ws);
	}
	if (!err)
		err = gmem_workset_save(ws, s->how.source.workset);
	if (err)
		workset_trouble(s, err);
	gmem_workset_close(ws);
}

static void use_workset(struct gmem_session *s)
{
	bool no = false;

	if (!s->how.source.workset)
		return;
	if (!access(s->how.source.workset, F_OK)) {
		replay(s);
	} else if (!s->how.resumed && atomic_compare_exchange_strong(s->how.source.recording, &no, true)) {
		record(s);
		atomic_store(s->how.source.recording, false);
	}
}

/* Who is taken up again may have had its answer, and does not read a second one. */
static void answer(struct gmem_session *s, int error, const char *text)
{
	if (s->how.message->kind == GMEM_HELLO_ATTACH && s->how.sock >= 0)
		gmem_hello_answer_to(s->how.sock, error, text);
}

static int serve(struct gmem_session *s)
{
	int err = insist(s, set_up_step, final, GMEM_SERVE_LOST);

	if (err)
		return err;
	err = insist(s, source_step, too_short, GMEM_SERVE_DEGRADED);
	if (err)
		return err;
	atomic_store(&s->phase, GMEM_SERVE_SERVING);
	gmem_session_tell(s, GMEM_SERVICE_SERVING, 0, s->how.source.name);
	answer(s, 0, NULL);
	use_workset(s);
	if (!(s->how.opts->flags & GMEM_SERVICE_NO_FILL))
		fill(s);
	while (!gmem_session_wait(s, LAST_PAUSE_NS))
		;
	return 0;
}

void *gmem_session_run(void *session)
{
	struct gmem_session *s = session;
	uint64_t one = 1;
	int err = serve(s);

	if (err && err != -ECANCELED) {
		atomic_store(&s->refused, true);
		gmem_session_tell(s, GMEM_SERVICE_REFUSED, err, gmem_last_error());
		answer(s, err, gmem_last_error());
	}
	take_down(s);
	atomic_store(&s->over, true);
	(void)!write(s->how.wake_fd, &one, sizeof(one));
	return NULL;
}
