/* SPDX-License-Identifier: MIT */
/*
 * gmem migrate send, once the guest is the other machine's: pages, until that one has all of them. What is here may be
 * the only copy of the guest, so that nothing but the other side, or a person, ends it.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tools/migrate.h"

#define RETRY_US 300000
/* A session after the first: both sides are there, nothing is to be loaded. */
#define SESSION_MS 15000
#define CLOSED_MS 5000

static void add_stats(struct migrate_send *s)
{
	struct gmem_page_server_stats now = { .size = sizeof(now) };

	if (!s->server || gmem_page_server_stats(s->server, &now))
		return;
	s->before.urgent_pages += now.urgent_pages;
	s->before.bulk_pages += now.bulk_pages;
	s->before.zero_pages += now.zero_pages;
	s->before.bytes += now.bytes;
	s->before.links += now.links;
}

/* Told once: an end by signal would take the memory of a running guest away. */
static void tell_interrupted(void)
{
	static bool told;

	if (!migrate_interrupted() || told)
		return;
	told = true;
	gmem_ui_note("signal %d: the guest runs on the other machine and needs this process until it is complete",
		     migrate_interrupted());
}

static void report(struct migrate_send *s)
{
	char buf[GMEM_UI_TEXT];
	struct gmem_ui_table t;

	gmem_ui_table_init(&t, 2, 2);
	if (s->prepared) {
		gmem_ui_table_cell(&t, "other machine ready after");
		gmem_ui_table_cell(&t, "%s", gmem_ui_time(buf, s->prepared - s->begun));
	}
	if (s->resumed && s->stopped) {
		gmem_ui_table_cell(&t, "resumed there after");
		gmem_ui_table_cell(&t, "%s", gmem_ui_time(buf, s->resumed - s->begun));
		gmem_ui_table_cell(&t, "guest stopped for");
		gmem_ui_table_cell(&t, "%s",
				   s->was_running ? gmem_ui_time(buf, s->resumed - s->stopped) : "was paused");
	}
	gmem_ui_table_cell(&t, "pages it waited for");
	gmem_ui_table_cell(&t, "%llu", (unsigned long long)s->before.urgent_pages);
	gmem_ui_table_cell(&t, "pages behind");
	gmem_ui_table_cell(&t, "%llu", (unsigned long long)s->before.bulk_pages);
	gmem_ui_table_cell(&t, "zero pages of them");
	gmem_ui_table_cell(&t, "%llu", (unsigned long long)s->before.zero_pages);
	gmem_ui_table_cell(&t, "bytes of pages sent");
	gmem_ui_table_cell(&t, "%s", gmem_ui_size(buf, s->before.bytes));
	gmem_ui_table_cell(&t, "links made");
	gmem_ui_table_cell(&t, "%llu", (unsigned long long)s->before.links);
	gmem_ui_table_cell(&t, "complete after");
	gmem_ui_table_cell(&t, "%s", gmem_ui_time(buf, gmem_ui_now() - s->begun));
	gmem_ui_table_print(&t, stderr, "");
	gmem_ui_table_free(&t);
}

static int end_machine(struct migrate_send *s)
{
	int err;

	if (s->keep) {
		gmem_ui_note("the old QEMU (process %d) is left, stopped: it must not go on", (int)s->machine.pid);
		return 0;
	}
	err = gmem_qmp_exec(s->qmp, "quit", NULL, NULL);
	if ((err && err != -ECONNRESET) || gmem_process_wait(s->machine.process, 60000))
		return gmem_ui_fail("%s; the migration is complete, but the old QEMU did not end", gmem_last_error());
	return 0;
}

static void tell_resumed(struct migrate_send *s)
{
	char a[GMEM_UI_TEXT], b[GMEM_UI_TEXT];

	if (s->resumed)
		return;
	s->resumed = gmem_ui_now();
	if (!s->stopped)
		gmem_ui_note("the guest runs on the other machine; its pages follow");
	else if (s->was_running)
		gmem_ui_note("resumed on the other machine after %s, the guest stood for %s; its pages follow",
			     gmem_ui_time(a, s->resumed - s->begun), gmem_ui_time(b, s->resumed - s->stopped));
	else
		gmem_ui_note("on the other machine after %s, paused as it was; its pages follow",
			     gmem_ui_time(a, s->resumed - s->begun));
}

/* Waits for a phase. 0, -ETIMEDOUT; -ECANCELED: the other side gave it up; -ENOLINK: another session is needed. */
static int wait_phase(struct migrate_send *s, enum gmem_migrate_phase phase, int timeout_ms)
{
	uint64_t deadline = gmem_ui_now() + (uint64_t)timeout_ms * 1000000;
	int err;

	do {
		tell_interrupted();
		err = gmem_page_server_wait(s->server, phase, 200);
		if (!err || err == -ECANCELED)
			return err;
		if (err != -ETIMEDOUT || atomic_load(&s->refused))
			return -ENOLINK;
	} while (timeout_ms < 0 || gmem_ui_now() < deadline);
	return -ETIMEDOUT;
}

/*
 * Another session, for the same guest: the other side may be another process by now. It says where the guest stands,
 * and that it is not ours, so that one that had not heard of it resumes it now.
 */
static int new_session(struct migrate_send *s)
{
	int err;

	add_stats(s);
	gmem_page_server_free(s->server);
	s->server = NULL;
	err = migrate_new_session(s, SESSION_MS);
	if (err)
		return -EIO;
	err = wait_phase(s, GMEM_MIGRATE_PREPARED, SESSION_MS);
	if (!err)
		err = gmem_page_server_stopped(s->server);
	if (!err)
		err = wait_phase(s, GMEM_MIGRATE_READY, SESSION_MS);
	return err ? err : gmem_page_server_go(s->server);
}

/* The other side said ABORT: true if the guest may go on here. */
static bool may_take_back(struct migrate_send *s, bool first)
{
	return first && gmem_page_server_may_run(s->server);
}

static int take_back(struct migrate_send *s)
{
	if (gmem_device_state_resume(s->qmp, &s->state, NULL))
		return gmem_ui_fail("%s; the machine is stopped: QMP cont", gmem_last_error());
	migrate_journal_remove(s->journal);
	return 0;
}

static int wait_complete(struct migrate_send *s)
{
	int err = wait_phase(s, GMEM_MIGRATE_RESUMED, -1);

	if (err)
		return err;
	tell_resumed(s);
	return wait_phase(s, GMEM_MIGRATE_COMPLETE, -1);
}

static int complete(struct migrate_send *s)
{
	int err;

	/* The other side waits for our having seen it. */
	(void)gmem_page_server_wait(s->server, GMEM_MIGRATE_CLOSED, CLOSED_MS);
	add_stats(s);
	gmem_page_server_free(s->server);
	s->server = NULL;
	err = end_machine(s);
	if (err)
		return err;
	migrate_journal_remove(s->journal);
	report(s);
	return 0;
}

static int aborted(struct migrate_send *s, bool first)
{
	char why[512];

	snprintf(why, sizeof(why), "%s", gmem_last_error());
	if (may_take_back(s, first) && !take_back(s))
		return gmem_ui_fail("%s; the guest goes on here", why);
	return gmem_ui_fail("%s; the old machine is left stopped: gmem migrate send --resume %s", why,
			    s->journal->path);
}

int migrate_serve(struct migrate_send *s)
{
	bool first = s->server != NULL;
	int err = first ? 0 : -ENOLINK;

	gmem_ui_note("if this process dies: gmem migrate send --resume %s", s->journal->path);
	for (;;) {
		if (!err)
			err = wait_complete(s);
		if (!err)
			return complete(s);
		if (err == -ECANCELED)
			return aborted(s, first);
		/* The link's own end, a receiver that is a new process, or none at all yet. */
		usleep(RETRY_US);
		tell_interrupted();
		first = false;
		err = new_session(s);
	}
}

/* ---- for a sender that died */

static int attach(struct migrate_send *s)
{
	if (gmem_qmp_connect(s->socket, &s->qmp))
		return gmem_ui_fail_last();
	if (!s->journal || gmem_qmp_peer_pid(s->qmp) != s->journal->pid)
		return gmem_ui_fail("%s: process %d listens there, not the QEMU that was sent (%d)", s->socket,
				    (int)gmem_qmp_peer_pid(s->qmp), (int)s->journal->pid);
	s->machine.pid = s->journal->pid;
	s->machine.process = gmem_process_open(s->machine.pid);
	if (s->machine.process < 0 || gmem_ram_find(s->qmp, s->machine.pid, &s->machine.ram))
		return gmem_ui_fail_last();
	return 0;
}

/* Stopped, but never handed over; or a person says that the other machine will not run it. */
static int go_on_here(struct migrate_send *s)
{
	json_t *back = NULL;

	s->state.stopped = true;
	s->state.was_running = s->was_running;
	if (gmem_device_state_caps(s->qmp, false, &back))
		return gmem_ui_fail_last();
	json_decref(back);
	if (take_back(s))
		return GMEM_UI_FAILED;
	gmem_ui_note("the guest goes on here%s", s->was_running ? "" : ", paused as it was");
	return 0;
}

int migrate_resume_serving(struct migrate_send *s)
{
	struct migrate_identity who;

	if (migrate_journal_read(s->resume, &s->journal))
		return GMEM_UI_FAILED;
	s->socket = s->journal->socket;
	s->address = s->journal->address;
	s->was_running = s->journal->was_running;
	s->keep = s->journal->keep;
	memcpy(s->id, s->journal->id, sizeof(s->id));
	if (attach(s))
		return GMEM_UI_FAILED;
	if (s->journal->mark == MIGRATE_MARK_STOPPED || s->take_back)
		return go_on_here(s);
	who = (struct migrate_identity){ .dir = s->journal->dir, .peer = s->journal->peer };
	s->gone = true;
	if (migrate_tls(&who, &s->tls))
		return GMEM_UI_FAILED;
	return migrate_serve(s);
}
