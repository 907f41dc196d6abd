/* SPDX-License-Identifier: MIT */
#include "link/serve/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "link/serve/name.h"
#include "link/serve/socket.h"
#include "link/serve/store_impl.h"

#define FIRST_FD 3 /* SD_LISTEN_FDS_START */
#define MAX_FDS 65536
#define CHANNEL "minder"

int gmem_store_note(struct gmem_store *s, const char *name, int fd)
{
	if (s->nentries == s->room) {
		size_t room = s->room ? 2 * s->room : 64;
		struct gmem_store_entry *e = reallocarray(s->entries, room, sizeof(*e));

		if (!e)
			return gmem_err_sys(-ENOMEM, "descriptor store");
		s->entries = e;
		s->room = room;
	}
	snprintf(s->entries[s->nentries].name, sizeof(s->entries->name), "%s", name);
	s->entries[s->nentries++].fd = fd;
	return 0;
}

/* ---- the environment */

/* A decimal number and nothing else; -ENODATA: not set. */
static int env_number(const char *name, uint64_t *ret)
{
	const char *text = getenv(name);
	char *end;

	if (!text)
		return -ENODATA;
	errno = 0;
	*ret = strtoull(text, &end, 10);
	if (text[0] < '0' || text[0] > '9' || *end || errno)
		return gmem_err(-EINVAL, "$%s is \"%s\": no number", name, text);
	return 0;
}

static int take_listener(struct gmem_store *s, const char *name, int fd)
{
	struct gmem_store_listening *l = &s->listening[s->nlistening];
	const char *dot = strrchr(name, '.');

	if (s->nlistening == sizeof(s->listening) / sizeof(s->listening[0]))
		return gmem_err(-ENOSPC, "$LISTEN_FDS: more than %zu listening sockets", s->nlistening);
	snprintf(l->name, sizeof(l->name), "%s", name);
	l->fd = fd;
	/* A socket unit that says nothing else names its sockets after itself. */
	l->clients = !strncmp(name, GMEM_STORE_CLIENTS, strlen(GMEM_STORE_CLIENTS)) || (dot && !strcmp(dot, ".socket"));
	if (l->clients && fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK))
		return gmem_err_sys(-errno, "$LISTEN_FDS: a listening socket");
	s->nlistening++;
	return 0;
}

static int take_passed(struct gmem_store *s, int fd, const char *name)
{
	int err;

	if (fcntl(fd, F_SETFD, FD_CLOEXEC))
		return gmem_err_sys(-errno, "$LISTEN_FDS: descriptor %d", fd);
	if (!strcmp(name, CHANNEL) && s->channel < 0) {
		s->channel = fd;
		s->minder = GMEM_STORE_MINDER;
		return 0;
	}
	err = gmem_socket_listens(fd) ? take_listener(s, name, fd) : gmem_store_note(s, name, fd);
	if (err)
		close(fd);
	return err;
}

/* One that we cannot take is not left open for children to have: the others are still taken. */
static int take_all(struct gmem_store *s, int n, char *names)
{
	int first = 0;

	for (int i = 0; i < n; i++) {
		const char *name = names ? strsep(&names, ":") : NULL;
		int err;

		/* What has a name that we cannot say again is nothing of ours. */
		if (!name || strlen(name) > GMEM_STORE_MAX_NAME)
			name = "unknown";
		err = take_passed(s, FIRST_FD + i, name);
		first = first ? first : err;
	}
	return first;
}

static int take_environment(struct gmem_store *s)
{
	uint64_t pid = 0, n = 0, limit = 0;
	char *names = NULL;
	int err;

	err = env_number("WATCHDOG_PID", &pid);
	if (err == -EINVAL)
		return err;
	if (err || pid == (uint64_t)getpid()) {
		err = env_number("WATCHDOG_USEC", &s->watchdog_usec);
		if (err == -EINVAL)
			return err;
	}
	if (env_number("FDSTORE", &limit) == 0 && limit <= UINT32_MAX)
		s->limit = (uint32_t)limit;
	err = env_number("LISTEN_PID", &pid);
	if (err == -ENODATA || (!err && pid != (uint64_t)getpid()))
		return 0;
	if (!err)
		err = env_number("LISTEN_FDS", &n);
	if (err)
		return err == -ENODATA ? 0 : err;
	if (n > MAX_FDS)
		return gmem_err(-EINVAL, "$LISTEN_FDS is %llu", (unsigned long long)n);
	if (getenv("LISTEN_FDNAMES")) {
		names = strdup(getenv("LISTEN_FDNAMES"));
		if (!names)
			return gmem_err_sys(-ENOMEM, "$LISTEN_FDNAMES");
	}
	err = take_all(s, (int)n, names);
	free(names);
	return err;
}

int gmem_store_open(struct gmem_store **ret)
{
	static const char *const ours[] = { "NOTIFY_SOCKET", "LISTEN_PID",   "LISTEN_FDS",    "LISTEN_FDNAMES",
					    "FDSTORE",	     "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PIDFDID" };
	struct gmem_store *s = calloc(1, sizeof(*s));
	int err;

	if (!s)
		return gmem_err_sys(-ENOMEM, "descriptor store");
	pthread_mutex_init(&s->m, NULL);
	s->channel = s->epoll = s->timer = -1;
	err = gmem_notify_open(&s->notify, getenv("NOTIFY_SOCKET"));
	if (!err && s->notify.fd >= 0)
		s->minder = GMEM_STORE_SYSTEMD;
	if (!err)
		err = take_environment(s);
	for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++)
		unsetenv(ours[i]);
	if (!err)
		err = gmem_store_watch(s);
	if (err) {
		gmem_store_free(s);
		return err;
	}
	*ret = s;
	return 0;
}

void gmem_store_free(struct gmem_store *s)
{
	if (!s)
		return;
	for (size_t i = 0; i < s->nentries; i++)
		if (s->entries[i].fd >= 0)
			close(s->entries[i].fd);
	for (size_t i = 0; i < s->nlistening; i++)
		close(s->listening[i].fd);
	for (size_t i = 0; i < 3; i++) {
		int fd = (int[]){ s->channel, s->epoll, s->timer }[i];

		if (fd >= 0)
			close(fd);
	}
	gmem_notify_close(&s->notify);
	free(s->entries);
	pthread_mutex_destroy(&s->m);
	free(s);
}

/* ---- the minder */

static struct gmem_store *locked(const struct gmem_store *store)
{
	struct gmem_store *s = (struct gmem_store *)(uintptr_t)store;

	pthread_mutex_lock(&s->m);
	return s;
}

enum gmem_store_minder gmem_store_minder(const struct gmem_store *store)
{
	struct gmem_store *s = locked(store);
	enum gmem_store_minder minder = s->minder;

	pthread_mutex_unlock(&s->m);
	return minder;
}

void gmem_store_stats(const struct gmem_store *store, struct gmem_store_stats *ret)
{
	struct gmem_store *s = locked(store);

	*ret = (struct gmem_store_stats){
		.minder = s->minder,
		.minder_lost = s->minder_lost,
		.stored = s->minder == GMEM_STORE_NOBODY ? 0 : (uint32_t)s->nentries,
		.limit = s->limit,
		.put = s->put,
		.dropped = s->dropped,
		.failed = s->failed,
		.accepted = s->accepted,
	};
	pthread_mutex_unlock(&s->m);
}

int gmem_store_say(struct gmem_store *s, const char *text, int fd, bool wait)
{
	int err = s->minder == GMEM_STORE_NOBODY ? 0 : gmem_notify_send(&s->notify, text, fd, wait);

	if (err)
		s->failed++;
	/* systemd comes back, if it was re-executed; a minder does not. */
	if (err == -ECONNREFUSED && s->minder == GMEM_STORE_MINDER)
		gmem_store_forget_minder(s);
	return err;
}

/* ---- what was stored */

int gmem_store_held(const struct gmem_store *store, size_t i, const char **ret_name)
{
	struct gmem_store *s = locked(store);
	int fd = -ENOENT;

	for (size_t k = 0; k < s->nentries; k++) {
		if (s->entries[k].fd < 0 || i--)
			continue;
		fd = s->entries[k].fd;
		*ret_name = s->entries[k].name;
		break;
	}
	pthread_mutex_unlock(&s->m);
	return fd;
}

int gmem_store_take(struct gmem_store *s, const char *name)
{
	int fd = -ENOENT;

	locked(s);
	for (size_t k = 0; k < s->nentries && fd < 0; k++) {
		if (s->entries[k].fd < 0 || strcmp(s->entries[k].name, name))
			continue;
		fd = s->entries[k].fd;
		s->entries[k].fd = -1;
	}
	pthread_mutex_unlock(&s->m);
	return fd;
}

/* ---- storing */

int gmem_store_put(struct gmem_store *s, const char *name, int fd)
{
	char text[96];
	int err = 0;

	if (!gmem_name_ok(name))
		return gmem_err(-EINVAL, "gmem_store_put: a name of %zu bytes", strlen(name));
	if (fcntl(fd, F_GETFD) < 0)
		return gmem_err_sys(-EBADF, "gmem_store_put: %s", name);
	/* A userfaultfd, or a connection whose other end has hung up, is not to leave the store by itself. */
	snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=%s\nFDPOLL=0", name);
	locked(s);
	if (s->minder != GMEM_STORE_NOBODY && s->limit && s->nentries >= s->limit)
		err = gmem_err(-ENOSPC, "gmem_store_put: %s: who minds this process keeps %u descriptors", name,
			       (unsigned int)s->limit);
	if (!err)
		err = gmem_store_say(s, text, fd, true);
	/* Not booked for want of memory: it is stored all the same. */
	if (!err && s->minder != GMEM_STORE_NOBODY) {
		s->put++;
		(void)gmem_store_note(s, name, -1);
	}
	pthread_mutex_unlock(&s->m);
	return err ? gmem_err_prefix(err, "gmem_store_put: %s", name) : 0;
}

int gmem_store_drop(struct gmem_store *s, const char *name)
{
	size_t kept = 0;
	char text[96];
	int err;

	if (!gmem_name_ok(name))
		return gmem_err(-EINVAL, "gmem_store_drop: a name of %zu bytes", strlen(name));
	snprintf(text, sizeof(text), "FDSTOREREMOVE=1\nFDNAME=%s", name);
	locked(s);
	err = gmem_store_say(s, text, -1, true);
	for (size_t i = 0; i < s->nentries && !err; i++) {
		if (strcmp(s->entries[i].name, name)) {
			s->entries[kept++] = s->entries[i];
		} else {
			s->dropped++;
			if (s->entries[i].fd >= 0)
				close(s->entries[i].fd);
		}
	}
	if (!err)
		s->nentries = kept;
	pthread_mutex_unlock(&s->m);
	return err ? gmem_err_prefix(err, "gmem_store_drop: %s", name) : 0;
}

int gmem_store_barrier(struct gmem_store *s, unsigned int timeout_ms)
{
	int err;

	if (gmem_store_minder(s) == GMEM_STORE_NOBODY)
		return 0;
	/* Not under the mutex: others go on talking while this one waits. */
	err = gmem_notify_barrier(&s->notify, timeout_ms);
	if (err == -ECONNREFUSED) {
		locked(s);
		s->failed++;
		if (s->minder == GMEM_STORE_MINDER)
			gmem_store_forget_minder(s);
		pthread_mutex_unlock(&s->m);
	}
	return err;
}

/* ---- what is told */

static int say(struct gmem_store *s, const char *text)
{
	int err;

	locked(s);
	err = gmem_store_say(s, text, -1, false);
	pthread_mutex_unlock(&s->m);
	return err;
}

/* A line break would begin another assignment. */
static void one_line(char *text)
{
	for (; *text; text++)
		if ((unsigned char)*text < ' ')
			*text = ' ';
}

int gmem_store_ready(struct gmem_store *s, const char *status)
{
	char text[512], line[480];
	int err;

	snprintf(line, sizeof(line), "%s", status ? status : "");
	one_line(line);
	snprintf(text, sizeof(text), "READY=1%s%s", status ? "\nSTATUS=" : "", line);
	locked(s);
	err = gmem_store_say(s, text, -1, true);
	pthread_mutex_unlock(&s->m);
	return err;
}

int gmem_store_status(struct gmem_store *s, const char *fmt, ...)
{
	char text[512] = "STATUS=", *line = text + strlen(text);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(text) - (size_t)(line - text), fmt, ap);
	va_end(ap);
	one_line(line);
	return say(s, text);
}

int gmem_store_stopping(struct gmem_store *s)
{
	int err;

	locked(s);
	err = gmem_store_say(s, "STOPPING=1", -1, true);
	pthread_mutex_unlock(&s->m);
	return err;
}

uint64_t gmem_store_watchdog_usec(const struct gmem_store *s)
{
	return s->watchdog_usec / 2;
}

int gmem_store_watchdog(struct gmem_store *s)
{
	return say(s, "WATCHDOG=1");
}
