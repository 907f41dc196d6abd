/* SPDX-License-Identifier: MIT */
/*
 * A QMP client: one connection to one QEMU's control monitor.
 *
 * Enters: the path of a UNIX socket, or a connected descriptor; commands as text and jansson values. Leaves: the values
 * QEMU answers, or a negative errno with one line of text that begins with the monitor's name. Every wait has a
 * time-out. Who owns it: the caller, from one thread at a time. No lock.
 */
#ifndef GMEM_LINK_QMP_H
#define GMEM_LINK_QMP_H

#include <jansson.h>
#include <sys/types.h>

struct gmem_qmp;

struct gmem_qmp_version {
	int major, minor, micro;
};

/*
 * Connects, reads the greeting and enters command mode. -ENOENT and -ECONNREFUSED (nobody there), -ETIMEDOUT (no
 * greeting: another client holds the monitor), -EPROTO (not QMP), -ECONNRESET.
 */
int gmem_qmp_connect(const char *path, struct gmem_qmp **ret);

/* As gmem_qmp_connect() on a connected socket. Takes `fd`, also on failure. `name` is what error texts call it. */
int gmem_qmp_attach(int fd, const char *name, struct gmem_qmp **ret);
void gmem_qmp_close(struct gmem_qmp *qmp); /* NULL is allowed */

/* How long a command may take, in milliseconds; 60000 at first. The greeting has 5000, see gmem_qmp_connect(). */
void gmem_qmp_set_timeout(struct gmem_qmp *qmp, int ms);

const struct gmem_qmp_version *gmem_qmp_version(const struct gmem_qmp *qmp);
const char *gmem_qmp_name(const struct gmem_qmp *qmp);

/* The process behind the socket as the kernel tells it; 0 if it is not visible from here. */
pid_t gmem_qmp_peer_pid(const struct gmem_qmp *qmp);

/*
 * Executes a command and waits for its answer. `args` is stolen (also on failure) and may be NULL. `ret` may be NULL;
 * else the caller gets a reference. -EREMOTEIO: QEMU answered with an error (its words are the text); -EOPNOTSUPP: it
 * does not know the command.
 */
int gmem_qmp_exec(struct gmem_qmp *qmp, const char *command, json_t *args, json_t **ret);

/* The same with the arguments packed as by json_pack(). */
int gmem_qmp_execf(struct gmem_qmp *qmp, json_t **ret, const char *command, const char *fmt, ...);

/* A line of the human monitor; returns what it printed, allocated. */
int gmem_qmp_hmp(struct gmem_qmp *qmp, const char *line, char **ret);

/* Sends a descriptor to QEMU under a name ("fd:NAME"). `fd` is borrowed. */
int gmem_qmp_getfd(struct gmem_qmp *qmp, const char *name, int fd);

/* Waits for an event of this name, taking those that came earlier first. `ret` may be NULL. -ETIMEDOUT, -ECONNRESET. */
int gmem_qmp_wait_event(struct gmem_qmp *qmp, const char *name, int timeout_ms, json_t **ret);

/* Waits until QEMU closes the connection. -ETIMEDOUT. */
int gmem_qmp_wait_close(struct gmem_qmp *qmp, int timeout_ms);

#endif
