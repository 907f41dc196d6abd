/* SPDX-License-Identifier: MIT */
/*
 * gmem migrate receive: starts a machine as gmem restore does, with another machine in the place of the image. A small
 * image is written all the same: it has no memory, but says how the guest is started and where its pages come from, so
 * that whoever carries on for this process finds it at the keeper.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/migrate.h"

static const char help[] =
	"Usage: gmem migrate receive --tls DIR --peer WHO [OPTION]... [ADDRESS]:PORT [-- QEMU]\n"
	"       gmem migrate receive --reattach SOCKET|PID [OPTION]...\n"
	"\n"
	"Waits for a guest that gmem migrate send brings, resumes it here and brings its pages in when touched,\n"
	"then all the others. The sender's QEMU command line is used unless one is given after --: who may send, may\n"
	"start programs here.\n"
	"\n"
	"  --tls DIR          ca-cert.pem, cert.pem, key.pem: who this machine is, and who may say who the other is\n"
	"  --peer WHO         the name the sender's certificate must be for, or sha256:HEX of it\n"
	"  --detach           end when the memory is complete; the machine runs on\n"
	"  --socket PATH      where to make the keeper's socket, through which another process can carry on\n"
	"  --reattach SOCKET  carry on for a receiver that died; a PID does it where the keeper died too\n"
	"  --take-over        with --reattach: end a receiver that still lives\n"
	"  --help             this text\n"
	"\n"
	"The exit code is QEMU's, or 1 if the guest did not come.\n";

/* ---- the image that is none */

static int write_image(struct migrate_receive *m, const void *qemu, size_t len)
{
	const struct gmem_image_writer_opts opts = { .size = sizeof(opts), .compression = GMEM_COMPRESS_NONE };
	json_t *top =
		json_pack("{s:s, s:s, s:s, s:s}", "listen", m->address, "tls", m->dir, "peer", m->peer, "id", m->id);
	char *text = top ? json_dumps(top, JSON_INDENT(1)) : NULL;
	struct gmem_image_writer *writer = NULL;
	int err = text ? 0 : gmem_ui_fail("a path or the address is not UTF-8");

	json_decref(top);
	/* A leftover of a process of the same number. */
	unlink(m->image_path);
	if (!err && (gmem_image_create(m->image_path, &opts, &writer) ||
		     gmem_image_add_section(writer, GMEM_SECTION_QEMU, qemu, len) ||
		     gmem_image_add_section(writer, MIGRATE_SECTION, text, strlen(text))))
		err = gmem_ui_fail_last();
	free(text);
	if (err) {
		gmem_image_abort(writer);
		return err;
	}
	return gmem_image_commit(writer) ? gmem_ui_fail_last() : 0;
}

/* For one that is reattached: all that it needs is in the image at the keeper. */
static int read_image(struct migrate_receive *m, struct gmem_image *image)
{
	const char *address, *dir, *peer, *id;
	json_error_t jerr;
	json_t *top;
	void *data;
	size_t len;
	int err;

	err = gmem_image_section(image, MIGRATE_SECTION, &data, &len);
	if (err)
		return gmem_set_error(err, "this guest was not received from another machine: gmem restore --reattach");
	top = json_loadb(data, len, 0, &jerr);
	free(data);
	if (!top ||
	    json_unpack(top, "{s:s, s:s, s:s, s:s}", "listen", &address, "tls", &dir, "peer", &peer, "id", &id) ||
	    strlen(id) != MIGRATE_ID_LEN) {
		json_decref(top);
		return gmem_set_error(-EBADMSG, "the keeper's image says nothing of a sender");
	}
	m->address = strdup(address);
	m->dir = strdup(dir);
	m->peer = strdup(peer);
	strcpy(m->id, id);
	json_decref(top);
	return m->address && m->dir && m->peer ? 0 : gmem_set_error(-ENOMEM, "out of memory");
}

/* Called while the server connects to the keeper, for each memory. */
static int on_source(void *opaque, struct gmem_image *image, size_t region, struct gmem_source **ret)
{
	struct restore *r = opaque;
	struct migrate_receive *m = r->migration;
	int err;

	if (region >= GMEM_RESTORE_MAX_FILES || m->exchanges[region])
		return gmem_set_error(-EPROTO, "the keeper has memory %zu twice", region);
	err = m->address ? 0 : read_image(m, image);
	return err ? err : gmem_exchange_new(&m->exchanges[region], ret);
}

/* ---- receiving */

/* Waits for a phase, looking after QEMU and signals. */
static int wait_phase(struct migrate_receive *m, enum gmem_migrate_phase phase, bool forever)
{
	struct gmem_incoming_stats stats = { .size = sizeof(stats) };
	uint64_t linked = gmem_ui_now();
	int err;

	for (;;) {
		err = gmem_incoming_wait(m->incoming, phase, 200);
		if (err != -ETIMEDOUT)
			return err ? gmem_ui_fail_last() : 0;
		if (restore_interrupted())
			return gmem_ui_fail("interrupted by signal %d", restore_interrupted());
		if (m->r.vm && restore_vm_status(&m->r, 0) >= 0)
			return gmem_ui_fail("QEMU ended before the guest ran");
		if (forever || (!gmem_incoming_stats(m->incoming, &stats) && stats.linked))
			linked = gmem_ui_now();
		if (gmem_ui_now() - linked > MIGRATE_WAIT_MS * 2000000ull)
			return gmem_ui_fail("the sender has been away for %d s, and the guest is still its own",
					    MIGRATE_WAIT_MS * 2 / 1000);
	}
}

static int take_id(struct migrate_receive *m)
{
	size_t len;
	void *id;

	if (gmem_incoming_section(m->incoming, MIGRATE_ID, MIGRATE_WAIT_MS, &id, &len))
		return gmem_ui_fail_last();
	if (len == MIGRATE_ID_LEN && strspn(id, "0123456789abcdef") == len)
		strcpy(m->id, id);
	free(id);
	return *m->id ? 0 : gmem_ui_fail("the sender's guest has no id");
}

/* Every disk must be here too: told before the guest is stopped over there. */
static int check_disks_here(const struct gmem_saved *saved)
{
	for (size_t i = 0; i < saved->ndisks; i++) {
		/* Opened, so that a network file system looks again. */
		int fd = open(saved->disks[i].path, O_RDONLY | O_CLOEXEC);

		if (fd < 0)
			return gmem_ui_fail("disk '%s' of the guest: %s here (disks must be on storage both machines "
					    "share)",
					    saved->disks[i].path, strerror(errno));
		close(fd);
	}
	return 0;
}

static int take_machine(struct migrate_receive *m)
{
	struct gmem_saved *saved = NULL;
	size_t len;
	void *qemu;
	int err;

	err = take_id(m);
	if (err)
		return err;
	if (gmem_incoming_section(m->incoming, MIGRATE_QEMU, MIGRATE_WAIT_MS, &qemu, &len))
		return gmem_ui_fail_last();
	if (gmem_saved_parse(qemu, len, &saved))
		err = gmem_ui_fail_last();
	if (!err)
		err = check_disks_here(saved);
	gmem_saved_free(saved);
	if (!err)
		err = restore_name_sockets(&m->r, m->r.socket);
	if (!err) {
		snprintf(m->image_path, sizeof(m->image_path), "%s.machine", m->r.keeper_path);
		m->r.path = m->image_path;
		err = write_image(m, qemu, len);
	}
	free(qemu);
	if (!err)
		err = restore_prepare(&m->r);
	if (!err && (migrate_connect_sources(m) || gmem_incoming_prepared(m->incoming)))
		err = gmem_ui_fail_last();
	return err;
}

/* What the sender found once the guest stood. */
static int check_stopped(struct migrate_receive *m)
{
	struct gmem_saved *saved = NULL;
	size_t len;
	void *text;
	int err;

	if (gmem_incoming_section(m->incoming, MIGRATE_STOPPED, MIGRATE_WAIT_MS, &text, &len))
		return gmem_ui_fail_last();
	err = gmem_saved_parse(text, len, &saved);
	free(text);
	if (err)
		return gmem_ui_fail_last();
	m->r.saved->running = saved->running;
	err = check_disks_here(saved);
	if (!err && gmem_disks_check(saved))
		err = gmem_ui_fail_last();
	gmem_saved_free(saved);
	return err;
}

static int load_state(struct migrate_receive *m)
{
	bool shared = true;
	void *state;
	size_t len;
	int err;

	err = gmem_incoming_section(m->incoming, MIGRATE_STATE, MIGRATE_WAIT_MS, &state, &len);
	if (err == -ENOENT) {
		shared = false;
		err = gmem_incoming_section(m->incoming, MIGRATE_STATE_WHOLE, MIGRATE_WAIT_MS, &state, &len);
	}
	if (err)
		return gmem_ui_fail_last();
	err = gmem_device_state_load(m->r.qmp, state, len, shared);
	free(state);
	return err ? restore_qemu_failed(&m->r) : 0;
}

/* GO has come: the guest is ours, whatever happens. A process that carries on for us must know. */
static int go(struct migrate_receive *m)
{
	int err;

	gmem_server_set_note(m->r.server, RESTORE_GO);
	err = restore_resume(&m->r);
	m->running = !err;
	if (!err && gmem_incoming_resumed(m->incoming))
		gmem_ui_note("%s", gmem_last_error());
	return err;
}

static int receive(struct migrate_receive *m)
{
	char why[256];
	int err;

	gmem_ui_note("waiting for a guest on %s", m->address);
	err = wait_phase(m, GMEM_MIGRATE_OPEN, true);
	if (err)
		return err;
	m->r.begun = gmem_ui_now();
	err = take_machine(m);
	if (!err) {
		gmem_ui_note("ready for the guest");
		err = wait_phase(m, GMEM_MIGRATE_STOPPED, false);
	}
	if (!err)
		err = check_stopped(m);
	if (!err)
		err = load_state(m);
	if (!err && gmem_incoming_ready(m->incoming))
		err = gmem_ui_fail_last();
	if (!err)
		err = wait_phase(m, GMEM_MIGRATE_GO, false);
	if (!err)
		return go(m);
	/* Not ours: never, from here on. Said first, so that the guest goes on over there at once. */
	snprintf(why, sizeof(why), "the receiver: %s", gmem_last_error());
	(void)gmem_incoming_abort(m->incoming, why);
	restore_undo(&m->r);
	return err;
}

/* ---- after it */

static int open_channel(struct migrate_receive *m)
{
	const struct migrate_identity who = { .dir = m->dir, .peer = m->peer };
	int err = migrate_tls(&who, &m->tls);

	return err ? err : migrate_listen(m);
}

/* The sender hears that it is not needed. It may be told by the next session, or never: nothing is lacking here. */
static void on_completed(struct restore *r)
{
	struct migrate_receive *m = r->migration;

	for (int i = 0; i < 20 && m->reattached; i++)
		migrate_tick(r);
	if (m->incoming && !m->reattached && !gmem_incoming_complete(m->incoming, 10000))
		return;
	gmem_ui_note("the memory is complete here, but the sender could not be told: end it there");
}

/* The receiver before us died before the guest ran here. Whose it is only the sender can say. */
static int on_unresumed(struct restore *r)
{
	struct gmem_server_status status = { .size = sizeof(status) };
	struct migrate_receive *m = r->migration;
	const char *word;
	json_t *answer;
	bool loaded;

	if (gmem_qmp_connect(r->qmp_path, &r->qmp) || gmem_qmp_exec(r->qmp, "query-status", NULL, &answer))
		return gmem_ui_fail_last();
	word = json_string_value(json_object_get(answer, "status"));
	loaded = word && strcmp(word, "inmigrate") != 0;
	json_decref(answer);
	if (!loaded) {
		(void)gmem_qmp_exec(r->qmp, "quit", NULL, NULL);
		return gmem_ui_fail("the guest had not come yet when its receiver died: it goes on over there; QEMU "
				    "(process %d) is ended",
				    (int)r->vm);
	}
	if (gmem_server_status(r->server, &status))
		return gmem_ui_fail_last();
	if (status.note == RESTORE_GO)
		return restore_resume(r);
	if (open_channel(m))
		return GMEM_UI_FAILED;
	gmem_ui_note("whether the guest is to run here only its sender knows: waiting for it on %s", m->address);
	while (migrate_next_session(m) != 1) {
		if (restore_interrupted())
			return gmem_ui_fail("interrupted; QEMU (process %d) is left, paused", (int)r->vm);
		if (restore_vm_status(r, 0) >= 0)
			return gmem_ui_fail("QEMU has ended");
	}
	m->reattached = false;
	return go(m);
}

/* ---- arguments */

static int set_option(struct migrate_receive *m, struct migrate_identity *who, int c, const char *word)
{
	if (migrate_take_identity(who, c, optarg))
		return 0;
	switch (c) {
	case 'd':
		m->r.detach = true;
		return 0;
	case 's':
		m->r.socket = optarg;
		return 0;
	case 'r':
		m->r.reattach = optarg;
		return 0;
	case 't':
		m->r.take_over = true;
		return 0;
	default:
		return gmem_ui_usage("migrate receive", "unknown option or missing value: '%s'", word);
	}
}

static int take_operands(struct migrate_receive *m, const struct migrate_identity *who, int argc, char **argv,
			 int separator)
{
	int end = separator ? separator : argc;

	if (m->r.reattach)
		return optind < end || separator || who->dir || who->peer ?
			       gmem_ui_usage("migrate receive", "--reattach takes --socket, --detach and --take-over") :
			       0;
	if (m->r.take_over)
		return gmem_ui_usage("migrate receive", "--take-over goes with --reattach");
	if (!who->dir || !who->peer)
		return gmem_ui_usage("migrate receive", "--tls DIR and --peer WHO are needed");
	if (optind + 1 != end)
		return gmem_ui_usage("migrate receive",
				     optind >= end ? "no [ADDRESS]:PORT given" : "more than one [ADDRESS]:PORT");
	if (separator && separator + 1 == argc)
		return gmem_ui_usage("migrate receive", "no program after --");
	m->address = strdup(argv[optind]);
	m->dir = realpath(who->dir, NULL);
	m->peer = strdup(who->peer);
	if (!m->dir)
		return gmem_ui_fail("--tls %s: %s", who->dir, strerror(errno));
	if (separator && gmem_cmdline_parse((size_t)(argc - separator - 1), (const char *const *)argv + separator + 1,
					    &m->r.override))
		return gmem_ui_fail_last();
	return m->address && m->peer ? 0 : gmem_ui_fail("out of memory");
}

static int take_arguments(struct migrate_receive *m, int argc, char **argv)
{
	static const struct option options[] = {
		{ "tls", required_argument, NULL, 'T' },      { "peer", required_argument, NULL, 'P' },
		{ "detach", no_argument, NULL, 'd' },	      { "socket", required_argument, NULL, 's' },
		{ "reattach", required_argument, NULL, 'r' }, { "take-over", no_argument, NULL, 't' },
		{ "help", no_argument, NULL, 'h' },	      { NULL, 0, NULL, 0 },
	};
	struct migrate_identity who = { .dir = NULL };
	int separator = 0, c, err;

	for (int i = 1; i < argc && !separator; i++)
		if (!strcmp(argv[i], "--"))
			separator = i;
	optind = 1;
	opterr = 0;
	while ((c = getopt_long(separator ? separator : argc, argv, "", options, NULL)) != -1) {
		if (c == 'h') {
			fputs(help, stdout);
			return -1;
		}
		err = set_option(m, &who, c, argv[optind - 1]);
		if (err)
			return err;
	}
	return take_operands(m, &who, argc, argv, separator);
}

static int run(struct migrate_receive *m)
{
	int code;

	if (m->r.reattach) {
		m->reattached = true;
		code = restore_join(&m->r);
		m->running = !code;
		/* It may have listened already, to learn whose the guest is. */
		if (!code && m->listen_fd < 0)
			code = open_channel(m);
	} else {
		code = open_channel(m);
		if (!code && migrate_new_incoming(m))
			code = gmem_ui_fail_last();
		if (!code)
			code = receive(m);
	}
	return code ? code : restore_serve(&m->r);
}

static void clean_up(struct migrate_receive *m)
{
	/* The pager's threads read from the exchanges: they go first. */
	restore_clean_up(&m->r);
	for (size_t i = 0; i < GMEM_RESTORE_MAX_FILES; i++) {
		if (m->exchanges[i])
			gmem_exchange_set(m->exchanges[i], NULL);
		gmem_exchange_free(m->exchanges[i]);
	}
	gmem_incoming_free(m->incoming);
	gmem_tls_ctx_free(m->tls);
	if (m->listen_fd >= 0)
		close(m->listen_fd);
	free(m->address);
	free(m->dir);
	free(m->peer);
}

int cmd_migrate_receive(int argc, char **argv)
{
	struct migrate_receive *m = calloc(1, sizeof(*m));
	int code;

	if (!m)
		return gmem_ui_fail("out of memory");
	m->listen_fd = -1;
	m->r.process = -1;
	m->r.begun = gmem_ui_now();
	m->r.incoming = true;
	m->r.source = on_source;
	m->r.completed = on_completed;
	m->r.tick = migrate_tick;
	m->r.unresumed = on_unresumed;
	m->r.migration = m;
	code = take_arguments(m, argc, argv);
	if (!code) {
		restore_catch_signals();
		code = run(m);
	}
	clean_up(m);
	free(m);
	return code < 0 ? GMEM_UI_OK : code;
}
