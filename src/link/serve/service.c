/* SPDX-License-Identifier: MIT */
/* The page server's beginning and end: options, sources, sockets. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/opts.h"
#include "base/range.h"
#include "link/serve/service_parts.h"
#include "link/serve/socket.h"

/* The server before may still be ending. */
#define LOCK_MS 10000u
#define FLAGS (GMEM_SERVICE_NO_FILL | GMEM_SERVICE_TAKE_OVER)

static int check_opts(const struct gmem_service_opts *o)
{
	if (!gmem_opts_valid(o, o->size, sizeof(*o)))
		return gmem_err(-EINVAL, "gmem_service_create: opts.size %zu: expected %zu", o->size, sizeof(*o));
	if (o->flags & ~FLAGS)
		return gmem_err(-EINVAL, "gmem_service_create: flags 0x%x: unknown", o->flags);
	if (o->policy > GMEM_PAGER_KILL)
		return gmem_err(-EINVAL, "gmem_service_create: policy %d: unknown", (int)o->policy);
	if (o->resolvers > 64)
		return gmem_err(-EINVAL, "gmem_service_create: %u resolvers: at most 64", o->resolvers);
	return 0;
}

static void take_opts(struct gmem_service *sv, const struct gmem_service_opts *opts)
{
	sv->opts = *opts;
	sv->opts.state_dir = NULL;
	sv->opts.users = NULL;
	if (!sv->opts.handshake_ms)
		sv->opts.handshake_ms = 5000;
	if (!sv->opts.max_vms)
		sv->opts.max_vms = 1024;
	if (!sv->opts.max_vms_per_user)
		sv->opts.max_vms_per_user = sv->opts.max_vms;
	if (!sv->opts.max_memory)
		sv->opts.max_memory = UINT64_MAX;
	if (!sv->opts.max_memory_per_user)
		sv->opts.max_memory_per_user = UINT64_MAX;
}

/* How many servers there have been with this directory; with the fence. */
static uint64_t count_servers(struct gmem_service *sv)
{
	int fd = openat(gmem_ledger_dir_fd(sv->dir), "generation", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	unsigned long long n = 0;
	char text[32] = "";

	if (fd < 0)
		return 1;
	if (pread(fd, text, sizeof(text) - 1, 0) > 0)
		n = strtoull(text, NULL, 10);
	/* All of the line at once, and of one width: a reader sees the old number or the new one. */
	snprintf(text, sizeof(text), "%020llu\n", ++n);
	(void)!pwrite(fd, text, strlen(text), 0);
	close(fd);
	return n;
}

static int open_dir(struct gmem_service *sv, const struct gmem_service_opts *opts)
{
	pid_t pid = 0;
	int err;

	sv->generation = 1;
	if (!opts->state_dir)
		return 0;
	err = gmem_ledger_dir_open(opts->state_dir, &sv->dir);
	if (err)
		return err;
	err = opts->flags & GMEM_SERVICE_TAKE_OVER ? gmem_ledger_dir_take_over(sv->dir, LOCK_MS) :
						     gmem_ledger_dir_lock(sv->dir, LOCK_MS, &pid);
	if (!err)
		sv->generation = count_servers(sv);
	return err;
}

int gmem_service_create(const struct gmem_service_opts *opts, struct gmem_service **ret)
{
	struct gmem_service *sv;
	int err = check_opts(opts);

	if (err)
		return err;
	sv = calloc(1, sizeof(*sv));
	if (!sv)
		return gmem_err_sys(-ENOMEM, "gmem_service_create");
	take_opts(sv, opts);
	sv->default_source = -1;
	sv->metrics_fd = -1;
	sv->start_s = (uint64_t)time(NULL);
	pthread_mutex_init(&sv->m, NULL);
	pthread_mutex_init(&sv->event_m, NULL);
	sv->epoll = epoll_create1(EPOLL_CLOEXEC);
	sv->stop_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	sv->wake_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (sv->epoll < 0 || sv->stop_event < 0 || sv->wake_event < 0)
		err = gmem_err_sys(-errno, "gmem_service_create");
	sv->users = malloc((opts->nusers + 1) * sizeof(*sv->users));
	if (!err && !sv->users)
		err = gmem_err_sys(-ENOMEM, "gmem_service_create");
	if (!err && opts->nusers)
		memcpy(sv->users, opts->users, opts->nusers * sizeof(*sv->users));
	/* What was passed to us first: nobody else is to take it for his own. */
	if (!err)
		err = gmem_store_open(&sv->store);
	if (!err)
		err = open_dir(sv, opts);
	if (err) {
		gmem_service_free(sv);
		return err;
	}
	*ret = sv;
	return 0;
}

static void free_vms(struct gmem_service *sv)
{
	/* All at once: their ends need not wait for each other. */
	for (size_t i = 0; i < sv->nvms; i++)
		if (sv->vms[i]->session)
			gmem_session_end(sv->vms[i]->session);
	for (size_t i = 0; i < sv->nvms; i++) {
		struct gmem_service_vm *vm = sv->vms[i];

		gmem_session_free(vm->session);
		gmem_ledger_free(vm->ledger);
		if (vm->pidfd >= 0)
			close(vm->pidfd);
		free(vm->why);
		free(vm);
	}
	free(sv->vms);
}

void gmem_service_free(struct gmem_service *sv)
{
	if (!sv)
		return;
	free_vms(sv);
	gmem_arrivals_free(sv);
	gmem_scrapes_free(sv);
	if (sv->metrics_fd >= 0)
		close(sv->metrics_fd);
	if (*sv->metrics_path)
		unlink(sv->metrics_path);
	for (int i = 0; i < sv->nsources; i++) {
		free(sv->sources[i]->name);
		free(sv->sources[i]->spec);
		free(sv->sources[i]->workset);
		free(sv->sources[i]);
	}
	gmem_store_free(sv->store);
	gmem_ledger_dir_free(sv->dir);
	if (sv->epoll >= 0)
		close(sv->epoll);
	if (sv->stop_event >= 0)
		close(sv->stop_event);
	if (sv->wake_event >= 0)
		close(sv->wake_event);
	free(sv->users);
	pthread_mutex_destroy(&sv->event_m);
	pthread_mutex_destroy(&sv->m);
	free(sv);
}

/* ---- sources */

static int find_source(const struct gmem_service *sv, const char *name)
{
	for (int i = 0; i < sv->nsources; i++)
		if (!strcmp(sv->sources[i]->name, name))
			return i;
	return -1;
}

/* It is in ledgers, in events, in metrics, and in what clients say. */
static bool good_name(const char *name)
{
	size_t len = strlen(name);

	for (size_t i = 0; i < len; i++)
		if (name[i] < ' ' || name[i] > '~' || name[i] == '"' || name[i] == '\\')
			return false;
	return len > 0 && len <= GMEM_HELLO_MAX_NAME;
}

int gmem_service_add_source(struct gmem_service *sv, const char *name, const char *spec)
{
	struct gmem_service_source *new;
	struct gmem_source *source;
	int err;

	if (!good_name(name))
		return gmem_err(-EINVAL, "gmem_service_add_source: '%s': a name is 1 to %u printable characters", name,
				GMEM_HELLO_MAX_NAME);
	if (strchr(spec, '\n'))
		return gmem_err(-EINVAL, "gmem_service_add_source: %s: a line break in a source", name);
	if (find_source(sv, name) >= 0)
		return gmem_err(-EEXIST, "gmem_service_add_source: %s: there is one of that name", name);
	if (sv->nsources == GMEM_SERVICE_MAX_SOURCES)
		return gmem_err(-ENOSPC, "gmem_service_add_source: more than %u sources", GMEM_SERVICE_MAX_SOURCES);
	err = gmem_source_open(spec, NULL, &source);
	if (err)
		return gmem_err_prefix(err, "source '%s'", name);
	gmem_source_unref(source);
	new = calloc(1, sizeof(*new));
	if (new) {
		new->name = strdup(name);
		new->spec = strdup(spec);
	}
	if (!new || !new->name || !new->spec) {
		if (new) {
			free(new->name);
			free(new->spec);
		}
		free(new);
		return gmem_err_sys(-ENOMEM, "gmem_service_add_source");
	}
	sv->sources[sv->nsources++] = new;
	if (sv->default_source < 0)
		sv->default_source = 0;
	return 0;
}

int gmem_service_set_default(struct gmem_service *sv, const char *name)
{
	int i = find_source(sv, name);

	if (i < 0)
		return gmem_err(-ENOENT, "gmem_service_set_default: no source '%s'", name);
	sv->default_source = i;
	return 0;
}

int gmem_service_set_workset(struct gmem_service *sv, const char *source, const char *path)
{
	int i = find_source(sv, source);
	char *copy;

	if (i < 0)
		return gmem_err(-ENOENT, "gmem_service_set_workset: no source '%s'", source);
	copy = strdup(path);
	if (!copy)
		return gmem_err_sys(-ENOMEM, "gmem_service_set_workset");
	free(sv->sources[i]->workset);
	sv->sources[i]->workset = copy;
	return 0;
}

/* ---- sockets */

int gmem_service_listen(struct gmem_service *sv, const char *path, const char *source)
{
	struct gmem_service_listener *l = &sv->listeners[sv->nlisteners];
	int i = source ? find_source(sv, source) : -1, err;

	if (source && i < 0)
		return gmem_err(-ENOENT, "gmem_service_listen: %s: no source '%s'", path, source);
	if (strlen(path) >= sizeof(l->path))
		return gmem_err(-ENAMETOOLONG, "gmem_service_listen: %s: a socket's path has at most %zu bytes", path,
				sizeof(l->path) - 1);
	if (sv->nlisteners == GMEM_SERVICE_MAX_LISTENERS)
		return gmem_err(-ENOSPC, "gmem_service_listen: more than %u sockets", GMEM_SERVICE_MAX_LISTENERS);
	err = gmem_store_listen(sv->store, path);
	if (err)
		return err;
	snprintf(l->path, sizeof(l->path), "%s", path);
	l->source = i;
	sv->nlisteners++;
	return 0;
}

int gmem_service_listen_metrics(struct gmem_service *sv, const char *path)
{
	int fd;

	if (sv->metrics_fd >= 0)
		return gmem_err(-EEXIST, "gmem_service_listen_metrics: there is a socket for metrics");
	fd = gmem_store_listener(sv->store, "metrics");
	if (fd < 0) {
		fd = gmem_socket_listen(path);
		if (fd < 0)
			return fd;
		snprintf(sv->metrics_path, sizeof(sv->metrics_path), "%s", path);
	}
	sv->metrics_fd = fd;
	return 0;
}
