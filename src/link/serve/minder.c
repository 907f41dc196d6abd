/* SPDX-License-Identifier: MIT */
#include "link/serve/minder.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/range.h"
#include "link/serve/minder_impl.h"
#include "link/serve/name.h"
#include "link/serve/socket.h"

#define DEFAULT_WATCHDOG_MS 60000u
#define DEFAULT_STOP_MS 10000u
#define ABORT_MS 5000u /* from SIGABRT to SIGKILL */
#define ACCEPT_PAUSE_MS 1000u
#define GOING_MS 2000u /* how long a killed process may take to be gone */
#define TAKE_OVER_MS 10000u

void gmem_minder_say(const struct gmem_minder *m, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	if (!m->opts->say)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	m->opts->say(m->opts->opaque, text);
}

bool gmem_minder_wanted(void)
{
	/* A minder that has become another program has it from before. */
	return getenv("GMEM_MINDER") || !getenv("NOTIFY_SOCKET");
}

/* ---- setting up */

/* The server's last words come with who said them. */
static int open_notify(struct gmem_minder *m)
{
	struct sockaddr_un addr;
	socklen_t len;
	int on = 1, err;

	err = gmem_socket_address(m->notify_path, &addr, &len);
	if (err)
		return err;
	unlink(m->notify_path);
	m->notify = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (m->notify < 0 || fchmod(m->notify, 0600) ||
	    setsockopt(m->notify, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) ||
	    bind(m->notify, (struct sockaddr *)&addr, len))
		return gmem_err_sys(-errno, "%s", m->notify_path);
	return 0;
}

static int open_dir(struct gmem_minder *m)
{
	char path[PATH_MAX];
	struct stat st;

	if (mkdir(m->opts->dir, 0700) && errno != EEXIST)
		return gmem_err_sys(-errno, "%s", m->opts->dir);
	m->dir = open(m->opts->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (m->dir < 0 || fstat(m->dir, &st))
		return gmem_err_sys(-errno, "%s", m->opts->dir);
	if (st.st_uid != geteuid() || st.st_mode & 022)
		return gmem_err(-EPERM, "%s: must be this user's, and writable by nobody else (chmod 0700)",
				m->opts->dir);
	if (!realpath(m->opts->dir, path))
		return gmem_err_sys(-errno, "%s", m->opts->dir);
	if (strlen(path) + sizeof("/" GMEM_MINDER_NOTIFY) > sizeof(m->notify_path))
		return gmem_err(-ENAMETOOLONG, "%s: at most %zu bytes: there are sockets in it", path,
				sizeof(m->notify_path) - sizeof("/" GMEM_MINDER_NOTIFY));
	snprintf(m->notify_path, sizeof(m->notify_path), "%.90s/" GMEM_MINDER_NOTIFY, path);
	return 0;
}

/* A server that was killed a moment ago still has the socket while its process is being taken down. */
static int listen_patiently(const char *path)
{
	uint64_t until = gmem_now_ms() + GOING_MS;
	int fd;

	while ((fd = gmem_socket_listen(path)) == -EADDRINUSE && gmem_now_ms() < until)
		poll(NULL, 0, 5);
	return fd;
}

static int open_listeners(struct gmem_minder *m)
{
	const struct gmem_minder_opts *o = m->opts;

	for (size_t i = 0; i < o->nlisteners; i++) {
		int fd = listen_patiently(o->listeners[i].path);
		int err = fd < 0 ? fd : gmem_minder_listen(m, o->listeners[i].name, fd);

		if (err)
			return err;
	}
	return 0;
}

/* Nobody minds this directory, and nobody serves it. */
static int be_alone(struct gmem_minder *m)
{
	struct gmem_fence serving;
	pid_t pid = 0;
	int err;

	gmem_fence_init(&serving);
	if (m->opts->take_over)
		err = gmem_fence_take_over(&m->fence, m->dir, GMEM_MINDER_LOCK, TAKE_OVER_MS);
	else
		err = gmem_fence_take(&m->fence, m->dir, GMEM_MINDER_LOCK, 0, NULL);
	if (err)
		return err;
	if (m->opts->take_over)
		err = gmem_fence_take_over(&serving, m->dir, "lock", TAKE_OVER_MS);
	else
		err = gmem_fence_take(&serving, m->dir, "lock", GOING_MS, &pid);
	if (err == -EBUSY)
		gmem_err(err, "process %d serves there, and nobody minds it", (int)pid);
	gmem_fence_drop(&serving);
	return err;
}

static int find_program(struct gmem_minder *m)
{
	static const char deleted[] = " (deleted)";
	ssize_t n;

	if (m->opts->program) {
		if (strlen(m->opts->program) >= sizeof(m->program))
			return gmem_err(-ENAMETOOLONG, "%s", m->opts->program);
		strcpy(m->program, m->opts->program);
		return 0;
	}
	n = readlink("/proc/self/exe", m->program, sizeof(m->program) - 1);
	if (n < 0)
		return gmem_err_sys(-errno, "/proc/self/exe");
	m->program[n] = '\0';
	if ((size_t)n > strlen(deleted) && !strcmp(m->program + n - strlen(deleted), deleted))
		m->program[(size_t)n - strlen(deleted)] = '\0';
	return 0;
}

/* A server and a minder that run out of descriptors lose guests; one that is killed for its memory does. */
static void be_strong(struct gmem_minder *m)
{
	struct rlimit lim;
	int fd;

	if (!getrlimit(RLIMIT_NOFILE, &lim)) {
		lim.rlim_cur = lim.rlim_max;
		setrlimit(RLIMIT_NOFILE, &lim);
		getrlimit(RLIMIT_NOFILE, &lim);
		/* A child that starts has each twice for a moment. */
		m->limit =
			(uint32_t)gmem_min_u64(GMEM_MINDER_MAX_STORED, lim.rlim_cur > 256 ? lim.rlim_cur / 2 - 64 : 64);
	}
	fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return;
	if (!m->oom[0] && read(fd, m->oom, sizeof(m->oom) - 1) <= 0)
		m->oom[0] = '\0';
	if (pwrite(fd, "-900", 4, 0) != 4)
		m->oom[0] = '\0';
	close(fd);
}

static int catch_signals(struct gmem_minder *m)
{
	sigset_t set;

	sigemptyset(&set);
	for (size_t i = 0; i < 6; i++)
		sigaddset(&set, (int[]){ SIGCHLD, SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2 }[i]);
	if (sigprocmask(SIG_BLOCK, &set, NULL))
		return gmem_err_sys(-errno, "signals");
	m->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return m->signals < 0 ? gmem_err_sys(-errno, "signals") : 0;
}

/* ---- the loop */

static void tell_to_end(struct gmem_minder *m)
{
	if (!m->pid)
		return;
	kill(m->pid, SIGTERM);
	m->kill_at = gmem_now_ms() + (m->opts->stop_ms ? m->opts->stop_ms : DEFAULT_STOP_MS);
}

static void signalled(struct gmem_minder *m)
{
	struct signalfd_siginfo info;

	while (read(m->signals, &info, sizeof(info)) == sizeof(info)) {
		switch (info.ssi_signo) {
		case SIGTERM:
		case SIGINT:
			m->end = true;
			tell_to_end(m);
			break;
		case SIGHUP:
			if (m->end)
				break;
			m->upgrade = true;
			m->start_at = 0;
			m->own_program = m->own_program && m->pid;
			tell_to_end(m);
			break;
		case SIGUSR1:
		case SIGUSR2:
			if (m->pid)
				kill(m->pid, (int)info.ssi_signo);
			break;
		default: /* SIGCHLD: looked at in every round */
			break;
		}
	}
}

/* A server that hangs is ended as one that was told to and does not. */
static void watch_server(struct gmem_minder *m, uint64_t now)
{
	uint64_t patience = m->opts->watchdog_usec ? m->opts->watchdog_usec / 1000u : DEFAULT_WATCHDOG_MS;

	if (!m->pid)
		return;
	if (m->kill_at && now >= m->kill_at) {
		gmem_minder_say(m, "the server does not end; it is killed");
		kill(m->pid, SIGKILL);
		m->kill_at = now + 1000;
	} else if (!m->kill_at && now - m->heard >= patience) {
		gmem_minder_say(m, "the server has said nothing for %llu ms; it is killed",
				(unsigned long long)(now - m->heard));
		kill(m->pid, SIGABRT);
		m->kill_at = now + ABORT_MS;
	}
}

static void accept_clients(struct gmem_minder *m, int listening)
{
	char name[GMEM_STORE_MAX_NAME + 1], id[GMEM_STORE_MAX_ID + 1];
	int fd, err;

	while (gmem_minder_room(m)) {
		fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
			continue;
		if (fd < 0 && errno == EAGAIN)
			return;
		err = fd < 0 ? -errno : 0;
		if (!err) {
			gmem_id_new(&m->last_id, id);
			snprintf(name, sizeof(name), "%s" GMEM_STORE_CONNECTION, id);
			err = gmem_minder_keep(m, name, fd, true);
		}
		if (err) {
			gmem_minder_say(m, "clients wait: %s", strerror(-err));
			break;
		}
		gmem_minder_tell(m);
	}
	m->accept_at = gmem_now_ms() + ACCEPT_PAUSE_MS;
}

/* Until when there is nothing to do by itself, in ms; -1: for ever. */
static int wait_ms(const struct gmem_minder *m, uint64_t now)
{
	uint64_t patience = m->opts->watchdog_usec ? m->opts->watchdog_usec / 1000u : DEFAULT_WATCHDOG_MS;
	uint64_t until = m->pid ? m->heard + patience : m->start_at;

	if (m->kill_at && m->pid)
		until = m->kill_at;
	if (m->accept_at)
		until = gmem_min_u64(until, m->accept_at);
	return until <= now ? 0 : (int)gmem_min_u64(until - now, 60000);
}

static int round_of(struct gmem_minder *m)
{
	struct pollfd p[3 + GMEM_MINDER_MAX_LISTENING] = {
		{ .fd = m->signals, .events = POLLIN },
		{ .fd = m->notify, .events = POLLIN },
		{ .fd = m->nuntold ? m->channel : -1, .events = POLLOUT },
	};
	uint32_t n = m->nlistening;

	for (uint32_t i = 0; i < n; i++)
		p[3 + i] = (struct pollfd){ .fd = m->listening[i].clients && !m->accept_at ? m->listening[i].fd : -1,
					    .events = POLLIN };
	if (poll(p, 3 + n, wait_ms(m, gmem_now_ms())) < 0 && errno != EINTR)
		return gmem_err_sys(-errno, "waiting");
	if (m->accept_at && gmem_now_ms() >= m->accept_at)
		m->accept_at = 0;
	gmem_minder_hear(m);
	signalled(m);
	gmem_minder_reap(m);
	gmem_minder_tell(m);
	for (uint32_t i = 0; i < n; i++)
		if (p[3 + i].revents & POLLIN)
			accept_clients(m, m->listening[i].fd);
	watch_server(m, gmem_now_ms());
	return 0;
}

static int loop(struct gmem_minder *m)
{
	int err = 0;

	while (!err) {
		if (!m->pid && m->end)
			return m->code;
		if (!m->pid && gmem_now_ms() >= m->start_at)
			gmem_minder_start(m);
		if (m->become)
			gmem_minder_become(m);
		err = round_of(m);
	}
	return err;
}

/* ---- */

static void close_all(struct gmem_minder *m)
{
	for (uint32_t i = 0; i < m->nlistening; i++)
		close(m->listening[i].fd);
	for (uint32_t i = 0; i < m->nstored; i++)
		close(m->stored[i].fd);
	for (size_t i = 0; i < 4; i++) {
		int fd = (int[]){ m->channel, m->notify, m->signals, m->dir }[i];

		if (fd >= 0)
			close(fd);
	}
	free(m->stored);
	gmem_notify_close(&m->above);
	gmem_fence_drop(&m->fence);
}

int gmem_minder_run(const struct gmem_minder_opts *opts)
{
	struct gmem_minder *m;
	bool fresh = true;
	int err;

	if (opts->size != sizeof(*opts) || !opts->dir || !opts->argv)
		return gmem_err(-EINVAL, "gmem_minder_run: options");
	m = calloc(1, sizeof(*m));
	if (!m)
		return gmem_err_sys(-ENOMEM, "gmem_minder_run");
	m->opts = opts;
	m->dir = m->notify = m->signals = m->channel = m->above.fd = -1;
	gmem_fence_init(&m->fence);
	err = open_dir(m);
	if (!err)
		err = find_program(m);
	if (!err)
		be_strong(m);
	if (!err) {
		err = gmem_minder_resume(m);
		fresh = err == 0;
		err = err < 0 ? err : 0;
	}
	if (!err && fresh)
		err = be_alone(m);
	if (!err && fresh)
		err = gmem_notify_open(&m->above, getenv("NOTIFY_SOCKET"));
	if (!err && fresh)
		err = open_notify(m);
	if (!err && fresh)
		err = open_listeners(m);
	if (!err)
		err = catch_signals(m);
	if (!err)
		err = loop(m);
	close_all(m);
	free(m);
	return err < 0 ? gmem_err_prefix(err, "gmem_minder_run") : err;
}

int gmem_minder_find(const char *dir)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), pidfd;
	pid_t pid = 0;

	if (fd < 0)
		return gmem_err_sys(-errno, "%s", dir);
	pidfd = gmem_fence_holder(fd, GMEM_MINDER_LOCK, &pid);
	close(fd);
	if (pidfd >= 0)
		close(pidfd);
	return pidfd >= 0 ? (int)pid : pidfd == -ESRCH ? 0 : pidfd;
}
