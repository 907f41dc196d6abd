/* SPDX-License-Identifier: MIT */
/* Which process serves a page-state table, and which tables a process holds. */
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "file/state.h"
#include "sys/process.h"

#define END_TIMEOUT_MS 10000

bool gmem_state_server_alive(const struct gmem_state *state)
{
	pid_t pid = atomic_load(&state->header->server_pid);
	uint64_t start = atomic_load(&state->header->server_start);

	return pid > 0 && start && gmem_process_start(pid) == start;
}

int gmem_state_end_server(const struct gmem_state *state)
{
	pid_t pid = atomic_load(&state->header->server_pid);
	struct pollfd p = { .events = POLLIN };
	int err = 0;

	if (!gmem_state_server_alive(state))
		return 0;
	p.fd = gmem_pidfd_open(pid);
	if (p.fd < 0)
		return p.fd == -ESRCH ? 0 : gmem_err_sys(p.fd, "page server %d", (int)pid);
	/* Once more, now that the number cannot come to mean another. */
	if (gmem_state_server_alive(state)) {
		err = gmem_pidfd_kill(p.fd);
		if (err)
			gmem_err_sys(err, "ending page server %d", (int)pid);
		else if (poll(&p, 1, END_TIMEOUT_MS) <= 0)
			err = gmem_err(-EBUSY, "page server %d does not end", (int)pid);
	}
	close(p.fd);
	return err;
}

static bool is_table(pid_t pid, const char *name)
{
	char path[300], link[64];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/fd/%s", (int)pid, name);
	n = readlink(path, link, sizeof(link) - 1);
	if (n < 0)
		return false;
	link[n] = '\0';
	return !strncmp(link, "/memfd:gmem-state", strlen("/memfd:gmem-state"));
}

int gmem_state_find(pid_t pid, int (*found)(void *opaque, int fd), void *opaque)
{
	char path[64];
	struct dirent *e;
	int err = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	dir = opendir(path);
	if (!dir)
		return errno == ENOENT ? gmem_err(-ESRCH, "process %d: there is none", (int)pid) :
					 gmem_err_sys(-errno, "%s", path);
	while (!err && (e = readdir(dir)))
		if (is_table(pid, e->d_name))
			err = found(opaque, atoi(e->d_name));
	closedir(dir);
	return err;
}
