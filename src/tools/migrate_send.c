/* SPDX-License-Identifier: MIT */
/*
 * gmem migrate send, up to the moment the guest is the other machine's. Whatever fails before that, the guest goes on
 * here as if nothing had happened.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "tools/migrate.h"

#define QUESTION_TIMEOUT_MS 10000
#define WORK_TIMEOUT_MS 60000
#define FIRST_LINK_MS 15000
#define PREPARE_MS 120000

static const char help[] =
	"Usage: gmem migrate send --qmp SOCKET --tls DIR [OPTION]... HOST:PORT\n"
	"       gmem migrate send --resume FILE [--take-back]\n"
	"\n"
	"Moves a running QEMU to the machine where gmem migrate receive waits on HOST:PORT.\n"
	"\n"
	"  --qmp SOCKET   QEMU's control monitor\n"
	"  --tls DIR      ca-cert.pem, cert.pem and key.pem: who this machine is, and who may say who the other is\n"
	"  --peer WHO     the name the other side's certificate must be for, or sha256:HEX of it (HOST)\n"
	"  --precopy N    send the memory N times while the guest runs, after the first time what it has written (0);\n"
	"                 needs KVM\n"
	"  --keep         leave the old QEMU, stopped, when all is over; without it, it ends\n"
	"  --pid PID      QEMU's process, where the socket does not tell\n"
	"  --resume FILE  carry on for a sender that died, from the file it named: serve pages to the guest on the\n"
	"                 other machine, or let the guest go on here if it had not been handed over\n"
	"  --take-back    with --resume: the guest runs nowhere else, and never will; let it go on here\n"
	"  --help         this text\n";

/* ---- the channel */

static void on_event(void *opaque, const struct gmem_channel_event *event)
{
	struct migrate_send *s = opaque;

	if (event->kind == GMEM_CHANNEL_REFUSED)
		atomic_store(&s->refused, true);
	if (event->kind == GMEM_CHANNEL_UP || event->kind == GMEM_CHANNEL_LOST)
		atomic_store(&s->lost, event->kind == GMEM_CHANNEL_LOST ? gmem_ui_now() : 0);
	migrate_tell_event(event);
}

int migrate_new_session(struct migrate_send *s, uint32_t first_ms)
{
	const struct gmem_channel_opts opts = { .size = sizeof(opts),
						.tls = s->tls,
						.address = s->address,
						.listen_fd = -1,
						.first_ms = first_ms,
						.event = on_event,
						.opaque = s };
	const struct gmem_ram *ram = s->machine.ram;
	struct gmem_migrate_region regions[GMEM_RESTORE_MAX_FILES];

	if (ram->n > GMEM_RESTORE_MAX_FILES)
		return gmem_ui_fail("%zu memory backends, this gmem knows %d", ram->n, GMEM_RESTORE_MAX_FILES);
	for (size_t i = 0; i < ram->n; i++)
		regions[i] = (struct gmem_migrate_region){ .name = ram->backends[i].id,
							   .len = ram->backends[i].size,
							   .page_size = GMEM_PAGE_SIZE,
							   .fd = ram->backends[i].fd,
							   .base = ram->backends[i].off };
	atomic_store(&s->refused, false);
	if (gmem_page_server_new(&opts, regions, ram->n, &s->server) ||
	    gmem_page_server_section(s->server, MIGRATE_ID, s->id, MIGRATE_ID_LEN))
		return gmem_ui_fail_last();
	return 0;
}

/* Waits for a phase; a signal ends it. While the guest stands, a lost link is not waited for as long. */
static int wait_phase(struct migrate_send *s, enum gmem_migrate_phase phase, int timeout_ms)
{
	uint64_t patience = (uint64_t)(s->stopped ? MIGRATE_LOST_MS : timeout_ms) * 1000000, lost;
	uint64_t deadline = gmem_ui_now() + (uint64_t)timeout_ms * 1000000;
	int err;

	do {
		err = gmem_page_server_wait(s->server, phase, 200);
		if (err != -ETIMEDOUT)
			return err ? gmem_ui_fail_last() : 0;
		if (migrate_interrupted())
			return gmem_ui_fail("interrupted by signal %d", migrate_interrupted());
		if (!gmem_process_wait(s->machine.process, 0))
			return gmem_ui_fail("QEMU has ended");
		lost = atomic_load(&s->lost);
		if (lost && gmem_ui_now() > lost + patience)
			return gmem_ui_fail("%s: there is no link any more", s->address);
	} while (gmem_ui_now() < deadline);
	return gmem_ui_fail("%s: the other machine is not '%s' within %d s", s->address, gmem_migrate_phase_name(phase),
			    timeout_ms / 1000);
}

static int send_saved(struct migrate_send *s, const char *name)
{
	char *text;
	int err;

	if (gmem_saved_format(s->machine.saved, &text))
		return gmem_ui_fail_last();
	err = gmem_page_server_section(s->server, name, text, strlen(text));
	free(text);
	return err ? gmem_ui_fail_last() : 0;
}

/* ---- before the guest stands */

static int complete_step(void *opaque, uint64_t done, uint64_t total)
{
	gmem_ui_progress_step(opaque, done, total);
	return migrate_interrupted() ? -EINTR : 0;
}

static int complete_first(struct migrate_send *s)
{
	struct gmem_ui_progress progress;
	int err;

	gmem_ui_progress_start(&progress, "completing the memory");
	err = gmem_complete_memory(s->machine.pid, complete_step, &progress);
	gmem_ui_progress_end(&progress);
	return err ? gmem_ui_fail_last() : 0;
}

static int make_id(struct migrate_send *s)
{
	unsigned char bytes[MIGRATE_ID_LEN / 2];

	if (getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes))
		return gmem_ui_fail("getrandom: %s", strerror(errno));
	for (size_t i = 0; i < sizeof(bytes); i++)
		snprintf(s->id + 2 * i, 3, "%02x", bytes[i]);
	return 0;
}

static int check_running(struct migrate_send *s)
{
	const char *status;
	json_t *info;
	int err = 0;

	if (gmem_qmp_exec(s->qmp, "query-status", NULL, &info))
		return gmem_ui_fail_last();
	status = json_string_value(json_object_get(info, "status"));
	s->was_running = status && !strcmp(status, "running");
	if (!s->was_running && (!status || (strcmp(status, "paused") && strcmp(status, "prelaunch"))))
		err = gmem_ui_fail("the machine is neither running nor paused but in state '%s'",
				   status ? status : "?");
	else if (!s->was_running && s->precopy)
		err = gmem_ui_fail("the machine is paused: --precopy is for one that runs");
	json_decref(info);
	s->machine.saved->running = s->was_running;
	return err;
}

static int prepare(struct migrate_send *s)
{
	char buf[GMEM_UI_TEXT];

	if (gmem_qmp_connect(s->socket, &s->qmp))
		return gmem_ui_fail_last();
	gmem_qmp_set_timeout(s->qmp, QUESTION_TIMEOUT_MS);
	if (gmem_machine_inspect(s->qmp, s->pid, true, &s->machine))
		return gmem_ui_fail_last();
	if (check_running(s) || complete_first(s) || make_id(s) || migrate_tls(&s->who, &s->tls) ||
	    migrate_journal_new(s, &s->journal) || migrate_new_session(s, FIRST_LINK_MS) ||
	    send_saved(s, MIGRATE_QEMU) || wait_phase(s, GMEM_MIGRATE_PREPARED, PREPARE_MS))
		return GMEM_UI_FAILED;
	s->prepared = gmem_ui_now();
	gmem_ui_note("the other machine is ready after %s", gmem_ui_time(buf, s->prepared - s->begun));
	return 0;
}

/* ---- while it stands */

static int stop_and_take(struct migrate_send *s, void **device, size_t *len)
{
	gmem_qmp_set_timeout(s->qmp, WORK_TIMEOUT_MS);
	if (s->precopy)
		return migrate_precopy(s, device, len);
	if (gmem_device_state_prepare(s->qmp, &s->state) || gmem_device_state_stop(s->qmp, &s->state))
		return gmem_ui_fail_last();
	s->was_running = s->state.was_running;
	return gmem_device_state_take(s->qmp, &s->state, device, len) ? gmem_ui_fail_last() : 0;
}

static int hand_over(struct migrate_send *s)
{
	void *device = NULL;
	size_t len = 0;
	int err;

	s->journal->was_running = s->was_running;
	if (migrate_journal_mark(s->journal, MIGRATE_MARK_STOPPED))
		return GMEM_UI_FAILED;
	err = stop_and_take(s, &device, &len);
	s->stopped = s->state.stop_ns;
	s->machine.saved->running = s->was_running;
	if (!err && gmem_disks_identify(s->machine.saved))
		err = gmem_ui_fail_last();
	if (!err)
		err = send_saved(s, MIGRATE_STOPPED);
	if (!err &&
	    (gmem_page_server_section(s->server, s->precopy ? MIGRATE_STATE_WHOLE : MIGRATE_STATE, device, len) ||
	     gmem_page_server_stopped(s->server)))
		err = gmem_ui_fail_last();
	free(device);
	if (!err)
		err = wait_phase(s, GMEM_MIGRATE_READY, MIGRATE_WAIT_MS);
	if (err)
		return err;
	/* From here on a sender that dies must find that the guest is not its own any more. */
	if (migrate_journal_mark(s->journal, MIGRATE_MARK_GONE))
		return GMEM_UI_FAILED;
	s->gone = true;
	if (gmem_page_server_go(s->server)) {
		s->gone = !gmem_page_server_may_run(s->server);
		return gmem_ui_fail_last();
	}
	return 0;
}

/* The guest is not handed over: the other side hears so, if it can, and the guest goes on. */
static void give_up(struct migrate_send *s)
{
	uint64_t stopped_ns = 0;
	char buf[GMEM_UI_TEXT];

	if (s->server)
		(void)gmem_page_server_abort(s->server, "the sender has given the migration up");
	if ((s->state.stopped || s->state.caps) && gmem_process_wait(s->machine.process, 0)) {
		if (gmem_device_state_resume(s->qmp, &s->state, &stopped_ns)) {
			gmem_ui_note("%s; the machine is stopped: QMP cont", gmem_last_error());
			return;
		}
		gmem_ui_note("the guest goes on here%s%s", s->was_running ? "; it was stopped for " : ", paused",
			     s->was_running ? gmem_ui_time(buf, stopped_ns) : "");
	}
	if (s->journal)
		migrate_journal_remove(s->journal);
}

static int send_machine(struct migrate_send *s)
{
	int err = prepare(s);

	if (!err)
		err = hand_over(s);
	if (err && !s->gone)
		give_up(s);
	return err && !s->gone ? err : migrate_serve(s);
}

/* ---- arguments */

static int set_option(struct migrate_send *s, int c, const char *word)
{
	char *end;
	long v;

	if (migrate_take_identity(&s->who, c, optarg))
		return 0;
	switch (c) {
	case 'q':
		s->socket = optarg;
		return 0;
	case 'r':
		s->resume = optarg;
		return 0;
	case 'k':
		s->keep = true;
		return 0;
	case 't':
		s->take_back = true;
		return 0;
	case 'n':
	case 'p':
		errno = 0;
		v = strtol(optarg, &end, 10);
		if (errno || end == optarg || *end || v < (c == 'p') || v > (c == 'p' ? 1l << 30 : 1000))
			return gmem_ui_usage("migrate send",
					     c == 'p' ? "--pid %s: not a process id" :
							"--precopy %s: a number from 0 to 1000",
					     optarg);
		if (c == 'p')
			s->pid = (pid_t)v;
		else
			s->precopy = (unsigned int)v;
		return 0;
	default:
		return gmem_ui_usage("migrate send", "unknown option or missing value: '%s'", word);
	}
}

/* The host of "host:port" or "[address]:port", which the other side's certificate is for if nothing else is said. */
static char *host_of(const char *address)
{
	const char *colon = strrchr(address, ':');
	size_t len = colon ? (size_t)(colon - address) : 0;

	if (len >= 2 && address[0] == '[' && address[len - 1] == ']')
		return strndup(address + 1, len - 2);
	return len ? strndup(address, len) : NULL;
}

static int take_arguments(struct migrate_send *s, int argc, char **argv, char **ret_host)
{
	static const struct option options[] = {
		{ "qmp", required_argument, NULL, 'q' },    { "tls", required_argument, NULL, 'T' },
		{ "peer", required_argument, NULL, 'P' },   { "precopy", required_argument, NULL, 'n' },
		{ "keep", no_argument, NULL, 'k' },	    { "pid", required_argument, NULL, 'p' },
		{ "resume", required_argument, NULL, 'r' }, { "take-back", no_argument, NULL, 't' },
		{ "help", no_argument, NULL, 'h' },	    { NULL, 0, NULL, 0 },
	};
	int c, err;

	optind = 1;
	opterr = 0;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'h') {
			fputs(help, stdout);
			return -1;
		}
		err = set_option(s, c, argv[optind - 1]);
		if (err)
			return err;
	}
	if (s->resume)
		return optind < argc || s->socket || s->precopy ?
			       gmem_ui_usage("migrate send", "--resume takes --take-back and nothing else") :
			       0;
	if (s->take_back)
		return gmem_ui_usage("migrate send", "--take-back goes with --resume");
	if (!s->socket || !s->who.dir)
		return gmem_ui_usage("migrate send", "--qmp SOCKET and --tls DIR are needed");
	if (optind + 1 != argc)
		return gmem_ui_usage("migrate send", optind == argc ? "no HOST:PORT given" : "more than one HOST:PORT");
	s->address = argv[optind];
	*ret_host = host_of(s->address);
	if (!*ret_host)
		return gmem_ui_usage("migrate send", "'%s' is not HOST:PORT", s->address);
	if (!s->who.peer)
		s->who.peer = *ret_host;
	return 0;
}

int cmd_migrate_send(int argc, char **argv)
{
	struct migrate_send s = { .begun = gmem_ui_now(), .machine.process = -1, .state.bandwidth = -1 };
	char *host = NULL;
	int code = take_arguments(&s, argc, argv, &host);

	if (!code) {
		migrate_catch_signals();
		code = s.resume ? migrate_resume_serving(&s) : send_machine(&s);
	}
	gmem_page_server_free(s.server);
	gmem_tls_ctx_free(s.tls);
	migrate_journal_free(s.journal);
	gmem_device_state_clear(&s.state);
	gmem_machine_release(&s.machine);
	gmem_qmp_close(s.qmp);
	free(host);
	return code < 0 ? GMEM_UI_OK : code;
}
