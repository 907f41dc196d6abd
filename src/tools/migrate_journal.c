/* SPDX-License-Identifier: MIT */
/* What a sender leaves behind: a small file, whole and synced before the step it speaks of is taken. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/migrate.h"

void migrate_journal_free(struct migrate_journal *j)
{
	if (!j)
		return;
	free(j->socket);
	free(j->address);
	free(j->dir);
	free(j->peer);
	free(j);
}

static char *absolute(const char *path)
{
	char *whole = realpath(path, NULL);

	return whole ? whole : strdup(path);
}

int migrate_journal_new(const struct migrate_send *s, struct migrate_journal **ret)
{
	struct migrate_journal *j = calloc(1, sizeof(*j));
	char folder[80];

	if (!j)
		return gmem_ui_fail("out of memory");
	if (restore_runtime_folder(folder, sizeof(folder))) {
		free(j);
		return GMEM_UI_FAILED;
	}
	snprintf(j->path, sizeof(j->path), "%s/%d.sending", folder, (int)s->machine.pid);
	j->socket = absolute(s->socket);
	j->address = strdup(s->address);
	j->dir = absolute(s->who.dir);
	j->peer = strdup(s->who.peer);
	memcpy(j->id, s->id, sizeof(j->id));
	j->pid = s->machine.pid;
	j->keep = s->keep;
	if (!j->socket || !j->address || !j->dir || !j->peer) {
		migrate_journal_free(j);
		return gmem_ui_fail("out of memory");
	}
	*ret = j;
	return 0;
}

static int write_all(int fd, const char *text)
{
	size_t len = strlen(text);
	ssize_t n = write(fd, text, len);

	if (n >= 0 && (size_t)n < len) {
		errno = ENOSPC;
		return -1;
	}
	return n < 0 || fsync(fd) ? -1 : 0;
}

static int sync_folder(const char *path)
{
	char folder[PATH_MAX];
	int fd, err;

	snprintf(folder, sizeof(folder), "%s", path);
	*strrchr(folder, '/') = '\0';
	fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	err = fsync(fd);
	close(fd);
	return err;
}

int migrate_journal_mark(struct migrate_journal *j, enum migrate_mark mark)
{
	json_t *top = json_pack("{s:i, s:s, s:s, s:s, s:s, s:s, s:i, s:b, s:b, s:i}", "version", 1, "qmp", j->socket,
				"address", j->address, "tls", j->dir, "peer", j->peer, "id", j->id, "pid", (int)j->pid,
				"running", (int)j->was_running, "keep", (int)j->keep, "mark", (int)mark);
	char *text = top ? json_dumps(top, JSON_INDENT(1)) : NULL;
	char temporary[PATH_MAX + 8];
	int fd = -1, err = 0;

	json_decref(top);
	if (!text)
		return gmem_ui_fail("a path or the address is not UTF-8");
	snprintf(temporary, sizeof(temporary), "%s.new", j->path);
	fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write_all(fd, text) || rename(temporary, j->path) || sync_folder(j->path))
		err = gmem_ui_fail("%s: %s", j->path, strerror(errno));
	if (fd >= 0)
		close(fd);
	free(text);
	if (!err)
		j->mark = mark;
	return err;
}

int migrate_journal_read(const char *path, struct migrate_journal **ret)
{
	const char *qmp, *address, *dir, *peer, *id;
	int version, pid, running, keep, mark;
	struct migrate_journal *j;
	json_error_t jerr;
	json_t *top;

	top = json_load_file(path, 0, &jerr);
	if (!top)
		return gmem_ui_fail("%s: %s", path, access(path, R_OK) ? strerror(errno) : jerr.text);
	j = calloc(1, sizeof(*j));
	if (!j ||
	    json_unpack(top, "{s:i, s:s, s:s, s:s, s:s, s:s, s:i, s:b, s:b, s:i}", "version", &version, "qmp", &qmp,
			"address", &address, "tls", &dir, "peer", &peer, "id", &id, "pid", &pid, "running", &running,
			"keep", &keep, "mark", &mark) ||
	    version != 1 || strlen(id) != MIGRATE_ID_LEN || pid <= 0 || mark < MIGRATE_MARK_STOPPED ||
	    mark > MIGRATE_MARK_GONE || strlen(path) >= sizeof(j->path)) {
		json_decref(top);
		free(j);
		return gmem_ui_fail("%s: not a file that gmem migrate send has left", path);
	}
	strcpy(j->path, path);
	strcpy(j->id, id);
	j->socket = strdup(qmp);
	j->address = strdup(address);
	j->dir = strdup(dir);
	j->peer = strdup(peer);
	j->pid = pid;
	j->was_running = running;
	j->keep = keep;
	j->mark = (enum migrate_mark)mark;
	json_decref(top);
	if (!j->socket || !j->address || !j->dir || !j->peer) {
		migrate_journal_free(j);
		return gmem_ui_fail("out of memory");
	}
	*ret = j;
	return 0;
}

void migrate_journal_remove(struct migrate_journal *j)
{
	if (j->mark)
		unlink(j->path);
	j->mark = 0;
}
