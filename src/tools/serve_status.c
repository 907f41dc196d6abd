/* SPDX-License-Identifier: MIT */
/* gmem serve status: what a running server says of itself, as a table. gmem serve upgrade. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "link/serve/minder.h"
#include "tools/serve.h"
#include "tools/ui.h"

static const char help[] = "Usage: gmem serve status [--state-dir DIR | --metrics PATH]\n"
			   "       gmem serve upgrade [--state-dir DIR]\n"
			   "\n"
			   "status: what the page server of this directory serves, a line a machine.\n"
			   "upgrade: its program is started anew from its path, and machines go on.\n";

#define MAX_ANSWER (64u << 20)

/* ---- asking */

static int fetch(const char *path, char **ret)
{
	static const char request[] = "GET /metrics HTTP/1.0\r\n\r\n";
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct timeval patience = { .tv_sec = 10 };
	size_t len = 0, room = 1 << 16;
	char *text, *more;
	ssize_t n = -1;
	int fd;

	if (strlen(path) >= sizeof(sa.sun_path))
		return gmem_ui_fail("%s: too long for a socket's path", path);
	strcpy(sa.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&sa, sizeof(sa))) {
		int err = errno;

		if (fd >= 0)
			close(fd);
		return gmem_ui_fail("%s: no page server answers there: %s", path, strerror(err));
	}
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	text = malloc(room);
	if (text && send(fd, request, strlen(request), MSG_NOSIGNAL) == (ssize_t)strlen(request)) {
		while (len < MAX_ANSWER && (n = recv(fd, text + len, room - 1 - len, 0)) > 0) {
			len += (size_t)n;
			if (len + 1 < room)
				continue;
			more = realloc(text, room *= 2);
			if (!more)
				break;
			text = more;
		}
	}
	close(fd);
	if (!text || n) {
		free(text);
		return gmem_ui_fail("%s: the page server's answer was cut short", path);
	}
	text[len] = 0;
	*ret = text;
	return 0;
}

/* ---- reading it: lines of NAME{LABEL="VALUE",...} NUMBER */

struct vm {
	char id[64], name[128], source[128], protocol[64], state[32], pid[16];
	double total, present, lost, faults, pending, errors, latency_sum, latency_count;
};

struct status {
	struct vm *vms;
	size_t nvms;
	double generation, keeper;
};

/* A label's value, as it was before it was escaped. "" if there is none. */
static void label(const char *line, const char *name, char *ret, size_t len)
{
	char key[64];
	const char *p;
	size_t n = 0;

	snprintf(key, sizeof(key), "%s=\"", name);
	p = strchr(line, '{');
	while (p && (p = strstr(p + 1, key)) && p[-1] != '{' && p[-1] != ',')
		;
	for (p = p ? p + strlen(key) : ""; *p && *p != '"' && n + 1 < len; p++) {
		if (*p == '\\' && p[1])
			p++;
		ret[n++] = (unsigned char)*p < ' ' ? '?' : *p;
	}
	ret[n] = 0;
}

static struct vm *vm_of(struct status *s, const char *line)
{
	struct vm *vms;
	char id[64];

	label(line, "vm", id, sizeof(id));
	if (!*id)
		return NULL;
	for (size_t i = 0; i < s->nvms; i++)
		if (!strcmp(s->vms[i].id, id))
			return &s->vms[i];
	vms = realloc(s->vms, (s->nvms + 1) * sizeof(*vms));
	if (!vms)
		return NULL;
	s->vms = vms;
	vms[s->nvms] = (struct vm){ 0 };
	snprintf(vms[s->nvms].id, sizeof(vms[s->nvms].id), "%s", id);
	return &vms[s->nvms++];
}

static bool is(const char *line, const char *name)
{
	size_t n = strlen(name);

	return !strncmp(line, name, n) && (line[n] == '{' || line[n] == ' ');
}

static void take_memory(struct vm *vm, const char *line, double value)
{
	char kind[16];

	label(line, "kind", kind, sizeof(kind));
	if (!strcmp(kind, "total"))
		vm->total = value;
	else if (!strcmp(kind, "present"))
		vm->present = value;
	else if (!strcmp(kind, "lost"))
		vm->lost = value;
}

static void take_line(struct status *s, const char *line)
{
	const char *number = strrchr(line, ' ');
	double value = number ? atof(number) : 0;
	struct vm *vm;

	if (is(line, "gmem_serve_generation"))
		s->generation = value;
	if (is(line, "gmem_serve_keeper_up"))
		s->keeper = value;
	vm = *line == '#' ? NULL : vm_of(s, line);
	if (!vm)
		return;
	if (is(line, "gmem_serve_vm_info")) {
		label(line, "name", vm->name, sizeof(vm->name));
		label(line, "source", vm->source, sizeof(vm->source));
		label(line, "protocol", vm->protocol, sizeof(vm->protocol));
		label(line, "pid", vm->pid, sizeof(vm->pid));
	} else if (is(line, "gmem_serve_vm_state") && value == 1) {
		label(line, "state", vm->state, sizeof(vm->state));
	} else if (is(line, "gmem_serve_memory_bytes")) {
		take_memory(vm, line, value);
	} else if (is(line, "gmem_serve_faults_total")) {
		vm->faults += value;
	} else if (is(line, "gmem_serve_pending_faults")) {
		vm->pending = value;
	} else if (is(line, "gmem_serve_errors_total")) {
		vm->errors = value;
	} else if (is(line, "gmem_serve_fault_latency_seconds_sum")) {
		vm->latency_sum = value;
	} else if (is(line, "gmem_serve_fault_latency_seconds_count")) {
		vm->latency_count = value;
	}
}

/* ---- printing */

static void print(const struct status *s)
{
	static const char *const titles[] = { "vm",    "name", "pid",	 "source", "state",   "memory",
					      "there", "lost", "faults", "mean",   "waiting", "errors" };
	struct gmem_ui_table t;
	char a[GMEM_UI_TEXT];

	printf("server number %.0f with this state; %s\n", s->generation,
	       s->keeper ? "a keeper holds the machines' descriptors" :
			   "nobody would hold the machines' descriptors if it died");
	if (!s->nvms) {
		printf("no machines\n");
		return;
	}
	gmem_ui_table_init(&t, 12, 0xfe0);
	for (size_t i = 0; i < 12; i++)
		gmem_ui_table_cell(&t, "%s", titles[i]);
	for (size_t i = 0; i < s->nvms; i++) {
		const struct vm *vm = &s->vms[i];

		gmem_ui_table_cell(&t, "%s", vm->id);
		gmem_ui_table_cell(&t, "%s", *vm->name ? vm->name : "-");
		gmem_ui_table_cell(&t, "%s", vm->pid);
		gmem_ui_table_cell(&t, "%s", *vm->source ? vm->source : "-");
		gmem_ui_table_cell(&t, "%s", vm->state);
		gmem_ui_table_cell(&t, "%s", gmem_ui_size(a, (uint64_t)vm->total));
		gmem_ui_table_cell(&t, "%.1f %%", vm->total > 0 ? 100 * vm->present / vm->total : 0);
		gmem_ui_table_cell(&t, "%s", gmem_ui_size(a, (uint64_t)vm->lost));
		gmem_ui_table_cell(&t, "%.0f", vm->faults);
		gmem_ui_table_cell(&t, "%s",
				   vm->latency_count > 0 ?
					   gmem_ui_time(a, (uint64_t)(1e9 * vm->latency_sum / vm->latency_count)) :
					   "-");
		gmem_ui_table_cell(&t, "%.0f", vm->pending);
		gmem_ui_table_cell(&t, "%.0f", vm->errors);
	}
	gmem_ui_table_print(&t, stdout, "");
	gmem_ui_table_free(&t);
}

/* ---- arguments */

static int take_where(int argc, char **argv, char dir[256], char metrics[300])
{
	static const struct option options[] = {
		{ "state-dir", required_argument, NULL, 'D' },
		{ "metrics", required_argument, NULL, 'm' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	*dir = *metrics = 0;
	optind = 1;
	opterr = 0;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'h') {
			fputs(help, stdout);
			return -1;
		}
		if (c == '?')
			return gmem_ui_usage("serve", "unknown option or missing value: '%s'", argv[optind - 1]);
		snprintf(c == 'D' ? dir : metrics, 256, "%s", optarg);
	}
	if (optind < argc)
		return gmem_ui_usage("serve", "'%s': a word that is no option", argv[optind]);
	if (!*dir && !serve_default_dir(dir, 256) && !*metrics)
		return gmem_ui_usage("serve", "--state-dir is needed: there is no $XDG_RUNTIME_DIR");
	if (!*metrics)
		snprintf(metrics, 300, "%s/metrics", dir);
	return 0;
}

int serve_status(int argc, char **argv)
{
	char dir[256], metrics[300], *text = NULL, *rest;
	struct status s = { 0 };
	int code = take_where(argc, argv, dir, metrics);

	if (code)
		return code < 0 ? GMEM_UI_OK : code;
	code = fetch(metrics, &text);
	if (code)
		return code;
	for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
		take_line(&s, line);
	free(text);
	if (!s.generation)
		return gmem_ui_fail("%s: what answers there is no page server of gmem's", metrics);
	print(&s);
	free(s.vms);
	return GMEM_UI_OK;
}

int serve_upgrade(int argc, char **argv)
{
	char dir[256], metrics[300];
	int code = take_where(argc, argv, dir, metrics), pid;

	if (code)
		return code < 0 ? GMEM_UI_OK : code;
	pid = gmem_minder_find(dir);
	if (pid < 0)
		return gmem_ui_fail_last();
	if (!pid)
		return gmem_ui_fail("%s: no keeper runs there; where systemd keeps: systemctl restart", dir);
	if (kill(pid, SIGHUP))
		return gmem_ui_fail("the keeper, process %d: %s", pid, strerror(errno));
	gmem_ui_note("told the keeper, process %d, which says how it went on its standard error", pid);
	return GMEM_UI_OK;
}
