/* SPDX-License-Identifier: MIT */
/*
 * A minder that becomes the new program after an upgrade: the same process, so that the server stays its child and the
 * lock stays taken. It passes on to itself what it would pass on to a server, by the same variables; its own
 * descriptors have names of their own.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"
#include "link/serve/minder_impl.h"
#include "link/serve/name.h"
#include "link/serve/socket.h"

#define STATE "GMEM_MINDER" /* "PID DEATHS STARTED UNTOLD...": the server's pid and how it has done */
#define FIRST_FD 3

struct own {
	const char *name;
	int *fd;
};

#define OWN(m)                                                                                                     \
	{                                                                                                          \
		{ "own-fence", &(m)->fence.fd }, { "own-notify", &(m)->notify }, { "own-channel", &(m)->channel }, \
			{ "own-above", &(m)->above.fd },                                                           \
	}

static void set_cloexec(int fd, bool on)
{
	(void)fcntl(fd, F_SETFD, on ? FD_CLOEXEC : 0);
}

/* Everything passes execve(2), under the number it has; the names tell which is which. */
static void keep_open(struct gmem_minder *m, bool on)
{
	struct own own[] = OWN(m);

	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++)
		if (*own[i].fd >= 0)
			set_cloexec(*own[i].fd, !on);
	for (uint32_t i = 0; i < m->nlistening; i++)
		set_cloexec(m->listening[i].fd, !on);
	for (uint32_t i = 0; i < m->nstored; i++)
		set_cloexec(m->stored[i].fd, !on);
}

/* "NAME=FD" of each, separated by ':'; what the server has not heard of has a '!' before it. */
static char *describe(struct gmem_minder *m)
{
	struct own own[] = OWN(m);
	size_t n = (size_t)m->nlistening + m->nstored + 8, len = 0;
	char *text = malloc(n * (GMEM_STORE_MAX_NAME + 16));

	if (!text)
		return NULL;
	len += (size_t)sprintf(text, "%d %u %llu %d %s", (int)m->pid, m->deaths, (unsigned long long)m->started,
			       (int)m->ready, m->oom[0] ? m->oom : "-");
	len = strcspn(text, "\n");
	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++)
		if (*own[i].fd >= 0)
			len += (size_t)sprintf(text + len, ":%s=%d", own[i].name, *own[i].fd);
	for (uint32_t i = 0; i < m->nlistening; i++)
		len += (size_t)sprintf(text + len, ":@%s=%d", m->listening[i].name, m->listening[i].fd);
	for (uint32_t i = 0; i < m->nstored; i++)
		len += (size_t)sprintf(text + len, ":%c%s=%d", m->stored[i].untold ? '!' : '+', m->stored[i].name,
				       m->stored[i].fd);
	return text;
}

void gmem_minder_become(struct gmem_minder *m)
{
	char *text = describe(m);

	m->become = false;
	if (text && !setenv(STATE, text, 1)) {
		keep_open(m, true);
		execv(m->program, m->opts->argv);
		gmem_minder_say(m, "%s: %s: the minder stays what it is", m->program, strerror(errno));
		keep_open(m, false);
		unsetenv(STATE);
	}
	free(text);
}

static int take_one(struct gmem_minder *m, char *item)
{
	struct own own[] = OWN(m);
	char *eq = strrchr(item, '=');
	int fd;

	if (!eq || !item[0])
		return gmem_err(-EINVAL, "$" STATE ": \"%s\"", item);
	*eq = '\0';
	fd = atoi(eq + 1);
	if (fd < FIRST_FD || fcntl(fd, F_SETFD, FD_CLOEXEC))
		return gmem_err(-EINVAL, "$" STATE ": %s is descriptor %d", item, fd);
	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++) {
		if (strcmp(item, own[i].name))
			continue;
		*own[i].fd = fd;
		return 0;
	}
	if (!gmem_name_ok(item + 1))
		return gmem_err(-EINVAL, "$" STATE ": \"%s\"", item);
	if (item[0] == '@')
		return gmem_minder_listen(m, item + 1, fd);
	return gmem_minder_keep(m, item + 1, fd, item[0] == '!');
}

int gmem_minder_resume(struct gmem_minder *m)
{
	const char *state = getenv(STATE), *address = getenv("NOTIFY_SOCKET");
	unsigned long long started = 0;
	char *text, *rest, *item;
	int pid = 0, ready = 0, err = 0;

	if (!state)
		return 0;
	text = rest = strdup(state);
	unsetenv(STATE);
	if (!text)
		return gmem_err_sys(-ENOMEM, "$" STATE);
	item = strsep(&rest, ":");
	if (sscanf(item, "%d %u %llu %d %15s", &pid, &m->deaths, &started, &ready, m->oom) != 5 || pid < 0 || pid == 1)
		err = gmem_err(-EINVAL, "$" STATE ": \"%s\"", item);
	while (!err && (item = strsep(&rest, ":")))
		err = take_one(m, item);
	free(text);
	if (err)
		return err;
	if (m->fence.fd < 0 || m->notify < 0)
		return gmem_err(-EINVAL, "$" STATE ": a descriptor is missing");
	if (m->above.fd >= 0 && address)
		err = gmem_socket_address(address, &m->above.addr, &m->above.addrlen);
	if (m->oom[0] == '-' && !m->oom[1])
		m->oom[0] = '\0';
	m->pid = pid;
	m->ready = ready;
	m->ever_ready = true;
	m->started = started;
	m->heard = gmem_now_ms();
	gmem_minder_say(m, "the minder is the new program");
	return err ? err : 1;
}
