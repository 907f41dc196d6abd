/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tools/restore.h"

void restore_event(void *opaque, const struct gmem_pager_event *event)
{
	switch (event->kind) {
	case GMEM_PAGER_POISONED:
		gmem_ui_note("page at 0x%llx of region %u is lost, touching it is SIGBUS: %s",
			     (unsigned long long)event->off, event->region, event->text);
		break;
	case GMEM_PAGER_ERROR:
		gmem_ui_note("page at 0x%llx of region %u cannot be served now, the guest waits for it: %s",
			     (unsigned long long)event->off, event->region, event->text);
		break;
	default:
		break;
	}
}

struct filling {
	struct restore *r;
	struct gmem_ui_progress progress;
};

/* A signal ends the guest, not the service: it may need pages to end in order. */
static void pass_signal_on(struct restore *r)
{
	static bool told;

	if (restore_interrupted() && !told && r->vm) {
		told = true;
		kill(r->vm, SIGTERM);
	}
}

static int fill_step(void *opaque, uint64_t done, uint64_t total)
{
	struct filling *f = opaque;

	pass_signal_on(f->r);
	if (f->r->tick)
		f->r->tick(f->r);
	/* The pager notices when it has a page to map; one that comes no more must not keep us. */
	if (restore_vm_status(f->r, 0) >= 0)
		return -ESRCH;
	return gmem_ui_progress_step(&f->progress, done, total);
}

/* 0 or 1 (filled), or negative errno. -ESRCH: the guest has ended. */
static int64_t fill(struct restore *r)
{
	struct filling f = { .r = r };
	int64_t n;

	gmem_ui_progress_start(&f.progress, "filling");
	n = gmem_pager_fill(gmem_server_pager(r->server), fill_step, &f);
	gmem_ui_progress_end(&f.progress);
	return n;
}

/* --no-fill: faults only, until the guest ends or a save needs the memory whole. */
static bool serve_faults(struct restore *r)
{
	struct gmem_server_status status = { .size = sizeof(status) };

	for (;;) {
		pass_signal_on(r);
		if (restore_vm_status(r, 100) >= 0)
			return false;
		gmem_server_status(r->server, &status);
		if (status.fill_wanted)
			return true;
	}
}

static void row(struct gmem_ui_table *t, const char *name, const char *value)
{
	gmem_ui_table_cell(t, "%s", name);
	gmem_ui_table_cell(t, "%s", value);
}

static void row_count(struct gmem_ui_table *t, const char *name, uint64_t value)
{
	gmem_ui_table_cell(t, "%s", name);
	gmem_ui_table_cell(t, "%llu", (unsigned long long)value);
}

static void print_histogram(const struct gmem_pager_stats *s)
{
	struct gmem_ui_table t;

	if (!s->latency_count)
		return;
	fprintf(stderr, "faults by service time:\n");
	gmem_ui_table_init(&t, 2, 2);
	for (unsigned int i = 0; i < GMEM_LATENCY_BUCKETS; i++) {
		if (!s->latency[i])
			continue;
		gmem_ui_table_cell(&t, "%s%llu us", i ? "" : "< ", i ? 1ull << i : 2ull);
		gmem_ui_table_cell(&t, "%llu", (unsigned long long)s->latency[i]);
	}
	gmem_ui_table_print(&t, stderr, "  ");
	gmem_ui_table_free(&t);
}

/* To standard error: standard output is the guest's console as often as not. */
static void report(const struct restore *r, bool complete)
{
	struct gmem_pager_stats s = { .size = sizeof(s) };
	char buf[GMEM_UI_TEXT];
	struct gmem_ui_table t;

	if (gmem_pager_stats(gmem_server_pager(r->server), &s))
		return;
	gmem_ui_table_init(&t, 2, 2);
	if (r->resumed) {
		row(&t, "time to resume", gmem_ui_time(buf, r->resumed - r->begun));
		if (r->ready)
			row(&t, "  of it after QEMU was ready", gmem_ui_time(buf, r->resumed - r->ready));
	}
	row_count(&t, "faults, missing", s.missing);
	row_count(&t, "faults, minor", s.minor);
	row_count(&t, "pages on demand", s.demand_pages);
	row_count(&t, "pages behind", s.fill_pages);
	row(&t, "bytes read", gmem_ui_size(buf, s.read_bytes));
	if (s.poisoned)
		row_count(&t, "pages lost", s.poisoned);
	if (s.latency_count) {
		row(&t, "fault service, mean", gmem_ui_time(buf, s.latency_sum_ns / s.latency_count));
		row(&t, "fault service, longest", gmem_ui_time(buf, s.latency_max_ns));
	}
	row(&t, complete ? "complete after" : "served for", gmem_ui_time(buf, gmem_ui_now() - r->begun));
	gmem_ui_table_print(&t, stderr, "");
	gmem_ui_table_free(&t);
	print_histogram(&s);
}

static int wait_for_end(struct restore *r)
{
	if (!r->child || r->detach)
		return GMEM_UI_OK;
	do {
		pass_signal_on(r);
	} while (restore_vm_status(r, 200) < 0);
	return r->vm_status;
}

int restore_serve(struct restore *r)
{
	int64_t n, kept;

	/* A monitor takes one client: others may want it, `gmem save` first of all. */
	gmem_qmp_close(r->qmp);
	r->qmp = NULL;
	if (r->resumed) {
		char buf[GMEM_UI_TEXT];

		gmem_ui_note("%s after %s%s", r->saved->running ? "resumed" : "ready, paused as it was",
			     gmem_ui_time(buf, r->resumed - r->begun), r->eager ? "" : "; its pages come on demand");
	}
	if (r->eager)
		return wait_for_end(r);
	gmem_ui_note("if this process dies: gmem %s --reattach %s", r->incoming ? "migrate receive" : "restore",
		     r->keeper_path);
	if (r->no_fill && !serve_faults(r)) {
		restore_workset_end(r, 0);
		report(r, false);
		return wait_for_end(r);
	}
	n = fill(r);
	restore_workset_end(r, n > 0 ? (uint64_t)n : 0);
	if (n == -ESRCH) {
		gmem_ui_note("the machine ended before all of its memory was needed");
		if (r->completed)
			r->completed(r);
		report(r, false);
		return wait_for_end(r);
	}
	if (n < 0)
		return gmem_ui_fail_last();
	kept = gmem_pager_unregister(gmem_server_pager(r->server));
	if (kept < 0)
		return gmem_ui_fail_last();
	if (r->completed)
		r->completed(r);
	report(r, true);
	if (kept)
		gmem_ui_note("%lld page(s) are lost: a guest that touches one gets SIGBUS", (long long)kept);
	/*
	 * Nothing is left to serve: the memory is the guest's own. Unless pages are lost; a marker that QEMU drops
	 * must be set again.
	 */
	if (!kept) {
		gmem_server_free(r->server);
		r->server = NULL;
	}
	return wait_for_end(r);
}
