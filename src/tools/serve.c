/* SPDX-License-Identifier: MIT */
/*
 * gmem serve: a page server for many machines. Unless systemd minds it, this process becomes the keeper: it holds the
 * machines' descriptors and runs the server as its child, again and again.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "link/serve/minder.h"
#include "tools/cmd.h"
#include "tools/serve.h"
#include "tools/ui.h"

static struct gmem_service *running;

static void on_signal(int sig)
{
	static volatile sig_atomic_t seen;

	/* A second one does not wait for what holds up the end: nothing is lost by it that is kept. */
	if (seen++)
		_exit(GMEM_UI_FAILED);
	gmem_service_stop(running);
}

static void catch_signals(void)
{
	struct sigaction sa = { .sa_handler = on_signal };

	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGINT, &sa, NULL);
	signal(SIGPIPE, SIG_IGN);
}

/* Each machine has some: its userfault descriptors, its table, its source. */
static void raise_limit(void)
{
	struct rlimit r;

	if (getrlimit(RLIMIT_NOFILE, &r) || r.rlim_cur == r.rlim_max)
		return;
	r.rlim_cur = r.rlim_max;
	setrlimit(RLIMIT_NOFILE, &r);
}

static int set_up(struct gmem_service *service, const struct serve_args *a)
{
	int err = 0;

	for (size_t i = 0; i < a->nsources && !err; i++)
		err = gmem_service_add_source(service, a->sources[i].name, a->sources[i].value);
	for (size_t i = 0; i < a->nworksets && !err; i++)
		err = gmem_service_set_workset(service, a->worksets[i].name, a->worksets[i].value);
	if (!err && a->default_source)
		err = gmem_service_set_default(service, a->default_source);
	if (!err)
		err = gmem_service_listen(service, a->socket, NULL);
	for (size_t i = 0; i < a->nlistens && !err; i++)
		err = gmem_service_listen(service, a->listens[i].name, a->listens[i].value);
	if (!err && !a->no_metrics)
		err = gmem_service_listen_metrics(service, a->metrics);
	return err;
}

static int serve(const struct serve_args *a)
{
	struct gmem_service *service;
	int err;

	raise_limit();
	if (gmem_service_create(&a->opts, &service))
		return gmem_ui_fail_last();
	err = set_up(service, a);
	if (!err) {
		running = service;
		catch_signals();
		serve_log("listening at %s, %zu source(s)", a->socket, a->nsources);
		err = gmem_service_run(service);
	}
	if (err)
		gmem_ui_fail_last();
	else
		serve_log("stopped; machines that are not complete wait for the next server");
	gmem_service_free(service);
	return err ? GMEM_UI_FAILED : GMEM_UI_OK;
}

static void say(void *opaque, const char *text)
{
	serve_log("keeper: %s", text);
}

static int mind(const struct serve_args *a, char **argv)
{
	struct gmem_minder_listener listeners[SERVE_MAX + 2];
	struct gmem_minder_opts opts = {
		.size = sizeof(opts),
		.dir = a->state_dir,
		.argv = argv,
		.listeners = listeners,
		.take_over = a->opts.flags & GMEM_SERVICE_TAKE_OVER,
		.say = say,
	};
	int code;

	raise_limit();
	listeners[opts.nlisteners++] = (struct gmem_minder_listener){ "clients", a->socket };
	for (size_t i = 0; i < a->nlistens; i++)
		listeners[opts.nlisteners++] = (struct gmem_minder_listener){ "clients", a->listens[i].name };
	if (!a->no_metrics)
		listeners[opts.nlisteners++] = (struct gmem_minder_listener){ "metrics", a->metrics };
	code = gmem_minder_run(&opts);
	return code < 0 ? gmem_ui_fail_last() : code;
}

/* The whole command line, as the server is to be started with; arguments are cut where they are read. */
static char **copy_argv(int argc, char **argv)
{
	char **copy = calloc((size_t)argc + 2, sizeof(*copy));

	for (int i = 0; copy && i < argc; i++)
		copy[i + 1] = strdup(argv[i]);
	if (copy)
		copy[0] = strdup("gmem");
	return copy;
}

int cmd_serve(int argc, char **argv)
{
	struct serve_args *a;
	char **whole;
	int code;

	if (argc > 1 && !strcmp(argv[1], "status"))
		return serve_status(argc - 1, argv + 1);
	if (argc > 1 && !strcmp(argv[1], "upgrade"))
		return serve_upgrade(argc - 1, argv + 1);
	a = calloc(1, sizeof(*a));
	whole = copy_argv(argc, argv);
	if (!a || !whole)
		return gmem_ui_fail("out of memory");
	code = serve_take_options(a, argc, argv);
	if (!code)
		code = !a->no_keeper && gmem_minder_wanted() ? mind(a, whole) : serve(a);
	for (char **p = whole; *p; p++)
		free(*p);
	free(whole);
	free(a);
	return code < 0 ? GMEM_UI_OK : code;
}
