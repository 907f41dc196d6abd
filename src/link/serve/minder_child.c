/* SPDX-License-Identifier: MIT */
/* The server's process: how it is started, what it is given, and what its end means. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"
#include "link/serve/minder_impl.h"
#include "link/serve/socket.h"

#define FIRST_FD 3
#define WORKED_MS 10000u
#define DEFAULT_WATCHDOG_USEC 60000000u

unsigned int gmem_minder_pause_ms(unsigned int deaths)
{
	if (deaths <= 3)
		return 0;
	return deaths - 4 < 7 ? 100u << (deaths - 4) : 10000u;
}

/* ---- what it is given */

struct given {
	int *fds;
	char *names;
	size_t n, len;
};

static void give(struct given *g, const char *name, int fd)
{
	g->len += (size_t)sprintf(g->names + g->len, "%s%s", g->n ? ":" : "", name);
	g->fds[g->n++] = fd;
}

/* All that is passed on, in this order: listening sockets, `extra` with their names, what is stored. */
static int gather(const struct gmem_minder *m, const struct gmem_minder_listening *extra, size_t nextra,
		  struct given *g)
{
	size_t n = m->nlistening + nextra + m->nstored;

	*g = (struct given){ .fds = calloc(n + 1, sizeof(int)), .names = malloc((n + 1) * (GMEM_STORE_MAX_NAME + 1)) };
	if (!g->fds || !g->names) {
		free(g->fds);
		free(g->names);
		return -ENOMEM;
	}
	g->names[0] = '\0';
	for (uint32_t i = 0; i < m->nlistening; i++)
		give(g, m->listening[i].name, m->listening[i].fd);
	for (size_t i = 0; i < nextra; i++)
		give(g, extra[i].name, extra[i].fd);
	for (uint32_t i = 0; i < m->nstored; i++)
		give(g, m->stored[i].name, m->stored[i].fd);
	return 0;
}

static void put_number(const char *name, uint64_t n)
{
	char text[24];

	snprintf(text, sizeof(text), "%llu", (unsigned long long)n);
	setenv(name, text, 1);
}

/*
 * In the child: the descriptors become 3, 4, ... First all are moved out of the way of all. `*keep` is one more that
 * must not be overwritten. Negative errno.
 */
static int arrange(struct given *g, int *keep)
{
	int base = FIRST_FD + (int)g->n, fd;

	fd = fcntl(*keep, F_DUPFD_CLOEXEC, base);
	if (fd < 0)
		return -errno;
	*keep = fd;
	for (size_t i = 0; i < g->n; i++) {
		fd = fcntl(g->fds[i], F_DUPFD_CLOEXEC, base);
		if (fd < 0)
			return -errno;
		g->fds[i] = fd;
	}
	for (size_t i = 0; i < g->n; i++)
		if (dup2(g->fds[i], FIRST_FD + (int)i) < 0)
			return -errno;
	put_number("LISTEN_PID", (uint64_t)getpid());
	put_number("LISTEN_FDS", g->n);
	return setenv("LISTEN_FDNAMES", g->names, 1) ? -errno : 0;
}

static void fresh_signals(void)
{
	sigset_t none;

	for (int sig = 1; sig < NSIG; sig++)
		signal(sig, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static int become_server(const struct gmem_minder *m, struct given *g, int *report)
{
	int err = arrange(g, report), fd;

	if (err)
		return err;
	setenv("NOTIFY_SOCKET", m->notify_path, 1);
	put_number("FDSTORE", m->limit);
	put_number("WATCHDOG_PID", (uint64_t)getpid());
	put_number("WATCHDOG_USEC", m->opts->watchdog_usec ? m->opts->watchdog_usec : DEFAULT_WATCHDOG_USEC);
	/* The server is not as precious as we are. */
	fd = m->oom[0] ? open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC) : -1;
	if (fd >= 0)
		(void)!write(fd, m->oom, strlen(m->oom));
	fresh_signals();
	execv(m->own_program ? "/proc/self/exe" : m->program, m->opts->argv);
	return -errno;
}

/* ---- starting */

/* The child's error, if it could not become the program; 0 once it has. */
static int await_exec(int fd)
{
	int err = 0;
	ssize_t n;

	do {
		n = read(fd, &err, sizeof(err));
	} while (n < 0 && errno == EINTR);
	return n == sizeof(err) ? err : 0;
}

static int start(struct gmem_minder *m)
{
	struct gmem_minder_listening channel = { .name = GMEM_MINDER_CHANNEL };
	int pair[2], report[2], err;
	struct given g;
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return -errno;
	if (pipe2(report, O_CLOEXEC)) {
		err = -errno;
		goto out_pair;
	}
	channel.fd = pair[1];
	err = gather(m, &channel, 1, &g);
	if (err)
		goto out_report;
	pid = fork();
	if (pid == 0) {
		err = become_server(m, &g, &report[1]);
		(void)!write(report[1], &err, sizeof(err));
		_exit(127);
	}
	err = pid < 0 ? -errno : 0;
	close(report[1]);
	report[1] = -1;
	free(g.fds);
	free(g.names);
	if (!err) {
		err = await_exec(report[0]);
		if (err)
			waitpid(pid, NULL, 0);
	}
	if (!err) {
		m->pid = pid;
		m->channel = pair[0];
		pair[0] = -1;
	}
out_report:
	close(report[0]);
	if (report[1] >= 0)
		close(report[1]);
out_pair:
	if (pair[0] >= 0)
		close(pair[0]);
	close(pair[1]);
	return err;
}

static void next_start(struct gmem_minder *m)
{
	unsigned int pause;

	if (m->ready && gmem_now_ms() - m->started >= WORKED_MS)
		m->deaths = 0;
	pause = gmem_minder_pause_ms(++m->deaths);
	/* What is at the path may be broken; what we run ourselves has worked. They are tried in turn. */
	m->own_program = m->ever_ready && !m->ready && !m->own_program;
	m->start_at = gmem_now_ms() + pause;
	if (pause)
		gmem_minder_say(m, "the server is started again in %u ms (it has ended %u times)", pause, m->deaths);
}

void gmem_minder_start(struct gmem_minder *m)
{
	int err;

	m->ready = m->stopping = false;
	m->kill_at = 0;
	m->started = m->heard = gmem_now_ms();
	/* It is given all that is stored; what is accepted from here on is told through the channel. */
	for (uint32_t i = 0; i < m->nstored; i++)
		m->stored[i].untold = false;
	m->nuntold = 0;
	err = start(m);
	if (!err)
		return;
	gmem_minder_say(m, "%s: %s", m->own_program ? "/proc/self/exe" : m->program, strerror(-err));
	if (!m->ever_ready && !m->nstored) {
		m->code = err;
		m->end = true;
	}
	next_start(m);
}

/* ---- its end */

/* Is there a VM to be served, by what a server has written down? */
static bool anybody(const struct gmem_minder *m)
{
	int fd = openat(m->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *de;
	bool found = m->nstored > 0;

	if (!d) {
		if (fd >= 0)
			close(fd);
		return true;
	}
	while (!found && (de = readdir(d))) {
		size_t len = strlen(de->d_name);

		found = len > 5 && !strcmp(de->d_name + len - 5, ".json");
	}
	closedir(d);
	return found;
}

static void died(struct gmem_minder *m, int status)
{
	bool by_signal = WIFSIGNALED(status);
	int code = by_signal ? 128 + WTERMSIG(status) : WEXITSTATUS(status);

	m->pid = 0;
	if (m->channel >= 0)
		close(m->channel);
	m->channel = -1;
	m->kill_at = 0;
	if (m->end || (m->stopping && !m->upgrade && !by_signal)) {
		m->end = true;
		m->code = code;
		return;
	}
	if (m->upgrade && m->ready) {
		gmem_minder_say(m, "the server has ended; the program at %s is started", m->program);
		m->own_program = false;
		m->deaths = 0;
		m->start_at = 0;
		return;
	}
	gmem_minder_say(m, "the server has ended: %s %d", by_signal ? "signal" : "exit code",
			by_signal ? WTERMSIG(status) : code);
	/* It never worked and nobody waits: a mistake on the command line, not an accident. */
	if (!m->ever_ready && !by_signal && code && !anybody(m)) {
		m->end = true;
		m->code = code;
		return;
	}
	next_start(m);
}

void gmem_minder_reap(struct gmem_minder *m)
{
	siginfo_t info = { 0 };
	int status;

	if (!m->pid || waitid(P_PID, (id_t)m->pid, &info, WEXITED | WNOHANG | WNOWAIT) || !info.si_pid)
		return;
	/* All that it said, it has said by now. */
	gmem_minder_hear(m);
	if (waitpid(m->pid, &status, 0) == m->pid)
		died(m, status);
}

/* ---- telling it */

void gmem_minder_tell(struct gmem_minder *m)
{
	for (uint32_t i = 0; i < m->nstored && m->nuntold && m->channel >= 0; i++) {
		struct gmem_minder_stored *s = &m->stored[i];
		size_t id;

		if (!s->untold)
			continue;
		id = strlen(s->name) - strlen(GMEM_STORE_CONNECTION);
		/* If it does not read, or dies: it, or the next one, is told later. */
		if (gmem_socket_send(m->channel, s->name, id, s->fd, MSG_DONTWAIT))
			return;
		s->untold = false;
		m->nuntold--;
	}
}
