/* SPDX-License-Identifier: MIT */
#include "link/serve/metrics.h"

#include <stddef.h>
#include <string.h>

static const char *const states[GMEM_SERVE_NSTATES] = {
	"connected", "serving", "replaying", "filling", "complete", "degraded", "lost",
};

static const char *const refusals[GMEM_REFUSED_NREASONS] = {
	"user", "limit", "protocol", "timeout", "source", "other",
};

const char *gmem_serve_state_name(enum gmem_serve_state state)
{
	return state < GMEM_SERVE_NSTATES ? states[state] : "unknown";
}

/* How many bytes of a UTF-8 character begin at `s`; 0: it is none, or one that means nothing to a reader. */
static size_t character(const unsigned char *s)
{
	static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
	size_t n = s[0] < 0x80 ? 1 : s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : s[0] >= 0xc0 ? 2 : 0;
	uint32_t c = n ? s[0] & (0xffu >> (n > 1 ? n + 1 : 1)) : 0;

	if (s[0] >= 0xf8 || s[0] < 0x20 || s[0] == 0x7f)
		return 0;
	for (size_t i = 1; i < n; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (s[i] & 0x3fu);
	}
	return n && c >= least[n] && c <= 0x10ffff && (c < 0xd800 || c > 0xdfff) ? n : 0;
}

void gmem_metrics_label(struct gmem_text *text, const char *value)
{
	const unsigned char *s = (const unsigned char *)value;

	while (*s) {
		size_t n = character(s);

		if (*s == '\\' || *s == '"')
			gmem_text_add(text, "\\%c", *s);
		else if (*s == '\n')
			gmem_text_add(text, "\\n");
		else if (n)
			gmem_text_add(text, "%.*s", (int)n, (const char *)s);
		else
			gmem_text_add(text, "?");
		s += n ? n : 1;
	}
}

static void head(struct gmem_text *t, const char *name, const char *type, const char *help)
{
	gmem_text_add(t, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void one(struct gmem_text *t, const char *name, const char *type, const char *help, uint64_t value)
{
	head(t, name, type, help);
	gmem_text_add(t, "%s %llu\n", name, (unsigned long long)value);
}

static void of_vm(struct gmem_text *t, const char *name, const struct gmem_serve_vm *vm, const char *more,
		  uint64_t value)
{
	gmem_text_add(t, "%s{vm=\"%s\"%s} %llu\n", name, vm->id, more, (unsigned long long)value);
}

/* ---- the server */

static void server_metrics(struct gmem_text *t, const struct gmem_serve_view *view)
{
	head(t, "gmem_serve_info", "gauge", "The server; always 1.");
	gmem_text_add(t, "gmem_serve_info{version=\"");
	gmem_metrics_label(t, view->version);
	gmem_text_add(t, "\"} 1\n");
	one(t, "gmem_serve_generation", "gauge", "Servers there have been with this state, this one included.",
	    view->generation);
	one(t, "gmem_serve_restarts_total", "counter", "Servers there have been before this one.",
	    view->generation ? view->generation - 1 : 0);
	one(t, "gmem_serve_keeper_up", "gauge",
	    "1 if the machines' descriptors would outlive this server: a keeper, or systemd, holds them.",
	    view->keeper ? 1 : 0);
	one(t, "gmem_serve_start_time_seconds", "gauge", "When this server started, in seconds since 1970.",
	    view->start_s);
	one(t, "gmem_serve_connections_total", "counter", "Connections accepted.", view->accepted);
	one(t, "gmem_serve_connections_waiting", "gauge", "Connections whose handshake is not complete.",
	    view->waiting);
	head(t, "gmem_serve_refused_total", "counter", "Clients refused, by reason.");
	for (int i = 0; i < GMEM_REFUSED_NREASONS; i++)
		gmem_text_add(t, "gmem_serve_refused_total{reason=\"%s\"} %llu\n", refusals[i],
			      (unsigned long long)view->refused[i]);
	one(t, "gmem_serve_vms", "gauge", "Machines served at present.", view->nvms);
	one(t, "gmem_serve_vms_total", "counter", "Machines this server has served, resumed ones included.",
	    view->served);
	one(t, "gmem_serve_vms_ended_total", "counter", "Of those, machines whose process has ended.", view->ended);
}

/* ---- each machine */

static void info(struct gmem_text *t, const struct gmem_serve_view *view)
{
	head(t, "gmem_serve_vm_info", "gauge", "What a machine is; always 1. The other metrics have only its number.");
	for (size_t i = 0; i < view->nvms; i++) {
		const struct gmem_serve_vm *vm = &view->vms[i];

		gmem_text_add(t, "gmem_serve_vm_info{vm=\"%s\",name=\"", vm->id);
		gmem_metrics_label(t, vm->name);
		gmem_text_add(t, "\",source=\"");
		gmem_metrics_label(t, vm->source);
		gmem_text_add(t, "\",protocol=\"");
		gmem_metrics_label(t, vm->protocol);
		gmem_text_add(t, "\",pid=\"%d\",uid=\"%u\"} 1\n", (int)vm->pid, (unsigned int)vm->uid);
	}
}

static void state(struct gmem_text *t, const struct gmem_serve_view *view)
{
	head(t, "gmem_serve_vm_state", "gauge", "1 for the state a machine is in, 0 for the others.");
	for (size_t i = 0; i < view->nvms; i++)
		for (int s = 0; s < GMEM_SERVE_NSTATES; s++)
			gmem_text_add(t, "gmem_serve_vm_state{vm=\"%s\",state=\"%s\"} %d\n", view->vms[i].id, states[s],
				      (int)view->vms[i].state == s);
}

static void memory(struct gmem_text *t, const struct gmem_serve_view *view)
{
	head(t, "gmem_serve_memory_bytes", "gauge",
	     "A machine's memory: all of it, what is in place (or known to be zero), what is lost.");
	for (size_t i = 0; i < view->nvms; i++) {
		of_vm(t, "gmem_serve_memory_bytes", &view->vms[i], ",kind=\"total\"", view->vms[i].total_bytes);
		of_vm(t, "gmem_serve_memory_bytes", &view->vms[i], ",kind=\"present\"", view->vms[i].present_bytes);
		of_vm(t, "gmem_serve_memory_bytes", &view->vms[i], ",kind=\"lost\"", view->vms[i].lost_bytes);
	}
}

static void faults(struct gmem_text *t, const struct gmem_serve_view *view)
{
	head(t, "gmem_serve_faults_total", "counter", "Faults read, by kind.");
	for (size_t i = 0; i < view->nvms; i++) {
		of_vm(t, "gmem_serve_faults_total", &view->vms[i], ",kind=\"missing\"", view->vms[i].stats.missing);
		of_vm(t, "gmem_serve_faults_total", &view->vms[i], ",kind=\"minor\"", view->vms[i].stats.minor);
	}
}

static void pages(struct gmem_text *t, const struct gmem_serve_view *view)
{
	head(t, "gmem_serve_pages_total", "counter",
	     "Pages of 4 KiB brought in, by why: a fault (with what came along), the working set, the rest.");
	for (size_t i = 0; i < view->nvms; i++) {
		const struct gmem_serve_vm *vm = &view->vms[i];

		of_vm(t, "gmem_serve_pages_total", vm, ",why=\"demand\"", vm->stats.demand_pages);
		of_vm(t, "gmem_serve_pages_total", vm, ",why=\"replay\"", vm->stats.replay_pages);
		of_vm(t, "gmem_serve_pages_total", vm, ",why=\"fill\"", vm->stats.fill_pages);
	}
}

static void counters(struct gmem_text *t, const struct gmem_serve_view *view)
{
	static const struct {
		const char *name, *type, *help;
		size_t at;
	} rows[] = {
#define ROW(name, type, field, help) { "gmem_serve_" name, type, help, offsetof(struct gmem_pager_stats, field) }
		ROW("zero_pages_total", "counter", zero_pages, "Pages that were known to be zero: nothing was read."),
		ROW("removes_total", "counter", removes, "Removals read: memory a machine has given back."),
		ROW("read_bytes_total", "counter", read_bytes, "Bytes asked of the source."),
		ROW("retries_total", "counter", retries, "Pages that were tried again."),
		ROW("errors_total", "counter", errors, "Pages that could not be served when they were tried."),
		ROW("poisoned_total", "counter", poisoned, "Pages whose bytes are lost: touching them is SIGBUS."),
		ROW("gave_up_total", "counter", gave_up, "Faults that waited too long and met the policy."),
		ROW("pending_faults", "gauge", pending, "Faults read and not resolved."),
#undef ROW
	};

	for (size_t r = 0; r < sizeof(rows) / sizeof(rows[0]); r++) {
		head(t, rows[r].name, rows[r].type, rows[r].help);
		for (size_t i = 0; i < view->nvms; i++) {
			uint64_t value;

			memcpy(&value, (const char *)&view->vms[i].stats + rows[r].at, sizeof(value));
			of_vm(t, rows[r].name, &view->vms[i], "", value);
		}
	}
}

/* The last bucket has all above, as +Inf; the sum of the buckets is the count, or a scrape would contradict itself. */
static void latency(struct gmem_text *t, const struct gmem_serve_view *view)
{
	const char *name = "gmem_serve_fault_latency_seconds";

	head(t, name, "histogram",
	     "From a fault's being read to its being resolved. Bounds as of QEMU's postcopy-latency-dist: 2^N us.");
	for (size_t i = 0; i < view->nvms; i++) {
		const struct gmem_serve_vm *vm = &view->vms[i];
		unsigned long long n = 0;

		for (unsigned int b = 0; b < GMEM_LATENCY_BUCKETS - 1; b++) {
			unsigned long long us = 2ull << b;

			n += vm->stats.latency[b];
			gmem_text_add(t, "%s_bucket{vm=\"%s\",le=\"%llu.%06llu\"} %llu\n", name, vm->id, us / 1000000,
				      us % 1000000, n);
		}
		n += vm->stats.latency[GMEM_LATENCY_BUCKETS - 1];
		gmem_text_add(t, "%s_bucket{vm=\"%s\",le=\"+Inf\"} %llu\n", name, vm->id, n);
		gmem_text_add(t, "%s_sum{vm=\"%s\"} %llu.%09llu\n", name, vm->id,
			      (unsigned long long)(vm->stats.latency_sum_ns / 1000000000u),
			      (unsigned long long)(vm->stats.latency_sum_ns % 1000000000u));
		gmem_text_add(t, "%s_count{vm=\"%s\"} %llu\n", name, vm->id, n);
	}
	head(t, "gmem_serve_fault_latency_max_seconds", "gauge", "The longest of them.");
	for (size_t i = 0; i < view->nvms; i++)
		gmem_text_add(t, "gmem_serve_fault_latency_max_seconds{vm=\"%s\"} %llu.%09llu\n", view->vms[i].id,
			      (unsigned long long)(view->vms[i].stats.latency_max_ns / 1000000000u),
			      (unsigned long long)(view->vms[i].stats.latency_max_ns % 1000000000u));
}

static void since(struct gmem_text *t, const struct gmem_serve_view *view)
{
	head(t, "gmem_serve_vm_start_time_seconds", "gauge", "When a machine was first known, in seconds since 1970.");
	for (size_t i = 0; i < view->nvms; i++)
		of_vm(t, "gmem_serve_vm_start_time_seconds", &view->vms[i], "", view->vms[i].since_s);
}

void gmem_serve_metrics(struct gmem_text *text, const struct gmem_serve_view *view)
{
	server_metrics(text, view);
	if (!view->nvms)
		return;
	info(text, view);
	state(text, view);
	since(text, view);
	memory(text, view);
	faults(text, view);
	pages(text, view);
	counters(text, view);
	latency(text, view);
}
