/* SPDX-License-Identifier: MIT */
#include "sys/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sys/call.h"

void gmem_probe_free(struct gmem_probe *probe)
{
	for (size_t i = 0; i < probe->count; i++) {
		free(probe->facts[i].name);
		free(probe->facts[i].value);
		free(probe->facts[i].what);
		free(probe->facts[i].advice);
	}
	free(probe->facts);
	memset(probe, 0, sizeof(*probe));
}

int gmem_probe_fd(struct gmem_probe *probe, int rc)
{
	if (!probe->err && (rc == -EMFILE || rc == -ENFILE))
		probe->err = rc;
	return rc;
}

static struct gmem_fact *new_fact(struct gmem_probe *probe)
{
	if (probe->count == probe->room) {
		size_t room = probe->room ? 2 * probe->room : 64;
		struct gmem_fact *facts = reallocarray(probe->facts, room, sizeof(*facts));

		if (!facts)
			return NULL;
		probe->facts = facts;
		probe->room = room;
	}
	memset(&probe->facts[probe->count], 0, sizeof(*probe->facts));
	return &probe->facts[probe->count++];
}

void gmem_probe_add(struct gmem_probe *probe, const char *name, enum gmem_host_status status, const char *what,
		    const char *advice, const char *value, ...)
{
	struct gmem_fact *fact = new_fact(probe);
	va_list ap;

	if (!fact) {
		probe->err = -ENOMEM;
		return;
	}
	fact->status = status;
	fact->name = strdup(name);
	fact->what = strdup(what);
	fact->advice = strdup(status == GMEM_HOST_YES ? "" : advice);
	va_start(ap, value);
	if (vasprintf(&fact->value, value, ap) < 0)
		fact->value = NULL;
	va_end(ap);
	if (!fact->name || !fact->what || !fact->advice || !fact->value)
		probe->err = -ENOMEM;
}

enum gmem_host_status gmem_probe_status(int rc)
{
	if (rc >= 0)
		return GMEM_HOST_YES;
	return rc == -EPERM || rc == -EACCES ? GMEM_HOST_DENIED : GMEM_HOST_NO;
}

const char *gmem_probe_why(int rc)
{
	const char *name = rc < 0 ? strerrorname_np(-rc) : "";

	return name ? name : "unknown error";
}

int gmem_probe_read(const char *path, char *buf, size_t len)
{
	int fd = gmem_sys_open(path, O_RDONLY);
	ssize_t n;

	buf[0] = '\0';
	if (fd < 0)
		return fd;
	n = read(fd, buf, len - 1);
	if (n < 0)
		n = -errno;
	close(fd);
	if (n < 0)
		return (int)n;
	buf[n] = '\0';
	buf[strcspn(buf, "\n")] = '\0';
	return 0;
}

void gmem_probe_bracket(char *text)
{
	char *open = strchr(text, '[');
	char *end = open ? strchr(open, ']') : NULL;

	if (!end)
		return;
	*end = '\0';
	memmove(text, open + 1, (size_t)(end - open));
}
