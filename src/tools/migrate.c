/* SPDX-License-Identifier: MIT */
/* gmem migrate: moves a running machine to another host. What its two sides share. */
#include "tools/migrate.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "tools/cmd.h"

static const char help[] =
	"Usage: gmem migrate send --qmp SOCKET --tls DIR [OPTION]... HOST:PORT\n"
	"       gmem migrate send --resume FILE [--take-back]\n"
	"       gmem migrate receive --tls DIR --peer WHO [OPTION]... [ADDRESS]:PORT [-- QEMU COMMAND]\n"
	"       gmem migrate receive --reattach SOCKET|PID\n"
	"\n"
	"Moves a running QEMU that gmem run or gmem restore started to another machine: its guest is stopped here,\n"
	"resumed there at once, and its memory follows, what it touches first. gmem migrate send --help and\n"
	"gmem migrate receive --help say more.\n";

static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
	interrupted = sig;
}

int migrate_interrupted(void)
{
	return interrupted;
}

void migrate_catch_signals(void)
{
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = SA_RESTART };

	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGHUP, &sa, NULL);
	signal(SIGPIPE, SIG_IGN);
}

bool migrate_take_identity(struct migrate_identity *who, int c, const char *value)
{
	if (c == 'T')
		who->dir = value;
	else if (c == 'P')
		who->peer = value;
	else
		return false;
	return true;
}

int migrate_tls(const struct migrate_identity *who, struct gmem_tls_ctx **ret)
{
	char ca[PATH_MAX], cert[PATH_MAX], key[PATH_MAX];
	struct gmem_tls_opts opts = { .size = sizeof(opts), .ca = ca, .cert = cert, .key = key };

	if ((size_t)snprintf(ca, sizeof(ca), "%s/ca-cert.pem", who->dir) >= sizeof(ca) ||
	    (size_t)snprintf(cert, sizeof(cert), "%s/cert.pem", who->dir) >= sizeof(cert) ||
	    (size_t)snprintf(key, sizeof(key), "%s/key.pem", who->dir) >= sizeof(key))
		return gmem_ui_fail("--tls %s: too long a path", who->dir);
	if (!strncmp(who->peer, "sha256:", 7))
		opts.peer_pin = who->peer + 7;
	else
		opts.peer_name = who->peer;
	return gmem_tls_ctx_new(&opts, ret) ? gmem_ui_fail_last() : 0;
}

void migrate_tell_event(const struct gmem_channel_event *event)
{
	switch (event->kind) {
	case GMEM_CHANNEL_UP:
		if (event->epoch > 1)
			gmem_ui_note("the link is there again");
		break;
	case GMEM_CHANNEL_LOST:
		gmem_ui_note("the link is lost, another one is tried: %s", event->text);
		break;
	case GMEM_CHANNEL_REFUSED:
		gmem_ui_note("refused: %s", event->text);
		break;
	default:
		break;
	}
}

int cmd_migrate(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "";

	if (!strcmp(name, "--help")) {
		fputs(help, stdout);
		return GMEM_UI_OK;
	}
	if (!strcmp(name, "send"))
		return cmd_migrate_send(argc - 1, argv + 1);
	if (!strcmp(name, "receive"))
		return cmd_migrate_receive(argc - 1, argv + 1);
	return gmem_ui_usage("migrate", argc > 1 ? "'%s': send or receive is needed" : "send or receive is needed%s",
			     name);
}
